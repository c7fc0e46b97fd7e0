//! Typed values to bytes.
//!
//! Owns byte order: Go writes a message's oneof after its other fields and both halves of every map
//! entry; prost orders by tag and leaves empty halves out. Start with [`encode_op`].

use std::collections::BTreeMap;

use bollard_buildkit_proto::pb;
use prost::{
    Message,
    encoding::{self, WireType},
};

use super::{newer, to_wire};
use crate::{
    definition::{Definition, Edge, VertexMetadata},
    exec::ExecOp,
    op::Op,
    source_map::{Position, SourceMap, SourceRange},
};
use stave_oci::Platform;

/// The bytes of a vertex, which its digest is of.
pub(crate) fn encode_op(
    op: &Op,
    inputs: &[Edge],
    platform: Option<&Platform>,
    constraints: Option<&[String]>,
) -> Vec<u8> {
    let mut bytes = Vec::with_capacity((inputs.len() + 1) * MAX_INPUT_BYTES);
    for edge in inputs {
        let mut input = Vec::with_capacity(MAX_INPUT_BYTES);
        field(1, edge.vertex.as_str().as_bytes(), &mut input);
        if edge.output != 0 {
            encoding::int64::encode(2, &i64::from(edge.output), &mut input);
        }
        field(1, &input, &mut bytes);
    }
    if let Some(platform) = platform {
        encoding::message::encode(10, &to_wire::platform(platform), &mut bytes);
    }
    if let Some(filter) = constraints {
        let constraints = pb::WorkerConstraints { filter: filter.to_vec() };
        encoding::message::encode(11, &constraints, &mut bytes);
    }
    match op {
        Op::Source(source) => {
            let mut body = Vec::new();
            if !source.raw.is_empty() {
                encoding::string::encode(1, &source.raw, &mut body);
            }
            string_map(2, &source.attrs, &mut body);
            field(3, &body, &mut bytes);
        }
        Op::Exec(exec) => field(2, &exec_op(exec), &mut bytes),
        Op::Build(build) => field(5, &build_op(build), &mut bytes),
        Op::Passthrough(pass) => field(8, &newer::passthrough(pass), &mut bytes),
        other => {
            if let Some(message) = to_wire::op(other, inputs.len()) {
                message.encode(&mut bytes);
            }
        }
    }
    bytes
}

/// Most bytes of an input: a digest, its length and tag, and an index.
const MAX_INPUT_BYTES: usize = 96;

/// What a process has much of, its arguments and variables, is written without a copy of it in between; these
/// fields have the lowest tags and thus come first.
fn exec_op(exec: &ExecOp) -> Vec<u8> {
    let texts = exec.args.iter().chain(&exec.env).chain([&exec.cwd, &exec.user]);
    // A tag and a length of three bytes each.
    let mut meta = Vec::with_capacity(texts.map(|text| text.len() + 4).sum::<usize>() + 64);
    encoding::string::encode_repeated(1, &exec.args, &mut meta);
    encoding::string::encode_repeated(2, &exec.env, &mut meta);
    for (tag, text) in [(3, &exec.cwd), (4, &exec.user)] {
        if !text.is_empty() {
            encoding::string::encode(tag, text, &mut meta);
        }
    }
    to_wire::rest_of_meta(exec).encode_raw(&mut meta);
    let mut body = Vec::with_capacity(meta.len() + 64 * (exec.mounts.len() + 1));
    field(1, &meta, &mut body);
    to_wire::rest_of_exec(exec).encode_raw(&mut body);
    body
}

/// The bytes of the last operation, which only names outputs.
pub(crate) fn encode_return(outputs: &[Edge]) -> Vec<u8> {
    if outputs.is_empty() {
        return Vec::new();
    }
    let inputs = outputs.iter().map(to_wire::edge).collect();
    pb::Op { inputs, ..Default::default() }.encode_to_vec()
}

/// The bytes of a whole definition.
pub(crate) fn encode_definition(definition: &Definition) -> Vec<u8> {
    definition_message(definition).encode_to_vec()
}

fn definition_message(definition: &Definition) -> pb::Definition {
    if definition.outputs.is_empty() && definition.vertices.is_empty() {
        return pb::Definition::default();
    }
    let mut def = definition.encoded.clone();
    def.push(definition.return_op.clone());
    let mut all: BTreeMap<String, pb::OpMetadata> = definition
        .vertices
        .iter()
        .map(|vertex| (vertex.digest.to_string(), metadata(&vertex.metadata)))
        .collect();
    all.insert(definition.digest().to_string(), metadata(&definition.return_metadata));
    pb::Definition { def, metadata: all, source: Some(source(&definition.source_map)) }
}

fn metadata(from: &VertexMetadata) -> pb::OpMetadata {
    pb::OpMetadata {
        ignore_cache: from.ignore_cache,
        description: from.description.clone(),
        export_cache: from.export_cache.map(|value| pb::ExportCache { value }),
        caps: from.caps.iter().map(|cap| (cap.to_string(), true)).collect(),
        progress_group: from.progress_group.as_ref().map(|group| pb::ProgressGroup {
            id: group.id.clone(),
            name: group.name.clone(),
            weak: group.weak,
        }),
    }
}

fn source(map: &SourceMap) -> pb::Source {
    let infos = map.infos.iter().map(|info| pb::SourceInfo {
        filename: info.filename.clone(),
        data: info.data.clone(),
        // Read once already.
        definition: match info.origin.as_slice() {
            [] => None,
            origin => pb::Definition::decode(origin).ok(),
        },
        language: info.language.clone(),
    });
    let locations = map.locations.iter().map(|(digest, places)| {
        let locations = places.iter().map(|place| pb::Location {
            source_index: i32::try_from(place.source).unwrap_or(i32::MAX),
            ranges: place.ranges.iter().map(range).collect(),
        });
        (digest.to_string(), pb::Locations { locations: locations.collect() })
    });
    pb::Source { locations: locations.collect(), infos: infos.collect() }
}

fn range(from: &SourceRange) -> pb::Range {
    let position = |at: Position| Some(pb::Position { line: at.line, character: at.character });
    pb::Range { start: position(from.start), end: position(from.end) }
}

fn build_op(build: &crate::BuildOp) -> Vec<u8> {
    let mut body = Vec::new();
    let builder = to_wire::index(build.builder);
    if builder != 0 {
        encoding::int64::encode(1, &builder, &mut body);
    }
    for (name, input) in &build.inputs {
        let mut entry = Vec::new();
        encoding::string::encode(1, name, &mut entry);
        field(2, &pb::BuildInput { input: to_wire::index(*input) }.encode_to_vec(), &mut entry);
        field(2, &entry, &mut body);
    }
    if let Some(inner) = &build.definition {
        field(3, &encode_definition(inner), &mut body);
    }
    string_map(4, &build.attrs, &mut body);
    body
}

fn string_map(tag: u32, map: &BTreeMap<String, String>, into: &mut Vec<u8>) {
    for (key, value) in map {
        let mut entry = Vec::new();
        encoding::string::encode(1, key, &mut entry);
        encoding::string::encode(2, value, &mut entry);
        field(tag, &entry, into);
    }
}

fn field(tag: u32, body: &[u8], into: &mut Vec<u8>) {
    encoding::encode_key(tag, WireType::LengthDelimited, into);
    encoding::encode_varint(body.len() as u64, into);
    into.extend_from_slice(body);
}
