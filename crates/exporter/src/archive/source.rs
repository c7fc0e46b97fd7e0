//! Reading files out of an archive of images: a tar that stays where it is, or a directory.
//!
//! Owns finding files by name, and the limits on what an archive may hold. Nothing is unpacked: names
//! in the archive are keys of a map and never paths of this machine. Must not know images.
//!
//! Read [`ArchiveSource`] first.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};

use crate::error::LoadErrorKind;

/// The most entries an archive may have.
pub const MAX_ENTRIES: usize = 200_000;
/// The largest extended header (long names, pax records) read, in bytes.
pub const MAX_EXTENSION: u64 = 1 << 20;
/// The most symbolic links followed from one name to its file.
const MAX_LINKS: usize = 8;
/// The longest name kept, in bytes.
const MAX_NAME: usize = 4096;
const BLOCK: u64 = 512;

/// Files by name.
#[derive(Debug, Clone)]
pub(crate) enum ArchiveSource {
    Tar { file: Arc<File>, names: Arc<HashMap<String, Place>> },
    Directory(Arc<OwnedFd>),
}

/// Where a name's bytes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    Bytes {
        offset: u64,
        size: u64,
    },
    /// Older archives of docker's share equal layers by links.
    Link(String),
}

/// A file of an archive, from its first byte.
#[derive(Debug)]
pub(crate) struct Content {
    file: Arc<File>,
    offset: u64,
    left: u64,
}

impl Content {
    /// Bytes not yet read.
    pub(crate) fn left(&self) -> u64 {
        self.left
    }
}

impl Read for Content {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        if most == 0 {
            return Ok(0);
        }
        let count = self.file.read_at(&mut buffer[..most], self.offset)?;
        if count == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the archive is cut"));
        }
        self.offset += count as u64;
        self.left -= count as u64;
        Ok(count)
    }
}

impl ArchiveSource {
    /// Opens an uncompressed tar.
    pub(crate) fn tar(file: File) -> Result<Self, LoadErrorKind> {
        let names = index(&file)?;
        Ok(Self::Tar { file: Arc::new(file), names: Arc::new(names) })
    }

    /// Opens a directory.
    pub(crate) fn directory(path: &Path) -> Result<Self, LoadErrorKind> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::openat(CWD, path, flags, Mode::empty()).map_err(io::Error::from)?;
        Ok(Self::Directory(Arc::new(directory)))
    }

    /// The file called `name`, if there is one.
    pub(crate) fn find(&self, name: &str) -> Result<Option<Content>, LoadErrorKind> {
        let name = normalise(name).ok_or_else(|| LoadErrorKind::Path(name.to_owned()))?;
        match self {
            Self::Tar { file, names } => {
                let mut name = name;
                for _ in 0..MAX_LINKS {
                    match names.get(&name) {
                        None => return Ok(None),
                        Some(Place::Bytes { offset, size }) => {
                            return Ok(Some(Content {
                                file: Arc::clone(file),
                                offset: *offset,
                                left: *size,
                            }));
                        }
                        Some(Place::Link(target)) => name = target.clone(),
                    }
                }
                Err(LoadErrorKind::Limit { what: "links from one file to another", limit: MAX_LINKS as u64 })
            }
            Self::Directory(root) => {
                // An image layout's own links may stay inside it.
                let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
                let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
                let file = match rustix::fs::openat2(root.as_fd(), &name, flags, Mode::empty(), resolve) {
                    Ok(fd) => File::from(fd),
                    Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => return Ok(None),
                    Err(rustix::io::Errno::XDEV | rustix::io::Errno::LOOP) => {
                        return Err(LoadErrorKind::Path(name));
                    }
                    Err(error) => return Err(io::Error::from(error).into()),
                };
                let metadata = file.metadata()?;
                if !metadata.is_file() {
                    return Ok(None);
                }
                Ok(Some(Content { file: Arc::new(file), offset: 0, left: metadata.len() }))
            }
        }
    }

    /// The whole of a small file, if it is there.
    pub(crate) fn read(
        &self,
        name: &str,
        limit: u64,
        what: &'static str,
    ) -> Result<Option<Vec<u8>>, LoadErrorKind> {
        let Some(mut content) = self.find(name)? else { return Ok(None) };
        if content.left() > limit {
            return Err(LoadErrorKind::Limit { what, limit });
        }
        let mut bytes = Vec::new();
        content.read_to_end(&mut bytes)?;
        Ok(Some(bytes))
    }
}

