//! `ADD` of an archive: a tar, plain or compressed, unpacked under a directory of a root.
//! Owns the recognition by content (never by name) and the extraction. Hostile archives are expected: every path
//! is resolved inside the root, and nothing is created through a symlink that leads out.
//! Must not know layers: `.wh.` names are ordinary files here. Read [`unpack`] first.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek as _, SeekFrom};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;
use stave_store::LayerRoom;
use tokio_util::sync::CancellationToken;

use super::decoder::{COMPRESSION_HEAD, decompressed};
use super::place::{PARENT_MODE, Stamp, Time, create_directories, create_directory, remove_all};
use crate::root::{At as _, IoAt, Last, PATH_LIMIT, RootDir, clean, stat_at};
use crate::xattr;

/// Entries of one archive.
const ENTRY_LIMIT: usize = 20_000_000;

/// Bytes of the files of one archive, holes included: the tar reader writes holes out.
const BYTE_LIMIT: u64 = 1 << 40;

/// Bytes of the headers before one entry: long names, attributes. The tar reader keeps them in memory.
const HEADER_LIMIT: u64 = 4 << 20;

/// Bytes of a name that an error quotes.
const SHOWN: usize = 400;

/// Why an archive was not unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The operating system refused.
    #[error(transparent)]
    Io(#[from] IoAt),
    /// The archive is damaged.
    #[error("reading archive `{}`", archive.display())]
    Archive {
        /// The archive as named in the definition.
        archive: PathBuf,
        /// What is wrong with it.
        #[source]
        source: io::Error,
    },
    /// An entry cannot be placed.
    #[error("archive `{}`: entry `{}`: {fault}", archive.display(), entry.display())]
    Entry {
        /// The archive as named in the definition.
        archive: PathBuf,
        /// The entry.
        entry: PathBuf,
        /// What is wrong with it.
        fault: EntryFault,
    },
    /// The archive has more entries than any real one.
    #[error("archive `{}` has more than {ENTRY_LIMIT} entries", .0.display())]
    TooManyEntries(PathBuf),
    /// The archive unpacks to more than any real one.
    #[error("archive `{}` unpacks to more than {BYTE_LIMIT} bytes", .0.display())]
    TooLarge(PathBuf),
    /// The build was cancelled.
    #[error("cancelled")]
    Cancelled,
}

/// What is wrong with one archive entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EntryFault {
    /// The path, or the target of a link, is too long.
    #[error("path longer than {PATH_LIMIT} bytes")]
    PathTooLong,
    /// A hard link to something the archive did not bring.
    #[error("hard link to a file that is not there")]
    DanglingHardLink,
    /// A 0:0 character device, which means "deleted" in a layer.
    #[error("a 0:0 character device cannot be held by a layer")]
    Whiteout,
}

/// Where an archive goes, and what replaces its own metadata.
pub(crate) struct Unpacking<'a> {
    /// The root.
    pub root: &'a RootDir,
    /// Canonical path of the directory in it.
    pub directory: &'a Path,
    /// Owner instead of the archive's.
    pub owner: Option<(u32, u32)>,
    /// Time instead of the archive's.
    pub time: Option<Time>,
    /// Room for what is unpacked.
    pub room: Option<&'a LayerRoom>,
    /// Stops between entries.
    pub cancel: &'a CancellationToken,
}

