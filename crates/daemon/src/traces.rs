//! Traces of builds, sent to a collector: OTLP over http, in its JSON form. Start with [`Traces`].
//!
//! A build is one trace: a span for the build and one for each step that began. They are sent when the build is over, in
//! the background and one build at a time; what does not fit the queue or is not taken is counted and forgotten. Must
//! not hold builds up. Nothing of a step is told but its name, its times and whether it failed.

use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bollard_buildkit_proto::google::protobuf::Timestamp;
use bollard_buildkit_proto::moby::buildkit::v1::{SolveResponse, Vertex};
use serde_json::{Value, json};
use stave_oci::Digest;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use url::Url;

use crate::build::Build;
use crate::failure::Failure;
use crate::metrics::Metrics;

/// Builds that wait to be sent.
const QUEUE: usize = 64;
/// Most spans of one build.
const MAX_SPANS: usize = 10_000;
/// How long a collector may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// The longest name of a span.
const MAX_NAME: usize = 1000;
/// Most bytes of an answer that are read.
const MAX_ANSWER: u64 = 4096;

/// Where traces go; nowhere by default.
#[derive(Debug, Clone)]
pub(crate) struct Traces {
    queue: Option<mpsc::Sender<Value>>,
    metrics: Arc<Metrics>,
}

impl Traces {
    /// Must be called within a tokio runtime if there is a collector.
    pub(crate) fn new(collector: Option<Url>, metrics: Arc<Metrics>) -> Self {
        let queue = collector.map(|collector| {
            let (sender, receiver) = mpsc::channel(QUEUE);
            tokio::spawn(forward(endpoint(&collector), receiver, Arc::clone(&metrics)));
            sender
        });
        Self { queue, metrics }
    }

    /// A build is over.
    pub(crate) fn build(&self, build: &Build, solved: &Result<SolveResponse, Failure>) {
        let Some(queue) = &self.queue else { return };
        let failed = solved.as_ref().err().map(ToString::to_string);
        let trace = trace(&build.id, &build.journal.vertexes(), failed.as_deref());
        if queue.try_send(trace).is_err() {
            self.metrics.traced("dropped");
        }
    }
}

/// OTLP's path below a collector's address, unless it is there already.
fn endpoint(collector: &Url) -> Url {
    let mut url = collector.clone();
    if !url.path().ends_with("/v1/traces") {
        let path = format!("{}/v1/traces", url.path().trim_end_matches('/'));
        url.set_path(&path);
    }
    url
}

async fn forward(url: Url, mut queue: mpsc::Receiver<Value>, metrics: Arc<Metrics>) {
    while let Some(trace) = queue.recv().await {
        let sent = tokio::time::timeout(PATIENCE, post(&url, &trace.to_string())).await;
        let result = match sent {
            Ok(Ok(code)) if (200..300).contains(&code) => "sent",
            other => {
                tracing::debug!(?other, "a trace was not taken");
                "failed"
            }
        };
        metrics.traced(result);
    }
}

