//! Room that is kept back for the moment when the disk is full.
//!
//! Deleting needs room: a session's mark, the database's log, lines of the journal. `<root>/reserve` holds blocks that
//! nothing else gets; whoever removes things gives them up first and takes them back afterwards. Owns that file. Must
//! not know what is removed. Start with [`give_up`] and [`Store::keep_reserve`].

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use rustix::fs::{FallocateFlags, FlockOperation, fallocate, flock, statvfs};
use rustix::io::Errno;

use crate::{Store, StoreError};

/// Bytes kept back.
const BYTES: u64 = 1 << 20;
/// With less than this free nothing is kept back: what is nearly full needs its last blocks for what it is.
const ROOMY: u64 = 8 << 20;
/// The largest part of a cap that the reserve may be.
const PART: u64 = 16;
/// The smallest part of it that is of use.
const LEAST: u64 = 64 << 10;
/// With less than this free the reserve is given up.
const SCARCE: u64 = 4 << 20;

/// A reserve that somebody uses. The drop of the last one takes it back, as far as there is room by then.
#[derive(Debug)]
#[must_use = "it is taken back when this is dropped"]
pub struct GivenUp(Option<(File, PathBuf)>);

/// Gives up what the store at `root` keeps back, if the disk is full. Before the store is opened: that needs room, too.
///
/// # Errors
/// [`StoreError`], when the reserve cannot be given up.
pub fn give_up(root: &Path) -> Result<GivenUp, StoreError> {
    let path = root.join("reserve");
    if free(root).is_none_or(|free| free >= SCARCE) {
        return Ok(GivenUp(None));
    }
    let emptied = |file: File| {
        // All who use it hold the lock together.
        flock(&file, FlockOperation::LockShared)?;
        file.set_len(0).map(|()| file)
    };
    match File::options().write(true).open(&path).and_then(emptied) {
        Ok(file) => Ok(GivenUp(Some((file, path)))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            // One that never had a reserve has files of no value instead.
            fs::remove_dir_all(root.join("fingerprints")).ok();
            Ok(GivenUp(None))
        }
        Err(error) => Err(StoreError::io("empty", path, error)),
    }
}

impl Drop for GivenUp {
    fn drop(&mut self) {
        let Some((file, path)) = &self.0 else { return };
        if flock(file, FlockOperation::NonBlockingLockExclusive).is_ok() {
            take_back(file, path);
        }
    }
}

impl Store {
    /// Keeps room back for the next collection on a full disk, from now on: where there was none to spare, or it could
    /// not be taken back, each collection of this store tries again. Best effort: a small disk, or a small cap, has none.
    pub fn keep_reserve(&self) {
        self.inner.keeps_reserve.store(true, Ordering::Relaxed);
        self.renew_reserve();
    }

    /// Takes the reserve back after a collection, if this store keeps one.
    pub(crate) fn renew_reserve(&self) {
        if !self.inner.keeps_reserve.load(Ordering::Relaxed) {
            return;
        }
        let path = self.root().join("reserve");
        if self.cap().is_some_and(|cap| cap / PART < BYTES) {
            fs::remove_file(path).ok();
            return;
        }
        keep(&path);
    }
}

/// Bytes that could still be written at a path.
fn free(path: &Path) -> Option<u64> {
    statvfs(path).ok().map(|found| found.f_bavail * found.f_frsize)
}

fn keep(path: &Path) {
    if fs::metadata(path).is_ok_and(|file| file.len() == BYTES) {
        return;
    }
    if path.parent().and_then(free).is_none_or(|free| free < ROOMY) {
        return;
    }
    match File::options().write(true).create(true).truncate(false).open(path) {
        Ok(file) if flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() => take_back(&file, path),
        Ok(_) => {}
        Err(error) => tracing::debug!(path = %path.display(), %error, "nothing is kept back"),
    }
}

/// Fills the file with all that there is, up to a whole reserve.
fn take_back(file: &File, path: &Path) {
    let mut bytes = BYTES;
    while let Err(error) = fallocate(file, FallocateFlags::empty(), 0, bytes) {
        bytes /= 2;
        if error != Errno::NOSPC || bytes < LEAST {
            tracing::debug!(path = %path.display(), %error, "nothing is kept back");
            return;
        }
    }
}
