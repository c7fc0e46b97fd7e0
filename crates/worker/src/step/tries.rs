//! The tries of a step: when it may begin, how long it may take, and whether it is run again.
//!
//! Owns admission, time, control groups of builds and the meaning of an end by want of memory. Must not know how a
//! process is prepared. Read [`run`] first.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use stave_llb::ExecOp;
use stave_sandbox::{CgroupGuard, CgroupParent};
use stave_solver::{JobContext, LogStream, StepPhase, StepUsage};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::failed;
use super::{Plan, StepError, begin, check_supported, lock_caches};
use crate::abandon::until_cancelled;
use crate::admission::{Admitted, Wish, machine};
use crate::confinement::Confinement;
use crate::exec::{ExecError, Executor, Finished, ProcessIo, ProcessUsage, StepLog};
use crate::redact::Redactions;
use crate::session::Session;
use crate::source::image::blocking;
use crate::watch::Watch;
use crate::worker::{Ref, Shared};

/// How long a process runs before there is time for other things beside it.
const IDLE: Duration = Duration::from_millis(20);

/// The part of a peak that is no difference worth writing down.
const SAME_PEAK: u64 = 32;

/// Pause before the first repetition; it doubles with each.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// Longest pause.
const MAX_PAUSE: Duration = Duration::from_secs(30);

/// Control groups of builds that have steps running, by session.
pub(crate) type BuildGroups = Mutex<HashMap<usize, Weak<CgroupGuard>>>;

/// A try that failed, with what it left if it ran.
pub(super) struct Failure {
    pub(super) error: StepError,
    pub(super) left: Option<Box<super::Ready>>,
}

impl<E: Into<StepError>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self { error: error.into(), left: None }
    }
}

/// Runs a step, as often as the build wants it; the outputs in order of their index.
pub(crate) async fn run<E: Executor>(
    shared: &Arc<Shared>,
    executor: &E,
    op: &ExecOp,
    inputs: &[Ref],
    cx: &JobContext<Session>,
) -> Result<Vec<Ref>, StepError> {
    check_supported(op, &cx.session)?;
    executor.prepare();
    let confinement = &cx.session.confinement;
    let (mut repeated, mut alone) = (0, false);
    loop {
        let attempt = Attempt { shared, op, inputs, cx, alone };
        let Failure { error, left } = match attempt.run(executor).await {
            Ok(outputs) => return Ok(outputs),
            Err(failure) => failure,
        };
        if matches!(error, StepError::OutOfMemory { crowded: true, .. }) && !alone {
            alone = true;
            say(cx, "out of memory beside other steps: running it again alone").await;
        } else if repeated < confinement.retries && error.is_of_the_process() {
            let pause = FIRST_PAUSE.saturating_mul(1 << repeated.min(16)).min(MAX_PAUSE);
            repeated += 1;
            let text = format!("{error}: again in {pause:?} ({repeated} of {})", confinement.retries);
            say(cx, &text).await;
            drop(left);
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = cx.cancel.cancelled() => return Err(ExecError::Cancelled.into()),
            }
        } else {
            if let Some(ready) = left.filter(|_| error.is_of_the_process()) {
                keep(shared, op, inputs, cx, ready).await;
            }
            return Err(error);
        }
    }
}

/// A word of ours in the step's log.
async fn say(cx: &JobContext<Session>, text: &str) {
    cx.events.log(LogStream::Stderr, format!("stave: {text}\n").as_bytes()).await;
}

/// Keeps the file system of a step that failed. That it cannot be kept is no second failure.
async fn keep(
    shared: &Arc<Shared>,
    op: &ExecOp,
    inputs: &[Ref],
    cx: &JobContext<Session>,
    ready: Box<super::Ready>,
) {
    let (vertex, op, inputs) = (cx.vertex.clone(), op.clone(), inputs.to_vec());
    let network = cx.session.confinement.network;
    let (shared, cancel, owner) = (Arc::clone(shared), cx.cancel.clone(), cx.session.namespace.clone());
    let kept = blocking(move || -> Result<(), StepError> {
        let step = failed::keep(&shared, *ready, (vertex, op, inputs, network), &cancel)?;
        shared.leftovers.keep(owner, step);
        Ok(())
    });
    if let Err(error) = kept.await {
        tracing::warn!(error = &error as &dyn std::error::Error, "a failed step's file system is not kept");
    }
}

/// When the group of a build was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Made {
    /// For another step that runs.
    Before,
    /// For this one.
    Now,
}

struct Attempt<'a> {
    shared: &'a Arc<Shared>,
    op: &'a ExecOp,
    inputs: &'a [Ref],
    cx: &'a JobContext<Session>,
    alone: bool,
}

