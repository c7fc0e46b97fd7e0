//! Builds leave nothing in memory: everything that is counted is as it was once they are over.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::client::{Files, TestDaemon};
use crate::watched::{daemon, get};

/// How long what a build held may take to go: its last tasks end after it.
const PATIENCE: Duration = Duration::from_secs(20);

async fn counts(daemon: &TestDaemon) -> Value {
    let (head, body) = get(daemon, 0, "/debug/memory", "anything").await;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    serde_json::from_str(&body).expect("is JSON")
}

/// Builds that succeed, that fail in the front end and in a step; their clients go as soon as they are told.
async fn build_all_kinds(daemon: &TestDaemon, round: usize) {
    let text = round.to_string();
    let build = async |kind: &str, dockerfile: &str| {
        let (session, build) = (format!("{kind}-session-{round}"), format!("{kind}-{round}"));
        let mut client = daemon.client(&session, "", Files::new(&[("f", &text)], dockerfile)).await;
        client.build(&build, "tar").await.is_ok()
    };
    assert!(build("good", "FROM scratch\nCOPY f /\n").await);
    assert!(build("same", "FROM scratch\nCOPY f /\nCOPY f /g\n").await);
    assert!(!build("unreadable", "FROM scratch\nNONSENSE\n").await);
    assert!(!build("missing", "FROM scratch\nCOPY nothing /\n").await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn builds_leave_nothing_in_memory() {
    let daemon = daemon().await;
    // What is made for the first build stays for all.
    build_all_kinds(&daemon, 0).await;
    let before = settled(&daemon, |now| now["in_use"]["daemon.sessions"] == 0).await;
    for round in 1..=10 {
        build_all_kinds(&daemon, round).await;
    }
    let after = settled(&daemon, |now| grown(&before, now).is_empty()).await;
    assert_eq!(grown(&before, &after), Vec::<String>::new(), "{after:#}");
    for (name, known) in after["remembered"].as_object().expect("a map") {
        assert!(known["count"].as_u64() <= known["most"].as_u64(), "{name}: {known}");
    }
    assert_eq!(after["in_use"]["daemon.builds"], 0);
    assert_eq!(after["in_use"]["solver.vertices"], 0);
    daemon.stop().await;
}

/// What there is more of than before. Less is no fault: what the first builds held may have gone late.
fn grown(before: &Value, now: &Value) -> Vec<String> {
    let counts = now["in_use"].as_object().expect("a map");
    let grown = counts.iter().filter(|(name, count)| count.as_u64() > before["in_use"][name].as_u64());
    grown.map(|(name, count)| format!("{name}: {} before, {count} now", before["in_use"][name])).collect()
}

/// The counts once they are so, or as they are when that takes too long.
async fn settled(daemon: &TestDaemon, is_so: impl Fn(&Value) -> bool) -> Value {
    let begin = Instant::now();
    loop {
        let now = counts(daemon).await;
        if is_so(&now) && now["in_use"]["daemon.builds"] == 0 || begin.elapsed() > PATIENCE {
            return now;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
