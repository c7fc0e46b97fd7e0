//! Why a daemon does not start.

use std::path::PathBuf;

use stave_daemon::config::environment;

use super::{MAX_FILE, flags};
use crate::config;

/// What cannot be honoured of the flags or the file.
#[derive(Debug, thiserror::Error)]
pub(super) enum StartError {
    #[error(transparent)]
    Environment(#[from] environment::EnvironmentError),
    #[error("cannot read `{}`", .path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("`{}` is over {MAX_FILE} bytes", .0.display())]
    TooLarge(PathBuf),
    #[error("the configuration file `{}` is not valid", .path.display())]
    File {
        path: PathBuf,
        #[source]
        source: stave_daemon::config::ConfigError,
    },
    #[error(transparent)]
    Address(#[from] stave_daemon::AddressError),
    #[error("tcp needs --tlscert, --tlskey and --tlscacert")]
    NoCertificates,
    #[error(
        "--insecure-tcp serves without certificates: --tlscert, --tlskey and --tlscacert are for nothing"
    )]
    NeedlessCertificates,
    #[error("invalid host name `{0}` of the web page")]
    WebHost(String),
    #[error("the OCI runtime `{}` is not there", .0.display())]
    NoRuntime(PathBuf),
    #[error("no group called `{0}`")]
    NoGroup(String),
    /// It has no number in the user namespace that the daemon is in.
    #[error("group `{0}` is none of this user's: only root may give the socket to it")]
    ForeignGroup(String),
    #[error("invalid label `{0}`: expected NAME=VALUE")]
    Label(String),
    #[error(transparent)]
    Flag(#[from] flags::RefusedFlag),
    #[error("only the worker of this program is there: `{0}` cannot be honoured")]
    Worker(&'static str),
    #[error(transparent)]
    Registries(#[from] config::ConfigFileError),
    #[error("invalid size `{0}` in the configuration file")]
    Size(String),
    #[error(transparent)]
    Config(#[from] stave_daemon::config::ConfigError),
    #[error(transparent)]
    Tenancy(#[from] stave_daemon::TenancyError),
    #[error("the web page at `{0}` would be for everybody who reaches it")]
    OpenPage(std::net::SocketAddr),
    #[error("invalid collector `{0}`: expected `http://HOST:PORT`")]
    Collector(String),
    #[error("no socket was handed over (LISTEN_FDS)")]
    NothingInherited,
    #[error("cannot use the sockets that were handed over")]
    Inherited(#[source] std::io::Error),
}
