//! One build of a client: its session, what it asked for, the results it has so far.
//!
//! Owns the life of a build: it begins with `Solve` and ends with it, however that is, and then everything that runs
//! for it stops. Results ([`Target`]) are lazy: a graph is solved when somebody first needs its files. Must not know
//! gRPC services. Start with [`Build`] and [`Builds`].

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bollard_buildkit_proto::pb;
use stave_engine::{Engine, Parts};
use stave_llb::Definition;
use stave_oci::{Digest, ImageConfig, Platform};
use stave_registry::{Client, Keychain, ResolvedImage};
use stave_store::{Lease, Snapshot};
use stave_worker::{Confinement, Pins, Session};
use tokio::sync::{OnceCell, oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::failure::Failure;
use crate::progress::{Journal, WarningSource};
use crate::session::auth::ClientCredentials;
use crate::session::files::ClientFiles;
use crate::session::{ClientSession, secrets, ssh};

/// Most results of one build.
const MAX_TARGETS: usize = 10_000;
/// The longest name of a build, in bytes.
const MAX_ID: usize = 256;
/// How long a call that belongs to a build waits for it.
const ARRIVAL: Duration = Duration::from_secs(5);
/// Builds whose journals are kept after their end, for whoever asks late.
const KEPT_JOURNALS: usize = 32;

/// A build that runs.
pub(crate) struct Build {
    pub(crate) id: String,
    pub(crate) session: Arc<ClientSession>,
    pub(crate) files: Arc<ClientFiles>,
    pub(crate) registry: Client,
    pub(crate) journal: Arc<Journal>,
    pub(crate) cancel: CancellationToken,
    pub(crate) inputs: HashMap<String, pb::Definition>,
    confinement: Confinement,
    pins: Pins,
    engine: Arc<Engine>,
    targets: Mutex<HashMap<String, Arc<Target>>>,
    returned: Mutex<Option<oneshot::Sender<Result<Outcome, Failure>>>>,
    _lease: Lease,
}

/// What a build is begun with.
pub(crate) struct Beginning {
    pub(crate) id: String,
    pub(crate) session: Arc<ClientSession>,
    pub(crate) inputs: HashMap<String, pb::Definition>,
    pub(crate) confinement: Confinement,
}

/// One result: a graph, and its files once somebody needed them.
#[derive(Debug)]
pub(crate) struct Target {
    /// What the client calls it; hard to guess.
    pub(crate) id: String,
    /// The graph.
    pub(crate) definition: Definition,
    /// The graph as clients get it back.
    pub(crate) message: pb::Definition,
    /// The time its files are to carry.
    pub(crate) epoch: Option<i64>,
    resolved: BTreeMap<Digest, ResolvedImage>,
    solved: OnceCell<Result<Snapshot, Failure>>,
}

/// What a front end came to.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// Results, with their platform where there are several.
    pub(crate) targets: Vec<(Option<String>, Arc<Target>)>,
    /// What else is said about them, the images' configs among it.
    pub(crate) metadata: HashMap<String, Vec<u8>>,
}

