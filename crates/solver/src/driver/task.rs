//! What each task does: one call of the worker or the index, between its permit and its answer.
//!
//! Owns the permits, the clocks and the catching of panics. A stopped task still waits for the worker;
//! only waiting for a permit is given up at once. Trouble with the index is a miss, never a failure.

mod turn;

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use futures::FutureExt as _;
use stave_cache::{CacheIndex, CacheKey, CacheRecord, Claim, KeyEntry, NewRecord, TOUCH_GRANULARITY};
use stave_llb::{Op, Vertex};
use tokio_util::sync::CancellationToken;

use super::records::Records;
use crate::error::{OpError, OpErrorKind, Panicked};
use crate::event::{Broadcast, EventSubscription, Hit, Miss, SolveEvent};
use crate::graph::{Answer, Made, Unwritten};
use crate::key::label;
use crate::permits::{Lane, Permit, Permits, Turns};
use crate::solver::JobId;
use crate::worker::{ImportedRecord, JobContext, Selector, Worker, arrival};

/// What took this long to make is recorded before anybody uses it: who is killed in the next step does not make it
/// again. What took less is not worth the time that every short step would lose.
const WORTH_KEEPING: Duration = Duration::from_millis(500);

/// What all tasks share.
pub(super) struct Environment<W: Worker> {
    worker: Arc<W>,
    index: CacheIndex,
    permits: Arc<Permits>,
    lane: Lane,
    pub(super) records: Records,
}

/// What all tasks of one node share.
pub(super) struct NodeContext<W: Worker> {
    pub(super) vertex: Arc<Vertex>,
    pub(super) job: JobId,
    pub(super) session: Arc<W::Session>,
    pub(super) broadcast: Arc<Broadcast>,
}

/// One task's view.
pub(super) struct Work<W: Worker> {
    environment: Arc<Environment<W>>,
    node: Arc<NodeContext<W>>,
    cx: JobContext<W::Session>,
}

impl<W: Worker> Environment<W> {
    pub(super) fn new(worker: Arc<W>, index: CacheIndex, (permits, lane): (Arc<Permits>, Lane)) -> Self {
        Self { worker, index, permits, lane, records: Records::default() }
    }

    pub(super) fn has_imports(&self, session: &W::Session) -> bool {
        self.worker.has_imports(session)
    }

    fn permits_for(&self, op: &Op) -> &Turns {
        match op {
            Op::Exec(_) => &self.permits.execs,
            Op::Source(_) => &self.permits.sources,
            Op::File(_) | Op::Merge(_) | Op::Diff(_) | Op::Build(_) | Op::Passthrough(_) => {
                &self.permits.files
            }
        }
    }
}

impl<W: Worker> Work<W> {
    pub(super) fn new(
        environment: Arc<Environment<W>>,
        node: Arc<NodeContext<W>>,
        cancel: CancellationToken,
    ) -> Self {
        let cx = JobContext {
            job: node.job,
            session: Arc::clone(&node.session),
            events: EventSubscription::new(Arc::clone(&node.broadcast)),
            cancel,
            vertex: node.vertex.digest.clone(),
            arrival: arrival(),
        };
        Self { environment, node, cx }
    }

    fn worker(&self) -> &W {
        &self.environment.worker
    }

    fn send(&self, event: impl FnOnce(stave_oci::Digest) -> SolveEvent) {
        self.node.broadcast.send(&event(self.cx.vertex.clone()));
    }
}

pub(super) async fn map<W: Worker>(work: Work<W>) -> Answer<W::Result> {
    Answer::Mapped(caught(work.worker().cache_map(&work.node.vertex, &work.cx)).await)
}

pub(super) fn look_up<W: Worker, R>(environment: &Environment<W>, key: &CacheKey) -> Answer<R> {
    let index = &environment.index;
    let record = index.lookup(key).unwrap_or_else(|error| {
        tracing::warn!(error = &error as &dyn std::error::Error, "cache look-up failed");
        None
    });
    if let Some(record) = &record {
        let now = SystemTime::now();
        if now.duration_since(record.used_at).is_ok_and(|age| age > TOUCH_GRANULARITY)
            && let Err(error) = index.touch(&[record.id], now)
        {
            tracing::warn!(error = &error as &dyn std::error::Error, "cache use not noted");
        }
    }
    Answer::LookedUp(record)
}

