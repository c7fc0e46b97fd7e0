//! What is known about every step: the state both looks are drawn from.
//!
//! Pure: time comes in as "since the start". Must not know how anything looks.
//!
//! Read [`Tracker`] and [`Item`] first.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use stave_oci::Digest;
use stave_solver::SolveEvent;

use super::sanitise::{Lines, clean};
use super::text;

/// Log lines kept of each step, for the live view and for the report of a failure.
pub(super) const TAIL: usize = 10;
/// Least time between two plain lines about one transfer.
const REPORT_EVERY: Duration = Duration::from_secs(5);
/// Shortest time worth printing behind a part.
const NOTABLE: Duration = Duration::from_millis(10);

/// What a step is known by.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Key {
    Step(u64),
    Vertex(Digest),
}

/// Where a step is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum State {
    Running,
    Cached,
    Done(Duration),
    Failed(String),
    Cancelled,
}

/// A transfer or other countable part of a step.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) id: String,
    pub(super) current: u64,
    pub(super) total: Option<u64>,
    pub(super) started: Duration,
    pub(super) ended: Option<Duration>,
    reported: Duration,
}

/// One step that began.
#[derive(Debug)]
pub(super) struct Item {
    pub(super) name: String,
    pub(super) state: State,
    pub(super) started: Duration,
    pub(super) parts: Vec<Part>,
    /// The last lines of the log, with their times.
    pub(super) tail: VecDeque<String>,
    /// Lines not printed yet (plain look only).
    pub(super) pending: Vec<String>,
    /// Since when the oldest of `pending` waits.
    pub(super) pending_since: Duration,
    log: Lines,
}

/// All steps, in the order in which they began: an item's number is its place, from 1.
#[derive(Debug)]
pub(super) struct Tracker {
    pub(super) items: Vec<Item>,
    places: HashMap<Key, usize>,
    names: HashMap<Digest, String>,
    steps: usize,
    keep_pending: bool,
}

impl Item {
    pub(super) fn is_running(&self) -> bool {
        self.state == State::Running
    }

    /// How long it has run, or ran.
    pub(super) fn elapsed(&self, now: Duration) -> Duration {
        match self.state {
            State::Done(duration) => duration,
            State::Running => now.saturating_sub(self.started),
            State::Cached | State::Failed(_) | State::Cancelled => Duration::ZERO,
        }
    }
}

impl Tracker {
    /// `keep_pending`: whether someone will print the lines of each item, and take them away.
    pub(super) fn new(keep_pending: bool) -> Self {
        Self { items: Vec::new(), places: HashMap::new(), names: HashMap::new(), steps: 0, keep_pending }
    }

    /// Learns what vertices are called.
    pub(super) fn name(&mut self, names: impl Iterator<Item = (Digest, String)>) {
        // Names come from Dockerfiles, and heredocs have lines.
        self.names.extend(names.map(|(vertex, name)| (vertex, clean(&name.replace('\n', " ")))));
    }

    /// Steps that are over, and steps there are as far as is known.
    pub(super) fn counts(&self) -> (usize, usize) {
        let over = self.items.iter().filter(|item| !item.is_running()).count();
        (over, (self.names.len() + self.steps).max(self.items.len()))
    }

    pub(super) fn solve(&mut self, event: SolveEvent, now: Duration) {
        let name = self.names.get(event.vertex()).cloned();
        let unnamed = || event.vertex().to_string();
        let place = self.place(Key::Vertex(event.vertex().clone()), now, || name.unwrap_or_else(unnamed));
        match event {
            SolveEvent::Started { .. }
            | SolveEvent::Missed { .. }
            | SolveEvent::Joined { .. }
            | SolveEvent::Used { .. }
            | SolveEvent::Phase { .. } => {}
            SolveEvent::Cached { .. } => self.end(place, State::Cached),
            SolveEvent::Log { bytes, .. } => {
                let lines = self.items[place].log.push(&bytes);
                for line in lines {
                    self.log(place, &line, now);
                }
            }
            SolveEvent::LogDropped { bytes, .. } => {
                let lost = format!(
                    "[output clipped: {} were printed faster than they could be shown]",
                    text::bytes(bytes)
                );
                self.log(place, &lost, now);
            }
            SolveEvent::Progress { id, current, total, .. } => {
                self.progress(place, &id, (current, total), now);
            }
            SolveEvent::Completed { duration, .. } => {
                self.end_log(place, now);
                self.end(place, State::Done(duration));
            }
            SolveEvent::Failed { message, .. } => {
                self.end_log(place, now);
                self.end(place, State::Failed(clean(&message)));
            }
            SolveEvent::Cancelled { .. } => {
                self.end_log(place, now);
                self.end(place, State::Cancelled);
            }
        }
    }

