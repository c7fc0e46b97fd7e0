//! A snapshot read without mounting it: the overlay merge in user space. Start with [`MergedView`].

use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};

use crate::{Snapshot, Store, StoreError};

/// A snapshot's merged file system, read-only. Holds the layers' directories open.
#[derive(Debug)]
pub struct MergedView {
    roots: Vec<std::os::fd::OwnedFd>,
}

/// An entry of the merged view.
#[derive(Debug, Clone)]
pub struct MergedEntry {
    /// Relative to the root; empty for the root itself.
    pub path: PathBuf,
    /// `lstat` of the topmost version.
    pub stat: rustix::fs::Stat,
    /// The directory of the layer it is in, and its path below it: to read data, link target, xattrs.
    pub location: PathBuf,
}

/// All entries, parents before children, names sorted; the root first.
#[derive(Debug)]
pub struct Walk<'view> {
    _view: &'view MergedView,
}

impl Iterator for Walk<'_> {
    type Item = Result<MergedEntry, StoreError>;

    fn next(&mut self) -> Option<Self::Item> {
        todo!()
    }
}

impl MergedView {
    /// The entry at `path`, symlinks on the way (and at its end) followed inside the view.
    pub fn metadata(&self, path: &Path) -> Result<Option<MergedEntry>, StoreError> {
        todo!("{path:?}")
    }

    /// The entry at `path`, a symlink at its end not followed.
    pub fn symlink_metadata(&self, path: &Path) -> Result<Option<MergedEntry>, StoreError> {
        todo!("{path:?}")
    }

    /// Opens a regular file for reading, symlinks followed inside the view.
    pub fn open(&self, path: &Path) -> Result<Option<File>, StoreError> {
        todo!("{path:?} {}", self.roots.len())
    }

    /// The names in a directory, sorted; `None` if it is none.
    pub fn read_dir(&self, path: &Path) -> Result<Option<Vec<OsString>>, StoreError> {
        todo!("{path:?}")
    }

    /// Walks everything.
    pub fn walk(&self) -> Walk<'_> {
        todo!()
    }
}

impl Store {
    /// A merged view of a snapshot. Counts as a use; keep a lease while reading.
    pub fn view(&self, snapshot: &Snapshot) -> Result<MergedView, StoreError> {
        todo!("{snapshot}")
    }
}
