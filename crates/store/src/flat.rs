//! A snapshot where nothing can be mounted: its merged files as a real tree, and what of it changed as a layer.
//!
//! Owns the tree and the telling of changes. What a step changed is told by inode and change time, which no program
//! can set back; that is sound because nothing begins before the file system's clock has moved on from the
//! copying. Must not know ops, processes or mounts. Read [`FlatTree`] first.

mod difference;
mod reuse;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{AtFlags, CWD, FileType, Mode, Stat, linkat, lremovexattr, open, statat};
use rustix::io::Errno;

use self::reuse::{Before, Source, There};
use crate::removal::remove_tree;
use crate::transplant::{copy_entry, settle};
use crate::view::directory_flags;
use crate::{MergedView, Store, StoreError, owner};

/// Between two looks at a file system's clock.
const TICK: Duration = Duration::from_millis(1);
/// Looks before it is taken for one that stands still: some tell whole seconds only.
const MAX_TICKS: usize = 5000;
/// The file whose change time is the file system's clock.
const CLOCK: &str = "clock";

/// How the files of the layers come into the tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taking {
    /// As second names of the layers' own, where the file system allows it: for those who replace files and never
    /// write into one.
    Links,
    /// As copies (on btrfs and xfs they share their blocks until one changes).
    Copies,
}

/// What of a tree is not the layer's.
#[derive(Debug, Clone, Default)]
pub struct Left {
    /// Paths, relative to the root, that are left out with everything below them.
    pub out: BTreeSet<PathBuf>,
    /// Directories that were made only to hold those: in the layer if something else is in them.
    pub holders: BTreeSet<PathBuf>,
}

/// A change time: seconds and nanoseconds.
type Moment = (i64, i64);

/// What is known of a file or directory of the base.
#[derive(Debug)]
struct Known {
    inode: u64,
    linked: bool,
    source: Source,
}

/// The merged files of some layers as a directory. Removed on drop.
#[derive(Debug)]
pub struct FlatTree {
    place: PathBuf,
    root: PathBuf,
    view: MergedView,
    /// Top first.
    layers: Vec<PathBuf>,
    known: HashMap<PathBuf, Known>,
    /// Every copy was made between these.
    made: (Moment, Moment),
}

impl Drop for FlatTree {
    fn drop(&mut self) {
        if let Err(error) = remove_tree(&self.place) {
            tracing::warn!(path = %self.place.display(), %error, "left for the end of the session");
        }
    }
}

impl Store {
    /// Makes the merged files of `layers` (top first) a tree in `place`, a directory to be made on the store's file
    /// system. Blocks as long as copying takes.
    ///
    /// # Errors
    /// When a layer cannot be read or the tree not be written.
    pub fn flatten(
        &self,
        layers: &[PathBuf],
        place: PathBuf,
        taking: Taking,
    ) -> Result<FlatTree, StoreError> {
        let view = self.view_of(layers)?;
        let root = place.join("root");
        for path in [&place, &root] {
            let made = fs::DirBuilder::new().mode(0o700).create(path);
            made.map_err(|error| StoreError::io("create", path, error))?;
        }
        let begun = tick(&place, None)?;
        let layers = layers.to_vec();
        let mut tree = FlatTree { place, root, view, layers, known: HashMap::new(), made: (begun, begun) };
        let marks = self.inner.config.xattrs.opaque();
        tree.fill(taking, marks, &Before::nothing(begun))?;
        let copied = tick(&tree.place, None)?;
        tree.made = (begun, copied);
        tick(&tree.place, Some(copied))?;
        Ok(tree)
    }
}