impl Attempt<'_> {
    async fn run<E: Executor>(&self, executor: &E) -> Result<Vec<Ref>, Failure> {
        let Self { shared, op, cx, .. } = self;
        let start = Instant::now();
        let caches = lock_caches(shared, op, self.inputs, &cx.session, &cx.cancel).await?;
        // Last of all that is waited for: who runs waits for nothing, so this ends.
        let admitted = self.admit().await.ok_or(ExecError::Cancelled)?;
        cx.events.phase(StepPhase::Waiting, start);
        let start = Instant::now();
        let group = self.told_group().await;
        let turn = tokio::select! {
            turn = shared.starts.turn(cx.arrival) => turn,
            () = cx.cancel.cancelled() => return Err(ExecError::Cancelled.into()),
        };
        let mut ready = {
            let plan = Plan {
                shared: Arc::clone(shared),
                op: (*op).clone(),
                inputs: self.inputs.to_vec(),
                session: Arc::clone(&cx.session),
                cancel: cx.cancel.clone(),
            };
            let begun = move || -> Result<_, StepError> {
                let mut ready = begin(&plan, caches)?;
                ready.process.watch = Watch::of(&plan.shared.store, ready.prepared.layers())?;
                Ok(ready)
            };
            until_cancelled(begun, &cx.cancel).await.ok_or(ExecError::Cancelled)??
        };
        ready.process.limits =
            Some(cx.session.confinement.step_limits.clone()).filter(|limits| !limits.is_empty());
        ready.process.cgroup_parent = match &group {
            Some(group) => CgroupParent::Within(group.place()),
            None => named_parent(op, &cx.session.confinement),
        };
        let log = StepLog {
            events: cx.events.clone(),
            redactions: Redactions::of(&cx.session),
            held: Arc::clone(&admitted.held),
        };
        cx.events.phase(StepPhase::Preparing, start);
        let start = Instant::now();
        let (mut process, mounts) = (ready.process.clone(), ready.mounts.clone());
        let watch = ready.process.watch.take();
        process.watch.clone_from(&watch);
        process.turn = Some(Arc::new(turn));
        let run = async |cancel: &CancellationToken| {
            executor.run(process, mounts, ProcessIo::Logged(log), cancel).await
        };
        let idle = AbortOnDropHandle::new(tokio::spawn({
            let shared = Arc::clone(shared);
            async move {
                tokio::time::sleep(IDLE).await;
                shared.use_idle_time();
            }
        }));
        let finished = self.within_bounds(watch.as_deref(), run).await;
        drop(idle);
        let finished = match finished {
            Ok(finished) => finished,
            Err(StepError::Exec(error)) => {
                let error = super::start_failure(op, error);
                if let StepError::Exit { tail, .. } = &error {
                    cx.events.log(LogStream::Stderr, tail).await;
                }
                return Err(Failure { error, left: Some(Box::new(ready)) });
            }
            Err(error) => return Err(Failure { error, left: Some(Box::new(ready)) }),
        };
        cx.events.phase(StepPhase::Process, start);
        self.account(&finished.usage).await;
        if let Err(error) = self.judge(&finished, &admitted) {
            return Err(Failure { error, left: Some(Box::new(ready)) });
        }
        drop((admitted, group));
        let start = Instant::now();
        let outputs = blocking(move || {
            // Before the credit goes: else another takes what this step has written already.
            watch.as_deref().map_or(Ok(()), Watch::finish)?;
            drop(watch);
            super::commit(ready, &finished.created_mount_points)
        });
        let outputs = outputs.await?;
        cx.events.phase(StepPhase::Committing, start);
        Ok(outputs)
    }

    /// Waits until there is room.
    async fn admit(&self) -> Option<Admitted> {
        let cx = self.cx;
        let limit = cx.session.confinement.build_limits.memory;
        let expected = self.shared.peaks.of(&cx.vertex);
        let group = cx.session.namespace.group(Arc::as_ptr(&cx.session).addr());
        let wish = Wish { group, limit, expected, alone: self.alone };
        let waiting = async || {
            let needs =
                expected.map_or_else(String::new, |peak| format!(", it held {} last time", bytes(peak)));
            say(cx, &format!("waiting for memory{needs}")).await;
        };
        self.shared.admission.admit(wish, machine, waiting, &cx.cancel).await
    }

    /// The group of [`group`](Self::group); what does not hold of it is said by the step that it is made for.
    async fn told_group(&self) -> Option<Arc<CgroupGuard>> {
        let (group, made) = self.group()?;
        if made == Made::Now {
            for one in group.unlimited() {
                let (controller, reason) = (&one.controller, &one.reason);
                say(self.cx, &format!("a limit of the build does not hold: {controller}: {reason}")).await;
            }
        }
        Some(group)
    }

    /// The group of the build's steps together, if that is limited.
    fn group(&self) -> Option<(Arc<CgroupGuard>, Made)> {
        let confinement = &self.cx.session.confinement;
        if confinement.build_limits.is_empty() {
            return None;
        }
        let mut groups = self.shared.groups.lock().unwrap_or_else(PoisonError::into_inner);
        groups.retain(|_, group| group.strong_count() > 0);
        let session = &self.cx.session;
        let session = session.namespace.group(Arc::as_ptr(session).addr());
        if let Some(group) = groups.get(&session).and_then(Weak::upgrade) {
            return Some((group, Made::Before));
        }
        let parent = named_parent(self.op, confinement);
        let group = Arc::new(CgroupGuard::create(&confinement.build_limits, &parent));
        groups.insert(session, Arc::downgrade(&group));
        Some((group, Made::Now))
    }

    /// The outcome of `run` within the time and the room that a step has.
    async fn within_bounds(
        &self,
        watch: Option<&Watch>,
        run: impl AsyncFnOnce(&CancellationToken) -> Result<Finished, ExecError>,
    ) -> Result<Finished, StepError> {
        let timeout = self.cx.session.confinement.timeout;
        if watch.is_none() && timeout.is_none() {
            return Ok(run(&self.cx.cancel).await?);
        }
        let cancel = self.cx.cancel.child_token();
        let mut passed = None;
        let outcome = {
            let expiry = async {
                let Some(timeout) = timeout else { return std::future::pending().await };
                tokio::time::sleep(timeout).await;
                StepError::TimedOut { command: self.op.args.join(" "), after: timeout }
            };
            let full = async {
                match watch {
                    Some(watch) => watch.full().await,
                    None => std::future::pending().await,
                }
            };
            let mut run = std::pin::pin!(run(&cancel));
            tokio::select! {
                outcome = run.as_mut() => outcome,
                error = expiry => {
                    cancel.cancel();
                    passed = Some(error);
                    run.await
                }
                () = full => {
                    cancel.cancel();
                    run.await
                }
            }
        };
        // What was refused may have ended by itself before it was killed.
        let passed = watch.and_then(Watch::refusal).map(StepError::from).or(passed);
        match (outcome, passed) {
            (Err(ExecError::Cancelled), Some(error)) if !self.cx.cancel.is_cancelled() => Err(error),
            (Ok(_), Some(error @ StepError::Store(_))) => Err(error),
            (outcome, _) => Ok(outcome?),
        }
    }

    async fn account(&self, usage: &ProcessUsage) {
        let ProcessUsage { memory, cpu_time, unlimited, .. } = usage;
        self.cx.events.used(StepUsage { peak_memory: *memory, cpu_time: *cpu_time });
        if usage.oom_killed {
            say(self.cx, "a process was killed for want of memory").await;
        }
        for reason in unlimited {
            say(self.cx, &format!("a limit does not hold: {reason}")).await;
        }
        let (shared, vertex, memory) = (Arc::clone(self.shared), self.cx.vertex.clone(), *memory);
        let is_known = |known: u64| known.abs_diff(memory) <= known / SAME_PEAK;
        if memory == 0 || shared.peaks.of(&vertex).is_some_and(is_known) {
            return;
        }
        // Nobody waits for it: the next build may ask, this one does not.
        drop(tokio::task::spawn_blocking(move || shared.peaks.remember(&vertex, memory)));
    }

    fn judge(&self, finished: &Finished, admitted: &Admitted) -> Result<(), StepError> {
        match super::check_exit(self.op, finished) {
            Err(StepError::Exit { command, code, .. }) if finished.usage.oom_killed => {
                let confinement = &self.cx.session.confinement;
                let (step, build) = (confinement.step_limits.memory, confinement.build_limits.memory);
                let peak = finished.usage.limited_memory.unwrap_or(finished.usage.memory);
                // What broke its own limit would break it alone as well.
                let own = step
                    .is_some_and(|limit| peak >= limit - limit / 16 && build.is_none_or(|all| all > limit));
                let limit = [step, build].into_iter().flatten().min();
                Err(StepError::OutOfMemory {
                    command,
                    code,
                    memory: memory_words(limit, peak),
                    crowded: admitted.was_crowded() && !own,
                })
            }
            outcome => outcome,
        }
    }
}

