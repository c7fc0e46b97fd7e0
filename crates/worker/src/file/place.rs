//! Creating and removing entries inside a root: directories with their owner and time, whole trees gone.
//! Every name is reached from an open parent directory, never by a joined string. Must not know definitions.
//! Read [`Stamp`] first.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, Timespec, Timestamps};
use rustix::io::Errno;
use stave_store::owner;

use crate::root::{At as _, IoAt, RootDir, stat_at};
use crate::tree::open_directory;

/// Directories created on the way to a destination.
pub(crate) const PARENT_MODE: u32 = 0o755;

/// Depth of a tree that can be removed.
const DEPTH_LIMIT: usize = 4096;

/// Seconds and nanoseconds since the epoch.
pub(crate) type Time = (i64, u32);

/// Owner and time given to what an action creates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp {
    /// Numeric owner; root when the definition names none.
    pub owner: Option<(u32, u32)>,
    /// Access and modification time; now when the definition names none.
    pub time: Option<Time>,
}

impl Stamp {
    /// Stamps an open file or directory that was just created with `mode`.
    pub(crate) fn apply(&self, fd: impl AsFd, mode: u32) -> io::Result<()> {
        let (uid, gid) = self.owner.unwrap_or((0, 0));
        // Looking is cheaper than changing, and most files are made as they shall be.
        let made = rustix::fs::fstat(&fd)?;
        // A record of another owner cannot be seen in the status.
        let is_owned = (made.st_uid, made.st_gid) == (uid, gid) && !owner::may_be_recorded();
        if !is_owned {
            owner::give(&fd, uid, gid)?;
        }
        // After chown, which clears set-id bits; and explicitly, because of this process's umask.
        if !is_owned || made.st_mode & 0o7777 != mode & 0o7777 {
            rustix::fs::fchmod(&fd, Mode::from_raw_mode(mode & 0o7777))?;
        }
        if let Some(time) = self.time {
            rustix::fs::futimens(&fd, &times(time))?;
        }
        Ok(())
    }

    /// Stamps a name that cannot be opened (symlink, device).
    pub(crate) fn apply_at(&self, parent: impl AsFd, name: &OsStr) -> io::Result<()> {
        let (uid, gid) = self.owner.unwrap_or((0, 0));
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        owner::give_at(&parent, name, uid, gid)?;
        if let Some(time) = self.time {
            rustix::fs::utimensat(&parent, name, &times(time), flags)?;
        }
        Ok(())
    }
}

/// The same moment for access and modification.
pub(crate) fn times((seconds, nanoseconds): Time) -> Timestamps {
    let moment = Timespec { tv_sec: seconds, tv_nsec: nanoseconds.into() };
    Timestamps { last_access: moment, last_modification: moment }
}

/// Makes sure that every directory of a canonical path exists; new ones get `mode` and the stamp.
pub(crate) fn create_directories(root: &RootDir, path: &Path, mode: u32, stamp: &Stamp) -> Result<(), IoAt> {
    if root.directory(path).is_ok() {
        return Ok(());
    }
    let mut prefix = PathBuf::new();
    for name in path {
        prefix.push(name);
        create_directory(root, &prefix, mode, stamp)?;
    }
    Ok(())
}

/// Creates one directory; true if it was not there. Anything else in its place is an error.
pub(crate) fn create_directory(root: &RootDir, path: &Path, mode: u32, stamp: &Stamp) -> Result<bool, IoAt> {
    let create = || -> io::Result<bool> {
        let (parent, name) = match root.entry(path) {
            Err(error) if Errno::from_io_error(&error) == Some(Errno::BUSY) => return Ok(false),
            other => other?,
        };
        match stat_at(&parent, name)? {
            Some(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => return Ok(false),
            Some(_) => return Err(Errno::NOTDIR.into()),
            None => {}
        }
        rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o700))?;
        stamp.apply(open_directory(parent.as_fd(), name)?, mode)?;
        Ok(true)
    };
    create().at("creating directory", path)
}

