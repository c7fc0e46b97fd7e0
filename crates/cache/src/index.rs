//! The index from keys to records: one SQLite file in WAL mode, shared by several processes.
//!
//! Owns the file's schema, its life cycle and its queries. Must not know what a result is or whether it
//! still exists; a caller that finds one gone says so with [`CacheIndex::remove`].
//! A query never writes. The file is a cache: whatever is wrong with it, it is made anew and the build
//! goes on. Durability is `synchronous=NORMAL`: a power cut may lose the last records, never the file.
//!
//! Start with [`CacheIndex`].

mod claim;
mod explain;
mod schema;
mod scope;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rusqlite::{Connection, ErrorCode, OptionalExtension as _, params};

use crate::key::CacheKey;
use crate::preimage::KeyPreimage;
use crate::record::{CacheRecord, KeyEntry, NewRecord, RecordId, ResultId};

pub use claim::Claim;
pub use schema::{INDEX_FORMAT, Recreated};
pub use scope::Scope;

/// How long a writer waits for another process's transaction.
pub const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// Idle connections kept for reuse.
pub const POOL_LIMIT: usize = 8;

/// How long a query waits for another's connection before it opens one, which takes longer than most queries do.
const PATIENCE: Duration = Duration::from_millis(1);

/// A record's last use is written at most this often, so that a build that only reads does not write.
pub const TOUCH_GRANULARITY: Duration = Duration::from_secs(3600);

/// What went wrong with the index, and where.
#[derive(Debug, thiserror::Error)]
#[error("failed to {action} the cache index `{}`", path.display())]
pub struct IndexError {
    action: &'static str,
    path: PathBuf,
    #[source]
    kind: IndexErrorKind,
}

/// The cause of an [`IndexError`].
#[derive(Debug, thiserror::Error)]
pub enum IndexErrorKind {
    /// SQLite refused.
    #[error(transparent)]
    Sqlite(#[from] rusqlite::Error),
    /// The file system refused.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// A preimage that could not be written or read.
    #[error(transparent)]
    Preimage(#[from] serde_json::Error),
}

impl IndexError {
    /// The cause.
    pub fn kind(&self) -> &IndexErrorKind {
        &self.kind
    }

    /// Whether somebody else held the index for longer than [`BUSY_TIMEOUT`]: another try waits as long once more.
    pub fn is_busy(&self) -> bool {
        let IndexErrorKind::Sqlite(error) = &self.kind else { return false };
        matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked))
    }
}

/// Which records to drop. A record goes when any bound says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PrunePolicy {
    /// Keep at most this many, the most recently used ones.
    pub max_records: u64,
    /// Drop those not used since.
    pub unused_since: Option<SystemTime>,
}

/// The shared index. Clones share connections.
#[derive(Debug, Clone)]
pub struct CacheIndex {
    shared: Arc<Shared>,
    scope: Scope,
}

#[derive(Debug)]
struct Shared {
    path: PathBuf,
    recreated: Option<Recreated>,
    idle: Mutex<Vec<Connection>>,
    /// One more is idle.
    returned: Condvar,
}

impl CacheIndex {
    /// Opens the index, making it when it is missing.
    ///
    /// A file that is damaged or of another format is replaced by an empty one, which
    /// [`Self::recreated`] tells. Fails only when the directory cannot be written.
    pub fn open(path: &Path) -> Result<Self, IndexError> {
        let (connection, recreated) = schema::open_or_create(path).map_err(|kind| IndexError {
            action: "open",
            path: path.to_owned(),
            kind,
        })?;
        let idle = Mutex::new(vec![connection]);
        let shared = Shared { path: path.to_owned(), recreated, idle, returned: Condvar::new() };
        Ok(Self { shared: Arc::new(shared), scope: Scope::Shared })
    }

    /// Why opening had to start from an empty file, if it had to.
    pub fn recreated(&self) -> Option<&Recreated> {
        self.shared.recreated.as_ref()
    }

