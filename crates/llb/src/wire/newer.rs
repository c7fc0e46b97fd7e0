//! What BuildKit says since its protobuf messages were last taken into the crate that this one uses.
//!
//! Owns these messages, field numbers as in BuildKit's `solver/pb/ops.proto` of v0.32, and the reading of an operation
//! that has no other name. When the crate knows them, this file goes. Start with [`NewerOp`].

use prost::{Message, encoding};

use crate::op::PassthroughOp;

/// The operations of `pb.Op` that are newer than the crate: an operation read as one of the crate's has none of them.
#[derive(Clone, PartialEq, Message)]
pub(super) struct NewerOp {
    #[prost(message, optional, tag = "8")]
    pub(super) passthrough: Option<Passthrough>,
}

/// `pb.PassthroughOp`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Passthrough {
    #[prost(string, tag = "1")]
    pub(super) id: String,
    #[prost(int64, repeated, tag = "2")]
    pub(super) outputs: Vec<i64>,
}

/// The bytes of a passthrough operation.
pub(super) fn passthrough(op: &PassthroughOp) -> Vec<u8> {
    let outputs: Vec<i64> = op.outputs.iter().map(|at| i64::from(*at)).collect();
    let mut body = Vec::new();
    encoding::string::encode(1, &op.id, &mut body);
    encoding::int64::encode_packed(2, &outputs, &mut body);
    body
}
