//! Cache mounts: directories that outlive builds. Start with [`MutableDir`].
//!
//! `mutable/<name>/data` is the directory, `mutable/<name>/ready` says that its first content is
//! whole, and whoever holds flock(2) on `mutable/<name>.lock` may use it: shared or alone. A process
//! that dies lets go. What a killed step half-wrote stays, as in every cache mount.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use stave_oci::Digest;

use crate::database::{now, time};
use crate::diff::allocated;
use crate::fault::refused;
use crate::removal::remove_tree;
use crate::session::is_same_file;
use crate::store::make_dir;
use crate::{Store, StoreError, UsageId, UsageRecord};

/// Private copies of one cache mount in use at the same time.
const MAX_PRIVATE: usize = 1000;

/// Who else may use a cache mount at the same time (BuildKit's `CacheSharingOpt`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// Everyone, together.
    Shared,
    /// Nobody: another user gets another directory.
    Private,
    /// Nobody: another user waits.
    Locked,
}

/// A cache mount in use. Its lock ends with it, or with the process.
#[derive(Debug)]
pub struct MutableDir {
    directory: PathBuf,
    data: PathBuf,
    lock: File,
    sharing: Sharing,
    fresh: bool,
}

impl Drop for MutableDir {
    fn drop(&mut self) {
        // As for a session: a child forked this instant would keep the lock until it executes its program.
        flock(&self.lock, FlockOperation::Unlock).ok();
    }
}

impl MutableDir {
    /// The directory.
    pub fn path(&self) -> &Path {
        &self.data
    }

    /// Whether it is empty and waits for its first content; the lock is exclusive until
    /// [`Self::initialised`].
    pub fn is_fresh(&self) -> bool {
        self.fresh
    }

    /// Says that the first content is whole. Without it the next user finds the directory fresh.
    pub fn initialised(mut self) -> Result<Self, StoreError> {
        if self.fresh {
            let ready = self.directory.join("ready");
            refused("mount-ready")
                .and_then(|()| File::create(&ready))
                .map_err(|error| StoreError::io("create", ready, error))?;
            self.fresh = false;
            if self.sharing == Sharing::Shared {
                flock(&self.lock, FlockOperation::LockShared)
                    .map_err(|error| StoreError::io("lock", &self.directory, error))?;
            }
        }
        Ok(self)
    }
}

/// Whether to wait for a lock.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wait {
    No,
    Yes,
}

impl Store {
    /// The cache mount `key`; `None` while its lock is held by others in a way that `sharing`
    /// forbids (ask again later).
    pub fn try_mutable_dir(&self, key: &str, sharing: Sharing) -> Result<Option<MutableDir>, StoreError> {
        self.acquire(key, sharing, Wait::No)
    }

    /// [`Self::try_mutable_dir`], waiting for the lock. Blocks the thread.
    pub fn mutable_dir(&self, key: &str, sharing: Sharing) -> Result<MutableDir, StoreError> {
        loop {
            if let Some(directory) = self.acquire(key, sharing, Wait::Yes)? {
                return Ok(directory);
            }
        }
    }

    /// The cache mount `key` as it is, for reading; `None` when there is none, or while a step has it alone.
    pub fn existing_mutable_dir(&self, key: &str) -> Result<Option<MutableDir>, StoreError> {
        let stem = &Digest::sha256(key.as_bytes()).hex()[..24].to_owned();
        if !self.mutable_path(&format!("{stem}.0")).join("ready").exists() {
            return Ok(None);
        }
        let found = self.acquire(key, Sharing::Shared, Wait::No)?;
        Ok(found.filter(|directory| !directory.fresh))
    }

    fn acquire(&self, key: &str, sharing: Sharing, wait: Wait) -> Result<Option<MutableDir>, StoreError> {
        let stem = &Digest::sha256(key.as_bytes()).hex()[..24].to_owned();
        match sharing {
            Sharing::Shared => {
                let name = format!("{stem}.0");
                let lock = self.lock_mutable(&name, FlockOperation::LockShared, wait)?;
                let is_ready = || self.mutable_path(&name).join("ready").exists();
                if let Some(lock) = lock.filter(|_| is_ready()) {
                    return self.enter(&name, key, sharing, lock).map(Some);
                }
                // The first content needs everyone else away.
                let lock = self.lock_mutable(&name, FlockOperation::LockExclusive, wait)?;
                let entered = lock.map(|lock| self.enter(&name, key, sharing, lock)).transpose()?;
                entered.map(|entered| if entered.fresh { Ok(entered) } else { share(entered) }).transpose()
            }
            Sharing::Locked => {
                let name = format!("{stem}.0");
                let lock = self.lock_mutable(&name, FlockOperation::LockExclusive, wait)?;
                lock.map(|lock| self.enter(&name, key, sharing, lock)).transpose()
            }
            Sharing::Private => {
                for copy in 0..MAX_PRIVATE {
                    let name = format!("{stem}.{copy}");
                    if let Some(lock) = self.lock_mutable(&name, FlockOperation::LockExclusive, Wait::No)? {
                        return self.enter(&name, key, sharing, lock).map(Some);
                    }
                }
                Ok(None)
            }
        }
    }

    fn mutable_path(&self, name: &str) -> PathBuf {
        self.root().join("mutable").join(name)
    }

