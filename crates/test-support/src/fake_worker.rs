//! A worker that runs nothing: what vertices make, how long they take and whether they fail is scripted.
//!
//! Owns the script and a record of what was asked. Keys follow the solver's own rules. What a vertex
//! makes is a text, by default its name over what its inputs hold; what a local source makes is its
//! session's text. Start with [`FakeWorker`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use stave_cache::{CacheRecord, ContentDigest, ResultId};
use stave_llb::{Op, SourceIdentifier, Vertex};
use stave_solver::{CacheMap, JobContext, LogStream, OpError, OpErrorKind, Selector, Worker, key};
use tokio::sync::Semaphore;

/// What one invocation brings: the text its local sources make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FakeSession {
    /// The text.
    pub context: String,
}

/// An output: a text, and the name it is found by unless it is a session's own.
#[derive(Debug, Clone)]
pub struct FakeResult {
    /// The name; `None` when it cannot be recorded.
    pub id: Option<String>,
    /// The text.
    pub content: String,
    /// Counts the handles that are alive.
    _alive: Arc<()>,
}

/// What a scripted failure says.
#[derive(Debug, thiserror::Error)]
#[error("`{name}` was told to fail")]
pub struct FakeError {
    name: String,
}

#[derive(Debug, Default)]
struct Script {
    content: BTreeMap<String, String>,
    failing: BTreeSet<String>,
    panicking: BTreeSet<String>,
    gone: BTreeSet<String>,
    held: BTreeMap<String, Arc<Semaphore>>,
    log_bytes: BTreeMap<String, usize>,
    runs: Vec<String>,
    loads: Vec<String>,
    running: BTreeSet<String>,
    most_running: usize,
    made: u64,
}

/// A scripted worker.
#[derive(Debug, Default)]
pub struct FakeWorker {
    script: Mutex<Script>,
    alive: Arc<()>,
}

/// Keeps runs of a vertex waiting until it is opened or dropped.
#[derive(Debug)]
pub struct Gate {
    semaphore: Arc<Semaphore>,
}

impl Gate {
    /// Lets all runs go on.
    pub fn open(self) {}
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.semaphore.close();
    }
}

impl FakeWorker {
    /// A worker whose vertices all succeed at once.
    pub fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// What a vertex makes from now on.
    pub fn makes(&self, name: &str, content: &str) {
        self.lock().content.insert(name.to_owned(), content.to_owned());
    }

    /// A vertex fails from now on.
    pub fn fails(&self, name: &str) {
        self.lock().failing.insert(name.to_owned());
    }

    /// A vertex panics from now on.
    pub fn panics(&self, name: &str) {
        self.lock().panicking.insert(name.to_owned());
    }

    /// A vertex writes so many bytes to its log, in pieces, before it ends.
    pub fn logs(&self, name: &str, bytes: usize) {
        self.lock().log_bytes.insert(name.to_owned(), bytes);
    }

    /// Results that hold this text can no longer be loaded.
    pub fn loses(&self, content: &str) {
        self.lock().gone.insert(content.to_owned());
    }

    /// Keeps runs of a vertex waiting.
    pub fn hold(&self, name: &str) -> Gate {
        let semaphore = Arc::new(Semaphore::new(0));
        self.lock().held.insert(name.to_owned(), Arc::clone(&semaphore));
        Gate { semaphore }
    }

    /// The names of what ran since the last call, in order of their start.
    pub fn take_runs(&self) -> Vec<String> {
        std::mem::take(&mut self.lock().runs)
    }

    /// The texts of what was loaded since the last call.
    pub fn take_loads(&self) -> Vec<String> {
        std::mem::take(&mut self.lock().loads)
    }

    /// The names of what runs now.
    pub fn running(&self) -> BTreeSet<String> {
        self.lock().running.clone()
    }

    /// The most that ever ran at once.
    pub fn most_running(&self) -> usize {
        self.lock().most_running
    }

    /// How many handles to results there are.
    pub fn live_results(&self) -> usize {
        Arc::strong_count(&self.alive) - 1
    }

