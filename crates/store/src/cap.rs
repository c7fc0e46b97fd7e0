//! The cap: room is made before something is written.
//!
//! Every writer (a layer being unpacked, a blob being received) reserves what it is about to write, in steps of
//! [`STEP`]; a session says in its slot's file how much it has reserved, so that all processes of a store count
//! together: it says so first and counts then, so that of two that ask at once one sees the other at least. When the sum would pass the cap, what is least worth keeping goes first; when that is not enough the
//! writer gets [`StoreError::CapReached`] and nothing is written. What a RUN step writes is not announced: `growth`
//! has something reserved for it and looks at it while it runs. Start with [`Reservation`]; [`LayerRoom`] is how others hold one.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::{PruneRequest, Store, StoreError};

/// Bytes reserved at once, at most.
pub(crate) const STEP: u64 = 8 << 20;

/// The part of a cap that is reserved at once, at most: what some hold and do not use, others lack. A team of fifty that
/// writes little, each several files and layers at a time, holds a part of the cap that all of it can do without.
const STEP_PART: u64 = 1024;

/// How long a reckoning of what the store takes is believed, unless a writer ended.
const RECKONING: Duration = Duration::from_millis(250);

/// Part of a cap that is kept free for the growth of what is counted and never refused: databases, journal, records.
const OWN_PART: u64 = 32;

/// The bounds of that part.
const OWN: (u64, u64) = (256 << 10, 64 << 20);

/// How often a process asks that may have met another.
const ATTEMPTS: u32 = 3;

/// How long who has nothing yet waits for room that others hold and may give back.
const PATIENCE: Duration = Duration::from_secs(2);

/// How often it looks for what another process gave back; what this one does it is told.
const LOOK: Duration = Duration::from_millis(200);

/// Part of the pause between two of these.
const PAUSE: Duration = Duration::from_millis(2);

/// What the store took when that was last looked at.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reckoning {
    at: Instant,
    used: u64,
    /// What others had reserved then.
    others: u64,
}

