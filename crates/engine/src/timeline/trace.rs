//! Spans as a trace: the "Trace Event Format" that Chrome's tracing and Perfetto read.
//!
//! Pure. What runs at the same time stands in different rows; a row is taken again when it is free, so that there
//! are as many rows as things were done at once.

use std::time::Duration;

use serde_json::{Value, json};
use stave_solver::StepPhase;

use super::{Span, Subject};

pub(super) fn chrome(spans: &[Span]) -> String {
    let mut order: Vec<&Span> = spans.iter().collect();
    order.sort_by_key(|span| (span.start, std::cmp::Reverse(span.end)));
    let mut rows: Vec<Duration> = Vec::new();
    let mut events = vec![json!({
        "name": "process_name", "ph": "M", "pid": 1, "args": {"name": "stave build"}
    })];
    for span in order {
        let free = rows.iter().position(|busy| *busy <= span.start);
        let row = free.unwrap_or(rows.len());
        match rows.get_mut(row) {
            Some(busy) => *busy = span.end,
            None => rows.push(span.end),
        }
        events.push(event(span, row));
        events.extend(phases(span, row));
    }
    let document = json!({"traceEvents": events, "displayTimeUnit": "ms"});
    document.to_string()
}

/// A complete event; times are microseconds.
fn event(span: &Span, row: usize) -> Value {
    let category = match span.subject {
        Subject::Step(_) => "step",
        Subject::Vertex(_) => "vertex",
    };
    let mut details = serde_json::Map::new();
    if let Subject::Vertex(digest) = &span.subject {
        details.insert("vertex".to_owned(), digest.to_string().into());
    }
    if !span.cpu.is_zero() {
        details.insert("cpuSeconds".to_owned(), span.cpu.as_secs_f64().into());
    }
    if span.memory > 0 {
        details.insert("peakBytes".to_owned(), span.memory.into());
    }
    json!({
        "name": span.name, "cat": category, "ph": "X", "pid": 1, "tid": row,
        "ts": micros(span.start), "dur": micros(span.length()), "args": details
    })
}

/// The phases one after the other: they are told as they end, without gaps worth showing.
fn phases(span: &Span, row: usize) -> Vec<Value> {
    let mut at = span.start;
    let mut events = Vec::new();
    for (phase, length) in &span.phases {
        // A viewer nests by time: none may stand out of its step.
        let length = (*length).min(span.end.saturating_sub(at));
        events.push(json!({
            "name": name(*phase), "cat": "phase", "ph": "X", "pid": 1, "tid": row,
            "ts": micros(at), "dur": micros(length)
        }));
        at += length;
    }
    events
}

fn name(phase: StepPhase) -> &'static str {
    match phase {
        StepPhase::Waiting => "waiting",
        StepPhase::Preparing => "preparing",
        StepPhase::Process => "process",
        StepPhase::Committing => "committing",
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::StepId;

    fn span(number: u64, start: u64, end: u64, phases: &[(StepPhase, u64)]) -> Span {
        Span {
            subject: Subject::Step(StepId(number)),
            name: format!("step {number}"),
            start: Duration::from_micros(start),
            end: Duration::from_micros(end),
            phases: phases.iter().map(|(phase, length)| (*phase, Duration::from_micros(*length))).collect(),
            cpu: Duration::ZERO,
            memory: 0,
        }
    }

    #[test]
    fn what_overlaps_has_rows_of_its_own() {
        let spans = [
            span(1, 0, 10, &[]),
            span(2, 5, 20, &[(StepPhase::Preparing, 3), (StepPhase::Process, 50)]),
            span(3, 12, 30, &[]),
        ];
        let document: Value = serde_json::from_str(&chrome(&spans)).expect("is JSON");
        let events = document["traceEvents"].as_array().expect("a list");
        let brief = |event: &Value| {
            let number = |name: &str| event[name].as_u64().unwrap_or_default();
            format!(
                "{} {} {}+{}",
                event["name"].as_str().unwrap_or(""),
                number("tid"),
                number("ts"),
                number("dur")
            )
        };
        let found: Vec<String> = events.iter().skip(1).map(brief).collect();
        let expected =
            ["step 1 0 0+10", "step 2 1 5+15", "preparing 1 5+3", "process 1 8+12", "step 3 0 12+18"];
        assert_eq!(found, expected);
    }
}
