//! The root file system of a snapshot, read from its layers' overlay directories without mounting.
//!
//! Owns overlayfs' rules (kernel documentation, filesystems/overlayfs): upper entries hide lower
//! ones, a character device 0/0 is a whiteout, `trusted.overlay.opaque=y` hides everything below a
//! directory. Must not know what is done with the entries. Names and link targets inside layers are
//! hostile: every path is resolved below its layer's root and through no symbolic link.
//!
//! Read [`walk`] and [`Entry`] first.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, Stat};

/// The deepest directory nesting walked.
pub(crate) const MAX_DEPTH: usize = 2048;
/// The largest list of attribute names, and the largest value, as the kernel limits them.
const MAX_XATTR: usize = 64 << 10;

/// Names of attributes that belong to overlayfs, not to the image.
const OVERLAY_ATTRIBUTES: [&[u8]; 2] = [b"trusted.overlay.", b"user.overlay."];

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    Directory,
    File,
    /// A further name of a file that was visited under the path given.
    HardLink(PathBuf),
    /// With its target, byte for byte.
    Symlink(OsString),
    /// A character or block device, pipe or socket.
    Special(FileType),
}

/// One name in the merged tree.
#[derive(Debug)]
pub(crate) struct Entry<'a> {
    /// Relative to the root; never empty, absolute, or with `..`.
    pub(crate) path: &'a Path,
    pub(crate) kind: Kind,
    pub(crate) stat: Stat,
    root: BorrowedFd<'a>,
}

/// A step of the walk: parents before children, names in byte order.
#[derive(Debug)]
pub(crate) enum Visit<'a> {
    /// An entry; for a directory, its content follows.
    Entry(&'a Entry<'a>),
    /// A directory's content is complete.
    Leave(&'a Entry<'a>),
}

/// Why a tree could not be walked: where, and what happened. `E` is the visitor's error.
#[derive(Debug)]
pub(crate) enum WalkError<E> {
    Io { path: PathBuf, source: io::Error },
    TooDeep { path: PathBuf },
    Visitor(E),
}

impl Entry<'_> {
    /// The content of a regular file.
    pub(crate) fn open(&self) -> io::Result<File> {
        Ok(File::from(open_beneath(self.root, self.path, OFlags::RDONLY)?))
    }

    /// Extended attributes in byte order of their names, without overlayfs' own.
    pub(crate) fn xattrs(&self) -> io::Result<Vec<(OsString, Vec<u8>)>> {
        let fd = open_beneath(self.root, self.path, OFlags::PATH | OFlags::NOFOLLOW)?;
        let link = format!("/proc/self/fd/{}", fd.as_raw_fd());
        let mut names = vec![0; MAX_XATTR];
        let length = match rustix::fs::listxattr(link.as_str(), &mut names[..]) {
            Ok(length) => length,
            // File systems without attributes, and kinds of file that cannot have them.
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::PERM) => return Ok(Vec::new()),
            Err(error) => return Err(error.into()),
        };
        let mut found = Vec::new();
        let mut value = vec![0; MAX_XATTR];
        for name in names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
            if OVERLAY_ATTRIBUTES.iter().any(|prefix| name.starts_with(prefix)) {
                continue;
            }
            let length = rustix::fs::getxattr(link.as_str(), name, &mut value[..])?;
            found.push((OsString::from_vec(name.to_vec()), value[..length].to_vec()));
        }
        found.sort();
        Ok(found)
    }
}

/// Visits every entry of the tree whose layers' directories are `layers`, top first.
pub(crate) fn walk<E>(
    layers: &[PathBuf],
    visitor: &mut dyn FnMut(Visit<'_>) -> Result<(), E>,
) -> Result<(), WalkError<E>> {
    let mut roots = Vec::with_capacity(layers.len());
    for layer in layers {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::openat(CWD, layer, flags, Mode::empty())
            .map_err(|error| WalkError::Io { path: layer.clone(), source: error.into() })?;
        roots.push(root);
    }
    let all: Vec<usize> = (0..roots.len()).collect();
    Walk { roots: &roots, links: HashMap::new(), visitor }.directory(Path::new(""), &all, 0)
}

struct Walk<'a, E> {
    roots: &'a [OwnedFd],
    /// First path of each file with several names, by layer and inode.
    links: HashMap<(usize, u64), PathBuf>,
    visitor: &'a mut dyn FnMut(Visit<'_>) -> Result<(), E>,
}

/// A name's winning layer and, for a directory, every layer that contributes.
struct Winner {
    stat: Stat,
    layers: Vec<usize>,
    hidden_below: bool,
}

