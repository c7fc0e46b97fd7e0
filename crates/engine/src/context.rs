//! Build contexts that arrive as a stream: unpacked into a private directory of the store.
//!
//! Owns recognising and unpacking archives. The entries come from whoever piped them in, so names that
//! leave the directory, devices, and archives that never end are refused. Start with [`ContextArchive`].

use std::cell::Cell;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Component, Path};
use std::rc::Rc;

use rustix::fs::{CWD, Mode, OFlags, openat};
use stave_store::{ScratchDir, Store, StoreError, open_inside};
use stave_worker::{decompressed, is_compressed};

/// Most entries of one context archive.
const MAX_ENTRIES: u64 = 2_000_000;
/// Most bytes one context archive unpacks to.
const MAX_BYTES: u64 = 64 << 30;
/// Bytes that [`looks_like_archive`] wants to see.
pub const ARCHIVE_HEAD: usize = 512;

/// A temporary build context; removed with the value.
#[derive(Debug)]
pub struct ContextArchive {
    folder: ScratchDir,
}

/// A stream that cannot be a context.
#[derive(Debug, thiserror::Error)]
pub enum ContextError {
    /// The stream broke, or the disk is full.
    #[error("cannot unpack")]
    Io(#[from] io::Error),
    /// An entry that the file system or the archive's form does not allow.
    #[error("cannot unpack entry `{name}`")]
    Entry {
        /// As the archive names it.
        name: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The end of the stream is not the end of the archive.
    #[error("the archive is cut short")]
    Truncated,
    /// The state directory.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A compression nobody here can read.
    #[error(
        "not supported: a {0} archive as the build context; use a tar, compressed with gzip, bzip2, xz, zstd or not at all"
    )]
    Compression(&'static str),
    /// An entry that would leave the directory.
    #[error("entry `{0}` leads out of the archive")]
    Escape(String),
    /// An entry that has no business in a context.
    #[error("entry `{0}` is a device or pipe")]
    Special(String),
    /// More than any honest context.
    #[error("the archive has more than {MAX_ENTRIES} entries or {MAX_BYTES} bytes")]
    TooLarge,
}

impl ContextArchive {
    /// A context without files.
    ///
    /// # Errors
    /// When the state directory cannot be written.
    pub fn empty(store: &Store) -> Result<Self, ContextError> {
        Ok(Self { folder: store.scratch_dir()? })
    }

    /// Unpacks a tar, compressed or not.
    ///
    /// # Errors
    /// For a broken, oversized or hostile archive, and when the disk is full; nothing stays behind.
    pub fn unpack(store: &Store, stream: &mut dyn Read) -> Result<Self, ContextError> {
        let context = Self::empty(store)?;
        let mut stream = BufReader::with_capacity(1 << 16, stream);
        let head = io::BufRead::fill_buf(&mut stream)?.to_vec();
        if let Some(name) = unreadable(&head) {
            return Err(ContextError::Compression(name));
        }
        extract(decompressed(&head, stream)?, context.path())?;
        Ok(context)
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Opens a file of the archive for reading; whatever links there are, it is a file of the archive.
    ///
    /// # Errors
    /// As [`File::open`].
    pub fn open(&self, path: &Path) -> io::Result<File> {
        let inside = path.strip_prefix(self.path()).unwrap_or(path);
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let folder = openat(CWD, self.path(), flags | OFlags::DIRECTORY, Mode::empty())?;
        Ok(open_inside(folder, inside, flags, Mode::empty())?.into())
    }
}

fn extract(stream: impl Read, folder: &Path) -> Result<(), ContextError> {
    let has_ended = Rc::new(Cell::new(false));
    let stream = Ending { inner: stream, has_ended: Rc::clone(&has_ended) };
    extract_entries(stream, folder).map_err(|error| match error {
        // The tar reader has several words for it.
        ContextError::Io(_) | ContextError::Entry { .. } if has_ended.get() => ContextError::Truncated,
        error => error,
    })
}

/// Remembers whether a stream has ended.
struct Ending<R> {
    inner: R,
    has_ended: Rc<Cell<bool>>,
}

impl<R: Read> Read for Ending<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.has_ended.set(count == 0 && !buffer.is_empty());
        Ok(count)
    }
}

