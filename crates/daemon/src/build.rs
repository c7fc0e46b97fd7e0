//! One build of a client: its session, what it asked for, the results it has so far.
//!
//! Owns the life of a build: it begins with `Solve` and ends with it, however that is, and then everything that runs
//! for it stops. Must not know gRPC services. Start with [`Build`]; [`running`] has all of the daemon, [`target`] the
//! results.

mod caches;
mod emptied;
mod producers;
mod running;
mod said;
mod target;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use bollard_buildkit_proto::pb;
use jiff::Timestamp;
use serde_json::{Map, Value};
use stave_engine::attest::Asked;
use stave_engine::cache_spec::ImportSpec;
use stave_engine::record::Recorder;
use stave_engine::{Engine, Journey, Observer, Parts};
use stave_frontend_dockerfile::Source;
use stave_llb::builder::{About, GraphBuilder};
use stave_llb::policy::{SourcePolicies, SourcePolicy};
use stave_llb::{Definition, ExecOp, SourceOp};
use stave_oci::{Descriptor, Digest, Platform};
use stave_registry::{Client, ResolvedImage};
use stave_store::{Lease, Snapshot};
use stave_worker::{Confinement, Pins, Secret, Session, SshAgent, Travel};
use tokio::sync::{OnceCell, oneshot};
use tokio_util::sync::CancellationToken;

pub(crate) use running::{Builds, RunningBuild};
pub(crate) use target::{Origin, Target};

use emptied::Emptied;
use producers::Producers;

use crate::failure::Failure;
use crate::gateway::containers::Containers;
use crate::gateway::verified::Verifier;
use crate::history::Attachment;
use crate::metrics::Metrics;
use crate::outcome::Outcome;
use crate::progress::{Journal, WarningSource};
use crate::session::files::ClientFiles;
use crate::session::layout::ClientLayouts;
use crate::session::{ClientSession, secrets, ssh};
use crate::tenants::Gate;
use crate::wanted::Wanted;

/// Most results of one build.
const MAX_TARGETS: usize = 10_000;

/// A build that runs.
pub(crate) struct Build {
    pub(crate) id: String,
    pub(crate) session: Arc<ClientSession>,
    pub(crate) files: Arc<ClientFiles>,
    pub(crate) layouts: ClientLayouts,
    pub(crate) registry: Client,
    pub(crate) journal: Arc<Journal>,
    pub(crate) cancel: CancellationToken,
    pub(crate) inputs: HashMap<String, pb::Definition>,
    /// What is wanted beside the result.
    pub(crate) wanted: Wanted,
    pub(crate) started: Timestamp,
    /// What statements say of the builder.
    environment: Map<String, Value>,
    producers: Arc<Producers>,
    /// Those that the client's own front end made.
    pub(crate) containers: Arc<Containers>,
    /// Whose it is, and what stands before its first work.
    pub(crate) gate: Gate,
    metrics: Arc<Metrics>,
    pub(crate) confinement: Confinement,
    pub(crate) pins: Pins,
    emptied: Emptied,
    /// Caches that front ends named.
    named_imports: Mutex<Vec<ImportSpec>>,
    /// Rules about what it may be made from.
    policy: SourcePolicies,
    /// Who else decides about that.
    pub(crate) verifier: Option<Verifier>,
    recorder: Option<Recorder>,
    engine: Arc<Engine>,
    targets: Mutex<HashMap<String, Arc<Target>>>,
    returned: Mutex<Option<oneshot::Sender<Result<Outcome, Failure>>>>,
    /// What the exporters made, by their numbers.
    made: Mutex<BTreeMap<usize, Descriptor>>,
    /// What was said of the results, for the record of the build.
    said: Mutex<Vec<Attachment>>,
    _lease: Lease,
}

/// What a build is begun with.
pub(crate) struct Beginning {
    /// The client for registries; credentials are the session's.
    pub(crate) registry: Client,
    pub(crate) id: String,
    pub(crate) session: Arc<ClientSession>,
    pub(crate) inputs: HashMap<String, pb::Definition>,
    /// What is wanted beside the result.
    pub(crate) wanted: Wanted,
    /// What statements say of the builder.
    pub(crate) environment: Map<String, Value>,
    pub(crate) confinement: Confinement,
    /// Rules about what it may be made from.
    pub(crate) policy: SourcePolicies,
    /// Who else decides about that.
    pub(crate) verifier: Option<Verifier>,
    /// Whose it is, and what stands before its first work.
    pub(crate) gate: Gate,
    /// What takes it down.
    pub(crate) recorder: Option<Recorder>,
}

