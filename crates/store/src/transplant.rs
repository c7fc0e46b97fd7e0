//! A layer that was made on another file system comes to the store's.
//!
//! Where the state directory lies on an overlay itself (in a container without a volume), the kernel takes none of its
//! directories as an upper one; layers are then made in memory and copied here when they are committed. Everything of
//! a file comes along: owner, mode, times, attributes (overlay's own included), holes and second names.
//! Must not know rows or sessions. Read [`transplant`] first.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, XattrFlags, chownat, fchmod,
    fstat, ftruncate, lgetxattr, linkat, llistxattr, lremovexattr, lsetxattr, mkdirat, openat, readlinkat,
    symlinkat, utimensat,
};
use rustix::io::Errno;

use crate::diff::sorted_names;
use crate::{StoreError, owner};

/// Bytes of a list of names, or of a value (the kernel's `XATTR_SIZE_MAX`).
const ATTRIBUTES: usize = 64 << 10;
/// Lists of rights: its own, and what a directory's new entries get.
pub(crate) const RIGHTS: [&str; 2] = ["system.posix_acl_access", "system.posix_acl_default"];
/// Levels of a tree: one directory is open for each.
pub(crate) const DEPTH_LIMIT: usize = 2048;

/// An open directory and a name in it.
pub(crate) type Place<'a> = (&'a OwnedFd, &'a OsStr);

/// A directory being copied, and what of it is left to do.
struct Level {
    from: OwnedFd,
    to: OwnedFd,
    names: std::vec::IntoIter<std::ffi::OsString>,
    path: PathBuf,
    stat: Stat,
}

/// Copies a file, or a directory and everything in it, to `to`, which must not exist.
///
/// # Errors
/// When something cannot be read or made.
pub fn copy_tree(from: &Path, to: &Path) -> Result<(), StoreError> {
    let failed = |source: io::Error| StoreError::Io { action: "copy", path: from.to_owned(), source };
    let stat = rustix::fs::stat(from).map_err(|error| failed(error.into()))?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
        return transplant(from, to);
    }
    let parent =
        |path: &Path| openat(CWD, path.parent().unwrap_or(Path::new("/")), directory(), Mode::empty());
    let copy = || -> io::Result<()> {
        let name = |path: &Path| path.file_name().map(OsStr::to_owned).ok_or(Errno::INVAL);
        let (source, target, new) = (parent(from)?, parent(to)?, name(to)?);
        copy_entry((&source, &name(from)?), (&target, &new), &stat)
    };
    copy().map_err(failed)
}

/// Copies the directory `from` and everything in it to `to`, which must not exist.
pub(crate) fn transplant(from: &Path, to: &Path) -> Result<(), StoreError> {
    let failed = |path: &Path| {
        let path = from.join(path);
        move |error: io::Error| StoreError::Io { action: "copy", path, source: error }
    };
    let mut links: HashMap<(u64, u64), PathBuf> = HashMap::new();
    let open = || -> io::Result<Level> {
        mkdirat(CWD, to, Mode::from_raw_mode(0o700))?;
        Level::open(
            openat(CWD, from, directory(), Mode::empty())?,
            openat(CWD, to, directory(), Mode::empty())?,
            PathBuf::new(),
        )
    };
    let mut levels = vec![open().map_err(failed(Path::new("")))?];
    while let Some(level) = levels.last_mut() {
        let Some(name) = level.names.next() else {
            let level = levels.pop();
            level.map_or(Ok(()), |level| level.finish().map_err(failed(&level.path)))?;
            continue;
        };
        let path = level.path.join(&name);
        let inner = level.entry(&name, &path, to, &mut links).map_err(failed(&path))?;
        if levels.len() == DEPTH_LIMIT && inner.is_some() {
            return Err(failed(&path)(Errno::NAMETOOLONG.into()));
        }
        levels.extend(inner);
    }
    Ok(())
}

fn directory() -> OFlags {
    OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC
}

impl Level {
    fn open(from: OwnedFd, to: OwnedFd, path: PathBuf) -> io::Result<Self> {
        let (names, stat) = (sorted_names(&from)?.into_iter(), fstat(&from)?);
        Ok(Self { from, to, names, path, stat })
    }

