//! `stave daemon`: flags, as buildkitd has them, to a daemon that serves until it is told to stop.

mod arguments;
mod error;
mod flags;
mod listening;

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use stave_daemon::config::{FrontEnds, Size, environment};
use stave_daemon::{Daemon, DaemonConfig, FileConfig, Reload, Reloaded, Tenancy, WorkerConfig};
use stave_engine::EngineConfig;
use stave_oci::Digest;
use stave_registry::{Keychain, RegistryTables};
use stave_store::GcRule;
use stave_worker::{Confinement, StepNetwork};

pub(crate) use self::arguments::Arguments;
use self::arguments::{KeepStorage, Network, Switch};
use self::error::StartError;
use self::listening::watched;
use crate::report::Failure;
use crate::runtime::with_shared_engine;
use crate::state::GlobalOptions;
use crate::{config, tracing};

/// Bytes of the largest configuration file, certificate or key.
const MAX_FILE: u64 = 1 << 20;
/// Where the fields lie that statements tell of the builder, as buildkitd has it.
const PROVENANCE_DIRECTORY: &str = "/etc/buildkit/provenance.d";
/// How long running builds may go on once the daemon shall end.
const PATIENCE: Duration = Duration::from_secs(10);

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
}