    /// Takes the lock; `None` if it is held and we do not wait.
    fn lock_mutable(
        &self,
        name: &str,
        operation: FlockOperation,
        wait: Wait,
    ) -> Result<Option<File>, StoreError> {
        let path = self.mutable_path(&format!("{name}.lock"));
        let operation = match (wait, operation) {
            (Wait::Yes, operation) => operation,
            (Wait::No, FlockOperation::LockShared) => FlockOperation::NonBlockingLockShared,
            (Wait::No, _) => FlockOperation::NonBlockingLockExclusive,
        };
        loop {
            let open = || File::options().read(true).write(true).create(true).truncate(false).open(&path);
            let file = refused("mount-lock").and_then(|()| open());
            let file = file.map_err(|error| StoreError::io("open", &path, error))?;
            match flock(&file, operation) {
                // Otherwise collected between the two calls.
                Ok(()) if is_same_file(&file, &path) => return Ok(Some(file)),
                Ok(()) | Err(Errno::INTR) => {}
                Err(Errno::WOULDBLOCK) => return Ok(None),
                Err(error) => return Err(StoreError::io("lock", &path, error)),
            }
        }
    }

    /// With the lock held: makes the directory anew unless its first content is whole.
    fn enter(&self, name: &str, key: &str, sharing: Sharing, lock: File) -> Result<MutableDir, StoreError> {
        let directory = self.mutable_path(name);
        let data = directory.join("data");
        let fresh = !directory.join("ready").exists();
        self.inner.database.write(|tx| {
            let upsert = "INSERT INTO cache_mount (name, description, created, used) VALUES (?1, ?2, ?3, ?3)
                          ON CONFLICT (name) DO UPDATE SET used = excluded.used";
            tx.prepare_cached(upsert)?.execute((name, key, now()))?;
            Ok(())
        })?;
        if fresh {
            remove_tree(&data).map_err(|error| StoreError::io("remove", &data, error))?;
            make_dir(&directory)?;
            let made = refused("mount-data").and_then(|()| fs::DirBuilder::new().mode(0o755).create(&data));
            made.and_then(|()| refused("mount-mode"))
                .and_then(|()| fs::set_permissions(&data, fs::Permissions::from_mode(0o755)))
                .map_err(|error| StoreError::io("create", &data, error))?;
        }
        Ok(MutableDir { directory, data, lock, sharing, fresh })
    }

    /// What cache mounts take, and which are in use. To learn that each is locked for a moment, in which whoever wants
    /// it alone goes without it: not for what is asked all the time.
    pub(crate) fn cache_mount_usage(&self) -> Result<Vec<UsageRecord>, StoreError> {
        self.cache_mounts(|name| {
            Ok(self.lock_mutable(name, FlockOperation::LockExclusive, Wait::No)?.is_none())
        })
    }

    /// Allocated bytes of all cache mounts.
    pub(crate) fn cache_mount_bytes(&self) -> Result<u64, StoreError> {
        Ok(self.cache_mounts(|_| Ok(false))?.iter().map(|record| record.size).sum())
    }

    fn cache_mounts(
        &self,
        is_in_use: impl Fn(&str) -> Result<bool, StoreError>,
    ) -> Result<Vec<UsageRecord>, StoreError> {
        type Row = (String, String, i64, i64);
        let rows: Vec<Row> = self.inner.database.read(|tx| {
            let mut statement =
                tx.prepare_cached("SELECT name, description, created, used FROM cache_mount")?;
            let rows =
                statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)))?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        })?;
        let mut records = Vec::new();
        for (name, description, created, used) in rows {
            let size = match allocated(&self.mutable_path(&name)) {
                Ok(size) => size,
                // Being made, being collected, or written to while we look.
                Err(StoreError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => 0,
                Err(error) => return Err(error),
            };
            let in_use = is_in_use(&name)?;
            records.push(UsageRecord {
                id: UsageId::CacheMount(name),
                description,
                size,
                created: time(created),
                last_used: time(used),
                in_use,
                in_image: false,
                parents: BTreeSet::new(),
            });
        }
        Ok(records)
    }

    /// Removes the cache mounts that `selects` by their keys, all copies of each but those in use; how many.
    ///
    /// # Errors
    /// When the store fails.
    pub fn remove_cache_mounts(&self, selects: impl Fn(&str) -> bool) -> Result<usize, StoreError> {
        let rows: Vec<(String, String)> = self.inner.database.read(|tx| {
            let mut statement = tx.prepare_cached("SELECT name, description FROM cache_mount")?;
            let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        })?;
        let mut removed = 0;
        for (name, _) in rows.iter().filter(|(_, key)| selects(key)) {
            removed += usize::from(self.remove_cache_mount(name)?);
        }
        Ok(removed)
    }

    /// Removes one copy of a cache mount by its name on disk (see [`UsageId::CacheMount`]); `false` while it is in use.
    pub fn remove_cache_mount(&self, name: &str) -> Result<bool, StoreError> {
        let Some(lock) = self.lock_mutable(name, FlockOperation::LockExclusive, Wait::No)? else {
            return Ok(false);
        };
        let directory = self.mutable_path(name);
        let aside = self.inner.session.fresh_path("d");
        let moved = crate::reconcile::move_aside(&directory, &aside)?;
        self.inner.database.write(|tx| {
            tx.prepare_cached("DELETE FROM cache_mount WHERE name = ?1")?.execute([name])?;
            Ok(())
        })?;
        let lock_path = self.mutable_path(&format!("{name}.lock"));
        refused("mount-unlock")
            .and_then(|()| fs::remove_file(&lock_path))
            .map_err(|error| StoreError::io("remove", &lock_path, error))?;
        drop(lock);
        if moved {
            remove_tree(&aside).map_err(|error| StoreError::io("remove", &aside, error))?;
        }
        Ok(true)
    }
}

fn share(directory: MutableDir) -> Result<MutableDir, StoreError> {
    flock(&directory.lock, FlockOperation::LockShared)
        .map_err(|error| StoreError::io("lock", &directory.directory, error))?;
    Ok(directory)
}
