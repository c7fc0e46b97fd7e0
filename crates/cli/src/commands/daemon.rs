//! `stave daemon`: flags, as buildkitd has them, to a daemon that serves until it is told to stop.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use stave_daemon::{Address, Daemon, DaemonConfig, FileConfig, Listener, TlsIdentity, WorkerConfig};
use stave_engine::EngineConfig;
use stave_oci::Digest;
use stave_registry::Keychain;

use crate::config;
use crate::report::Failure;
use crate::runtime::with_shared_engine;
use crate::state::GlobalOptions;

/// Bytes of the largest configuration file, certificate or key.
const MAX_FILE: u64 = 1 << 20;
/// Where a daemon listens that is told nothing.
const DEFAULT_SOCKET: &str = "/run/stave/stave.sock";
/// The same, when called as `buildkitd`.
const BUILDKIT_SOCKET: &str = "/run/buildkit/buildkitd.sock";
/// How long running builds may go on once the daemon shall end.
const PATIENCE: Duration = Duration::from_secs(10);

/// Serve builds to BuildKit's clients: buildctl, docker buildx and their like
///
/// Called as `buildkitd`, the program does this without being told.
#[derive(Debug, clap::Args)]
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
    /// Entitlement that builds may ask for: network.host, security.insecure, device (may be repeated)
    #[arg(long, value_name = "NAME")]
    allow_insecure_entitlement: Vec<String>,
    #[command(flatten)]
    worker: WorkerArguments,
}

/// buildkitd's flags for its workers, of which there is one here.
#[derive(Debug, clap::Args)]
struct WorkerArguments {
    /// Only `true` is possible
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", hide = true)]
    oci_worker: Option<Switch>,
    /// Only `false` is possible
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", hide = true)]
    containerd_worker: Option<Switch>,
    /// Whether what nobody uses is removed after builds; see --oci-worker-gc-keepstorage
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    oci_worker_gc: Option<Switch>,
    /// Megabytes that the state directory may take after a build
    #[arg(long, value_name = "MB")]
    oci_worker_gc_keepstorage: Option<u64>,
    /// Label that clients are told: NAME=VALUE (may be repeated)
    #[arg(long, value_name = "LABEL")]
    oci_worker_labels: Vec<String>,
    /// Only `overlayfs` is possible
    #[arg(long, value_name = "NAME", hide = true)]
    oci_worker_snapshotter: Option<Snapshotter>,
    /// Only `host` is possible
    #[arg(long, value_name = "NAME", hide = true)]
    oci_worker_net: Option<Network>,
}

/// A flag with a value, as Go's programs take it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Switch {
    True,
    False,
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
}

