//! Writing tar entries whose bytes depend on the entry alone: what archives and file system exports
//! are made of.
//!
//! Owns headers: POSIX ustar, with a pax extended header (POSIX.1-2001 pax, "pax Header Block") only
//! for what ustar cannot say, and `SCHILY.xattr.` records as Go's and GNU's tars read them.
//!
//! Read [`TarWriter`] first.

use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::FileType;

use crate::error::ExportErrorKind;
use crate::merged::{Entry, Kind};

/// The largest number ustar's twelve-digit fields (size, time) hold.
const MAX_OCTAL_12: u64 = 0o77_777_777_777;
/// The largest number ustar's eight-digit fields (owner, group, device) hold.
const MAX_OCTAL_8: u64 = 0o7_777_777;
const BLOCK: u64 = 512;

/// A tar in the making. [`TarWriter::finish`] writes its end.
pub(crate) struct TarWriter<W: Write> {
    output: W,
    /// The time of every entry; `None`: their own.
    epoch: Option<i64>,
    /// Whether their own times are written to the nanosecond.
    is_exact: bool,
}

/// Everything a header says.
struct Header<'a> {
    path: Vec<u8>,
    link: Vec<u8>,
    kind: tar::EntryType,
    mode: u32,
    owner: (u64, u64),
    mtime: i64,
    /// Written in a pax record if there are any.
    nanoseconds: u32,
    size: u64,
    device: (u32, u32),
    xattrs: &'a [(std::ffi::OsString, Vec<u8>)],
}

impl Header<'_> {
    fn plain(path: &str, kind: tar::EntryType, mode: u32, size: u64) -> Self {
        Header {
            path: path.as_bytes().to_vec(),
            link: Vec::new(),
            kind,
            mode,
            owner: (0, 0),
            mtime: 0,
            nanoseconds: 0,
            size,
            device: (0, 0),
            xattrs: &[],
        }
    }
}

impl<W: Write> TarWriter<W> {
    pub(crate) fn new(output: W) -> Self {
        Self { output, epoch: None, is_exact: false }
    }

    /// The same, with times to the nanosecond: for a tar that becomes a layer of the store.
    pub(crate) fn exact(self) -> Self {
        Self { is_exact: true, ..self }
    }

    /// The same, with every entry at `epoch` if there is one.
    pub(crate) fn dated(self, epoch: Option<i64>) -> Self {
        Self { epoch, ..self }
    }

    /// A directory of an archive; `path` ends in `/`.
    pub(crate) fn directory(&mut self, path: &str) -> io::Result<()> {
        let mtime = self.epoch.unwrap_or(0);
        self.header(&Header { mtime, ..Header::plain(path, tar::EntryType::Directory, 0o755, 0) })
    }

    /// A file of an archive with all its bytes.
    pub(crate) fn bytes(&mut self, path: &str, bytes: &[u8]) -> io::Result<()> {
        self.file(path, bytes.len() as u64, bytes)
    }

    /// A file of an archive, of exactly `size` bytes from `content`.
    pub(crate) fn file(&mut self, path: &str, size: u64, mut content: impl Read) -> io::Result<()> {
        self.file_with(path, size, |output| io::copy(&mut content, output).map(drop))
    }

    /// A file of an archive, of exactly `size` bytes that `write` writes.
    pub(crate) fn file_with<E: From<io::Error>>(
        &mut self,
        path: &str,
        size: u64,
        write: impl FnOnce(&mut dyn Write) -> Result<(), E>,
    ) -> Result<(), E> {
        let mtime = self.epoch.unwrap_or(0);
        self.header(&Header { mtime, ..Header::plain(path, tar::EntryType::Regular, 0o644, size) })?;
        let mut exact = Exact { output: &mut self.output, left: size };
        write(&mut exact)?;
        if exact.left != 0 {
            return Err(
                io::Error::new(io::ErrorKind::UnexpectedEof, "content is shorter than announced").into()
            );
        }
        self.pad(size)?;
        Ok(())
    }