/// Looks a key up, and tells the worker of what it finds.
pub(super) fn found<W: Worker>(work: &Work<W>, key: &CacheKey) -> Answer<W::Result> {
    let answer = look_up(&work.environment, key);
    if let Answer::LookedUp(Some(record)) = &answer {
        work.worker().found(&work.node.vertex, record, &work.node.session);
    }
    answer
}

pub(super) async fn look_elsewhere<W: Worker>(
    work: Work<W>,
    contents: Vec<Option<W::Result>>,
) -> Answer<W::Result> {
    let Some(_permit) = permit(&work, &work.environment.permits.digests).await else {
        return Answer::FoundElsewhere(None);
    };
    let looking = work.worker().look_elsewhere(&work.node.vertex, &contents, &work.cx);
    let found = caught(async { Ok(looking.await) }).await.unwrap_or(None);
    Answer::FoundElsewhere(found.map(|found| (found, SystemTime::now())))
}

pub(super) async fn import<W: Worker>(
    work: Work<W>,
    imported: ImportedRecord,
    entries: Vec<KeyEntry>,
) -> Answer<W::Result> {
    let Some(_permit) = permit(&work, &work.environment.permits.sources).await else {
        return Answer::Imported(Err(OpError::cancelled()));
    };
    let bringing = work.worker().import(&imported, &work.cx);
    let outputs = tokio::select! {
        outputs = caught(async { Ok(bringing.await) }) => outputs,
        () = work.cx.cancel.cancelled() => return Answer::Imported(Err(OpError::cancelled())),
    };
    let Ok(Some(outputs)) = outputs else { return Answer::Imported(Ok(None)) };
    Answer::Imported(name(&work, outputs, entries.into(), Duration::ZERO).await.map(Some))
}

pub(super) async fn load<W: Worker>(work: Work<W>, record: Arc<CacheRecord>) -> Answer<W::Result> {
    let loaded = caught(work.worker().load(&record)).await;
    if let Ok(None) = &loaded {
        let environment = Arc::clone(&work.environment);
        in_index(move || environment.index.remove(&record.result), "cache record not removed").await;
    }
    Answer::Loaded(loaded.map(|outputs| outputs.map(Arc::from)))
}

pub(super) async fn digest<W: Worker>(
    work: Work<W>,
    position: usize,
    input: W::Result,
    selector: Selector,
) -> Answer<W::Result> {
    work.worker().reads(&work.node.vertex, position, &input, &work.node.session);
    let Some(_permit) = permit(&work, &work.environment.permits.digests).await else {
        return Answer::Digested(Err(OpError::cancelled()));
    };
    Answer::Digested(caught(work.worker().content_digest(&input, &selector, &work.cx)).await)
}

pub(super) async fn execute<W: Worker>(
    mut work: Work<W>,
    inputs: Vec<W::Result>,
    miss: Miss,
) -> Answer<W::Result> {
    let permits = work.environment.permits_for(&work.node.vertex.op);
    let Some(permit) = permit(&work, permits).await else {
        return Answer::Executed(Err(OpError::cancelled()));
    };
    // Not before: who asks for much early must not come before all that others ask for. The permits go round.
    work.cx.arrival = arrival();
    let Some(turn) = turn::take(&work.environment.index, &miss, &work.cx).await else {
        return Answer::Executed(Err(OpError::cancelled()));
    };
    if let Some((mut made, key)) = made_meanwhile(&work, &miss).await {
        // Until it is found under the other keys, too.
        made.unwritten.claims = turn;
        work.send(|vertex| SolveEvent::Cached { vertex, hit: Hit::Shared, key: Some(key) });
        return Answer::Executed(Ok(made));
    }
    let miss = Arc::new(miss);
    work.send(|vertex| SolveEvent::Missed { vertex, miss: Arc::clone(&miss) });
    let (at, start) = (SystemTime::now(), Instant::now());
    work.send(|vertex| SolveEvent::Started { vertex, at });
    let outcome = run(&work, &inputs, (&miss.entries, turn), start).await;
    let duration = start.elapsed();
    drop(permit);
    match &outcome {
        Ok(_) => work.send(|vertex| SolveEvent::Completed { vertex, duration }),
        Err(_) if work.cx.cancel.is_cancelled() => work.send(|vertex| SolveEvent::Cancelled { vertex }),
        Err(error) => {
            work.send(|vertex| SolveEvent::Failed { vertex, duration, message: error.to_string() });
        }
    }
    match outcome {
        Ok(made) if duration >= WORTH_KEEPING => Answer::Executed(Ok(kept(&work, made).await)),
        outcome => Answer::Executed(outcome),
    }
}

