//! The bounded channel from a build to its watcher.
//!
//! Owns the queue, its limits and what gives way when it is full. Start with [`event_channel`].

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use stave_oci::Digest;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use super::{
    LOG_BUFFER_LIMIT, LOG_PATIENCE, LogStream, LogTap, PROGRESS_LIMIT, SolveEvent, StepPhase, StepUsage,
};
use crate::solver::JobId;

/// Makes a channel for one job's events.
pub fn event_channel() -> (EventSender, EventReceiver) {
    channel(None)
}

/// The same, with all log bytes going to `tap` as well.
pub fn event_channel_with(tap: LogTap) -> (EventSender, EventReceiver) {
    channel(Some(tap))
}

fn channel(tap: Option<LogTap>) -> (EventSender, EventReceiver) {
    let queue = Arc::new(Queue::default());
    (EventSender { open: Arc::new(Open { queue: Arc::clone(&queue), tap }) }, EventReceiver { queue })
}

/// The build's end. Clones write to the same queue; the last one dropped ends it.
#[derive(Debug, Clone)]
pub struct EventSender {
    open: Arc<Open>,
}

/// The watcher's end. Dropping it makes all sends do nothing.
#[derive(Debug)]
pub struct EventReceiver {
    queue: Arc<Queue>,
}

#[derive(Debug)]
struct Open {
    queue: Arc<Queue>,
    tap: Option<LogTap>,
}

#[derive(Debug, Default)]
struct Queue {
    state: Mutex<State>,
    readable: Notify,
    room: Notify,
}

#[derive(Debug, Default)]
struct State {
    events: VecDeque<SolveEvent>,
    /// How many events were ever taken: the number of the one in front.
    taken: u64,
    /// Number of the waiting event of each progress item.
    progress: HashMap<(Digest, String), u64>,
    log_bytes: usize,
    dropped: BTreeMap<Digest, u64>,
    reader: Reader,
    closed: bool,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum Reader {
    #[default]
    Reading,
    /// Let a writer wait in vain; writers do not wait again until it takes something.
    Stalled,
    Gone,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.queue.lock().closed = true;
        self.queue.readable.notify_one();
    }
}

impl Drop for EventReceiver {
    fn drop(&mut self) {
        let mut state = self.queue.lock();
        state.reader = Reader::Gone;
        state.events.clear();
        state.progress.clear();
        drop(state);
        self.queue.room.notify_waiters();
    }
}

impl EventReceiver {
    /// The next event; `None` when the job is over and all were taken. Safe to drop while waiting.
    pub async fn recv(&mut self) -> Option<SolveEvent> {
        loop {
            let readable = self.queue.readable.notified();
            let (event, closed) = {
                let mut state = self.queue.lock();
                (state.take(), state.closed)
            };
            if event.is_some() {
                self.queue.room.notify_waiters();
                return event;
            }
            if closed {
                return None;
            }
            readable.await;
        }
    }

    /// The next event if one is waiting.
    pub fn try_recv(&mut self) -> Option<SolveEvent> {
        let event = self.queue.lock().take();
        if event.is_some() {
            self.queue.room.notify_waiters();
        }
        event
    }
}

impl EventSender {
    /// Sends what happened to a vertex; never waits, never drops.
    pub(crate) fn send(&self, event: SolveEvent) {
        let queue = &self.open.queue;
        let mut state = queue.lock();
        if state.reader != Reader::Gone {
            state.flush_dropped(event.vertex());
            state.events.push_back(event);
        }
        drop(state);
        queue.readable.notify_one();
    }

    fn progress(&self, vertex: &Digest, id: &str, current: u64, total: Option<u64>) {
        let queue = &self.open.queue;
        queue.lock().push_progress(vertex, id, current, total);
        queue.readable.notify_one();
    }

    async fn log(&self, vertex: &Digest, stream: LogStream, bytes: &[u8]) {
        if let Some(tap) = &self.open.tap {
            tap.log(vertex, stream, bytes);
        }
        let queue = &self.open.queue;
        let mut deadline = None;
        loop {
            let room = queue.room.notified();
            tokio::pin!(room);
            room.as_mut().enable();
            if queue.lock().push_log(vertex, stream, bytes) {
                queue.readable.notify_one();
                return;
            }
            let until = *deadline.get_or_insert_with(|| Instant::now() + LOG_PATIENCE);
            if timeout_at(until, room).await.is_err() {
                queue.lock().give_up(vertex, bytes.len());
                return;
            }
        }
    }
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn take(&mut self) -> Option<SolveEvent> {
        let event = self.events.pop_front()?;
        self.taken += 1;
        if self.reader == Reader::Stalled {
            self.reader = Reader::Reading;
        }
        match &event {
            SolveEvent::Log { bytes, .. } => self.log_bytes -= bytes.len(),
            SolveEvent::Progress { vertex, id, .. } => {
                self.progress.remove(&(vertex.clone(), id.clone()));
            }
            _ => {}
        }
        Some(event)
    }

