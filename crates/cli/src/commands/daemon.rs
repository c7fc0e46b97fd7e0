//! `stave daemon`: flags, as buildkitd has them, to a daemon that serves until it is told to stop.

mod flags;

use std::collections::BTreeMap;
use std::io::Read as _;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use stave_daemon::config::{FrontEnds, Size, environment};
use stave_daemon::{
    Address, Daemon, DaemonConfig, FileConfig, InheritedSocket, Listener, Reload, Reloaded, Tenancy,
    TlsIdentity, WebPage, WorkerConfig,
};
use stave_engine::EngineConfig;
use stave_oci::Digest;
use stave_registry::{Keychain, RegistryTables};
use stave_store::GcRule;
use stave_worker::{Confinement, StepNetwork};

use self::flags::ForeignFlags;
use crate::report::Failure;
use crate::runtime::with_shared_engine;
use crate::state::GlobalOptions;
use crate::{config, tracing};

/// Bytes of the largest configuration file, certificate or key.
const MAX_FILE: u64 = 1 << 20;
/// Where a daemon listens that is told nothing.
const DEFAULT_SOCKET: &str = "/run/stave/stave.sock";
/// The same, when called as `buildkitd`.
const BUILDKIT_SOCKET: &str = "/run/buildkit/buildkitd.sock";
/// The address that stands for sockets that are there already, as buildkitd has it.
const INHERITED: &str = "fd://";
/// Where the fields lie that statements tell of the builder, as buildkitd has it.
const PROVENANCE_DIRECTORY: &str = "/etc/buildkit/provenance.d";
/// How long running builds may go on once the daemon shall end.
const PATIENCE: Duration = Duration::from_secs(10);

/// Serve builds to BuildKit's clients: buildctl, docker buildx and their like
///
/// Called as `buildkitd`, the program does this without being told.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Arguments {
    /// Address to listen at: unix://PATH or tcp://IP:PORT (may be repeated)
    #[arg(long, value_name = "ADDRESS")]
    addr: Vec<String>,
    /// Group (name or number) that may use the unix sockets
    #[arg(long, value_name = "GROUP")]
    group: Option<String>,
    /// Server certificate for tcp (PEM)
    #[arg(long, value_name = "FILE")]
    tlscert: Option<PathBuf>,
    /// Key of the server certificate (PEM)
    #[arg(long, value_name = "FILE")]
    tlskey: Option<PathBuf>,
    /// Authority that signs clients' certificates (PEM)
    #[arg(long, value_name = "FILE")]
    tlscacert: Option<PathBuf>,
    /// Let everybody in who reaches a tcp address: no certificates
    #[arg(long)]
    insecure_tcp: bool,
    /// Entitlement that builds may ask for, in place of the file's: network.host, security.insecure, device (may be repeated)
    #[arg(long, value_name = "NAME")]
    allow_insecure_entitlement: Vec<String>,
    #[command(flatten)]
    worker: WorkerArguments,
    #[command(flatten)]
    watch: WatchArguments,
    #[command(flatten)]
    foreign: ForeignFlags,
}

/// Who watches the daemon, and what is taken down of it.
#[derive(Debug, Clone, clap::Args)]
struct WatchArguments {
    /// Address of metrics (/metrics), readiness (/healthz, /readyz) and dumps (/debug/graph)
    #[arg(long, value_name = "ADDRESS", visible_alias = "debugaddr")]
    metrics_addr: Option<String>,
    /// Address of the web page; on tcp it is for this machine alone, or with --insecure-tcp for all
    #[arg(long, value_name = "ADDRESS")]
    web_addr: Option<String>,
    /// Name that browsers may know the web page by (may be repeated)
    #[arg(long, value_name = "NAME")]
    web_host: Vec<String>,
    /// How much is said: `debug` and `trace` say all
    #[arg(long, value_name = "LEVEL", env = "BUILDKITD_LOG_LEVEL")]
    log_level: Option<String>,
    /// File that gets a line of JSON for everything that is asked for
    #[arg(long, value_name = "FILE")]
    audit_log: Option<PathBuf>,
    /// Collector that traces of builds are sent to: OTLP over http
    #[arg(long, value_name = "URL", env = "OTEL_EXPORTER_OTLP_ENDPOINT")]
    otlp_endpoint: Option<String>,
}

