//! How much a worker holds in memory, for whoever watches a process that lives long. Start with [`WorkerHoldings`].

use std::sync::{PoisonError, Weak};

use crate::step::leftovers::MAX_LEFTOVERS;
use crate::worker::{LocalWorker, MAX_DIGESTS};

/// What a worker holds. The first four are of what runs: none is left when nothing does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WorkerHoldings {
    /// File systems that somebody looks at.
    pub views: usize,
    /// Layers that are to be hashed as soon as they are there.
    pub wishes: usize,
    /// Control groups of builds.
    pub groups: usize,
    /// Steps that were let in.
    pub admitted: usize,
    /// Failed steps that can be entered, and how many there can be.
    pub leftovers: (usize, usize),
    /// Digests that are remembered, of both kinds, and how many there can be.
    pub digests: (usize, usize),
}

impl<E> LocalWorker<E> {
    /// What it holds now.
    pub fn holdings(&self) -> WorkerHoldings {
        let shared = &self.shared;
        let groups = shared.groups.lock().unwrap_or_else(PoisonError::into_inner);
        let groups = groups.values().filter(|group| Weak::strong_count(group) > 0).count();
        WorkerHoldings {
            views: shared.open_views(),
            wishes: shared.wishes.count(),
            groups,
            admitted: shared.admission.count(),
            leftovers: (shared.leftovers.count(), MAX_LEFTOVERS),
            digests: (shared.remembered_digests(), 2 * MAX_DIGESTS),
        }
    }
}
