//! The trace of a build as clients read it from its record: one JSON text a span, in the form in which Go's tracing
//! library writes them. Start with [`spans`].

use bollard_buildkit_proto::google::protobuf::Timestamp;
use bollard_buildkit_proto::moby::buildkit::v1::Vertex;
use serde_json::{Value, json};
use stave_oci::Digest;

/// What BuildKit calls this form.
pub(super) const MEDIA_TYPE: &str = "application/vnd.buildkit.otlp.json.v0";
/// Most spans of one build.
const MAX_SPANS: usize = 10_000;
/// The longest name of a span.
const MAX_NAME: usize = 1000;
const NO_SPAN: &str = "0000000000000000";

/// A span for the build and one for each step that began, which hangs below it.
pub(super) fn spans(build: &str, vertexes: &[Vertex], failed: Option<&str>) -> Vec<u8> {
    let trace = Digest::sha256(format!("trace {build}").as_bytes()).hex()[..32].to_owned();
    let id = |of: &str| Digest::sha256(format!("span {build} {of}").as_bytes()).hex()[..16].to_owned();
    let now = jiff::Timestamp::now();
    let began = vertexes.iter().filter_map(|vertex| Some((vertex, time(vertex.started.as_ref()?)?)));
    let first = began.clone().map(|(_, start)| start).min().unwrap_or(now);
    let root = id("");
    let mut text = span((&trace, &root, NO_SPAN), "build", (first, now), failed, &[("stave.build", build)]);
    for (vertex, start) in began.take(MAX_SPANS) {
        let end = vertex.completed.as_ref().and_then(time).unwrap_or(now).max(start);
        let failed = (!vertex.error.is_empty()).then_some(vertex.error.as_str());
        let about = [("vertex", vertex.digest.as_str())];
        text.push_str(&span(
            (&trace, &id(&vertex.digest), &root),
            &vertex.name,
            (start, end),
            failed,
            &about,
        ));
    }
    text.into_bytes()
}

fn time(of: &Timestamp) -> Option<jiff::Timestamp> {
    jiff::Timestamp::new(of.seconds, of.nanos).ok()
}

fn span(
    (trace, own, parent): (&str, &str, &str),
    name: &str,
    (start, end): (jiff::Timestamp, jiff::Timestamp),
    failed: Option<&str>,
    about: &[(&str, &str)],
) -> String {
    let context = |span: &str| {
        let trace = if span == NO_SPAN { "00000000000000000000000000000000" } else { trace };
        json!({ "TraceID": trace, "SpanID": span, "TraceFlags": "01", "TraceState": "", "Remote": false })
    };
    let attribute = |(key, value): &(&str, &str)| -> Value {
        json!({ "Key": key, "Value": { "Type": "STRING", "Value": value } })
    };
    let short = |text: &str| text.chars().take(MAX_NAME).collect::<String>();
    let status = match failed {
        Some(words) => json!({ "Code": "Error", "Description": short(words) }),
        None => json!({ "Code": "Unset", "Description": "" }),
    };
    let span = json!({
        "Name": short(name),
        "SpanContext": context(own),
        "Parent": context(parent),
        "SpanKind": 1,
        "StartTime": start.to_string(),
        "EndTime": end.to_string(),
        "Attributes": about.iter().map(attribute).collect::<Vec<_>>(),
        "Events": null,
        "Links": null,
        "Status": status,
        "DroppedAttributes": 0,
        "DroppedEvents": 0,
        "DroppedLinks": 0,
        "ChildSpanCount": 0,
        "Resource": [attribute(&("service.name", "stave"))],
        "InstrumentationLibrary": { "Name": "stave", "Version": "", "SchemaURL": "" },
    });
    format!("{span}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_hangs_below_its_build() {
        let at = |seconds| Some(Timestamp { seconds, nanos: 5 });
        let vertex = Vertex {
            digest: "sha256:a".to_owned(),
            name: "one".to_owned(),
            started: at(10),
            completed: at(12),
            error: "no".to_owned(),
            ..Vertex::default()
        };
        let text = String::from_utf8(spans("b", &[vertex, Vertex::default()], Some("no"))).expect("text");
        let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[1]["Parent"]["SpanID"], lines[0]["SpanContext"]["SpanID"]);
        assert_eq!(lines[1]["StartTime"], "1970-01-01T00:00:10.000000005Z");
        assert_eq!(lines[1]["Status"], json!({ "Code": "Error", "Description": "no" }));
        assert_eq!(lines[0]["StartTime"], lines[1]["StartTime"]);
    }
}
