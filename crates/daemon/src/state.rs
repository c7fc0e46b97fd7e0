//! What all services of the daemon share.

use std::sync::Arc;

use stave_engine::Engine;
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

/// What all services share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) engine: Arc<Engine>,
    pub(crate) sessions: Sessions,
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
}

impl Shared {
    pub(crate) fn new(
        engine: Arc<Engine>,
        (worker, tenancy): (WorkerConfig, Tenancy),
        (audit, collector): (Audit, Option<url::Url>),
    ) -> Self {
        let metrics = Arc::new(Metrics::default());
        let traces = Traces::new(collector, Arc::clone(&metrics));
        Self {
            builds: Builds::new(Arc::clone(&engine), Arc::clone(&metrics)),
            history: Archive::new(engine.store(), worker.history),
            engine,
            sessions: Sessions::new(),
            settings: Settings::new(worker, tenancy),
            metrics,
            audit,
            slots: Arc::default(),
            traces,
            draining: CancellationToken::new(),
            closing: CancellationToken::new(),
            collecting: Arc::new(Semaphore::new(1)),
        }
    }

    /// Removes what nobody uses, down to what the store may take; in the background, and one at a time.
    pub(crate) fn collect(&self) {
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