    /// A line about a vertex that it did not write itself.
    pub(super) fn note(&mut self, vertex: &Digest, text: &str, now: Duration) {
        let name = self.names.get(vertex).cloned();
        let place =
            self.place(Key::Vertex(vertex.clone()), now, || name.unwrap_or_else(|| vertex.to_string()));
        self.print(place, clean(text), now);
    }

    pub(super) fn step_started(&mut self, step: u64, name: String, now: Duration) {
        self.steps += 1;
        self.place(Key::Step(step), now, || clean(&name));
    }

    pub(super) fn step_progress(&mut self, step: u64, id: &str, amount: (u64, Option<u64>), now: Duration) {
        if let Some(place) = self.places.get(&Key::Step(step)) {
            self.progress(*place, id, amount, now);
        }
    }

    /// A part of a step is over.
    pub(super) fn step_part(&mut self, step: u64, part: &str, now: Duration) {
        let Some(place) = self.places.get(&Key::Step(step)).copied() else { return };
        let id = clean(part);
        let known = self.items[place].parts.iter_mut().find(|known| known.id == id);
        let line = match known {
            Some(known) if known.ended.is_some() => return,
            Some(known) => {
                known.ended = Some(now);
                part_line(known)
            }
            None => {
                let line = format!("{id} done");
                let ended = Some(now);
                self.items[place].parts.push(Part {
                    id,
                    current: 0,
                    total: None,
                    started: now,
                    ended,
                    reported: now,
                });
                line
            }
        };
        self.print(place, line, now);
    }

    pub(super) fn step_ended(&mut self, step: u64, outcome: Result<Duration, String>) {
        let Some(place) = self.places.get(&Key::Step(step)).copied() else { return };
        self.end(
            place,
            match outcome {
                Ok(duration) => State::Done(duration),
                Err(message) if message == "cancelled" => State::Cancelled,
                Err(message) => State::Failed(clean(&message)),
            },
        );
    }

    /// The item of `key`; what was not announced begins now.
    fn place(&mut self, key: Key, now: Duration, name: impl FnOnce() -> String) -> usize {
        let next = self.items.len();
        let place = *self.places.entry(key).or_insert(next);
        if place == next {
            self.items.push(Item {
                name: name(),
                state: State::Running,
                started: now,
                parts: Vec::new(),
                tail: VecDeque::new(),
                pending: Vec::new(),
                pending_since: now,
                log: Lines::default(),
            });
        }
        place
    }

    fn end(&mut self, place: usize, state: State) {
        let item = &mut self.items[place];
        // What ended stays ended: a second end would print twice.
        if item.is_running() {
            item.state = state;
        }
    }

    fn end_log(&mut self, place: usize, now: Duration) {
        if let Some(line) = self.items[place].log.finish() {
            self.log(place, &line, now);
        }
    }

    fn log(&mut self, place: usize, line: &str, now: Duration) {
        let item = &mut self.items[place];
        let line = format!("{} {line}", text::stamp(now.saturating_sub(item.started)));
        if item.tail.len() == TAIL {
            item.tail.pop_front();
        }
        item.tail.push_back(line.clone());
        self.print(place, line, now);
    }

    fn progress(&mut self, place: usize, id: &str, (current, total): (u64, Option<u64>), now: Duration) {
        let id = clean(id);
        let parts = &mut self.items[place].parts;
        let known = parts.iter().position(|part| part.id == id);
        let index = known.unwrap_or(parts.len());
        if known.is_none() {
            parts.push(Part { id, current, total, started: now, ended: None, reported: now });
        }
        let part = &mut parts[index];
        (part.current, part.total) = (current, total.or(part.total));
        let complete = part.total.is_some_and(|total| total > 0 && current >= total);
        if part.ended.is_some() || !(complete || known.is_none() || now >= part.reported + REPORT_EVERY) {
            return;
        }
        if complete {
            part.ended = Some(now);
        }
        part.reported = now;
        let line = part_line(part);
        self.print(place, line, now);
    }

    fn print(&mut self, place: usize, line: String, now: Duration) {
        let item = &mut self.items[place];
        if !self.keep_pending {
            return;
        }
        if item.pending.is_empty() {
            item.pending_since = now;
        }
        item.pending.push(line);
    }
}

/// A part in BuildKit's plain form: `sha256:… 1.00MB / 2.00MB 0.4s done`.
fn part_line(part: &Part) -> String {
    let mut line = part.id.clone();
    if part.current > 0 || part.total.is_some() {
        line.push(' ');
        line.push_str(&text::amount(part.current, part.total));
    }
    let elapsed = part.ended.unwrap_or(part.reported).saturating_sub(part.started);
    if elapsed > NOTABLE {
        line.push(' ');
        line.push_str(&text::seconds(elapsed));
    }
    if part.ended.is_some() {
        line.push_str(" done");
    }
    line
}
