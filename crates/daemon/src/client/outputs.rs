//! Results that come back: a directory by fsutil, anything else as a stream of bytes. Each goes where its exporter was
//! asked to put it, and nowhere else. Start with [`Outputs`].

use std::collections::HashMap;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bollard_buildkit_proto::moby::filesync::packet::file_send_server::{
    FileSend as PacketSend, FileSendServer as PacketServer,
};
use bollard_buildkit_proto::moby::filesync::v1::BytesMessage;
use bollard_buildkit_proto::moby::filesync::v1::file_send_server::{FileSend, FileSendServer};
use futures::{Stream, StreamExt as _, stream};
use stave_exporter::WholeFile;
use tokio::sync::mpsc;
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service, http};
use tonic::server::NamedService;
use tonic::{Request, Response, Status, Streaming};

use super::RemoteBuild;
use crate::fsutil::receive::{Manner, receive};
use crate::fsutil::{PACKETS, Packet, PacketType};
use crate::session::MAX_MESSAGE;
use crate::session::files::packets;

/// How long the sender of a directory has for its last word.
const FAREWELL: Duration = Duration::from_secs(10);

/// The header that says which exporter a result is of.
const EXPORTER: &str = "buildkit-attachable-exporter-id";
/// Where a directory arrives before its entries go to their places.
const INCOMING: &str = ".stave-incoming";

/// Where a result is put.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Sink {
    /// Nothing comes back.
    #[default]
    None,
    /// Files, into a directory that is made if it is missing; what else is in it stays.
    Directory(PathBuf),
    /// One file, replaced.
    File(PathBuf),
    /// Standard output.
    Stdout,
}

/// The service by which results come: its two forms share a name, and the exporter says which it is.
#[derive(Debug, Clone)]
pub(super) struct Outputs {
    bytes: FileSendServer<Sinks>,
    packets: PacketServer<Sinks>,
    sinks: Sinks,
}

#[derive(Debug, Clone)]
struct Sinks(Arc<HashMap<String, Sink>>);

impl Outputs {
    pub(super) fn new(build: &RemoteBuild) -> Self {
        let sinks = build.exports.iter().enumerate();
        let sinks = sinks.map(|(id, export)| (id.to_string(), export.sink.clone())).collect();
        let sinks = Sinks(Arc::new(sinks));
        Self {
            bytes: FileSendServer::new(sinks.clone()).max_decoding_message_size(MAX_MESSAGE),
            packets: PacketServer::new(sinks.clone()).max_decoding_message_size(MAX_MESSAGE),
            sinks,
        }
    }
}

impl Sinks {
    /// The sink of a call; daemons that know one exporter only do not say which it is.
    fn of(&self, id: Option<&str>) -> Option<&Sink> {
        self.0.get(id.unwrap_or("0"))
    }
}

impl NamedService for Outputs {
    const NAME: &'static str = "moby.filesync.v1.FileSend";
}

impl Service<http::Request<Body>> for Outputs {
    type Response = http::Response<Body>;
    type Error = std::convert::Infallible;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let id = request.headers().get(EXPORTER).and_then(|id| id.to_str().ok());
        match self.sinks.of(id) {
            Some(Sink::Directory(_)) => self.packets.call(request),
            _ => self.bytes.call(request),
        }
    }
}

fn id<T>(request: &Request<T>) -> Option<&str> {
    request.metadata().get(EXPORTER).and_then(|id| id.to_str().ok())
}

#[tonic::async_trait]
impl FileSend for Sinks {
    type DiffCopyStream = Pin<Box<dyn Stream<Item = Result<BytesMessage, Status>> + Send>>;

    async fn diff_copy(
        &self,
        request: Request<Streaming<BytesMessage>>,
    ) -> Result<Response<Self::DiffCopyStream>, Status> {
        let sink = self.of(id(&request)).cloned().unwrap_or_default();
        let failed = |error: io::Error| Status::unknown(format!("cannot write the result: {error}"));
        let mut messages = request.into_inner();
        match sink {
            Sink::None | Sink::Directory(_) => return Err(Status::not_found("nobody asked for this result")),
            Sink::Stdout => {
                while let Some(message) = messages.message().await? {
                    io::stdout().write_all(&message.data).map_err(failed)?;
                }
                io::stdout().flush().map_err(failed)?;
            }
            Sink::File(path) => {
                let mut file = WholeFile::create(&path).map_err(failed)?;
                while let Some(message) = messages.message().await? {
                    file.write_all(&message.data).map_err(failed)?;
                }
                file.keep().map_err(failed)?;
            }
        }
        Ok(Response::new(stream::empty().boxed()))
    }
}

