//! The file behind the index: its schema, format number, and what happens to a damaged one.
//!
//! Owns opening, creating and replacing the file. Openers of all processes queue on a lock file beside
//! it for the few microseconds that takes, so that none sees another's half-made schema.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode};

use super::{BUSY_TIMEOUT, IndexErrorKind};

/// The version of the schema, kept in `user_version`. Changing the schema is a format break.
pub const INDEX_FORMAT: u32 = 1;

/// Pages in the log before a commit copies them into the file (which syncs). The first process to open the
/// index reads the whole log, so it is kept short.
const CHECKPOINT_PAGES: i64 = 512;

const SCHEMA: &str = "
CREATE TABLE records (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    result TEXT NOT NULL,
    vertex TEXT NOT NULL,
    vertex_name TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    duration INTEGER NOT NULL,
    used_at INTEGER NOT NULL,
    UNIQUE (result, vertex)
) STRICT;
CREATE INDEX records_by_vertex ON records (vertex);
CREATE TABLE keys (
    key BLOB PRIMARY KEY NOT NULL CHECK (length(key) = 32),
    record INTEGER NOT NULL REFERENCES records (id) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;
CREATE INDEX keys_by_record ON keys (record);
CREATE TABLE preimages (
    key BLOB PRIMARY KEY NOT NULL REFERENCES keys (key) ON DELETE CASCADE,
    preimage TEXT NOT NULL
) STRICT;
";

/// Why the index had to be started from an empty file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Recreated {
    /// The file was not a database or was damaged.
    #[error("the cache index was damaged and has been started anew: {0}")]
    Damaged(String),
    /// The file was written by a version with another format.
    #[error("the cache index had format {found}, not {INDEX_FORMAT}, and has been started anew")]
    Format {
        /// The format number found.
        found: u32,
    },
}

/// What a connection to an existing file found.
enum Existing {
    Usable(Connection),
    Empty(Connection),
    Unusable(Recreated),
}

pub(super) fn open_or_create(path: &Path) -> Result<(Connection, Option<Recreated>), IndexErrorKind> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    let lock = File::create(beside(path, "lock"))?;
    lock.lock()?;
    let marker = beside(path, "damaged");
    let found = match fs::read_to_string(&marker) {
        Ok(reason) => Existing::Unusable(Recreated::Damaged(reason)),
        Err(_) => inspect(path)?,
    };
    match found {
        Existing::Usable(connection) => Ok((connection, None)),
        Existing::Empty(connection) => {
            create(&connection)?;
            Ok((connection, None))
        }
        Existing::Unusable(reason) => {
            tracing::warn!(path = %path.display(), %reason, "replacing the cache index");
            for file in [path.to_owned(), beside(path, "db-wal"), beside(path, "db-shm"), marker] {
                remove_if_there(&file)?;
            }
            let connection = connect(path)?;
            create(&connection)?;
            Ok((connection, Some(reason)))
        }
    }
}

/// A configured connection; says nothing about the schema.
pub(super) fn connect(path: &Path) -> Result<Connection, IndexErrorKind> {
    let connection = Connection::open(path)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.pragma_update(None, "foreign_keys", true)?;
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    // The last process to leave would copy the log, sync twice and remove files: a build must not pay for that.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    connection.pragma_update(None, "wal_autocheckpoint", CHECKPOINT_PAGES)?;
    connection.set_prepared_statement_cache_capacity(32);
    Ok(connection)
}

/// Whether an error says that the file itself is bad.
pub(super) fn is_damage(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase))
}

/// Leaves word for the next opener. Best effort: without it, that opener meets the damage itself.
pub(super) fn mark_damaged(path: &Path) {
    if let Err(error) = fs::write(beside(path, "damaged"), "damage was found while reading") {
        tracing::warn!(path = %path.display(), %error, "cannot mark the cache index as damaged");
    }
}

fn inspect(path: &Path) -> Result<Existing, IndexErrorKind> {
    let outcome = connect(path).and_then(|connection| {
        let format: u32 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
        let tables: u32 = connection.query_row("SELECT count(*) FROM sqlite_master", [], |row| row.get(0))?;
        Ok((connection, format, tables))
    });
    match outcome {
        Ok((connection, INDEX_FORMAT, 1..)) => Ok(Existing::Usable(connection)),
        Ok((connection, 0, 0)) => Ok(Existing::Empty(connection)),
        Ok((_, found, _)) => Ok(Existing::Unusable(Recreated::Format { found })),
        Err(IndexErrorKind::Sqlite(error)) if is_damage(&error) => {
            Ok(Existing::Unusable(Recreated::Damaged(error.to_string())))
        }
        Err(error) => Err(error),
    }
}

fn create(connection: &Connection) -> Result<(), IndexErrorKind> {
    connection.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(()))?;
    connection
        .execute_batch(&format!("BEGIN IMMEDIATE;{SCHEMA}PRAGMA user_version = {INDEX_FORMAT};COMMIT;"))?;
    Ok(())
}

/// What SQLite finds wrong with the file.
pub(super) fn integrity(path: &Path) -> Result<Vec<String>, IndexErrorKind> {
    let check = || -> Result<Vec<String>, IndexErrorKind> {
        let connection = connect(path)?;
        let mut statement = connection.prepare("PRAGMA integrity_check(20)")?;
        let lines = statement.query_map([], |row| row.get::<_, String>(0))?;
        Ok(lines.collect::<rusqlite::Result<_>>()?)
    };
    match check() {
        Ok(lines) => Ok(lines.into_iter().filter(|line| line != "ok").collect()),
        Err(IndexErrorKind::Sqlite(error)) if is_damage(&error) => Ok(vec![error.to_string()]),
        Err(error) => Err(error),
    }
}

/// The directory of claims.
pub(super) fn claims(path: &Path) -> PathBuf {
    beside(path, "claims")
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    match suffix.strip_prefix("db") {
        Some(sqlite) => name.push(sqlite),
        None => {
            name.push(".");
            name.push(suffix);
        }
    }
    PathBuf::from(name)
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
