//! A daemon inside this process, for its own user: what only a client of the API can ask for, such as a front end image,
//! is had without a daemon. Start with [`Builder::within`].

use std::sync::{Arc, Mutex};

use futures::{StreamExt as _, stream};
use hyper_util::rt::TokioIo;
use stave_engine::Engine;
use tonic::transport::{Endpoint, Uri};

use super::Builder;
use crate::audit::Audit;
use crate::config::WorkerConfig;
use crate::server::{DaemonError, router};
use crate::state::Shared;
use crate::tenants::Tenancy;

/// Bytes on their way in each direction.
const BUFFER: usize = 256 << 10;

impl Builder {
    /// A daemon of this process over an engine. It ends with the last clone of what is returned. Must be called within a
    /// runtime.
    ///
    /// # Errors
    /// [`DaemonError`].
    pub fn within(engine: Arc<Engine>, worker: WorkerConfig) -> Result<Self, DaemonError> {
        let shared = Arc::new(Shared::new(engine, (worker, Tenancy::default()), (Audit::default(), None)));
        let router = router(&shared);
        let (ours, theirs) = tokio::io::duplex(BUFFER);
        let connections = stream::iter([Ok::<_, std::io::Error>(theirs)]).chain(stream::pending());
        let (alive, over) = tokio::sync::oneshot::channel::<()>();
        tokio::spawn(async move {
            // Fires when the connector, and so the last client, is gone.
            let over = async move { drop(over.await) };
            if let Err(error) = router.serve_with_incoming_shutdown(connections, over).await {
                tracing::debug!(%error, "the daemon of this process ended");
            }
        });
        let slot = Mutex::new(Some(ours));
        let connector = tower::service_fn(move |_: Uri| {
            let _alive = &alive;
            let connection = slot.lock().ok().and_then(|mut slot| slot.take());
            let gone = || std::io::Error::new(std::io::ErrorKind::NotConnected, "the connection is over");
            std::future::ready(connection.map(TokioIo::new).ok_or_else(gone))
        });
        let endpoint = Endpoint::from_static("http://localhost");
        Ok(Self { channel: endpoint.connect_with_connector_lazy(connector) })
    }
}
