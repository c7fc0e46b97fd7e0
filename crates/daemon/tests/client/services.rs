//! What the test client serves: two directories, and a place for one archive.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;

use bollard_buildkit_proto::fsutil::types::packet::PacketType;
use bollard_buildkit_proto::fsutil::types::{Packet, Stat};
use bollard_buildkit_proto::moby::filesync::packet::file_sync_server::{FileSync, FileSyncServer};
use bollard_buildkit_proto::moby::filesync::v1::BytesMessage;
use bollard_buildkit_proto::moby::filesync::v1::file_send_server::{FileSend, FileSendServer};
use futures::{Stream, StreamExt as _, stream};
use tokio::io::DuplexStream;
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};

use super::Shared;
use super::content::{Blobs, ContentServer};
use super::policy::{Decides, Question, Word};

/// What the client says that it serves.
pub(crate) const METHODS: [&str; 2] =
    ["/moby.filesync.v1.FileSync/DiffCopy", "/moby.filesync.v1.FileSend/DiffCopy"];

/// How a client keeps to the protocol.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Manner {
    Honest,
    /// One more path at the end of the context.
    Path(String),
    /// Sends content that nobody asked for.
    Unasked,
    /// Never says anything once it was asked.
    Silent,
    /// Has what it would be sent.
    HasIt,
}

/// A client's files.
#[derive(Debug, Clone)]
pub(crate) struct Files {
    context: BTreeMap<String, String>,
    dockerfile: String,
    manner: Manner,
    asked: Shared<Vec<String>>,
    received: Shared<Vec<u8>>,
    called: Arc<Notify>,
    blobs: Blobs,
    pub(super) decides: Option<Decides>,
}

impl Files {
    pub(crate) fn new(context: &[(&str, &str)], dockerfile: &str) -> Self {
        let context = context.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
        Self {
            context,
            dockerfile: dockerfile.to_owned(),
            manner: Manner::Honest,
            asked: Shared::default(),
            received: Shared::default(),
            called: Arc::default(),
            blobs: Blobs::default(),
            decides: None,
        }
    }

    pub(crate) fn with_path(self, path: &str) -> Self {
        Self { manner: Manner::Path(path.to_owned()), ..self }
    }

    /// What the client's stores hold.
    pub(crate) fn blobs(&self) -> Blobs {
        Arc::clone(&self.blobs)
    }

    pub(crate) fn with_blobs(self, blobs: Blobs) -> Self {
        Self { blobs, ..self }
    }

    /// Of a client that decides about sources.
    pub(crate) fn deciding(self, word: impl Fn(&Question) -> Word + Send + Sync + 'static) -> Self {
        Self { decides: Some(Decides::by(word)), ..self }
    }

    pub(crate) fn unasked(self) -> Self {
        Self { manner: Manner::Unasked, ..self }
    }

    pub(crate) fn with_the_result(self) -> Self {
        Self { manner: Manner::HasIt, ..self }
    }

    pub(crate) fn silent(self) -> Self {
        Self { manner: Manner::Silent, ..self }
    }

    /// Names of the files whose content was asked for, sorted.
    pub(crate) fn asked(&self) -> Vec<String> {
        let mut asked = self.asked.lock().expect("not poisoned").clone();
        asked.sort();
        asked
    }

    pub(crate) fn forget(&self) {
        self.asked.lock().expect("not poisoned").clear();
        self.received.lock().expect("not poisoned").clear();
    }

    pub(crate) fn received(&self) -> Vec<u8> {
        self.received.lock().expect("not poisoned").clone()
    }

    pub(crate) async fn wait_until_asked(&self) {
        self.called.notified().await;
    }

    /// The entries of a directory, as its patterns pick them, with their content.
    fn entries(&self, directory: &str, follow: &[String]) -> Vec<(String, String)> {
        let all = match directory {
            "dockerfile" => BTreeMap::from([("Dockerfile".to_owned(), self.dockerfile.clone())]),
            _ => self.context.clone(),
        };
        let wanted = |name: &String| follow.is_empty() || follow.contains(name);
        let mut entries: Vec<_> = all.into_iter().filter(|(name, _)| wanted(name)).collect();
        if let (Manner::Path(path), "context") = (&self.manner, directory)
            && !entries.is_empty()
        {
            entries.push((path.clone(), String::new()));
        }
        entries
    }
}