/// Has what was made recorded, if it can be.
async fn kept<W: Worker>(work: &Work<W>, mut made: Made<W::Result>) -> Made<W::Result> {
    let environment = &work.environment;
    if let Some(record) = &made.record
        && !made.unwritten.entries.is_empty()
    {
        let unwritten = std::mem::take(&mut made.unwritten);
        environment.records.write_now(&environment.index, unwritten, Arc::clone(record)).await;
    }
    made
}

/// What another build has recorded under one of the keys since they were looked up: it ran while this one
/// waited for its turn, or between the look-up and now.
async fn made_meanwhile<W: Worker>(work: &Work<W>, miss: &Miss) -> Option<(Made<W::Result>, CacheKey)> {
    if miss.ignored {
        return None;
    }
    for entry in &miss.entries {
        let Answer::LookedUp(Some(record)) = look_up::<W, W::Result>(&work.environment, &entry.key) else {
            continue;
        };
        let Ok(Some(outputs)) = caught(work.worker().load(&record)).await else { continue };
        let others: Vec<_> = miss.entries.iter().filter(|other| other.key != entry.key).cloned().collect();
        let record = Arc::new(NewRecord {
            result: record.result,
            vertex: record.vertex,
            vertex_name: record.vertex_name,
            created_at: record.created_at,
            duration: record.duration,
        });
        let made = Made { outputs: Arc::from(outputs), record: Some(record), unwritten: others.into() };
        return Some((made, entry.key));
    }
    None
}

async fn run<W: Worker>(
    work: &Work<W>,
    inputs: &[W::Result],
    (entries, claims): (&[KeyEntry], Vec<Claim>),
    start: Instant,
) -> Result<Made<W::Result>, OpError> {
    let outputs = caught(work.worker().execute(&work.node.vertex, inputs, &work.cx)).await?;
    name(work, outputs, Unwritten { entries: entries.to_vec(), claims }, start.elapsed()).await
}

/// Gives outputs a name, by which they are to be found under the keys.
async fn name<W: Worker>(
    work: &Work<W>,
    outputs: Vec<W::Result>,
    unwritten: Unwritten,
    duration: Duration,
) -> Result<Made<W::Result>, OpError> {
    let result = caught(work.worker().persist(&outputs)).await?;
    let record = result.map(|result| {
        Arc::new(NewRecord {
            result,
            vertex: work.node.vertex.digest.to_string(),
            vertex_name: label(&work.node.vertex).to_owned(),
            created_at: SystemTime::now(),
            duration,
        })
    });
    Ok(Made { outputs: Arc::from(outputs), record, unwritten })
}

pub(super) async fn record<W: Worker>(
    environment: Arc<Environment<W>>,
    unwritten: Unwritten,
    record: Arc<NewRecord>,
) -> Answer<W::Result> {
    environment.records.write(&environment.index, unwritten, record).await;
    Answer::Recorded
}

/// Writes to the index off the async threads: another process may hold it for a while.
async fn in_index<T: Send + 'static>(
    write: impl FnOnce() -> Result<T, stave_cache::IndexError> + Send + 'static,
    otherwise: &'static str,
) {
    match tokio::task::spawn_blocking(write).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => tracing::warn!(error = &error as &dyn std::error::Error, "{otherwise}"),
        Err(error) => tracing::warn!(error = &error as &dyn std::error::Error, "{otherwise}"),
    }
}

async fn permit<W: Worker>(work: &Work<W>, permits: &Turns) -> Option<Permit> {
    tokio::select! {
        biased;
        () = work.cx.cancel.cancelled() => None,
        permit = permits.acquire(work.environment.lane) => Some(permit),
    }
}

/// The worker's outcome, with a panic made an error of the vertex.
async fn caught<T>(future: impl Future<Output = Result<T, OpError>>) -> Result<T, OpError> {
    AssertUnwindSafe(future).catch_unwind().await.unwrap_or_else(|panic| {
        let message = panic
            .downcast_ref::<&str>()
            .map(ToString::to_string)
            .or_else(|| panic.downcast_ref::<String>().cloned())
            .unwrap_or_else(|| "unknown cause".to_owned());
        Err(OpError::new(OpErrorKind::Internal, Panicked { message }))
    })
}