    /// Connections that wait for their next use; [`POOL_LIMIT`] at most.
    pub fn idle_connections(&self) -> usize {
        self.shared.idle.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Closes those beyond the first: each has a cache of pages of its own.
    pub fn close_idle(&self) {
        self.shared.idle.lock().unwrap_or_else(PoisonError::into_inner).truncate(1);
    }

    /// The record `key` leads to: that of the scope, else the shared one.
    pub fn lookup(&self, key: &CacheKey) -> Result<Option<CacheRecord>, IndexError> {
        self.with("read", |connection| {
            let mut statement = connection.prepare_cached(
                "SELECT r.id, r.result, r.vertex, r.vertex_name, r.created_at, r.duration, r.used_at \
                 FROM keys k JOIN records r ON r.id = k.record WHERE k.key = ?1",
            )?;
            for place in self.scope.places(key) {
                let found =
                    statement.query_row([place.as_bytes()], |row| read_record(row, *key)).optional()?;
                if let Some(found) = found.flatten() {
                    return Ok(Some(found));
                }
            }
            Ok(None)
        })
    }

    /// Makes all `entries` lead to `record`; a key that led elsewhere is turned.
    ///
    /// Several calls for the same vertex and result share one record.
    pub fn insert(&self, entries: &[KeyEntry], record: &NewRecord) -> Result<RecordId, IndexError> {
        self.with("write", |connection| {
            let transaction =
                connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
            let id = insert_entries(&transaction, (entries, record), &self.scope)?;
            transaction.commit()?;
            Ok(id)
        })
    }

    /// The same for several, which are all there afterwards, or none is.
    pub fn insert_all<'a>(
        &self,
        records: impl IntoIterator<Item = (&'a [KeyEntry], &'a NewRecord)>,
    ) -> Result<(), IndexError> {
        self.with("write", |connection| {
            let transaction =
                connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
            for record in records {
                insert_entries(&transaction, record, &self.scope)?;
            }
            transaction.commit()?;
            Ok(())
        })
    }

    /// Drops every record of a result that is gone, and the keys that led to them.
    /// Returns how many records went.
    pub fn remove(&self, result: &ResultId) -> Result<u64, IndexError> {
        self.with("write", |connection| {
            let count = connection
                .prepare_cached("DELETE FROM records WHERE result = ?1")?
                .execute([result.as_str()])?;
            Ok(count as u64)
        })
    }

    /// Notes that records were used at `now`, for those whose last note is older than
    /// [`TOUCH_GRANULARITY`].
    pub fn touch(&self, records: &[RecordId], now: SystemTime) -> Result<(), IndexError> {
        let now = to_millis(now);
        let stale = now.saturating_sub(TOUCH_GRANULARITY.as_millis() as i64);
        self.with("write", |connection| {
            let mut due =
                connection.prepare_cached("SELECT 1 FROM records WHERE id = ?1 AND used_at < ?2")?;
            let mut old = Vec::new();
            for record in records {
                if due.exists(params![record.0, stale])? {
                    old.push(*record);
                }
            }
            drop(due);
            if old.is_empty() {
                return Ok(());
            }
            let transaction =
                connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
            for record in old {
                transaction
                    .prepare_cached("UPDATE records SET used_at = ?2 WHERE id = ?1")?
                    .execute(params![record.0, now])?;
            }
            transaction.commit()?;
            Ok(())
        })
    }

    /// What `key` was made from, when it is known.
    pub fn preimage(&self, key: &CacheKey) -> Result<Option<KeyPreimage>, IndexError> {
        self.with("read", |connection| {
            let mut statement = connection.prepare_cached("SELECT preimage FROM preimages WHERE key = ?1")?;
            let mut text: Option<String> = None;
            for place in self.scope.places(key) {
                text = statement.query_row([place.as_bytes()], |row| row.get(0)).optional()?;
                if text.is_some() {
                    break;
                }
            }
            Ok(text.map(|text| serde_json::from_str(&text)).transpose()?)
        })
    }

