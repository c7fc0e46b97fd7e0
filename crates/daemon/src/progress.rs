//! What clients see of a build while it runs: vertexes, their parts, their output, warnings.
//!
//! Owns the journal of one build: a list that only grows, read by any number of clients at their own pace, each from
//! the start. It is bounded: past [`MAX_LOG`] output is dropped, and says so. Must not know gRPC.
//! Start with [`Journal`].

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use bollard_buildkit_proto::google::protobuf::Timestamp;
use bollard_buildkit_proto::moby::buildkit::v1::{
    StatusResponse, Vertex, VertexLog, VertexStatus, VertexWarning,
};
use bollard_buildkit_proto::pb;
use prost::Message as _;
use stave_engine::record::Recorder;
use stave_engine::{EngineEvent, Observer, StepId};
use stave_frontend_dockerfile::{Diagnostic, Source};
use stave_llb::{Definition, Op};
use stave_oci::Digest;
use stave_solver::{LogStream, SolveEvent};
use tokio::sync::watch;

/// Most bytes of memory that output and warnings of one build take.
const MAX_LOG: usize = 64 << 20;
/// Bytes of memory that an entry takes beside what it says.
const ENTRY: usize = 256;
/// Most entries of one build's journal that are no ends of vertexes.
const MAX_ENTRIES: usize = 500_000;
/// Most parts of one vertex that are open at a time.
const MAX_PARTS: usize = 1000;
/// Most bytes of one message to a client.
const MAX_BATCH: usize = 1 << 20;

/// What happened in one build so far.
#[derive(Debug)]
pub(crate) struct Journal {
    build: String,
    scopes: AtomicU64,
    /// The engine's record, as long as the build runs.
    record: Mutex<Option<Observer>>,
    state: Mutex<State>,
    changed: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct State {
    entries: Vec<Arc<StatusResponse>>,
    log_bytes: usize,
    is_over: bool,
    vertexes: HashMap<String, Vertex>,
    /// Parts that are not over, by vertex.
    parts: HashMap<String, Vec<VertexStatus>>,
    clipped: HashSet<String>,
}

/// How many of a build's vertexes are how far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sums {
    pub(crate) total: i32,
    pub(crate) completed: i32,
    pub(crate) cached: i32,
    pub(crate) warnings: i32,
}

/// A reader's place in a journal.
#[derive(Debug)]
pub(crate) struct Reader {
    journal: Arc<Journal>,
    at: usize,
    changed: watch::Receiver<()>,
}

/// A step of the daemon itself. Dropped before its end, it failed by being given up.
#[derive(Debug)]
pub(crate) struct Step {
    journal: Arc<Journal>,
    scope: u64,
    digest: String,
    is_over: bool,
}

/// The Dockerfile that warnings are about.
#[derive(Debug, Clone)]
pub(crate) struct WarningSource {
    pub(crate) source: Source,
    /// The vertex that loaded it.
    pub(crate) vertex: String,
}

impl Journal {
    pub(crate) fn new(build: &str, recorder: Option<&Recorder>) -> Arc<Self> {
        let record = recorder.map(|recorder| recorder.observer(Observer::ignored()));
        Arc::new(Self {
            build: build.to_owned(),
            record: Mutex::new(record),
            scopes: AtomicU64::new(0),
            state: Mutex::default(),
            changed: watch::Sender::new(()),
        })
    }

    /// Takes down what one part of the build tells.
    pub(crate) fn observer(self: &Arc<Self>, about: Option<WarningSource>) -> Observer {
        let journal = Arc::clone(self);
        let scope = self.scopes.fetch_add(1, Ordering::Relaxed);
        Observer::new(move |event| journal.take(scope, about.as_ref(), event))
    }

    /// Begins a step.
    pub(crate) fn begin(self: &Arc<Self>, name: String) -> Step {
        let scope = self.scopes.fetch_add(1, Ordering::Relaxed);
        let digest = Digest::sha256(format!("{}:{scope}:", self.build).as_bytes()).to_string();
        let started = Some(timestamp(SystemTime::now()));
        self.record(EngineEvent::StepStarted { step: StepId(scope << 32), name: name.clone() });
        self.lock().vertex(Vertex { digest: digest.clone(), name, started, ..Vertex::default() });
        self.changed.send_replace(());
        Step { journal: Arc::clone(self), scope, digest, is_over: false }
    }

    /// A reader that begins at the beginning.
    pub(crate) fn reader(self: &Arc<Self>) -> Reader {
        Reader { journal: Arc::clone(self), at: 0, changed: self.changed.subscribe() }
    }

    /// All that was told so far.
    pub(crate) fn entries(&self) -> Vec<Arc<StatusResponse>> {
        self.lock().entries.clone()
    }

