//! A tree into an empty directory, pack by pack.
//!
//! Every file is written below an open directory with links in the way refused, so that a hostile archive stays
//! inside of its mount.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use futures::TryStreamExt as _;
use rustix::fs::{AtFlags, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid};
use stave_oci::Digest;

use super::chunk::{ChunkId, MAX_PACK, unpack};
use super::tree::failed;
use super::{Entry, EntryKind, MountArchive, MountError, Tree, blocking};
use crate::place::Place;

/// Packs fetched at once; each may take a few megabytes of memory.
const PARALLEL: usize = 4;

/// Where a piece of a pack goes: a file, and the offset in it.
type Targets = BTreeMap<ChunkId, Vec<(String, u64)>>;

pub(super) async fn fill(
    archive: &MountArchive,
    place: &Place,
    tree: &Tree,
    into: &Path,
) -> Result<(), MountError> {
    let root = Arc::new(open_root(into)?);
    let (made, all) = (Arc::clone(&root), tree.clone());
    blocking(move || make_all(&made, &all)).await?;
    let lengths: HashMap<&ChunkId, u64> =
        archive.index.packs.values().flatten().map(|(id, length)| (id, u64::from(*length))).collect();
    let mut targets = Targets::new();
    for (path, entry) in &tree.entries {
        let EntryKind::File(size, chunks) = &entry.kind else { continue };
        let mut offset = 0;
        for id in chunks {
            targets.entry(id.clone()).or_default().push((path.clone(), offset));
            offset += lengths.get(id).ok_or(MountError::Malformed("a chunk is in no pack"))?;
        }
        if offset != *size {
            return Err(MountError::Malformed("a file is not as long as its chunks"));
        }
    }
    let targets = Arc::new(targets);
    let wanted = archive
        .index
        .packs
        .iter()
        .filter(|(_, chunks)| chunks.iter().any(|(id, _)| targets.contains_key(id)));
    futures::stream::iter(wanted.map(Ok))
        .try_for_each_concurrent(PARALLEL, |(pack, chunks)| {
            let (root, targets) = (Arc::clone(&root), Arc::clone(&targets));
            async move { unpack_into(archive, place, (pack, chunks), root, targets).await }
        })
        .await?;
    let tree = tree.clone();
    blocking(move || stamp_all(&root, &tree)).await
}

async fn unpack_into(
    archive: &MountArchive,
    place: &Place,
    (pack, chunks): (&Digest, &Vec<(ChunkId, u32)>),
    root: Arc<OwnedFd>,
    targets: Arc<Targets>,
) -> Result<(), MountError> {
    let blob = archive.blobs.get(pack).ok_or(MountError::Malformed("a pack is not listed"))?;
    let bytes = place.small_blob(blob).await?;
    let chunks = chunks.clone();
    blocking(move || {
        let raw = unpack(&bytes, MAX_PACK).ok_or(MountError::Malformed("a pack is not zstd"))?;
        let mut rest = raw.as_slice();
        for (id, length) in chunks {
            let length = length as usize;
            let piece = rest.get(..length).ok_or(MountError::Malformed("a pack is too short"))?;
            rest = &rest[length..];
            let Some(places) = targets.get(&id) else { continue };
            if ChunkId::of(piece) != id {
                return Err(MountError::Malformed("a chunk is not what its name says"));
            }
            for (path, offset) in places {
                let file = open(&root, path, OFlags::WRONLY)?;
                let mut file = File::from(file);
                let written = std::io::Seek::seek(&mut file, std::io::SeekFrom::Start(*offset))
                    .and_then(|_| file.write_all(piece));
                written.map_err(|source| failed("write", Path::new(path), source))?;
            }
        }
        Ok(())
    })
    .await
}

fn open_root(into: &Path) -> Result<OwnedFd, MountError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(into, flags, Mode::empty()).map_err(|error| failed("open", into, error.into()))
}

/// Opens below the root; no link is followed anywhere.
fn open(root: &OwnedFd, path: &str, flags: OFlags) -> Result<OwnedFd, MountError> {
    let path = if path.is_empty() { "." } else { path };
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let mode = if flags.contains(OFlags::CREATE) { Mode::from_raw_mode(0o600) } else { Mode::empty() };
    rustix::fs::openat2(root, path, flags, mode, resolve)
        .map_err(|error| failed("open", Path::new(path), error.into()))
}

/// Makes directories, links and empty files. Parents come before what lies in them, as their paths sort.
fn make_all(root: &OwnedFd, tree: &Tree) -> Result<(), MountError> {
    for (path, entry) in tree.entries.iter().filter(|(path, _)| !path.is_empty()) {
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        let parent = open(root, parent, OFlags::RDONLY | OFlags::DIRECTORY)?;
        let made = match &entry.kind {
            EntryKind::Dir => rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o700)),
            EntryKind::Link(target) => rustix::fs::symlinkat(target, &parent, name),
            EntryKind::File(..) => {
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
                open(root, path, flags)?;
                Ok(())
            }
        };
        made.map_err(|error| failed("make", Path::new(path), error.into()))?;
    }
    Ok(())
}

/// Owners, modes and times, what lies in a directory before the directory.
fn stamp_all(root: &OwnedFd, tree: &Tree) -> Result<(), MountError> {
    for (path, entry) in tree.entries.iter().rev() {
        stamp(root, path, entry)
            .map_err(|error| failed("set the owner and mode of", Path::new(path), error))?;
    }
    Ok(())
}

fn stamp(root: &OwnedFd, path: &str, entry: &Entry) -> std::io::Result<()> {
    let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
    let parent = open(root, parent, OFlags::RDONLY | OFlags::DIRECTORY).map_err(std::io::Error::other)?;
    let name = if name.is_empty() { "." } else { name };
    let owner = (Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)));
    match rustix::fs::chownat(&parent, name, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW) {
        // An ordinary user keeps what it restores.
        Ok(()) | Err(rustix::io::Errno::PERM | rustix::io::Errno::INVAL) => {}
        Err(error) => return Err(error.into()),
    }
    if !matches!(entry.kind, EntryKind::Link(_)) {
        rustix::fs::chmodat(&parent, name, Mode::from_raw_mode(entry.mode), AtFlags::empty())?;
    }
    let time = Timespec { tv_sec: entry.mtime.0, tv_nsec: i64::from(entry.mtime.1) };
    let times = Timestamps { last_access: time, last_modification: time };
    Ok(rustix::fs::utimensat(&parent, name, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}
