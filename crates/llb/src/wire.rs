//! The wire form: BuildKit's protobuf messages and back.
//!
//! Owns the only use of the protobuf types, the byte order that makes digests equal to BuildKit's,
//! and the limits on what is read. Must not be seen outside this crate except for errors and limits.
//! Start with [`encode_op`] and [`decode_definition`].

mod decode;
mod encode;
mod error;
mod newer;
pub(crate) mod to_typed;
pub(crate) mod to_wire;

pub(crate) use decode::decode_definition;
pub(crate) use encode::{encode_definition, encode_op, encode_return};
pub use error::DefinitionError;

/// The longest wire form that is read, in bytes.
pub const MAX_DEFINITION_BYTES: usize = 64 << 20;
/// The longest single operation that is read, in bytes.
pub const MAX_OP_BYTES: usize = 16 << 20;
/// The most vertices a definition may have.
pub const MAX_VERTICES: usize = 100_000;
/// The most inputs one vertex may have.
pub const MAX_INPUTS: usize = 4096;
/// The most of its inputs that one vertex may pass on as its outputs: a byte each here, a result each there.
pub const MAX_OUTPUTS: usize = 256;
/// How deep definitions may hold definitions.
pub const MAX_NESTING: usize = 4;

#[cfg(test)]
mod tests;
