//! One open store in one process: its slot, its private directory, and the sweep of dead ones.
//!
//! A session holds flock(2) on a file `sessions/<slot>`: the kernel drops the lock with the process,
//! however it dies, so no process id is ever guessed at. While it lives the file says [`OPEN`]; a
//! clean end empties it. So a file that can be locked and is not empty belonged to a process that
//! died. Slots and their directories under `tmp/` are used again: removing files is the slowest thing
//! a file system does, and a short command must not pay for it. Start with [`Session`].

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::fs::{FlockOperation, flock};
use rustix::rand::{GetRandomFlags, getrandom};

use crate::StoreError;
use crate::fault::refused;

/// What the file of a live session holds.
const OPEN: &[u8] = b"open\n";
/// Sessions of one store at the same time.
const MAX_SLOTS: usize = 4096;

/// A live session. Its drop gives the slot back.
#[derive(Debug)]
pub(crate) struct Session {
    slot: String,
    /// Random, so that nothing an earlier session named is named again.
    prefix: String,
    directory: PathBuf,
    lock: File,
    counter: AtomicU64,
    /// The slot's last owner died, and what it left is still there. Only the first sweep may take
    /// that: later everything in the directory is ours.
    inherited: AtomicBool,
}

impl Session {
    /// Begins a session of the store at `root`.
    pub(crate) fn begin(root: &Path) -> Result<Self, StoreError> {
        let prefix = random_name()?;
        for slot in 0..MAX_SLOTS {
            let slot = slot.to_string();
            let path = root.join("sessions").join(&slot);
            let lock = File::options().read(true).write(true).create(true).truncate(false).open(&path);
            let mut lock = lock.map_err(|error| StoreError::io("open", &path, error))?;
            if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
                continue;
            }
            let failed = |error| StoreError::io("write", &path, error);
            let inherited = lock.metadata().map_err(failed)?.len() > 0;
            refused("session-open").and_then(|()| lock.write_all(OPEN)).map_err(failed)?;
            let directory = root.join("tmp").join(&slot);
            match refused("session-directory").and_then(|()| fs::create_dir(&directory)) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(StoreError::io("create", &directory, error));
                }
                _ => {}
            }
            return Ok(Self {
                slot,
                prefix,
                directory,
                lock,
                counter: AtomicU64::new(1),
                inherited: AtomicBool::new(inherited),
            });
        }
        let busy = io::Error::from(io::ErrorKind::ResourceBusy);
        Err(StoreError::io("find a free slot in", root.join("sessions"), busy))
    }

    /// Tells other processes how many bytes this one is about to write.
    pub(crate) fn announce(&self, bytes: u64) {
        use std::os::unix::fs::FileExt as _;
        // One write of fixed length: a reader sees the old number or the new one.
        if let Err(error) = self.lock.write_all_at(format!("{bytes:020}").as_bytes(), OPEN.len() as u64) {
            tracing::debug!(%error, "a reservation is not announced");
        }
    }

    /// What the session's leases are filed under.
    pub(crate) fn slot(&self) -> &str {
        &self.slot
    }

    /// A file name no call on any session returned before (almost surely; the caller checks).
    pub(crate) fn fresh_name(&self) -> String {
        format!("{}{}", self.prefix, self.counter.fetch_add(1, Ordering::Relaxed))
    }

    /// Whether a path is of [`Self::fresh_path`].
    pub(crate) fn holds(&self, path: &Path) -> bool {
        path.parent() == Some(&self.directory)
    }

    /// A path in the session's directory that no other call returns; nothing is there yet.
    pub(crate) fn fresh_path(&self, kind: &str) -> PathBuf {
        self.directory.join(format!("{kind}-{}", self.fresh_name()))
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // What could not be removed keeps the mark, and so falls to the next sweep.
        let is_empty = fs::read_dir(&self.directory).is_ok_and(|mut entries| entries.next().is_none());
        if is_empty && let Err(error) = self.lock.set_len(0) {
            tracing::warn!(path = %self.directory.display(), %error, "left for the next sweep");
        }
        // Closing is not enough: a child that another thread forks this instant has the descriptor until it
        // executes its program. If this fails, the lock ends a moment later.
        flock(&self.lock, FlockOperation::Unlock).ok();
    }
}

/// The slot of a dead session, held so that nobody else sweeps it.
#[derive(Debug)]
pub(crate) struct DeadSession {
    pub(crate) slot: String,
    lock: Option<File>,
}

