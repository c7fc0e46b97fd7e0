//! A client's stores of content: directories with blobs by digest, which the client serves as containerd does. OCI
//! layouts come from there, and layouts and local caches go there.
//!
//! Owns the calls; every blob that comes is held against its digest. Must not know what blobs mean. Start with
//! [`ClientStore`].

mod messages;

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::path::Path;
use std::sync::Arc;

use futures::{Stream, StreamExt as _};
use stave_oci::{Digest, Hasher};
use tokio::sync::mpsc;
use tonic::metadata::MetadataValue;
use tonic::{Code, Request, Status};

use super::files::packets;
use super::{ClientSession, SessionError};
use messages::{ContentClient, InfoRequest, ReadRequest, WriteAction, WriteRequest, WriteResponse};

/// The header that names the store.
const STORE: &str = "buildkit-attachable-store-id";
/// Bytes of one message to the client.
const CHUNK: usize = 1 << 20;

/// Why a blob did not travel.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ContentError {
    /// The client serves no content.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// It is not in the store.
    #[error("{0}: not found")]
    NotFound(Digest),
    /// What the client said.
    #[error("{0}")]
    Client(String),
    /// It is not what its digest says.
    #[error("content of {0} does not match its digest")]
    Digest(Digest),
    /// It is larger than it may be.
    #[error("{digest} is larger than {limit} bytes")]
    TooLarge {
        /// Which.
        digest: Digest,
        /// How large it may be.
        limit: u64,
    },
    /// A file of ours.
    #[error("cannot keep a client's content")]
    File(#[from] io::Error),
}

/// One store of a client.
#[derive(Debug, Clone)]
pub(crate) struct ClientStore {
    session: Arc<ClientSession>,
    id: String,
}

impl ClientStore {
    /// The store that the client calls `id`.
    pub(crate) fn new(session: Arc<ClientSession>, id: String) -> Self {
        Self { session, id }
    }

    fn client(&self, method: &'static str) -> Result<ContentClient, ContentError> {
        Ok(ContentClient::new(self.session.channel(method)?))
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Ok(id) = MetadataValue::try_from(self.id.as_str()) {
            request.metadata_mut().insert(STORE, id);
        }
        request
    }

    /// The size of a blob, if it is there.
    pub(crate) async fn size(&self, digest: &Digest) -> Result<Option<u64>, ContentError> {
        let request = self.request(InfoRequest { digest: digest.to_string() });
        match self.client(messages::INFO)?.info(request).await {
            Ok(answer) => Ok(answer.info.map(|info| u64::try_from(info.size).unwrap_or_default())),
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(ContentError::Client(status.message().to_owned())),
        }
    }

    /// The bytes of a blob as they come. Not verified.
    pub(crate) async fn read(
        &self,
        digest: &Digest,
    ) -> Result<impl Stream<Item = io::Result<Vec<u8>>> + Send + use<>, ContentError> {
        let request = self.request(ReadRequest { digest: digest.to_string(), offset: 0, size: 0 });
        let answer = self.client(messages::READ)?.read(request).await;
        let stream = answer.map_err(|status| match status.code() {
            Code::NotFound => ContentError::NotFound(digest.clone()),
            _ => ContentError::Client(status.message().to_owned()),
        })?;
        Ok(stream.map(|piece| piece.map(|piece| piece.data).map_err(io::Error::other)))
    }

    /// A small blob, verified.
    pub(crate) async fn document(&self, digest: &Digest, limit: u64) -> Result<Vec<u8>, ContentError> {
        let mut whole = Vec::new();
        let mut pieces = std::pin::pin!(self.read(digest).await?);
        while let Some(piece) = pieces.next().await {
            whole.extend(piece.map_err(|error| ContentError::Client(error.to_string()))?);
            if whole.len() as u64 > limit {
                return Err(ContentError::TooLarge { digest: digest.clone(), limit });
            }
        }
        let mut hasher = Hasher::new(digest.algorithm());
        hasher.update(&whole);
        if hasher.finish() != *digest {
            return Err(ContentError::Digest(digest.clone()));
        }
        Ok(whole)
    }

