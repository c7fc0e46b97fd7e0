//! Listening, serving, and coming to an end. Start with [`Daemon`].

mod reload;
mod tls;

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bollard_buildkit_proto::health::health_server::HealthServer;
use bollard_buildkit_proto::moby::buildkit::v1::control_server::ControlServer;
use bollard_buildkit_proto::moby::buildkit::v1::frontend::llb_bridge_server::LlbBridgeServer;
use futures::future::{BoxFuture, FutureExt as _};
use futures::stream;
use stave_engine::Engine;
use tokio::net::{TcpListener, UnixListener};
use tokio_util::sync::CancellationToken;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Server;
use tonic::transport::server::Router;

use self::tls::Tls;
use crate::audit::Audit;
use crate::config::{Address, DaemonConfig, InheritedSocket, Listener, Reload, TlsIdentity};
use crate::content::ContentService;
use crate::control::Control;
use crate::control::info::WithLanguage;
use crate::gateway::Gateway;
use crate::health::Health;
use crate::identity::Doorkeeper;
use crate::state::Shared;
use crate::supervisor::Supervisor;
use crate::{monitor, web};

/// The longest message of a client: definitions are long.
const MAX_REQUEST: usize = 128 << 20;
/// Calls of one connection at a time.
const MAX_STREAMS: u32 = 1000;
/// Between two signs of life on an idle connection, and how long one may take.
const KEEPALIVE: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// How long connections may stay once all builds are over.
const FAREWELL: Duration = Duration::from_secs(2);

/// Why the daemon could not serve.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// A place to listen at.
    #[error("cannot listen at `{place}`")]
    Listen {
        /// Where.
        place: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A process that lives listens there already.
    #[error("another daemon listens at `{0}`")]
    Taken(String),
    /// Certificates or key.
    #[error("cannot use the certificates: {0}")]
    Tls(String),
    /// The audit log.
    #[error("cannot write the audit log `{}`", path.display())]
    Audit {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Nowhere to listen at.
    #[error("no address to listen at")]
    NoListener,
    /// The server broke.
    #[error("serving failed: {0}")]
    Serve(String),
}

/// A daemon that listens and has not begun to serve.
pub struct Daemon {
    shared: Arc<Shared>,
    bound: Vec<Bound>,
    watched: Vec<Watched>,
    patience: Duration,
    supervisor: Supervisor,
    reload: Option<Reload>,
    hangup: reload::Hangup,
}

enum Bound {
    Unix(UnixListener, Option<SocketFile>),
    Tcp(TcpListener, Option<Tls>),
}

impl Bound {
    fn tls(&self) -> Option<Tls> {
        match self {
            Self::Tcp(_, tls) => tls.clone(),
            Self::Unix(..) => None,
        }
    }
}

/// A listener for those who watch.
struct Watched {
    listener: Bound,
    routes: fn(Arc<Shared>, &[String]) -> axum::Router,
    hosts: Vec<String>,
}

/// A socket in the file system, removed with this.
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Somebody else may have removed it.
        fs::remove_file(&self.0).ok();
    }
}

impl std::fmt::Debug for Daemon {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Daemon").field("listeners", &self.bound.len()).finish_non_exhaustive()
    }
}

impl Daemon {
    /// Binds all addresses. From here on clients can connect.
    ///
    /// # Errors
    /// [`DaemonError`].
    pub async fn bind(engine: Arc<Engine>, config: DaemonConfig) -> Result<Self, DaemonError> {
        if config.listeners.is_empty() {
            return Err(DaemonError::NoListener);
        }
        // Before anybody can know that it runs: until then the signal would end it.
        let hangup = reload::Hangup::heard()?;
        let takes_tokens = config.tenancy.takes_tokens();
        let mut bound = Vec::new();
        for listener in config.listeners {
            if let Listener::Plain { address } = &listener {
                tracing::warn!(%address, "whoever reaches this address can build, and so act as root");
            }
            bound.push(bind(listener, takes_tokens).await?);
        }
        let mut watched = Vec::new();
        if let Some(address) = config.monitor {
            let listener = bind(unprotected(address), false).await?;
            watched.push(Watched {
                listener,
                routes: |shared, _| monitor::router(shared),
                hosts: Vec::new(),
            });
        }
        if let Some(page) = config.web {
            let listener = bind(unprotected(page.address), false).await?;
            watched.push(Watched { listener, routes: web::router, hosts: page.hosts });
        }
        let audit = match &config.audit {
            Some(path) => {
                Audit::open(path).map_err(|source| DaemonError::Audit { path: path.clone(), source })?
            }
            None => Audit::default(),
        };
        // A build holds its own lease: what it made may go once it is over.
        engine.let_go();
        let shared = Shared::new(engine, (config.worker, config.tenancy), (audit, config.traces));
        // What is wrong now is said again to every build that needs it.
        match shared.registry().loaded() {
            Ok(registry) => shared.settings.know(registry),
            Err(error) => tracing::warn!(%error, "a registry cannot be used"),
        }
        let supervisor = Supervisor::new(config.notify);
        let (patience, reload) = (config.patience, config.reload);
        Ok(Self { shared: Arc::new(shared), bound, watched, patience, supervisor, reload, hangup })
    }