impl DeadSession {
    /// Moves what it left into our directory: from here on it is ours to remove. Gives back the slot.
    pub(crate) fn inherit(self, root: &Path, session: &Session) -> Result<Vec<PathBuf>, StoreError> {
        let directory = root.join("tmp").join(&self.slot);
        let mut moved = Vec::new();
        for name in names(&directory)? {
            let (from, aside) = (directory.join(name), session.fresh_path("d"));
            refused("inherit")
                .and_then(|()| fs::rename(&from, &aside))
                .map_err(|error| StoreError::io("rename", &from, error))?;
            moved.push(aside);
        }
        if let Some(lock) = self.lock {
            let path = root.join("sessions").join(&self.slot);
            lock.set_len(0).map_err(|error| StoreError::io("write", path, error))?;
        }
        Ok(moved)
    }
}

/// All slots whose last owner died, `session`'s own included.
pub(crate) fn dead_sessions(root: &Path, session: &Session) -> Result<Vec<DeadSession>, StoreError> {
    let mut dead = Vec::new();
    if session.inherited.swap(false, Ordering::Relaxed) {
        dead.push(DeadSession { slot: session.slot.clone(), lock: None });
    }
    for slot in names(&root.join("sessions"))?.into_iter().filter(|slot| *slot != session.slot) {
        let path = root.join("sessions").join(&slot);
        let lock = File::options().read(true).write(true).open(&path);
        let lock = lock.map_err(|error| StoreError::io("open", &path, error))?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            continue;
        }
        let length = lock.metadata().map_err(|error| StoreError::io("read", &path, error))?.len();
        if length > 0 {
            dead.push(DeadSession { slot, lock: Some(lock) });
        }
    }
    Ok(dead)
}

/// What live sessions other than `own` said they are about to write, in bytes.
pub(crate) fn reserved_by_others(root: &Path, own: &Session) -> Result<u64, StoreError> {
    let mut total: u64 = 0;
    for slot in names(&root.join("sessions"))?.into_iter().filter(|slot| *slot != own.slot) {
        let path = root.join("sessions").join(&slot);
        let text = fs::read(&path).map_err(|error| StoreError::io("read", &path, error))?;
        let number =
            text.strip_prefix(OPEN).and_then(|rest| std::str::from_utf8(rest).ok()?.trim().parse().ok());
        let Some(bytes) = number.filter(|bytes: &u64| *bytes > 0) else { continue };
        let lock = File::open(&path).map_err(|error| StoreError::io("open", &path, error))?;
        // A dead one writes nothing any more.
        if flock(&lock, FlockOperation::NonBlockingLockShared).is_err() {
            total = total.saturating_add(bytes);
        }
    }
    Ok(total)
}

/// Whether any process has the store open.
pub(crate) fn any_alive(root: &Path) -> Result<bool, StoreError> {
    for slot in names(&root.join("sessions"))? {
        let path = root.join("sessions").join(slot);
        let lock = File::open(&path).map_err(|error| StoreError::io("open", &path, error))?;
        if flock(&lock, FlockOperation::NonBlockingLockShared).is_err() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Slots of sessions that ended without a word, without touching them.
pub(crate) fn dead_slots(root: &Path) -> Result<Vec<String>, StoreError> {
    let mut dead = Vec::new();
    for slot in names(&root.join("sessions"))? {
        let path = root.join("sessions").join(&slot);
        let lock = File::open(&path).map_err(|error| StoreError::io("open", &path, error))?;
        let free = flock(&lock, FlockOperation::NonBlockingLockShared).is_ok();
        if free && lock.metadata().map_err(|error| StoreError::io("read", &path, error))?.len() > 0 {
            dead.push(slot);
        }
    }
    Ok(dead)
}

/// The UTF-8 names in a directory; we make no others.
pub(crate) fn names(directory: &Path) -> Result<Vec<String>, StoreError> {
    let failed = |error| StoreError::io("list", directory, error);
    let mut names = Vec::new();
    for entry in fs::read_dir(directory).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        names.extend(OsStr::to_str(&name).map(str::to_owned));
    }
    Ok(names)
}

/// Whether `path` still names the open file: a lock on a file that was unlinked locks nothing.
pub(crate) fn is_same_file(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::symlink_metadata(path)) {
        (Ok(open), Ok(named)) => (open.dev(), open.ino()) == (named.dev(), named.ino()),
        _ => false,
    }
}

/// Eight characters of [a-z2-7]: overlay options hold many of these, so they are short.
fn random_name() -> Result<String, StoreError> {
    const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    let mut bytes = [0u8; 8];
    getrandom(&mut bytes, GetRandomFlags::empty())
        .map_err(|error| StoreError::io("read", "/dev/urandom", error))?;
    Ok(bytes.iter().map(|byte| char::from(ALPHABET[usize::from(byte & 31)])).collect())
}
