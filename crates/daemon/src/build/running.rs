//! The builds of the daemon: those that run, and what is left of those that are just over.
//!
//! Owns how a build begins, how the calls that belong to it find it, and how the daemon waits for all to end. Must not
//! know what a build does meanwhile. Start with [`Builds::begin`].

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use stave_engine::{Engine, Holding};
use stave_registry::Keychain;
use stave_worker::{Namespace, Pins};
use tokio::sync::{oneshot, watch};

use super::emptied::Emptied;
use super::producers::Producers;
use super::{Beginning, Build};
use crate::failure::Failure;
use crate::metrics::Metrics;
use crate::outcome::Outcome;
use crate::progress::Journal;
use crate::session::Sessions;
use crate::session::auth::ClientCredentials;
use crate::session::files::ClientFiles;
use crate::session::layout::ClientLayouts;
use crate::tenants::Caller;

/// The longest name of a build, in bytes.
const MAX_ID: usize = 256;
/// How long a call that belongs to a build waits for it.
const ARRIVAL: Duration = Duration::from_secs(5);
/// Builds whose journals are kept after their end, for whoever asks late.
const KEPT_JOURNALS: usize = 32;
/// Bytes of memory that these may take, the last one aside.
const KEPT_JOURNAL_BYTES: usize = 8 << 20;

/// The builds of the daemon.
#[derive(Debug)]
pub(crate) struct Builds {
    sessions: Arc<Sessions>,
    producers: Arc<Producers>,
    engine: Arc<Engine>,
    metrics: Arc<Metrics>,
    running: Mutex<Running>,
    changed: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct Running {
    builds: HashMap<String, Arc<Build>>,
    over: VecDeque<Over>,
    is_draining: bool,
    /// Clients that wait for the answer to their request for a build.
    waiting: usize,
}

impl Running {
    /// Whether somebody waits for a build, or one runs.
    fn is_busy(&self) -> bool {
        !self.builds.is_empty() || self.waiting > 0
    }

    /// Lets journals of builds go that are over: the oldest, beyond how many there may be and what they may take.
    fn forget(&mut self) {
        let mut bytes: usize = self.over.iter().rev().skip(1).map(|over| over.journal.size()).sum();
        while self.over.len() > KEPT_JOURNALS || (self.over.len() > 1 && bytes > KEPT_JOURNAL_BYTES) {
            let Some(gone) = self.over.pop_front() else { return };
            bytes = bytes.saturating_sub(gone.journal.size());
        }
    }
}

/// What is left of a build that is over.
#[derive(Debug, Clone)]
struct Over {
    id: String,
    owner: Namespace,
    journal: Arc<Journal>,
}

impl Over {
    fn of(build: &Build) -> Self {
        let owner = build.gate.owner().namespace.clone();
        Self { id: build.id.clone(), owner, journal: Arc::clone(&build.journal) }
    }
}

/// A build while `Solve` runs; when it is dropped the build is over.
#[derive(Debug)]
pub(crate) struct RunningBuild<'a> {
    builds: &'a Builds,
    pub(crate) build: Arc<Build>,
    /// What the client's own front end comes to.
    pub(crate) returned: oneshot::Receiver<Result<Outcome, Failure>>,
}

impl Builds {
    pub(crate) fn new(engine: Arc<Engine>, metrics: Arc<Metrics>, sessions: Arc<Sessions>) -> Self {
        Self {
            sessions,
            producers: Arc::default(),
            engine,
            metrics,
            running: Mutex::default(),
            changed: watch::Sender::new(()),
        }
    }

