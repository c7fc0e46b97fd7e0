//! Tenants: what each caller's builds may find again, and how much of the machine they may take.
//!
//! Without `[tenancy]` all callers share one namespace, as buildkitd's do. With it each identity has its own, but for
//! the trusted ones: they share that of the whole daemon, write the cache tier that all others read, and see everything.
//! Owns these rules and the quotas. Must not know how callers are identified. Start with [`Tenancy`] and [`Caller`].

pub(crate) mod config;
mod room;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use stave_engine::Engine;
use stave_oci::Digest;
use stave_worker::Namespace;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

pub use self::config::{TenancyConfig, TenancyError};
use crate::failure::Failure;
use crate::identity::Identity;
use crate::identity::token::Tokens;

/// Builds of one tenant that may wait for their turn, beyond which they are refused.
const MAX_WAITING: usize = 100;
/// Tenants whose builds are counted; those that have none are forgotten beyond it.
const MAX_TENANTS: usize = 10_000;

/// Who calls, and whose things are theirs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Caller {
    pub(crate) identity: Identity,
    pub(crate) namespace: Namespace,
}

impl Caller {
    /// Somebody where nobody is told apart.
    #[cfg(test)]
    pub(crate) fn anybody() -> Self {
        Self { identity: Identity::anonymous(), namespace: Namespace::Shared }
    }

    /// Whether another's builds, sessions and history are this one's to see: the same namespace, or that of all.
    pub(crate) fn may_see(&self, other: &Namespace) -> bool {
        self.is_trusted() || self.namespace == *other
    }

    /// Whether what it builds is trusted by all.
    pub(crate) fn is_trusted(&self) -> bool {
        self.namespace == Namespace::Shared
    }
}

/// What one tenant may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Quota {
    /// Builds at a time; `None` sets no bound.
    pub builds: Option<usize>,
    /// Bytes of its layers and directories; `None` sets no bound.
    pub disk: Option<u64>,
    /// Bytes of memory of all its steps together; `None` sets no bound.
    pub memory: Option<u64>,
}

/// The rules, as configured.
#[derive(Debug, Clone, Default)]
pub struct Tenancy {
    pub(crate) is_on: bool,
    pub(crate) trusted: BTreeSet<String>,
    pub(crate) usual: Quota,
    pub(crate) quotas: BTreeMap<String, Quota>,
    pub(crate) tokens: Tokens,
}

/// A caller that is nobody.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("this daemon tells its callers apart: show a client certificate or a token")]
pub(crate) struct Unidentified;

impl Tenancy {
    /// What a caller is here.
    pub(crate) fn caller(&self, identity: Identity) -> Result<Caller, Unidentified> {
        if !self.is_on || self.trusted.contains(identity.as_str()) {
            return Ok(Caller { identity, namespace: Namespace::Shared });
        }
        if identity.is_anonymous() {
            return Err(Unidentified);
        }
        let namespace = namespace_of(&identity);
        Ok(Caller { identity, namespace })
    }

    /// Whether clients without a certificate may show a token instead.
    pub(crate) fn takes_tokens(&self) -> bool {
        !self.tokens.is_empty()
    }

    /// What a caller may take; a trusted one whatever there is.
    pub(crate) fn quota(&self, caller: &Caller) -> Quota {
        match caller.is_trusted() {
            true => Quota::default(),
            false => self.quotas.get(caller.identity.as_str()).copied().unwrap_or(self.usual),
        }
    }
}

/// The name by which things are kept: letters and digits, whatever the identity is made of.
fn namespace_of(identity: &Identity) -> Namespace {
    let digest = Digest::sha256(format!("stave tenant\0{identity}").as_bytes());
    Namespace::Own(digest.hex()[..32].into())
}

/// What stands before the first work of a build: a free slot of its tenant, and room for what it makes.
#[derive(Debug)]
pub(crate) struct Gate {
    owner: Caller,
    quota: Quota,
    slots: Arc<Slots>,
    entered: tokio::sync::OnceCell<Option<Slot>>,
}

impl Gate {
    pub(crate) fn new(owner: Caller, quota: Quota, slots: Arc<Slots>) -> Self {
        Self { owner, quota, slots, entered: tokio::sync::OnceCell::new() }
    }

    /// Whose build it is.
    pub(crate) fn owner(&self) -> &Caller {
        &self.owner
    }

    /// Waits until the build may begin. Whoever asks again is let through: a build enters once, and stays in until it
    /// is over.
    pub(crate) async fn enter(
        &self,
        engine: &Arc<Engine>,
        cancel: &CancellationToken,
    ) -> Result<(), Failure> {
        let entering = self.entered.get_or_try_init(|| async {
            let slot = self.slots.enter(&self.owner, &self.quota, cancel).await?;
            if let Some(most) = self.quota.disk {
                room::make(engine, &self.owner, most).await?;
            }
            Ok::<_, Failure>(slot)
        });
        entering.await.map(drop)
    }
}

