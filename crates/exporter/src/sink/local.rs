//! The root file system as a directory tree: modes, links, attributes, times and, as root, owners.
//!
//! Must not leave the destination: names come from images, and the destination may already hold
//! symbolic links that an earlier image put there. Every name is resolved below the destination and
//! through no link; a link in the way is replaced, never followed.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::fchown;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags};
use tokio_util::sync::CancellationToken;

use crate::error::ExportErrorKind;
use crate::merged::{Entry, Kind, MAX_DEPTH, Visit, WalkError, open_beneath, walk};

/// Writes the merged tree of `layers` (directories, top first) into `dest`. Returns bytes of files.
pub(crate) fn write(
    layers: &[PathBuf],
    dest: &Path,
    cancel: &CancellationToken,
) -> Result<u64, ExportErrorKind> {
    let io_at = |action| move |source| ExportErrorKind::Io { action, path: dest.to_owned(), source };
    std::fs::create_dir_all(dest).map_err(io_at("create"))?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root =
        rustix::fs::openat(CWD, dest, flags, Mode::empty()).map_err(|error| io_at("open")(error.into()))?;
    let mut tree = Tree { root, chown: rustix::process::geteuid().is_root(), size: 0 };
    let written = walk(layers, &mut |visit| {
        if cancel.is_cancelled() {
            return Err(io_at("write")(io::ErrorKind::ConnectionAborted.into()));
        }
        let (entry, result) = match visit {
            Visit::Entry(entry) => (entry, tree.write(entry)),
            Visit::Leave(entry) => (entry, tree.leave(entry)),
        };
        result.map_err(|source| ExportErrorKind::Io { action: "write", path: dest.join(entry.path), source })
    });
    match written {
        Ok(()) => Ok(tree.size),
        Err(WalkError::Io { path, source }) => Err(ExportErrorKind::Io { action: "read", path, source }),
        Err(WalkError::TooDeep { path }) => Err(ExportErrorKind::TooDeep { path, limit: MAX_DEPTH }),
        Err(WalkError::Visitor(error)) => Err(error),
    }
}

struct Tree {
    root: OwnedFd,
    /// Only root may give files away; others own what they export, as with any archiver.
    chown: bool,
    size: u64,
}

impl Tree {
    fn write(&mut self, entry: &Entry<'_>) -> io::Result<()> {
        let (parent, name) = (entry.path.parent().unwrap_or(Path::new("")), entry.path.file_name());
        let name = Path::new(name.ok_or(io::ErrorKind::InvalidInput)?);
        let parent = open_beneath(self.root.as_fd(), parent, OFlags::RDONLY | OFlags::DIRECTORY)?;
        make_room(&parent, name, entry.kind == Kind::Directory)?;
        match &entry.kind {
            Kind::Directory => match rustix::fs::mkdirat(&parent, name, Mode::RWXU) {
                // Its metadata is set when its content is complete.
                Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
                Err(error) => Err(error.into()),
            },
            Kind::HardLink(first) => {
                let directory = first.parent().unwrap_or(Path::new(""));
                let source = first.file_name().ok_or(io::ErrorKind::InvalidInput)?;
                let directory =
                    open_beneath(self.root.as_fd(), directory, OFlags::RDONLY | OFlags::DIRECTORY)?;
                Ok(rustix::fs::linkat(&directory, source, &parent, name, AtFlags::empty())?)
            }
            Kind::File => {
                let flags =
                    OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let mut file = File::from(rustix::fs::openat(&parent, name, flags, Mode::RUSR | Mode::WUSR)?);
                self.size += io::copy(&mut entry.open()?, &mut file)?;
                self.settle(entry, &file.into())
            }
            Kind::Symlink(target) => {
                rustix::fs::symlinkat(target.as_os_str(), &parent, name)?;
                self.settle_by_name(entry, &parent, name)
            }
            Kind::Special(FileType::Socket) => Ok(()),
            Kind::Special(file_type) => {
                rustix::fs::mknodat(&parent, name, *file_type, Mode::RUSR | Mode::WUSR, entry.stat.st_rdev)?;
                self.settle_by_name(entry, &parent, name)
            }
        }
    }

    fn leave(&self, entry: &Entry<'_>) -> io::Result<()> {
        let directory = open_beneath(self.root.as_fd(), entry.path, OFlags::RDONLY | OFlags::DIRECTORY)?;
        self.settle(entry, &directory)
    }

