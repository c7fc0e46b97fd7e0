//! The cap: room is made before something is written.
//!
//! Every writer (a layer being unpacked, a blob being received) reserves what it is about to write, in steps of
//! [`STEP`]; a session says in its slot's file how much it has reserved, so that all processes of a store count
//! together. When the sum would pass the cap, what is least worth keeping goes first; when that is not enough the
//! writer gets [`StoreError::CapReached`] and nothing is written. What a RUN step writes is not announced: `growth`
//! looks at it while it runs. Start with [`Reservation`]; [`LayerRoom`] is how others hold one.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
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

    /// Room for so much in all, if it is not there yet.
    pub(crate) fn cover(&mut self, bytes: u64) -> Result<(), StoreError> {
        self.grow_exactly(bytes.saturating_sub(self.used))
    }

    /// Gives back what is beyond this.
    pub(crate) fn shrink_to(&mut self, bytes: u64) {
        self.used = self.used.min(bytes);
        let surplus = self.bytes.saturating_sub(bytes);
        if surplus > 0 {
            self.bytes -= surplus;
            self.store.release(surplus);
        }
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
            self.store.reckon_anew();
            self.store.release(self.bytes);
        }
    }
}

/// The room of one layer, shared by all who write it.
#[derive(Debug, Clone)]
pub struct LayerRoom(Arc<Mutex<Reservation>>);

impl LayerRoom {
    pub(crate) fn new(store: &Store) -> Self {
        Self(Arc::new(Mutex::new(Reservation::new(store))))
    }

    /// Room for so many more bytes, which are about to be written. Free of cost in a store without a cap.
    ///
    /// # Errors
    /// [`StoreError::CapReached`] when nothing more may go.
    pub fn take(&self, bytes: u64) -> Result<(), StoreError> {
        self.with(|room| room.grow(bytes))
    }

    pub(crate) fn with<T>(&self, act: impl FnOnce(&mut Reservation) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Store {
    /// The cap in bytes, if the store has one.
    pub fn cap(&self) -> Option<u64> {
        self.inner.policy.get()?.cap
    }

    /// Makes sure that so much could be written now, collecting when needed, and reserves nothing: for who knows
    /// beforehand that much more will come, so that it fails before the first byte.
    ///
    /// # Errors
    /// [`StoreError::CapReached`] when it cannot.
    pub fn expect_bytes(&self, bytes: u64) -> Result<(), StoreError> {
        if self.cap().is_some() && bytes > 0 {
            self.make_room(bytes)?;
            self.release(bytes);
        }
        Ok(())
    }

    /// How much could be written now without a collection.
    pub(crate) fn room_left(&self) -> Result<u64, StoreError> {
        let Some(cap) = self.cap() else { return Ok(u64::MAX) };
        let mut known = self.inner.making_room.lock().unwrap_or_else(PoisonError::into_inner);
        let used = match *known {
            Some((at, used)) if at.elapsed() < RECKONING => used,
            _ => self.used_bytes()?,
        };
        *known = Some((Instant::now(), used));
        Ok(cap.saturating_sub(used + self.reserved_by_all()?))
    }

    /// Reserves, collecting when needed. One at a time in a process: two that see the same room take it once.
    fn make_room(&self, bytes: u64) -> Result<(), StoreError> {
        let Some(cap) = self.cap() else { return Ok(()) };
        let mut known = self.inner.making_room.lock().unwrap_or_else(PoisonError::into_inner);
        let reserved = self.reserved_by_all()?;
        let mut used = match *known {
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
            used = self.used_bytes()?;
            *known = Some((Instant::now(), used));
            if used + reserved + bytes > cap {
                return Err(StoreError::CapReached { cap, used: used + reserved, wanted: bytes });
            }
        }
        self.inner.reserved.fetch_add(bytes, Ordering::Relaxed);
        self.announce();
        Ok(())
    }

    /// Gives reserved bytes back.
    fn release(&self, bytes: u64) {
        self.inner.reserved.fetch_sub(bytes, Ordering::Relaxed);
        self.announce();
    }

    /// What the store takes is not known any more.
    pub(crate) fn reckon_anew(&self) {
        *self.inner.making_room.lock().unwrap_or_else(PoisonError::into_inner) = None;
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
