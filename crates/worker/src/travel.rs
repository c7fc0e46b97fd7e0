//! What a build's caches elsewhere need of the worker: digests in BuildKit's terms, layers brought here, and
//! word of every result.
//!
//! Owns the notes a build keeps for its exports: which layers each vertex came to, and which inputs were read for
//! their content. Must not know where caches lie or how they are written. Read [`Travel`] first.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use stave_oci::Digest;
use stave_remotecache::import::{Contents, ImportHit, Imports, Lookup};
use stave_remotecache::key::ContentPath;
use stave_remotecache::mounts::MountImports;
use stave_solver::{Elsewhere, ImportedRecord};
use stave_store::{LayerId, Snapshot};

use crate::contenthash::{self, FileDigests};
use crate::worker::{DigestError, Ref, Shared};

/// Hears of every result that may be recorded, as soon as it is known.
pub type Listener = Box<dyn Fn(&Digest, &[Snapshot]) + Send + Sync>;

/// What a vertex came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TravelResult {
    /// The layers of its outputs.
    pub outputs: Vec<Snapshot>,
    /// When they were made.
    pub created_at: SystemTime,
}

/// The caches a build brings, and what it notes for those it makes.
pub struct Travel {
    imports: Option<Arc<Imports>>,
    mounts: Option<Arc<MountImports>>,
    notes: Option<Notes>,
}

struct Notes {
    listener: Listener,
    state: Mutex<Noted>,
}

#[derive(Default)]
struct Noted {
    results: HashMap<Digest, TravelResult>,
    inputs: HashMap<(Digest, usize), Ref>,
    mounts: BTreeSet<String>,
}

/// A hit on its way through the solver.
struct Found(ImportHit);

impl Travel {
    /// A build that asks `imports`, restores cache mounts from `mounts`, and with a `listener` keeps notes for exports.
    #[must_use]
    pub fn new(imports: Option<Imports>, mounts: Option<MountImports>, listener: Option<Listener>) -> Self {
        let notes = listener.map(|listener| Notes { listener, state: Mutex::default() });
        Self { imports: imports.map(Arc::new), mounts: mounts.map(Arc::new), notes }
    }

    /// The same caches, read alone: nothing that is made with them is for elsewhere.
    #[must_use]
    pub fn read_only(&self) -> Self {
        Self { imports: self.imports.clone(), mounts: self.mounts.clone(), notes: None }
    }

    /// What a vertex came to, if that became known.
    pub fn result(&self, vertex: &Digest) -> Option<TravelResult> {
        self.notes.as_ref()?.state().results.get(vertex).cloned()
    }

    /// An input that was read for its content.
    pub fn input(&self, vertex: &Digest, position: usize) -> Option<Ref> {
        self.notes.as_ref()?.state().inputs.get(&(vertex.clone(), position)).cloned()
    }

    /// The keys of cache mounts that steps used.
    pub fn used_mounts(&self) -> Vec<String> {
        self.notes.as_ref().map_or_else(Vec::new, |notes| notes.state().mounts.iter().cloned().collect())
    }

    /// Notes a cache mount in use, and gives a new one the files it has elsewhere.
    pub(crate) async fn enter_mount(&self, key: &str, fresh: Option<&Path>) -> bool {
        if let Some(notes) = &self.notes {
            notes.state().mounts.insert(key.to_owned());
        }
        match (&self.mounts, fresh) {
            (Some(mounts), Some(directory)) => mounts.restore(key, directory).await,
            _ => false,
        }
    }

    /// The caches that are read.
    pub fn imports(&self) -> Option<&Imports> {
        self.imports.as_deref()
    }

    /// Notes what a vertex came to; tells the listener of what is new.
    pub(crate) fn note(&self, vertex: &Digest, outputs: Vec<Snapshot>, created_at: SystemTime) {
        let Some(notes) = &self.notes else { return };
        let result = TravelResult { outputs: outputs.clone(), created_at };
        let known = notes.state().results.insert(vertex.clone(), result);
        if known.is_none_or(|known| known.outputs != outputs) {
            (notes.listener)(vertex, &outputs);
        }
    }

