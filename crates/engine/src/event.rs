//! What an engine operation tells whoever watches it.
//!
//! Owns the events outside of the build graph (loading, resolving, exporting) and the one stream that
//! carries them beside the solver's. Must not know who renders them; a build is right with nobody
//! listening. Start with [`EngineEvent`].

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use stave_exporter::{ExportEvent, ExportEvents};
use stave_frontend_dockerfile::Diagnostic;
use stave_llb::Definition;
use stave_oci::Digest;
use stave_solver::{EventReceiver, EventSender, SolveEvent, event_channel, event_channel_with};
use stave_worker::{KnownSecrets, Session};

use crate::Engine;
use crate::explain::{Explainer, Reason, SecretWatch};
use crate::record::{History, Recorder};

/// Names one step outside of the graph, within one engine operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StepId(pub u64);

/// One thing that happened.
#[derive(Debug, Clone)]
pub enum EngineEvent {
    /// A step outside of the graph began.
    StepStarted {
        /// Which.
        step: StepId,
        /// What it is called, such as `[internal] load build definition from Dockerfile`.
        name: String,
    },
    /// A part of a step moved on.
    StepProgress {
        /// Which.
        step: StepId,
        /// Which part, such as a layer's digest.
        id: String,
        /// Bytes done.
        current: u64,
        /// Out of how many, when known.
        total: Option<u64>,
    },
    /// A part of a step is over; parts are shown as lines of the step.
    StepPart {
        /// Which.
        step: StepId,
        /// What was done, such as `naming to docker.io/library/app:1.0`.
        text: String,
    },
    /// A step ended well.
    StepCompleted {
        /// Which.
        step: StepId,
        /// From its start.
        duration: Duration,
    },
    /// A step failed.
    StepFailed {
        /// Which.
        step: StepId,
        /// From its start.
        duration: Duration,
        /// Why, in one line.
        message: String,
    },
    /// The graph whose vertices the following [`EngineEvent::Solve`]s are about.
    Graph(Arc<Definition>),
    /// What a vertex is called, of a graph that is elsewhere.
    Named {
        /// The vertex.
        vertex: Digest,
        /// In one line.
        name: String,
    },
    /// Something happened to a vertex.
    Solve(SolveEvent),
    /// Why a vertex was not found in the cache. Comes soon after its `Missed`, in rare cases after its end.
    Miss {
        /// The vertex.
        vertex: Digest,
        /// Why.
        reason: Arc<Reason>,
    },
    /// Something to be said of a vertex that it does not say itself.
    Note {
        /// The vertex.
        vertex: Digest,
        /// In one line.
        text: String,
    },
    /// A build check found something.
    Warning(Diagnostic),
}

/// An error and its causes in one line; a cause that only repeats the text before it is left out.
pub fn one_line(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    for words in causes.map(ToString::to_string) {
        if !text.contains(&words) {
            text = format!("{text}: {words}");
        }
    }
    text
}

/// Where events go. Called from any thread; must not block.
#[derive(Clone)]
pub struct Observer(Arc<dyn Fn(EngineEvent) + Send + Sync>);

impl Observer {
    /// Events go to `receive`.
    pub fn new(receive: impl Fn(EngineEvent) + Send + Sync + 'static) -> Self {
        Self(Arc::new(receive))
    }

    /// Nobody listens.
    pub fn ignored() -> Self {
        Self::new(drop)
    }

    /// Hands an event over.
    pub fn send(&self, event: EngineEvent) {
        (self.0)(event);
    }
}

impl fmt::Debug for Observer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Observer")
    }
}

/// Numbers and announces the steps of one operation.
#[derive(Debug, Clone)]
pub(crate) struct Steps {
    observer: Observer,
    next: Arc<AtomicU64>,
    recorder: Option<Recorder>,
}

/// A step that has been announced; say how it ended with [`Step::end`]. Dropped without, it failed by
/// being given up.
#[derive(Debug)]
pub(crate) struct Step {
    observer: Observer,
    id: StepId,
    start: Instant,
    ended: bool,
}