/// buildkitd's flags for its workers, of which there is one here.
#[derive(Debug, Clone, clap::Args)]
struct WorkerArguments {
    /// Only `true` is possible
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", hide = true)]
    oci_worker: Option<Presence>,
    /// Only `false` is possible
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", hide = true)]
    containerd_worker: Option<Presence>,
    /// Whether what nobody uses is removed after builds; see --oci-worker-gc-keepstorage
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    oci_worker_gc: Option<Switch>,
    /// Megabytes of the state directory that stay after a build; those of the disk that shall be free; those that are
    /// too many
    #[arg(long, value_name = "MB[,FREE[,MAX]]")]
    oci_worker_gc_keepstorage: Option<KeepStorage>,
    /// Steps that run at a time; 0 is as many as there are processors
    #[arg(long, value_name = "N")]
    oci_max_parallelism: Option<usize>,
    /// Platform that clients are told, this machine's own first (may be repeated)
    #[arg(long, value_name = "PLATFORM")]
    oci_worker_platform: Vec<String>,
    /// OCI runtime that runs build steps instead of the sandbox
    #[arg(long, value_name = "PROGRAM", hide = true)]
    oci_worker_binary: Option<PathBuf>,
    /// Directory of device specifications (may be repeated)
    #[arg(long, value_name = "DIR")]
    cdi_spec_dir: Vec<PathBuf>,
    /// Label that clients are told: NAME=VALUE (may be repeated)
    #[arg(long, value_name = "LABEL")]
    oci_worker_labels: Vec<String>,
    /// Only `overlayfs` is possible
    #[arg(long, value_name = "NAME", hide = true)]
    oci_worker_snapshotter: Option<Snapshotter>,
    /// `host` or `bridge`
    #[arg(long, value_name = "NAME", hide = true)]
    oci_worker_net: Option<Network>,
}

/// A flag with a value, as Go's programs take it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Switch {
    True,
    False,
}

/// Whether a worker is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Presence {
    True,
    False,
    Auto,
}

/// What collection keeps, in megabytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct KeepStorage {
    reserved: u64,
    free: Option<u64>,
    most: Option<u64>,
}

