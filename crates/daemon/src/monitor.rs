//! What watches the daemon itself: metrics, whether it lives and is ready, and what its builds do at this moment.
//!
//! A listener of its own, for those who watch, not for those who build; nothing there changes anything. Names of steps
//! and builds are told, their output is not. Start with [`router`].

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde_json::{Value, json};

use crate::build::Build;
use crate::holdings;
use crate::metrics::Gauges;
use crate::state::Shared;

/// How long the daemon may take to prove that it is ready.
const PATIENCE: Duration = Duration::from_secs(10);
/// Steps of one build that are dumped.
const MAX_STEPS: usize = 10_000;

/// The routes.
pub(crate) fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .route("/debug/graph", get(graph))
        .route("/debug/memory", get(memory))
        .with_state(shared)
}

async fn metrics(State(shared): State<Arc<Shared>>) -> Response {
    let engine = Arc::clone(&shared.engine);
    let bytes = tokio::task::spawn_blocking(move || {
        let used = engine.store().disk_usage().map(|usage| usage.total()).ok();
        (used, engine.store().file_system_bytes().map(|(_, free)| free).ok())
    });
    let (store_bytes, free_bytes) = bytes.await.unwrap_or_default();
    let (operations, waiting) = shared.engine.operations();
    let now = Gauges {
        version: shared.settings.now().worker.version.clone(),
        builds: shared.builds.running().len(),
        sessions: shared.sessions.count(),
        operations,
        waiting,
        store_bytes,
        free_bytes,
        is_ready: !shared.draining.is_cancelled(),
    };
    let text = shared.metrics.render(&now);
    ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}

/// Ready means that a build would run: files can be written, a process started.
async fn ready(State(shared): State<Arc<Shared>>) -> Response {
    if shared.draining.is_cancelled() {
        return (StatusCode::SERVICE_UNAVAILABLE, "the daemon is ending\n").into_response();
    }
    match tokio::time::timeout(PATIENCE, shared.engine.probe()).await {
        Ok(Ok(())) => "ready\n".into_response(),
        Ok(Err(error)) => {
            let words = format!("{}\n", stave_engine::one_line(&error));
            (StatusCode::SERVICE_UNAVAILABLE, words).into_response()
        }
        Err(_) => (StatusCode::SERVICE_UNAVAILABLE, "no answer in time\n").into_response(),
    }
}

/// How many there are of everything that builds make grow.
async fn memory(State(shared): State<Arc<Shared>>) -> Response {
    let all = holdings::dump(&shared).await;
    ([(CONTENT_TYPE, "application/json")], format!("{all:#}\n")).into_response()
}

/// What every running build does.
async fn graph(State(shared): State<Arc<Shared>>) -> Response {
    let (operations, waiting) = shared.engine.operations();
    let builds: Vec<Value> = shared.builds.running().iter().map(|build| dump(build)).collect();
    let [execs, sources, files, digests] = operations;
    let all = json!({
        "operations": { "exec": execs, "source": sources, "file": files, "digest": digests, "waiting": waiting },
        "builds": builds,
    });
    ([(CONTENT_TYPE, "application/json")], format!("{all:#}\n")).into_response()
}

fn dump(build: &Build) -> Value {
    let vertexes = build.journal.vertexes();
    let steps = vertexes.iter().take(MAX_STEPS).map(|vertex| {
        let state = match (&vertex.started, &vertex.completed) {
            _ if !vertex.error.is_empty() => "failed",
            _ if vertex.cached => "cached",
            (_, Some(_)) => "done",
            (Some(_), None) => "running",
            (None, None) => "waiting",
        };
        json!({ "digest": vertex.digest, "name": vertex.name, "inputs": vertex.inputs, "state": state })
    });
    json!({
        "ref": build.id,
        "identity": build.gate.owner().identity.as_str(),
        "steps": steps.collect::<Vec<_>>(),
    })
}
