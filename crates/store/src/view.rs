//! A snapshot read without mounting it: the overlay merge in user space. Start with [`MergedView`].
//!
//! Every step is one `openat` or `statat` of one name below an open directory, never following a
//! symlink; symlinks are resolved here, within the view. So no layer can lead the reader out of it.

mod entry;
pub(crate) mod top;

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{Dir, FileType, fgetxattr};
use rustix::io::Errno;

pub use self::entry::MergedEntry;
pub(crate) use self::entry::{directory_flags, is_whiteout};
use self::top::Top;
use crate::diff::sorted_names;
use crate::{ActiveLayer, LayerId, OverlayXattrs, Snapshot, Store, StoreError};

/// Symlinks followed for one path (the kernel's own limit).
const MAX_SYMLINKS: usize = 40;

/// A snapshot's merged file system, read-only. Holds the layers' directories open.
#[derive(Debug)]
pub struct MergedView {
    root: Vec<Top>,
    /// What was found, of a view that is asked about few paths again and again.
    found: Option<Box<Mutex<Answers>>>,
    xattrs: OverlayXattrs,
}

/// A merged directory: its versions in the layers, top first.
type Directory = Vec<Arc<OwnedFd>>;

/// What a name in a merged directory is.
#[derive(Debug, Clone)]
struct Found {
    entry: MergedEntry,
    /// The merged directory, if it is one and somebody wants more of it than its status.
    directory: Option<Directory>,
}

/// What was found at paths.
type Answers = HashMap<PathBuf, Option<Found>>;

/// How much of a directory is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Want {
    Status,
    Content,
}

/// Names of a directory that are held at least: each page reads the whole directory, and names of removed files fill pages.
const PAGE: usize = if cfg!(test) { 2 } else { 4096 };

/// Answers that one view remembers at most.
const MAX_FOUND: usize = 1024;

impl MergedView {
    /// The entry at `path`, symlinks on the way (and at its end) followed inside the view.
    pub fn metadata(&self, path: &Path) -> Result<Option<MergedEntry>, StoreError> {
        Ok(self.resolve(path, true, Want::Status)?.map(|found| found.entry))
    }

    /// The entry at `path`, a symlink at its end not followed.
    pub fn symlink_metadata(&self, path: &Path) -> Result<Option<MergedEntry>, StoreError> {
        Ok(self.resolve(path, false, Want::Status)?.map(|found| found.entry))
    }

    /// Opens a regular file for reading, symlinks followed inside the view.
    pub fn open(&self, path: &Path) -> Result<Option<File>, StoreError> {
        self.metadata(path)?.map(|entry| entry.open()).transpose()
    }

    /// The names in a directory, sorted; `None` if it is none.
    pub fn read_dir(&self, path: &Path) -> Result<Option<Vec<OsString>>, StoreError> {
        let found = self.resolve(path, true, Want::Content)?;
        let Some(directory) = found.and_then(|found| found.directory) else { return Ok(None) };
        let mut names = Vec::new();
        for (name, layer) in merged_names(&directory, path)? {
            if self.child(&directory[layer..], &name, path.join(&name), Want::Status)?.is_some() {
                names.push(name);
            }
        }
        Ok(Some(names))
    }

    /// The first names in a directory, sorted; `None` if it is none. However many there are, about as many are held as are
    /// asked for, or a page.
    pub fn read_dir_first(&self, path: &Path, most: usize) -> Result<Option<Vec<OsString>>, StoreError> {
        let found = self.resolve(path, true, Want::Content)?;
        let Some(directory) = found.and_then(|found| found.directory) else { return Ok(None) };
        let mut names: Vec<OsString> = Vec::new();
        let mut last: Option<OsString> = None;
        while names.len() < most {
            let page = first_names(&directory, path, last.as_deref(), most.max(PAGE))?;
            let Some((end, _)) = page.last_key_value() else { break };
            last = Some(end.clone());
            for (name, layer) in page {
                let is_there = || self.child(&directory[layer..], &name, path.join(&name), Want::Status);
                if names.len() < most && is_there()?.is_some() {
                    names.push(name);
                }
            }
        }
        Ok(Some(names))
    }

