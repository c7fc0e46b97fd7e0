//! Writes the record of a build while it runs.
//!
//! Owns the record in memory and its directory. A build does not fail because its record cannot be written.
//! Numbers steps as progress does: by their first event. Start with [`Recorder`].

mod state;

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use jiff::Timestamp;
use stave_exporter::ExportTarget;
use stave_frontend_dockerfile::ContextSource;
use stave_oci::{Digest, Reference};
use stave_solver::LogTap;
use stave_store::Store;

use self::state::{Files, Key, State};
use super::history::{History, HistoryError, Retention, has_grown, record_path};
use super::log::LogWriter;
use super::{BuildId, BuildRecord, BuildState, DockerfileRecord, RECORD_FORMAT, StepRecord, StepState};
use crate::build::BuildError;
use crate::event::{EngineEvent, Observer, one_line};
use crate::names::without_credentials;
use crate::request::{BuildOutcome, BuildRequest};

/// Steps of a record that is small.
const FEW_STEPS: usize = 200;
/// Steps of one record. A larger graph's later steps are built but not recorded.
const MAX_STEPS: usize = 20_000;

/// What is known of a build when it begins.
#[derive(Debug, Clone)]
pub struct Beginning {
    /// The Dockerfile's name.
    pub dockerfile: String,
    /// The Dockerfile's text.
    pub text: String,
    /// The context.
    pub context: String,
    /// The stage.
    pub target: Option<String>,
    /// Names of the image.
    pub tags: Vec<String>,
    /// What it builds for.
    pub platforms: Vec<String>,
}

/// How a build ended.
#[derive(Debug, Clone)]
pub struct Ending {
    /// As what.
    pub state: BuildState,
    /// Why it failed, in one line.
    pub error: Option<String>,
    /// Ids of its images.
    pub images: Vec<Digest>,
}

impl Beginning {
    /// What a request says of it.
    pub(crate) fn of(request: &BuildRequest) -> Self {
        let tags = request.exports.iter().flat_map(names).map(ToString::to_string).collect();
        Self {
            dockerfile: request.dockerfile.name.clone(),
            text: request.dockerfile.text.clone(),
            context: context_name(request),
            target: request.plan.target.clone(),
            tags,
            platforms: request
                .plan
                .for_platforms(&request.platforms)
                .iter()
                .map(|plan| plan.platform().to_string())
                .collect(),
        }
    }
}

/// The context as its user named it, without credentials.
fn context_name(request: &BuildRequest) -> String {
    match &request.plan.context {
        ContextSource::Git(text) | ContextSource::Archive(text) | ContextSource::File(text) => {
            without_credentials(text).into_owned()
        }
        ContextSource::Local | ContextSource::Graph(_) => request.context.display().to_string(),
    }
}

fn names(target: &ExportTarget) -> &[Reference] {
    match target {
        ExportTarget::Image(target) => &target.names,
        ExportTarget::Oci(target) | ExportTarget::Docker(target) => &target.names,
        ExportTarget::Engine(target) => &target.names,
        ExportTarget::Local { .. } | ExportTarget::Tar { .. } | ExportTarget::CacheOnly => &[],
    }
}

impl Ending {
    /// What an outcome says of it.
    pub(crate) fn of(outcome: &Result<BuildOutcome, BuildError>) -> Self {
        match outcome {
            Ok(outcome) => Self {
                state: BuildState::Succeeded,
                error: None,
                images: outcome.image.iter().cloned().collect(),
            },
            Err(error) => {
                let cancelled =
                    matches!(error, BuildError::Solve { error: stave_solver::SolveError::Cancelled, .. });
                let state = if cancelled { BuildState::Cancelled } else { BuildState::Failed };
                Self { state, error: Some(one_line(error)), images: Vec::new() }
            }
        }
    }
}

/// Which builds are of the same Dockerfile and context.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    id: BuildId,
    dockerfile: String,
    context: String,
}

impl Identity {
    /// Whether a record is of the same thing and not of this build.
    pub(crate) fn is_earlier(&self, record: &BuildRecord) -> bool {
        record.id != self.id && record.dockerfile.name == self.dockerfile && record.context == self.context
    }
}

/// The record of one build in the making. Clones write the same one.
#[derive(Debug, Clone)]
pub struct Recorder {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    start: Instant,
    id: BuildId,
    state: Mutex<State>,
}

impl std::fmt::Debug for LogWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LogWriter").field("written", &self.written).finish_non_exhaustive()
    }
}

impl Recorder {
    /// Begins a record in `store`, and lets old ones go beside the build once they are too many.
    pub fn begin(store: &Store, beginning: Beginning) -> Self {
        Self::start(store, beginning, |history| history.prune_if_due(&Retention::default()))
    }

    /// The same, with `keep` saying which old ones stay, to the letter.
    pub fn begin_keeping(store: &Store, beginning: Beginning, keep: Retention) -> Self {
        Self::start(store, beginning, move |history| history.prune(&keep))
    }

