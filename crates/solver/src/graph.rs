//! The graph of everything being solved, as a pure state machine.
//!
//! Owns which vertices exist, who wants them and how far each is. Takes an [`Event`], returns the
//! [`Command`]s it leads to. Must not know: tasks, clocks, channels, files. So any run can be replayed
//! from its events. Start with [`Graph::step`]; the life of one vertex is the enum `Phase`.
//!
//! A node is one vertex in one taint (see `plan`), shared by all jobs that have it. It is *demanded* by
//! the outputs of live jobs and by the phases of its users, and does nothing unless it is.

mod advance;
mod fetch;
mod node;
pub(crate) mod plan;
mod sweep;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::SystemTime;

use stave_cache::{CacheKey, CacheRecord, Claim, ContentDigest, KeyEntry, NewRecord};
use stave_llb::Vertex;

use crate::error::{ContractError, OpError, SolveError};
use crate::event::Hit;
use crate::solver::JobId;
use crate::worker::{CacheMap, Elsewhere, ImportedRecord, Selector};
use node::{Demand, MapState, Node, Phase};
use plan::{Identity, Plan};

/// A node; never used again for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct NodeId(u64);

/// A running command that will answer with one event; never used again for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct TaskId(u64);

/// The outputs of one vertex.
pub(crate) type Outputs<R> = Arc<[R]>;

/// What a run made.
#[derive(Debug)]
pub(crate) struct Made<R> {
    pub(crate) outputs: Outputs<R>,
    /// `None` when the outputs are of this session only.
    pub(crate) record: Option<Arc<NewRecord>>,
    /// What the record is to be found by, once it is written: whoever uses the outputs need not wait for that.
    pub(crate) unwritten: Unwritten,
}

/// The keys under which a result is still to be recorded, and the right to be the one that runs for them: nobody else
/// may have it before they are.
#[derive(Debug, Default)]
pub(crate) struct Unwritten {
    pub(crate) entries: Vec<KeyEntry>,
    pub(crate) claims: Vec<Claim>,
}

impl From<Vec<KeyEntry>> for Unwritten {
    /// Keys for which nothing runs.
    fn from(entries: Vec<KeyEntry>) -> Self {
        Self { entries, claims: Vec::new() }
    }
}

/// Something that happened outside.
#[derive(Debug)]
pub(crate) enum Event<R> {
    /// With `imports` the job brings caches made elsewhere.
    Submit {
        job: JobId,
        plan: Plan,
        imports: bool,
    },
    Cancel {
        job: JobId,
    },
    Answer {
        task: TaskId,
        answer: Answer<R>,
    },
}

/// The outcome of a command. Every command with a task answers exactly once, cancelled or not.
#[derive(Debug)]
pub(crate) enum Answer<R> {
    Mapped(Result<CacheMap, OpError>),
    LookedUp(Option<CacheRecord>),
    /// With the time of finding.
    FoundElsewhere(Option<(Elsewhere, SystemTime)>),
    /// `None`: it could not be had.
    Imported(Result<Option<Made<R>>, OpError>),
    /// `None`: the outputs are gone and the record has been removed.
    Loaded(Result<Option<Outputs<R>>, OpError>),
    Digested(Result<ContentDigest, OpError>),
    Executed(Result<Made<R>, OpError>),
    Recorded,
}

/// Something to be done outside.
#[derive(Debug)]
pub(crate) enum Command<R> {
    /// The node serves this job from now on; the first such command introduces the node.
    Attach { node: NodeId, job: JobId, vertex: Arc<Vertex> },
    /// The node no longer serves this job but lives on.
    Detach { node: NodeId, job: JobId },
    /// The node is gone. Its cancelled tasks may still answer.
    Forget { node: NodeId },
    /// Ask the worker for the cache map.
    Map { task: TaskId, node: NodeId },
    /// Ask the index.
    Lookup { task: TaskId, node: NodeId, key: CacheKey },
    /// Ask the worker for a record made elsewhere; `contents` are the values that were read, by position.
    LookElsewhere { task: TaskId, node: NodeId, contents: Vec<Option<R>> },
    /// Ask the worker to bring a record made elsewhere, and record it under the keys.
    Import { task: TaskId, node: NodeId, record: ImportedRecord, entries: Vec<KeyEntry> },
    /// Ask the worker for the outputs of a record.
    Load { task: TaskId, node: NodeId, record: Arc<CacheRecord> },
    /// Ask the worker for the content of an input.
    Digest { task: TaskId, node: NodeId, position: usize, input: R, selector: Selector },
    /// Run the operation, persist its outputs and record them under the keys.
    /// With `ignored` the index is not asked again first.
    Execute { task: TaskId, node: NodeId, inputs: Vec<R>, entries: Vec<KeyEntry>, ignored: bool },
    /// Record further keys for a result that is already known.
    Record { task: TaskId, unwritten: Unwritten, record: Arc<NewRecord> },
    /// Stop a task; it still answers.
    Stop { task: TaskId },
    /// Tell a job that a vertex was found in the cache.
    Cached { node: NodeId, job: JobId, hit: Hit, key: Option<CacheKey> },
    /// Tell the node's jobs that it failed other than by running; a run that fails tells by itself.
    Failed { node: NodeId, error: OpError },
    /// The job is over, and nothing runs for it alone.
    Finish { job: JobId, outcome: Result<Vec<R>, SolveError> },
}

