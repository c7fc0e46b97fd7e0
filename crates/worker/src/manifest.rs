//! What a content digest was made of: one line per file, kept so that two digests can be told apart later.
//!
//! ```text
//! <directory>/<first two hex digits>/<content digest>.zst   magic, then entries sorted by path
//! ```
//!
//! Made from what was hashed anyway, when a digest is new; a manifest that is missing costs an explanation and
//! nothing else. Bounded by [`MAX_ENTRIES`] and [`MAX_BYTES`]. Must not know keys or steps.
//! Start with [`Manifest`] and [`Manifest::changes_since`].

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use stave_cache::ContentDigest;

/// Files of one manifest. Of a larger tree none is kept.
pub const MAX_ENTRIES: usize = 200_000;

/// Bytes of all manifests of a store; the ones written longest ago go first.
pub const MAX_BYTES: u64 = 128 << 20;

/// Uncompressed bytes of one manifest that is read.
const MAX_SIZE: u64 = 256 << 20;

const MAGIC: &[u8] = b"stave manifest 1\n";

const LEVEL: i32 = 1;

/// What a file is, as far as a copy of it goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestEntry {
    /// `d`irectory, `p`arent of something selected, `f`ile, `l`ink, `s`pecial, or `-` for what is not there.
    pub kind: u8,
    /// Permission bits.
    pub mode: u32,
    /// Owner and group.
    pub owner: (u32, u32),
    /// The start of the digest of its content and extended attributes, or of a link's target.
    pub content: [u8; 16],
}

/// The files of one content digest, by path.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Manifest {
    /// The entries.
    pub entries: BTreeMap<String, ManifestEntry>,
}

/// How a path differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FileChange {
    /// It is new.
    Added,
    /// It is gone.
    Removed,
    /// Its content, extended attributes or link target.
    Content,
    /// Only its permission bits: before and after.
    Mode(u32, u32),
    /// Only its owner or group.
    Owner,
    /// What it is.
    Kind,
}

impl Manifest {
    /// What differs from `before` to `self`, by path.
    pub fn changes_since(&self, before: &Self) -> Vec<(String, FileChange)> {
        let mut changes = Vec::new();
        for (path, old) in &before.entries {
            match self.entries.get(path) {
                None => changes.push((path.clone(), FileChange::Removed)),
                Some(new) => changes.extend(difference(old, new).map(|change| (path.clone(), change))),
            }
        }
        let added = self.entries.keys().filter(|path| !before.entries.contains_key(*path));
        changes.extend(added.map(|path| (path.clone(), FileChange::Added)));
        changes.sort();
        changes
    }

    /// Reads the manifest of a digest; `None` when none was kept or it cannot be read.
    pub fn read(directory: &Path, digest: &ContentDigest) -> Option<Self> {
        let file = fs::File::open(path_of(directory, digest)).ok()?;
        let mut bytes = Vec::new();
        zstd::stream::read::Decoder::new(file).ok()?.take(MAX_SIZE).read_to_end(&mut bytes).ok()?;
        Self::parse(bytes.strip_prefix(MAGIC)?)
    }

    /// Keeps the manifest of a digest, if there is none yet.
    pub(crate) fn write(&self, directory: &Path, digest: &ContentDigest) -> io::Result<()> {
        let path = path_of(directory, digest);
        let parent = path.parent().unwrap_or(directory);
        fs::create_dir_all(parent)?;
        let mut aside = tempfile::NamedTempFile::new_in(parent)?;
        let mut encoder = zstd::stream::write::Encoder::new(io::BufWriter::new(&mut aside), LEVEL)?;
        encoder.write_all(MAGIC)?;
        for (path, entry) in &self.entries {
            encoder.write_all(&u32::try_from(path.len()).unwrap_or(u32::MAX).to_le_bytes())?;
            encoder.write_all(path.as_bytes())?;
            encoder.write_all(&[entry.kind])?;
            for number in [entry.mode, entry.owner.0, entry.owner.1] {
                encoder.write_all(&number.to_le_bytes())?;
            }
            encoder.write_all(&entry.content)?;
        }
        encoder.finish()?.flush()?;
        aside.persist(&path).map_err(|error| error.error)?;
        Ok(())
    }

    /// Whether a digest's manifest is kept.
    pub(crate) fn exists(directory: &Path, digest: &ContentDigest) -> bool {
        path_of(directory, digest).exists()
    }

    fn parse(mut bytes: &[u8]) -> Option<Self> {
        let mut entries = BTreeMap::new();
        while !bytes.is_empty() && entries.len() < MAX_ENTRIES {
            let length = u32::from_le_bytes(take(&mut bytes, 4)?.try_into().ok()?) as usize;
            let path = String::from_utf8_lossy(take(&mut bytes, length)?).into_owned();
            let kind = take(&mut bytes, 1)?[0];
            let mut numbers = [0; 3];
            for number in &mut numbers {
                *number = u32::from_le_bytes(take(&mut bytes, 4)?.try_into().ok()?);
            }
            let content = take(&mut bytes, 16)?.try_into().ok()?;
            let [mode, uid, gid] = numbers;
            entries.insert(path, ManifestEntry { kind, mode, owner: (uid, gid), content });
        }
        Some(Self { entries })
    }
}

