//! A tree that becomes the merged files of other layers: what is the same stays, the rest is copied anew.
//!
//! Owns what of a used tree may stay: a file that is the one copied for this path and has not changed since, of a source
//! that is the same file of the same layer. Everything else of what a step did is removed, whatever it is. Looking at all
//! files costs a twentieth of copying them. Nothing may run in the tree any more. Start with [`FlatTree::refit`].

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Stat, StatxFlags, llistxattr, lremovexattr, statx};
use rustix::io::Errno;

use super::{FlatTree, Known, Moment, Taking, is_within, opened, status, tick};
use crate::removal::remove_tree;
use crate::{Store, StoreError};

/// Bytes of a list of attributes' names (the kernel's `XATTR_LIST_MAX`).
const NAMES: usize = 64 << 10;

/// A file of a layer, which is never written: its device, inode and birth, since inodes of removed layers come again. Its
/// change time says no more, and changes with each second name; it stands in where births are not recorded.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Source {
    device: (u32, u32),
    inode: u64,
    born: (i64, u32),
    size: u64,
    modified: (i64, u32),
}

impl Source {
    /// The source `name` in a directory of a layer.
    pub(super) fn of(from: &OwnedFd, name: &OsStr) -> Result<Self, Errno> {
        let wanted = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
        let found = statx(from, name, AtFlags::SYMLINK_NOFOLLOW, wanted)?;
        let has_birth = found.stx_mask & StatxFlags::BTIME.bits() != 0;
        let born = if has_birth { found.stx_btime } else { found.stx_ctime };
        Ok(Self {
            device: (found.stx_dev_major, found.stx_dev_minor),
            inode: found.stx_ino,
            born: (born.tv_sec, born.tv_nsec),
            size: found.stx_size,
            modified: (found.stx_mtime.tv_sec, found.stx_mtime.tv_nsec),
        })
    }
}

/// What a tree was before it is filled.
#[derive(Debug)]
pub(super) struct Before {
    known: HashMap<PathBuf, Known>,
    made: (Moment, Moment),
}

/// What there is of a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum There {
    /// None.
    Nothing,
    /// A directory that somebody changed, or of another source: only its place is right. Its attributes are gone.
    Other,
    /// The directory, as it was made.
    Same,
}

impl Before {
    /// A tree that is empty.
    pub(super) fn nothing(now: Moment) -> Self {
        Self { known: HashMap::new(), made: (now, now) }
    }

    fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    /// The inode that was made for a path.
    pub(super) fn inode(&self, path: &Path) -> Option<u64> {
        self.known.get(path).map(|known| known.inode)
    }

    /// Whether `now` is what was made at `path` of `source`, unchanged.
    fn is_same(&self, path: &Path, now: &Stat, source: &Source) -> bool {
        let made = |known: &Known| known.inode == now.st_ino && !known.linked && known.source == *source;
        self.known.get(path).is_some_and(made) && is_within(self.made, now)
    }

    /// Whether the file at `place` stays; if not, nothing is there any more.
    pub(super) fn keeps_file(&self, path: &Path, place: &Path, source: &Source) -> io::Result<bool> {
        if self.is_empty() {
            return Ok(false);
        }
        let Some(now) = status(place)? else { return Ok(false) };
        if self.is_same(path, &now, source) {
            return Ok(true);
        }
        remove_tree(place)?;
        Ok(false)
    }

    /// What there is of a directory at `place`; if it is something else, nothing is there any more.
    pub(super) fn directory(&self, path: &Path, place: &Path, source: &Source) -> io::Result<There> {
        if self.is_empty() {
            return Ok(There::Nothing);
        }
        let Some(now) = status(place)? else { return Ok(There::Nothing) };
        if FileType::from_raw_mode(now.st_mode) != FileType::Directory {
            remove_tree(place)?;
            return Ok(There::Nothing);
        }
        if self.is_same(path, &now, source) {
            return Ok(There::Same);
        }
        strip(place)?;
        Ok(There::Other)
    }

    /// Removes every name in the tree that is none of the layers'.
    pub(super) fn prune(
        &self,
        root: &Path,
        directories: &[(PathBuf, Stat)],
        is: &HashSet<&Path>,
    ) -> io::Result<()> {
        if self.is_empty() {
            return Ok(());
        }
        for (directory, _) in directories {
            let place = root.join(directory);
            for name in crate::diff::sorted_names(&opened(&place)?)? {
                if !is.contains(directory.join(&name).as_path()) {
                    remove_tree(&place.join(&name))?;
                }
            }
        }
        Ok(())
    }
}

/// Takes every attribute from a directory: those of a step are not those of the next.
fn strip(place: &Path) -> io::Result<()> {
    let mut names = vec![0_u8; NAMES];
    let length = match llistxattr(place, &mut names) {
        Ok(length) => length,
        Err(Errno::NOTSUP) => 0,
        Err(error) => return Err(error.into()),
    };
    for name in names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        use std::os::unix::ffi::OsStrExt as _;
        match lremovexattr(place, OsStr::from_bytes(name)) {
            // A label of the machine's own, which every file there has.
            Ok(()) | Err(Errno::NODATA | Errno::NOTSUP) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

impl FlatTree {
    /// How many layers at the bottom are those of this tree.
    #[must_use]
    pub fn in_common(&self, layers: &[PathBuf]) -> usize {
        self.layers.iter().rev().zip(layers.iter().rev()).take_while(|(own, other)| own == other).count()
    }

    /// Moves it, used or not, to `place`, which does not exist, on the same file system.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn move_to(&mut self, place: PathBuf) -> Result<(), StoreError> {
        fs::rename(&self.place, &place).map_err(|error| StoreError::io("move", &place, error))?;
        self.root = place.join("root");
        self.place = place;
        Ok(())
    }

    /// Makes it the merged files of `layers` (top first) in `place`, whatever was done to it or collected from it. Blocks as
    /// long as copying takes what is not the same.
    ///
    /// # Errors
    /// When a layer cannot be read or the tree not be written: it is removed then.
    pub fn refit(mut self, store: &Store, layers: &[PathBuf], place: PathBuf) -> Result<Self, StoreError> {
        self.view = store.view_of(layers)?;
        self.layers = layers.to_vec();
        self.move_to(place)?;
        let before = Before { known: std::mem::take(&mut self.known), made: self.made };
        self.fill(Taking::Copies, store.inner.config.xattrs.opaque(), &before)?;
        let copied = tick(&self.place, None)?;
        // What stayed was made in the first of these times.
        self.made = (before.made.0, copied);
        tick(&self.place, Some(copied))?;
        Ok(self)
    }
}
