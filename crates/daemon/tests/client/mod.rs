//! A daemon in this process and a small client: what the tests need of each, no more.

mod content;
pub(crate) mod policy;
mod services;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bollard_buildkit_proto::moby::buildkit::v1::control_client::ControlClient;
use bollard_buildkit_proto::moby::buildkit::v1::frontend::llb_bridge_client::LlbBridgeClient;
use bollard_buildkit_proto::moby::buildkit::v1::frontend::{
    ReadFileRequest, ReadFileResponse, Result as Results, ReturnRequest, SolveRequest as Inside,
    SolveResponse as Solved,
};
use bollard_buildkit_proto::moby::buildkit::v1::{
    BytesMessage, Exporter, SolveRequest, SolveResponse, StatusRequest, Vertex,
};
use futures::{StreamExt as _, stream};
use hyper_util::rt::TokioIo;
use stave_daemon::{Daemon, DaemonConfig, Listener, WorkerConfig};
use stave_engine::{Engine, EngineConfig};
use stave_registry::{Keychain, RegistryTables};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Request, Status};

pub(crate) use services::Files;

/// How long a daemon without builds may take to end.
const END: Duration = Duration::from_secs(10);

/// A daemon of this process; its state vanishes with it.
pub(crate) struct TestDaemon {
    socket: PathBuf,
    shutdown: CancellationToken,
    serving: tokio::task::JoinHandle<()>,
    /// Where metrics and the page are.
    pub(crate) watched: Vec<String>,
    pub(crate) folder: tempfile::TempDir,
}

/// What a build came to.
#[derive(Debug)]
pub(crate) struct Built {
    pub(crate) archive: Vec<u8>,
    pub(crate) response: HashMap<String, String>,
    pub(crate) vertexes: Vec<Vertex>,
}

/// A connection whose calls show a token.
pub(crate) type Wire = InterceptedService<Channel, Token>;

/// What every call shows.
#[derive(Clone, Default)]
pub(crate) struct Token(Option<String>);

impl Interceptor for Token {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            let value = format!("Bearer {token}").parse().expect("a header");
            request.metadata_mut().insert("authorization", value);
        }
        Ok(request)
    }
}

/// A client with an open session.
pub(crate) struct Client {
    channel: Wire,
    session: String,
    pub(crate) files: Files,
    ended: CancellationToken,
}

impl TestDaemon {
    pub(crate) async fn start() -> Self {
        Self::start_with(|_, _| {}).await
    }

    /// A daemon of another configuration, whose files may be in the folder.
    pub(crate) async fn start_with(change: impl FnOnce(&mut DaemonConfig, &Path)) -> Self {
        Self::at(tempfile::tempdir().expect("a folder"), change).await
    }

    /// Another daemon in the place of this one.
    pub(crate) async fn restart(self) -> Self {
        self.shutdown.cancel();
        tokio::time::timeout(END, self.serving).await.expect("ends in time").expect("no panic");
        Self::at(self.folder, |_, _| {}).await
    }

    async fn at(folder: tempfile::TempDir, change: impl FnOnce(&mut DaemonConfig, &Path)) -> Self {
        let engine = Engine::open(EngineConfig {
            root: folder.path().join("state"),
            registries: RegistryTables::default(),
            keychain: Keychain::anonymous(),
            device_directories: None,
            parallel_steps: None,
            oci_runtime: None,
        });
        let socket = folder.path().join("daemon.sock");
        let mut config = DaemonConfig {
            listeners: vec![Listener::Unix { path: socket.clone(), group: None }],
            worker: WorkerConfig { id: "w".to_owned(), ..WorkerConfig::default() },
            patience: Duration::ZERO,
            ..DaemonConfig::default()
        };
        change(&mut config, folder.path());
        let daemon = Daemon::bind(Arc::new(engine.expect("opens")), config).await.expect("binds");
        let watched = daemon.watched_at();
        let shutdown = CancellationToken::new();
        let stop = shutdown.clone();
        let serving = tokio::spawn(async move { daemon.serve(stop).await.expect("serves") });
        Self { socket, shutdown, serving, watched, folder }
    }

    /// Tells the daemon to end, and does not wait for it.
    pub(crate) fn tell_to_end(&self) {
        self.shutdown.cancel();
    }

