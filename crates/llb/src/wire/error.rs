//! Why bytes are no definition.
//!
//! Owns the error type only. Start with [`DefinitionError`].

use stave_oci::Digest;

/// Why bytes from elsewhere are no definition.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DefinitionError {
    /// Not protobuf, or not these messages.
    #[error("malformed definition: {0}")]
    Malformed(String),
    /// More of something than is accepted.
    #[error("definition has {what} over the limit of {limit}")]
    Limit {
        /// What there is too much of.
        what: &'static str,
        /// The most that is accepted.
        limit: usize,
    },
    /// A vertex names an input that is not there.
    #[error("vertex `{vertex}` has input `{input}`, which the definition lacks")]
    MissingInput {
        /// The user.
        vertex: Digest,
        /// The input as written.
        input: String,
    },
    /// A vertex is its own input, directly or not.
    #[error("vertex `{0}` depends on itself")]
    Cycle(Digest),
    /// The last operation is not one that names outputs.
    #[error("definition does not end with its output")]
    NoOutput,
    /// A vertex without an operation.
    #[error("vertex `{0}` has no operation")]
    NoOperation(Digest),
    /// A field has a value it cannot have.
    #[error("vertex `{vertex}` has {value} as its {field}")]
    Value {
        /// The vertex.
        vertex: Digest,
        /// Which field.
        field: &'static str,
        /// The value.
        value: i64,
    },
    /// A step wants privileges of a kind nobody knows.
    #[error("vertex `{vertex}` has an invalid security mode: {value}")]
    Security {
        /// The vertex.
        vertex: Digest,
        /// What it wants.
        value: i32,
    },
    /// A passthrough operation without something it needs.
    #[error("vertex `{vertex}` is an invalid passthrough op with no {lacks}")]
    Passthrough {
        /// The vertex.
        vertex: Digest,
        /// What is not there.
        lacks: &'static str,
    },
    /// Definitions inside definitions, deeper than accepted.
    #[error("definitions are nested deeper than {0}")]
    Nesting(usize),
}
