//! Remembers the content digest of files by their status, so that an unchanged context is not read again.
//!
//! File layout (one file per context directory): an 16-byte header, then records of 52 bytes sorted by key:
//! 16 bytes of blake3 over (path, dev, ino, size, mtime, ctime), 32 bytes blake3 of the content, 4 bytes
//! little-endian day of last use. Writers replace the file by rename; the last one wins, which only costs hashing.
//!
//! Trust rule (git calls the problem "racily clean"): a file can be written twice within one tick of its
//! timestamps, so a status recorded too soon after a change may stand for two contents. A record is made only
//! when mtime and ctime are older than the moment of reading by [`TICK`] (or [`COARSE_TICK`] where the file system
//! has no sub-second times). mtime can be set back by any program; ctime cannot without changing the clock, and the
//! inode tells apart a file that was replaced. File systems whose clock is not ours are never trusted.
//! Must not know patterns or ops. Read [`Fingerprints`] first.

use std::collections::BTreeMap;
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::tree::Meta;

/// Changing this, or anything it heads, is a format break.
const MAGIC: &[u8; 16] = b"stave-fprint-02\n";

/// Kernel timestamps advance by jiffies: 10 ms at worst. Two of them, because clock sources disagree.
pub(crate) const TICK: Duration = Duration::from_millis(20);

/// File systems without sub-second times count in up to two seconds (FAT).
const COARSE_TICK: Duration = Duration::from_millis(2500);

/// Records not used for this many days are dropped when the file is written.
const KEEP_DAYS: u32 = 30;

/// Records kept in one file (about 208 MB).
const RECORD_LIMIT: usize = 4_000_000;

const KEY: usize = 16;
const CONTENT: usize = 32;
const RECORD: usize = KEY + CONTENT + 4;

/// Known content digests of one context directory.
#[derive(Debug)]
pub(crate) struct Fingerprints {
    file: Option<PathBuf>,
    stored: Vec<u8>,
    fresh: Mutex<BTreeMap<[u8; KEY], [u8; CONTENT]>>,
    today: u32,
}

/// Whether the status of a file may stand for its content from now on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trust {
    Settled,
    Racy,
}

/// Judges a status whose content is read at `reading` (time since the epoch).
pub(crate) fn trust(meta: &Meta, reading: Duration) -> Trust {
    let since_epoch = |(seconds, nanoseconds): (i64, u32)| {
        u64::try_from(seconds).map_or(Duration::ZERO, |seconds| Duration::new(seconds, nanoseconds))
    };
    let coarse = meta.ctime.1 == 0;
    let tick = if coarse { COARSE_TICK } else { TICK };
    let newest = since_epoch(meta.mtime).max(since_epoch(meta.ctime));
    if newest + tick < reading { Trust::Settled } else { Trust::Racy }
}

/// Now, as a duration since the epoch.
pub(crate) fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// The identity of a status.
pub(crate) fn key(path: &str, meta: &Meta) -> [u8; KEY] {
    let mut bytes = Vec::with_capacity(path.len() + 64);
    for number in [meta.dev, meta.ino, meta.size] {
        bytes.extend_from_slice(&number.to_le_bytes());
    }
    for (seconds, nanoseconds) in [meta.mtime, meta.ctime] {
        bytes.extend_from_slice(&seconds.to_le_bytes());
        bytes.extend_from_slice(&nanoseconds.to_le_bytes());
    }
    bytes.extend_from_slice(path.as_bytes());
    let mut key = [0; KEY];
    key.copy_from_slice(&blake3::hash(&bytes).as_bytes()[..KEY]);
    key
}

impl Fingerprints {
    /// Knows nothing and remembers nothing on disk.
    pub(crate) fn none() -> Self {
        Self { file: None, stored: Vec::new(), fresh: Mutex::default(), today: 0 }
    }

    /// Reads a file; one that is absent, torn or of another format counts as empty.
    pub(crate) fn load(file: &Path) -> Self {
        let today = u32::try_from(now().as_secs() / 86_400).unwrap_or(u32::MAX);
        let stored = read(file).unwrap_or_default();
        Self { file: Some(file.to_owned()), stored, fresh: Mutex::default(), today }
    }

    /// Whether anything outlives this process.
    pub(crate) fn remembers(&self) -> bool {
        self.file.is_some()
    }

    /// The content digest recorded for a status.
    pub(crate) fn get(&self, key: &[u8; KEY]) -> Option<[u8; CONTENT]> {
        let (mut low, mut high) = (0, self.stored.len() / RECORD);
        while low < high {
            let middle = usize::midpoint(low, high);
            let record = &self.stored[middle * RECORD..][..RECORD];
            match record[..KEY].cmp(key) {
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
                std::cmp::Ordering::Equal => return record[KEY..KEY + CONTENT].try_into().ok(),
            }
        }
        self.fresh.lock().ok()?.get(key).copied()
    }

    /// Records the digest of a settled status.
    pub(crate) fn insert(&self, key: [u8; KEY], content: [u8; CONTENT]) {
        if let Ok(mut fresh) = self.fresh.lock() {
            fresh.insert(key, content);
        }
    }

