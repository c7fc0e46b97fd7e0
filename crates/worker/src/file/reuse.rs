//! Files that the same copy made before: an unchanged file of a local context is linked, not written again.
//!
//! ```text
//! <directory>/<vertex>-<action>   magic, a line with the earlier layer and its directory's name, then 16 bytes
//!                                 for each file that it got by that copy
//! ```
//!
//! The 16 bytes are a hash of the file's place in the layer, the status of the source it was copied from, and what
//! the copy made of owner, mode and time. Equal bytes mean that copying again would make the same file, by the trust
//! that [`fingerprint`](crate::context::fingerprint) gives a status. Layers are never written after they are
//! committed, so that two of them may share a file. Whatever cannot be linked is copied: a table that is lost, or a
//! layer that is gone, costs time and nothing else. Must not know definitions. Start with [`Reuse`].

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, linkat, openat2};
use stave_oci::Digest;
use stave_store::{ActiveLayer, Snapshot, Store};

use super::place::Time;
use crate::context::fingerprint::{Trust, now, trust};
use crate::root::{RootDir, stat_at};
use crate::tree::Meta;

const MAGIC: &[u8; 16] = b"stave-reuse-002\n";

/// Bytes that stand for one file.
const ENTRY: usize = 16;

/// A copy of fewer files than this is not worth a table.
const MIN_FILES: usize = 64;

/// Files of one table (16 MiB).
const MAX_FILES: usize = 1 << 20;

/// Bytes of the line about the layer.
const MAX_LINE: usize = 256;

/// Tables kept; the ones written longest ago go first.
const MAX_TABLES: usize = 128;

/// What a file of a copy is made from, and into.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Making<'a> {
    /// The canonical path in the layer.
    pub place: &'a Path,
    /// The source, as it was scanned.
    pub source: &'a Meta,
    pub mode: u32,
    pub owner: Option<(u32, u32)>,
    pub time: Option<Time>,
}

impl Making<'_> {
    fn identity(&self) -> [u8; ENTRY] {
        let Self { place, source, mode, owner, time } = self;
        let mut hasher = blake3::Hasher::new();
        let mut number = |value: u64| {
            hasher.update(&value.to_le_bytes());
        };
        [source.dev, source.ino, source.size, u64::from(*mode)].into_iter().for_each(&mut number);
        for (seconds, nanoseconds) in [source.mtime, source.ctime] {
            number(seconds.cast_unsigned());
            number(u64::from(nanoseconds));
        }
        for (first, second) in [owner.map(|(uid, gid)| (u64::from(uid), u64::from(gid)))]
            .into_iter()
            .chain([time.map(|(seconds, nanoseconds)| (seconds.cast_unsigned(), u64::from(nanoseconds)))])
            .map(|pair| pair.unwrap_or((u64::MAX, u64::MAX)))
        {
            number(first);
            number(second);
        }
        hasher.update(place.as_os_str().as_bytes());
        let mut identity = [0; ENTRY];
        identity.copy_from_slice(&hasher.finalize().as_bytes()[..ENTRY]);
        identity
    }
}

/// What one copy can take from the one before, and what it leaves to the next.
#[derive(Debug)]
pub(crate) struct Reuse {
    table: PathBuf,
    earlier: Option<Earlier>,
    /// The layer that is made, beside the overlay that shows it: links cannot cross file systems.
    upper: RootDir,
    made: Mutex<Vec<[u8; ENTRY]>>,
    /// Something that was made may have been replaced: the table would not be true.
    is_spoilt: AtomicBool,
    begun: Duration,
}

#[derive(Debug)]
struct Earlier {
    root: RootDir,
    known: HashSet<[u8; ENTRY]>,
}

/// One directory in both layers.
#[derive(Debug)]
pub(crate) struct Places {
    earlier: OwnedFd,
    upper: OwnedFd,
}

impl Reuse {
    /// Looks for the layer that the same action of the same vertex made last. `None` where files cannot be shared.
    pub(crate) fn open(store: &Store, vertex: &Digest, action: usize, layer: &ActiveLayer) -> Option<Self> {
        // Owners that are only recorded stand in an attribute of the file: it would be shared as well.
        if stave_store::owner::may_be_recorded() {
            return None;
        }
        let table = store.copies_directory().join(format!("{}-{action}", vertex.hex()));
        let earlier = read(&table).and_then(|(layer, name, known)| {
            let path = store.layer_paths(&layer).ok()?.into_iter().next()?;
            // Numbers may come again after a loss of the database, names do not.
            let is_same = path.file_name() == Some(OsStr::new(&name));
            let root = RootDir::open(&path).ok().filter(|_| is_same)?;
            Some(Earlier { root, known })
        });
        let upper = RootDir::open(layer.upper()).ok()?;
        Some(Self {
            table,
            earlier,
            upper,
            made: Mutex::default(),
            is_spoilt: AtomicBool::new(false),
            begun: now(),
        })
    }

    /// Opens a directory that this copy made in both layers; `None` when the earlier one lacks it.
    pub(crate) fn places(&self, directory: &Path) -> Option<Places> {
        let earlier = self.earlier.as_ref()?;
        let open = |root: &RootDir| {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
            let path = if directory.as_os_str().is_empty() { Path::new(".") } else { directory };
            openat2(root.fd(), path, flags, Mode::empty(), resolve).ok()
        };
        Some(Places { earlier: open(&earlier.root)?, upper: open(&self.upper)? })
    }

