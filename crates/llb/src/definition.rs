//! The graph itself: vertices, edges, outputs.
//!
//! Owns the immutable [`Definition`] and queries over it; every one in existence is sound: inputs
//! exist, stand before their users, and there is no cycle. Must not know how vertices are carried out.
//! Start with [`Definition`] and [`Vertex`].

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use petgraph::graph::DiGraph;
use stave_oci::{Digest, Platform};

use crate::{
    op::Op,
    source_map::{SourceLocation, SourceMap},
    wire::{self, DefinitionError},
};

/// Vertices as nodes, in the order and with the indices of [`Definition::vertices`]. An edge goes from an
/// input to its user and carries the position among the user's inputs.
pub type DefinitionGraph = DiGraph<usize, u32>;

/// A build graph. Immutable; equal graphs have equal bytes.
#[derive(Clone, Debug)]
pub struct Definition {
    pub(crate) vertices: Vec<Vertex>,
    /// The wire bytes of each vertex, which its digest is of.
    pub(crate) encoded: Vec<Vec<u8>>,
    pub(crate) index: HashMap<Digest, usize>,
    pub(crate) outputs: Vec<Edge>,
    /// The last operation on the wire, which only names the outputs; empty for an empty graph.
    pub(crate) return_op: Vec<u8>,
    pub(crate) return_metadata: VertexMetadata,
    pub(crate) source_map: SourceMap,
    pub(crate) graph: DefinitionGraph,
}

/// One operation and what it takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vertex {
    /// The sha256 of its wire bytes; it covers all below it.
    pub digest: Digest,
    /// What it does.
    pub op: Op,
    /// What it takes; indices in `op` count these.
    pub inputs: Vec<Edge>,
    /// Where it must run; `None` for what does not depend on a platform.
    pub platform: Option<Platform>,
    /// Which workers may run it; part of the digest.
    pub constraints: Option<Vec<String>>,
    /// What takes no part in the digest.
    pub metadata: VertexMetadata,
}

/// One output of a vertex.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Edge {
    /// The vertex.
    pub vertex: Digest,
    /// Which of its outputs, from 0.
    pub output: u32,
}

/// What is said about a vertex outside its digest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VertexMetadata {
    /// Whether its result must not come from the cache.
    pub ignore_cache: bool,
    /// Free text by key; [`Vertex::name`] is one.
    pub description: BTreeMap<String, String>,
    /// Whether its result is exported with the cache; `None` leaves it to the exporter.
    pub export_cache: Option<bool>,
    /// What a solver must be able to do.
    pub caps: BTreeSet<Cow<'static, str>>,
    /// The group it is shown in.
    pub progress_group: Option<ProgressGroup>,
}

/// A group of vertices shown as one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProgressGroup {
    /// What makes it the same group.
    pub id: String,
    /// The name it is shown with.
    pub name: String,
    /// Whether a vertex alone in it is shown under its own name.
    pub weak: bool,
}

/// The description key of the name a vertex is shown with.
pub(crate) const CUSTOM_NAME: &str = "llb.customname";

impl Definition {
    /// The vertices, inputs before their users, in the order BuildKit's client would write them.
    pub fn vertices(&self) -> &[Vertex] {
        &self.vertices
    }

    /// The vertex of a digest.
    pub fn vertex(&self, digest: &Digest) -> Option<&Vertex> {
        self.index.get(digest).map(|&at| &self.vertices[at])
    }

    /// The position of a digest's vertex in [`Self::vertices`].
    pub fn position(&self, digest: &Digest) -> Option<usize> {
        self.index.get(digest).copied()
    }

    /// What is wanted of the graph; none for an empty file system.
    pub fn outputs(&self) -> &[Edge] {
        &self.outputs
    }

    /// The digest of the last operation on the wire, which names the outputs.
    pub fn digest(&self) -> Digest {
        Digest::sha256(&self.return_op)
    }

    /// The graph for queries.
    pub fn graph(&self) -> &DefinitionGraph {
        &self.graph
    }

    /// Which lines vertices come from.
    pub fn source_map(&self) -> &SourceMap {
        &self.source_map
    }

    /// The places a vertex comes from; empty if none is known.
    pub fn source_location(&self, digest: &Digest) -> &[SourceLocation] {
        self.source_map.locations.get(digest).map_or(&[], Vec::as_slice)
    }

    /// The wire bytes of a vertex, which its digest is of.
    pub fn vertex_bytes(&self, digest: &Digest) -> Option<&[u8]> {
        self.index.get(digest).map(|&at| self.encoded[at].as_slice())
    }

    /// The wire form, `pb.Definition`.
    pub fn to_wire(&self) -> Vec<u8> {
        wire::encode_definition(self)
    }

