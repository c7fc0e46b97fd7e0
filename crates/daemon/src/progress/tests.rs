//! What clients are told of a build, event by event.

use std::time::{Duration, UNIX_EPOCH};

use stave_engine::StepId;

use super::*;

fn started(step: u64, name: &str) -> EngineEvent {
    EngineEvent::StepStarted { step: StepId(step), name: name.to_owned() }
}

fn completed(step: u64) -> EngineEvent {
    EngineEvent::StepCompleted { step: StepId(step), duration: Duration::ZERO }
}

#[tokio::test]
async fn every_reader_gets_it_all_and_an_end() {
    let journal = Journal::new("b", None);
    let observer = journal.observer(None);
    let mut early = journal.reader();
    observer.send(started(0, "one"));
    observer.send(EngineEvent::StepPart { step: StepId(0), text: "part".to_owned() });
    let first = early.next().await.expect("something came");
    assert_eq!((first.vertexes.len(), first.statuses.len()), (1, 1));
    observer.send(completed(0));
    let second = early.next().await.expect("something came");
    assert_eq!(second.vertexes[0].started, first.vertexes[0].started, "a start never changes");
    assert!(second.vertexes[0].completed.is_some());
    journal.finish();
    assert_eq!(early.next().await, None);
    let late = journal.reader().next().await.expect("the whole of it");
    assert_eq!(late.vertexes.len(), 2);
}

#[tokio::test]
async fn steps_of_two_parts_of_a_build_are_told_apart() {
    let journal = Journal::new("b", None);
    journal.observer(None).send(started(0, "one"));
    journal.observer(None).send(started(0, "two"));
    let all = journal.reader().next().await.expect("something came");
    assert_ne!(all.vertexes[0].digest, all.vertexes[1].digest);
}

#[test]
fn output_is_bounded() {
    let mut state = State::default();
    let now = timestamp(UNIX_EPOCH);
    for _ in 0..10 {
        state.log("v".to_owned(), 1, vec![b'x'; MAX_LOG / 4 - ENTRY], now);
    }
    let lines: Vec<_> = state.entries.iter().flat_map(|entry| &entry.logs).collect();
    assert_eq!(lines.len(), 5);
    assert_eq!(lines[4].msg, b"[output clipped]\n");
}

#[test]
fn a_vertex_that_is_over_stays_as_it_is() {
    let mut state = State::default();
    let vertex = Vertex { digest: "v".to_owned(), name: "RUN x".to_owned(), ..Vertex::default() };
    state.vertex(vertex);
    state.end("v", timestamp(UNIX_EPOCH), "failed".to_owned());
    state.change("v", |vertex| vertex.cached = true);
    state.end("v", timestamp(SystemTime::now()), String::new());
    assert_eq!(state.entries.len(), 2);
    assert_eq!(state.vertexes["v"].error, "failed");
}

#[tokio::test]
async fn warnings_of_a_client_are_bounded() {
    let journal = Journal::new("b", None);
    let warning = || VertexWarning { short: vec![b'w'; 8 << 20], ..VertexWarning::default() };
    for _ in 0..32 {
        journal.warn(warning());
    }
    assert!(journal.size() <= MAX_LOG + ENTRY * 32, "{}", journal.size());
    let kept = journal.entries().len();
    assert!(kept > 0 && kept < 8, "{kept}");
    journal.observer(None).send(started(0, "a step is told all the same"));
    assert_eq!(journal.entries().len(), kept + 1);
}