    /// All vertexes as they are now, in the order of their digests.
    pub(crate) fn vertexes(&self) -> Vec<Vertex> {
        let mut all: Vec<Vertex> = self.lock().vertexes.values().cloned().collect();
        all.sort_by(|a, b| a.digest.cmp(&b.digest));
        all
    }

    /// What there was of what.
    pub(crate) fn sums(&self) -> Sums {
        let state = self.lock();
        let count = |is: fn(&Vertex) -> bool| {
            i32::try_from(state.vertexes.values().filter(|vertex| is(vertex)).count()).unwrap_or(i32::MAX)
        };
        let warnings = state.entries.iter().map(|entry| entry.warnings.len()).sum::<usize>();
        Sums {
            total: count(|_| true),
            completed: count(|vertex| vertex.completed.is_some()),
            cached: count(|vertex| vertex.cached),
            warnings: i32::try_from(warnings).unwrap_or(i32::MAX),
        }
    }

    fn record(&self, event: EngineEvent) {
        let record = self.record.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(record) = record {
            record.send(event);
        }
    }

    /// Nothing more will come.
    pub(crate) fn finish(&self) {
        drop(self.record.lock().unwrap_or_else(PoisonError::into_inner).take());
        self.lock().is_over = true;
        self.changed.send_replace(());
    }

    /// A warning that a client's front end has.
    pub(crate) fn warn(&self, warning: VertexWarning) {
        self.lock().warn(warning);
        self.changed.send_replace(());
    }

    /// About how many bytes of memory it takes.
    pub(crate) fn size(&self) -> usize {
        let state = self.lock();
        state.log_bytes + (state.entries.len() + state.vertexes.len()) * ENTRY
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, scope: u64, about: Option<&WarningSource>, event: EngineEvent) {
        self.record(scoped(scope, &event));
        let now = timestamp(SystemTime::now());
        let step = |id: u64| Digest::sha256(format!("{}:{scope}:{id}", self.build).as_bytes()).to_string();
        let mut state = self.lock();
        match event {
            EngineEvent::StepStarted { step: id, name } => {
                state.vertex(Vertex { digest: step(id.0), name, started: Some(now), ..Vertex::default() });
            }
            EngineEvent::StepProgress { step: id, id: part, current, total } => {
                state.part(step(id.0), part, (current, total), now);
            }
            EngineEvent::StepPart { step: id, text } => {
                state.part_done(step(id.0), text, now);
            }
            EngineEvent::StepCompleted { step: id, .. } => state.end(&step(id.0), now, String::new()),
            EngineEvent::StepFailed { step: id, message, .. } => state.end(&step(id.0), now, message),
            EngineEvent::Graph(definition) => state.graph(&definition),
            EngineEvent::Solve(event) => state.solve(event, now),
            EngineEvent::Warning(found) => {
                if let Some(about) = about {
                    state.warn(warning(&found, about));
                }
            }
            EngineEvent::Named { .. } | EngineEvent::Miss { .. } | EngineEvent::Note { .. } => {}
        }
        drop(state);
        self.changed.send_replace(());
    }
}

impl State {
    fn push(&mut self, entry: StatusResponse) {
        self.entries.push(Arc::new(entry));
    }

    fn push_optional(&mut self, entry: StatusResponse) {
        if self.entries.len() < MAX_ENTRIES {
            self.push(entry);
        }
    }

    /// Clients may have any number of warnings, of any length: what is too much is not told.
    fn warn(&mut self, warning: VertexWarning) {
        let size = warning.encoded_len() + ENTRY;
        if self.log_bytes + size <= MAX_LOG {
            self.log_bytes += size;
            self.push_optional(StatusResponse { warnings: vec![warning], ..StatusResponse::default() });
        }
    }

    fn vertex(&mut self, vertex: Vertex) {
        self.vertexes.insert(vertex.digest.clone(), vertex.clone());
        self.push(StatusResponse { vertexes: vec![vertex], ..StatusResponse::default() });
    }

    /// Changes a vertex that is not over yet. Its start never changes once it was told.
    fn change(&mut self, digest: &str, change: impl FnOnce(&mut Vertex)) {
        let Some(vertex) = self.vertexes.get(digest) else { return };
        if vertex.completed.is_some() {
            return;
        }
        let mut vertex = vertex.clone();
        change(&mut vertex);
        self.vertex(vertex);
    }

    fn end(&mut self, digest: &str, now: Timestamp, error: String) {
        // Clients take a vertex with an open part for one that goes on.
        for mut part in self.parts.remove(digest).unwrap_or_default() {
            (part.timestamp, part.completed) = (Some(now), Some(now));
            self.push(StatusResponse { statuses: vec![part], ..StatusResponse::default() });
        }
        self.change(digest, |vertex| {
            vertex.started.get_or_insert(now);
            vertex.completed = Some(now);
            vertex.error = error;
        });
    }