impl<E> Walk<'_, E> {
    /// Visits the content of the directory `path`, to which `layers` (top first) contribute.
    fn directory(&mut self, path: &Path, layers: &[usize], depth: usize) -> Result<(), WalkError<E>> {
        if depth > MAX_DEPTH {
            return Err(WalkError::TooDeep { path: path.to_owned() });
        }
        let at = |path: &Path| {
            let path = path.to_owned();
            move |source| WalkError::Io { path, source }
        };
        let names = self.merge(path, layers).map_err(at(path))?;
        for (name, winner) in names {
            let Some(Winner { stat, layers, .. }) = winner else { continue };
            let path = path.join(&name);
            let roots = self.roots;
            let root = roots[layers[0]].as_fd();
            let kind = self.kind(&path, &stat, layers[0]).map_err(at(&path))?;
            let entry = Entry { path: &path, kind, stat, root };
            (self.visitor)(Visit::Entry(&entry)).map_err(WalkError::Visitor)?;
            if entry.kind == Kind::Directory {
                self.directory(&path, &layers, depth + 1)?;
                (self.visitor)(Visit::Leave(&entry)).map_err(WalkError::Visitor)?;
            }
        }
        Ok(())
    }

    /// The names in a directory. `None`: a whiteout.
    fn merge(&self, path: &Path, layers: &[usize]) -> io::Result<BTreeMap<OsString, Option<Winner>>> {
        let mut names: BTreeMap<OsString, Option<Winner>> = BTreeMap::new();
        for &layer in layers {
            let directory =
                open_beneath(self.roots[layer].as_fd(), path, OFlags::RDONLY | OFlags::DIRECTORY)?;
            for item in Dir::read_from(&directory)? {
                let item = item?;
                let name = OsStr::from_bytes(item.file_name().to_bytes());
                if name == "." || name == ".." {
                    continue;
                }
                let known = names.get_mut(name);
                if let Some(None | Some(Winner { hidden_below: true, .. })) = known {
                    continue;
                }
                let stat = rustix::fs::statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
                let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
                match known.and_then(Option::as_mut) {
                    Some(winner) if is_directory => {
                        winner.layers.push(layer);
                        winner.hidden_below = is_opaque(&directory, name)?;
                    }
                    Some(winner) => winner.hidden_below = true,
                    None if is_whiteout(&stat) => {
                        names.insert(name.to_owned(), None);
                    }
                    None => {
                        let hidden_below = !is_directory || is_opaque(&directory, name)?;
                        names.insert(
                            name.to_owned(),
                            Some(Winner { stat, layers: vec![layer], hidden_below }),
                        );
                    }
                }
            }
        }
        Ok(names)
    }

    fn kind(&mut self, path: &Path, stat: &Stat, layer: usize) -> io::Result<Kind> {
        let file_type = FileType::from_raw_mode(stat.st_mode);
        if file_type == FileType::Directory {
            return Ok(Kind::Directory);
        }
        if stat.st_nlink > 1 {
            if let Some(first) = self.links.get(&(layer, stat.st_ino)) {
                return Ok(Kind::HardLink(first.clone()));
            }
            self.links.insert((layer, stat.st_ino), path.to_owned());
        }
        Ok(match file_type {
            FileType::RegularFile => Kind::File,
            FileType::Symlink => {
                let fd = open_beneath(self.roots[layer].as_fd(), path, OFlags::PATH | OFlags::NOFOLLOW)?;
                let target = rustix::fs::readlinkat(&fd, "", Vec::new())?;
                Kind::Symlink(OsString::from_vec(target.into_bytes()))
            }
            special => Kind::Special(special),
        })
    }
}

fn is_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

