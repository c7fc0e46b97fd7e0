//! What all services of the daemon share.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use stave_engine::Engine;
use stave_registry::Client;
use stave_store::{DiskPolicy, ImagePrune};
use stave_worker::{Confinement, Entitlements};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::audit::Audit;
use crate::build::Builds;
use crate::config::WorkerConfig;
use crate::failure::Failure;
use crate::history::Archive;
use crate::metrics::Metrics;
use crate::session::Sessions;
use crate::settings::Settings;
use crate::tenants::{Slots, Tenancy};
use crate::traces::Traces;

/// Between two times that memory is given back.
const TIDY: Duration = Duration::from_secs(10);

/// What all services share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) engine: Arc<Engine>,
    pub(crate) sessions: Arc<Sessions>,
    pub(crate) builds: Builds,
    pub(crate) history: Arc<Archive>,
    pub(crate) settings: Settings,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) audit: Audit,
    pub(crate) slots: Arc<Slots>,
    pub(crate) traces: Traces,
    /// Fires when the daemon takes no more builds.
    pub(crate) draining: CancellationToken,
    /// Fires when the daemon ends: streams without an end of their own end then.
    pub(crate) closing: CancellationToken,
    collecting: Arc<Semaphore>,
    /// Builds that ended.
    ended: AtomicU64,
}

impl Shared {
    pub(crate) fn new(
        engine: Arc<Engine>,
        (worker, tenancy): (WorkerConfig, Tenancy),
        (audit, collector): (Audit, Option<url::Url>),
    ) -> Self {
        let metrics = Arc::new(Metrics::default());
        let traces = Traces::new(collector, Arc::clone(&metrics));
        let sessions = Arc::new(Sessions::new());
        Self {
            builds: Builds::new(Arc::clone(&engine), Arc::clone(&metrics), Arc::clone(&sessions)),
            history: Archive::new(engine.store(), worker.history),
            engine,
            sessions,
            settings: Settings::new(worker, tenancy),
            metrics,
            audit,
            slots: Arc::default(),
            traces,
            draining: CancellationToken::new(),
            closing: CancellationToken::new(),
            collecting: Arc::new(Semaphore::new(1)),
            ended: AtomicU64::new(0),
        }
    }

    /// The client for registries, without anybody's credentials.
    pub(crate) fn registry(&self) -> Client {
        self.settings.now().registry.clone().unwrap_or_else(|| self.engine.registry().clone())
    }

    /// Removes what nobody uses, down to what the store may take; in the background, and one at a time.
    pub(crate) fn collect(&self) {
        self.ended.fetch_add(1, Ordering::Relaxed);
        let settings = self.settings.now();
        let images = if settings.tenancy.is_on { ImagePrune::Dangling } else { ImagePrune::Keep };
        let rules = settings.worker.gc.clone();
        if rules.is_empty() {
            return;
        }
        let Ok(permit) = Arc::clone(&self.collecting).try_acquire_owned() else { return };
        let store = self.engine.store().clone();
        tokio::task::spawn_blocking(move || {
            let policy = DiskPolicy { cap: store.cap(), rules };
            if let Err(error) = stave_engine::disk::collect_with(&store, &policy, images) {
                tracing::warn!(%error, "removing what nobody uses failed");
            }
            drop(permit);
        });
    }

    /// Gives memory back from time to time, when builds have ended; for as long as the daemon serves.
    pub(crate) async fn tidy(self: Arc<Self>) {
        let mut known = 0;
        loop {
            tokio::time::sleep(TIDY).await;
            let ended = self.ended.load(Ordering::Relaxed);
            if ended != known {
                known = ended;
                let engine = Arc::clone(&self.engine);
                // It fails when the daemon ends.
                tokio::task::spawn_blocking(move || engine.give_back_memory()).await.ok();
            }
        }
    }

    /// How the steps of a build are confined that asks for these entitlements: the daemon must grant each.
    pub(crate) fn confinement(&self, asked: &[String]) -> Result<Confinement, Failure> {
        let settings = self.settings.now();
        let mut entitlements = Entitlements::default();
        for name in asked {
            let kind = name.split('=').next().unwrap_or_default();
            if !settings.worker.entitlements.iter().any(|granted| granted == kind) {
                return Err(Failure::NotEntitled(name.clone()));
            }
            entitlements.grant(name)?;
        }
        Ok(Confinement { entitlements, ..settings.worker.confinement.clone() })
    }
}
