//! Cache mounts: directories that outlive builds. Start with [`MutableDir`].

use std::path::{Path, PathBuf};

use crate::{Store, StoreError};

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
    path: PathBuf,
}

impl MutableDir {
    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it is empty and waits for its first content; the lock is exclusive until
    /// [`Self::initialised`].
    pub fn is_fresh(&self) -> bool {
        todo!()
    }

    /// Says that the first content is whole. Without it the next user finds the directory fresh.
    pub fn initialised(self) -> Result<Self, StoreError> {
        todo!()
    }
}

impl Store {
    /// The cache mount `key`; `None` while its lock is held by others in a way that `sharing`
    /// forbids (ask again later).
    pub fn try_mutable_dir(&self, key: &str, sharing: Sharing) -> Result<Option<MutableDir>, StoreError> {
        todo!("{key} {sharing:?}")
    }

    /// [`Self::try_mutable_dir`], waiting for the lock. Blocks the thread.
    pub fn mutable_dir(&self, key: &str, sharing: Sharing) -> Result<MutableDir, StoreError> {
        todo!("{key} {sharing:?}")
    }
}
