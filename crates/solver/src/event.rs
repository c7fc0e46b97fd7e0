//! What a build tells whoever watches it.
//!
//! Owns the event values and the channel they travel on. Must not know who renders them.
//!
//! The channel is bounded in a way that can neither block a build nor lose its outcome: what happens to
//! vertices is always kept (a few events per vertex), progress is replaced by newer progress, and log
//! bytes are kept up to [`LOG_BUFFER_LIMIT`]; past it a writer waits for a reader that is alive, at most
//! [`LOG_PATIENCE`], then drops and counts. Start with [`SolveEvent`] and [`event_channel`].

mod channel;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use stave_cache::{CacheKey, KeyEntry};
use stave_oci::Digest;

pub(crate) use channel::Broadcast;
pub use channel::{EventReceiver, EventSender, EventSubscription, event_channel, event_channel_with};

/// Log bytes waiting to be read, per job.
pub const LOG_BUFFER_LIMIT: usize = 4 << 20;

/// How long a log writer waits for a slow reader before it drops.
pub const LOG_PATIENCE: Duration = Duration::from_millis(500);

/// Distinct progress items waiting to be read, per job.
pub const PROGRESS_LIMIT: usize = 1024;

/// Where log bytes were written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LogStream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// Where a result that nobody had to make for this job came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Hit {
    /// A record of this machine's cache.
    Local,
    /// A record of an imported cache.
    Imported,
    /// Another build ran it at the same time.
    Shared,
    /// It was not even looked up, because what stands on it was found.
    Skipped,
}

/// What was looked up in vain before a vertex ran.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Miss {
    /// The keys under which the result will be recorded; none for what is never recorded.
    pub entries: Vec<KeyEntry>,
    /// The cache was not asked, because the build said so.
    pub ignored: bool,
}

/// Sees every log byte of a job in order, also those that a slow reader of the events misses.
///
/// Called where the operation writes, so it must be quick and must not block for long.
#[derive(Clone)]
pub struct LogTap(Arc<Receive>);

type Receive = dyn Fn(&Digest, LogStream, &[u8]) + Send + Sync;

impl LogTap {
    /// Bytes go to `receive`.
    pub fn new(receive: impl Fn(&Digest, LogStream, &[u8]) + Send + Sync + 'static) -> Self {
        Self(Arc::new(receive))
    }

    pub(crate) fn log(&self, vertex: &Digest, stream: LogStream, bytes: &[u8]) {
        (self.0)(vertex, stream, bytes);
    }
}

impl fmt::Debug for LogTap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LogTap")
    }
}

/// One stretch of a step's time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StepPhase {
    /// Waiting for cache mounts and for memory.
    Waiting,
    /// Mounts, users, devices.
    Preparing,
    /// From the start of the process to its end.
    Process,
    /// What was written becomes layers.
    Committing,
}

/// What a vertex's process used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StepUsage {
    /// The most memory it and its children held at once, in bytes; files' pages left out.
    pub peak_memory: u64,
    /// CPU time of it and its children.
    pub cpu_time: Duration,
}

/// One thing that happened to a vertex of a job.
///
/// Invariant: per vertex and job, `Started` comes before `Log`, `Progress` and one of `Completed`,
/// `Failed`, `Cancelled`; a vertex that was found in the cache has `Cached` as its end, and no `Started`.
#[derive(Debug, Clone, PartialEq)]
pub enum SolveEvent {
    /// It began to run.
    Started {
        /// The vertex.
        vertex: Digest,
        /// When.
        at: SystemTime,
    },
    /// Its result was found, or was not even needed because a later one was found.
    Cached {
        /// The vertex.
        vertex: Digest,
        /// Where it came from.
        hit: Hit,
        /// The key it was found by, if it was looked up.
        key: Option<CacheKey>,
    },
    /// No key of it leads to a result: it runs next. Comes before `Started`.
    Missed {
        /// The vertex.
        vertex: Digest,
        /// What was looked up.
        miss: Arc<Miss>,
    },
    /// Another job runs it already; its `Started` follows.
    Joined {
        /// The vertex.
        vertex: Digest,
    },
    /// It wrote output.
    Log {
        /// The vertex.
        vertex: Digest,
        /// Where to.
        stream: LogStream,
        /// As written: any bytes, cut anywhere.
        bytes: Vec<u8>,
    },
    /// Output was dropped because the reader was too slow.
    LogDropped {
        /// The vertex.
        vertex: Digest,
        /// How much.
        bytes: u64,
    },
    /// A part of it moved on.
    Progress {
        /// The vertex.
        vertex: Digest,
        /// Which part, such as a layer's digest.
        id: String,
        /// How far, in the part's own unit, mostly bytes.
        current: u64,
        /// Out of how much, when known.
        total: Option<u64>,
    },
    /// Its process ended, well or not; another try may follow.
    Used {
        /// The vertex.
        vertex: Digest,
        /// What was used.
        usage: StepUsage,
    },
    /// A stretch of its time is over.
    Phase {
        /// The vertex.
        vertex: Digest,
        /// Which.
        phase: StepPhase,
        /// How long it took, up to now.
        duration: Duration,
    },
    /// It ran to its end.
    Completed {
        /// The vertex.
        vertex: Digest,
        /// From its start, queueing excluded.
        duration: Duration,
    },
    /// It failed.
    Failed {
        /// The vertex.
        vertex: Digest,
        /// From its start; zero when it failed before.
        duration: Duration,
        /// The error's own message, without its causes.
        message: String,
    },
    /// It was stopped because nobody wanted it any more.
    Cancelled {
        /// The vertex.
        vertex: Digest,
    },
}

impl SolveEvent {
    /// The vertex it happened to.
    pub fn vertex(&self) -> &Digest {
        match self {
            Self::Started { vertex, .. }
            | Self::Cached { vertex, .. }
            | Self::Missed { vertex, .. }
            | Self::Joined { vertex }
            | Self::Log { vertex, .. }
            | Self::LogDropped { vertex, .. }
            | Self::Progress { vertex, .. }
            | Self::Used { vertex, .. }
            | Self::Phase { vertex, .. }
            | Self::Completed { vertex, .. }
            | Self::Failed { vertex, .. }
            | Self::Cancelled { vertex } => vertex,
        }
    }
}
