//! The JSON documents of an image: config, manifest, index, and docker's `manifest.json`.
//!
//! Pure: from values to values. Owns the media types and annotations each sink's documents carry.
//! Must not know files, stores or registries.
//!
//! Read [`Documents`] first.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use stave_oci::{
    Descriptor, Digest, History, ImageConfig, Index, Manifest, Platform, Reference, layer_media_type,
    media_type,
};

use crate::spec::{Annotations, MediaTypes};

/// Annotation with a name's tag (OCI image spec, annotations.md): what `skopeo` selects by.
pub const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// Annotation with the full name, which containerd reads.
pub const CONTAINERD_NAME: &str = "io.containerd.image.name";
/// Annotation with the config's time, as BuildKit writes it.
pub const CREATED: &str = "org.opencontainers.image.created";

/// The comment BuildKit gives history lines it had to invent.
pub const INVENTED_HISTORY: &str = "buildkit.exporter.image.v0";

/// A document with its descriptor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Document {
    pub(crate) descriptor: Descriptor,
    pub(crate) bytes: Vec<u8>,
}

impl Document {
    pub(crate) fn new(media_type: &str, bytes: Vec<u8>) -> Self {
        Self { descriptor: Descriptor::of(media_type, &bytes), bytes }
    }
}

/// An image's config and manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Documents {
    pub(crate) config: Document,
    pub(crate) manifest: Document,
}

/// The config of an image whose layers have `diff_ids`: root file system filled in, history made to
/// agree with the layers.
///
/// Readers pair history lines that are not `empty_layer` with layers one by one, so surplus lines
/// at the end become empty and missing ones are added, as BuildKit does.
pub(crate) fn seal_config(mut config: ImageConfig, diff_ids: Vec<Digest>) -> ImageConfig {
    let mut layers = 0;
    for line in &mut config.history {
        if layers >= diff_ids.len() {
            line.empty_layer = true;
        }
        layers += usize::from(!line.empty_layer);
    }
    for _ in layers..diff_ids.len() {
        config.history.push(History {
            created: config.created.clone(),
            comment: INVENTED_HISTORY.to_owned(),
            ..History::default()
        });
    }
    config.rootfs.diff_ids = diff_ids;
    config
}

/// `config` with nothing in it later than `epoch` (seconds) and created then, as BuildKit's exporter does
/// with `source-date-epoch`.
pub(crate) fn dated(mut config: ImageConfig, epoch: Option<i64>) -> ImageConfig {
    let Some(epoch) = epoch.and_then(|seconds| Timestamp::from_second(seconds).ok()) else { return config };
    let text = epoch.to_string();
    for line in &mut config.history {
        let time = line.created.as_deref().and_then(|text| text.parse::<Timestamp>().ok());
        if time.is_none_or(|time| time > epoch) {
            line.created = Some(text.clone());
        }
    }
    config.created = Some(text);
    config
}

/// Assembles an image's documents from its config's bytes and its layers' descriptors.
pub(crate) fn assemble(
    config: Vec<u8>,
    layers: &[Descriptor],
    (family, nondistributable): (MediaTypes, bool),
    annotations: &BTreeMap<String, String>,
) -> Documents {
    let (config_type, manifest_type) = match family {
        MediaTypes::Oci => (media_type::OCI_CONFIG, media_type::OCI_MANIFEST),
        MediaTypes::Docker => (media_type::DOCKER_CONFIG, media_type::DOCKER_MANIFEST),
    };
    let config = Document::new(config_type, config);
    let manifest = Manifest {
        schema_version: 2,
        media_type: Some(manifest_type.to_owned()),
        artifact_type: None,
        config: config.descriptor.clone(),
        layers: layers.iter().map(|layer| in_family(layer, family, nondistributable)).collect(),
        subject: None,
        annotations: annotations.clone(),
    };
    Documents { config, manifest: Document::new(manifest_type, json(&manifest)) }
}