/// A name without `.` parts and double slashes; `None` when it is empty, absolute or climbs.
fn normalise(name: &str) -> Option<String> {
    if name.starts_with('/') || name.len() > MAX_NAME || name.contains('\0') {
        return None;
    }
    let mut parts = Vec::new();
    for part in name.split('/') {
        match part {
            "" | "." => {}
            ".." => return None,
            part => parts.push(part),
        }
    }
    (!parts.is_empty()).then(|| parts.join("/"))
}

/// The name a link at `name` points to, inside the archive.
fn link_target(name: &str, target: &str, symbolic: bool) -> Option<String> {
    if target.starts_with('/') {
        return None;
    }
    let mut parts: Vec<&str> = if symbolic { name.split('/').collect() } else { Vec::new() };
    // A symbolic link's target is relative to its directory, a hard link's to the root.
    parts.pop();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()?),
            part => parts.push(part),
        }
    }
    normalise(&parts.join("/"))
}

/// What a pax or GNU header says about the entry after it.
#[derive(Default)]
struct Extension {
    name: Option<String>,
    link: Option<String>,
    size: Option<u64>,
}

fn index(file: &File) -> Result<HashMap<String, Place>, LoadErrorKind> {
    let length = file.metadata()?.len();
    let mut names = HashMap::new();
    let mut extension = Extension::default();
    let mut position = 0;
    let mut entries = 0;
    while position + BLOCK <= length {
        let mut header = tar::Header::new_old();
        file.read_exact_at(header.as_mut_bytes(), position)?;
        position += BLOCK;
        if header.as_bytes().iter().all(|byte| *byte == 0) {
            return Ok(names);
        }
        check_header(&header, entries == 0)?;
        entries += 1;
        if entries > MAX_ENTRIES {
            return Err(LoadErrorKind::Limit { what: "archive entries", limit: MAX_ENTRIES as u64 });
        }
        let kind = header.entry_type();
        let own_size = header.entry_size().map_err(|_| LoadErrorKind::NotTar("bad size field"))?;
        let is_extension = kind.is_pax_local_extensions()
            || kind.is_pax_global_extensions()
            || kind.is_gnu_longname()
            || kind.is_gnu_longlink();
        let size = if is_extension { own_size } else { extension.size.unwrap_or(own_size) };
        let end = position.checked_add(size).filter(|end| *end <= length);
        let end = end.ok_or(LoadErrorKind::NotTar("an entry is cut"))?;
        if is_extension {
            if size > MAX_EXTENSION {
                return Err(LoadErrorKind::Limit { what: "extended tar header", limit: MAX_EXTENSION });
            }
            let mut bytes = vec![0; usize::try_from(size).unwrap_or(0)];
            file.read_exact_at(&mut bytes, position)?;
            extend(&mut extension, kind, &bytes)?;
        } else {
            let extension = std::mem::take(&mut extension);
            let place = Place::Bytes { offset: position, size };
            note(&mut names, &header, extension, place)?;
        }
        position = end.div_ceil(BLOCK) * BLOCK;
    }
    if entries == 0 {
        return Err(LoadErrorKind::NotTar(if length == 0 { "it is empty" } else { "it is too short" }));
    }
    // Some writers leave the end mark out.
    Ok(names)
}

fn check_header(header: &tar::Header, first: bool) -> Result<(), LoadErrorKind> {
    let bytes = header.as_bytes();
    let sum: u32 = bytes
        .iter()
        .enumerate()
        .map(|(i, byte)| if (148..156).contains(&i) { 32 } else { u32::from(*byte) })
        .sum();
    if header.cksum().ok() == Some(sum) {
        return Ok(());
    }
    Err(LoadErrorKind::NotTar(if first {
        "it does not start with a tar header"
    } else {
        "a header is damaged"
    }))
}

