//! Leases keep what a build uses from garbage collection in any process. Start with [`Lease`].

use crate::{Store, StoreError};

/// While it lives, nothing used or made in the store since it began is removed by any process.
/// Process death frees it.
#[derive(Debug)]
#[must_use = "a lease protects only while it lives"]
pub struct Lease {
    _store: Store,
}

impl Store {
    /// Begins a lease. Take it before the first use of what must stay.
    pub fn lease(&self) -> Result<Lease, StoreError> {
        todo!()
    }
}
