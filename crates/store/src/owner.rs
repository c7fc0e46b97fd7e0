//! Owners and device nodes that the process's user namespace cannot represent: recorded beside the file instead.
//!
//! Outside of a user namespace every owner is a file's real one and nothing here does more than the plain call. In
//! one, an owner without a mapping and a device node are written into an extended attribute, in the form podman and
//! fuse-overlayfs know (`user.containers.override_stat`: `uid:gid:0mode:kind`, the kind `char-MAJOR-MINOR` and
//! `block-MAJOR-MINOR` for devices); what reads layers puts it back into the status. The mode of a file is always its
//! own. Symbolic links and FIFOs cannot carry the attribute: those are root's.
//! Must not know layers or archives. Read [`give`] and [`restore`] first.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Stat, Uid, XattrFlags, chownat, fchown, fgetxattr, fremovexattr,
    fsetxattr, lgetxattr, major, makedev, minor, mknodat, openat,
};
use rustix::io::Errno;

/// The attribute.
const OVERRIDE: &str = "user.containers.override_stat";
/// Bytes of its value: four numbers and a word.
const VALUE_LIMIT: usize = 128;

/// Overlay's attribute of an empty file that means "removed here", and of the directory such a file is in.
fn marks() -> (&'static str, &'static str) {
    match may_set_trusted() {
        false => ("user.overlay.whiteout", "user.overlay.opaque"),
        true => ("trusted.overlay.whiteout", "trusted.overlay.opaque"),
    }
}

/// Whether `trusted.*` attributes can be set: with `CAP_SYS_ADMIN` outside of all user namespaces.
pub(crate) fn may_set_trusted() -> bool {
    const SYS_ADMIN: u64 = 1 << 21;
    static HELD: LazyLock<bool> = LazyLock::new(|| {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
        let bits = effective.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok());
        bits.is_none_or(|bits| bits & SYS_ADMIN != 0)
    });
    !may_be_recorded() && *HELD
}

/// Ids of this process's user namespace.
struct Ids {
    uids: Vec<(u32, u32)>,
    gids: Vec<(u32, u32)>,
    /// Whether all ids there are exist here.
    all: bool,
}

static IDS: LazyLock<Ids> = LazyLock::new(|| {
    let read =
        |name: &str| ranges(&fs::read_to_string(Path::new("/proc/self").join(name)).unwrap_or_default());
    let (uids, gids) = (read("uid_map"), read("gid_map"));
    let all = [&uids, &gids].iter().all(|ranges| ranges.is_empty() || ranges.as_slice() == [(0, u32::MAX)]);
    Ids { uids, gids, all }
});

/// First id and count of each line.
fn ranges(map: &str) -> Vec<(u32, u32)> {
    let line = |line: &str| {
        let mut fields = line.split_whitespace();
        Some((fields.next()?.parse().ok()?, fields.nth(1)?.parse().ok()?))
    };
    map.lines().filter_map(line).collect()
}

fn has(ranges: &[(u32, u32)], id: u32) -> bool {
    ranges.is_empty()
        || ranges.iter().any(|(first, count)| id.checked_sub(*first).is_some_and(|offset| offset < *count))
}

/// Whether owners may be recorded in attributes: this process is in a user namespace.
pub fn may_be_recorded() -> bool {
    !IDS.all
}

/// Whether there is but one user: that of the process.
pub fn is_single() -> bool {
    may_be_recorded() && !(has(&IDS.uids, 1) && has(&IDS.gids, 1))
}

/// What overlay and this module left on an entry of an upper directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Marks {
    /// Its owner is recorded.
    pub recorded: bool,
    /// It was copied from a layer below when it was first changed. Files with several names there are not marked.
    pub copied: bool,
    /// It is a directory that was made where something was removed.
    pub opaque: bool,
}

impl Marks {
    /// Those of an open file or directory.
    pub fn of(fd: impl AsFd) -> Self {
        let has = |name: &str| match fgetxattr(&fd, name, &mut [0; 0][..]) {
            Ok(_) => true,
            Err(error) => error == Errno::RANGE,
        };
        let mut mark = [0; 1];
        let opaque = fgetxattr(&fd, marks().1, &mut mark[..]).is_ok() && mark == *b"y";
        Self { recorded: has(OVERRIDE), copied: has(origin()), opaque }
    }
}

/// Overlay's attribute of what it copied up.
fn origin() -> &'static str {
    if may_set_trusted() { "trusted.overlay.origin" } else { "user.overlay.origin" }
}

/// Whether the attribute is this module's, and so no part of a file's content.
pub fn is_record(name: &[u8]) -> bool {
    name == OVERRIDE.as_bytes() && may_be_recorded()
}

/// What the attribute says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Record {
    uid: u32,
    gid: u32,
    node: Option<(FileType, u32, u32)>,
}