    /// Fetches a blob of at most `limit` bytes into a new file, verified.
    pub(crate) async fn fetch(&self, digest: &Digest, limit: u64, path: &Path) -> Result<(), ContentError> {
        let mut pieces = std::pin::pin!(self.read(digest).await?);
        let (sender, mut receiver) = mpsc::channel::<Vec<u8>>(4);
        let (mut file, mut hasher) = (File::create_new(path)?, Hasher::new(digest.algorithm()));
        let wanted = digest.clone();
        let writing = tokio::task::spawn_blocking(move || {
            let mut count: u64 = 0;
            while let Some(piece) = receiver.blocking_recv() {
                count += piece.len() as u64;
                if count > limit {
                    return Err(ContentError::TooLarge { digest: wanted, limit });
                }
                hasher.update(&piece);
                file.write_all(&piece)?;
            }
            if hasher.finish() == wanted { Ok(()) } else { Err(ContentError::Digest(wanted)) }
        });
        while let Some(piece) = pieces.next().await {
            let piece = piece.map_err(|error| ContentError::Client(error.to_string()))?;
            if sender.send(piece).await.is_err() {
                break;
            }
        }
        drop(sender);
        writing.await.map_err(|error| ContentError::File(io::Error::other(error)))?
    }

    /// Makes sure that the client has a blob, whose bytes are those of `file`.
    pub(crate) async fn put(&self, digest: &Digest, file: File) -> Result<(), ContentError> {
        if self.size(digest).await?.is_some() {
            return Ok(());
        }
        let size = file.metadata()?.len();
        match self.write(digest, size, file).await {
            Ok(()) => Ok(()),
            // Somebody else was faster.
            Err(status) if status.code() == Code::AlreadyExists => Ok(()),
            Err(status) => Err(ContentError::Client(status.message().to_owned())),
        }
    }

    async fn write(&self, digest: &Digest, size: u64, mut file: File) -> Result<(), Status> {
        let (sender, requests) = mpsc::channel(4);
        let mut client = self.client(messages::WRITE).map_err(|error| Status::unknown(error.to_string()))?;
        let total = i64::try_from(size).unwrap_or(i64::MAX);
        let message = |action, offset, data| WriteRequest {
            action,
            r#ref: format!("stave-{digest}"),
            total,
            expected: digest.to_string(),
            offset,
            data,
        };
        // A writer that was left behind goes on where it stopped; ours begins at the beginning.
        let first = message(WriteAction::STAT, 0, Vec::new());
        sender.send(first).await.map_err(|_| Status::cancelled("the client takes no more"))?;
        let mut answers = client.write(self.request(packets(requests))).await?;
        let mut offset = next(&mut answers).await?.offset;
        if offset != 0 {
            io::Seek::seek(&mut file, io::SeekFrom::Start(u64::try_from(offset).unwrap_or_default()))?;
        }
        loop {
            let (data, rest) = tokio::task::spawn_blocking(move || chunk(file))
                .await
                .map_err(|error| Status::internal(error.to_string()))??;
            file = rest;
            if data.is_empty() {
                break;
            }
            let length = i64::try_from(data.len()).unwrap_or_default();
            let piece = message(WriteAction::WRITE, offset, data);
            sender.send(piece).await.map_err(|_| Status::cancelled("the client takes no more"))?;
            next(&mut answers).await?;
            offset += length;
        }
        let last = message(WriteAction::COMMIT, offset, Vec::new());
        sender.send(last).await.map_err(|_| Status::cancelled("the client takes no more"))?;
        next(&mut answers).await.map(drop)
    }
}

async fn next(
    answers: &mut (impl Stream<Item = Result<WriteResponse, Status>> + Unpin),
) -> Result<WriteResponse, Status> {
    answers.next().await.unwrap_or_else(|| Err(Status::unknown("the client ended a write early")))
}

/// The next piece of a file; empty at its end.
fn chunk(mut file: File) -> io::Result<(Vec<u8>, File)> {
    let mut data = Vec::new();
    (&mut file).take(CHUNK as u64).read_to_end(&mut data)?;
    Ok((data, file))
}
