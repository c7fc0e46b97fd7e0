//! How a demanded node moves from phase to phase until it must wait.
//!
//! Owns the order of look-ups and what each phase waits for. Every function here that says whether it
//! moved is called again until it did not. Start with `advance`.

use std::collections::BTreeSet;
use std::sync::Arc;

use stave_cache::{CacheKey, KeyEntry, KeyKind};

use super::node::{DefinitionKey, Demand, MapState, Name, Node, Phase, Stage};
use super::{Command, Graph, NodeId, Purpose};
use crate::error::{ContractError, SolveError};
use crate::event::Hit;
use crate::key::{InputPart, InputValue, vertex_key};
use crate::worker::{InputKey, OpKey};

impl<R: Clone> Graph<R> {
    /// Wants at least so much of a node.
    pub(super) fn raise(&mut self, id: NodeId, demand: Demand) {
        if let Some(node) = self.nodes.get_mut(&id)
            && demand > node.demand
        {
            node.demand = demand;
            self.ready.push_back(id);
        }
    }

    pub(super) fn wake_users(&mut self, id: NodeId) {
        if let Some(node) = self.nodes.get(&id) {
            self.ready.extend(&node.users);
        }
    }

    /// Enters a phase and asks the inputs for what it needs.
    pub(super) fn enter(&mut self, id: NodeId, phase: Phase<R>) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        node.phase = phase;
        let node = &self.nodes[&id];
        let needs: Vec<(NodeId, Demand)> = node
            .inputs
            .iter()
            .enumerate()
            .map(|(position, (input, _))| (*input, node.need(position)))
            .collect();
        for (input, need) in needs {
            self.raise(input, need);
        }
        self.ready.push_back(id);
    }

    /// Ends a node in failure. Those who wait for it follow when they are woken.
    pub(super) fn fail(&mut self, id: NodeId, error: SolveError) {
        let Some(node) = self.nodes.get(&id) else { return };
        for task in node.phase_tasks() {
            self.stop(task);
        }
        self.disown(id);
        self.enter(id, Phase::Failed(error));
        self.wake_users(id);
    }

    pub(super) fn advance(&mut self, id: NodeId) {
        self.define(id);
        loop {
            let Some(node) = self.nodes.get(&id) else { return };
            if node.demand == Demand::None {
                return;
            }
            if let Some(error) = self.failed_input(node) {
                self.fail(id, error);
                return;
            }
            let moved = match node.phase {
                Phase::Waiting => self.leave_waiting(id),
                Phase::Identifying => self.leave_identifying(id),
                Phase::Selecting => self.leave_selecting(id),
                Phase::Gathering => self.leave_gathering(id),
                Phase::Following { leader } => self.leave_following(id, leader),
                Phase::Found { .. } if node.demand == Demand::Value => self.load(id),
                Phase::KeysElsewhere { stage, .. } if node.demand == Demand::Value => {
                    self.passed(id, stage);
                    true
                }
                Phase::FoundElsewhere { .. } if node.demand == Demand::Value => self.import(id),
                _ => false,
            };
            if !moved {
                return;
            }
        }
    }

    /// Works out the definition key as soon as it can be, whether or not the node is demanded: nodes
    /// above need it.
    fn define(&mut self, id: NodeId) {
        let Some(node) = self.nodes.get(&id) else { return };
        if !matches!(node.definition, DefinitionKey::Unknown) {
            return;
        }
        let definition = self.definition_key(node);
        if matches!(definition, DefinitionKey::Unknown) {
            return;
        }
        if let Some(node) = self.nodes.get_mut(&id) {
            node.definition = definition;
        }
        self.wake_users(id);
    }

    fn definition_key(&self, node: &Node<R>) -> DefinitionKey {
        let map = match &node.map {
            MapState::Unasked | MapState::Asked(_) => return DefinitionKey::Unknown,
            // A failure counts only when the node itself is demanded.
            MapState::Failed(_) => return DefinitionKey::Absent,
            MapState::Known(map) => map,
        };
        let OpKey::Stable(op) = &map.op else { return DefinitionKey::Absent };
        let (mut parts, mut all_known, mut all_lookup) = (Vec::new(), true, true);
        for (position, (input, output)) in node.inputs.iter().enumerate() {
            if !node.takes_part(position) {
                continue;
            }
            let Some(below) = self.nodes.get(input) else { return DefinitionKey::Absent };
            match &below.definition {
                DefinitionKey::Unknown => all_known = false,
                DefinitionKey::Absent => return DefinitionKey::Absent,
                DefinitionKey::Known { entry, lookup } => {
                    all_lookup &= *lookup && !below.ignore_cache;
                    let selector = map.inputs.get(position).and_then(|input| input.selector());
                    let value = InputValue::Definition { output: *output, key: entry.key };
                    parts.push(InputPart { position, selector, value });
                }
            }
        }
        if !all_known {
            return DefinitionKey::Unknown;
        }
        let entry = Box::new(vertex_key(KeyKind::Definition, op, &parts));
        DefinitionKey::Known { entry, lookup: all_lookup }
    }

    fn failed_input(&self, node: &Node<R>) -> Option<SolveError> {
        node.inputs.iter().enumerate().find_map(|(position, (input, _))| {
            match (node.need(position), &self.nodes.get(input)?.phase) {
                (Demand::Identity | Demand::Value, Phase::Failed(error)) => Some(error.clone()),
                _ => None,
            }
        })
    }

    fn leave_waiting(&mut self, id: NodeId) -> bool {
        let node = &self.nodes[&id];
        let map = match &node.map {
            MapState::Unasked | MapState::Asked(_) => return false,
            MapState::Failed(error) => {
                let error = error.clone();
                self.fail_aside(id, error);
                return false;
            }
            MapState::Known(map) => map,
        };
        let key = match &node.definition {
            DefinitionKey::Unknown => return false,
            DefinitionKey::Known { entry, lookup: true } if !node.ignore_cache => Some(entry.key),
            DefinitionKey::Known { .. } | DefinitionKey::Absent => None,
        };
        match key {
            Some(key) => self.look_up(id, Stage::Definition, key),
            None if matches!(map.op, OpKey::Volatile) => self.enter(id, Phase::Gathering),
            None => self.after_definition(id),
        }
        true
    }

    fn look_up(&mut self, id: NodeId, stage: Stage, key: CacheKey) {
        let task = self.start(Purpose::Node(id));
        self.commands.push(Command::Lookup { task, node: id, key });
        self.enter(id, Phase::LookingUp { stage, task });
    }

    /// The next phase after a look-up missed, or its record's outputs were gone.
    pub(super) fn missed(&mut self, id: NodeId, stage: Stage) {
        if !self.look_elsewhere(id, stage) {
            self.passed(id, stage);
        }
    }

    /// Asks caches made elsewhere what the index did not know, if there are any.
    fn look_elsewhere(&mut self, id: NodeId, stage: Stage) -> bool {
        let node = &self.nodes[&id];
        if !node.imports || node.ignore_cache {
            return false;
        }
        let read = |(position, (input, output)): (usize, &(NodeId, u32))| {
            let is_read = stage == Stage::Content && node.content_based(position);
            if is_read { self.value(*input, *output)?.ok() } else { None }
        };
        let contents = node.inputs.iter().enumerate().map(read).collect();
        let task = self.start(Purpose::Node(id));
        self.commands.push(Command::LookElsewhere { task, node: id, contents });
        self.enter(id, Phase::LookingElsewhere { stage, task });
        true
    }

    /// The next phase after nobody knew the vertex by the keys of a stage.
    pub(super) fn passed(&mut self, id: NodeId, stage: Stage) {
        match stage {
            Stage::Definition => self.after_definition(id),
            Stage::Result => self.after_result(id),
            Stage::Content => self.enter(id, Phase::Gathering),
        }
    }

    fn after_definition(&mut self, id: NodeId) {
        let node = &self.nodes[&id];
        let any = (0..node.inputs.len()).any(|position| node.takes_part(position));
        self.enter(id, if any { Phase::Identifying } else { Phase::Gathering });
    }

    fn leave_identifying(&mut self, id: NodeId) -> bool {
        let node = &self.nodes[&id];
        let named = |position: usize| {
            !node.takes_part(position)
                || self.nodes.get(&node.inputs[position].0).is_none_or(|n| n.name().is_some())
        };
        if !(0..node.inputs.len()).all(named) {
            return false;
        }
        match self.input_key(node, KeyKind::Result) {
            Some(entry) if !node.ignore_cache => self.look_up(id, Stage::Result, entry.key),
            _ => self.missed(id, Stage::Result),
        }
        true
    }

    /// Content is worth hashing when there is some, and when it completes a key.
    fn after_result(&mut self, id: NodeId) {
        let node = &self.nodes[&id];
        let mut content = false;
        for (position, (input, _)) in node.inputs.iter().enumerate() {
            if node.content_based(position) {
                content = true;
            } else if node.takes_part(position)
                && !node.imports
                && !matches!(self.name_of(*input), Some(Name::Known(_)))
            {
                self.enter(id, Phase::Gathering);
                return;
            }
        }
        self.enter(id, if content { Phase::Selecting } else { Phase::Gathering });
    }

    fn leave_selecting(&mut self, id: NodeId) -> bool {
        let node = &self.nodes[&id];
        let mut wanted = Vec::new();
        for (position, (input, output)) in node.inputs.iter().enumerate() {
            let Some(InputKey::Content { selector }) = node.input_key(position) else { continue };
            match self.value(*input, *output) {
                None => return false,
                Some(Err(error)) => {
                    self.fail_aside(id, error.into());
                    return false;
                }
                Some(Ok(_)) if node.digests[position].is_some() => {}
                Some(Ok(value)) => wanted.push((position, value, selector.clone())),
            }
        }
        let mut pending = std::collections::BTreeMap::new();
        for (position, input, selector) in wanted {
            let task = self.start(Purpose::Node(id));
            self.commands.push(Command::Digest { task, node: id, position, input, selector });
            pending.insert(task, position);
        }
        if pending.is_empty() {
            self.after_digesting(id);
        } else {
            self.enter(id, Phase::Digesting { pending });
        }
        true
    }

    pub(super) fn after_digesting(&mut self, id: NodeId) {
        let node = &self.nodes[&id];
        match self.input_key(node, KeyKind::Content) {
            Some(entry) if !node.ignore_cache => self.look_up(id, Stage::Content, entry.key),
            _ => self.missed(id, Stage::Content),
        }
    }

    fn leave_gathering(&mut self, id: NodeId) -> bool {
        let node = &self.nodes[&id];
        let mut inputs = Vec::with_capacity(node.inputs.len());
        for (input, output) in &node.inputs {
            match self.value(*input, *output) {
                None => return false,
                Some(Err(error)) => {
                    self.fail_aside(id, error.into());
                    return false;
                }
                Some(Ok(value)) => inputs.push(value),
            }
        }
        if self.tasks.values().any(|purpose| *purpose == Purpose::Stopped(id)) {
            return false;
        }
        let entries = self.entries(node, None);
        if !node.ignore_cache
            && let Some(leader) = self.leader(id, &entries)
        {
            if let Some(leader) = self.nodes.get_mut(&leader) {
                leader.users.push(id);
            }
            self.enter(id, Phase::Following { leader });
            return true;
        }
        self.execute(id, inputs, entries);
        true
    }

    fn execute(&mut self, id: NodeId, inputs: Vec<R>, entries: Vec<KeyEntry>) {
        let task = self.start(Purpose::Node(id));
        self.disown(id);
        for entry in &entries {
            self.by_key.insert(entry.key, id);
        }
        if let Some(node) = self.nodes.get_mut(&id) {
            node.owned = entries.iter().map(|entry| entry.key).collect();
            for job in &node.jobs {
                if let Some(job) = self.jobs.get_mut(job) {
                    job.reported.insert(id);
                }
            }
        }
        let ignored = self.nodes.get(&id).is_some_and(|node| node.ignore_cache);
        self.commands.push(Command::Execute { task, node: id, inputs, entries, ignored });
        self.enter(id, Phase::Running { task });
    }

    /// Another node that makes, or has made, what one of these keys stands for.
    fn leader(&self, id: NodeId, entries: &[KeyEntry]) -> Option<NodeId> {
        entries.iter().find_map(|entry| {
            let leader = *self.by_key.get(&entry.key)?;
            let phase = &self.nodes.get(&leader)?.phase;
            let leads = matches!(phase, Phase::Running { .. } | Phase::Done { .. });
            (leader != id && leads).then_some(leader)
        })
    }

    fn leave_following(&mut self, id: NodeId, leader: NodeId) -> bool {
        let (outputs, record) = match self.nodes.get(&leader).map(|leader| &leader.phase) {
            Some(Phase::Running { .. }) => return false,
            Some(Phase::Done { outputs, record }) => (Arc::clone(outputs), record.clone()),
            // It failed or went; its failure may be its session's, so this node tries for itself.
            _ => {
                self.enter(id, Phase::Gathering);
                return true;
            }
        };
        let theirs: BTreeSet<CacheKey> = self.nodes[&leader].owned.iter().copied().collect();
        let mut entries = self.entries(&self.nodes[&id], None);
        entries.retain(|entry| !theirs.contains(&entry.key));
        if let Some(record) = &record {
            self.record(id, entries.into(), Arc::clone(record));
        }
        self.report_cached(id, Hit::Shared, None);
        self.enter(id, Phase::Done { outputs, record });
        self.wake_users(id);
        false
    }

    /// The keys that are known, of the look-ups before `stage` or of all.
    pub(super) fn entries(&self, node: &Node<R>, stage: Option<Stage>) -> Vec<KeyEntry> {
        let before = |other: Stage| stage.is_none_or(|stage| other < stage);
        let mut entries = Vec::new();
        if before(Stage::Definition)
            && let DefinitionKey::Known { entry, .. } = &node.definition
        {
            entries.push((**entry).clone());
        }
        let takes_part = (0..node.inputs.len()).any(|position| node.takes_part(position));
        if takes_part && before(Stage::Result) {
            entries.extend(self.input_key(node, KeyKind::Result));
        }
        if (0..node.inputs.len()).any(|position| node.content_based(position)) && before(Stage::Content) {
            entries.extend(self.input_key(node, KeyKind::Content));
        }
        entries
    }

    /// The result or content key, when all it needs is known.
    fn input_key(&self, node: &Node<R>, kind: KeyKind) -> Option<KeyEntry> {
        let MapState::Known(map) = &node.map else { return None };
        let OpKey::Stable(op) = &map.op else { return None };
        let mut parts = Vec::new();
        for (position, (input, output)) in node.inputs.iter().enumerate() {
            if !node.takes_part(position) {
                continue;
            }
            let value = if kind == KeyKind::Content && node.content_based(position) {
                InputValue::Content { digest: node.digests[position]? }
            } else {
                let Some(Name::Known(result)) = self.name_of(*input) else { return None };
                InputValue::Result { output: *output, result: result.clone() }
            };
            parts.push(InputPart { position, selector: map.inputs[position].selector(), value });
        }
        Some(vertex_key(kind, op, &parts))
    }

    fn name_of(&self, id: NodeId) -> Option<Name<'_>> {
        self.nodes.get(&id)?.name()
    }

    /// An output of a node that is done.
    fn value(&self, id: NodeId, output: u32) -> Option<Result<R, ContractError>> {
        let Phase::Done { outputs, .. } = &self.nodes.get(&id)?.phase else { return None };
        let missing = ContractError::MissingOutput { wanted: output, made: outputs.len() };
        Some(outputs.get(output as usize).cloned().ok_or(missing))
    }
}
