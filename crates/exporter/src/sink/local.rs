//! The root file system as a directory tree: modes, links, attributes and times. Owners are whoever asked for it, as
//! with BuildKit's clients.
//!
//! Must not leave the destination: names come from images, and the destination may already hold
//! symbolic links that an earlier image put there. Every name is resolved below the destination and
//! through no link; a link in the way is replaced, never followed.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, Timespec, Timestamps, XattrFlags};
use rustix::io::Errno;
use rustix::process::{getegid, geteuid};
use stave_store::{MergedView, is_context_time, without_mark};
use tokio_util::sync::CancellationToken;

use crate::error::ExportErrorKind;
use crate::merged::{Entry, Kind, Visit, walk};

/// Bytes of a file that are copied before it is asked again whether anybody waits.
const PIECE: u64 = 1 << 20;
/// Names that are tried for a file before it has its own: others may be left of runs that were killed.
const MAX_ASIDE: u32 = 1000;

/// Writes the merged tree into `dest`, every file with the time `epoch` if there is one. Returns bytes of files.
pub(crate) fn write(
    view: &MergedView,
    dest: &Path,
    epoch: Option<i64>,
    cancel: &CancellationToken,
) -> Result<u64, ExportErrorKind> {
    let io_at = |action| move |source| ExportErrorKind::Io { action, path: dest.to_owned(), source };
    std::fs::create_dir_all(dest).map_err(io_at("create"))?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root =
        rustix::fs::openat(CWD, dest, flags, Mode::empty()).map_err(|error| io_at("open")(error.into()))?;
    let mut tree = Tree { dest, root, is_root: is_root(), epoch, cancel, size: 0 };
    walk(view, &mut |visit| {
        tree.go_on().map_err(io_at("write"))?;
        match visit {
            Visit::Entry(entry) => tree.write(entry),
            Visit::Leave(entry) => tree.leave(entry),
        }
    })?;
    Ok(tree.size)
}

/// Root of a user namespace is an ordinary user.
fn is_root() -> bool {
    geteuid().is_root() && !stave_store::owner::may_be_recorded()
}

struct Tree<'a> {
    dest: &'a Path,
    root: OwnedFd,
    /// Only root may set every attribute.
    is_root: bool,
    epoch: Option<i64>,
    cancel: &'a CancellationToken,
    size: u64,
}