/// Unpacks `file` if it is an archive; false when it is not one.
pub(crate) fn unpack(file: OwnedFd, name: &Path, to: &Unpacking<'_>) -> Result<bool, UnpackError> {
    let mut file = File::from(file);
    if !is_archive(&mut file).at("reading", name)? {
        return Ok(false);
    }
    let stamp = Stamp { owner: to.owner, time: to.time };
    create_directories(to.root, to.directory, PARENT_MODE, &stamp)?;
    let damaged = |source| UnpackError::Archive { archive: name.to_owned(), source };
    let left = Rc::new(Cell::new(HEADER_LIMIT));
    let input = Bounded { inner: decoder(file).map_err(damaged)?, left: Rc::clone(&left) };
    let mut archive = tar::Archive::new(input);
    let mut directories: Vec<(PathBuf, Time)> = Vec::new();
    let mut bytes = 0_u64;
    for (count, entry) in archive.entries().map_err(damaged)?.enumerate() {
        if to.cancel.is_cancelled() {
            return Err(UnpackError::Cancelled);
        }
        if count >= ENTRY_LIMIT {
            return Err(UnpackError::TooManyEntries(name.to_owned()));
        }
        let mut entry = entry.map_err(damaged)?;
        bytes = bytes.saturating_add(entry.size());
        if bytes > BYTE_LIMIT {
            return Err(UnpackError::TooLarge(name.to_owned()));
        }
        if let Some(room) = to.room {
            room.take(entry.size()).map_err(|error| damaged(io::Error::other(error)))?;
        }
        left.set(u64::MAX);
        Extraction { archive: name, to }.entry(&mut entry, &mut directories)?;
        // To its end, so that all that is read from here to the next entry is headers.
        io::copy(&mut entry, &mut io::sink()).map_err(damaged)?;
        left.set(HEADER_LIMIT);
    }
    // Last, because creating what is inside a directory changes its time.
    for (path, time) in directories.iter().rev() {
        if let Ok(fd) =
            to.root.open_at(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW, Mode::empty())
        {
            rustix::fs::futimens(&fd, &super::place::times(*time)).at("setting the time of", path)?;
        }
    }
    Ok(true)
}

fn is_archive(file: &mut File) -> io::Result<bool> {
    let mut found = false;
    if let Ok(reader) = decoder(file.try_clone()?) {
        let mut archive =
            tar::Archive::new(Bounded { inner: reader, left: Rc::new(Cell::new(HEADER_LIMIT)) });
        found = matches!(archive.entries()?.next(), Some(Ok(_)));
    }
    file.seek(SeekFrom::Start(0))?;
    Ok(found)
}

fn decoder(mut file: File) -> io::Result<Box<dyn Read>> {
    let mut magic = Vec::with_capacity(COMPRESSION_HEAD);
    file.seek(SeekFrom::Start(0))?;
    (&mut file).take(COMPRESSION_HEAD as u64).read_to_end(&mut magic)?;
    file.seek(SeekFrom::Start(0))?;
    decompressed(&magic, BufReader::with_capacity(256 << 10, file))
}

/// Reads no more than is left.
struct Bounded<R> {
    inner: R,
    left: Rc<Cell<u64>>,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let room = usize::try_from(self.left.get()).unwrap_or(usize::MAX).min(buffer.len());
        if room == 0 && !buffer.is_empty() {
            let reason = format!("the headers of an entry are longer than {HEADER_LIMIT} bytes");
            return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
        }
        let length = self.inner.read(&mut buffer[..room])?;
        self.left.set(self.left.get().saturating_sub(length as u64));
        Ok(length)
    }
}

struct Extraction<'a> {
    archive: &'a Path,
    to: &'a Unpacking<'a>,
}

