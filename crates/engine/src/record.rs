//! Build records: what every build of this store was asked for, did and said.
//!
//! ```text
//! <root>/builds/<id>/record.json   a BuildRecord; flock'ed while the build runs
//! <root>/builds/<id>/<n>.log.zst   what step <n> wrote, whole (module `log`)
//! ```
//!
//! Owns the record's types, its writer ([`Recorder`]), its readers ([`History`]) and how long records stay.
//! A record is written small when a build begins and whole when it ends, so that a build that was killed
//! is seen as such. Must not know how anything is shown. Secrets never get here: log bytes are redacted
//! where they are read from the step, before any event carries them.
//!
//! Start with [`BuildRecord`].

mod history;
mod log;
mod recorder;

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use stave_cache::{CacheKey, KeyKind, KeyPreimage};
use stave_oci::Digest;
use stave_solver::Hit;

pub use history::{History, HistoryError, Retention};
pub use log::{LogChunk, LogReader};
pub use recorder::{Beginning, Ending, Recorder};

use crate::explain::Reason;

/// The version of `record.json`. A record of another version is listed but not read further.
pub const RECORD_FORMAT: u32 = 1;

/// Names one build of a store: 9 characters of its start in milliseconds, then 3 random ones, in Crockford's
/// base 32. Ids sort by start.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BuildId(String);

/// A text that is no build id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid build id `{0}`: expected 12 letters and digits")]
pub struct BuildIdError(String);

/// Length of a build id.
pub const BUILD_ID_LENGTH: usize = 12;

const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";

impl BuildId {
    /// The id of a build that began at `start`, told from others of that millisecond by `salt`.
    pub(crate) fn new(start: Timestamp, salt: u16) -> Self {
        let millis = u64::try_from(start.as_millisecond()).unwrap_or(0);
        let number = (millis << 15) | u64::from(salt & 0x7FFF);
        let letter = |place: usize| char::from(ALPHABET[(number >> (5 * place)) as usize & 31]);
        Self((0..BUILD_ID_LENGTH).rev().map(letter).collect())
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for BuildId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for BuildId {
    type Err = BuildIdError;

    fn from_str(text: &str) -> Result<Self, BuildIdError> {
        let valid = text.len() == BUILD_ID_LENGTH && text.bytes().all(|byte| ALPHABET.contains(&byte));
        if valid { Ok(Self(text.to_owned())) } else { Err(BuildIdError(text.chars().take(80).collect())) }
    }
}

impl TryFrom<String> for BuildId {
    type Error = BuildIdError;

    fn try_from(text: String) -> Result<Self, BuildIdError> {
        text.parse()
    }
}

impl From<BuildId> for String {
    fn from(id: BuildId) -> Self {
        id.0
    }
}

/// How far a build is, or how it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BuildState {
    /// Its process is alive.
    Running,
    /// It made what it was asked for.
    Succeeded,
    /// It did not.
    Failed,
    /// It was told to stop.
    Cancelled,
    /// Its process died without a word. Never written: a reader finds it out.
    Killed,
}

/// Where a step's result came from, or why there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StepState {
    /// It was found in this machine's cache.
    CachedLocal,
    /// It was found in an imported cache.
    CachedImported,
    /// Another build ran it at the same time.
    Shared,
    /// Nobody had to look at it, because what stands on it was found.
    Skipped,
    /// It ran.
    Ran,
    /// It is running.
    Running,
    /// It ran and failed.
    Failed,
    /// It was stopped.
    Cancelled,
}

impl From<Hit> for StepState {
    fn from(hit: Hit) -> Self {
        match hit {
            Hit::Local => Self::CachedLocal,
            Hit::Imported => Self::CachedImported,
            Hit::Shared => Self::Shared,
            Hit::Skipped => Self::Skipped,
        }
    }
}

/// The Dockerfile of a build.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DockerfileRecord {
    /// Its name as the user gave it.
    pub name: String,
    /// The digest of its text.
    pub digest: Digest,
}

/// One build.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildRecord {
    /// [`RECORD_FORMAT`].
    pub format: u32,
    /// Its name.
    pub id: BuildId,
    /// How it ended.
    pub state: BuildState,
    /// When it began.
    pub started_at: Timestamp,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Timestamp>,
    /// Its Dockerfile.
    pub dockerfile: DockerfileRecord,
    /// Its context: a directory, or what was given instead.
    pub context: String,
    /// The stage it built; `None` for the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// The names its image was to get.
    #[serde(default)]
    pub tags: Vec<String>,
    /// What it built for.
    #[serde(default)]
    pub platforms: Vec<String>,
    /// Ids of the images it made.
    #[serde(default)]
    pub images: Vec<Digest>,
    /// Its steps, in the order in which they began, which is how progress numbers them.
    #[serde(default)]
    pub steps: Vec<StepRecord>,
    /// Why it failed, in one line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// One step of a build.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepRecord {
    /// Its number in the build's progress, from 1; also that of its log.
    pub number: usize,
    /// Its vertex; `None` for steps outside of the graph, such as exports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vertex: Option<Digest>,
    /// What progress calls it.
    pub name: String,
    /// First and last line of the Dockerfile it comes from, counted from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lines: Option<(usize, usize)>,
    /// The vertices it stands on, in its order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub inputs: Vec<Digest>,
    /// Where its result came from.
    pub state: StepState,
    /// When it began, in microseconds from the build's start; `None` when it never ran.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started: Option<u64>,
    /// When it ended, in microseconds from the build's start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<u64>,
    /// The keys it was looked up by, as far as they were known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub keys: Vec<StepKey>,
    /// Why it ran, when it ran.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// Fingerprints of the secrets it saw, by id: keyed, so that they mean nothing outside of this store.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub secrets: BTreeMap<String, String>,
    /// Why it failed, in one line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The most memory its processes had at one time, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peak_memory: Option<u64>,
    /// Bytes it wrote; `None` for none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_bytes: Option<u64>,
}

/// A key a step was looked up by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepKey {
    /// The key.
    pub key: CacheKey,
    /// Which of the three it is; `None` for a hit, whose record knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<KeyKind>,
    /// What it was made from, for a step that ran.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preimage: Option<KeyPreimage>,
}

impl BuildRecord {
    /// Whether it is over.
    pub fn is_over(&self) -> bool {
        self.state != BuildState::Running
    }

    /// The step of a number in progress or, for words, the only one whose name holds them.
    pub fn step(&self, text: &str) -> Option<&StepRecord> {
        if let Ok(number) = text.trim_start_matches('#').parse::<usize>() {
            return self.steps.iter().find(|step| step.number == number);
        }
        let mut matching = self.steps.iter().filter(|step| step.name.contains(text));
        match (matching.next(), matching.next()) {
            (Some(step), None) => Some(step),
            _ => self.steps.iter().find(|step| step.vertex.as_ref().is_some_and(|v| v.as_str() == text)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_sort_by_time_and_survive_text() {
        let at = |millis| Timestamp::from_millisecond(millis).expect("in range");
        let ids = [
            BuildId::new(at(0), 5),
            BuildId::new(at(1_790_000_000_000), 0),
            BuildId::new(at(1_790_000_000_001), 0),
        ];
        assert!(ids.windows(2).all(|pair| pair[0] < pair[1]), "{ids:?}");
        for id in ids {
            assert_eq!(id.as_str().parse(), Ok(id));
        }
        for bad in ["", "../etc/passw", "0123456789aB", "0123456789abc"] {
            assert!(bad.parse::<BuildId>().is_err(), "{bad}");
        }
    }
}
