//! The concurrent solver: which vertices of a graph run, when, and which need not.
//!
//! Owns scheduling, single-flight, cancellation, the order of cache look-ups and the events of a build.
//! Must not know: how an operation runs, files, processes, networks, Dockerfiles, terminals. All of
//! that is behind the trait [`Worker`].
//!
//! Start with [`Solver`], [`Worker`], [`CacheMap`] and [`SolveEvent`]. The design in one paragraph: a
//! pure state machine (`graph`) takes events and returns commands; one task (`driver`) owns it, runs
//! the commands with bounded parallelism and feeds their outcomes back. A vertex is looked up by its
//! definition key, then its result key, then its content key, and runs when all three miss; an input is
//! asked for only when a key needs it, and loaded only when content or execution needs it.

mod driver;
mod error;
mod event;
mod graph;
pub mod key;
mod permits;
mod solver;
mod worker;

pub use driver::Load;
pub use error::{OpError, OpErrorKind, SolveError};
pub use event::{
    EventReceiver, EventSender, EventSubscription, Hit, LOG_BUFFER_LIMIT, LOG_PATIENCE, LogStream, LogTap,
    Miss, PROGRESS_LIMIT, SolveEvent, StepPhase, StepUsage, event_channel, event_channel_with,
};
pub use permits::{Lane, Permits};
pub use solver::{Job, JobId, Limits, Solver};
pub use worker::{
    CacheMap, Elsewhere, ImportedRecord, InputKey, JobContext, OpKey, Selector, SelectorPath, Worker,
    is_elsewhere,
};