    fn lock(&self) -> MutexGuard<'_, Script> {
        self.script.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn result(&self, id: Option<String>, content: String) -> FakeResult {
        FakeResult { id, content, _alive: Arc::clone(&self.alive) }
    }

    fn begin(&self, name: &str) -> Running<'_> {
        let mut script = self.lock();
        script.runs.push(name.to_owned());
        assert!(script.running.insert(name.to_owned()), "`{name}` runs twice at once");
        script.most_running = script.most_running.max(script.running.len());
        drop(script);
        Running { worker: self, name: name.to_owned() }
    }

    async fn wait(&self, name: &str, cx: &JobContext<FakeSession>) -> Result<(), OpError> {
        let (held, bytes) = {
            let script = self.lock();
            (script.held.get(name).cloned(), script.log_bytes.get(name).copied().unwrap_or_default())
        };
        for piece in vec![b'x'; bytes].chunks(32 << 10) {
            cx.events.log(LogStream::Stdout, piece).await;
        }
        cx.events.progress("work", 1, Some(1));
        let Some(held) = held else { return Ok(()) };
        tokio::select! {
            () = cx.cancel.cancelled() => Err(OpError::cancelled()),
            // A gate only ever closes the semaphore.
            Err(_) = held.acquire() => Ok(()),
        }
    }
}

/// Ends the note that a vertex runs, however its run ends.
struct Running<'a> {
    worker: &'a FakeWorker,
    name: String,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.worker.lock().running.remove(&self.name);
    }
}

fn name_of(vertex: &Vertex) -> &str {
    vertex.name().unwrap_or_else(|| vertex.op.kind())
}

impl Worker for FakeWorker {
    type Result = FakeResult;
    type Session = FakeSession;

    async fn cache_map(&self, vertex: &Vertex, _: &JobContext<FakeSession>) -> Result<CacheMap, OpError> {
        Ok(key::cache_map(vertex))
    }

    async fn content_digest(
        &self,
        input: &FakeResult,
        selector: &Selector,
        _: &JobContext<FakeSession>,
    ) -> Result<ContentDigest, OpError> {
        Ok(ContentDigest::of(format!("{}{selector:?}", input.content).as_bytes()))
    }

    async fn execute(
        &self,
        vertex: &Vertex,
        inputs: &[FakeResult],
        cx: &JobContext<FakeSession>,
    ) -> Result<Vec<FakeResult>, OpError> {
        let name = name_of(vertex);
        let _running = self.begin(name);
        self.wait(name, cx).await?;
        if let Op::Source(source) = &vertex.op
            && matches!(source.identifier, SourceIdentifier::Local { .. })
        {
            return Ok(vec![self.result(None, cx.session.context.clone())]);
        }
        let mut script = self.lock();
        if script.failing.contains(name) {
            return Err(OpError::new(OpErrorKind::Input, FakeError { name: name.to_owned() }));
        }
        let panics = script.panicking.contains(name);
        let inputs: Vec<&str> = inputs.iter().map(|input| input.content.as_str()).collect();
        let content =
            script.content.get(name).cloned().unwrap_or_else(|| format!("{name}({})", inputs.join(" ")));
        script.made += 1;
        let id = format!("{}={content}", script.made);
        drop(script);
        assert!(!panics, "`{name}` was told to panic");
        Ok(vec![self.result(Some(id), content)])
    }

    async fn load(&self, record: &CacheRecord) -> Result<Option<Vec<FakeResult>>, OpError> {
        let id = record.result.as_str();
        let Some((_, content)) = id.split_once('=') else { return Ok(None) };
        let mut script = self.lock();
        if script.gone.contains(content) {
            return Ok(None);
        }
        script.loads.push(content.to_owned());
        drop(script);
        Ok(Some(vec![self.result(Some(id.to_owned()), content.to_owned())]))
    }

    async fn persist(&self, outputs: &[FakeResult]) -> Result<Option<ResultId>, OpError> {
        let Some(id) = outputs.first().and_then(|output| output.id.clone()) else { return Ok(None) };
        ResultId::new(id).map(Some).map_err(|error| OpError::new(OpErrorKind::Internal, error))
    }
}