    /// Owner before mode: changing the owner clears set-id bits. Times last.
    fn settle(&self, entry: &Entry<'_>, file: &OwnedFd) -> io::Result<()> {
        if self.chown {
            fchown(file, Some(entry.stat.st_uid), Some(entry.stat.st_gid))?;
        }
        rustix::fs::fchmod(file, Mode::from_raw_mode(entry.stat.st_mode & 0o7777))?;
        for (name, value) in entry.xattrs()? {
            match rustix::fs::fsetxattr(file, name.as_os_str(), &value, XattrFlags::empty()) {
                Ok(()) => {}
                // Capabilities and the like are root's to set, and not every file system keeps them.
                Err(rustix::io::Errno::PERM | rustix::io::Errno::OPNOTSUPP) if !self.chown => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(rustix::fs::futimens(file, &times(entry))?)
    }

    /// For what cannot be opened without effect.
    fn settle_by_name(&self, entry: &Entry<'_>, parent: &OwnedFd, name: &Path) -> io::Result<()> {
        if self.chown {
            let (uid, gid) = (Uid::from_raw(entry.stat.st_uid), Gid::from_raw(entry.stat.st_gid));
            rustix::fs::chownat(parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
        }
        if !matches!(entry.kind, Kind::Symlink(_)) {
            let node = rustix::fs::openat(
                parent,
                name,
                OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
                Mode::empty(),
            )?;
            let link = format!("/proc/self/fd/{}", node.as_raw_fd());
            rustix::fs::chmod(link.as_str(), Mode::from_raw_mode(entry.stat.st_mode & 0o7777))?;
        }
        Ok(rustix::fs::utimensat(parent, name, &times(entry), AtFlags::SYMLINK_NOFOLLOW)?)
    }
}

/// Removes what is in the way of an entry: anything but a directory in a directory's place. A
/// directory in another kind's place goes only when it is empty; a tree of the user's stays.
fn make_room(parent: &OwnedFd, name: &Path, for_directory: bool) -> io::Result<()> {
    let stat = match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => stat,
        Err(rustix::io::Errno::NOENT) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
    match (is_directory, for_directory) {
        (true, true) => Ok(()),
        (true, false) => Ok(rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR)?),
        (false, _) => Ok(rustix::fs::unlinkat(parent, name, AtFlags::empty())?),
    }
}

fn times(entry: &Entry<'_>) -> Timestamps {
    let time = Timespec {
        tv_sec: entry.stat.st_mtime,
        tv_nsec: i64::try_from(entry.stat.st_mtime_nsec).unwrap_or(0),
    };
    Timestamps { last_access: time, last_modification: time }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};

    use super::*;

    fn directory() -> tempfile::TempDir {
        tempfile::tempdir().expect("a temporary directory")
    }

    #[test]
    fn a_tree_is_copied_with_its_metadata() {
        let (layer, dest) = (directory(), directory());
        let file = layer.path().join("d/f");
        fs::create_dir(layer.path().join("d")).expect("creates");
        fs::write(&file, "text").expect("writes");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o4751)).expect("sets");
        fs::hard_link(&file, layer.path().join("d/g")).expect("links");
        symlink("../d/f", layer.path().join("d/s")).expect("links");
        rustix::fs::mkfifoat(CWD, layer.path().join("p"), Mode::RUSR).expect("makes");
        fs::set_permissions(layer.path().join("d"), fs::Permissions::from_mode(0o555)).expect("sets");
        let old = Timespec { tv_sec: 1_000_000, tv_nsec: 5 };
        let times = Timestamps { last_access: old, last_modification: old };
        rustix::fs::utimensat(CWD, layer.path().join("d"), &times, AtFlags::empty()).expect("sets");

        let dest = dest.path().join("new/dir");
        assert_eq!(write(&[layer.path().to_owned()], &dest, &CancellationToken::new()).expect("writes"), 4);
        let [f, g] = ["d/f", "d/g"].map(|name| fs::symlink_metadata(dest.join(name)).expect("is there"));
        assert_eq!((f.mode() & 0o7777, f.ino()), (0o4751, g.ino()));
        assert_eq!(fs::read_to_string(dest.join("d/g")).expect("reads"), "text");
        assert_eq!(fs::read_link(dest.join("d/s")).expect("is a link"), Path::new("../d/f"));
        let d = fs::metadata(dest.join("d")).expect("is there");
        assert_eq!((d.mode() & 0o7777, d.mtime(), d.mtime_nsec()), (0o555, 1_000_000, 5));
        let p = rustix::fs::stat(dest.join("p")).expect("is there");
        assert_eq!(FileType::from_raw_mode(p.st_mode), FileType::Fifo);
    }

    #[test]
    fn links_in_the_destination_are_replaced_not_followed() {
        let (layer, dest, outside) = (directory(), directory(), directory());
        fs::create_dir(layer.path().join("etc")).expect("creates");
        fs::write(layer.path().join("etc/passwd"), "ours").expect("writes");
        fs::write(layer.path().join("file"), "ours").expect("writes");
        fs::write(outside.path().join("passwd"), "theirs").expect("writes");
        symlink(outside.path(), dest.path().join("etc")).expect("links");
        symlink(outside.path().join("passwd"), dest.path().join("file")).expect("links");
        write(&[layer.path().to_owned()], dest.path(), &CancellationToken::new()).expect("writes");
        assert_eq!(fs::read_to_string(outside.path().join("passwd")).expect("reads"), "theirs");
        assert_eq!(fs::read_to_string(dest.path().join("etc/passwd")).expect("reads"), "ours");
        assert_eq!(fs::read_to_string(dest.path().join("file")).expect("reads"), "ours");
    }

    #[test]
    fn what_the_user_has_stays_unless_it_is_in_the_way() {
        let (layer, dest) = (directory(), directory());
        fs::write(layer.path().join("a"), "new").expect("writes");
        fs::write(layer.path().join("tree"), "file").expect("writes");
        fs::write(dest.path().join("a"), "old").expect("writes");
        fs::write(dest.path().join("mine"), "kept").expect("writes");
        fs::create_dir(dest.path().join("tree")).expect("creates");
        write(&[layer.path().to_owned()], dest.path(), &CancellationToken::new())
            .expect("an empty directory gives way");
        assert_eq!(fs::read_to_string(dest.path().join("a")).expect("reads"), "new");
        assert_eq!(fs::read_to_string(dest.path().join("mine")).expect("reads"), "kept");
        fs::remove_file(dest.path().join("tree")).expect("removes");
        fs::create_dir(dest.path().join("tree")).expect("creates");
        fs::write(dest.path().join("tree/x"), "kept").expect("writes");
        let error = write(&[layer.path().to_owned()], dest.path(), &CancellationToken::new())
            .expect_err("a full one does not");
        assert!(matches!(error, ExportErrorKind::Io { action: "write", path, .. } if path.ends_with("tree")));
        assert_eq!(fs::read_to_string(dest.path().join("tree/x")).expect("reads"), "kept");
    }
}
