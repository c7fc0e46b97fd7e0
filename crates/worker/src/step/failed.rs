//! What a failed step leaves: its file system as a snapshot, and enough to enter it.
//!
//! Owns the keeping, and the preparation of a process over what was kept: the step's own environment, mounts and user,
//! with another command. Must not know builds or terminals. Read [`FailedStep`] first.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use stave_llb::{ExecOp, Mount};
use stave_oci::Digest;
use stave_sandbox::{Stdio, TerminalSize};
use stave_store::{ActiveLayer, Snapshot};
use tokio_util::sync::CancellationToken;

use super::mounts::Plan;
use super::{Ready, StepError, commit};
use crate::exec::{LocalExecutor, sandbox_spec};
use crate::file::copy::{Copier, CopyRules};
use crate::file::snapshot_of;
use crate::input::Input;
use crate::mode::ModeChange;
use crate::namespace::Namespace;
use crate::root::{At as _, Last, RootDir};
use crate::run::Running;
use crate::session::{Session, StepNetwork};
use crate::source::image::blocking;
use crate::ssh::AgentSocket;
use crate::worker::{LocalWorker, Ref, Shared};

/// A step that failed, as it was then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailedStep {
    /// Its vertex.
    pub vertex: Digest,
    /// What it ran, and how.
    pub op: ExecOp,
    /// Its inputs, in the op's order; a local context as the layer it was copied into.
    pub inputs: Vec<Snapshot>,
    /// The root file system as the process left it.
    pub root: Snapshot,
    /// The mounts that it could write, by their place, as it left them.
    pub mounts: BTreeMap<String, Snapshot>,
    /// The network of steps that name none in its build.
    pub network: StepNetwork,
}

/// Keeps what a failed process left. Blocks.
pub(super) fn keep(
    shared: &Arc<Shared>,
    mut ready: Ready,
    (vertex, op, inputs, network): (Digest, ExecOp, Vec<Ref>, StepNetwork),
    cancel: &CancellationToken,
) -> Result<FailedStep, StepError> {
    let inputs = inputs.iter().map(|input| snapshot_of(shared, input, cancel));
    let inputs = inputs.collect::<Result<Vec<_>, _>>()?;
    let output = ready.prepared.root_output;
    let created: [PathBuf; 0] = [];
    let discarded = std::mem::take(&mut ready.prepared.discarded);
    let outputs = commit(ready, &created)?;
    // The root is among the outputs; a step whose root is thrown away changed nothing there that it could keep.
    let root = match output.and_then(|output| outputs.get(output as usize)).and_then(Ref::snapshot) {
        Some(root) => root.clone(),
        None => base(&op, &inputs),
    };
    let mut mounts = BTreeMap::new();
    for (place, layer) in discarded {
        mounts.insert(place, layer.commit()?);
    }
    for mount in &op.mounts {
        let Mount::Bind { target, output: Some(output), .. } = mount else { continue };
        let written = outputs.get(*output as usize).and_then(Ref::snapshot);
        mounts.extend(written.map(|written| (target.clone(), written.clone())));
    }
    Ok(FailedStep { vertex, op, inputs, root, mounts, network })
}

/// What the root of a step lies on.
fn base(op: &ExecOp, inputs: &[Snapshot]) -> Snapshot {
    let input = op.root().and_then(Mount::input);
    input.and_then(|input| inputs.get(input as usize)).cloned().unwrap_or_else(Snapshot::scratch)
}

/// How a failed step is entered.
#[derive(Debug, Clone)]
pub struct Enter {
    /// The program and its arguments.
    pub args: Vec<String>,
    /// A terminal of this size instead of the descriptors.
    pub terminal: Option<TerminalSize>,
}

impl LocalWorker<LocalExecutor> {
    /// What a vertex left that failed for a build of this namespace, if not many failed since.
    #[must_use]
    pub fn failed_step(&self, namespace: &Namespace, vertex: &Digest) -> Option<FailedStep> {
        self.shared.leftovers.of(namespace, vertex)
    }

