//! ssh agents of the build's owner, lent to a step or to git for as long as it runs.
//! Owns what an agent is here, the socket it is reached by, and which of its requests are let through: of one of this
//! machine a build may ask for signatures, and change nothing; what a client lends the client guards. Must not know ops.
//! Read [`SshAgent`] first.

mod keys;
mod protocol;

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::future::BoxFuture;
use rustix::fs::{CWD, Mode, OFlags};
use stave_store::ScratchDir;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::{AbortHandle, JoinSet};

pub use self::keys::{KeyError, SshKeys};
use crate::worker::Shared;

/// The id of the agent that nobody names.
pub const DEFAULT_AGENT: &str = "default";

/// Connections to one agent at the same time.
const CONNECTION_LIMIT: usize = 64;

/// Bytes of a socket's path that the kernel takes, with some room.
const SOCKET_PATH_LIMIT: usize = 100;

/// Name of the socket in its directory.
const SOCKET_NAME: &str = "agent";

/// An agent, or what its owner lends in place of one.
#[derive(Clone)]
pub enum SshAgent {
    /// One that listens at a socket of this machine.
    Socket(PathBuf),
    /// Keys that this process holds.
    Keys(Arc<SshKeys>),
    /// One that is reached in another way, such as through a client. What may be asked of it is for its owner to say: he may
    /// have lent a socket behind which there is no agent at all.
    Remote(Arc<dyn AgentConnector>),
    /// One that its owner was asked for and does not lend: why, in his words.
    Refused(String),
}

impl SshAgent {
    /// One connection, over which signatures may be asked for and nothing may be changed, as far as that is decided here.
    /// Must be called within a runtime.
    ///
    /// # Errors
    /// When there are no more descriptors.
    pub fn connect(&self) -> io::Result<UnixStream> {
        let (ours, theirs) = UnixStream::pair()?;
        let agent = self.clone();
        tokio::spawn(async move {
            if let Err(error) = answer(theirs, &agent).await {
                tracing::debug!(%error, "a connection to an ssh agent broke");
            }
        });
        Ok(ours)
    }
}

/// Shows no key.
impl fmt::Debug for SshAgent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(path) => f.debug_tuple("Socket").field(path).finish(),
            Self::Keys(keys) => write!(f, "Keys({})", keys.count()),
            Self::Remote(_) => f.write_str("Remote"),
            Self::Refused(why) => f.debug_tuple("Refused").field(why).finish(),
        }
    }
}

/// A connection to an agent.
pub trait AgentStream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> AgentStream for T {}

/// Makes connections to an agent that is elsewhere.
pub trait AgentConnector: Send + Sync {
    /// One connection.
    fn connect(&self) -> BoxFuture<'_, io::Result<Box<dyn AgentStream>>>;
}

/// Who may use a socket.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SocketOwner {
    pub uid: u32,
    pub gid: u32,
    pub mode: u32,
}

impl SocketOwner {
    /// This process's user.
    pub(crate) fn own() -> Self {
        Self {
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            mode: 0o600,
        }
    }
}

/// A socket behind which an agent answers, until it is dropped.
pub(crate) struct AgentSocket {
    serving: AbortHandle,
    path: PathBuf,
    _directory: OwnedFd,
    _scratch: ScratchDir,
}

impl fmt::Debug for AgentSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AgentSocket").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Drop for AgentSocket {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl AgentSocket {
    /// Begins to listen. Must be called within a runtime.
    pub(crate) fn open(agent: &SshAgent, owner: SocketOwner, shared: &Shared) -> io::Result<Self> {
        let scratch = shared.store.scratch_dir().map_err(io::Error::other)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::openat(CWD, scratch.path(), flags, Mode::empty())?;
        // A state directory may lie deeper than a socket's address is long.
        let short = |process: &str| {
            PathBuf::from(format!("/proc/{process}/fd/{}/{SOCKET_NAME}", directory.as_raw_fd()))
        };
        let listener = std::os::unix::net::UnixListener::bind(short("self"))?;
        listener.set_nonblocking(true)?;
        let real = scratch.path().join(SOCKET_NAME);
        std::fs::set_permissions(&real, std::fs::Permissions::from_mode(owner.mode & 0o777))?;
        stave_store::owner::give_at(&directory, SOCKET_NAME, owner.uid, owner.gid)?;
        let path = if real.as_os_str().len() <= SOCKET_PATH_LIMIT {
            real
        } else {
            short(&std::process::id().to_string())
        };
        let listener = UnixListener::from_std(listener)?;
        let serving = tokio::spawn(serve(listener, agent.clone())).abort_handle();
        Ok(Self { serving, path, _directory: directory, _scratch: scratch })
    }

    /// The socket, by a path that is short enough to connect to.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The socket, by its real path.
    pub(crate) fn real_path(&self) -> PathBuf {
        self._scratch.path().join(SOCKET_NAME)
    }
}

/// Answers connections; those that are open end with it.
async fn serve(listener: UnixListener, agent: SshAgent) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if connections.len() < CONNECTION_LIMIT => match accepted {
                Ok((stream, _)) => {
                    let agent = agent.clone();
                    connections.spawn(async move {
                        if let Err(error) = answer(stream, &agent).await {
                            tracing::debug!(%error, "a connection to an ssh agent broke");
                        }
                    });
                }
                Err(error) => {
                    tracing::debug!(%error, "no more connections to an ssh agent");
                    return;
                }
            },
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
        }
    }
}

async fn answer(mut stream: UnixStream, agent: &SshAgent) -> io::Result<()> {
    match agent {
        SshAgent::Keys(keys) => protocol::serve(&mut stream, keys).await,
        SshAgent::Socket(path) => {
            let mut upstream = UnixStream::connect(path).await?;
            protocol::relay(&mut stream, &mut upstream).await
        }
        SshAgent::Remote(connector) => {
            let mut upstream = connector.connect().await?;
            tokio::io::copy_bidirectional(&mut stream, &mut upstream).await.map(drop)
        }
        SshAgent::Refused(why) => Err(io::Error::new(io::ErrorKind::NotFound, why.clone())),
    }
}

#[cfg(test)]
mod tests;
