//! The history of builds: listed, followed, kept, removed, and told again.

use std::collections::BTreeSet;

use bollard_buildkit_proto::moby::buildkit::v1::{
    BuildHistoryEvent, BuildHistoryEventType, BuildHistoryRequest, StatusRequest, UpdateBuildHistoryRequest,
};
use tonic::{Code, Status};

use crate::client::{Files, TestDaemon};

const DOCKERFILE: &str = "FROM scratch\nCOPY f /\n";

async fn list(daemon: &TestDaemon, request: BuildHistoryRequest) -> Result<Vec<BuildHistoryEvent>, Status> {
    let request = BuildHistoryRequest { early_exit: true, ..request };
    let mut events = daemon.control().await.listen_build_history(request).await?.into_inner();
    let mut found = Vec::new();
    while let Some(event) = events.message().await? {
        found.push(event);
    }
    Ok(found)
}

fn references(events: &[BuildHistoryEvent]) -> Vec<&str> {
    events.iter().filter_map(|event| event.record.as_ref()).map(|record| record.r#ref.as_str()).collect()
}

async fn update(daemon: &TestDaemon, request: UpdateBuildHistoryRequest) -> Result<(), Status> {
    daemon.control().await.update_build_history(request).await.map(drop)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn builds_are_remembered_until_they_are_removed() {
    let daemon = TestDaemon::start().await;
    let mut client = daemon.client("s", "", Files::new(&[("f", "1")], DOCKERFILE)).await;
    let built = client.build("good", "oci").await.expect("builds");
    let mut other = daemon.client("t", "", Files::new(&[], "FROM scratch\nFOO\n")).await;
    other.build("bad", "oci").await.expect_err("no Dockerfile");

    let all = list(&daemon, BuildHistoryRequest::default()).await.expect("lists");
    assert_eq!(references(&all), ["bad", "good"], "the newest first");
    let kinds: Vec<_> = all.iter().map(BuildHistoryEvent::r#type).collect();
    assert_eq!(kinds, [BuildHistoryEventType::Complete; 2]);
    let record = all[1].record.clone().expect("has one");
    assert_eq!((record.frontend.as_str(), record.error.is_none()), ("dockerfile.v0", true));
    assert_eq!(record.exporter_response, built.response);
    let steps: BTreeSet<_> = built.vertexes.iter().map(|vertex| &vertex.digest).collect();
    assert_eq!(record.num_total_steps, i32::try_from(steps.len()).expect("few"));
    assert!(record.result.is_some() && record.completed_at.is_some() && record.logs.is_some());
    assert!(all[0].record.clone().expect("has one").error.is_some());

    let failed = BuildHistoryRequest { filter: vec!["status=error".to_owned()], ..Default::default() };
    assert_eq!(references(&list(&daemon, failed).await.expect("lists")), ["bad"]);
    let newest = BuildHistoryRequest { limit: 1, ..Default::default() };
    assert_eq!(references(&list(&daemon, newest).await.expect("lists")), ["bad"]);
    let active = BuildHistoryRequest { active_only: true, ..Default::default() };
    assert_eq!(references(&list(&daemon, active).await.expect("lists")), Vec::<&str>::new());

    let about =
        |reference: &str| UpdateBuildHistoryRequest { r#ref: reference.to_owned(), ..Default::default() };
    update(&daemon, UpdateBuildHistoryRequest { pinned: true, ..about("good") }).await.expect("pins");
    let good = BuildHistoryRequest { r#ref: "good".to_owned(), ..Default::default() };
    let found = list(&daemon, good.clone()).await.expect("lists");
    assert!(found[0].record.as_ref().is_some_and(|record| record.pinned));
    update(&daemon, UpdateBuildHistoryRequest { finalize: true, ..about("good") }).await.expect("is whole");
    update(&daemon, UpdateBuildHistoryRequest { delete: true, ..about("good") }).await.expect("removes");
    assert_eq!(list(&daemon, good).await.expect("lists").len(), 0);
    let gone = update(&daemon, UpdateBuildHistoryRequest { delete: true, ..about("good") }).await;
    assert_eq!(gone.expect_err("is gone").code(), Code::NotFound);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_follows_hears_of_each_build() {
    let daemon = TestDaemon::start().await;
    let mut client = daemon.client("s", "", Files::new(&[("f", "1")], DOCKERFILE)).await;
    let mut control = daemon.control().await;
    let followed = control.listen_build_history(BuildHistoryRequest::default()).await.expect("listens");
    let mut followed = followed.into_inner();
    client.build("b", "oci").await.expect("builds");
    let delete = UpdateBuildHistoryRequest { r#ref: "b".to_owned(), delete: true, ..Default::default() };
    update(&daemon, delete).await.expect("removes");
    let mut kinds = Vec::new();
    while kinds.len() < 3 {
        kinds.push(followed.message().await.expect("goes on").expect("goes on").r#type());
    }
    use BuildHistoryEventType::{Complete, Deleted, Started};
    assert_eq!(kinds, [Started, Complete, Deleted]);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_build_said_is_told_again_by_another_daemon() {
    let daemon = TestDaemon::start().await;
    let mut client = daemon.client("s", "", Files::new(&[("f", "1")], DOCKERFILE)).await;
    let built = client.build("b", "oci").await.expect("builds");
    drop(client);
    let daemon = daemon.restart().await;
    let request = StatusRequest { r#ref: "b".to_owned() };
    let mut updates = daemon.control().await.status(request).await.expect("is known").into_inner();
    let mut vertexes = Vec::new();
    while let Some(update) = updates.message().await.expect("reads") {
        vertexes.extend(update.vertexes);
    }
    assert_eq!(vertexes, built.vertexes);
    daemon.stop().await;
}

/// A call of the content service with one text as its request; returns the bytes of all answers.
async fn content(daemon: &TestDaemon, method: &str, text: &str) -> Result<Vec<Content>, Status> {
    let mut grpc = tonic::client::Grpc::new(daemon.wire().await);
    grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    let path = format!("/containerd.services.content.v1.Content/{method}").parse().expect("a path");
    let codec = tonic_prost::ProstCodec::<Named, Content>::default();
    let request = tonic::Request::new(Named { text: text.to_owned() });
    let mut answers = grpc.server_streaming(request, path, codec).await?.into_inner();
    let mut all = Vec::new();
    while let Some(answer) = answers.message().await? {
        all.push(answer);
    }
    Ok(all)
}

#[derive(Clone, PartialEq, prost::Message)]
struct Named {
    #[prost(string, tag = "1")]
    text: String,
}

/// What `Read` answers.
#[derive(Clone, PartialEq, prost::Message)]
struct Content {
    #[prost(bytes = "vec", tag = "2")]
    data: Vec<u8>,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_hangs_on_a_record_is_content_as_long_as_it_is_there() {
    let daemon = TestDaemon::start().await;
    let mut client = daemon.client("s", "", Files::new(&[], DOCKERFILE)).await;
    client.build("b", "oci").await.expect_err("has no `f`");
    let all = list(&daemon, BuildHistoryRequest::default()).await.expect("lists");
    let record = all[0].record.clone().expect("has one");
    assert_eq!(record.error.as_ref().map(|error| error.details.len()), Some(0));
    for hung in [&record.external_error, &record.trace, &record.logs] {
        let hung = hung.as_ref().expect("hangs there");
        let read = content(&daemon, "Read", &hung.digest).await.expect("is read");
        let bytes: Vec<u8> = read.into_iter().flat_map(|part| part.data).collect();
        assert_eq!(stave_oci::Digest::sha256(&bytes).to_string(), hung.digest);
        assert_eq!(i64::try_from(bytes.len()).expect("few"), hung.size);
    }
    assert_eq!(content(&daemon, "Read", "sha256:x").await.expect_err("is none").code(), Code::NotFound);
    assert_eq!(content(&daemon, "Delete", "").await.expect_err("is not").code(), Code::Unimplemented);
    let trace = record.trace.expect("hangs there").digest;
    let delete = UpdateBuildHistoryRequest { r#ref: "b".to_owned(), delete: true, ..Default::default() };
    update(&daemon, delete).await.expect("removes");
    assert_eq!(content(&daemon, "Read", &trace).await.expect_err("is gone").code(), Code::NotFound);
    daemon.stop().await;
}
