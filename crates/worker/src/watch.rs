//! A process that writes into the store's layers, held to the store's cap while it runs.
//!
//! Owns the thread that glances, the moments in which the process stands, and its end when nothing more fits. Must not
//! know what a look is (see [`Growth`]) or how processes are made to stand (see [`Freezer`]). Read [`Watch`] first.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use stave_sandbox::{Freezer, Room, Urgent};
use stave_store::{ActiveLayer, Announcements, Glance, Growth, Store, StoreError};
use tokio_util::sync::CancellationToken;

/// How long a process is given to stand. One within a long call is looked at while it writes, again and again.
const STANDS_WITHIN: Duration = Duration::from_millis(5);

/// How long it is waited for what others may give back.
const PATIENCE: Duration = Duration::from_secs(2);

/// Between two looks for that.
const PAUSE: Duration = Duration::from_millis(20);

/// Until the next glance after one that saw nothing.
const AGAIN: Duration = Duration::from_millis(250);

/// What watches one process. Only stores with a cap have any.
#[derive(Debug)]
pub(crate) struct Watch {
    growth: Mutex<Growth>,
    announcements: Announcements,
    near: bool,
    refusal: Mutex<Option<StoreError>>,
    full: CancellationToken,
    stage: Mutex<Stage>,
    changed: Condvar,
}

/// How far the process is.
#[derive(Debug)]
enum Stage {
    Starting,
    Running(Option<Freezer>),
    Ended,
}

