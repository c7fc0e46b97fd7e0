//! The image as every sink sees it: a value, complete, never patched. Must not know the sinks.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use stave_oci::{Descriptor, Digest, ImageConfig, Platform, Reference};
use stave_store::{LayerId, LocalImage, Snapshot, StoredAttestation, StoredManifest};

/// An image to export.
#[derive(Debug, Clone)]
pub struct Image {
    /// Its config.
    pub config: ConfigDocument,
    /// Its layers, bottom first.
    pub layers: Vec<ImageLayerRef>,
    /// What it runs on.
    pub platform: Platform,
    /// The manifest it came with: kept byte for byte where its layers are kept, so that an image
    /// that was pulled is pushed and saved under the same digest.
    pub manifest: Option<StoredManifest>,
    /// Files of the layers made here are written with no time after this (seconds since the epoch).
    pub epoch: Option<i64>,
    /// What is attested of it; sinks that cannot carry it refuse.
    pub attestations: Vec<Attestation>,
}

/// Something attested of an image: an in-toto predicate. The statement around it, which names the
/// image by its digest, is made at export.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Attestation {
    /// The URI that says what the predicate is.
    pub predicate_type: String,
    /// The predicate, as JSON; nothing at all stands for `null`.
    pub predicate: Vec<u8>,
    /// The file that `local` and `tar` sinks give it, such as `provenance.json`.
    pub file_name: String,
    /// What it speaks of; empty: the image.
    pub subjects: Vec<AttestedSubject>,
    /// Whether it goes with images only, and not with files.
    pub images_only: bool,
    /// Whether it is the main bill of materials, which is to tell the layer of each file.
    pub is_core_bill: bool,
}

/// What an attestation speaks of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AttestedSubject {
    /// The image itself, or the files of the result.
    Result,
    /// Something else.
    Other {
        /// What it is called.
        name: String,
        /// Its digests in hexadecimal, by algorithm.
        digests: BTreeMap<String, String>,
    },
}

/// An image's config.
#[derive(Debug, Clone)]
pub enum ConfigDocument {
    /// From a build: `rootfs` and the history's layer marks are filled in at export.
    Built(Box<ImageConfig>),
    /// From a registry or archive: these bytes, whose digest is the image id.
    Fixed(Vec<u8>),
}

/// One layer of an [`Image`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageLayerRef {
    /// Where its files are.
    pub layer: LayerId,
    /// The blob it came as, if it was pulled or loaded; it keeps these bytes unless
    /// `force-compression` says otherwise.
    pub blob: Option<Descriptor>,
    /// A repository that has the blob: where it can be fetched again, and mounted from.
    pub origin: Option<Reference>,
    /// The digest of its tar as the image it came with names it; `None` for a layer made here, whose
    /// tar follows the image's epoch.
    pub diff_id: Option<Digest>,
}

impl ImageLayerRef {
    /// A layer made here.
    pub fn built(layer: LayerId) -> Self {
        Self { layer, blob: None, origin: None, diff_id: None }
    }
}

impl Image {
    /// The image of a build: `config` over `snapshot`, whose lowest layers are `base`'s (as its
    /// pull described them).
    pub fn built(config: ImageConfig, snapshot: &Snapshot, base: &[ImageLayerRef]) -> Self {
        let platform = config.platform();
        let known = |layer: &LayerId| {
            let found = base.iter().find(|known| known.layer == *layer).cloned();
            found.unwrap_or_else(|| ImageLayerRef::built(*layer))
        };
        let layers = snapshot.layers().iter().map(known).collect();
        Self {
            config: ConfigDocument::Built(Box::new(config)),
            layers,
            platform,
            manifest: None,
            epoch: None,
            attestations: Vec::new(),
        }
    }

    /// The same, with the times of files in its new layers clamped to `epoch`.
    #[must_use]
    pub fn dated(self, epoch: Option<i64>) -> Self {
        Self { epoch, ..self }
    }

    /// An image of the local store, to be pushed or saved.
    pub fn stored(image: &LocalImage) -> Self {
        let layer = |layer: &stave_store::ImageLayer| ImageLayerRef {
            layer: layer.layer,
            blob: layer.blob.clone(),
            origin: None,
            diff_id: Some(layer.diff_id.clone()),
        };
        Self {
            config: ConfigDocument::Fixed(image.config.clone()),
            layers: image.layers.iter().map(layer).collect(),
            platform: image.platform.clone(),
            manifest: image.manifest.clone(),
            epoch: None,
            attestations: Vec::new(),
        }
    }

