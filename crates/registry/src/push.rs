//! Blobs and manifests out.

use std::fs::File;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use stave_oci::{Descriptor, Digest, Reference};

use crate::{Client, RegistryError};

/// Where an upload's bytes come from, at any offset: an upload that was cut resumes in the middle.
pub trait BlobSource: Send + Sync + 'static {
    /// At most `length` bytes from `offset` on; empty at the end. May block; called off the async threads.
    ///
    /// # Errors
    /// When the bytes cannot be read.
    fn read_at(&self, offset: u64, length: usize) -> io::Result<Bytes>;
}

impl BlobSource for Bytes {
    fn read_at(&self, offset: u64, length: usize) -> io::Result<Bytes> {
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(self.len());
        Ok(self.slice(start..start.saturating_add(length).min(self.len())))
    }
}

impl BlobSource for File {
    fn read_at(&self, offset: u64, length: usize) -> io::Result<Bytes> {
        use std::os::unix::fs::FileExt;
        let mut buffer = vec![0; length];
        let count = FileExt::read_at(self, &mut buffer, offset)?;
        buffer.truncate(count);
        Ok(buffer.into())
    }
}

/// Called with the number of bytes handed to the network so far; it falls back when an upload starts over.
pub type Progress = Arc<dyn Fn(u64) + Send + Sync>;

/// How a blob got into the repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlobPush {
    /// It was there.
    Existed,
    /// The registry took it from another of its repositories.
    Mounted,
    /// It was sent.
    Uploaded,
}

impl Client {
    /// Whether a repository holds a blob.
    ///
    /// # Errors
    /// [`RegistryError`], save that the blob's absence is an answer.
    pub async fn has_blob(&self, name: &Reference, digest: &Digest) -> Result<bool, RegistryError> {
        let _ = (name, digest);
        todo!()
    }

    /// Asks the registry to take a blob from another of its repositories (`library/busybox`); `false` if it does not.
    ///
    /// # Errors
    /// [`RegistryError`], save that refusing a mount is an answer.
    pub async fn mount_blob(&self, name: &Reference, digest: &Digest, from: &str) -> Result<bool, RegistryError> {
        let _ = (name, digest, from);
        todo!()
    }

    /// Makes sure that a repository holds a blob: checks, mounts from `mount_from` if given, or uploads.
    ///
    /// # Errors
    /// [`RegistryError`]; [`crate::ErrorKind::Source`] if `source` fails.
    pub async fn push_blob(
        &self,
        name: &Reference,
        blob: &Descriptor,
        source: Arc<dyn BlobSource>,
        mount_from: Option<&str>,
        progress: Option<Progress>,
    ) -> Result<BlobPush, RegistryError> {
        let _ = (name, blob, source, mount_from, progress);
        todo!()
    }

    /// Writes a manifest or index under the name's tag, or by its digest if the name has no tag. Its digest is returned.
    ///
    /// # Errors
    /// [`RegistryError`]; a registry refuses manifests whose blobs it does not hold.
    pub async fn push_manifest(
        &self,
        name: &Reference,
        media_type: &str,
        bytes: Bytes,
    ) -> Result<Digest, RegistryError> {
        let _ = (name, media_type, bytes);
        todo!()
    }
}
