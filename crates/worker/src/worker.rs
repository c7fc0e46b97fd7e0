//! The worker of this machine: ops in, snapshots out.
//! Owns what all ops share: the store, the lease that protects what a build uses, merged views, digests already
//! made. Must not know scheduling or cache lookup. Read [`LocalWorker`] first.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use dashmap::DashMap;
use rustix::fs::FileType;
use stave_cache::ContentDigest;
use stave_oci::Digest;
use stave_remotecache::key::ContentPath;
use stave_sandbox::Launcher;
use stave_solver::{Selector, SelectorPath};
use stave_store::{ActiveLayer, Lease, MergedEntry, Snapshot, Store, StoreError, Taking};
use tokio_util::sync::CancellationToken;

use crate::admission::{Admission, Peaks};
use crate::ahead::{HashAhead, Wishes};
use crate::base::Look as _;
use crate::cdi::SPEC_DIRECTORIES;
use crate::context::Context;
use crate::digest::Digested;
use crate::exec::{LocalExecutor, RuntimeExecutor};
use crate::file::action::FileError;
use crate::file::wildcard::has_wildcard;
use crate::input::Input;
use crate::layer_place::LayerPlace;
use crate::manifest::Manifest;
use crate::networks::Networks;
use crate::root::{Last, RootDir, clean};
use crate::scratch::Scratch;
use crate::starts::Starts;
use crate::step::leftovers::Leftovers;
use crate::step::tries::BuildGroups;
use crate::view::{ViewError, readable};

/// Trees kept for whoever looks next.
const KEPT_TREES: usize = 4;

/// What ops consume and produce.
#[derive(Clone)]
pub enum Ref {
    /// Layers of the store.
    Snapshot(Snapshot),
    /// Layers made while a local file changed under our hands: usable in this build, never recorded.
    Unsettled(Snapshot),
    /// A scanned directory of this machine.
    Context(Arc<Context>),
}

impl Ref {
    /// The layers; `None` for a local context, which has none.
    #[must_use]
    pub fn snapshot(&self) -> Option<&Snapshot> {
        match self {
            Self::Snapshot(snapshot) | Self::Unsettled(snapshot) => Some(snapshot),
            Self::Context(_) => None,
        }
    }
}

impl fmt::Debug for Ref {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Snapshot(snapshot) => write!(f, "Snapshot({snapshot})"),
            Self::Unsettled(snapshot) => write!(f, "Unsettled({snapshot})"),
            Self::Context(context) => write!(f, "Context({} files)", context.count()),
        }
    }
}

/// What a [`LocalWorker`] is made from.
#[derive(Debug, Clone)]
pub struct LocalWorkerConfig {
    /// Where layers are.
    pub store: Store,
    /// What starts sandboxes.
    pub launcher: Launcher,
    /// A directory for what is remembered of local contexts; `None` remembers nothing.
    pub fingerprints: Option<PathBuf>,
    /// Where CDI specifications lie, those of a later directory winning.
    pub device_directories: Vec<PathBuf>,
    /// An OCI runtime (`runc`, `crun`, or a path) that runs steps instead of sandboxes.
    pub runtime: Option<PathBuf>,
}

/// Runs ops on this machine. While it lives, nothing it used or made is collected, unless it was told to
/// [let go](Self::let_go).
#[derive(Debug)]
pub struct LocalWorker<E = LocalExecutor> {
    pub(crate) shared: Arc<Shared>,
    pub(crate) executor: E,
}

/// How long the store's logs stay as they are, once they were brought in.
const LOGS_STAY: Duration = Duration::from_secs(30);

/// Digests that are remembered, of either kind.
pub(crate) const MAX_DIGESTS: usize = 10_000;

/// What ops running at the same time share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) store: Store,
    pub(crate) fingerprints: Option<PathBuf>,
    layer_place: LayerPlace,
    pub(crate) scratch: Scratch,
    views: Mutex<HashMap<Snapshot, Weak<RootDir>>>,
    kept_trees: KeptTrees,
    digests: DashMap<(Snapshot, Selector), ContentDigest>,
    pub(crate) wishes: Arc<Wishes>,
    /// Digests in BuildKit's terms; `None` for what is not there.
    pub(crate) travelling: DashMap<(Snapshot, Vec<ContentPath>), Option<Digest>>,
    pub(crate) admission: Arc<Admission>,
    pub(crate) peaks: Peaks,
    pub(crate) starts: Starts,
    /// When the store's logs were last brought in.
    logs_brought_in: Mutex<Option<Instant>>,
    pub(crate) groups: BuildGroups,
    /// Where CDI specifications lie, those of a later directory winning.
    pub(crate) device_directories: Vec<PathBuf>,
    pub(crate) networks: Networks,
    /// What failed steps left.
    pub(crate) leftovers: Leftovers,
    lease: Mutex<Option<Lease>>,
}