    /// Insists that the daemon ends soon.
    pub(crate) async fn stop(self) {
        self.shutdown.cancel();
        tokio::time::timeout(END, self.serving).await.expect("ends in time").expect("no panic");
        assert!(!self.socket.exists(), "the socket goes with the daemon");
    }

    async fn channel(&self, token: Option<&str>) -> Wire {
        let socket = self.socket.clone();
        let connect = move |_: Uri| {
            let socket = socket.clone();
            async move { tokio::net::UnixStream::connect(socket).await.map(TokioIo::new) }
        };
        let endpoint = Endpoint::from_static("http://localhost");
        let channel = endpoint.connect_with_connector(tower::service_fn(connect)).await.expect("connects");
        InterceptedService::new(channel, Token(token.map(str::to_owned)))
    }

    /// A connection of its own, for calls that nothing here knows.
    pub(crate) async fn wire(&self) -> Wire {
        self.channel(None).await
    }

    pub(crate) async fn control(&self) -> ControlClient<Wire> {
        ControlClient::new(self.channel(None).await)
    }

    pub(crate) async fn control_as(&self, token: &str) -> ControlClient<Wire> {
        ControlClient::new(self.channel(Some(token)).await)
    }

    pub(crate) async fn client(&self, session: &str, key: &str, files: Files) -> Client {
        self.client_as(None, session, key, files).await
    }

    /// A client that shows a token with every call.
    pub(crate) async fn client_as(
        &self,
        token: Option<&str>,
        session: &str,
        key: &str,
        files: Files,
    ) -> Client {
        let channel = self.channel(token).await;
        let ended = CancellationToken::new();
        open_session(&channel, session, key, &files, &ended);
        Client { channel, session: session.to_owned(), files, ended }
    }

    /// Opens a session that is refused; returns how.
    pub(crate) async fn try_client(&self, session: &str, files: Files) -> Option<Status> {
        let channel = self.channel(None).await;
        let failed = open_session(&channel, session, "", &files, &CancellationToken::new());
        tokio::time::timeout(END, failed).await.ok()?.ok()
    }
}

/// Serves a client's side of a session. The value tells how the daemon ended it, if it did.
fn open_session(
    channel: &Wire,
    session: &str,
    key: &str,
    files: &Files,
    ended: &CancellationToken,
) -> tokio::sync::oneshot::Receiver<Status> {
    let (ours, theirs) = tokio::io::duplex(64 << 10);
    let (mut read, mut write) = tokio::io::split(theirs);
    let (sender, outgoing) = mpsc::channel::<BytesMessage>(16);
    tokio::spawn(services::serve(files.clone(), ours, ended.clone()));
    let mut request = Request::new(stream::unfold(outgoing, |mut outgoing| async {
        Some((outgoing.recv().await?, outgoing))
    }));
    let headers = request.metadata_mut();
    headers.insert("x-docker-expose-session-uuid", session.parse().expect("a header"));
    headers.insert("x-docker-expose-session-sharedkey", key.parse().expect("a header"));
    let decides = files.decides.as_ref().map(|_| &policy::METHOD);
    for method in services::METHODS.iter().chain(&content::METHODS).chain(decides) {
        headers.append("x-docker-expose-session-grpc-method", method.parse().expect("a header"));
    }
    let (told, failed) = tokio::sync::oneshot::channel();
    let (mut control, ended) = (ControlClient::new(channel.clone()), ended.clone());
    tokio::spawn(async move {
        let sending = async {
            let mut buffer = vec![0; 32 << 10];
            while let Ok(count @ 1..) = read.read(&mut buffer).await {
                if sender.send(BytesMessage { data: buffer[..count].to_vec() }).await.is_err() {
                    break;
                }
            }
        };
        let receiving = async {
            let answer = control.session(request).await;
            let mut incoming = match answer {
                Ok(answer) => answer.into_inner(),
                Err(status) => return drop(told.send(status)),
            };
            while let Some(message) = incoming.next().await {
                match message {
                    Ok(message) => write.write_all(&message.data).await.expect("is open"),
                    Err(status) => return drop(told.send(status)),
                }
            }
        };
        tokio::select! {
            _ = async { tokio::join!(sending, receiving) } => {}
            () = ended.cancelled() => {}
        }
    });
    failed
}

