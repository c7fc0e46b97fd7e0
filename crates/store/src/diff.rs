//! From a layer directory to a layer archive. Start with [`Store::write_layer_tar`].
//!
//! The directory is what an overlay mount left: whiteouts are character devices 0/0, opaque
//! directories carry an xattr, and overlay's other notes to itself are left out. `redirect` and
//! `metacopy` would make files live elsewhere; mounts of ours turn them off, so finding one is an
//! error.

mod header;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read as _, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Dir, FileType, Mode, major, minor, open};
use rustix::io::Errno;
use stave_oci::Digest;

use crate::clamp::is_context_time;
use crate::hashing::ReadAheadHash;
use crate::view::{MergedEntry, directory_flags, is_whiteout};
use crate::{LayerId, MergedView, OverlayXattrs, Snapshot, Store, StoreError, owner};
use header::{Header, write_end, write_padding};

/// How exactly modification times are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Timestamps {
    /// Whole seconds, as BuildKit's and containerd's differs write them.
    Seconds,
    /// Nanoseconds, in a pax record for each entry that has them.
    Nanoseconds,
}

/// How a layer archive is written. The default is what [`Store::diff_id`] stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TarOptions {
    /// Modification times' precision.
    pub timestamps: Timestamps,
    /// Modification times after this (seconds since the epoch), and those of a build context, become this:
    /// `SOURCE_DATE_EPOCH`.
    pub clamp: Option<i64>,
}

impl Default for TarOptions {
    fn default() -> Self {
        Self { timestamps: Timestamps::Seconds, clamp: None }
    }
}

/// Bytes of a path in an archive (the kernel's `PATH_MAX`): a longer one could not be unpacked again.
const MAX_PATH: usize = 4095;
/// An archive's unit: a file's data is padded to it, in bytes.
const RECORD: u64 = 512;
/// Bytes copied at once.
const BUFFER: usize = 128 << 10;
/// What an error in writing the archive itself is about.
const OUTPUT: &str = "(layer archive)";

impl Store {
    /// Writes the layer as a deterministic pax tar: sorted, whiteouts as `.wh.` entries, without an
    /// entry for the root itself. Errors of `output` come as [`StoreError::Io`] (or `StorageFull`).
    pub fn write_layer_tar(
        &self,
        layer: LayerId,
        output: &mut impl Write,
        options: &TarOptions,
    ) -> Result<(), StoreError> {
        let paths = self.layer_paths(&Snapshot::new(vec![layer]))?;
        let xattrs = self.inner.config.xattrs;
        let mut writer = TarWriter::new(output, *options, xattrs);
        for path in paths {
            writer.directory(&path)?;
        }
        writer.finish()
    }

    /// The number of bytes that [`Self::write_layer_tar`] writes. No file is read for it.
    pub fn layer_tar_length(&self, layer: LayerId, options: &TarOptions) -> Result<u64, StoreError> {
        let mut counted = Length(0);
        let mut writer = TarWriter::new(&mut counted, *options, self.inner.config.xattrs);
        writer.skipped = Some(0);
        for path in self.layer_paths(&Snapshot::new(vec![layer]))? {
            writer.directory(&path)?;
        }
        let skipped = writer.skipped.unwrap_or_default();
        writer.finish()?;
        Ok(counted.0 + skipped)
    }

    /// Writes the whole file system of a snapshot as one tar, as `-o type=tar` gives it.
    pub fn write_snapshot_tar(
        &self,
        snapshot: &Snapshot,
        output: &mut impl Write,
        options: &TarOptions,
    ) -> Result<(), StoreError> {
        let view = self.view(snapshot)?;
        view.write_tar(output, options, self.inner.config.xattrs)
    }
}

impl MergedView {
    fn write_tar(
        &self,
        output: &mut impl Write,
        options: &TarOptions,
        xattrs: OverlayXattrs,
    ) -> Result<(), StoreError> {
        let mut writer = TarWriter::new(output, *options, xattrs);
        for entry in self.walk() {
            let entry = entry?;
            if !entry.path().as_os_str().is_empty() {
                writer.entry(&entry, entry.path())?;
            }
        }
        writer.finish()
    }
}

/// A directory of a layer that is being written.
struct Level {
    fd: Arc<OwnedFd>,
    path: PathBuf,
    names: std::vec::IntoIter<OsString>,
}

impl Level {
    fn open(fd: OwnedFd, root: &Path, path: PathBuf) -> Result<Self, StoreError> {
        let failed = |error: Errno| StoreError::io("read", root.join(&path), error);
        if path.as_os_str().len() > MAX_PATH {
            return Err(failed(Errno::NAMETOOLONG));
        }
        let names = sorted_names(&fd).map_err(failed)?.into_iter();
        Ok(Self { fd: Arc::new(fd), path, names })
    }
}

