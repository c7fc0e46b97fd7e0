//! Reading build records, and letting old ones go. Start with [`History`].

use std::fs::{self, File, TryLockError};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use stave_store::Store;
use stave_worker::Namespace;

use super::log::LogReader;
use super::{BuildId, BuildRecord, BuildState, RECORD_FORMAT};

/// Bytes of the largest record that is read.
const MAX_RECORD: u64 = 64 << 20;

/// Beside a record: whose build it is, where that is not everybody's.
const OWNER: &str = "owner";
/// Marks a build that stays.
const PIN: &str = "pinned";
/// Beside all builds: one of them wrote more than a few kilobytes since they were last measured.
const GROWN: &str = ".grown";
/// Of so many builds that are kept, one more may be there before the oldest go.
const SLACK: usize = 16;

/// How much of the past is kept. What goes first is the oldest; a running build's record stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// Builds.
    pub builds: usize,
    /// Bytes of all records and logs together.
    pub bytes: u64,
    /// How long a build is kept though there are more than `builds`.
    pub at_least: Duration,
}

impl Default for Retention {
    fn default() -> Self {
        Self { builds: 200, bytes: 256 << 20, at_least: Duration::ZERO }
    }
}

/// Why a record could not be had.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    /// No build has this id, or begins with it.
    #[error("no such build: `{0}`")]
    NoSuchBuild(String),
    /// There is no build at all.
    #[error("there are no build records")]
    Empty,
    /// Several builds begin so.
    #[error("`{0}` is the start of several builds' ids")]
    Ambiguous(String),
    /// A build that is running cannot be removed.
    #[error("build `{0}` is running")]
    Running(BuildId),
    /// The record cannot be read.
    #[error("cannot read the record of build `{id}`")]
    Read {
        /// Which.
        id: BuildId,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The directory of records failed.
    #[error("cannot {action} `{}`", path.display())]
    Directory {
        /// What was tried.
        action: &'static str,
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// The builds of a store.
#[derive(Debug, Clone)]
pub struct History {
    directory: PathBuf,
    namespace: Namespace,
}

impl History {
    /// The history of a store.
    pub fn of(store: &Store) -> Self {
        Self { directory: store.builds_directory(), namespace: Namespace::Shared }
    }

    /// The same as far as one tenant sees it; who shares the store with all sees everything.
    #[must_use]
    pub fn within(&self, namespace: &Namespace) -> Self {
        Self { directory: self.directory.clone(), namespace: namespace.clone() }
    }

    /// Says whose a build is.
    ///
    /// # Errors
    /// [`HistoryError::Directory`].
    pub fn give(&self, id: &BuildId, namespace: &Namespace) -> Result<(), HistoryError> {
        let Namespace::Own(name) = namespace else { return Ok(()) };
        let path = self.place(id).join(OWNER);
        fs::write(&path, name.as_bytes()).map_err(|source| HistoryError::Directory {
            action: "change",
            path,
            source,
        })
    }

    fn sees(&self, id: &BuildId) -> bool {
        match &self.namespace {
            Namespace::Shared => true,
            Namespace::Own(name) => {
                fs::read(self.place(id).join(OWNER)).is_ok_and(|owner| owner == name.as_bytes())
            }
        }
    }

    /// Ids of all builds, the newest first.
    ///
    /// # Errors
    /// [`HistoryError::Directory`].
    pub fn ids(&self) -> Result<Vec<BuildId>, HistoryError> {
        let failed =
            |source| HistoryError::Directory { action: "list", path: self.directory.clone(), source };
        let entries = match fs::read_dir(&self.directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(failed)?,
        };
        let mut ids = Vec::new();
        for entry in entries {
            let name = entry.map_err(failed)?.file_name();
            ids.extend(name.to_str().and_then(|name| name.parse::<BuildId>().ok()));
        }
        ids.retain(|id| self.sees(id));
        ids.sort_unstable_by(|a, b| b.cmp(a));
        Ok(ids)
    }

    /// The build that `text` means: an id, the start of one, or nothing for the latest.
    ///
    /// # Errors
    /// [`HistoryError`], also when several begin so.
    pub fn find(&self, text: Option<&str>) -> Result<BuildRecord, HistoryError> {
        let Some(text) = text else {
            // One that cannot be read is no build to show.
            let newest = self.ids()?.into_iter().find_map(|id| self.read(&id).ok());
            return newest.ok_or(HistoryError::Empty);
        };
        let mut matching = self.ids()?.into_iter().filter(|id| id.as_str().starts_with(text));
        match (matching.next(), matching.next()) {
            (Some(id), None) => self.read(&id),
            (Some(id), Some(_)) if id.as_str() == text => self.read(&id),
            (Some(_), Some(_)) => Err(HistoryError::Ambiguous(text.to_owned())),
            (None, _) => Err(HistoryError::NoSuchBuild(text.to_owned())),
        }
    }

    /// All records that can be read, the newest first.
    pub fn records(&self) -> impl Iterator<Item = BuildRecord> + '_ {
        self.ids().unwrap_or_default().into_iter().filter_map(|id| self.read(&id).ok())
    }

    /// The directory of a build's record: who else knows something of it keeps that beside the record.
    pub fn place(&self, id: &BuildId) -> PathBuf {
        self.directory.join(id.as_str())
    }

    /// Whether a build stays until somebody removes it by name.
    pub fn is_pinned(&self, id: &BuildId) -> bool {
        self.place(id).join(PIN).exists()
    }

    /// Keeps a build until somebody removes it by name, or lets it grow old as others do.
    ///
    /// # Errors
    /// [`HistoryError::NoSuchBuild`], [`HistoryError::Directory`].
    pub fn pin(&self, id: &BuildId, is_pinned: bool) -> Result<(), HistoryError> {
        let path = self.place(id).join(PIN);
        let changed = match is_pinned {
            true => File::create(&path).map(drop),
            false => fs::remove_file(&path),
        };
        match changed {
            Err(error) if error.kind() == io::ErrorKind::NotFound && is_pinned => {
                Err(HistoryError::NoSuchBuild(id.to_string()))
            }
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(HistoryError::Directory { action: "change", path, source: error })
            }
            _ => Ok(()),
        }
    }

    /// A build's record. One whose process died says [`BuildState::Killed`].
    ///
    /// # Errors
    /// [`HistoryError::Read`].
    pub fn read(&self, id: &BuildId) -> Result<BuildRecord, HistoryError> {
        read(&self.directory.join(id.as_str()))
            .map_err(|source| HistoryError::Read { id: id.clone(), source })
    }

    /// What a step wrote; `None` when it wrote nothing.
    ///
    /// # Errors
    /// [`HistoryError::Read`].
    pub fn log(&self, id: &BuildId, step: usize) -> Result<Option<LogReader>, HistoryError> {
        match LogReader::open(&log_path(&self.directory.join(id.as_str()), step)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(HistoryError::Read { id: id.clone(), source }),
            Ok(reader) => Ok(Some(reader)),
        }
    }

    /// Removes a build's record and logs.
    ///
    /// # Errors
    /// [`HistoryError::Running`] for a build that is.
    pub fn remove(&self, id: &BuildId) -> Result<(), HistoryError> {
        let path = self.directory.join(id.as_str());
        if read(&path).is_ok_and(|record| record.state == BuildState::Running) {
            return Err(HistoryError::Running(id.clone()));
        }
        fs::remove_dir_all(&path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => HistoryError::NoSuchBuild(id.to_string()),
            _ => HistoryError::Directory { action: "remove", path: path.clone(), source },
        })
    }

    /// [`Self::prune`] if that may find something: to measure the past takes longer than to build what is built
    /// already. Then somebody said that it [has grown](has_grown), or there are some more builds than are kept.
    ///
    /// # Errors
    /// [`HistoryError::Directory`].
    pub(super) fn prune_if_due(&self, keep: &Retention) -> Result<usize, HistoryError> {
        // Before the measuring, so that what grows meanwhile is not missed.
        let is_due = fs::remove_file(self.directory.join(GROWN)).is_ok()
            || self.are_more(keep.builds.saturating_add(keep.builds / SLACK))?;
        if is_due { self.prune(keep) } else { Ok(0) }
    }

    /// Whether there are more builds than so many, apart from the pinned ones, which never go.
    fn are_more(&self, most: usize) -> Result<bool, HistoryError> {
        let ids = self.ids()?;
        Ok(ids.len() > most && ids.iter().filter(|id| !self.is_pinned(id)).count() > most)
    }

    /// Lets go what `keep` does not keep. Returns how many builds went.
    ///
    /// # Errors
    /// [`HistoryError::Directory`].
    pub fn prune(&self, keep: &Retention) -> Result<usize, HistoryError> {
        let (mut kept, mut bytes, mut gone) = (0, 0, 0);
        let now = SystemTime::now();
        for id in self.ids()? {
            if self.is_pinned(&id) {
                continue;
            }
            let place = self.place(&id);
            bytes += size(&place);
            kept += 1;
            let is_young = || age(&place, now).is_some_and(|age| age < keep.at_least);
            if bytes <= keep.bytes && (kept <= keep.builds || is_young()) {
                continue;
            }
            // Another process may prune as well.
            match self.remove(&id) {
                Ok(()) => gone += 1,
                Err(HistoryError::Running(_) | HistoryError::NoSuchBuild(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(gone)
    }
}

/// Notes that a build, whose directory this is, takes more than a small record does.
pub(super) fn has_grown(directory: &Path) {
    if let Err(error) = File::create(directory.with_file_name(GROWN)) {
        tracing::debug!(%error, "old build records stay for longer");
    }
}

/// Where a step's log is.
pub(super) fn log_path(directory: &Path, step: usize) -> PathBuf {
    directory.join(format!("{step}.log.zst"))
}

/// Where the record is.
pub(super) fn record_path(directory: &Path) -> PathBuf {
    directory.join("record.json")
}

fn read(directory: &Path) -> io::Result<BuildRecord> {
    let file = File::open(record_path(directory))?;
    let mut text = Vec::new();
    (&file).take(MAX_RECORD).read_to_end(&mut text)?;
    let mut record: BuildRecord = serde_json::from_slice(&text)?;
    if record.format != RECORD_FORMAT {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a record of another version"));
    }
    if record.state == BuildState::Running {
        match file.try_lock_shared() {
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(error)) => return Err(error),
            Ok(()) => record.state = BuildState::Killed,
        }
    }
    Ok(record)
}

/// How long ago a build ended; `None` when that cannot be told.
fn age(directory: &Path, now: SystemTime) -> Option<Duration> {
    now.duration_since(record_path(directory).metadata().ok()?.modified().ok()?).ok()
}

fn size(directory: &Path) -> u64 {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|entry| Some(entry.metadata().ok()?.len())).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Builds numbered from `first`, each with a record of so many bytes.
    fn fill(history: &History, numbers: std::ops::Range<usize>, bytes: usize) {
        for number in numbers {
            let place = history.directory.join(format!("{number:012}"));
            fs::create_dir_all(&place).expect("a directory");
            fs::write(record_path(&place), vec![b' '; bytes]).expect("a record");
        }
    }

    #[test]
    fn the_past_is_measured_only_when_it_may_be_too_much() {
        let place = tempfile::tempdir().expect("a directory");
        let history = History { directory: place.path().join("builds"), namespace: Namespace::Shared };
        let keep = Retention { builds: 32, bytes: 320, at_least: Duration::ZERO };
        let due = || history.prune_if_due(&keep).expect("works");
        assert_eq!(due(), 0, "there is none yet");
        fill(&history, 0..34, 11);
        assert_eq!(due(), 0, "two more than are kept, and nobody wrote much");
        fill(&history, 34..35, 9);
        // The newest that fit: one of nine bytes, and 28 of eleven.
        assert_eq!(due(), 6);
        assert_eq!(history.ids().expect("lists").len(), 29);
        fill(&history, 35..36, 100);
        assert_eq!(due(), 0);
        has_grown(&history.directory.join("000000000035"));
        assert_eq!(due(), 9, "100 + 9 + 19 times 11");
        assert_eq!(due(), 0);
        // What is pinned stays, and makes nothing due: the others are no more than are kept.
        for id in history.ids().expect("lists") {
            history.pin(&id, true).expect("pins");
        }
        fill(&history, 100..134, 10);
        assert_eq!(due(), 0);
        fill(&history, 134..135, 10);
        assert_eq!(due(), 3, "32 times 10");
        // Who is to keep to the letter does.
        fill(&history, 36..37, 100);
        assert!(history.prune(&keep).expect("works") > 0);
    }
}
