//! What a daemon says of its work, as events of the engine. Pure. Start with [`Translation`].

use std::collections::HashSet;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bollard_buildkit_proto::google::protobuf::Timestamp;
use bollard_buildkit_proto::google::rpc;
use bollard_buildkit_proto::moby::buildkit::v1::{StatusResponse, Vertex};
use prost::Message as _;
use stave_engine::EngineEvent;
use stave_oci::Digest;
use stave_solver::{Hit, LogStream, SolveEvent};
use tonic::Status;

use super::RemotePlace;

/// Vertexes of one build that are shown.
const MAX_VERTEXES: usize = 200_000;

/// What was told already.
#[derive(Debug, Default)]
pub(super) struct Translation {
    named: HashSet<Digest>,
    started: HashSet<Digest>,
    over: HashSet<Digest>,
}

impl Translation {
    /// The events of one update.
    pub(super) fn take(&mut self, update: StatusResponse) -> Vec<EngineEvent> {
        let mut events = Vec::new();
        for vertex in update.vertexes {
            self.vertex(&vertex, &mut events);
        }
        for status in update.statuses {
            let Ok(vertex) = status.vertex.parse() else { continue };
            let current = u64::try_from(status.current).unwrap_or(0);
            let total = u64::try_from(status.total).ok().filter(|total| *total > 0);
            let total = if status.completed.is_some() { total.or(Some(current)) } else { total };
            let id = if status.id.is_empty() { status.name } else { status.id };
            if current == 0 && status.total <= 0 {
                // Something that has no size: it is told when it is over.
                if status.completed.is_some() {
                    events.push(EngineEvent::Note { vertex, text: format!("{id} done") });
                }
                continue;
            }
            events.push(EngineEvent::Solve(SolveEvent::Progress { vertex, id, current, total }));
        }
        for log in update.logs {
            let Ok(vertex) = log.vertex.parse() else { continue };
            let stream = if log.stream == 2 { LogStream::Stderr } else { LogStream::Stdout };
            events.push(EngineEvent::Solve(SolveEvent::Log { vertex, stream, bytes: log.msg }));
        }
        for warning in update.warnings {
            let Ok(vertex) = warning.vertex.parse() else { continue };
            let text = format!("WARN: {}", String::from_utf8_lossy(&warning.short));
            events.push(EngineEvent::Note { vertex, text });
        }
        events
    }

    fn vertex(&mut self, message: &Vertex, events: &mut Vec<EngineEvent>) {
        let Ok(vertex) = message.digest.parse::<Digest>() else { return };
        if self.named.len() >= MAX_VERTEXES && !self.named.contains(&vertex) {
            return;
        }
        if self.named.insert(vertex.clone()) {
            events.push(EngineEvent::Named { vertex: vertex.clone(), name: message.name.clone() });
        }
        if self.over.contains(&vertex) {
            return;
        }
        let Some(started) = &message.started else { return };
        let at = time(started);
        if !message.cached && self.started.insert(vertex.clone()) {
            events.push(EngineEvent::Solve(SolveEvent::Started { vertex: vertex.clone(), at }));
        }
        let Some(completed) = &message.completed else { return };
        self.over.insert(vertex.clone());
        let duration = time(completed).duration_since(at).unwrap_or_default();
        events.push(EngineEvent::Solve(if message.cached {
            SolveEvent::Cached { vertex, hit: Hit::Local, key: None }
        } else if message.error.is_empty() {
            SolveEvent::Completed { vertex, duration }
        } else if message.error.ends_with("context canceled") {
            SolveEvent::Cancelled { vertex }
        } else {
            SolveEvent::Failed { vertex, duration, message: message.error.clone() }
        }));
    }
}

fn time(stamp: &Timestamp) -> SystemTime {
    let seconds = Duration::from_secs(u64::try_from(stamp.seconds).unwrap_or(0));
    let nanoseconds = Duration::from_nanos(u64::try_from(stamp.nanos).unwrap_or(0));
    SystemTime::UNIX_EPOCH.checked_add(seconds + nanoseconds).unwrap_or(SystemTime::UNIX_EPOCH)
}