/// Builds of tenants that run or wait.
#[derive(Debug, Default)]
pub(crate) struct Slots {
    tenants: Mutex<HashMap<Identity, Arc<Tenant>>>,
}

#[derive(Debug)]
struct Tenant {
    most: usize,
    slots: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
}

/// The right of one build to run.
#[derive(Debug)]
pub(crate) struct Slot {
    _tenant: Arc<Tenant>,
    _permit: OwnedSemaphorePermit,
}

impl Slots {
    /// Waits until the caller may run one more build; `None` where nothing bounds them.
    pub(crate) async fn enter(
        &self,
        caller: &Caller,
        quota: &Quota,
        cancel: &CancellationToken,
    ) -> Result<Option<Slot>, Failure> {
        let Some(most) = quota.builds else { return Ok(None) };
        let tenant = self.tenant(&caller.identity, most.max(1));
        let _waiting = Arc::clone(&tenant.waiting).try_acquire_owned().map_err(|_| {
            Failure::Quota(format!("{MAX_WAITING} builds of `{}` wait already", caller.identity))
        })?;
        let permit = tokio::select! {
            permit = Arc::clone(&tenant.slots).acquire_owned() => permit.map_err(|_| Failure::Cancelled)?,
            () = cancel.cancelled() => return Err(Failure::Cancelled),
        };
        Ok(Some(Slot { _tenant: tenant, _permit: permit }))
    }

    /// Tenants whose builds are counted, and how many are remembered.
    pub(crate) fn count(&self) -> (usize, usize) {
        (self.tenants.lock().unwrap_or_else(PoisonError::into_inner).len(), MAX_TENANTS)
    }

    fn tenant(&self, identity: &Identity, most: usize) -> Arc<Tenant> {
        let mut tenants = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        if tenants.len() >= MAX_TENANTS {
            tenants.retain(|_, tenant| Arc::strong_count(tenant) > 1);
        }
        let known = tenants.get(identity).filter(|tenant| tenant.most == most);
        if let Some(tenant) = known {
            return Arc::clone(tenant);
        }
        // A bound that was changed counts for builds from now on.
        let tenant = Arc::new(Tenant {
            most,
            slots: Arc::new(Semaphore::new(most.min(Semaphore::MAX_PERMITS))),
            waiting: Arc::new(Semaphore::new(MAX_WAITING)),
        });
        tenants.insert(identity.clone(), Arc::clone(&tenant));
        tenant
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tenancy() -> Tenancy {
        let quotas = BTreeMap::from([("cert:a".to_owned(), Quota { builds: Some(1), ..Quota::default() })]);
        Tenancy {
            is_on: true,
            trusted: BTreeSet::from(["token:ci".to_owned()]),
            quotas,
            ..Tenancy::default()
        }
    }

    #[test]
    fn who_shares_with_whom() {
        let tenancy = tenancy();
        let caller = |source, name| tenancy.caller(Identity::new(source, name)).expect("is let in");
        let (ci, a, b) = (caller("token", "ci"), caller("cert", "a"), caller("cert", "b"));
        assert!(ci.is_trusted() && ci.may_see(&a.namespace));
        assert!(!a.may_see(&b.namespace) && !a.may_see(&ci.namespace) && a.may_see(&a.namespace));
        // Another source's name is another's.
        assert!(!caller("cert", "ci").is_trusted());
        assert_ne!(a.namespace, caller("uid", "a").namespace);
        assert_eq!(tenancy.caller(Identity::anonymous()), Err(Unidentified));
        assert_eq!(tenancy.quota(&a).builds, Some(1));
        assert_eq!(tenancy.quota(&b).builds, None);
        let off = Tenancy::default();
        assert!(off.caller(Identity::anonymous()).expect("is let in").is_trusted());
    }

    #[tokio::test]
    async fn one_build_waits_for_the_other_of_its_tenant_alone() {
        let (tenancy, slots, never) = (tenancy(), Slots::default(), CancellationToken::new());
        let caller = |name| tenancy.caller(Identity::new("cert", name)).expect("is let in");
        let (a, b) = (caller("a"), caller("b"));
        let first = slots.enter(&a, &tenancy.quota(&a), &never).await.expect("is let in");
        assert!(first.is_some());
        assert!(slots.enter(&b, &tenancy.quota(&b), &never).await.expect("is let in").is_none());
        let quota = tenancy.quota(&a);
        let mut second = std::pin::pin!(slots.enter(&a, &quota, &never));
        assert!(futures::poll!(second.as_mut()).is_pending());
        drop(first);
        assert!(second.await.expect("is let in").is_some());
        let held = slots.enter(&a, &quota, &never).await.expect("is let in");
        never.cancel();
        assert!(matches!(slots.enter(&a, &quota, &never).await, Err(Failure::Cancelled)));
        drop(held);
    }
}
