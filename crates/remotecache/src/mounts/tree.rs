//! The files of a mount as a list, and the walk that makes one.
//!
//! Owns the rules of merging and of what stays behind. Devices, FIFOs and sockets do not travel: a cache that needs
//! them makes them again.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};
use stave_oci::Digest;

use super::MountError;
use super::chunk::{ChunkId, Pack, Packer, cut};

/// Entries of one tree.
const MAX_ENTRIES: usize = 5_000_000;
/// Bytes of the longest path.
const MAX_PATH: usize = 4096;

/// A directory tree.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Tree {
    /// By path below the mount; the mount itself is the empty path.
    pub entries: BTreeMap<String, Entry>,
}

/// One file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Seconds since 1970, and nanoseconds.
    pub mtime: (i64, u32),
    /// What it is.
    #[serde(flatten)]
    pub kind: EntryKind,
}

/// What a file is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EntryKind {
    /// A directory.
    Dir,
    /// A symbolic link.
    Link(String),
    /// A file of so many bytes, made of these chunks.
    File(u64, Vec<ChunkId>),
}

impl Tree {
    /// Bytes of all files.
    pub fn size(&self) -> u64 {
        self.entries.values().map(Entry::size).sum()
    }

    /// The chunks of all files.
    pub fn chunks(&self) -> impl Iterator<Item = &ChunkId> {
        self.entries.values().flat_map(|entry| match &entry.kind {
            EntryKind::File(_, chunks) => chunks.as_slice(),
            EntryKind::Dir | EntryKind::Link(_) => &[],
        })
    }

    /// A tree from a stranger: paths must stay below the mount, and their parents must be directories.
    pub(super) fn check(&self) -> Result<(), MountError> {
        if self.entries.len() > MAX_ENTRIES {
            return Err(MountError::TooMany { what: "files", limit: MAX_ENTRIES });
        }
        for path in self.entries.keys() {
            let is_plain = Path::new(path).components().all(|part| matches!(part, Component::Normal(_)));
            if !is_plain || path.len() > MAX_PATH || path.contains('\0') {
                return Err(MountError::Malformed("a path leads out of its mount"));
            }
            let parent = path.rsplit_once('/').map_or("", |(parent, _)| parent);
            let parent = self.entries.get(parent).map(|entry| &entry.kind);
            if !path.is_empty() && parent != Some(&EntryKind::Dir) {
                return Err(MountError::Malformed("a file lies in no directory"));
            }
        }
        Ok(())
    }

    /// Takes over files of another writer: of one that both have, the newer wins.
    pub fn merge(&mut self, theirs: Self) {
        for (path, entry) in theirs.entries {
            match self.entries.get(&path) {
                Some(ours) if ours.mtime >= entry.mtime => {}
                // A directory stays one while something lies in it.
                Some(ours) if ours.kind == EntryKind::Dir || entry.kind == EntryKind::Dir => {}
                _ => {
                    self.entries.insert(path, entry);
                }
            }
        }
        self.drop_orphans();
    }

    /// Leaves behind the files changed longest ago, until the rest is small enough.
    pub fn limit(&mut self, max_size: Option<u64>) {
        let Some(limit) = max_size else { return };
        let mut total = self.size();
        let mut by_age: Vec<((i64, u32), String)> = self
            .entries
            .iter()
            .filter(|(_, entry)| entry.size() > 0)
            .map(|(path, entry)| (entry.mtime, path.clone()))
            .collect();
        by_age.sort_unstable();
        for (_, path) in by_age {
            if total <= limit {
                break;
            }
            total -= self.entries.remove(&path).map_or(0, |entry| entry.size());
        }
    }

    /// Drops what lies in something that is no directory any more.
    fn drop_orphans(&mut self) {
        let directories: HashSet<String> = self
            .entries
            .iter()
            .filter(|(_, entry)| entry.kind == EntryKind::Dir)
            .map(|(path, _)| path.clone())
            .collect();
        let is_held = |path: &str| {
            path.is_empty()
                || (directories.contains("")
                    && path.match_indices('/').all(|(end, _)| directories.contains(&path[..end])))
        };
        self.entries.retain(|path, _| is_held(path));
    }
}

impl Entry {
    fn size(&self) -> u64 {
        match self.kind {
            EntryKind::File(size, _) => size,
            EntryKind::Dir | EntryKind::Link(_) => 0,
        }
    }
}

/// What a walk found.
pub(super) struct Scanned {
    pub(super) tree: Tree,
    pub(super) read: u64,
}

/// Takes a pack that is full; `false` when nobody wants more.
pub(super) type Emit = Box<dyn FnMut(Pack) -> bool + Send>;

struct Scan<'a> {
    old: &'a Tree,
    known: &'a HashMap<ChunkId, Digest>,
    fresh: HashSet<ChunkId>,
    packer: Packer,
    emit: Emit,
    tree: Tree,
    read: u64,
}