    /// Starts a process in what a failed step left. Its changes are thrown away.
    ///
    /// # Errors
    /// When the step's file systems are no longer kept, a secret it needs is not given, or the process cannot start.
    pub async fn enter(
        &self,
        step: FailedStep,
        enter: Enter,
        session: Arc<Session>,
        stdio: Stdio,
    ) -> Result<Running, StepError> {
        let shared = Arc::clone(&self.shared);
        let cancel = CancellationToken::new();
        let caches = {
            let inputs: Vec<Ref> = step.inputs.iter().cloned().map(Ref::Snapshot).collect();
            super::lock_caches(&shared, &step.op, &inputs, &session, &cancel).await?
        };
        let (layer, sandbox, held) = blocking(move || -> Result<_, StepError> {
            let plan = plan(&shared, step, &enter, session)?;
            let mut ready = super::begin(&plan, caches)?;
            ready.process.process.terminal = enter.terminal;
            if enter.terminal.is_some() {
                ready.process.process.env.push("TERM=xterm".to_owned());
            }
            let spec = sandbox_spec(ready.process, ready.mounts);
            let (layer, held) = ready.prepared.into_held();
            Ok((layer, spec, held))
        })
        .await?;
        let sandbox = self.executor.sandbox().spawn(sandbox, stdio, None).await?;
        Ok(Running::new(sandbox, layer, held))
    }

    /// Copies a directory of what a failed step left to one of this machine, made when missing.
    ///
    /// # Errors
    /// When there is no such directory, or it cannot be copied.
    pub async fn copy_out(
        &self,
        root: &Snapshot,
        from: &Path,
        to: &Path,
        cancel: &CancellationToken,
    ) -> Result<(), StepError> {
        let (shared, root, cancel) = (Arc::clone(&self.shared), root.clone(), cancel.clone());
        let (from, to) = (from.to_owned(), to.to_owned());
        blocking(move || copy_out(&shared, &root, (&from, &to), &cancel)).await
    }
}

fn plan(
    shared: &Arc<Shared>,
    step: FailedStep,
    enter: &Enter,
    session: Arc<Session>,
) -> Result<Plan, StepError> {
    for snapshot in step.inputs.iter().chain([&step.root]) {
        if !shared.store.exists(snapshot)? {
            return Err(StepError::NotKept);
        }
    }
    let mut inputs: Vec<Ref> = step.inputs.into_iter().map(Ref::Snapshot).collect();
    let mut op = step.op;
    op.args.clone_from(&enter.args);
    // The root is what the step left, not what it began with.
    let root = u32::try_from(inputs.len()).map_err(|_| StepError::NoInput)?;
    inputs.push(Ref::Snapshot(step.root));
    for mount in &mut op.mounts {
        if let Mount::Bind { target, input, .. } = mount
            && target == "/"
        {
            *input = Some(root);
        }
    }
    Ok(Plan { shared: Arc::clone(shared), op, inputs, session, cancel: CancellationToken::new() })
}

fn copy_out(
    shared: &Shared,
    root: &Snapshot,
    (from, to): (&Path, &Path),
    cancel: &CancellationToken,
) -> Result<(), StepError> {
    let source: Input = shared.input(&Ref::Snapshot(root.clone()))?;
    let real = source.resolve(from, Last::Follow).at("resolving", from)?;
    let Some(node) = source.node(&real).at("scanning", from)? else {
        let missing: Result<(), std::io::Error> = Err(std::io::ErrorKind::NotFound.into());
        return Ok(missing.at("copying", from)?);
    };
    std::fs::create_dir_all(to).at("creating", to)?;
    let target = RootDir::open(to)?;
    let rules =
        CopyRules { owner: None, mode: ModeChange::Keep, time: None, replace: true, keep_directories: false };
    let copier = Copier::new(source.root(), &target, source.owners(), &rules, cancel);
    let name =
        if node.is_dir() { PathBuf::new() } else { from.file_name().map(PathBuf::from).unwrap_or_default() };
    copier.copy(&node, &real, &name).map_err(crate::file::action::FileError::from)?;
    Ok(())
}

/// What has to live as long as a process over prepared mounts.
#[derive(Debug)]
pub(crate) struct HeldMounts {
    _guards: Vec<super::mounts::Mounted>,
    _agents: Vec<AgentSocket>,
    _caches: Vec<stave_store::MutableDir>,
    _layers: Vec<ActiveLayer>,
    _scratch: Vec<stave_store::ScratchDir>,
}

impl super::mounts::Prepared {
    /// The layer of the root, and everything else a process over it needs.
    pub(crate) fn into_held(self) -> (ActiveLayer, HeldMounts) {
        let written = self.written.into_iter().filter_map(|(_, written)| match written {
            super::mounts::Written::Layer(layer) => Some(layer),
            super::mounts::Written::Unchanged(_) => None,
        });
        let held = HeldMounts {
            _guards: self.guards,
            _agents: self.agents,
            _caches: self.caches,
            _layers: written.chain(self.discarded.into_iter().map(|(_, layer)| layer)).collect(),
            _scratch: self.scratch,
        };
        (self.root, held)
    }
}