/// Serves until the other side hangs up.
pub(crate) async fn serve(files: Files, connection: DuplexStream, ended: CancellationToken) {
    let connections = stream::once(async { Ok::<_, std::io::Error>(connection) }).chain(stream::pending());
    let connections = connections.take_until(ended.cancelled_owned());
    let server = Server::builder()
        .add_service(FileSyncServer::new(files.clone()))
        .add_service(ContentServer(files.blobs()))
        .add_optional_service(files.decides.clone())
        .add_service(FileSendServer::new(files));
    server.serve_with_incoming(connections).await.ok();
}

type Packets = Pin<Box<dyn Stream<Item = Result<Packet, Status>> + Send>>;

fn packet(kind: PacketType, id: u32, data: &[u8], stat: Option<Stat>) -> Packet {
    Packet { r#type: kind.into(), stat, id, data: data.to_vec() }
}

#[tonic::async_trait]
impl FileSync for Files {
    type DiffCopyStream = Packets;
    type TarStreamStream = Packets;

    async fn diff_copy(&self, request: Request<Streaming<Packet>>) -> Result<Response<Packets>, Status> {
        let text = |value: &tonic::metadata::AsciiMetadataValue| value.to_str().expect("text").to_owned();
        let directory = request.metadata().get("dir-name").map(text).unwrap_or_default();
        let follow: Vec<_> = request.metadata().get_all("followpaths").iter().map(text).collect();
        let follow: Vec<_> = follow.iter().map(|path| path.trim_start_matches("./").to_owned()).collect();
        self.called.notify_one();
        if self.manner == Manner::Silent {
            return Ok(Response::new(stream::pending().boxed()));
        }
        let entries = self.entries(&directory, &follow);
        let (sender, receiver) = mpsc::channel(16);
        let this = self.clone();
        let mut requests = request.into_inner();
        tokio::spawn(async move {
            for (name, text) in &entries {
                let stat = Stat {
                    path: name.clone(),
                    mode: 0o644,
                    size: i64::try_from(text.len()).expect("small"),
                    mod_time: 1_600_000_000_000_000_000,
                    uid: rustix::process::geteuid().as_raw(),
                    gid: rustix::process::getegid().as_raw(),
                    ..Stat::default()
                };
                sender.send(Ok(packet(PacketType::PacketStat, 0, b"", Some(stat)))).await.ok();
            }
            sender.send(Ok(packet(PacketType::PacketStat, 0, b"", None))).await.ok();
            if this.manner == Manner::Unasked && directory == "context" {
                sender.send(Ok(packet(PacketType::PacketData, 99, b"x", None))).await.ok();
            }
            while let Ok(Some(asked)) = requests.message().await {
                if asked.r#type() != PacketType::PacketReq {
                    sender.send(Ok(packet(PacketType::PacketFin, 0, b"", None))).await.ok();
                    break;
                }
                let (name, text) = &entries[asked.id as usize];
                this.asked.lock().expect("not poisoned").push(name.clone());
                if !text.is_empty() {
                    let data = packet(PacketType::PacketData, asked.id, text.as_bytes(), None);
                    sender.send(Ok(data)).await.ok();
                }
                sender.send(Ok(packet(PacketType::PacketData, asked.id, b"", None))).await.ok();
            }
        });
        let packets =
            stream::unfold(receiver, |mut receiver| async { Some((receiver.recv().await?, receiver)) });
        Ok(Response::new(packets.boxed()))
    }

    async fn tar_stream(&self, _: Request<Streaming<Packet>>) -> Result<Response<Packets>, Status> {
        Err(Status::unimplemented("not served"))
    }
}

#[tonic::async_trait]
impl FileSend for Files {
    type DiffCopyStream = Pin<Box<dyn Stream<Item = Result<BytesMessage, Status>> + Send>>;

    async fn diff_copy(
        &self,
        request: Request<Streaming<BytesMessage>>,
    ) -> Result<Response<Self::DiffCopyStream>, Status> {
        if self.manner == Manner::HasIt {
            let name = request.metadata().get("exporter-md-containerimage.digest");
            let name = name.map(|name| name.as_bytes().to_vec());
            self.received.lock().expect("not poisoned").extend(name.unwrap_or_default());
            return Err(Status::already_exists("target already exists"));
        }
        let mut messages = request.into_inner();
        while let Some(message) = messages.message().await? {
            self.received.lock().expect("not poisoned").extend(message.data);
        }
        Ok(Response::new(stream::empty().boxed()))
    }
}
