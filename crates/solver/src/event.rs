//! What a build tells whoever watches it.
//!
//! Owns the event values and the channel they travel on. Must not know who renders them.
//!
//! The channel is bounded in a way that can neither block a build nor lose its outcome: what happens to
//! vertices is always kept (a few events per vertex), progress is replaced by newer progress, and log
//! bytes are kept up to [`LOG_BUFFER_LIMIT`]; past it a writer waits for a reader that is alive, at most
//! [`LOG_PATIENCE`], then drops and counts. Start with [`SolveEvent`] and [`event_channel`].

mod channel;

use std::time::{Duration, SystemTime};

use stave_oci::Digest;

pub(crate) use channel::Broadcast;
pub use channel::{EventReceiver, EventSender, EventSubscription, event_channel};

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

/// One thing that happened to a vertex of a job.
///
/// Invariant: per vertex and job, `Started` comes before `Log`, `Progress` and one of `Completed`,
/// `Failed`, `Cancelled`; a vertex that was found in the cache has `Cached` alone.
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
            | Self::Cached { vertex }
            | Self::Log { vertex, .. }
            | Self::LogDropped { vertex, .. }
            | Self::Progress { vertex, .. }
            | Self::Completed { vertex, .. }
            | Self::Failed { vertex, .. }
            | Self::Cancelled { vertex } => vertex,
        }
    }
}