    /// Writes what was learnt. A failure loses speed, not correctness, so the caller may ignore it.
    pub(crate) fn save(&self) -> io::Result<()> {
        let Some(file) = &self.file else { return Ok(()) };
        let Ok(mut fresh) = self.fresh.lock() else { return Ok(()) };
        if fresh.is_empty() {
            return Ok(());
        }
        let mut records: BTreeMap<[u8; KEY], ([u8; CONTENT], u32)> = BTreeMap::new();
        for record in self.stored.chunks_exact(RECORD) {
            if let Some((key, content, day)) = split(record)
                && day.saturating_add(KEEP_DAYS) >= self.today
            {
                records.insert(key, (content, day));
            }
        }
        if records.len() + fresh.len() > RECORD_LIMIT {
            records.clear();
        }
        for (key, content) in std::mem::take(&mut *fresh) {
            records.insert(key, (content, self.today));
        }
        let mut bytes = Vec::with_capacity(MAGIC.len() + records.len() * RECORD);
        bytes.extend_from_slice(MAGIC);
        for (key, (content, day)) in &records {
            bytes.extend_from_slice(key);
            bytes.extend_from_slice(content);
            bytes.extend_from_slice(&day.to_le_bytes());
        }
        let directory = file.parent().unwrap_or(Path::new("."));
        std::fs::create_dir_all(directory)?;
        let mut aside = tempfile::NamedTempFile::new_in(directory)?;
        aside.write_all(&bytes)?;
        aside.persist(file).map_err(|error| error.error)?;
        Ok(())
    }
}

fn read(file: &Path) -> io::Result<Vec<u8>> {
    let limit = (MAGIC.len() + RECORD_LIMIT * RECORD) as u64;
    let mut bytes = Vec::new();
    std::fs::File::open(file)?.take(limit).read_to_end(&mut bytes)?;
    let valid = bytes.len() >= MAGIC.len() && bytes.starts_with(MAGIC);
    if !valid || !(bytes.len() - MAGIC.len()).is_multiple_of(RECORD) {
        return Ok(Vec::new());
    }
    bytes.drain(..MAGIC.len());
    Ok(bytes)
}

fn split(record: &[u8]) -> Option<([u8; KEY], [u8; CONTENT], u32)> {
    Some((
        record.get(..KEY)?.try_into().ok()?,
        record.get(KEY..KEY + CONTENT)?.try_into().ok()?,
        u32::from_le_bytes(record.get(KEY + CONTENT..)?.try_into().ok()?),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meta(mtime: (i64, u32), ctime: (i64, u32)) -> Meta {
        Meta { mode: 0o100_644, uid: 0, gid: 0, size: 3, mtime, ctime, dev: 1, ino: 2, nlink: 1, rdev: 0 }
    }

    #[test]
    fn a_status_from_the_tick_of_the_scan_is_never_trusted() {
        let scan = Duration::new(1000, 500_000_000);
        assert_eq!(trust(&meta((900, 1), (900, 1)), scan), Trust::Settled);
        assert_eq!(trust(&meta((1000, 499_000_000), (900, 1)), scan), Trust::Racy);
        assert_eq!(trust(&meta((900, 1), (1000, 499_000_000)), scan), Trust::Racy);
        assert_eq!(trust(&meta((2000, 1), (900, 1)), scan), Trust::Racy, "a time in the future");
        assert_eq!(trust(&meta((998, 0), (999, 0)), scan), Trust::Racy, "whole seconds");
        assert_eq!(trust(&meta((990, 0), (991, 0)), scan), Trust::Settled);
    }

    #[test]
    fn any_change_of_the_status_changes_the_key() {
        let base = meta((1, 2), (3, 4));
        let variants = [
            Meta { size: 4, ..base },
            Meta { ino: 3, ..base },
            Meta { dev: 3, ..base },
            Meta { mtime: (1, 3), ..base },
            Meta { ctime: (3, 5), ..base },
        ];
        for variant in variants {
            assert_ne!(key("a", &base), key("a", &variant));
        }
        assert_ne!(key("a", &base), key("b", &base));
    }

    #[test]
    fn survives_the_process_and_ignores_damage() {
        let directory = tempfile::tempdir().expect("tempdir");
        let file = directory.path().join("x/fingerprints");
        let first = Fingerprints::load(&file);
        let keys: Vec<_> = (0..100).map(|n| key(&format!("f{n}"), &meta((1, 1), (1, 1)))).collect();
        for (n, key) in keys.iter().enumerate() {
            first.insert(*key, [u8::try_from(n).expect("small"); 32]);
        }
        first.save().expect("save");
        let second = Fingerprints::load(&file);
        for (n, key) in keys.iter().enumerate() {
            assert_eq!(second.get(key), Some([u8::try_from(n).expect("small"); 32]));
        }
        assert_eq!(second.get(&[0; KEY]), None);
        let bytes = std::fs::read(&file).expect("read");
        std::fs::write(&file, &bytes[..bytes.len() - 1]).expect("truncate");
        assert_eq!(Fingerprints::load(&file).get(&keys[0]), None);
    }
}
