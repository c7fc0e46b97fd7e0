//! What is kept, replaced and dropped.

use super::*;

fn vertex(name: &str) -> Digest {
    Digest::sha256(name.as_bytes())
}

fn cached(name: &str) -> SolveEvent {
    SolveEvent::Cached { vertex: vertex(name), hit: crate::event::Hit::Local, key: None }
}

fn subscription(sender: EventSender) -> EventSubscription {
    let broadcast = Broadcast::new(vertex("a"));
    broadcast.attach(JobId(1), sender);
    EventSubscription::new(Arc::new(broadcast))
}

#[test]
fn newer_progress_replaces_what_was_not_read() {
    let (sender, mut receiver) = event_channel();
    let events = subscription(sender.clone());
    events.progress("x", 1, Some(10));
    events.progress("y", 1, None);
    sender.send(cached("b"));
    events.progress("x", 5, Some(10));
    let x = |current| SolveEvent::Progress { vertex: vertex("a"), id: "x".into(), current, total: Some(10) };
    assert_eq!(receiver.try_recv(), Some(x(5)));
    events.progress("x", 7, Some(10));
    let y = SolveEvent::Progress { vertex: vertex("a"), id: "y".into(), current: 1, total: None };
    assert_eq!(receiver.try_recv(), Some(y));
    assert_eq!(receiver.try_recv(), Some(cached("b")));
    assert_eq!(receiver.try_recv(), Some(x(7)));
    assert_eq!(receiver.try_recv(), None);
}

#[test]
fn progress_items_are_bounded() {
    let (sender, mut receiver) = event_channel();
    let events = subscription(sender);
    for item in 0..PROGRESS_LIMIT + 10 {
        events.progress(&item.to_string(), 0, None);
    }
    assert_eq!(std::iter::from_fn(|| receiver.try_recv()).count(), PROGRESS_LIMIT);
}

#[tokio::test]
async fn a_writer_waits_for_a_reader_that_reads() {
    let (sender, mut receiver) = event_channel();
    let events = subscription(sender);
    const PIECE: usize = LOG_BUFFER_LIMIT / 2;
    let write = async {
        for _ in 0..6 {
            events.log(LogStream::Stderr, &vec![b'x'; PIECE]).await;
        }
        drop(events);
    };
    let read = async {
        let mut total = 0;
        while let Some(event) = receiver.recv().await {
            match event {
                SolveEvent::Log { bytes, stream: LogStream::Stderr, .. } => total += bytes.len(),
                other => panic!("{other:?}"),
            }
        }
        total
    };
    let ((), total) = tokio::join!(write, read);
    assert_eq!(total, 6 * PIECE);
}

#[test]
fn a_job_hears_of_a_run_under_way_and_of_its_end_for_this_job() {
    let broadcast = Broadcast::new(vertex("a"));
    let started = SolveEvent::Started { vertex: vertex("a"), at: std::time::UNIX_EPOCH };
    broadcast.send(&started);
    let (sender, mut receiver) = event_channel();
    broadcast.attach(JobId(1), sender);
    assert_eq!(receiver.try_recv(), Some(SolveEvent::Joined { vertex: vertex("a") }));
    assert_eq!(receiver.try_recv(), Some(started));
    broadcast.detach(JobId(1));
    assert_eq!(receiver.try_recv(), Some(SolveEvent::Cancelled { vertex: vertex("a") }));
    broadcast.send(&SolveEvent::Completed { vertex: vertex("a"), duration: std::time::Duration::ZERO });
    assert_eq!(receiver.try_recv(), None);
}
