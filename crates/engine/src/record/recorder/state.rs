//! What is known of a build so far, event by event.
//!
//! Owns the numbering of steps and their logs. Must not know where the record goes, but for the directory of logs.
//! Start with [`State::solve`].

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::path::PathBuf;

use stave_llb::{Definition, Vertex};
use stave_oci::Digest;
use stave_solver::{LogStream, Miss, SolveEvent};

use super::MAX_STEPS;
use crate::build::lines_of;
use crate::names::without_credentials;
use crate::record::history::{has_grown, log_path};
use crate::record::log::LogWriter;
use crate::record::{BuildRecord, StepKey, StepRecord, StepState};

#[derive(Debug)]
pub(super) struct State {
    pub(super) record: BuildRecord,
    pub(super) files: Files,
    pub(super) places: HashMap<Key, usize>,
    pub(super) vertices: HashMap<Digest, Known>,
    pub(super) logs: HashMap<Digest, LogWriter>,
    /// Whether it was noted that the build takes more than a small record.
    pub(super) has_grown: bool,
}

/// Where the record goes.
#[derive(Debug)]
pub(super) enum Files {
    /// Locked: this process is alive.
    Open { directory: PathBuf, _lock: File },
    /// The disk refused; nothing is written any more.
    None,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Key {
    Step(u64),
    Vertex(Digest),
}

#[derive(Debug)]
pub(super) struct Known {
    pub(super) name: String,
    pub(super) lines: Option<(usize, usize)>,
    pub(super) inputs: Vec<Digest>,
}

impl State {
    pub(super) fn learn(&mut self, definition: &Definition) {
        for vertex in definition.vertices() {
            let known = Known {
                name: name_of(vertex),
                lines: lines_of(definition, &vertex.digest),
                inputs: vertex.inputs.iter().map(|edge| edge.vertex.clone()).collect(),
            };
            self.vertices.insert(vertex.digest.clone(), known);
        }
    }

    pub(super) fn solve(&mut self, event: &SolveEvent, now: u64) {
        let vertex = event.vertex().clone();
        let key = Key::Vertex(vertex.clone());
        let Some(step) = self.vertex(&vertex, now) else { return };
        match event {
            SolveEvent::Started { .. } => step.started = Some(now),
            SolveEvent::Cached { hit, key: found, .. } => {
                (step.state, step.ended) = ((*hit).into(), Some(now));
                if step.keys.is_empty() {
                    let key = |key| StepKey { key, kind: None, preimage: None };
                    step.keys.extend(found.map(key));
                }
            }
            SolveEvent::Missed { miss, .. } => step.keys = step_keys(miss),
            SolveEvent::Joined { .. } => step.state = StepState::Shared,
            SolveEvent::Used { usage, .. } => {
                step.peak_memory = step.peak_memory.max(Some(usage.peak_memory));
            }
            SolveEvent::Completed { .. } => self.end(&key, StepState::Ran, now),
            SolveEvent::Cancelled { .. } => self.end(&key, StepState::Cancelled, now),
            SolveEvent::Failed { message, .. } => {
                self.end(&key, StepState::Failed, now);
                self.fail(&key, message);
            }
            SolveEvent::Log { .. }
            | SolveEvent::LogDropped { .. }
            | SolveEvent::Progress { .. }
            | SolveEvent::Phase { .. } => return,
        }
        if !matches!(
            event,
            SolveEvent::Started { .. }
                | SolveEvent::Missed { .. }
                | SolveEvent::Joined { .. }
                | SolveEvent::Used { .. }
        ) {
            self.end_log(&vertex);
        }
    }

    /// The step of a vertex; `None` when there are too many.
    pub(super) fn vertex(&mut self, vertex: &Digest, now: u64) -> Option<&mut StepRecord> {
        let name = self.vertices.get(vertex).map_or_else(|| vertex.to_string(), |known| known.name.clone());
        self.place(Key::Vertex(vertex.clone()), now, &name)
    }

    pub(super) fn place(&mut self, key: Key, _now: u64, name: &str) -> Option<&mut StepRecord> {
        let next = self.record.steps.len();
        let vertex = match &key {
            Key::Vertex(vertex) => Some(vertex.clone()),
            Key::Step(_) => None,
        };
        let place = *self.places.entry(key).or_insert(next);
        if place == next {
            if next == MAX_STEPS {
                return None;
            }
            let known = vertex.as_ref().and_then(|vertex| self.vertices.get(vertex));
            self.record.steps.push(StepRecord {
                number: next + 1,
                name: name.to_owned(),
                lines: known.and_then(|known| known.lines),
                inputs: known.map(|known| known.inputs.clone()).unwrap_or_default(),
                vertex,
                state: StepState::Running,
                started: None,
                ended: None,
                keys: Vec::new(),
                reason: None,
                secrets: BTreeMap::new(),
                error: None,
                peak_memory: None,
                log_bytes: None,
            });
        }
        self.record.steps.get_mut(place)
    }

    pub(super) fn at(&mut self, key: &Key) -> Option<&mut StepRecord> {
        let place = *self.places.get(key)?;
        self.record.steps.get_mut(place)
    }

    pub(super) fn end(&mut self, key: &Key, state: StepState, now: u64) {
        if let Some(step) = self.at(key) {
            let joined = step.state == StepState::Shared && state == StepState::Ran;
            step.state = if joined { StepState::Shared } else { state };
            step.ended = Some(now);
        }
    }

    pub(super) fn fail(&mut self, key: &Key, message: &str) {
        if let Some(step) = self.at(key) {
            step.error = Some(message.to_owned());
        }
    }

    pub(super) fn log(&mut self, vertex: &Digest, at: u64, stream: LogStream, bytes: &[u8]) {
        let Files::Open { directory, .. } = &self.files else { return };
        let directory = directory.clone();
        if !self.logs.contains_key(vertex) {
            if !std::mem::replace(&mut self.has_grown, true) {
                has_grown(&directory);
            }
            let Some(number) = self.vertex(vertex, at).map(|step| step.number) else { return };
            match LogWriter::create(&log_path(&directory, number)) {
                Ok(writer) => drop(self.logs.insert(vertex.clone(), writer)),
                Err(error) => return tracing::warn!(%error, "a step's log is not kept"),
            }
        }
        if let Some(writer) = self.logs.get_mut(vertex)
            && let Err(error) = writer.write(at, stream, bytes)
        {
            tracing::warn!(%error, "a step's log is not whole");
        }
    }

    pub(super) fn end_log(&mut self, vertex: &Digest) {
        let Some(writer) = self.logs.remove(vertex) else { return };
        match writer.finish() {
            Ok(bytes) => {
                if let Some(step) = self.at(&Key::Vertex(vertex.clone())) {
                    step.log_bytes = Some(bytes);
                }
            }
            Err(error) => tracing::warn!(%error, "a step's log is not whole"),
        }
    }
}

fn step_keys(miss: &Miss) -> Vec<StepKey> {
    let key = |entry: &stave_cache::KeyEntry| StepKey {
        key: entry.key,
        kind: Some(entry.preimage.kind),
        preimage: Some(entry.preimage.clone()),
    };
    miss.entries.iter().map(key).collect()
}

fn name_of(vertex: &Vertex) -> String {
    vertex.name().map_or_else(
        || vertex.digest.to_string(),
        |name| without_credentials(&name.replace('\n', " ")).into_owned(),
    )
}
