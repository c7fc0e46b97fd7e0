//! From a layer archive to a layer directory. Start with [`Store::apply_layer`].

use std::io::Read;

use stave_oci::{Compression, Digest};

use crate::{LayerId, Store, StoreError};

/// What one layer archive may demand. Beyond: [`crate::LayerErrorKind`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerLimits {
    /// Entries in the archive.
    pub entries: u64,
    /// Bytes of one path or link target.
    pub path_bytes: usize,
    /// Bytes of the uncompressed archive, and of the files in it with their holes.
    pub total_bytes: u64,
}

/// What to do with names that begin with a slash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AbsoluteNames {
    /// Refuse the archive (image layers).
    Refuse,
    /// Take them from the root of the layer (archives unpacked by `ADD`, as docker does).
    Contain,
}

/// How an archive is unpacked.
#[derive(Debug, Clone)]
pub struct ApplyOptions {
    /// How the stream is compressed; `None` finds out from its first bytes.
    pub compression: Option<Compression>,
    /// The digest the uncompressed stream must have.
    pub diff_id: Option<Digest>,
    /// Bounds on hostile archives.
    pub limits: LayerLimits,
    /// Names with a leading slash.
    pub absolute_names: AbsoluteNames,
    /// What disk usage shows for the layer.
    pub description: String,
}

/// A layer in the store, and what its archive was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AppliedLayer {
    /// The layer; an older one if the same archive had been unpacked before.
    pub layer: LayerId,
    /// The digest of the uncompressed archive.
    pub diff_id: Digest,
    /// The size of the uncompressed archive, in bytes.
    pub size: u64,
}

impl Store {
    /// Unpacks a layer archive (the compressed stream) into a layer of its own. The stream is read
    /// to its end. On an error nothing of it stays.
    pub fn apply_layer(
        &self,
        archive: impl Read,
        options: &ApplyOptions,
    ) -> Result<AppliedLayer, StoreError> {
        let _ = archive;
        todo!("{options:?}")
    }
}
