//! Whose results an index tells of: records of one tenant are not found by another.
//!
//! A scope writes under keys of its own and reads those, then the shared ones; nobody without the scope's name can
//! compute its keys, and no scope writes a shared one. That holds for all three kinds of keys, so that not even the
//! result of an input leads across. The file's form does not know of it: a key is a hash either way, and a record's
//! vertex has the scope in front. Must not know who has which scope. Start with [`Scope`].

use std::sync::Arc;

use rusqlite::params;

use super::{CacheIndex, IndexError};
use crate::key::CacheKey;
use crate::record::ResultId;

/// Between a scope and a vertex; a vertex's digest has none.
const SEPARATOR: char = '/';

/// Domain of the keys of scopes.
const CONTEXT: &str = "stave 2025 cache key of a scope";

/// A part of the index.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Scope {
    /// What everybody reads, and only who has no scope of its own writes.
    #[default]
    Shared,
    /// One tenant's own, by a name of letters and digits.
    Own(Arc<str>),
}

impl Scope {
    /// Where `key` is written.
    pub(super) fn place(&self, key: &CacheKey) -> CacheKey {
        match self {
            Self::Shared => *key,
            Self::Own(name) => {
                let mut hasher = blake3::Hasher::new_derive_key(CONTEXT);
                hasher.update(&(name.len() as u64).to_le_bytes());
                hasher.update(name.as_bytes());
                hasher.update(key.as_bytes());
                CacheKey::from_bytes(*hasher.finalize().as_bytes())
            }
        }
    }

    /// Where `key` is looked up, in this order.
    pub(super) fn places(&self, key: &CacheKey) -> impl Iterator<Item = CacheKey> {
        let own = self.place(key);
        std::iter::once(own).chain((own != *key).then_some(*key))
    }

    /// What a record's vertex is written as.
    pub(super) fn vertex(&self, vertex: &str) -> String {
        match self {
            Self::Shared => vertex.to_owned(),
            Self::Own(name) => format!("{name}{SEPARATOR}{vertex}"),
        }
    }
}

/// A record's vertex without the scope in front.
pub(super) fn plain_vertex(written: String) -> String {
    match written.rsplit_once(SEPARATOR) {
        Some((_, vertex)) => vertex.to_owned(),
        None => written,
    }
}

impl CacheIndex {
    /// The same index as one tenant sees it. The scope's name must not hold a slash.
    #[must_use]
    pub fn scoped(&self, scope: Scope) -> Self {
        Self { shared: Arc::clone(&self.shared), scope }
    }

    /// The results that were written in this scope, in the order of their names.
    pub fn own_results(&self) -> Result<Vec<ResultId>, IndexError> {
        self.with("read", |connection| {
            let read = |row: &rusqlite::Row<'_>| row.get::<_, String>(0);
            let texts: Vec<String> = match &self.scope {
                Scope::Shared => connection
                    .prepare_cached(
                        "SELECT DISTINCT result FROM records WHERE instr(vertex, ?1) = 0 ORDER BY 1",
                    )?
                    .query_map(params![SEPARATOR.to_string()], read)?
                    .collect::<Result<_, _>>()?,
                Scope::Own(name) => connection
                    .prepare_cached(
                        "SELECT DISTINCT result FROM records WHERE vertex >= ?1 AND vertex < ?2 ORDER BY 1",
                    )?
                    .query_map(params![format!("{name}/"), format!("{name}0")], read)?
                    .collect::<Result<_, _>>()?,
            };
            Ok(texts.into_iter().filter_map(|text| ResultId::new(text).ok()).collect())
        })
    }

