//! Listening, serving, and coming to an end. Start with [`Daemon`].

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
use tonic::transport::server::Router;
use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig};

use crate::config::{Address, DaemonConfig, Listener, TlsIdentity};
use crate::control::Control;
use crate::gateway::Gateway;
use crate::health::Health;
use crate::state::Shared;

/// The longest message of a client: definitions are long.
const MAX_REQUEST: usize = 128 << 20;
/// Calls of one connection at a time.
const MAX_STREAMS: u32 = 1000;
/// Between two signs of life on an idle connection, and how long one may take.
const KEEPALIVE: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a TLS handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
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
    patience: Duration,
}

enum Bound {
    Unix(UnixListener, SocketFile),
    Tcp(TcpListener, Option<TlsIdentity>),
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
        let mut bound = Vec::new();
        for listener in config.listeners {
            bound.push(bind(listener).await?);
        }
        let shared = Arc::new(Shared::new(engine, config.worker));
        Ok(Self { shared, bound, patience: config.patience })
    }

    /// Where it listens, as clients name it; a port that was left open is the one it got.
    pub fn addresses(&self) -> Vec<String> {
        let address = |bound: &Bound| match bound {
            Bound::Unix(_, file) => Some(Address::Unix(file.0.clone())),
            Bound::Tcp(listener, _) => listener.local_addr().ok().map(Address::Tcp),
        };
        self.bound.iter().filter_map(address).map(|address| address.to_string()).collect()
    }

    /// Serves until `shutdown` fires, then lets running builds end, for as long as the configuration says.
    ///
    /// # Errors
    /// [`DaemonError`] when no more connections can be taken.
    pub async fn serve(self, shutdown: CancellationToken) -> Result<(), DaemonError> {
        let Self { shared, bound, patience } = self;
        let stop = CancellationToken::new();
        let mut serving = Vec::new();
        for bound in bound {
            serving.push(serve_one(&shared, bound, stop.clone())?);
        }
        let serving = futures::future::try_join_all(serving);
        tokio::pin!(serving);
        tokio::select! {
            ended = &mut serving => return ended.map(drop),
            () = shutdown.cancelled() => {}
        }
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
        // Idle connections need not hear of it.
        match tokio::time::timeout(FAREWELL, serving).await {
            Ok(ended) => ended.map(drop),
            Err(_) => Ok(()),
        }
    }
}

async fn bind(listener: Listener) -> Result<Bound, DaemonError> {
    match listener {
        Listener::Unix { path, group } => {
            let place = path.display().to_string();
            let failed = |source| DaemonError::Listen { place: place.clone(), source };
            if is_alive(&path).await {
                return Err(DaemonError::Taken(place));
            }
            let (listener, file) = bind_unix(&path, group).map_err(failed)?;
            Ok(Bound::Unix(listener, file))
        }
        Listener::Tls { address, identity } => Ok(Bound::Tcp(tcp(address).await?, Some(identity))),
        Listener::Plain { address } => {
            tracing::warn!(%address, "whoever reaches this address can build, and so act as root");
            Ok(Bound::Tcp(tcp(address).await?, None))
        }
    }
}

async fn tcp(address: std::net::SocketAddr) -> Result<TcpListener, DaemonError> {
    let bound = TcpListener::bind(address).await;
    bound.map_err(|source| DaemonError::Listen { place: address.to_string(), source })
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

fn serve_one(shared: &Arc<Shared>, bound: Bound, stop: CancellationToken) -> Result<Serving, DaemonError> {
    let failed = |error: tonic::transport::Error| DaemonError::Serve(crate::failure::one_line(&error));
    let stopped = async move { stop.cancelled().await };
    Ok(match bound {
        Bound::Unix(listener, file) => {
            let connections = stream::unfold(listener, |listener| async {
                let accepted = accepted(listener.accept().await.map(|(stream, _)| stream)).await;
                Some((accepted, listener))
            });
            let router = router(shared, None)?;
            async move {
                let served = router.serve_with_incoming_shutdown(connections, stopped).await;
                drop(file);
                served.map_err(failed)
            }
            .boxed()
        }
        Bound::Tcp(listener, identity) => {
            let connections = stream::unfold(listener, |listener| async {
                let accepted = accepted(listener.accept().await.map(|(stream, _)| stream)).await;
                if let Ok(stream) = &accepted {
                    stream.set_nodelay(true).ok();
                }
                Some((accepted, listener))
            });
            let router = router(shared, identity)?;
            async move { router.serve_with_incoming_shutdown(connections, stopped).await.map_err(failed) }
                .boxed()
        }
    })
}

/// Out of descriptors, accepting fails at once for as long as that is so: not in a busy loop.
async fn accepted<T>(result: io::Result<T>) -> io::Result<T> {
    if result.is_err() {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    result
}

fn router(shared: &Arc<Shared>, identity: Option<TlsIdentity>) -> Result<Router, DaemonError> {
    let mut server = Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .max_concurrent_streams(MAX_STREAMS);
    if let Some(identity) = identity {
        let config = ServerTlsConfig::new()
            .identity(Identity::from_pem(identity.certificate, identity.key))
            .client_ca_root(Certificate::from_pem(identity.client_authority))
            .timeout(HANDSHAKE);
        server =
            server.tls_config(config).map_err(|error| DaemonError::Tls(crate::failure::one_line(&error)))?;
    }
    let control = ControlServer::new(Control { shared: Arc::clone(shared) })
        .max_decoding_message_size(MAX_REQUEST)
        .max_encoding_message_size(MAX_REQUEST);
    let gateway = LlbBridgeServer::new(Gateway { shared: Arc::clone(shared) })
        .max_decoding_message_size(MAX_REQUEST)
        .max_encoding_message_size(MAX_REQUEST);
    let health = HealthServer::new(Health { closing: shared.closing.clone() });
    Ok(server.add_service(control).add_service(gateway).add_service(health))
}