    fn graph(&mut self, definition: &Definition) {
        let mut vertexes = Vec::new();
        for vertex in definition.vertices() {
            let digest = vertex.digest.to_string();
            if self.vertexes.contains_key(&digest) {
                continue;
            }
            let vertex = describe(vertex);
            self.vertexes.insert(digest, vertex.clone());
            vertexes.push(vertex);
        }
        self.push(StatusResponse { vertexes, ..StatusResponse::default() });
    }

    fn solve(&mut self, event: SolveEvent, now: Timestamp) {
        let digest = event.vertex().to_string();
        match event {
            SolveEvent::Started { at, .. } => self.change(&digest, |vertex| {
                vertex.started.get_or_insert(timestamp(at));
            }),
            SolveEvent::Cached { .. } => {
                self.change(&digest, |vertex| vertex.cached = true);
                self.end(&digest, now, String::new());
            }
            SolveEvent::Completed { .. } => self.end(&digest, now, String::new()),
            SolveEvent::Failed { message, .. } => self.end(&digest, now, message),
            SolveEvent::Cancelled { .. } => self.end(&digest, now, "context canceled".to_owned()),
            SolveEvent::Log { stream, bytes, .. } => {
                let stream = match stream {
                    LogStream::Stdout => 1,
                    LogStream::Stderr => 2,
                };
                self.log(digest, stream, bytes, now);
            }
            SolveEvent::LogDropped { bytes, .. } => {
                self.log(digest, 2, format!("[{bytes} bytes of output dropped]\n").into_bytes(), now);
            }
            SolveEvent::Progress { id, current, total, .. } => self.part(digest, id, (current, total), now),
            _ => {}
        }
    }

    fn log(&mut self, vertex: String, stream: i64, msg: Vec<u8>, now: Timestamp) {
        let mut msg = msg;
        if self.log_bytes + msg.len() + ENTRY > MAX_LOG {
            if !self.clipped.insert(vertex.clone()) {
                return;
            }
            msg = b"[output clipped]\n".to_vec();
        }
        self.log_bytes += msg.len() + ENTRY;
        let log = VertexLog { vertex, timestamp: Some(now), stream, msg };
        self.push_optional(StatusResponse { logs: vec![log], ..StatusResponse::default() });
    }

    fn part(&mut self, vertex: String, id: String, (current, total): (u64, Option<u64>), now: Timestamp) {
        let is_over = total == Some(current);
        let status = VertexStatus {
            current: i64::try_from(current).unwrap_or(i64::MAX),
            total: total.and_then(|total| i64::try_from(total).ok()).unwrap_or(0),
            ..self.began(&vertex, id, now)
        };
        self.tell(VertexStatus { completed: is_over.then_some(now), ..status });
    }

    fn part_done(&mut self, vertex: String, id: String, now: Timestamp) {
        let status = self.began(&vertex, id, now);
        self.tell(VertexStatus { completed: Some(now), ..status });
    }

    /// A part with the time it began at.
    fn began(&self, vertex: &str, id: String, now: Timestamp) -> VertexStatus {
        let known = self.parts.get(vertex).and_then(|parts| parts.iter().find(|part| part.id == id));
        let started = known.and_then(|part| part.started).unwrap_or(now);
        // What clients add up: the action alone, whatever it is done to.
        let is_transfer = id.starts_with("transferring ");
        VertexStatus {
            name: if is_transfer { "transferring".to_owned() } else { id.clone() },
            id,
            vertex: vertex.to_owned(),
            timestamp: Some(now),
            started: Some(started),
            ..VertexStatus::default()
        }
    }

    fn tell(&mut self, status: VertexStatus) {
        let open = self.parts.entry(status.vertex.clone()).or_default();
        open.retain(|part| part.id != status.id);
        if status.completed.is_none() && open.len() < MAX_PARTS {
            open.push(status.clone());
        }
        self.push_optional(StatusResponse { statuses: vec![status], ..StatusResponse::default() });
    }
}

impl Step {
    /// Its vertex.
    pub(crate) fn digest(&self) -> &str {
        &self.digest
    }

    /// A part of it moved on.
    pub(crate) fn progress(&self, part: &str, bytes: u64) {
        let now = timestamp(SystemTime::now());
        self.journal.lock().part(self.digest.clone(), part.to_owned(), (bytes, None), now);
        self.journal.changed.send_replace(());
    }

    /// Tells the end that `result` is, and gives it back.
    pub(crate) fn end<T, E: std::fmt::Display>(mut self, result: Result<T, E>) -> Result<T, E> {
        self.finish(result.as_ref().err().map(ToString::to_string).unwrap_or_default());
        result
    }

