//! One build as the page follows it: what [`crate::progress`] takes down, and what there is of it afterwards.
//! Start with [`events`].

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use bollard_buildkit_proto::google::protobuf::Timestamp;
use bollard_buildkit_proto::moby::buildkit::v1::StatusResponse;
use futures::{Stream, StreamExt as _, stream};
use serde_json::{Value, json};
use stave_engine::record::StepRecord;

use super::viewer;
use crate::failure::Failure;
use crate::history::Archive;
use crate::state::Shared;

/// Events of a build of the past that wait for the network.
const WAITING: usize = 16;
/// How long a record that is being closed is left alone.
const CLOSING: Duration = Duration::from_millis(20);
/// The longest piece of output in one event; what is longer is several.
const MAX_PIECE: usize = 64 << 10;

pub(super) async fn events(State(shared): State<Arc<Shared>>, Path(reference): Path<String>) -> Response {
    let running = shared.builds.running().into_iter().find(|build| build.id == reference);
    let Some(build) = running else { return past(&shared, reference).await };
    let (closing, journal) = (shared.closing.clone(), build.journal.reader());
    drop(build);
    let live = stream::unfold(journal, |mut journal| async move {
        let batch = journal.next().await?;
        Some((shown(&batch), journal))
    });
    // The end tells the page to ask for what is known only then: reasons, and the error.
    let archive = Arc::clone(&shared.history);
    let end = stream::once(async move {
        // The journal ends before the record is closed, which says how.
        while archive.is_active(&viewer(), &reference) {
            tokio::time::sleep(CLOSING).await;
        }
        let found = tokio::task::spawn_blocking(move || afterwards(&archive, &reference)).await;
        found.ok().and_then(Result::ok).unwrap_or_else(|| json!({ "over": true }))
    });
    answer(live.chain(end).take_until(closing.cancelled_owned()))
}

async fn past(shared: &Shared, reference: String) -> Response {
    let archive = Arc::clone(&shared.history);
    let (sender, receiver) = tokio::sync::mpsc::channel(WAITING);
    let reading = tokio::task::spawn_blocking(move || -> Result<_, Failure> {
        let replay = archive.replay(&viewer(), &reference)?;
        Ok((replay, afterwards(&archive, &reference)?))
    });
    let Ok(Ok((replay, end))) = reading.await else { return StatusCode::NOT_FOUND.into_response() };
    tokio::task::spawn_blocking(move || {
        let told = replay.map_while(Result::ok).map(|batch| shown(&batch)).chain([end]);
        for value in told {
            if sender.blocking_send(value).is_err() {
                return;
            }
        }
    });
    answer(crate::session::files::packets(receiver))
}

fn answer(values: impl Stream<Item = Value> + Send + 'static) -> Response {
    let events = values.map(|value| Ok::<_, Infallible>(Event::default().data(value.to_string())));
    Sse::new(events).keep_alive(KeepAlive::default()).into_response()
}

/// What is known of a build that is over: how it ended, where, and why its steps ran.
fn afterwards(archive: &Archive, reference: &str) -> Result<Value, Failure> {
    let (id, record) = archive.find(&viewer(), reference)?;
    let engine = archive.engine_record(&id);
    let steps: Vec<Value> = engine.iter().flat_map(|record| &record.steps).filter_map(reason).collect();
    let error = archive.whole_error(&id, &record).map(|error| {
        let sources: Vec<Value> = error.details.iter().filter_map(source).collect();
        json!({ "message": error.message, "sources": sources })
    });
    Ok(json!({ "over": true, "error": error, "steps": steps }))
}

/// Where a step's result came from, and why it ran.
fn reason(step: &StepRecord) -> Option<Value> {
    Some(json!({
        "digest": step.vertex.as_ref()?.as_str(),
        "state": step.state,
        "lines": step.lines,
        "reason": step.reason,
        "memory": step.peak_memory,
    }))
}

/// The place in a file that an error is about, as its details carry it.
fn source(detail: &bollard_buildkit_proto::google::protobuf::Any) -> Option<Value> {
    if !detail.type_url.contains("errdefs.Source") {
        return None;
    }
    let value: Value = serde_json::from_slice(&detail.value).ok()?;
    let info = &value["info"];
    let data = info["data"].as_str()?;
    let bytes = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, data).ok()?;
    Some(json!({
        "name": info["filename"],
        "text": String::from_utf8_lossy(&bytes),
        "ranges": value["ranges"],
    }))
}

pub(super) fn millis(time: &Timestamp) -> i64 {
    time.seconds.saturating_mul(1000).saturating_add(i64::from(time.nanos) / 1_000_000)
}

/// A batch as the page reads it.
fn shown(batch: &StatusResponse) -> Value {
    let vertexes = batch.vertexes.iter().map(|vertex| {
        json!({
            "digest": vertex.digest,
            "name": vertex.name,
            "inputs": vertex.inputs,
            "cached": vertex.cached,
            "error": vertex.error,
            "started": vertex.started.as_ref().map(millis),
            "ended": vertex.completed.as_ref().map(millis),
        })
    });
    let logs = batch.logs.iter().flat_map(|log| {
        log.msg.chunks(MAX_PIECE).map(|piece| {
            json!({ "digest": log.vertex, "stream": log.stream, "text": String::from_utf8_lossy(piece) })
        })
    });
    let warnings = batch.warnings.iter().map(|warning| String::from_utf8_lossy(&warning.short).into_owned());
    json!({
        "vertexes": vertexes.collect::<Vec<_>>(),
        "logs": logs.collect::<Vec<_>>(),
        "warnings": warnings.collect::<Vec<_>>(),
    })
}
