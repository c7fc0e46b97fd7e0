//! The content digest of a scanned tree: what a copy of it would create, and nothing else.
//!
//! | takes part | does not |
//! |---|---|
//! | names below the digested node, its own kind | its own name and place |
//! | permission bits, set-id, sticky | mtime, ctime, inode, link count |
//! | uid and gid, or 0:0 for a local context | owner on the local disk |
//! | file content, symlink targets, device numbers | sparseness |
//! | extended attributes that travel with a copy | the others |
//!
//! Must not know ops or where trees come from. Read [`TreeDigest`] first.

use std::borrow::Cow;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rayon::prelude::*;
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::context::fingerprint::{Fingerprints, TICK, Trust, key, now, trust};
use crate::manifest::{MAX_ENTRIES, Manifest, ManifestEntry};
use crate::root::{At as _, IoAt, RootDir};
use crate::tree::{Kind, Meta, Node};
use crate::xattr;

/// Hashed first; changing it, or the encoding, is a break of every recorded content key.
const FORMAT: &[u8] = b"stave content digest 1";

/// Bytes read at a time.
const BUFFER: usize = 128 << 10;

/// Files below this number are hashed by one thread.
const PARALLEL_FROM: usize = 16;

/// Whose files the copies will be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Owners {
    /// As in the tree.
    Kept,
    /// 0:0, as for every local context.
    Root,
}

/// What a digest was made of, for its manifest.
pub(crate) struct Digested<'a> {
    owners: Owners,
    parts: Vec<Part<'a>>,
}

/// One tree that was added; none for what was not there.
struct Part<'a> {
    at: PathBuf,
    node: Option<Cow<'a, Node>>,
    digests: Vec<[u8; 32]>,
}

impl Digested<'_> {
    /// The files by path; `None` when they are more than a manifest holds.
    pub(crate) fn manifest(&self) -> Option<Manifest> {
        let mut manifest = Manifest::default();
        for part in &self.parts {
            match &part.node {
                Some(node) => {
                    entries(node, part.at.clone(), self.owners, &mut part.digests.iter(), &mut manifest);
                }
                None => {
                    let absent = ManifestEntry { kind: b'-', mode: 0, owner: (0, 0), content: [0; 16] };
                    manifest.entries.insert(part.at.to_string_lossy().into_owned(), absent);
                }
            }
        }
        (!self.parts.is_empty()).then_some(manifest)
    }
}

/// Adds to a manifest what [`TreeDigest::node`] adds to a digest, in the same order.
fn entries<'d>(
    node: &Node,
    at: PathBuf,
    owners: Owners,
    digests: &mut impl Iterator<Item = &'d [u8; 32]>,
    manifest: &mut Manifest,
) {
    let meta = &node.meta;
    let (kind, mode, content) = match &node.kind {
        Kind::Directory(_) if node.selected => (b'd', meta.permissions(), digests.next().copied()),
        Kind::Directory(_) => (b'p', meta.permissions(), digests.next().copied()),
        Kind::File => (b'f', meta.permissions(), digests.next().copied()),
        Kind::Symlink(target) => (b'l', 0, Some(*blake3::hash(target.as_encoded_bytes()).as_bytes())),
        Kind::Special => (b's', meta.mode, Some(*blake3::hash(&meta.rdev.to_le_bytes()).as_bytes())),
    };
    let owner = match owners {
        Owners::Kept => (meta.uid, meta.gid),
        Owners::Root => (0, 0),
    };
    let mut short = [0; 16];
    short.copy_from_slice(&content.unwrap_or_default()[..16]);
    for child in node.children() {
        entries(child, at.join(&child.name), owners, digests, manifest);
    }
    let path = at.to_string_lossy().trim_start_matches('/').to_owned();
    manifest.entries.insert(path, ManifestEntry { kind, mode, owner, content: short });
}

/// A digest of several trees in a given order.
pub(crate) struct TreeDigest<'a> {
    root: &'a RootDir,
    owners: Owners,
    fingerprints: &'a Fingerprints,
    hasher: blake3::Hasher,
    parts: Vec<Part<'a>>,
    count: usize,
}