    fn push_progress(&mut self, vertex: &Digest, id: &str, current: u64, total: Option<u64>) {
        if self.reader == Reader::Gone {
            return;
        }
        let event = SolveEvent::Progress { vertex: vertex.clone(), id: id.to_owned(), current, total };
        let item = (vertex.clone(), id.to_owned());
        let waiting = self.progress.get(&item).and_then(|number| usize::try_from(number - self.taken).ok());
        match waiting.and_then(|position| self.events.get_mut(position)) {
            Some(slot) => *slot = event,
            None if self.progress.len() < PROGRESS_LIMIT => {
                self.progress.insert(item, self.taken + self.events.len() as u64);
                self.events.push_back(event);
            }
            None => {}
        }
    }

    /// Whether the bytes are dealt with: kept, or dropped because nobody reads.
    fn push_log(&mut self, vertex: &Digest, stream: LogStream, bytes: &[u8]) -> bool {
        match self.reader {
            Reader::Gone => true,
            _ if self.log_bytes == 0 || self.log_bytes + bytes.len() <= LOG_BUFFER_LIMIT => {
                self.flush_dropped(vertex);
                self.log_bytes += bytes.len();
                self.events.push_back(SolveEvent::Log {
                    vertex: vertex.clone(),
                    stream,
                    bytes: bytes.to_vec(),
                });
                true
            }
            Reader::Stalled => {
                self.give_up(vertex, bytes.len());
                true
            }
            Reader::Reading => false,
        }
    }

    fn give_up(&mut self, vertex: &Digest, length: usize) {
        if self.reader == Reader::Reading {
            self.reader = Reader::Stalled;
        }
        *self.dropped.entry(vertex.clone()).or_default() += length as u64;
    }

    fn flush_dropped(&mut self, vertex: &Digest) {
        if let Some(bytes) = self.dropped.remove(vertex) {
            self.events.push_back(SolveEvent::LogDropped { vertex: vertex.clone(), bytes });
        }
    }
}

/// Where a vertex's events go: to every job that has the vertex.
#[derive(Debug)]
pub(crate) struct Broadcast {
    vertex: Digest,
    state: Mutex<BroadcastState>,
}

#[derive(Debug, Default)]
struct BroadcastState {
    sinks: Vec<(JobId, EventSender)>,
    started: Option<SolveEvent>,
}

impl Broadcast {
    pub(crate) fn new(vertex: Digest) -> Self {
        Self { vertex, state: Mutex::default() }
    }

    /// Adds a job; it hears at once of a run that is under way.
    pub(crate) fn attach(&self, job: JobId, sender: EventSender) {
        let mut state = self.lock();
        if let Some(started) = &state.started {
            sender.send(SolveEvent::Joined { vertex: self.vertex.clone() });
            sender.send(started.clone());
        }
        state.sinks.push((job, sender));
    }

    /// Removes a job from a vertex that stays for others; if it runs on, for this job it was cancelled.
    pub(crate) fn detach(&self, job: JobId) {
        let mut state = self.lock();
        let running = state.started.is_some();
        for (_, sender) in state.sinks.iter().filter(|(id, _)| running && *id == job) {
            sender.send(SolveEvent::Cancelled { vertex: self.vertex.clone() });
        }
        state.sinks.retain(|(id, _)| *id != job);
    }

    pub(crate) fn send(&self, event: &SolveEvent) {
        let mut state = self.lock();
        match event {
            SolveEvent::Started { .. } => state.started = Some(event.clone()),
            SolveEvent::Completed { .. } | SolveEvent::Failed { .. } | SolveEvent::Cancelled { .. } => {
                state.started = None;
            }
            _ => {}
        }
        for (_, sender) in &state.sinks {
            sender.send(event.clone());
        }
    }

    fn sinks(&self) -> Vec<EventSender> {
        self.lock().sinks.iter().map(|(_, sender)| sender.clone()).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BroadcastState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An operation's way to tell how it goes. Works, and does nothing, when nobody listens.
#[derive(Debug, Clone)]
pub struct EventSubscription {
    broadcast: Arc<Broadcast>,
}

impl EventSubscription {
    pub(crate) fn new(broadcast: Arc<Broadcast>) -> Self {
        Self { broadcast }
    }

    /// A subscription nobody listens to, for a worker used without a solver.
    pub fn silent(vertex: Digest) -> Self {
        Self::new(Arc::new(Broadcast::new(vertex)))
    }

    /// Passes on output. Waits a moment for a slow reader, then drops.
    pub async fn log(&self, stream: LogStream, bytes: &[u8]) {
        for sink in self.broadcast.sinks() {
            sink.log(&self.broadcast.vertex, stream, bytes).await;
        }
    }

    /// Says what a process of the operation used.
    pub fn used(&self, usage: StepUsage) {
        self.broadcast.send(&SolveEvent::Used { vertex: self.broadcast.vertex.clone(), usage });
    }

    /// Says that a phase that began at `start` ends now.
    pub fn phase(&self, phase: StepPhase, start: std::time::Instant) {
        let (vertex, duration) = (self.broadcast.vertex.clone(), start.elapsed());
        self.broadcast.send(&SolveEvent::Phase { vertex, phase, duration });
    }

    /// Says how far a part of the operation is; replaces what was said before and not yet read.
    pub fn progress(&self, id: &str, current: u64, total: Option<u64>) {
        for sink in self.broadcast.sinks() {
            sink.progress(&self.broadcast.vertex, id, current, total);
        }
    }
}

#[cfg(test)]
mod tests;
