//! The web page: builds that run and builds of the past, their graphs, timelines, output and errors.
//!
//! ```text
//! /                     the page; it asks for the rest
//! /api/builds           what runs and what is over, the newest first
//! /api/builds/REF/events    one build from its begin on, as it goes (server-sent events)
//! /api/disk             what takes how much room
//! ```
//!
//! It shows and changes nothing. All assets are in the program, nothing is loaded from elsewhere, and a strict content
//! policy says so to browsers; whatever a build says reaches the page as text in JSON and is put into it as text. The
//! `Host` header must be one this page is known by, so that no page of another site can read it under a name of its own.
//! Whoever reaches it sees the builds of all tenants. Start with [`router`].

mod events;

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HOST, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
    X_FRAME_OPTIONS,
};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use bollard_buildkit_proto::moby::buildkit::v1::BuildHistoryRecord;
use serde_json::{Value, json};
use stave_engine::record::{BuildId, History};

use crate::history::Archive;
use crate::identity::Identity;
use crate::state::Shared;
use crate::tenants::Caller;

/// What browsers may load and do: only what comes from here, no frames, no forms.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
/// Builds of the past that are listed.
const MAX_LISTED: usize = 200;
/// Things that take room that are listed, the largest first.
const MAX_RECORDS: usize = 500;

const PAGE: &str = include_str!("web/page.html");
const SCRIPT: &str = include_str!("web/page.js");
const STYLE: &str = include_str!("web/page.css");

/// The names that browsers may know this page by.
#[derive(Debug, Clone)]
pub(crate) struct Hosts(Arc<Vec<String>>);

impl Hosts {
    pub(crate) fn new(named: &[String]) -> Self {
        let own = ["localhost", "stave"].map(str::to_owned);
        Self(Arc::new(own.into_iter().chain(named.iter().map(|name| name.to_ascii_lowercase())).collect()))
    }

    /// Addresses are always fit: a name that an attacker owns is what rebinding needs.
    fn fits(&self, headers: &HeaderMap) -> bool {
        let Some(host) = headers.get(HOST).and_then(|host| host.to_str().ok()) else { return false };
        let host = host.to_ascii_lowercase();
        let name = match host.strip_prefix('[') {
            Some(rest) => rest.split(']').next().unwrap_or_default(),
            None => host.rsplit_once(':').map_or(host.as_str(), |(name, _)| name),
        };
        name.parse::<IpAddr>().is_ok() || self.0.iter().any(|known| known == name)
    }
}

/// Where the page shows a build, from the page's own address on; `None` for one that no daemon made.
#[must_use]
pub fn page_of(records: &History, id: &BuildId) -> Option<String> {
    Archive::name_of(records, id).map(|name| format!("#build/{name}"))
}

/// The routes.
pub(crate) fn router(shared: Arc<Shared>, hosts: &[String]) -> Router {
    Router::new()
        .route("/", get(async || asset("text/html; charset=utf-8", PAGE)))
        .route("/page.js", get(async || asset("text/javascript; charset=utf-8", SCRIPT)))
        .route("/page.css", get(async || asset("text/css; charset=utf-8", STYLE)))
        .route("/api/builds", get(builds))
        .route("/api/builds/{reference}/events", get(events::events))
        .route("/api/disk", get(disk))
        .layer(from_fn_with_state(Hosts::new(hosts), guarded))
        .with_state(shared)
}

