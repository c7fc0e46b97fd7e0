//! What an op was to be made from that failed before it had files of its own: its inputs, and what those of its actions
//! made that went well.
//!
//! Nothing of that was kept: parts of the graph are solved again, most of which is in the cache. Owns these parts. A
//! directory of the client is not copied for it. Start with [`detail`].

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use bollard_buildkit_proto::pb;
use prost::Message as _;
use serde_json::{Value, json};
use stave_oci::Digest;
use stave_store::Snapshot;

use super::op_json;
use crate::build::{Build, Target};
use crate::frontend::graph_of;

/// Ops with more inputs or actions are told without what they were made from.
const MOST: usize = 32;

/// A vertex that failed, and the graph that it is part of.
struct Failed<'a> {
    build: &'a Build,
    target: &'a Target,
    op: &'a pb::Op,
    /// The ops of the graph by digest.
    ops: BTreeMap<String, pb::Op>,
}

/// What a client needs to look into it.
pub(super) async fn detail(build: &Build, target: &Target, op: &pb::Op) -> Option<Value> {
    let read = |bytes: &Vec<u8>| Some((digest(bytes), pb::Op::decode(bytes.as_slice()).ok()?));
    let ops = target.message.def.iter().filter_map(read).collect();
    let failed = Failed { build, target, op, ops };
    match &op.op {
        Some(pb::op::Op::File(file)) if file.actions.len() <= MOST && op.inputs.len() <= MOST => {
            failed.of_file(file).await
        }
        Some(pb::op::Op::Exec(exec)) if op.inputs.len() <= MOST => failed.of_exec(exec).await,
        _ => None,
    }
}

fn digest(bytes: &[u8]) -> String {
    Digest::sha256(bytes).to_string()
}

impl Failed<'_> {
    /// The first action that fails, what those before it made, and the inputs.
    async fn of_file(&self, file: &pb::FileOp) -> Option<Value> {
        let mut inputs = Vec::with_capacity(self.op.inputs.len());
        for input in &self.op.inputs {
            inputs.push(self.input(input).await.map(|(id, _)| id).unwrap_or_default());
        }
        let mut made: Vec<String> = Vec::new();
        // One of them failed: if none before the last, the last.
        for index in 0..file.actions.len().checked_sub(1)? {
            match self.solved(&self.up_to(file, index)).await {
                Some((id, _)) => made.push(id),
                None => break,
            }
        }
        let failed = made.len();
        let action = file.actions.get(failed)?;
        // Its own result is what it began with.
        let began = usize::try_from(action.input).ok().and_then(|input| {
            let earlier = input.checked_sub(inputs.len());
            earlier.map_or_else(|| inputs.get(input), |earlier| made.get(earlier)).cloned()
        });
        made.push(began.unwrap_or_default());
        made.resize(file.actions.len(), String::new());
        Some(json!({
            "inputIDs": inputs,
            "mountIDs": made,
            "op": op_json(self.op),
            "file": { "index": failed.to_string() },
        }))
    }

    /// The input that lacks what a mount shows of it.
    async fn of_exec(&self, exec: &pb::ExecOp) -> Option<Value> {
        for mount in exec.mounts.iter().filter(|mount| mount.readonly && mount.selector.len() > 1) {
            let Ok(index) = usize::try_from(mount.input) else { continue };
            let Some(input) = self.op.inputs.get(index) else { continue };
            let Some((id, snapshot)) = self.input(input).await else { continue };
            let view = self.build.engine().store().view(&snapshot).ok()?;
            if view.metadata(Path::new(&mount.selector)).ok()?.is_none() {
                return Some(json!({
                    "inputIDs": [id],
                    "op": op_json(self.op),
                    "cache": { "index": index.to_string() },
                }));
            }
        }
        None
    }

    /// An input as a result; none for a directory of the client.
    async fn input(&self, edge: &pb::Input) -> Option<(String, Snapshot)> {
        let is_local = |op: &pb::Op| match &op.op {
            Some(pb::op::Op::Source(source)) => source.identifier.starts_with("local://"),
            _ => false,
        };
        match self.ops.get(&edge.digest).is_some_and(is_local) {
            true => None,
            false => self.solved(&self.ending(edge.clone(), None)).await,
        }
    }

    /// The graph that ends with the actions of the vertex up to this one.
    fn up_to(&self, file: &pb::FileOp, index: usize) -> pb::Definition {
        let mut actions: Vec<_> = file.actions.iter().take(index + 1).cloned().collect();
        for action in &mut actions {
            action.output = -1;
        }
        if let Some(last) = actions.last_mut() {
            last.output = 0;
        }
        let op = pb::Op { op: Some(pb::op::Op::File(pb::FileOp { actions })), ..self.op.clone() };
        let edge = pb::Input { digest: digest(&op.encode_to_vec()), index: 0 };
        self.ending(edge, Some(&op))
    }

    /// The ops that an edge needs, and an end there. The edge may be one of a further op.
    fn ending(&self, edge: pb::Input, further: Option<&pb::Op>) -> pb::Definition {
        let mut needed = BTreeSet::new();
        let mut waiting: Vec<&str> = match further {
            Some(op) => op.inputs.iter().map(|input| input.digest.as_str()).collect(),
            None => vec![edge.digest.as_str()],
        };
        while let Some(digest) = waiting.pop() {
            if let Some(op) = self.ops.get(digest)
                && needed.insert(digest.to_owned())
            {
                waiting.extend(op.inputs.iter().map(|input| input.digest.as_str()));
            }
        }
        let message = &self.target.message;
        let end = pb::Op { inputs: vec![edge.clone()], ..pb::Op::default() };
        let mut def: Vec<_> =
            message.def.iter().filter(|bytes| needed.contains(&digest(bytes))).cloned().collect();
        def.extend(further.map(prost::Message::encode_to_vec));
        def.push(end.encode_to_vec());
        let metadata = message.metadata.iter().filter(|(digest, _)| needed.contains(*digest));
        // All of it has run in this build already, whatever it asked for: what it came to is looked up.
        let looked_up = |about: &pb::OpMetadata| pb::OpMetadata { ignore_cache: false, ..about.clone() };
        let metadata = metadata.map(|(digest, about)| (digest.clone(), looked_up(about))).collect();
        pb::Definition { def, metadata, source: None }
    }

    /// A part as a result of the build, if it can be made.
    async fn solved(&self, graph: &pb::Definition) -> Option<(String, Snapshot)> {
        let definition = graph_of(graph).ok()?;
        let snapshot = Box::pin(self.build.solve_quietly(self.target, &definition)).await.ok()?;
        let id = self.build.add_solved(snapshot.clone()).ok()?.id.clone();
        Some((id, snapshot))
    }
}
