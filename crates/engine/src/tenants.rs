//! Several tenants on one engine: what each finds again, and what it takes.
//!
//! Owns a solver per tenant that builds now. They share the machine's permits in turn and no work: a step of one tenant
//! must not become a result of another's. Also owns what of the store a tenant's cache records lead to. Must not know
//! how tenants are told apart. Start with [`Solvers`] and [`Engine::tenant_usage`].

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::hash::{Hash as _, Hasher as _};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use stave_cache::{CacheIndex, Scope};
use stave_solver::{Lane, Limits, Load, Permits, Solver};
use stave_store::{ImagePrune, LayerId, PruneRequest, Pruned, Snapshot, StoreError, UsageId, UsageRecord};
use stave_worker::{LocalWorker, Namespace, RunError};

use crate::Engine;
use crate::disk::DiskError;

/// The solvers of an engine.
#[derive(Debug)]
pub(crate) struct Solvers {
    worker: Arc<LocalWorker>,
    index: CacheIndex,
    permits: Arc<Permits>,
    shared: Arc<Solver<LocalWorker>>,
    own: Mutex<HashMap<Arc<str>, Weak<Solver<LocalWorker>>>>,
}

impl Solvers {
    pub(crate) fn new(worker: Arc<LocalWorker>, index: CacheIndex, limits: Limits) -> Self {
        let permits = Permits::new(limits);
        let sharing = (Arc::clone(&worker), index.clone(), Arc::clone(&permits));
        let shared = Arc::new(Solver::sharing(sharing.0, sharing.1, sharing.2, Lane::default()));
        Self { worker, index, permits, shared, own: Mutex::default() }
    }

    /// The solver of a namespace; it lives as long as somebody uses it.
    pub(crate) fn of(&self, namespace: &Namespace) -> Arc<Solver<LocalWorker>> {
        let Namespace::Own(name) = namespace else { return Arc::clone(&self.shared) };
        let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(solver) = own.get(name).and_then(Weak::upgrade) {
            return solver;
        }
        let (worker, index) = (Arc::clone(&self.worker), self.index_of(namespace));
        let solver = Arc::new(Solver::sharing(worker, index, Arc::clone(&self.permits), lane(name)));
        own.retain(|_, solver| solver.strong_count() > 0);
        own.insert(Arc::clone(name), Arc::downgrade(&solver));
        solver
    }

    /// The cache's index as a namespace sees it.
    pub(crate) fn index_of(&self, namespace: &Namespace) -> CacheIndex {
        self.index.scoped(match namespace {
            Namespace::Shared => Scope::Shared,
            Namespace::Own(name) => Scope::Own(Arc::clone(name)),
        })
    }

    /// How many solvers there are, and what they hold together.
    pub(crate) async fn load(&self) -> (usize, Load) {
        let own: Vec<_> = {
            let own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
            own.values().filter_map(Weak::upgrade).collect()
        };
        let mut sum = self.shared.load().await;
        for solver in &own {
            let load = solver.load().await;
            sum.jobs += load.jobs;
            sum.vertices += load.vertices;
            sum.tasks += load.tasks;
            sum.keys += load.keys;
        }
        (own.len() + 1, sum)
    }

    pub(crate) fn idle_connections(&self) -> usize {
        self.index.idle_connections()
    }

    /// Closes connections to the index that nobody uses.
    pub(crate) fn close_idle(&self) {
        self.index.close_idle();
    }

    pub(crate) fn permits(&self) -> &Permits {
        &self.permits
    }

    /// Waits until nothing runs any more; the solvers of tenants end with their last build.
    pub(crate) async fn shutdown(self) {
        if let Some(solver) = Arc::into_inner(self.shared) {
            solver.shutdown().await;
        }
    }
}

/// Why builds would not run.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The store.
    #[error("the store cannot be written")]
    Store(#[from] StoreError),
    /// The sandbox.
    #[error("no sandbox can be started")]
    Sandbox(#[from] RunError),
    /// The engine ends.
    #[error("the engine is ending")]
    Stopped,
}

fn lane(name: &str) -> Lane {
    let mut hasher = DefaultHasher::new();
    name.hash(&mut hasher);
    Lane(hasher.finish())
}

impl Engine {
    /// How many operations run (processes, sources, file operations, digests) and how many wait for their turn.
    pub fn operations(&self) -> ([usize; 4], usize) {
        (self.solvers.permits().taken(), self.solvers.permits().waiting())
    }

    /// Whether a build would run: the store is written to, and a sandbox is started that does nothing.
    ///
    /// # Errors
    /// [`ProbeError`].
    pub async fn probe(&self) -> Result<(), ProbeError> {
        let store = self.store.clone();
        let written = tokio::task::spawn_blocking(move || {
            let scratch = store.scratch_dir()?;
            let path = scratch.path().join("probe");
            std::fs::write(&path, b"probe").map_err(|source| StoreError::Io { action: "write", path, source })
        });
        written.await.map_err(|_| ProbeError::Stopped)??;
        self.worker.probe().await?;
        Ok(())
    }

    /// What a tenant's cache records and directories take of the store. A layer that several tenants have, because its
    /// content is equal, is told to each. Blocks the thread.
    ///
    /// # Errors
    /// [`DiskError`].
    pub fn tenant_usage(&self, namespace: &Namespace) -> Result<Vec<UsageRecord>, DiskError> {
        let mine = self.layers_of_tenant(namespace)?;
        let usage = self.store.disk_usage()?;
        let is_mine = |record: &UsageRecord| match &record.id {
            UsageId::Layer(layer) => mine.contains(layer),
            UsageId::CacheMount(_) => Namespace::of_key(&record.description).0 == *namespace,
            // Nobody's: made when somebody pushes a layer, by whoever is first.
            UsageId::Blob(_) => *namespace == Namespace::Shared,
        };
        Ok(usage.records.into_iter().filter(is_mine).collect())
    }

    /// Prunes within what is a tenant's alone: layers that no other tenant's record names, and its own directories.
    /// Its records of what is left stay. Blocks the thread.
    ///
    /// # Errors
    /// [`DiskError`].
    pub fn prune_tenant(&self, namespace: &Namespace, request: PruneRequest) -> Result<Pruned, DiskError> {
        let mine = self.layers_of_tenant(namespace)?;
        let others = self.layers_of_others(namespace)?;
        let only: BTreeSet<UsageId> = self
            .tenant_usage(namespace)?
            .into_iter()
            .map(|record| record.id)
            .filter(|id| match id {
                UsageId::Layer(layer) => mine.contains(layer) && !others.contains(layer),
                UsageId::CacheMount(_) => true,
                UsageId::Blob(_) => false,
            })
            .collect();
        let request = PruneRequest { images: ImagePrune::Keep, only: Some(only), ..request };
        crate::disk::prune(&self.store, request)
    }

    fn layers_of_tenant(&self, namespace: &Namespace) -> Result<HashSet<LayerId>, DiskError> {
        let results = self.solvers.index_of(namespace).own_results()?;
        Ok(results.iter().flat_map(|result| layers(result.as_str())).collect())
    }

    fn layers_of_others(&self, namespace: &Namespace) -> Result<HashSet<LayerId>, DiskError> {
        let results = self.solvers.index_of(namespace).others_results()?;
        Ok(results.iter().flat_map(|result| layers(result.as_str())).collect())
    }
}

fn layers(result: &str) -> Vec<LayerId> {
    let snapshots = stave_worker::snapshots_of(result).unwrap_or_default();
    snapshots.iter().flat_map(Snapshot::layers).copied().collect()
}