    fn start(
        store: &Store,
        beginning: Beginning,
        prune: impl FnOnce(&History) -> Result<usize, HistoryError> + Send + 'static,
    ) -> Self {
        let started_at = Timestamp::now();
        let mut salt = [0; 2];
        if rustix::rand::getrandom(&mut salt, rustix::rand::GetRandomFlags::empty()).is_err() {
            salt = (std::process::id() as u16).to_le_bytes();
        }
        let id = BuildId::new(started_at, u16::from_le_bytes(salt));
        let Beginning { dockerfile, text, context, target, tags, platforms } = beginning;
        let dockerfile = DockerfileRecord { name: dockerfile, digest: Digest::sha256(text.as_bytes()) };
        let record = BuildRecord {
            format: RECORD_FORMAT,
            id: id.clone(),
            state: BuildState::Running,
            started_at,
            ended_at: None,
            dockerfile,
            context,
            target,
            tags,
            platforms,
            images: Vec::new(),
            steps: Vec::new(),
            error: None,
        };
        let files = open(store, &record).unwrap_or_else(|error| {
            tracing::warn!(%error, "the build is not recorded");
            Files::None
        });
        let history = History::of(store);
        let pruning = move || {
            if let Err(error) = prune(&history) {
                tracing::debug!(%error, "old build records stay");
            }
        };
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(pruning)),
            Err(_) => pruning(),
        }
        let state = State {
            record,
            files,
            places: HashMap::new(),
            vertices: HashMap::new(),
            logs: HashMap::new(),
            has_grown: false,
        };
        Self { shared: Arc::new(Shared { start: Instant::now(), id, state: Mutex::new(state) }) }
    }

    /// The build's name.
    pub fn id(&self) -> &BuildId {
        &self.shared.id
    }

    /// Takes down the Dockerfile, for a build that begins before it is read.
    pub fn read_dockerfile(&self, name: &str, text: &str) {
        let dockerfile = DockerfileRecord { name: name.to_owned(), digest: Digest::sha256(text.as_bytes()) };
        self.lock().record.dockerfile = dockerfile;
    }

    /// An observer that records what it passes on to `next`.
    pub fn observer(&self, next: Observer) -> Observer {
        let this = self.clone();
        Observer::new(move |event| {
            this.event(&event);
            next.send(event);
        })
    }

    /// What keeps the steps' whole logs.
    pub fn tap(&self) -> LogTap {
        let this = self.clone();
        LogTap::new(move |vertex, stream, bytes| {
            let at = this.now();
            this.lock().log(vertex, at, stream, bytes);
        })
    }

    /// What tells builds of the same thing from others.
    pub(crate) fn identity(&self) -> Identity {
        let state = self.lock();
        let BuildRecord { id, dockerfile, context, .. } = &state.record;
        Identity { id: id.clone(), dockerfile: dockerfile.name.clone(), context: context.clone() }
    }

    /// Notes which secrets a step saw, by their fingerprints.
    pub(crate) fn saw_secrets(&self, vertex: &Digest, secrets: BTreeMap<String, String>) {
        let now = self.now();
        if let Some(step) = self.lock().vertex(vertex, now) {
            step.secrets = secrets;
        }
    }

    /// The steps so far.
    pub(crate) fn steps(&self) -> Vec<StepRecord> {
        self.lock().record.steps.clone()
    }

    /// Writes the whole record.
    pub fn finish(&self, ending: Ending) {
        let end = self.now();
        let mut state = self.lock();
        let vertices: Vec<Digest> = state.logs.keys().cloned().collect();
        for vertex in vertices {
            state.end_log(&vertex);
        }
        let record = &mut state.record;
        (record.state, record.error, record.images) = (ending.state, ending.error, ending.images);
        record.ended_at = Some(Timestamp::now());
        for step in record.steps.iter_mut().filter(|step| step.state == StepState::Running) {
            (step.state, step.ended) = (StepState::Cancelled, Some(end));
        }
        if let Files::Open { directory, .. } = &state.files {
            if let Err(error) = write(directory, &state.record) {
                tracing::warn!(%error, "the build's record is not whole");
            }
            if state.record.steps.len() > FEW_STEPS && !state.has_grown {
                has_grown(directory);
            }
        }
        state.files = Files::None;
    }

    fn event(&self, event: &EngineEvent) {
        let now = self.now();
        let mut state = self.lock();
        match event {
            EngineEvent::Graph(definition) => state.learn(definition),
            EngineEvent::Solve(event) => state.solve(event, now),
            EngineEvent::StepStarted { step, name } => {
                if let Some(step) = state.place(Key::Step(step.0), now, name) {
                    step.started = Some(now);
                }
            }
            EngineEvent::StepCompleted { step, .. } => state.end(&Key::Step(step.0), StepState::Ran, now),
            EngineEvent::StepFailed { step, message, .. } => {
                state.end(&Key::Step(step.0), StepState::Failed, now);
                state.fail(&Key::Step(step.0), message);
            }
            EngineEvent::Miss { vertex, reason } => {
                if let Some(step) = state.vertex(vertex, now) {
                    step.reason = Some((**reason).clone());
                }
            }
            EngineEvent::Named { .. }
            | EngineEvent::Note { .. }
            | EngineEvent::StepProgress { .. }
            | EngineEvent::StepPart { .. }
            | EngineEvent::Warning(_) => {}
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.shared.start.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes the directory and the first, small record, locked for as long as the build runs.
fn open(store: &Store, record: &BuildRecord) -> io::Result<Files> {
    let directory = store.builds_directory().join(record.id.as_str());
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory)?;
    let mut file = File::create_new(record_path(&directory))?;
    file.lock()?;
    // In one write: a build pays for each.
    file.write_all(&serde_json::to_vec(record)?)?;
    Ok(Files::Open { directory, _lock: file })
}

/// Replaces the record. A power cut may leave the small one; a kill leaves either.
fn write(directory: &std::path::Path, record: &BuildRecord) -> io::Result<()> {
    let aside = directory.join("record.json.new");
    let mut file = io::BufWriter::new(File::create(&aside)?);
    serde_json::to_writer(&mut file, record)?;
    file.flush()?;
    fs::rename(&aside, record_path(directory))
}
