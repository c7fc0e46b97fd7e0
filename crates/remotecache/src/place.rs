//! The places a cache lies in: a repository, a directory, a bucket.
//!
//! Owns one set of questions over all of them, in terms of blobs and one named document. Must not know records
//! or keys. Start with [`Place`].

mod elsewhere;
mod error;
mod local;
mod s3;
mod sigv4;

use std::fs::File;
use std::path::PathBuf;
use std::pin::Pin;

use bytes::Bytes;
use futures::StreamExt as _;
use stave_oci::{Descriptor, Digest, Hasher, Reference};
use stave_registry::{BlobContent, BlobPush, Client, RegistryError};
use tokio::io::AsyncRead;

pub use elsewhere::{Contents, Elsewhere};
pub use error::PlaceError;
pub use local::LocalPlace;
pub use s3::S3Store;

/// Bytes of the largest cache config that is read.
pub const MAX_CONFIG_BYTES: u64 = 64 << 20;

/// A stream of a blob's bytes. Not verified: the reader checks the digest.
pub type BlobReader = Pin<Box<dyn AsyncRead + Send>>;

/// Where a cache lies.
#[derive(Debug, Clone)]
pub enum Place {
    /// A repository at a registry.
    Registry {
        /// Speaks to it.
        client: Client,
        /// The name of the cache.
        reference: Reference,
    },
    /// An OCI image layout.
    Local(LocalPlace),
    /// A bucket.
    S3(S3Store),
    /// A store of somebody else.
    Elsewhere(Elsewhere),
}

/// A document with its media type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// Its media type, where the place knows one.
    pub media_type: Option<String>,
    /// Its bytes.
    pub bytes: Bytes,
}

/// The bytes of a blob to write.
#[derive(Debug)]
pub enum Content {
    /// In memory.
    Bytes(Bytes),
    /// In a file, from its beginning.
    File(File),
}

/// What became of a blob that was to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Written {
    /// It was there, or the place could take it from a neighbour.
    Kept,
    /// It was sent.
    Sent,
}

impl Place {
    /// The document the cache is found by: a manifest or index, or (in a bucket) the config itself. `None` when
    /// there is none.
    ///
    /// # Errors
    /// [`PlaceError`].
    pub async fn document(&self) -> Result<Option<Document>, PlaceError> {
        match self {
            Self::Registry { client, reference } => match client.fetch_manifest(reference).await {
                Ok(found) => {
                    let media_type = Some(found.descriptor.media_type);
                    Ok(Some(Document { media_type, bytes: found.bytes }))
                }
                Err(error) if error.is_not_found() => Ok(None),
                Err(error) => Err(error.into()),
            },
            Self::Local(place) => place.document().await,
            Self::S3(store) => {
                let bytes = store.manifest().await?;
                Ok(bytes.map(|bytes| Document { media_type: None, bytes }))
            }
            Self::Elsewhere(place) => place.document().await,
        }
    }

    /// A manifest that an index names.
    ///
    /// # Errors
    /// [`PlaceError`].
    pub async fn manifest(&self, descriptor: &Descriptor) -> Result<Bytes, PlaceError> {
        match self {
            Self::Registry { client, reference } => {
                let found = client.fetch_manifest(&reference.pinned(descriptor.digest.clone())).await?;
                Ok(found.bytes)
            }
            other => other.small_blob(descriptor).await,
        }
    }

    /// A whole blob of at most [`MAX_CONFIG_BYTES`], verified.
    ///
    /// # Errors
    /// [`PlaceError`].
    pub async fn small_blob(&self, descriptor: &Descriptor) -> Result<Bytes, PlaceError> {
        use tokio::io::AsyncReadExt as _;
        if descriptor.size > MAX_CONFIG_BYTES {
            return Err(PlaceError::TooLarge { digest: descriptor.digest.clone(), size: descriptor.size });
        }
        let mut whole = Vec::new();
        let reader = self.blob(descriptor).await?;
        reader.take(descriptor.size + 1).read_to_end(&mut whole).await?;
        let mut hasher = Hasher::new(descriptor.digest.algorithm());
        hasher.update(&whole);
        let found = hasher.finish();
        if found != descriptor.digest {
            return Err(PlaceError::Digest { expected: descriptor.digest.clone(), found });
        }
        Ok(whole.into())
    }

    /// Opens a blob.
    ///
    /// # Errors
    /// [`PlaceError`].
    pub async fn blob(&self, descriptor: &Descriptor) -> Result<BlobReader, PlaceError> {
        match self {
            Self::Registry { client, reference } => {
                Ok(Box::pin(client.fetch_blob(reference, descriptor).await?.into_async_read()))
            }
            Self::Local(place) => place.blob(&descriptor.digest).await,
            Self::S3(store) => store.blob(&descriptor.digest).await,
            Self::Elsewhere(place) => place.contents.read(&descriptor.digest).await,
        }
    }

    /// Whether a blob is there. In a bucket, one that is old is touched.
    ///
    /// # Errors
    /// [`PlaceError`].
    pub async fn has_blob(&self, descriptor: &Descriptor) -> Result<bool, PlaceError> {
        let digest = &descriptor.digest;
        match self {
            Self::Registry { client, reference } => Ok(client.has_blob(reference, digest).await?),
            Self::Local(place) => place.has_blob(descriptor).await,
            Self::S3(store) => store.keep_blob(digest).await,
            Self::Elsewhere(place) => Ok(place.contents.size(digest).await?.is_some()),
        }
    }

