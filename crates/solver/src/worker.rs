//! The one seam to execution.
//!
//! Owns the trait [`Worker`] and the values that cross it. Must not know any implementation.
//! Start with [`Worker`].

use std::any::Any;
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use stave_cache::{CacheRecord, ContentDigest, KeyPart, ResultId};
use stave_llb::Vertex;
use stave_oci::Digest;
use tokio_util::sync::CancellationToken;

use crate::error::OpError;
use crate::event::EventSubscription;
use crate::solver::JobId;

/// What turns vertices into results.
///
/// Every future must end soon after [`JobContext::cancel`] fires: the solver waits for it, so that
/// nothing of a cancelled build is left running.
pub trait Worker: Send + Sync + 'static {
    /// One output of a vertex: a handle that keeps what it names alive.
    type Result: Clone + Send + Sync + 'static;
    /// What one invocation may use: context directories, secrets, credentials.
    type Session: Send + Sync + 'static;

    /// Says what identifies the operation. Called once per vertex and solve, before anything runs.
    fn cache_map(
        &self,
        vertex: &Vertex,
        cx: &JobContext<Self::Session>,
    ) -> impl Future<Output = Result<CacheMap, OpError>> + Send;

    /// Hashes the part of a result that `selector` picks. A path that is not there is a part of the
    /// digest like any other: whether it may be missing is found out when the vertex runs.
    fn content_digest(
        &self,
        input: &Self::Result,
        selector: &Selector,
        cx: &JobContext<Self::Session>,
    ) -> impl Future<Output = Result<ContentDigest, OpError>> + Send;

    /// Runs the operation. `inputs` are in the vertex's order; the outputs' order is their index.
    fn execute(
        &self,
        vertex: &Vertex,
        inputs: &[Self::Result],
        cx: &JobContext<Self::Session>,
    ) -> impl Future<Output = Result<Vec<Self::Result>, OpError>> + Send;

    /// Makes the outputs of an earlier run usable again. Cheap. `None` when they are gone.
    fn load(
        &self,
        record: &CacheRecord,
    ) -> impl Future<Output = Result<Option<Vec<Self::Result>>, OpError>> + Send;

    /// Makes outputs findable after this process ends, under the name returned. `None` when they are
    /// of this session only (a local context) and must never be recorded.
    ///
    /// Outputs of equal name are interchangeable: that is what cuts a change off early.
    fn persist(
        &self,
        outputs: &[Self::Result],
    ) -> impl Future<Output = Result<Option<ResultId>, OpError>> + Send;

    /// Whether a session brings caches made elsewhere. They are asked where the local one has missed.
    fn has_imports(&self, _session: &Self::Session) -> bool {
        false
    }

    /// Looks the vertex up in caches made elsewhere: by what stands below it in the graph, and by content for
    /// the inputs whose values are in `contents`. Nothing is fetched yet. Trouble is a miss.
    fn look_elsewhere(
        &self,
        _vertex: &Vertex,
        _contents: &[Option<Self::Result>],
        _cx: &JobContext<Self::Session>,
    ) -> impl Future<Output = Option<Elsewhere>> + Send {
        async { None }
    }

    /// Brings the outputs of a record that [`Self::look_elsewhere`] found. `None` when they cannot be had.
    fn import(
        &self,
        _record: &ImportedRecord,
        _cx: &JobContext<Self::Session>,
    ) -> impl Future<Output = Option<Vec<Self::Result>>> + Send {
        async { None }
    }

    /// Hears that a vertex's result is known to the local cache, and of the inputs that were read for that.
    fn found(&self, _vertex: &Vertex, _record: &CacheRecord, _session: &Self::Session) {}

    /// Hears that an input of a vertex is about to be digested for its content.
    fn reads(&self, _vertex: &Vertex, _position: usize, _input: &Self::Result, _session: &Self::Session) {}
}

/// What caches made elsewhere know of a vertex.
#[derive(Debug, Clone)]
pub enum Elsewhere {
    /// Its result.
    Record(ImportedRecord),
    /// Its keys but not its result: what stands on it may be found, and it runs only if it must be here.
    KeysOnly,
}

/// In front of names of results that are not here.
pub(crate) const ELSEWHERE: &str = "elsewhere:";

