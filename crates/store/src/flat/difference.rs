//! What one snapshot has that another lacks, as a layer: for snapshots that are not built on each other.
//!
//! Owns what counts as a difference: kind, mode, owner, size, time, target or device, and the path's being there at all.
//! Of two files that agree in all of it the content is not read, as BuildKit does not. Names of one file in several
//! places become files of their own. Start with [`Store::difference`].

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Stat};

use super::{opened, same_directory, times};
use crate::transplant::copy_entry;
use crate::view::MergedEntry;
use crate::{MergedView, Snapshot, Store, StoreError, owner};

/// The mark of overlay's that is about layers and not about files.
const OPAQUE: &str = "user.overlay.opaque";

impl Store {
    /// Writes what `upper` has and `lower` lacks to `place`, an empty layer, with marks for what is gone. Blocks.
    ///
    /// # Errors
    /// When a snapshot cannot be read or the layer not be written.
    pub fn difference(&self, lower: &Snapshot, upper: &Snapshot, place: &Path) -> Result<(), StoreError> {
        let (lower, upper) = (self.view(lower)?, self.view(upper)?);
        let mut layer = Difference { lower, upper, place, directories: Vec::new() };
        layer.level(Path::new(""))?;
        for (path, stat) in layer.directories.iter().rev() {
            let path = place.join(path);
            times(&path, stat).map_err(|error| StoreError::io("set the time of", &path, error))?;
        }
        Ok(())
    }
}

struct Difference<'a> {
    lower: MergedView,
    upper: MergedView,
    place: &'a Path,
    /// Directories in the layer, parents first.
    directories: Vec<(PathBuf, Stat)>,
}

impl Difference<'_> {
    /// A directory that both have.
    fn level(&mut self, path: &Path) -> Result<(), StoreError> {
        let mut names: BTreeSet<_> = self.upper.read_dir(path)?.unwrap_or_default().into_iter().collect();
        names.extend(self.lower.read_dir(path)?.unwrap_or_default());
        for name in names {
            self.name(&path.join(name))?;
        }
        Ok(())
    }

    fn name(&mut self, path: &Path) -> Result<(), StoreError> {
        let is_directory = |entry: &MergedEntry| entry.file_type() == FileType::Directory;
        match (self.lower.symlink_metadata(path)?, self.upper.symlink_metadata(path)?) {
            (_, None) => {
                let parent = self.parent(path)?;
                let made = owner::make_whiteout(&parent, path.file_name().unwrap_or_default());
                made.map_err(|error| StoreError::io("mark", path, error))
            }
            (Some(lower), Some(upper)) if is_directory(&lower) && is_directory(&upper) => {
                if !same(&lower, &upper)? {
                    self.directory(path)?;
                }
                self.level(path)
            }
            (Some(lower), Some(upper)) if same(&lower, &upper)? => Ok(()),
            (_, Some(upper)) if is_directory(&upper) => {
                self.directory(path)?;
                self.whole(path)
            }
            (_, Some(upper)) => self.file(path, &upper),
        }
    }

    /// Everything of a directory that only the upper one has.
    fn whole(&mut self, path: &Path) -> Result<(), StoreError> {
        for name in self.upper.read_dir(path)?.unwrap_or_default() {
            let path = path.join(name);
            let Some(entry) = self.upper.symlink_metadata(&path)? else { continue };
            if entry.file_type() == FileType::Directory {
                self.directory(&path)?;
                self.whole(&path)?;
            } else {
                self.file(&path, &entry)?;
            }
        }
        Ok(())
    }

    fn file(&mut self, path: &Path, entry: &MergedEntry) -> Result<(), StoreError> {
        let parent = self.parent(path)?;
        let name = path.file_name().unwrap_or_default();
        copy_entry(entry.place(), (&parent, name), entry.stat()).map_err(|error| failed(path, error))
    }

    /// The directory of the layer that holds `path`.
    fn parent(&mut self, path: &Path) -> Result<OwnedFd, StoreError> {
        let parent = path.parent().unwrap_or(Path::new(""));
        self.directory(parent)?;
        opened(&self.place.join(parent)).map_err(|error| failed(parent, error))
    }

    /// Makes a directory of the upper one a directory of the layer, with its parents.
    fn directory(&mut self, path: &Path) -> Result<(), StoreError> {
        let to = self.place.join(path);
        if path.as_os_str().is_empty() || to.is_dir() {
            return Ok(());
        }
        if let Some(parent) = path.parent() {
            self.directory(parent)?;
        }
        let Some(entry) = self.upper.symlink_metadata(path)? else { return Ok(()) };
        let make = || -> io::Result<()> {
            fs::DirBuilder::new().mode(0o700).create(&to)?;
            let from = entry.place();
            same_directory(from.0, from.1, &to, entry.stat(), OPAQUE)
        };
        make().map_err(|error| failed(path, error))?;
        self.directories.push((path.to_owned(), *entry.stat()));
        Ok(())
    }
}