impl FlatTree {
    /// The root of the tree.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Brings everything in that is not there as it was before.
    fn fill(&mut self, taking: Taking, marks: &str, before: &Before) -> Result<(), StoreError> {
        let mut directories: Vec<(PathBuf, Stat)> = Vec::new();
        let mut names: HashMap<(u64, u64), PathBuf> = HashMap::new();
        let mut into: Option<(PathBuf, OwnedFd)> = None;
        let mut known = HashMap::new();
        for entry in self.view.walk() {
            let entry = entry?;
            let path = entry.path();
            let failed =
                |error: io::Error| StoreError::Io { action: "copy", path: path.to_owned(), source: error };
            let (from, name) = entry.place();
            // The status as it is on the disk: a recorded owner comes along as an attribute.
            let stat = statat(from, name, AtFlags::SYMLINK_NOFOLLOW).map_err(|error| failed(error.into()))?;
            let source = Source::of(from, name).map_err(|error| failed(error.into()))?;
            let place = self.root.join(path);
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                let there = before.directory(path, &place, &source).map_err(failed)?;
                if there != There::Same {
                    match fs::DirBuilder::new().mode(0o700).create(&place) {
                        Err(error) if there == There::Nothing && !path.as_os_str().is_empty() => {
                            return Err(failed(error));
                        }
                        _ => {}
                    }
                    same_directory(from, name, &place, &stat, marks).map_err(failed)?;
                }
                let inode = status(&place).and_then(|found| found.ok_or(Errno::NOENT));
                let inode = inode.map_err(|error| failed(error.into()))?.st_ino;
                known.insert(path.to_owned(), Known { inode, linked: false, source });
                directories.push((path.to_owned(), stat));
                continue;
            }
            if before.keeps_file(path, &place, &source).map_err(failed)? {
                names.entry((stat.st_dev, stat.st_ino)).or_insert_with(|| path.to_owned());
                let inode = before.inode(path).unwrap_or_default();
                known.insert(path.to_owned(), Known { inode, linked: false, source });
                continue;
            }
            let parent = path.parent().unwrap_or(Path::new(""));
            let to = match into.take().filter(|(path, _)| path == parent) {
                Some(same) => same,
                None => (parent.to_owned(), opened(&self.root.join(parent)).map_err(failed)?),
            };
            let linked =
                self.enter((from, name), &to.1, &stat, (taking, path), &mut names).map_err(failed)?;
            let new = statat(&to.1, name, AtFlags::SYMLINK_NOFOLLOW).map_err(|error| failed(error.into()))?;
            known.insert(path.to_owned(), Known { inode: new.st_ino, linked, source });
            into = Some(to);
        }
        let is: HashSet<&Path> = known.keys().map(PathBuf::as_path).collect();
        before.prune(&self.root, &directories, &is).map_err(|error| StoreError::Io {
            action: "clear",
            path: self.root.clone(),
            source: error,
        })?;
        for (path, stat) in directories.iter().rev() {
            let path = self.root.join(path);
            times(&path, stat).map_err(|error| StoreError::io("set the time of", path, error))?;
        }
        self.known = known;
        Ok(())
    }

    /// Brings one file in; true if it is the layer's own under another name.
    fn enter(
        &self,
        (from, name): (&OwnedFd, &OsStr),
        to: &OwnedFd,
        stat: &Stat,
        (taking, path): (Taking, &Path),
        names: &mut HashMap<(u64, u64), PathBuf>,
    ) -> io::Result<bool> {
        if taking == Taking::Links {
            match linkat(from, name, to, name, AtFlags::empty()) {
                Ok(()) => return Ok(true),
                Err(Errno::XDEV | Errno::PERM | Errno::MLINK | Errno::ACCESS) => {}
                Err(error) => return Err(error.into()),
            }
        }
        if stat.st_nlink > 1 {
            if let Some(first) = names.get(&(stat.st_dev, stat.st_ino)) {
                linkat(CWD, self.root.join(first), to, name, AtFlags::empty())?;
                return Ok(false);
            }
            names.insert((stat.st_dev, stat.st_ino), path.to_owned());
        }
        copy_entry((from, name), (to, name), stat)?;
        Ok(false)
    }

    /// Moves what differs from the layers below into `upper`, an empty layer on the same file system, with marks for
    /// what is gone. The tree is no snapshot any more afterwards.
    ///
    /// # Errors
    /// When the tree cannot be read or the layer not be written.
    pub fn collect(&self, upper: &Path, left: &Left) -> Result<(), StoreError> {
        let mut layer = Collection { tree: self, upper, left, directories: Vec::new() };
        let failed =
            |error: io::Error| StoreError::Io { action: "collect", path: self.root.clone(), source: error };
        let root = status(&self.root)
            .and_then(|found| found.ok_or(Errno::NOENT))
            .map_err(|error| failed(error.into()))?;
        layer.level(Path::new(""), &root)?;
        same_directory(&opened(&self.root).map_err(failed)?, OsStr::new("."), upper, &root, "")
            .map_err(failed)?;
        for (path, stat) in layer.directories.iter().rev() {
            times(&upper.join(path), stat).map_err(|error| failed(error.into()))?;
        }
        Ok(())
    }

    fn is_changed(&self, path: &Path, stat: &Stat) -> bool {
        match self.known.get(path) {
            Some(known) if known.inode == stat.st_ino => !known.linked && self.moved_on(stat),
            _ => true,
        }
    }

    /// Whether a status changed after the tree was made.
    fn moved_on(&self, stat: &Stat) -> bool {
        !is_within(self.made, stat)
    }

    /// Whether a directory at this path changed, or is another.
    fn is_other_directory(&self, path: &Path, stat: &Stat) -> bool {
        self.moved_on(stat) || self.known.get(path).is_none_or(|known| known.inode != stat.st_ino)
    }
}

