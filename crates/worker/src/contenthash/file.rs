//! The digest of one file: what docker's oldest checksum of a tar took from a header, then the bytes.

use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};
use stave_oci::Digest;

use crate::context::fingerprint::{Fingerprints, Trust, key, now, trust};
use crate::digest::Owners;
use crate::input::Input;
use crate::root::{At as _, IoAt};
use crate::tree::{Kind, Meta, Node};
use crate::xattr;

/// Bytes read at a time.
const BUFFER: usize = 128 << 10;

/// What is remembered of files' digests, beside the local cache's fingerprints.
#[derive(Debug)]
pub(crate) struct FileDigests(Fingerprints);

impl FileDigests {
    /// Remembers nothing.
    pub(crate) fn none() -> Self {
        Self(Fingerprints::none())
    }

    /// What is known of a local context, where its fingerprints are kept at all.
    pub(crate) fn of(kept: Option<&PathBuf>) -> Self {
        match kept {
            Some(file) => Self(Fingerprints::load(file)),
            None => Self::none(),
        }
    }
}

impl Drop for FileDigests {
    fn drop(&mut self) {
        // Losing what was learnt costs time, not correctness.
        if let Err(error) = self.0.save() {
            tracing::debug!(%error, "file digests not saved");
        }
    }
}

/// Where files are, and what is known of them.
#[derive(Clone, Copy)]
pub(super) struct Known<'a> {
    pub(super) input: &'a Input,
    pub(super) files: &'a FileDigests,
}

/// The digest of a file, or of a directory's header.
pub(super) fn file_digest(known: &Known<'_>, node: &Node, at: &Path) -> Result<Digest, IoAt> {
    let is_context = known.input.owners() == Owners::Root;
    // BuildKit never hears of the root of a local context, and makes up an empty one.
    if is_context && at.as_os_str().is_empty() {
        return Ok(Digest::sha256(b""));
    }
    if !is_context {
        return Ok(Digest::from_sha256(read(known, node, at).at("reading", at)?.0));
    }
    let key = key(&at.to_string_lossy(), &node.meta);
    if let Some(digest) = known.files.0.get(&key) {
        return Ok(Digest::from_sha256(digest));
    }
    let reading = now();
    let (digest, after) = read(known, node, at).at("reading", at)?;
    if after == Some(node.meta) && trust(&node.meta, reading) == Trust::Settled {
        known.files.0.insert(key, digest);
    }
    Ok(Digest::from_sha256(digest))
}

/// The digest, and the status after reading where there was something to read.
fn read(known: &Known<'_>, node: &Node, at: &Path) -> io::Result<([u8; 32], Option<Meta>)> {
    let mut hasher = Sha256::new();
    let (uid, gid) = match known.input.owners() {
        Owners::Kept => (node.meta.uid, node.meta.gid),
        Owners::Root => (0, 0),
    };
    let is_file = matches!(node.kind, Kind::File);
    let fd = match node.kind {
        Kind::File | Kind::Directory(_) => {
            let kind = if node.is_dir() { OFlags::DIRECTORY } else { OFlags::NOCTTY };
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | kind;
            Some(known.input.root().open_at(at, flags, Mode::empty())?)
        }
        Kind::Symlink(_) | Kind::Special => None,
    };
    header(&mut hasher, node, uid, gid);
    let Some(fd) = fd else { return Ok((hasher.finalize().into(), None)) };
    for (name, value) in xattr::read(&fd)? {
        let name = name.as_encoded_bytes();
        let counts = name == b"security.capability"
            || !(name.starts_with(b"security.") || name.starts_with(b"system."));
        if counts {
            hasher.update(name);
            hasher.update(&value);
        }
    }
    let after = Meta::from(&rustix::fs::fstat(&fd)?);
    if !is_file {
        return Ok((hasher.finalize().into(), Some(after)));
    }
    if after.file_type() != FileType::RegularFile {
        return Err(Errno::STALE.into());
    }
    let mut file = std::fs::File::from(fd);
    let mut buffer = vec![0; BUFFER.min(usize::try_from(after.size).unwrap_or(BUFFER)).max(1)];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            length => hasher.update(&buffer[..length]),
        }
    }
    let after = Meta::from(&rustix::fs::fstat(&file)?);
    Ok((hasher.finalize().into(), Some(after)))
}

fn header(hasher: &mut Sha256, node: &Node, uid: u32, gid: u32) {
    let meta = &node.meta;
    let (kind, size, link) = match &node.kind {
        Kind::File => ("0", meta.size, &b""[..]),
        Kind::Directory(_) => ("5", 0, &b""[..]),
        Kind::Symlink(target) => ("2", 0, target.as_encoded_bytes()),
        Kind::Special => (special(meta), 0, &b""[..]),
    };
    // A link's own mode means nothing.
    let mode = if matches!(node.kind, Kind::Symlink(_)) { 0o777 } else { meta.permissions() };
    let is_device = matches!(meta.file_type(), FileType::CharacterDevice | FileType::BlockDevice);
    let (major, minor) =
        if is_device { (rustix::fs::major(meta.rdev), rustix::fs::minor(meta.rdev)) } else { (0, 0) };
    hasher.update(format!("namemode{mode}uid{uid}gid{gid}size{size}typeflag{kind}linkname"));
    hasher.update(link);
    hasher.update(format!("unamegnamedevmajor{major}devminor{minor}"));
}

fn special(meta: &Meta) -> &'static str {
    match meta.file_type() {
        FileType::CharacterDevice => "3",
        FileType::BlockDevice => "4",
        FileType::Fifo => "6",
        // Tars have no sockets; the reference counts them as files.
        _ => "0",
    }
}
