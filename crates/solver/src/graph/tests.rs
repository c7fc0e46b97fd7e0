//! The state machine alone: scripted runs and random ones, against a worker of a few lines.

mod imports;
mod random;
mod scenarios;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, UNIX_EPOCH};

use stave_cache::{CacheIndex, ContentDigest, ResultId};
use stave_llb::{
    ContentCache, CopyAction, Edge, ExecOp, FileAction, FileActionKind, FileInput, FileOp, Mount, Op,
    SourceOp, VertexMetadata,
};
use stave_oci::Digest;

use super::*;
use crate::error::OpErrorKind;
use crate::key::{cache_map, label};
use crate::worker::{self, ImportedRecord};

/// A result: its name, `None` for a local context, and its content.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Value {
    name: Option<String>,
    content: String,
}

#[derive(Debug, thiserror::Error)]
#[error("scripted failure")]
struct Scripted;

/// Makes one vertex; its digest follows from its operation and inputs as on the wire.
fn vertex(name: &str, op: Op, inputs: &[&Vertex]) -> Vertex {
    let digest = Digest::sha256(
        format!("{op:?}{:?}", inputs.iter().map(|v| &v.digest).collect::<Vec<_>>()).as_bytes(),
    );
    let mut metadata = VertexMetadata::default();
    metadata.description.insert("llb.customname".into(), name.into());
    let inputs = inputs.iter().map(|v| Edge { vertex: v.digest.clone(), output: 0 }).collect();
    Vertex { digest, op, inputs, platform: None, constraints: None, metadata }
}

fn image(name: &str) -> Vertex {
    let pin = Digest::sha256(name.as_bytes());
    let raw = format!("docker-image://docker.io/library/{name}@{pin}");
    vertex(name, Op::Source(SourceOp::new(raw, BTreeMap::new())), &[])
}

fn context() -> Vertex {
    vertex("context", Op::Source(SourceOp::new("local://context", BTreeMap::new())), &[])
}

fn run(name: &str, on: &Vertex) -> Vertex {
    vertex(name, Op::Exec(exec(name)), &[on])
}

fn exec(name: &str) -> ExecOp {
    let root = Mount::Bind {
        target: "/".into(),
        input: Some(0),
        selector: String::new(),
        readonly: false,
        output: Some(0),
        content_cache: ContentCache::Default,
    };
    ExecOp { args: vec![name.into()], mounts: vec![root], ..ExecOp::default() }
}

fn copy(name: &str, on: &Vertex, from: &Vertex) -> Vertex {
    let action = FileAction {
        input: FileInput::Input(0),
        secondary: FileInput::Input(1),
        output: Some(0),
        kind: FileActionKind::Copy(CopyAction {
            src: format!("/{name}"),
            dest: "/".into(),
            ..CopyAction::default()
        }),
    };
    vertex(name, Op::File(FileOp { actions: vec![action] }), &[on, from])
}

/// The world around a graph: an index that survives, and a worker that answers when told.
#[derive(Default)]
struct World {
    index: BTreeMap<CacheKey, NewRecord>,
    /// What vertices of a name make, when not what their inputs say.
    content: BTreeMap<String, String>,
    failing: BTreeSet<String>,
    /// What ends well although it was stopped.
    stubborn: BTreeSet<String>,
    /// Results that can no longer be loaded.
    gone: BTreeSet<String>,
    names: u64,
    /// Names a cache made elsewhere has, found by the graph alone or only once content was read.
    elsewhere: BTreeMap<String, Elsewhere>,
}

/// How a cache made elsewhere answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Elsewhere {
    ByGraph,
    ByContent,
    /// Its keys alone.
    KeysOnly,
    /// Found, but its layers are gone.
    Vanished,
}

/// One graph in its world.
struct Bench<'w> {
    world: &'w mut World,
    graph: Graph<Value>,
    pending: Vec<(TaskId, Command<Value>)>,
    stopped: BTreeSet<TaskId>,
    vertices: BTreeMap<NodeId, Arc<Vertex>>,
    running: BTreeSet<NodeId>,
    /// `run NAME`, `cached NAME`, `load NAME`, `failed NAME`, in order.
    log: Vec<String>,
    lookups: usize,
    finished: BTreeMap<JobId, Result<Vec<Value>, SolveError>>,
}

impl<'w> Bench<'w> {
    fn new(world: &'w mut World) -> Self {
        Bench {
            world,
            graph: Graph::new(),
            pending: Vec::new(),
            stopped: BTreeSet::new(),
            vertices: BTreeMap::new(),
            running: BTreeSet::new(),
            log: Vec::new(),
            lookups: 0,
            finished: BTreeMap::new(),
        }
    }