fn named_parent(op: &ExecOp, confinement: &Confinement) -> CgroupParent {
    let asked = Some(op.cgroup_parent.clone()).filter(|parent| !parent.is_empty());
    asked.or_else(|| confinement.cgroup_parent.clone()).map_or(CgroupParent::Default, CgroupParent::Named)
}

/// `limit 64MiB, peak 63.9MiB`
fn memory_words(limit: Option<u64>, peak: u64) -> String {
    match limit {
        Some(limit) if peak == 0 => format!("limit {}", bytes(limit)),
        // A group within the limited one counts for a moment what that one then refuses.
        Some(limit) => format!("limit {}, peak {}", bytes(limit), bytes(peak.min(limit))),
        None => format!("peak {}", bytes(peak)),
    }
}

/// A size in the unit that suits it, with at most one decimal.
fn bytes(count: u64) -> String {
    let (mut value, mut unit) = (count as f64, 0);
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        (value, unit) = (value / 1024.0, unit + 1);
    }
    let text = format!("{value:.1}");
    format!("{}{}", text.strip_suffix(".0").unwrap_or(&text), UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_in_words() {
        assert_eq!(memory_words(Some(64 << 20), 67_000_000), "limit 64MiB, peak 63.9MiB");
        assert_eq!(memory_words(Some(64 << 20), 69_000_000), "limit 64MiB, peak 64MiB");
        assert_eq!(memory_words(None, 1000), "peak 1000B");
        assert_eq!(bytes(3 << 29), "1.5GiB");
    }
}