    /// Notes an input; the first one counts.
    pub(crate) fn note_input(&self, vertex: &Digest, position: usize, input: &Ref) {
        if let Some(notes) = &self.notes {
            notes.state().inputs.entry((vertex.clone(), position)).or_insert_with(|| input.clone());
        }
    }
}

impl Notes {
    fn state(&self) -> MutexGuard<'_, Noted> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Travel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Travel").field("imports", &self.imports).finish_non_exhaustive()
    }
}

/// The layers of outputs that may be recorded; `None` when one of them may not.
pub(crate) fn recordable(outputs: &[Ref]) -> Option<Vec<Snapshot>> {
    let layers = outputs.iter().map(|output| match output {
        Ref::Snapshot(snapshot) => Some(snapshot.clone()),
        Ref::Unsettled(_) | Ref::Context(_) => None,
    });
    layers.collect()
}

/// Whether a directory that outlives builds is a step's cache mount, by its key. Sources keep theirs the same way.
#[must_use]
pub fn is_cache_mount(key: &str) -> bool {
    !(key.starts_with("git repository ") || key.starts_with("download "))
}

/// Digests inputs while a cache is asked.
pub(crate) struct Reader<'a> {
    pub(crate) shared: &'a Shared,
    pub(crate) values: &'a [Option<Ref>],
}

impl Contents for Reader<'_> {
    fn digest(&self, input: usize, paths: &[ContentPath]) -> Option<Digest> {
        let value = self.values.get(input)?.as_ref()?;
        self.shared.travelling_digest(value, paths).unwrap_or_else(|error| {
            tracing::warn!(error = &error as &dyn std::error::Error, "content not digested for an import");
            None
        })
    }
}

impl Shared {
    /// The digest, in BuildKit's terms, of what `paths` pick of a result; `None` when something is not there.
    pub(crate) fn travelling_digest(
        &self,
        result: &Ref,
        paths: &[ContentPath],
    ) -> Result<Option<Digest>, DigestError> {
        if result.snapshot().is_some_and(Snapshot::is_scratch) {
            return Ok(contenthash::digest_of_nothing(paths));
        }
        let memo = result.snapshot().map(|snapshot| (snapshot.clone(), paths.to_vec()));
        if let Some(known) = memo.as_ref().and_then(|key| self.travelling.get(key)) {
            return Ok(known.clone());
        }
        let none = FileDigests::none();
        let files = match result {
            Ref::Context(context) => context.file_digests(),
            Ref::Snapshot(_) | Ref::Unsettled(_) => &none,
        };
        let digest = contenthash::digest(&self.input(result)?, paths, files)?;
        if let Some(key) = memo {
            if self.travelling.len() >= crate::worker::MAX_DIGESTS {
                self.travelling.clear();
            }
            self.travelling.insert(key, digest.clone());
        }
        Ok(digest)
    }
}

/// Looks a vertex up. Blocks while content is digested.
pub(crate) fn look_up(
    travel: &Travel,
    shared: &Shared,
    vertex: &Digest,
    values: &[Option<Ref>],
) -> Option<Elsewhere> {
    let reader = Reader { shared, values };
    let contents = values.iter().any(Option::is_some).then_some(&reader as &dyn Contents);
    match travel.imports()?.look_up(vertex, contents)? {
        Lookup::Hit(hit) => Some(Elsewhere::Record(ImportedRecord(Arc::new(Found(hit))))),
        Lookup::Keys => Some(Elsewhere::KeysOnly),
    }
}

/// Brings the layers of a record that [`look_up`] found.
pub(crate) async fn import(travel: &Travel, record: &ImportedRecord) -> Option<Vec<Ref>> {
    let Found(hit) = record.0.downcast_ref::<Found>()?;
    let outputs: Vec<Vec<LayerId>> = travel.imports()?.fetch(hit).await?;
    Some(outputs.into_iter().map(|layers| Ref::Snapshot(Snapshot::new(layers))).collect())
}
