//! The room that a running step takes: it has a credit before it writes, and is looked at while it writes.
//!
//! Nobody announces what a process writes. So a step may write only what was reserved for it: its *credit*. Before it
//! starts, and whenever it may have spent half of that, its directories are measured, what they take is reserved for
//! good, and a new credit is reserved ([`Growth::look`]); what may go makes room, all processes count together, and when
//! nothing may go it fails with [`StoreError::CapReached`]. In between the free blocks of the file system tell what may
//! have been spent ([`Growth::glance`]): every decrease counts as the step's. Near the cap whoever runs the step holds it
//! still during a look. A call that would take much at once asks beforehand ([`Announcements`]).
//!
//! Beside the credits each process that runs steps keeps a margin for what is written between the last glance and the
//! moment the step stands. Must not know processes. Start with [`Growth`].

use std::path::PathBuf;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use crate::cap::{LayerRoom, Reservation};
use crate::diff::allocated;
use crate::{ActiveLayer, Store, StoreError};

/// Bytes a second that nothing writes faster than, on any machine: a glance comes before half a credit is spent so.
const FASTEST: u64 = 8 << 30;

/// The largest margin; less in a small store, where it is a sixteenth.
const MARGIN: u64 = 64 << 20;

/// The bounds of the least credit, which is a 64th of the cap.
const LEAST_CREDIT: (u64, u64) = (1 << 20, 16 << 20);

/// The largest credit that cache is collected for: else each look would collect little.
const COLLECTED: u64 = 256 << 20;

/// Steps with a smaller credit are near the cap.
const NEAR: u64 = 2 << 30;

/// A credit is at most one part in so many of what is left, so that others find some.
const PART: u64 = 8;

/// The shortest time between two glances.
const SHORTEST: Duration = Duration::from_micros(500);

/// The longest time between two glances.
const LONGEST: Duration = Duration::from_millis(250);

/// After this a look is due, even when the file system says that nothing was written.
const CLOSELY: Duration = Duration::from_secs(1);

/// Looks for that reason cost at most one part in so many of the time.
const SHARE: u32 = 20;

/// What a step writes into its layers, against the store's cap.
#[derive(Debug)]
pub struct Growth {
    store: Store,
    layers: Vec<(PathBuf, LayerRoom)>,
    announced: LayerRoom,
    /// What of that was announced before the last look.
    announced_before: u64,
    credit: Reservation,
    least: u64,
    close: Option<Close>,
    _margin: Arc<LayerRoom>,
}

/// What a glance finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Glance {
    /// Nothing to do for so long.
    Again(Duration),
    /// A look is due; near the cap the step has to stand during it.
    Closely {
        /// Whether it is near.
        near: bool,
    },
}

/// For calls that take much at once: they are asked for before they are made.
#[derive(Debug, Clone)]
pub struct Announcements {
    store: Store,
    room: LayerRoom,
}

impl Announcements {
    /// Reserves so much until the next look.
    ///
    /// # Errors
    /// [`StoreError::CapReached`] when it does not fit.
    pub fn take(&self, bytes: u64) -> Result<(), StoreError> {
        // Collecting takes its time, in which a glance must not wait for the room.
        self.store.expect_bytes(bytes)?;
        self.room.with(|room| room.grow_exactly(bytes))
    }
}

/// What is known since the last look.
#[derive(Debug, Clone, Copy)]
struct Close {
    at: Instant,
    took: Duration,
    /// Bytes the file system had free at the last glance.
    free: u64,
    /// The sum of all decreases since.
    spent: u64,
    /// Whether somebody freed blocks since.
    freed: bool,
}

impl Close {
    fn see(&mut self, free: u64) {
        self.spent += self.free.saturating_sub(free);
        self.freed |= free > self.free;
        self.free = free;
    }