    fn submit(&mut self, job: u64, session: usize, vertices: &[&Vertex], target: &Vertex) {
        let all: Vec<Vertex> = vertices.iter().map(|v| (*v).clone()).collect();
        let output = Edge { vertex: target.digest.clone(), output: 0 };
        let plan = plan::plan_vertices(&all, &[output], session).expect("the fixture is in order");
        self.step(Event::Submit { job: JobId(job), plan, imports: !self.world.elsewhere.is_empty() });
    }

    fn step(&mut self, event: Event<Value>) {
        for command in self.graph.step(event) {
            self.take(command);
        }
    }

    fn name(&self, node: NodeId) -> String {
        self.vertices.get(&node).map_or("?", |v| label(v)).to_owned()
    }

    fn take(&mut self, command: Command<Value>) {
        let task = match &command {
            Command::Attach { node, vertex, .. } => {
                self.vertices.insert(*node, Arc::clone(vertex));
                return;
            }
            Command::Cached { node, hit: Hit::Imported, .. } => {
                self.log.push(format!("imported {}", self.name(*node)));
                return;
            }
            Command::Cached { node, .. } => {
                self.log.push(format!("cached {}", self.name(*node)));
                return;
            }
            Command::Failed { node, .. } => {
                self.log.push(format!("failed {}", self.name(*node)));
                return;
            }
            Command::Stop { task } => {
                assert!(self.stopped.insert(*task), "stopped twice");
                return;
            }
            Command::Detach { .. } | Command::Forget { .. } => return,
            Command::Finish { job, outcome } => {
                assert!(self.finished.insert(*job, outcome.clone()).is_none(), "finished twice");
                return;
            }
            Command::Execute { task, node, .. } => {
                self.log.push(format!("run {}", self.name(*node)));
                assert!(self.running.insert(*node), "runs twice at once");
                *task
            }
            Command::Load { task, node, .. } => {
                self.log.push(format!("load {}", self.name(*node)));
                *task
            }
            Command::Import { task, node, .. } => {
                self.log.push(format!("import {}", self.name(*node)));
                *task
            }
            Command::Lookup { task, .. } => {
                self.lookups += 1;
                *task
            }
            Command::Map { task, .. }
            | Command::Digest { task, .. }
            | Command::LookElsewhere { task, .. }
            | Command::Record { task, .. } => *task,
        };
        self.pending.push((task, command));
    }

    /// Answers the pending command at `position`.
    fn answer(&mut self, position: usize) {
        let (task, command) = self.pending.remove(position);
        let answer = self.outcome(command, self.stopped.contains(&task));
        self.step(Event::Answer { task, answer });
    }

    fn outcome(&mut self, command: Command<Value>, stopped: bool) -> Answer<Value> {
        match command {
            Command::Map { node, .. } => Answer::Mapped(Ok(cache_map(&self.vertices[&node]))),
            Command::Lookup { key, .. } => Answer::LookedUp(self.record(key)),
            Command::Load { record, .. } => Answer::Loaded(Ok(self.load(&record))),
            Command::Digest { input, selector, .. } => {
                Answer::Digested(Ok(ContentDigest::of(format!("{}{selector:?}", input.content).as_bytes())))
            }
            Command::LookElsewhere { node, contents, .. } => {
                let found = match self.world.elsewhere.get(&self.name(node)) {
                    Some(Elsewhere::ByContent) => contents.iter().any(Option::is_some),
                    Some(_) => true,
                    None => false,
                };
                let only = self.world.elsewhere.get(&self.name(node)) == Some(&Elsewhere::KeysOnly);
                let answer = match only {
                    true => worker::Elsewhere::KeysOnly,
                    false => worker::Elsewhere::Record(ImportedRecord(Arc::new(()))),
                };
                Answer::FoundElsewhere(found.then_some((answer, UNIX_EPOCH)))
            }
            Command::Import { node, entries, .. } => {
                let name = self.name(node);
                if self.world.elsewhere.get(&name) == Some(&Elsewhere::Vanished) {
                    self.world.elsewhere.remove(&name);
                    return Answer::Imported(Ok(None));
                }
                Answer::Imported(self.execute(node, &[], &entries).map(Some))
            }
            Command::Execute { node, inputs, entries, .. } => {
                self.running.remove(&node);
                if stopped && !self.world.stubborn.contains(&self.name(node)) {
                    return Answer::Executed(Err(OpError::cancelled()));
                }
                Answer::Executed(self.execute(node, &inputs, &entries))
            }
            Command::Record { unwritten, record, .. } => {
                for entry in unwritten.entries {
                    self.world.index.insert(entry.key, (*record).clone());
                }
                Answer::Recorded
            }
            other => panic!("{other:?} has no answer"),
        }
    }

