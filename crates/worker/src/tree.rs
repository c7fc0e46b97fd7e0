//! A scanned directory tree: names, kinds and status of everything below one directory, without content.
//! Owns the parallel scan by directory descriptors and the pruning by patterns. The same value feeds the
//! content digest and the copy, so that both see one moment. Must not know ops. Read [`Node`] first.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::prelude::*;
use rustix::fs::{FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use stave_store::owner;

use crate::filter::{Filter, FilterState};
use crate::root::{Last, RootDir, names, resolve_with, stat_at};

/// Directories inside directories; a deeper tree could not be named by a path anyway.
const DEPTH_LIMIT: usize = 1024;

/// Entries of one scan.
const ENTRY_LIMIT: usize = 20_000_000;

/// Directories with fewer subdirectories than this are walked by one thread.
const PARALLEL_FROM: usize = 2;

/// One file of a scanned tree.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    /// Name in its directory; empty for the root of a scan.
    pub name: OsString,
    /// Status at the moment of the scan.
    pub meta: Meta,
    /// What it is.
    pub kind: Kind,
    /// False for a directory that is here only because something below it was asked for.
    pub selected: bool,
}

/// What a node is.
#[derive(Debug, Clone)]
pub(crate) enum Kind {
    /// Children sorted by name.
    Directory(Vec<Node>),
    File,
    Symlink(OsString),
    /// A device, FIFO or socket.
    Special,
}

/// Status of a file, as far as it takes part in copies and digests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Meta {
    /// Type and permission bits.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub size: u64,
    /// Seconds and nanoseconds.
    pub mtime: (i64, u32),
    pub ctime: (i64, u32),
    pub dev: u64,
    pub ino: u64,
    pub nlink: u64,
    pub rdev: u64,
}

impl From<&Stat> for Meta {
    // The widths of `stat` fields differ between architectures.
    #[expect(clippy::unnecessary_cast, reason = "field widths differ between architectures")]
    fn from(stat: &Stat) -> Self {
        Self {
            mode: stat.st_mode as u32,
            uid: stat.st_uid,
            gid: stat.st_gid,
            size: u64::try_from(stat.st_size).unwrap_or(0),
            mtime: (stat.st_mtime as i64, stat.st_mtime_nsec as u32),
            ctime: (stat.st_ctime as i64, stat.st_ctime_nsec as u32),
            dev: stat.st_dev as u64,
            ino: stat.st_ino as u64,
            nlink: stat.st_nlink as u64,
            rdev: stat.st_rdev as u64,
        }
    }
}

impl Meta {
    /// The type bits.
    pub(crate) fn file_type(&self) -> FileType {
        FileType::from_raw_mode(self.mode)
    }

    /// Whether this is the file that `scanned` was, unchanged since. Owners and modes are left out: a recorded
    /// owner and a mode in git's model are not in the status, and any change shows in the change time.
    pub(crate) fn is_same_version(&self, scanned: &Self) -> bool {
        Self { uid: scanned.uid, gid: scanned.gid, mode: scanned.mode, ..*self } == *scanned
    }

    /// The lower twelve bits.
    pub(crate) fn permissions(&self) -> u32 {
        self.mode & 0o7777
    }
}

impl Node {
    /// Whether this is a directory.
    pub(crate) fn is_dir(&self) -> bool {
        matches!(self.kind, Kind::Directory(_))
    }

    /// The children, none for anything but a directory.
    pub(crate) fn children(&self) -> &[Self] {
        match &self.kind {
            Kind::Directory(children) => children,
            Kind::File | Kind::Symlink(_) | Kind::Special => &[],
        }
    }

    /// The node at a canonical relative path.
    pub(crate) fn get(&self, path: &Path) -> Option<&Self> {
        path.iter().try_fold(self, |node, name| node.child(name))
    }

    fn child(&self, name: &OsStr) -> Option<&Self> {
        let children = self.children();
        children.binary_search_by(|child| child.name.as_os_str().cmp(name)).ok().map(|at| &children[at])
    }

