//! Bytes from anywhere to a sound definition.
//!
//! Owns the checks between vertices: every input exists, none depends on itself, the last operation
//! names the output. Start with [`decode_definition`].

use std::collections::{BTreeMap, BTreeSet, HashMap};

use bollard_buildkit_proto::pb;
use petgraph::{algo, graph::DiGraph};
use prost::Message;
use stave_oci::Digest;

use super::{
    DefinitionError, MAX_DEFINITION_BYTES, MAX_INPUTS, MAX_OP_BYTES, MAX_OUTPUTS, MAX_VERTICES,
    newer::NewerOp,
    to_typed::{Reader, platform},
};
use crate::{
    definition::{Definition, Edge, ProgressGroup, Vertex, VertexMetadata},
    source_map::{Position, SourceInfo, SourceLocation, SourceMap, SourceRange},
};

/// Reads a `pb.Definition`.
pub(crate) fn decode_definition(bytes: &[u8]) -> Result<Definition, DefinitionError> {
    limit("bytes", bytes.len(), MAX_DEFINITION_BYTES)?;
    from_message(pb::Definition::decode(bytes).map_err(malformed)?, 0)
}

/// A message's definition; `depth` is how many definitions it is inside of.
pub(super) fn from_message(message: pb::Definition, depth: usize) -> Result<Definition, DefinitionError> {
    let mut all = message.def;
    limit("vertices", all.len(), MAX_VERTICES)?;
    let mut definition = Definition::empty();
    let Some(last) = all.pop() else { return Ok(definition) };
    let mut raw = Vec::with_capacity(all.len());
    let mut passed = 0;
    for bytes in all {
        let one = Raw::read(bytes)?;
        passed += one.passed();
        limit("passthrough outputs", passed, MAX_VERTICES)?;
        raw.push(one);
    }
    let end = Raw::read(last)?;
    if end.message.op.is_some() || end.newer.passthrough.is_some() || end.inputs.is_empty() {
        return Err(DefinitionError::NoOutput);
    }
    let order = order(&raw, &end)?;
    let mut slots: Vec<Option<Raw>> = raw.into_iter().map(Some).collect();
    let mut metadata = message.metadata;
    for at in order {
        let Some(raw) = slots.get_mut(at).and_then(Option::take) else { continue };
        let about = metadata.remove(raw.digest.as_str()).map(metadata_of).unwrap_or_default();
        let (vertex, bytes) = raw.vertex(about, depth)?;
        definition.push(vertex, bytes);
    }
    definition.return_metadata = metadata.remove(end.digest.as_str()).map(metadata_of).unwrap_or_default();
    definition.outputs = end.inputs;
    definition.return_op = end.bytes;
    definition.source_map = source_map(message.source.unwrap_or_default(), &definition);
    Ok(definition)
}

struct Raw {
    digest: Digest,
    bytes: Vec<u8>,
    message: pb::Op,
    /// Its operation, where `message` has no words for that.
    newer: NewerOp,
    inputs: Vec<Edge>,
}

impl Raw {
    fn read(bytes: Vec<u8>) -> Result<Self, DefinitionError> {
        limit("bytes in one operation", bytes.len(), MAX_OP_BYTES)?;
        let digest = Digest::sha256(&bytes);
        let message = pb::Op::decode(bytes.as_slice()).map_err(malformed)?;
        let newer = match message.op {
            Some(_) => NewerOp::default(),
            None => NewerOp::decode(bytes.as_slice()).map_err(malformed)?,
        };
        limit("inputs at one vertex", message.inputs.len(), MAX_INPUTS)?;
        let mut inputs = Vec::with_capacity(message.inputs.len());
        for input in &message.inputs {
            let vertex = input.digest.parse().map_err(|_| DefinitionError::MissingInput {
                vertex: digest.clone(),
                input: input.digest.clone(),
            })?;
            let output = u32::try_from(input.index).map_err(|_| DefinitionError::Value {
                vertex: digest.clone(),
                field: "input index",
                value: input.index,
            })?;
            inputs.push(Edge { vertex, output });
        }
        let read = Self { digest, bytes, message, newer, inputs };
        limit("outputs at one vertex", read.passed(), MAX_OUTPUTS)?;
        Ok(read)
    }

    /// How many outputs it has that are inputs of its own: each costs one byte here and a result there.
    fn passed(&self) -> usize {
        self.newer.passthrough.as_ref().map_or(0, |pass| pass.outputs.len())
    }