    /// Copies one name; a directory is given back to go on with.
    fn entry(
        &self,
        name: &OsStr,
        path: &Path,
        root: &Path,
        links: &mut HashMap<(u64, u64), PathBuf>,
    ) -> io::Result<Option<Self>> {
        let stat = rustix::fs::statat(&self.from, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind == FileType::Directory {
            mkdirat(&self.to, name, Mode::from_raw_mode(0o700))?;
            let open = |at: &OwnedFd| openat(at, name, directory(), Mode::empty());
            return Ok(Some(Self::open(open(&self.from)?, open(&self.to)?, path.to_owned())?));
        }
        if stat.st_nlink > 1 && kind != FileType::CharacterDevice {
            if let Some(first) = links.get(&(stat.st_dev, stat.st_ino)) {
                linkat(CWD, root.join(first), &self.to, name, AtFlags::empty())?;
                return Ok(None);
            }
            links.insert((stat.st_dev, stat.st_ino), path.to_owned());
        }
        if kind == FileType::CharacterDevice && stat.st_rdev == 0 {
            return Ok(owner::make_whiteout(&self.to, name).map(|()| None)?);
        }
        copy_entry((&self.from, name), (&self.to, name), &stat)?;
        Ok(None)
    }

    /// The directory's own properties, once nothing in it changes any more.
    fn finish(&self) -> io::Result<()> {
        let own = OsStr::new(".");
        settle((&self.from, own), (&self.to, own), &self.stat)
    }
}

/// Copies one entry of a directory that is no directory itself, with everything it has.
pub(crate) fn copy_entry(from: Place<'_>, to: Place<'_>, stat: &Stat) -> io::Result<()> {
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => copy_file(from, to, stat)?,
        FileType::Symlink => symlinkat(readlinkat(from.0, from.1, Vec::new())?, to.0, to.1)?,
        kind => owner::make_node(to.0, to.1, kind, Mode::from_raw_mode(0o600), stat.st_rdev)?,
    }
    settle(from, to, stat)
}

fn copy_file(from: Place<'_>, to: Place<'_>, stat: &Stat) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let from = openat(from.0, from.1, flags, Mode::empty())?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let to = openat(to.0, to.1, flags, Mode::from_raw_mode(0o600))?;
    let size = u64::try_from(stat.st_size).unwrap_or(0);
    let mut offset = 0;
    ftruncate(&to, size)?;
    // From one stretch of data to the next: what is between them is a hole in both.
    while offset < size {
        let start = match rustix::fs::seek(&from, rustix::fs::SeekFrom::Data(offset)) {
            Err(Errno::NXIO) => break,
            other => other?,
        };
        let end = rustix::fs::seek(&from, rustix::fs::SeekFrom::Hole(start))?;
        copy(&from, &to, start, end - start)?;
        offset = end;
    }
    Ok(())
}

/// Copies a stretch, in the kernel.
fn copy(from: &OwnedFd, to: &OwnedFd, start: u64, length: u64) -> io::Result<()> {
    let (mut read, mut written, end) = (start, start, start + length);
    while read < end {
        let count = usize::try_from(end - read).unwrap_or(usize::MAX).min(1 << 30);
        match rustix::fs::copy_file_range(from, Some(&mut read), to, Some(&mut written), count) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) | Err(Errno::INTR) => {}
            // Not between these file systems.
            Err(Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                rustix::fs::seek(from, rustix::fs::SeekFrom::Start(read))?;
                rustix::fs::seek(to, rustix::fs::SeekFrom::Start(written))?;
                let (source, mut sink) = (dup(from)?, dup(to)?);
                io::copy(&mut io::Read::take(source, end - read), &mut sink)?;
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn dup(fd: &OwnedFd) -> io::Result<std::fs::File> {
    Ok(fd.try_clone()?.into())
}

/// Owner, mode, attributes and times, in the order in which none undoes another.
pub(crate) fn settle(from: Place<'_>, (to, name): Place<'_>, stat: &Stat) -> io::Result<()> {
    let flags = AtFlags::SYMLINK_NOFOLLOW;
    chownat(to, name, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)), flags)?;
    let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Symlink => {}
        FileType::Directory => fchmod(openat(to, name, directory(), Mode::empty())?, mode)?,
        _ => rustix::fs::chmodat(to, name, mode, AtFlags::empty())?,
    }
    attributes(from, (to, name), stat)?;
    let time = |seconds, nanoseconds| Timespec { tv_sec: seconds, tv_nsec: nanoseconds as _ };
    let times = Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
    };
    Ok(utimensat(to, name, &times, flags)?)
}