    /// The same, with what the store knows to be attested of it.
    #[must_use]
    pub fn attested(self, stored: Vec<StoredAttestation>) -> Self {
        let attestation = |stored: StoredAttestation| Attestation {
            file_name: file_name(&stored.predicate_type).to_owned(),
            predicate_type: stored.predicate_type,
            predicate: stored.predicate,
            ..Attestation::default()
        };
        let mut attestations: Vec<Attestation> = stored.into_iter().map(attestation).collect();
        // Of several, the main one comes first.
        if let Some(bill) = attestations.iter_mut().find(|one| one.file_name == BILL) {
            bill.is_core_bill = true;
        }
        Self { attestations, ..self }
    }

    /// The file system of all layers.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot::new(self.layers.iter().map(|layer| layer.layer).collect())
    }
}

/// What BuildKit calls the file of a bill of materials.
const BILL: &str = "sbom.spdx.json";

/// What BuildKit calls the file of a predicate of this type.
pub fn file_name(predicate_type: &str) -> &'static str {
    if predicate_type.starts_with("https://slsa.dev/provenance/") {
        "provenance.json"
    } else if predicate_type == "https://spdx.dev/Document" {
        BILL
    } else {
        "attestation.json"
    }
}

/// What an export made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exported {
    /// The config's digest: the image id. `None` for file systems and the cache.
    pub config_digest: Option<Digest>,
    /// The manifest's descriptor; `None` where no manifest was written (the local store).
    pub manifest: Option<Descriptor>,
    /// The names given.
    pub names: Vec<Reference>,
    /// Bytes of the result: the manifest's blobs, the archive, the files, or what the files of a
    /// stored image take on disk.
    pub size: u64,
    /// The image as the local store has it, if it went there.
    pub stored: Option<LocalImage>,
}

impl Exported {
    pub(crate) fn nothing() -> Self {
        Self { config_digest: None, manifest: None, names: Vec::new(), size: 0, stored: None }
    }

    /// The digest that names the image: the manifest's, else the config's as docker's own store has it.
    pub fn digest(&self) -> Option<&Digest> {
        self.manifest.as_ref().map(|manifest| &manifest.digest).or(self.config_digest.as_ref())
    }

    /// The keys buildx writes to `--metadata-file`.
    pub fn metadata(&self) -> serde_json::Map<String, Value> {
        let mut found = serde_json::Map::new();
        if let Some(config) = &self.config_digest {
            found.insert("containerimage.config.digest".to_owned(), json!(config));
        }
        if let Some(descriptor) = &self.manifest {
            found.insert("containerimage.descriptor".to_owned(), json!(descriptor));
        }
        if let Some(digest) = self.digest() {
            found.insert("containerimage.digest".to_owned(), json!(digest));
        }
        if !self.names.is_empty() {
            let names: Vec<_> = self.names.iter().map(Reference::canonical).collect();
            found.insert("image.name".to_owned(), json!(names.join(",")));
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_has_the_keys_of_buildx() {
        let digest = Digest::sha256(b"config");
        let mut exported = Exported { config_digest: Some(digest.clone()), ..Exported::nothing() };
        exported.names = vec!["app:1".parse().expect("valid"), "localhost:5000/b".parse().expect("valid")];
        let metadata = Value::Object(exported.metadata());
        assert_eq!(
            metadata,
            json!({
                "containerimage.config.digest": digest,
                "containerimage.digest": digest,
                "image.name": "docker.io/library/app:1,localhost:5000/b:latest",
            })
        );
        let manifest = Descriptor::of(stave_oci::media_type::OCI_MANIFEST, b"manifest");
        exported.manifest = Some(manifest.clone());
        let metadata = exported.metadata();
        assert_eq!(metadata["containerimage.digest"], json!(manifest.digest));
        assert_eq!(metadata["containerimage.descriptor"]["size"], json!(8));
        assert!(Exported::nothing().metadata().is_empty());
    }
}
