//! Clients that send too much, or read nothing.

use bollard_buildkit_proto::moby::buildkit::v1::{SolveRequest, StatusRequest};
use tonic::Code;

use super::DOCKERFILE;
use super::client::{Files, TestDaemon};

/// One byte more than the largest request, and the largest packet of a session.
const REQUEST: usize = (128 << 20) + 1;
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_reads_nothing_holds_nobody_up() {
    let daemon = TestDaemon::start().await;
    let mut control = daemon.control().await;
    // Of a build that is to come; its answers stay unread.
    let watching = tokio::spawn(async move {
        let unread = control.status(StatusRequest { r#ref: "b".to_owned() }).await;
        (control, unread)
    });
    let mut client = daemon.client("s", "", files()).await;
    client.build("b", "tar").await.expect("builds");
    let (_control, unread) = watching.await.expect("no panic");
    let unread = unread.expect("is answered");
    let mut other = daemon.client("t", "", files()).await;
    other.build("c", "tar").await.expect("builds");
    drop(unread);
    daemon.stop().await;
}
