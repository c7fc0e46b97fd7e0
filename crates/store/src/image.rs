//! The local image store: records by id, names that point to them. Start with [`LocalImage`].

use std::time::SystemTime;

use stave_oci::{Descriptor, Digest, Platform, Reference};

use crate::{LayerId, Snapshot, Store, StoreError};

/// One layer of a local image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageLayer {
    /// Where its files are.
    pub layer: LayerId,
    /// The digest of its uncompressed tar.
    pub diff_id: Digest,
    /// Its blob, if it came as one or was made into one.
    pub blob: Option<Descriptor>,
}

/// The manifest an image came with, byte for byte.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredManifest {
    /// Its media type.
    pub media_type: String,
    /// Its digest: what `name@sha256:…` means.
    pub digest: Digest,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// An image in the local store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalImage {
    /// The digest of the config bytes.
    pub id: Digest,
    /// The image config, byte for byte.
    pub config: Vec<u8>,
    /// Its layers, bottom first.
    pub layers: Vec<ImageLayer>,
    /// The manifest it came with; `None` for an image built here.
    pub manifest: Option<StoredManifest>,
    /// What it runs on.
    pub platform: Platform,
}

impl LocalImage {
    /// The image's file system.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot::new(self.layers.iter().map(|layer| layer.layer).collect())
    }
}

/// An image with its names, as a listing shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedImage {
    /// The names that point to it; none for a dangling image.
    pub names: Vec<Reference>,
    /// The image.
    pub image: LocalImage,
    /// When it was first stored.
    pub stored_at: SystemTime,
    /// Allocated bytes of its layers, shared ones included.
    pub size: u64,
}

impl Store {
    /// Stores an image and points `names` to it, at once or not at all. A name that pointed to
    /// another image moves; that image stays, dangling if it has no other name.
    pub fn put_image(&self, names: &[Reference], image: &LocalImage) -> Result<(), StoreError> {
        todo!("{names:?} {image:?}")
    }

    /// Points another name to a stored image; `false` if there is no such image.
    pub fn tag(&self, id: &Digest, name: &Reference) -> Result<bool, StoreError> {
        todo!("{id} {name:?}")
    }

    /// The image a name points to.
    pub fn image_by_name(&self, name: &Reference) -> Result<Option<LocalImage>, StoreError> {
        todo!("{name:?}")
    }

    /// The image with this id.
    pub fn image_by_id(&self, id: &Digest) -> Result<Option<LocalImage>, StoreError> {
        todo!("{id}")
    }

    /// The image that `text` means, as docker reads it: a whole id, else a name, else the start of
    /// an id that only one image has.
    pub fn image(&self, text: &str) -> Result<Option<LocalImage>, StoreError> {
        todo!("{text}")
    }

    /// The names that point to an image, sorted.
    pub fn image_names(&self, id: &Digest) -> Result<Vec<Reference>, StoreError> {
        todo!("{id}")
    }

    /// All images, the newest first.
    pub fn images(&self) -> Result<Vec<ListedImage>, StoreError> {
        todo!()
    }

    /// Removes a name. Returns the id it pointed to; the image stays, dangling if that was its last.
    pub fn untag(&self, name: &Reference) -> Result<Option<Digest>, StoreError> {
        todo!("{name:?}")
    }

    /// Removes an image and all its names; its layers become cache. `false` if there was none.
    pub fn remove_image(&self, id: &Digest) -> Result<bool, StoreError> {
        todo!("{id}")
    }
}
