//! One open store in one process: its lock file, its private directory, and the sweep of dead ones.
//!
//! A session is alive while its file under `sessions/` is locked with flock(2): the kernel drops the
//! lock with the process, however it dies, so no process id is ever guessed at. The file is made
//! before the directory under `tmp/` and removed after it; so a directory without a file, or with a
//! file that can be locked, has no owner. Start with [`Session`].

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{FlockOperation, flock};
use rustix::rand::{GetRandomFlags, getrandom};

use crate::StoreError;

/// A live session. Its drop removes its directory and its file.
#[derive(Debug)]
pub(crate) struct Session {
    name: String,
    directory: PathBuf,
    file: PathBuf,
    _lock: File,
    counter: AtomicU64,
}

impl Session {
    /// Begins a session of the store at `root`.
    pub(crate) fn begin(root: &Path) -> Result<Self, StoreError> {
        loop {
            let name = random_name()?;
            let file = root.join("sessions").join(&name);
            let lock = match File::create_new(&file) {
                Ok(lock) => lock,
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                Err(error) => return Err(StoreError::io("create", file, error)),
            };
            let locked = flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok();
            // A sweep may have found the file between its creation and its lock, and removed it.
            if !locked || !is_same_file(&lock, &file) {
                continue;
            }
            let directory = root.join("tmp").join(&name);
            fs::create_dir(&directory).map_err(|error| StoreError::io("create", &directory, error))?;
            return Ok(Self { name, directory, file, _lock: lock, counter: AtomicU64::new(1) });
        }
    }

    /// The session's name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// A number no other call on this session returns.
    pub(crate) fn number(&self) -> u64 {
        self.counter.fetch_add(1, Ordering::Relaxed)
    }

    /// A path in the session's directory that no other call returns; nothing is there yet.
    pub(crate) fn fresh_path(&self, kind: &str) -> PathBuf {
        self.directory.join(format!("{kind}{}", self.number()))
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Err(error) = remove_tree(&self.directory).and_then(|()| fs::remove_file(&self.file)) {
            tracing::warn!(path = %self.directory.display(), %error, "left for the next sweep");
        }
    }
}

/// A dead session, held so that nobody else sweeps it; its remains go when it is [`Self::bury`]-ed.
#[derive(Debug)]
pub(crate) struct DeadSession {
    pub(crate) name: String,
    _lock: Option<File>,
}

impl DeadSession {
    /// Removes the directory, then the file.
    pub(crate) fn bury(self, root: &Path) -> Result<(), StoreError> {
        let directory = root.join("tmp").join(&self.name);
        remove_tree(&directory).map_err(|error| StoreError::io("remove", directory, error))?;
        remove_if_there(&root.join("sessions").join(&self.name))
    }
}

/// All sessions without an owner.
pub(crate) fn dead_sessions(root: &Path) -> Result<Vec<DeadSession>, StoreError> {
    let mut dead = Vec::new();
    let sessions = root.join("sessions");
    // The directories are listed first: one that is listed had its file before.
    let directories = names(&root.join("tmp"))?;
    let files = names(&sessions)?;
    for name in &files {
        let path = sessions.join(name);
        let lock = match File::open(&path) {
            Ok(lock) => lock,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(StoreError::io("open", path, error)),
        };
        let locked = flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok();
        if locked && is_same_file(&lock, &path) {
            dead.push(DeadSession { name: name.clone(), _lock: Some(lock) });
        }
    }
    for name in directories {
        if !files.contains(&name) && !sessions.join(&name).exists() {
            dead.push(DeadSession { name, _lock: None });
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

/// Removes a file or a whole directory; what is not there is fine.
pub(crate) fn remove_tree(path: &Path) -> io::Result<()> {
    let remove = || match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match remove() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        // Without root's privileges a directory of mode 0 (overlay makes one) cannot be emptied.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            open_up(path)?;
            fs::remove_dir_all(path)
        }
        result => result,
    }
}

fn open_up(directory: &Path) -> io::Result<()> {
    fs::set_permissions(directory, fs::Permissions::from_mode(0o700))?;
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            open_up(&entry.path())?;
        }
    }
    Ok(())
}

fn remove_if_there(path: &Path) -> Result<(), StoreError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(StoreError::io("remove", path, error)),
        _ => Ok(()),
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
