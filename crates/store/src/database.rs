//! The database: connection settings, the schema and its version, short transactions.
//!
//! Owns how SQLite is used, and nothing of what the rows mean. WAL with `synchronous = NORMAL`: a
//! commit costs no fsync; a power cut may take the last commits, never the database (what that means
//! for files is told in `durability`). Start with [`Database`].

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags, Transaction, TransactionBehavior};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::fault::refused;
use crate::{DatabaseError, StoreError, journal, session};

/// The version of everything under the state directory. Changing it is a format break: the layout
/// in the crate's documentation, the schema, or what a column means.
pub(crate) const FORMAT: i64 = 5;
/// How long a statement waits for another process's transaction.
const BUSY_TIMEOUT: Duration = Duration::from_secs(30);
/// Pages in the log before a commit copies them into the database (which syncs). The first process
/// to open the store reads the whole log, so it is kept short.
const CHECKPOINT_PAGES: i64 = 256;
/// Bytes of a log that is copied when there is time.
const WORTH_COPYING: u64 = 32 << 12;
/// More statements than this are prepared anew.
const STATEMENT_CACHE: usize = 64;

const SCHEMA: &str = include_str!("schema.sql");
/// What turns each format into the next one, beginning with format 1.
const MIGRATIONS: [&str; 4] = [
    include_str!("migration/2.sql"),
    include_str!("migration/3.sql"),
    include_str!("migration/4.sql"),
    include_str!("migration/5.sql"),
];

/// One connection, shared by the threads of a process.
#[derive(Debug)]
pub(crate) struct Database {
    path: PathBuf,
    connection: Mutex<Connection>,
}

/// What goes wrong within a transaction.
#[derive(Debug)]
pub(crate) enum Failure {
    Sql(rusqlite::Error),
    Store(StoreError),
}

impl From<rusqlite::Error> for Failure {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sql(error)
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl Database {
    /// Opens the database of the store at `root`; `lock` guards its creation.
    pub(crate) fn open(root: &Path, lock: &File) -> Result<Self, StoreError> {
        let path = root.join("store.db");
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_CREATE
            | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        forget_log_of_none(&path, lock)?;
        let connection = Connection::open_with_flags(&path, flags).map_err(|error| wrap(&path, error))?;
        let format = configure(&connection).map_err(|error| wrap(&path, error))?;
        if (0..FORMAT).contains(&format) {
            locked(&path, lock, || {
                create(&connection, root, &path)?;
                migrate(&connection, root, &path)
            })?;
        } else if format != FORMAT {
            return Err(StoreError::NewerFormat { path: root.to_owned(), found: format, supported: FORMAT });
        }
        Ok(Self { path, connection: Mutex::new(connection) })
    }

    fn connection(&self) -> MutexGuard<'_, Connection> {
        // A panic within a transaction has rolled it back: the connection is as good as before.
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `body` in a transaction that holds the store's one write lock from its start.
    pub(crate) fn write<T>(
        &self,
        body: impl FnOnce(&Transaction<'_>) -> Result<T, Failure>,
    ) -> Result<T, StoreError> {
        let mut connection = self.connection();
        let run = || {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let value = body(&transaction)?;
            refused("database-commit").map_err(|error: Errno| StoreError::io("write", &self.path, error))?;
            transaction.commit()?;
            Ok(value)
        };
        run().map_err(|failure| self.failed(failure))
    }

    /// Runs `body` on one consistent state.
    pub(crate) fn read<T>(
        &self,
        body: impl FnOnce(&Transaction<'_>) -> Result<T, Failure>,
    ) -> Result<T, StoreError> {
        let mut connection = self.connection();
        let run = || {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Deferred)?;
            body(&transaction)
        };
        run().map_err(|failure| self.failed(failure))
    }

    /// Like [`Self::write`], and on stable storage when it returns.
    pub(crate) fn write_durably<T>(
        &self,
        body: impl FnOnce(&Transaction<'_>) -> Result<T, Failure>,
    ) -> Result<T, StoreError> {
        let level = |name: &str| {
            let set = self.connection().pragma_update(None, "synchronous", name);
            set.map_err(|error| wrap(&self.path, error))
        };
        level("FULL")?;
        let written = self.write(body);
        level("NORMAL")?;
        written
    }

    /// What SQLite finds wrong with the file; empty when it is sound.
    pub(crate) fn integrity(&self) -> Result<Vec<String>, StoreError> {
        let connection = self.connection();
        let check = || {
            let mut statement = connection.prepare("PRAGMA integrity_check(20)")?;
            let rows = statement.query_map([], |row| row.get::<_, String>(0))?;
            rows.collect::<rusqlite::Result<Vec<_>>>()
        };
        let found = check().map_err(|error| wrap(&self.path, error))?;
        Ok(found.into_iter().filter(|line| line != "ok").collect())
    }

    fn failed(&self, failure: Failure) -> StoreError {
        match failure {
            Failure::Sql(error) => wrap(&self.path, error),
            Failure::Store(error) => error,
        }
    }
}

/// Copies the log of a database into it, as far as nobody reads it, if it is worth that. Writers need not wait, and
/// the next one begins the log anew.
pub(crate) fn checkpoint(path: &Path) -> Result<(), StoreError> {
    let mut log = path.as_os_str().to_owned();
    log.push("-wal");
    if !std::fs::metadata(log).is_ok_and(|found| found.len() >= WORTH_COPYING) {
        return Ok(());
    }
    let run = || {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags)?;
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()))
    };
    run().map_err(|error| wrap(path, error))
}

