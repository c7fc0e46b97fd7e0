//! Where the time of a build went.
//!
//! Owns the spans of one build, made from its events as they pass, the longest chain of them that the end
//! waited for ([`CriticalPath`]), and their form as a trace. Must not know who shows them. Start with
//! [`Timeline`].

mod path;
mod trace;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use stave_llb::Definition;
use stave_oci::Digest;
use stave_solver::{SolveEvent, StepPhase};

use crate::event::{EngineEvent, Observer, StepId};
use crate::names::without_credentials;
use crate::record::{BuildRecord, StepRecord};

pub use path::{CriticalPath, PathEntry};

/// Most spans that are kept; those after are counted as time between steps.
const MAX_SPANS: usize = 100_000;

/// What a span belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Subject {
    /// A step outside of the graph, such as an export.
    Step(StepId),
    /// A vertex of the graph.
    Vertex(Digest),
}

/// A stretch of time in which one thing was done.
#[derive(Debug, Clone, PartialEq)]
pub struct Span {
    /// What was done.
    pub subject: Subject,
    /// What it is called.
    pub name: String,
    /// From the begin of the build.
    pub start: Duration,
    /// From the begin of the build; not before `start`.
    pub end: Duration,
    /// Stretches of a vertex that ran a process, in their order.
    pub phases: Vec<(StepPhase, Duration)>,
    /// Processor time of its process, as far as it is known.
    pub cpu: Duration,
    /// Most memory of its process in bytes; 0 when it is not known.
    pub memory: u64,
}

impl Span {
    /// How long it took.
    pub fn length(&self) -> Duration {
        self.end.saturating_sub(self.start)
    }
}

/// Collects the spans of one build.
#[derive(Debug, Clone)]
pub struct Timeline(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    begin: Instant,
    begin_time: SystemTime,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    spans: Vec<Span>,
    /// Where the spans of what has not ended are.
    running: HashMap<Subject, usize>,
    names: HashMap<Digest, String>,
    inputs: HashMap<Digest, Vec<Digest>>,
}

impl Default for Timeline {
    fn default() -> Self {
        Self::begin()
    }
}

impl Timeline {
    /// The build begins now.
    pub fn begin() -> Self {
        let (begin, begin_time) = (Instant::now(), SystemTime::now());
        Self(Arc::new(Inner { begin, begin_time, state: Mutex::default() }))
    }

    /// Notes every event and passes it on.
    #[must_use]
    pub fn observer(&self, next: Observer) -> Observer {
        let timeline = self.clone();
        Observer::new(move |event| {
            timeline.note(&event);
            next.send(event);
        })
    }

    /// Time since the begin.
    pub fn elapsed(&self) -> Duration {
        self.0.begin.elapsed()
    }

    /// What the end of the build waited for.
    pub fn critical_path(&self) -> CriticalPath {
        let state = self.lock();
        CriticalPath::of(&state.spans, &state.inputs, self.elapsed())
    }

    /// The spans as a trace in the JSON form that Chrome and Perfetto read.
    pub fn trace(&self) -> String {
        trace::chrome(&self.lock().spans)
    }

    /// A build that was recorded, in the same form; what a step did in its time is not known any more.
    pub fn trace_of(record: &BuildRecord) -> String {
        let span = |step: &StepRecord| {
            let (start, end) = step.started.zip(step.ended)?;
            Some(Span {
                subject: match &step.vertex {
                    Some(vertex) => Subject::Vertex(vertex.clone()),
                    None => Subject::Step(StepId(step.number as u64)),
                },
                name: step.name.clone(),
                start: Duration::from_micros(start),
                end: Duration::from_micros(end.max(start)),
                phases: Vec::new(),
                cpu: Duration::ZERO,
                memory: step.peak_memory.unwrap_or(0),
            })
        };
        trace::chrome(&record.steps.iter().filter_map(span).collect::<Vec<_>>())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, event: &EngineEvent) {
        let now = self.elapsed();
        let mut state = self.lock();
        match event {
            EngineEvent::StepStarted { step, name } => state.start(Subject::Step(*step), name.clone(), now),
            EngineEvent::StepCompleted { step, .. } | EngineEvent::StepFailed { step, .. } => {
                state.end(&Subject::Step(*step), now);
            }
            EngineEvent::Graph(definition) => state.learn(definition),
            EngineEvent::Solve(event) => {
                let since = |at: &SystemTime| at.duration_since(self.0.begin_time).unwrap_or_default();
                state.solve(event, now, since);
            }
            _ => {}
        }
    }
}

