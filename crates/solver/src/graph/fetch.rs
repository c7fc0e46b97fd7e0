//! What the answers of commands do to the node that asked.
//!
//! Owns hits, loads, and what a job is told of cached vertices. Start with `node_answer`.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use stave_cache::{CacheKey, CacheRecord, ContentDigest, NewRecord, ResultId};

use super::node::{Demand, MapState, Node, Phase, Stage};
use super::{Answer, Command, Graph, Made, NodeId, Purpose, TaskId, Unwritten};
use crate::error::{ContractError, OpError};
use crate::event::Hit;
use crate::key::label;
use crate::solver::JobId;
use crate::worker::{ELSEWHERE, Elsewhere};

impl<R: Clone> Graph<R> {
    pub(super) fn node_answer(&mut self, id: NodeId, task: TaskId, answer: Answer<R>) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        match answer {
            Answer::Mapped(outcome) => {
                node.map = match outcome {
                    Ok(map) if map.inputs.len() != node.inputs.len() => {
                        let (found, expected) = (map.inputs.len(), node.inputs.len());
                        MapState::Failed(ContractError::InputCount { found, expected }.into())
                    }
                    Ok(map) => MapState::Known(Arc::new(map)),
                    Err(error) => MapState::Failed(error),
                };
                self.ready.push_back(id);
            }
            Answer::LookedUp(record) => {
                let Phase::LookingUp { stage, .. } = node.phase else { return };
                match record {
                    Some(record) => self.found(id, Arc::new(record), stage),
                    None => self.missed(id, stage),
                }
            }
            Answer::Loaded(outcome) => {
                let Phase::Loading { record, stage, .. } = &node.phase else { return };
                let (record, stage) = (Arc::clone(record), *stage);
                match outcome {
                    Ok(Some(outputs)) => {
                        self.report_cached(id, Hit::Local, Some(record.key));
                        let record = Some(Arc::new(name_again(&record)));
                        self.enter(id, Phase::Done { outputs, record });
                        self.wake_users(id);
                    }
                    Ok(None) => self.missed(id, stage),
                    Err(error) => self.fail_aside(id, error),
                }
            }
            Answer::FoundElsewhere(record) => {
                let Phase::LookingElsewhere { stage, .. } = node.phase else { return };
                match record {
                    Some((found, at)) => self.found_elsewhere(id, found, stage, at),
                    None => self.passed(id, stage),
                }
            }
            Answer::Imported(outcome) => {
                let Phase::Importing { stage, .. } = node.phase else { return };
                match outcome {
                    Ok(Some(made)) => {
                        self.report_cached(id, Hit::Imported, None);
                        self.made(id, made);
                    }
                    Ok(None) => self.passed(id, stage),
                    Err(error) => self.fail_aside(id, error),
                }
            }
            Answer::Digested(outcome) => self.digested(id, task, outcome),
            Answer::Executed(Ok(made)) => self.made(id, made),
            Answer::Executed(Err(error)) => {
                let error = node.error(error);
                self.fail(id, error);
            }
            Answer::Recorded => {}
        }
    }

    /// Whoever waits for the outputs goes on; the record is written meanwhile.
    fn made(&mut self, id: NodeId, made: Made<R>) {
        let Made { outputs, record, unwritten } = made;
        if let Some(record) = &record {
            self.record(id, unwritten, Arc::clone(record));
        }
        self.enter(id, Phase::Done { outputs, record });
        self.wake_users(id);
    }

    /// Fails a node by something else than its run.
    pub(super) fn fail_aside(&mut self, id: NodeId, error: OpError) {
        let Some(node) = self.nodes.get(&id) else { return };
        let failure = node.error(error.clone());
        self.commands.push(Command::Failed { node: id, error });
        self.fail(id, failure);
    }

    fn digested(&mut self, id: NodeId, task: TaskId, outcome: Result<ContentDigest, OpError>) {
        let Some(Node { phase: Phase::Digesting { pending }, digests, .. }) = self.nodes.get_mut(&id) else {
            return;
        };
        let position = pending.remove(&task);
        let last = pending.is_empty();
        match (outcome, position) {
            (Ok(digest), Some(position)) => {
                digests[position] = Some(digest);
                if last {
                    self.after_digesting(id);
                }
            }
            (Err(error), _) => self.fail_aside(id, error),
            (Ok(_), None) => {}
        }
    }

    fn found(&mut self, id: NodeId, record: Arc<CacheRecord>, stage: Stage) {
        let Some(node) = self.nodes.get(&id) else { return };
        let entries = self.entries(node, Some(stage));
        let is_lazy = node.demand < Demand::Value;
        self.record(id, entries.into(), Arc::new(name_again(&record)));
        if is_lazy {
            self.report_cached(id, Hit::Local, Some(record.key));
        }
        self.enter(id, Phase::Found { record, stage });
        self.wake_users(id);
    }

    /// What is found elsewhere is here by name alone, and the name is recorded: so a later build finds what
    /// stands on it, also without that cache. Nothing can be loaded by it; whoever needs the value makes it.
    fn found_elsewhere(&mut self, id: NodeId, found: Elsewhere, stage: Stage, at: SystemTime) {
        let Some(node) = self.nodes.get(&id) else { return };
        let is_lazy = node.demand < Demand::Value;
        let entries = self.entries(node, None);
        let name = entries.last().and_then(|entry| ResultId::new(format!("{ELSEWHERE}{}", entry.key)).ok());
        if let Some(result) = &name {
            let record = NewRecord {
                result: result.clone(),
                vertex: node.vertex.digest.to_string(),
                vertex_name: label(&node.vertex).to_owned(),
                created_at: at,
                duration: Duration::ZERO,
            };
            self.record(id, entries.into(), Arc::new(record));
        }
        match found {
            Elsewhere::Record(record) => {
                if is_lazy {
                    self.report_cached(id, Hit::Imported, None);
                }
                self.enter(id, Phase::FoundElsewhere { record, stage, name });
            }
            Elsewhere::KeysOnly => self.enter(id, Phase::KeysElsewhere { stage, name }),
        }
        self.wake_users(id);
    }

    pub(super) fn import(&mut self, id: NodeId) -> bool {
        let Phase::FoundElsewhere { record, stage, name } = &self.nodes[&id].phase else { return false };
        let (record, stage, name) = (record.clone(), *stage, name.clone());
        let entries = self.entries(&self.nodes[&id], None);
        let task = self.start(Purpose::Node(id));
        self.commands.push(Command::Import { task, node: id, record: record.clone(), entries });
        self.enter(id, Phase::Importing { record, stage, name, task });
        true
    }

    pub(super) fn load(&mut self, id: NodeId) -> bool {
        let Phase::Found { record, stage } = &self.nodes[&id].phase else { return false };
        let (record, stage) = (Arc::clone(record), *stage);
        let task = self.start(Purpose::Node(id));
        self.commands.push(Command::Load { task, node: id, record: Arc::clone(&record) });
        self.enter(id, Phase::Loading { record, stage, task });
        true
    }

    /// Has a record written, if there is a key to find it by.
    pub(super) fn record(
        &mut self,
        id: NodeId,
        unwritten: Unwritten,
        record: Arc<NewRecord>,
    ) -> Option<TaskId> {
        if unwritten.entries.is_empty() {
            return None;
        }
        let task = self.start(Purpose::Recording(id));
        self.commands.push(Command::Record { task, unwritten, record });
        Some(task)
    }

    /// Tells every job of the node that it, and all below it that nobody asked for, came from the cache.
    pub(super) fn report_cached(&mut self, id: NodeId, hit: Hit, key: Option<CacheKey>) {
        let Some(node) = self.nodes.get(&id) else { return };
        for job in node.jobs.iter().copied().collect::<Vec<_>>() {
            for node in self.unreported_below(id, job) {
                let (hit, key) = if node == id { (hit, key) } else { (Hit::Skipped, None) };
                if let Some(state) = self.jobs.get_mut(&job)
                    && state.reported.insert(node)
                {
                    self.commands.push(Command::Cached { node, job, hit, key });
                }
            }
        }
    }

    /// The node and what is idle below it, inputs first. Stops at what the job has heard of, so that a
    /// chain is walked once and not once per step.
    fn unreported_below(&self, id: NodeId, job: JobId) -> Vec<NodeId> {
        let Some(state) = self.jobs.get(&job) else { return Vec::new() };
        let mut order = Vec::new();
        let mut seen = std::collections::BTreeSet::from([id]);
        let mut path = vec![(id, 0)];
        while let Some((current, next)) = path.pop() {
            let input = self.nodes.get(&current).and_then(|node| node.inputs.get(next));
            let Some((input, _)) = input else {
                order.push(current);
                continue;
            };
            path.push((current, next + 1));
            let idle = self
                .nodes
                .get(input)
                .is_some_and(|node| node.demand == Demand::None && matches!(node.phase, Phase::Waiting));
            if idle && !state.reported.contains(input) && seen.insert(*input) {
                path.push((*input, 0));
            }
        }
        order
    }
}

/// The record as it is written again under further keys.
fn name_again(record: &CacheRecord) -> NewRecord {
    NewRecord {
        result: record.result.clone(),
        vertex: record.vertex.clone(),
        vertex_name: record.vertex_name.clone(),
        created_at: record.created_at,
        duration: record.duration,
    }
}