    /// Takes a blob from another repository of the same registry, where that is possible.
    ///
    /// # Errors
    /// [`PlaceError`].
    pub async fn mount_blob(&self, digest: &Digest, from: &Reference) -> Result<bool, PlaceError> {
        match self {
            Self::Registry { client, reference }
                if from.registry() == reference.registry() && from.repository() != reference.repository() =>
            {
                Ok(client.mount_blob(reference, digest, from.repository()).await?)
            }
            _ => Ok(false),
        }
    }

    /// Makes sure that a blob is there.
    ///
    /// # Errors
    /// [`PlaceError`].
    pub async fn put_blob(&self, descriptor: &Descriptor, content: Content) -> Result<Written, PlaceError> {
        match self {
            Self::Registry { client, reference } => {
                let pushed = client.push_blob(reference, descriptor, content.into(), None).await?;
                Ok(if pushed == BlobPush::Uploaded { Written::Sent } else { Written::Kept })
            }
            Self::Local(place) => place.put_blob(descriptor, content).await,
            Self::S3(store) => {
                if store.keep_blob(&descriptor.digest).await? {
                    return Ok(Written::Kept);
                }
                store.put_blob(descriptor, content).await?;
                Ok(Written::Sent)
            }
            Self::Elsewhere(place) => {
                place.contents.write(&descriptor.digest, content).await?;
                Ok(Written::Sent)
            }
        }
    }

    /// Writes a blob that was found not to be there: the place is not asked again.
    ///
    /// # Errors
    /// [`PlaceError`].
    pub async fn send_blob(&self, descriptor: &Descriptor, content: Content) -> Result<(), PlaceError> {
        match self {
            Self::Registry { client, reference } => {
                Ok(client.upload_blob(reference, descriptor, content.into()).await?)
            }
            Self::S3(store) => store.put_blob(descriptor, content).await,
            Self::Local(_) | Self::Elsewhere(_) => self.put_blob(descriptor, content).await.map(drop),
        }
    }

    /// Makes sure that the place has a small blob which it most likely lacks, with as few questions as it takes.
    ///
    /// # Errors
    /// [`PlaceError`].
    pub async fn offer_blob(&self, descriptor: &Descriptor, content: Content) -> Result<(), PlaceError> {
        match self {
            Self::Registry { client, reference } => {
                Ok(client.offer_blob(reference, descriptor, content.into()).await.map(drop)?)
            }
            _ if self.has_blob(descriptor).await? => Ok(()),
            _ => self.send_blob(descriptor, content).await,
        }
    }

    /// Writes the document the cache is found by; from then on it is the new one.
    ///
    /// # Errors
    /// [`PlaceError`].
    pub async fn put_document(&self, media_type: &str, bytes: Bytes) -> Result<Digest, PlaceError> {
        match self {
            Self::Registry { client, reference } => {
                Ok(client.push_manifest(reference, media_type, bytes).await?)
            }
            Self::Local(place) => place.put_document(media_type, bytes).await,
            Self::S3(store) => {
                let digest = Digest::sha256(&bytes);
                store.put_manifest(bytes).await?;
                Ok(digest)
            }
            Self::Elsewhere(place) => place.put_document(media_type, bytes).await,
        }
    }

    /// The same place under another name: where its cache mounts are.
    pub fn companion(&self, suffix: &str) -> Self {
        match self {
            Self::Registry { client, reference } => {
                let tag = format!("{}-{suffix}", reference.tag().unwrap_or("latest"));
                // A tag has at most 128 characters; one that is cut still names the same companion each time.
                let tag: String = if tag.len() > 128 {
                    format!("{}-{suffix}", Digest::sha256(tag.as_bytes()).short())
                } else {
                    tag
                };
                let reference = reference.with_tag(&tag);
                Self::Registry { client: client.clone(), reference }
            }
            Self::Local(place) => Self::Local(place.named(suffix)),
            Self::S3(store) => Self::S3(store.named(suffix)),
            Self::Elsewhere(place) => Self::Elsewhere(place.unnamed()),
        }
    }
}

impl From<Content> for BlobContent {
    fn from(content: Content) -> Self {
        match content {
            Content::Bytes(bytes) => Self::new(bytes),
            Content::File(file) => Self::new(file),
        }
    }
}

impl From<RegistryError> for PlaceError {
    fn from(error: RegistryError) -> Self {
        Self::Registry(Box::new(error))
    }
}

/// A file's bytes as pieces, read off the async threads.
pub(crate) fn pieces(file: File) -> impl futures::Stream<Item = std::io::Result<Bytes>> + Send + 'static {
    tokio_util::io::ReaderStream::with_capacity(tokio::fs::File::from_std(file), 256 << 10).map(|piece| piece)
}

/// The directory an OCI layout lies in, as a place.
pub fn local(directory: PathBuf, tag: String, digest: Option<Digest>) -> Place {
    Place::Local(LocalPlace::new(directory, tag, digest))
}