    /// Resolves symlinks with this tree as root; absent components are kept.
    pub(crate) fn resolve(&self, path: &Path, last: Last) -> io::Result<PathBuf> {
        resolve_with(path, last, |current| match self.get(current).map(|node| &node.kind) {
            Some(Kind::Symlink(target)) => Ok(Some(target.clone())),
            _ => Ok(None),
        })
    }

    /// Number of nodes, this one included.
    pub(crate) fn count(&self) -> usize {
        1 + self.children().iter().map(Self::count).sum::<usize>()
    }

    /// The part of the tree that the filter lets through; `None` when that is nothing. Paths are relative to
    /// this node, which itself is always kept.
    pub(crate) fn prune(&self, filter: &Filter) -> Option<Self> {
        if filter.is_all() {
            return Some(self.clone());
        }
        let mut kept = self.clone_bare();
        if let Kind::Directory(children) = &self.kind {
            let state = FilterState::default();
            let children: Vec<Self> =
                children.iter().filter_map(|child| child.prune_below(filter, "", &state)).collect();
            if children.is_empty() {
                return None;
            }
            kept.kind = Kind::Directory(children);
            kept.selected = false;
        }
        Some(kept)
    }

    fn prune_below(&self, filter: &Filter, parent: &str, state: &FilterState) -> Option<Self> {
        let path = join(parent, &self.name);
        let verdict = filter.judge(&path, self.is_dir(), state);
        let mut kept = self.clone_bare();
        kept.selected = verdict.selected;
        if let Kind::Directory(children) = &self.kind {
            let children: Vec<Self> = if verdict.descend {
                children.iter().filter_map(|child| child.prune_below(filter, &path, &verdict.state)).collect()
            } else {
                Vec::new()
            };
            if !verdict.selected && children.is_empty() {
                return None;
            }
            kept.kind = Kind::Directory(children);
        } else if !verdict.selected {
            return None;
        }
        Some(kept)
    }

    /// A copy without children.
    fn clone_bare(&self) -> Self {
        let kind = match &self.kind {
            Kind::Directory(_) => Kind::Directory(Vec::new()),
            other => other.clone(),
        };
        Self { name: self.name.clone(), meta: self.meta, kind, selected: self.selected }
    }
}

/// Joins a path for pattern matching; names that are not UTF-8 are matched in their lossy form.
pub(crate) fn join(parent: &str, name: &OsStr) -> String {
    let name = name.to_string_lossy();
    if parent.is_empty() { name.into_owned() } else { format!("{parent}/{name}") }
}

/// Scans what is at a canonical path of a root; `None` when nothing is there.
pub(crate) fn scan(root: &RootDir, path: &Path, filter: &Filter) -> io::Result<Option<Node>> {
    let seen = AtomicUsize::new(0);
    Scan { filter, seen: &seen, of_snapshot: false }.at(root, path)
}

/// The same of a snapshot, whose owners may be recorded beside the files.
pub(crate) fn scan_snapshot(root: &RootDir, path: &Path) -> io::Result<Option<Node>> {
    let seen = AtomicUsize::new(0);
    Scan { filter: &Filter::all(), seen: &seen, of_snapshot: true }.at(root, path)
}

struct Scan<'a> {
    filter: &'a Filter,
    seen: &'a AtomicUsize,
    /// Whether owners may be recorded beside the files.
    of_snapshot: bool,
}

/// A directory found while listing its parent, still to be walked.
struct Subdirectory {
    at: usize,
    path: String,
    state: FilterState,
}

