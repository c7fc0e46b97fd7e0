//! Which part of an operation goes into its keys, and which of its inputs matter how.
//!
//! Owns the rules over the graph's types; the table they follow stands in the cache crate's
//! documentation, and the encoding is that crate's. Every rule takes its operation apart field by field,
//! so that a new field cannot be forgotten. Pure. Start with [`cache_map`].

mod exec;
mod file;
mod vertex;

use std::collections::HashMap;

use stave_cache::{CacheKey, KeyBuilder, KeyKind, KeyPart};
use stave_llb::{
    BuildOp, Definition, DiffOp, MergeOp, Op, PassthroughOp, SourceIdentifier, SourceOp, Vertex,
};
use stave_oci::{Digest, Platform};

use crate::worker::{CacheMap, InputKey, OpKey, Selector};

pub(crate) use vertex::{InputPart, InputValue, vertex_key};

/// Attributes of sources that say who asks or how, not what for.
const HOW_NOT_WHAT: [&str; 15] = [
    "image.resolvemode",
    "image.recordtype",
    "oci.session",
    "oci.store",
    "local.session",
    "local.unique",
    "local.sharedkeyhint",
    "git.authtokensecret",
    "git.authheadersecret",
    "git.mountsshsock",
    "git.knownsshhosts",
    // The remote says it without protocol and credentials.
    "git.fullurl",
    // Held against the commit, which is the pin.
    "git.checksum",
    "git.fetchbycommit",
    "http.authheadersecret",
];

/// The cache map that follows from the vertex alone.
///
/// A worker that can pin a source the identifier does not pin replaces [`CacheMap::op`] by
/// [`pinned_source`].
pub fn cache_map(vertex: &Vertex) -> CacheMap {
    CacheMap { op: op_key(vertex), inputs: input_keys(vertex) }
}

/// The definition keys of all vertices that have one, by the vertex alone: what [`cache_map`] says, without what
/// a worker pins.
pub fn definition_keys(definition: &Definition) -> HashMap<Digest, CacheKey> {
    let mut keys: HashMap<Digest, CacheKey> = HashMap::new();
    for vertex in definition.vertices() {
        let map = cache_map(vertex);
        let OpKey::Stable(op) = &map.op else { continue };
        let taking_part =
            map.inputs.iter().enumerate().filter(|(_, input)| !matches!(input, InputKey::Ignored));
        let parts: Option<Vec<InputPart<'_>>> = taking_part
            .map(|(position, input)| {
                let edge = vertex.inputs.get(position)?;
                let key = *keys.get(&edge.vertex)?;
                let value = InputValue::Definition { output: edge.output, key };
                Some(InputPart { position, selector: input.selector(), value })
            })
            .collect();
        if let Some(parts) = parts {
            keys.insert(vertex.digest.clone(), vertex_key(KeyKind::Definition, op, &parts).key);
        }
    }
    keys
}

/// The operation's own part of the vertex's keys.
pub fn op_key(vertex: &Vertex) -> OpKey {
    OpKey::Stable(match &vertex.op {
        Op::Source(op) => match pin(op) {
            Some(pin) => pinned_source(vertex, op, &pin),
            None => return OpKey::Volatile,
        },
        Op::Exec(op) => exec::op_part(op, vertex.platform.as_ref()),
        Op::File(op) => file::op_part(op),
        Op::Merge(op) => merge_part(op),
        Op::Diff(op) => diff_part(op),
        Op::Build(op) => build_part(op),
        Op::Passthrough(op) => passthrough_part(op),
    })
}

/// The part of a source whose content `pin` names for good: a digest, a commit, a checksum.
pub fn pinned_source(vertex: &Vertex, op: &SourceOp, pin: &str) -> KeyPart {
    let SourceOp { identifier, raw, attrs } = op;
    let mut builder = KeyBuilder::new("op.source");
    match identifier {
        // The digest says it all; from which name or mirror it came does not matter.
        SourceIdentifier::DockerImage { .. } | SourceIdentifier::OciLayout { .. } => {
            builder.text("kind", "image");
            platform(&mut builder, vertex.platform.as_ref());
        }
        SourceIdentifier::Blob { .. } => {
            builder.text("kind", "blob");
        }
        SourceIdentifier::Git(git) => {
            builder.text("kind", "git").text("remote", &git.remote).text("subdir", &git.subdir);
        }
        SourceIdentifier::Http { url } => {
            builder.text("kind", "http").text("url", &public_part(url));
        }
        SourceIdentifier::Local { .. } | SourceIdentifier::Unknown { .. } => {
            builder.text("kind", "other").text("identifier", raw);
        }
    }
    let mut attrs = attrs.clone();
    attrs.retain(|name, _| !HOW_NOT_WHAT.contains(&name.as_str()));
    builder.text("pin", pin).map("attrs", &attrs).finish()
}

/// What a vertex is called in errors and records.
pub(crate) fn label(vertex: &Vertex) -> &str {
    vertex.name().unwrap_or_else(|| vertex.op.kind())
}

