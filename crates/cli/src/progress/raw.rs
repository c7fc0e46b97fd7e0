//! Progress for programs: BuildKit's `SolveStatus` as JSON, one object a line, field for field.
//!
//! Owns the JSON. What is no vertex of the graph (loading the Dockerfile, exporting) has a digest made of its name.
//! Read [`Raw::event`] first.

use std::collections::HashMap;
use std::io::Write;
use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use stave_engine::{EngineEvent, without_credentials};
use stave_frontend_dockerfile::{Diagnostic, Source};
use stave_oci::Digest;
use stave_solver::{LogStream, SolveEvent};

/// The printer.
#[derive(Debug)]
pub(super) struct Raw<W> {
    output: W,
    source: Option<Source>,
    vertexes: HashMap<String, Vertex>,
    /// Digests of steps outside of the graph, by number.
    steps: HashMap<u64, String>,
    parts: HashMap<(String, String), String>,
}

#[derive(Debug, Default, Serialize)]
struct Status {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    vertexes: Vec<Vertex>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    statuses: Vec<Part>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    logs: Vec<Log>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<Warning>,
}

#[derive(Debug, Clone, Default, Serialize)]
struct Vertex {
    digest: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    inputs: Vec<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    started: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    completed: Option<String>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    cached: bool,
    #[serde(skip_serializing_if = "String::is_empty")]
    error: String,
}

#[derive(Debug, Serialize)]
struct Part {
    id: String,
    vertex: String,
    #[serde(skip_serializing_if = "is_zero")]
    total: u64,
    current: u64,
    timestamp: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    started: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    completed: Option<String>,
}

#[derive(Debug, Serialize)]
struct Log {
    vertex: String,
    stream: u8,
    data: String,
    timestamp: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Warning {
    level: u8,
    short: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    detail: Vec<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    url: String,
    source_info: SourceInfo,
    range: Vec<Range>,
}

impl Warning {
    /// What a check found, in the form of BuildKit's clients.
    pub(crate) fn new(found: &Diagnostic, source: &Source) -> Self {
        let line = |offset| source.position(offset).line;
        let (name, detail, url) = match found.rule() {
            Some(rule) => (
                format!("{}: ", rule.name()),
                vec![STANDARD.encode(rule.description())],
                rule.url().unwrap_or_default().to_string(),
            ),
            None => (String::new(), Vec::new(), String::new()),
        };
        let position = |offset| Position { line: line(offset) };
        Self {
            level: 1,
            short: STANDARD.encode(format!("{name}{found} (line {})", line(found.span.start))),
            detail,
            url,
            source_info: SourceInfo {
                filename: source.name.clone(),
                data: STANDARD.encode(&source.text),
                language: "Dockerfile",
            },
            range: vec![Range { start: position(found.span.start), end: position(found.span.end) }],
        }
    }
}

#[derive(Debug, Serialize)]
struct SourceInfo {
    filename: String,
    data: String,
    language: &'static str,
}

#[derive(Debug, Serialize)]
struct Range {
    start: Position,
    end: Position,
}

#[derive(Debug, Serialize)]
struct Position {
    line: u32,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the form that serde asks for")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl<W: Write> Raw<W> {
    pub(super) fn new(output: W, source: Option<Source>) -> Self {
        Self { output, source, vertexes: HashMap::new(), steps: HashMap::new(), parts: HashMap::new() }
    }

