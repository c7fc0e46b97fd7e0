//! What failed builds left: kept beside their records for a while, entered again, or copied out of.
//!
//! ```text
//! <root>/builds/<id>/failed.json      a KeptStep: which step, and the snapshots of its inputs and of its root
//! <root>/builds/<id>/definition.pb    the definition, where the step's command, mounts and user are
//! ```
//!
//! Owns these files and how long what they name stays: [`KEEP_FOR`], and no more than [`KEEP_COUNT`] of them. Must not
//! know terminals. Start with [`Engine::enter`].

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use stave_llb::{Definition, Op};
use stave_oci::Digest;
use stave_sandbox::Stdio;
use stave_solver::SolveError;
use stave_store::{LayerId, Snapshot, Store};
use stave_worker::{
    Confinement, Enter, FailedStep, Namespace, Pins, Running, Secret, Session, SshAgent, StepError,
    StepNetwork,
};
use tokio_util::sync::CancellationToken;

use crate::Engine;
use crate::record::{BuildId, BuildRecord, BuildState, History, HistoryError, StepState};

/// How long a failed step's file system stays.
pub const KEEP_FOR: Duration = Duration::from_secs(24 * 60 * 60);
/// How many of them stay.
pub const KEEP_COUNT: usize = 3;

/// Bytes of the largest file read here.
const MAX_FILE: u64 = 64 << 20;

/// The file about the step.
const STEP_FILE: &str = "failed.json";
/// The file with the definition.
const DEFINITION_FILE: &str = "definition.pb";

/// A failed step as its file says it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct KeptStep {
    vertex: Digest,
    name: String,
    error: String,
    at: Timestamp,
    root: String,
    inputs: Vec<String>,
    /// What its build gave to steps that name no network.
    #[serde(default)]
    network: StepNetwork,
    /// The layer that the step itself left, to be removed with the file.
    own: Option<String>,
}

/// A failed step that can be entered.
#[derive(Debug, Clone)]
pub struct Failed {
    /// The build it was a step of; `None` for one of this process that just ended.
    pub build: Option<BuildId>,
    /// What progress called the step.
    pub name: String,
    /// Why it failed, in one line.
    pub error: String,
    /// The step.
    pub step: FailedStep,
}

/// What a step may use when it is entered: nothing of this kind is kept.
#[derive(Debug, Default)]
pub struct Means {
    /// Secrets by id.
    pub secrets: BTreeMap<String, Secret>,
    /// Agents by id.
    pub ssh: BTreeMap<String, SshAgent>,
    /// How far it may go.
    pub confinement: Confinement,
}

