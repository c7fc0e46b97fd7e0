//! BuildKit's cache keys: what its solver hashes of an operation, computed from the graph alone.
//!
//! Owns the bytes that go into each hash, so that a cache made by BuildKit is found here and the reverse
//! (BuildKit `solver/llbsolver/ops/*.go`, `CacheMap`). Must not know files: where content counts, it says
//! which paths, and the caller brings their digest. Pure. These are not the keys of the local cache.
//!
//! Start with [`OpKeys`]; the shape of the text that is hashed lies in [`json`].

mod exec;
mod file;
pub(crate) mod json;
mod source;

use serde_json::Value;
use stave_llb::{Op, Vertex};
use stave_oci::{Digest, Platform};

use json::{Object, go_text};

pub use source::{chain_id, http_source, image_source};

/// What identifies an operation in BuildKit's caches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpKeys {
    /// The operation's own digests: each is one way to find it. None for what only its content identifies.
    pub digests: Vec<Digest>,
    /// One entry per input of the vertex, in its order.
    pub inputs: Vec<InputKeys>,
}

/// How one input takes part.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct InputKeys {
    /// The part that is used, where the definition of the input counts.
    pub selector: Option<Digest>,
    /// What content counts beside the definition; `None` for none.
    pub content: Option<Vec<ContentPath>>,
}

/// One path whose content counts; an empty list of them means the whole input.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct ContentPath {
    /// Absolute path in the input.
    pub path: String,
    /// The path is a pattern.
    pub wildcard: bool,
    /// A link at the end of the path is followed.
    pub follow_links: bool,
    /// What of a directory counts; empty for all.
    pub include_patterns: Vec<String>,
    /// What of a directory does not count.
    pub exclude_patterns: Vec<String>,
}

impl ContentPath {
    /// Whether the path alone does not say what counts.
    pub fn is_filtered(&self) -> bool {
        self.wildcard || !self.include_patterns.is_empty() || !self.exclude_patterns.is_empty()
    }
}

impl OpKeys {
    /// The keys of a vertex. `sources` are the texts that identify a source (see [`image_source`]); they are
    /// used for source operations alone. `None` for an operation BuildKit does not cache by definition.
    pub fn of(vertex: &Vertex, sources: &[String]) -> Option<Self> {
        let count = vertex.inputs.len();
        match &vertex.op {
            Op::Source(_) => Some(Self {
                digests: sources.iter().map(|key| source_digest(key)).collect(),
                inputs: Vec::new(),
            }),
            Op::Exec(op) => exec::keys(op, vertex.platform.as_ref(), count),
            Op::File(op) => file::keys(op, count),
            Op::Merge(op) => {
                let inputs = op.inputs.iter().map(|input| index_object(*input).value()).collect();
                let merge = Object::new().list("inputs", inputs);
                Some(plain("buildkit.merge.v0", "Merge", merge, count))
            }
            Op::Diff(op) => {
                let diff = Object::new()
                    .object("lower", Some(index_object(op.lower)))
                    .object("upper", Some(index_object(op.upper)));
                Some(plain("buildkit.diff.v0", "Diff", diff, count))
            }
            Op::Passthrough(op) => {
                let outputs = op.outputs.iter().map(|at| Value::from(*at)).collect();
                let pass = Object::new().text("id", &op.id).list("outputs", outputs);
                Some(plain("buildkit.passthrough.v0", "Passthrough", pass, count))
            }
            Op::Build(_) => None,
        }
    }
}

/// The record digest of output `output` of an operation with the digest `of` (BuildKit `solver/cachemanager.go`).
pub fn output_digest(of: &Digest, output: u32) -> Digest {
    Digest::sha256(format!("{of}@{output}").as_bytes())
}

/// The record digest of content that counts as an input.
pub fn content_record(content: &Digest) -> Digest {
    Digest::sha256(format!("{content}@-1").as_bytes())
}

/// The digest of several selected contents together (BuildKit `opsutils.NewContentHashFunc`).
pub fn content_digest(parts: &[Digest]) -> Digest {
    let parts: Vec<&str> = parts.iter().map(Digest::as_str).collect();
    Digest::sha256(parts.join("\0").as_bytes())
}

fn source_digest(key: &str) -> Digest {
    Digest::sha256(format!("buildkit.source.v0:{key}").as_bytes())
}

fn plain(kind: &str, field: &'static str, body: Object, inputs: usize) -> OpKeys {
    let whole = Object::new().always("Type", kind).object(field, Some(body));
    OpKeys {
        digests: vec![Digest::sha256(go_text(&whole).as_bytes())],
        inputs: vec![InputKeys::default(); inputs],
    }
}

fn index_object(input: Option<u32>) -> Object {
    Object::new().number("input", input.map_or(-1, i64::from))
}

/// The platform a vertex runs on; BuildKit fills in its own where the graph leaves it open.
fn platform_of(platform: Option<&Platform>) -> Platform {
    let platform = platform.cloned().unwrap_or_else(Platform::host);
    let normal = Platform::new(&platform.os, &platform.architecture, platform.variant.as_deref());
    Platform { os_version: platform.os_version, os_features: platform.os_features, ..normal }
}

/// `path.Join("/", path)` of Go: absolute, without `.`, `..` and doubled slashes.
pub(crate) fn rooted(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

/// Paths without those that lie below another, sorted (BuildKit `dedupePaths`).
fn outermost(paths: &[String]) -> Vec<String> {
    if paths.len() <= 1 {
        return paths.to_vec();
    }
    let below = |path: &str, other: &str| {
        path != other
            && path.strip_prefix(other).is_some_and(|rest| other.ends_with('/') || rest.starts_with('/'))
    };
    let mut kept: Vec<String> =
        paths.iter().filter(|path| !paths.iter().any(|other| below(path, other))).cloned().collect();
    kept.sort_unstable();
    kept.dedup();
    kept
}

#[cfg(test)]
mod tests;
