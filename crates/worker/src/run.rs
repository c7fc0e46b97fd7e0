//! `stave run`: one process over an image's file system, whose changes are thrown away.
//! Owns the preparation and the running handle. Must not know command lines or terminals of the host: the caller
//! decides what its descriptors and signals are. Read [`RunSpec`], then [`Running`].

use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use stave_oci::Platform;
use stave_sandbox::{
    CgroupLimits, CgroupParent, DEFAULT_PATH, ExitStatus, MountSpec, Network, Process, Rlimit, Sandbox,
    Security, Stdio, Sysctl, TerminalSize,
};
use stave_store::{ActiveLayer, Snapshot};
use tokio_util::sync::CancellationToken;

use crate::base::Base;
use crate::exec::network_files::HostEntry;
use crate::exec::tree::ProcessTree;
use crate::exec::{ExecError, LocalExecutor, MountSet, ProcessSpec, Started, sandbox_spec, wait};
use crate::networks::{Connected, NetworkError};
use crate::rootfs::{Names, RootError, network_mounts, overlay_root};
use crate::session::StepNetwork;
use crate::source::image::blocking;
use crate::step::container::Container;
use crate::step::failed::HeldMounts;
use crate::users::{Identity, UserError, UserTable};
use crate::watch::{Watch, Watching};
use crate::worker::{LocalWorker, MountError, absolute};

/// What to run and over what.
#[derive(Debug)]
pub struct RunSpec {
    /// The image's file system.
    pub snapshot: Snapshot,
    /// What the image was made for; only shown in errors.
    pub platform: Platform,
    /// Program and arguments.
    pub args: Vec<String>,
    /// Environment, `NAME=value`; `PATH` and `HOME` are added when absent.
    pub env: Vec<String>,
    /// Working directory; `/` when empty.
    pub cwd: String,
    /// User as in `USER`; root when empty.
    pub user: String,
    /// Host name; the network files name it.
    pub hostname: String,
    /// Host directories and files to mount.
    pub binds: Vec<Bind>,
    /// Whether the root refuses writes.
    pub readonly_root: bool,
    /// The network.
    pub network: StepNetwork,
    /// Extra names, `(name, address)`.
    pub extra_hosts: Vec<(String, String)>,
    /// Limits.
    pub rlimits: Vec<Rlimit>,
    /// Size of `/dev/shm` in bytes; `None` for the default.
    pub shm_size: Option<u64>,
    /// Kernel parameters of its own namespaces.
    pub sysctls: Vec<Sysctl>,
    /// Limits of the processes together.
    pub limits: CgroupLimits,
    /// The control group in which theirs is made.
    pub cgroup_parent: CgroupParent,
    /// A terminal of this size instead of the descriptors.
    pub terminal: Option<TerminalSize>,
}

/// A directory or file of the host to be seen inside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bind {
    /// On the host. Created as a directory when absent, as docker does.
    pub source: PathBuf,
    /// Inside, absolute.
    pub target: PathBuf,
    /// Refuses writes.
    pub readonly: bool,
}

