//! Build contexts that arrive as a stream: unpacked into a private directory of the store.
//!
//! Owns recognising and unpacking archives. The entries come from whoever piped them in, so names that
//! leave the directory, devices, and archives that never end are refused. Start with [`ContextArchive`].

use std::io::{self, BufReader, Read};
use std::path::Path;

use stave_oci::Compression;
use stave_store::{ScratchDir, Store, StoreError};

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
    /// The state directory.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A compression nobody here can read.
    #[error("not supported yet: a {0} archive as the build context; use gzip, zstd or no compression")]
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
        match Compression::sniff(&head) {
            Compression::None => extract(stream, context.path())?,
            Compression::Gzip => extract(flate2::bufread::MultiGzDecoder::new(stream), context.path())?,
            Compression::Zstd => extract(zstd::Decoder::with_buffer(stream)?, context.path())?,
        }
        Ok(context)
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }
}

fn extract(stream: impl Read, folder: &Path) -> Result<(), ContextError> {
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
        // `unpack_in` refuses to write through a link that leads out of the folder.
        if !entry.unpack_in(folder)? && !name.trim_matches(['.', '/']).is_empty() {
            return Err(ContextError::Escape(name));
        }
    }
    Ok(())
}

/// Compressions that are recognised in order to be refused by name.
fn unreadable(head: &[u8]) -> Option<&'static str> {
    match head {
        [b'B', b'Z', b'h', ..] => Some("bzip2"),
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Some("xz"),
        [b'P', b'K', 3, 4, ..] => Some("zip"),
        _ => None,
    }
}

/// Whether a stream that begins with `head` is an archive rather than a Dockerfile.
pub fn looks_like_archive(head: &[u8]) -> bool {
    let is_tar = head.get(257..262) == Some(b"ustar".as_slice());
    is_tar || unreadable(head).is_some() || Compression::sniff(head) != Compression::None
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
        let folder = context.path().to_owned();
        drop(context);
        assert!(!folder.exists());
    }
}
