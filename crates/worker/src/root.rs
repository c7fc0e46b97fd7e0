//! A directory taken as a root file system: every path is resolved *inside* it, whatever its symlinks say.
//! Owns the walk that turns an untrusted path into a canonical one and that nothing is opened outside of the root.
//! Must not know ops, snapshots or contexts. Read [`RootDir`] first.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use stave_store::{FlatTree, Left, StoreError, open_inside};

/// Symlinks followed while resolving one path (the kernel's own limit is 40; images in the wild chain more
/// through alternatives, and BuildKit allows 255).
const SYMLINK_LIMIT: usize = 255;

/// Bytes of one path accepted from a definition, an archive or a symlink.
pub(crate) const PATH_LIMIT: usize = 4096 * 4;

/// An input/output failure and the place where it happened.
#[derive(Debug, thiserror::Error)]
#[error("{operation} `{}`", path.display())]
pub struct IoAt {
    operation: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

impl IoAt {
    /// The operating system's error.
    #[must_use]
    pub fn io(&self) -> &io::Error {
        &self.source
    }

    /// The path as the user would name it.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Adds the place to an error of the operating system.
pub(crate) trait At<T> {
    fn at(self, operation: &'static str, path: &Path) -> Result<T, IoAt>;
}

impl<T, E: Into<io::Error>> At<T> for Result<T, E> {
    fn at(self, operation: &'static str, path: &Path) -> Result<T, IoAt> {
        self.map_err(|source| IoAt { operation, path: path.to_owned(), source: source.into() })
    }
}

/// Whether a symlink that is the last component of a path is followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Last {
    Follow,
    Keep,
}

/// An open directory that acts as `/`.
#[derive(Debug)]
pub(crate) struct RootDir {
    fd: OwnedFd,
    /// The tree it is the root of, where nothing can be mounted.
    tree: Option<FlatTree>,
}

impl RootDir {
    /// Opens a directory of the host as a root.
    pub(crate) fn open(path: &Path) -> Result<Self, IoAt> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::openat(CWD, path, flags, Mode::empty())
            .map(|fd| Self { fd, tree: None })
            .at("opening directory", path)
    }

    /// Takes an open (`O_PATH` is enough) directory as a root.
    pub(crate) fn from_fd(fd: OwnedFd) -> Self {
        Self { fd, tree: None }
    }

    /// Opens a tree, and keeps it.
    pub(crate) fn of_tree(tree: FlatTree) -> Result<Self, IoAt> {
        Ok(Self { fd: Self::open(tree.root())?.fd, tree: Some(tree) })
    }

    /// Makes what changed in a tree the layer in `upper`; in what is mounted it is there already.
    pub(crate) fn collect(&self, upper: &Path) -> Result<(), StoreError> {
        self.tree.as_ref().map_or(Ok(()), |tree| tree.collect(upper, &Left::default()))
    }

    /// The root itself.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Opens a path inside the root; symlinks, `..` and absolute targets stay inside.
    pub(crate) fn open_at(&self, path: &Path, flags: OFlags, mode: Mode) -> io::Result<OwnedFd> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        Ok(open_inside(&self.fd, path, flags, mode)?)
    }

    /// Opens a directory for `*at` calls only.
    pub(crate) fn directory(&self, path: &Path) -> io::Result<OwnedFd> {
        self.open_at(path, OFlags::PATH | OFlags::DIRECTORY, Mode::empty())
    }

    /// Opens a regular file for reading. Nothing else is opened, not even to look at it: a device may do something when
    /// it is, and a FIFO waits.
    pub(crate) fn open_file(&self, path: &Path) -> io::Result<std::fs::File> {
        use std::os::fd::AsRawFd as _;
        let place = self.open_at(path, OFlags::PATH, Mode::empty())?;
        if FileType::from_raw_mode(rustix::fs::fstat(&place)?.st_mode) != FileType::RegularFile {
            return Err(Errno::INVAL.into());
        }
        let flags = OFlags::RDONLY | OFlags::NOCTTY | OFlags::CLOEXEC;
        let path = format!("/proc/self/fd/{}", place.as_fd().as_raw_fd());
        Ok(rustix::fs::open(path, flags, Mode::empty())?.into())
    }

