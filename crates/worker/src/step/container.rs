//! Containers that somebody drives: file systems made ready once, and any number of processes over them.
//!
//! The processes of one container share its files, mounts and network settings; each has a sandbox of its own, so they
//! do not see each other's processes. What they write is thrown away with the container.
//! Owns the preparation and the start. Must not know who drives it or how. Read [`Container`] first.

mod files;

use std::path::Path;
use std::sync::Arc;

use stave_llb::{ExecOp, Mount};
use stave_sandbox::{MountGuard, OverlayLayers, RootFs, Stdio, TerminalSize, mount_overlay};
use stave_store::{ActiveLayer, ScratchDir, Snapshot};
use tokio_util::sync::CancellationToken;

use super::failed::HeldMounts;
use super::mounts::Plan;
use super::{Ready, StepError, check_supported, environment, rlimit};
use crate::base::Base;
use crate::exec::{LocalExecutor, MountSet, ProcessSpec, SandboxExecutor, sandbox_spec};
use crate::run::Running;
use crate::session::Session;
use crate::source::image::blocking;
use crate::users::UserTable;
use crate::worker::{LocalWorker, Ref};

pub use files::ContainerEntry;

/// The program of a container that has none of its own; it is never started.
const NO_PROGRAM: &str = "container";

/// What a container is made from.
#[derive(Debug, Clone)]
pub struct ContainerSpec {
    /// Its mounts, one of them at `/`, its network, host name and names of hosts. The rest of the op counts nothing.
    pub op: ExecOp,
    /// What the mounts' inputs are, in the op's order.
    pub inputs: Vec<Snapshot>,
}

/// A process of a container: what the op of a step says of it, but for mounts.
#[derive(Debug, Clone)]
pub struct ContainerProcess {
    /// Program, environment, working directory, user, limits, secrets, confinement.
    pub op: ExecOp,
    /// A terminal of this size instead of the descriptors.
    pub terminal: Option<TerminalSize>,
}

/// File systems ready to run processes over. Dropped with the last process, everything written is gone.
pub struct Container {
    executor: SandboxExecutor,
    op: ExecOp,
    template: ProcessSpec,
    mounts: MountSet,
    root_view: Arc<Base>,
    snapshots: Vec<(String, Snapshot)>,
    // Mounts go before the directories they are on, and these before the layers below.
    _root: Option<MountGuard>,
    _place: ScratchDir,
    _held: HeldMounts,
    _layer: ActiveLayer,
}

impl std::fmt::Debug for Container {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Container").field("mounts", &self.mounts.mounts.len()).finish_non_exhaustive()
    }
}

impl LocalWorker<LocalExecutor> {
    /// Makes a container's file systems ready.
    ///
    /// # Errors
    /// When there is no root, a mount cannot be prepared, or the session lacks what one needs.
    pub async fn container(
        &self,
        spec: ContainerSpec,
        session: Arc<Session>,
        cancel: &CancellationToken,
    ) -> Result<Container, StepError> {
        let ContainerSpec { mut op, inputs } = spec;
        op.args = vec![NO_PROGRAM.to_owned()];
        op.cwd = "/".to_owned();
        op.user = String::new();
        check_supported(&op, &session)?;
        let shared = Arc::clone(&self.shared);
        let snapshots = inputs.clone();
        let inputs: Vec<Ref> = inputs.into_iter().map(Ref::Snapshot).collect();
        let caches = super::lock_caches(&shared, &op, &inputs, &session, cancel).await?;
        let executor = self.executor.sandbox().clone();
        let cancel = cancel.clone();
        blocking(move || {
            let plan = Plan { shared, op, inputs, session, cancel };
            let ready = super::begin(&plan, caches)?;
            assemble(plan, ready, executor, &snapshots)
        })
        .await
    }
}

fn assemble(
    plan: Plan,
    ready: Ready,
    executor: SandboxExecutor,
    inputs: &[Snapshot],
) -> Result<Container, StepError> {
    let Ready { process, mut mounts, prepared, .. } = ready;
    let root_view = Arc::clone(&prepared.root_view);
    let place = plan.shared.store.scratch_dir()?;
    let layer = &prepared.root;
    // One mount that all processes share: two overlays over the same directories would not see each other's files.
    let root = match layer.lowers() {
        [] => None,
        lower => {
            let upper = Some((layer.upper().to_owned(), layer.work().to_owned()));
            Some(mount_overlay(
                &OverlayLayers { lower: lower.to_vec(), upper, volatile: true },
                place.path(),
            )?)
        }
    };
    let path = if root.is_some() { place.path().to_owned() } else { layer.upper().to_owned() };
    mounts.root = RootFs::Directory { path };
    let snapshot = |mount: &Mount| {
        let input = mount.input().and_then(|input| inputs.get(input as usize)).cloned();
        (mount.target().to_owned(), input.unwrap_or_else(Snapshot::scratch))
    };
    let snapshots = plan.op.mounts.iter().map(snapshot).collect();
    let (layer, held) = prepared.into_held();
    Ok(Container {
        executor,
        op: plan.op,
        template: process,
        mounts,
        root_view,
        snapshots,
        _root: root,
        _place: place,
        _held: held,
        _layer: layer,
    })
}

impl Container {
    /// Starts a process with these descriptors; `session` has its secrets.
    ///
    /// # Errors
    /// When its user is not known, a secret it needs is not there, it may not run so, or the sandbox fails.
    pub async fn start(
        self: &Arc<Self>,
        process: ContainerProcess,
        session: Arc<Session>,
        stdio: Stdio,
    ) -> Result<Running, StepError> {
        let this = Arc::clone(self);
        let spec = blocking(move || this.spec(process, &session)).await?;
        let sandbox = self.executor.spawn(sandbox_spec(spec, self.mounts.clone()), stdio, None).await?;
        Ok(Running::of_container(sandbox, Arc::clone(self)))
    }

    /// What was mounted where, in the order of the mounts: the results, without what processes wrote.
    #[must_use]
    pub fn snapshots(&self) -> &[(String, Snapshot)] {
        &self.snapshots
    }

    fn spec(&self, process: ContainerProcess, session: &Session) -> Result<ProcessSpec, StepError> {
        let ContainerProcess { op, terminal } = process;
        let op = ExecOp { network: self.op.network, proxy_env: op.proxy_env.clone(), ..op };
        check_supported(&op, session)?;
        let identity = UserTable::read(&*self.root_view).identity(&op.user)?;
        let mut spec = self.template.clone();
        let inside = &mut spec.process;
        inside.args.clone_from(&op.args);
        inside.env = environment(&op, &identity, session)?;
        if terminal.is_some() && !inside.env.iter().any(|entry| entry.starts_with("TERM=")) {
            inside.env.push("TERM=xterm".to_owned());
        }
        inside.cwd = Path::new("/").join(&op.cwd);
        (inside.uid, inside.gid, inside.groups) = (identity.uid, identity.gid, identity.groups);
        inside.rlimits = op.ulimits.iter().map(rlimit).collect::<Result<_, _>>()?;
        inside.terminal = terminal;
        spec.security = super::security(op.security);
        Ok(spec)
    }
}