/// What holds for every answer.
async fn guarded(State(hosts): State<Hosts>, request: Request, next: Next) -> Response {
    let mut answer = match hosts.fits(request.headers()) {
        _ if !matches!(*request.method(), Method::GET | Method::HEAD) => {
            StatusCode::METHOD_NOT_ALLOWED.into_response()
        }
        true => next.run(request).await,
        false => (StatusCode::MISDIRECTED_REQUEST, "this page is not known by that name\n").into_response(),
    };
    let headers = answer.headers_mut();
    for (name, value) in [
        (CONTENT_SECURITY_POLICY, POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (X_FRAME_OPTIONS, "DENY"),
        (REFERRER_POLICY, "no-referrer"),
        (CACHE_CONTROL, "no-store"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers.insert("cross-origin-resource-policy", HeaderValue::from_static("same-origin"));
    answer
}

fn asset(kind: &'static str, text: &'static str) -> Response {
    ([(CONTENT_TYPE, kind)], text).into_response()
}

/// Whoever looks at the page: it is the daemon's owner's.
fn viewer() -> Caller {
    Caller { identity: Identity::new("web", "page"), namespace: stave_worker::Namespace::Shared }
}

async fn builds(State(shared): State<Arc<Shared>>) -> Response {
    let running: Vec<Value> = shared
        .builds
        .running()
        .iter()
        .map(|build| {
            json!({
                "ref": build.id,
                "state": "running",
                "identity": build.gate.owner().identity.as_str(),
                "title": build.title(),
            })
        })
        .collect();
    let archive = Arc::clone(&shared.history);
    let over = tokio::task::spawn_blocking(move || {
        archive.over(&viewer()).take(MAX_LISTED).map(|(_, record)| listed(&record)).collect::<Vec<_>>()
    });
    match over.await {
        Ok(over) => Json(json!({ "running": running, "over": over })).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// A build of the past as the page lists it.
fn listed(record: &BuildHistoryRecord) -> Value {
    let millis = |time: &Option<_>| time.as_ref().map(events::millis);
    let target = record.frontend_attrs.get("target").map_or("", String::as_str);
    let file = record.frontend_attrs.get("filename").map_or("Dockerfile", String::as_str);
    let mut names = record.exporters.iter().filter_map(|exporter| exporter.attrs.get("name"));
    json!({
        "ref": record.r#ref,
        "state": match &record.error { None => "succeeded", Some(error) if error.code == 1 => "cancelled", _ => "failed" },
        "title": names.next().cloned().unwrap_or_else(|| format!("{file} {target}").trim().to_owned()),
        "started": millis(&record.created_at),
        "ended": millis(&record.completed_at),
        "steps": record.num_total_steps,
        "cached": record.num_cached_steps,
        "warnings": record.num_warnings,
        "error": record.error.as_ref().map(|error| error.message.as_str()),
    })
}

async fn disk(State(shared): State<Arc<Shared>>) -> Response {
    let engine = Arc::clone(&shared.engine);
    let usage = tokio::task::spawn_blocking(move || {
        let usage = engine.store().disk_usage().ok()?;
        let free = engine.store().file_system_bytes().ok()?.1;
        let (total, reclaimable) = (usage.total(), usage.reclaimable());
        let mut records = usage.records;
        records.sort_by_key(|record| std::cmp::Reverse(record.size));
        let shown: Vec<Value> = records
            .iter()
            .take(MAX_RECORDS)
            .map(|record| {
                let description = stave_worker::Namespace::of_key(&record.description).1;
                json!({
                    "id": record.id.to_string(),
                    "kind": format!("{:?}", record.id.kind()).to_lowercase(),
                    "size": record.size,
                    "inUse": record.in_use,
                    "description": description,
                })
            })
            .collect();
        Some(json!({ "total": total, "reclaimable": reclaimable, "free": free, "records": shown }))
    });
    match usage.await {
        Ok(Some(usage)) => Json(usage).into_response(),
        _ => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(host: &str, expected: bool) {
        let mut headers = HeaderMap::new();
        headers.insert(HOST, host.parse().expect("a header"));
        assert_eq!(Hosts::new(&["builder.example".to_owned()]).fits(&headers), expected, "{host}");
    }

    #[test]
    fn names_of_the_page() {
        check("localhost", true);
        check("localhost:8080", true);
        check("127.0.0.1:8080", true);
        check("[::1]:8080", true);
        check("Builder.Example:80", true);
        check("evil.example", false);
        check("localhost.evil.example:8080", false);
        check("127.0.0.1.evil.example", false);
        check("", false);
        assert!(!Hosts::new(&[]).fits(&HeaderMap::new()));
    }

    #[test]
    fn nothing_is_loaded_from_elsewhere() {
        for text in [PAGE, SCRIPT, STYLE] {
            assert!(!text.contains("http://") && !text.contains("https://"), "an address of another site");
            for word in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("] {
                assert!(!text.contains(word), "{word} puts text in as markup");
            }
        }
        // A policy without inline parts needs a page without.
        assert!(!PAGE.contains("style=") && !PAGE.contains("onclick") && !PAGE.contains("<style"));
    }
}