    /// The begin of a regular file.
    pub(crate) fn read_file(&self, path: &Path, limit: u64) -> io::Result<Vec<u8>> {
        use std::io::Read as _;
        let mut bytes = Vec::new();
        self.open_file(path)?.take(limit).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// Status of a path whose last component is not followed; `None` when it does not exist.
    pub(crate) fn stat(&self, path: &Path) -> io::Result<Option<Stat>> {
        match self.open_at(path, OFlags::PATH | OFlags::NOFOLLOW, Mode::empty()) {
            Ok(fd) => Ok(Some(rustix::fs::fstat(&fd)?)),
            Err(error) if absent(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Turns any path into the relative path without symlinks, `.` and `..` that it means inside this root.
    /// Components that do not exist are taken as they are: the result may be created. The root is the empty path.
    pub(crate) fn resolve(&self, path: &Path, last: Last) -> io::Result<PathBuf> {
        let read = |current: &Path| -> io::Result<Option<OsString>> {
            let fd = match self.open_at(current, OFlags::PATH | OFlags::NOFOLLOW, Mode::empty()) {
                Ok(fd) => fd,
                Err(error) if absent(&error) => return Ok(None),
                Err(error) => return Err(error),
            };
            if FileType::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode) != FileType::Symlink {
                return Ok(None);
            }
            let target = rustix::fs::readlinkat(&fd, "", Vec::new())?;
            Ok(Some(OsString::from_vec(target.into_bytes())))
        };
        resolve_with(path, last, read)
    }

    /// The directory that holds a canonical path, and the last name. The root itself has neither.
    pub(crate) fn entry<'a>(&self, path: &'a Path) -> io::Result<(OwnedFd, &'a OsStr)> {
        let name = path.file_name().ok_or(Errno::BUSY)?;
        let parent = path.parent().unwrap_or(Path::new(""));
        Ok((self.directory(parent)?, name))
    }

    /// The names in a directory, sorted.
    pub(crate) fn list(&self, path: &Path) -> io::Result<Vec<OsString>> {
        let fd = self.open_at(path, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())?;
        names(&fd)
    }

    /// The first so many of them. Of a directory of millions no more are held.
    pub(crate) fn list_first(&self, path: &Path, most: usize) -> io::Result<Vec<OsString>> {
        let fd = self.open_at(path, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())?;
        let mut first = std::collections::BTreeSet::new();
        each_name(&fd, |name| {
            let is_late = first.len() >= most && first.last().is_none_or(|last: &OsString| name >= last);
            if !is_late {
                first.insert(name.to_owned());
            }
            if first.len() > most {
                first.pop_last();
            }
        })?;
        Ok(first.into_iter().collect())
    }
}

/// The names in a directory, sorted.
pub(crate) fn names(fd: &OwnedFd) -> io::Result<Vec<OsString>> {
    let mut names = Vec::new();
    each_name(fd, |name| names.push(name.to_owned()))?;
    names.sort_unstable();
    Ok(names)
}

fn each_name(fd: &OwnedFd, mut tell: impl FnMut(&OsStr)) -> io::Result<()> {
    for entry in rustix::fs::Dir::read_from(fd)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            tell(OsStr::from_bytes(name));
        }
    }
    Ok(())
}

/// Resolves a path given a way to read a symlink (`None`: not a symlink, or absent).
pub(crate) fn resolve_with(
    path: &Path,
    last: Last,
    mut read_link: impl FnMut(&Path) -> io::Result<Option<OsString>>,
) -> io::Result<PathBuf> {
    if path.as_os_str().len() > PATH_LIMIT {
        return Err(Errno::NAMETOOLONG.into());
    }
    let mut pending: Vec<OsString> = Vec::new();
    push_components(&mut pending, path);
    let mut resolved = PathBuf::new();
    let mut links = 0;
    while let Some(name) = pending.pop() {
        if name == ".." {
            resolved.pop();
            continue;
        }
        resolved.push(&name);
        if pending.is_empty() && last == Last::Keep {
            break;
        }
        if let Some(target) = read_link(&resolved)? {
            links += 1;
            if links > SYMLINK_LIMIT || target.len() > PATH_LIMIT {
                return Err(Errno::LOOP.into());
            }
            resolved.pop();
            let target = Path::new(&target);
            if target.is_absolute() {
                resolved.clear();
            }
            push_components(&mut pending, target);
        }
    }
    Ok(resolved)
}