/// A layer while it is collected.
struct Collection<'a> {
    tree: &'a FlatTree,
    upper: &'a Path,
    left: &'a Left,
    /// Directories in the layer, parents first.
    directories: Vec<(PathBuf, Stat)>,
}

impl Collection<'_> {
    /// Collects a directory that is one below as well; true if something of it is in the layer.
    fn level(&mut self, path: &Path, stat: &Stat) -> Result<bool, StoreError> {
        let failed = |error: Errno| StoreError::io("collect", path, error);
        let place = self.tree.root.join(path);
        let mut names: BTreeSet<_> =
            crate::diff::sorted_names(&opened(&place).map_err(|error| StoreError::Io {
                action: "collect",
                path: path.to_owned(),
                source: error,
            })?)
            .map_err(failed)?
            .into_iter()
            .collect();
        names.extend(self.tree.view.read_dir(path)?.unwrap_or_default());
        let mut found = false;
        for name in names {
            let path = path.join(&name);
            if self.left.out.contains(&path) {
                continue;
            }
            found |= self.name(&path)?;
        }
        if (found || self.tree.is_other_directory(path, stat))
            && !path.as_os_str().is_empty()
            && !self.left.holders.contains(path)
        {
            self.directory(path)?;
            found = true;
        }
        Ok(found)
    }

    fn name(&mut self, path: &Path) -> Result<bool, StoreError> {
        let failed = |error: Errno| StoreError::io("collect", path, error);
        let base = self.tree.view.symlink_metadata(path)?;
        let now = status(&self.tree.root.join(path)).map_err(failed)?;
        let is_directory = |stat: &Stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        match (now, base) {
            (None, None) => Ok(false),
            (None, Some(_)) => {
                let parent = self.parent(path)?;
                owner::make_whiteout(&parent, path.file_name().unwrap_or_default()).map_err(failed)?;
                Ok(true)
            }
            (Some(now), None) if is_directory(&now) && self.left.holders.contains(path) => {
                self.level(path, &now)
            }
            (Some(now), Some(base)) if is_directory(&now) && base.file_type() == FileType::Directory => {
                self.level(path, &now)
            }
            (Some(now), Some(_)) if !is_directory(&now) && !self.tree.is_changed(path, &now) => Ok(false),
            (Some(_), _) => {
                self.parent(path)?;
                let (from, to) = (self.tree.root.join(path), self.upper.join(path));
                fs::rename(&from, &to).map_err(|error| StoreError::Io {
                    action: "collect",
                    path: from,
                    source: error,
                })?;
                Ok(true)
            }
        }
    }

    /// The directory of the layer that holds `path`.
    fn parent(&mut self, path: &Path) -> Result<OwnedFd, StoreError> {
        let parent = path.parent().unwrap_or(Path::new(""));
        self.directory(parent)?;
        let place = self.upper.join(parent);
        opened(&place).map_err(|error| StoreError::Io { action: "open", path: place, source: error })
    }

    /// Makes a directory of the tree one of the layer, with its parents.
    fn directory(&mut self, path: &Path) -> Result<(), StoreError> {
        let to = self.upper.join(path);
        if path.as_os_str().is_empty() || to.is_dir() {
            return Ok(());
        }
        if let Some(parent) = path.parent() {
            self.directory(parent)?;
        }
        let from = self.tree.root.join(path);
        let make = || -> io::Result<Stat> {
            let stat = status(&from)?.ok_or(Errno::NOENT)?;
            fs::DirBuilder::new().mode(0o700).create(&to)?;
            same_directory(&opened(&from)?, OsStr::new("."), &to, &stat, "user.overlay.opaque")?;
            Ok(stat)
        };
        let stat = make().map_err(|error| StoreError::Io {
            action: "collect",
            path: from.clone(),
            source: error,
        })?;
        self.directories.push((path.to_owned(), stat));
        Ok(())
    }
}