/// A live job.
struct JobState {
    /// In topological order, inputs first.
    nodes: Vec<NodeId>,
    outputs: Vec<(NodeId, u32)>,
    /// Nodes this job has been told about.
    reported: BTreeSet<NodeId>,
}

/// A job whose outcome is known and that waits for its tasks to end.
struct Draining<R> {
    outcome: Result<Vec<R>, SolveError>,
    tasks: BTreeSet<TaskId>,
}

/// What a live task works for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Node(NodeId),
    /// Index writes: never stopped, and every job of the node waits for them.
    Recording(NodeId),
    Stopped(NodeId),
}

/// The state machine. `R` is the worker's result, only cloned and dropped here.
pub(crate) struct Graph<R> {
    nodes: BTreeMap<NodeId, Node<R>>,
    by_identity: HashMap<Identity, NodeId>,
    /// Which node runs under a key, or has run and is still here.
    by_key: HashMap<CacheKey, NodeId>,
    jobs: BTreeMap<JobId, JobState>,
    draining: BTreeMap<JobId, Draining<R>>,
    tasks: BTreeMap<TaskId, Purpose>,
    ready: VecDeque<NodeId>,
    commands: Vec<Command<R>>,
    next_node: u64,
    next_task: u64,
}

impl<R: Clone> Graph<R> {
    pub(crate) fn new() -> Self {
        Self {
            nodes: BTreeMap::new(),
            by_identity: HashMap::new(),
            by_key: HashMap::new(),
            jobs: BTreeMap::new(),
            draining: BTreeMap::new(),
            tasks: BTreeMap::new(),
            ready: VecDeque::new(),
            commands: Vec::new(),
            next_node: 0,
            next_task: 0,
        }
    }

    /// Whether no job, node or task is left.
    pub(crate) fn is_idle(&self) -> bool {
        self.jobs.is_empty() && self.draining.is_empty() && self.nodes.is_empty() && self.tasks.is_empty()
    }

    /// Under how many keys and identities nodes are found.
    pub(crate) fn keys(&self) -> usize {
        self.by_key.len() + self.by_identity.len()
    }

    /// Takes one event as far as it goes.
    pub(crate) fn step(&mut self, event: Event<R>) -> Vec<Command<R>> {
        match event {
            Event::Submit { job, plan, imports } => self.submit(job, plan, imports),
            Event::Cancel { job } => {
                if self.jobs.contains_key(&job) {
                    self.end_job(job, Err(SolveError::Cancelled));
                }
            }
            Event::Answer { task, answer } => self.answer(task, answer),
        }
        self.settle();
        std::mem::take(&mut self.commands)
    }

    fn submit(&mut self, job: JobId, plan: Plan, imports: bool) {
        let mut ids = Vec::with_capacity(plan.vertices.len());
        for planned in plan.vertices {
            let inputs: Vec<(NodeId, u32)> =
                planned.inputs.iter().map(|(index, output)| (ids[*index], *output)).collect();
            let id = self.node_for(planned.identity, &planned.vertex, inputs, planned.ignore_cache);
            self.commands.push(Command::Attach { node: id, job, vertex: planned.vertex });
            ids.push(id);
        }
        let outputs: Vec<(NodeId, u32)> =
            plan.outputs.iter().map(|(index, output)| (ids[*index], *output)).collect();
        let mut reported = BTreeSet::new();
        for id in &ids {
            let Some(node) = self.nodes.get_mut(id) else { continue };
            node.jobs.insert(job);
            node.imports |= imports;
            if matches!(node.phase, Phase::Running { .. }) {
                reported.insert(*id);
            }
            if matches!(node.map, MapState::Unasked) {
                let task = self.start(Purpose::Node(*id));
                if let Some(node) = self.nodes.get_mut(id) {
                    node.map = MapState::Asked(task);
                }
                self.commands.push(Command::Map { task, node: *id });
            }
        }
        self.jobs.insert(job, JobState { nodes: ids, outputs: outputs.clone(), reported });
        for (node, _) in outputs {
            self.raise(node, Demand::Value);
        }
    }