/// What cannot be honoured of the flags or the file.
#[derive(Debug, thiserror::Error)]
enum StartError {
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
    #[error("no group called `{0}`")]
    NoGroup(String),
    #[error("invalid label `{0}`: expected NAME=VALUE")]
    Label(String),
    #[error("only the worker of this program is there: `{0}` cannot be honoured")]
    Worker(&'static str),
    #[error("invalid size `{0}` in the configuration file")]
    Size(String),
}

/// Serves.
pub(crate) fn run(arguments: &Arguments, global: &GlobalOptions) -> Result<u8, Failure> {
    let failed = |error: StartError| {
        let hint = matches!(error, StartError::NoCertificates)
            .then(|| "--insecure-tcp lets everybody in who reaches the address".to_owned());
        Failure::new(&error).with_hint(hint)
    };
    let file = file(global).map_err(failed)?;
    // The program's own default is known only here: a root that was named beats the file's.
    let root = match file.root.clone() {
        Some(root) if !global.is_root_named => root,
        _ => global.state_directory(),
    };
    // buildkitd's own directory holds other things beside its store.
    let root = if is_buildkitd() { root.join("stave") } else { root };
    let config = arguments.config(&file, &root).map_err(failed)?;
    let directories = file.cdi.directories();
    let registries = match &global.config {
        Some(_) => file.registry,
        None => config::load(&global.config_file()).map_err(|error| Failure::new(&error))?.registry,
    };
    // Credentials are the clients': the daemon has none of its own.
    let engine = EngineConfig {
        root,
        registries,
        keychain: Keychain::anonymous(),
        oci_runtime: None,
        device_directories: directories,
    };
    with_shared_engine(engine, async |engine, interrupt| {
        let daemon = Daemon::bind(engine, config).await.map_err(|error| Failure::new(&error))?;
        for place in daemon.addresses() {
            eprintln!("listening at {place}");
        }
        daemon.serve(interrupt.token().clone()).await.map_err(|error| Failure::new(&error))?;
        Ok(0)
    })
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
    fn config(&self, file: &FileConfig, root: &Path) -> Result<DaemonConfig, StartError> {
        self.worker.check()?;
        let mut labels = file.worker.oci.labels.clone();
        for label in &self.worker.oci_worker_labels {
            // One flag may hold several.
            for pair in label.split(',') {
                let (name, value) = pair.split_once('=').ok_or_else(|| StartError::Label(pair.to_owned()))?;
                labels.insert(name.to_owned(), value.to_owned());
            }
        }
        let mut entitlements = file.entitlements.clone();
        entitlements.extend(self.allow_insecure_entitlement.clone());
        Ok(DaemonConfig {
            listeners: self.listeners(file)?,
            worker: WorkerConfig {
                id: worker_id(root),
                labels,
                version: env!("CARGO_PKG_VERSION").to_owned(),
                entitlements,
                keep_bytes: self.keep_bytes(file)?,
                ..WorkerConfig::default()
            },
            patience: PATIENCE,
        })
    }

    fn listeners(&self, file: &FileConfig) -> Result<Vec<Listener>, StartError> {
        let mut addresses = if self.addr.is_empty() { file.grpc.address.clone() } else { self.addr.clone() };
        if addresses.is_empty() {
            let socket = if is_buildkitd() { BUILDKIT_SOCKET } else { DEFAULT_SOCKET };
            addresses.push(format!("unix://{socket}"));
        }
        let group = match &self.group {
            Some(name) => Some(group(name)?),
            None => file.grpc.gid,
        };
        let listener = |text: &String| {
            Ok(match text.parse()? {
                Address::Unix(path) => Listener::Unix { path, group },
                Address::Tcp(address) if self.insecure_tcp => Listener::Plain { address },
                Address::Tcp(address) => Listener::Tls { address, identity: self.identity(file)? },
            })
        };
        addresses.iter().map(listener).collect()
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

    fn keep_bytes(&self, file: &FileConfig) -> Result<Option<u64>, StartError> {
        let oci = &file.worker.oci;
        let is_on = match self.worker.oci_worker_gc {
            Some(switch) => switch == Switch::True,
            None => oci.gc.unwrap_or(true),
        };
        if !is_on {
            return Ok(None);
        }
        if let Some(megabytes) = self.worker.oci_worker_gc_keepstorage {
            return Ok(Some(megabytes.saturating_mul(1_000_000)));
        }
        let written = oci.max_used_space.as_ref().or(oci.reserved_space.as_ref());
        let bytes = |value: &toml::Value| match value {
            toml::Value::Integer(bytes) => {
                u64::try_from(*bytes).map_err(|_| StartError::Size(bytes.to_string()))
            }
            toml::Value::String(text) => super::build::size(text).map_err(|_| StartError::Size(text.clone())),
            other => Err(StartError::Size(other.to_string())),
        };
        written.map(bytes).transpose()
    }
}

impl WorkerArguments {
    fn check(&self) -> Result<(), StartError> {
        if self.oci_worker == Some(Switch::False) {
            return Err(StartError::Worker("--oci-worker=false"));
        }
        if self.containerd_worker == Some(Switch::True) {
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
