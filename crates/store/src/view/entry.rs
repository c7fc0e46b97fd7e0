//! One entry of a merged view, by the directory of the layer that has it: its status, content and attributes.
//!
//! Never follows a symlink. Must not know what other layers hold. Start with [`MergedEntry`].

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat, lgetxattr, llistxattr, openat, readlinkat, statat};
use rustix::io::Errno;

use crate::{OverlayXattrs, StoreError, owner};

/// An entry of the merged view.
#[derive(Debug, Clone)]
pub struct MergedEntry {
    path: PathBuf,
    stat: Stat,
    parent: Arc<OwnedFd>,
    name: OsString,
}

impl MergedEntry {
    /// The entry `name` of one directory; `None` if there is none.
    pub(crate) fn lookup(parent: &Arc<OwnedFd>, name: &OsStr, path: PathBuf) -> Result<Option<Self>, Errno> {
        match statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(mut stat) => {
                owner::restore(&mut stat, parent, name);
                Ok(Some(Self { path, stat, parent: Arc::clone(parent), name: name.to_owned() }))
            }
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Relative to the root; empty for the root itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The directory that holds it, and its name there.
    pub(crate) fn place(&self) -> (&OwnedFd, &OsStr) {
        (&self.parent, &self.name)
    }

    /// `lstat` of the topmost version.
    pub fn stat(&self) -> &Stat {
        &self.stat
    }

    /// What kind of file it is.
    pub fn file_type(&self) -> FileType {
        FileType::from_raw_mode(self.stat.st_mode)
    }

    /// The modification time: seconds and nanoseconds since the epoch.
    pub fn mtime(&self) -> (i64, u32) {
        (self.stat.st_mtime, u32::try_from(self.stat.st_mtime_nsec).unwrap_or(0))
    }

    /// Opens a regular file for reading.
    pub fn open(&self) -> Result<File, StoreError> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let opened = match self.file_type() {
            FileType::RegularFile => openat(&self.parent, &self.name, flags, Mode::empty()),
            FileType::Directory => Err(Errno::ISDIR),
            _ => Err(Errno::INVAL),
        };
        opened.map(File::from).map_err(|error| self.failed("open", error))
    }

    /// A symlink's target.
    pub fn read_link(&self) -> Result<PathBuf, StoreError> {
        let target = readlinkat(&self.parent, &self.name, Vec::new());
        let target = target.map_err(|error| self.failed("read the link", error))?;
        Ok(OsString::from_vec(target.into_bytes()).into())
    }

    /// All extended attributes, overlay's own included.
    pub fn xattrs(&self) -> Result<Vec<(OsString, Vec<u8>)>, StoreError> {
        let path = self.through_parent();
        let failed = |error| self.failed("read the attributes of", error);
        let names = match growing(|buffer| llistxattr(&path, buffer)) {
            Err(Errno::NOTSUP) => return Ok(Vec::new()),
            result => result.map_err(failed)?,
        };
        let mut found = Vec::new();
        for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty()).map(OsStr::from_bytes) {
            found.push((name.to_owned(), growing(|buffer| lgetxattr(&path, name, buffer)).map_err(failed)?));
        }
        Ok(found)
    }

    /// Opens a directory: the topmost version of a merged one.
    pub fn open_directory(&self) -> Result<OwnedFd, StoreError> {
        openat(&self.parent, &self.name, directory_flags(), Mode::empty())
            .map_err(|error| self.failed("open", error))
    }

    pub(crate) fn is_opaque(&self, xattrs: OverlayXattrs) -> Result<bool, StoreError> {
        let mut value = [0u8; 1];
        match lgetxattr(self.through_parent(), xattrs.opaque(), &mut value) {
            Ok(_) => Ok(value == *b"y"),
            Err(Errno::NODATA | Errno::NOTSUP) => Ok(false),
            Err(error) => Err(self.failed("read the attributes of", error)),
        }
    }

    /// The calls on xattrs take paths only; this one starts at the open directory.
    fn through_parent(&self) -> PathBuf {
        Path::new("/proc/self/fd").join(self.parent.as_raw_fd().to_string()).join(&self.name)
    }

    fn failed(&self, action: &'static str, error: Errno) -> StoreError {
        StoreError::io(action, &self.path, error)
    }
}

/// Calls with a larger buffer until the answer fits.
fn growing(mut call: impl FnMut(&mut [u8]) -> Result<usize, Errno>) -> Result<Vec<u8>, Errno> {
    /// The kernel's limit for a list of names or a value (`XATTR_SIZE_MAX`).
    const MOST: usize = 64 << 10;
    let mut buffer = vec![0; 256];
    loop {
        match call(&mut buffer) {
            Ok(length) => {
                buffer.truncate(length);
                return Ok(buffer);
            }
            Err(Errno::RANGE) if buffer.len() < MOST => buffer.resize(MOST, 0),
            Err(error) => return Err(error),
        }
    }
}

/// Flags to open a directory that is not behind a symlink.
pub(crate) fn directory_flags() -> OFlags {
    OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC
}

/// Overlay's mark for "removed here".
pub(crate) fn is_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}