/// Lists a directory; files that `old` has with the same size and time are not read again.
pub(super) fn scan(
    directory: &Path,
    old: &Tree,
    known: &HashMap<ChunkId, Digest>,
    limit: Option<u64>,
    emit: Emit,
) -> Result<Scanned, MountError> {
    let mut scan = Scan {
        old,
        known,
        fresh: HashSet::new(),
        packer: Packer::default(),
        emit,
        tree: Tree::default(),
        read: 0,
    };
    // What will stay behind need not be read: sizes and times come first.
    scan.list(directory, String::new())?;
    scan.tree.limit(limit);
    let files: Vec<String> = scan
        .tree
        .entries
        .iter()
        .filter(|(_, entry)| matches!(entry.kind, EntryKind::File(..)))
        .map(|(path, _)| path.clone())
        .collect();
    for path in files {
        scan.file(directory, &path)?;
    }
    scan.packer.close();
    scan.send()?;
    Ok(Scanned { tree: scan.tree, read: scan.read })
}

impl Scan<'_> {
    fn list(&mut self, root: &Path, path: String) -> Result<(), MountError> {
        let mut open = vec![path];
        while let Some(path) = open.pop() {
            let at = root.join(&path);
            // A cache changes while it is used: what vanishes meanwhile was not worth keeping.
            let Ok(meta) = fs::symlink_metadata(&at) else { continue };
            let kind = if meta.is_dir() {
                let entries = fs::read_dir(&at).map_err(|source| failed("list", &at, source))?;
                for entry in entries.flatten() {
                    // Names that are not UTF-8 stay behind.
                    let Some(name) = entry.file_name().to_str().map(str::to_owned) else { continue };
                    open.push(if path.is_empty() { name } else { format!("{path}/{name}") });
                }
                EntryKind::Dir
            } else if meta.is_symlink() {
                let Ok(target) = fs::read_link(&at) else { continue };
                let Ok(target) = String::from_utf8(target.as_os_str().as_bytes().to_vec()) else { continue };
                EntryKind::Link(target)
            } else if meta.is_file() {
                EntryKind::File(meta.len(), Vec::new())
            } else {
                continue;
            };
            let nanoseconds = u32::try_from(meta.mtime_nsec()).unwrap_or(0);
            let entry = Entry {
                mode: meta.mode() & 0o7777,
                uid: meta.uid(),
                gid: meta.gid(),
                mtime: (meta.mtime(), nanoseconds),
                kind,
            };
            self.tree.entries.insert(path, entry);
            if self.tree.entries.len() > MAX_ENTRIES {
                return Err(MountError::TooMany { what: "files", limit: MAX_ENTRIES });
            }
        }
        Ok(())
    }

    /// Fills in a file's chunks: those of the old tree where status says that nothing changed.
    fn file(&mut self, root: &Path, path: &str) -> Result<(), MountError> {
        let Some(entry) = self.tree.entries.get(path) else { return Ok(()) };
        if let Some(Entry { mtime, kind: EntryKind::File(size, chunks), .. }) = self.old.entries.get(path)
            && *mtime == entry.mtime
            && *size == entry.size()
            && chunks.iter().all(|id| self.known.contains_key(id))
        {
            let kind = EntryKind::File(*size, chunks.clone());
            self.set(path, Some(kind));
            return Ok(());
        }
        let at = root.join(path);
        let Ok(file) = File::open(&at) else {
            self.set(path, None);
            return Ok(());
        };
        let (mut chunks, mut size) = (Vec::new(), 0);
        let (known, fresh, packer) = (self.known, &mut self.fresh, &mut self.packer);
        cut(file, |bytes| {
            let id = ChunkId::of(bytes);
            size += bytes.len() as u64;
            if !known.contains_key(&id) && fresh.insert(id.clone()) {
                packer.add(id.clone(), bytes);
            }
            chunks.push(id);
        })
        .map_err(|source| failed("read", &at, source))?;
        self.read += 1;
        self.send()?;
        self.set(path, Some(EntryKind::File(size, chunks)));
        Ok(())
    }

    fn send(&mut self) -> Result<(), MountError> {
        for pack in std::mem::take(&mut self.packer.full) {
            if !(self.emit)(pack) {
                return Err(MountError::Malformed("nobody takes packs any more"));
            }
        }
        Ok(())
    }

    fn set(&mut self, path: &str, kind: Option<EntryKind>) {
        match kind {
            Some(kind) => {
                if let Some(entry) = self.tree.entries.get_mut(path) {
                    entry.kind = kind;
                }
            }
            None => {
                self.tree.entries.remove(path);
            }
        }
    }
}

pub(super) fn failed(action: &'static str, path: &Path, source: std::io::Error) -> MountError {
    MountError::File { action, path: PathBuf::from(path), source }
}