impl Watch {
    /// For a process that will write into these layers. Blocks until there is room for it to begin.
    ///
    /// # Errors
    /// [`StoreError::CapReached`] when there is none.
    pub(crate) fn of<'a>(
        store: &Store,
        layers: impl IntoIterator<Item = &'a ActiveLayer>,
    ) -> Result<Option<Arc<Self>>, StoreError> {
        let Some(mut growth) = Growth::of(store, layers)? else { return Ok(None) };
        look(&mut growth, true, || true)?;
        Ok(Some(Arc::new(Self {
            announcements: growth.announcements(),
            near: growth.is_near(),
            growth: Mutex::new(growth),
            refusal: Mutex::new(None),
            full: CancellationToken::new(),
            stage: Mutex::new(Stage::Starting),
            changed: Condvar::new(),
        })))
    }

    /// What the process asks before it takes much at once; near the cap it is one that can be made to stand.
    pub(crate) fn room(self: &Arc<Self>) -> Room {
        let watch = Arc::clone(self);
        let room = Room::new(move |bytes| match watch.announcements.take(bytes) {
            Ok(()) => true,
            Err(error) => {
                watch.refuse(error);
                false
            }
        });
        if self.near { room.held_still() } else { room }
    }

    /// Is ready to watch, until the returned guard is dropped.
    pub(crate) fn begin(self: &Arc<Self>) -> Watching {
        let watch = Arc::clone(self);
        let thread = std::thread::Builder::new().name("stave-room".into());
        let thread = thread.spawn(move || watch.run());
        if let Err(error) = &thread {
            tracing::warn!(%error, "what a step writes is measured only when it has ended");
        }
        Watching { watch: Arc::clone(self), thread: thread.ok() }
    }

    /// Returns when the process has to end: nothing more fits.
    pub(crate) async fn full(&self) {
        self.full.cancelled().await;
    }

    /// Watches work of this process and programs that it waits for; when nothing more fits `ending` is cancelled.
    ///
    /// # Errors
    /// Those of the work, or that nothing more fits.
    pub(crate) async fn over<E: From<StoreError>>(
        self: Arc<Self>,
        work: impl Future<Output = Result<(), E>>,
        ending: &CancellationToken,
    ) -> Result<(), E> {
        let watching = self.begin();
        watching.follow(None);
        let done = {
            let mut work = std::pin::pin!(work);
            tokio::select! {
                done = work.as_mut() => done,
                () = self.full() => {
                    ending.cancel();
                    work.await
                }
            }
        };
        drop(watching);
        match self.refusal() {
            Some(refusal) => Err(refusal.into()),
            None => done,
        }
    }

    /// Measures what the process wrote, now that it has ended: that much stays reserved until it is recorded.
    ///
    /// # Errors
    /// [`StoreError::CapReached`] when it does not fit.
    pub(crate) fn finish(&self) -> Result<(), StoreError> {
        self.growth.lock().unwrap_or_else(PoisonError::into_inner).finish()
    }

    /// Why it had to end, once.
    pub(crate) fn refusal(&self) -> Option<StoreError> {
        self.refusal.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn refuse(&self, error: StoreError) {
        self.refusal.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        self.full.cancel();
    }

    fn run(&self) {
        // A glance that comes late comes too late.
        let mut urgent = Urgent::begin();
        let Some(freezer) = self.begun() else { return };
        let freezer = freezer.as_ref();
        loop {
            let glance = self.growth.lock().unwrap_or_else(PoisonError::into_inner).glance();
            let pause = match glance {
                Ok(Glance::Again(pause)) => pause,
                Ok(Glance::Closely { near }) => {
                    let held = freezer.filter(|_| near).and_then(|freezer| freezer.hold(STANDS_WITHIN).ok());
                    let is_still = held.as_ref().is_some_and(stave_sandbox::Held::is_still);
                    if is_still || !near {
                        // Nothing happens meanwhile, or nothing that matters, however long it takes.
                        drop(urgent.take());
                    }
                    let mut growth = self.growth.lock().unwrap_or_else(PoisonError::into_inner);
                    let looked = look(&mut growth, is_still, || is_still && self.waits(Duration::ZERO));
                    match looked {
                        Ok(()) => Duration::ZERO,
                        Err(error @ StoreError::CapReached { .. }) => {
                            // It cannot be killed where it cannot be frozen: then the caller does.
                            let _killed = freezer.map(Freezer::kill);
                            self.refuse(error);
                            return;
                        }
                        Err(error) => {
                            // What cannot be seen now is measured when the step has ended, at the latest.
                            tracing::warn!(%error, "what a step writes cannot be looked at");
                            AGAIN
                        }
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "what a step writes cannot be looked at");
                    AGAIN
                }
            };
            urgent = urgent.or_else(Urgent::begin);
            if !self.waits(pause) {
                return;
            }
        }
    }

    /// Waits so long; false when the process has ended.
    fn waits(&self, pause: Duration) -> bool {
        let stage = self.stage.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.changed.wait_timeout_while(stage, pause, |stage| !matches!(stage, Stage::Ended));
        !matches!(*waited.unwrap_or_else(PoisonError::into_inner).0, Stage::Ended)
    }

    /// Waits until the process runs; `None` when it will not.
    fn begun(&self) -> Option<Option<Freezer>> {
        let stage = self.stage.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.changed.wait_while(stage, |stage| matches!(stage, Stage::Starting));
        match &*waited.unwrap_or_else(PoisonError::into_inner) {
            Stage::Running(freezer) => Some(freezer.clone()),
            Stage::Starting | Stage::Ended => None,
        }
    }

    fn enter(&self, stage: Stage) {
        *self.stage.lock().unwrap_or_else(PoisonError::into_inner) = stage;
        self.changed.notify_all();
    }
}

/// Looks; when nothing more fits, again while others may give something back and `may_wait` says so.
fn look(growth: &mut Growth, is_still: bool, may_wait: impl Fn() -> bool) -> Result<(), StoreError> {
    let since = Instant::now();
    loop {
        match growth.look(is_still) {
            Err(StoreError::CapReached { .. })
                if since.elapsed() < PATIENCE && may_wait() && growth.has_company()? =>
            {
                std::thread::sleep(PAUSE);
            }
            other => return other,
        }
    }
}

/// A watch that goes on. On drop it has ended.
#[derive(Debug)]
pub(crate) struct Watching {
    watch: Arc<Watch>,
    thread: Option<JoinHandle<()>>,
}

impl Watching {
    /// The process runs from now on.
    pub(crate) fn follow(&self, freezer: Option<Freezer>) {
        self.watch.enter(Stage::Running(freezer));
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.watch.enter(Stage::Ended);
        if let Some(thread) = self.thread.take() {
            let _panicked = thread.join();
        }
    }
}