/// Whether the vertex means another thing in another session.
pub(crate) fn is_session_bound(vertex: &Vertex) -> bool {
    match &vertex.op {
        Op::Source(op) => match &op.identifier {
            SourceIdentifier::Local { .. } => true,
            SourceIdentifier::OciLayout { .. } => pin(op).is_none(),
            _ => false,
        },
        _ => false,
    }
}

/// What in the identifier names the content for good; `None` when nothing does.
fn pin(op: &SourceOp) -> Option<String> {
    match &op.identifier {
        SourceIdentifier::DockerImage { reference } => reference.digest().map(ToString::to_string),
        SourceIdentifier::OciLayout { reference } | SourceIdentifier::Blob { reference, .. } => {
            let (_, digest) = reference.rsplit_once('@')?;
            digest.parse::<stave_oci::Digest>().ok().map(|digest| digest.to_string())
        }
        SourceIdentifier::Git(git) => {
            let is_commit = matches!(git.revision.len(), 40 | 64)
                && git.revision.bytes().all(|byte| byte.is_ascii_hexdigit());
            is_commit.then(|| git.revision.to_ascii_lowercase())
        }
        SourceIdentifier::Http { .. } => op.attrs.get("http.checksum").cloned(),
        SourceIdentifier::Local { .. } | SourceIdentifier::Unknown { .. } => None,
    }
}

/// An address without user, password and query: keys are kept and shown.
fn public_part(url: &str) -> String {
    let plain = url.split(['?', '#']).next().unwrap_or_default();
    let Some((scheme, rest)) = plain.split_once("://") else { return plain.to_owned() };
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    format!("{scheme}://{host}/{path}")
}

fn input_keys(vertex: &Vertex) -> Vec<InputKey> {
    let count = vertex.inputs.len();
    match &vertex.op {
        Op::Exec(op) => exec::input_keys(op, count),
        Op::File(op) => file::input_keys(op, count),
        Op::Source(_) | Op::Merge(_) | Op::Diff(_) | Op::Build(_) | Op::Passthrough(_) => {
            vec![InputKey::Identity { selector: None }; count]
        }
    }
}

fn merge_part(op: &MergeOp) -> KeyPart {
    let MergeOp { inputs } = op;
    let mut builder = KeyBuilder::new("op.merge");
    builder.number("count", inputs.len() as u64);
    for input in inputs {
        builder.optional_number("input", input.map(u64::from));
    }
    builder.finish()
}

fn diff_part(op: &DiffOp) -> KeyPart {
    let DiffOp { lower, upper } = op;
    KeyBuilder::new("op.diff")
        .optional_number("lower", lower.map(u64::from))
        .optional_number("upper", upper.map(u64::from))
        .finish()
}

fn passthrough_part(op: &PassthroughOp) -> KeyPart {
    let PassthroughOp { id, outputs } = op;
    let mut builder = KeyBuilder::new("op.passthrough");
    builder.text("id", id).number("count", outputs.len() as u64);
    for output in outputs {
        builder.number("output", u64::from(*output));
    }
    builder.finish()
}

fn build_part(op: &BuildOp) -> KeyPart {
    let BuildOp { builder, inputs, definition, attrs } = op;
    let mut key = KeyBuilder::new("op.build");
    key.optional_number("builder", builder.map(u64::from));
    key.number("count", inputs.len() as u64);
    for (name, input) in inputs {
        key.text("name", name).optional_number("input", input.map(u64::from));
    }
    let definition = definition.as_ref().map(|definition| definition.digest().to_string());
    key.optional_text("definition", definition.as_deref()).map("attrs", attrs).finish()
}

fn platform(builder: &mut KeyBuilder, platform: Option<&Platform>) {
    let Some(Platform { architecture, os, os_version, os_features, variant }) = platform else {
        builder.absent("platform");
        return;
    };
    builder
        .text("os", os)
        .text("architecture", architecture)
        .optional_text("variant", variant.as_deref())
        .optional_text("os-version", os_version.as_deref())
        .texts("os-features", os_features);
}

/// What several uses of one input come to: identity when one of them needs it, else all selectors.
#[derive(Debug, Clone, Default)]
struct InputUse {
    by_identity: bool,
    whole: bool,
    selector: Selector,
}

impl InputUse {
    fn into_key(self) -> InputKey {
        match self {
            Self { by_identity: false, whole: true, .. } => InputKey::Content { selector: Selector::whole() },
            Self { by_identity: false, selector, .. } if !selector.paths.is_empty() => {
                InputKey::Content { selector }
            }
            // Also an input nothing mentions: it was put there for some reason.
            _ => InputKey::Identity { selector: None },
        }
    }

    fn add(&mut self, path: crate::worker::SelectorPath) {
        if !self.selector.paths.contains(&path) {
            self.selector.paths.push(path);
        }
    }
}

#[cfg(test)]
mod tests;
