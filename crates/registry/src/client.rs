//! The client's state and its front door; each operation lives in the module of its subject.

use std::collections::HashMap;
use std::fmt;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex};

use stave_oci::{Digest, Reference};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::auth::TokenCache;
use crate::config::{ConfigError, RegistryTables};
use crate::endpoint::Scheme;
use crate::error::{Action, ErrorKind, MirrorFailure, RegistryError};
use crate::keychain::Keychain;
use crate::limits::{Limits, MAX_CACHED_ENTRIES};
use crate::transport::Transport;

/// What a [`Client`] is made from.
#[derive(Debug, Clone)]
pub struct ClientConfig {
    /// The per-host tables.
    pub registries: RegistryTables,
    /// Where credentials come from.
    pub keychain: Keychain,
    /// Bounds on time and repetition.
    pub limits: Limits,
    /// The `User-Agent` header: `stave/1.2.3`.
    pub user_agent: String,
}

/// A client for every registry: connections, tokens and host states are shared by its clones.
///
/// Cloning is cheap. All methods take `&self` and may run at once; bounding how many do is the caller's.
/// Dropping a method's future ends its work.
#[derive(Clone)]
pub struct Client {
    pub(crate) shared: Arc<Shared>,
}

pub(crate) struct Shared {
    pub(crate) config: ClientConfig,
    pub(crate) tokens: TokenCache,
    /// Those of hosts that have tables, where they were made ahead.
    configured: Arc<HashMap<String, Arc<Transport>>>,
    transports: Mutex<HashMap<String, Arc<Transport>>>,
    schemes: Mutex<HashMap<String, Scheme>>,
    distrusted: Mutex<HashMap<Digest, Vec<String>>>,
    /// How many more requests each host may have.
    turns: Mutex<HashMap<String, Arc<Semaphore>>>,
}

impl Client {
    /// Checks the tables and makes a client; no connection is opened and no file read yet.
    ///
    /// # Errors
    /// A host or mirror in the tables that is not one.
    pub fn new(config: ClientConfig) -> Result<Self, ConfigError> {
        config.registries.check()?;
        Ok(Self::made_of(config, Arc::default()))
    }

    pub(crate) fn made_of(config: ClientConfig, configured: Arc<HashMap<String, Arc<Transport>>>) -> Self {
        Self {
            shared: Arc::new(Shared {
                config,
                tokens: TokenCache::default(),
                configured,
                transports: Mutex::default(),
                schemes: Mutex::default(),
                distrusted: Mutex::default(),
                turns: Mutex::default(),
            }),
        }
    }

    /// A client for the same registries with other credentials. It shares no token with this one.
    #[must_use]
    pub fn with_keychain(&self, keychain: Keychain) -> Self {
        let config = ClientConfig { keychain, ..self.shared.config.clone() };
        Self::made_of(config, Arc::clone(&self.shared.configured))
    }

    /// A client that may talk plain http to `hosts` and takes any certificate of theirs. It shares no
    /// connection or token with this one.
    ///
    /// # Errors
    /// [`ConfigError::Host`] for text that is no host.
    pub fn with_insecure<'a>(&self, hosts: impl IntoIterator<Item = &'a str>) -> Result<Self, ConfigError> {
        let mut config = self.shared.config.clone();
        for host in hosts {
            let table = config.registries.0.entry(host.to_owned()).or_default();
            (table.http, table.insecure) = (Some(true), Some(true));
        }
        Self::new(config)
    }

    /// Hosts that this client knows something of, and how many it can.
    pub fn known_hosts(&self) -> (usize, usize) {
        let (transports, schemes) = (lock(&self.shared.transports).len(), lock(&self.shared.schemes).len());
        (transports.max(schemes), MAX_CACHED_ENTRIES)
    }

    /// The bounds this client works within.
    pub fn limits(&self) -> &Limits {
        &self.shared.config.limits
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("registries", &self.shared.config.registries).finish_non_exhaustive()
    }
}

impl Shared {
    /// The connections for a host, made on first use: reading certificates is put off until somebody needs them.
    pub(crate) fn transport(&self, host: &str) -> Result<Arc<Transport>, ErrorKind> {
        if let Some(transport) = self.configured.get(host) {
            return Ok(Arc::clone(transport));
        }
        let mut transports = lock(&self.transports);
        if let Some(transport) = transports.get(host) {
            return Ok(Arc::clone(transport));
        }
        let transport = Arc::new(Transport::new(host, &self.config)?);
        if transports.len() < MAX_CACHED_ENTRIES {
            transports.insert(host.to_owned(), Arc::clone(&transport));
        }
        Ok(transport)
    }

    /// A turn at a host, whose table is under `key`; it lasts until it is dropped.
    pub(crate) async fn turn(&self, host: &str, key: &str) -> Option<OwnedSemaphorePermit> {
        let turns = {
            let mut all = lock(&self.turns);
            // Forgetting all lets a few more requests through, once in a very long life.
            if all.len() >= MAX_CACHED_ENTRIES {
                all.clear();
            }
            let table = self.config.registries.0.get(key).and_then(|table| table.max_parallelism);
            let most = table.map_or(self.config.limits.requests_at_once.max(1), NonZeroUsize::get);
            Arc::clone(all.entry(host.to_owned()).or_insert_with(|| Arc::new(Semaphore::new(most))))
        };
        // Nobody closes it.
        turns.acquire_owned().await.ok()
    }

    /// The scheme a host was found to speak, where the configuration leaves that open.
    pub(crate) fn known_scheme(&self, host: &str) -> Option<Scheme> {
        lock(&self.schemes).get(host).copied()
    }

    pub(crate) fn learn_scheme(&self, host: &str, scheme: Scheme) {
        let mut schemes = lock(&self.schemes);
        if schemes.len() < MAX_CACHED_ENTRIES {
            schemes.insert(host.to_owned(), scheme);
        }
    }

    /// Notes that a host served other bytes for `digest`, so that the next attempt asks another one.
    pub(crate) fn distrust(&self, host: &str, digest: &Digest) {
        let mut distrusted = lock(&self.distrusted);
        if distrusted.len() < MAX_CACHED_ENTRIES {
            distrusted.entry(digest.clone()).or_default().push(host.to_owned());
        }
    }

    pub(crate) fn is_distrusted(&self, host: &str, digest: &Digest) -> bool {
        lock(&self.distrusted).get(digest).is_some_and(|hosts| hosts.iter().any(|known| known == host))
    }
}

/// What an operation is about; puts the where and what around a bare kind.
#[derive(Debug, Clone)]
pub(crate) struct Subject {
    pub(crate) action: Action,
    pub(crate) name: String,
    pub(crate) repository: String,
}

impl Subject {
    pub(crate) fn of(action: Action, reference: &Reference) -> Self {
        Self { action, name: reference.familiar(), repository: reference.familiar_name() }
    }

    pub(crate) fn error(&self, host: &str, kind: ErrorKind) -> RegistryError {
        self.error_after(host, kind, Vec::new())
    }

    pub(crate) fn error_after(
        &self,
        host: &str,
        kind: ErrorKind,
        mirrors: Vec<MirrorFailure>,
    ) -> RegistryError {
        RegistryError {
            action: self.action,
            subject: self.name.clone(),
            repository: self.repository.clone(),
            host: host.to_owned(),
            kind: Box::new(kind),
            mirrors,
        }
    }
}

/// A poisoned lock only means that another task panicked between two map operations: the map is still whole.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
