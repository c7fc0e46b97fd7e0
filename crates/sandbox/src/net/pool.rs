//! Namespaces on a bridge, made ahead by a thread of their own so that who needs one never waits.
//!
//! The thread moves between namespaces; nobody else does. A namespace is given out once and goes with its guard. The bridge
//! goes with the last handle and the last namespace. Read [`BridgeNetwork::take`] first.

use std::collections::{BTreeSet, VecDeque};
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use super::address::HOSTS;
use super::bridge::Bridge;
use super::error::{AtPart as _, BridgeError, BridgePart};

/// Namespaces that wait to be taken, at least and at most; between them, one for each processor.
const READY: std::ops::RangeInclusive<usize> = 2..=16;

/// A bridge network of this process: a bridge, NAT, and namespaces that wait. Cheap to clone.
#[derive(Debug, Clone)]
pub struct BridgeNetwork(Arc<Running>);

/// What of the bridge a sandbox, or who reports on it, has to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BridgeFacts {
    /// The host's addresses as a sandbox reaches them: `host-gateway`. IPv4 first.
    pub host: Vec<IpAddr>,
    /// Why there is no IPv6; `None` when there is.
    pub without_v6: Option<&'static str>,
}

/// A namespace that nobody else has or had. Dropped, its addresses are free again.
#[derive(Debug)]
pub struct BridgeNamespace {
    namespace: OwnedFd,
    number: u32,
    running: Arc<Running>,
}

#[derive(Debug)]
struct Running {
    facts: BridgeFacts,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    ready: VecDeque<(u32, OwnedFd)>,
    /// Numbers of those that wait or are in use.
    used: BTreeSet<u32>,
    /// The number given last.
    last: u32,
    /// Why the last one could not be made, until somebody asked.
    failed: Option<BridgeError>,
    ended: bool,
}

impl BridgeNetwork {
    /// Connects a bridge to the network of the calling thread; returns when it is there. Namespaces follow.
    ///
    /// # Errors
    /// When this process may not, or the kernel cannot.
    pub fn start() -> Result<Self, BridgeError> {
        Self::start_in(Path::new(super::DIRECTORY))
    }

    /// As [`start`](Self::start); processes agree on networks by files in this directory.
    ///
    /// # Errors
    /// As there.
    pub fn start_in(directory: &Path) -> Result<Self, BridgeError> {
        if crate::overlay::in_user_namespace() {
            return Err(BridgeError::Unprivileged);
        }
        let shared = Arc::<Shared>::default();
        let (told, hear) = std::sync::mpsc::sync_channel(1);
        let (for_thread, directory): (_, PathBuf) = (Arc::clone(&shared), directory.to_owned());
        let thread = std::thread::Builder::new().name("stave-network".into()).spawn(move || {
            match Bridge::connect(&directory) {
                Ok(mut bridge) => {
                    let facts = BridgeFacts { host: bridge.gateways(), without_v6: bridge.without_v6() };
                    let _heard = told.send(Ok(facts));
                    for_thread.make(&mut bridge);
                }
                Err(error) => {
                    let _heard = told.send(Err(error));
                }
            }
        });
        let thread = thread.at(BridgePart::Thread)?;
        let gone = || std::io::Error::from(std::io::ErrorKind::BrokenPipe);
        let facts = hear.recv().map_err(|_| gone()).at(BridgePart::Thread)??;
        Ok(Self(Arc::new(Running { facts, shared, thread: Some(thread) })))
    }

    /// What is to know of it.
    #[must_use]
    pub fn facts(&self) -> &BridgeFacts {
        &self.0.facts
    }

    /// How many namespaces wait to be taken now.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.0.shared.lock().ready.len()
    }

    /// A namespace of one's own. Waits only when more are taken than were made.
    ///
    /// # Errors
    /// When none can be made.
    pub fn take(&self) -> Result<BridgeNamespace, BridgeError> {
        let shared = &self.0.shared;
        let mut state = shared.lock();
        loop {
            if let Some((number, namespace)) = state.ready.pop_front() {
                shared.changed.notify_all();
                return Ok(BridgeNamespace { namespace, number, running: Arc::clone(&self.0) });
            }
            if let Some(error) = state.failed.take() {
                shared.changed.notify_all();
                return Err(error);
            }
            state = shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes namespaces until the network ends.
    fn make(&self, bridge: &mut Bridge) {
        let wanted = std::thread::available_parallelism().map_or(2, usize::from);
        let wanted = wanted.clamp(*READY.start(), *READY.end());
        let mut state = self.lock();
        loop {
            if state.ended {
                return;
            }
            if state.ready.len() >= wanted || state.failed.is_some() {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let Some(number) = state.next_number() else {
                state.failed = Some(BridgeError::Full);
                self.changed.notify_all();
                continue;
            };
            drop(state);
            let made = bridge.add_namespace(number);
            state = self.lock();
            match made {
                Ok(namespace) => state.ready.push_back((number, namespace)),
                Err(error) => {
                    state.used.remove(&number);
                    state.failed = Some(error);
                }
            }
            self.changed.notify_all();
        }
    }
}

impl State {
    /// A number that nobody has, the longest unused first: what still comes for its last holder then finds nobody.
    fn next_number(&mut self) -> Option<u32> {
        let free =
            (1..=HOSTS).map(|step| (self.last + step) % HOSTS).find(|number| !self.used.contains(number))?;
        self.last = free;
        self.used.insert(free);
        Some(free)
    }
}

impl AsFd for BridgeNamespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.namespace.as_fd()
    }
}

impl Drop for BridgeNamespace {
    fn drop(&mut self) {
        self.running.shared.lock().used.remove(&self.number);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        {
            let mut state = self.shared.lock();
            state.ended = true;
            state.ready.clear();
        }
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            let _panicked = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_nobody_elses_and_rests_before_it_is_used_again() {
        let mut state = State::default();
        assert_eq!((state.next_number(), state.next_number()), (Some(1), Some(2)));
        state.used.remove(&1);
        assert_eq!(state.next_number(), Some(3));
        while let Some(number) = state.next_number() {
            assert!(number < HOSTS);
        }
        assert_eq!(state.used.len() as u32, HOSTS);
        state.used.remove(&7);
        assert_eq!(state.next_number(), Some(7));
    }
}