impl Steps {
    pub(crate) fn new(observer: Observer) -> Self {
        Self { observer, next: Arc::new(AtomicU64::new(0)), recorder: None }
    }

    /// The same, with everything recorded on its way.
    pub(crate) fn recorded(observer: Observer, recorder: Recorder) -> Self {
        Self { recorder: Some(recorder.clone()), ..Self::new(recorder.observer(observer)) }
    }

    /// The same, as a part of a record that hears of events by another way.
    pub(crate) fn kept_by(self, recorder: Recorder) -> Self {
        Self { recorder: Some(recorder), ..self }
    }

    /// The record this is a part of.
    pub(crate) fn build(&self) -> Option<&crate::record::BuildId> {
        self.recorder.as_ref().map(Recorder::id)
    }

    /// A channel for the solver's events.
    pub(crate) fn channel(&self) -> (EventSender, EventReceiver) {
        match &self.recorder {
            Some(recorder) => event_channel_with(recorder.tap()),
            None => event_channel(),
        }
    }

    /// What tells of hits whose secrets changed; nothing does in a build without secrets.
    pub(crate) fn secret_watch(
        &self,
        engine: &Engine,
        definition: &Definition,
        session: &Session,
    ) -> Option<SecretWatch> {
        SecretWatch::new(&engine.store, self.recorder.clone()?, definition, session)
    }

    /// What explains the misses of a graph; nothing does when nothing is recorded.
    pub(crate) fn explainer(
        &self,
        engine: &Engine,
        definition: &Arc<Definition>,
        session: &Session,
    ) -> Option<Explainer> {
        let (recorder, namespace) = (self.recorder.clone()?, &session.namespace);
        let index = engine.solvers.index_of(namespace);
        let history = History::of(&engine.store).within(namespace);
        let manifests = engine.store.manifest_directory();
        let explainer = Explainer::new(history, manifests, index, recorder, Arc::clone(definition));
        Some(explainer.hiding(KnownSecrets::of(session)))
    }

    pub(crate) fn observer(&self) -> &Observer {
        &self.observer
    }

    pub(crate) fn start(&self, name: impl Into<String>) -> Step {
        let id = StepId(self.next.fetch_add(1, Ordering::Relaxed));
        self.observer.send(EngineEvent::StepStarted { step: id, name: name.into() });
        Step { observer: self.observer.clone(), id, start: Instant::now(), ended: false }
    }

    /// The exporter's events as parts of one step.
    pub(crate) fn export_events(&self, step: &Step) -> ExportEvents {
        let (observer, id) = (self.observer.clone(), step.id);
        ExportEvents::new(move |event| {
            let event = match event {
                ExportEvent::Started(_) => return,
                ExportEvent::Progress { step, current, total } => {
                    EngineEvent::StepProgress { step: id, id: step.to_string(), current, total }
                }
                ExportEvent::Done(part) => EngineEvent::StepPart { step: id, text: part.to_string() },
            };
            observer.send(event);
        })
    }
}

impl Step {
    /// Its number.
    pub(crate) fn id(&self) -> StepId {
        self.id
    }

    /// A line of the step.
    pub(crate) fn part(&self, text: impl Into<String>) {
        self.observer.send(EngineEvent::StepPart { step: self.id, text: text.into() });
    }

    /// Announces the end that `result` is, and gives it back.
    pub(crate) fn end<T, E: std::error::Error + 'static>(mut self, result: Result<T, E>) -> Result<T, E> {
        self.ended = true;
        let duration = self.start.elapsed();
        self.observer.send(match &result {
            Ok(_) => EngineEvent::StepCompleted { step: self.id, duration },
            Err(error) => EngineEvent::StepFailed { step: self.id, duration, message: one_line(error) },
        });
        result
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        if !self.ended {
            let (duration, message) = (self.start.elapsed(), "cancelled".to_owned());
            self.observer.send(EngineEvent::StepFailed { step: self.id, duration, message });
        }
    }
}
