//! Content-addressed files. Start with [`BlobWriter`].

use std::fs::{self, File};
use std::io;
use std::path::PathBuf;

use rusqlite::OptionalExtension as _;
use stave_oci::{Algorithm, Digest, Hasher};

use crate::cap::Reservation;
use crate::database::now;
use crate::fault::{reach, refused};
use crate::removal::remove_tree;
use crate::{Store, StoreError};

/// Receives a blob aside; nothing is visible until [`BlobWriter::commit`]. Removed on drop.
#[derive(Debug)]
pub struct BlobWriter {
    store: Store,
    path: PathBuf,
    file: File,
    hasher: Hasher,
    expected: Option<Digest>,
    limit: u64,
    written: u64,
    room: Reservation,
}

/// The text of the I/O error that [`BlobWriter`] gives when its limit is passed.
const TOO_LARGE: &str = "blob is larger than its limit";

impl BlobWriter {
    /// The number of bytes written so far.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Writes bytes; like the [`io::Write`] implementation, with typed errors.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        if self.written + bytes.len() as u64 > self.limit {
            return Err(StoreError::BlobTooLarge { limit: self.limit });
        }
        io::Write::write_all(self, bytes).map_err(|error| StoreError::io("write", &self.path, error))
    }

    /// The same bytes for reading, as far as they are written; they stay readable after [`Self::commit`].
    pub fn reader(&self) -> Result<File, StoreError> {
        File::open(&self.path).map_err(|error| StoreError::io("open", &self.path, error))
    }

    /// Verifies the digest and puts the blob in place. Returns its digest and size in bytes.
    pub fn commit(mut self) -> Result<(Digest, u64), StoreError> {
        let hasher = std::mem::replace(&mut self.hasher, Hasher::new(Algorithm::Sha256));
        let digest = hasher.finish();
        if let Some(expected) = self.expected.take().filter(|expected| *expected != digest) {
            return Err(StoreError::DigestMismatch { expected, found: digest });
        }
        reach("blob-written");
        let size = i64::try_from(self.written).unwrap_or(i64::MAX);
        let target = self.store.blob_path(&digest);
        let committed = self.store.inner.database.write(|tx| {
            let seen = "UPDATE blob SET used = ?2, use_seq = (SELECT use_seq FROM clock)
                        WHERE digest = ?1 AND state = 0";
            if tx.prepare_cached(seen)?.execute((digest.as_str(), now()))? == 1 {
                return Ok(());
            }
            refused("blob-rename")
                .and_then(|()| fs::rename(&self.path, &target))
                .map_err(|error| StoreError::io("rename", &self.path, error))?;
            reach("blob-renamed");
            // No number is used again: who syncs marks all up to one, long after it looked which that is.
            let number: i64 = tx
                .prepare_cached(
                    "UPDATE clock SET next_layer = 1 +
                     max(next_layer, (SELECT 1 + coalesce(max(id), 0) FROM blob)) RETURNING next_layer - 1",
                )?
                .query_row([], |row| row.get(0))?;
            // A row in deletion is taken over: its file was moved aside or is replaced by ours, and
            // the deleter removes only rows that are still marked.
            tx.prepare_cached(
                "INSERT INTO blob (id, digest, size, created, used, use_seq)
                 VALUES (?4, ?1, ?2, ?3, ?3, (SELECT use_seq FROM clock))
                 ON CONFLICT (digest) DO UPDATE SET id = excluded.id, state = 0, synced = 0,
                 size = excluded.size, created = excluded.created, used = excluded.used,
                 use_seq = excluded.use_seq",
            )?
            .execute((digest.as_str(), size, now(), number))?;
            Ok(())
        });
        committed.map(|()| (digest, self.written))
    }
}

impl Drop for BlobWriter {
    fn drop(&mut self) {
        if let Err(error) = remove_tree(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "left for the end of the session");
        }
    }
}

impl io::Write for BlobWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.written + bytes.len() as u64 > self.limit {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, TOO_LARGE));
        }
        self.room.grow(bytes.len() as u64).map_err(io::Error::other)?;
        refused::<io::Error>("blob-write")?;
        let count = self.file.write(bytes)?;
        self.hasher.update(&bytes[..count]);
        self.written += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Store {
    pub(crate) fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.inner.root.join("blobs").join(digest.as_str().replace(':', "/"))
    }

    /// A writer for a blob of at most `limit` bytes, with this digest if one is promised.
    pub fn blob_writer(&self, expected: Option<&Digest>, limit: u64) -> Result<BlobWriter, StoreError> {
        let path = self.inner.session.fresh_path("b");
        let file = refused("blob-create")
            .and_then(|()| File::create_new(&path))
            .map_err(|error| StoreError::io("create", &path, error))?;
        let algorithm = expected.map_or(Algorithm::Sha256, Digest::algorithm);
        Ok(BlobWriter {
            store: self.clone(),
            path,
            file,
            hasher: Hasher::new(algorithm),
            expected: expected.cloned(),
            limit,
            written: 0,
            room: Reservation::new(self),
        })
    }

    /// Opens a blob for reading; `None` if it is not there. Counts as a use.
    pub fn open_blob(&self, digest: &Digest) -> Result<Option<File>, StoreError> {
        if self.blob_size(digest)?.is_none() {
            return Ok(None);
        }
        match File::open(self.blob_path(digest)) {
            Ok(file) => Ok(Some(file)),
            // Collected since, without a lease to keep it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(StoreError::io("open", self.blob_path(digest), error)),
        }
    }

    /// The blob's size in bytes; `None` if it is not there. Counts as a use.
    pub fn blob_size(&self, digest: &Digest) -> Result<Option<u64>, StoreError> {
        let size = |size: i64| u64::try_from(size).map_err(|_| StoreError::DamagedRecord { what: "a blob" });
        // What a lease of ours keeps already needs no stamp: each write may wait for a busy disk.
        if let Some(lease) = self.newest_lease()
            && let Some(kept) = self.inner.database.read(|tx| {
                let query = "SELECT size FROM blob WHERE digest = ?1 AND state = 0 AND use_seq >= ?2";
                let mut statement = tx.prepare_cached(query)?;
                Ok(statement.query_row((digest.as_str(), lease), |row| row.get(0)).optional()?)
            })?
        {
            return size(kept).map(Some);
        }
        let found: Option<i64> = self.inner.database.write(|tx| {
            let touch = "UPDATE blob SET used = ?2, use_seq = (SELECT use_seq FROM clock)
                         WHERE digest = ?1 AND state = 0 RETURNING size";
            let mut statement = tx.prepare_cached(touch)?;
            Ok(statement.query_row((digest.as_str(), now()), |row| row.get(0)).optional()?)
        })?;
        found.map(size).transpose()
    }

    /// Whether the blob is there. Counts as a use: after `true` a live lease keeps it.
    pub fn has_blob(&self, digest: &Digest) -> Result<bool, StoreError> {
        Ok(self.blob_size(digest)?.is_some())
    }
}