    /// The keys that lead to `record`, in key order.
    pub fn keys_of(&self, record: RecordId) -> Result<Vec<CacheKey>, IndexError> {
        self.with("read", |connection| {
            let mut statement =
                connection.prepare_cached("SELECT key FROM keys WHERE record = ?1 ORDER BY key")?;
            let keys = statement.query_map([record.0], |row| row.get(0))?;
            Ok(keys.map(|key| key.map(CacheKey::from_bytes)).collect::<Result<_, _>>()?)
        })
    }

    /// All records, newest first, each under one of its keys; at most `limit`.
    pub fn list(&self, limit: u32) -> Result<Vec<CacheRecord>, IndexError> {
        self.with("read", |connection| {
            let mut statement = connection.prepare_cached(
                "SELECT r.id, r.result, r.vertex, r.vertex_name, r.created_at, r.duration, r.used_at, min(k.key) \
                 FROM records r JOIN keys k ON k.record = r.id \
                 GROUP BY r.id ORDER BY r.created_at DESC, r.id DESC LIMIT ?1",
            )?;
            let rows = statement.query_map([limit], |row| {
                let key = CacheKey::from_bytes(row.get(7)?);
                read_record(row, key)
            })?;
            let records: Vec<Option<CacheRecord>> = rows.collect::<Result<_, _>>()?;
            Ok(records.into_iter().flatten().collect())
        })
    }

    /// Drops what `policy` names, and records no key leads to any more. Returns how many went.
    pub fn prune(&self, policy: &PrunePolicy) -> Result<u64, IndexError> {
        let unused_since = policy.unused_since.map_or(i64::MIN, to_millis);
        let max_records = i64::try_from(policy.max_records).unwrap_or(i64::MAX);
        self.with("prune", |connection| {
            let transaction =
                connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
            let mut count = transaction.execute("DELETE FROM records WHERE used_at < ?1", [unused_since])?;
            count += transaction
                .execute("DELETE FROM records WHERE NOT EXISTS (SELECT 1 FROM keys WHERE record = id)", [])?;
            count += transaction.execute(
                "DELETE FROM records WHERE id IN \
                 (SELECT id FROM records ORDER BY used_at DESC, id DESC LIMIT -1 OFFSET ?1)",
                [max_records],
            )?;
            transaction.commit()?;
            Ok(count as u64)
        })
    }

    /// Claims the right to run the step of `key`; `None` while somebody else, in whatever process, has it.
    pub fn claim(&self, key: &CacheKey) -> Result<Option<Claim>, IndexError> {
        Claim::take(&schema::claims(&self.shared.path), &self.scope.place(key))
            .map_err(|error| self.failed("claim a key of", error))
    }

    /// Removes what dead processes left of their claims. Returns how many there were.
    pub fn sweep_claims(&self) -> Result<usize, IndexError> {
        Ok(self.dead_claims(true)?.len())
    }

    /// Claims whose process died; with `remove` they go.
    pub fn dead_claims(&self, remove: bool) -> Result<Vec<PathBuf>, IndexError> {
        claim::dead(&schema::claims(&self.shared.path), remove)
            .map_err(|error| self.failed("look at the claims of", error))
    }

    /// What SQLite finds wrong with an index file, without changing it; empty when it is sound.
    pub fn inspect(path: &Path) -> Result<Vec<String>, IndexError> {
        schema::integrity(path).map_err(|kind| IndexError { action: "inspect", path: path.to_owned(), kind })
    }

    /// Has the next opening start from an empty file.
    pub fn mark_damaged(path: &Path) {
        schema::mark_damaged(path);
    }

    fn failed(&self, action: &'static str, error: std::io::Error) -> IndexError {
        IndexError { action, path: self.shared.path.clone(), kind: error.into() }
    }

