//! The task that owns the graph and does what it commands.
//!
//! Owns tasks, clocks, limits of parallelism and the way to the index. Must not decide anything: that
//! is the graph's. Every task it spawns answers exactly once, also when the worker panics, and is waited
//! for before the driver ends. Start with [`run`].

mod records;
mod task;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use stave_cache::CacheIndex;
use stave_llb::Vertex;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::error::SolveError;
use crate::event::{Broadcast, EventSender, Miss, SolveEvent};
use crate::graph::plan::Plan;
use crate::graph::{Answer, Command, Event, Graph, NodeId, TaskId};
use crate::permits::{Lane, Permits};
use crate::solver::JobId;
use crate::worker::Worker;
use task::{Environment, NodeContext};

/// What callers ask of the driver. When all of them are gone it cancels everything and ends.
pub(crate) enum Request<W: Worker> {
    Submit(Submission<W>),
    Cancel(JobId),
    /// How much there is of what.
    Count(oneshot::Sender<Load>),
}

/// What a solver holds: all of it is zero when nothing runs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Load {
    /// Jobs that wait for their outputs.
    pub jobs: usize,
    /// Vertices that a job wants.
    pub vertices: usize,
    /// Tasks: look-ups, digests, operations.
    pub tasks: usize,
    /// Cache keys under which vertices are found.
    pub keys: usize,
}

/// A job as it comes in.
pub(crate) struct Submission<W: Worker> {
    pub(crate) job: JobId,
    pub(crate) plan: Plan,
    pub(crate) session: Arc<W::Session>,
    pub(crate) events: Option<EventSender>,
    pub(crate) reply: oneshot::Sender<Result<Vec<W::Result>, SolveError>>,
}

struct JobHandle<W: Worker> {
    session: Arc<W::Session>,
    events: Option<EventSender>,
    reply: oneshot::Sender<Result<Vec<W::Result>, SolveError>>,
}

struct Driver<W: Worker> {
    graph: Graph<W::Result>,
    environment: Arc<Environment<W>>,
    jobs: HashMap<JobId, JobHandle<W>>,
    nodes: HashMap<NodeId, Arc<NodeContext<W>>>,
    tokens: HashMap<TaskId, CancellationToken>,
    tasks: JoinSet<(TaskId, Answer<W::Result>)>,
    /// How many of them write a record.
    recording: usize,
}

/// Serves requests until all who could make one are gone and nothing runs any more.
pub(crate) async fn run<W: Worker>(
    worker: Arc<W>,
    index: CacheIndex,
    permits: (Arc<Permits>, Lane),
    mut inbox: mpsc::UnboundedReceiver<Request<W>>,
) {
    let mut driver = Driver {
        graph: Graph::new(),
        environment: Arc::new(Environment::new(worker, index, permits)),
        jobs: HashMap::new(),
        nodes: HashMap::new(),
        tokens: HashMap::new(),
        tasks: JoinSet::new(),
        recording: 0,
    };
    let mut open = true;
    while open || !driver.tasks.is_empty() {
        tokio::select! {
            request = inbox.recv(), if open => match request {
                Some(Request::Submit(submission)) => driver.submit(submission),
                Some(Request::Count(reply)) => {
                    // Whoever asked may be gone.
                    reply.send(driver.load()).ok();
                }
                Some(Request::Cancel(job)) => driver.step(Event::Cancel { job }),
                None => {
                    open = false;
                    let jobs: Vec<JobId> = driver.jobs.keys().copied().collect();
                    for job in jobs {
                        driver.step(Event::Cancel { job });
                    }
                }
            },
            Some(joined) = driver.tasks.join_next(), if !driver.tasks.is_empty() => match joined {
                Ok((task, answer)) => driver.answer(task, answer),
                // Worker panics become answers inside the task; what is left is a defect here.
                Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
                Err(_) => return,
            },
        }
    }
    debug_assert!(driver.graph.is_idle() && driver.nodes.is_empty() && driver.tokens.is_empty());
}

impl<W: Worker> Driver<W> {
    fn load(&self) -> Load {
        Load {
            jobs: self.jobs.len(),
            vertices: self.nodes.len(),
            tasks: self.tasks.len().max(self.tokens.len()),
            keys: self.graph.keys(),
        }
    }

