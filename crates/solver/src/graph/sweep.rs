//! Ending jobs: what nobody wants any more stops and goes.
//!
//! Owns the marking of what live jobs still need. Demand only grows while a job lives, so it is
//! computed afresh only here. Start with `end_job`.

use std::collections::{BTreeMap, BTreeSet};

use super::node::{Demand, MapState, Phase};
use super::{Command, Draining, Graph, NodeId, Purpose, TaskId};
use crate::error::SolveError;
use crate::solver::JobId;

impl<R: Clone> Graph<R> {
    /// Takes a job out of the graph; it finishes when what ran for it alone has stopped.
    pub(super) fn end_job(&mut self, job: JobId, outcome: Result<Vec<R>, SolveError>) {
        let Some(state) = self.jobs.remove(&job) else { return };
        let members: BTreeSet<NodeId> = state.nodes.into_iter().collect();
        for id in &members {
            if let Some(node) = self.nodes.get_mut(id) {
                node.jobs.remove(&job);
            }
        }
        self.sweep();
        let tasks = self.remaining(&members);
        for id in members {
            if self.nodes.contains_key(&id) {
                self.commands.push(Command::Detach { node: id, job });
            }
        }
        self.draining.insert(job, Draining { outcome, tasks });
    }

    /// What a job waits for at its end: index writes of its nodes, and everything that was stopped.
    /// The latter may belong to others, but then it ends just as soon.
    fn remaining(&self, members: &BTreeSet<NodeId>) -> BTreeSet<TaskId> {
        let holds = |purpose: &Purpose| match purpose {
            Purpose::Node(_) => false,
            Purpose::Recording(node) => members.contains(node),
            Purpose::Stopped(_) => true,
        };
        self.tasks.iter().filter(|(_, purpose)| holds(purpose)).map(|(task, _)| *task).collect()
    }

    /// Stops and drops what no live job needs.
    fn sweep(&mut self) {
        let demands = self.mark();
        let ids: Vec<NodeId> = self.nodes.keys().copied().collect();
        for id in ids {
            let demand = demands.get(&id).copied().unwrap_or(Demand::None);
            let Some(node) = self.nodes.get_mut(&id) else { continue };
            node.demand = demand;
            let gone = node.jobs.is_empty() && demand == Demand::None;
            let mut tasks = Vec::new();
            if demand == Demand::None {
                tasks = node.phase_tasks();
                rest(&mut node.phase);
            }
            if let (true, MapState::Asked(task)) = (gone, &node.map) {
                tasks.push(*task);
            }
            for task in tasks {
                self.stop(task);
            }
            if demand == Demand::None && !self.is_done(id) {
                self.disown(id);
            }
            if gone {
                self.forget(id);
            }
        }
    }

    /// How much of each node the outputs of live jobs need, through the phases of its users.
    fn mark(&self) -> BTreeMap<NodeId, Demand> {
        let mut demands = BTreeMap::new();
        let mut open: Vec<(NodeId, Demand)> = self
            .jobs
            .values()
            .flat_map(|job| job.outputs.iter().map(|(node, _)| (*node, Demand::Value)))
            .collect();
        while let Some((id, demand)) = open.pop() {
            let Some(node) = self.nodes.get(&id) else { continue };
            let known = demands.get(&id).copied().unwrap_or(Demand::None);
            if demand <= known {
                continue;
            }
            demands.insert(id, demand);
            if known > Demand::None {
                continue;
            }
            for (position, (input, _)) in node.inputs.iter().enumerate() {
                open.push((*input, node.need(position)));
            }
            if let Phase::Following { leader } = &node.phase {
                open.push((*leader, Demand::Value));
            }
        }
        demands
    }

    fn is_done(&self, id: NodeId) -> bool {
        self.nodes.get(&id).is_some_and(|node| matches!(node.phase, Phase::Done { .. }))
    }

    /// Stops leading from the node's keys to it.
    pub(super) fn disown(&mut self, id: NodeId) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        for key in std::mem::take(&mut node.owned) {
            if self.by_key.get(&key) == Some(&id) {
                self.by_key.remove(&key);
            }
        }
    }

    fn forget(&mut self, id: NodeId) {
        self.disown(id);
        let Some(node) = self.nodes.remove(&id) else { return };
        if self.by_identity.get(&node.identity) == Some(&id) {
            self.by_identity.remove(&node.identity);
        }
        for (input, _) in &node.inputs {
            if let Some(input) = self.nodes.get_mut(input) {
                input.users.retain(|user| *user != id);
            }
        }
        self.commands.push(Command::Forget { node: id });
    }
}

/// Puts a phase nobody waits for back to where nothing runs. What is known stays known.
fn rest<R>(phase: &mut Phase<R>) {
    match phase {
        Phase::Found { .. } | Phase::FoundElsewhere { .. } | Phase::Done { .. } | Phase::Failed(_) => {}
        Phase::Loading { record, stage, .. } => {
            *phase = Phase::Found { record: record.clone(), stage: *stage };
        }
        Phase::Importing { record, stage, name, .. } => {
            *phase = Phase::FoundElsewhere { record: record.clone(), stage: *stage, name: name.clone() };
        }
        _ => *phase = Phase::Waiting,
    }
}