/// One request on a connection of its own; returns the answer's code. A collector is near, and asked once per build.
async fn post(url: &Url, body: &str) -> io::Result<u16> {
    let host = url.host_str().unwrap_or_default();
    let port = url.port_or_known_default().unwrap_or(80);
    let mut stream = TcpStream::connect((host.trim_matches(['[', ']']), port)).await?;
    let head = format!(
        "POST {} HTTP/1.1\r\nhost: {host}:{port}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\
         connection: close\r\n\r\n",
        url.path(),
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(MAX_ANSWER).read_to_end(&mut answer).await?;
    // `HTTP/1.1 200 OK`
    let line = String::from_utf8_lossy(&answer);
    let code = line.split_whitespace().nth(1).and_then(|code| code.parse().ok());
    code.ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn nanos(time: &Timestamp) -> u128 {
    u128::try_from(time.seconds).unwrap_or(0) * 1_000_000_000 + u128::try_from(time.nanos).unwrap_or(0)
}

/// The trace of a build. Its id is made of the build's, so that who knows one finds the other.
fn trace(build: &str, vertexes: &[Vertex], failed: Option<&str>) -> Value {
    let trace_id = &Digest::sha256(format!("trace {build}").as_bytes()).hex()[..32].to_owned();
    let span_id = |of: &str| Digest::sha256(format!("span {build} {of}").as_bytes()).hex()[..16].to_owned();
    let began = vertexes.iter().filter_map(|vertex| Some((vertex, vertex.started.as_ref().map(nanos)?)));
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_nanos();
    let first = began.clone().map(|(_, start)| start).min().unwrap_or(now);
    let root = span_id("");
    let mut spans = vec![json!({
        "traceId": trace_id,
        "spanId": root,
        "name": "build",
        "kind": 2,
        "startTimeUnixNano": first.to_string(),
        "endTimeUnixNano": now.to_string(),
        "attributes": [attribute("stave.build", build)],
        "status": status(failed),
    })];
    for (vertex, start) in began.take(MAX_SPANS) {
        let end = vertex.completed.as_ref().map_or(now, nanos);
        let failed = (!vertex.error.is_empty()).then_some(vertex.error.as_str());
        spans.push(json!({
            "traceId": trace_id,
            "spanId": span_id(&vertex.digest),
            "parentSpanId": root,
            "name": vertex.name.chars().take(MAX_NAME).collect::<String>(),
            "kind": 1,
            "startTimeUnixNano": start.to_string(),
            "endTimeUnixNano": end.max(start).to_string(),
            "attributes": [
                attribute("vertex", &vertex.digest),
                { "key": "cached", "value": { "boolValue": vertex.cached } },
            ],
            "status": status(failed),
        }));
    }
    json!({ "resourceSpans": [{
        "resource": { "attributes": [attribute("service.name", "stave")] },
        "scopeSpans": [{ "scope": { "name": "stave" }, "spans": spans }],
    }] })
}

fn attribute(key: &str, value: &str) -> Value {
    json!({ "key": key, "value": { "stringValue": value } })
}

fn status(failed: Option<&str>) -> Value {
    match failed {
        Some(words) => json!({ "code": 2, "message": words.chars().take(MAX_NAME).collect::<String>() }),
        None => json!({ "code": 1 }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vertex(name: &str, start: i64, end: i64, error: &str) -> Vertex {
        let at = |seconds| Some(Timestamp { seconds, nanos: 5 });
        Vertex {
            digest: format!("sha256:{name}"),
            name: name.to_owned(),
            started: at(start),
            completed: at(end),
            error: error.to_owned(),
            ..Vertex::default()
        }
    }

    #[test]
    fn a_build_is_a_trace() {
        let waiting = Vertex { name: "never began".to_owned(), ..Vertex::default() };
        let trace =
            trace("b", &[vertex("one", 10, 12, ""), vertex("two", 11, 13, "no"), waiting], Some("no"));
        let spans = trace["resourceSpans"][0]["scopeSpans"][0]["spans"].as_array().expect("a list");
        assert_eq!(spans.len(), 3);
        assert_eq!(spans[0]["startTimeUnixNano"], "10000000005");
        assert_eq!(spans[1]["parentSpanId"], spans[0]["spanId"]);
        assert_eq!(
            (&spans[1]["endTimeUnixNano"], &spans[2]["status"]["code"]),
            (&json!("12000000005"), &json!(2))
        );
        assert_eq!(spans[0]["traceId"].as_str().map(str::len), Some(32));
        assert_eq!(spans[0]["status"], json!({ "code": 2, "message": "no" }));
    }

    #[test]
    fn where_traces_go() {
        let check = |text: &str, expected: &str| {
            assert_eq!(endpoint(&text.parse().expect("an address")).as_str(), expected);
        };
        check("http://c:4318", "http://c:4318/v1/traces");
        check("http://c:4318/x/", "http://c:4318/x/v1/traces");
        check("http://c:4318/v1/traces", "http://c:4318/v1/traces");
    }

    #[tokio::test]
    async fn a_collector_is_sent_what_there_is() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let address = listener.local_addr().expect("bound");
        let metrics = Arc::new(Metrics::default());
        let traces = Traces::new(format!("http://{address}").parse().ok(), Arc::clone(&metrics));
        let queue = traces.queue.as_ref().expect("a collector");
        queue.try_send(trace("b", &[], None)).expect("room");
        let (mut stream, _) = listener.accept().await.expect("connects");
        let mut heard = Vec::new();
        while !heard.ends_with(b"}]}") {
            let mut bytes = [0; 4096];
            let length = stream.read(&mut bytes).await.expect("is sent");
            assert!(length > 0, "{}", String::from_utf8_lossy(&heard));
            heard.extend_from_slice(&bytes[..length]);
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.expect("answers");
        let heard = String::from_utf8_lossy(&heard).into_owned();
        assert!(heard.starts_with("POST /v1/traces HTTP/1.1"), "{heard}");
    }
}
