//! The room that a running step takes: what it writes is looked at while it runs.
//!
//! Nobody announces what a process writes. So somebody looks: at the free blocks of the file system often, which is
//! cheap, and at the step's own directories when those have become fewer by what was left, or after [`CLOSELY`]. What
//! was found is reserved like everything else that is written, so that what may go makes room and all processes count
//! together; when nothing may go, [`Growth::look`] fails with [`StoreError::CapReached`], and whoever runs the step
//! ends it. The less is left the sooner the next look is due: a step passes the cap only if it writes faster than
//! [`FASTEST`], in one call that takes more than is left, or while others free as many blocks as it takes.
//! Must not know processes. Start with [`Growth`].

use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::cap::LayerRoom;
use crate::diff::allocated;
use crate::{ActiveLayer, Store, StoreError};

/// Bytes a second that nothing writes faster than: what is left lasts so long at least.
const FASTEST: u64 = 4 << 30;

/// Bytes that a step finds no room for, whatever the cap: it may write them while a close look is taken, and while
/// it is ended. Less in a small store, where it is an eighth.
const MARGIN: u64 = 64 << 20;

/// The shortest time between two looks.
const SHORTEST: Duration = Duration::from_millis(2);

/// The longest time between two looks.
const LONGEST: Duration = Duration::from_millis(250);

/// After this a look is a close one, even when the file system says that nothing was written.
const CLOSELY: Duration = Duration::from_secs(1);

/// Close looks for that reason cost at most one part in so many of the time.
const SHARE: u32 = 20;

/// What a step writes into its layers, against the store's cap.
#[derive(Debug)]
pub struct Growth {
    store: Store,
    layers: Vec<(PathBuf, LayerRoom)>,
    /// Kept free for what is written between a look and the step's end.
    margin: u64,
    close: Option<Close>,
}

/// A close look.
#[derive(Debug, Clone, Copy)]
struct Close {
    at: Instant,
    took: Duration,
    /// Bytes the file system had free.
    free: u64,
    /// Bytes that could still be written.
    left: u64,
}

impl Close {
    /// What is left now at least, if nobody but the step writes; `None` when that must be looked at closely.
    fn left(&self, free: u64, margin: u64, now: Instant) -> Option<u64> {
        let since = now.duration_since(self.at);
        let left = self.left.saturating_sub(self.free.saturating_sub(free));
        // Others write as well, and then one close look after the other would find nothing new.
        let may_be_full = left < margin && since >= self.took;
        if may_be_full || since >= CLOSELY.max(self.took * SHARE) { None } else { Some(left) }
    }
}

/// When to look again with so much left.
fn next(left: u64, margin: u64) -> Duration {
    let beyond = left.saturating_sub(margin);
    let lasts = Duration::from_nanos(beyond.min(FASTEST).saturating_mul(1_000_000_000) / FASTEST);
    lasts.clamp(SHORTEST, LONGEST)
}

impl Growth {
    /// Looks at these layers; `None` in a store without a cap.
    pub fn of<'a>(store: &Store, layers: impl IntoIterator<Item = &'a ActiveLayer>) -> Option<Self> {
        let cap = store.cap()?;
        let layers = layers.into_iter().map(|layer| (layer.upper().to_owned(), layer.room().clone()));
        Some(Self {
            store: store.clone(),
            layers: layers.collect(),
            margin: MARGIN.min(cap / 8),
            close: None,
        })
    }

    /// Looks, and says after which time to look again. Blocks.
    ///
    /// # Errors
    /// [`StoreError::CapReached`] when the step must end; others when nothing could be seen.
    pub fn look(&mut self) -> Result<Duration, StoreError> {
        let (_, free) = self.store.file_system_bytes()?;
        let now = Instant::now();
        if let Some(left) = self.close.and_then(|close| close.left(free, self.margin, now)) {
            return Ok(next(left, self.margin));
        }
        if self.close.is_some() {
            self.store.reckon_anew();
        }
        for (path, room) in &self.layers {
            let size = allocated(path)?;
            room.with(|room| {
                room.shrink_to(size);
                room.cover(size)
            })?;
        }
        let mut left = self.store.room_left()?;
        if left < self.margin {
            // What may go makes room for the margin as well.
            self.store.expect_bytes(self.margin)?;
            left = self.store.room_left()?;
        }
        self.close = Some(Close { at: now, took: now.elapsed(), free, left });
        Ok(next(left, self.margin))
    }

    /// The next look is a close one.
    #[cfg(test)]
    pub(crate) fn look_closely(&mut self) {
        self.close = None;
        self.store.reckon_anew();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[track_caller]
    fn check(left: u64, taken: u64, since: Duration, expected: Option<u64>) {
        let at = Instant::now();
        let close = Close { at, took: Duration::from_millis(1), free: 1000 * MIB, left };
        assert_eq!(close.left(1000 * MIB - taken, 8 * MIB, at + since), expected);
    }

    #[test]
    fn free_blocks_are_believed_while_they_leave_room() {
        let moment = Duration::from_millis(50);
        check(100 * MIB, 0, moment, Some(100 * MIB));
        check(100 * MIB, 90 * MIB, moment, Some(10 * MIB));
        check(100 * MIB, 93 * MIB, moment, None);
        check(100 * MIB, 200 * MIB, moment, None);
        // Not while the last one is hardly over.
        check(100 * MIB, 93 * MIB, Duration::from_micros(900), Some(7 * MIB));
        check(100 * MIB, 0, CLOSELY, None);
    }

    #[test]
    fn the_less_is_left_the_sooner_the_next_look() {
        assert_eq!(next(u64::MAX, 8 * MIB), LONGEST);
        assert_eq!(next(8 * MIB + FASTEST / 8, 8 * MIB), Duration::from_millis(125));
        assert_eq!(next(8 * MIB, 8 * MIB), SHORTEST);
        assert_eq!(next(0, 8 * MIB), SHORTEST);
    }
}