/// Writes entries as they come; keeps what is needed to find hard links.
struct TarWriter<'a, W> {
    output: &'a mut W,
    options: TarOptions,
    xattrs: OverlayXattrs,
    links: HashMap<(u64, u64), Vec<u8>>,
    buffer: Vec<u8>,
    /// Bytes of files and their padding that were left out, where only the length is asked for.
    skipped: Option<u64>,
}

/// Counts what is written to it.
struct Length(u64);

impl Write for Length {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The digest of what [`Store::write_layer_tar`] writes of the layer in this directory.
pub(crate) fn digest_of_directory(
    path: &Path,
    options: &TarOptions,
    xattrs: OverlayXattrs,
) -> Result<Digest, StoreError> {
    let mut hash = ReadAheadHash::new();
    let mut writer = TarWriter::new(&mut hash, *options, xattrs);
    writer.directory(path)?;
    writer.finish()?;
    Ok(hash.finish())
}

fn write_failed(error: io::Error) -> StoreError {
    StoreError::io("write", OUTPUT, error)
}

impl<'a, W: Write> TarWriter<'a, W> {
    fn new(output: &'a mut W, options: TarOptions, xattrs: OverlayXattrs) -> Self {
        Self { output, options, xattrs, links: HashMap::new(), buffer: vec![0; BUFFER], skipped: None }
    }

    fn finish(self) -> Result<(), StoreError> {
        write_end(self.output).and_then(|()| self.output.flush()).map_err(write_failed)
    }

    /// Writes the layer in the directory at `path`.
    fn directory(&mut self, path: &Path) -> Result<(), StoreError> {
        let top = open(path, directory_flags(), Mode::empty());
        self.layer(top.map_err(|error| StoreError::io("open", path, error))?, path)
    }

    /// Writes what a layer has. Not by recursion: a step may nest directories deeper than any stack reaches.
    fn layer(&mut self, top: OwnedFd, root: &Path) -> Result<(), StoreError> {
        let mut levels = vec![Level::open(top, root, PathBuf::new())?];
        while let Some(level) = levels.last_mut() {
            let Some(name) = level.names.next() else {
                levels.pop();
                continue;
            };
            let entry_path = level.path.join(&name);
            let entry = MergedEntry::lookup(&level.fd, &name, entry_path.clone())
                .map_err(|error| StoreError::io("read", root.join(&entry_path), error))?;
            let Some(entry) = entry else { continue };
            if is_whiteout(entry.stat()) {
                let mut hidden = OsString::from(".wh.");
                hidden.push(&name);
                self.marker(&level.path.join(hidden))?;
                continue;
            }
            self.entry(&entry, &entry_path)?;
            if entry.file_type() == FileType::Directory {
                let directory = entry.open_directory()?;
                if entry.is_opaque(self.xattrs)? {
                    self.marker(&entry_path.join(".wh..wh..opq"))?;
                }
                levels.push(Level::open(directory, root, entry_path)?);
            }
        }
        Ok(())
    }

    /// An empty file whose name says it all.
    fn marker(&mut self, path: &Path) -> Result<(), StoreError> {
        let header = Header { path: path.as_os_str().as_bytes().to_vec(), flag: b'0', ..Header::default() };
        header.write(self.output).map_err(write_failed)
    }

    fn entry(&mut self, entry: &MergedEntry, path: &Path) -> Result<(), StoreError> {
        let stat = entry.stat();
        let kind = entry.file_type();
        let flag = match kind {
            FileType::RegularFile => b'0',
            FileType::Symlink => b'2',
            FileType::CharacterDevice => b'3',
            FileType::BlockDevice => b'4',
            FileType::Directory => b'5',
            FileType::Fifo => b'6',
            // A socket means nothing without the process behind it.
            _ => return Ok(()),
        };
        let mut header = Header {
            path: path.as_os_str().as_bytes().to_vec(),
            flag,
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            xattrs: self.entry_xattrs(entry)?,
            ..Header::default()
        };
        self.set_time(&mut header, entry);
        match kind {
            FileType::Directory => header.path.push(b'/'),
            FileType::Symlink => header.link = entry.read_link()?.into_os_string().into_vec(),
            FileType::CharacterDevice | FileType::BlockDevice => {
                header.device = (major(stat.st_rdev), minor(stat.st_rdev));
            }
            _ => {}
        }
        if kind != FileType::Directory && stat.st_nlink > 1 {
            if let Some(first) = self.links.get(&(stat.st_dev, stat.st_ino)) {
                (header.flag, header.link) = (b'1', first.clone());
                header.xattrs.clear();
                return header.write(self.output).map_err(write_failed);
            }
            self.links.insert((stat.st_dev, stat.st_ino), header.path.clone());
        }
        if kind != FileType::RegularFile {
            return header.write(self.output).map_err(write_failed);
        }
        header.size = u64::try_from(stat.st_size).unwrap_or(0);
        header.write(self.output).map_err(write_failed)?;
        if let Some(skipped) = &mut self.skipped {
            *skipped += header.size.next_multiple_of(RECORD);
            return Ok(());
        }
        self.data(&mut entry.open()?, header.size, path)
    }

