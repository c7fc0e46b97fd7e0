//! A layer at the root of a merged view: what lies at its top is remembered, so that it is opened only for what it may
//! hold. A step mostly adds a name or two: in a long chain of layers nearly all have nothing to say about a path.
//! Must not know how versions merge. Start with [`Top`].

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat, open, openat2};
use rustix::io::Errno;

use super::{MergedEntry, MergedView, directory_flags};
use crate::diff::sorted_names;
use crate::{LayerId, StoreError};

/// Layers whose names are remembered at most: that of a long-lived process must not grow without end.
const MAX_LAYERS: usize = 4096;

/// Names of one layer that are remembered at most; one with more may hold anything.
const MAX_NAMES: usize = 256;

/// The names at the top of a layer, whiteouts among them, sorted; `None` for too many.
type Names = Option<Arc<[OsString]>>;

/// What is remembered of layers, which never change: by id, and for this directory alone.
#[derive(Debug, Default)]
pub(crate) struct TopNames(Mutex<HashMap<LayerId, (PathBuf, Names)>>);

impl TopNames {
    fn of(&self, layer: LayerId, top: &Top) -> Result<Names, StoreError> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&layer).cloned();
        if let Some((_, names)) = known.filter(|(path, _)| *path == top.path) {
            return Ok(names);
        }
        let names = sorted_names(&*top.open()?).map_err(|error| StoreError::io("read", &top.path, error))?;
        let names = (names.len() <= MAX_NAMES).then(|| Arc::from(names));
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= MAX_LAYERS {
            all.clear();
        }
        all.insert(layer, (top.path.clone(), names.clone()));
        Ok(names)
    }
}

/// One layer of a view's root.
#[derive(Debug)]
pub(super) struct Top {
    path: PathBuf,
    directory: OnceLock<Arc<OwnedFd>>,
    names: Names,
}

impl Top {
    /// A layer of which nothing is known, open.
    pub(super) fn opened(path: &Path) -> Result<Self, StoreError> {
        let top = Self { path: path.to_owned(), directory: OnceLock::new(), names: None };
        top.open()?;
        Ok(top)
    }

    /// A layer of which the names are known; it is opened when it is needed.
    pub(super) fn named(path: &Path, layer: LayerId, known: &TopNames) -> Result<Self, StoreError> {
        let mut top = Self { path: path.to_owned(), directory: OnceLock::new(), names: None };
        top.names = known.of(layer, &top)?;
        Ok(top)
    }

    /// The open directory.
    pub(super) fn open(&self) -> Result<Arc<OwnedFd>, StoreError> {
        if let Some(directory) = self.directory.get() {
            return Ok(Arc::clone(directory));
        }
        let opened = open(&self.path, directory_flags(), Mode::empty());
        let opened = opened.map_err(|error| StoreError::io("open", &self.path, error))?;
        Ok(Arc::clone(self.directory.get_or_init(|| Arc::new(opened))))
    }

    /// Whether it may have an entry, or a whiteout, of this name.
    pub(super) fn may_hold(&self, name: &OsStr) -> bool {
        let Some(names) = &self.names else { return true };
        names.binary_search_by(|known| known.as_os_str().cmp(name)).is_ok()
    }
}

impl MergedView {
    /// The layer in which an entry that is no directory lies, open; `None` for a directory, and for one that is no longer
    /// there. Within the layer it has the same path, with no symlink on the way.
    pub fn home(&self, entry: &MergedEntry) -> Result<Option<Arc<OwnedFd>>, StoreError> {
        let is_directory = entry.file_type() == FileType::Directory;
        let Some(name) = entry.path().iter().next().filter(|_| !is_directory) else { return Ok(None) };
        let failed = |error| StoreError::io("read", entry.path(), error);
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        for top in self.root.iter().filter(|top| top.may_hold(name)) {
            let layer = top.open()?;
            match openat2(&layer, entry.path(), flags, Mode::empty(), resolve) {
                Ok(found) => {
                    let stat = fstat(&found).map_err(failed)?;
                    if (stat.st_dev, stat.st_ino) == (entry.stat().st_dev, entry.stat().st_ino) {
                        return Ok(Some(layer));
                    }
                }
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                Err(error) => return Err(failed(error)),
            }
        }
        Ok(None)
    }
}
