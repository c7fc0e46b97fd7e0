//! Making files and rows agree again after a process (or the machine) died.
//!
//! Renames into `l/` and `blobs/` happen within the write transaction that inserts the row, so under
//! the write lock a file without a row belongs to nobody. Knows nothing of what rows mean beyond that.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rusqlite::Transaction;

use crate::StoreError;
use crate::database::{Database, Failure};
use crate::fault::refused;
use crate::removal::remove_tree;
use crate::session::{Session, dead_sessions, names};

/// The blob directories, by digest algorithm.
const BLOB_DIRECTORIES: [&str; 2] = ["sha256", "sha512"];

/// Removes what dead sessions left: their leases, files, half-done commits and deletions.
pub(crate) fn sweep(root: &Path, database: &Database, session: &Session) -> Result<(), StoreError> {
    let dead = dead_sessions(root, session)?;
    if dead.is_empty() {
        return Ok(());
    }
    let mut rubbish = database.write(|tx| {
        for session in &dead {
            tx.execute("DELETE FROM lease WHERE session = ?1", [&session.slot])?;
        }
        // Another session may be removing these too; a row that is gone and a file that is gone are
        // what both want.
        tx.execute_batch("DELETE FROM layer WHERE state = 1; DELETE FROM blob WHERE state = 1;")?;
        move_files_without_rows(root, tx, session)
    })?;
    for dead in dead {
        rubbish.extend(dead.inherit(root, session)?);
    }
    remove_if_possible(&rubbish);
    Ok(())
}

/// Moves files without a row into the session's directory; the caller removes them after the commit.
pub(crate) fn move_files_without_rows(
    root: &Path,
    tx: &Transaction<'_>,
    session: &Session,
) -> Result<Vec<PathBuf>, Failure> {
    let mut moved = Vec::new();
    let mut check = |directory: &Path, known: &BTreeSet<String>| {
        for name in names(directory)?.into_iter().filter(|name| !known.contains(name)) {
            let aside = session.fresh_path("d");
            if move_aside(&directory.join(name), &aside)? {
                moved.push(aside);
            }
        }
        Ok::<(), StoreError>(())
    };
    check(&root.join("l"), &strings(tx, "SELECT name FROM layer")?)?;
    let blobs = strings(tx, "SELECT digest FROM blob")?;
    for algorithm in BLOB_DIRECTORIES {
        let prefix = format!("{algorithm}:");
        let known = blobs.iter().filter_map(|digest| digest.strip_prefix(&prefix)).map(str::to_owned);
        check(&root.join("blobs").join(algorithm), &known.collect())?;
    }
    Ok(moved)
}

/// Forgets layers and blobs whose files are gone, then images that miss a layer.
pub(crate) fn forget_rows_without_files(root: &Path, tx: &Transaction<'_>) -> Result<(), Failure> {
    let present: BTreeSet<String> = names(&root.join("l"))?.into_iter().collect();
    for name in strings(tx, "SELECT name FROM layer")?.difference(&present) {
        tx.execute("DELETE FROM layer WHERE name = ?1", [name])?;
    }
    for digest in strings(tx, "SELECT digest FROM blob")? {
        if !root.join("blobs").join(digest.replace(':', "/")).exists() {
            tx.execute("DELETE FROM blob WHERE digest = ?1", [digest])?;
        }
    }
    tx.execute(
        "DELETE FROM image WHERE id IN (SELECT image FROM image_layer
         WHERE layer NOT IN (SELECT id FROM layer WHERE state = 0))",
        [],
    )?;
    Ok(())
}

/// Renames; `false` if there was nothing.
pub(crate) fn move_aside(from: &Path, to: &Path) -> Result<bool, StoreError> {
    match refused("aside").and_then(|()| fs::rename(from, to)) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(StoreError::io("rename", from, error)),
    }
}

/// Removes files and directories that were moved aside: all that can be, then the first error.
pub(crate) fn remove_all(paths: &[PathBuf]) -> Result<(), StoreError> {
    let remove = |path: &PathBuf| remove_tree(path).map_err(|error| StoreError::io("remove", path, error));
    let results: Vec<_> = paths.iter().map(remove).collect();
    results.into_iter().collect()
}

/// [`remove_all`] at an opening, which must not fail for what somebody else left: it stays in the session's
/// directory, which keeps the session's mark, and so falls to the next sweep.
pub(crate) fn remove_if_possible(paths: &[PathBuf]) {
    if let Err(error) = remove_all(paths) {
        tracing::warn!(%error, "left for the next sweep");
    }
}

fn strings(tx: &Transaction<'_>, query: &str) -> Result<BTreeSet<String>, Failure> {
    let mut statement = tx.prepare(query)?;
    let rows = statement.query_map([], |row| row.get(0))?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}
