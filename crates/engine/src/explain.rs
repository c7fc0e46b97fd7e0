//! Why a step ran: its keys beside those of the nearest earlier build.
//!
//! Owns the comparison and its words. The nearest earlier record is, in this order: the step of an earlier build
//! of the same Dockerfile and context with the same definition; that at the same place of the same stage; a
//! result the same definition ever made here. Must not change what runs. Reads the cache's index and the
//! manifests of content digests; whatever is missing there makes an explanation shorter, never wrong.
//!
//! Start with [`Reason`] for what is told, and [`Explainer::explain`] for how it is found.

mod change;
mod compare;
mod place;
mod secrets;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use stave_cache::{CacheIndex, KeyEntry, KeyKind, KeyPreimage};
use stave_llb::Definition;
use stave_oci::Digest;
use stave_solver::Miss;
use stave_worker::KnownSecrets;

pub use change::{Change, FileSummary};
pub(crate) use secrets::SecretWatch;

use crate::record::{BuildId, BuildRecord, History, Recorder, StepRecord, StepState};

/// Earlier builds that are searched for one like this.
const MAX_BUILDS: usize = 20;

/// Why a step ran.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    /// In one word.
    pub cause: Cause,
    /// What differs, the telling first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub changes: Vec<Change>,
    /// The build it was compared with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub build: Option<BuildId>,
    /// What would have made it a hit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<Hint>,
}

/// The kind of a [`Reason`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// No build of this step is known.
    First,
    /// Something that takes part in its key is another.
    Changed,
    /// Nothing changed, but the result is no longer there: pruned, or never recorded.
    Gone,
    /// The build said not to use the cache.
    NoCache,
    /// It has no key: what it reads is found out by running it.
    Volatile,
}

/// What to do about a miss.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Hint {
    /// Only modes differ that git does not keep: `--context-modes=git`.
    ContextModes,
}

impl Reason {
    fn plain(cause: Cause) -> Self {
        Self { cause, changes: Vec::new(), build: None, hint: None }
    }

    /// Whether it is worth a line in the build's output: what is new or volatile explains itself.
    pub fn is_telling(&self) -> bool {
        match self.cause {
            Cause::Changed | Cause::Gone => true,
            Cause::First | Cause::NoCache | Cause::Volatile => false,
        }
    }
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.cause {
            Cause::First => f.write_str("no earlier result of this step is known"),
            Cause::NoCache => f.write_str("the build was told not to use the cache"),
            Cause::Volatile => f.write_str("what it reads is looked at in every build"),
            Cause::Gone => f.write_str("nothing changed, but the earlier result is no longer in the cache"),
            Cause::Changed if self.changes.is_empty() => f.write_str("its inputs changed"),
            Cause::Changed => {
                for (index, change) in self.changes.iter().enumerate() {
                    write!(f, "{}{change}", if index == 0 { "" } else { "; " })?;
                }
                Ok(())
            }
        }
    }
}

/// Explains the misses of one build.
#[derive(Debug, Clone)]
pub(crate) struct Explainer {
    shared: Arc<Shared>,
    /// What no explanation tells.
    secrets: Option<KnownSecrets>,
}

#[derive(Debug)]
struct Shared {
    index: CacheIndex,
    manifests: PathBuf,
    history: History,
    recorder: Recorder,
    definition: Arc<Definition>,
    /// When the build began: what was made since is no earlier result, and may be the step's own.
    begun: SystemTime,
    /// Earlier builds of this Dockerfile, the newest first; read at the first miss.
    earlier: Mutex<Option<Arc<Vec<BuildRecord>>>>,
}

impl Explainer {
    pub(crate) fn new(
        history: History,
        manifests: PathBuf,
        index: CacheIndex,
        recorder: Recorder,
        definition: Arc<Definition>,
    ) -> Self {
        let begun = SystemTime::now();
        let shared =
            Shared { index, manifests, history, recorder, definition, begun, earlier: Mutex::new(None) };
        Self { shared: Arc::new(shared), secrets: None }
    }

    /// The same that tells none of these.
    pub(crate) fn hiding(self, secrets: Option<KnownSecrets>) -> Self {
        Self { secrets, ..self }
    }

    /// Why a vertex was missed. Reads files and the index: not for async threads.
    pub(crate) fn explain(&self, vertex: &Digest, miss: &Miss) -> Reason {
        let mut reason = self.reason(vertex, miss);
        if let Some(secrets) = &self.secrets {
            let hidden = |text: &str| secrets.hidden_in(text);
            reason.changes = reason.changes.into_iter().map(|change| change.without(&hidden)).collect();
        }
        reason
    }

    /// Why, where the miss itself says so.
    pub(crate) fn plainly(miss: &Miss) -> Option<Reason> {
        if miss.ignored {
            return Some(Reason::plain(Cause::NoCache));
        }
        miss.entries.is_empty().then(|| Reason::plain(Cause::Volatile))
    }