/// Gives a new directory everything of another but its entries, and without overlay's mark.
fn same_directory(from: &OwnedFd, name: &OsStr, to: &Path, stat: &Stat, mark: &str) -> io::Result<()> {
    // Both ends are reached by a name below an open directory.
    let source = rustix::fs::openat(from, name, directory_flags(), Mode::empty())?;
    let own = OsStr::new(".");
    settle((&source, own), (&opened(to)?, own), stat)?;
    if !mark.is_empty() {
        match lremovexattr(to, mark) {
            Ok(()) | Err(Errno::NODATA | Errno::NOTSUP | Errno::PERM) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn opened(path: &Path) -> io::Result<OwnedFd> {
    Ok(open(path, directory_flags(), Mode::empty())?)
}

fn status(path: &Path) -> Result<Option<Stat>, Errno> {
    match statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

fn times(path: &Path, stat: &Stat) -> Result<(), Errno> {
    let time = |seconds, nanoseconds| rustix::fs::Timespec { tv_sec: seconds, tv_nsec: nanoseconds as _ };
    let times = rustix::fs::Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
    };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)
}

fn moment(stat: &Stat) -> Moment {
    (stat.st_ctime, i64::try_from(stat.st_ctime_nsec).unwrap_or(0))
}

/// Whether a status changed last in this time, ends included. Before it: somebody has set the machine's clock back.
fn is_within((first, last): (Moment, Moment), stat: &Stat) -> bool {
    (first..=last).contains(&moment(stat))
}

/// What the file system's clock says; with `after`, once it says more than that.
fn tick(place: &Path, after: Option<Moment>) -> Result<Moment, StoreError> {
    let path = place.join(CLOCK);
    let look = || -> io::Result<Moment> {
        let found = File::create(&path)?.metadata()?;
        fs::remove_file(&path)?;
        Ok((found.ctime(), found.ctime_nsec()))
    };
    for _ in 0..MAX_TICKS {
        let now =
            look().map_err(|error| StoreError::Io { action: "create", path: path.clone(), source: error })?;
        if after.is_none_or(|after| now > after) {
            return Ok(now);
        }
        std::thread::sleep(TICK);
    }
    Err(StoreError::Io {
        action: "wait for the clock of",
        path: place.into(),
        source: io::ErrorKind::TimedOut.into(),
    })
}

#[cfg(test)]
mod tests;
