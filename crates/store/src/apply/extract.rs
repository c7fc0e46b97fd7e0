//! Putting archive entries into a layer directory, never outside it. Start with [`Extractor`].
//!
//! Parents are opened with openat2(2) `RESOLVE_IN_ROOT` relative to the layer's own directory, and
//! the last component is only ever used with calls that do not follow it. So a symlink in the
//! archive, absolute or with `..`, leads at most to another place of the same layer.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::Read;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, Timespec, Timestamps, XattrFlags, chmodat, fchmod, fsetxattr, ftruncate,
    futimens, linkat, lsetxattr, makedev, mkdirat, open, openat, seek, statat, symlinkat, utimensat,
};
use rustix::io::{Errno, write};

use super::archive::{Archive, Entry, Kind};
use super::{ApplyOptions, BUFFER, LayerLimits};
use crate::fault::refused;
use crate::inside::open_inside;
use crate::removal::remove_tree;
use crate::{AbsoluteNames, LayerErrorKind, OverlayXattrs, StoreError, owner};

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Bytes of directory names held until their times can be set.
const MAX_DIRECTORY_BYTES: usize = 512 << 20;

type Step<T> = Result<T, LayerErrorKind>;

/// Unpacks entries below one directory.
#[derive(Debug)]
pub(super) struct Extractor {
    root: Rc<OwnedFd>,
    xattrs: OverlayXattrs,
    absolute_names: AbsoluteNames,
    limits: LayerLimits,
    /// The parent of the last entry: archives list a directory's files one after the other.
    last_parent: Option<(Vec<u8>, Rc<OwnedFd>)>,
    /// Making entries changes a directory's time, so these are set at the end.
    directory_times: BTreeMap<Vec<u8>, (i64, u32)>,
    directory_bytes: usize,
    file_bytes: u64,
    buffer: Vec<u8>,
}

fn io_error(action: &'static str) -> impl Fn(Errno) -> LayerErrorKind {
    move |error| LayerErrorKind::Io { action, source: error.into() }
}