    /// Links the file from the earlier layer, if it is what copying would make; false when it has to be copied.
    pub(crate) fn link(&self, making: &Making<'_>, places: &Places, name: &OsStr) -> bool {
        let Some(earlier) = &self.earlier else { return false };
        let identity = making.identity();
        if !earlier.known.contains(&identity) {
            return false;
        }
        // The table says that it was put there; the file system says that it is.
        let is_there = stat_at(&places.earlier, name).ok().flatten().is_some_and(|stat| {
            FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
                && u64::try_from(stat.st_size) == Ok(making.source.size)
        });
        if !is_there || linkat(&places.earlier, name, &places.upper, name, AtFlags::empty()).is_err() {
            return false;
        }
        self.push(identity);
        true
    }

    /// Remembers a file that was copied from a source that has not changed meanwhile.
    pub(crate) fn note(&self, making: &Making<'_>) {
        if trust(making.source, self.begun) == Trust::Settled {
            self.push(making.identity());
        }
    }

    /// Something was in the way and is replaced.
    pub(crate) fn spoil(&self) {
        self.is_spoilt.store(true, Ordering::Relaxed);
    }

    fn push(&self, identity: [u8; ENTRY]) {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if made.len() < MAX_FILES {
            made.push(identity);
        }
    }

    /// Leaves what was made to the next copy. That it cannot is no failure of the copy.
    pub(crate) fn keep(self, store: &Store, made: &Snapshot) {
        if self.is_spoilt.into_inner() {
            return;
        }
        let files = self.made.into_inner().unwrap_or_else(PoisonError::into_inner);
        let Some(layer) = made.top().filter(|_| files.len() >= MIN_FILES) else { return };
        let layer = Snapshot::new(vec![layer]);
        let paths = store.layer_paths(&layer).unwrap_or_default();
        let Some(name) = paths.first().and_then(|path| path.file_name()?.to_str()) else { return };
        if let Err(error) = write(&self.table, &format!("{layer} {name}\n"), &files) {
            tracing::debug!(%error, "what was copied is not remembered");
        }
    }
}

/// The layer of a table, its directory's name, and the entries; `None` for a table that is absent or torn.
fn read(table: &Path) -> Option<(Snapshot, String, HashSet<[u8; ENTRY]>)> {
    let mut bytes = Vec::new();
    let limit = (MAGIC.len() + MAX_LINE + MAX_FILES * ENTRY) as u64;
    fs::File::open(table).ok()?.take(limit).read_to_end(&mut bytes).ok()?;
    let rest = bytes.strip_prefix(MAGIC)?;
    let end = rest.iter().take(MAX_LINE).position(|byte| *byte == b'\n')?;
    let (layer, name) = std::str::from_utf8(&rest[..end]).ok()?.split_once(' ')?;
    let (entries, torn) = rest[end + 1..].as_chunks::<ENTRY>();
    if !torn.is_empty() {
        return None;
    }
    Some((layer.parse().ok()?, name.to_owned(), entries.iter().copied().collect()))
}

fn write(table: &Path, line: &str, files: &[[u8; ENTRY]]) -> io::Result<()> {
    let directory = table.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(directory)?;
    let mut aside = tempfile::NamedTempFile::new_in(directory)?;
    let mut bytes = MAGIC.to_vec();
    bytes.extend_from_slice(line.as_bytes());
    bytes.extend(files.iter().flatten());
    aside.write_all(&bytes)?;
    aside.persist(table).map_err(|error| error.error)?;
    trim(directory)
}

/// Removes the tables written longest ago.
fn trim(directory: &Path) -> io::Result<()> {
    let mut tables = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        tables.push((entry.metadata()?.modified()?, entry.path()));
    }
    tables.sort_unstable();
    let surplus = tables.len().saturating_sub(MAX_TABLES);
    for (_, path) in tables.into_iter().take(surplus) {
        // Another process may have been faster.
        drop(fs::remove_file(path));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meta() -> Meta {
        Meta {
            mode: 0o100_644,
            uid: 0,
            gid: 0,
            size: 10,
            mtime: (1, 2),
            ctime: (3, 4),
            dev: 5,
            ino: 6,
            nlink: 1,
            rdev: 0,
        }
    }

    fn making<'a>(place: &'a str, source: &'a Meta) -> Making<'a> {
        Making { place: Path::new(place), source, mode: 0o644, owner: None, time: None }
    }

    #[test]
    fn whatever_changes_a_file_changes_its_identity() {
        let meta = meta();
        let base = making("a/b", &meta);
        let sources = [
            Meta { size: 11, ..meta },
            Meta { mtime: (1, 3), ..meta },
            Meta { ctime: (4, 4), ..meta },
            Meta { ino: 7, ..meta },
            Meta { dev: 7, ..meta },
        ];
        let mut all: Vec<_> = sources.iter().map(|source| Making { source, ..base }.identity()).collect();
        all.push(base.identity());
        all.push(making("a/c", &meta).identity());
        all.push(Making { mode: 0o600, ..base }.identity());
        all.push(Making { owner: Some((1, 1)), ..base }.identity());
        all.push(Making { time: Some((1, 1)), ..base }.identity());
        assert_eq!(all.iter().collect::<HashSet<_>>().len(), all.len());
        assert_eq!(base.identity(), making("a/b", &meta).identity());
    }

    #[test]
    fn a_table_is_read_as_it_was_written() {
        let folder = tempfile::tempdir().expect("a folder");
        let table = folder.path().join("tables/one");
        let files = [[1; ENTRY], [2; ENTRY]];
        write(&table, "7 name\n", &files).expect("writes");
        let (layer, name, known) = read(&table).expect("is whole");
        assert_eq!((layer.to_string().as_str(), name.as_str()), ("7", "name"));
        assert_eq!(known, files.into_iter().collect());
        let bytes = fs::read(&table).expect("is there");
        for cut in [0, 10, 20, bytes.len() - 1] {
            fs::write(&table, &bytes[..cut]).expect("writes");
            assert!(read(&table).is_none(), "cut at {cut}");
        }
    }
}