impl Build {
    /// The parts of this build; warnings are about `about`.
    pub(crate) fn parts(&self, about: Option<WarningSource>) -> Parts<'_> {
        self.engine.parts(self.registry.clone(), self.journal.observer(about), self.cancel.clone())
    }

    pub(crate) fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Takes up a result.
    pub(crate) fn add(
        &self,
        definition: Definition,
        resolved: BTreeMap<Digest, ResolvedImage>,
        epoch: Option<i64>,
    ) -> Result<Arc<Target>, Failure> {
        let message = prost::Message::decode(definition.to_wire().as_slice()).unwrap_or_default();
        let id = random_id();
        let target = Arc::new(Target {
            id: id.clone(),
            definition,
            message,
            epoch,
            resolved,
            solved: OnceCell::new(),
        });
        let mut targets = self.targets.lock().unwrap_or_else(PoisonError::into_inner);
        if targets.len() >= MAX_TARGETS {
            return Err(Failure::Value(format!("more than {MAX_TARGETS} results in one build")));
        }
        targets.insert(id, Arc::clone(&target));
        Ok(target)
    }

    /// The result of this id, if it is one of this build.
    pub(crate) fn target(&self, id: &str) -> Result<Arc<Target>, Failure> {
        let targets = self.targets.lock().unwrap_or_else(PoisonError::into_inner);
        let no_such = || Failure::NotFound(format!("no such ref: {id}"));
        targets.get(id).cloned().ok_or_else(no_such)
    }

    /// The files of a result, made now if they were not yet.
    pub(crate) async fn solve(&self, target: &Target) -> Result<Snapshot, Failure> {
        let solved = target.solved.get_or_init(|| async {
            let session = self.local_session(target).await?;
            let solved = self.parts(None).solve(&target.definition, session).await;
            let (snapshot, _) = solved.map_err(|error| Failure::of_definition(error, &target.definition))?;
            Ok(snapshot)
        });
        match solved.await {
            Ok(snapshot) => Ok(snapshot.clone()),
            Err(failure) => Err(failure.again()),
        }
    }

    /// The files of all results, made side by side.
    pub(crate) async fn solve_all(&self, outcome: &Outcome) -> Result<Vec<Snapshot>, Failure> {
        let mut solving = Vec::with_capacity(outcome.targets.len());
        for (_, target) in &outcome.targets {
            solving.push(self.solve(target));
        }
        futures::future::try_join_all(solving).await
    }

    /// What the steps of a result may use: all of it the client's.
    async fn local_session(&self, target: &Target) -> Result<Arc<Session>, Failure> {
        let definition = &target.definition;
        let secrets = secrets::fetch(Arc::clone(&self.session), secrets::wanted(definition)).await?;
        Ok(Arc::new(Session {
            context_modes: stave_worker::ContextModes::Kept,
            contexts: BTreeMap::new(),
            remote: Some(Arc::clone(&self.files) as _),
            travel: None,
            layouts: BTreeMap::new(),
            known_hosts: None,
            pins: self.pins.clone(),
            secrets,
            ssh: ssh::agents(&self.session, definition).await,
            registry: self.registry.clone(),
            resolved: target.resolved.clone(),
            confinement: self.confinement.clone(),
        }))
    }

    /// What a part of the build came to: whatever failed because its client went away was cancelled, whoever noticed
    /// it first.
    pub(crate) async fn settle<T>(&self, result: Result<T, Failure>) -> Result<T, Failure> {
        match result {
            Err(_) if self.cancel.is_cancelled() || self.session.is_gone().await => Err(Failure::Cancelled),
            result => result,
        }
    }

    /// Hands over what the client's front end came to; only the first one counts.
    pub(crate) fn finish(&self, outcome: Result<Outcome, Failure>) -> Result<(), Failure> {
        let mut returned = self.returned.lock().unwrap_or_else(PoisonError::into_inner);
        let sender =
            returned.take().ok_or_else(|| Failure::Value("the build has returned already".to_owned()))?;
        // Nobody waits any more: the build is over.
        sender.send(outcome).map_err(|_| Failure::Cancelled)
    }
}

impl std::fmt::Debug for Build {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Build").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Outcome {
    /// The image config of a result.
    pub(crate) fn config(&self, platform: Option<&str>) -> Result<Option<ImageConfig>, Failure> {
        let key = match platform {
            Some(platform) => format!("containerimage.config/{platform}"),
            None => "containerimage.config".to_owned(),
        };
        let Some(bytes) = self.metadata.get(&key) else { return Ok(None) };
        let config = serde_json::from_slice(bytes);
        config.map(Some).map_err(|error| Failure::Value(format!("failed to parse image config: {error}")))
    }

    /// The platform of a result: what its key says, else what its config says.
    pub(crate) fn platform(&self, platform: Option<&str>, config: &ImageConfig) -> Platform {
        let named = platform.and_then(|platform| platform.parse().ok());
        named.unwrap_or_else(|| match config.architecture.is_empty() {
            true => Platform::host(),
            false => config.platform(),
        })
    }
}