impl Scan<'_> {
    fn at(&self, root: &RootDir, path: &Path) -> io::Result<Option<Node>> {
        let Some(name) = path.file_name() else {
            let fd = root.open_at(Path::new(""), OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())?;
            let mut stat = rustix::fs::fstat(&fd)?;
            if self.of_snapshot {
                owner::restore_open(&mut stat, &fd);
            }
            let meta = Meta::from(&stat);
            let children = self.directory(fd, "", &FilterState::default(), 0)?;
            return Ok(Some(Node {
                name: OsString::new(),
                meta,
                kind: Kind::Directory(children),
                selected: true,
            }));
        };
        let parent = match root.entry(path) {
            Ok((parent, _)) => parent,
            Err(error) if crate::root::absent(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        let Some(stat) = self.stat(&parent, name)? else { return Ok(None) };
        let meta = Meta::from(&stat);
        let kind = match meta.file_type() {
            FileType::Directory => {
                let fd = open_directory(parent.as_fd(), name)?;
                Kind::Directory(self.directory(fd, "", &FilterState::default(), 0)?)
            }
            other => leaf_kind(parent.as_fd(), name, other)?,
        };
        Ok(Some(Node { name: name.to_owned(), meta, kind, selected: true }))
    }

    fn stat(&self, directory: impl AsFd, name: &OsStr) -> io::Result<Option<Stat>> {
        let mut stat = stat_at(&directory, name)?;
        if let Some(stat) = stat.as_mut().filter(|_| self.of_snapshot) {
            owner::restore(stat, directory, name);
        }
        Ok(stat)
    }

    fn directory(&self, fd: OwnedFd, path: &str, state: &FilterState, depth: usize) -> io::Result<Vec<Node>> {
        if depth > DEPTH_LIMIT {
            return Err(Errno::NAMETOOLONG.into());
        }
        let names = names(&fd)?;
        if self.seen.fetch_add(names.len(), Ordering::Relaxed) > ENTRY_LIMIT {
            return Err(Errno::NFILE.into());
        }
        let mut nodes = Vec::with_capacity(names.len());
        let mut open = Vec::new();
        for name in names {
            // A file that vanishes between the listing and here was never part of the context.
            let Some(stat) = self.stat(&fd, &name)? else { continue };
            let meta = Meta::from(&stat);
            let is_dir = meta.file_type() == FileType::Directory;
            let child_path = if self.filter.is_all() { String::new() } else { join(path, &name) };
            let verdict = self.filter.judge(&child_path, is_dir, state);
            if is_dir {
                if verdict.descend {
                    open.push(Subdirectory { at: nodes.len(), path: child_path, state: verdict.state });
                } else if !verdict.selected {
                    continue;
                }
            } else if !verdict.selected {
                continue;
            }
            let kind = if is_dir {
                Kind::Directory(Vec::new())
            } else {
                leaf_kind(fd.as_fd(), &name, meta.file_type())?
            };
            nodes.push(Node { name, meta, kind, selected: verdict.selected });
        }
        self.subdirectories(&fd, &mut nodes, open, depth)?;
        nodes.retain(|node| node.selected || !node.children().is_empty());
        Ok(nodes)
    }

    fn subdirectories(
        &self,
        fd: &OwnedFd,
        nodes: &mut [Node],
        open: Vec<Subdirectory>,
        depth: usize,
    ) -> io::Result<()> {
        let walk = |subdirectory: &Subdirectory, nodes: &[Node]| -> io::Result<Vec<Node>> {
            let child = open_directory(fd.as_fd(), &nodes[subdirectory.at].name)?;
            self.directory(child, &subdirectory.path, &subdirectory.state, depth + 1)
        };
        let listed: Vec<io::Result<Vec<Node>>> = if open.len() >= PARALLEL_FROM {
            let nodes = &*nodes;
            open.par_iter().map(|subdirectory| walk(subdirectory, nodes)).collect()
        } else {
            open.iter().map(|subdirectory| walk(subdirectory, nodes)).collect()
        };
        for (subdirectory, children) in open.iter().zip(listed) {
            nodes[subdirectory.at].kind = Kind::Directory(children?);
        }
        Ok(())
    }
}

/// Opens a name as a directory to list; never through a symlink.
pub(crate) fn open_directory(parent: BorrowedFd<'_>, name: &OsStr) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(parent, name, flags, Mode::empty())?)
}

fn leaf_kind(parent: BorrowedFd<'_>, name: &OsStr, file_type: FileType) -> io::Result<Kind> {
    Ok(match file_type {
        FileType::RegularFile => Kind::File,
        FileType::Symlink => {
            let target = rustix::fs::readlinkat(parent, name, Vec::new())?;
            Kind::Symlink(OsString::from_vec(target.into_bytes()))
        }
        _ => Kind::Special,
    })
}