/// What this process gave back of what it had reserved.
#[derive(Debug, Default)]
pub(crate) struct Releases {
    /// How often.
    count: u64,
    /// Who waits for the next time.
    pub(crate) waiting: usize,
}

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
        let cap = self.store.cap().unwrap_or(u64::MAX);
        self.grow_in(STEP.min(cap / STEP_PART), bytes)
    }

    /// The same for a writer that knows how much it needs.
    pub(crate) fn grow_exactly(&mut self, bytes: u64) -> Result<(), StoreError> {
        self.grow_in(0, bytes)
    }

    /// The first room for something that has none: what others hold and do not use comes back when they end, and is
    /// waited for a while. It is asked for again only when something came back, since each time collects what may go.
    pub(crate) fn begin(&mut self, bytes: u64) -> Result<(), StoreError> {
        let until = Instant::now() + PATIENCE;
        loop {
            let seen = self.store.releases();
            let refused = match self.grow_exactly(bytes) {
                Err(refused @ StoreError::CapReached { .. }) => refused,
                other => return other,
            };
            if !self.store.gets_some_back(seen, until)? {
                return Err(refused);
            }
        }
    }

    /// Room for so much in all, if it is not there yet.
    pub(crate) fn cover(&mut self, bytes: u64) -> Result<(), StoreError> {
        self.grow_exactly(bytes.saturating_sub(self.used))
    }

    /// Bytes reserved.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// So many bytes were written: reserved they become out of `sources` as far as those go, then anew.
    pub(crate) fn settle(&mut self, bytes: u64, sources: &mut [&mut Self]) -> Result<(), StoreError> {
        self.shrink_to(bytes);
        self.used = bytes;
        for source in sources {
            let taken = source.bytes.min(bytes - self.bytes);
            source.bytes -= taken;
            source.used = source.used.min(source.bytes);
            self.bytes += taken;
        }
        self.become_exactly(bytes)
    }

    /// Reserves exactly so much, and fails when the store is over its cap with that. On failure nothing is added.
    pub(crate) fn become_exactly(&mut self, bytes: u64) -> Result<(), StoreError> {
        self.shrink_to(bytes);
        self.store.make_room(bytes - self.bytes)?;
        (self.bytes, self.used) = (bytes, bytes);
        Ok(())
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
        let used = self.used.saturating_add(bytes);
        if used > self.bytes && self.store.cap().is_some() {
            let exact = used - self.bytes;
            let wanted = exact.max(step);
            // Near the cap the last bytes are asked for one by one.
            self.bytes += match self.store.make_room(wanted) {
                Err(StoreError::CapReached { .. }) if wanted > exact => {
                    self.store.make_room(exact).map(|()| exact)?
                }
                other => other.map(|()| wanted)?,
            };
        }
        self.used = used;
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

/// Bytes of a cap that are kept for the store itself.
fn own(cap: u64) -> u64 {
    (cap / OWN_PART).clamp(OWN.0, OWN.1)
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
        let (used, reserved) = self.reckon(&mut known)?;
        Ok(cap.saturating_sub(used.saturating_add(reserved).saturating_add(own(cap))))
    }

    /// What the store takes, and what is reserved by all.
    fn reckon(&self, known: &mut Option<Reckoning>) -> Result<(u64, u64), StoreError> {
        let others = self.reserved_by_others()?;
        let used = match known {
            // Who gives a reservation back has recorded what it wrote: that is not known yet.
            Some(known) if known.at.elapsed() < RECKONING && others >= known.others => {
                known.others = others;
                known.used
            }
            _ => {
                let at = Instant::now();
                let used = self.used_bytes()?;
                *known = Some(Reckoning { at, used, others });
                used
            }
        };
        Ok((used, self.inner.reserved.load(Ordering::Relaxed).saturating_add(others)))
    }

    /// Reserves, collecting when needed. One at a time in a process.
    fn make_room(&self, bytes: u64) -> Result<(), StoreError> {
        let Some(cap) = self.cap() else { return Ok(()) };
        let mut known = self.inner.making_room.lock().unwrap_or_else(PoisonError::into_inner);
        if bytes > cap.saturating_sub(own(cap)) {
            let (used, reserved) = self.reckon(&mut known)?;
            return Err(StoreError::CapReached { cap, used: used.saturating_add(reserved), wanted: bytes });
        }
        for attempt in 1.. {
            self.reserve(bytes);
            let refusal = match self.fit(cap, bytes, &mut known) {
                Ok(None) => return Ok(()),
                Ok(Some(refusal)) => refusal,
                Err(error) => {
                    self.withdraw(bytes);
                    return Err(error);
                }
            };
            self.withdraw(bytes);
            if attempt == ATTEMPTS || self.reserved_by_others()? == 0 {
                return Err(refusal);
            }
            // Two processes that asked at once both saw too much: the one of the lower number asks again first.
            std::thread::sleep(PAUSE + PAUSE * (std::process::id() % 8));
        }
        Ok(())
    }

    /// Whether all that is reserved fits, when what may go has gone; else why not.
    fn fit(
        &self,
        cap: u64,
        wanted: u64,
        known: &mut Option<Reckoning>,
    ) -> Result<Option<StoreError>, StoreError> {
        let (used, reserved) = self.reckon(known)?;
        let reserved = reserved.saturating_add(own(cap));
        if used.saturating_add(reserved) <= cap {
            return Ok(None);
        }
        if reserved > cap {
            // Nothing that may go would be enough.
            let used = used.saturating_add(reserved - wanted);
            return Ok(Some(StoreError::CapReached { cap, used, wanted }));
        }
        let limits = crate::KeepLimits {
            max_used: Some(cap.saturating_sub(reserved)),
            ..crate::KeepLimits::default()
        };
        self.prune(&PruneRequest { limits, ..PruneRequest::unused() })?;
        *known = None;
        let (used, reserved) = self.reckon(known)?;
        let reserved = reserved.saturating_add(own(cap));
        let used_by_all = used.saturating_add(reserved - wanted);
        Ok((used.saturating_add(reserved) > cap).then_some(StoreError::CapReached {
            cap,
            used: used_by_all,
            wanted,
        }))
    }

    fn reserve(&self, bytes: u64) {
        self.change_reserved(|reserved| reserved.fetch_add(bytes, Ordering::Relaxed));
    }

    /// Gives reserved bytes back.
    fn release(&self, bytes: u64) {
        self.withdraw(bytes);
        let mut releases = self.inner.releases.lock().unwrap_or_else(PoisonError::into_inner);
        releases.count += 1;
        if releases.waiting > 0 {
            self.inner.released.notify_all();
        }
    }

    /// Reserves less after all: nobody could have had it meanwhile who did not ask at the same moment.
    fn withdraw(&self, bytes: u64) {
        self.change_reserved(|reserved| reserved.fetch_sub(bytes, Ordering::Relaxed));
    }

    /// How often something was given back in this process.
    fn releases(&self) -> u64 {
        self.inner.releases.lock().unwrap_or_else(PoisonError::into_inner).count
    }

    /// Waits for room that somebody gives back; false when nobody holds any, or nobody did `until` then.
    fn gets_some_back(&self, seen: u64, until: Instant) -> Result<bool, StoreError> {
        let held = self.reserved_by_all()?;
        while held > 0 && Instant::now() < until {
            if self.releases() != seen || self.reserved_by_all()? < held {
                return Ok(true);
            }
            self.wait_for_release(seen);
        }
        Ok(false)
    }

    /// Waits until something was given back in this process since `seen`, or [`LOOK`] is over.
    fn wait_for_release(&self, seen: u64) {
        let mut releases = self.inner.releases.lock().unwrap_or_else(PoisonError::into_inner);
        releases.waiting += 1;
        let unmoved = |releases: &mut Releases| releases.count == seen;
        let waited = self.inner.released.wait_timeout_while(releases, LOOK, unmoved);
        waited.unwrap_or_else(PoisonError::into_inner).0.waiting -= 1;
    }

    /// Changes what is reserved, and says so to other processes: one at a time, so that the last number said is the
    /// last there is.
    fn change_reserved(&self, change: impl FnOnce(&AtomicU64) -> u64) {
        let _alone = self.inner.reserving.lock().unwrap_or_else(PoisonError::into_inner);
        change(&self.inner.reserved);
        self.inner.session.announce(self.inner.reserved.load(Ordering::Relaxed));
    }

    /// What the store takes is not known any more.
    pub(crate) fn reckon_anew(&self) {
        *self.inner.making_room.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Bytes of everything that is whole.
    fn used_bytes(&self) -> Result<u64, StoreError> {
        self.measure_layers()?;
        let records = self.inner.database.read(crate::usage::rows)?;
        let whole: u64 = records.iter().map(|record| record.size).sum();
        Ok(self.internal_bytes() + whole + self.cache_mount_bytes()?)
    }

    /// What all live sessions have reserved and not yet recorded.
    pub(crate) fn reserved_by_all(&self) -> Result<u64, StoreError> {
        Ok(self.inner.reserved.load(Ordering::Relaxed).saturating_add(self.reserved_by_others()?))
    }

    fn reserved_by_others(&self) -> Result<u64, StoreError> {
        crate::session::reserved_by_others(&self.inner.root, &self.inner.session)
    }
}