impl Tree<'_> {
    fn go_on(&self) -> io::Result<()> {
        if self.cancel.is_cancelled() { Err(io::ErrorKind::ConnectionAborted.into()) } else { Ok(()) }
    }

    fn write(&mut self, entry: &Entry) -> Result<(), ExportErrorKind> {
        let path = entry.path();
        let (parent, name) = (path.parent().unwrap_or(Path::new("")), path.file_name().unwrap_or_default());
        let (parent, name) = (self.directory(parent)?, Path::new(name));
        if entry.kind == Kind::File {
            self.size += self.file(entry, &parent, name)?;
            return Ok(());
        }
        let failed = |source: io::Error| self.failed(entry, source);
        make_room(&parent, name, entry.kind == Kind::Directory).map_err(failed)?;
        match &entry.kind {
            Kind::File => Ok(()),
            Kind::Directory => match rustix::fs::mkdirat(&parent, name, Mode::RWXU) {
                // Its metadata is set when its content is complete.
                Ok(()) | Err(Errno::EXIST) => Ok(()),
                Err(error) => Err(failed(error.into())),
            },
            Kind::HardLink(first) => {
                let directory = self.directory(first.parent().unwrap_or(Path::new("")))?;
                let source = first.file_name().unwrap_or_default();
                rustix::fs::linkat(&directory, source, &parent, name, AtFlags::empty())
                    .map_err(|error| failed(error.into()))
            }
            Kind::Symlink(target) => {
                rustix::fs::symlinkat(target, &parent, name).map_err(|error| failed(error.into()))?;
                self.settle_by_name(entry, &parent, name).map_err(failed)
            }
            Kind::Special(FileType::Socket) => Ok(()),
            Kind::Special(file_type) => {
                rustix::fs::mknodat(&parent, name, *file_type, Mode::RUSR | Mode::WUSR, entry.stat().st_rdev)
                    .map_err(|error| failed(error.into()))?;
                self.settle_by_name(entry, &parent, name).map_err(failed)
            }
        }
    }

    /// Writes a file; what has its name stays until it is whole.
    fn file(&self, entry: &Entry, parent: &OwnedFd, name: &Path) -> Result<u64, ExportErrorKind> {
        let failed = |source: io::Error| self.failed(entry, source);
        let mut aside = Aside::create(parent).map_err(failed)?;
        let mut content = entry.open()?;
        let mut size = 0;
        loop {
            self.go_on().map_err(failed)?;
            let copied = io::copy(&mut (&mut content).take(PIECE), &mut aside.file).map_err(failed)?;
            size += copied;
            if copied == 0 {
                break;
            }
        }
        self.settle(entry, aside.file.as_fd())?;
        aside.keep(name).map_err(failed)?;
        Ok(size)
    }

    fn leave(&self, entry: &Entry) -> Result<(), ExportErrorKind> {
        self.settle(entry, self.directory(entry.path())?.as_fd())
    }

    /// Opens a directory of the destination through no symbolic link; the empty path is its root.
    fn directory(&self, path: &Path) -> Result<OwnedFd, ExportErrorKind> {
        let name = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::openat2(&self.root, name, flags, Mode::empty(), resolve).map_err(|error| {
            ExportErrorKind::Io { action: "open", path: self.dest.join(path), source: error.into() }
        })
    }

    fn failed(&self, entry: &Entry, source: io::Error) -> ExportErrorKind {
        ExportErrorKind::Io { action: "write", path: self.dest.join(entry.path()), source }
    }

    /// Times last.
    fn settle(&self, entry: &Entry, file: BorrowedFd<'_>) -> Result<(), ExportErrorKind> {
        let xattrs = entry.xattrs()?;
        self.settle_open(entry, file, &xattrs).map_err(|source| self.failed(entry, source))
    }

    fn settle_open(
        &self,
        entry: &Entry,
        file: BorrowedFd<'_>,
        xattrs: &[(OsString, Vec<u8>)],
    ) -> io::Result<()> {
        let stat = entry.stat();
        // Before the mode, since it takes set-id bits. The destination itself is the user's.
        if !entry.path().as_os_str().is_empty() {
            owned(rustix::fs::fchown(file, Some(geteuid()), Some(getegid())))?;
        }
        rustix::fs::fchmod(file, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
        for (name, value) in xattrs {
            match rustix::fs::fsetxattr(file, name.as_os_str(), value, XattrFlags::empty()) {
                Ok(()) => {}
                // Not every file system keeps them, and capabilities and the like are root's to set.
                Err(Errno::OPNOTSUPP) => {}
                Err(Errno::PERM) if !self.is_root => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(rustix::fs::futimens(file, &self.times(entry))?)
    }

    fn times(&self, entry: &Entry) -> Timestamps {
        let seconds = entry.stat().st_mtime;
        let nanoseconds = u32::try_from(entry.stat().st_mtime_nsec).unwrap_or(0);
        // A mark is the store's own.
        let is_marked = is_context_time((seconds, nanoseconds));
        let nanoseconds = if is_marked { without_mark(nanoseconds) } else { nanoseconds };
        let own = Timespec { tv_sec: seconds, tv_nsec: nanoseconds.into() };
        let time = self.epoch.map_or(own, |tv_sec| Timespec { tv_sec, tv_nsec: 0 });
        Timestamps { last_access: time, last_modification: time }
    }

    /// For what cannot be opened without effect.
    fn settle_by_name(&self, entry: &Entry, parent: &OwnedFd, name: &Path) -> io::Result<()> {
        let stat = entry.stat();
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        owned(rustix::fs::chownat(parent, name, Some(geteuid()), Some(getegid()), flags))?;
        if !matches!(entry.kind, Kind::Symlink(_)) {
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let node = rustix::fs::openat(parent, name, flags, Mode::empty())?;
            let link = format!("/proc/self/fd/{}", node.as_raw_fd());
            rustix::fs::chmod(link.as_str(), Mode::from_raw_mode(stat.st_mode & 0o7777))?;
        }
        Ok(rustix::fs::utimensat(parent, name, &self.times(entry), AtFlags::SYMLINK_NOFOLLOW)?)
    }
}

/// Below a directory with a set-group-id bit files are born of its group, though they are to be the caller's. What is
/// another's stays that, and a group that is not in this user namespace can be given to nobody.
fn owned(taken: rustix::io::Result<()>) -> io::Result<()> {
    match taken {
        Ok(()) | Err(Errno::PERM | Errno::INVAL) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// A file that has no name of its own yet. One that is dropped before it gets that never was there.
struct Aside<'a> {
    parent: &'a OwnedFd,
    /// The name that it has meanwhile, where it needs one.
    name: Option<String>,
    file: File,
}

impl<'a> Aside<'a> {
    /// Without any name, if the file system can do that: then nothing is left of it, however this process ends.
    fn create(parent: &'a OwnedFd) -> io::Result<Self> {
        let mode = Mode::RUSR | Mode::WUSR;
        match rustix::fs::openat(parent, ".", OFlags::WRONLY | OFlags::TMPFILE | OFlags::CLOEXEC, mode) {
            Ok(file) => Ok(Self { parent, name: None, file: file.into() }),
            Err(_) => Self::named(parent),
        }
    }

    fn named(parent: &'a OwnedFd) -> io::Result<Self> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let (file, name) =
            free_name(|name| rustix::fs::openat(parent, name, flags, Mode::RUSR | Mode::WUSR))?;
        Ok(Self { parent, name: Some(name), file: file.into() })
    }

    /// Gives it its name; a file or link that has it goes, a directory only if it is empty.
    fn keep(mut self, name: &Path) -> io::Result<()> {
        if self.name.is_none() {
            let link = format!("/proc/self/fd/{}", self.file.as_raw_fd());
            let called = |name: &Path| {
                rustix::fs::linkat(CWD, link.as_str(), self.parent, name, AtFlags::SYMLINK_FOLLOW)
            };
            match called(name) {
                // It gets another one for as long as it takes to be renamed.
                Err(Errno::EXIST) => self.name = Some(free_name(|name| called(Path::new(name)))?.1),
                called => return Ok(called?),
            }
        }
        let renamed = || {
            let aside = self.name.as_deref().unwrap_or_default();
            rustix::fs::renameat(self.parent, aside, self.parent, name)
        };
        match renamed() {
            Err(Errno::ISDIR) => {
                rustix::fs::unlinkat(self.parent, name, AtFlags::REMOVEDIR)?;
                renamed()?;
            }
            renamed => renamed?,
        }
        self.name = None;
        Ok(())
    }
}

/// What `make` makes of the first name that nobody has.
fn free_name<T>(make: impl Fn(&str) -> rustix::io::Result<T>) -> io::Result<(T, String)> {
    for number in 0..MAX_ASIDE {
        let name = format!(".stave-{}-{number}", std::process::id());
        match make(&name) {
            Ok(made) => return Ok((made, name)),
            Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(Errno::EXIST.into())
}

impl Drop for Aside<'_> {
    fn drop(&mut self) {
        if let Some(name) = &self.name {
            // The failure that led here says more.
            let _left = rustix::fs::unlinkat(self.parent, name, AtFlags::empty());
        }
    }
}

/// Removes what is in the way of an entry: anything but a directory in a directory's place. A
/// directory in another kind's place goes only when it is empty; a tree of the user's stays.
fn make_room(parent: &OwnedFd, name: &Path, for_directory: bool) -> io::Result<()> {
    let stat = match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => stat,
        Err(Errno::NOENT) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
    match (is_directory, for_directory) {
        (true, true) => Ok(()),
        (true, false) => Ok(rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR)?),
        (false, _) => Ok(rustix::fs::unlinkat(parent, name, AtFlags::empty())?),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};

    use stave_store::Snapshot;

    use super::*;
    use crate::merged::tests::Fixture;

    fn directory() -> tempfile::TempDir {
        tempfile::tempdir().expect("a temporary directory")
    }

    /// Exports a layer that `build` fills.
    fn export(build: impl FnOnce(&Path), dest: &Path) -> Result<u64, ExportErrorKind> {
        let fixture = Fixture::new();
        let snapshot = fixture.layer(&Snapshot::scratch(), build);
        write(&fixture.view(&snapshot), dest, None, &CancellationToken::new())
    }

    #[test]
    fn a_tree_is_copied_with_its_metadata() {
        let outer = directory();
        let dest = outer.path().join("new/dir");
        let build = |root: &Path| {
            let file = root.join("d/f");
            fs::create_dir(root.join("d")).expect("creates");
            fs::write(&file, "text").expect("writes");
            fs::set_permissions(&file, fs::Permissions::from_mode(0o4751)).expect("sets");
            rustix::fs::setxattr(&file, "user.k", b"v", XattrFlags::empty()).expect("sets");
            fs::hard_link(&file, root.join("d/g")).expect("links");
            symlink("../d/f", root.join("d/s")).expect("links");
            rustix::fs::mkfifoat(CWD, root.join("p"), Mode::RUSR).expect("makes");
            fs::set_permissions(root.join("d"), fs::Permissions::from_mode(0o555)).expect("sets");
            let old = Timespec { tv_sec: 1_000_000, tv_nsec: 5 };
            let times = Timestamps { last_access: old, last_modification: old };
            rustix::fs::utimensat(CWD, root.join("d"), &times, AtFlags::empty()).expect("sets");
        };
        assert_eq!(export(build, &dest).expect("writes"), 4);
        let [f, g] = ["d/f", "d/g"].map(|name| fs::symlink_metadata(dest.join(name)).expect("is there"));
        assert_eq!((f.mode() & 0o7777, f.ino()), (0o4751, g.ino()));
        assert_eq!(fs::read_to_string(dest.join("d/g")).expect("reads"), "text");
        assert_eq!(fs::read_link(dest.join("d/s")).expect("is a link"), Path::new("../d/f"));
        let mut value = [0; 8];
        let length = rustix::fs::getxattr(dest.join("d/f"), "user.k", &mut value[..]).expect("is there");
        assert_eq!(&value[..length], b"v");
        let d = fs::metadata(dest.join("d")).expect("is there");
        assert_eq!((d.mode() & 0o7777, d.mtime(), d.mtime_nsec()), (0o555, 1_000_000, 5));
        let p = rustix::fs::stat(dest.join("p")).expect("is there");
        assert_eq!(FileType::from_raw_mode(p.st_mode), FileType::Fifo);
    }

    #[test]
    fn links_in_the_destination_are_replaced_not_followed() {
        let (dest, outside) = (directory(), directory());
        fs::write(outside.path().join("passwd"), "theirs").expect("writes");
        symlink(outside.path(), dest.path().join("etc")).expect("links");
        symlink(outside.path().join("passwd"), dest.path().join("file")).expect("links");
        let build = |root: &Path| {
            fs::create_dir(root.join("etc")).expect("creates");
            fs::write(root.join("etc/passwd"), "ours").expect("writes");
            fs::write(root.join("file"), "ours").expect("writes");
        };
        export(build, dest.path()).expect("writes");
        assert_eq!(fs::read_to_string(outside.path().join("passwd")).expect("reads"), "theirs");
        assert_eq!(fs::read_to_string(dest.path().join("etc/passwd")).expect("reads"), "ours");
        assert_eq!(fs::read_to_string(dest.path().join("file")).expect("reads"), "ours");
    }

    #[test]
    fn files_are_the_callers_in_another_groups_directory() {
        let dest = directory();
        // Only root gives a directory to another group, and in a user namespace only to one that this has.
        if std::os::unix::fs::chown(dest.path(), None, Some(8)).is_err() {
            return;
        }
        fs::set_permissions(dest.path(), fs::Permissions::from_mode(0o2775)).expect("sets");
        let build = |root: &Path| {
            fs::create_dir(root.join("d")).expect("creates");
            fs::write(root.join("d/f"), "x").expect("writes");
            fs::set_permissions(root.join("d/f"), fs::Permissions::from_mode(0o6755)).expect("sets");
            symlink("d/f", root.join("s")).expect("links");
        };
        export(build, dest.path()).expect("writes");
        for name in ["d", "d/f", "s"] {
            let found = fs::symlink_metadata(dest.path().join(name)).expect("is there");
            assert_eq!((found.uid(), found.gid()), (geteuid().as_raw(), getegid().as_raw()), "{name}");
        }
        assert_eq!(fs::metadata(dest.path().join("d/f")).expect("is there").mode() & 0o7777, 0o6755);
        assert_eq!(fs::metadata(dest.path()).expect("is there").gid(), 8);
    }

    #[test]
    fn what_the_user_has_stays_unless_it_is_in_the_way() {
        let dest = directory();
        let build = |root: &Path| {
            fs::write(root.join("a"), "new").expect("writes");
            fs::write(root.join("tree"), "file").expect("writes");
        };
        fs::write(dest.path().join("a"), "old").expect("writes");
        fs::write(dest.path().join("mine"), "kept").expect("writes");
        fs::create_dir(dest.path().join("tree")).expect("creates");
        export(build, dest.path()).expect("an empty directory gives way");
        assert_eq!(fs::read_to_string(dest.path().join("a")).expect("reads"), "new");
        assert_eq!(fs::read_to_string(dest.path().join("mine")).expect("reads"), "kept");
        fs::remove_file(dest.path().join("tree")).expect("removes");
        fs::create_dir(dest.path().join("tree")).expect("creates");
        fs::write(dest.path().join("tree/x"), "kept").expect("writes");
        let error = export(build, dest.path()).expect_err("a full one does not");
        assert!(matches!(error, ExportErrorKind::Io { action: "write", path, .. } if path.ends_with("tree")));
        assert_eq!(fs::read_to_string(dest.path().join("tree/x")).expect("reads"), "kept");
        let mut names: Vec<_> = fs::read_dir(dest.path())
            .expect("lists")
            .map(|entry| entry.expect("an entry").file_name())
            .collect();
        names.sort();
        assert_eq!(names, ["a", "mine", "tree"], "nothing half written is left");
    }

    #[test]
    fn a_file_is_there_whole_or_as_it_was() {
        let (fixture, dest) = (Fixture::new(), directory());
        let size = 2 * PIECE;
        let snapshot = fixture.layer(&Snapshot::scratch(), |root| {
            fs::File::create(root.join("a")).and_then(|file| file.set_len(size)).expect("writes");
        });
        fs::write(dest.path().join("a"), "old").expect("writes");
        let root =
            rustix::fs::open(dest.path(), OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).expect("opens");
        let cancel = CancellationToken::new();
        let tree = Tree { dest: dest.path(), root, is_root: false, epoch: None, cancel: &cancel, size: 0 };
        let write = || {
            let mut written = Ok(0);
            let whole = walk(&fixture.view(&snapshot), &mut |visit| {
                if let Visit::Entry(entry) = visit {
                    written = tree.file(entry, &tree.root, entry.path());
                }
                Ok(())
            });
            whole.expect("walks");
            written
        };
        // What was killed before may have left such a name.
        fs::write(dest.path().join(format!(".stave-{}-0", std::process::id())), "").expect("writes");
        assert_eq!(write().expect("writes"), size);
        assert_eq!(fs::metadata(dest.path().join("a")).expect("is there").len(), size);
        fs::write(dest.path().join("a"), "old").expect("writes");
        cancel.cancel();
        write().expect_err("nobody waits");
        assert_eq!(fs::read_to_string(dest.path().join("a")).expect("reads"), "old");
        assert_eq!(fs::read_dir(dest.path()).expect("lists").count(), 2);
        // With a name or without, what is killed and what ends, over a file and as a new one.
        for (number, create) in [Aside::create, Aside::named].into_iter().enumerate() {
            for name in ["a", &format!("new-{number}")] {
                let mut aside = create(&tree.root).expect("is made");
                io::Write::write_all(&mut aside.file, name.as_bytes()).expect("writes");
                aside.keep(Path::new(name)).expect("gets its name");
                assert_eq!(fs::read_to_string(dest.path().join(name)).expect("reads"), name);
            }
            drop(create(&tree.root).expect("is made"));
        }
        assert_eq!(fs::read_dir(dest.path()).expect("lists").count(), 4);
    }
}