    /// The node of an identity: the one that is there, unless it or what it stands on has failed.
    fn node_for(
        &mut self,
        identity: Identity,
        vertex: &Arc<Vertex>,
        inputs: Vec<(NodeId, u32)>,
        ignore_cache: bool,
    ) -> NodeId {
        if let Some(id) = self.by_identity.get(&identity)
            && let Some(node) = self.nodes.get(id)
            && !matches!(node.phase, Phase::Failed(_))
            && node.inputs == inputs
        {
            return *id;
        }
        let id = NodeId(self.next_node);
        self.next_node += 1;
        for input in inputs.iter().map(|(input, _)| *input).collect::<BTreeSet<_>>() {
            if let Some(node) = self.nodes.get_mut(&input) {
                node.users.push(id);
            }
        }
        self.by_identity.insert(identity.clone(), id);
        self.nodes.insert(id, Node::new(identity, Arc::clone(vertex), inputs, ignore_cache));
        id
    }

    fn answer(&mut self, task: TaskId, answer: Answer<R>) {
        let mut drained = Vec::new();
        for (job, draining) in &mut self.draining {
            if draining.tasks.remove(&task) {
                drained.push(*job);
            }
        }
        match (self.tasks.remove(&task), answer) {
            (Some(Purpose::Node(node)), answer) => self.node_answer(node, task, answer),
            (Some(Purpose::Stopped(node)), answer) => {
                // Done before it heard that nobody wants it: the next who does shall find it.
                if let Answer::Executed(Ok(made)) | Answer::Imported(Ok(Some(made))) = answer
                    && let Made { record: Some(record), unwritten, .. } = made
                    && let Some(recording) = self.record(node, unwritten, record)
                {
                    for job in drained {
                        self.draining.entry(job).and_modify(|job| _ = job.tasks.insert(recording));
                    }
                }
                // A node wanted again does not run until its stopped run has ended.
                self.ready.push_back(node);
            }
            (Some(Purpose::Recording(_)) | None, _) => {}
        }
    }

    fn start(&mut self, purpose: Purpose) -> TaskId {
        let task = TaskId(self.next_task);
        self.next_task += 1;
        self.tasks.insert(task, purpose);
        task
    }

    fn stop(&mut self, task: TaskId) {
        if let Some(purpose) = self.tasks.get_mut(&task)
            && let Purpose::Node(node) = *purpose
        {
            *purpose = Purpose::Stopped(node);
            self.commands.push(Command::Stop { task });
        }
    }

    /// Advances nodes until none can move, ends jobs that are decided, and releases what they held.
    fn settle(&mut self) {
        loop {
            while let Some(id) = self.ready.pop_front() {
                self.advance(id);
            }
            let decided: Vec<_> =
                self.jobs.iter().filter_map(|(job, state)| Some((*job, self.outcome(state)?))).collect();
            if decided.is_empty() {
                break;
            }
            for (job, outcome) in decided {
                if outcome.is_ok() {
                    self.report_rest(job);
                }
                self.end_job(job, outcome);
            }
        }
        let finished: Vec<JobId> =
            self.draining.iter().filter(|(_, state)| state.tasks.is_empty()).map(|(job, _)| *job).collect();
        for job in finished {
            if let Some(state) = self.draining.remove(&job) {
                self.commands.push(Command::Finish { job, outcome: state.outcome });
            }
        }
    }

    /// The outcome of a job once its outputs decide it.
    fn outcome(&self, state: &JobState) -> Option<Result<Vec<R>, SolveError>> {
        let mut results = Vec::with_capacity(state.outputs.len());
        let mut missing = false;
        for (id, output) in &state.outputs {
            let node = self.nodes.get(id)?;
            match &node.phase {
                Phase::Failed(error) => return Some(Err(error.clone())),
                Phase::Done { outputs, .. } => match outputs.get(*output as usize) {
                    Some(result) => results.push(result.clone()),
                    None => {
                        let error = ContractError::MissingOutput { wanted: *output, made: outputs.len() };
                        return Some(Err(node.error(error.into())));
                    }
                },
                _ => missing = true,
            }
        }
        (!missing).then_some(Ok(results))
    }

    /// Tells a job of everything that it did not have to look at.
    fn report_rest(&mut self, job: JobId) {
        let Some(state) = self.jobs.get_mut(&job) else { return };
        for node in &state.nodes {
            if state.reported.insert(*node) {
                let made = self.nodes.get(node).is_some_and(|node| matches!(node.phase, Phase::Done { .. }));
                let hit = if made { Hit::Shared } else { Hit::Skipped };
                self.commands.push(Command::Cached { node: *node, job, hit, key: None });
            }
        }
    }
}

#[cfg(test)]
mod tests;
