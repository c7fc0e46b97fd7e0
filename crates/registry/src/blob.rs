//! Blobs in: a byte stream that ends well only if digest and size are right.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::Stream;
use futures::stream::BoxStream;
use stave_oci::{Descriptor, Reference};
use tokio::io::AsyncRead;

use crate::{Client, RegistryError};

/// The bytes of one blob, verified as they pass: the stream's last item is an error unless digest and size are
/// those of the descriptor. Cut connections are resumed within. Use nothing of it before it ended without error.
pub struct BlobStream {
    pieces: BoxStream<'static, Result<Bytes, RegistryError>>,
}

impl BlobStream {
    /// The same as a reader; a [`RegistryError`] is the source inside the `io::Error`.
    pub fn into_async_read(self) -> impl AsyncRead + Send + Unpin + 'static {
        use futures::TryStreamExt as _;
        tokio_util::io::StreamReader::new(self.pieces.map_err(std::io::Error::other))
    }
}

impl Stream for BlobStream {
    type Item = Result<Bytes, RegistryError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.pieces.as_mut().poll_next(cx)
    }
}

impl fmt::Debug for BlobStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlobStream").finish_non_exhaustive()
    }
}

impl Client {
    /// Opens a blob for reading, from the mirrors first. After a [`crate::ErrorKind::DigestMismatch`] a second call
    /// asks the hosts that have not served wrong bytes.
    ///
    /// # Errors
    /// [`RegistryError`], at opening and as the stream's last item.
    pub async fn fetch_blob(&self, name: &Reference, blob: &Descriptor) -> Result<BlobStream, RegistryError> {
        let _ = (name, blob);
        todo!()
    }

    /// A whole small blob (a configuration) of at most 8 MiB.
    ///
    /// # Errors
    /// As [`Client::fetch_blob`]; [`crate::ErrorKind::TooLarge`].
    pub async fn fetch_small_blob(&self, name: &Reference, blob: &Descriptor) -> Result<Bytes, RegistryError> {
        let _ = (name, blob);
        todo!()
    }
}