    fn finish(&mut self, error: String) {
        self.is_over = true;
        let (step, duration) = (StepId(self.scope << 32), Duration::ZERO);
        self.journal.record(match error.as_str() {
            "" => EngineEvent::StepCompleted { step, duration },
            message => EngineEvent::StepFailed { step, duration, message: message.to_owned() },
        });
        self.journal.lock().end(&self.digest, timestamp(SystemTime::now()), error);
        self.journal.changed.send_replace(());
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        if !self.is_over {
            self.finish("context canceled".to_owned());
        }
    }
}

impl Reader {
    /// What came since the last call, waiting for it; `None` once the build is over and all was read.
    pub(crate) async fn next(&mut self) -> Option<StatusResponse> {
        loop {
            self.changed.borrow_and_update();
            let (batch, is_over) = self.batch();
            if batch.is_some() || is_over {
                return batch;
            }
            self.changed.changed().await.ok()?;
        }
    }

    fn batch(&mut self) -> (Option<StatusResponse>, bool) {
        let state = self.journal.lock();
        let mut batch = StatusResponse::default();
        let mut size = 0;
        let first = self.at;
        for entry in state.entries.iter().skip(first) {
            size += prost::Message::encoded_len(entry.as_ref());
            if size > MAX_BATCH && self.at > first {
                break;
            }
            self.at += 1;
            batch.vertexes.extend(entry.vertexes.iter().cloned());
            batch.statuses.extend(entry.statuses.iter().cloned());
            batch.logs.extend(entry.logs.iter().cloned());
            batch.warnings.extend(entry.warnings.iter().cloned());
        }
        ((self.at > first).then_some(batch), state.is_over)
    }
}

/// An event whose step is told from those of other parts of the build.
fn scoped(scope: u64, event: &EngineEvent) -> EngineEvent {
    let mut event = event.clone();
    match &mut event {
        EngineEvent::StepStarted { step, .. }
        | EngineEvent::StepProgress { step, .. }
        | EngineEvent::StepPart { step, .. }
        | EngineEvent::StepCompleted { step, .. }
        | EngineEvent::StepFailed { step, .. } => step.0 = (scope << 32) | (step.0 & 0xFFFF_FFFF),
        EngineEvent::Graph(_)
        | EngineEvent::Named { .. }
        | EngineEvent::Solve(_)
        | EngineEvent::Miss { .. }
        | EngineEvent::Note { .. }
        | EngineEvent::Warning(_) => {}
    }
    event
}

/// A vertex as it is before it begins.
fn describe(vertex: &stave_llb::Vertex) -> Vertex {
    let group = vertex.metadata.progress_group.as_ref();
    Vertex {
        digest: vertex.digest.to_string(),
        inputs: vertex.inputs.iter().map(|edge| edge.vertex.to_string()).collect(),
        name: vertex.name().map_or_else(|| default_name(&vertex.op), str::to_owned),
        progress_group: group.map(|group| pb::ProgressGroup {
            id: group.id.clone(),
            name: group.name.clone(),
            weak: group.weak,
        }),
        ..Vertex::default()
    }
}

/// What BuildKit calls an operation that has no name.
fn default_name(op: &Op) -> String {
    match op {
        Op::Source(source) => source.raw.clone(),
        Op::Exec(exec) => exec.args.join(" "),
        Op::File(_) => "file".to_owned(),
        Op::Merge(_) => "merge".to_owned(),
        Op::Diff(_) => "diff".to_owned(),
        Op::Build(_) => "build".to_owned(),
        Op::Passthrough(op) => format!("passthrough {}", op.id),
    }
}

fn warning(found: &Diagnostic, about: &WarningSource) -> VertexWarning {
    let source = &about.source;
    let line = |offset| i32::try_from(source.position(offset).line).unwrap_or(i32::MAX);
    let position = |offset| Some(pb::Position { line: line(offset), character: 0 });
    let range = pb::Range { start: position(found.span.start), end: position(found.span.end) };
    let (name, detail, url) = match found.rule() {
        Some(rule) => (
            format!("{}: ", rule.name()),
            vec![rule.description().as_bytes().to_vec()],
            rule.url().unwrap_or_default(),
        ),
        None => (String::new(), Vec::new(), String::new()),
    };
    VertexWarning {
        vertex: about.vertex.clone(),
        level: 1,
        short: format!("{name}{found} (line {})", line(found.span.start)).into_bytes(),
        detail,
        url,
        info: Some(source_info(source)),
        ranges: vec![range],
    }
}

/// A Dockerfile as errors and warnings carry it.
pub(crate) fn source_info(source: &Source) -> pb::SourceInfo {
    pb::SourceInfo {
        filename: source.name.clone(),
        data: source.text.clone().into_bytes(),
        definition: None,
        language: "Dockerfile".to_owned(),
    }
}

pub(crate) fn timestamp(time: SystemTime) -> Timestamp {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp {
        seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(since.subsec_nanos()).unwrap_or(0),
    }
}

#[cfg(test)]
mod tests;
