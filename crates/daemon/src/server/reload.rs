//! SIGHUP: the configuration and the files it names are read again, each part for itself.
//!
//! What cannot be used is said and changes nothing; what runs keeps what it began with. Start with [`Hangup`].

use std::sync::Arc;

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::DaemonError;
use super::tls::Tls;
use crate::config::{Reload, Reloaded};
use crate::state::Shared;
use crate::supervisor::Supervisor;

/// The signal, which ends this process no more; what comes before somebody listens is not lost.
pub(super) struct Hangup(Signal);

impl Hangup {
    /// Takes the signal.
    pub(super) fn heard() -> Result<Self, DaemonError> {
        let signal = signal(SignalKind::hangup());
        signal.map(Self).map_err(|error| DaemonError::Serve(error.to_string()))
    }

    /// Reads again whenever the signal comes.
    pub(super) async fn listen(
        mut self,
        shared: Arc<Shared>,
        (reload, listeners): (Option<Reload>, Vec<Tls>),
        supervisor: Supervisor,
    ) {
        while self.0.recv().await.is_some() {
            if let Err(error) = shared.audit.reopen() {
                tracing::error!(%error, "the audit log cannot be opened again");
            }
            let Some(reload) = &reload else { continue };
            supervisor.tell("RELOADING=1");
            match (reload.0)() {
                Ok(reloaded) => put_in_force(&shared, reloaded, &listeners),
                Err(error) => tracing::error!(%error, "the configuration stays as it was"),
            }
            supervisor.tell("READY=1");
        }
    }
}

fn put_in_force(shared: &Shared, reloaded: Reloaded, listeners: &[Tls]) {
    let takes_tokens = reloaded.tenancy.takes_tokens();
    let registry = shared.registry().with_registries(reloaded.registries);
    let registry = registry.map_err(|error| {
        tracing::error!(%error, "the registries stay as they were");
    });
    shared.settings.replace(reloaded.worker, reloaded.tenancy, registry.ok());
    for tls in listeners {
        let replaced = match &reloaded.identity {
            Ok(Some(identity)) => tls.replace(identity, takes_tokens).map_err(|error| error.to_string()),
            Ok(None) => Ok(()),
            Err(error) => Err(error.clone()),
        };
        if let Err(error) = replaced {
            tracing::error!(%error, "the certificates stay as they were");
        }
    }
    for key in &reloaded.unchanged {
        tracing::warn!("`{key}` was changed and counts after a restart only");
    }
    tracing::warn!("the configuration was read again");
}
