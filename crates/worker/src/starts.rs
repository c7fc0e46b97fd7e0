//! Who starts next: processes that want to begin at the same time begin one after the other.
//!
//! A start takes a processor, and waits for the kernel half of its time. When dozens share two processors, all are ready
//! when the last one is; in turn, the first works while the others begin, and has ended when its users want it. Must not
//! know what is started. Read [`Starts::turn`] first.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

/// Starts at once for each processor: so many that none is idle while they wait.
const AT_ONCE: usize = 3;

/// How long somebody waits while no start ends: one that does wait for something (a disk, a network) must not hold up
/// the others.
const PATIENCE: Duration = Duration::from_millis(50);

/// How long what has time waits at most.
const LONGEST: Duration = Duration::from_millis(200);

/// How long a start waits at most: others that come before it may keep coming.
const BOUND: Duration = Duration::from_secs(1);

/// The turns of one machine.
#[derive(Debug)]
pub(crate) struct Starts(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    /// How many may start at once; asked for by the first.
    count: Option<usize>,
    /// How many do.
    taken: usize,
    /// Starts that have ended.
    ended: u64,
    /// Who waits, by when they were asked for; what has time comes after all of them.
    waiting: BTreeMap<Place, oneshot::Sender<Turn>>,
    /// How many had time so far.
    unhurried: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Arrival(u64),
    Last(u64),
}

/// A start under way; the next one's turn when dropped.
#[derive(Debug)]
pub(crate) struct Turn(Option<Arc<Mutex<State>>>);

impl Default for Starts {
    fn default() -> Self {
        Self::of(None)
    }
}

impl State {
    /// Takes a place if there is one.
    fn take(&mut self) -> bool {
        let processors = || std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let count = *self.count.get_or_insert_with(|| AT_ONCE * processors());
        let is_free = self.taken < count;
        self.taken += usize::from(is_free);
        is_free
    }
}

impl Starts {
    fn of(count: Option<usize>) -> Self {
        let state = State { count, taken: 0, ended: 0, waiting: BTreeMap::new(), unhurried: 0 };
        Self(Arc::new(Mutex::new(state)))
    }

    /// Waits until it is the turn of who came as the `arrival`-th, or nothing moves, or for [`BOUND`].
    pub(crate) async fn turn(&self, arrival: u64) -> Turn {
        self.turn_at(Place::Arrival(arrival), PATIENCE, BOUND).await
    }

    /// Waits until nobody is kept from starting by what takes a processor now, or for [`LONGEST`].
    pub(crate) async fn over(&self) {
        let place = {
            let mut state = lock(&self.0);
            if state.taken == 0 {
                return;
            }
            state.unhurried += 1;
            Place::Last(state.unhurried)
        };
        drop(self.turn_at(place, PATIENCE, LONGEST).await);
    }

    async fn turn_at(&self, place: Place, patience: Duration, bound: Duration) -> Turn {
        let begin = Instant::now();
        let mut turn = {
            let mut state = lock(&self.0);
            if state.take() {
                return Turn(Some(Arc::clone(&self.0)));
            }
            let (sender, turn) = oneshot::channel();
            // The same step again: whoever waits under its number is not made to wait longer.
            drop(state.waiting.insert(place, sender));
            turn
        };
        loop {
            let ended = lock(&self.0).ended;
            let left = bound.saturating_sub(begin.elapsed());
            match tokio::time::timeout(patience.min(left), &mut turn).await {
                Ok(Ok(turn)) => return turn,
                Ok(Err(_)) => return Turn(None),
                Err(_) => {}
            }
            let mut state = lock(&self.0);
            if state.ended == ended || begin.elapsed() >= bound {
                drop(state.waiting.remove(&place));
                return Turn(None);
            }
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let Some(shared) = self.0.take() else { return };
        loop {
            let mut state = lock(&shared);
            state.ended += 1;
            let Some((_, next)) = state.waiting.pop_first() else {
                state.taken -= 1;
                return;
            };
            drop(state);
            match next.send(Self(Some(Arc::clone(&shared)))) {
                Ok(()) => return,
                // Gave up. What comes back must not pass itself on: that is done here.
                Err(mut unused) => unused.0 = None,
            }
        }
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt as _;

    #[test]
    fn who_was_asked_for_first_starts_first() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
        runtime.block_on(async {
            let starts = Starts::of(Some(1));
            let first = starts.turn(9).await;
            let mut later = Box::pin(starts.turn(8));
            let mut given_up = Box::pin(starts.turn(3));
            let mut next = Box::pin(starts.turn(4));
            let mut last = Box::pin(starts.over());
            assert!((&mut last).now_or_never().is_none());
            for waiting in [&mut later, &mut given_up, &mut next] {
                assert!(waiting.now_or_never().is_none());
            }
            drop(given_up);
            drop(first);
            assert!((&mut later).now_or_never().is_none());
            let next = next.now_or_never().expect("its turn");
            assert!((&mut later).now_or_never().is_none());
            drop(next);
            let later = later.now_or_never().expect("its turn");
            assert!((&mut last).now_or_never().is_none());
            drop(later);
            last.now_or_never().expect("nobody starts");
            assert_eq!(lock(&starts.0).taken, 0);
        });
    }

    #[tokio::test]
    async fn nobody_waits_for_ever_though_others_move() {
        let starts = Starts::of(Some(1));
        let first = starts.turn(1).await;
        // That nothing moves it would find after an hour.
        let bounded = starts.turn_at(Place::Arrival(2), Duration::from_secs(3600), Duration::ZERO).await;
        assert!(bounded.0.is_none() && lock(&starts.0).waiting.is_empty());
        drop((bounded, first));
        assert_eq!(lock(&starts.0).taken, 0);
    }

    #[tokio::test]
    async fn nobody_waits_for_a_start_that_hangs() {
        let starts = Starts::of(Some(1));
        let _hangs = starts.turn(1).await;
        let (second, third) = tokio::join!(starts.turn(2), starts.turn(3));
        assert!(second.0.is_none() && third.0.is_none() && lock(&starts.0).waiting.is_empty());
        drop((second, third));
        assert_eq!(lock(&starts.0).taken, 1);
    }
}