fn failed(path: &Path, source: io::Error) -> StoreError {
    StoreError::Io { action: "compare", path: path.to_owned(), source }
}

/// Whether two entries of one path are the same.
fn same(one: &MergedEntry, other: &MergedEntry) -> Result<bool, StoreError> {
    let (a, b) = (one.stat(), other.stat());
    let kind = one.file_type();
    if (a.st_mode, a.st_uid, a.st_gid) != (b.st_mode, b.st_uid, b.st_gid) {
        return Ok(false);
    }
    if kind == FileType::Symlink {
        return Ok(one.read_link()? == other.read_link()?);
    }
    let plain = |entry: &MergedEntry| -> Result<BTreeSet<_>, StoreError> {
        let all = entry.xattrs()?.into_iter();
        Ok(all.filter(|(name, _)| name != OsStr::new(OPAQUE)).collect())
    };
    let is_device = matches!(kind, FileType::BlockDevice | FileType::CharacterDevice);
    Ok((kind != FileType::RegularFile || a.st_size == b.st_size)
        && (kind == FileType::Directory || one.mtime() == other.mtime())
        && (!is_device || a.st_rdev == b.st_rdev)
        && plain(one)? == plain(other)?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn layer(store: &Store, base: &Snapshot, write: impl FnOnce(&Path)) -> Snapshot {
        let active = store.prepare(base).expect("a layer");
        write(active.upper());
        active.commit().expect("a snapshot")
    }

    fn write(path: &Path, text: &str) {
        fs::write(path, text).expect("writes");
        let time = fs::FileTimes::new().set_modified(std::time::SystemTime::UNIX_EPOCH);
        fs::File::options().write(true).open(path).and_then(|file| file.set_times(time)).expect("a time");
    }

    #[test]
    fn a_difference_laid_over_the_lower_one_is_the_upper_one() {
        let place = tempfile::tempdir_in("/var/tmp").expect("a directory");
        let store = Store::open(&place.path().join("state")).expect("a store");
        let lower = layer(&store, &Snapshot::scratch(), |root| {
            for name in ["same", "changed", "gone"] {
                write(&root.join(name), "1");
            }
            fs::create_dir_all(root.join("d/deep")).expect("a directory");
            write(&root.join("d/deep/gone"), "1");
            fs::create_dir(root.join("file")).expect("a directory");
        });
        let upper = layer(&store, &Snapshot::scratch(), |root| {
            write(&root.join("same"), "1");
            write(&root.join("changed"), "22");
            fs::create_dir_all(root.join("d/deep")).expect("a directory");
            write(&root.join("d/deep/new"), "3");
            write(&root.join("file"), "4");
            symlink("same", root.join("link")).expect("a link");
        });
        let difference = layer(&store, &Snapshot::scratch(), |root| {
            store.difference(&lower, &upper, root).expect("is made");
            assert!(!root.join("same").exists(), "it is in both");
            assert_eq!(fs::read(root.join("changed")).expect("is there"), b"22");
        });
        let both = Snapshot::new(lower.layers().iter().chain(difference.layers()).copied().collect());
        let names = |snapshot: &Snapshot| -> Vec<(PathBuf, u64)> {
            let view = store.view(snapshot).expect("a view");
            let entries = view.walk().map(|entry| entry.expect("an entry"));
            let size = |entry: &MergedEntry| match entry.file_type() {
                FileType::RegularFile => u64::try_from(entry.stat().st_size).expect("a size"),
                _ => 0,
            };
            entries.map(|entry| (entry.path().to_owned(), size(&entry))).collect()
        };
        assert_eq!(names(&both), names(&upper));
        let nothing = layer(&store, &Snapshot::scratch(), |root| {
            store.difference(&upper, &upper, root).expect("is made");
            assert_eq!(fs::read_dir(root).expect("is there").count(), 0);
        });
        assert_eq!(nothing.layers().len(), 1);
    }
}
