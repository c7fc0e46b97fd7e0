//! Running processes by an external OCI runtime (`runc`, `crun`): a bundle for each, removed afterwards.
//!
//! Owns the bundle and the runtime's command lines; what a bundle says is in [`config`]. The root file system is mounted
//! here, in this process's own mount namespace, which the runtime inherits. What a runtime leaves when this process is
//! killed is removed by the next one that starts. Must not know LLB or the store's layout. Read [`RuntimeExecutor`] first.

mod config;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio as ProcessStdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use stave_sandbox::{
    BridgeError, BridgeNamespace, CgroupParent, ExitStatus, Launcher, MountGuard, MountSpec, Network,
    OverlayLayers, RootFs, SandboxSpec, mount_memory, mount_overlay,
};
use stave_solver::LogStream;
use stave_store::{ScratchDir, Store, StoreError};
use tokio::process::{Child, Command};
use tokio_util::sync::CancellationToken;

use super::{
    ExecError, Executor, Finished, MountSet, ProcessIo, ProcessSpec, ProcessUsage, Tail, forward,
    logged_stdio, sandbox_spec, usage,
};
use crate::source::image::blocking;
use crate::watch::Watch;

/// Where the runtime's own state lies in a bundle.
const STATE: &str = "state";
/// Where the root is mounted in a bundle.
const ROOT: &str = "rootfs";
/// Where the runtime says what went wrong.
const LOG: &str = "log";
/// Where files in memory are in a bundle.
const FILES: &str = "files";