fn extend(extension: &mut Extension, kind: tar::EntryType, bytes: &[u8]) -> Result<(), LoadErrorKind> {
    let text = |bytes: &[u8]| {
        let bytes = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
        String::from_utf8_lossy(bytes).into_owned()
    };
    if kind.is_gnu_longname() {
        extension.name = Some(text(bytes));
    } else if kind.is_gnu_longlink() {
        extension.link = Some(text(bytes));
    } else if kind.is_pax_local_extensions() {
        for record in tar::PaxExtensions::new(bytes) {
            let record = record.map_err(|_| LoadErrorKind::NotTar("bad pax record"))?;
            match record.key_bytes() {
                b"path" => extension.name = Some(text(record.value_bytes())),
                b"linkpath" => extension.link = Some(text(record.value_bytes())),
                b"size" => {
                    let size = text(record.value_bytes()).parse();
                    extension.size = Some(size.map_err(|_| LoadErrorKind::NotTar("bad pax size"))?);
                }
                _ => {}
            }
        }
    }
    Ok(())
}

fn note(
    names: &mut HashMap<String, Place>,
    header: &tar::Header,
    extension: Extension,
    place: Place,
) -> Result<(), LoadErrorKind> {
    let lossy = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let name = extension.name.unwrap_or_else(|| lossy(&header.path_bytes()));
    let kind = header.entry_type();
    if kind.is_dir() {
        return Ok(());
    }
    // Refused even when nothing reads it: an archive that tries is not to be trusted with the rest.
    let key = normalise(&name).ok_or(LoadErrorKind::Path(name))?;
    let place = if kind.is_file() || kind.is_contiguous() {
        place
    } else if kind.is_symlink() || kind.is_hard_link() {
        let target = extension
            .link
            .unwrap_or_else(|| header.link_name_bytes().map(|bytes| lossy(&bytes)).unwrap_or_default());
        let inside = link_target(&key, &target, kind.is_symlink());
        Place::Link(inside.ok_or(LoadErrorKind::Path(target))?)
    } else {
        // Devices and the like have no meaning in an archive of images.
        return Ok(());
    };
    // The last entry of a name wins, as tar extracts.
    names.insert(key, place);
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn tar_of(build: impl FnOnce(&mut tar::Builder<Vec<u8>>)) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        build(&mut builder);
        builder.into_inner().expect("a vector takes all")
    }

    fn put(
        builder: &mut tar::Builder<Vec<u8>>,
        name: &str,
        kind: tar::EntryType,
        link: &str,
        content: &[u8],
    ) {
        let mut header = tar::Header::new_ustar();
        // Written raw, because the builder refuses the names that are of interest here.
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(kind);
        header.set_size(content.len() as u64);
        header.set_cksum();
        builder.append(&header, content).expect("appends");
    }

    fn open(bytes: &[u8]) -> Result<ArchiveSource, LoadErrorKind> {
        let mut file = tempfile::tempfile().expect("a temporary file");
        file.write_all(bytes).expect("writes");
        ArchiveSource::tar(file)
    }

    #[track_caller]
    fn check(bytes: &[u8], name: &str, expected: Result<Option<&str>, &str>) {
        let found = open(bytes).and_then(|archive| archive.read(name, 100, "test file"));
        let found = found.map(|bytes| bytes.map(|bytes| String::from_utf8(bytes).expect("UTF-8")));
        assert_eq!(
            found.as_ref().map(Option::as_deref).map_err(ToString::to_string),
            expected.map_err(str::to_owned)
        );
    }

    #[test]
    fn files_are_found_by_normalised_names() {
        let file = tar::EntryType::Regular;
        let bytes = tar_of(|tar| {
            put(tar, "./a/b", file, "", b"one");
            put(tar, "c", file, "", b"two");
            put(tar, "c", file, "", b"last wins");
            put(tar, "a/link", tar::EntryType::Symlink, "../c", b"");
            put(tar, "hard", tar::EntryType::Link, "a/b", b"");
        });
        check(&bytes, "a/b", Ok(Some("one")));
        check(&bytes, "a//./b", Ok(Some("one")));
        check(&bytes, "c", Ok(Some("last wins")));
        check(&bytes, "a/link", Ok(Some("last wins")));
        check(&bytes, "hard", Ok(Some("one")));
        check(&bytes, "nothing", Ok(None));
        check(&bytes, "../c", Err("path `../c` leads out of the archive"));
        check(&bytes, "/c", Err("path `/c` leads out of the archive"));
    }

    #[test]
    fn hostile_archives_are_refused() {
        let file = tar::EntryType::Regular;
        let one = |name: &str, kind, link: &str| tar_of(|tar| put(tar, name, kind, link, b""));
        check(&one("../x", file, ""), "a", Err("path `../x` leads out of the archive"));
        check(&one("/x", file, ""), "a", Err("path `/x` leads out of the archive"));
        let link = tar::EntryType::Symlink;
        check(&one("x", link, "/etc/passwd"), "a", Err("path `/etc/passwd` leads out of the archive"));
        check(&one("x", link, "../../etc"), "a", Err("path `../../etc` leads out of the archive"));
        check(&one("x", link, "x"), "x", Err("links from one file to another over the limit of 8"));
        check(b"", "a", Err("not a tar archive: it is empty"));
        check(b"FROM scratch", "a", Err("not a tar archive: it is too short"));
        check(&[7; 1024], "a", Err("not a tar archive: it does not start with a tar header"));
        let mut cut = tar_of(|tar| put(tar, "x", file, "", &[0; 2000]));
        cut.truncate(1024);
        check(&cut, "x", Err("not a tar archive: an entry is cut"));
        let large = tar_of(|tar| put(tar, "x", file, "", &[0; 101]));
        check(&large, "x", Err("test file over the limit of 100"));
        let long = tar_of(|tar| put(tar, "x", tar::EntryType::GNULongName, "", &[b'a'; (1 << 20) + 1]));
        check(&long, "x", Err("extended tar header over the limit of 1048576"));
    }

    #[test]
    fn long_names_are_read_in_both_forms() {
        let name = "d/".repeat(100) + "file";
        let gnu = tar_of(|tar| {
            let mut header = tar::Header::new_gnu();
            header.set_size(2);
            tar.append_data(&mut header, &name, &b"ok"[..]).expect("appends");
        });
        check(&gnu, &name, Ok(Some("ok")));
        let pax = tar_of(|tar| {
            tar.append_pax_extensions([("path", name.as_bytes())]).expect("appends");
            put(tar, "clipped", tar::EntryType::Regular, "", b"ok");
        });
        check(&pax, &name, Ok(Some("ok")));
        check(&pax, "clipped", Ok(None));
    }

    proptest::proptest! {
        #[test]
        fn damaged_archives_are_read_or_refused(place in 0usize..2048, value: u8, length in 0usize..=3072) {
            let mut bytes = tar_of(|tar| {
                put(tar, "a/b", tar::EntryType::Regular, "", b"one");
                put(tar, "link", tar::EntryType::Symlink, "a/b", b"");
            });
            bytes[place] = value;
            bytes.truncate(length);
            if let Ok(archive) = open(&bytes) {
                let found = archive.read("link", 100, "test file");
                proptest::prop_assert!(found.is_err() || found.is_ok_and(|found| found.is_none_or(|found| found.len() <= 100)));
            }
        }
    }

    #[test]
    fn directories_do_not_lead_out() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        std::fs::write(directory.path().join("a"), "1").expect("writes");
        std::os::unix::fs::symlink("a", directory.path().join("inside")).expect("links");
        std::os::unix::fs::symlink("/etc/passwd", directory.path().join("outside")).expect("links");
        let archive = ArchiveSource::directory(directory.path()).expect("opens");
        let read = |name| archive.read(name, 100, "test file").map_err(|error| error.to_string());
        assert_eq!(read("a"), Ok(Some(b"1".to_vec())));
        assert_eq!(read("inside"), Ok(Some(b"1".to_vec())));
        assert_eq!(read("outside"), Err("path `outside` leads out of the archive".to_owned()));
        assert_eq!(read("nothing/x"), Ok(None));
    }
}
