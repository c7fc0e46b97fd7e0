//! What a miss is explained with: the preimages of earlier keys.
//!
//! Owns the look-ups that start from a vertex or a key instead of leading to a result. Read-only.

use std::time::SystemTime;

use rusqlite::params;

use super::{CacheIndex, IndexError, IndexErrorKind, to_millis};
use crate::key::CacheKey;
use crate::record::KeyEntry;

/// Keys read for one question. A step has up to three per content it ever had; the newest are asked first.
const EXPLAIN_LIMIT: u32 = 64;

impl CacheIndex {
    /// Keys of results that a vertex of this digest made before a time, to the millisecond, with what they were made
    /// from, newest result first.
    pub fn entries_of_vertex(&self, vertex: &str, before: SystemTime) -> Result<Vec<KeyEntry>, IndexError> {
        self.entries(
            "SELECT p.key, p.preimage FROM records r JOIN keys k ON k.record = r.id \
             JOIN preimages p ON p.key = k.key WHERE r.vertex = ?1 AND r.created_at < ?3 \
             ORDER BY r.created_at DESC, r.id DESC, k.key LIMIT ?2",
            params![self.scope.vertex(vertex), EXPLAIN_LIMIT, to_millis(before)],
        )
    }

    /// All keys that lead to where `key` leads, with what they were made from.
    pub fn entries_beside(&self, key: &CacheKey) -> Result<Vec<KeyEntry>, IndexError> {
        self.entries(
            "SELECT p.key, p.preimage FROM keys this JOIN keys k ON k.record = this.record \
             JOIN preimages p ON p.key = k.key WHERE this.key = ?1 ORDER BY p.rowid DESC LIMIT ?2",
            params![self.scope.place(key).as_bytes(), EXPLAIN_LIMIT],
        )
    }

    fn entries(
        &self,
        query: &'static str,
        parameters: impl rusqlite::Params,
    ) -> Result<Vec<KeyEntry>, IndexError> {
        self.with("read", |connection| {
            let mut statement = connection.prepare_cached(query)?;
            let rows = statement.query_map(parameters, |row| {
                Ok((CacheKey::from_bytes(row.get(0)?), row.get::<_, String>(1)?))
            })?;
            let mut entries = Vec::new();
            for row in rows {
                let (key, text) = row?;
                entries.push(KeyEntry {
                    key,
                    preimage: serde_json::from_str(&text).map_err(IndexErrorKind::from)?,
                });
            }
            Ok(entries)
        })
    }
}