/// Why an external runtime could not run a process.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// The bundle could not be made.
    #[error("cannot {action} the bundle for `{}`", program.display())]
    Bundle {
        /// What was tried.
        action: &'static str,
        /// The runtime.
        program: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// There is no bridge to join.
    #[error("network `bridge` is not available")]
    Bridge(#[from] BridgeError),
    /// The bundle's directory could not be had.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The root could not be mounted.
    #[error(transparent)]
    Mount(#[from] stave_sandbox::MountError),
    /// The runtime does not start.
    #[error("cannot start the OCI runtime `{}`", program.display())]
    Start {
        /// The runtime.
        program: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The runtime refused the container.
    #[error("the OCI runtime `{}` failed: {said}", program.display())]
    Refused {
        /// The runtime.
        program: PathBuf,
        /// The last of what it said.
        said: String,
    },
    /// Something it is not asked for.
    #[error("an external OCI runtime cannot be used for {0}")]
    Unsupported(&'static str),
}

/// Runs processes by an external runtime.
#[derive(Debug, Clone)]
pub struct RuntimeExecutor {
    program: PathBuf,
    store: Store,
    /// What has the bridge.
    launcher: Launcher,
    _covered: Option<Arc<MountGuard>>,
}

/// Where the second hierarchy of control groups is beside the first.
const UNIFIED: &str = "/sys/fs/cgroup/unified";

/// Covers the second hierarchy in this process's mounts for a runtime that refuses a machine on which it has
/// controllers beside the first. Nothing is lost: there it is used by nobody here.
fn cover_unified(program: &Path) -> Option<Arc<MountGuard>> {
    let controllers = fs::read_to_string(Path::new(UNIFIED).join("cgroup.controllers")).unwrap_or_default();
    if !is_crun(program) || controllers.trim().is_empty() {
        return None;
    }
    let covered = mount_memory(Path::new(UNIFIED));
    covered
        .inspect_err(|error| tracing::warn!(%error, "crun may refuse this machine's control groups"))
        .ok()
        .map(Arc::new)
}

fn is_crun(program: &Path) -> bool {
    program.file_name().is_some_and(|name| name == "crun")
}

impl RuntimeExecutor {
    /// An executor that calls `program`, looked up in `PATH` when it has no slash.
    #[must_use]
    pub fn new(program: PathBuf, store: Store) -> Self {
        let covered = cover_unified(&program);
        Self { program, store, launcher: Launcher::new(), _covered: covered }
    }

    /// The executor, with the bridge of this launcher.
    #[must_use]
    pub fn beside(self, launcher: &Launcher) -> Self {
        Self { launcher: launcher.clone(), ..self }
    }

    fn failed(&self, action: &'static str) -> impl Fn(io::Error) -> RuntimeError {
        let program = self.program.clone();
        move |source| RuntimeError::Bundle { action, program: program.clone(), source }
    }
}

/// A bundle on disk with its mounts; dropped, it is gone.
struct Bundle {
    // Mounts go before the directory below them.
    mounts: Vec<MountGuard>,
    directory: ScratchDir,
    name: String,
    created: Vec<PathBuf>,
    /// Whether nothing is limited.
    without_group: bool,
    /// The namespace it joins.
    network: Option<BridgeNamespace>,
}

impl Bundle {
    fn path(&self) -> &Path {
        self.directory.path()
    }
}

impl Executor for RuntimeExecutor {
    async fn run(
        &self,
        process: ProcessSpec,
        mounts: MountSet,
        io: ProcessIo,
        cancel: &CancellationToken,
    ) -> Result<Finished, ExecError> {
        let ProcessIo::Logged(log) = io else {
            return Err(RuntimeError::Unsupported("given descriptors").into());
        };
        if matches!(process.cgroup_parent, CgroupParent::Within(_)) {
            return Err(RuntimeError::Unsupported(
                "limits of a whole build: limit each step with `--resource`",
            )
            .into());
        }
        if matches!(process.network, Network::User(_)) {
            return Err(RuntimeError::Unsupported("a network by `pasta` or `slirp4netns`").into());
        }
        // The runtime's processes are watched, and cannot be made to stand.
        let watch = process.watch.clone();
        let watching = watch.as_ref().map(Watch::begin);
        watching.iter().for_each(|watching| watching.follow(None));
        let spec = sandbox_spec(process, mounts);
        let (this, of_bundle) = (self.clone(), spec.clone());
        let bundle = blocking(move || this.bundle(&of_bundle)).await?;
        let (stdio, stdout, stderr) = logged_stdio().map_err(ExecError::Output)?;
        let kills = usage::oom_kills_before();
        let mut command = self.command(&bundle);
        command.args(["run", "--bundle"]).arg(bundle.path()).arg(&bundle.name);
        command.stdin(stdio.stdin).stdout(stdio.stdout).stderr(stdio.stderr);
        let mut child = command
            .spawn()
            .map_err(|source| RuntimeError::Start { program: self.program.clone(), source })?;
        // The command holds the write ends of the pipes.
        drop(command);
        let tail = Arc::new(Tail::default());
        let reading = async {
            tokio::try_join!(
                forward(stdout, LogStream::Stdout, &log, &tail),
                forward(stderr, LogStream::Stderr, &log, &tail),
            )
        };
        let waiting = self.wait(&mut child, &bundle, cancel);
        let (read, code) = tokio::join!(reading, waiting);
        let code = code?;
        read.map_err(ExecError::Output)?;
        self.judge(&bundle, code)?;
        let status = ExitStatus::Exited(u8::try_from(code).unwrap_or(u8::MAX));
        let oom_killed = code == 137 && kills.is_some_and(|kills| usage::machine_oom_kills() > Some(kills));
        let usage = ProcessUsage { oom_killed, ..ProcessUsage::default() };
        let created_mount_points = bundle.created.clone();
        blocking(move || drop(bundle)).await;
        Ok(Finished { status, tail: tail.bytes(), created_mount_points, usage })
    }
}

impl RuntimeExecutor {
    fn command(&self, bundle: &Bundle) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--root").arg(bundle.path().join(STATE));
        command.arg("--log").arg(bundle.path().join(LOG)).args(["--log-format", "json"]);
        if bundle.without_group && is_crun(&self.program) {
            // It refuses hosts whose control groups it does not know, needed or not.
            command.arg("--cgroup-manager=disabled");
        }
        command.stdin(ProcessStdio::null()).stdout(ProcessStdio::null()).stderr(ProcessStdio::null());
        command
    }

    /// Waits for the runtime; when cancelled, has the container killed and still waits.
    async fn wait(
        &self,
        child: &mut Child,
        bundle: &Bundle,
        cancel: &CancellationToken,
    ) -> Result<i32, ExecError> {
        let cancelled = tokio::select! {
            status = child.wait() => return code_of(status),
            () = cancel.cancelled() => ExecError::Cancelled,
        };
        // Until the container exists there is nothing to kill: then the runtime itself is.
        let killed = self.command(bundle).args(["kill", &bundle.name, "KILL"]).status().await;
        if !killed.is_ok_and(|status| status.success()) {
            child.start_kill().map_err(ExecError::Output)?;
        }
        child.wait().await.map_err(ExecError::Output)?;
        self.command(bundle).args(["delete", "--force", &bundle.name]).status().await.ok();
        Err(cancelled)
    }

    /// A code is the process's own, unless the runtime wrote into its log why it failed.
    fn judge(&self, bundle: &Bundle, code: i32) -> Result<(), RuntimeError> {
        let log = fs::read_to_string(bundle.path().join(LOG)).unwrap_or_default();
        match log.lines().filter_map(complaint).next_back() {
            Some(said) if code != 0 => Err(RuntimeError::Refused { program: self.program.clone(), said }),
            _ => Ok(()),
        }
    }

    /// Makes the bundle and mounts its root. Blocks.
    fn bundle(&self, spec: &SandboxSpec) -> Result<Bundle, RuntimeError> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let name = format!("stave-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let directory = self.store.scratch_dir()?;
        for part in [STATE, ROOT, FILES] {
            fs::create_dir(directory.path().join(part)).map_err(self.failed("create"))?;
        }
        let root = directory.path().join(ROOT);
        let mut mounts = Vec::new();
        match &spec.rootfs {
            RootFs::Overlay(overlay) => {
                let layers = OverlayLayers {
                    lower: overlay.lower.clone(),
                    upper: Some((overlay.upper.clone(), overlay.work.clone())),
                    volatile: overlay.volatile,
                };
                mounts.push(mount_overlay(&layers, &root)?);
            }
            RootFs::Directory { .. } | RootFs::Chroot { .. } => {
                return Err(RuntimeError::Unsupported("a root that is a directory"));
            }
        }
        let files = directory.path().join(FILES);
        if spec.mounts.iter().any(|mount| matches!(mount, MountSpec::File { .. })) {
            // Secrets are among them: never on a disk.
            mounts.push(mount_memory(&files)?);
        }
        let created = config::missing(&root, spec);
        let without_group = spec.cgroup.is_none() && spec.cgroup_parent == CgroupParent::Default;
        let network = match spec.network {
            Network::Bridge => Some(self.launcher.bridge().and_then(|bridge| bridge.take())?),
            Network::Host | Network::None | Network::User(_) => None,
        };
        let mut bundle = Bundle { mounts, directory, name, created, without_group, network };
        let network = bundle.network.as_ref().map(|network| {
            use std::os::fd::{AsFd as _, AsRawFd as _};
            PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), network.as_fd().as_raw_fd()))
        });
        let config = config::config(spec, &bundle.name, &files, network.as_deref())
            .map_err(self.failed("describe"))?;
        let text = serde_json::to_vec(&config).map_err(|error| self.failed("describe")(error.into()))?;
        fs::write(bundle.path().join("config.json"), text).map_err(self.failed("write"))?;
        bundle.mounts.reverse();
        Ok(bundle)
    }
}

/// What a line of a runtime's log says, if it is about an error.
fn complaint(line: &str) -> Option<String> {
    let line: serde_json::Value = serde_json::from_str(line).ok()?;
    // crun writes errors alone, and no level.
    let error = line.get("level").is_none_or(|level| level == "error");
    line.get("msg").and_then(|text| text.as_str()).filter(|_| error).map(str::to_owned)
}

fn code_of(status: io::Result<std::process::ExitStatus>) -> Result<i32, ExecError> {
    use std::os::unix::process::ExitStatusExt as _;
    let status = status.map_err(ExecError::Output)?;
    Ok(status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_runtimes_are_told_from_their_other_words() {
        let runc = r#"{"level":"error","msg":"exec failed","time":"2026-01-01T00:00:00Z"}"#;
        assert_eq!(complaint(runc).as_deref(), Some("exec failed"));
        assert_eq!(complaint(r#"{"level":"warning","msg":"slow"}"#), None);
        assert_eq!(complaint(r#"{"msg":"unknown version","time":"x"}"#).as_deref(), Some("unknown version"));
        assert_eq!(complaint("text"), None);
    }
}
