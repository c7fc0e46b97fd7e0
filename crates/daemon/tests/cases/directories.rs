//! Which files of a client's directory travel, and where results go that nobody wants.

use bollard_buildkit_proto::moby::buildkit::v1::SolveRequest;
use bollard_buildkit_proto::pb;
use prost::Message as _;
use stave_llb::SourceOp;
use stave_llb::builder::{About, GraphBuilder};
use stave_oci::Platform;

use super::DOCKERFILE;
use super::client::{Built, Client, Files, TestDaemon, content, names};

/// A graph that is the client's directory, with these attributes.
fn directory(attrs: &[(&str, &str)]) -> pb::Definition {
    let attrs = attrs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    let mut graph = GraphBuilder::default();
    let made =
        graph.source(SourceOp::new("local://context".to_owned(), attrs), &Platform::host(), About::default());
    pb::Definition::decode(graph.finish(Some(made)).to_wire().as_slice()).expect("is one")
}

pub(super) async fn built(client: &mut Client, id: &str, attrs: &[(&str, &str)]) -> Result<Built, String> {
    let graph = directory(attrs);
    let wish = |request| SolveRequest { frontend: String::new(), definition: Some(graph), ..request };
    client.build_with(id, "tar", wish).await.map_err(|status| status.message().to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_says_which_files_travel_again() {
    let daemon = TestDaemon::start().await;
    let mut client = daemon.client("a", "key", Files::new(&[("f", "one")], "")).await;
    let first = built(&mut client, "1", &[]).await.expect("builds");
    assert_eq!(content(&first.archive, "f"), "one");
    drop(client);
    // The same size and time: only its content tells that it is another.
    let mut client = daemon.client("b", "key", Files::new(&[("f", "two")], "")).await;
    let second = built(&mut client, "2", &[("local.differ", "metadata")]).await.expect("builds");
    assert_eq!(content(&second.archive, "f"), "one");
    let third = built(&mut client, "3", &[("local.differ", "none")]).await.expect("builds");
    assert_eq!(content(&third.archive, "f"), "two");
    let refused = built(&mut client, "4", &[("local.differ", "content")]).await.expect_err("no such differ");
    assert!(refused.contains("`local.differ` has the invalid value `content`"), "{refused}");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_directory_only_what_is_excepted_may_travel() {
    let daemon = TestDaemon::start().await;
    let files = Files::new(&[("data", "contents"), ("foo", "x")], "");
    let mut client = daemon.client("a", "key", files).await;
    let attrs = [("local.metadatatransfer", "true"), ("local.metadatatransferexclude", r#"["foo"]"#)];
    let part = built(&mut client, "1", &attrs).await.expect("builds");
    assert_eq!(names(&part.archive), [".fsutil-metadata", "foo"]);
    assert_eq!(client.files.asked(), ["foo"]);
    // A directory of its own: the whole one is not what is left of it.
    let whole = built(&mut client, "2", &[]).await.expect("builds");
    assert_eq!(names(&whole.archive), ["data", "foo"]);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_may_be_another_sessions() {
    let daemon = TestDaemon::start().await;
    let other = daemon.client("other", "its", Files::new(&[("f", "theirs")], "")).await;
    let mut client = daemon.client("own", "key", Files::new(&[("f", "own")], "")).await;
    let theirs = built(&mut client, "1", &[("local.session", "other")]).await.expect("builds");
    assert_eq!(content(&theirs.archive, "f"), "theirs");
    assert_eq!(other.files.asked(), ["f"]);
    let own = built(&mut client, "2", &[("local.session", "own")]).await.expect("builds");
    assert_eq!(content(&own.archive, "f"), "own");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_may_want_no_file() {
    let daemon = TestDaemon::start().await;
    let files = Files::new(&[("f", "1"), ("g", "2")], DOCKERFILE).with_the_result();
    let mut client = daemon.client("s", "s", files).await;
    let built = client.build("b", "oci").await.expect("builds");
    // It was told what it would be sent.
    let digest = &built.response["containerimage.digest"];
    assert!(digest.starts_with("sha256:"), "{:?}", built.response);
    assert_eq!(String::from_utf8_lossy(&built.archive), *digest);
    daemon.stop().await;
}