    /// Where it listens, as clients name it; a port that was left open is the one it got.
    pub fn addresses(&self) -> Vec<String> {
        let address = |bound: &Bound| match bound {
            Bound::Unix(_, Some(file)) => Some(Address::Unix(file.0.clone())),
            Bound::Unix(listener, None) => {
                let path = listener.local_addr().ok()?.as_pathname()?.to_owned();
                Some(Address::Unix(path))
            }
            Bound::Tcp(listener, _) => listener.local_addr().ok().map(Address::Tcp),
        };
        self.bound.iter().filter_map(address).map(|address| address.to_string()).collect()
    }

    /// Where it is watched: metrics, then the web page, as far as there are.
    pub fn watched_at(&self) -> Vec<String> {
        let address = |watched: &Watched| match &watched.listener {
            Bound::Unix(_, file) => file.as_ref().map(|file| Address::Unix(file.0.clone()).to_string()),
            Bound::Tcp(listener, _) => listener.local_addr().ok().map(|address| format!("http://{address}/")),
        };
        self.watched.iter().filter_map(address).collect()
    }

    /// Serves until `shutdown` fires, then lets running builds end, for as long as the configuration says.
    ///
    /// # Errors
    /// [`DaemonError`] when no more connections can be taken.
    pub async fn serve(self, shutdown: CancellationToken) -> Result<(), DaemonError> {
        let Self { shared, bound, watched, patience, supervisor, reload, hangup } = self;
        let stop = CancellationToken::new();
        let watching = watched.into_iter().map(|watched| {
            let (shared, stop) = (Arc::clone(&shared), stop.clone());
            tokio::spawn(async move { watch(&shared, watched, stop).await })
        });
        let watching: Vec<_> = watching.collect();
        let listeners = bound.iter().filter_map(Bound::tls).collect();
        let reloading = hangup.listen(Arc::clone(&shared), (reload, listeners), supervisor.clone());
        let reloading = tokio::spawn(reloading);
        let tidying = tokio::spawn(Arc::clone(&shared).tidy());
        let mut serving = Vec::new();
        for bound in bound {
            serving.push(serve_one(&shared, bound, stop.clone()));
        }
        let serving = futures::future::try_join_all(serving);
        tokio::pin!(serving);
        supervisor.tell("READY=1");
        tokio::select! {
            ended = &mut serving => return ended.map(drop),
            () = shutdown.cancelled() => {}
        }
        // Whoever balances load hears of it before any call is refused.
        shared.draining.cancel();
        reloading.abort();
        tidying.abort();
        supervisor.tell("STOPPING=1");
        let draining = async {
            shared.builds.drain(patience).await;
            shared.closing.cancel();
            shared.sessions.close();
            stop.cancel();
        };
        tokio::select! {
            ended = &mut serving => ended.map(drop)?,
            () = draining => {}
        }
        for watching in watching {
            watching.abort();
        }
        // Idle connections need not hear of it.
        match tokio::time::timeout(FAREWELL, serving).await {
            Ok(ended) => ended.map(drop),
            Err(_) => Ok(()),
        }
    }
}

async fn bind(listener: Listener, takes_tokens: bool) -> Result<Bound, DaemonError> {
    let shown = |identity: &TlsIdentity| {
        Tls::new(identity, takes_tokens).map_err(|error| DaemonError::Tls(error.to_string()))
    };
    match listener {
        Listener::Unix { path, group } => {
            let place = path.display().to_string();
            let failed = |source| DaemonError::Listen { place: place.clone(), source };
            if is_alive(&path).await {
                return Err(DaemonError::Taken(place));
            }
            let (listener, file) = bind_unix(&path, group).map_err(failed)?;
            Ok(Bound::Unix(listener, Some(file)))
        }
        Listener::Tls { address, identity } => {
            let tls = shown(&identity)?;
            Ok(Bound::Tcp(tcp(address).await?, Some(tls)))
        }
        Listener::Plain { address } => Ok(Bound::Tcp(tcp(address).await?, None)),
        Listener::Inherited { socket, identity } => {
            let tls = identity.as_ref().map(shown).transpose()?;
            inherited(socket, tls)
                .map_err(|source| DaemonError::Listen { place: "an inherited socket".to_owned(), source })
        }
    }
}

async fn tcp(address: std::net::SocketAddr) -> Result<TcpListener, DaemonError> {
    let bound = TcpListener::bind(address).await;
    bound.map_err(|source| DaemonError::Listen { place: address.to_string(), source })
}

/// Takes a socket over from whoever started the daemon. It stays when the daemon ends.
fn inherited(socket: InheritedSocket, tls: Option<Tls>) -> io::Result<Bound> {
    Ok(match socket {
        InheritedSocket::Unix(listener) => {
            listener.set_nonblocking(true)?;
            Bound::Unix(UnixListener::from_std(listener)?, None)
        }
        InheritedSocket::Tcp(listener) => {
            listener.set_nonblocking(true)?;
            Bound::Tcp(TcpListener::from_std(listener)?, tls)
        }
    })
}

