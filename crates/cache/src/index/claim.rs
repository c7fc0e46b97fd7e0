//! Claims: who runs the step of a key at this moment, among all processes of one index.
//!
//! A claim is an exclusive flock(2) on a file of the key's name beside the index. The kernel drops it with
//! the process, however that dies, so no process id is ever guessed at. The file goes with the claim; one
//! that a killed process left is used again by the next claim of the key, or swept by [`dead`].
//! Must not know what a step is. Start with [`Claim`].

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use crate::key::CacheKey;

/// Attempts to lock a file that others keep removing. Each needs a claim that ended in between.
const ATTEMPTS: usize = 64;

/// The right to run the step of one key. Dropping it lets the next one.
#[derive(Debug)]
#[must_use = "a claim holds only while it lives"]
pub struct Claim {
    path: PathBuf,
    file: File,
}

impl Claim {
    /// Claims `key` in `directory`; `None` while somebody else has it.
    pub(super) fn take(directory: &Path, key: &CacheKey) -> io::Result<Option<Self>> {
        let path = directory.join(key.to_string());
        for _ in 0..ATTEMPTS {
            let options = || File::options().create(true).truncate(false).write(true).open(&path);
            let file = match options() {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    fs::create_dir_all(directory)?;
                    options()?
                }
                other => other?,
            };
            match file.try_lock() {
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(error)) => return Err(error),
                Ok(()) => {}
            }
            // A lock on a file that was removed locks nothing.
            if names(&file, &path) {
                return Ok(Some(Self { path, file }));
            }
        }
        Ok(None)
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // Removed while it is locked, so that nobody's lock is lost.
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::debug!(path = %self.path.display(), %error, "claim left for the next sweep");
        }
        // A child that another thread forks this instant has the descriptor until it executes its program.
        self.file.unlock().ok();
    }
}

/// What dead processes left, and with `remove` the removal of it.
pub(super) fn dead(directory: &Path, remove: bool) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let mut dead = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let Ok(file) = File::options().write(true).open(&path) else { continue };
        if file.try_lock().is_ok() && names(&file, &path) {
            if remove {
                fs::remove_file(&path)?;
            }
            dead.push(path);
        }
    }
    Ok(dead)
}

fn names(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::symlink_metadata(path)) {
        (Ok(open), Ok(named)) => (open.dev(), open.ino()) == (named.dev(), named.ino()),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::KeyBuilder;

    #[test]
    fn one_has_it_and_then_the_next() {
        let place = tempfile::tempdir().expect("a directory");
        let directory = place.path().join("claims");
        let key = KeyBuilder::new("test").finish().key();
        let other = KeyBuilder::new("other").finish().key();
        let first = Claim::take(&directory, &key).expect("works").expect("free");
        assert!(Claim::take(&directory, &key).expect("works").is_none());
        let apart = Claim::take(&directory, &other).expect("works");
        assert!(apart.is_some());
        drop(first);
        let next = Claim::take(&directory, &key).expect("works");
        assert!(next.is_some());
        assert!(dead(&directory, true).expect("works").is_empty(), "live claims stay");
        drop((next, apart));
        assert_eq!(fs::read_dir(&directory).expect("lists").count(), 0);
    }

    #[test]
    fn what_a_dead_process_left_is_in_nobodys_way() {
        let place = tempfile::tempdir().expect("a directory");
        let key = KeyBuilder::new("test").finish().key();
        fs::write(place.path().join(key.to_string()), "").expect("a file");
        let claim = Claim::take(place.path(), &key).expect("works");
        assert!(claim.is_some());
        drop(claim);
        fs::write(place.path().join(key.to_string()), "").expect("a file");
        assert_eq!(dead(place.path(), false).expect("works").len(), 1);
        assert_eq!(dead(place.path(), true).expect("works").len(), 1);
        assert!(dead(&place.path().join("none"), true).expect("works").is_empty());
    }
}