    /// The results that were written in any other scope.
    pub fn others_results(&self) -> Result<Vec<ResultId>, IndexError> {
        let own = match &self.scope {
            Scope::Shared => String::new(),
            Scope::Own(name) => name.to_string(),
        };
        self.with("read", |connection| {
            let texts: Vec<String> = connection
                .prepare_cached(
                    "SELECT DISTINCT result FROM records \
                     WHERE substr(vertex, 1, max(instr(vertex, ?1) - 1, 0)) <> ?2 ORDER BY 1",
                )?
                .query_map(params![SEPARATOR.to_string(), own], |row| row.get::<_, String>(0))?
                .collect::<Result<_, _>>()?;
            Ok(texts.into_iter().filter_map(|text| ResultId::new(text).ok()).collect())
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;
    use crate::{KeyEntry, KeyKind, KeyPreimage, NewRecord};

    fn key(text: &str) -> CacheKey {
        CacheKey::from_bytes(*blake3::hash(text.as_bytes()).as_bytes())
    }

    fn insert(index: &CacheIndex, name: &str, result: &str) {
        let entry = KeyEntry {
            key: key(name),
            preimage: KeyPreimage { kind: KeyKind::Definition, fields: Vec::new() },
        };
        let record = NewRecord {
            result: ResultId::new(result.to_owned()).expect("a result"),
            vertex: "sha256:1".to_owned(),
            vertex_name: "one".to_owned(),
            created_at: SystemTime::UNIX_EPOCH,
            duration: Duration::ZERO,
        };
        index.insert(&[entry], &record).expect("written");
    }

    #[track_caller]
    fn check(index: &CacheIndex, name: &str, expected: Option<&str>) {
        let found = index.lookup(&key(name)).expect("read");
        assert_eq!(found.as_ref().map(|found| found.result.as_str()), expected);
        if let Some(found) = found {
            assert_eq!((found.vertex.as_str(), found.key), ("sha256:1", key(name)));
        }
    }

    #[test]
    fn a_tenant_finds_its_own_and_the_shared_and_nobody_elses() {
        let folder = tempfile::tempdir().expect("a folder");
        let shared = CacheIndex::open(&folder.path().join("index.db")).expect("opens");
        let [a, b] = ["a", "b"].map(|name| shared.scoped(Scope::Own(name.into())));
        insert(&a, "one", "sa");
        check(&a, "one", Some("sa"));
        check(&b, "one", None);
        check(&shared, "one", None);
        insert(&shared, "one", "s");
        check(&b, "one", Some("s"));
        check(&a, "one", Some("sa"));
        insert(&b, "one", "sb");
        check(&b, "one", Some("sb"));
        check(&shared, "one", Some("s"));
        let later = SystemTime::UNIX_EPOCH + Duration::from_millis(1);
        let entries = |index: &CacheIndex, before| index.entries_of_vertex("sha256:1", before).expect("read");
        assert_eq!(entries(&shared, later).len(), 1);
        assert_eq!(entries(&a, later).len(), 1);
        assert_eq!(
            entries(&a, SystemTime::UNIX_EPOCH).len(),
            0,
            "what a build makes itself is not there before it"
        );
        let names = |index: &CacheIndex| -> Vec<String> {
            index.own_results().expect("read").iter().map(|result| result.as_str().to_owned()).collect()
        };
        assert_eq!(
            (names(&a), names(&b), names(&shared)),
            (vec!["sa".into()], vec!["sb".into()], vec!["s".into()])
        );
        let others = a.others_results().expect("read");
        assert_eq!(others.iter().map(ResultId::as_str).collect::<Vec<_>>(), ["s", "sb"]);
        assert_eq!(shared.others_results().expect("read").len(), 2);
    }

    #[test]
    fn a_claim_of_one_tenant_holds_no_other_up() {
        let folder = tempfile::tempdir().expect("a folder");
        let shared = CacheIndex::open(&folder.path().join("index.db")).expect("opens");
        let [a, b] = ["a", "b"].map(|name| shared.scoped(Scope::Own(name.into())));
        let first = a.claim(&key("one")).expect("claimed");
        assert!(first.is_some());
        assert!(a.claim(&key("one")).expect("asked").is_none());
        assert!(b.claim(&key("one")).expect("asked").is_some());
    }
}
