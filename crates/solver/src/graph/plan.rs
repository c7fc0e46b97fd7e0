//! From a definition to the vertices a job has, each with what tells it from its likes.
//!
//! Owns the rule which vertices of different jobs are the same node. Start with [`plan`].
//!
//! The vertex digest alone does not say it: a local source means another directory in another session,
//! and a vertex that must not come from the cache differs from one that may. Both *taint* the vertex and
//! everything above it; nodes are shared when digest and taint are equal.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use stave_cache::{CacheKey, KeyBuilder};
use stave_llb::{Definition, Edge, Vertex};
use stave_oci::Digest;

use crate::error::SolveError;
use crate::key::is_session_bound;

/// What tells nodes apart.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Identity {
    vertex: Digest,
    taint: Option<CacheKey>,
}

/// One vertex of a job.
#[derive(Debug)]
pub(crate) struct PlannedVertex {
    pub(crate) vertex: Arc<Vertex>,
    pub(crate) identity: Identity,
    pub(crate) ignore_cache: bool,
    /// Index in the plan, and output, of each input.
    pub(crate) inputs: Vec<(usize, u32)>,
}

/// The vertices a job's outputs stand on, inputs before users.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) vertices: Vec<PlannedVertex>,
    pub(crate) outputs: Vec<(usize, u32)>,
}

/// Plans a definition for a session, known by its address.
///
/// Fails when an input does not come before its user, which a sound definition rules out.
pub(crate) fn plan(definition: &Definition, session: usize) -> Result<Plan, SolveError> {
    plan_vertices(definition.vertices(), definition.outputs(), session)
}

/// Plans what `outputs` stand on; vertices of other stages never enter the graph.
pub(crate) fn plan_vertices(all: &[Vertex], outputs: &[Edge], session: usize) -> Result<Plan, SolveError> {
    let needed = needed(all, outputs);
    let mut positions: BTreeMap<&Digest, usize> = BTreeMap::new();
    let mut vertices: Vec<PlannedVertex> = Vec::new();
    for vertex in all.iter().filter(|vertex| needed.contains(&vertex.digest)) {
        let inputs = resolve(&positions, &vertex.inputs)?;
        let taint = taint(vertex, inputs.iter().map(|(index, _)| vertices[*index].identity.taint), session);
        positions.insert(&vertex.digest, vertices.len());
        vertices.push(PlannedVertex {
            identity: Identity { vertex: vertex.digest.clone(), taint },
            ignore_cache: vertex.metadata.ignore_cache,
            vertex: Arc::new(vertex.clone()),
            inputs,
        });
    }
    let outputs = resolve(&positions, outputs)?;
    Ok(Plan { vertices, outputs })
}

fn resolve(positions: &BTreeMap<&Digest, usize>, edges: &[Edge]) -> Result<Vec<(usize, u32)>, SolveError> {
    let find = |edge: &Edge| match positions.get(&edge.vertex) {
        Some(position) => Ok((*position, edge.output)),
        None => Err(SolveError::Definition { vertex: edge.vertex.clone() }),
    };
    edges.iter().map(find).collect()
}

fn needed<'a>(all: &'a [Vertex], outputs: &'a [Edge]) -> BTreeSet<&'a Digest> {
    let mut needed: BTreeSet<&Digest> = outputs.iter().map(|edge| &edge.vertex).collect();
    // Users come after their inputs, so one pass backwards meets every user first.
    for vertex in all.iter().rev() {
        if needed.contains(&vertex.digest) {
            needed.extend(vertex.inputs.iter().map(|edge| &edge.vertex));
        }
    }
    needed
}

fn taint(
    vertex: &Vertex,
    inputs: impl Iterator<Item = Option<CacheKey>>,
    session: usize,
) -> Option<CacheKey> {
    let session = is_session_bound(vertex).then_some(session as u64);
    let inputs: Vec<Option<CacheKey>> = inputs.collect();
    let ignore_cache = vertex.metadata.ignore_cache;
    if session.is_none() && !ignore_cache && inputs.iter().all(Option::is_none) {
        return None;
    }
    let mut builder = KeyBuilder::new("taint");
    builder.flag("ignore-cache", ignore_cache).optional_number("session", session);
    for input in &inputs {
        match input {
            Some(taint) => builder.key("input", taint),
            None => builder.absent("input"),
        };
    }
    Some(builder.finish().key())
}