    /// What was announced was reserved beside the credit, and does not make a step less near.
    fn next(&self, credit: u64, announced: u64, now: Instant) -> Glance {
        let near = credit < NEAR;
        let credit = credit.saturating_add(announced);
        let since = now.duration_since(self.at);
        // Who frees blocks hides what is written: then nothing but the time is sure.
        let due = match self.freed && near {
            true => lasts(credit / 2),
            false => CLOSELY.max(self.took * SHARE),
        };
        let until_half = (credit / 2).saturating_sub(self.spent);
        if until_half == 0 || since >= due {
            return Glance::Closely { near };
        }
        Glance::Again(lasts(until_half).min(due - since).clamp(SHORTEST, LONGEST))
    }
}

/// How long it takes to write so much, at least; a second at most.
fn lasts(bytes: u64) -> Duration {
    Duration::from_nanos(bytes.min(FASTEST).saturating_mul(1_000_000_000) / FASTEST).max(SHORTEST)
}

impl Growth {
    /// Of these layers; `None` in a store without a cap.
    ///
    /// # Errors
    /// [`StoreError::CapReached`] when there is not even room for a margin.
    pub fn of<'a>(
        store: &Store,
        layers: impl IntoIterator<Item = &'a ActiveLayer>,
    ) -> Result<Option<Self>, StoreError> {
        let Some(cap) = store.cap() else { return Ok(None) };
        let layers = layers.into_iter().map(|layer| (layer.upper().to_owned(), layer.room().clone()));
        Ok(Some(Self {
            store: store.clone(),
            layers: layers.collect(),
            announced: LayerRoom::new(store),
            announced_before: 0,
            credit: Reservation::new(store),
            least: (cap / 64).clamp(LEAST_CREDIT.0, LEAST_CREDIT.1),
            close: None,
            _margin: store.margin(MARGIN.min(cap / 16))?,
        }))
    }

    /// Where calls that take much are announced.
    #[must_use]
    pub fn announcements(&self) -> Announcements {
        Announcements { store: self.store.clone(), room: self.announced.clone() }
    }

    /// Whether the step could come near the cap soon: it should be possible to hold it still.
    #[must_use]
    pub fn is_near(&self) -> bool {
        self.credit.bytes() < NEAR
    }

    /// Whether others have reserved something that they may give back.
    ///
    /// # Errors
    /// When that cannot be read.
    pub fn has_company(&self) -> Result<bool, StoreError> {
        let own = self.layers.iter().map(|(_, room)| room.with(|room| room.bytes())).sum::<u64>();
        let own = own + self.credit.bytes() + self.announced.with(|room| room.bytes());
        let margin = self._margin.with(|room| room.bytes());
        Ok(self.store.reserved_by_all()? > own + margin)
    }

    /// What the file system says.
    ///
    /// # Errors
    /// When it says nothing.
    pub fn glance(&mut self) -> Result<Glance, StoreError> {
        let (_, free) = self.store.file_system_bytes()?;
        let announced = self.announced.with(|room| room.bytes());
        let Some(close) = &mut self.close else { return Ok(Glance::Closely { near: true }) };
        close.see(free);
        Ok(close.next(self.credit.bytes(), announced, Instant::now()))
    }

    /// Measures what was written when no more is, and reserves that alone: until it is recorded nobody else gets it.
    /// Blocks.
    ///
    /// # Errors
    /// As [`look`](Self::look).
    pub fn finish(&mut self) -> Result<(), StoreError> {
        self.store.reckon_anew();
        self.settle(true)?;
        self.announced.with(|announced| announced.shrink_to(0));
        self.credit.shrink_to(0);
        Ok(())
    }

    /// What the layers take becomes theirs, out of what was reserved for the step as far as that goes.
    fn settle(&mut self, is_still: bool) -> Result<(), StoreError> {
        for (path, room) in &self.layers {
            let size = allocated(path)?;
            // What was reserved for the step becomes that of its layer, and is nobody's in between.
            room.with(|room| match is_still {
                true => {
                    self.announced.with(|announced| room.settle(size, &mut [announced, &mut self.credit]))
                }
                false => room.settle(size, &mut [&mut self.credit]),
            })?;
        }
        Ok(())
    }

    /// Measures what was written, reserves it and a new credit. `is_still` says that nothing is being written now, and
    /// that no call is under way that was announced. Blocks.
    ///
    /// # Errors
    /// [`StoreError::CapReached`] when the step must end; others when nothing could be seen.
    pub fn look(&mut self, is_still: bool) -> Result<(), StoreError> {
        let at = Instant::now();
        let (_, free) = self.store.file_system_bytes()?;
        self.store.reckon_anew();
        self.settle(is_still)?;
        // What was announced before the last look is made by now and measured: kept, it would count twice.
        let before = std::mem::take(&mut self.announced_before);
        self.announced_before = self.announced.with(|announced| {
            announced.shrink_to(if is_still { 0 } else { announced.bytes().saturating_sub(before) });
            announced.bytes()
        });
        let left = self.store.room_left()? + self.credit.bytes();
        let collected = self.store.cap().map_or(COLLECTED, |cap| COLLECTED.min(cap / 16)).max(self.least);
        match self.credit.become_exactly((left / PART).max(collected)) {
            Err(StoreError::CapReached { .. }) => self.credit.become_exactly(self.least)?,
            other => other?,
        }
        // Collecting freed blocks: what the step itself took since `free` was read is not known, so it counts from before.
        let (_, after) = self.store.file_system_bytes()?;
        let free = if is_still { after } else { free.max(after) };
        self.close = Some(Close { at, took: at.elapsed(), free, spent: 0, freed: false });
        Ok(())
    }
}

