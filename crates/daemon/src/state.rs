//! What all services of the daemon share.

use std::sync::Arc;

use stave_engine::Engine;
use stave_store::{KeepLimits, PruneRequest};
use stave_worker::{Confinement, Entitlements};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::build::Builds;
use crate::config::WorkerConfig;
use crate::failure::Failure;
use crate::session::Sessions;

/// What all services share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) engine: Arc<Engine>,
    pub(crate) sessions: Sessions,
    pub(crate) builds: Builds,
    pub(crate) worker: WorkerConfig,
    /// Fires when the daemon ends: streams without an end of their own end then.
    pub(crate) closing: CancellationToken,
    collecting: Arc<Semaphore>,
}

impl Shared {
    pub(crate) fn new(engine: Arc<Engine>, worker: WorkerConfig) -> Self {
        Self {
            builds: Builds::new(Arc::clone(&engine)),
            engine,
            sessions: Sessions::new(),
            worker,
            closing: CancellationToken::new(),
            collecting: Arc::new(Semaphore::new(1)),
        }
    }

    /// Removes what nobody uses, down to what the store may take; in the background, and one at a time.
    pub(crate) fn collect(&self) {
        let Some(keep) = self.worker.keep_bytes else { return };
        let Ok(permit) = Arc::clone(&self.collecting).try_acquire_owned() else { return };
        let store = self.engine.store().clone();
        tokio::task::spawn_blocking(move || {
            let limits = KeepLimits { max_used: Some(keep), ..KeepLimits::default() };
            let request = PruneRequest { limits, ..PruneRequest::unused() };
            if let Err(error) = store.prune(&request) {
                tracing::warn!(%error, "removing what nobody uses failed");
            }
            drop(permit);
        });
    }

    /// How the steps of a build are confined that asks for these entitlements: the daemon must grant each.
    pub(crate) fn confinement(&self, asked: &[String]) -> Result<Confinement, Failure> {
        let mut entitlements = Entitlements::default();
        for name in asked {
            let kind = name.split('=').next().unwrap_or_default();
            if !self.worker.entitlements.iter().any(|granted| granted == kind) {
                return Err(Failure::NotEntitled(name.clone()));
            }
            entitlements.grant(name)?;
        }
        Ok(Confinement { entitlements, ..self.worker.confinement.clone() })
    }
}
