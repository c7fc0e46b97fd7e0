//! The cap: room is made before something is written.
//!
//! Every writer (a layer being unpacked, a blob being received) reserves what it is about to write, in steps of
//! [`STEP`]; a session says in its slot's file how much it has reserved, so that all processes of a store count
//! together. When the sum would pass the cap, what is least worth keeping goes first; when that is not enough the
//! writer gets [`StoreError::CapReached`] and nothing is written. What a RUN step writes is not announced: no layer
//! is begun in a full store, and what was written is measured before it becomes a layer, so that a step that wrote
//! too much fails and leaves nothing. While it runs, [`Store::is_over_cap`] tells.
//! Start with [`Reservation`].

use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::{PruneRequest, Store, StoreError};

/// Bytes reserved at once.
pub(crate) const STEP: u64 = 8 << 20;

/// How long a reckoning of what the store takes is believed, unless a writer ended.
const RECKONING: Duration = Duration::from_millis(250);

/// Room for something that is being written. Its drop gives back what was not written, for what was written is
/// counted by then.
#[derive(Debug)]
pub(crate) struct Reservation {
    store: Store,
    bytes: u64,
    used: u64,
}

impl Reservation {
    /// Nothing yet.
    pub(crate) fn new(store: &Store) -> Self {
        Self { store: store.clone(), bytes: 0, used: 0 }
    }

    /// Room for so much more. Free of cost in a store without a cap.
    pub(crate) fn grow(&mut self, bytes: u64) -> Result<(), StoreError> {
        self.grow_in(STEP, bytes)
    }

    /// The same for a writer that knows how much it needs.
    pub(crate) fn grow_exactly(&mut self, bytes: u64) -> Result<(), StoreError> {
        self.grow_in(0, bytes)
    }

    fn grow_in(&mut self, step: u64, bytes: u64) -> Result<(), StoreError> {
        self.used += bytes;
        if self.used <= self.bytes || self.store.cap().is_none() {
            return Ok(());
        }
        let wanted = (self.used - self.bytes).max(step);
        // Near the cap the last bytes are asked for one by one.
        let got = match self.store.make_room(wanted) {
            Err(StoreError::CapReached { .. }) if wanted > self.used - self.bytes => {
                let exact = self.used - self.bytes;
                self.store.make_room(exact).map(|()| exact)?
            }
            other => other.map(|()| wanted)?,
        };
        self.bytes += got;
        Ok(())
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if self.bytes > 0 {
            // What was written is in the rows now: it is reckoned anew before the reservation ends.
            *self.store.inner.making_room.lock().unwrap_or_else(PoisonError::into_inner) = None;
            self.store.inner.reserved.fetch_sub(self.bytes, Ordering::Relaxed);
            self.store.announce();
        }
    }
}

impl Store {
    /// The cap, if the store has one.
    pub(crate) fn cap(&self) -> Option<u64> {
        self.inner.policy.get()?.cap
    }

    /// Reserves, collecting when needed. One at a time in a process: two that see the same room take it once.
    fn make_room(&self, bytes: u64) -> Result<(), StoreError> {
        let Some(cap) = self.cap() else { return Ok(()) };
        let mut known = self.inner.making_room.lock().unwrap_or_else(PoisonError::into_inner);
        let reserved = self.reserved_by_all()?;
        let used = match *known {
            Some((at, used)) if at.elapsed() < RECKONING => used,
            _ => self.used_bytes()?,
        };
        *known = Some((Instant::now(), used));
        if used + reserved + bytes > cap {
            let target = cap.saturating_sub(reserved + bytes);
            let request = PruneRequest {
                limits: crate::KeepLimits { max_used: Some(target), ..crate::KeepLimits::default() },
                ..PruneRequest::unused()
            };
            self.prune(&request)?;
            let used = self.used_bytes()?;
            *known = Some((Instant::now(), used));
            if used + reserved + bytes > cap {
                return Err(StoreError::CapReached { cap, used: used + reserved, wanted: bytes });
            }
        }
        self.inner.reserved.fetch_add(bytes, Ordering::Relaxed);
        self.announce();
        Ok(())
    }

    /// Whether the store takes more than its cap now, after what may go is gone. Asked while a step runs, whose
    /// writes nobody announced: `written` is what it has written so far.
    pub fn is_over_cap(&self, written: u64) -> Result<bool, StoreError> {
        let Some(cap) = self.cap() else { return Ok(false) };
        if self.used_bytes()? + self.reserved_by_all()? + written <= cap {
            return Ok(false);
        }
        match self.make_room(written) {
            Ok(()) => {
                self.inner.reserved.fetch_sub(written, Ordering::Relaxed);
                self.announce();
                Ok(false)
            }
            Err(StoreError::CapReached { .. }) => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// Bytes of everything that is whole.
    fn used_bytes(&self) -> Result<u64, StoreError> {
        Ok(self.disk_usage()?.total())
    }

    /// What all live sessions have reserved and not yet recorded.
    fn reserved_by_all(&self) -> Result<u64, StoreError> {
        let own = self.inner.reserved.load(Ordering::Relaxed);
        Ok(own + crate::session::reserved_by_others(&self.inner.root, &self.inner.session)?)
    }

    fn announce(&self) {
        self.inner.session.announce(self.inner.reserved.load(Ordering::Relaxed));
    }
}
