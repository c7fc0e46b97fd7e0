//! Content-addressed files. Start with [`BlobWriter`].

use std::fs::File;
use std::io;

use stave_oci::Digest;

use crate::{Store, StoreError};

/// Receives a blob aside; nothing is visible until [`BlobWriter::commit`]. Removed on drop.
#[derive(Debug)]
pub struct BlobWriter {
    _file: File,
}

impl BlobWriter {
    /// Verifies the digest and puts the blob in place. Returns its digest and size in bytes.
    pub fn commit(self) -> Result<(Digest, u64), StoreError> {
        todo!()
    }
}

impl io::Write for BlobWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        todo!("{bytes:?}")
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Store {
    /// A writer for a blob of at most `limit` bytes, with this digest if one is promised.
    pub fn blob_writer(&self, expected: Option<&Digest>, limit: u64) -> Result<BlobWriter, StoreError> {
        todo!("{expected:?} {limit}")
    }

    /// Opens a blob for reading; `None` if it is not there. Counts as a use.
    pub fn open_blob(&self, digest: &Digest) -> Result<Option<File>, StoreError> {
        todo!("{digest}")
    }

    /// The blob's size in bytes; `None` if it is not there. Counts as a use.
    pub fn blob_size(&self, digest: &Digest) -> Result<Option<u64>, StoreError> {
        todo!("{digest}")
    }

    /// Whether the blob is there. Counts as a use: after `true` a live lease keeps it.
    pub fn has_blob(&self, digest: &Digest) -> Result<bool, StoreError> {
        todo!("{digest}")
    }
}