/// A listener for those who watch: who may is decided by who reaches it.
fn unprotected(address: Address) -> Listener {
    match address {
        Address::Unix(path) => Listener::Unix { path, group: None },
        Address::Tcp(address) => Listener::Plain { address },
    }
}

async fn watch(shared: &Arc<Shared>, watched: Watched, stop: CancellationToken) {
    let routes = (watched.routes)(Arc::clone(shared), &watched.hosts);
    let stopped = async move { stop.cancelled().await };
    let served = match watched.listener {
        Bound::Unix(listener, file) => {
            let served = axum::serve(listener, routes).with_graceful_shutdown(stopped).await;
            drop(file);
            served
        }
        Bound::Tcp(listener, _) => axum::serve(listener, routes).with_graceful_shutdown(stopped).await,
    };
    if let Err(error) = served {
        tracing::warn!(%error, "nobody can watch any more");
    }
}

/// Whether a process listens at a socket.
async fn is_alive(path: &Path) -> bool {
    tokio::net::UnixStream::connect(path).await.is_ok()
}

/// The socket comes to its place with its mode and owner already on it: nobody connects in between.
fn bind_unix(path: &Path, group: Option<u32>) -> io::Result<(UnixListener, SocketFile)> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    match fs::symlink_metadata(path) {
        Ok(here) if here.file_type().is_socket() => fs::remove_file(path)?,
        Ok(_) => return Err(io::Error::new(io::ErrorKind::AlreadyExists, "there is something else")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let aside = path.with_file_name(format!(".{name}.{}", std::process::id()));
    let listener = UnixListener::bind(&aside)?;
    let file = SocketFile(aside.clone());
    fs::set_permissions(&aside, fs::Permissions::from_mode(if group.is_some() { 0o660 } else { 0o600 }))?;
    if let Some(group) = group {
        std::os::unix::fs::chown(&aside, None, Some(group))?;
    }
    fs::rename(&aside, path)?;
    drop(file);
    Ok((listener, SocketFile(path.to_owned())))
}

type Serving = BoxFuture<'static, Result<(), DaemonError>>;

fn serve_one(shared: &Arc<Shared>, bound: Bound, stop: CancellationToken) -> Serving {
    let failed = |error: tonic::transport::Error| DaemonError::Serve(crate::failure::one_line(&error));
    let stopped = async move { stop.cancelled().await };
    match bound {
        Bound::Unix(listener, file) => {
            let connections = stream::unfold(listener, |listener| async {
                let accepted = accepted(listener.accept().await.map(|(stream, _)| stream)).await;
                Some((accepted, listener))
            });
            let router = router(shared);
            async move {
                let served = router.serve_with_incoming_shutdown(connections, stopped).await;
                drop(file);
                served.map_err(failed)
            }
            .boxed()
        }
        Bound::Tcp(listener, Some(tls)) => {
            let connections = tls::connections(listener, tls, Arc::clone(shared));
            let router = router(shared);
            async move { router.serve_with_incoming_shutdown(connections, stopped).await.map_err(failed) }
                .boxed()
        }
        Bound::Tcp(listener, None) => {
            let connections = stream::unfold(listener, |listener| async {
                let accepted = accepted(listener.accept().await.map(|(stream, _)| stream)).await;
                if let Ok(stream) = &accepted {
                    stream.set_nodelay(true).ok();
                }
                Some((accepted, listener))
            });
            let router = router(shared);
            async move { router.serve_with_incoming_shutdown(connections, stopped).await.map_err(failed) }
                .boxed()
        }
    }
}

/// Out of descriptors, accepting fails at once for as long as that is so: not in a busy loop.
async fn accepted<T>(result: io::Result<T>) -> io::Result<T> {
    if result.is_err() {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    result
}

pub(crate) fn router(shared: &Arc<Shared>) -> Router {
    let mut server = Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .max_concurrent_streams(MAX_STREAMS);
    let doorkeeper = || Doorkeeper {
        settings: shared.settings.clone(),
        metrics: Arc::clone(&shared.metrics),
        audit: shared.audit.clone(),
    };
    let control = ControlServer::new(Control { shared: Arc::clone(shared) })
        .max_decoding_message_size(MAX_REQUEST)
        .max_encoding_message_size(MAX_REQUEST);
    let gateway = LlbBridgeServer::new(Gateway { shared: Arc::clone(shared), served: None })
        .max_decoding_message_size(MAX_REQUEST)
        .max_encoding_message_size(MAX_REQUEST);
    let control = WithLanguage { inner: control, shared: Arc::clone(shared) };
    let control = InterceptedService::new(control, doorkeeper());
    let gateway = InterceptedService::new(gateway, doorkeeper());
    let content = InterceptedService::new(ContentService { shared: Arc::clone(shared) }, doorkeeper());
    let health = HealthServer::new(Health { closing: shared.draining.clone() });
    server.add_service(control).add_service(gateway).add_service(content).add_service(health)
}