/// The builds of the daemon.
#[derive(Debug)]
pub(crate) struct Builds {
    engine: Arc<Engine>,
    running: Mutex<Running>,
    changed: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct Running {
    builds: HashMap<String, Arc<Build>>,
    over: VecDeque<(String, Arc<Journal>)>,
    is_draining: bool,
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
    pub(crate) fn new(engine: Arc<Engine>) -> Self {
        Self { engine, running: Mutex::default(), changed: watch::Sender::new(()) }
    }

    /// Begins a build.
    pub(crate) fn begin(&self, beginning: Beginning) -> Result<RunningBuild<'_>, Failure> {
        let Beginning { id, session, inputs, confinement } = beginning;
        if id.is_empty() || id.len() > MAX_ID {
            return Err(Failure::Value("invalid build ref".to_owned()));
        }
        let credentials = Arc::new(ClientCredentials(Arc::clone(&session)));
        let registry = self.engine.registry().with_keychain(Keychain::elsewhere(credentials));
        let store = self.engine.store();
        let files = Arc::new(ClientFiles::new(Arc::clone(&session), store.clone()));
        let (sender, returned) = oneshot::channel();
        let build = Arc::new(Build {
            id: id.clone(),
            cancel: session.ended().child_token(),
            session,
            files,
            registry,
            journal: Journal::new(&id),
            inputs,
            confinement,
            pins: Pins::default(),
            engine: Arc::clone(&self.engine),
            targets: Mutex::default(),
            returned: Mutex::new(Some(sender)),
            _lease: store.lease()?,
        });
        let mut running = self.lock();
        if running.is_draining {
            return Err(Failure::Cancelled);
        }
        if running.builds.contains_key(&id) || running.over.iter().any(|(over, _)| *over == id) {
            return Err(Failure::Value(format!("job ID {id} exists")));
        }
        running.builds.insert(id, Arc::clone(&build));
        drop(running);
        self.changed.send_replace(());
        Ok(RunningBuild { builds: self, build, returned })
    }

    /// The running build of this id, waiting a little: clients call before their `Solve` has arrived.
    pub(crate) async fn get(&self, id: &str) -> Result<Arc<Build>, Failure> {
        let found = self.wait(|running| running.builds.get(id).cloned()).await;
        found.ok_or_else(|| {
            Failure::NotFound(format!("no such job {}", id.chars().take(MAX_ID).collect::<String>()))
        })
    }

    /// The journal of a build that runs or is just over.
    pub(crate) async fn journal(&self, id: &str) -> Result<Arc<Journal>, Failure> {
        let find = |running: &Running| {
            let over =
                || running.over.iter().find(|(over, _)| over == id).map(|(_, journal)| Arc::clone(journal));
            running.builds.get(id).map(|build| Arc::clone(&build.journal)).or_else(over)
        };
        let found = self.wait(find).await;
        found.ok_or_else(|| {
            Failure::NotFound(format!("no such job {}", id.chars().take(MAX_ID).collect::<String>()))
        })
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

    /// Takes no more builds, and returns when none runs; `patience` later those that do are stopped.
    pub(crate) async fn drain(&self, patience: Duration) {
        self.lock().is_draining = true;
        let mut changed = self.changed.subscribe();
        let idle = async {
            while !self.lock().builds.is_empty() {
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

impl Drop for RunningBuild<'_> {
    fn drop(&mut self) {
        self.build.cancel.cancel();
        self.build.journal.finish();
        let mut running = self.builds.lock();
        running.builds.remove(&self.build.id);
        running.over.push_back((self.build.id.clone(), Arc::clone(&self.build.journal)));
        if running.over.len() > KEPT_JOURNALS {
            running.over.pop_front();
        }
        drop(running);
        self.builds.changed.send_replace(());
    }
}

/// An id that nobody guesses.
fn random_id() -> String {
    let mut bytes = [0; 16];
    // The kernel's generator is there once the system is up; a short read never happens at this size.
    let filled = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()).unwrap_or(0);
    debug_assert_eq!(filled, bytes.len(), "16 bytes come at once");
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
