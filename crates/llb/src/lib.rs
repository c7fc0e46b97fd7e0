//! The build graph: BuildKit's LLB as typed, immutable values.
//!
//! Owns the operations, their wire form and digests, queries over the graph and the [`builder`] that
//! makes graphs in the order BuildKit's own client would. Must not know Dockerfiles, nor how an
//! operation is carried out. Start with [`Definition`], then [`Vertex`], [`Op`] and [`Edge`].

pub mod builder;
mod definition;
mod exec;
mod file;
pub mod json;
mod op;
pub mod pattern;
pub mod policy;
mod rewrite;
mod source;
mod source_map;
mod wire;

pub use definition::{Definition, DefinitionGraph, Edge, ProgressGroup, Vertex, VertexMetadata};
pub use exec::{
    CdiDevice, ContentCache, ExecOp, HostIp, Mount, MountOwner, NetMode, ProxyEnv, SecretEnv, SecurityMode,
    Sharing, Ulimit,
};
pub use file::{
    Chown, CopyAction, CopyMode, FileAction, FileActionKind, FileInput, FileOp, MkdirAction, MkfileAction,
    RmAction, SymlinkAction, UserOrGroup,
};
pub use op::{BuildOp, DiffOp, MergeOp, Op, PassthroughOp};
pub use source::{BlobPlace, GitSource, SourceIdentifier, SourceOp};
pub use source_map::{Position, SourceInfo, SourceLocation, SourceMap, SourceRange};
pub use wire::{
    DefinitionError, MAX_DEFINITION_BYTES, MAX_INPUTS, MAX_NESTING, MAX_OP_BYTES, MAX_OUTPUTS, MAX_VERTICES,
};