    /// Begins a build.
    pub(crate) fn begin(&self, beginning: Beginning) -> Result<RunningBuild<'_>, Failure> {
        let Beginning {
            registry,
            id,
            session,
            inputs,
            wanted,
            environment,
            confinement,
            policy,
            verifier,
            gate,
            recorder,
        } = beginning;
        if id.is_empty() || id.len() > MAX_ID {
            return Err(Failure::Value("invalid build ref".to_owned()));
        }
        let credentials = Arc::new(ClientCredentials(Arc::clone(&session)));
        let registry = registry.with_keychain(Keychain::elsewhere(credentials));
        let store = self.engine.store();
        let files =
            Arc::new(ClientFiles::new(Arc::clone(&session), Arc::clone(&self.sessions), store.clone()));
        let layouts = ClientLayouts::new(Arc::clone(&session), store.clone());
        let (sender, returned) = oneshot::channel();
        let build = Arc::new(Build {
            id: id.clone(),
            cancel: session.ended().child_token(),
            session,
            files,
            layouts,
            registry,
            journal: Journal::new(&id, recorder.as_ref()),
            inputs,
            wanted,
            started: Timestamp::now(),
            environment,
            producers: Arc::clone(&self.producers),
            containers: Arc::default(),
            gate,
            metrics: Arc::clone(&self.metrics),
            confinement,
            pins: Pins::default(),
            emptied: Emptied::default(),
            named_imports: Mutex::default(),
            policy,
            verifier,
            recorder,
            engine: Arc::clone(&self.engine),
            targets: Mutex::default(),
            returned: Mutex::new(Some(sender)),
            made: Mutex::default(),
            said: Mutex::default(),
            _lease: store.lease()?,
        });
        let mut running = self.lock();
        if running.is_draining {
            return Err(Failure::Ending);
        }
        if running.builds.contains_key(&id) || running.over.iter().any(|over| over.id == id) {
            return Err(Failure::Value(format!("job ID {id} exists")));
        }
        running.builds.insert(id, Arc::clone(&build));
        drop(running);
        self.changed.send_replace(());
        Ok(RunningBuild { builds: self, build, returned })
    }

    /// The running build of this id, waiting a little: clients call before their `Solve` has arrived.
    pub(crate) async fn get(&self, id: &str) -> Result<Arc<Build>, Failure> {
        // One that is over does not come again.
        let find = |running: &Running| match running.over.iter().any(|over| over.id == id) {
            true => Some(None),
            false => running.builds.get(id).cloned().map(Some),
        };
        let found = self.wait(find).await.flatten();
        found.ok_or_else(|| {
            Failure::NotFound(format!("no such job {}", id.chars().take(MAX_ID).collect::<String>()))
        })
    }

    /// The journal of a build that runs or is just over.
    pub(crate) async fn journal(&self, caller: &Caller, id: &str) -> Result<Arc<Journal>, Failure> {
        let find = |running: &Running| {
            let over = || running.over.iter().find(|over| over.id == id).cloned();
            let build = running.builds.get(id).map(|build| Over::of(build));
            let found = build.or_else(over)?;
            Some(caller.may_see(&found.owner).then_some(found.journal))
        };
        let found = self.wait(find).await.flatten();
        found.ok_or_else(|| {
            Failure::NotFound(format!("no such job {}", id.chars().take(MAX_ID).collect::<String>()))
        })
    }

    /// What is held of builds that run, and of those that are over.
    pub(crate) fn holdings(&self) -> Vec<Holding> {
        let running = self.lock();
        let results = running.builds.values().map(|build| build.target_count()).sum();
        vec![
            Holding::in_use("daemon.builds", running.builds.len()),
            Holding::in_use("daemon.results", results),
            Holding::remembered("daemon.journals", (running.over.len(), KEPT_JOURNALS)),
            Holding::in_use("daemon.producers", self.producers.count()),
        ]
    }

    /// All that run.
    pub(crate) fn running(&self) -> Vec<Arc<Build>> {
        self.lock().builds.values().cloned().collect()
    }

    /// Whether there is a build of this id that runs or is just over.
    pub(crate) fn is_known(&self, id: &str) -> bool {
        let running = self.lock();
        running.builds.contains_key(id) || running.over.iter().any(|over| over.id == id)
    }

    async fn wait<T>(&self, find: impl Fn(&Running) -> Option<T>) -> Option<T> {
        let mut changed = self.changed.subscribe();
        let arrived = async {
            loop {
                changed.borrow_and_update();
                let found = find(&self.lock());
                if found.is_some() {
                    return found;
                }
                changed.changed().await.ok()?;
            }
        };
        tokio::time::timeout(ARRIVAL, arrived).await.ok().flatten()
    }

    /// A client waits for an answer as long as this lives: the daemon does not end before it has it.
    pub(crate) fn answering(&self) -> Answering<'_> {
        self.lock().waiting += 1;
        Answering(self)
    }

    /// Takes no more builds, and returns when none runs and all are answered; `patience` later those that do are stopped.
    pub(crate) async fn drain(&self, patience: Duration) {
        self.lock().is_draining = true;
        let mut changed = self.changed.subscribe();
        let idle = async {
            while self.lock().is_busy() {
                if changed.changed().await.is_err() {
                    return;
                }
            }
        };
        tokio::pin!(idle);
        if tokio::time::timeout(patience, &mut idle).await.is_err() {
            for build in self.lock().builds.values() {
                build.cancel.cancel();
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Running> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A client that waits for the answer to its request for a build.
#[derive(Debug)]
pub(crate) struct Answering<'a>(&'a Builds);

impl Drop for Answering<'_> {
    fn drop(&mut self) {
        self.0.lock().waiting -= 1;
        self.0.changed.send_replace(());
    }
}

impl Drop for RunningBuild<'_> {
    fn drop(&mut self) {
        self.build.cancel.cancel();
        self.build.journal.finish();
        let mut running = self.builds.lock();
        running.builds.remove(&self.build.id);
        running.over.push_back(Over::of(&self.build));
        running.forget();
        drop(running);
        self.builds.changed.send_replace(());
    }
}
