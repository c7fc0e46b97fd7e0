//! What a layer is made on, for looking at: single paths are looked up in the layers themselves, and the first question
//! that needs a tree mounts one. Making and letting go of a mount of many layers costs more than a short step.
//! Must not know ops. Read [`Base`] first.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use rustix::fs::{FileType, Stat};
use stave_store::{ActiveLayer, MergedEntry, MergedView, Snapshot, StoreError};

use crate::root::{Last, RootDir, resolve_with};
use crate::worker::{MountError, Shared};

/// What can be asked about single paths of a file system. Every path means what it means inside of it.
pub(crate) trait Look {
    /// The path without symlinks, `.` and `..` that a path means. Components that do not exist are taken as they are.
    fn resolve(&self, path: &Path, last: Last) -> io::Result<PathBuf>;

    /// The status of a path whose last component is not followed; `None` when it does not exist.
    fn stat(&self, path: &Path) -> io::Result<Option<Stat>>;

    /// The begin of a regular file.
    fn read_file(&self, path: &Path, limit: u64) -> io::Result<Vec<u8>>;
}

impl Look for RootDir {
    fn resolve(&self, path: &Path, last: Last) -> io::Result<PathBuf> {
        self.resolve(path, last)
    }

    fn stat(&self, path: &Path) -> io::Result<Option<Stat>> {
        self.stat(path)
    }

    fn read_file(&self, path: &Path, limit: u64) -> io::Result<Vec<u8>> {
        self.read_file(path, limit)
    }
}

impl Look for MergedView {
    fn resolve(&self, path: &Path, last: Last) -> io::Result<PathBuf> {
        resolve_with(path, last, |current| link(self, current))
    }

    fn stat(&self, path: &Path) -> io::Result<Option<Stat>> {
        Ok(self.symlink_metadata(path).map_err(unwrapped)?.map(|entry| *entry.stat()))
    }

    fn read_file(&self, path: &Path, limit: u64) -> io::Result<Vec<u8>> {
        use std::io::Read as _;
        let Some(entry) = self.metadata(path).map_err(unwrapped)? else {
            return Err(io::ErrorKind::NotFound.into());
        };
        let mut bytes = Vec::new();
        entry.open().map_err(unwrapped)?.take(limit).read_to_end(&mut bytes)?;
        Ok(bytes)
    }
}

/// The target of a symlink; `None` where there is none.
pub(crate) fn link(layers: &MergedView, path: &Path) -> io::Result<Option<OsString>> {
    let entry = layers.symlink_metadata(path).map_err(unwrapped)?;
    let link = entry.filter(|entry| entry.file_type() == FileType::Symlink);
    let target = link.as_ref().map(MergedEntry::read_link).transpose().map_err(unwrapped)?;
    Ok(target.map(PathBuf::into_os_string))
}

/// The operating system's part of an error of the store.
pub(crate) fn unwrapped(error: StoreError) -> io::Error {
    match error {
        StoreError::Io { source, .. } | StoreError::View { source, .. } => source,
        error => io::Error::other(error),
    }
}

/// The base of a layer that is being made.
#[derive(Debug)]
pub(crate) struct Base {
    shared: Arc<Shared>,
    snapshot: Snapshot,
    /// `None` where a tree costs nothing: of one layer, or where trees are kept.
    layers: Option<MergedView>,
    tree: OnceLock<Arc<RootDir>>,
}

impl Base {
    /// What `layer` is made on.
    pub(crate) fn of(shared: &Arc<Shared>, layer: &ActiveLayer) -> Result<Self, MountError> {
        let several = layer.lowers().len() > 1 && stave_sandbox::has_namespaces();
        let layers = several.then(|| layer.glance()).transpose()?;
        let (shared, snapshot) = (Arc::clone(shared), layer.base().clone());
        let base = Self { shared, snapshot, layers, tree: OnceLock::new() };
        if base.layers.is_none() {
            base.tree()?;
        }
        Ok(base)
    }

    /// The layers, where nothing is mounted for them.
    pub(crate) fn layers(&self) -> Option<&MergedView> {
        self.layers.as_ref()
    }

    /// All of it as a tree.
    pub(crate) fn tree(&self) -> Result<&RootDir, MountError> {
        if let Some(tree) = self.tree.get() {
            return Ok(tree);
        }
        let tree = self.shared.view(&self.snapshot)?;
        Ok(self.tree.get_or_init(|| tree))
    }

    fn look(&self) -> io::Result<&dyn Look> {
        match (&self.layers, self.tree.get()) {
            (_, Some(tree)) => Ok(&**tree),
            (Some(layers), None) => Ok(layers),
            (None, None) => Ok(self.tree().map_err(io::Error::other)?),
        }
    }
}

impl Look for Base {
    fn resolve(&self, path: &Path, last: Last) -> io::Result<PathBuf> {
        self.look()?.resolve(path, last)
    }

    fn stat(&self, path: &Path) -> io::Result<Option<Stat>> {
        self.look()?.stat(path)
    }

    fn read_file(&self, path: &Path, limit: u64) -> io::Result<Vec<u8>> {
        self.look()?.read_file(path, limit)
    }
}
