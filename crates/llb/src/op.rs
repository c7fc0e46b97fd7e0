//! What a vertex does: one enum over all operations.
//!
//! Owns the sum of operations and those too small for a file of their own. Must not know the wire
//! form. Start with [`Op`].

use std::collections::BTreeMap;

use crate::{Definition, exec::ExecOp, file::FileOp, source::SourceOp};

/// An operation. Indices in it count the inputs of the vertex that holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(
    clippy::large_enum_variant,
    reason = "most vertices are processes, so that a box would save nothing"
)]
pub enum Op {
    /// Brings files in: an image, a local directory, a repository, a download.
    Source(SourceOp),
    /// Runs a process.
    Exec(ExecOp),
    /// Changes files without a process.
    File(FileOp),
    /// Lays file systems over each other.
    Merge(MergeOp),
    /// What one file system has that another lacks.
    Diff(DiffOp),
    /// A definition that an input holds, solved in turn.
    Build(BuildOp),
    /// Some of its inputs, once all of them are there.
    Passthrough(PassthroughOp),
}

/// File systems laid over each other, the first at the bottom.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MergeOp {
    /// Input indices; `None` is an empty file system.
    pub inputs: Vec<Option<u32>>,
}

/// The difference of two file systems.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiffOp {
    /// Input index of what is subtracted; `None` is an empty file system.
    pub lower: Option<u32>,
    /// Input index of what it is subtracted from; `None` is an empty file system.
    pub upper: Option<u32>,
}

/// A definition to solve in turn.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BuildOp {
    /// Input index of the builder; `None` is the solver itself.
    pub builder: Option<u32>,
    /// Input indices by name.
    pub inputs: BTreeMap<String, Option<u32>>,
    /// The definition, where it is given inline.
    pub definition: Option<Box<Definition>>,
    /// Options, the name of the file that holds the definition among them.
    pub attrs: BTreeMap<String, String>,
}

/// Inputs handed on as they are. All inputs are made, those that are no outputs for what their making does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PassthroughOp {
    /// What its maker calls it; never empty.
    pub id: String,
    /// The input index of each output; never empty.
    pub outputs: Vec<u32>,
}

impl Op {
    /// The kind's name as it stands in JSON: `source`, `exec`, `file`, `merge`, `diff`, `build` or `passthrough`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Source(_) => "source",
            Self::Exec(_) => "exec",
            Self::File(_) => "file",
            Self::Merge(_) => "merge",
            Self::Diff(_) => "diff",
            Self::Build(_) => "build",
            Self::Passthrough(_) => "passthrough",
        }
    }
}
