//! One build from request to exported image, and the other things a user asks of images.
//!
//! Owns the wiring: the only place where front end, solver, worker, exporter, registry and store meet.
//! Must not know flags, terminals, environment variables or wire protocols.
//!
//! Start with [`Engine::build`], which reads from top to bottom as a build goes.

mod ahead;
pub mod attest;
mod build;
mod clock;
mod commands;
mod complete;
mod containers;
mod context;
pub mod disk;
mod epoch;
mod event;
pub mod explain;
mod failed;
mod holdings;
mod images;
mod input;
mod inspect;
mod leaks;
mod names;
mod parts;
mod pin;
pub mod record;
mod request;
mod resolve;
mod run;
mod source_time;
mod stages;
mod tenants;
mod timeline;
mod travel;
pub mod vcs;
mod verify;

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;

use stave_cache::{CacheIndex, IndexError};
use stave_exporter::Exporter;
use stave_registry::{Client, ClientConfig, ConfigError, Keychain, RegistryTables};
use stave_sandbox::Launcher;
use stave_solver::Limits;
use stave_store::{Store, StoreError};
use stave_worker::{LocalWorker, LocalWorkerConfig};

pub use build::{BuildError, is_built_in_frontend, syntax_line};
pub use complete::Squash;
pub use context::{ARCHIVE_HEAD, ContextArchive, ContextError, looks_like_archive};
pub use epoch::{Dating, Timestamps};
pub use event::{EngineEvent, Observer, StepId, one_line};
pub use failed::{Failed, FailedError, KEEP_COUNT, KEEP_FOR, Means};
pub use holdings::Holding;
pub use images::{ImageError, PulledImages};
pub use input::{DockerfileAt, RemoteError, RemoteInput, RemoteRequest};
pub use inspect::Inspected;
pub use names::without_credentials;
pub use parts::{Finished, Lowering, Parts, Unlowered};
pub use request::{BuildOutcome, BuildRequest, PullPolicy, StepCount};
pub use resolve::{ResolveError, ResolveErrorKind};
pub use run::{RunError, RunRequest};
pub use source_time::epoch_source;
pub use stages::StageTag;
pub use stave_remotecache::mounts::{MountEntry, Saved as SavedMounts};
pub use stave_remotecache::place as cache_place;
pub use stave_remotecache::spec as cache_spec;
pub use tenants::ProbeError;
pub use timeline::{CriticalPath, PathEntry, Span, Subject, Timeline};
pub use travel::{
    CacheExportError, CacheOwner, Caches, Directories, ImageLayers, Journey, LocalMount, MountCopyError,
};
pub use verify::{Deviation, Verified};

/// Processes of RUN steps at once. They mostly wait (for a network, for each other), and a build's own
/// graph bounds them; too few would make independent stages queue behind each other.
const PARALLEL_EXECS: usize = 64;

/// What an engine works with.
#[derive(Debug)]
pub struct EngineConfig {
    /// The state directory; created when missing.
    pub root: PathBuf,
    /// `[registry."host"]` tables.
    pub registries: RegistryTables,
    /// Credentials.
    pub keychain: Keychain,
    /// An OCI runtime that runs steps instead of sandboxes.
    pub oci_runtime: Option<PathBuf>,
    /// Where CDI specifications lie instead of the usual places.
    pub device_directories: Option<Vec<PathBuf>>,
    /// Most steps of all builds that run at one time, of whatever kind; `None` leaves it to the machine.
    pub parallel_steps: Option<NonZeroUsize>,
}

/// The engine: shared by everything one process does.
#[derive(Debug)]
pub struct Engine {
    store: Store,
    registry: Client,
    worker: Arc<LocalWorker>,
    solvers: tenants::Solvers,
}

/// Why an engine could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The state directory.
    #[error("cannot use the state directory `{}`", .root.display())]
    Store {
        /// Which.
        root: PathBuf,
        /// Why.
        #[source]
        source: StoreError,
    },
    /// The cache's index.
    #[error("cannot open the cache index")]
    Index(#[from] IndexError),
    /// The registry configuration.
    #[error(transparent)]
    Registry(#[from] ConfigError),
}

impl Engine {
    /// Opens the state directory. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(config: EngineConfig) -> Result<Self, OpenError> {
        let root = config.root;
        let failed = |source| OpenError::Store { root: root.clone(), source };
        let store = Store::open(&root).map_err(failed)?;
        let index = CacheIndex::open(&store.cache_index_path())?;
        if let Some(reason) = index.recreated() {
            tracing::warn!(?reason, "the cache index was unusable and was begun anew");
        }
        let registry = Client::new(ClientConfig {
            registries: config.registries,
            keychain: config.keychain,
            limits: stave_registry::Limits::default(),
            user_agent: concat!("stave/", env!("CARGO_PKG_VERSION")).to_owned(),
        })?;
        let worker = LocalWorker::new(LocalWorkerConfig {
            runtime: config.oci_runtime,
            device_directories: config.device_directories.unwrap_or_else(usual_device_directories),
            launcher: Launcher::new(),
            fingerprints: Some(store.fingerprint_directory()),
            store: store.clone(),
        });
        let worker = Arc::new(worker.map_err(failed)?);
        // Whoever made the runtime has asked what this process may use of the machine.
        let processors = tokio::runtime::Handle::current().metrics().num_workers();
        let usual = Limits::for_processors(processors);
        let limits = Limits { execs: PARALLEL_EXECS, steps: config.parallel_steps, ..usual };
        let solvers = tenants::Solvers::new(Arc::clone(&worker), index, limits);
        Ok(Self { store, registry, worker, solvers })
    }

    /// The store: listings, tags and disk use are asked of it directly.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// From now on each build keeps what it uses for itself, and nothing is kept for the life of the process. Whoever
    /// asks for parts of builds holds a lease of the store meanwhile.
    pub fn let_go(&self) {
        self.worker.let_go();
    }

    /// The registry client.
    pub fn registry(&self) -> &Client {
        &self.registry
    }

    /// An exporter whose results for standard output go there.
    pub(crate) fn exporter(&self) -> Exporter {
        self.exporter_for(self.registry.clone()).with_stdout(std::io::stdout())
    }

    /// An exporter that pushes with the credentials of `registry`.
    pub(crate) fn exporter_for(&self, registry: Client) -> Exporter {
        Exporter::new(self.store.clone(), registry)
    }

    /// Waits until nothing runs any more.
    pub async fn shutdown(self) {
        self.worker.end_ahead();
        self.solvers.shutdown().await;
    }
}

fn usual_device_directories() -> Vec<PathBuf> {
    stave_worker::SPEC_DIRECTORIES.iter().map(PathBuf::from).collect()
}
