//! Archives that lie.

use std::io::Cursor;

use stave_exporter::{LoadErrorKind, LoadSource};
use stave_oci::{Compression, Descriptor, Digest, Manifest, media_type};

use crate::Bench;

/// The files of a one-layer OCI archive, by name.
struct Parts {
    layer: Vec<u8>,
    config: Vec<u8>,
    manifest: Manifest,
}

impl Parts {
    fn new() -> Self {
        let layer = {
            let mut tar = tar::Builder::new(Vec::new());
            let mut header = tar::Header::new_ustar();
            header.set_size(2);
            header.set_mode(0o644);
            tar.append_data(&mut header, "file", &b"ok"[..]).expect("appends");
            tar.into_inner().expect("a vector takes all")
        };
        let mut config = crate::config(1);
        config.rootfs.diff_ids = vec![Digest::sha256(&layer)];
        let config = config.to_bytes();
        let manifest = Manifest {
            schema_version: 2,
            media_type: Some(media_type::OCI_MANIFEST.to_owned()),
            artifact_type: None,
            config: Descriptor::of(media_type::OCI_CONFIG, &config),
            layers: vec![Descriptor::of(Compression::None.oci_media_type(), &layer)],
            subject: None,
            annotations: Default::default(),
        };
        Self { layer, config, manifest }
    }

    /// The archive; `corrupt` may change any file by its name.
    fn archive(&self, corrupt: impl Fn(&str, Vec<u8>) -> Vec<u8>) -> Vec<u8> {
        let manifest = serde_json::to_vec(&self.manifest).expect("JSON");
        let descriptor = Descriptor::of(media_type::OCI_MANIFEST, &manifest);
        let index =
            serde_json::json!({ "schemaVersion": 2, "manifests": [descriptor] }).to_string().into_bytes();
        let blob = |digest: &Digest| format!("blobs/sha256/{}", digest.hex());
        let files = [
            ("layer", blob(&self.manifest.layers[0].digest), self.layer.clone()),
            ("config", blob(&self.manifest.config.digest), self.config.clone()),
            ("manifest", blob(&descriptor.digest), manifest),
            ("index", "index.json".to_owned(), index),
        ];
        let mut tar = tar::Builder::new(Vec::new());
        for (what, name, bytes) in files {
            let bytes = corrupt(what, bytes);
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            tar.append_data(&mut header, name, &bytes[..]).expect("appends");
        }
        tar.into_inner().expect("a vector takes all")
    }
}

async fn load(bytes: Vec<u8>) -> Result<usize, LoadErrorKind> {
    let bench = Bench::new();
    let loaded = bench.exporter.load(LoadSource::Stream(Box::new(Cursor::new(bytes))), &[]).await;
    if loaded.is_err() {
        assert!(bench.store.images().expect("lists").is_empty(), "nothing of a bad archive is an image");
    }
    loaded.map(|images| images.len()).map_err(|error| *error.kind)
}

#[track_caller]
fn refused(result: Result<usize, LoadErrorKind>, expected: impl Fn(&LoadErrorKind) -> bool) {
    let error = result.expect_err("it is refused");
    assert!(expected(&error), "{error:?}");
}

#[tokio::test]
async fn what_is_right_is_loaded() {
    assert_eq!(load(Parts::new().archive(|_, bytes| bytes)).await.expect("loads"), 1);
}

#[tokio::test]
async fn changed_bytes_are_found_out() {
    for what in ["layer", "config", "manifest"] {
        let flip = |name: &str, mut bytes: Vec<u8>| {
            if name == what {
                let last = bytes.len() - 1;
                // Inside the tar's content for the layer, inside the JSON for the others.
                let place = if what == "layer" { 512 } else { last };
                bytes[place] ^= 1;
            }
            bytes
        };
        refused(load(Parts::new().archive(flip)).await, |error| {
            matches!(error, LoadErrorKind::Digest { .. } | LoadErrorKind::Layer { .. })
        });
    }
    let grow = |name: &str, mut bytes: Vec<u8>| {
        if name == "layer" {
            bytes.push(0);
        }
        bytes
    };
    refused(load(Parts::new().archive(grow)).await, |error| matches!(error, LoadErrorKind::Size { .. }));
}

#[tokio::test]
async fn a_blob_whose_digest_is_right_but_whose_tar_is_not_the_configs_is_refused() {
    let mut parts = Parts::new();
    let mut config = crate::config(1);
    config.rootfs.diff_ids = vec![Digest::sha256(b"something else")];
    parts.config = config.to_bytes();
    parts.manifest.config = Descriptor::of(media_type::OCI_CONFIG, &parts.config);
    refused(load(parts.archive(|_, bytes| bytes)).await, |error| {
        matches!(error, LoadErrorKind::Layer { .. })
    });
}

#[tokio::test]
async fn documents_that_do_not_fit_together_are_refused() {
    let mut parts = Parts::new();
    parts.manifest.layers.push(parts.manifest.layers[0].clone());
    refused(load(parts.archive(|_, bytes| bytes)).await, |error| {
        matches!(error, LoadErrorKind::LayerCount { diff_ids: 1, layers: 2, .. })
    });
    let mut parts = Parts::new();
    parts.manifest.layers[0].media_type = "application/vnd.example.thing".to_owned();
    refused(load(parts.archive(|_, bytes| bytes)).await, |error| {
        matches!(error, LoadErrorKind::LayerType(_))
    });
    let not_json = |name: &str, bytes: Vec<u8>| if name == "index" { b"{".to_vec() } else { bytes };
    refused(load(Parts::new().archive(not_json)).await, |error| {
        matches!(error, LoadErrorKind::Manifest { .. })
    });
}

#[tokio::test]
async fn what_is_no_archive_says_so() {
    refused(load(b"hello".repeat(500)).await, |error| matches!(error, LoadErrorKind::NotTar(_)));
    refused(load(Vec::new()).await, |error| matches!(error, LoadErrorKind::NotTar(_)));
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(0);
    tar.append_data(&mut header, "file", &b""[..]).expect("appends");
    let bytes = tar.into_inner().expect("a vector takes all");
    refused(load(bytes).await, |error| matches!(error, LoadErrorKind::NotImages));
}

#[tokio::test]
async fn a_known_layer_is_not_paired_with_an_unrelated_blob() {
    let bench = Bench::new();
    let load = async |bytes: Vec<u8>| {
        let source = LoadSource::Stream(Box::new(Cursor::new(bytes)));
        bench.exporter.load(source, &[]).await
    };
    let right = Parts::new();
    load(right.archive(|_, bytes| bytes)).await.expect("loads");
    // A blob of something else, which the store has for whatever reason.
    let unrelated = crate::foreign_layer();
    bench.put_blob(&unrelated);
    let mut lying = Parts::new();
    lying.manifest.layers = vec![Descriptor::of(Compression::Gzip.oci_media_type(), &unrelated)];
    lying.layer = unrelated;
    let error = load(lying.archive(|_, bytes| bytes)).await.expect_err("they are not of one layer");
    assert!(matches!(*error.kind, LoadErrorKind::Digest { .. }), "{error:?}");
}
