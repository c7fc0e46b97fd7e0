//! How many operations run at once, and who is next when all permits are taken.
//!
//! Permits go round: among the lanes that wait, each is served once before any is served again, and within a lane who
//! came first comes first. One solver has one lane; solvers that share permits share the machine by lanes, however
//! many operations each has. Must not know what a lane stands for. Start with [`Permits`].

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::oneshot;

use crate::solver::Limits;

/// One who shares permits with others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Lane(pub u64);

/// The permits of all kinds of operations, shared by the solvers that are made with them.
#[derive(Debug)]
pub struct Permits {
    pub(crate) execs: Turns,
    pub(crate) sources: Turns,
    pub(crate) files: Turns,
    pub(crate) digests: Turns,
    /// Whether the first three are the same.
    is_one: bool,
}

impl Permits {
    /// So many of each.
    pub fn new(limits: Limits) -> Arc<Self> {
        let digests = Turns::new(limits.digests);
        let own = Self {
            execs: Turns::new(limits.execs),
            sources: Turns::new(limits.sources),
            files: Turns::new(limits.files),
            digests,
            is_one: false,
        };
        Arc::new(match limits.steps {
            None => own,
            Some(count) => {
                let steps = Turns::new(count.get());
                let [execs, sources, files] = [steps.clone(), steps.clone(), steps];
                Self { execs, sources, files, digests: own.digests, is_one: true }
            }
        })
    }

    /// Operations that wait for their permit now, of all kinds and lanes.
    pub fn waiting(&self) -> usize {
        self.kinds().into_iter().flatten().map(Turns::waiting).sum()
    }

    /// Processes, sources, file operations and digests that have a permit now; where the first three are bounded
    /// together, all of them are the first.
    pub fn taken(&self) -> [usize; 4] {
        self.kinds().map(|turns| turns.map_or(0, Turns::taken))
    }

    /// Each kind that is one by itself.
    fn kinds(&self) -> [Option<&Turns>; 4] {
        let own = |turns| (!self.is_one).then_some(turns);
        [Some(&self.execs), own(&self.sources), own(&self.files), Some(&self.digests)]
    }
}

/// The permits of one kind.
#[derive(Debug, Clone)]
pub(crate) struct Turns(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    count: usize,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    free: usize,
    /// Lanes in which somebody waits, the next to be served first.
    lanes: VecDeque<(Lane, VecDeque<oneshot::Sender<Permit>>)>,
}

/// The right to run; given to who is next when dropped.
#[derive(Debug)]
pub(crate) struct Permit(Option<Arc<Shared>>);

impl Turns {
    fn new(count: usize) -> Self {
        let count = count.max(1);
        Self(Arc::new(Shared { count, state: Mutex::new(State { free: count, lanes: VecDeque::new() }) }))
    }

    /// Waits for a permit. Giving the future up gives the place up.
    pub(crate) async fn acquire(&self, lane: Lane) -> Permit {
        let turn = {
            let mut state = self.0.lock();
            if state.free > 0 {
                state.free -= 1;
                return Permit(Some(Arc::clone(&self.0)));
            }
            let (sender, turn) = oneshot::channel();
            match state.lanes.iter_mut().find(|(waiting, _)| *waiting == lane) {
                Some((_, queue)) => queue.push_back(sender),
                None => state.lanes.push_back((lane, VecDeque::from([sender]))),
            }
            turn
        };
        match turn.await {
            Ok(permit) => permit,
            // Senders are dropped with the permits themselves, which this borrows.
            Err(_) => Permit(None),
        }
    }

    fn waiting(&self) -> usize {
        let state = self.0.lock();
        let queues = state.lanes.iter().map(|(_, queue)| queue);
        queues.map(|queue| queue.iter().filter(|turn| !turn.is_closed()).count()).sum()
    }

    fn taken(&self) -> usize {
        self.0.count - self.0.lock().free
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Who is next, among those that still wait; its lane goes to the end.
    fn next(&mut self) -> Option<oneshot::Sender<Permit>> {
        while let Some((lane, mut queue)) = self.lanes.pop_front() {
            let next = std::iter::from_fn(|| queue.pop_front()).find(|turn| !turn.is_closed());
            if !queue.is_empty() {
                self.lanes.push_back((lane, queue));
            }
            if next.is_some() {
                return next;
            }
        }
        None
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let Some(shared) = self.0.take() else { return };
        loop {
            let next = {
                let mut state = shared.lock();
                match state.next() {
                    Some(next) => next,
                    None => {
                        state.free += 1;
                        return;
                    }
                }
            };
            match next.send(Self(Some(Arc::clone(&shared)))) {
                Ok(()) => return,
                // It was given up this instant: the permit comes back whole and goes on to the next.
                Err(mut back) => drop(back.0.take()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
    use std::pin::pin;

    use super::*;

    const A: Lane = Lane(1);
    const B: Lane = Lane(2);

    #[tokio::test]
    async fn lanes_are_served_in_turn_however_many_wait_in_one() {
        let turns = Turns::new(1);
        let mut held = Some(turns.acquire(A).await);
        let (told, mut order) = tokio::sync::mpsc::unbounded_channel();
        for (lane, name) in [(A, "a1"), (A, "a2"), (A, "a3"), (B, "b1"), (B, "b2")] {
            let (waiting, told) = (turns.clone(), told.clone());
            tokio::spawn(async move {
                let permit = waiting.acquire(lane).await;
                told.send((name, permit)).ok();
            });
            tokio::task::yield_now().await;
        }
        assert_eq!(turns.waiting(), 5);
        let mut names = Vec::new();
        for _ in 0..5 {
            drop(held.take());
            let (name, permit) = order.recv().await.expect("one is let in");
            names.push(name);
            held = Some(permit);
        }
        assert_eq!(names, ["a1", "b1", "a2", "b2", "a3"]);
        assert_eq!(turns.taken(), 1);
        drop(held);
        assert_eq!(turns.taken(), 0);
    }

    #[tokio::test]
    async fn steps_of_every_kind_may_be_bounded_together() {
        let limits = Limits { steps: std::num::NonZeroUsize::new(2), ..Limits::for_processors(8) };
        let permits = Permits::new(limits);
        let (_exec, _source) = (permits.execs.acquire(A).await, permits.sources.acquire(A).await);
        let mut file = pin!(permits.files.acquire(B));
        assert!(file.as_mut().now_or_never().is_none());
        assert_eq!((permits.taken(), permits.waiting()), ([2, 0, 0, 0], 1));
        let _digest = permits.digests.acquire(A).await;
        assert_eq!(permits.taken(), [2, 0, 0, 1]);
    }

    #[tokio::test]
    async fn who_gives_up_is_passed_over() {
        let turns = Turns::new(1);
        let held = turns.acquire(A).await;
        {
            let mut given_up = pin!(turns.acquire(B));
            assert!(given_up.as_mut().now_or_never().is_none());
        }
        let mut next = pin!(turns.acquire(A));
        assert!(next.as_mut().now_or_never().is_none());
        drop(held);
        drop(next.await);
        assert_eq!((turns.taken(), turns.waiting()), (0, 0));
    }
}