    /// Prints what happened.
    pub(super) fn event(&mut self, event: &EngineEvent, now: SystemTime) {
        let time = stamp(now);
        match event {
            EngineEvent::Graph(definition) => {
                let mut vertexes = Vec::new();
                for vertex in definition.vertices() {
                    let digest = vertex.digest.to_string();
                    let vertex = Vertex {
                        digest: digest.clone(),
                        inputs: vertex.inputs.iter().map(|edge| edge.vertex.to_string()).collect(),
                        name: vertex
                            .name()
                            .map_or_else(|| digest.clone(), |name| without_credentials(name).into_owned()),
                        ..Vertex::default()
                    };
                    if self.vertexes.insert(digest, vertex.clone()).is_none() {
                        vertexes.push(vertex);
                    }
                }
                self.print(&Status { vertexes, ..Status::default() });
            }
            EngineEvent::Solve(event) => self.solve(event, &time),
            EngineEvent::Warning(found) => self.warning(found),
            EngineEvent::StepStarted { step, name } => {
                let digest = Digest::sha256(format!("{}:{name}", step.0).as_bytes()).to_string();
                self.steps.insert(step.0, digest.clone());
                let name = name.clone();
                self.change(&digest, |vertex| (vertex.name, vertex.started) = (name, Some(time)));
            }
            EngineEvent::StepProgress { step, id, current, total } => {
                if let Some(digest) = self.steps.get(&step.0).cloned() {
                    self.part(&digest, id, (*current, *total), &time);
                }
            }
            EngineEvent::StepPart { step, text } => {
                if let Some(digest) = self.steps.get(&step.0).cloned() {
                    self.part(&digest, text, (1, Some(1)), &time);
                }
            }
            EngineEvent::StepCompleted { step, .. } => {
                if let Some(digest) = self.steps.get(&step.0).cloned() {
                    self.change(&digest, |vertex| vertex.completed = Some(time));
                }
            }
            EngineEvent::StepFailed { step, message, .. } => {
                if let Some(digest) = self.steps.get(&step.0).cloned() {
                    self.end(&digest, &time, message);
                }
            }
            // Beyond BuildKit's protocol.
            EngineEvent::Named { vertex, name } => {
                let digest = vertex.to_string();
                let name = name.clone();
                self.change(&digest, |vertex| vertex.name = name);
            }
            EngineEvent::Miss { .. } | EngineEvent::Note { .. } => {}
        }
    }

    fn solve(&mut self, event: &SolveEvent, time: &str) {
        let digest = event.vertex().to_string();
        match event {
            SolveEvent::Started { at, .. } => {
                let started = stamp(*at);
                self.change(&digest, |vertex| vertex.started = Some(started));
            }
            SolveEvent::Cached { .. } => self.change(&digest, |vertex| {
                vertex.cached = true;
                vertex.started.get_or_insert_with(|| time.to_owned());
                vertex.completed = Some(time.to_owned());
            }),
            SolveEvent::Log { stream, bytes, .. } => {
                let stream = match stream {
                    LogStream::Stdout => 1,
                    LogStream::Stderr => 2,
                };
                self.log(digest, stream, bytes, time);
            }
            SolveEvent::LogDropped { bytes, .. } => {
                self.log(digest, 2, format!("[output clipped: {bytes} bytes]\n").as_bytes(), time);
            }
            SolveEvent::Progress { id, current, total, .. } => {
                self.part(&digest, id, (*current, *total), time);
            }
            SolveEvent::Completed { .. } => self.end(&digest, time, ""),
            SolveEvent::Failed { message, .. } => self.end(&digest, time, message),
            SolveEvent::Cancelled { .. } => self.end(&digest, time, "context canceled"),
            SolveEvent::Missed { .. }
            | SolveEvent::Joined { .. }
            | SolveEvent::Used { .. }
            | SolveEvent::Phase { .. } => {}
        }
    }

    fn end(&mut self, digest: &str, time: &str, error: &str) {
        self.change(digest, |vertex| {
            vertex.started.get_or_insert_with(|| time.to_owned());
            vertex.completed = Some(time.to_owned());
            vertex.error = error.to_owned();
        });
    }

    /// Changes what is known of a vertex and prints it whole, as BuildKit does.
    fn change(&mut self, digest: &str, change: impl FnOnce(&mut Vertex)) {
        let vertex = self.vertexes.entry(digest.to_owned()).or_default();
        vertex.digest = digest.to_owned();
        change(vertex);
        let vertexes = vec![vertex.clone()];
        self.print(&Status { vertexes, ..Status::default() });
    }