/// Why a process was not started.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The file system could not be prepared.
    #[error(transparent)]
    Root(#[from] RootError),
    /// The file system could not be looked at.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// The user is not known in the image.
    #[error(transparent)]
    User(#[from] UserError),
    /// There is nothing to run.
    #[error("no command specified")]
    NoCommand,
    /// A path of the host to mount could not be made.
    #[error("mounting `{}`", path.display())]
    Bind {
        /// The path.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// There is no such network here.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// The sandbox failed.
    #[error(transparent)]
    Exec(#[from] ExecError),
}

impl RunError {
    /// The exit code docker's `run` has for it: 127 not found, 126 not executable, 125 anything else.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Exec(ExecError::Spawn(error)) => error.exit_code(),
            _ => 125,
        }
    }
}

/// A running process. Dropped, it is killed and its changes are gone.
#[derive(Debug)]
pub struct Running {
    watch: Option<Arc<Watch>>,
    _watching: Option<Watching>,
    sandbox: Sandbox,
    // After the sandbox: what was lent to it goes home.
    _tree: Option<ProcessTree>,
    // After both: directories go away when nothing has them mounted.
    _layer: Option<ActiveLayer>,
    _mounts: Option<HeldMounts>,
    _container: Option<Arc<Container>>,
}

impl Running {
    /// A process over prepared mounts.
    pub(crate) fn new(started: Started, layer: ActiveLayer, mounts: HeldMounts) -> Self {
        let Started { watching, sandbox, tree } = started;
        let (watch, layer, mounts) = (None, Some(layer), Some(mounts));
        Self {
            watch,
            _watching: watching,
            sandbox,
            _tree: tree,
            _layer: layer,
            _mounts: mounts,
            _container: None,
        }
    }

    /// A process of a container.
    pub(crate) fn of_container(started: Started, container: Arc<Container>) -> Self {
        let Started { watching, sandbox, tree } = started;
        let (watch, container) = (None, Some(container));
        Self {
            watch,
            _watching: watching,
            sandbox,
            _tree: tree,
            _layer: None,
            _mounts: None,
            _container: container,
        }
    }

    /// Waits for the end. When `cancel` fires everything inside is killed first.
    ///
    /// # Errors
    /// [`ExecError::Cancelled`], [`ExecError::Store`] when what it writes does not fit into the store, or when the end
    /// cannot be learnt.
    pub async fn wait(&mut self, cancel: &CancellationToken) -> Result<ExitStatus, ExecError> {
        let Some(watch) = self.watch.clone() else {
            return Ok(wait(&mut self.sandbox, cancel).await?.status);
        };
        let ending = cancel.child_token();
        let ended = {
            let mut ended = std::pin::pin!(wait(&mut self.sandbox, &ending));
            tokio::select! {
                ended = ended.as_mut() => ended,
                () = watch.full() => {
                    ending.cancel();
                    ended.await
                }
            }
        };
        match watch.refusal() {
            Some(refusal) => Err(refusal.into()),
            None => Ok(ended?.status),
        }
    }

    /// Limits that do not hold, each with its reason.
    pub fn unlimited(&self) -> Vec<String> {
        let group = self.sandbox.cgroup().map(stave_sandbox::CgroupGuard::unlimited).unwrap_or_default();
        group.iter().map(|one| format!("{}: {}", one.controller, one.reason)).collect()
    }

    /// Sends a signal to the process.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn signal(&self, signal: i32) -> std::io::Result<()> {
        self.sandbox.signal(signal)
    }

    /// The terminal's master side, if one was asked for.
    #[must_use]
    pub fn terminal(&self) -> Option<BorrowedFd<'_>> {
        self.sandbox.terminal()
    }

    /// Changes the terminal's size.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn resize(&self, size: TerminalSize) -> std::io::Result<()> {
        self.sandbox.resize(size)
    }
}

/// What a process says whose program is not there.
const NOT_FOUND: u8 = 127;

/// The program that [`LocalWorker::probe`] asks for. It is nowhere: that it is missed shows that all before it worked.
const PROBE: &str = "/.stave-probe";

impl LocalWorker<LocalExecutor> {
    /// Sets a sandbox up as for any process, over nothing.
    ///
    /// # Errors
    /// [`RunError`], when it could not be.
    pub async fn probe(&self) -> Result<(), RunError> {
        let spec = RunSpec {
            snapshot: Snapshot::scratch(),
            platform: Platform::host(),
            args: vec![PROBE.to_owned()],
            env: Vec::new(),
            cwd: String::new(),
            user: String::new(),
            hostname: "probe".to_owned(),
            binds: Vec::new(),
            readonly_root: false,
            network: StepNetwork::None,
            extra_hosts: Vec::new(),
            rlimits: Vec::new(),
            shm_size: None,
            sysctls: Vec::new(),
            limits: CgroupLimits::default(),
            cgroup_parent: CgroupParent::Default,
            terminal: None,
        };
        let nothing = || std::fs::File::options().read(true).write(true).open("/dev/null");
        let streams = nothing().and_then(|stdin| Ok((stdin, nothing()?, nothing()?)));
        let (stdin, stdout, stderr) =
            streams.map_err(|source| RunError::Bind { path: "/dev/null".into(), source })?;
        let stdio = Stdio { stdin: stdin.into(), stdout: stdout.into(), stderr: stderr.into() };
        match self.start(spec, stdio).await {
            Err(error) if error.exit_code() == NOT_FOUND => Ok(()),
            other => other.map(drop),
        }
    }

