//! Results that go back to a client: an archive as a stream of bytes, a directory by fsutil.
//! Owns the two calls. Must not know what is exported. Start with [`stream_to`] and [`files_to`].

use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;

use bollard_buildkit_proto::moby::filesync::packet::file_send_client::FileSendClient as PacketClient;
use bollard_buildkit_proto::moby::filesync::v1::BytesMessage;
use bollard_buildkit_proto::moby::filesync::v1::file_send_client::FileSendClient;
use futures::StreamExt as _;
use tokio::sync::{Mutex, mpsc};
use tonic::metadata::{MetadataKey, MetadataMap, MetadataValue};
use tonic::{Code, Request, Status};

use super::files::packets;
use super::{ClientSession, MAX_MESSAGE, SessionError};
use crate::fsutil::PACKETS;
use crate::fsutil::send::{SendError, send};

const METHOD: &str = "/moby.filesync.v1.FileSend/DiffCopy";
/// Bytes of one message.
const CHUNK: usize = 3 << 20;
/// Messages that wait for the network.
const MESSAGES: usize = 4;

/// Why a result did not reach its client.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OutputError {
    /// There is no way to the client.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// The client refused or went away.
    #[error("{0}")]
    Client(String),
    /// The client wants no file: it has it, or only wanted to hear of it.
    #[error("the client has the file already")]
    Unwanted,
    /// The files could not be sent.
    #[error(transparent)]
    Send(#[from] SendError),
}

/// A writer whose bytes go to a client; blocks its thread while the network is slow.
pub(crate) struct ClientWriter {
    buffer: Vec<u8>,
    messages: mpsc::Sender<BytesMessage>,
}

/// The end of a stream of bytes: wait for it after the last write.
pub(crate) struct Delivery {
    done: tokio::task::JoinHandle<Result<(), Status>>,
}

/// Opens a stream to the client's file of the exporter number `id`; `about` is what the client is told of it.
pub(crate) fn stream_to(
    session: &ClientSession,
    id: usize,
    about: &[(&str, String)],
) -> Result<(ClientWriter, Delivery), SessionError> {
    let channel = session.channel(METHOD)?;
    let (messages, outgoing) = mpsc::channel(MESSAGES);
    let mut request = Request::new(packets(outgoing));
    *request.metadata_mut() = headers(id, about);
    let done = tokio::spawn(async move {
        let mut client = FileSendClient::new(channel).max_decoding_message_size(MAX_MESSAGE);
        let mut answer = client.diff_copy(request).await?.into_inner();
        // Nothing is said but the end.
        while answer.message().await?.is_some() {}
        Ok(())
    });
    Ok((ClientWriter { buffer: Vec::new(), messages }, Delivery { done }))
}

/// A stream that is opened once it is known what the client is to be told of it. Whoever writes has it as long as the
/// network is slow: no thread of the runtime's may wait for that.
#[derive(Clone, Default)]
pub(crate) struct Announced(Arc<Mutex<Option<Opened>>>);

/// A stream, or why there is none.
type Opened = Result<(ClientWriter, Delivery), SessionError>;

impl Announced {
    /// Opens the stream, before the first write. Where there is none, that fails.
    pub(crate) fn open(&self, session: &ClientSession, id: usize, about: &[(&str, String)]) {
        match self.0.try_lock() {
            Ok(mut opened) => *opened = Some(stream_to(session, id, about)),
            Err(_) => tracing::debug!("a result is written before it is announced"),
        }
    }

    /// Ends the stream and waits until the client has it all.
    pub(crate) async fn finish(self) -> Result<(), OutputError> {
        let opened = self.0.lock().await.take();
        let Some((writer, delivery)) = opened.transpose()? else { return Ok(()) };
        drop(writer);
        delivery.finish().await
    }

    fn with<T>(&self, act: impl FnOnce(&mut ClientWriter) -> io::Result<T>) -> io::Result<T> {
        match self.0.blocking_lock().as_mut() {
            Some(Ok((writer, _))) => act(writer),
            _ => Err(io::Error::new(io::ErrorKind::NotConnected, "the client takes no files")),
        }
    }
}

impl Write for Announced {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.with(|writer| writer.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.with(Write::flush)
    }
}

impl Delivery {
    /// Waits until the client has it all. The writer must be gone by then.
    pub(crate) async fn finish(self) -> Result<(), OutputError> {
        match self.done.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(status)) if status.code() == Code::AlreadyExists => Err(OutputError::Unwanted),
            Ok(Err(status)) => Err(OutputError::Client(status.message().to_owned())),
            Err(error) => Err(OutputError::Client(error.to_string())),
        }
    }
}

impl ClientWriter {
    fn put(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let data = std::mem::take(&mut self.buffer);
        let gone = |_| io::Error::new(io::ErrorKind::BrokenPipe, "the client takes no more");
        self.messages.blocking_send(BytesMessage { data }).map_err(gone)
    }
}

impl Write for ClientWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = CHUNK - self.buffer.len();
        let taken = bytes.len().min(room);
        self.buffer.extend_from_slice(&bytes[..taken]);
        if self.buffer.len() == CHUNK {
            self.put()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.put()
    }
}

/// Sends what is in `root` to the client's directory of the exporter number `id`; returns the bytes that travelled.
pub(crate) async fn files_to(
    session: Arc<ClientSession>,
    id: usize,
    root: PathBuf,
) -> Result<u64, OutputError> {
    let channel = session.channel(METHOD)?;
    let (outgoing, to_client) = mpsc::channel(PACKETS);
    let mut request = Request::new(packets(to_client));
    *request.metadata_mut() = headers(id, &[]);
    let mut client = PacketClient::new(channel).max_decoding_message_size(MAX_MESSAGE);
    let failed = |status: Status| OutputError::Client(status.message().to_owned());
    // Unbounded on our side, so that sending never waits for what the client asks: it can ask for each file once.
    let (forward, mut incoming) = mpsc::unbounded_channel();
    // Before the call is answered: a client answers once it has something to ask.
    let working = tokio::task::spawn_blocking(move || send(&root, &mut incoming, &outgoing));
    let mut answers = client.diff_copy(request).await.map_err(failed)?.into_inner();
    let mut failure = None;
    let mut count: u64 = 0;
    while let Some(packet) = answers.next().await {
        count += 1;
        match packet {
            Ok(packet) if count <= crate::fsutil::MAX_ENTRIES => {
                if forward.send(packet).is_err() {
                    break;
                }
            }
            Ok(_) => failure = Some(OutputError::Client("the client asks for too much".to_owned())),
            Err(status) => failure = Some(failed(status)),
        }
        if failure.is_some() {
            break;
        }
    }
    drop(forward);
    match (working.await, failure) {
        (Ok(Ok(bytes)), _) => Ok(bytes),
        (_, Some(failure)) => Err(failure),
        (Ok(Err(error)), None) => Err(error.into()),
        (Err(error), None) => Err(OutputError::Client(error.to_string())),
    }
}

fn headers(id: usize, about: &[(&str, String)]) -> MetadataMap {
    let mut headers = MetadataMap::new();
    headers.insert("buildkit-attachable-exporter-id", MetadataValue::from(id));
    headers.insert("buildkit-exporter-multi-platform", MetadataValue::from_static("1"));
    for (name, value) in about {
        let name = MetadataKey::from_bytes(format!("exporter-md-{name}").as_bytes());
        if let (Ok(name), Ok(value)) = (name, MetadataValue::try_from(value.as_str())) {
            headers.insert(name, value);
        }
    }
    headers
}