    fn submit(&mut self, submission: Submission<W>) {
        let Submission { job, plan, session, events, reply } = submission;
        let imports = self.environment.has_imports(&session);
        self.jobs.insert(job, JobHandle { session, events, reply });
        self.step(Event::Submit { job, plan, imports });
    }

    fn answer(&mut self, task: TaskId, answer: Answer<W::Result>) {
        self.tokens.remove(&task);
        self.recording -= usize::from(matches!(answer, Answer::Recorded));
        self.step(Event::Answer { task, answer });
    }

    fn step(&mut self, event: Event<W::Result>) {
        for command in self.graph.step(event) {
            self.command(command);
        }
        if self.recording > 0 && self.recording == self.tasks.len() {
            self.environment.records.hurry();
        }
    }

    fn command(&mut self, command: Command<W::Result>) {
        match command {
            Command::Attach { node, job, vertex } => self.attach(node, job, vertex),
            Command::Detach { node, job } => {
                if let Some(node) = self.nodes.get(&node) {
                    node.broadcast.detach(job);
                }
            }
            Command::Forget { node } => {
                self.nodes.remove(&node);
            }
            Command::Stop { task } => {
                if let Some(token) = self.tokens.get(&task) {
                    token.cancel();
                }
            }
            Command::Cached { node, job, hit, key } => {
                if let (Some(node), Some(job)) = (self.nodes.get(&node), self.jobs.get(&job))
                    && let Some(events) = &job.events
                {
                    events.send(SolveEvent::Cached { vertex: node.vertex.digest.clone(), hit, key });
                }
            }
            Command::Failed { node, error } => {
                if let Some(node) = self.nodes.get(&node) {
                    let (vertex, message) = (node.vertex.digest.clone(), error.to_string());
                    node.broadcast.send(&SolveEvent::Failed { vertex, duration: Duration::ZERO, message });
                }
            }
            Command::Finish { job, outcome } => {
                if let Some(job) = self.jobs.remove(&job) {
                    // Nobody waits any more when the future of the solve was dropped.
                    job.reply.send(outcome).ok();
                }
            }
            Command::Map { task, node } => self.spawn(task, node, task::map),
            Command::Load { task, node, record } => {
                self.spawn(task, node, move |work| task::load(work, record));
            }
            Command::Digest { task, node, position, input, selector } => {
                self.spawn(task, node, move |work| task::digest(work, position, input, selector));
            }
            Command::Execute { task, node, inputs, entries, ignored } => {
                let miss = Miss { entries, ignored };
                self.spawn(task, node, move |work| task::execute(work, inputs, miss));
            }
            Command::LookElsewhere { task, node, contents } => {
                self.spawn(task, node, move |work| task::look_elsewhere(work, contents));
            }
            Command::Import { task, node, record, entries } => {
                self.spawn(task, node, move |work| task::import(work, record, entries));
            }
            Command::Lookup { task, node, key } => {
                self.spawn(task, node, async move |work| task::found(&work, &key));
            }
            Command::Record { task, unwritten, record } => {
                let environment = Arc::clone(&self.environment);
                self.recording += 1;
                self.tasks.spawn(async move { (task, task::record(environment, unwritten, record).await) });
            }
        }
    }

    fn attach(&mut self, id: NodeId, job: JobId, vertex: Arc<Vertex>) {
        let Some(handle) = self.jobs.get(&job) else { return };
        let node = self.nodes.entry(id).or_insert_with(|| {
            let broadcast = Arc::new(Broadcast::new(vertex.digest.clone()));
            Arc::new(NodeContext { vertex, job, session: Arc::clone(&handle.session), broadcast })
        });
        if let Some(events) = &handle.events {
            node.broadcast.attach(job, events.clone());
        }
    }

    /// Starts a task that uses the worker on behalf of a node.
    fn spawn<F>(&mut self, task: TaskId, node: NodeId, make: impl FnOnce(task::Work<W>) -> F)
    where
        F: Future<Output = Answer<W::Result>> + Send + 'static,
    {
        let Some(node) = self.nodes.get(&node) else { return };
        let cancel = CancellationToken::new();
        self.tokens.insert(task, cancel.clone());
        let work = task::Work::new(Arc::clone(&self.environment), Arc::clone(node), cancel);
        let future = make(work);
        self.tasks.spawn(async move { (task, future.await) });
    }
}
