//! Leases keep what a build uses from garbage collection in any process.
//!
//! The store counts lease starts. Using something stamps it with the current count; so what was used
//! after a lease began carries at least that lease's start, and collection spares every stamp that
//! is not older than the oldest live lease. A lease of a dead session counts no more. Start with
//! [`Lease`].

use std::sync::PoisonError;

use crate::{Store, StoreError};

/// The count at which a lease began.
pub(crate) type Start = i64;

/// While it lives, nothing used or made in the store since it began is removed by any process.
/// Process death frees it.
#[derive(Debug)]
#[must_use = "a lease protects only while it lives"]
pub struct Lease {
    store: Store,
    id: i64,
}

impl Store {
    /// Begins a lease. Take it before the first use of what must stay.
    pub fn lease(&self) -> Result<Lease, StoreError> {
        let (id, start) = self.inner.database.write(|tx| {
            let start: Start = tx
                .prepare_cached("UPDATE clock SET use_seq = use_seq + 1 RETURNING use_seq")?
                .query_row([], |row| row.get(0))?;
            tx.prepare_cached("INSERT INTO lease (session, start) VALUES (?1, ?2)")?
                .execute((self.inner.session.slot(), start))?;
            Ok((tx.last_insert_rowid(), start))
        })?;
        self.inner.leases.lock().unwrap_or_else(PoisonError::into_inner).insert(id, start);
        Ok(Lease { store: self.clone(), id })
    }

    /// Leases of this process that live.
    pub fn lease_count(&self) -> usize {
        self.inner.leases.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// The newest start of this store's leases: what carries this stamp needs no new one.
    pub(crate) fn newest_lease(&self) -> Option<Start> {
        self.inner.leases.lock().unwrap_or_else(PoisonError::into_inner).values().copied().max()
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let inner = &self.store.inner;
        inner.leases.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
        let ended = inner.database.write(|tx| {
            tx.prepare_cached("DELETE FROM lease WHERE id = ?1")?.execute([self.id])?;
            Ok(())
        });
        if let Err(error) = ended {
            tracing::warn!(%error, "a lease lasts until the end of the session");
        }
    }
}