impl Extractor {
    pub(super) fn new(
        root: &Path,
        xattrs: OverlayXattrs,
        options: &ApplyOptions,
    ) -> Result<Self, StoreError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = open(root, flags, Mode::empty()).map_err(|error| StoreError::io("open", root, error))?;
        Ok(Self {
            root: Rc::new(root),
            xattrs,
            absolute_names: options.absolute_names,
            limits: options.limits,
            last_parent: None,
            directory_times: BTreeMap::new(),
            directory_bytes: 0,
            file_bytes: 0,
            buffer: vec![0; BUFFER],
        })
    }

    /// Unpacks one entry, reading its data from the archive.
    pub(super) fn unpack<R: Read>(&mut self, entry: &Entry, archive: &mut Archive<R>) -> Step<()> {
        if self.absolute_names == AbsoluteNames::Refuse
            && entry.path.starts_with(b"/")
            && entry.path.iter().any(|byte| *byte != b'/')
        {
            return Err(LayerErrorKind::Absolute);
        }
        let path = clean(&entry.path)?;
        let Some((parent, name)) = split(&path) else {
            return match entry.kind {
                Kind::Directory => self.set_directory(&Rc::clone(&self.root), entry, path),
                _ => Err(LayerErrorKind::Header("the root is not a directory")),
            };
        };
        let parent_fd = self.parent(parent)?;
        if name.starts_with(WHITEOUT) {
            return self.whiteout(&parent_fd, name);
        }
        match entry.kind {
            Kind::Directory => {
                self.make_directory(&parent_fd, name)?;
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let directory =
                    openat(&parent_fd, name, flags, Mode::empty()).map_err(io_error("open the directory"))?;
                self.set_directory(&directory, entry, path)
            }
            Kind::File => self.file(&parent_fd, name, entry, archive),
            Kind::HardLink => self.hard_link(&parent_fd, name, entry),
            Kind::Symlink | Kind::CharDevice | Kind::BlockDevice | Kind::Fifo => {
                self.special(&parent_fd, name, entry)
            }
        }
    }

    /// Sets the times of directories.
    pub(super) fn finish(self) -> Step<()> {
        for (path, mtime) in self.directory_times {
            let path: &[u8] = if path.is_empty() { b"." } else { &path };
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            match open_inside(&*self.root, path, flags, Mode::empty()) {
                Ok(directory) => refused("unpack-directory-times")
                    .and_then(|()| futimens(&directory, &times(mtime)))
                    .map_err(io_error("set the times"))?,
                // Replaced or removed by a later entry.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                Err(error) => return Err(io_error("open the directory")(error)),
            }
        }
        Ok(())
    }

    /// The directory an entry goes into; missing ones are made.
    fn parent(&mut self, path: &[u8]) -> Step<Rc<OwnedFd>> {
        if path.is_empty() {
            return Ok(Rc::clone(&self.root));
        }
        if let Some((_, fd)) = self.last_parent.as_ref().filter(|(last, _)| last == path) {
            return Ok(Rc::clone(fd));
        }
        let fd = match self.open_directory(path) {
            Ok(fd) => Rc::new(fd),
            Err(Errno::NOENT | Errno::NOTDIR) => self.make_parents(path)?,
            Err(Errno::LOOP) => return Err(LayerErrorKind::ThroughNonDirectory),
            Err(error) => return Err(io_error("open the directory")(error)),
        };
        self.last_parent = Some((path.to_vec(), Rc::clone(&fd)));
        Ok(fd)
    }

    fn open_directory(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        open_inside(&*self.root, path, flags, Mode::empty())
    }

    /// Makes what is missing of a path. Something else than a directory on the way ends it.
    fn make_parents(&mut self, path: &[u8]) -> Step<Rc<OwnedFd>> {
        let mut parent = Rc::clone(&self.root);
        let ends = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(index, _)| index);
        let mut start = 0;
        for end in ends.chain([path.len()]) {
            let name = &path[start..end];
            parent = match self.open_directory(&path[..end]) {
                Ok(fd) => Rc::new(fd),
                Err(Errno::NOENT | Errno::NOTDIR) => {
                    match lookup(&parent, name)? {
                        None | Some(Existing::Whiteout) => self.make_directory(&parent, name)?,
                        Some(_) => return Err(LayerErrorKind::ThroughNonDirectory),
                    }
                    Rc::new(self.open_directory(&path[..end]).map_err(io_error("open the directory"))?)
                }
                Err(Errno::LOOP) => return Err(LayerErrorKind::ThroughNonDirectory),
                Err(error) => return Err(io_error("open the directory")(error)),
            };
            start = end + 1;
        }
        Ok(parent)
    }

    /// Makes a directory, or keeps the one that is there. One in place of a whiteout hides what the
    /// layers below have there.
    fn make_directory(&mut self, parent: &OwnedFd, name: &[u8]) -> Step<()> {
        match refused("unpack-directory").and_then(|()| mkdirat(parent, name, Mode::from_raw_mode(0o755))) {
            // The umask may have taken bits.
            Ok(()) => chmodat(parent, name, Mode::from_raw_mode(0o755), AtFlags::empty())
                .map_err(io_error("change the mode")),
            Err(Errno::EXIST) => match lookup(parent, name)? {
                Some(Existing::Directory) => Ok(()),
                existing => {
                    self.remove(parent, name)?;
                    self.make_directory(parent, name)?;
                    if matches!(existing, Some(Existing::Whiteout)) {
                        self.set_opaque(parent, name)?;
                    }
                    Ok(())
                }
            },
            Err(error) => Err(io_error("make the directory")(error)),
        }
    }

    fn set_directory(&mut self, directory: &OwnedFd, entry: &Entry, path: Vec<u8>) -> Step<()> {
        self.set_attributes(directory, entry)?;
        self.directory_bytes += path.len();
        if self.directory_bytes > MAX_DIRECTORY_BYTES {
            return Err(LayerErrorKind::TooLarge(MAX_DIRECTORY_BYTES as u64));
        }
        self.directory_times.insert(path, entry.mtime);
        Ok(())
    }

    /// Owner, mode and xattrs through an open file. In this order: chown clears setuid bits and
    /// file capabilities.
    fn set_attributes(&self, fd: &OwnedFd, entry: &Entry) -> Step<()> {
        refused("unpack-owner")
            .and_then(|()| owner::give(fd, entry.uid, entry.gid))
            .map_err(|source| LayerErrorKind::Io { action: "change the owner", source })?;
        refused("unpack-mode")
            .and_then(|()| fchmod(fd, Mode::from_raw_mode(entry.mode)))
            .map_err(io_error("change the mode"))?;
        self.each_xattr(entry, |name, value| fsetxattr(fd, name, value, XattrFlags::empty()))
    }

    /// Calls `set` for the xattrs a layer may bring. Overlay's own are ours to set: `redirect` or
    /// `metacopy` from an archive could reach files of other layers.
    fn each_xattr(&self, entry: &Entry, set: impl Fn(&OsStr, &[u8]) -> Result<(), Errno>) -> Step<()> {
        for (name, value) in &entry.xattrs {
            let is_overlays = name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.");
            if is_overlays || owner::is_record(name) {
                continue;
            }
            match refused("unpack-attribute").and_then(|()| set(OsStr::from_bytes(name), value)) {
                // No such xattrs on this file system or kind of file: as docker, go without.
                Ok(()) | Err(Errno::NOTSUP) => {}
                Err(Errno::PERM) if name.starts_with(b"user.") && entry.kind != Kind::File => {}
                // `trusted.*` and security labels are the machine's root's to set.
                Err(Errno::PERM) if owner::may_be_recorded() => {}
                Err(error) => return Err(io_error("set an extended attribute")(error)),
            }
        }
        Ok(())
    }

    fn file<R: Read>(
        &mut self,
        parent: &OwnedFd,
        name: &[u8],
        entry: &Entry,
        archive: &mut Archive<R>,
    ) -> Step<()> {
        self.file_bytes = self.file_bytes.saturating_add(entry.size);
        if self.file_bytes > self.limits.total_bytes {
            return Err(LayerErrorKind::TooLarge(self.limits.total_bytes));
        }
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let create = || {
            refused("unpack-create").and_then(|()| openat(parent, name, flags, Mode::from_raw_mode(0o600)))
        };
        let file = match create() {
            Err(Errno::EXIST) => {
                self.remove(parent, name)?;
                create()
            }
            result => result,
        };
        let file = file.map_err(io_error("create the file"))?;
        match &entry.segments {
            None => self.copy(&file, entry.size, archive)?,
            Some(segments) => {
                for (offset, length) in segments {
                    seek(&file, rustix::fs::SeekFrom::Start(*offset)).map_err(io_error("seek"))?;
                    self.copy(&file, *length, archive)?;
                }
                refused("unpack-size")
                    .and_then(|()| ftruncate(&file, entry.size))
                    .map_err(io_error("set the size"))?;
            }
        }
        self.set_attributes(&file, entry)?;
        refused("unpack-times")
            .and_then(|()| futimens(&file, &times(entry.mtime)))
            .map_err(io_error("set the times"))
    }

    fn copy<R: Read>(&mut self, file: &OwnedFd, mut length: u64, archive: &mut Archive<R>) -> Step<()> {
        while length > 0 {
            let room = self.buffer.len().min(usize::try_from(length).unwrap_or(usize::MAX));
            let count = archive.read_data(&mut self.buffer[..room])?;
            if count == 0 {
                return Err(LayerErrorKind::Truncated);
            }
            let mut rest = &self.buffer[..count];
            while !rest.is_empty() {
                match refused("unpack-write").and_then(|()| write(file, rest)) {
                    Ok(written) => rest = &rest[written..],
                    Err(Errno::INTR) => {}
                    Err(error) => return Err(io_error("write the file")(error)),
                }
            }
            length -= count as u64;
        }
        Ok(())
    }

    /// A second name for a file of this layer. The link itself is made, never what it leads to.
    fn hard_link(&mut self, parent: &OwnedFd, name: &[u8], entry: &Entry) -> Step<()> {
        let missing =
            || LayerErrorKind::HardLink(String::from_utf8_lossy(&entry.link).chars().take(400).collect());
        let target = clean(&entry.link)?;
        let (target_parent, target_name) = split(&target).ok_or_else(missing)?;
        let target_parent = if target_parent.is_empty() { b"." } else { target_parent };
        let target_parent = self.open_directory(target_parent).map_err(|_| missing())?;
        match lookup(&target_parent, target_name)? {
            Some(Existing::Other { .. }) => {}
            _ => return Err(missing()),
        }
        let link = || {
            refused("unpack-link")
                .and_then(|()| linkat(&target_parent, target_name, parent, name, AtFlags::empty()))
        };
        match link() {
            Err(Errno::EXIST) if lookup(parent, name)? == lookup(&target_parent, target_name)? => Ok(()),
            Err(Errno::EXIST) => {
                self.remove(parent, name)?;
                link().map_err(|error| match error {
                    Errno::NOENT => missing(),
                    error => io_error("link")(error),
                })
            }
            result => result.map_err(io_error("link")),
        }
    }

    /// Symlinks, devices and fifos: made and never opened.
    fn special(&mut self, parent: &OwnedFd, name: &[u8], entry: &Entry) -> Step<()> {
        let make = || match entry.kind {
            Kind::Symlink => symlinkat(&*entry.link, parent, name),
            kind => {
                let file_type = match kind {
                    Kind::CharDevice => FileType::CharacterDevice,
                    Kind::BlockDevice => FileType::BlockDevice,
                    _ => FileType::Fifo,
                };
                let device = makedev(entry.device.0, entry.device.1);
                owner::make_node(
                    parent,
                    OsStr::from_bytes(name),
                    file_type,
                    Mode::from_raw_mode(0o600),
                    device,
                )
            }
        };
        let made = match refused("unpack-node").and_then(|()| make()) {
            Err(Errno::EXIST) => {
                self.remove(parent, name)?;
                make()
            }
            result => result,
        };
        made.map_err(io_error("make the node"))?;
        refused("unpack-node-owner")
            .and_then(|()| owner::give_at(parent, OsStr::from_bytes(name), entry.uid, entry.gid))
            .map_err(|source| LayerErrorKind::Io { action: "change the owner", source })?;
        if entry.kind != Kind::Symlink {
            let mode = Mode::from_raw_mode(entry.mode);
            refused("unpack-node-mode")
                .and_then(|()| chmodat(parent, name, mode, AtFlags::empty()))
                .map_err(io_error("change the mode"))?;
        }
        let path = through(parent, name);
        self.each_xattr(entry, |name, value| lsetxattr(&path, name, value, XattrFlags::empty()))?;
        refused("unpack-node-times")
            .and_then(|()| utimensat(parent, name, &times(entry.mtime), AtFlags::SYMLINK_NOFOLLOW))
            .map_err(io_error("set the times"))
    }

    /// `.wh.x` hides `x` of the layers below, `.wh..wh..opq` everything there. Neither touches what
    /// this layer itself brings, whichever comes first (OCI image spec, layer.md, "Whiteouts").
    fn whiteout(&mut self, parent: &OwnedFd, name: &[u8]) -> Step<()> {
        if name == OPAQUE {
            return self.set_opaque(parent, b".");
        }
        let hidden = &name[WHITEOUT.len()..];
        if hidden.starts_with(WHITEOUT) {
            // Notes of aufs to itself.
            return Ok(());
        }
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(LayerErrorKind::Whiteout);
        }
        let make = || {
            refused("unpack-whiteout").and_then(|()| owner::make_whiteout(parent, OsStr::from_bytes(hidden)))
        };
        match make() {
            Ok(()) => Ok(()),
            Err(Errno::EXIST) => match lookup(parent, hidden)? {
                Some(Existing::Directory) => self.set_opaque(parent, hidden),
                _ => Ok(()),
            },
            Err(error) => Err(io_error("make the whiteout")(error)),
        }
    }

    fn set_opaque(&self, parent: &OwnedFd, name: &[u8]) -> Step<()> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = openat(parent, name, flags, Mode::empty()).map_err(io_error("open the directory"))?;
        refused("unpack-opaque")
            .and_then(|()| fsetxattr(&directory, self.xattrs.opaque(), b"y", XattrFlags::empty()))
            .map_err(io_error("mark the directory opaque"))
    }

    /// Removes what an entry replaces.
    fn remove(&mut self, parent: &OwnedFd, name: &[u8]) -> Step<()> {
        self.last_parent = None;
        let removed = remove_tree(&through(parent, name));
        removed.map_err(|source| LayerErrorKind::Io { action: "replace the older entry", source })
    }
}