    /// Walks everything: the root first, parents before children, names sorted.
    pub fn walk(&self) -> Walk<'_> {
        Walk { view: self, frames: Vec::new(), started: false }
    }

    /// The root's own entry; `None` for scratch.
    fn root_entry(&self) -> Result<Option<MergedEntry>, StoreError> {
        let Some(top) = self.root.first() else { return Ok(None) };
        MergedEntry::lookup(&top.open()?, OsStr::new("."), PathBuf::new())
            .map_err(|error| StoreError::io("read", "/", error))
    }

    /// The root's versions; with a name, those that may hold it.
    fn root(&self, name: Option<&OsStr>) -> Result<Directory, StoreError> {
        let holds = |top: &&Top| name.is_none_or(|name| top.may_hold(name));
        self.root.iter().filter(holds).map(Top::open).collect()
    }

    /// Looks a name up through the layers of a merged directory.
    fn child(
        &self,
        layers: &[Arc<OwnedFd>],
        name: &OsStr,
        path: PathBuf,
        want: Want,
    ) -> Result<Option<Found>, StoreError> {
        let mut found: Option<Found> = None;
        for (index, layer) in layers.iter().enumerate() {
            let entry = MergedEntry::lookup(layer, name, path.clone())
                .map_err(|error| StoreError::io("read", &path, error))?;
            let Some(entry) = entry else { continue };
            let is_directory = entry.file_type() == FileType::Directory;
            match &mut found {
                None if is_whiteout(entry.stat()) => return Ok(None),
                None if !is_directory || want == Want::Status => {
                    return Ok(Some(Found { entry, directory: None }));
                }
                Some(_) if !is_directory => break,
                _ => {}
            }
            let opened = entry.open_directory()?;
            let last = index + 1 == layers.len() || self.is_opaque(&opened, &path)?;
            let directory = found.get_or_insert_with(|| Found { entry, directory: Some(Vec::new()) });
            directory.directory.get_or_insert_default().push(Arc::new(opened));
            if last {
                break;
            }
        }
        Ok(found)
    }

    /// From a directory of a path to what has the next name.
    fn step(
        &self,
        here: &Found,
        is_root: bool,
        name: &OsStr,
        want: Want,
    ) -> Result<Option<Found>, StoreError> {
        let path = here.entry.path().join(name);
        let known = self
            .found
            .as_ref()
            .and_then(|found| found.lock().unwrap_or_else(PoisonError::into_inner).get(&path).cloned());
        let is_enough = |known: &Option<Found>| {
            known.as_ref().is_none_or(|known| {
                want == Want::Status
                    || known.directory.is_some()
                    || known.entry.file_type() != FileType::Directory
            })
        };
        if let Some(known) = known.filter(is_enough) {
            return Ok(known);
        }
        let found = match &here.directory {
            _ if is_root => self.child(&self.root(Some(name))?, name, path.clone(), want)?,
            Some(directory) => self.child(directory, name, path.clone(), want)?,
            None => None,
        };
        if let Some(all) = &self.found {
            let mut all = all.lock().unwrap_or_else(PoisonError::into_inner);
            if all.len() < MAX_FOUND {
                all.insert(path, found.clone());
            }
        }
        Ok(found)
    }

    fn is_opaque(&self, directory: &OwnedFd, path: &Path) -> Result<bool, StoreError> {
        let mut value = [0u8; 1];
        match fgetxattr(directory, self.xattrs.opaque(), &mut value) {
            Ok(_) => Ok(value == *b"y"),
            Err(Errno::NODATA | Errno::NOTSUP) => Ok(false),
            Err(error) => Err(StoreError::io("read the attributes of", path, error)),
        }
    }

    /// Follows a path from the root; `..` at the root stays there, as chroot does it.
    fn resolve(&self, path: &Path, follow_last: bool, want: Want) -> Result<Option<Found>, StoreError> {
        let Some(root) = self.root_entry()? else { return Ok(None) };
        // The root's versions are found when it is known what is wanted of them.
        let mut trail = vec![Found { entry: root, directory: None }];
        let mut pending: VecDeque<OsString> = names_of(path);
        let mut symlinks = 0;
        while let Some(name) = pending.pop_front() {
            if name == ".." {
                if trail.len() > 1 {
                    trail.pop();
                }
                continue;
            }
            let Some(here) = trail.last() else { return Ok(None) };
            let want = if pending.is_empty() { want } else { Want::Content };
            let Some(found) = self.step(here, trail.len() == 1, &name, want)? else { return Ok(None) };
            let is_symlink = found.entry.file_type() == FileType::Symlink;
            if !is_symlink || (pending.is_empty() && !follow_last) {
                trail.push(found);
                continue;
            }
            symlinks += 1;
            if symlinks > MAX_SYMLINKS {
                let source = io::Error::from(Errno::LOOP);
                return Err(StoreError::View { path: path.to_owned(), source });
            }
            let target = found.entry.read_link()?;
            if target.is_absolute() {
                trail.truncate(1);
            }
            for name in names_of(&target).into_iter().rev() {
                pending.push_front(name);
            }
        }
        let mut found = trail.pop();
        if let Some(found) = found.as_mut().filter(|_| trail.is_empty() && want == Want::Content) {
            found.directory = Some(self.root(None)?);
        }
        Ok(found)
    }
}

fn names_of(path: &Path) -> VecDeque<OsString> {
    let name = |component: Component<'_>| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some(OsString::from("..")),
        _ => None,
    };
    path.components().filter_map(name).collect()
}

