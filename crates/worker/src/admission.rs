//! Which steps run at the same time, as far as memory is concerned.
//!
//! A step is expected to need what it held at most when it ran last. It is let in while what it is expected to need
//! fits beside what the running ones still may take; of one that never ran nothing is expected, so it is let in unless
//! the machine already waits for memory. One step is always let in, so that nothing waits for ever. While one waits that
//! must be alone, no other of its build is, and for a while none of anybody else's, so that it has its turn; those do not
//! wait longer for it, for what it waits for may run for hours. Must not know what steps do. Read [`Admission::admit`]
//! first.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use stave_oci::Digest;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::recent::Recent;

/// How often those who wait look at the machine again.
const LOOK: Duration = Duration::from_millis(250);
/// How long those of other builds are held back for one that must be alone.
const HELD_BACK: Duration = Duration::from_secs(30);
/// Percent of the last ten seconds in which some process waited for memory, from which on nothing unknown is let in.
const PRESSURE: f64 = 20.0;
/// Remembered steps, beyond which the oldest are forgotten.
const MAX_REMEMBERED: usize = 4096;

/// What one step asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Wish {
    /// Whose limit it shares: steps of one build have the same number.
    pub group: usize,
    /// The limit of that build together, in bytes.
    pub limit: Option<u64>,
    /// The most it held when it ran last.
    pub expected: Option<u64>,
    /// Whether nothing may run beside it.
    pub alone: bool,
}

/// What the machine has.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Machine {
    /// Memory that can be had now, in bytes: of the machine, and within the limits of the groups this process is in.
    pub available: u64,
    /// Pressure, in percent of time.
    pub pressure: f64,
}

/// A step that was let in.
#[derive(Debug)]
struct Running {
    number: u64,
    wish: Wish,
    held: Arc<AtomicU64>,
    /// Whether another step ran beside it at any time.
    crowded: bool,
}

/// The gate.
#[derive(Debug)]
pub(crate) struct Admission {
    state: Mutex<State>,
    left: Notify,
    /// [`HELD_BACK`].
    held_back: Duration,
}

impl Default for Admission {
    fn default() -> Self {
        Self { state: Mutex::default(), left: Notify::new(), held_back: HELD_BACK }
    }
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    running: Vec<Running>,
    /// Builds of which some wait that must be alone.
    loners: Vec<Loners>,
}

/// Those of one build that must be alone and wait.
#[derive(Debug)]
struct Loners {
    group: usize,
    count: usize,
    /// When the first of them came: of more than one, each would hold the others back anew.
    since: Instant,
}

impl State {
    /// Whether a step of this build waits for one that must be alone.
    fn is_held_back(&self, group: usize, bound: Duration) -> bool {
        self.loners.iter().any(|loners| loners.group == group || loners.since.elapsed() < bound)
    }
}

/// One that waits and must be alone.
struct Loner<'a> {
    admission: &'a Admission,
    group: usize,
}

impl<'a> Loner<'a> {
    fn waiting(admission: &'a Admission, group: usize) -> Self {
        let mut state = admission.state.lock().unwrap_or_else(PoisonError::into_inner);
        match state.loners.iter_mut().find(|loners| loners.group == group) {
            Some(loners) => loners.count += 1,
            None => state.loners.push(Loners { group, count: 1, since: Instant::now() }),
        }
        Self { admission, group }
    }
}

impl Drop for Loner<'_> {
    fn drop(&mut self) {
        let mut state = self.admission.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(loners) = state.loners.iter_mut().find(|loners| loners.group == self.group) {
            loners.count -= 1;
        }
        state.loners.retain(|loners| loners.count > 0);
        drop(state);
        self.admission.left.notify_waiters();
    }
}

/// The right to run; given back when dropped.
#[derive(Debug)]
pub(crate) struct Admitted {
    admission: Arc<Admission>,
    number: u64,
    /// What the step holds now, in bytes: whoever measures it writes it here.
    pub held: Arc<AtomicU64>,
}

