//! The exporter on a real store: archives out and in, pushes to a registry, and the same archives in
//! the hands of other programs.

mod archives;
mod engine;
mod hostile;
mod platforms;
mod push;
mod readers;

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use stave_exporter::{
    ArchiveDestination, ArchiveTarget, Destination, Exporter, Image, ImageFormat, ImageLayerRef,
};
use stave_oci::{
    Compression, ContainerConfig, Descriptor, Digest, History, ImageConfig, Platform, Reference,
};
use stave_registry::{Client, ClientConfig, Keychain, Limits, RegistryTables};
use stave_store::{ApplyOptions, OverlayXattrs, Snapshot, Store, StoreConfig};

/// A store, an exporter on it, and a directory for results.
struct Bench {
    store: Store,
    exporter: Exporter,
    directory: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let config = StoreConfig { xattrs: OverlayXattrs::User };
        let store = Store::open_with(&directory.path().join("store"), &config).expect("a store");
        let client = Client::new(ClientConfig {
            registries: RegistryTables::default(),
            keychain: Keychain::anonymous(),
            limits: Limits::default(),
            user_agent: "stave/test".to_owned(),
        });
        let exporter = Exporter::new(store.clone(), client.expect("a client"));
        Self { store, exporter, directory }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn layer(&self, base: &Snapshot, build: impl FnOnce(&Path)) -> Snapshot {
        let layer = self.store.prepare(base).expect("prepares");
        build(layer.upper());
        layer.commit().expect("commits")
    }

    /// An image of two layers made here.
    fn built(&self) -> Image {
        let base = self.layer(&Snapshot::scratch(), |root| {
            fs::create_dir(root.join("etc")).expect("creates");
            fs::write(root.join("etc/name"), "base").expect("writes");
            fs::write(root.join("data"), noise(3 << 20)).expect("writes");
            settle(root, &["etc/name", "etc", "data"]);
        });
        let top = self.layer(&base, |root| {
            fs::create_dir(root.join("etc")).expect("creates");
            fs::write(root.join("etc/name"), "top").expect("writes");
            settle(root, &["etc/name", "etc"]);
        });
        Image::built(config(2), &top, &[])
    }

    /// An image whose first layer came as `blob`, a gzip whose tar is not the one the store would write.
    fn on_pulled_base(&self, origin: Option<Reference>) -> (Image, Vec<u8>) {
        let blob = foreign_layer();
        let applied = self.store.apply_layer(&blob[..], &ApplyOptions::default()).expect("applies");
        let base = ImageLayerRef {
            layer: applied.layer,
            blob: Some(Descriptor::of(Compression::Gzip.oci_media_type(), &blob)),
            origin,
            diff_id: Some(applied.diff_id),
        };
        let top = self.layer(&Snapshot::new(vec![applied.layer]), |root| {
            fs::write(root.join("top"), "top").expect("writes");
        });
        (Image::built(config(2), &top, &[base]), blob)
    }

    fn put_blob(&self, bytes: &[u8]) -> Digest {
        let mut writer = self.store.blob_writer(None, 1 << 30).expect("a writer");
        writer.write_all(bytes).expect("writes");
        writer.commit().expect("commits").0
    }
}

fn config(layers: usize) -> ImageConfig {
    let platform = Platform::host();
    ImageConfig {
        created: Some("2026-01-02T03:04:05Z".to_owned()),
        architecture: platform.architecture,
        os: platform.os,
        config: ContainerConfig { cmd: Some(vec!["/bin/true".to_owned()]), ..ContainerConfig::default() },
        history: vec![History { created_by: "RUN x".to_owned(), ..History::default() }; layers],
        ..ImageConfig::default()
    }
}

/// Gives files one time, so that two runs make the same layers.
fn settle(root: &Path, paths: &[&str]) {
    for path in paths {
        let file = fs::File::open(root.join(path)).expect("opens");
        file.set_modified(std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000))
            .expect("sets");
    }
}

/// Bytes that compress, but not to nothing, over several gzip members.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 7u32;
    (0..length)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 29) as u8
        })
        .collect()
}

/// A layer as another program writes it: GNU headers, other order, one gzip member.
fn foreign_layer() -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, content) in [("z", "last first"), ("a", "first last")] {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o600);
        header.set_size(content.len() as u64);
        header.set_mtime(1_000_000_000);
        tar.append_data(&mut header, name, content.as_bytes()).expect("appends");
    }
    let plain = tar.into_inner().expect("a vector takes all");
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(9));
    gzip.write_all(&plain).expect("writes");
    gzip.finish().expect("finishes")
}

fn names(list: &[&str]) -> Vec<Reference> {
    list.iter().map(|name| name.parse().expect("a valid name")).collect()
}

fn tar_target(path: &Path, list: &[&str]) -> ArchiveTarget {
    ArchiveTarget {
        dest: ArchiveDestination::Tar(Destination::File(path.to_owned())),
        names: names(list),
        format: ImageFormat::default(),
    }
}