/// Every name in some version of a directory, with the topmost layer that has it.
fn merged_names(directory: &Directory, path: &Path) -> Result<BTreeMap<OsString, usize>, StoreError> {
    let mut names = BTreeMap::new();
    for (index, layer) in directory.iter().enumerate() {
        for name in sorted_names(layer).map_err(|error| StoreError::io("read", path, error))? {
            names.entry(name).or_insert(index);
        }
    }
    Ok(names)
}

/// The first of these names that come after another, those of removed entries among them.
fn first_names(
    directory: &Directory,
    path: &Path,
    after: Option<&OsStr>,
    most: usize,
) -> Result<BTreeMap<OsString, usize>, StoreError> {
    let failed = |error: Errno| StoreError::io("read", path, error);
    let mut names: BTreeMap<OsString, usize> = BTreeMap::new();
    for (index, layer) in directory.iter().enumerate() {
        for entry in Dir::read_from(layer).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            let is_late =
                names.len() >= most && names.last_key_value().is_none_or(|(last, _)| name > last.as_os_str());
            if name == "." || name == ".." || after.is_some_and(|after| name <= after) || is_late {
                continue;
            }
            names.entry(name.to_owned()).or_insert(index);
            if names.len() > most {
                names.pop_last();
            }
        }
    }
    Ok(names)
}

/// All entries, parents before children, names sorted; the root first.
#[derive(Debug)]
pub struct Walk<'view> {
    view: &'view MergedView,
    frames: Vec<Frame>,
    started: bool,
}

#[derive(Debug)]
struct Frame {
    path: PathBuf,
    directory: Directory,
    names: std::collections::btree_map::IntoIter<OsString, usize>,
}

impl Frame {
    fn new(path: &Path, directory: Directory) -> Result<Self, StoreError> {
        let names = merged_names(&directory, path)?.into_iter();
        Ok(Self { path: path.to_owned(), directory, names })
    }
}

impl Walk<'_> {
    fn step(&mut self) -> Result<Option<MergedEntry>, StoreError> {
        if !self.started {
            self.started = true;
            let Some(root) = self.view.root_entry()? else { return Ok(None) };
            self.frames.push(Frame::new(root.path(), self.view.root(None)?)?);
            return Ok(Some(root));
        }
        while let Some(frame) = self.frames.last_mut() {
            let Some((name, layer)) = frame.names.next() else {
                self.frames.pop();
                continue;
            };
            let path = frame.path.join(&name);
            let found = self.view.child(&frame.directory[layer..], &name, path, Want::Content)?;
            let Some(found) = found else { continue };
            if let Some(directory) = found.directory {
                self.frames.push(Frame::new(found.entry.path(), directory)?);
            }
            return Ok(Some(found.entry));
        }
        Ok(None)
    }
}

impl Iterator for Walk<'_> {
    type Item = Result<MergedEntry, StoreError>;

    fn next(&mut self) -> Option<Self::Item> {
        let step = self.step();
        if step.is_err() {
            // What follows an error would be a guess.
            self.frames.clear();
        }
        step.transpose()
    }
}

impl Store {
    /// A merged view of a snapshot. Counts as a use; keep a lease while reading.
    pub fn view(&self, snapshot: &Snapshot) -> Result<MergedView, StoreError> {
        self.view_of(&self.layer_paths(snapshot)?)
    }

    /// A merged view of layer directories, top first.
    pub(crate) fn view_of(&self, paths: &[PathBuf]) -> Result<MergedView, StoreError> {
        let root = paths.iter().map(|path| Top::opened(path)).collect::<Result<_, _>>()?;
        Ok(MergedView { root, found: None, xattrs: self.inner.config.xattrs })
    }

    /// A merged view for a look at a few paths: a layer is opened only if it may hold what is looked for. Counts as a
    /// use; keep a lease while reading.
    pub fn glance(&self, snapshot: &Snapshot) -> Result<MergedView, StoreError> {
        self.glance_at(snapshot.layers(), &self.layer_paths(snapshot)?)
    }

    /// The same of layers, bottom first, whose directories are known, top first.
    fn glance_at(&self, layers: &[LayerId], paths: &[PathBuf]) -> Result<MergedView, StoreError> {
        let known = &self.inner.top_names;
        // As the paths are: each once, in its highest place.
        let mut seen = HashSet::with_capacity(layers.len());
        let layers = layers.iter().rev().filter(|layer| seen.insert(**layer));
        let tops = layers.zip(paths).map(|(layer, path)| Top::named(path, *layer, known));
        let root = tops.collect::<Result<_, _>>()?;
        Ok(MergedView { root, found: Some(Box::default()), xattrs: self.inner.config.xattrs })
    }
}

impl ActiveLayer {
    /// The layer's base, for a look at a few paths.
    pub fn glance(&self) -> Result<MergedView, StoreError> {
        self.store().glance_at(self.base().layers(), self.lowers())
    }
}

#[cfg(test)]
mod tests;