impl<'a> TreeDigest<'a> {
    /// Starts a digest over files below `root`.
    pub(crate) fn new(root: &'a RootDir, owners: Owners, fingerprints: &'a Fingerprints) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(FORMAT);
        Self { root, owners, fingerprints, hasher, parts: Vec::new(), count: 0 }
    }

    /// Adds a labelled tree; `at` is the canonical path of the node in the root.
    pub(crate) fn add(&mut self, label: &str, at: &Path, node: Cow<'a, Node>) -> Result<(), IoAt> {
        self.field(label.as_bytes());
        let mut files = Vec::new();
        collect(&node, at.to_owned(), &mut files);
        if self.fingerprints.remembers() {
            wait_out_the_tick(&files);
        }
        let hash = |(path, node): &(PathBuf, &Node)| self.file(path, node);
        let digests: Vec<[u8; 32]> = if files.len() >= PARALLEL_FROM {
            files.par_iter().map(hash).collect::<Result<_, _>>()?
        } else {
            files.iter().map(hash).collect::<Result<_, _>>()?
        };
        drop(files);
        self.node(&node, b"", &mut digests.iter().copied());
        self.count += digests.len();
        let shown = if label.is_empty() { at } else { Path::new(label) };
        self.parts.push(Part { at: shown.to_owned(), node: Some(node), digests });
        Ok(())
    }

    /// Adds that nothing was found.
    pub(crate) fn add_absent(&mut self, label: &str) {
        self.field(label.as_bytes());
        self.hasher.update(b"-");
        self.parts.push(Part { at: label.into(), node: None, digests: Vec::new() });
    }

    /// The digest of all that was added, and what it was made of.
    pub(crate) fn finish(self) -> ([u8; 32], Digested<'a>) {
        let parts = if self.count <= MAX_ENTRIES { self.parts } else { Vec::new() };
        (*self.hasher.finalize().as_bytes(), Digested { owners: self.owners, parts })
    }

    fn field(&mut self, bytes: &[u8]) {
        self.hasher.update(&(bytes.len() as u64).to_le_bytes());
        self.hasher.update(bytes);
    }

    /// Depth first, children in name order; `digests` yields content in the same order as [`collect`].
    fn node(&mut self, node: &Node, name: &[u8], digests: &mut impl Iterator<Item = [u8; 32]>) {
        let meta = &node.meta;
        let (uid, gid) = match self.owners {
            Owners::Kept => (meta.uid, meta.gid),
            Owners::Root => (0, 0),
        };
        let tag = match &node.kind {
            Kind::Directory(_) if node.selected => b'd',
            Kind::Directory(_) => b'p',
            Kind::File => b'f',
            Kind::Symlink(_) => b'l',
            Kind::Special => b's',
        };
        self.hasher.update(&[tag]);
        self.field(name);
        self.hasher.update(&uid.to_le_bytes()).update(&gid.to_le_bytes());
        match &node.kind {
            Kind::Directory(children) => {
                self.hasher.update(&meta.permissions().to_le_bytes());
                self.hasher.update(&digests.next().unwrap_or_default());
                self.hasher.update(&(children.len() as u64).to_le_bytes());
                for child in children {
                    self.node(child, child.name.as_encoded_bytes(), digests);
                }
            }
            Kind::File => {
                self.hasher.update(&meta.permissions().to_le_bytes());
                self.hasher.update(&digests.next().unwrap_or_default());
            }
            Kind::Symlink(target) => self.field(target.as_encoded_bytes()),
            Kind::Special => {
                self.hasher.update(&meta.mode.to_le_bytes()).update(&meta.rdev.to_le_bytes());
            }
        }
    }

    /// Digest of content and attributes, from memory where the status proves that nothing changed.
    fn file(&self, path: &Path, node: &Node) -> Result<[u8; 32], IoAt> {
        let key = key(&path.to_string_lossy(), &node.meta);
        if let Some(known) = self.fingerprints.get(&key) {
            return Ok(known);
        }
        let reading = now();
        let (digest, after) = self.read(path, node).at("reading", path)?;
        if after.is_same_version(&node.meta) && trust(&after, reading) == Trust::Settled {
            self.fingerprints.insert(key, digest);
        }
        Ok(digest)
    }

    fn read(&self, path: &Path, node: &Node) -> io::Result<([u8; 32], Meta)> {
        let kind = if node.is_dir() { OFlags::DIRECTORY } else { OFlags::NOCTTY };
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | kind;
        let fd = self.root.open_at(path, flags, Mode::empty())?;
        let mut hasher = blake3::Hasher::new();
        let attributes = xattr::read(&fd)?;
        let fd = if node.is_dir() { fd } else { hash_content(fd, &mut hasher)? };
        let mut digest = *hasher.finalize().as_bytes();
        if !attributes.is_empty() {
            let mut hasher = blake3::Hasher::new();
            hasher.update(&digest);
            for (name, value) in &attributes {
                for field in [name.as_encoded_bytes(), value.as_slice()] {
                    hasher.update(&(field.len() as u64).to_le_bytes()).update(field);
                }
            }
            digest = *hasher.finalize().as_bytes();
        }
        Ok((digest, Meta::from(&rustix::fs::fstat(&fd)?)))
    }
}

fn hash_content(fd: std::os::fd::OwnedFd, hasher: &mut blake3::Hasher) -> io::Result<std::os::fd::OwnedFd> {
    if FileType::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode) != FileType::RegularFile {
        // It was a regular file when it was scanned; reading a FIFO would never end.
        return Err(Errno::STALE.into());
    }
    let mut file = std::fs::File::from(fd);
    let mut buffer = vec![0; BUFFER];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            length => {
                hasher.update(&buffer[..length]);
            }
        }
    }
    Ok(file.into())
}

/// Files and directories (for their attributes) in the order of [`TreeDigest::node`].
fn collect<'n>(node: &'n Node, at: PathBuf, files: &mut Vec<(PathBuf, &'n Node)>) {
    match &node.kind {
        Kind::File => files.push((at, node)),
        Kind::Directory(children) => {
            files.push((at.clone(), node));
            for child in children {
                collect(child, at.join(&child.name), files);
            }
        }
        Kind::Symlink(_) | Kind::Special => {}
    }
}

/// A file changed within the last tick could change again without its status showing it. Reading it only after the
/// tick is over makes status and content stand for each other; the wait is at most [`TICK`].
fn wait_out_the_tick(files: &[(PathBuf, &Node)]) {
    let now = now();
    let newest = files
        .iter()
        .filter_map(|(_, node)| {
            let (seconds, nanoseconds) = node.meta.ctime;
            let changed = Duration::new(u64::try_from(seconds).ok()?, nanoseconds);
            (changed <= now && changed + TICK >= now).then_some(changed)
        })
        .max();
    if let Some(newest) = newest {
        std::thread::sleep((newest + TICK + Duration::from_millis(1)).saturating_sub(now));
    }
}