#[tonic::async_trait]
impl PacketSend for Sinks {
    type DiffCopyStream = Pin<Box<dyn Stream<Item = Result<Packet, Status>> + Send>>;

    async fn diff_copy(
        &self,
        request: Request<Streaming<Packet>>,
    ) -> Result<Response<Self::DiffCopyStream>, Status> {
        let Some(Sink::Directory(directory)) = self.of(id(&request)).cloned() else {
            return Err(Status::not_found("nobody asked for this result"));
        };
        let (to_receiver, mut incoming) = mpsc::channel(PACKETS);
        let (requests, mut outgoing) = mpsc::channel(PACKETS);
        let (sender, answers) = mpsc::channel(PACKETS);
        let mut messages = request.into_inner();
        let mut reading = tokio::spawn(async move {
            while let Ok(Some(packet)) = messages.message().await {
                let is_last = packet.r#type == PacketType::PacketFin as i32;
                // Who has all of it reads no more; the sender's last word comes after that.
                to_receiver.send(packet).await.ok();
                if is_last {
                    return;
                }
            }
        });
        tokio::spawn(async move {
            let forwarding = async {
                while let Some(packet) = outgoing.recv().await {
                    if sender.send(Ok(packet)).await.is_err() {
                        return;
                    }
                }
            };
            let receiving = tokio::task::spawn_blocking(move || take(&directory, &mut incoming, &requests));
            let (received, ()) = tokio::join!(receiving, forwarding);
            let failure = match received {
                Ok(Ok(())) => {
                    // The sender answers the end with its own. To a call that is over already it cannot, and takes that
                    // for a failure.
                    tokio::time::timeout(FAREWELL, &mut reading).await.ok();
                    return;
                }
                Ok(Err(words)) => words,
                Err(error) => error.to_string(),
            };
            reading.abort();
            sender.send(Err(Status::unknown(failure))).await.ok();
        });
        Ok(Response::new(Box::pin(packets(answers))))
    }
}

/// Takes a directory: whole and aside first, then entry by entry to its place.
fn take(
    directory: &Path,
    incoming: &mut mpsc::Receiver<Packet>,
    requests: &mpsc::Sender<Packet>,
) -> Result<(), String> {
    let failed = |error: io::Error| format!("cannot write to `{}`: {error}", directory.display());
    fs::create_dir_all(directory).map_err(failed)?;
    let aside = Aside(directory.join(format!("{INCOMING}-{}", crate::build::random_id())));
    fs::create_dir(&aside.0).map_err(failed)?;
    // Whoever asks for files gets them, be it root: so it is with BuildKit's clients.
    let own = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let manner = Manner { owner: Some(own), ..Manner::default() };
    receive(&aside.0, manner, incoming, requests, &|_| {})
        .map_err(|error| crate::failure::one_line(&error))?;
    check(&aside.0, directory)?;
    merge(&aside.0, directory).map_err(failed)
}

/// Refuses what would put something else in the place of a directory with files in it: these are the user's. Before
/// anything is moved.
fn check(from: &Path, to: &Path) -> Result<(), String> {
    let failed = |error: io::Error| format!("cannot write to `{}`: {error}", to.display());
    for entry in fs::read_dir(from).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let target = to.join(entry.file_name());
        if !fs::symlink_metadata(&target).is_ok_and(|here| here.is_dir()) {
            continue;
        }
        if entry.file_type().map_err(failed)?.is_dir() {
            check(&entry.path(), &target)?;
        } else if fs::read_dir(&target).map_err(failed)?.next().is_some() {
            return Err(format!(
                "`{}` is a directory and not empty: nothing else is put in its place",
                target.display()
            ));
        }
    }
    Ok(())
}