/// What a name stands for before an entry comes.
#[derive(Debug, PartialEq, Eq)]
enum Existing {
    Directory,
    Whiteout,
    Other { device: u64, inode: u64 },
}

fn lookup(parent: &OwnedFd, name: &[u8]) -> Step<Option<Existing>> {
    let stat = match statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => stat,
        Err(Errno::NOENT) => return Ok(None),
        Err(error) => return Err(io_error("look up the entry")(error)),
    };
    Ok(Some(match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => Existing::Directory,
        FileType::CharacterDevice if stat.st_rdev == 0 => Existing::Whiteout,
        _ => Existing::Other { device: stat.st_dev, inode: stat.st_ino },
    }))
}

/// A path to an entry through an open directory, for calls that take no descriptor.
fn through(parent: &OwnedFd, name: &[u8]) -> PathBuf {
    let descriptor = parent.as_fd().as_raw_fd();
    Path::new("/proc/self/fd").join(descriptor.to_string()).join(OsStr::from_bytes(name))
}

fn times((tv_sec, nanoseconds): (i64, u32)) -> Timestamps {
    let time = Timespec { tv_sec, tv_nsec: nanoseconds.into() };
    Timestamps { last_access: time, last_modification: time }
}

/// The path without `.`, `..` and doubled slashes; one that leads out is refused.
fn clean(path: &[u8]) -> Step<Vec<u8>> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in path.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                parts.pop().ok_or(LayerErrorKind::Escapes)?;
            }
            part => parts.push(part),
        }
    }
    Ok(parts.join(&b'/'))
}

/// Parent and last component; `None` for the root.
fn split(path: &[u8]) -> Option<(&[u8], &[u8])> {
    if path.is_empty() {
        return None;
    }
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => Some((&path[..slash], &path[slash + 1..])),
        None => Some((b"", path)),
    }
}
