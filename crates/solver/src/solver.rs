//! The handle to a running solver, and what a caller hands it.
//!
//! Owns the life of a job: submitted, waited for, cancelled when its future is dropped. Must not know
//! how vertices are scheduled. Start with [`Solver`].

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use stave_cache::CacheIndex;
use stave_llb::Definition;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::driver::{self, Load, Request, Submission};
use crate::error::SolveError;
use crate::event::EventSender;
use crate::graph::plan::{self, Plan};
use crate::permits::{Lane, Permits};
use crate::worker::Worker;

/// One call of [`Solver::solve`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId(pub(crate) u64);

/// How many operations of each kind run at once, over all jobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Processes: mostly bound by processors.
    pub execs: usize,
    /// Sources: mostly bound by networks.
    pub sources: usize,
    /// File operations, merges and diffs: mostly bound by disks.
    pub files: usize,
    /// Content hashing: bound by processors and disks.
    pub digests: usize,
    /// Processes, sources and file operations together, whichever they are; `None` bounds each kind by itself.
    pub steps: Option<std::num::NonZeroUsize>,
}

impl Limits {
    /// Limits for a machine of so many processors.
    pub fn for_processors(count: usize) -> Self {
        let count = count.max(1);
        Self { execs: count.max(2), sources: 8, files: count.max(4), digests: count.max(2), steps: None }
    }
}

/// What one build brings besides its definition.
#[derive(Debug)]
pub struct Job<S> {
    session: Arc<S>,
    events: Option<EventSender>,
    cancel: CancellationToken,
}

impl<S> Clone for Job<S> {
    fn clone(&self) -> Self {
        Self { session: Arc::clone(&self.session), events: self.events.clone(), cancel: self.cancel.clone() }
    }
}

impl<S> Job<S> {
    /// A job nobody listens to. Jobs that share the session share what is volatile, such as a scan of
    /// a local directory; others never do.
    pub fn new(session: Arc<S>) -> Self {
        Self { session, events: None, cancel: CancellationToken::new() }
    }

    /// The same job, telling `events` how it goes. The channel ends when the solve is over and this
    /// value is dropped.
    pub fn with_events(self, events: EventSender) -> Self {
        Self { events: Some(events), ..self }
    }

    /// The same job, ending early when `cancel` fires.
    pub fn with_cancel(self, cancel: CancellationToken) -> Self {
        Self { cancel, ..self }
    }
}

/// Solves definitions on one worker. Concurrent solves share what they have in common.
#[derive(Debug)]
pub struct Solver<W: Worker> {
    requests: mpsc::UnboundedSender<Request<W>>,
    next_job: AtomicU64,
    owner: JoinHandle<()>,
}

/// Cancels the job when the future that waits for it is dropped.
struct CancelOnDrop<'a, W: Worker> {
    requests: &'a mpsc::UnboundedSender<Request<W>>,
    job: JobId,
}

impl<W: Worker> Drop for CancelOnDrop<'_, W> {
    fn drop(&mut self) {
        // The owner is gone only when the solver was shut down, and then so is the job.
        self.requests.send(Request::Cancel(self.job)).ok();
    }
}

impl<W: Worker> Solver<W> {
    /// Starts the task that owns the graph. Must be called within a tokio runtime.
    ///
    /// Dropping the solver cancels what runs; [`Self::shutdown`] also waits for it.
    pub fn new(worker: Arc<W>, index: CacheIndex, limits: Limits) -> Self {
        Self::sharing(worker, index, Permits::new(limits), Lane::default())
    }

    /// A solver that runs no more operations than `permits` has for all that share them, and takes turns with those in
    /// other lanes. It shares no work with them. As [`Self::new`] otherwise.
    pub fn sharing(worker: Arc<W>, index: CacheIndex, permits: Arc<Permits>, lane: Lane) -> Self {
        let (requests, inbox) = mpsc::unbounded_channel();
        let owner = tokio::spawn(driver::run(worker, index, (permits, lane), inbox));
        Self { requests, next_job: AtomicU64::new(1), owner }
    }

    /// Makes the outputs of `definition`, in its order.
    ///
    /// Ends when the outputs are there or the first vertex failed, and everything that ran for this job
    /// alone has stopped. Dropping the future cancels the job; the solver then stops its tasks by itself.
    pub async fn solve(
        &self,
        definition: &Definition,
        job: &Job<W::Session>,
    ) -> Result<Vec<W::Result>, SolveError> {
        self.solve_plan(plan::plan(definition, Arc::as_ptr(&job.session).addr())?, job).await
    }

    pub(crate) async fn solve_plan(
        &self,
        plan: Plan,
        job: &Job<W::Session>,
    ) -> Result<Vec<W::Result>, SolveError> {
        let id = JobId(self.next_job.fetch_add(1, Ordering::Relaxed));
        let (reply, mut outcome) = oneshot::channel();
        let submission = Submission {
            job: id,
            plan,
            session: Arc::clone(&job.session),
            events: job.events.clone(),
            reply,
        };
        self.requests.send(Request::Submit(submission)).map_err(|_| SolveError::Closed)?;
        let guard = CancelOnDrop { requests: &self.requests, job: id };
        tokio::select! {
            outcome = &mut outcome => return outcome.unwrap_or(Err(SolveError::Closed)),
            () = job.cancel.cancelled() => drop(guard),
        }
        outcome.await.unwrap_or(Err(SolveError::Closed))
    }

    /// How much it holds now; nothing of one that was shut down.
    pub async fn load(&self) -> Load {
        let (reply, load) = oneshot::channel();
        if self.requests.send(Request::Count(reply)).is_err() {
            return Load::default();
        }
        load.await.unwrap_or_default()
    }

    /// Cancels all jobs and returns when nothing runs any more.
    pub async fn shutdown(self) {
        drop(self.requests);
        if let Err(error) = self.owner.await
            && let Ok(panic) = error.try_into_panic()
        {
            // The owner ends by itself; only a defect of its own can get here.
            std::panic::resume_unwind(panic);
        }
    }
}