/// `layer` with the media type of its compression in `family`. A foreign layer, whose blob goes along
/// like any other then, becomes an ordinary one unless told to keep its type.
fn in_family(layer: &Descriptor, family: MediaTypes, nondistributable: bool) -> Descriptor {
    let mut layer = layer.clone();
    if let Some(found) = layer_media_type(&layer.media_type)
        && !(found.foreign && nondistributable)
    {
        layer.media_type = match family {
            MediaTypes::Oci => found.compression.oci_media_type(),
            MediaTypes::Docker => found.compression.docker_media_type(),
        }
        .to_owned();
        layer.urls.clear();
    }
    layer
}

/// One platform of an image, for its index.
#[derive(Debug, Clone)]
pub(crate) struct PlatformEntry {
    pub(crate) manifest: Descriptor,
    pub(crate) platform: Platform,
    /// The manifest of what is attested of it.
    pub(crate) attestation: Option<Descriptor>,
}

/// The index of an image: its platforms, then what is attested of them, as BuildKit orders them.
pub(crate) fn platform_index(
    entries: Vec<PlatformEntry>,
    annotations: &Annotations,
    family: MediaTypes,
) -> Document {
    let media_type = match family {
        MediaTypes::Oci => media_type::OCI_INDEX,
        MediaTypes::Docker => media_type::DOCKER_INDEX,
    };
    let mut manifests = Vec::new();
    let mut attestations = Vec::new();
    for entry in entries {
        let mut manifest = entry.manifest;
        manifest.annotations.extend(annotations.of_descriptor(&entry.platform));
        manifest.platform = Some(entry.platform);
        manifests.push(manifest);
        attestations.extend(entry.attestation);
    }
    manifests.append(&mut attestations);
    let index = Index {
        schema_version: 2,
        media_type: Some(media_type.to_owned()),
        artifact_type: None,
        manifests,
        subject: None,
        annotations: annotations.index.clone(),
    };
    Document::new(media_type, json(&index))
}

/// One image in the index of a layout.
#[derive(Debug, Clone)]
pub(crate) struct IndexEntry<'a> {
    /// Its manifest, or its own index.
    pub(crate) top: Descriptor,
    pub(crate) created: Option<&'a str>,
    pub(crate) names: &'a [Reference],
}

/// An `index.json`: each image once per name (once without one when it has no name).
pub(crate) fn index(entries: &[IndexEntry<'_>], annotations: &BTreeMap<String, String>) -> Index {
    let mut manifests = Vec::new();
    for entry in entries {
        let mut base = entry.top.clone();
        if let Some(created) = entry.created {
            // Who named a time means it.
            base.annotations.entry(CREATED.to_owned()).or_insert_with(|| created.to_owned());
        }
        for name in entry.names {
            let mut named = base.clone();
            named.annotations.insert(CONTAINERD_NAME.to_owned(), name.canonical());
            if let Some(tag) = name.tag() {
                named.annotations.insert(REF_NAME.to_owned(), tag.to_owned());
            }
            manifests.push(named);
        }
        if entry.names.is_empty() {
            manifests.push(base);
        }
    }
    Index {
        schema_version: 2,
        media_type: Some(media_type::OCI_INDEX.to_owned()),
        artifact_type: None,
        manifests,
        subject: None,
        annotations: annotations.clone(),
    }
}

/// One image of docker's `manifest.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct DockerArchiveEntry {
    /// Path of the config in the archive.
    pub(crate) config: String,
    /// Names with tags; docker writes `null` for none.
    #[serde(default)]
    pub(crate) repo_tags: Option<Vec<String>>,
    /// Paths of the layers in the archive, bottom first.
    #[serde(default)]
    pub(crate) layers: Option<Vec<String>>,
}

/// The contents of `oci-layout` (OCI image spec, image-layout.md).
pub(crate) const OCI_LAYOUT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;

/// The path of a blob in an image layout.
pub(crate) fn blob_path(digest: &Digest) -> String {
    format!("blobs/{}", digest.as_str().replacen(':', "/", 1))
}

