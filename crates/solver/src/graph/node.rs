//! One vertex of the graph and how far it is.
//!
//! Owns the phases and what each of them needs of the inputs. Start with [`Phase`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use stave_cache::{CacheKey, CacheRecord, ContentDigest, KeyEntry, NewRecord, ResultId};
use stave_llb::Vertex;

use super::plan::Identity;
use super::{NodeId, Outputs, TaskId};
use crate::error::{OpError, SolveError};
use crate::key::label;
use crate::solver::JobId;
use crate::worker::{CacheMap, ImportedRecord, InputKey};

/// How much of a node someone wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Demand {
    None,
    /// Which result it is, not the result.
    Identity,
    /// The result, loaded.
    Value,
}

/// What the worker says about the operation.
#[derive(Debug)]
pub(super) enum MapState {
    Unasked,
    Asked(TaskId),
    Known(Arc<CacheMap>),
    Failed(OpError),
}

/// The key over the definition alone.
#[derive(Debug)]
pub(super) enum DefinitionKey {
    /// Not all maps below are known.
    Unknown,
    /// Something below is volatile.
    Absent,
    Known {
        entry: Box<KeyEntry>,
        /// False when something below must not come from the cache: then a hit would hide it.
        lookup: bool,
    },
}

/// Which look-up found a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stage {
    Definition,
    Result,
    Content,
}

/// How far a demanded node is. In the order of a node that misses everywhere:
#[derive(Debug)]
pub(super) enum Phase<R> {
    /// For the cache map and the definition key.
    Waiting,
    /// The index is asked for a key.
    LookingUp { stage: Stage, task: TaskId },
    /// Caches made elsewhere are asked, because the index missed.
    LookingElsewhere { stage: Stage, task: TaskId },
    /// For the identity of the inputs that take part.
    Identifying,
    /// For the values of the content-based inputs.
    Selecting,
    /// The worker hashes content; by task, the position of the input.
    Digesting { pending: BTreeMap<TaskId, usize> },
    /// For the values of all inputs.
    Gathering,
    /// For another node that runs under one of the same keys.
    Following { leader: NodeId },
    /// The operation runs.
    Running { task: TaskId },
    /// A record was found; nothing is loaded.
    Found { record: Arc<CacheRecord>, stage: Stage },
    /// The worker loads a record's outputs.
    Loading { record: Arc<CacheRecord>, stage: Stage, task: TaskId },
    /// A cache made elsewhere has its keys and not its result; whoever needs the result makes it.
    KeysElsewhere { stage: Stage, name: Option<ResultId> },
    /// A record made elsewhere was found; nothing is fetched.
    FoundElsewhere { record: ImportedRecord, stage: Stage, name: Option<ResultId> },
    /// The worker brings its outputs.
    Importing { record: ImportedRecord, stage: Stage, name: Option<ResultId>, task: TaskId },
    /// The outputs are here.
    Done { outputs: Outputs<R>, record: Option<Arc<NewRecord>> },
    /// It, or something it stands on, failed.
    Failed(SolveError),
}

/// What a node's result is called.
pub(super) enum Name<'a> {
    Known(&'a ResultId),
    /// It is there but of this session only, or nobody here has given it a name yet.
    Nameless,
}

/// One vertex in one taint.
#[derive(Debug)]
pub(super) struct Node<R> {
    pub(super) identity: Identity,
    pub(super) vertex: Arc<Vertex>,
    pub(super) inputs: Vec<(NodeId, u32)>,
    /// Nodes to wake when this one gets further: those with it as an input, and followers.
    pub(super) users: Vec<NodeId>,
    pub(super) jobs: BTreeSet<JobId>,
    pub(super) ignore_cache: bool,
    /// A job of it brings caches made elsewhere.
    pub(super) imports: bool,
    pub(super) demand: Demand,
    pub(super) map: MapState,
    pub(super) definition: DefinitionKey,
    /// Content of the inputs, by position, once it is known.
    pub(super) digests: Vec<Option<ContentDigest>>,
    /// Keys under which `by_key` leads here.
    pub(super) owned: Vec<CacheKey>,
    pub(super) phase: Phase<R>,
}

impl<R> Node<R> {
    pub(super) fn new(
        identity: Identity,
        vertex: Arc<Vertex>,
        inputs: Vec<(NodeId, u32)>,
        ignore_cache: bool,
    ) -> Self {
        let digests = vec![None; inputs.len()];
        Self {
            identity,
            vertex,
            inputs,
            users: Vec::new(),
            jobs: BTreeSet::new(),
            ignore_cache,
            imports: false,
            demand: Demand::None,
            map: MapState::Unasked,
            definition: DefinitionKey::Unknown,
            digests,
            owned: Vec::new(),
            phase: Phase::Waiting,
        }
    }

    /// What of input `position` the current phase cannot go on without.
    pub(super) fn need(&self, position: usize) -> Demand {
        match &self.phase {
            Phase::Identifying if self.takes_part(position) => Demand::Identity,
            Phase::Selecting if self.content_based(position) => Demand::Value,
            Phase::Selecting | Phase::Digesting { .. } if self.takes_part(position) => Demand::Identity,
            Phase::Gathering => Demand::Value,
            _ => Demand::None,
        }
    }

    pub(super) fn takes_part(&self, position: usize) -> bool {
        !matches!(self.input_key(position), None | Some(InputKey::Ignored))
    }

    pub(super) fn content_based(&self, position: usize) -> bool {
        matches!(self.input_key(position), Some(InputKey::Content { .. }))
    }

    pub(super) fn input_key(&self, position: usize) -> Option<&InputKey> {
        match &self.map {
            MapState::Known(map) => map.inputs.get(position),
            _ => None,
        }
    }

    /// What the result is called, once that is known.
    pub(super) fn name(&self) -> Option<Name<'_>> {
        match &self.phase {
            Phase::Found { record, .. } | Phase::Loading { record, .. } => Some(Name::Known(&record.result)),
            Phase::Done { record: Some(record), .. } => Some(Name::Known(&record.result)),
            Phase::KeysElsewhere { name, .. }
            | Phase::FoundElsewhere { name, .. }
            | Phase::Importing { name, .. } => Some(name.as_ref().map_or(Name::Nameless, Name::Known)),
            Phase::Done { record: None, .. } => Some(Name::Nameless),
            _ => None,
        }
    }

    /// The tasks the current phase waits for.
    pub(super) fn phase_tasks(&self) -> Vec<TaskId> {
        match &self.phase {
            Phase::LookingUp { task, .. }
            | Phase::LookingElsewhere { task, .. }
            | Phase::Running { task }
            | Phase::Loading { task, .. }
            | Phase::Importing { task, .. } => vec![*task],
            Phase::Digesting { pending } => pending.keys().copied().collect(),
            _ => Vec::new(),
        }
    }

    /// An error of this vertex.
    pub(super) fn error(&self, source: OpError) -> SolveError {
        SolveError::Vertex {
            vertex: self.vertex.digest.clone(),
            name: label(&self.vertex).to_owned(),
            source,
        }
    }
}