fn attributes(from: Place<'_>, to: Place<'_>, stat: &Stat) -> io::Result<()> {
    let through =
        |(fd, name): Place<'_>| Path::new("/proc/self/fd").join(fd.as_raw_fd().to_string()).join(name);
    let (from, to) = (through(from), through(to));
    // Links have none, and nothing is inherited by what was linked.
    if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
        disinherit(&to)?;
    }
    let mut list = vec![0; ATTRIBUTES];
    let length = match llistxattr(&from, list.as_mut_slice()) {
        Err(Errno::NOTSUP) => return Ok(()),
        other => other?,
    };
    for attribute in list[..length].split(|byte| *byte == 0).filter(|attribute| !attribute.is_empty()) {
        let attribute = OsStr::from_bytes(attribute);
        let mut value = vec![0; ATTRIBUTES];
        let length = lgetxattr(&from, attribute, value.as_mut_slice())?;
        match lsetxattr(&to, attribute, &value[..length], XattrFlags::empty()) {
            Ok(()) => {}
            // Labels are the machine's to give.
            Err(Errno::PERM | Errno::NOTSUP) if attribute.as_bytes().starts_with(b"security.") => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Takes off what a new file or directory got from its directory's default list of rights.
pub(crate) fn disinherit(path: &Path) -> io::Result<()> {
    for name in RIGHTS {
        match lremovexattr(path, name) {
            Ok(()) | Err(Errno::NODATA | Errno::NOTSUP) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};

    #[test]
    fn everything_of_a_tree_comes_along() {
        let place = tempfile::tempdir().expect("a directory");
        let (from, to) = (place.path().join("from"), place.path().join("to"));
        fs::create_dir_all(from.join("a/b")).expect("directories");
        fs::write(from.join("a/file"), "content").expect("a file");
        fs::hard_link(from.join("a/file"), from.join("a/b/again")).expect("a link");
        symlink("nowhere", from.join("a/link")).expect("a link");
        fs::set_permissions(from.join("a"), fs::Permissions::from_mode(0o1750)).expect("a mode");
        let sparse = fs::File::create(from.join("sparse")).expect("a file");
        sparse.set_len(1 << 20).expect("a size");
        std::os::unix::fs::FileExt::write_all_at(&sparse, b"end", (1 << 20) - 3).expect("a write");
        rustix::fs::mkfifoat(CWD, from.join("pipe"), Mode::from_raw_mode(0o640)).expect("a fifo");
        rustix::fs::lsetxattr(from.join("a/file"), "user.note", b"kept", XattrFlags::empty())
            .expect("an attribute");
        transplant(&from, &to).expect("a copy");
        assert_eq!(fs::read_to_string(to.join("a/b/again")).expect("content"), "content");
        let inode = |name: &str| fs::metadata(to.join(name)).expect("a status").ino();
        assert_eq!(inode("a/file"), inode("a/b/again"));
        assert_eq!(fs::read_link(to.join("a/link")).expect("a target"), Path::new("nowhere"));
        let metadata = |root: &Path, name: &str| fs::symlink_metadata(root.join(name)).expect("a status");
        for name in ["", "a", "a/b", "a/file", "a/link", "sparse", "pipe"] {
            let (old, new) = (metadata(&from, name), metadata(&to, name));
            assert_eq!(
                (old.mode(), old.mtime_nsec(), old.len()),
                (new.mode(), new.mtime_nsec(), new.len()),
                "{name}"
            );
        }
        assert!(metadata(&to, "sparse").blocks() < 64, "holes stay holes");
        assert_eq!(
            fs::read(to.join("sparse")).expect("content"),
            fs::read(from.join("sparse")).expect("content")
        );
        let mut value = [0; 8];
        assert_eq!(lgetxattr(to.join("a/file"), "user.note", &mut value[..]), Ok(4));
    }
}