impl Admission {
    /// Steps that are in.
    pub(crate) fn count(&self) -> usize {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).running.len()
    }

    /// Waits until the step may run; `None` when cancelled. `waiting` is called once, if it has to wait.
    pub(crate) async fn admit(
        self: &Arc<Self>,
        wish: Wish,
        machine: impl Fn() -> Machine,
        waiting: impl AsyncFnOnce(),
        cancel: &CancellationToken,
    ) -> Option<Admitted> {
        let mut waiting = Some(waiting);
        let _loner = wish.alone.then(|| Loner::waiting(self, wish.group));
        loop {
            let left = self.left.notified();
            if let Some(admitted) = self.try_admit(wish, &machine) {
                return Some(admitted);
            }
            if let Some(waiting) = waiting.take() {
                waiting().await;
            }
            tokio::select! {
                () = left => {}
                () = tokio::time::sleep(LOOK) => {}
                () = cancel.cancelled() => return None,
            }
        }
    }

    fn try_admit(self: &Arc<Self>, wish: Wish, machine: impl Fn() -> Machine) -> Option<Admitted> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if !wish.alone && state.is_held_back(wish.group, self.held_back) {
            return None;
        }
        // The first needs no look at the machine.
        if !state.running.is_empty() && !fits(&state.running, wish, &machine()) {
            return None;
        }
        let (number, held) = (state.next, Arc::new(AtomicU64::new(0)));
        state.next += 1;
        let crowded = !state.running.is_empty();
        if crowded {
            state.running.iter_mut().for_each(|running| running.crowded = true);
        }
        state.running.push(Running { number, wish, held: Arc::clone(&held), crowded });
        Some(Admitted { admission: Arc::clone(self), number, held })
    }
}

fn fits(running: &[Running], wish: Wish, machine: &Machine) -> bool {
    if wish.alone || running.iter().any(|other| other.wish.alone) {
        return running.is_empty();
    }
    let Some(expected) = wish.expected else { return machine.pressure < PRESSURE };
    let held = |other: &Running| other.held.load(Ordering::Relaxed);
    let to_come = |other: &Running| other.wish.expected.unwrap_or(0).saturating_sub(held(other));
    let at_most = |other: &Running| other.wish.expected.unwrap_or(0).max(held(other));
    let of_build = running.iter().filter(|other| other.wish.group == wish.group).map(at_most).sum::<u64>();
    let within_limit = wish.limit.is_none_or(|limit| of_build.saturating_add(expected) <= limit);
    let coming = running.iter().map(to_come).sum::<u64>();
    within_limit && coming.saturating_add(expected) <= machine.available
}

impl Admitted {
    /// Whether another step ran beside it at any time.
    pub(crate) fn was_crowded(&self) -> bool {
        let state = self.admission.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.running.iter().any(|running| running.number == self.number && running.crowded)
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let mut state = self.admission.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.running.retain(|running| running.number != self.number);
        drop(state);
        self.admission.left.notify_waiters();
    }
}

/// What this machine has now; what cannot be read is no reason to wait.
pub(crate) fn machine() -> Machine {
    static NOW: Recent<Machine> = Recent::new();
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let available = || {
        let both = [available(&read("/proc/meminfo")), stave_sandbox::memory_left()];
        both.into_iter().flatten().min().unwrap_or(u64::MAX)
    };
    NOW.or_ask(|| Machine {
        available: available(),
        pressure: pressure(&read("/proc/pressure/memory")).unwrap_or(0.0),
    })
}

fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

/// `some avg10=1.23 …`
fn pressure(text: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix("some "))?;
    line.split_whitespace().find_map(|field| field.strip_prefix("avg10="))?.parse().ok()
}

/// What steps held at most when they ran last: a file for each, of no value but for the next build's speed.
#[derive(Debug)]
pub(crate) struct Peaks {
    directory: PathBuf,
}

impl Peaks {
    /// Kept in this directory, made when needed.
    pub(crate) fn in_directory(directory: PathBuf) -> Self {
        Self { directory }
    }

    fn path(&self, vertex: &Digest) -> PathBuf {
        self.directory.join(vertex.short())
    }

    /// What a vertex held at most.
    pub(crate) fn of(&self, vertex: &Digest) -> Option<u64> {
        std::fs::read_to_string(self.path(vertex)).ok()?.trim().parse().ok()
    }

