//! Files of a container as its processes see them now, mount by mount. Paths stay inside their mount, whatever its
//! symlinks say.
//!
//! Must not know who asks. Read [`Container::open_file`] first.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, Stat};
use stave_sandbox::{MountSpec, RootFs};

use super::Container;
use crate::root::{Last, RootDir};

/// Something in a directory of a container.
#[derive(Debug)]
pub struct ContainerEntry {
    /// Its last name; empty for the root of a mount.
    pub name: OsString,
    /// What it is.
    pub stat: Stat,
    /// Where it leads, if it is a symlink.
    pub link: Option<OsString>,
}

impl Container {
    /// A regular file of the mount with this number.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`] for what is not there, [`io::ErrorKind::InvalidInput`] for what is no file,
    /// [`io::ErrorKind::Unsupported`] for a mount without files here, such as one in memory.
    pub fn open_file(&self, mount: usize, path: &Path) -> io::Result<File> {
        let root = self.root_of(mount)?;
        root.open_file(relative(path)).map_err(|error| match error.raw_os_error() {
            Some(code) if code == rustix::io::Errno::INVAL.raw_os_error() => {
                io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")
            }
            _ => error,
        })
    }

    /// What a path of the mount with this number is; a symlink at its end is not followed.
    ///
    /// # Errors
    /// As [`Self::open_file`].
    pub fn stat_file(&self, mount: usize, path: &Path) -> io::Result<ContainerEntry> {
        let root = self.root_of(mount)?;
        let real = root.resolve(path, Last::Keep)?;
        let name = real.file_name().unwrap_or_default().to_owned();
        entry(&root, &real, name)?.ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// The first entries of a directory of the mount with this number, by name.
    ///
    /// # Errors
    /// As [`Self::open_file`].
    pub fn list_files(&self, mount: usize, path: &Path, most: usize) -> io::Result<Vec<ContainerEntry>> {
        let root = self.root_of(mount)?;
        let real = root.resolve(path, Last::Follow)?;
        let names = root.list_first(&real, most)?;
        let entries = names.into_iter().map(|name| entry(&root, &real.join(&name), name));
        // One that went away in the meantime is not there.
        entries.filter_map(Result::transpose).collect()
    }

    fn root_of(&self, mount: usize) -> io::Result<RootDir> {
        let failed = |kind, text: &str| io::Error::new(kind, text.to_owned());
        let no_such = || failed(io::ErrorKind::NotFound, "no such mount");
        let target = self.op.place_of(self.op.mounts.get(mount).ok_or_else(no_such)?);
        let path = self.source_of(&target);
        let path = path.ok_or_else(|| failed(io::ErrorKind::Unsupported, "the mount has no files"))?;
        RootDir::open(&path).map_err(|error| io::Error::new(error.io().kind(), error.to_string()))
    }

    /// The directory of this machine that a mount shows.
    fn source_of(&self, target: &Path) -> Option<PathBuf> {
        if target == Path::new("/") {
            return match &self.mounts.root {
                RootFs::Directory { path } | RootFs::Chroot { path } => Some(path.clone()),
                RootFs::Overlay(_) => None,
            };
        }
        self.mounts.mounts.iter().find_map(|mount| match mount {
            MountSpec::Bind { source, target: at, .. } if *at == target => Some(source.clone()),
            _ => None,
        })
    }
}

fn entry(root: &RootDir, path: &Path, name: OsString) -> io::Result<Option<ContainerEntry>> {
    let Some(stat) = root.stat(path)? else { return Ok(None) };
    let link = match FileType::from_raw_mode(stat.st_mode) {
        FileType::Symlink => {
            let fd = root.open_at(path, OFlags::PATH | OFlags::NOFOLLOW, Mode::empty())?;
            let target = rustix::fs::readlinkat(&fd, "", Vec::new())?;
            Some(OsString::from_vec(target.into_bytes()))
        }
        _ => None,
    };
    Ok(Some(ContainerEntry { name, stat, link }))
}

/// A path below its root.
fn relative(path: &Path) -> &Path {
    path.strip_prefix("/").unwrap_or(path)
}
