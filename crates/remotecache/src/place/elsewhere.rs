//! A store of content that somebody else reads and writes for us, such as a directory of a daemon's client.
//!
//! Owns what a cache needs of it: blobs by digest. It has no names: its owner says which document is meant, and keeps
//! the name of the one that was written. Start with [`Contents`].

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use stave_oci::{Descriptor, Digest, MAX_MANIFEST_SIZE};

use super::{BlobReader, Content, Document, PlaceError};

/// Blobs by digest, at somebody else's.
pub trait Contents: fmt::Debug + Send + Sync {
    /// The size of a blob, if it is there.
    fn size<'a>(&'a self, digest: &'a Digest) -> BoxFuture<'a, Result<Option<u64>, PlaceError>>;
    /// Opens a blob. Not verified.
    fn read<'a>(&'a self, digest: &'a Digest) -> BoxFuture<'a, Result<BlobReader, PlaceError>>;
    /// Makes sure that a blob is there.
    fn write<'a>(&'a self, digest: &'a Digest, content: Content) -> BoxFuture<'a, Result<(), PlaceError>>;
}

/// Such a store and the document in it that is the cache.
#[derive(Debug, Clone)]
pub struct Elsewhere {
    pub(super) contents: Arc<dyn Contents>,
    document: Option<Digest>,
}

impl Elsewhere {
    /// The cache that `document` describes; `None` for one that is yet to be written.
    pub fn new(contents: Arc<dyn Contents>, document: Option<Digest>) -> Self {
        Self { contents, document }
    }

    /// The same store; nothing in it has another name.
    pub(super) fn unnamed(&self) -> Self {
        Self { contents: Arc::clone(&self.contents), document: None }
    }

    pub(super) async fn document(&self) -> Result<Option<Document>, PlaceError> {
        use tokio::io::AsyncReadExt as _;
        let Some(expected) = &self.document else { return Ok(None) };
        let Some(size) = self.contents.size(expected).await? else { return Ok(None) };
        if size > MAX_MANIFEST_SIZE {
            return Err(PlaceError::TooLarge { digest: expected.clone(), size });
        }
        let mut bytes = Vec::new();
        self.contents.read(expected).await?.take(size + 1).read_to_end(&mut bytes).await?;
        let mut hasher = stave_oci::Hasher::new(expected.algorithm());
        hasher.update(&bytes);
        let found = hasher.finish();
        if found != *expected {
            return Err(PlaceError::Digest { expected: expected.clone(), found });
        }
        Ok(Some(Document { media_type: None, bytes: bytes.into() }))
    }

    pub(super) async fn put_document(&self, kind: &str, bytes: Bytes) -> Result<Digest, PlaceError> {
        let digest = Descriptor::of(kind, &bytes).digest;
        self.contents.write(&digest, Content::Bytes(bytes)).await?;
        Ok(digest)
    }
}
