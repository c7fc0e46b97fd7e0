//! Copies a scanned tree into a root: BuildKit's rules for what replaces what, and all that a file carries.
//! Owns hard links, devices, owners, modes, times and attributes, and that directories are copied beside each
//! other; the bytes are [`content`]'s. Must not know definitions, wildcards or where the tree came from.
//! Read [`Copier`] first.

mod content;

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use rayon::prelude::*;
use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;
use stave_store::LayerRoom;
use tokio_util::sync::CancellationToken;

use super::place::{Stamp, Time, remove_all};
use super::reuse::{Making, Places, Reuse};
use crate::digest::Owners;
use crate::mode::ModeChange;
use crate::root::{At as _, IoAt, RootDir, stat_at};
use crate::tree::{Kind, Meta, Node, open_directory};
use crate::xattr;

/// Directories with fewer subdirectories than this are copied by one thread.
const PARALLEL_FROM: usize = 2;

/// What a copy changes on the way.
#[derive(Debug, Clone)]
pub(crate) struct CopyRules {
    /// Numeric owner for everything, instead of the source's.
    pub owner: Option<(u32, u32)>,
    /// Change of the permission bits (not of symlinks).
    pub mode: ModeChange,
    /// One time for everything, instead of the source's.
    pub time: Option<Time>,
    /// Remove whatever is in the way, even a directory.
    pub replace: bool,
    /// Directories that exist already keep their metadata even below the top one.
    pub keep_directories: bool,
}

/// Why a copy stopped.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The operating system refused.
    #[error(transparent)]
    Io(#[from] IoAt),
    /// A directory cannot take the place of a file.
    #[error("cannot copy to non-directory: `/{}`", .0.display())]
    ToNonDirectory(PathBuf),
    /// A file cannot take the place of a directory.
    #[error("cannot replace to directory `/{}` with file", .0.display())]
    OverDirectory(PathBuf),
    /// A 0:0 character device means "deleted" in a layer.
    #[error("`/{}` is a 0:0 character device, which a layer cannot hold", .0.display())]
    Whiteout(PathBuf),
    /// The build was cancelled.
    #[error("cancelled")]
    Cancelled,
}

/// One copy operation; hard links among the files it copies stay hard links.
pub(crate) struct Copier<'a> {
    source: &'a RootDir,
    destination: &'a RootDir,
    owners: Owners,
    rules: &'a CopyRules,
    cancel: &'a CancellationToken,
    /// The source's times are a build context's.
    is_context: bool,
    reuse: Option<&'a Reuse>,
    room: Option<&'a LayerRoom>,
    /// The first place of every file with several names; locked until the file is there.
    links: Mutex<HashMap<(u64, u64), PathBuf>>,
    changed: AtomicBool,
}

/// An entry to create: the open parent, the name in it, and the canonical path for messages and links.
struct Slot<'s> {
    parent: BorrowedFd<'s>,
    name: &'s OsStr,
    path: &'s Path,
    /// The parent was made by this copy, so nothing can be in the way.
    is_free: bool,
    /// The parent in the layer that is made and in an earlier one, if there files can be linked.
    places: Option<&'s Places>,
}

/// A directory being written: open, its canonical path, and whether this copy made it.
struct Into<'s> {
    fd: &'s OwnedFd,
    path: &'s Path,
    created: bool,
    places: Option<Places>,
}

impl<'a> Copier<'a> {
    /// Prepares a copy between two roots.
    pub(crate) fn new(
        source: &'a RootDir,
        destination: &'a RootDir,
        owners: Owners,
        rules: &'a CopyRules,
        cancel: &'a CancellationToken,
    ) -> Self {
        Self {
            source,
            destination,
            owners,
            rules,
            cancel,
            is_context: false,
            reuse: None,
            room: None,
            links: Mutex::default(),
            changed: AtomicBool::new(false),
        }
    }

    /// The same; with `is_context` the times it takes over are marked as those of a build context.
    pub(crate) fn of_context(self, is_context: bool) -> Self {
        Self { is_context, ..self }
    }

    /// The same, with files of an earlier copy at hand.
    pub(crate) fn with_reuse(self, reuse: Option<&'a Reuse>) -> Self {
        Self { reuse, ..self }
    }

    /// The same, asking for room before each file.
    pub(crate) fn with_room(self, room: Option<&'a LayerRoom>) -> Self {
        Self { room, ..self }
    }

    /// Whether some source file was no longer what the scan saw: the result must not be cached.
    pub(crate) fn source_changed(&self) -> bool {
        self.changed.load(Ordering::Relaxed)
    }

