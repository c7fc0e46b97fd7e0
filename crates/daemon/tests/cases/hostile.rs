//! Clients that send too much, or read nothing.

use bollard_buildkit_proto::moby::buildkit::v1::{SolveRequest, StatusRequest};
use prost::Message as _;
use tonic::Code;

use super::DOCKERFILE;
use super::client::{Files, TestDaemon};

/// One byte more than the largest request, and the largest packet of a session.
const REQUEST: usize = (128 << 20) + 1;
/// Longer than any build here takes.
const HELD_UP: std::time::Duration = std::time::Duration::from_secs(60);
const PACKET: usize = (16 << 20) + 1;

fn files() -> Files {
    Files::new(&[("f", "1"), ("g", "2")], DOCKERFILE)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_have_a_largest_size() {
    let daemon = TestDaemon::start().await;
    let request =
        SolveRequest { r#ref: "large".to_owned(), frontend: "x".repeat(REQUEST), ..Default::default() };
    let status = daemon.control().await.solve(request).await.expect_err("is refused");
    assert_eq!(status.code(), Code::OutOfRange, "{status:?}");

    let large = "x".repeat(PACKET);
    let mut client = daemon.client("s", "", Files::new(&[("f", &large), ("g", "2")], DOCKERFILE)).await;
    let status = client.build("packet", "tar").await.expect_err("is refused");
    assert!(status.message().contains("too large"), "{status:?}");

    let mut client = daemon.client("good", "", files()).await;
    client.build("good", "tar").await.expect("builds");
    daemon.stop().await;
}

/// More than all buffers between a daemon and a client hold: the windows of a connection are of 7 MiB.
const UNREAD: usize = 16 << 20;

/// A Dockerfile of which so much is told: each line has a warning, and each warning brings the whole file.
fn talkative() -> Files {
    let lines: String = (0..200).map(|number| format!("ENV k{number} {}\n", "x".repeat(500))).collect();
    Files::new(&[("f", "1"), ("g", "2")], &format!("{DOCKERFILE}{lines}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_reads_nothing_holds_nobody_up() {
    let daemon = TestDaemon::start().await;
    let mut control = daemon.control().await;
    // Of a build that is to come; its answers stay unread.
    let watching = tokio::spawn(async move {
        let unread = control.status(StatusRequest { r#ref: "b".to_owned() }).await;
        (control, unread)
    });
    let client = daemon.client("s", "", talkative()).await;
    let built = tokio::time::timeout(HELD_UP, client.start_build("b")).await.expect("is not held up");
    built.expect("no panic").expect("builds");
    let (_control, unread) = watching.await.expect("no panic");
    let mut unread = unread.expect("is answered").into_inner();
    let mut other = daemon.client("t", "", files()).await;
    tokio::time::timeout(HELD_UP, other.build("c", "tar")).await.expect("is not held up").expect("builds");
    let mut told = 0;
    while let Some(update) = unread.message().await.expect("goes on where it was") {
        told += update.encoded_len();
    }
    assert!(told > UNREAD, "{told} bytes may have fitted into buffers");
    daemon.stop().await;
}
