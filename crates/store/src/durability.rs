//! What a power cut may take, and how the store finds out.
//!
//! Committing a layer must cost a RUN step nothing, so no commit syncs. Instead every layer and blob
//! row carries `synced`, and the store carries the kernel's boot id of its last opening:
//!
//! - A new row has `synced = 0`. Its files may be partly in the page cache only; as long as the kernel
//!   runs, that makes no difference, whatever happens to processes.
//! - [`sync`] runs `syncfs` and then marks the rows that existed before it, in a commit that is itself
//!   synced. It runs when asked for ([`crate::Store::sync`]), and by itself, beside the work of a
//!   later process, once something has been unsynced for [`FLUSH_AFTER`] (the kernel has written most
//!   of it by then, so it is cheap). A process that ends within [`SHORT`] leaves it to another, since it
//!   would have to wait; after [`FLUSH_AT_LATEST`] none does.
//! - At an opening under another boot id the machine has restarted since. Layers with `synced = 0` are
//!   read then, once: one whose files still have the digest that was recorded of them (those of built
//!   images have one) came through and stays. All others are dropped, with images that need them:
//!   cache is lost, but no layer is ever half present. So an orderly restart right after a build keeps
//!   what was built here; what was pulled in the minute before is pulled again.
//! - A power cut can also take the database's last commits (never its consistency). So at such an
//!   opening directories without a row are removed, rows without a directory as well, and layer
//!   numbers jump ahead by [`LAYER_JUMP`]: a number that a cache record remembers and the database
//!   forgot must never name another layer.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use rusqlite::OptionalExtension as _;
use rustix::fs::syncfs;

use crate::database::{Database, now};
use crate::diff::digest_of_directory;
use crate::fault::refused;
use crate::journal::{self, Line};
use crate::reconcile;
use crate::session::Session;
use crate::{OverlayXattrs, StoreError, TarOptions};

/// How long committed layers may stay unsynced before the next opening syncs them.
pub(crate) const FLUSH_AFTER: Duration = Duration::from_secs(60);
/// How long they may stay so when all that is done is short commands.
const FLUSH_AT_LATEST: Duration = Duration::from_secs(600);
/// How long a process runs before it begins to sync.
const SHORT: Duration = Duration::from_millis(300);
/// More layers than any store makes between two checkpoints of its database.
const LAYER_JUMP: i64 = 1 << 20;
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The kernel's id of this boot.
pub(crate) fn boot_id() -> Result<String, StoreError> {
    let text = fs::read_to_string(BOOT_ID).map_err(|error| StoreError::io("read", BOOT_ID, error))?;
    Ok(text.trim().to_owned())
}

/// If the machine restarted since the last opening, forgets what may be incomplete.
pub(crate) fn drop_unsynced_of_other_boots(
    root: &Path,
    database: &Database,
    session: &Session,
    (boot, xattrs): (&str, OverlayXattrs),
) -> Result<(), StoreError> {
    let last: String =
        database.read(|tx| Ok(tx.query_row("SELECT boot FROM clock", [], |row| row.get(0))?))?;
    if last == boot {
        return Ok(());
    }
    let whole = whole_layers(root, database, xattrs)?;
    let rubbish = database.write_durably(|tx| {
        let changed = tx.execute(
            "UPDATE clock SET boot = ?1, next_layer = next_layer + CASE boot WHEN '' THEN 0 ELSE ?2 END
             WHERE boot <> ?1",
            (boot, LAYER_JUMP),
        )?;
        if changed == 0 {
            return Ok(Vec::new());
        }
        journal::append(tx, &[Line::Boot { id: boot.to_owned() }])?;
        for layer in &whole {
            tx.execute("UPDATE layer SET synced = 1 WHERE id = ?1", [layer])?;
        }
        tx.execute_batch(
            "DELETE FROM lease; DELETE FROM layer WHERE synced = 0; DELETE FROM blob WHERE synced = 0;",
        )?;
        reconcile::forget_rows_without_files(root, tx)?;
        reconcile::move_files_without_rows(root, tx, session)
    })?;
    reconcile::remove_if_possible(&rubbish);
    Ok(())
}