/// The place in a file that an error's details name.
pub(super) fn place(status: &Status) -> Option<RemotePlace> {
    let all = rpc::Status::decode(status.details()).ok()?;
    let is_source = |kind: &str| kind.ends_with("errdefs.Source+json");
    let detail = all.details.iter().find(|detail| is_source(&detail.type_url))?;
    let value: serde_json::Value = serde_json::from_slice(&detail.value).ok()?;
    let info = &value["info"];
    let text = STANDARD.decode(info["data"].as_str()?).ok()?;
    let line = |end: &str| {
        let ranges = value["ranges"].as_array()?;
        let lines = ranges.iter().filter_map(|range| range[end]["line"].as_u64());
        let lines: Vec<_> = lines.filter_map(|line| usize::try_from(line).ok()).collect();
        if end == "start" { lines.iter().min().copied() } else { lines.iter().max().copied() }
    };
    Some(RemotePlace {
        name: info["filename"].as_str()?.to_owned(),
        text: String::from_utf8(text).ok()?,
        lines: (line("start")?, line("end")?),
    })
}

#[cfg(test)]
mod tests {
    use bollard_buildkit_proto::moby::buildkit::v1::{VertexLog, VertexStatus};

    use super::*;

    fn stamp(seconds: i64) -> Option<Timestamp> {
        Some(Timestamp { seconds, nanos: 0 })
    }

    fn words(event: &EngineEvent) -> String {
        match event {
            EngineEvent::Named { name, .. } => format!("named {name}"),
            EngineEvent::Note { text, .. } => text.clone(),
            EngineEvent::Solve(SolveEvent::Started { .. }) => "started".to_owned(),
            EngineEvent::Solve(SolveEvent::Cached { .. }) => "cached".to_owned(),
            EngineEvent::Solve(SolveEvent::Completed { duration, .. }) => format!("completed {duration:?}"),
            EngineEvent::Solve(SolveEvent::Failed { message, .. }) => format!("failed {message}"),
            EngineEvent::Solve(SolveEvent::Log { bytes, .. }) => String::from_utf8_lossy(bytes).into_owned(),
            EngineEvent::Solve(SolveEvent::Progress { id, current, total, .. }) => {
                format!("{id} {current} {total:?}")
            }
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn a_vertex_is_told_once() {
        let digest = Digest::sha256(b"v").to_string();
        let vertex = |started, completed, error: &str| Vertex {
            digest: digest.clone(),
            name: "RUN true".to_owned(),
            started,
            completed,
            error: error.to_owned(),
            ..Vertex::default()
        };
        let mut translation = Translation::default();
        let mut told = Vec::new();
        let log =
            VertexLog { vertex: digest.clone(), stream: 1, msg: b"out".to_vec(), ..VertexLog::default() };
        let part = VertexStatus {
            vertex: digest.clone(),
            id: "p".to_owned(),
            current: 2,
            ..VertexStatus::default()
        };
        for update in [
            StatusResponse { vertexes: vec![vertex(None, None, "")], ..StatusResponse::default() },
            StatusResponse { vertexes: vec![vertex(stamp(1), None, "")], ..StatusResponse::default() },
            StatusResponse { logs: vec![log], statuses: vec![part], ..StatusResponse::default() },
            StatusResponse {
                vertexes: vec![vertex(stamp(1), stamp(3), "boom")],
                ..StatusResponse::default()
            },
            StatusResponse {
                vertexes: vec![vertex(stamp(1), stamp(3), "boom")],
                ..StatusResponse::default()
            },
        ] {
            told.extend(translation.take(update).iter().map(words));
        }
        assert_eq!(told, ["named RUN true", "started", "p 2 None", "out", "failed boom"]);
    }

    #[test]
    fn what_is_no_digest_is_passed_over() {
        let vertex = Vertex { digest: "../x".to_owned(), started: stamp(1), ..Vertex::default() };
        let update = StatusResponse { vertexes: vec![vertex], ..StatusResponse::default() };
        assert_eq!(Translation::default().take(update).len(), 0);
    }
}