impl FromStr for KeepStorage {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let numbers: Result<Vec<u64>, _> = text.split(',').map(str::parse).collect();
        match numbers.as_deref() {
            Ok([reserved]) => Ok(Self { reserved: *reserved, free: None, most: None }),
            Ok([reserved, free]) => Ok(Self { reserved: *reserved, free: Some(*free), most: None }),
            Ok([reserved, free, most]) => {
                Ok(Self { reserved: *reserved, free: Some(*free), most: Some(*most) })
            }
            _ => Err("expected megabytes: RESERVED[,FREE[,MAX]]".to_owned()),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Snapshotter {
    Auto,
    Overlayfs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Network {
    Auto,
    Host,
    Bridge,
}

/// What cannot be honoured of the flags or the file.
#[derive(Debug, thiserror::Error)]
enum StartError {
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

/// Serves.
pub(crate) fn run(arguments: &Arguments, global: &GlobalOptions) -> Result<u8, Failure> {
    let failed = |error: StartError| {
        let hint = matches!(error, StartError::NoCertificates | StartError::OpenPage(_))
            .then(|| "--insecure-tcp lets everybody in who reaches the address".to_owned());
        Failure::new(&error).with_hint(hint)
    };
    let file = arguments.file(global).map_err(failed)?;
    tracing::begin(level(&file, global));
    // The program's own default is known only here: a root that was named beats the file's.
    let root = match file.root.clone() {
        Some(root) if !global.is_root_named => root,
        _ => global.state_directory(),
    };
    // buildkitd's own directory holds other things beside its store.
    let root = if is_buildkitd() { root.join("stave") } else { root };
    let mut config = arguments.config(&file, &root).map_err(failed)?;
    config.reload = Some(Reload(Box::new({
        let (arguments, global, root, before) =
            (arguments.clone(), global.clone(), root.clone(), fixed(&file));
        move || arguments.reload(&global, &root, &before).map_err(|error| crate::report::chain(&error))
    })));
    let cap = file
        .store
        .cap
        .as_ref()
        .map(|size| size.bytes(disk(&root)).ok_or_else(|| StartError::Size(size.to_string())));
    let cap = cap.transpose().map_err(failed)?;
    let directories = file.cdi.directories();
    let registries = registries(&file, global).map_err(|error| Failure::new(&error))?;
    // Credentials are the clients': the daemon has none of its own.
    let engine = EngineConfig {
        root,
        registries,
        keychain: Keychain::anonymous(),
        oci_runtime: runtime(arguments, &file, global).map_err(failed)?,
        device_directories: directories,
        parallel_steps: std::num::NonZeroUsize::new(file.worker.oci.max_parallelism),
    };
    with_shared_engine(engine, async |engine, interrupt| {
        if cap.is_some() {
            engine.store().hold_to(stave_store::DiskPolicy { cap, rules: Vec::new() });
        }
        engine.store().keep_reserve();
        let daemon = Daemon::bind(engine, config).await.map_err(|error| Failure::new(&error))?;
        for place in daemon.addresses() {
            eprintln!("listening at {place}");
        }
        for place in daemon.watched_at() {
            eprintln!("watched at {place}");
        }
        daemon.serve(interrupt.token().clone()).await.map_err(|error| Failure::new(&error))?;
        Ok(0)
    })
}

/// The OCI runtime that runs steps, if another program does: that of the flag, else that of the file. Clients would find
/// out otherwise that it is not there, one by one.
fn runtime(
    arguments: &Arguments,
    file: &FileConfig,
    global: &GlobalOptions,
) -> Result<Option<PathBuf>, StartError> {
    let of_file = file.worker.oci.binary.clone().filter(|binary| !binary.as_os_str().is_empty());
    let named = arguments.worker.oci_worker_binary.clone().or(of_file);
    match named.or_else(|| global.oci_runtime.clone()) {
        Some(program) if !is_program(&program) => Err(StartError::NoRuntime(program)),
        program => Ok(program),
    }
}

/// Whether a program is there: at its path, or by its name in PATH.
fn is_program(program: &Path) -> bool {
    let may_run =
        |path: &Path| rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok() && path.is_file();
    if program.components().count() > 1 {
        return may_run(program);
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| may_run(&directory.join(program)))
}

/// How much the daemon says: flag or file may ask for all.
fn level(file: &FileConfig, global: &GlobalOptions) -> tracing::Level {
    let wants_all = file.debug || file.trace || matches!(file.log.level.as_deref(), Some("debug" | "trace"));
    if wants_all || global.debug { tracing::Level::Debug } else { tracing::Level::Warnings }
}

/// Where registries are configured: in the file that was named, else where the other commands have it.
fn registries(file: &FileConfig, global: &GlobalOptions) -> Result<RegistryTables, config::ConfigFileError> {
    match &global.config {
        Some(_) => Ok(file.registry.clone()),
        None => Ok(config::load(&global.config_file())?.registry),
    }
}

/// How callers are told apart, with the files that say so.
fn tenancy(file: &FileConfig) -> Result<Tenancy, StartError> {
    Ok(file.tenancy.load(&|path| read(path).map_err(|error| crate::report::chain(&error)))?)
}

fn address(text: Option<&String>) -> Result<Option<Address>, StartError> {
    Ok(text.filter(|text| !text.is_empty()).map(|text| text.parse()).transpose()?)
}

/// The same for an address that buildkitd has without `tcp://`: `HOST:PORT`, or `:PORT` for all of this machine's. Of
/// the addresses that a name has, the first of the fourth version is preferred, as Go has it.
fn watched(text: Option<&String>) -> Result<Option<Address>, StartError> {
    let plain = text.map(|text| if text.starts_with(':') { format!("0.0.0.0{text}") } else { text.clone() });
    let sockets = plain.filter(|plain| !plain.contains('/')).and_then(|plain| plain.to_socket_addrs().ok());
    let sockets: Vec<SocketAddr> = sockets.into_iter().flatten().collect();
    match sockets.iter().find(|socket| socket.is_ipv4()).or(sockets.first()).copied() {
        Some(socket) => Ok(Some(Address::Tcp(socket))),
        None => address(text),
    }
}

fn collector(text: &str) -> Result<url::Url, StartError> {
    let url: Option<url::Url> = text.parse().ok();
    url.filter(|url| url.scheme() == "http" && url.has_host())
        .ok_or_else(|| StartError::Collector(text.to_owned()))
}

/// What counts from the start to the end of a daemon, as text to compare.
fn fixed(file: &FileConfig) -> Vec<(&'static str, String)> {
    vec![
        ("root", format!("{:?}", file.root)),
        ("grpc", format!("{:?}", file.grpc)),
        ("history", format!("{:?}", file.history)),
        ("worker.oci.max-parallelism", file.worker.oci.max_parallelism.to_string()),
        ("worker.oci.binary", format!("{:?}", file.worker.oci.binary)),
        ("cdi", format!("{:?}", file.cdi)),
        ("web", format!("{:?}", file.web)),
        ("audit", format!("{:?}", file.audit)),
        ("store", format!("{:?}", file.store)),
    ]
}

/// Bytes of the file system that a directory is on or will be.
fn disk(root: &Path) -> u64 {
    let there = root.ancestors().find(|path| path.exists()).unwrap_or(root);
    rustix::fs::statvfs(there).map_or(0, |found| found.f_blocks.saturating_mul(found.f_frsize))
}

/// `--config`: a file of buildkitd's form.
fn file(global: &GlobalOptions) -> Result<FileConfig, StartError> {
    let Some(path) = &global.config else { return Ok(FileConfig::default()) };
    let text = String::from_utf8_lossy(&read(path)?).into_owned();
    FileConfig::parse(&text).map_err(|source| StartError::File { path: path.clone(), source })
}

fn read(path: &Path) -> Result<Vec<u8>, StartError> {
    let failed = |source| StartError::Read { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(failed)?;
    file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(failed)?;
    match bytes.len() as u64 > MAX_FILE {
        true => Err(StartError::TooLarge(path.to_owned())),
        false => Ok(bytes),
    }
}

impl Arguments {
    /// The file, with what flags say about its keys.
    fn file(&self, global: &GlobalOptions) -> Result<FileConfig, StartError> {
        self.over(file(global)?)
    }

    /// What is left of a file's keys where flags say other things.
    fn over(&self, mut file: FileConfig) -> Result<FileConfig, StartError> {
        if let Some(level) = self.watch.log_level.as_ref().filter(|level| !level.is_empty()) {
            file.log.level = Some(level.clone());
        }
        if !self.allow_insecure_entitlement.is_empty() {
            file.entitlements.clone_from(&self.allow_insecure_entitlement);
        }
        if let Some(most) = self.worker.oci_max_parallelism {
            file.worker.oci.max_parallelism = most;
        }
        if !self.worker.oci_worker_platform.is_empty() {
            let named = self.worker.oci_worker_platform.iter().flat_map(|text| text.split(','));
            file.worker.oci.platforms = named.map(str::to_owned).collect();
        }
        if !self.worker.cdi_spec_dir.is_empty() {
            file.cdi.spec_dirs.clone_from(&self.worker.cdi_spec_dir);
        }
        Ok(file.checked()?)
    }

    fn config(&self, file: &FileConfig, root: &Path) -> Result<DaemonConfig, StartError> {
        self.worker.check()?;
        self.foreign.check()?;
        let watch = &self.watch;
        Ok(DaemonConfig {
            listeners: self.listeners(file)?,
            worker: self.worker_config(file, root)?,
            patience: PATIENCE,
            tenancy: tenancy(file)?,
            audit: watch.audit_log.clone().or_else(|| file.audit.path.clone()),
            monitor: watched(watch.metrics_addr.as_ref().or(file.grpc.debug_address.as_ref()))?,
            web: self.web(file)?,
            traces: watch
                .otlp_endpoint
                .as_deref()
                .filter(|text| !text.is_empty())
                .map(collector)
                .transpose()?,
            notify: std::env::var_os("NOTIFY_SOCKET").map(PathBuf::from),
            reload: None,
        })
    }

    /// The web page; on tcp anybody could look who reaches it.
    fn web(&self, file: &FileConfig) -> Result<Option<WebPage>, StartError> {
        let text = self.watch.web_addr.as_ref().or(file.web.address.as_ref());
        let Some(address) = address(text)? else { return Ok(None) };
        if let Address::Tcp(socket) = &address
            && !socket.ip().is_loopback()
            && !self.insecure_tcp
        {
            return Err(StartError::OpenPage(*socket));
        }
        let hosts: Vec<String> = self.watch.web_host.iter().chain(&file.web.hosts).cloned().collect();
        let is_none = |host: &&String| host.is_empty() || host.contains([' ', '/']);
        if let Some(host) = hosts.iter().find(is_none) {
            return Err(StartError::WebHost(host.clone()));
        }
        Ok(Some(WebPage { address, hosts }))
    }

    /// What a daemon that runs takes over of a file that was changed.
    fn reload(
        &self,
        global: &GlobalOptions,
        root: &Path,
        before: &[(&'static str, String)],
    ) -> Result<Reloaded, StartError> {
        let file = self.file(global)?;
        let differs = |(now, then): (&(&'static str, String), &(&'static str, String))| {
            (now.1 != then.1).then(|| now.0.to_owned())
        };
        let unchanged = fixed(&file).iter().zip(before).filter_map(differs).collect();
        let registries = registries(&file, global)?;
        let (worker, tenancy) = (self.worker_config(&file, root)?, tenancy(&file)?);
        tracing::begin(level(&file, global));
        let identity = match self.identity(&file) {
            Ok(identity) => Ok(Some(identity)),
            Err(StartError::NoCertificates) => Ok(None),
            Err(error) => Err(crate::report::chain(&error)),
        };
        Ok(Reloaded { worker, tenancy, registries, identity, unchanged })
    }

    fn worker_config(&self, file: &FileConfig, root: &Path) -> Result<WorkerConfig, StartError> {
        let mut labels = file.worker.oci.labels.clone();
        for label in &self.worker.oci_worker_labels {
            // A comma belongs to the value.
            let named = label.split_once('=').filter(|(name, _)| !name.is_empty());
            let (name, value) = named.ok_or_else(|| StartError::Label(label.clone()))?;
            labels.insert(name.to_owned(), value.to_owned());
        }
        let directory = file.provenance_environment.as_deref();
        let directory = directory.unwrap_or_else(|| Path::new(PROVENANCE_DIRECTORY));
        let network = match self.worker.oci_worker_net {
            Some(Network::Bridge) => StepNetwork::Bridge,
            Some(Network::Auto | Network::Host) => StepNetwork::Host,
            None => file.worker.oci.network(),
        };
        Ok(WorkerConfig {
            id: worker_id(root),
            confinement: Confinement { network, ..Confinement::default() },
            labels,
            platforms: file.worker.oci.platforms()?,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            entitlements: file.entitlements.clone(),
            gc: self.gc(file, root)?,
            history: file.history.retention()?,
            environment: environment::read(directory)?,
            front_ends: FrontEnds::of(&file.frontend),
        })
    }

    fn listeners(&self, file: &FileConfig) -> Result<Vec<Listener>, StartError> {
        let mut addresses = if self.addr.is_empty() { file.grpc.address.clone() } else { self.addr.clone() };
        // What the service's supervisor listens at already is meant, if nothing else is named.
        let inherits = addresses.iter().any(|text| text == INHERITED)
            || (addresses.is_empty() && std::env::var_os("LISTEN_FDS").is_some());
        addresses.retain(|text| text != INHERITED);
        let mut listeners = if inherits { self.inherited(file)? } else { Vec::new() };
        if addresses.is_empty() && !inherits {
            let socket = if is_buildkitd() { BUILDKIT_SOCKET } else { DEFAULT_SOCKET };
            addresses.push(format!("unix://{socket}"));
        }
        let group = match &self.group {
            Some(name) => Some(group_here(name)?),
            None => file.grpc.gid,
        };
        let listener = |text: &String| {
            Ok::<_, StartError>(match text.parse()? {
                Address::Unix(path) => Listener::Unix { path, group },
                Address::Tcp(address) if self.insecure_tcp => Listener::Plain { address },
                Address::Tcp(address) => Listener::Tls { address, identity: self.identity(file)? },
            })
        };
        for text in &addresses {
            listeners.push(listener(text)?);
        }
        if self.tlscert.is_some() || self.tlskey.is_some() || self.tlscacert.is_some() {
            if self.insecure_tcp {
                return Err(StartError::NeedlessCertificates);
            }
            // Whoever names them means to be protected by them: also where no address needs them, they must be whole.
            self.identity(file)?;
        }
        Ok(listeners)
    }

    /// The sockets that whoever started the program listens at.
    fn inherited(&self, file: &FileConfig) -> Result<Vec<Listener>, StartError> {
        let mut handed = listenfd::ListenFd::from_env();
        let mut listeners = Vec::new();
        for at in 0..handed.len() {
            let unix = handed.take_unix_listener(at);
            let (socket, identity) = match unix {
                Ok(Some(listener)) => (InheritedSocket::Unix(listener), None),
                Ok(None) => continue,
                Err(_) => match handed.take_tcp_listener(at).map_err(StartError::Inherited)? {
                    Some(listener) if self.insecure_tcp => (InheritedSocket::Tcp(listener), None),
                    Some(listener) => (InheritedSocket::Tcp(listener), Some(self.identity(file)?)),
                    None => continue,
                },
            };
            let close = |socket: &dyn AsFd| rustix::io::fcntl_setfd(socket, rustix::io::FdFlags::CLOEXEC);
            let closed = match &socket {
                InheritedSocket::Unix(listener) => close(listener),
                InheritedSocket::Tcp(listener) => close(listener),
            };
            closed.map_err(|error| StartError::Inherited(error.into()))?;
            listeners.push(Listener::Inherited { socket, identity });
        }
        if listeners.is_empty() { Err(StartError::NothingInherited) } else { Ok(listeners) }
    }

    fn identity(&self, file: &FileConfig) -> Result<TlsIdentity, StartError> {
        let tls = &file.grpc.tls;
        let (certificate, key, authority) = (
            self.tlscert.as_ref().or(tls.cert.as_ref()),
            self.tlskey.as_ref().or(tls.key.as_ref()),
            self.tlscacert.as_ref().or(tls.ca.as_ref()),
        );
        let (Some(certificate), Some(key), Some(authority)) = (certificate, key, authority) else {
            return Err(StartError::NoCertificates);
        };
        Ok(TlsIdentity {
            certificate: read(certificate)?,
            key: read(key)?,
            client_authority: read(authority)?,
        })
    }

    fn gc(&self, file: &FileConfig, root: &Path) -> Result<Vec<GcRule>, StartError> {
        let mut oci = file.worker.oci.clone();
        if let Some(switch) = self.worker.oci_worker_gc {
            oci.gc = Some(switch == Switch::True);
        }
        if let Some(KeepStorage { reserved, free, most }) = self.worker.oci_worker_gc_keepstorage {
            let size = |megabytes: u64| Size::Bytes(megabytes.saturating_mul(1_000_000));
            oci.gcpolicy.clear();
            oci.reserved_space = Some(size(reserved));
            oci.min_free_space = free.map(size);
            oci.max_used_space = most.map(size);
        }
        Ok(oci.rules(disk(root))?)
    }
}

impl WorkerArguments {
    fn check(&self) -> Result<(), StartError> {
        if self.oci_worker == Some(Presence::False) {
            return Err(StartError::Worker("--oci-worker=false"));
        }
        if self.containerd_worker == Some(Presence::True) {
            return Err(StartError::Worker("--containerd-worker=true"));
        }
        Ok(())
    }
}

/// Whether the program was called by BuildKit's name.
pub(crate) fn is_buildkitd() -> bool {
    let name = std::env::args_os().next().unwrap_or_default();
    Path::new(&name).file_name().is_some_and(|name| name == "buildkitd")
}

/// The same for the same state directory of the same machine.
fn worker_id(root: &Path) -> String {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    Digest::sha256(format!("{host}:{}", root.display()).as_bytes()).hex()[..25].to_owned()
}

/// A group as files of this process have it.
fn group_here(name: &str) -> Result<u32, StartError> {
    let number = group(name)?;
    let here = stave_sandbox::IdMap::current().gid_inside(number);
    here.ok_or_else(|| StartError::ForeignGroup(name.to_owned()))
}

/// A group by number or by its name in the system's table.
fn group(name: &str) -> Result<u32, StartError> {
    if let Ok(number) = name.parse() {
        return Ok(number);
    }
    let path = Path::new("/etc/group");
    let table = read(path)?;
    let table: BTreeMap<String, u32> = String::from_utf8_lossy(&table)
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(':');
            Some((fields.next()?.to_owned(), fields.nth(1)?.parse().ok()?))
        })
        .collect();
    table.get(name).copied().ok_or_else(|| StartError::NoGroup(name.to_owned()))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        arguments: Arguments,
    }

    fn arguments(flags: &[&str]) -> Arguments {
        Line::parse_from(["daemon"].iter().chain(flags)).arguments
    }

    #[test]
    fn commas_belong_to_the_values_of_labels() {
        let arguments = arguments(&["--oci-worker-labels=k=a,b", "--oci-worker-labels", "l=c=d"]);
        let config =
            arguments.worker_config(&FileConfig::default(), Path::new("/nowhere")).expect("is sound");
        assert_eq!(config.labels.get("k").map(String::as_str), Some("a,b"));
        assert_eq!(config.labels.get("l").map(String::as_str), Some("c=d"));
    }

    #[test]
    fn flags_replace_the_entitlements_of_the_file() {
        let written = || FileConfig { entitlements: vec!["network.host".into()], ..FileConfig::default() };
        let named = arguments(&["--allow-insecure-entitlement=device"]).over(written()).expect("is sound");
        assert_eq!(named.entitlements, ["device"]);
        assert_eq!(arguments(&[]).over(written()).expect("is sound").entitlements, ["network.host"]);
    }

    #[test]
    fn addresses_of_metrics_are_buildkitds() {
        let check = |text: &str, expected: &str| {
            let found = watched(Some(&text.to_owned())).expect("is an address");
            assert!(matches!(found, Some(Address::Tcp(found)) if found.to_string() == expected), "{text}");
        };
        check("127.0.0.1:6060", "127.0.0.1:6060");
        check(":6060", "0.0.0.0:6060");
        check("[::1]:6060", "[::1]:6060");
        check("tcp://127.0.0.1:6060", "127.0.0.1:6060");
        check("localhost:6060", "127.0.0.1:6060");
        watched(Some(&"127.0.0.1".to_owned())).expect_err("no port");
    }
}