/// Does what only one process may at a time.
fn locked<T>(
    path: &Path,
    lock: &File,
    work: impl FnOnce() -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    flock(lock, FlockOperation::LockExclusive).map_err(|error| StoreError::io("lock", path, error))?;
    let done = work();
    flock(lock, FlockOperation::Unlock).map_err(|error| StoreError::io("unlock", path, error))?;
    done
}

/// A log without its database is of one that is gone: read into a new one it would do harm. Whoever makes a database
/// holds the lock until its log is that of a database, so that nobody takes it for such a one.
pub(crate) fn forget_log_of_none(path: &Path, lock: &File) -> Result<(), StoreError> {
    if path.exists() {
        return Ok(());
    }
    locked(path, lock, || if path.exists() { Ok(()) } else { forget_log(path) })
}

/// Removes what SQLite keeps beside a database.
pub(crate) fn forget_log(path: &Path) -> Result<(), StoreError> {
    for suffix in ["-wal", "-shm"] {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        match std::fs::remove_file(&name) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(StoreError::io("remove", PathBuf::from(name), error));
            }
            _ => {}
        }
    }
    Ok(())
}

fn wrap(path: &Path, error: rusqlite::Error) -> StoreError {
    let path = path.to_owned();
    match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => {
            StoreError::StorageFull { path, source: std::io::ErrorKind::StorageFull.into() }
        }
        _ => StoreError::Database { path, source: DatabaseError(error) },
    }
}

/// Applies the per-connection settings; returns the format on disk, 0 for a new file.
fn configure(connection: &Connection) -> rusqlite::Result<i64> {
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.set_prepared_statement_cache_capacity(STATEMENT_CACHE);
    // The last process to leave would copy the log and sync: a short command must not pay for that.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    // Undo logs of single statements in memory: making and removing a file for one takes longer than the statement.
    connection.execute_batch(
        "PRAGMA synchronous = NORMAL; PRAGMA foreign_keys = ON; PRAGMA temp_store = MEMORY;",
    )?;
    connection.pragma_update(None, "wal_autocheckpoint", CHECKPOINT_PAGES)?;
    connection.pragma_query_value(None, "user_version", |row| row.get(0))
}

/// Makes the tables, unless another process did while we waited for the lock.
///
/// Where there was a store, its rows come back from the journal: somebody lost the database, not the layers.
fn create(connection: &Connection, root: &Path, path: &Path) -> Result<(), StoreError> {
    let failed = |error| wrap(path, error);
    let format: i64 =
        connection.pragma_query_value(None, "user_version", |row| row.get(0)).map_err(failed)?;
    if format != 0 {
        return Ok(());
    }
    connection.pragma_update(None, "journal_mode", "WAL").map_err(failed)?;
    connection.execute_batch(&format!("BEGIN IMMEDIATE; {SCHEMA}")).map_err(failed)?;
    if journal::exists(root) {
        if session::any_alive(root)? {
            return Err(StoreError::LostWhileOpen { path: path.to_owned() });
        }
        tracing::warn!(path = %path.display(), "the database is made again from the journal");
        journal::rebuild(connection, root).map_err(|failure| match failure {
            Failure::Sql(error) => wrap(path, error),
            Failure::Store(error) => error,
        })?;
    } else if root.join("cache.db").exists() {
        // Records of the cache name layers by number, those of a store that is gone too. No number is used again:
        // there were fewer layers than milliseconds.
        connection.execute("UPDATE clock SET next_layer = ?1", [now()]).map_err(failed)?;
    }
    connection.execute_batch(&format!("PRAGMA user_version = {FORMAT}; COMMIT;")).map_err(failed)
}

/// Brings a store of an earlier format to this one; another process may have done so while we waited. An earlier
/// program that has the store open would read and write what it does not know.
fn migrate(connection: &Connection, root: &Path, path: &Path) -> Result<(), StoreError> {
    let failed = |error| wrap(path, error);
    let format: i64 =
        connection.pragma_query_value(None, "user_version", |row| row.get(0)).map_err(failed)?;
    if format < FORMAT && session::any_alive(root)? {
        return Err(StoreError::OlderWhileOpen { path: root.to_owned(), found: format, wanted: FORMAT });
    }
    let done = usize::try_from(format.saturating_sub(1)).unwrap_or(0);
    for (migration, format) in MIGRATIONS.iter().zip(2i64..).skip(done) {
        let step = format!("BEGIN IMMEDIATE; {migration} PRAGMA user_version = {format}; COMMIT;");
        connection.execute_batch(&step).map_err(failed)?;
    }
    // What the journal says was meant as the earlier format means it. On a full disk it stays so.
    if (1..FORMAT).contains(&format) {
        let transaction = connection.unchecked_transaction().map_err(failed)?;
        if let Err(failure) = journal::renew(&transaction) {
            tracing::warn!(?failure, "the journal stays as it is");
        }
    }
    Ok(())
}

/// Milliseconds since the epoch: how the rows tell time.
pub(crate) fn now() -> i64 {
    milliseconds(SystemTime::now())
}

/// A time as it is stored.
pub(crate) fn milliseconds(at: SystemTime) -> i64 {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// A stored time.
pub(crate) fn time(milliseconds: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(u64::try_from(milliseconds).unwrap_or(0))
}