/// Moves what is in one directory into another. Nothing below a link is entered.
fn merge(from: &Path, to: &Path) -> io::Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        let here = match fs::symlink_metadata(&target) {
            Ok(here) => Some(here),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        let is_directory = entry.file_type()?.is_dir();
        match here {
            Some(here) if here.is_dir() && is_directory => {
                merge(&entry.path(), &target)?;
                fs::set_permissions(&target, entry.metadata()?.permissions())?;
                continue;
            }
            Some(here) if here.is_dir() => fs::remove_dir(&target)?,
            Some(_) => fs::remove_file(&target)?,
            None => {}
        }
        fs::rename(entry.path(), &target)?;
    }
    Ok(())
}

/// A directory beside its place; removed with what is left in it.
struct Aside(PathBuf);

impl Drop for Aside {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).ok();
    }
}

#[cfg(test)]
mod tests {
    use bollard_buildkit_proto::moby::filesync::packet::file_send_client::FileSendClient as PacketClient;
    use tonic::transport::Server;

    use super::*;
    use crate::client::RemoteExport;
    use crate::fsutil::packet;
    use crate::session::connection::over;

    /// Longer than a call takes to end by itself. Only one that ends too early makes a difference.
    const WHILE: Duration = Duration::from_millis(100);

    #[tokio::test]
    async fn a_call_is_not_over_before_the_senders_last_word() {
        let folder = tempfile::tempdir().expect("a folder");
        let directory = folder.path().join("out");
        let export = RemoteExport {
            kind: "local".to_owned(),
            attributes: Default::default(),
            sink: Sink::Directory(directory.clone()),
        };
        let build = RemoteBuild { exports: vec![export], ..RemoteBuild::default() };
        let (ours, theirs) = tokio::io::duplex(64 << 10);
        let connections = stream::iter([Ok::<_, io::Error>(theirs)]).chain(stream::pending());
        let serving = Server::builder().add_service(Outputs::new(&build)).serve_with_incoming(connections);
        let serving = tokio::spawn(serving);

        let (sender, messages) = mpsc::channel(PACKETS);
        sender.send(packet(PacketType::PacketStat, 0)).await.expect("there are no files");
        let answers = PacketClient::new(over(ours)).diff_copy(packets(messages)).await;
        let mut answers = answers.expect("is served").into_inner();
        let last = answers.message().await.expect("is told").expect("that it has all");
        assert_eq!(last.r#type(), PacketType::PacketFin);
        let early = tokio::time::timeout(WHILE, answers.message()).await;
        assert!(early.is_err(), "{early:?}");
        sender.send(packet(PacketType::PacketFin, 0)).await.expect("is awaited");
        assert_eq!(answers.message().await.expect("ends well"), None);
        assert!(directory.is_dir());
        serving.abort();
    }

    #[test]
    fn a_directory_is_merged_and_no_link_is_entered() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name);
        for name in ["from/a/b", "from/l", "to/a/kept", "outside"] {
            fs::create_dir_all(path(name)).expect("made");
        }
        fs::write(path("from/a/f"), "new").expect("written");
        fs::write(path("from/l/f"), "new").expect("written");
        fs::write(path("to/a/f"), "old").expect("written");
        std::os::unix::fs::symlink(path("outside"), path("to/l")).expect("linked");
        merge(&path("from"), &path("to")).expect("merges");
        assert_eq!(fs::read_to_string(path("to/a/f")).expect("reads"), "new");
        assert!(path("to/a/kept").is_dir() && path("to/a/b").is_dir());
        assert_eq!(fs::read_to_string(path("to/l/f")).expect("reads"), "new");
        assert!(!path("outside/f").exists());
    }

    #[test]
    fn a_directory_of_the_users_is_not_replaced() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name);
        for name in ["from/a", "to/a/d", "to/e"] {
            fs::create_dir_all(path(name)).expect("made");
        }
        for name in ["from/a/d", "from/e", "from/new", "to/a/d/theirs"] {
            fs::write(path(name), "x").expect("written");
        }
        let refused = check(&path("from"), &path("to")).expect_err("is the user's");
        assert!(refused.contains("to/a/d` is a directory and not empty"), "{refused}");
        assert!(merge(&path("from"), &path("to")).is_err(), "not even for who does not ask");
        assert!(path("to/a/d/theirs").exists());
        fs::remove_file(path("to/a/d/theirs")).expect("removed");
        fs::write(path("from/e"), "x").expect("written");
        check(&path("from"), &path("to")).expect("empty ones give way");
        merge(&path("from"), &path("to")).expect("merges");
        assert!(path("to/a/d").is_file() && path("to/e").is_file());
    }
}