/// Compact JSON. Documents are trees of strings, integers and string maps, which always serialise.
pub(crate) fn json<T: Serialize>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use stave_oci::Compression;

    use super::*;

    fn digest(text: &str) -> Digest {
        Digest::sha256(text.as_bytes())
    }

    #[track_caller]
    fn check_history(empty: &[bool], layers: usize, expected: &[bool]) {
        let line = |&empty_layer: &bool| History { empty_layer, ..History::default() };
        let config = ImageConfig { history: empty.iter().map(line).collect(), ..ImageConfig::default() };
        let diff_ids: Vec<_> = (0..layers).map(|n| digest(&n.to_string())).collect();
        let sealed = seal_config(config, diff_ids.clone());
        assert_eq!(sealed.rootfs.diff_ids, diff_ids);
        assert_eq!(sealed.history.iter().map(|line| line.empty_layer).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn history_agrees_with_the_layers() {
        check_history(&[], 0, &[]);
        check_history(&[false, true], 1, &[false, true]);
        check_history(&[false, false], 1, &[false, true]);
        check_history(&[true], 2, &[true, false, false]);
    }

    #[test]
    fn manifests_keep_to_one_family_of_media_types() {
        let layer = Descriptor::new(Compression::Gzip.docker_media_type(), digest("a"), 3);
        let foreign = Descriptor::new(media_type::DOCKER_FOREIGN_LAYER_GZIP, digest("b"), 4);
        let layers = [layer, foreign];
        let types = |family| {
            let documents = assemble(b"{}".to_vec(), &layers, family, &BTreeMap::new());
            let manifest: Manifest = serde_json::from_slice(&documents.manifest.bytes).expect("JSON");
            assert_eq!(manifest.config, documents.config.descriptor);
            let mut types = vec![documents.manifest.descriptor.media_type, manifest.config.media_type];
            types.extend(manifest.layers.into_iter().map(|layer| layer.media_type));
            types
        };
        assert_eq!(
            types((MediaTypes::Oci, true)),
            [
                media_type::OCI_MANIFEST,
                media_type::OCI_CONFIG,
                media_type::OCI_LAYER_GZIP,
                media_type::DOCKER_FOREIGN_LAYER_GZIP
            ]
        );
        assert_eq!(
            types((MediaTypes::Docker, false)),
            [
                media_type::DOCKER_MANIFEST,
                media_type::DOCKER_CONFIG,
                media_type::DOCKER_LAYER_GZIP,
                media_type::DOCKER_LAYER_GZIP
            ]
        );
    }

    #[test]
    fn a_manifest_is_the_bytes_of_the_specification() {
        let annotations = BTreeMap::from([("a".to_owned(), "b".to_owned())]);
        let documents = assemble(b"{}".to_vec(), &[], (MediaTypes::Oci, false), &annotations);
        insta::assert_snapshot!(String::from_utf8_lossy(&documents.manifest.bytes), @r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","size":2},"layers":[],"annotations":{"a":"b"}}"#);
    }

    #[test]
    fn indexes_name_images_for_skopeo_and_containerd() {
        let names: Vec<Reference> =
            ["app:1.0", "localhost:5000/b"].iter().map(|n| n.parse().expect("valid")).collect();
        let entry = IndexEntry {
            top: Descriptor::of(media_type::OCI_MANIFEST, b"m"),
            created: Some("2026-01-02T03:04:05Z"),
            names: &names,
        };
        let unnamed = IndexEntry { names: &[], created: None, ..entry.clone() };
        let found = index(&[entry, unnamed], &BTreeMap::new());
        let annotations: Vec<_> = found
            .manifests
            .iter()
            .map(|m| {
                (
                    m.annotations.get(CONTAINERD_NAME).map(String::as_str),
                    m.annotations.get(REF_NAME).map(String::as_str),
                )
            })
            .collect();
        assert_eq!(
            annotations,
            [
                (Some("docker.io/library/app:1.0"), Some("1.0")),
                (Some("localhost:5000/b:latest"), Some("latest")),
                (None, None)
            ]
        );
    }

    #[test]
    fn blob_paths_follow_the_layout() {
        let path = blob_path(&digest(""));
        assert_eq!(path, "blobs/sha256/e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    }
}