/// Why a failed step cannot be entered.
#[derive(Debug, thiserror::Error)]
pub enum FailedError {
    /// No such build.
    #[error(transparent)]
    History(#[from] HistoryError),
    /// No build of these failed in a step whose file system is kept.
    #[error("build `{0}` has no failed step whose file system is kept")]
    NotKept(BuildId),
    /// No build at all.
    #[error("no build failed that is known")]
    None,
    /// The latest build that failed left nothing; another one's step is nothing that was asked for.
    #[error("build `{build}` failed last, {place}: nothing of it is left to enter")]
    LatestLeftNothing {
        /// The build.
        build: BuildId,
        /// In which step, in words.
        place: String,
        /// The latest one that can be entered.
        earlier: Option<BuildId>,
    },
    /// What was kept cannot be read.
    #[error("what build `{0}` left cannot be read")]
    Damaged(BuildId),
    /// The step cannot be entered.
    #[error(transparent)]
    Step(#[from] StepError),
}

impl Engine {
    /// Keeps the failed step of a recorded build. That it cannot be kept is no second failure.
    pub(crate) fn keep_failed(&self, build: &BuildId, error: &SolveError, definition: &Definition) {
        let SolveError::Vertex { vertex, name, source } = error else { return };
        let Some(step) = self.worker.failed_step(&Namespace::Shared, vertex) else { return };
        let directory = self.store.builds_directory().join(build.as_str());
        let base = |input: &Snapshot| *input == step.root;
        let own = step.root.top().filter(|_| !step.inputs.iter().any(base));
        let kept = KeptStep {
            vertex: vertex.clone(),
            name: name.clone(),
            error: crate::event::one_line(source),
            at: Timestamp::now(),
            root: step.root.to_string(),
            inputs: step.inputs.iter().map(ToString::to_string).collect(),
            network: step.network,
            own: own.map(|layer| Snapshot::new(vec![layer]).to_string()),
        };
        let write = || -> std::io::Result<()> {
            std::fs::write(directory.join(DEFINITION_FILE), definition.to_wire())?;
            std::fs::write(directory.join(STEP_FILE), serde_json::to_vec(&kept)?)
        };
        if let Err(error) = write() {
            tracing::warn!(%error, "a failed step is not kept");
        }
        forget_old(&self.store);
    }

    /// The failed step of a build that just failed so, if it ran a process.
    pub fn failed_now(&self, error: &SolveError) -> Option<Failed> {
        let SolveError::Vertex { vertex, name, source } = error else { return None };
        let step = self.worker.failed_step(&Namespace::Shared, vertex)?;
        Some(Failed { build: None, name: name.clone(), error: crate::event::one_line(source), step })
    }

    /// The failed step of a build: of the one that `text` means, or of the latest that failed.
    ///
    /// # Errors
    /// [`FailedError`].
    pub fn failed(&self, text: Option<&str>) -> Result<Failed, FailedError> {
        let history = History::of(&self.store);
        if let Some(text) = text {
            return self.failed_of(&history.find(Some(text))?.id);
        }
        let is_kept = |id: &BuildId| self.store.builds_directory().join(id.as_str()).join(STEP_FILE).exists();
        let ids = history.ids()?;
        let mut latest = None;
        for id in &ids {
            // A build stays `running` while somebody looks into its failed step.
            if is_kept(id) {
                let Some(latest) = latest else { return self.failed_of(id) };
                return Err(left_nothing(latest, Some(id.clone())));
            }
            if latest.is_none() {
                latest = history.read(id).ok().filter(|record| record.state == BuildState::Failed);
            }
        }
        Err(latest.map_or(FailedError::None, |latest| left_nothing(latest, None)))
    }

    fn failed_of(&self, build: &BuildId) -> Result<Failed, FailedError> {
        let directory = self.store.builds_directory().join(build.as_str());
        let kept = read_step(&directory).ok_or_else(|| FailedError::NotKept(build.clone()))?;
        let damaged = || FailedError::Damaged(build.clone());
        let definition = read(&directory.join(DEFINITION_FILE)).ok_or_else(damaged)?;
        let definition = Definition::from_wire(&definition).map_err(|_| damaged())?;
        let op = match definition.vertex(&kept.vertex).map(|vertex| &vertex.op) {
            Some(Op::Exec(op)) => op.clone(),
            _ => return Err(damaged()),
        };
        let snapshot = |text: &String| text.parse::<Snapshot>().map_err(|_| damaged());
        let inputs = kept.inputs.iter().map(snapshot).collect::<Result<_, _>>()?;
        let step = FailedStep {
            vertex: kept.vertex,
            op,
            inputs,
            root: snapshot(&kept.root)?,
            mounts: BTreeMap::new(),
            network: kept.network,
        };
        Ok(Failed { build: Some(build.clone()), name: kept.name, error: kept.error, step })
    }

    /// Starts a process in what a failed step left.
    ///
    /// # Errors
    /// [`FailedError::Step`].
    pub async fn enter(
        &self,
        failed: &Failed,
        enter: Enter,
        means: Means,
        stdio: Stdio,
    ) -> Result<Running, FailedError> {
        let session = Arc::new(Session {
            context_modes: stave_worker::ContextModes::Kept,
            asks_for_tags: false,
            contexts: BTreeMap::new(),
            remote: None,
            layouts: BTreeMap::new(),
            ssh: means.ssh,
            known_hosts: None,
            pins: Pins::default(),
            secrets: means.secrets,
            registry: self.registry.clone(),
            resolved: BTreeMap::new(),
            // The network is the step's, as everything else of it is.
            confinement: Confinement { network: failed.step.network, ..means.confinement },
            namespace: stave_worker::Namespace::Shared,
            travel: None,
        });
        Ok(self.worker.enter(failed.step.clone(), enter, session, stdio).await?)
    }

    /// Copies a file or directory out of what a failed step left, into a directory of this machine.
    ///
    /// # Errors
    /// [`FailedError::Step`].
    pub async fn copy_failed(
        &self,
        failed: &Failed,
        from: &Path,
        to: &Path,
        cancel: &CancellationToken,
    ) -> Result<(), FailedError> {
        Ok(self.worker.copy_out(&failed.step.root, from, to, cancel).await?)
    }
}

fn left_nothing(latest: BuildRecord, earlier: Option<BuildId>) -> FailedError {
    let step = latest.steps.iter().find(|step| step.state == StepState::Failed);
    let place = match (step, latest.error) {
        (Some(step), _) => format!("in `{}`", step.name),
        (None, Some(error)) => format!("in no step ({error})"),
        (None, None) => "in no step".to_owned(),
    };
    FailedError::LatestLeftNothing { build: latest.id, place, earlier }
}

fn read(path: &Path) -> Option<Vec<u8>> {
    use std::io::Read as _;
    let mut bytes = Vec::new();
    std::fs::File::open(path).ok()?.take(MAX_FILE).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

fn read_step(directory: &Path) -> Option<KeptStep> {
    serde_json::from_slice(&read(&directory.join(STEP_FILE))?).ok()
}

/// Lets go of what is older than [`KEEP_FOR`], and of the oldest beyond [`KEEP_COUNT`].
pub(crate) fn forget_old(store: &Store) {
    let ids = History::of(store).ids().unwrap_or_default();
    let directories = ids.iter().map(|id| store.builds_directory().join(id.as_str()));
    let kept: Vec<(PathBuf, KeptStep)> =
        directories.filter_map(|directory| Some((directory.clone(), read_step(&directory)?))).collect();
    let now = Timestamp::now();
    // The newest come first.
    for (place, (directory, step)) in kept.into_iter().enumerate() {
        let age = now.duration_since(step.at).unsigned_abs();
        if place < KEEP_COUNT && age < KEEP_FOR {
            continue;
        }
        for file in [STEP_FILE, DEFINITION_FILE] {
            drop(std::fs::remove_file(directory.join(file)));
        }
        let layers: Option<Snapshot> = step.own.and_then(|own| own.parse().ok());
        let layers: Vec<LayerId> = layers.iter().flat_map(Snapshot::layers).copied().collect();
        if let Err(error) = store.discard(&layers) {
            tracing::warn!(error = &error as &dyn std::error::Error, "a failed step's layer stays");
        }
    }
}