    fn set_time(&self, header: &mut Header, entry: &MergedEntry) {
        let (seconds, nanoseconds) = entry.mtime();
        header.seconds = seconds;
        header.nanoseconds = match self.options.timestamps {
            Timestamps::Seconds => 0,
            Timestamps::Nanoseconds => nanoseconds,
        };
        let becomes =
            |clamp: &i64| (seconds, nanoseconds) > (*clamp, 0) || is_context_time((seconds, nanoseconds));
        if let Some(clamp) = self.options.clamp.filter(becomes) {
            (header.seconds, header.nanoseconds) = (clamp, 0);
        }
    }

    /// The xattrs that belong to the content.
    fn entry_xattrs(&self, entry: &MergedEntry) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, StoreError> {
        let mut kept = BTreeMap::new();
        for (name, value) in entry.xattrs()? {
            let own = name.as_bytes().strip_prefix(self.xattrs.prefix().as_bytes());
            if let Some(feature @ (b"redirect" | b"metacopy")) = own {
                let feature = String::from_utf8_lossy(feature).into_owned();
                return Err(StoreError::OverlayFeature { path: entry.path().to_owned(), feature });
            }
            // Both spellings are overlay's; the SELinux label is the host's.
            let name = name.as_bytes();
            let foreign = name.starts_with(b"trusted.overlay.")
                || name.starts_with(b"user.overlay.")
                || name == b"security.selinux"
                || owner::is_record(name);
            if !foreign {
                kept.insert(name.to_vec(), value);
            }
        }
        Ok(kept)
    }

    fn data(&mut self, file: &mut File, size: u64, path: &Path) -> Result<(), StoreError> {
        let mut left = size;
        while left > 0 {
            let room = self.buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let count = match file.read(&mut self.buffer[..room]) {
                Ok(0) => Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                result => result,
            };
            let count = count.map_err(|error| StoreError::io("read", path, error))?;
            self.output.write_all(&self.buffer[..count]).map_err(write_failed)?;
            left -= count as u64;
        }
        write_padding(self.output, size).map_err(write_failed)
    }
}

/// The names in a directory, sorted by their bytes.
pub(crate) fn sorted_names(fd: &OwnedFd) -> Result<Vec<OsString>, Errno> {
    let mut names = Vec::new();
    for entry in Dir::read_from(fd)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(OsStr::from_bytes(name).to_owned());
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// Levels of a tree that are measured: one directory is open for each.
const MEASURED_DEPTH: usize = 512;

/// Allocated bytes of a directory tree, hard links counted once; what lies deeper than [`MEASURED_DEPTH`] is not.
/// The tree may be written to meanwhile.
pub(crate) fn allocated(path: &Path) -> Result<u64, StoreError> {
    let root =
        open(path, directory_flags(), Mode::empty()).map_err(|error| StoreError::io("open", path, error))?;
    let mut total = 0;
    let mut seen = std::collections::HashSet::new();
    // Opened when its turn comes: a directory may have more of them than files may be open.
    let mut pending: Vec<(usize, MergedEntry)> = Vec::new();
    let (mut fd, mut below, mut depth) = (Arc::new(root), PathBuf::new(), 0);
    loop {
        let names = sorted_names(&fd).map_err(|error| StoreError::io("read", path.join(&below), error))?;
        for name in names {
            let entry_path = below.join(&name);
            let entry = MergedEntry::lookup(&fd, &name, entry_path.clone())
                .map_err(|error| StoreError::io("read", path.join(&entry_path), error))?;
            let Some(entry) = entry else { continue };
            let stat = entry.stat();
            if stat.st_nlink > 1 && entry.file_type() != FileType::Directory && !seen.insert(stat.st_ino) {
                continue;
            }
            total += u64::try_from(stat.st_blocks).unwrap_or(0) * 512;
            if entry.file_type() == FileType::Directory && depth < MEASURED_DEPTH {
                pending.push((depth + 1, entry));
            }
        }
        (fd, below, depth) = loop {
            let Some((level, entry)) = pending.pop() else { return Ok(total) };
            match entry.open_directory() {
                Ok(directory) => break (Arc::new(directory), entry.path().to_owned(), level),
                // Removed since it was listed.
                Err(StoreError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        };
    }
}
