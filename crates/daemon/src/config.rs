//! What the daemon is started with: values from flags, and the part of buildkitd's TOML file that is honoured.
//!
//! Must not read files: the caller does. Start with [`DaemonConfig`] and [`FileConfig`].

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use stave_engine::record::Retention;
use stave_oci::Platform;
use stave_registry::RegistryTables;
use stave_store::GcRule;
use stave_worker::Confinement;

use crate::tenants::Tenancy;

mod address;
pub mod environment;
mod file;
mod frontends;
mod gc;
mod history;
mod own;
pub mod size;

pub use address::{Address, AddressError};
pub use file::{
    CdiConfig, ConfigError, ContainerdWorker, DnsConfig, FileConfig, GrpcConfig, LogConfig, OciWorker,
    OtelConfig, SystemConfig, TlsConfig, WorkerTables,
};
pub use frontends::{FrontEndTables, FrontEnds};
pub use gc::GcPolicyConfig;
pub use history::HistoryConfig;
pub use own::{AuditConfig, StoreConfig, WebConfig};
pub use size::Size;

/// What a daemon serves, where and to whom.
#[derive(Debug, Default)]
pub struct DaemonConfig {
    /// Where it listens.
    pub listeners: Vec<Listener>,
    /// What it says of itself and grants.
    pub worker: WorkerConfig,
    /// How long running builds may go on once it shall end.
    pub patience: Duration,
    /// How callers are told apart.
    pub tenancy: Tenancy,
    /// Where the audit log goes.
    pub audit: Option<PathBuf>,
    /// Where metrics, readiness and dumps are served.
    pub monitor: Option<Address>,
    /// Where the web page is served.
    pub web: Option<WebPage>,
    /// Where traces go: the address of a collector that takes OTLP over http.
    pub traces: Option<url::Url>,
    /// Where the service's supervisor hears how it goes (systemd's `NOTIFY_SOCKET`).
    pub notify: Option<PathBuf>,
    /// What reads the configuration again on SIGHUP.
    pub reload: Option<Reload>,
}

/// The web page.
#[derive(Debug, Clone)]
pub struct WebPage {
    /// Where it is served.
    pub address: Address,
    /// Names that browsers may know it by, besides those of this machine itself.
    pub hosts: Vec<String>,
}

/// What can change while a daemon runs.
#[derive(Debug)]
pub struct Reloaded {
    /// What it says of itself and grants.
    pub worker: WorkerConfig,
    /// How callers are told apart.
    pub tenancy: Tenancy,
    /// Registries, by host.
    pub registries: RegistryTables,
    /// What TLS listeners show and want to see; `None` where there are none. An error is told.
    pub identity: Result<Option<TlsIdentity>, String>,
    /// What was changed that only counts after a restart.
    pub unchanged: Vec<String>,
}

/// Reads the configuration again; an error is told and changes nothing.
pub struct Reload(pub Box<dyn Fn() -> Result<Reloaded, String> + Send + Sync>);

impl std::fmt::Debug for Reload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Reload")
    }
}

/// One place to listen at.
#[derive(Debug)]
pub enum Listener {
    /// A socket in the file system: whoever may write to it is let in.
    Unix {
        /// Its path; an old socket there is replaced.
        path: PathBuf,
        /// The group that may write to it besides its owner.
        group: Option<u32>,
    },
    /// TCP for clients whose certificate one authority signed.
    Tls {
        /// The address.
        address: SocketAddr,
        /// Certificates and key, PEM.
        identity: TlsIdentity,
    },
    /// TCP for everybody who reaches it.
    Plain {
        /// The address.
        address: SocketAddr,
    },
    /// A socket that whoever started the daemon listens at already.
    Inherited {
        /// The socket.
        socket: InheritedSocket,
        /// Certificates and key, for TCP.
        identity: Option<TlsIdentity>,
    },
}

/// A socket that is there already.
#[derive(Debug)]
pub enum InheritedSocket {
    /// In the file system.
    Unix(std::os::unix::net::UnixListener),
    /// TCP.
    Tcp(std::net::TcpListener),
}

/// What a server shows and wants to see, all PEM.
#[derive(Clone)]
pub struct TlsIdentity {
    /// Its certificate chain.
    pub certificate: Vec<u8>,
    /// The key.
    pub key: Vec<u8>,
    /// The authority that signs clients' certificates.
    pub client_authority: Vec<u8>,
}

impl std::fmt::Debug for TlsIdentity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TlsIdentity")
    }
}

/// What clients are told of the worker, and what it grants.
#[derive(Debug, Clone, Default)]
pub struct WorkerConfig {
    /// Names it for as long as the state directory lives.
    pub id: String,
    /// Free text by name.
    pub labels: BTreeMap<String, String>,
    /// Platforms that clients are told; empty for this machine's own.
    pub platforms: Vec<Platform>,
    /// The program's version.
    pub version: String,
    /// Entitlements that builds may ask for.
    pub entitlements: Vec<String>,
    /// How steps are confined that ask for nothing.
    pub confinement: Confinement,
    /// What is removed after builds, rule by rule; nothing without one.
    pub gc: Vec<GcRule>,
    /// How long builds are remembered.
    pub history: Retention,
    /// What statements say of the builder beside what is known.
    pub environment: serde_json::Map<String, serde_json::Value>,
    /// What may say how a build is made.
    pub front_ends: FrontEnds,
}
