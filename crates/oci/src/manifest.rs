//! Descriptors, manifests and indexes (OCI image spec descriptor.md, manifest.md, image-index.md) and
//! Docker's schema 2 forms of them, which differ in their media types only.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{Digest, Platform, media_type};

/// Bytes of the largest manifest or index that is read, as registries limit it.
pub const MAX_MANIFEST_SIZE: u64 = 4 << 20;

/// A reference to a blob by digest, size and type.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// Media type of the blob.
    pub media_type: String,
    /// Digest of the blob.
    pub digest: Digest,
    /// Size of the blob in bytes.
    pub size: u64,
    /// Where else it can be fetched from; never followed with credentials.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub urls: Vec<String>,
    /// Free annotations.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// For a manifest in an index: what it runs on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// For a manifest in an index: the type of the artifact.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// The blob itself, in base64, where it is so small that it travels along.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<String>,
}

impl Descriptor {
    /// A descriptor without annotations or platform.
    pub fn new(media_type: &str, digest: Digest, size: u64) -> Self {
        Self {
            media_type: media_type.to_owned(),
            digest,
            size,
            urls: Vec::new(),
            annotations: BTreeMap::new(),
            platform: None,
            artifact_type: None,
            data: None,
        }
    }

    /// The descriptor of `bytes`.
    pub fn of(media_type: &str, bytes: &[u8]) -> Self {
        Self::new(media_type, Digest::sha256(bytes), bytes.len() as u64)
    }
}

/// A single image's manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Always 2.
    pub schema_version: u32,
    /// The manifest's own media type.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// Type of the artifact, when it is not an image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// The config blob.
    pub config: Descriptor,
    /// The layer blobs, bottom first.
    pub layers: Vec<Descriptor>,
    /// The manifest this one refers to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Descriptor>,
    /// Free annotations.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// A list of manifests, usually one per platform.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    /// Always 2.
    pub schema_version: u32,
    /// The index's own media type.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// Type of the artifact, when it is not an image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// The manifests (or further indexes).
    pub manifests: Vec<Descriptor>,
    /// The manifest this one refers to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Descriptor>,
    /// Free annotations.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// What a tag or digest can stand for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ManifestOrIndex {
    /// One image.
    Manifest(Box<Manifest>),
    /// Several.
    Index(Box<Index>),
}

/// A document that is neither a manifest nor an index.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Larger than [`MAX_MANIFEST_SIZE`].
    #[error("manifest of {0} bytes is over the limit of {MAX_MANIFEST_SIZE} bytes")]
    TooLarge(u64),
    /// A media type that is not an image's.
    #[error("unsupported manifest media type `{0}`")]
    MediaType(String),
    /// Not the JSON of its type.
    #[error("malformed manifest of type `{media_type}`")]
    Json {
        /// What it said it was.
        media_type: String,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// The document's own `mediaType` contradicts how it was served. Reading it either way would let
    /// one digest mean two things (CVE-2021-41190).
    #[error("manifest says it is `{inner}`, but was served as `{outer}`")]
    Contradiction {
        /// In the document.
        inner: String,
        /// From the server or the descriptor.
        outer: String,
    },
    /// Both `layers` and `manifests` in one document: ambiguous for the same reason.
    #[error("manifest has both `layers` and `manifests`")]
    Ambiguous,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Probe {
    #[serde(default)]
    media_type: Option<String>,
    #[serde(default)]
    layers: Option<serde::de::IgnoredAny>,
    #[serde(default)]
    manifests: Option<serde::de::IgnoredAny>,
}

impl ManifestOrIndex {
    /// Reads a document that came with the media type `served` (`None`: nothing was said).
    ///
    /// # Errors
    /// When it is too large, of another type, malformed, or contradicts itself.
    pub fn parse(bytes: &[u8], served: Option<&str>) -> Result<Self, ManifestError> {
        if bytes.len() as u64 > MAX_MANIFEST_SIZE {
            return Err(ManifestError::TooLarge(bytes.len() as u64));
        }
        let served = served.map(|name| name.split(';').next().unwrap_or(name).trim());
        let malformed =
            |source| ManifestError::Json { media_type: served.unwrap_or("unknown").to_owned(), source };
        let probe: Probe = serde_json::from_slice(bytes).map_err(malformed)?;
        if probe.layers.is_some() && probe.manifests.is_some() {
            return Err(ManifestError::Ambiguous);
        }
        let known = |name: &str| media_type::is_index(name) || media_type::is_manifest(name);
        let name = match (probe.media_type.as_deref(), served.filter(|name| known(name))) {
            (Some(inner), Some(outer)) if inner != outer => {
                return Err(ManifestError::Contradiction {
                    inner: inner.to_owned(),
                    outer: outer.to_owned(),
                });
            }
            (Some(name), _) | (None, Some(name)) => name,
            // OCI documents may leave `mediaType` out; servers may say `application/json`.
            (None, None) if probe.manifests.is_some() => media_type::OCI_INDEX,
            (None, None) if probe.layers.is_some() => media_type::OCI_MANIFEST,
            (None, None) => return Err(ManifestError::MediaType(served.unwrap_or("unknown").to_owned())),
        };
        if media_type::is_index(name) {
            serde_json::from_slice(bytes).map(Box::new).map(Self::Index).map_err(malformed)
        } else if media_type::is_manifest(name) {
            serde_json::from_slice(bytes).map(Box::new).map(Self::Manifest).map_err(malformed)
        } else {
            Err(ManifestError::MediaType(name.chars().take(160).collect()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(media: &str) -> String {
        let digest = Digest::sha256(b"x");
        format!(
            r#"{{"schemaVersion":2{media},"config":{{"mediaType":"{}","digest":"{digest}","size":1}},"layers":[]}}"#,
            media_type::OCI_CONFIG
        )
    }

    #[track_caller]
    fn check(text: &str, served: Option<&str>, expected: Result<&str, &str>) {
        let found = ManifestOrIndex::parse(text.as_bytes(), served).map(|document| match document {
            ManifestOrIndex::Manifest(_) => "manifest",
            ManifestOrIndex::Index(_) => "index",
        });
        assert_eq!(found.map_err(|error| error.to_string()), expected.map_err(str::to_owned));
    }

    #[test]
    fn documents_are_read_by_type_or_by_shape() {
        check(&manifest(""), None, Ok("manifest"));
        check(&manifest(""), Some("application/json; charset=utf-8"), Ok("manifest"));
        check(&manifest(""), Some(media_type::DOCKER_MANIFEST), Ok("manifest"));
        check(r#"{"schemaVersion":2,"manifests":[]}"#, None, Ok("index"));
    }

    #[test]
    fn documents_that_contradict_themselves_are_refused() {
        check(
            &manifest(&format!(r#","mediaType":"{}""#, media_type::OCI_MANIFEST)),
            Some(media_type::OCI_INDEX),
            Err(&format!(
                "manifest says it is `{}`, but was served as `{}`",
                media_type::OCI_MANIFEST,
                media_type::OCI_INDEX
            )),
        );
        check(
            r#"{"schemaVersion":2,"manifests":[],"layers":[]}"#,
            None,
            Err("manifest has both `layers` and `manifests`"),
        );
        check(
            r#"{"schemaVersion":1,"mediaType":"application/vnd.docker.distribution.manifest.v1+prettyjws"}"#,
            None,
            Err(
                "unsupported manifest media type `application/vnd.docker.distribution.manifest.v1+prettyjws`",
            ),
        );
        assert!(ManifestOrIndex::parse(b"<html>", None).is_err());
    }
}