/// Whether a record names a result that a cache elsewhere had and nobody needed here: it leads on to what stands on
/// it, and there is nothing to load by it.
pub fn is_elsewhere(result: &ResultId) -> bool {
    result.as_str().starts_with(ELSEWHERE)
}

/// A result found in a cache made elsewhere, in terms of the worker.
#[derive(Clone)]
pub struct ImportedRecord(pub Arc<dyn Any + Send + Sync>);

impl fmt::Debug for ImportedRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ImportedRecord")
    }
}

/// What identifies an operation and which of its inputs matter how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheMap {
    /// The operation's own part of every key.
    pub op: OpKey,
    /// One entry per input of the vertex, in its order.
    pub inputs: Vec<InputKey>,
}

/// The operation's own part of its keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OpKey {
    /// Equal parts and equal inputs give interchangeable outputs.
    Stable(KeyPart),
    /// Nothing identifies it before it has run; its users are found by its content.
    Volatile,
}

/// How one input takes part in the keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InputKey {
    /// By identity: another result is another input.
    Identity {
        /// What of it is used, when not all.
        selector: Option<Selector>,
    },
    /// By what the selector sees of it: another result with the same content is the same input.
    Content {
        /// What of it is used.
        selector: Selector,
    },
    /// Not at all; it is only handed over for execution.
    Ignored,
}

impl InputKey {
    /// What of the input is used, when not all.
    pub fn selector(&self) -> Option<&Selector> {
        match self {
            Self::Identity { selector } => selector.as_ref(),
            Self::Content { selector } => Some(selector),
            Self::Ignored => None,
        }
    }
}

/// Which part of a result an operation uses, in terms of the worker.
///
/// The entries are in a fixed order and part of the keys.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Selector {
    /// The paths; empty for the whole result.
    pub paths: Vec<SelectorPath>,
}

/// One path of a selector.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SelectorPath {
    /// Absolute path inside the result.
    pub path: String,
    /// The last parts may hold `*`, `?` and `[…]`.
    pub wildcard: bool,
    /// A symlink in the last part is followed.
    pub follow_links: bool,
    /// What of a directory is used; empty for all.
    pub include_patterns: Vec<String>,
    /// What of a directory is not used.
    pub exclude_patterns: Vec<String>,
}

impl Selector {
    /// The whole result.
    pub fn whole() -> Self {
        Self::default()
    }

    /// One plain path.
    pub fn path(path: impl Into<String>) -> Self {
        Self {
            paths: vec![SelectorPath {
                path: path.into(),
                wildcard: false,
                follow_links: true,
                include_patterns: Vec::new(),
                exclude_patterns: Vec::new(),
            }],
        }
    }
}

/// What an operation may use of the build that wants it.
pub struct JobContext<S> {
    /// The first job that wanted the vertex.
    pub job: JobId,
    /// That job's session.
    pub session: Arc<S>,
    /// Where logs and progress go; never blocks for long and never fails.
    pub events: EventSubscription,
    /// Fires when no job wants the vertex any more.
    pub cancel: CancellationToken,
    /// The vertex.
    pub vertex: Digest,
    /// When it was asked for, and of what is executed when it had its permit: what came later in this process, of whatever
    /// solver, has a higher number.
    pub arrival: u64,
}

/// The next [`JobContext::arrival`].
static ARRIVALS: AtomicU64 = AtomicU64::new(0);

pub(crate) fn arrival() -> u64 {
    ARRIVALS.fetch_add(1, Ordering::Relaxed)
}

impl<S> JobContext<S> {
    /// That of a worker that is asked something without a solver: nobody listens.
    pub fn alone(session: Arc<S>, cancel: CancellationToken, vertex: Digest) -> Self {
        let events = EventSubscription::silent(vertex.clone());
        Self { job: JobId(u64::MAX), session, events, cancel, vertex, arrival: arrival() }
    }
}

impl<S> Clone for JobContext<S> {
    fn clone(&self) -> Self {
        Self {
            job: self.job,
            session: Arc::clone(&self.session),
            events: self.events.clone(),
            cancel: self.cancel.clone(),
            vertex: self.vertex.clone(),
            arrival: self.arrival,
        }
    }
}

impl<S> fmt::Debug for JobContext<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JobContext")
            .field("job", &self.job)
            .field("vertex", &self.vertex)
            .finish_non_exhaustive()
    }
}
