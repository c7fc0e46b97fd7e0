//! What of the configuration can change while the daemon runs. Start with [`Settings`].
//!
//! Everybody takes what is in force when a call begins and keeps it to the call's end, so that no build sees two.

use std::sync::{Arc, PoisonError, RwLock};

use stave_registry::Client;

use crate::config::WorkerConfig;
use crate::tenants::Tenancy;

/// What is in force at one time.
#[derive(Debug, Default)]
pub(crate) struct InForce {
    pub(crate) worker: WorkerConfig,
    pub(crate) tenancy: Tenancy,
    /// The client for registries that were configured anew; `None` for the one that the engine began with.
    pub(crate) registry: Option<Client>,
}

/// The settings, shared by all who need them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Settings(Arc<RwLock<Arc<InForce>>>);

impl Settings {
    pub(crate) fn new(worker: WorkerConfig, tenancy: Tenancy) -> Self {
        Self(Arc::new(RwLock::new(Arc::new(InForce { worker, tenancy, registry: None }))))
    }

    /// What is in force now.
    pub(crate) fn now(&self) -> Arc<InForce> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes up the client for registries.
    pub(crate) fn know(&self, registry: Client) {
        let mut now = self.0.write().unwrap_or_else(PoisonError::into_inner);
        *now = Arc::new(InForce {
            worker: now.worker.clone(),
            tenancy: now.tenancy.clone(),
            registry: Some(registry),
        });
    }

    /// Puts others in force, for calls from now on; without a client for registries the known one stays.
    pub(crate) fn replace(&self, worker: WorkerConfig, tenancy: Tenancy, registry: Option<Client>) {
        let mut now = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let registry = registry.or_else(|| now.registry.clone());
        *now = Arc::new(InForce { worker, tenancy, registry });
    }
}