    /// Remembers it. A peak that is lost costs a guess.
    pub(crate) fn remember(&self, vertex: &Digest, peak: u64) {
        let write = || -> std::io::Result<()> {
            if std::fs::write(self.path(vertex), peak.to_string()).is_err() {
                std::fs::create_dir_all(&self.directory)?;
                std::fs::write(self.path(vertex), peak.to_string())?;
            }
            Ok(())
        };
        if let Err(error) = write() {
            tracing::debug!(%error, "a step's peak of memory is not remembered");
        }
    }

    /// Forgets the oldest beyond the limit.
    pub(crate) fn trim(&self) {
        let list = || std::fs::read_dir(&self.directory).into_iter().flatten().flatten();
        // Every command comes by here: it counts, and looks at each only if they are too many.
        if list().count() <= MAX_REMEMBERED {
            return;
        }
        let mut known: Vec<_> = list()
            .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
            .collect();
        known.sort_unstable();
        for (_, path) in known.iter().take(known.len().saturating_sub(MAX_REMEMBERED / 2)) {
            drop(std::fs::remove_file(path));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn wish(expected: Option<u64>, limit: Option<u64>) -> Wish {
        Wish { group: 1, limit, expected, alone: false }
    }

    fn with(available: u64) -> Machine {
        Machine { available, pressure: 0.0 }
    }

    #[test]
    fn two_that_need_sixty_percent_run_one_after_the_other() {
        let admission = Arc::new(Admission::default());
        let heavy = wish(Some(6 * GIB), None);
        let first = admission.try_admit(heavy, || with(10 * GIB)).expect("the first");
        assert!(admission.try_admit(heavy, || with(10 * GIB)).is_none());
        // A light one fits beside it.
        let light = admission.try_admit(wish(Some(GIB), None), || with(10 * GIB)).expect("a light one");
        // What the first holds already is no longer available, and no longer to come.
        first.held.store(6 * GIB, Ordering::Relaxed);
        assert!(admission.try_admit(wish(Some(4 * GIB), None), || with(4 * GIB)).is_none());
        drop(light);
        assert!(admission.try_admit(wish(Some(4 * GIB), None), || with(4 * GIB)).is_some());
        assert!(first.was_crowded());
        drop(first);
        assert!(admission.try_admit(heavy, || with(10 * GIB)).is_some());
    }

    #[test]
    fn the_limit_of_a_build_counts_its_steps_alone() {
        let admission = Arc::new(Admission::default());
        let heavy = wish(Some(60), Some(100));
        let first = admission.try_admit(heavy, || with(GIB)).expect("the first");
        assert!(admission.try_admit(heavy, || with(GIB)).is_none());
        assert!(admission.try_admit(Wish { group: 2, ..heavy }, || with(GIB)).is_some());
        first.held.store(30, Ordering::Relaxed);
        assert!(admission.try_admit(wish(Some(40), Some(100)), || with(GIB)).is_some());
    }

    #[test]
    fn one_is_always_let_in() {
        let admission = Arc::new(Admission::default());
        let none = || Machine { available: 0, pressure: 100.0 };
        let huge = admission.try_admit(wish(Some(u64::MAX), Some(1)), none).expect("the only one");
        assert!(!huge.was_crowded());
        assert!(
            admission.try_admit(wish(None, None), none).is_none(),
            "under pressure nothing unknown comes in"
        );
        assert!(admission.try_admit(wish(None, None), || with(0)).is_some(), "without, it does");
    }

    #[test]
    fn who_wants_to_be_alone_is() {
        let admission = Arc::new(Admission::default());
        let alone = Wish { alone: true, ..wish(None, None) };
        let other = admission.try_admit(wish(None, None), || with(GIB)).expect("the first");
        assert!(admission.try_admit(alone, || with(GIB)).is_none());
        drop(other);
        let only = admission.try_admit(alone, || with(GIB)).expect("alone");
        assert!(admission.try_admit(wish(Some(1), None), || with(GIB)).is_none());
        drop(only);
    }

    #[tokio::test]
    async fn who_wants_to_be_alone_comes_before_those_that_keep_coming() {
        let admission = Arc::new(Admission::default());
        let alone = Wish { alone: true, ..wish(None, None) };
        let first = admission.try_admit(wish(None, None), || with(GIB)).expect("the first");
        let cancel = CancellationToken::new();
        let mut waiter = Box::pin(admission.admit(alone, || with(GIB), async || {}, &cancel));
        assert!(futures::poll!(&mut waiter).is_pending());
        assert!(admission.try_admit(wish(Some(1), None), || with(GIB)).is_none(), "one waits");
        drop(first);
        assert!(admission.try_admit(wish(Some(1), None), || with(GIB)).is_none(), "it is its turn");
        let only = waiter.await.expect("alone");
        drop(only);
        let second = admission.try_admit(wish(None, None), || with(GIB)).expect("nobody waits");
        let mut waiter = Box::pin(admission.admit(alone, || with(GIB), async || {}, &cancel));
        assert!(futures::poll!(&mut waiter).is_pending());
        drop(waiter);
        assert!(admission.try_admit(wish(Some(1), None), || with(GIB)).is_some(), "who waited has gone");
        drop(second);
    }

    #[tokio::test]
    async fn other_builds_are_held_back_for_a_while() {
        let alone = Wish { alone: true, ..wish(None, None) };
        let (own, other) = (wish(Some(1), None), Wish { group: 2, ..wish(Some(1), None) });
        for (held_back, is_let_in) in [(HELD_BACK, false), (Duration::ZERO, true)] {
            let admission = Arc::new(Admission { held_back, ..Admission::default() });
            let first = admission.try_admit(other, || with(GIB)).expect("the first");
            let cancel = CancellationToken::new();
            let mut waiter = Box::pin(admission.admit(alone, || with(GIB), async || {}, &cancel));
            assert!(futures::poll!(&mut waiter).is_pending());
            let second = admission.try_admit(other, || with(GIB));
            assert_eq!(second.is_some(), is_let_in);
            assert!(admission.try_admit(own, || with(GIB)).is_none(), "its own build waits for it");
            drop((first, second));
            let only = waiter.await.expect("alone");
            assert!(admission.try_admit(other, || with(GIB)).is_none(), "it is alone");
            drop(only);
            assert!(admission.try_admit(own, || with(GIB)).is_some(), "nobody waits");
        }
    }

    #[tokio::test]
    async fn who_waits_is_woken_or_cancelled() {
        let admission = Arc::new(Admission::default());
        let first = admission.try_admit(wish(Some(6), Some(10)), || with(GIB)).expect("the first");
        let (other, cancel) = (Arc::clone(&admission), CancellationToken::new());
        let never = cancel.clone();
        let waiter = tokio::spawn(async move {
            let told = std::sync::atomic::AtomicBool::new(false);
            let tell = async || told.store(true, Ordering::Relaxed);
            let second = other.admit(wish(Some(6), Some(10)), || with(GIB), tell, &never).await;
            (second.is_some(), told.load(Ordering::Relaxed))
        });
        tokio::task::yield_now().await;
        drop(first);
        assert_eq!(waiter.await.expect("ends"), (true, true));
        let held = admission.try_admit(wish(Some(6), Some(10)), || with(GIB)).expect("free again");
        cancel.cancel();
        let none = admission.admit(wish(Some(6), Some(10)), || with(GIB), async || {}, &cancel).await;
        assert!(none.is_none());
        drop(held);
    }

    #[test]
    fn files_of_the_kernel() {
        assert_eq!(available("MemTotal: 9 kB\nMemAvailable:   12 kB\n"), Some(12 << 10));
        assert_eq!(available(""), None);
        let text =
            "some avg10=1.25 avg60=0.00 avg300=0.00 total=1\nfull avg10=9.00 avg60=0 avg300=0 total=0\n";
        assert_eq!(pressure(text), Some(1.25));
    }

    #[test]
    fn peaks_are_remembered() {
        let folder = tempfile::tempdir().expect("a folder");
        let peaks = Peaks::in_directory(folder.path().join("peaks"));
        let vertex = Digest::sha256(b"vertex");
        assert_eq!(peaks.of(&vertex), None);
        peaks.remember(&vertex, 5);
        peaks.remember(&vertex, 7);
        assert_eq!(peaks.of(&vertex), Some(7));
        peaks.trim();
        assert_eq!(peaks.of(&vertex), Some(7));
    }
}