impl Store {
    /// The margin of this process's steps, kept while any of them runs.
    fn margin(&self, bytes: u64) -> Result<Arc<LayerRoom>, StoreError> {
        let mut margin = self.inner.margin.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kept) = margin.upgrade() {
            return Ok(kept);
        }
        let new = Arc::new(LayerRoom::new(self));
        new.with(|room| room.become_exactly(bytes))?;
        *margin = Arc::downgrade(&new);
        Ok(new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[track_caller]
    fn check(credit: u64, free: &[u64], since: Duration, expected: Glance) {
        check_announced((credit, 0), free, since, expected);
    }

    #[track_caller]
    fn check_announced((credit, announced): (u64, u64), free: &[u64], since: Duration, expected: Glance) {
        let at = Instant::now();
        let took = Duration::from_millis(1);
        let mut close = Close { at, took, free: 1000 * MIB, spent: 0, freed: false };
        free.iter().for_each(|free| close.see(free * MIB));
        assert_eq!(close.next(credit * MIB, announced * MIB, at + since), expected);
    }

    #[test]
    fn free_blocks_are_believed_until_half_of_the_credit_may_be_spent() {
        let soon = Duration::from_millis(2);
        let (near, far) = (Glance::Closely { near: true }, Glance::Closely { near: false });
        check(1024, &[1000], soon, Glance::Again(Duration::from_micros(62_500)));
        check(1024, &[999, 489], soon, Glance::Again(SHORTEST));
        check(1024, &[488], soon, near);
        check(4096, &[0], soon, Glance::Again(Duration::from_nanos(127_929_687)));
        check(4096, &[1000], CLOSELY, far);
        // What is announced may be written as well, and nobody gets farther from the cap by that.
        check_announced((1024, 3072), &[0], soon, Glance::Again(Duration::from_nanos(127_929_687)));
        check_announced((1024, 3072), &[1000], CLOSELY, near);
        // What others free hides nothing that was taken before, and is a reason to look.
        check(1024, &[700, 900, 600], soon, near);
        check(1024, &[1000, 1001], soon, Glance::Again(Duration::from_micros(60_500)));
        check(1024, &[1000, 1001], Duration::from_micros(62_500), near);
    }
}