fn take<'b>(bytes: &mut &'b [u8], count: usize) -> Option<&'b [u8]> {
    let (taken, rest) = bytes.split_at_checked(count)?;
    *bytes = rest;
    Some(taken)
}

fn difference(old: &ManifestEntry, new: &ManifestEntry) -> Option<FileChange> {
    match () {
        () if old == new => None,
        () if old.kind != new.kind => Some(FileChange::Kind),
        () if old.content != new.content => Some(FileChange::Content),
        () if old.mode != new.mode => Some(FileChange::Mode(old.mode, new.mode)),
        () => Some(FileChange::Owner),
    }
}

fn path_of(directory: &Path, digest: &ContentDigest) -> PathBuf {
    let name = digest.to_string();
    directory.join(&name[..2]).join(format!("{name}.zst"))
}

/// Removes the manifests written longest ago until the rest is within [`MAX_BYTES`]. Returns how many went.
pub fn prune(directory: &Path, limit: u64) -> usize {
    let list = |path: &Path| fs::read_dir(path).into_iter().flatten().flatten();
    let mut files: Vec<(SystemTime, u64, PathBuf)> = list(directory)
        .flat_map(|entry| list(&entry.path()))
        .filter_map(|entry| {
            let metadata = entry.metadata().ok()?;
            Some((metadata.modified().ok()?, metadata.len(), entry.path()))
        })
        .collect();
    files.sort_unstable_by(|a, b| b.cmp(a));
    let (mut total, mut gone) = (0, 0);
    for (written, size, path) in files {
        total += size;
        // One that is being written this moment is nobody's to remove.
        let fresh = written.elapsed().is_ok_and(|age| age < Duration::from_secs(60));
        if total > limit && !fresh && fs::remove_file(path).is_ok() {
            gone += 1;
        }
    }
    gone
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(entries: &[(&str, u8, u32, u8)]) -> Manifest {
        let entry = |(path, kind, mode, content): &(&str, u8, u32, u8)| {
            (
                (*path).to_owned(),
                ManifestEntry { kind: *kind, mode: *mode, owner: (0, 0), content: [*content; 16] },
            )
        };
        Manifest { entries: entries.iter().map(entry).collect() }
    }

    #[test]
    fn manifests_survive_the_disk() {
        let place = tempfile::tempdir().expect("a directory");
        let digest = ContentDigest::of(b"x");
        let kept = manifest(&[("a", b'f', 0o644, 1), ("b/c d", b'l', 0, 2)]);
        assert_eq!(Manifest::read(place.path(), &digest), None);
        kept.write(place.path(), &digest).expect("writes");
        assert!(Manifest::exists(place.path(), &digest));
        assert_eq!(Manifest::read(place.path(), &digest), Some(kept));
        std::fs::write(path_of(place.path(), &digest), "rubbish").expect("writes");
        assert_eq!(Manifest::read(place.path(), &digest), None);
    }

    #[test]
    fn changes_are_told_by_kind() {
        let before = manifest(&[
            ("gone", b'f', 0o644, 1),
            ("kind", b'f', 0o644, 1),
            ("mode", b'f', 0o664, 1),
            ("same", b'f', 0o644, 1),
            ("text", b'f', 0o644, 1),
        ]);
        let after = manifest(&[
            ("kind", b'l', 0o644, 1),
            ("mode", b'f', 0o644, 1),
            ("new", b'f', 0o644, 1),
            ("same", b'f', 0o644, 1),
            ("text", b'f', 0o755, 2),
        ]);
        let changes = after.changes_since(&before);
        let expected = [
            ("gone", FileChange::Removed),
            ("kind", FileChange::Kind),
            ("mode", FileChange::Mode(0o664, 0o644)),
            ("new", FileChange::Added),
            ("text", FileChange::Content),
        ];
        assert_eq!(changes, expected.map(|(path, change)| (path.to_owned(), change)));
        assert!(after.changes_since(&after).is_empty());
    }

    #[test]
    fn what_is_over_the_limit_goes_but_not_what_is_fresh() {
        let place = tempfile::tempdir().expect("a directory");
        for n in 0..4u8 {
            let digest = ContentDigest::of(&[n]);
            manifest(&[("a", b'f', 0, n)]).write(place.path(), &digest).expect("writes");
            let past = SystemTime::now() - Duration::from_secs(1000 + u64::from(n));
            let file = fs::File::options().write(true).open(path_of(place.path(), &digest)).expect("opens");
            file.set_modified(past).expect("sets");
        }
        let size = |n| fs::metadata(path_of(place.path(), &ContentDigest::of(&[n]))).expect("is there").len();
        assert_eq!(prune(place.path(), size(0) + size(1)), 2);
        assert!(Manifest::exists(place.path(), &ContentDigest::of(&[0])));
        assert!(!Manifest::exists(place.path(), &ContentDigest::of(&[3])));
        manifest(&[("a", b'f', 0, 9)]).write(place.path(), &ContentDigest::of(&[9])).expect("writes");
        assert_eq!(prune(place.path(), 0), 2, "the fresh one stays");
    }
}