/// Removes a name and everything below it; symlinks are removed, not followed. Absent is fine.
pub(crate) fn remove_all(parent: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
    if unlink(parent, name)? {
        return Ok(());
    }
    // A stack of its own: how deep a hostile tree goes must not decide how deep this program calls.
    let mut open = vec![Emptying::start(parent, name)?];
    while let Some(innermost) = open.last_mut() {
        let Some(child) = innermost.children.pop() else {
            let name = std::mem::take(&mut innermost.name);
            open.pop();
            let parent = open.last().map_or(parent, |outer| outer.directory.as_fd());
            rustix::fs::unlinkat(parent, &name, AtFlags::REMOVEDIR)?;
            continue;
        };
        if !unlink(innermost.directory.as_fd(), &child)? {
            let inner = Emptying::start(innermost.directory.as_fd(), &child)?;
            if open.len() > DEPTH_LIMIT {
                return Err(Errno::NAMETOOLONG.into());
            }
            open.push(inner);
        }
    }
    Ok(())
}

/// A directory on its way out.
struct Emptying {
    name: OsString,
    directory: OwnedFd,
    children: Vec<OsString>,
}

impl Emptying {
    fn start(parent: BorrowedFd<'_>, name: &OsStr) -> io::Result<Self> {
        let directory: OwnedFd = open_directory(parent, name)?;
        let children = RootDir::from_fd(directory.try_clone()?).list(Path::new(""))?;
        Ok(Self { name: name.to_owned(), directory, children })
    }
}

/// Removes what is no directory; false for one.
fn unlink(parent: BorrowedFd<'_>, name: &OsStr) -> io::Result<bool> {
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(true),
        Err(Errno::ISDIR | Errno::PERM) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt as _, symlink};

    const STAMP: Stamp = Stamp { owner: None, time: Some((1000, 5)) };

    #[test]
    fn creates_only_what_is_missing() {
        let directory = tempfile::tempdir().expect("tempdir");
        std::fs::create_dir(directory.path().join("a")).expect("mkdir");
        let root = RootDir::open(directory.path()).expect("root");
        create_directories(&root, Path::new("a/b/c"), 0o2775, &STAMP).expect("create");
        let status = std::fs::metadata(directory.path().join("a/b/c")).expect("stat");
        assert_eq!((status.mode() & 0o7777, status.mtime()), (0o2775, 1000));
        assert_ne!(std::fs::metadata(directory.path().join("a")).expect("stat").mtime(), 1000);
        std::fs::write(directory.path().join("file"), "").expect("write");
        assert!(create_directories(&root, Path::new("file/x"), 0o755, &STAMP).is_err());
    }

    #[test]
    fn a_deep_tree_is_removed_on_a_small_stack() {
        let directory = tempfile::tempdir().expect("tempdir");
        let root = RootDir::open(directory.path()).expect("root");
        let mut inner: OwnedFd = root.fd().try_clone_to_owned().expect("dup");
        for _ in 0..300 {
            rustix::fs::mkdirat(&inner, "d", Mode::from_raw_mode(0o755)).expect("mkdir");
            rustix::fs::mkdirat(&inner, "side", Mode::from_raw_mode(0o755)).expect("mkdir");
            inner = open_directory(inner.as_fd(), OsStr::new("d")).expect("open");
        }
        drop(inner);
        let path = directory.path().to_owned();
        let thread = std::thread::Builder::new().stack_size(96 << 10).spawn(move || {
            let root = RootDir::open(&path).expect("root");
            remove_all(root.fd(), OsStr::new("d"))
        });
        thread.expect("spawns").join().expect("no overflow").expect("removes");
        assert!(!directory.path().join("d").exists());
    }

    #[test]
    fn removal_does_not_follow_symlinks() {
        let directory = tempfile::tempdir().expect("tempdir");
        let outside = tempfile::tempdir().expect("tempdir");
        std::fs::write(outside.path().join("keep"), "x").expect("write");
        std::fs::create_dir_all(directory.path().join("gone/deep/er")).expect("mkdir");
        symlink(outside.path(), directory.path().join("gone/link")).expect("symlink");
        let root = RootDir::open(directory.path()).expect("root");
        remove_all(root.fd(), OsStr::new("gone")).expect("remove");
        remove_all(root.fd(), OsStr::new("gone")).expect("absent is fine");
        assert!(outside.path().join("keep").exists());
        assert!(!directory.path().join("gone").exists());
    }
}
