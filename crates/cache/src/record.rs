//! What the index stores about a result.
//!
//! Owns the record and the opaque name of a result. Must not know what the name means: the worker
//! writes it and the worker reads it. Start with [`CacheRecord`].

use std::fmt;
use std::time::{Duration, SystemTime};

use crate::key::CacheKey;
use crate::preimage::KeyPreimage;

/// Longest result id, in bytes. The longest honest one names a few hundred layers.
pub const RESULT_ID_LIMIT: usize = 64 * 1024;

/// A worker's name for a set of outputs, meaningful to that worker only.
///
/// Invariant: equal ids mean interchangeable outputs; early cut-off rests on it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ResultId(Box<str>);

/// A result id that is empty or longer than [`RESULT_ID_LIMIT`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid result id of {length} bytes: expected 1 to {RESULT_ID_LIMIT}")]
pub struct ResultIdError {
    length: usize,
}

impl ResultId {
    /// Wraps a worker's text.
    pub fn new(text: impl Into<String>) -> Result<Self, ResultIdError> {
        let text = text.into();
        match text.len() {
            1..=RESULT_ID_LIMIT => Ok(Self(text.into_boxed_str())),
            length => Err(ResultIdError { length }),
        }
    }

    /// The worker's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ResultId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The row of a record in one index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecordId(pub(crate) i64);

/// A result that a key was found to lead to.
///
/// The preimage is not read along: [`crate::CacheIndex::preimage`] fetches it when someone asks why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheRecord {
    /// The row.
    pub id: RecordId,
    /// The key it was found by.
    pub key: CacheKey,
    /// The worker's name for the outputs.
    pub result: ResultId,
    /// Digest of the vertex that made it.
    pub vertex: String,
    /// Name of that vertex, for people.
    pub vertex_name: String,
    /// When it was made, to the millisecond.
    pub created_at: SystemTime,
    /// How long making it took.
    pub duration: Duration,
    /// When it was last noted to be used; at most an hour late.
    pub used_at: SystemTime,
}

/// A result to be recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewRecord {
    /// The worker's name for the outputs.
    pub result: ResultId,
    /// Digest of the vertex that made it.
    pub vertex: String,
    /// Name of that vertex, for people.
    pub vertex_name: String,
    /// When it was made.
    pub created_at: SystemTime,
    /// How long making it took.
    pub duration: Duration,
}

/// A key that leads to a record, and what it was made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyEntry {
    /// The key.
    pub key: CacheKey,
    /// What it was made from.
    pub preimage: KeyPreimage,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn result_ids_are_bounded() {
        assert!(ResultId::new("").is_err());
        assert_eq!(ResultId::new("12,13").expect("short").as_str(), "12,13");
        assert!(ResultId::new("1".repeat(RESULT_ID_LIMIT)).is_ok());
        assert!(ResultId::new("1".repeat(RESULT_ID_LIMIT + 1)).is_err());
    }
}