impl Client {
    /// Starts a build that nobody looks at.
    pub(crate) fn start_build(&self, id: &str) -> tokio::task::JoinHandle<Result<SolveResponse, Status>> {
        let request = self.request(id, "tar");
        let mut control = ControlClient::new(self.channel.clone());
        tokio::spawn(async move { Ok(control.solve(request).await?.into_inner()) })
    }

    pub(crate) async fn build(&mut self, id: &str, exporter: &str) -> Result<Built, Status> {
        self.build_with(id, exporter, |request| request).await
    }

    /// Builds with a request that was changed before it is sent.
    pub(crate) async fn build_with(
        &mut self,
        id: &str,
        exporter: &str,
        change: impl FnOnce(SolveRequest) -> SolveRequest,
    ) -> Result<Built, Status> {
        self.files.forget();
        let mut control = ControlClient::new(self.channel.clone());
        let mut status = control.clone();
        let watching = tokio::spawn({
            let request = StatusRequest { r#ref: id.to_owned() };
            async move {
                let mut vertexes = Vec::new();
                let mut updates = status.status(request).await?.into_inner();
                while let Some(update) = updates.message().await? {
                    vertexes.extend(update.vertexes);
                }
                Ok::<_, Status>(vertexes)
            }
        });
        let solved = control.solve(change(self.request(id, exporter))).await;
        let vertexes = tokio::time::timeout(END, watching).await.expect("the status ends").expect("no panic");
        let response = solved?.into_inner().exporter_response;
        Ok(Built { archive: self.files.received(), response, vertexes: vertexes? })
    }

    fn request(&self, id: &str, exporter: &str) -> SolveRequest {
        SolveRequest {
            r#ref: id.to_owned(),
            session: self.session.clone(),
            frontend: "dockerfile.v0".to_owned(),
            exporters: vec![Exporter { r#type: exporter.to_owned(), attrs: HashMap::new() }],
            ..SolveRequest::default()
        }
    }

    pub(crate) async fn read_file(
        &self,
        build: &str,
        request: ReadFileRequest,
    ) -> Result<ReadFileResponse, Status> {
        let mut request = Request::new(request);
        request.metadata_mut().insert("buildkit-controlapi-buildid", build.parse().expect("a header"));
        Ok(LlbBridgeClient::new(self.channel.clone()).read_file(request).await?.into_inner())
    }

    /// Says what the client's own front end came to.
    pub(crate) async fn return_result(&self, build: &str, result: Results) -> Result<(), Status> {
        let mut request = Request::new(ReturnRequest { result: Some(result), error: None });
        request.metadata_mut().insert("buildkit-controlapi-buildid", build.parse().expect("a header"));
        LlbBridgeClient::new(self.channel.clone()).r#return(request).await.map(drop)
    }

    /// Has a graph taken up, for a build whose front end the client is.
    pub(crate) async fn solve_inside(&self, build: &str, request: Inside) -> Result<Solved, Status> {
        let mut request = Request::new(request);
        request.metadata_mut().insert("buildkit-controlapi-buildid", build.parse().expect("a header"));
        Ok(LlbBridgeClient::new(self.channel.clone()).solve(request).await?.into_inner())
    }

    /// Ends the session without a word.
    pub(crate) fn hang_up(&self) {
        self.ended.cancel();
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.ended.cancel();
    }
}

/// The files of a tar, sorted.
pub(crate) fn names(archive: &[u8]) -> Vec<String> {
    let mut archive = tar::Archive::new(archive);
    let entries = archive.entries().expect("is a tar").map(|entry| entry.expect("reads"));
    let files = entries.filter(|entry| entry.header().entry_type().is_file());
    let mut names: Vec<_> =
        files.map(|entry| entry.path().expect("a path").to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// A file of a tar.
pub(crate) fn content(archive: &[u8], name: &str) -> String {
    let mut archive = tar::Archive::new(archive);
    let mut entries = archive.entries().expect("is a tar").map(|entry| entry.expect("reads"));
    let entry = entries.find(|entry| entry.path().expect("a path").to_string_lossy() == name);
    std::io::read_to_string(entry.expect("is there")).expect("reads")
}

/// A list that several tasks write to.
pub(crate) type Shared<T> = Arc<Mutex<T>>;
