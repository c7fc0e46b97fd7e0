//! Layers: prepared aside, committed by rename, looked up with a touch. Start with [`ActiveLayer`].

use std::path::{Path, PathBuf};

use stave_oci::{Compression, Descriptor, Digest};

use crate::{LayerId, Snapshot, Store, StoreError};

/// A layer being made: an upper and a work directory for an overlay mount on the base's layers.
/// Removed on drop unless committed.
#[derive(Debug)]
pub struct ActiveLayer {
    upper: PathBuf,
    work: PathBuf,
    lowers: Vec<PathBuf>,
}

impl ActiveLayer {
    /// The overlay upper directory: what is written here becomes the layer.
    pub fn upper(&self) -> &Path {
        &self.upper
    }

    /// The overlay work directory, on the same file system.
    pub fn work(&self) -> &Path {
        &self.work
    }

    /// The base's layers, top first, as `lowerdir` takes them.
    pub fn lowers(&self) -> &[PathBuf] {
        &self.lowers
    }

    /// Sets what disk usage shows for the layer.
    #[must_use]
    pub fn described(self, description: &str) -> Self {
        todo!("{description}")
    }

    /// Makes the upper directory a layer on top of the base. No mount may use it any more.
    pub fn commit(self) -> Result<Snapshot, StoreError> {
        todo!()
    }
}

impl Store {
    /// Begins a layer on `base`; fails with [`StoreError::LayerGone`] if that is no longer whole.
    pub fn prepare(&self, base: &Snapshot) -> Result<ActiveLayer, StoreError> {
        todo!("{base}")
    }

    /// The layer directories, top first, as `lowerdir` takes them. Counts as a use.
    pub fn layer_paths(&self, snapshot: &Snapshot) -> Result<Vec<PathBuf>, StoreError> {
        todo!("{snapshot}")
    }

    /// Whether every layer is there. Counts as a use: after `true` a live lease keeps them.
    pub fn exists(&self, snapshot: &Snapshot) -> Result<bool, StoreError> {
        todo!("{snapshot}")
    }

    /// The layer whose uncompressed tar has this digest. Counts as a use.
    pub fn layer_by_diff_id(&self, diff_id: &Digest) -> Result<Option<LayerId>, StoreError> {
        todo!("{diff_id}")
    }

    /// The digest of the layer's tar (as [`Store::write_layer_tar`] writes it by default, or as it
    /// was unpacked from); computed once, then remembered.
    pub fn diff_id(&self, layer: LayerId) -> Result<Digest, StoreError> {
        todo!("{layer}")
    }

    /// The blob this layer is known to compress to. The blob itself may be gone
    /// ([`Store::has_blob`]).
    pub fn compressed(
        &self,
        layer: LayerId,
        compression: Compression,
    ) -> Result<Option<Descriptor>, StoreError> {
        todo!("{layer} {compression:?}")
    }

    /// Remembers which blob this layer compresses to.
    pub fn set_compressed(
        &self,
        layer: LayerId,
        compression: Compression,
        blob: &Descriptor,
    ) -> Result<(), StoreError> {
        todo!("{layer} {compression:?} {blob:?}")
    }
}