    fn part(&mut self, digest: &str, id: &str, (current, total): (u64, Option<u64>), time: &str) {
        let total = total.unwrap_or(0);
        let started = self.parts.entry((digest.to_owned(), id.to_owned())).or_insert_with(|| time.to_owned());
        let part = Part {
            id: id.to_owned(),
            vertex: digest.to_owned(),
            total,
            current,
            timestamp: time.to_owned(),
            started: Some(started.clone()),
            completed: (total > 0 && current >= total).then(|| time.to_owned()),
        };
        self.print(&Status { statuses: vec![part], ..Status::default() });
    }

    fn log(&mut self, vertex: String, stream: u8, bytes: &[u8], time: &str) {
        let log = Log { vertex, stream, data: STANDARD.encode(bytes), timestamp: time.to_owned() };
        self.print(&Status { logs: vec![log], ..Status::default() });
    }

    fn warning(&mut self, found: &Diagnostic) {
        let Some(source) = &self.source else { return };
        self.print(&Status { warnings: vec![Warning::new(found, source)], ..Status::default() });
    }

    fn print(&mut self, status: &Status) {
        if let Ok(mut line) = serde_json::to_vec(status) {
            line.push(b'\n');
            // A closed standard error is no reason to fail a build.
            drop(self.output.write_all(&line));
        }
    }
}

/// A time as Go writes it: RFC 3339 with nanoseconds, UTC.
fn stamp(time: SystemTime) -> String {
    jiff::Timestamp::try_from(time).map(|time| time.to_string()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use stave_engine::StepId;

    use super::*;

    #[test]
    fn lines_are_buildkits() {
        let mut raw = Raw::new(Vec::new(), None);
        let vertex = Digest::sha256(b"a");
        let at = UNIX_EPOCH + Duration::from_millis(1500);
        let name = "[internal] load build definition from Dockerfile".to_owned();
        for event in [
            EngineEvent::StepStarted { step: StepId(0), name },
            EngineEvent::StepPart { step: StepId(0), text: "transferring dockerfile: 5B".to_owned() },
            EngineEvent::Solve(SolveEvent::Started { vertex: vertex.clone(), at }),
            EngineEvent::Solve(SolveEvent::Log {
                vertex: vertex.clone(),
                stream: LogStream::Stderr,
                bytes: b"hi\n".to_vec(),
            }),
            EngineEvent::Solve(SolveEvent::Failed {
                vertex,
                duration: Duration::ZERO,
                message: "bad".into(),
            }),
        ] {
            raw.event(&event, at);
        }
        let text = String::from_utf8(raw.output).expect("UTF-8");
        let short = |text: &str| text.replace(&Digest::sha256(b"a").to_string(), "A");
        let step = Digest::sha256(b"0:[internal] load build definition from Dockerfile").to_string();
        insta::assert_snapshot!(short(&text).replace(&step, "S"), @r#"
        {"vertexes":[{"digest":"S","name":"[internal] load build definition from Dockerfile","started":"1970-01-01T00:00:01.5Z"}]}
        {"statuses":[{"id":"transferring dockerfile: 5B","vertex":"S","total":1,"current":1,"timestamp":"1970-01-01T00:00:01.5Z","started":"1970-01-01T00:00:01.5Z","completed":"1970-01-01T00:00:01.5Z"}]}
        {"vertexes":[{"digest":"A","started":"1970-01-01T00:00:01.5Z"}]}
        {"logs":[{"vertex":"A","stream":2,"data":"aGkK","timestamp":"1970-01-01T00:00:01.5Z"}]}
        {"vertexes":[{"digest":"A","started":"1970-01-01T00:00:01.5Z","completed":"1970-01-01T00:00:01.5Z","error":"bad"}]}
        "#);
    }
}