impl Extraction<'_> {
    fn entry<R: Read>(
        &self,
        entry: &mut tar::Entry<'_, R>,
        directories: &mut Vec<(PathBuf, Time)>,
    ) -> Result<(), UnpackError> {
        let damaged = |source| UnpackError::Archive { archive: self.archive.to_owned(), source };
        let kind = entry.header().entry_type();
        let inside = clean(&PathBuf::from(std::ffi::OsStr::from_bytes(&entry.path_bytes())));
        if inside.as_os_str().len() > PATH_LIMIT {
            return Err(self.fault(&inside, EntryFault::PathTooLong));
        }
        let owner = match self.to.owner {
            Some(owner) => owner,
            None => {
                let header = entry.header();
                let (uid, gid) = (
                    or_empty(header.uid(), &header.as_old().uid),
                    or_empty(header.gid(), &header.as_old().gid),
                );
                (id(uid.map_err(damaged)?), id(gid.map_err(damaged)?))
            }
        };
        let mode = entry.header().mode().map_err(damaged)? & 0o7777;
        let (attributes, pax_time) = pax(entry).map_err(damaged)?;
        let seconds =
            i64::try_from(or_empty(entry.header().mtime(), &entry.header().as_old().mtime).map_err(damaged)?)
                .unwrap_or(i64::MAX);
        let time = self.to.time.or(pax_time).unwrap_or((seconds, 0));
        let path = self.place(&inside)?;
        let stamp = Stamp { owner: Some(owner), time: Some(time) };
        if kind.is_dir() {
            self.directory(&path, mode, &stamp, &attributes)?;
            directories.push((path, time));
            return Ok(());
        }
        if path.as_os_str().is_empty() {
            return Ok(());
        }
        let (parent, name) = self.to.root.entry(&path).at("opening the parent of", &path)?;
        remove_all(parent.as_fd(), name).at("replacing", &path)?;
        if kind.is_file() || kind.is_contiguous() || kind.is_gnu_sparse() {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let fd =
                rustix::fs::openat(&parent, name, flags, Mode::from_raw_mode(0o600)).at("creating", &path)?;
            let mut file = File::from(fd);
            io::copy(entry, &mut file).map_err(damaged)?;
            stamp.apply(&file, mode).at("setting metadata of", &path)?;
            if !attributes.is_empty() {
                xattr::write(&file, &attributes).at("setting attributes of", &path)?;
                rustix::fs::futimens(&file, &super::place::times(time)).at("setting the time of", &path)?;
            }
            return Ok(());
        }
        self.special(entry, &path, mode, &stamp)
    }

    fn special<R: Read>(
        &self,
        entry: &tar::Entry<'_, R>,
        path: &Path,
        mode: u32,
        stamp: &Stamp,
    ) -> Result<(), UnpackError> {
        let damaged = |source| UnpackError::Archive { archive: self.archive.to_owned(), source };
        let (parent, name) = self.to.root.entry(path).at("opening the parent of", path)?;
        let header = entry.header();
        let target = entry.link_name_bytes().unwrap_or_default();
        if target.len() > PATH_LIMIT {
            return Err(self.fault(path, EntryFault::PathTooLong));
        }
        let target = Path::new(std::ffi::OsStr::from_bytes(&target));
        let device = || -> Result<u64, UnpackError> {
            let major = header.device_major().map_err(damaged)?.unwrap_or(0);
            let minor = header.device_minor().map_err(damaged)?.unwrap_or(0);
            Ok(rustix::fs::makedev(major, minor))
        };
        let (file_type, number) = match header.entry_type() {
            tar::EntryType::Symlink => {
                rustix::fs::symlinkat(target, &parent, name).at("creating symlink", path)?;
                return Ok(stamp.apply_at(&parent, name).at("setting metadata of", path)?);
            }
            tar::EntryType::Link => return self.hard_link(target, path),
            tar::EntryType::Char => (FileType::CharacterDevice, device()?),
            tar::EntryType::Block => (FileType::BlockDevice, device()?),
            tar::EntryType::Fifo => (FileType::Fifo, 0),
            // Global headers and vendor records carry no file.
            _ => return Ok(()),
        };
        if file_type == FileType::CharacterDevice && number == 0 {
            return Err(self.fault(path, EntryFault::Whiteout));
        }
        let mode = Mode::from_raw_mode(mode);
        stave_store::owner::make_node(&parent, name, file_type, mode, number).at("creating", path)?;
        stamp.apply_at(&parent, name).at("setting metadata of", path)?;
        Ok(rustix::fs::chmodat(&parent, name, mode, AtFlags::empty()).at("setting the mode of", path)?)
    }

    /// Link targets are relative to the top of the archive, and resolved like every other path.
    fn hard_link(&self, target: &Path, path: &Path) -> Result<(), UnpackError> {
        let from = self.resolve(&clean(target))?;
        let dangling = |_| self.fault(path, EntryFault::DanglingHardLink);
        let (from_parent, from_name) = self.to.root.entry(&from).map_err(dangling)?;
        let (parent, name) = self.to.root.entry(path).at("opening the parent of", path)?;
        match rustix::fs::linkat(&from_parent, from_name, &parent, name, AtFlags::empty()) {
            Ok(()) => Ok(()),
            Err(Errno::NOENT | Errno::PERM) => Err(self.fault(path, EntryFault::DanglingHardLink)),
            Err(error) => Ok(Err(error).at("linking", path)?),
        }
    }

    fn directory(
        &self,
        path: &Path,
        mode: u32,
        stamp: &Stamp,
        attributes: &xattr::Xattrs,
    ) -> Result<(), UnpackError> {
        if let Ok((parent, name)) = self.to.root.entry(path)
            && let Some(stat) = stat_at(&parent, name).at("looking at", path)?
            && FileType::from_raw_mode(stat.st_mode) != FileType::Directory
        {
            remove_all(parent.as_fd(), name).at("replacing", path)?;
        }
        create_directory(self.to.root, path, mode, stamp)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
        let fd = self.to.root.open_at(path, flags, Mode::empty()).at("opening", path)?;
        stamp.apply(&fd, mode).at("setting metadata of", path)?;
        Ok(xattr::write(&fd, attributes).at("setting attributes of", path)?)
    }

    /// The canonical place of an entry; its parents exist afterwards.
    fn place(&self, inside: &Path) -> Result<PathBuf, UnpackError> {
        let path = self.resolve(inside)?;
        if let Some(parent) = path.parent() {
            let stamp = Stamp { owner: self.to.owner, time: self.to.time };
            create_directories(self.to.root, parent, PARENT_MODE, &stamp)?;
        }
        Ok(path)
    }

    fn resolve(&self, inside: &Path) -> Result<PathBuf, UnpackError> {
        Ok(self.to.root.resolve(&self.to.directory.join(inside), Last::Keep).at("resolving", inside)?)
    }

    fn fault(&self, entry: &Path, fault: EntryFault) -> UnpackError {
        // A name that is too long is not quoted whole.
        let start = &entry.as_os_str().as_bytes()[..entry.as_os_str().len().min(SHOWN)];
        let entry = PathBuf::from(std::ffi::OsStr::from_bytes(start));
        UnpackError::Entry { archive: self.archive.to_owned(), entry, fault }
    }
}

