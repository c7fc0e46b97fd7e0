//! The daemon over its real sockets, driven by a client of our own that keeps to the protocol, or does not.
//!
//! Nothing here starts a process in a sandbox: what a build does is tested elsewhere. Start with [`client`].

#[path = "cases/directories.rs"]
mod directories;
#[path = "cases/history.rs"]
mod history;
#[path = "cases/holdings.rs"]
mod holdings;
#[path = "cases/hostile.rs"]
mod hostile;
#[path = "cases/policy.rs"]
mod policy;
#[path = "cases/results.rs"]
mod results;
#[path = "cases/tenants.rs"]
mod tenants;
#[path = "cases/unmade.rs"]
mod unmade;
#[path = "cases/verified.rs"]
mod verified;
#[path = "cases/watched.rs"]
mod watched;

mod client;

use std::time::Duration;

use bollard_buildkit_proto::moby::buildkit::v1::frontend::ReadFileRequest;
use bollard_buildkit_proto::moby::buildkit::v1::{DiskUsageRequest, InfoRequest, ListWorkersRequest};
use client::{Files, TestDaemon};

const DOCKERFILE: &str = "FROM scratch\nCOPY f g /\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_build_reaches_its_client_and_the_next_one_sends_what_changed() {
    let daemon = TestDaemon::start().await;
    let files = Files::new(&[("f", "one"), ("g", "two")], DOCKERFILE);
    let mut client = daemon.client("first", "key", files).await;
    let built = client.build("build-1", "tar").await.expect("builds");
    assert_eq!(client::names(&built.archive), ["f", "g"]);
    assert_eq!(client.files.asked(), ["Dockerfile", "f", "g"]);
    let names: Vec<_> = built.vertexes.iter().map(|vertex| vertex.name.as_str()).collect();
    assert!(names.contains(&"[1/1] COPY f g /"), "{names:?}");
    assert!(built.vertexes.iter().all(|vertex| vertex.error.is_empty()), "{:?}", built.vertexes);
    drop(client);

    let files = Files::new(&[("f", "one"), ("g", "three")], DOCKERFILE);
    let mut client = daemon.client("second", "key", files).await;
    let built = client.build("build-2", "tar").await.expect("builds");
    assert_eq!(client::content(&built.archive, "g"), "three");
    assert_eq!(client.files.asked(), ["g"], "only what changed travels");

    let files = Files::new(&[("f", "one"), ("g", "three")], DOCKERFILE);
    let mut client = daemon.client("third", "another key", files).await;
    client.build("build-3", "tar").await.expect("builds");
    assert_eq!(client.files.asked(), ["Dockerfile", "f", "g"], "another client's directories are another's");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn images_have_buildkits_metadata() {
    let daemon = TestDaemon::start().await;
    let mut client = daemon.client("s", "", Files::new(&[("f", "1"), ("g", "2")], DOCKERFILE)).await;
    let built = client.build("b", "oci").await.expect("builds");
    for key in ["containerimage.config.digest", "containerimage.digest", "containerimage.descriptor"] {
        assert!(built.response.contains_key(key), "{:?}", built.response);
    }
    assert!(client::names(&built.archive).iter().any(|name| name == "index.json"));
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn errors_say_where() {
    let daemon = TestDaemon::start().await;
    let files = Files::new(&[("f", "1")], "FROM scratch\nFOO bar\n");
    let mut client = daemon.client("s", "", files).await;
    let status = client.build("b", "tar").await.expect_err("is refused");
    assert!(status.message().starts_with("dockerfile parse error on line 2: unknown instruction: FOO"));
    let details = String::from_utf8_lossy(status.details()).into_owned();
    assert!(details.contains("github.com/moby/buildkit/errdefs.Source+json"), "{details}");
    let files = Files::new(&[("f", "1")], DOCKERFILE);
    let mut client = daemon.client("t", "", files).await;
    let status = client.build("c", "tar").await.expect_err("is refused");
    assert!(status.message().contains("\"/g\": not found"), "{status:?}");
    assert!(String::from_utf8_lossy(status.details()).contains("errdefs.Vertex+json"));
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_directories_do_not_leave_their_place() {
    let daemon = TestDaemon::start().await;
    let check = async |id: &str, files: Files, expected: &str| {
        let mut client = daemon.client(id, id, files).await;
        let status = client.build(id, "tar").await.expect_err("is refused");
        assert!(status.message().contains(expected), "{status:?}");
    };
    let good = || Files::new(&[("f", "1"), ("g", "2")], DOCKERFILE);
    check("up", good().with_path("../escaped"), "invalid path `../escaped`").await;
    check("absolute", good().with_path("/etc/escaped"), "invalid path `/etc/escaped`").await;
    check("order", good().with_path("a"), "path `a` is out of order").await;
    check("unasked", good().unasked(), "content nobody asked for").await;
    // The daemon serves on.
    let mut client = daemon.client("good", "", good()).await;
    client.build("good", "tar").await.expect("builds");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn builds_and_sessions_are_their_owners() {
    let daemon = TestDaemon::start().await;
    let files = || Files::new(&[("f", "1"), ("g", "2")], DOCKERFILE);
    let mut client = daemon.client("mine", "", files()).await;
    client.build("b", "tar").await.expect("builds");
    let status = client.build("b", "tar").await.expect_err("a ref is used once");
    assert!(status.message().contains("job ID b exists"), "{status:?}");
    let refused = daemon.try_client("mine", files()).await;
    assert!(refused.is_some_and(|status| status.message() == "invalid session id"));
    let request = ReadFileRequest { r#ref: "guessed".to_owned(), ..ReadFileRequest::default() };
    let status = client.read_file("b", request).await.expect_err("the build is over");
    assert_eq!(status.code(), tonic::Code::NotFound);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_goes_away_ends_its_build() {
    let daemon = TestDaemon::start().await;
    let files = Files::new(&[("f", "1"), ("g", "2")], DOCKERFILE).silent();
    let client = daemon.client("s", "", files).await;
    let building = client.start_build("b");
    client.files.wait_until_asked().await;
    client.hang_up();
    let status = building.await.expect("no panic").expect_err("is over");
    assert_eq!(status.code(), tonic::Code::Cancelled, "{status:?}");
    // Nothing of it keeps the daemon from ending.
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_that_waits_for_a_build_takes_no_other_and_says_so() {
    let daemon = TestDaemon::start_with(|config, _| config.patience = Duration::from_secs(60)).await;
    let files = || Files::new(&[("f", "1"), ("g", "2")], DOCKERFILE);
    let first = daemon.client("s", "", files().silent()).await;
    let building = first.start_build("b");
    first.files.wait_until_asked().await;
    let second = daemon.client("t", "", files()).await;
    daemon.tell_to_end();
    // It hears of it in its own time.
    let mut number = 0;
    let refused = loop {
        match second.start_build(&format!("c{number}")).await.expect("no panic") {
            Ok(_) => number += 1,
            Err(status) => break status,
        }
    };
    assert_eq!(refused.code(), tonic::Code::Unavailable, "{refused:?}");
    assert_eq!(refused.message(), "the daemon is about to end: it takes no more builds");
    assert!(!building.is_finished(), "the build that runs goes on");
    first.hang_up();
    building.await.expect("no panic").expect_err("its client went away");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_daemon_says_of_itself() {
    let daemon = TestDaemon::start().await;
    let mut control = daemon.control().await;
    let info = control.info(InfoRequest {}).await.expect("answers").into_inner();
    assert_eq!(info.buildkit_version.expect("is there").package, "stave");
    let workers = control.list_workers(ListWorkersRequest::default()).await.expect("answers").into_inner();
    assert_eq!(workers.record[0].platforms[0].os, "linux");
    let usage = control.disk_usage(DiskUsageRequest::default()).await.expect("answers").into_inner();
    assert!(usage.record.is_empty());
    let request = DiskUsageRequest { filter: vec!["nonsense==1".to_owned()], ..DiskUsageRequest::default() };
    let status = control.disk_usage(request).await.expect_err("is refused");
    assert_eq!(status.code(), tonic::Code::InvalidArgument);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_are_told_the_platforms_of_the_configuration() {
    let named = ["linux/amd64", "linux/riscv64"].map(|text| text.parse().expect("a platform"));
    let daemon = TestDaemon::start_with(|config, _| config.worker.platforms = named.to_vec()).await;
    let workers = daemon.control().await.list_workers(ListWorkersRequest::default()).await.expect("answers");
    let told: Vec<_> =
        workers.get_ref().record[0].platforms.iter().map(|told| told.architecture.as_str()).collect();
    assert_eq!(told, ["amd64", "riscv64"]);
    daemon.stop().await;
}
