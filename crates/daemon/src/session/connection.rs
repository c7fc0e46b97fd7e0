//! The stream of bytes of a session as a connection that HTTP/2 can be spoken over, with us as the caller.

use std::sync::Mutex;

use bollard_buildkit_proto::moby::buildkit::v1::BytesMessage;
use futures::{Stream, StreamExt as _};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::transport::{Channel, Endpoint, Uri};

/// Bytes on their way in each direction.
const BUFFER: usize = 256 << 10;
/// Bytes of one message to the client.
const CHUNK: usize = 32 << 10;
/// Messages to the client that wait for the network.
const MESSAGES: usize = 16;
/// Bytes of HTTP/2 content on their way, per stream.
const WINDOW: u32 = 1 << 20;

/// What goes back to the client: the answer of the `Session` call.
pub(crate) type Outgoing = mpsc::Receiver<Result<BytesMessage, Status>>;

/// Connects over the two halves of a `Session` call. `ended` fires when either half is over, and ends both.
pub(crate) fn connect(
    incoming: impl Stream<Item = Result<BytesMessage, Status>> + Send + Unpin + 'static,
    ended: &CancellationToken,
) -> (Channel, Outgoing) {
    let (ours, theirs) = tokio::io::duplex(BUFFER);
    let (sender, outgoing) = mpsc::channel(MESSAGES);
    let (read, write) = tokio::io::split(theirs);
    tokio::spawn(until(ended.clone(), receive(incoming, write)));
    tokio::spawn(until(ended.clone(), send(read, sender)));
    (over(ours), outgoing)
}

/// HTTP/2 over one connection, which is never opened again.
pub(crate) fn over(connection: DuplexStream) -> Channel {
    let connection = Mutex::new(Some(connection));
    let connector = tower::service_fn(move |_: Uri| {
        let connection = connection.lock().ok().and_then(|mut slot| slot.take());
        let gone = || std::io::Error::new(std::io::ErrorKind::NotConnected, "the session is over");
        std::future::ready(connection.map(TokioIo::new).ok_or_else(gone))
    });
    let endpoint = Endpoint::from_static("http://localhost")
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(4 * WINDOW);
    endpoint.connect_with_connector_lazy(connector)
}

async fn until(ended: CancellationToken, work: impl Future<Output = ()>) {
    let guard = ended.clone().drop_guard();
    tokio::select! {
        () = work => {}
        () = ended.cancelled() => {}
    }
    drop(guard);
}

async fn receive(
    mut incoming: impl Stream<Item = Result<BytesMessage, Status>> + Unpin,
    mut write: tokio::io::WriteHalf<DuplexStream>,
) {
    while let Some(Ok(message)) = incoming.next().await {
        if write.write_all(&message.data).await.is_err() {
            return;
        }
    }
}

async fn send(
    mut read: tokio::io::ReadHalf<DuplexStream>,
    sender: mpsc::Sender<Result<BytesMessage, Status>>,
) {
    let mut buffer = vec![0; CHUNK];
    while let Ok(count @ 1..) = read.read(&mut buffer).await {
        if sender.send(Ok(BytesMessage { data: buffer[..count].to_vec() })).await.is_err() {
            return;
        }
    }
}