impl Build {
    /// The parts of this build; warnings are about `about`.
    pub(crate) fn parts(&self, about: Option<WarningSource>) -> Parts<'_> {
        let (observer, metrics) = (self.journal.observer(about), Arc::clone(&self.metrics));
        let observer = Observer::new(move |event| {
            metrics.note(&event);
            observer.send(event);
        });
        let parts = self.engine.parts(self.registry.clone(), observer, self.cancel.clone());
        let parts = parts.within(self.gate.owner().namespace.clone()).under(self.policy.clone());
        match &self.recorder {
            Some(recorder) => parts.recorded(recorder.clone()),
            None => parts,
        }
    }

    /// What it is called while it runs: the first step that says what is built.
    pub(crate) fn title(&self) -> String {
        let vertexes = self.journal.vertexes();
        let mut names = vertexes.iter().map(|vertex| vertex.name.as_str());
        let name = names.find(|name| name.contains("load build definition from"));
        name.and_then(|name| name.rsplit(' ').next()).unwrap_or(&self.id).to_owned()
    }

    /// Waits until the build may begin to work.
    pub(crate) async fn enter(&self) -> Result<(), Failure> {
        self.gate.enter(&self.engine, &self.cancel).await
    }

    /// The build's Dockerfile was read.
    pub(crate) fn has_read(&self, dockerfile: &Source) {
        if let Some(recorder) = &self.recorder {
            recorder.read_dockerfile(&dockerfile.name, &dockerfile.text);
        }
    }

    pub(crate) fn engine(&self) -> &Engine {
        &self.engine
    }

    /// The rules of this build, and others after them.
    pub(crate) fn policies(&self, others: Vec<SourcePolicy>) -> Result<SourcePolicies, Failure> {
        Ok(self.policy.and(others)?)
    }

    /// A graph as the rules of this build have it.
    pub(crate) fn allowed(&self, definition: &Definition) -> Result<Definition, Failure> {
        Ok(self.policy.apply(definition)?)
    }

    /// Takes up a result.
    pub(crate) fn add(
        &self,
        definition: Definition,
        resolved: BTreeMap<Digest, ResolvedImage>,
        epoch: Option<i64>,
    ) -> Result<Arc<Target>, Failure> {
        self.add_made(definition, resolved, epoch, Origin::default())
    }

    /// Takes up a result that a front end made.
    pub(crate) fn add_made(
        &self,
        definition: Definition,
        resolved: BTreeMap<Digest, ResolvedImage>,
        epoch: Option<i64>,
        origin: Origin,
    ) -> Result<Arc<Target>, Failure> {
        let message = prost::Message::decode(definition.to_wire().as_slice()).unwrap_or_default();
        let solved = match definition.outputs() {
            // Nothing is made of nothing.
            [] => OnceCell::new_with(Some(Ok(Snapshot::scratch()))),
            _ => OnceCell::new(),
        };
        let target = Arc::new(Target {
            id: random_id(),
            definition,
            message,
            epoch,
            origin,
            resolved,
            session: OnceLock::new(),
            solved,
        });
        self.insert(&target)?;
        self.producers.add(&self.gate.owner().namespace, &target);
        Ok(target)
    }

    /// Takes up a result without any file.
    pub(crate) fn add_empty(&self) -> Result<Arc<Target>, Failure> {
        self.add(GraphBuilder::default().finish(None), BTreeMap::new(), None)
    }

    /// Takes up files that are there already, such as those that a failed step left.
    pub(crate) fn add_solved(&self, snapshot: Snapshot) -> Result<Arc<Target>, Failure> {
        let target = Arc::new(Target {
            id: random_id(),
            definition: stave_llb::builder::GraphBuilder::default().finish(None),
            message: pb::Definition::default(),
            epoch: None,
            origin: Origin::default(),
            resolved: BTreeMap::new(),
            session: OnceLock::new(),
            solved: OnceCell::new_with(Some(Ok(snapshot))),
        });
        self.insert(&target)?;
        Ok(target)
    }

    /// The op of a vertex of some result, as its client sent it, and the result.
    pub(crate) fn op(&self, vertex: &Digest) -> Option<(Arc<Target>, pb::Op)> {
        let targets = self.targets.lock().unwrap_or_else(PoisonError::into_inner);
        let with = targets.values().find(|target| target.definition.vertex(vertex).is_some())?;
        let op = prost::Message::decode(with.definition.vertex_bytes(vertex)?).ok()?;
        Some((Arc::clone(with), op))
    }

    /// The files of a part of a result, made without telling the client of it.
    pub(crate) async fn solve_quietly(
        &self,
        target: &Target,
        part: &Definition,
    ) -> Result<Snapshot, Failure> {
        let session = Box::pin(self.session_over(part, target.resolved.clone(), None)).await?;
        let observer = Observer::new(|_| {});
        let parts = self.engine.parts(self.registry.clone(), observer, self.cancel.clone());
        let parts = parts.within(self.gate.owner().namespace.clone()).under(self.policy.clone());
        let solved = Box::pin(parts.solve(part, session)).await;
        solved.map(|(snapshot, _)| snapshot).map_err(|error| Failure::of_definition(error, part))
    }

    fn insert(&self, target: &Arc<Target>) -> Result<(), Failure> {
        let mut targets = self.targets.lock().unwrap_or_else(PoisonError::into_inner);
        if targets.len() >= MAX_TARGETS {
            return Err(Failure::Value(format!("more than {MAX_TARGETS} results in one build")));
        }
        targets.insert(target.id.clone(), Arc::clone(target));
        Ok(())
    }

    fn target_count(&self) -> usize {
        self.targets.lock().unwrap_or_else(PoisonError::into_inner).len()
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
            let journey = Box::pin(self.journey_of(target)).await?;
            let travel = journey.as_ref().map(Journey::travel);
            let resolved = target.resolved.clone();
            let session = Box::pin(self.session_over(&target.definition, resolved, travel)).await?;
            target.session.set(Arc::clone(&session)).ok();
            let whose = (self.engine().store(), &self.gate.owner().namespace);
            Box::pin(self.emptied.for_graph(&target.definition, whose)).await?;
            let parts = self.parts(None);
            let solved = Box::pin(parts.solve(&target.definition, session)).await;
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

    /// What the steps of a graph may use: all of it the client's.
    async fn session_over(
        &self,
        definition: &Definition,
        resolved: BTreeMap<Digest, ResolvedImage>,
        travel: Option<Arc<Travel>>,
    ) -> Result<Arc<Session>, Failure> {
        Box::pin(self.check_sources(definition)).await?;
        self.layouts.bring_for(definition).await?;
        let secrets = secrets::fetch(Arc::clone(&self.session), secrets::wanted(definition)).await?;
        let agents = ssh::agents(&self.session, definition).await;
        let mut session = self.session_of(secrets, agents, resolved);
        if let Some(session) = Arc::get_mut(&mut session) {
            session.travel = travel;
        }
        Ok(session)
    }

    /// What a process beside the graph may use, with the secrets and agents that it names.
    pub(crate) async fn session_for(&self, op: &ExecOp) -> Result<Arc<Session>, Failure> {
        let secrets = secrets::fetch(Arc::clone(&self.session), secrets::wanted_by(op)).await?;
        let agents = ssh::agents_of(&self.session, ssh::wanted_by(op)).await;
        Ok(self.session_of(secrets, agents, BTreeMap::new()))
    }

    /// What asking a source may use, with the secrets and agents that it names.
    pub(crate) async fn session_for_source(&self, source: &SourceOp) -> Result<Arc<Session>, Failure> {
        let mut graph = GraphBuilder::default();
        let output = graph.source(source.clone(), &Platform::host(), About::default());
        let definition = graph.finish(Some(output));
        self.session_over(&definition, BTreeMap::new(), None).await
    }

    /// What statements say of a result's origin.
    pub(crate) fn asked_of(&self, target: &Target) -> Asked {
        let mut asked = Asked { environment: self.environment.clone(), ..target.origin.asked.clone() };
        let root = &self.wanted.asked;
        if root.frontend.is_empty() && !(root.args.is_empty() && self.inputs.is_empty()) {
            let inputs = self.made_from(&self.inputs);
            asked.root = Some(Box::new(Asked { inputs, ..root.clone() }));
        }
        asked
    }

    /// What was asked of whoever made these graphs, where that is known.
    pub(crate) fn made_from(&self, inputs: &HashMap<String, pb::Definition>) -> BTreeMap<String, Asked> {
        self.producers.of(&self.gate.owner().namespace, inputs)
    }

    /// What the steps of a scan of a result may use: as much as those of the result and of what is scanned beside it, of
    /// which some may have to run for the scan.
    pub(crate) async fn session_of_scan(&self, target: &Target) -> Result<Arc<Session>, Failure> {
        let scanned = || target.origin.scanned.values();
        let mut vertices = scanned().flat_map(Definition::vertices);
        let is_within = vertices.all(|vertex| target.definition.vertex(&vertex.digest).is_some());
        match target.session() {
            Some(session) if is_within => Ok(Arc::clone(session)),
            session => {
                let whole = Definition::union(std::iter::once(&target.definition).chain(scanned()));
                let travel = session.and_then(|session| session.travel.clone());
                self.session_over(&whole, target.resolved.clone(), travel).await
            }
        }
    }

    fn session_of(
        &self,
        secrets: BTreeMap<String, Secret>,
        ssh: BTreeMap<String, SshAgent>,
        resolved: BTreeMap<Digest, ResolvedImage>,
    ) -> Arc<Session> {
        Arc::new(Session {
            context_modes: stave_worker::ContextModes::Kept,
            asks_for_tags: true,
            contexts: BTreeMap::new(),
            remote: Some(Arc::clone(&self.files) as _),
            travel: None,
            layouts: self.layouts.directories(),
            known_hosts: None,
            pins: self.pins.clone(),
            secrets,
            ssh,
            registry: self.registry.clone(),
            resolved,
            confinement: self.confinement.clone(),
            namespace: self.gate.owner().namespace.clone(),
        })
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

/// An id that nobody guesses.
pub(crate) fn random_id() -> String {
    let mut bytes = [0; 16];
    // The kernel's generator is there once the system is up; a short read never happens at this size.
    let filled = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()).unwrap_or(0);
    debug_assert_eq!(filled, bytes.len(), "16 bytes come at once");
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