/// The unsynced layers whose files are what was recorded of them.
fn whole_layers(root: &Path, database: &Database, xattrs: OverlayXattrs) -> Result<Vec<i64>, StoreError> {
    type Row = (i64, String, String, Option<i64>);
    let unsynced: Vec<Row> = database.read(|tx| {
        let query = "SELECT id, name, diff_id, NULL FROM layer
                     WHERE synced = 0 AND state = 0 AND diff_id IS NOT NULL
                     UNION ALL
                     SELECT id, name, clamped.diff_id, max(epoch) FROM layer JOIN clamped ON layer = id
                     WHERE synced = 0 AND state = 0 AND layer.diff_id IS NULL GROUP BY id";
        let mut statement = tx.prepare(query)?;
        let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)))?;
        Ok(rows.collect::<Result<_, _>>()?)
    })?;
    // A layer that cannot be read is as good as one that is not whole.
    let is_whole = |(_, name, recorded, clamp): &Row| {
        let options = TarOptions { clamp: *clamp, ..TarOptions::default() };
        digest_of_directory(&root.join("l").join(name), &options, xattrs)
            .is_ok_and(|found| found.as_str() == recorded)
    };
    Ok(unsynced.iter().filter(|layer| is_whole(layer)).map(|layer| layer.0).collect())
}

/// Makes everything committed before the call durable.
pub(crate) fn sync(root: &Path, database: &Database) -> Result<(), StoreError> {
    let (layer, blob): (i64, i64) = database.read(|tx| {
        let newest = "SELECT (SELECT coalesce(max(id), 0) FROM layer WHERE synced = 0),
                             (SELECT coalesce(max(id), 0) FROM blob WHERE synced = 0)";
        Ok(tx.query_row(newest, [], |row| Ok((row.get(0)?, row.get(1)?)))?)
    })?;
    let directory = File::open(root).map_err(|error| StoreError::io("open", root, error))?;
    refused("sync").and_then(|()| syncfs(&directory)).map_err(|error| StoreError::io("sync", root, error))?;
    database.write_durably(|tx| {
        tx.execute("UPDATE layer SET synced = 1 WHERE synced = 0 AND id <= ?1", [layer])?;
        tx.execute("UPDATE blob SET synced = 1 WHERE synced = 0 AND id <= ?1", [blob])?;
        journal::append(tx, &[Line::Synced { layer }])
    })
}

/// A [`sync`] beside the work of this process. Its drop waits for it, or calls it off if it has not begun.
#[derive(Debug)]
pub(crate) struct Flusher {
    thread: Option<JoinHandle<()>>,
    /// Closed by the drop.
    lasts: Option<Sender<()>>,
}

impl Flusher {
    /// Starts one if something has been unsynced for long.
    pub(crate) fn start_if_due(root: &Path, database: &Arc<Database>) -> Result<Option<Self>, StoreError> {
        let oldest: Option<i64> = database.read(|tx| {
            let mut statement = tx.prepare_cached(
                "SELECT created FROM (SELECT created FROM layer WHERE synced = 0 UNION ALL
                                      SELECT created FROM blob WHERE synced = 0) ORDER BY created LIMIT 1",
            )?;
            Ok(statement.query_row([], |row| row.get(0)).optional()?)
        })?;
        let Some(pause) = oldest.and_then(|oldest| pause(now() - oldest)) else { return Ok(None) };
        let (root, database): (PathBuf, _) = (root.to_owned(), Arc::clone(database));
        let (lasts, ended) = channel();
        let run = move || {
            if ended.recv_timeout(pause) == Err(RecvTimeoutError::Disconnected) {
                return;
            }
            if let Err(error) = sync(&root, &database) {
                tracing::warn!(%error, "the store stays unsynced");
            }
        };
        let thread = std::thread::Builder::new().name("store-sync".to_owned()).spawn(run);
        Ok(Some(Self { thread: thread.ok(), lasts: Some(lasts) }))
    }
}

/// How long to wait with a sync when the oldest unsynced row has this age in milliseconds; `None` for none.
fn pause(age: i64) -> Option<Duration> {
    let age = Duration::from_millis(u64::try_from(age).unwrap_or(0));
    (age >= FLUSH_AFTER).then_some(if age < FLUSH_AT_LATEST { SHORT } else { Duration::ZERO })
}

impl Drop for Flusher {
    fn drop(&mut self) {
        drop(self.lasts.take());
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::warn!("the thread that syncs the store panicked");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_commands_put_a_sync_off_but_not_for_ever() {
        let after = |seconds: i64| pause(seconds * 1000);
        assert_eq!(after(-5), None);
        assert_eq!(after(59), None);
        assert_eq!(after(60), Some(SHORT));
        assert_eq!(after(599), Some(SHORT));
        assert_eq!(after(600), Some(Duration::ZERO));
    }

    #[test]
    fn a_sync_that_has_not_begun_is_called_off() {
        let (lasts, ended) = channel::<()>();
        let (told, outcome) = channel();
        let hour = Duration::from_secs(3600);
        let thread = std::thread::spawn(move || {
            let _unheard = told.send(ended.recv_timeout(hour));
        });
        drop(Flusher { thread: Some(thread), lasts: Some(lasts) });
        assert_eq!(outcome.try_recv(), Ok(Err(RecvTimeoutError::Disconnected)));
    }
}