impl State {
    fn learn(&mut self, definition: &Definition) {
        for vertex in definition.vertices() {
            let name = vertex
                .name()
                .map_or_else(|| vertex.digest.to_string(), |name| without_credentials(name).into_owned());
            self.names.insert(vertex.digest.clone(), name);
            let inputs = vertex.inputs.iter().map(|edge| edge.vertex.clone()).collect();
            self.inputs.insert(vertex.digest.clone(), inputs);
        }
    }

    fn solve(&mut self, event: &SolveEvent, now: Duration, since: impl Fn(&SystemTime) -> Duration) {
        let subject = Subject::Vertex(event.vertex().clone());
        match event {
            SolveEvent::Started { vertex, at } => {
                let name = self.names.get(vertex).cloned().unwrap_or_else(|| vertex.to_string());
                self.start(subject, name, since(at));
            }
            SolveEvent::Phase { phase, duration, .. } => {
                if let Some(span) = self.span(&subject) {
                    span.phases.push((*phase, *duration));
                }
            }
            SolveEvent::Used { usage, .. } => {
                if let Some(span) = self.span(&subject) {
                    span.cpu += usage.cpu_time;
                    span.memory = span.memory.max(usage.peak_memory);
                }
            }
            SolveEvent::Completed { duration, .. } | SolveEvent::Failed { duration, .. } => {
                let start = self.span(&subject).map(|span| span.start);
                self.end(&subject, start.map_or(now, |start| start + *duration));
            }
            SolveEvent::Cancelled { .. } => self.end(&subject, now),
            _ => {}
        }
    }

    fn span(&mut self, subject: &Subject) -> Option<&mut Span> {
        let index = *self.running.get(subject)?;
        self.spans.get_mut(index)
    }

    fn start(&mut self, subject: Subject, name: String, start: Duration) {
        if self.spans.len() == MAX_SPANS {
            return;
        }
        self.running.insert(subject.clone(), self.spans.len());
        let (phases, cpu, memory) = (Vec::new(), Duration::ZERO, 0);
        self.spans.push(Span { subject, name, start, end: start, phases, cpu, memory });
    }

    fn end(&mut self, subject: &Subject, end: Duration) {
        if let Some(span) = self.span(subject) {
            span.end = end.max(span.start);
        }
        self.running.remove(subject);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vertex(name: &str) -> Digest {
        Digest::sha256(name.as_bytes())
    }

    #[test]
    fn spans_come_from_events() {
        let mut state = State::default();
        let digest = vertex("one");
        state.names.insert(digest.clone(), "RUN one".to_owned());
        let second = Duration::from_secs(1);
        let since = |_: &SystemTime| second;
        let events = [
            SolveEvent::Started { vertex: digest.clone(), at: SystemTime::UNIX_EPOCH },
            SolveEvent::Phase { vertex: digest.clone(), phase: StepPhase::Process, duration: second },
            SolveEvent::Completed { vertex: digest.clone(), duration: 2 * second },
            // Late news of what has ended changes nothing.
            SolveEvent::Phase { vertex: digest.clone(), phase: StepPhase::Committing, duration: second },
        ];
        for event in &events {
            state.solve(event, 9 * second, since);
        }
        let [span] = state.spans.as_slice() else { panic!("{:?}", state.spans) };
        assert_eq!((span.name.as_str(), span.start, span.end), ("RUN one", second, 3 * second));
        assert_eq!(span.phases, [(StepPhase::Process, second)]);
        assert!(state.running.is_empty());
    }
}
