//! Opening and sharing the state directory. Start with [`Store`].

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::StoreError;

/// Which extended attributes mark opaque directories.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OverlayXattrs {
    /// `trusted.overlay.*`: needs CAP_SYS_ADMIN in the initial user namespace.
    Trusted,
    /// `user.overlay.*`: overlay mounts with `userxattr`, for rootless use.
    User,
}

/// How a store is opened.
#[derive(Debug, Clone)]
pub struct StoreConfig {
    /// The marks layers carry; all openers of one store must agree.
    pub xattrs: OverlayXattrs,
}

/// A state directory, open. Cheap to clone; the last clone's drop ends the session.
#[derive(Debug, Clone)]
pub struct Store {
    pub(crate) inner: Arc<()>,
}

/// A private directory under the store, removed on drop.
#[derive(Debug)]
pub struct ScratchDir {
    path: PathBuf,
}

impl ScratchDir {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Store {
    /// Opens (or makes) the store at `root`, removes what dead processes left.
    pub fn open(root: &Path) -> Result<Self, StoreError> {
        todo!("{root:?}")
    }

    /// [`Self::open`] with a configuration.
    pub fn open_with(root: &Path, config: &StoreConfig) -> Result<Self, StoreError> {
        todo!("{root:?} {config:?}")
    }

    /// The state directory.
    pub fn root(&self) -> &Path {
        todo!()
    }

    /// The database file of the build cache's index.
    pub fn cache_index_path(&self) -> PathBuf {
        todo!()
    }

    /// A private directory on the store's file system, removed on drop (or by the sweep).
    pub fn scratch_dir(&self) -> Result<ScratchDir, StoreError> {
        todo!()
    }

    /// Makes everything committed so far survive a power cut (`syncfs`, then the mark in the rows).
    /// Costs as long as the file system needs to write its dirty data.
    pub fn sync(&self) -> Result<(), StoreError> {
        todo!()
    }
}