impl Record {
    fn parse(value: &[u8]) -> Option<Self> {
        let mut fields = std::str::from_utf8(value).ok()?.split(':');
        let (uid, gid) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        let node = fields.nth(1).and_then(|kind| {
            let mut parts = kind.split('-');
            let file_type = match parts.next()? {
                "char" => FileType::CharacterDevice,
                "block" => FileType::BlockDevice,
                _ => return None,
            };
            Some((file_type, parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
        });
        Some(Self { uid, gid, node })
    }

    fn format(&self, stat: &Stat) -> String {
        let kind = match (self.node, FileType::from_raw_mode(stat.st_mode)) {
            (Some((FileType::BlockDevice, major, minor)), _) => format!("block-{major}-{minor}"),
            (Some((_, major, minor)), _) => format!("char-{major}-{minor}"),
            (None, FileType::Directory) => "dir".to_owned(),
            (None, _) => "file".to_owned(),
        };
        format!("{}:{}:0{:o}:{kind}", self.uid, self.gid, stat.st_mode & 0o7777)
    }

    fn apply(&self, stat: &mut Stat) {
        (stat.st_uid, stat.st_gid) = (self.uid, self.gid);
        // An empty file stands for a node; anything else with such an attribute is what it is.
        if let Some((file_type, major, minor)) = self.node
            && FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
            && stat.st_size == 0
            && (major, minor) != (0, 0)
        {
            stat.st_mode = (stat.st_mode & 0o7777) | file_type.as_raw_mode();
            stat.st_rdev = makedev(major, minor);
        }
    }
}

/// Makes the owner of an open file or directory this one, really or by record.
pub fn give(fd: impl AsFd, uid: u32, gid: u32) -> io::Result<()> {
    let fd = fd.as_fd();
    let ids = &*IDS;
    if ids.all {
        return Ok(fchown(fd, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?);
    }
    let (real_uid, real_gid) = representable(uid, gid);
    fchown(fd, Some(Uid::from_raw(real_uid)), Some(Gid::from_raw(real_gid)))?;
    let mut value = [0; VALUE_LIMIT];
    let node = match fgetxattr(fd, OVERRIDE, &mut value[..]) {
        Ok(length) => Record::parse(&value[..length]).and_then(|record| record.node),
        Err(_) => None,
    };
    if node.is_none() && (real_uid, real_gid) == (uid, gid) {
        return match fremovexattr(fd, OVERRIDE) {
            Ok(()) | Err(Errno::NODATA | Errno::NOTSUP | Errno::PERM) => Ok(()),
            Err(error) => Err(error.into()),
        };
    }
    let text = Record { uid, gid, node }.format(&rustix::fs::fstat(fd)?);
    match fsetxattr(fd, OVERRIDE, text.as_bytes(), XattrFlags::empty()) {
        // A file system without attributes (memory, mostly) keeps no image's files.
        Err(Errno::NOTSUP) => Ok(()),
        other => Ok(other?),
    }
}

/// Changes what is asked for of an open file's or directory's owner; `None` keeps what it is, or is recorded to be.
pub fn change(fd: BorrowedFd<'_>, uid: Option<u32>, gid: Option<u32>) -> io::Result<()> {
    let mut stat = rustix::fs::fstat(fd)?;
    restore_open(&mut stat, fd);
    give(fd, uid.unwrap_or(stat.st_uid), gid.unwrap_or(stat.st_gid))
}

/// The same for a name that cannot be opened. What has no mapping becomes root's, unless it is a stand-in for a node.
pub fn give_at(parent: impl AsFd, name: impl AsRef<OsStr>, uid: u32, gid: u32) -> io::Result<()> {
    let (parent, name) = (parent.as_fd(), name.as_ref());
    if !IDS.all {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let stat = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile {
            return give(openat(parent, name, flags, Mode::empty())?, uid, gid);
        }
    }
    let (uid, gid) = representable(uid, gid);
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    Ok(chownat(parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?)
}

/// The ids a file can really have.
fn representable(uid: u32, gid: u32) -> (u32, u32) {
    let ids = &*IDS;
    (if has(&ids.uids, uid) { uid } else { 0 }, if has(&ids.gids, gid) { gid } else { 0 })
}

/// Makes a device, FIFO or whiteout; a device that may not be made is recorded on an empty file.
pub fn make_node(
    parent: impl AsFd,
    name: impl AsRef<OsStr>,
    file_type: FileType,
    mode: Mode,
    device: u64,
) -> rustix::io::Result<()> {
    let (parent, name) = (parent.as_fd(), name.as_ref());
    match mknodat(parent, name, file_type, mode, device) {
        Err(Errno::PERM) if may_be_recorded() && device != 0 => {}
        other => return other,
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = openat(parent, name, flags, mode)?;
    let record = Record { uid: 0, gid: 0, node: Some((file_type, major(device), minor(device))) };
    let text = record.format(&rustix::fs::fstat(&file)?);
    fsetxattr(&file, OVERRIDE, text.as_bytes(), XattrFlags::empty())
}

/// Makes overlay's mark for "removed here". A state directory on an overlay cannot hold the usual one, since there it
/// would be a removal of that overlay's; then it is the other form, an attribute of an empty file in a directory
/// marked as having such (kernels from 6.7).
pub fn make_whiteout(parent: impl AsFd, name: impl AsRef<OsStr>) -> rustix::io::Result<()> {
    let (parent, name) = (parent.as_fd(), name.as_ref());
    match mknodat(parent, name, FileType::CharacterDevice, Mode::empty(), makedev(0, 0)) {
        Err(Errno::PERM) => {}
        other => return other,
    }
    let (whiteout, opaque) = marks();
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = openat(parent, name, flags, Mode::from_raw_mode(0o600))?;
    fsetxattr(&file, whiteout, b"y", XattrFlags::empty())?;
    let directory = openat(parent, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    // An opaque directory says so already, and overlay looks for the marks there as well.
    match fsetxattr(&directory, opaque, b"x", XattrFlags::CREATE) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Puts what was recorded of an entry of a directory into its status.
pub fn restore(stat: &mut Stat, parent: impl AsFd, name: &OsStr) {
    let is_empty = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile && stat.st_size == 0;
    if is_empty || may_be_recorded() && is_carrier(stat) {
        let path: PathBuf =
            Path::new("/proc/self/fd").join(parent.as_fd().as_raw_fd().to_string()).join(name);
        if is_empty && lgetxattr(&path, marks().0, &mut [0; 8][..]).is_ok() {
            stat.st_mode = FileType::CharacterDevice.as_raw_mode();
            stat.st_rdev = 0;
            return;
        }
        if !may_be_recorded() {
            return;
        }
        restore_from(stat, |value| lgetxattr(&path, OVERRIDE, value));
    }
}

/// Puts what was recorded of an open file or directory into its status.
pub fn restore_open(stat: &mut Stat, fd: impl AsFd) {
    if may_be_recorded() && is_carrier(stat) {
        restore_from(stat, |value| fgetxattr(&fd, OVERRIDE, value));
    }
}

/// Only these can have attributes of this kind.
fn is_carrier(stat: &Stat) -> bool {
    matches!(FileType::from_raw_mode(stat.st_mode), FileType::RegularFile | FileType::Directory)
}

fn restore_from(stat: &mut Stat, read: impl FnOnce(&mut [u8]) -> rustix::io::Result<usize>) {
    let mut value = [0; VALUE_LIMIT];
    // No attribute, or none that can be read: the status is right as it is.
    if let Ok(length) = read(&mut value[..])
        && let Some(record) = Record::parse(&value[..length])
    {
        record.apply(stat);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(value: &str, expected: Option<Record>) {
        assert_eq!(Record::parse(value.as_bytes()), expected);
    }

    #[test]
    fn the_form_is_podmans() {
        check("7:8:0644:file", Some(Record { uid: 7, gid: 8, node: None }));
        check("7:8:0644", Some(Record { uid: 7, gid: 8, node: None }));
        let device = Some((FileType::CharacterDevice, 1, 3));
        check("0:0:0666:char-1-3", Some(Record { uid: 0, gid: 0, node: device }));
        let device = Some((FileType::BlockDevice, 8, 1));
        check("0:6:0660:block-8-1", Some(Record { uid: 0, gid: 6, node: device }));
        for wrong in ["", "x:1:2", "1", "-1:0:0644", "4294967296:0:0644:file"] {
            check(wrong, None);
        }
    }

    #[test]
    fn a_record_survives_its_text_and_never_makes_a_whiteout() {
        let file = tempfile::tempfile().expect("a file");
        let mut stat = rustix::fs::fstat(&file).expect("a status");
        let record = Record { uid: 7, gid: 8, node: Some((FileType::BlockDevice, 8, 1)) };
        assert_eq!(Record::parse(record.format(&stat).as_bytes()), Some(record));
        record.apply(&mut stat);
        assert_eq!((stat.st_uid, stat.st_gid, stat.st_rdev), (7, 8, makedev(8, 1)));
        assert_eq!(FileType::from_raw_mode(stat.st_mode), FileType::BlockDevice);
        let mut stat = rustix::fs::fstat(&file).expect("a status");
        Record { uid: 0, gid: 0, node: Some((FileType::CharacterDevice, 0, 0)) }.apply(&mut stat);
        assert_eq!(FileType::from_raw_mode(stat.st_mode), FileType::RegularFile);
    }
}