    fn record(&self, key: CacheKey) -> Option<CacheRecord> {
        // Only the index makes records, so a real one is asked for a real record's shape.
        let NewRecord { result, vertex, vertex_name, created_at, duration } =
            self.world.index.get(&key)?.clone();
        let used_at = created_at;
        Some(CacheRecord {
            id: any_record_id(),
            key,
            result,
            vertex,
            vertex_name,
            created_at,
            duration,
            used_at,
        })
    }

    fn load(&mut self, record: &CacheRecord) -> Option<Outputs<Value>> {
        let Some((name, content)) = record.result.as_str().split_once('=') else {
            // A result that is elsewhere.
            self.world.index.retain(|_, kept| kept.result != record.result);
            return None;
        };
        if self.world.gone.contains(content) {
            self.world.index.retain(|_, kept| kept.result != record.result);
            return None;
        }
        Some(Arc::from([Value { name: Some(name.into()), content: content.into() }]))
    }

    fn execute(
        &mut self,
        node: NodeId,
        inputs: &[Value],
        entries: &[KeyEntry],
    ) -> Result<Made<Value>, OpError> {
        let name = self.name(node);
        if self.world.failing.contains(&name) {
            return Err(OpError::new(OpErrorKind::Input, Scripted));
        }
        let made_of: Vec<&str> = inputs.iter().map(|input| input.content.as_str()).collect();
        let content = format!("{name}({})", made_of.join(" "));
        let content = self.world.content.get(&name).cloned().unwrap_or(content);
        if name == "context" {
            let outputs = Arc::from([Value { name: None, content }]);
            return Ok(Made { outputs, record: None, unwritten: Unwritten::default() });
        }
        self.world.names += 1;
        let result = format!("r{}={content}", self.world.names);
        let record = NewRecord {
            result: ResultId::new(&result).expect("short"),
            vertex: self.vertices[&node].digest.to_string(),
            vertex_name: name,
            created_at: UNIX_EPOCH,
            duration: Duration::ZERO,
        };
        let outputs = Arc::from([Value { name: Some(result), content }]);
        Ok(Made { outputs, record: Some(Arc::new(record)), unwritten: entries.to_vec().into() })
    }

    /// Answers everything, oldest first.
    fn drain(&mut self) {
        while !self.pending.is_empty() {
            self.answer(0);
        }
    }

    /// Answers everything but runs, which stay pending.
    fn drain_to_runs(&mut self) {
        while let Some(position) =
            self.pending.iter().position(|(_, command)| !matches!(command, Command::Execute { .. }))
        {
            self.answer(position);
        }
    }

    fn answer_run(&mut self, name: &str) {
        let position = self
            .pending
            .iter()
            .position(
                |(_, command)| matches!(command, Command::Execute { node, .. } if self.name(*node) == name),
            )
            .expect("it is running");
        self.answer(position);
    }

    #[track_caller]
    fn assert_idle(&self) {
        assert!(self.graph.is_idle());
        assert!(self.graph.by_key.is_empty() && self.graph.by_identity.is_empty());
        assert!(self.pending.is_empty());
    }
}

/// A record id can only come from an index; one in memory gives one.
fn any_record_id() -> stave_cache::RecordId {
    use std::sync::OnceLock;
    static ID: OnceLock<stave_cache::RecordId> = OnceLock::new();
    *ID.get_or_init(|| {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let index = CacheIndex::open(&directory.path().join("cache.db")).expect("opens");
        let record = NewRecord {
            result: ResultId::new("x").expect("short"),
            vertex: String::new(),
            vertex_name: String::new(),
            created_at: UNIX_EPOCH,
            duration: Duration::ZERO,
        };
        index.insert(&[], &record).expect("inserts")
    })
}

/// Solves one target in a fresh graph, as a new process would, and returns what happened.
fn solve(world: &mut World, vertices: &[&Vertex], target: &Vertex) -> Vec<String> {
    let mut bench = Bench::new(world);
    bench.submit(1, 1, vertices, target);
    bench.drain();
    bench.assert_idle();
    let outcome = bench.finished.remove(&JobId(1)).expect("finished");
    let mut log = bench.log;
    if let Err(error) = outcome {
        log.push(format!("error {error}"));
    }
    log
}