/// The trees looked at last: unlike a mount, making one takes its time.
#[derive(Debug, Default)]
struct KeptTrees(Mutex<VecDeque<Arc<RootDir>>>);

impl KeptTrees {
    fn keep(&self, view: &Arc<RootDir>) {
        if stave_sandbox::has_namespaces() {
            return;
        }
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.push_back(Arc::clone(view));
        if kept.len() > KEPT_TREES {
            kept.pop_front();
        }
    }
}

impl LocalWorker<LocalExecutor> {
    /// A worker that runs processes in sandboxes.
    ///
    /// # Errors
    /// When the store fails.
    pub fn new(config: LocalWorkerConfig) -> Result<Self, StoreError> {
        let runtime = config
            .runtime
            .map(|program| RuntimeExecutor::new(program, config.store.clone()).beside(&config.launcher));
        let trees = Some(config.store.clone()).filter(|_| !stave_sandbox::has_namespaces());
        let networks = Networks::new(&config.launcher);
        let executor = LocalExecutor::new(config.launcher, runtime).in_trees_of(trees);
        Self::assemble((config.store, networks), config.fingerprints, config.device_directories, executor)
    }
}

impl<E> LocalWorker<E> {
    /// A worker that runs processes by other means.
    ///
    /// # Errors
    /// When the store fails.
    pub fn with_executor(
        store: Store,
        fingerprints: Option<PathBuf>,
        executor: E,
    ) -> Result<Self, StoreError> {
        let devices = SPEC_DIRECTORIES.iter().map(PathBuf::from).collect();
        Self::assemble((store, Networks::default()), fingerprints, devices, executor)
    }

    fn assemble(
        (store, networks): (Store, Networks),
        fingerprints: Option<PathBuf>,
        device_directories: Vec<PathBuf>,
        executor: E,
    ) -> Result<Self, StoreError> {
        let lease = store.lease()?;
        let scratch = Scratch::new(&store);
        let peaks = Peaks::in_directory(store.step_peaks_directory());
        peaks.trim();
        let shared = Shared {
            store,
            fingerprints,
            layer_place: LayerPlace::default(),
            scratch,
            views: Mutex::default(),
            kept_trees: KeptTrees::default(),
            digests: DashMap::new(),
            wishes: Arc::default(),
            travelling: DashMap::new(),
            admission: Arc::default(),
            peaks,
            starts: Starts::default(),
            logs_brought_in: Mutex::default(),
            groups: BuildGroups::default(),
            device_directories,
            networks,
            leftovers: Leftovers::default(),
            lease: Mutex::new(Some(lease)),
        };
        Ok(Self { shared: Arc::new(shared), executor })
    }

    /// A result as layers: a local context is copied into one, once. Blocks the thread.
    ///
    /// # Errors
    /// When a context cannot be read or the store fails.
    pub fn snapshot(&self, result: &Ref, cancel: &CancellationToken) -> Result<Snapshot, FileError> {
        crate::file::snapshot_of(&self.shared, result, cancel)
    }

    /// The digest, in BuildKit's terms, of what `paths` pick of a result; `None` when something is not there.
    ///
    /// # Errors
    /// When the result cannot be read.
    pub async fn travelling_digest(
        &self,
        result: &Ref,
        paths: &[ContentPath],
    ) -> Result<Option<Digest>, DigestError> {
        let (shared, result, paths) = (Arc::clone(&self.shared), result.clone(), paths.to_vec());
        crate::source::image::blocking(move || shared.travelling_digest(&result, &paths)).await
    }

    /// From now on the layers that these vertices make are digested as soon as they are there.
    pub fn hash_ahead(&self, vertices: std::collections::BTreeSet<stave_oci::Digest>) -> HashAhead {
        HashAhead::new(&self.shared.wishes, vertices)
    }