    /// Runs `work` on a pooled connection. One that failed for more than a busy file is not reused, and
    /// damage found on the way is noted so that the next open starts afresh.
    fn with<T>(
        &self,
        action: &'static str,
        work: impl FnOnce(&mut Connection) -> Result<T, IndexErrorKind>,
    ) -> Result<T, IndexError> {
        let wrap = |kind| IndexError { action, path: self.shared.path.clone(), kind };
        let mut connection = match self.shared.pooled() {
            Some(connection) => connection,
            None => schema::connect(&self.shared.path).map_err(wrap)?,
        };
        let outcome = work(&mut connection);
        match &outcome {
            Ok(_) => {
                let mut idle = self.shared.idle.lock().unwrap_or_else(PoisonError::into_inner);
                if idle.len() < POOL_LIMIT {
                    idle.push(connection);
                    self.shared.returned.notify_one();
                }
            }
            Err(IndexErrorKind::Sqlite(error)) if schema::is_damage(error) => {
                schema::mark_damaged(&self.shared.path);
            }
            Err(_) => {}
        }
        outcome.map_err(wrap)
    }
}

impl Shared {
    /// A connection that is idle, or soon was.
    fn pooled(&self) -> Option<Connection> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.returned.wait_timeout_while(idle, PATIENCE, |idle| idle.is_empty());
        waited.unwrap_or_else(PoisonError::into_inner).0.pop()
    }
}

/// Inserts a record and the keys that lead to it.
fn insert_entries(
    transaction: &rusqlite::Transaction<'_>,
    (entries, record): (&[KeyEntry], &NewRecord),
    scope: &Scope,
) -> Result<RecordId, IndexErrorKind> {
    let id = insert_record(transaction, record, scope)?;
    let mut key = transaction.prepare_cached(
        "INSERT INTO keys (key, record) VALUES (?1, ?2) \
         ON CONFLICT (key) DO UPDATE SET record = excluded.record",
    )?;
    let mut preimage =
        transaction.prepare_cached("INSERT OR REPLACE INTO preimages (key, preimage) VALUES (?1, ?2)")?;
    for entry in entries {
        let place = scope.place(&entry.key);
        key.execute(params![place.as_bytes(), id.0])?;
        let text = serde_json::to_string(&entry.preimage)?;
        preimage.execute(params![place.as_bytes(), text])?;
    }
    Ok(id)
}

fn insert_record(
    transaction: &rusqlite::Transaction<'_>,
    record: &NewRecord,
    scope: &Scope,
) -> Result<RecordId, IndexErrorKind> {
    let created_at = to_millis(record.created_at);
    let duration = i64::try_from(record.duration.as_micros()).unwrap_or(i64::MAX);
    let mut statement = transaction.prepare_cached(
        "INSERT INTO records (result, vertex, vertex_name, created_at, duration, used_at) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?4) \
         ON CONFLICT (result, vertex) DO UPDATE SET used_at = max(used_at, excluded.used_at) RETURNING id",
    )?;
    let id = statement.query_row(
        params![
            record.result.as_str(),
            scope.vertex(&record.vertex),
            record.vertex_name,
            created_at,
            duration
        ],
        |row| row.get(0),
    )?;
    Ok(RecordId(id))
}

/// `None` for a row whose result id no worker could have written.
fn read_record(row: &rusqlite::Row<'_>, key: CacheKey) -> rusqlite::Result<Option<CacheRecord>> {
    let result: String = row.get(1)?;
    let Ok(result) = ResultId::new(result) else { return Ok(None) };
    let created_at: i64 = row.get(4)?;
    let duration: i64 = row.get(5)?;
    let used_at: i64 = row.get(6)?;
    Ok(Some(CacheRecord {
        id: RecordId(row.get(0)?),
        key,
        result,
        vertex: scope::plain_vertex(row.get(2)?),
        vertex_name: row.get(3)?,
        created_at: from_millis(created_at),
        used_at: from_millis(used_at),
        duration: Duration::from_micros(duration.max(0).unsigned_abs()),
    }))
}

fn from_millis(millis: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(millis.max(0).unsigned_abs())
}

fn to_millis(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