    /// An entry of a root file system that lies in `folder`; an empty one is the top.
    pub(crate) fn entry_below(&mut self, folder: &Path, entry: &Entry) -> Result<(), ExportErrorKind> {
        let stat = entry.stat();
        let (kind, link) = match &entry.kind {
            Kind::Directory => (tar::EntryType::Directory, Vec::new()),
            Kind::File => (tar::EntryType::Regular, Vec::new()),
            Kind::HardLink(first) => {
                (tar::EntryType::Link, folder.join(first).into_os_string().into_encoded_bytes())
            }
            Kind::Symlink(target) => (tar::EntryType::Symlink, target.as_os_str().as_bytes().to_vec()),
            Kind::Special(FileType::CharacterDevice) => (tar::EntryType::Char, Vec::new()),
            Kind::Special(FileType::BlockDevice) => (tar::EntryType::Block, Vec::new()),
            Kind::Special(FileType::Fifo) => (tar::EntryType::Fifo, Vec::new()),
            // A socket is a running process's, and no tar has a form for it.
            Kind::Special(_) => return Ok(()),
        };
        let size = if entry.kind == Kind::File { u64::try_from(stat.st_size).unwrap_or(0) } else { 0 };
        // A hard link's attributes are those of the entry it names.
        let xattrs = if matches!(entry.kind, Kind::HardLink(_)) { Vec::new() } else { entry.xattrs()? };
        let nanoseconds = u32::try_from(stat.st_mtime_nsec).unwrap_or(0);
        let is_exact = self.is_exact && self.epoch.is_none();
        self.header(&Header {
            path: tar_path(&folder.join(entry.path()), entry.kind == Kind::Directory),
            link,
            kind,
            mode: stat.st_mode & 0o7777,
            owner: (u64::from(stat.st_uid), u64::from(stat.st_gid)),
            mtime: self.epoch.unwrap_or(stat.st_mtime),
            nanoseconds: if is_exact { nanoseconds } else { 0 },
            size,
            device: (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev)),
            xattrs: &xattrs,
        })?;
        if size > 0 {
            // The file is in a committed layer: only a damaged store changes its size.
            let mut exact = Exact { output: &mut self.output, left: size };
            io::copy(&mut entry.open()?, &mut exact)?;
            if exact.left != 0 {
                return Err(
                    io::Error::new(io::ErrorKind::UnexpectedEof, "file shrank while it was read").into()
                );
            }
            self.pad(size)?;
        }
        Ok(())
    }

    /// An empty file whose name says that another one is gone.
    pub(crate) fn whiteout(&mut self, path: &Path) -> io::Result<()> {
        let path = tar_path(path, false);
        self.header(&Header { path, mode: 0, ..Header::plain("", tar::EntryType::Regular, 0, 0) })
    }

    /// Writes the two zero blocks that end a tar.
    pub(crate) fn finish(mut self) -> io::Result<W> {
        self.output.write_all(&[0; 2 * BLOCK as usize])?;
        self.output.flush()?;
        Ok(self.output)
    }

    fn pad(&mut self, size: u64) -> io::Result<()> {
        let rest = (BLOCK - size % BLOCK) % BLOCK;
        self.output.write_all(&[0; BLOCK as usize][..usize::try_from(rest).unwrap_or(0)])
    }

    fn header(&mut self, header: &Header<'_>) -> io::Result<()> {
        let records = pax_records(header);
        if !records.is_empty() {
            let name = b"PaxHeaders.0/pax".to_vec();
            let pax = Header {
                path: name,
                ..Header::plain("", tar::EntryType::XHeader, 0o644, records.len() as u64)
            };
            self.output.write_all(ustar(&pax).as_bytes())?;
            self.output.write_all(&records)?;
            self.pad(records.len() as u64)?;
        }
        self.output.write_all(ustar(header).as_bytes())
    }
}

/// The path as tars spell it: relative, directories with a slash.
fn tar_path(path: &Path, directory: bool) -> Vec<u8> {
    let mut bytes = path.as_os_str().as_bytes().to_vec();
    if directory {
        bytes.push(b'/');
    }
    bytes
}

/// The extended records an entry needs beyond its ustar header.
fn pax_records(header: &Header<'_>) -> Vec<u8> {
    let mut records = Vec::new();
    let mut record = |key: &[u8], value: &[u8]| {
        // The length counts its own digits.
        let rest = key.len() + value.len() + 3;
        let mut length = rest;
        while length != rest + length.to_string().len() {
            length = rest + length.to_string().len();
        }
        records.extend_from_slice(length.to_string().as_bytes());
        records.push(b' ');
        records.extend_from_slice(key);
        records.push(b'=');
        records.extend_from_slice(value);
        records.push(b'\n');
    };
    if header.path.len() > 100 || !header.path.is_ascii() {
        record(b"path", &header.path);
    }
    if header.link.len() > 100 || !header.link.is_ascii() {
        record(b"linkpath", &header.link);
    }
    for (key, number, most) in [
        ("size", header.size, MAX_OCTAL_12),
        ("uid", header.owner.0, MAX_OCTAL_8),
        ("gid", header.owner.1, MAX_OCTAL_8),
    ] {
        if number > most {
            record(key.as_bytes(), number.to_string().as_bytes());
        }
    }
    // Before 1970 a fraction counts the other way; nobody needs it there.
    if header.nanoseconds > 0 && header.mtime >= 0 {
        record(b"mtime", format!("{}.{:09}", header.mtime, header.nanoseconds).as_bytes());
    } else if u64::try_from(header.mtime).map_or(true, |mtime| mtime > MAX_OCTAL_12) {
        record(b"mtime", header.mtime.to_string().as_bytes());
    }
    for (name, value) in header.xattrs {
        let key = [b"SCHILY.xattr.", OsStr::as_bytes(name)].concat();
        record(&key, value);
    }
    records
}

/// The ustar header, with what does not fit clipped: the pax records before it say it in full.
fn ustar(header: &Header<'_>) -> tar::Header {
    let mut out = tar::Header::new_ustar();
    {
        let raw = out.as_old_mut();
        let name = &header.path[..header.path.len().min(100)];
        raw.name[..name.len()].copy_from_slice(name);
        let link = &header.link[..header.link.len().min(100)];
        raw.linkname[..link.len()].copy_from_slice(link);
    }
    out.set_entry_type(header.kind);
    out.set_mode(header.mode);
    out.set_uid(header.owner.0.min(MAX_OCTAL_8));
    out.set_gid(header.owner.1.min(MAX_OCTAL_8));
    out.set_size(header.size.min(MAX_OCTAL_12));
    out.set_mtime(u64::try_from(header.mtime).unwrap_or(0).min(MAX_OCTAL_12));
    if header.kind.is_character_special() || header.kind.is_block_special() {
        // Both fit: the kernel's majors have 12 bits and its minors 20.
        let _always_ustar = out.set_device_major(header.device.0).and(out.set_device_minor(header.device.1));
    }
    out.set_cksum();
    out
}

/// Passes on at most `left` bytes.
struct Exact<'a, W: Write> {
    output: &'a mut W,
    left: u64,
}

impl<W: Write> Write for Exact<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() as u64 > self.left {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "content is longer than announced"));
        }
        let count = self.output.write(bytes)?;
        self.left -= count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.output.flush()
    }
}