    /// Copies the node at canonical path `from` to canonical path `to`, whose parent exists. The root itself can
    /// only be the destination of a directory.
    pub(crate) fn copy(&self, node: &Node, from: &Path, to: &Path) -> Result<(), CopyError> {
        if to.as_os_str().is_empty() {
            return self.contents_of_root(node, from);
        }
        let (parent, name) = self.destination.entry(to).at("opening the parent of", to)?;
        let slot = Slot { parent: parent.as_fd(), name, path: to, is_free: false, places: None };
        if node.is_dir() {
            let directory = self.source.open_at(from, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty());
            return self.directory(node, directory.at("opening", from)?, &slot, true);
        }
        let source = self.source.directory(from.parent().unwrap_or(Path::new(""))).at("opening", from)?;
        self.leaf(node, source.as_fd(), from, &slot)
    }

    fn contents_of_root(&self, node: &Node, from: &Path) -> Result<(), CopyError> {
        if !node.is_dir() {
            return Err(CopyError::OverDirectory(PathBuf::new()));
        }
        let source = self.source.open_at(from, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty());
        let source = source.at("opening", from)?;
        let into = self.destination.open_at(Path::new(""), OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty());
        let into = into.at("opening", Path::new("/"))?;
        self.children(node, &source, &Into { fd: &into, path: Path::new(""), created: false, places: None })
    }

    fn directory(&self, node: &Node, from: OwnedFd, slot: &Slot<'_>, top: bool) -> Result<(), CopyError> {
        let existing =
            if slot.is_free { None } else { stat_at(slot.parent, slot.name).at("looking at", slot.path)? };
        let mut created = false;
        match existing.map(|stat| FileType::from_raw_mode(stat.st_mode)) {
            Some(FileType::Directory) => {}
            Some(_) if !self.rules.replace => return Err(CopyError::ToNonDirectory(slot.path.to_owned())),
            other => {
                if other.is_some() {
                    self.reuse.inspect(|reuse| reuse.spoil());
                    remove_all(slot.parent, slot.name).at("removing", slot.path)?;
                }
                let mode = Mode::from_raw_mode(0o700);
                rustix::fs::mkdirat(slot.parent, slot.name, mode).at("creating directory", slot.path)?;
                created = true;
            }
        }
        let into = open_directory(slot.parent, slot.name).at("opening", slot.path)?;
        let places = self.reuse.filter(|_| created).and_then(|reuse| reuse.places(slot.path));
        self.children(node, &from, &Into { fd: &into, path: slot.path, created, places })?;
        if created || (node.selected && !top && !self.rules.keep_directories) {
            self.finish(node, &from, &into).at("setting metadata of", slot.path)?;
        }
        Ok(())
    }

    fn children(&self, node: &Node, from: &OwnedFd, into: &Into<'_>) -> Result<(), CopyError> {
        let mut directories = Vec::new();
        for child in node.children() {
            if child.is_dir() {
                directories.push(child);
            } else {
                self.child(child, from, into)?;
            }
        }
        if directories.len() < PARALLEL_FROM {
            return directories.into_iter().try_for_each(|child| self.child(child, from, into));
        }
        // Collected, so that of several errors the first is told.
        let copied: Vec<_> = directories.into_par_iter().map(|child| self.child(child, from, into)).collect();
        copied.into_iter().collect()
    }

    fn child(&self, child: &Node, from: &OwnedFd, into: &Into<'_>) -> Result<(), CopyError> {
        if self.cancel.is_cancelled() {
            return Err(CopyError::Cancelled);
        }
        let path = into.path.join(&child.name);
        let (parent, places) = (into.fd.as_fd(), into.places.as_ref());
        let slot = Slot { parent, name: &child.name, path: &path, is_free: into.created, places };
        if child.is_dir() {
            let directory = open_directory(from.as_fd(), &child.name).at("opening", &path)?;
            self.directory(child, directory, &slot, false)
        } else {
            self.leaf(child, from.as_fd(), Path::new(&child.name), &slot)
        }
    }

    fn leaf(
        &self,
        node: &Node,
        from: BorrowedFd<'_>,
        from_path: &Path,
        slot: &Slot<'_>,
    ) -> Result<(), CopyError> {
        if !slot.is_free {
            self.make_room(slot)?;
        }
        let name = from_path.file_name().unwrap_or_default();
        match &node.kind {
            Kind::File => self.file(node, from, name, slot),
            Kind::Symlink(target) => {
                rustix::fs::symlinkat(target.as_os_str(), slot.parent, slot.name)
                    .at("creating symlink", slot.path)?;
                Ok(self
                    .stamp(&node.meta)
                    .apply_at(slot.parent, slot.name)
                    .at("setting metadata of", slot.path)?)
            }
            Kind::Special | Kind::Directory(_) => self.special(node, slot),
        }
    }