fn extract_entries(stream: impl Read, folder: &Path) -> Result<(), ContextError> {
    let root = folder.canonicalize()?;
    let mut archive = tar::Archive::new(stream);
    archive.set_preserve_permissions(true);
    archive.set_preserve_ownerships(false);
    archive.set_preserve_mtime(true);
    let (mut entries, mut bytes) = (0_u64, 0_u64);
    for entry in archive.entries()? {
        let mut entry = entry?;
        entries += 1;
        bytes = bytes.saturating_add(entry.size());
        if entries > MAX_ENTRIES || bytes > MAX_BYTES {
            return Err(ContextError::TooLarge);
        }
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let kind = entry.header().entry_type();
        if kind.is_character_special() || kind.is_block_special() || kind.is_fifo() {
            return Err(ContextError::Special(name));
        }
        let target = entry.link_name()?.filter(|_| kind.is_hard_link());
        if leads_out(&root, &entry.path()?) || target.is_some_and(|target| leads_out(&root, &target)) {
            return Err(ContextError::Escape(name));
        }
        // `unpack_in` has the same rules, but no words for them.
        let unpacked = entry.unpack_in(folder);
        let is_inside =
            unpacked.map_err(|error| ContextError::Entry { name: name.clone(), source: innermost(error) })?;
        if !is_inside && !name.trim_matches(['.', '/']).is_empty() {
            return Err(ContextError::Escape(name));
        }
    }
    Ok(())
}

/// Whether a name goes up, or through a link out of the folder. A leading slash is the folder itself.
fn leads_out(root: &Path, name: &Path) -> bool {
    let mut path = root.to_owned();
    for part in name.components() {
        match part {
            Component::ParentDir => return true,
            Component::Normal(part) => path.push(part),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    // The entry itself may be a link: it is replaced, not followed.
    let parents = path.ancestors().skip(1).take_while(|parent| parent.starts_with(root));
    parents.filter_map(|parent| parent.canonicalize().ok()).any(|parent| !parent.starts_with(root))
}

/// The system's own words: the ones around them repeat paths of the state directory.
fn innermost(error: io::Error) -> io::Error {
    let mut current: &(dyn std::error::Error + 'static) = &error;
    let mut found = None;
    loop {
        if let Some(io) = current.downcast_ref::<io::Error>() {
            found = Some(io::Error::new(io.kind(), io.to_string()));
        }
        match current.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(inner) => current = inner,
            None => match current.source() {
                Some(inner) => current = inner,
                None => return found.unwrap_or(error),
            },
        }
    }
}

/// Compressions that are recognised in order to be refused by name.
fn unreadable(head: &[u8]) -> Option<&'static str> {
    match head {
        [b'P', b'K', 3, 4, ..] => Some("zip"),
        _ => None,
    }
}

/// Whether a stream that begins with `head` is an archive rather than a Dockerfile.
pub fn looks_like_archive(head: &[u8]) -> bool {
    let is_tar = head.get(257..262) == Some(b"ustar".as_slice());
    is_tar || unreadable(head).is_some() || is_compressed(head)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(entries: &[(&str, &str)]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, text) in entries {
            let mut header = tar::Header::new_gnu();
            header.set_size(text.len() as u64);
            header.set_mode(0o644);
            // The checked setter would refuse the names under test.
            header.as_gnu_mut().expect("is GNU").name[..name.len()].copy_from_slice(name.as_bytes());
            header.set_cksum();
            builder.append(&header, text.as_bytes()).expect("appends");
        }
        builder.into_inner().expect("finishes")
    }

    #[test]
    fn archives_are_told_from_dockerfiles() {
        let tar = archive(&[("a", "b")]);
        for (head, expected) in [
            (&tar[..512], true),
            (&[0x1f, 0x8b, 8, 0][..], true),
            (b"BZh91AY", true),
            (b"FROM scratch\n", false),
            (b"", false),
        ] {
            assert_eq!(looks_like_archive(head), expected);
        }
    }

    #[test]
    fn unpacking_stays_inside() {
        let root = tempfile::tempdir().expect("a folder");
        let store = Store::open(root.path()).expect("opens");
        let good = archive(&[("./dir/file", "text"), ("Dockerfile", "FROM x")]);
        let context = ContextArchive::unpack(&store, &mut good.as_slice()).expect("unpacks");
        assert_eq!(std::fs::read_to_string(context.path().join("dir/file")).expect("is there"), "text");
        let bad = archive(&[("../escaped", "text")]);
        let error = ContextArchive::unpack(&store, &mut bad.as_slice()).expect_err("escapes");
        assert_eq!(error.to_string(), "entry `../escaped` leads out of the archive");
        let cut = &good[..good.len() - 1500];
        let error = ContextArchive::unpack(&store, &mut &*cut).expect_err("is cut");
        assert_eq!(error.to_string(), "the archive is cut short");
        std::os::unix::fs::symlink("/etc", context.path().join("etc")).expect("links");
        assert!(context.open(Path::new("etc/hostname")).is_err(), "nothing outside is read");
        assert!(context.open(&context.path().join("dir/file")).is_ok());
        assert!(leads_out(&context.path().canonicalize().expect("is there"), Path::new("etc/x")));
        let folder = context.path().to_owned();
        drop(context);
        assert!(!folder.exists());
    }
}