/// Pushes the components so that the first one is popped first.
fn push_components(pending: &mut Vec<OsString>, path: &Path) {
    for component in path.components().rev() {
        match component {
            Component::Normal(name) => pending.push(name.to_owned()),
            Component::ParentDir => pending.push("..".into()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
}

/// A path made relative and lexically clean: no root, `.` or `..` (which never climbs above the root).
pub(crate) fn clean(path: &Path) -> PathBuf {
    let mut cleaned = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => cleaned.push(name),
            Component::ParentDir => {
                cleaned.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    cleaned
}

/// Whether the error says that the path, or a directory on the way, is not there.
pub(crate) fn absent(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::NOENT | Errno::NOTDIR))
}

/// Status of one name in an open directory, not followed; `None` when absent.
pub(crate) fn stat_at(directory: impl AsFd, name: &OsStr) -> io::Result<Option<Stat>> {
    match rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[track_caller]
    fn check(links: &[(&str, &str)], path: &str, last: Last, expected: &str) {
        let directory = tempfile::tempdir().expect("tempdir");
        std::fs::create_dir_all(directory.path().join("real/inner")).expect("dirs");
        for (name, target) in links {
            symlink(target, directory.path().join(name)).expect("symlink");
        }
        let root = RootDir::open(directory.path()).expect("open");
        assert_eq!(root.resolve(Path::new(path), last).expect("resolve"), Path::new(expected));
    }

    #[test]
    fn resolves_inside_the_root() {
        check(&[], "/a/../b/./c", Last::Follow, "b/c");
        check(&[], "../../etc/passwd", Last::Follow, "etc/passwd");
        check(&[("l", "/real")], "l/inner", Last::Follow, "real/inner");
        check(&[("l", "/real")], "l", Last::Keep, "l");
        check(&[("l", "/real")], "l", Last::Follow, "real");
        check(&[("l", "../../../../real/inner")], "l/../x", Last::Follow, "real/x");
        check(&[("l", "gone/deep")], "l/x", Last::Follow, "gone/deep/x");
        check(&[("l", "m"), ("m", "/")], "l", Last::Follow, "");
    }

    #[test]
    fn only_the_first_names_are_held() {
        let directory = tempfile::tempdir().expect("tempdir");
        for name in ["d", "a", "c", "b", "e"] {
            std::fs::write(directory.path().join(name), "").expect("writes");
        }
        let root = RootDir::open(directory.path()).expect("open");
        let first = |most| root.list_first(Path::new(""), most).expect("lists");
        assert_eq!(first(0), [""; 0]);
        assert_eq!(first(3), ["a", "b", "c"]);
        assert_eq!(first(5), ["a", "b", "c", "d", "e"]);
        assert_eq!(first(9), root.list(Path::new("")).expect("lists"));
    }

    #[test]
    fn nothing_but_a_file_is_opened() {
        use rustix::fs::inotify;
        let directory = tempfile::tempdir().expect("tempdir");
        let at = |name: &str| directory.path().join(name);
        std::fs::write(at("file"), "text").expect("writes");
        std::fs::create_dir(at("directory")).expect("makes");
        rustix::fs::mknodat(rustix::fs::CWD, at("pipe"), FileType::Fifo, Mode::from_raw_mode(0o600), 0)
            .expect("makes");
        symlink("pipe", at("link")).expect("symlink");
        symlink("file", at("other")).expect("symlink");
        let watch =
            inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC).expect("a watch");
        for name in ["file", "directory", "pipe"] {
            inotify::add_watch(&watch, at(name), inotify::WatchFlags::OPEN).expect("is watched");
        }
        let was_opened = || rustix::io::read(&watch, &mut [0; 4096]).is_ok();
        let root = RootDir::open(directory.path()).expect("open");
        for name in ["directory", "pipe", "link"] {
            let error = root.open_file(Path::new(name)).expect_err("is no file");
            assert_eq!(Errno::from_io_error(&error), Some(Errno::INVAL), "{name}");
            assert!(
                !was_opened(),
                "{name}: opening a pipe or device does something to whoever is at its other end"
            );
        }
        for name in ["file", "other"] {
            let text = std::io::read_to_string(root.open_file(Path::new(name)).expect("opens"));
            assert_eq!(text.expect("reads"), "text");
            assert!(was_opened(), "{name}: the watch tells");
        }
        assert!(root.open_file(Path::new("gone")).is_err());
    }

    #[test]
    fn a_symlink_loop_is_an_error() {
        let directory = tempfile::tempdir().expect("tempdir");
        symlink("b", directory.path().join("a")).expect("symlink");
        symlink("a", directory.path().join("b")).expect("symlink");
        let root = RootDir::open(directory.path()).expect("open");
        let error = root.resolve(Path::new("a/x"), Last::Follow).expect_err("loop");
        assert_eq!(Errno::from_io_error(&error), Some(Errno::LOOP));
    }

    #[test]
    fn an_absolute_symlink_cannot_reach_the_host() {
        let directory = tempfile::tempdir().expect("tempdir");
        symlink("/etc", directory.path().join("etc-link")).expect("symlink");
        let root = RootDir::open(directory.path()).expect("open");
        assert!(root.read_file(Path::new("etc-link/passwd"), 10).is_err());
    }
}