    /// A lease for whoever is built for; `None` as long as the worker keeps all it uses anyhow.
    ///
    /// # Errors
    /// When the store fails.
    pub fn lease(&self) -> Result<Option<Lease>, StoreError> {
        let own = self.shared.lease.lock().unwrap_or_else(PoisonError::into_inner);
        if own.is_some() { Ok(None) } else { self.shared.store.lease().map(Some) }
    }

    /// From now on only the leases of those for whom it works keep what it uses and makes: what lives for long must
    /// not keep everything.
    pub fn let_go(&self) {
        drop(self.shared.lease.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    /// Waits while steps wait for their turn to start: for what takes a processor and has time.
    pub fn started(&self) -> impl Future<Output = ()> + Send + use<E> {
        let shared = Arc::clone(&self.shared);
        async move { shared.starts.over().await }
    }

    /// The store the worker works in.
    pub fn store(&self) -> &Store {
        &self.shared.store
    }
}

impl<E: crate::exec::Executor> LocalWorker<E> {
    /// What is needed for processes begins to end.
    pub fn end_ahead(&self) {
        self.executor.end();
    }
}

impl Shared {
    /// Does what waits for the disk and has time, at a moment at which nothing else is done. Not often.
    pub(crate) fn use_idle_time(&self) {
        let mut last = self.logs_brought_in.lock().unwrap_or_else(PoisonError::into_inner);
        if last.is_some_and(|last| last.elapsed() < LOGS_STAY) {
            return;
        }
        *last = Some(Instant::now());
        drop(last);
        let store = self.store.clone();
        // Nobody waits for it.
        drop(tokio::task::spawn_blocking(move || {
            if let Err(error) = store.bring_logs_in() {
                tracing::debug!(%error, "the logs of the databases stay as they are");
            }
        }));
    }

    pub(crate) fn open_views(&self) -> usize {
        let views = self.views.lock().unwrap_or_else(PoisonError::into_inner);
        views.values().filter(|view| view.strong_count() > 0).count()
    }

    pub(crate) fn remembered_digests(&self) -> usize {
        self.digests.len() + self.travelling.len()
    }

    /// The merged, read-only file system of a snapshot; shared by all who look at the same time.
    pub(crate) fn view(&self, snapshot: &Snapshot) -> Result<Arc<RootDir>, MountError> {
        let mut views = self.views.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(view) = views.get(snapshot).and_then(Weak::upgrade) {
            return Ok(view);
        }
        let lowers = self.store.layer_paths(snapshot)?;
        let view = Arc::new(match lowers.len() > 1 && !stave_sandbox::has_namespaces() {
            true => self.tree_of(&lowers)?,
            false => readable(&lowers, || self.scratch.empty())?,
        });
        self.kept_trees.keep(&view);
        views.retain(|_, view| view.strong_count() > 0);
        views.insert(snapshot.clone(), Arc::downgrade(&view));
        Ok(view)
    }

    /// Layers as one tree, where nothing can be mounted.
    fn tree_of(&self, lowers: &[PathBuf]) -> Result<RootDir, ViewError> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let name = format!("tree-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let tree = self.store.flatten(lowers, self.scratch.place(&name)?, Taking::Links)?;
        Ok(RootDir::of_tree(tree)?)
    }

    /// What an op can read of a result.
    pub(crate) fn input(&self, result: &Ref) -> Result<Input, MountError> {
        match result {
            Ref::Context(context) => Ok(Input::Context(Arc::clone(context))),
            Ref::Snapshot(snapshot) | Ref::Unsettled(snapshot) => Ok(Input::View(self.view(snapshot)?)),
        }
    }

    /// The digest of what a selector picks. Layers never change, so that of a snapshot is made once.
    pub(crate) fn digest(&self, result: &Ref, selector: &Selector) -> Result<ContentDigest, DigestError> {
        let memo = result.snapshot().map(|snapshot| (snapshot.clone(), selector.clone()));
        if let Some(known) = memo.as_ref().and_then(|key| self.digests.get(key)) {
            return Ok(*known);
        }
        let lone = match memo.as_ref() {
            Some((snapshot, Selector { paths })) => {
                self.lone_selection(snapshot, paths).map_err(MountError::from)?
            }
            None => None,
        };
        let (input, selector) = match &lone {
            Some((input, lone)) => (input.clone(), lone),
            None => (self.input(result)?, selector),
        };
        let (digest, digested) = input.digest(selector)?;
        let digest = ContentDigest::from_bytes(digest);
        self.keep_manifest(&digest, &digested);
        if let Some(key) = memo {
            // A daemon lives long: what was forgotten is made again.
            if self.digests.len() >= MAX_DIGESTS {
                self.digests.clear();
            }
            self.digests.insert(key, digest);
        }
        Ok(digest)
    }

    /// A selection of one file alone, read in the layer that has it.
    fn lone_selection(
        &self,
        snapshot: &Snapshot,
        paths: &[SelectorPath],
    ) -> Result<Option<(Input, Selector)>, StoreError> {
        let [one] = paths else { return Ok(None) };
        if !(one.include_patterns.is_empty() && one.exclude_patterns.is_empty()) {
            return Ok(None);
        }
        let last = if one.follow_links { Last::Follow } else { Last::Keep };
        let Some((input, path)) = self.lone(snapshot, &one.path, last)? else { return Ok(None) };
        Ok(Some((input, Selector { paths: vec![SelectorPath { path, ..one.clone() }] })))
    }

    /// The layer in which a path of a snapshot means a file or a symlink, and the path there. `None` for what a mount is
    /// needed for, or costs nothing; for what is found by another name; and for what is not there.
    pub(crate) fn lone(
        &self,
        snapshot: &Snapshot,
        path: &str,
        last: Last,
    ) -> Result<Option<(Input, String)>, StoreError> {
        let is_plain = |text: &str| !has_wildcard(text) && !text.contains('\\');
        if snapshot.layers().len() < 2 || !stave_sandbox::has_namespaces() || !is_plain(path) {
            return Ok(None);
        }
        let view = self.store.glance(snapshot)?;
        let shown = clean(Path::new(path));
        let Ok(real) = view.resolve(&shown, last) else { return Ok(None) };
        let found =
            real.to_str().filter(|real| is_plain(real) && shown.file_name() == Path::new(real).file_name());
        let Some(text) = found else { return Ok(None) };
        let entry = view.symlink_metadata(&real)?;
        let is_lone =
            |entry: &MergedEntry| matches!(entry.file_type(), FileType::RegularFile | FileType::Symlink);
        let Some(entry) = entry.filter(is_lone) else { return Ok(None) };
        let Some(layer) = view.home(&entry)? else { return Ok(None) };
        let root = layer.try_clone().map_err(|source| StoreError::View { path: real.clone(), source })?;
        Ok(Some((Input::View(Arc::new(RootDir::from_fd(root))), format!("/{text}"))))
    }

    /// Keeps what a new digest was made of. Losing it costs an explanation.
    fn keep_manifest(&self, digest: &ContentDigest, digested: &Digested<'_>) {
        let directory = self.store.manifest_directory();
        if Manifest::exists(&directory, digest) {
            return;
        }
        if let Some(manifest) = digested.manifest()
            && let Err(error) = manifest.write(&directory, digest)
        {
            tracing::debug!(%error, "a manifest is not kept");
        }
    }

    /// Begins a layer on a snapshot.
    pub(crate) fn prepare(&self, base: &Snapshot, description: &str) -> Result<ActiveLayer, StoreError> {
        Ok(self.layer_place.prepare(&self.store, base)?.described(description))
    }
}

/// Why a snapshot could not be looked at.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The view could not be mounted.
    #[error(transparent)]
    View(#[from] ViewError),
}

/// Why content could not be digested.
#[derive(Debug, thiserror::Error)]
pub enum DigestError {
    /// The input could not be mounted.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// The selection could not be read.
    #[error(transparent)]
    Select(#[from] crate::input::SelectError),
}

/// The writable view of a layer being made.
pub(crate) fn writable(layer: &ActiveLayer) -> Result<RootDir, ViewError> {
    if !layer.lowers().is_empty() && !stave_sandbox::has_namespaces() {
        return Ok(RootDir::of_tree(layer.flatten(Taking::Links)?)?);
    }
    crate::view::writable(layer.lowers(), layer.upper(), layer.work())
}

/// A path of the host as an absolute one.
pub(crate) fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}