    /// Reads a wire form from anywhere.
    ///
    /// # Errors
    /// For bytes that are no definition, exceed a limit, miss an input, hold a cycle, or ask for what
    /// this version does not know.
    pub fn from_wire(bytes: &[u8]) -> Result<Self, DefinitionError> {
        wire::decode_definition(bytes)
    }

    /// Several graphs as one, in which what they share is there once. Its outputs are theirs, in turn: of a graph
    /// of nothing there is none.
    pub fn union<'a>(parts: impl IntoIterator<Item = &'a Self>) -> Self {
        let mut union = Self::empty();
        for part in parts {
            for (vertex, bytes) in part.vertices.iter().zip(&part.encoded) {
                union.push(vertex.clone(), bytes.clone());
            }
            union.outputs.extend(part.outputs.iter().cloned());
            union.return_metadata.merge(part.return_metadata.clone());
            union.source_map.extend(&part.source_map);
        }
        if !union.outputs.is_empty() {
            union.return_op = wire::encode_return(&union.outputs);
        }
        union
    }

    /// The same graph for whoever comes after a run of it: what was to ignore the cache then is looked up now.
    #[must_use]
    pub fn looked_up(mut self) -> Self {
        for vertex in &mut self.vertices {
            vertex.metadata.ignore_cache = false;
        }
        self
    }

    /// A graph of nothing: an empty file system.
    pub fn empty() -> Self {
        Self {
            vertices: Vec::new(),
            encoded: Vec::new(),
            index: HashMap::new(),
            outputs: Vec::new(),
            return_op: Vec::new(),
            return_metadata: VertexMetadata::default(),
            source_map: SourceMap::default(),
            graph: DefinitionGraph::new(),
        }
    }

    /// Takes up a vertex whose inputs are all there already; the same one again only adds metadata.
    pub(crate) fn push(&mut self, vertex: Vertex, bytes: Vec<u8>) {
        if let Some(&at) = self.index.get(&vertex.digest) {
            self.vertices[at].metadata.merge(vertex.metadata);
            return;
        }
        let at = self.vertices.len();
        let node = self.graph.add_node(at);
        for (position, edge) in (0..).zip(&vertex.inputs) {
            if let Some(&input) = self.index.get(&edge.vertex) {
                self.graph.add_edge(petgraph::graph::NodeIndex::new(input), node, position);
            }
        }
        self.index.insert(vertex.digest.clone(), at);
        self.vertices.push(vertex);
        self.encoded.push(bytes);
    }
}

impl PartialEq for Definition {
    fn eq(&self, other: &Self) -> bool {
        self.vertices == other.vertices
            && self.outputs == other.outputs
            && self.source_map == other.source_map
            && self.return_metadata == other.return_metadata
    }
}

impl Eq for Definition {}

impl Vertex {
    /// The name it is shown with, if it has one.
    pub fn name(&self) -> Option<&str> {
        self.metadata.description.get(CUSTOM_NAME).map(String::as_str)
    }
}

impl VertexMetadata {
    /// Adds what `other` says; where both speak, `other` wins.
    pub(crate) fn merge(&mut self, other: Self) {
        self.ignore_cache |= other.ignore_cache;
        self.description.extend(other.description);
        self.export_cache = other.export_cache.or(self.export_cache);
        self.caps.extend(other.caps);
        if other.progress_group.is_some() {
            self.progress_group = other.progress_group;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SourceOp;
    use crate::builder::{About, GraphBuilder};

    fn graph(names: &[&str]) -> Definition {
        let mut graph = GraphBuilder::default();
        let mut last = None;
        for name in names {
            let op = SourceOp::new(format!("local://{name}"), BTreeMap::new());
            last = Some(graph.source(op, &Platform::new("linux", "amd64", None), About::named(*name)));
        }
        graph.finish(last)
    }

    #[test]
    fn a_union_has_what_is_shared_once_and_all_outputs_in_turn() {
        let (a, b, nothing) = (graph(&["a"]), graph(&["b"]), Definition::empty());
        let union = Definition::union([&a, &nothing, &b, &a]);
        assert_eq!(union.vertices().len(), 2);
        let outputs = [&a.outputs()[0], &b.outputs()[0], &a.outputs()[0]];
        assert_eq!(union.outputs().iter().collect::<Vec<_>>(), outputs);
        assert_eq!(Definition::union([&a]), a);
        assert_eq!(Definition::union([&a]).digest(), a.digest());
        assert!(Definition::union([&nothing]).outputs().is_empty());
        assert_eq!(Definition::from_wire(&union.to_wire()).expect("is sound").outputs().len(), 3);
    }
}