/// A number; a field that was never filled in is 0, as for Go's reader.
fn or_empty(read: io::Result<u64>, field: &[u8]) -> io::Result<u64> {
    if field.iter().all(|byte| matches!(byte, 0 | b' ')) { Ok(0) } else { read }
}

/// Ids beyond 32 bits cannot exist on Linux; they become nobody's.
fn id(raw: u64) -> u32 {
    u32::try_from(raw).unwrap_or(65_534)
}

/// Attributes and the exact time from the pax records of an entry.
fn pax<R: Read>(entry: &mut tar::Entry<'_, R>) -> io::Result<(xattr::Xattrs, Option<Time>)> {
    let (mut attributes, mut time) = (Vec::new(), None);
    let Some(records) = entry.pax_extensions()? else { return Ok((attributes, time)) };
    for record in records {
        let record = record?;
        let Ok(key) = record.key() else { continue };
        if let Some(name) = xattr::from_pax(key) {
            attributes.push((name.into(), record.value_bytes().to_vec()));
        } else if key == "mtime" {
            time = record.value().ok().and_then(parse_time);
        }
    }
    Ok((attributes, time))
}

/// `seconds[.fraction]` of a pax record.
fn parse_time(text: &str) -> Option<Time> {
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits: String = fraction.chars().chain(std::iter::repeat('0')).take(9).collect();
    Some((seconds.parse().ok()?, digits.parse().ok()?))
}