    fn vertex(self, metadata: VertexMetadata, depth: usize) -> Result<(Vertex, Vec<u8>), DefinitionError> {
        let Self { digest, bytes, message, newer, inputs } = self;
        let reader = Reader { vertex: &digest, inputs: inputs.len(), depth };
        let op = match (message.op, newer.passthrough) {
            (Some(op), _) => reader.op(op)?,
            (None, Some(pass)) => reader.passthrough(pass)?,
            (None, None) => return Err(DefinitionError::NoOperation(digest)),
        };
        let platform = message.platform.map(platform);
        let constraints = message.constraints.map(|constraints| constraints.filter);
        Ok((Vertex { digest, op, inputs, platform, constraints, metadata }, bytes))
    }
}

/// The order in which inputs come before users: as written where that is one.
fn order(raw: &[Raw], end: &Raw) -> Result<Vec<usize>, DefinitionError> {
    let index: HashMap<&Digest, usize> = raw.iter().enumerate().map(|(at, raw)| (&raw.digest, at)).collect();
    let mut graph = DiGraph::<usize, ()>::new();
    let nodes: Vec<_> = (0..raw.len()).map(|at| graph.add_node(at)).collect();
    let mut sorted = true;
    for (at, user) in raw.iter().chain([end]).enumerate() {
        for edge in &user.inputs {
            let Some(&input) = index.get(&edge.vertex) else {
                return Err(DefinitionError::MissingInput {
                    vertex: user.digest.clone(),
                    input: edge.vertex.to_string(),
                });
            };
            sorted &= input < at;
            if let Some(&user) = nodes.get(at) {
                graph.add_edge(nodes[input], user, ());
            }
        }
    }
    if sorted {
        return Ok((0..raw.len()).collect());
    }
    match algo::toposort(&graph, None) {
        Ok(nodes) => Ok(nodes.into_iter().map(|node| graph[node]).collect()),
        Err(cycle) => Err(DefinitionError::Cycle(raw[graph[cycle.node_id()]].digest.clone())),
    }
}

fn metadata_of(from: pb::OpMetadata) -> VertexMetadata {
    VertexMetadata {
        ignore_cache: from.ignore_cache,
        description: from.description,
        export_cache: from.export_cache.map(|export| export.value),
        caps: from.caps.into_iter().filter(|(_, on)| *on).map(|(cap, _)| cap.into()).collect::<BTreeSet<_>>(),
        progress_group: from.progress_group.map(|group| ProgressGroup {
            id: group.id,
            name: group.name,
            weak: group.weak,
        }),
    }
}

/// Places of vertices that exist in files that exist; the rest is of no use and left out.
fn source_map(from: pb::Source, definition: &Definition) -> SourceMap {
    let infos: Vec<SourceInfo> = from
        .infos
        .into_iter()
        .map(|info| SourceInfo {
            filename: info.filename,
            data: info.data,
            language: info.language,
            origin: info.definition.map(|definition| definition.encode_to_vec()).unwrap_or_default(),
        })
        .collect();
    let mut locations = BTreeMap::new();
    for (digest, places) in from.locations {
        let Ok(digest) = digest.parse::<Digest>() else { continue };
        if definition.vertex(&digest).is_none() {
            continue;
        }
        let known = places.locations.into_iter().filter_map(|place| {
            let source = usize::try_from(place.source_index).ok().filter(|at| *at < infos.len())?;
            Some(SourceLocation { source, ranges: place.ranges.iter().map(range).collect() })
        });
        let known: Vec<SourceLocation> = known.collect();
        if !known.is_empty() {
            locations.insert(digest, known);
        }
    }
    SourceMap { infos, locations }
}

fn range(from: &pb::Range) -> SourceRange {
    let position = |at: Option<pb::Position>| {
        at.map_or_else(Position::default, |at| Position { line: at.line, character: at.character })
    };
    SourceRange { start: position(from.start), end: position(from.end) }
}

fn limit(what: &'static str, amount: usize, limit: usize) -> Result<(), DefinitionError> {
    if amount > limit { Err(DefinitionError::Limit { what, limit }) } else { Ok(()) }
}

#[expect(clippy::needless_pass_by_value, reason = "the form `map_err` takes")]
fn malformed(error: prost::DecodeError) -> DefinitionError {
    DefinitionError::Malformed(error.to_string())
}