    /// Removes what is in the way of a file.
    fn make_room(&self, slot: &Slot<'_>) -> Result<(), CopyError> {
        let Some(stat) = stat_at(slot.parent, slot.name).at("looking at", slot.path)? else { return Ok(()) };
        self.reuse.inspect(|reuse| reuse.spoil());
        if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
            rustix::fs::unlinkat(slot.parent, slot.name, AtFlags::empty()).at("replacing", slot.path)?;
        } else if self.rules.replace {
            remove_all(slot.parent, slot.name).at("removing", slot.path)?;
        } else {
            return Err(CopyError::OverDirectory(slot.path.to_owned()));
        }
        Ok(())
    }

    fn file(
        &self,
        node: &Node,
        from: BorrowedFd<'_>,
        name: &OsStr,
        slot: &Slot<'_>,
    ) -> Result<(), CopyError> {
        if node.meta.nlink < 2 {
            let making = self.making(node, slot);
            let (Some(reuse), Some(places)) = (self.reuse, slot.places) else {
                return Ok(self.transfer(node, from, name, slot).at("copying", slot.path)?);
            };
            if !reuse.link(&making, places, slot.name) {
                self.transfer(node, from, name, slot).at("copying", slot.path)?;
            }
            return Ok(());
        }
        let identity = (node.meta.dev, node.meta.ino);
        let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(first) = links.get(&identity) {
            let (parent, first_name) = self.destination.entry(first).at("opening", first)?;
            let linked = rustix::fs::linkat(&parent, first_name, slot.parent, slot.name, AtFlags::empty());
            return Ok(linked.at("linking", slot.path)?);
        }
        self.transfer(node, from, name, slot).at("copying", slot.path)?;
        links.insert(identity, slot.path.to_owned());
        Ok(())
    }

    fn transfer(&self, node: &Node, from: BorrowedFd<'_>, name: &OsStr, slot: &Slot<'_>) -> io::Result<()> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let source = rustix::fs::openat(from, name, flags, Mode::empty())?;
        let before = rustix::fs::fstat(&source)?;
        if FileType::from_raw_mode(before.st_mode) != FileType::RegularFile {
            return Err(Errno::STALE.into());
        }
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        // Nobody else can see into a layer that is being made. Set-id bits come last.
        let mode = Mode::from_raw_mode(self.rules.mode.apply(node.meta.mode, false) & 0o777);
        let target = rustix::fs::openat(slot.parent, slot.name, flags, mode)?;
        let size = u64::try_from(before.st_size).unwrap_or(0);
        let allocated = u64::try_from(before.st_blocks).unwrap_or(0).saturating_mul(512);
        if let Some(room) = self.room {
            room.take(allocated.min(size)).map_err(io::Error::other)?;
        }
        content::copy(&source, &target, size, allocated)?;
        self.finish(node, &source, &target)?;
        if !Meta::from(&rustix::fs::fstat(&source)?).is_same_version(&node.meta) {
            self.changed.store(true, Ordering::Relaxed);
        } else if let Some(reuse) = self.reuse.filter(|_| slot.is_free && node.meta.nlink < 2) {
            reuse.note(&self.making(node, slot));
        }
        Ok(())
    }

    fn making<'n>(&self, node: &'n Node, slot: &Slot<'n>) -> Making<'n> {
        let stamp = self.stamp(&node.meta);
        Making {
            place: slot.path,
            source: &node.meta,
            mode: self.rules.mode.apply(node.meta.mode, false),
            owner: stamp.owner,
            time: stamp.time,
        }
    }

    fn special(&self, node: &Node, slot: &Slot<'_>) -> Result<(), CopyError> {
        let file_type = node.meta.file_type();
        if file_type == FileType::CharacterDevice && node.meta.rdev == 0 {
            return Err(CopyError::Whiteout(slot.path.to_owned()));
        }
        let create = || -> io::Result<()> {
            let mode = Mode::from_raw_mode(0o600);
            stave_store::owner::make_node(slot.parent, slot.name, file_type, mode, node.meta.rdev)?;
            self.stamp(&node.meta).apply_at(slot.parent, slot.name)?;
            let mode = Mode::from_raw_mode(self.rules.mode.apply(node.meta.mode, false));
            rustix::fs::chmodat(slot.parent, slot.name, mode, AtFlags::empty())?;
            Ok(())
        };
        Ok(create().at("creating", slot.path)?)
    }

    /// Attributes first: setting them after the time would be seen in ctime only, but chown drops capabilities.
    fn finish(&self, node: &Node, source: &OwnedFd, target: &OwnedFd) -> io::Result<()> {
        let mode = self.rules.mode.apply(node.meta.mode, node.is_dir());
        let attributes = xattr::read(source)?;
        let stamp = self.stamp(&node.meta);
        if attributes.is_empty() {
            return stamp.apply(target, mode);
        }
        Stamp { time: None, ..stamp }.apply(target, mode)?;
        xattr::write(target, &attributes)?;
        if let Some(time) = stamp.time {
            rustix::fs::futimens(target, &super::place::times(time))?;
        }
        Ok(())
    }

    fn stamp(&self, meta: &Meta) -> Stamp {
        let source = match self.owners {
            Owners::Kept => (meta.uid, meta.gid),
            Owners::Root => (0, 0),
        };
        let own = if self.is_context { stave_store::context_time(meta.mtime) } else { meta.mtime };
        Stamp { owner: Some(self.rules.owner.unwrap_or(source)), time: Some(self.rules.time.unwrap_or(own)) }
    }
}
