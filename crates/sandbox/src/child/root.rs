//! Finding and making mount points inside the new root.
//!
//! Works after the root has changed, so no path leads out of it; resolution is still confined and refuses the
//! kernel's magic links. Read [`Root::mount_point`] first.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::stubs::PointKind;

/// Tries of one resolution that others disturb.
const OPEN_RETRY_LIMIT: usize = 64;

/// The kernel's own limit on symbolic links in one path.
const MAX_LINKS: usize = 40;

/// The root directory of the sandbox, seen from inside.
pub(super) struct Root {
    directory: OwnedFd,
    created: Vec<PathBuf>,
}

impl Root {
    pub(super) fn open() -> io::Result<Self> {
        Self::at(Path::new("/"))
    }

    /// A directory that is to be looked at as a root.
    pub(super) fn at(path: &Path) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(path, flags, Mode::empty())?;
        Ok(Self { directory, created: Vec::new() })
    }

    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    /// Mount points made here that were not there before, parents first.
    pub(super) fn created(&self) -> &[PathBuf] {
        &self.created
    }

    /// What is at `path`, symbolic links followed.
    pub(super) fn find(&self, path: &Path) -> rustix::io::Result<OwnedFd> {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        // Whatever is renamed or mounted anywhere on the machine while `..` is resolved makes the kernel unsure.
        for _ in 0..OPEN_RETRY_LIMIT {
            match rustix::fs::openat2(&self.directory, path, flags, Mode::empty(), resolve) {
                Err(Errno::AGAIN) => {}
                found => return found,
            }
        }
        Err(Errno::AGAIN)
    }

    /// What is at `path`, made when missing and remembered in [`created`](Self::created).
    pub(super) fn mount_point(&mut self, path: &Path, kind: PointKind) -> io::Result<OwnedFd> {
        match self.find(path) {
            Err(Errno::NOENT) => self.make(path, kind, true),
            other => Ok(other?),
        }
    }

    /// The directory `path`, made with its parents when missing; it is the image's, not a mount point.
    pub(super) fn make_directory(&mut self, path: &Path) -> io::Result<OwnedFd> {
        self.make(path, PointKind::Directory, false)
    }

    /// Walks `path` as the kernel would, making what is missing, even where a dangling link leads.
    fn make(&mut self, path: &Path, kind: PointKind, remember: bool) -> io::Result<OwnedFd> {
        let mut walk = Walk { at: self.find(Path::new("/"))?, path: PathBuf::from("/"), links: 0 };
        let mut rest: Vec<OsString> = parts(path);
        while let Some(part) = rest.pop() {
            if part == ".." {
                walk.path.pop();
                walk.at = self.find(&walk.path)?;
                continue;
            }
            let kind = if rest.is_empty() { kind } else { PointKind::Directory };
            match walk.link(&part)? {
                Some(target) => {
                    if target.is_absolute() {
                        walk = Walk {
                            at: self.find(Path::new("/"))?,
                            path: PathBuf::from("/"),
                            links: walk.links,
                        };
                    }
                    rest.extend(parts(&target));
                }
                None => {
                    if walk.enter(&part, kind)? && remember {
                        self.created.push(walk.path.clone());
                    }
                }
            }
        }
        Ok(walk.at)
    }
}

/// The parts of a path, last first, `..` kept.
fn parts(path: &Path) -> Vec<OsString> {
    let kept = path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    });
    let mut parts: Vec<OsString> = kept.collect();
    parts.reverse();
    parts
}

/// A place reached without links.
struct Walk {
    at: OwnedFd,
    path: PathBuf,
    links: usize,
}

impl Walk {
    /// Where `name` points if it is a symbolic link.
    fn link(&mut self, name: &OsStr) -> io::Result<Option<PathBuf>> {
        match rustix::fs::statat(&self.at, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error.into()),
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink => Ok(None),
            Ok(_) if self.links == MAX_LINKS => Err(Errno::LOOP.into()),
            Ok(_) => {
                use std::os::unix::ffi::OsStringExt as _;
                self.links += 1;
                let target = rustix::fs::readlinkat(&self.at, name, Vec::new())?;
                Ok(Some(PathBuf::from(OsString::from_vec(target.into_bytes()))))
            }
        }
    }

    /// Goes to `name`, which is no link; true if it had to be made.
    fn enter(&mut self, name: &OsStr, kind: PointKind) -> io::Result<bool> {
        let open = |at: &OwnedFd| {
            rustix::fs::openat(at, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
        };
        let (found, made) = match (open(&self.at), kind) {
            (Err(Errno::NOENT), PointKind::Directory) => {
                rustix::fs::mkdirat(&self.at, name, Mode::from_raw_mode(0o755))?;
                (open(&self.at)?, true)
            }
            (Err(Errno::NOENT), PointKind::File) => {
                let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let file = rustix::fs::openat(&self.at, name, flags, Mode::from_raw_mode(0o644))?;
                drop(file);
                (open(&self.at)?, true)
            }
            (found, _) => (found?, false),
        };
        self.at = found;
        self.path.push(name);
        Ok(made)
    }
}
