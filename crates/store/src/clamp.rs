//! The tars of a layer: the one its files make, and those with their times clamped to an epoch.
//!
//! Owns what is remembered of them, so that a layer is read once for each epoch: the digest of the tar
//! and the blob it compresses to. Must not know images. Start with [`LayerTar`].

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rusqlite::OptionalExtension as _;
use stave_oci::{Compression, Descriptor, Digest};

use crate::hashing::ReadAheadHash;
use crate::{LayerId, Store, StoreError, TarOptions};

/// The last three digits of the nanoseconds of a time that a file has from a build context. Such a time tells who checked
/// the file out, and when, and nothing of what an image is made of: in a clamped tar it becomes the epoch even if it is
/// earlier. The mark goes wherever a step takes the file (`chmod`, `mv`, `COPY --from`) with its nanoseconds. It is less than a microsecond
/// away from the file's own time, so that files keep their order, for `make`, and none is of the future. One in a thousand
/// of other times has it by chance, which shows only where that is earlier than the epoch.
const OF_CONTEXT: u32 = 937;

/// What is below the digits that stay.
const MICROSECOND: u32 = 1000;

/// The time that a file of a build context has in a layer: its own, to the microsecond.
pub fn context_time((seconds, nanoseconds): (i64, u32)) -> (i64, u32) {
    (seconds, without_mark(nanoseconds) + OF_CONTEXT)
}

/// Whether a time in a layer came from a build context.
pub fn is_context_time((_, nanoseconds): (i64, u32)) -> bool {
    nanoseconds % MICROSECOND == OF_CONTEXT
}

/// What a context's file had of nanoseconds, as far as that is known.
pub fn without_mark(nanoseconds: u32) -> u32 {
    nanoseconds - nanoseconds % MICROSECOND
}

/// One of a layer's tars.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LayerTar {
    /// The layer.
    pub layer: LayerId,
    /// Times after this (seconds since the epoch), and those of a build context, are written as this; `None`: as
    /// they are.
    pub clamp: Option<i64>,
}

impl LayerTar {
    /// The tar with the times that the files have.
    pub fn plain(layer: LayerId) -> Self {
        Self { layer, clamp: None }
    }

    /// How [`Store::write_layer_tar`] writes it.
    pub fn options(&self) -> TarOptions {
        TarOptions { clamp: self.clamp, ..TarOptions::default() }
    }
}

impl Store {
    /// The digest of a layer's tar; computed once, then remembered. A layer that was unpacked has
    /// the digest of the tar it came as, whatever the clamp: its times are its image's.
    pub fn tar_diff_id(&self, tar: LayerTar) -> Result<Digest, StoreError> {
        if let Some(digest) = self.known_tar_diff_id(tar)? {
            return Ok(digest);
        }
        let turn = Arc::clone(self.digesting().entry(tar).or_default());
        let one = turn.lock().unwrap_or_else(PoisonError::into_inner);
        // Somebody else may have made it while we waited for our turn.
        let digest = match self.known_tar_diff_id(tar)? {
            Some(digest) => Ok(digest),
            None => self.digest_tar(tar),
        };
        self.digesting().remove(&tar);
        drop(one);
        digest
    }

    /// Layers that are being digested now.
    pub fn digesting_count(&self) -> usize {
        self.digesting().len()
    }

    fn digesting(&self) -> MutexGuard<'_, BTreeMap<LayerTar, Arc<Mutex<()>>>> {
        self.inner.digesting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn digest_tar(&self, tar: LayerTar) -> Result<Digest, StoreError> {
        let mut hash = ReadAheadHash::new();
        self.write_layer_tar(tar.layer, &mut hash, &tar.options())?;
        let digest = hash.finish();
        match tar.clamp {
            None => self.set_diff_id(tar.layer, &digest)?,
            Some(epoch) => self.inner.database.write(|tx| {
                let insert = "INSERT OR REPLACE INTO clamped (layer, epoch, diff_id)
                              SELECT id, ?2, ?3 FROM layer WHERE id = ?1";
                tx.prepare_cached(insert)?.execute((tar.layer.0, epoch, digest.as_str()))?;
                Ok(())
            })?,
        }
        Ok(digest)
    }

    /// [`Self::tar_diff_id`], if it need not be computed.
    pub fn known_tar_diff_id(&self, tar: LayerTar) -> Result<Option<Digest>, StoreError> {
        let Some(epoch) = tar.clamp else { return self.known_diff_id(tar.layer) };
        let stored: Option<String> = self.inner.database.read(|tx| {
            let query = "SELECT diff_id FROM clamped WHERE layer = ?1 AND epoch = ?2";
            let mut statement = tx.prepare_cached(query)?;
            Ok(statement.query_row((tar.layer.0, epoch), |row| row.get(0)).optional()?)
        })?;
        stored.map(|text| text.parse().map_err(|_| damaged())).transpose()
    }

    /// Which of a layer's tars has this digest, as far as they were digested: a stored image names
    /// digests and not epochs. `None` for a digest that is not known to be of this layer.
    pub fn tar_of(&self, layer: LayerId, diff_id: &Digest) -> Result<Option<LayerTar>, StoreError> {
        if self.known_diff_id(layer)?.as_ref() == Some(diff_id) {
            return Ok(Some(LayerTar::plain(layer)));
        }
        let epoch = self.inner.database.read(|tx| {
            let query = "SELECT epoch FROM clamped WHERE layer = ?1 AND diff_id = ?2";
            let mut statement = tx.prepare_cached(query)?;
            Ok(statement.query_row((layer.0, diff_id.as_str()), |row| row.get::<_, i64>(0)).optional()?)
        })?;
        Ok(epoch.map(|epoch| LayerTar { layer, clamp: Some(epoch) }))
    }

    /// The blob a tar is known to compress to. The blob itself may be gone ([`Store::has_blob`]).
    pub fn compressed_tar(
        &self,
        tar: LayerTar,
        compression: Compression,
    ) -> Result<Option<Descriptor>, StoreError> {
        let Some(epoch) = tar.clamp else { return self.compressed(tar.layer, compression) };
        let stored: Option<String> = self.inner.database.read(|tx| {
            let query = "SELECT descriptor FROM clamped_compressed
                         WHERE layer = ?1 AND epoch = ?2 AND compression = ?3";
            let mut statement = tx.prepare_cached(query)?;
            let row = (tar.layer.0, epoch, compression.name());
            Ok(statement.query_row(row, |row| row.get(0)).optional()?)
        })?;
        stored.map(|text| serde_json::from_str(&text).map_err(|_| damaged())).transpose()
    }

    /// Remembers which blob a tar compresses to.
    pub fn set_compressed_tar(
        &self,
        tar: LayerTar,
        compression: Compression,
        blob: &Descriptor,
    ) -> Result<(), StoreError> {
        let Some(epoch) = tar.clamp else { return self.set_compressed(tar.layer, compression, blob) };
        let text = serde_json::to_string(blob).map_err(|_| damaged())?;
        self.inner.database.write(|tx| {
            let insert = "INSERT OR REPLACE INTO clamped_compressed (layer, epoch, compression, descriptor)
                          SELECT id, ?2, ?3, ?4 FROM layer WHERE id = ?1";
            tx.prepare_cached(insert)?.execute((tar.layer.0, epoch, compression.name(), text))?;
            Ok(())
        })
    }
}

fn damaged() -> StoreError {
    StoreError::DamagedRecord { what: "a compressed layer" }
}