/// Whether a directory hides what lower layers have under its name.
fn is_opaque(parent: &OwnedFd, name: &OsStr) -> io::Result<bool> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(parent, name, flags, Mode::empty())?;
    let link = format!("/proc/self/fd/{}", fd.as_raw_fd());
    for attribute in ["trusted.overlay.opaque", "user.overlay.opaque"] {
        let mut value = [0; 4];
        if let Ok(1) = rustix::fs::getxattr(link.as_str(), attribute, &mut value[..])
            && value[0] == b'y'
        {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Opens `path` below `root` through no symbolic link; the empty path is `root` itself.
pub(crate) fn open_beneath(root: BorrowedFd<'_>, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    // With NOFOLLOW and PATH a symbolic link as the last component is opened itself.
    Ok(rustix::fs::openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve)?)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn layer(build: impl FnOnce(&Path)) -> tempfile::TempDir {
        let directory = tempfile::tempdir().expect("a temporary directory");
        build(directory.path());
        directory
    }

    fn whiteout(path: &Path) {
        rustix::fs::mknodat(CWD, path, FileType::CharacterDevice, Mode::empty(), 0)
            .expect("whiteouts need no privilege");
    }

    #[track_caller]
    fn check(layers: &[&Path], expected: &[&str]) {
        let layers: Vec<_> = layers.iter().map(|path| path.to_path_buf()).collect();
        let mut found = Vec::new();
        let result = walk::<io::Error>(&layers, &mut |visit| {
            if let Visit::Entry(entry) = visit {
                let path = entry.path.display();
                found.push(match &entry.kind {
                    Kind::Directory => format!("{path}/"),
                    Kind::File => format!("{path}={}", io::read_to_string(entry.open()?)?),
                    Kind::HardLink(first) => format!("{path}=>{}", first.display()),
                    Kind::Symlink(target) => format!("{path}->{}", target.display()),
                    Kind::Special(kind) => format!("{path}:{kind:?}"),
                });
            }
            Ok(())
        });
        result.expect("walks");
        assert_eq!(found, expected);
    }

    #[test]
    fn upper_layers_win_and_whiteouts_hide() {
        let lower = layer(|root| {
            fs::create_dir(root.join("d")).expect("creates");
            fs::write(root.join("d/kept"), "1").expect("writes");
            fs::write(root.join("d/gone"), "1").expect("writes");
            fs::write(root.join("file"), "old").expect("writes");
            fs::create_dir(root.join("was-directory")).expect("creates");
            fs::write(root.join("was-directory/x"), "1").expect("writes");
        });
        let upper = layer(|root| {
            fs::create_dir(root.join("d")).expect("creates");
            whiteout(&root.join("d/gone"));
            fs::write(root.join("d/new"), "2").expect("writes");
            fs::write(root.join("file"), "new").expect("writes");
            fs::write(root.join("was-directory"), "now a file").expect("writes");
            whiteout(&root.join("never-was"));
        });
        check(
            &[upper.path(), lower.path()],
            &["d/", "d/kept=1", "d/new=2", "file=new", "was-directory=now a file"],
        );
        check(&[], &[]);
    }

    #[test]
    fn a_file_between_two_directories_cuts_the_lower_one_off() {
        let bottom = layer(|root| {
            fs::create_dir(root.join("d")).expect("creates");
            fs::write(root.join("d/old"), "1").expect("writes");
        });
        let middle = layer(|root| fs::write(root.join("d"), "file").expect("writes"));
        let top = layer(|root| fs::create_dir(root.join("d")).expect("creates"));
        check(&[top.path(), middle.path(), bottom.path()], &["d/"]);
    }

    #[test]
    fn opaque_directories_hide_what_is_below() {
        let bottom = layer(|root| {
            fs::create_dir(root.join("d")).expect("creates");
            fs::write(root.join("d/old"), "1").expect("writes");
        });
        let top = layer(|root| {
            fs::create_dir(root.join("d")).expect("creates");
            rustix::fs::setxattr(
                root.join("d"),
                "user.overlay.opaque",
                b"y",
                rustix::fs::XattrFlags::empty(),
            )
            .expect("sets");
        });
        check(&[top.path(), bottom.path()], &["d/"]);
    }

    #[test]
    fn links_keep_their_kind_and_lead_nowhere() {
        let only = layer(|root| {
            fs::write(root.join("a"), "1").expect("writes");
            fs::hard_link(root.join("a"), root.join("b")).expect("links");
            symlink("/etc/passwd", root.join("c")).expect("links");
        });
        // A directory below, in whose place a symbolic link stands above, is not entered through it.
        let trick = layer(|root| symlink("/etc", root.join("d")).expect("links"));
        let below = layer(|root| {
            fs::create_dir(root.join("d")).expect("creates");
            fs::write(root.join("d/x"), "1").expect("writes");
        });
        check(&[only.path(), trick.path(), below.path()], &["a=1", "b=>a", "c->/etc/passwd", "d->/etc"]);
    }

    #[test]
    fn attributes_of_overlayfs_are_not_the_images() {
        let only = layer(|root| {
            fs::write(root.join("a"), "1").expect("writes");
            for name in ["user.b", "user.a", "user.overlay.origin"] {
                rustix::fs::setxattr(root.join("a"), name, b"v", rustix::fs::XattrFlags::empty())
                    .expect("sets");
            }
        });
        let mut names = Vec::new();
        walk::<io::Error>(&[only.path().to_owned()], &mut |visit| {
            if let Visit::Entry(entry) = visit {
                names.extend(entry.xattrs()?.into_iter().map(|(name, _)| name));
            }
            Ok(())
        })
        .expect("walks");
        assert_eq!(names, ["user.a", "user.b"]);
    }
}