    /// Starts a process over a throw-away layer on an image's file system.
    ///
    /// # Errors
    /// [`RunError`], with docker's exit code for it.
    pub async fn start(&self, spec: RunSpec, stdio: Stdio) -> Result<Running, RunError> {
        if spec.args.is_empty() {
            return Err(RunError::NoCommand);
        }
        let shared = std::sync::Arc::clone(&self.shared);
        let (layer, watch, sandbox) = blocking(move || -> Result<_, RunError> {
            let layer = shared.prepare(&spec.snapshot, "run").map_err(RootError::from)?;
            let identity = UserTable::read(&Base::of(&shared, &layer)?).identity(&spec.user)?;
            let root = overlay_root(&shared, &layer).map_err(RootError::from)?;
            let network = shared.networks.connect(spec.network)?;
            let mounts = mounts(&spec, &network)?;
            let set = MountSet { root, readonly_root: spec.readonly_root, mounts, shm_size: spec.shm_size };
            let watch = Watch::of(&shared.store, [&layer]).map_err(ExecError::from)?;
            let mut sandbox = sandbox_spec(process(&spec, identity, network.network), set);
            sandbox.sysctls = spec.sysctls;
            Ok((layer, watch, sandbox))
        })
        .await?;
        let started = self.executor.sandbox().spawn(sandbox, stdio, watch.clone()).await?;
        let Started { watching, sandbox, tree } = started;
        let layer = Some(layer);
        Ok(Running {
            watch,
            _watching: watching,
            sandbox,
            _tree: tree,
            _layer: layer,
            _mounts: None,
            _container: None,
        })
    }
}

fn mounts(spec: &RunSpec, network: &Connected) -> Result<Vec<MountSpec>, RunError> {
    let names = Names {
        hostname: spec.hostname.clone(),
        extra: spec
            .extra_hosts
            .iter()
            .map(|(name, address)| HostEntry { name: name.clone(), address: address.clone() })
            .collect(),
    };
    let mut mounts = network_mounts(&names, network)?;
    for bind in &spec.binds {
        let source = absolute(&bind.source);
        if !source.exists() {
            std::fs::create_dir_all(&source)
                .map_err(|error| RunError::Bind { path: source.clone(), source: error })?;
        }
        let target = Path::new("/").join(&bind.target);
        mounts.push(MountSpec::Bind { source, target, readonly: bind.readonly, recursive: true });
    }
    Ok(mounts)
}

fn process(spec: &RunSpec, identity: Identity, network: Network) -> ProcessSpec {
    let mut process = Process::new(spec.args.clone());
    process.env = environment(&spec.env, &identity, spec.terminal.is_some());
    process.cwd = Path::new("/").join(&spec.cwd);
    (process.uid, process.gid, process.groups) = (identity.uid, identity.gid, identity.groups);
    process.terminal = spec.terminal;
    process.rlimits = spec.rlimits.clone();
    ProcessSpec {
        process,
        hostname: spec.hostname.clone(),
        network,
        security: Security::Default,
        limits: Some(spec.limits.clone()).filter(|limits| !limits.is_empty()),
        cgroup_parent: spec.cgroup_parent.clone(),
        watch: None,
        turn: None,
    }
}

/// docker's additions to what was asked for; nothing comes from this process's environment.
fn environment(asked: &[String], identity: &Identity, terminal: bool) -> Vec<String> {
    let mut env = asked.to_vec();
    let has = |env: &[String], name: &str| env.iter().any(|entry| entry.split('=').next() == Some(name));
    if !has(&env, "PATH") {
        env.push(format!("PATH={DEFAULT_PATH}"));
    }
    if !has(&env, "HOME") {
        env.push(format!("HOME={}", identity.home));
    }
    if terminal && !has(&env, "TERM") {
        env.push("TERM=xterm".to_owned());
    }
    env
}