    fn reason(&self, vertex: &Digest, miss: &Miss) -> Reason {
        if let Some(reason) = Self::plainly(miss) {
            return reason;
        }
        let shared = &self.shared;
        let steps = shared.recorder.steps();
        let Some(this) = steps.iter().find(|step| step.vertex.as_ref() == Some(vertex)) else {
            return Reason::plain(Cause::First);
        };
        let place = place::Place::of(&shared.definition, vertex);
        for record in self.earlier().iter() {
            let Some(step) = place.counterpart(this, record) else { continue };
            if !had_result(step) {
                continue;
            }
            let entries = self.entries_of(step);
            let mut reason = self.compare(miss, &entries, (this, step), (&steps, record));
            reason.build = Some(record.id.clone());
            return reason;
        }
        let entries = shared.index.entries_of_vertex(vertex.as_str(), shared.begun).unwrap_or_default();
        if entries.is_empty() {
            return Reason::plain(Cause::First);
        }
        let before = BuildRecordSteps(&[]);
        self.compare_steps(miss, &entries, (this, None), (&steps, before))
    }

    fn compare(
        &self,
        miss: &Miss,
        entries: &[KeyEntry],
        (this, step): (&StepRecord, &StepRecord),
        (steps, record): (&[StepRecord], &BuildRecord),
    ) -> Reason {
        self.compare_steps(miss, entries, (this, Some(step)), (steps, BuildRecordSteps(&record.steps)))
    }

    fn compare_steps(
        &self,
        miss: &Miss,
        entries: &[KeyEntry],
        (this, step): (&StepRecord, Option<&StepRecord>),
        (steps, before): (&[StepRecord], BuildRecordSteps<'_>),
    ) -> Reason {
        if miss.entries.iter().any(|new| entries.iter().any(|old| old.key == new.key)) {
            return Reason::plain(Cause::Gone);
        }
        let pair = nearest(miss, entries);
        let comparison = compare::Comparison {
            manifests: &self.shared.manifests,
            definition: &self.shared.definition,
            this,
            step,
            steps,
            before: before.0,
        };
        let changes = match pair {
            Some((new, old)) => comparison.changes(&new.preimage, &old.preimage),
            None => comparison.without_keys(),
        };
        let only_modes = !changes.is_empty() && changes.iter().all(Change::is_git_mode);
        Reason { cause: Cause::Changed, hint: only_modes.then_some(Hint::ContextModes), changes, build: None }
    }

    /// The keys an earlier step had, with what they were made from.
    fn entries_of(&self, step: &StepRecord) -> Vec<KeyEntry> {
        let index = &self.shared.index;
        let mut entries = Vec::new();
        for key in &step.keys {
            match &key.preimage {
                Some(preimage) => entries.push(KeyEntry { key: key.key, preimage: preimage.clone() }),
                None => entries.extend(index.entries_beside(&key.key).unwrap_or_default()),
            }
        }
        if entries.is_empty()
            && let Some(vertex) = &step.vertex
        {
            entries = index.entries_of_vertex(vertex.as_str(), self.shared.begun).unwrap_or_default();
        }
        entries
    }

    fn earlier(&self) -> Arc<Vec<BuildRecord>> {
        let mut earlier = self.shared.earlier.lock().unwrap_or_else(PoisonError::into_inner);
        let read = || {
            let own = self.shared.recorder.identity();
            let same = self.shared.history.records().filter(|record| own.is_earlier(record));
            Arc::new(same.take(MAX_BUILDS).collect())
        };
        Arc::clone(earlier.get_or_insert_with(read))
    }
}

/// The steps of a record that may be none.
struct BuildRecordSteps<'a>(&'a [StepRecord]);

/// Whether a step of an earlier build had a result: of one that had none nothing could be found.
fn had_result(step: &StepRecord) -> bool {
    !matches!(step.state, StepState::Running | StepState::Cancelled | StepState::Failed)
}

/// The pair of keys of one kind that says most: by content, else by result, else by definition; of several
/// earlier ones that with the fewest differences.
fn nearest<'a>(miss: &'a Miss, entries: &'a [KeyEntry]) -> Option<(&'a KeyEntry, &'a KeyEntry)> {
    let of = |entries: &'a [KeyEntry], kind: KeyKind| entries.iter().filter(move |e| e.preimage.kind == kind);
    for kind in [KeyKind::Content, KeyKind::Result, KeyKind::Definition] {
        let Some(new) = of(&miss.entries, kind).next() else { continue };
        let distance = |old: &&KeyEntry| new.preimage.changes_since(&old.preimage).len();
        if let Some(old) = of(entries, kind).min_by_key(distance) {
            return Some((new, old));
        }
    }
    None
}

/// The fields of a preimage's operation and inputs.
fn field<'a>(preimage: &'a KeyPreimage, label: &str) -> Option<&'a stave_cache::FieldValue> {
    preimage.fields.iter().find(|field| field.label == label).map(|field| &field.value)
}
