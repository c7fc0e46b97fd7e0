//! What a client wants beside its result: statements, caches, layouts in its own stores; and that it all can go again.

use std::collections::HashMap;

use bollard_buildkit_proto::moby::buildkit::v1::frontend::{self as front, Result as Results};
use bollard_buildkit_proto::moby::buildkit::v1::{
    CacheOptions, CacheOptionsEntry, DiskUsageRequest, Exporter, PruneRequest, SolveRequest,
};

use super::DOCKERFILE;
use super::client::{Built, Client, Files, TestDaemon, names};

fn files() -> Files {
    Files::new(&[("f", "1"), ("g", "2")], DOCKERFILE)
}

fn attrs(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn entry(kind: &str, pairs: &[(&str, &str)]) -> CacheOptionsEntry {
    CacheOptionsEntry { r#type: kind.to_owned(), attrs: attrs(pairs) }
}

async fn client(daemon: &TestDaemon, name: &str) -> Client {
    daemon.client(name, name, files()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_brings_how_it_was_made() {
    let daemon = TestDaemon::start().await;
    let mut client = client(&daemon, "s").await;
    let wish = |request: SolveRequest| SolveRequest {
        frontend_attrs: attrs(&[("attest:provenance", "mode=max"), ("build-arg:A", "1")]),
        ..request
    };
    let built = client.build_with("b", "oci", wish).await.expect("builds");
    let mut archive = tar::Archive::new(built.archive.as_slice());
    let documents = archive.entries().expect("is a tar").filter_map(|entry| {
        // Layers are no JSON.
        serde_json::from_reader::<_, serde_json::Value>(entry.expect("reads")).ok()
    });
    let statement = documents.filter(|value| value["predicateType"] == "https://slsa.dev/provenance/v1");
    let statements: Vec<_> = statement.collect();
    let asked = &statements[0]["predicate"]["buildDefinition"]["externalParameters"]["request"];
    assert_eq!((statements.len(), &asked["frontend"]), (1, &"dockerfile.v0".into()));
    assert_eq!(asked["args"]["build-arg:A"], "1");
    assert_eq!(asked["locals"], serde_json::json!([{"name": "context"}, {"name": "dockerfile"}]));
    daemon.stop().await;
}

/// Builds, and has the cache written to the client's own store; returns its digest.
async fn with_cache(writer: &mut Client) -> String {
    let exports = vec![entry("local", &[("dest", "/cache"), ("mode", "max")])];
    let wish = |request| SolveRequest {
        cache: Some(CacheOptions { exports, ..CacheOptions::default() }),
        ..request
    };
    let built = writer.build_with("b", "tar", wish).await.expect("builds");
    let described: serde_json::Value =
        serde_json::from_str(&built.response["cache.manifest"]).expect("a descriptor");
    described["digest"].as_str().expect("a digest").to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cache_lies_in_the_clients_own_store() {
    let one = TestDaemon::start().await;
    let mut writer = client(&one, "s").await;
    let digest = with_cache(&mut writer).await;
    let blobs = writer.files.blobs();
    let key = ("local:/cache".to_owned(), digest.clone());
    assert!(blobs.lock().expect("not poisoned").contains_key(&key), "{digest}");
    one.stop().await;

    // Another daemon, which has nothing of its own.
    let two = TestDaemon::start().await;
    let mut reader = two.client("r", "r", files().with_blobs(blobs)).await;
    let imports = vec![entry("local", &[("src", "/cache"), ("digest", &digest)])];
    let wish = |request| SolveRequest {
        cache: Some(CacheOptions { imports, ..CacheOptions::default() }),
        ..request
    };
    let built = reader.build_with("b", "tar", wish).await.expect("builds");
    let step = built.vertexes.iter().rfind(|vertex| vertex.name == "[1/1] COPY f g /").expect("is shown");
    assert!(step.cached, "{step:?}");
    assert_eq!(names(&built.archive), ["f", "g"]);
    two.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_front_end_of_the_client_names_caches() {
    let one = TestDaemon::start().await;
    let mut writer = client(&one, "s").await;
    let digest = with_cache(&mut writer).await;
    let blobs = writer.files.blobs();
    one.stop().await;

    // Another daemon, and a build that itself names no cache: only what its client solves does.
    let two = TestDaemon::start().await;
    let mut reader = two.client("r", "r", files().with_blobs(blobs)).await;
    let front_end = two.client("front-end", "", files()).await;
    let solving = tokio::spawn(async move {
        let named = entry("local", &[("src", "/cache"), ("digest", &digest)]);
        let named = front::CacheOptionsEntry { r#type: named.r#type, attrs: named.attrs };
        let inside = |cache_imports| front::SolveRequest {
            frontend: "dockerfile.v0".to_owned(),
            allow_result_return: true,
            allow_result_array_ref: true,
            cache_imports,
            ..front::SolveRequest::default()
        };
        let refused = front_end.solve_inside("b", inside(vec![named.clone(); 1000])).await;
        let solved = front_end.solve_inside("b", inside(vec![named])).await.expect("solves");
        front_end.return_result("b", solved.result.expect("a result")).await.expect("is taken");
        refused.map(drop).expect_err("too many").message().to_owned()
    });
    let wish = |request| SolveRequest { frontend: String::new(), ..request };
    let built = reader.build_with("b", "tar", wish).await.expect("builds");
    let refused = solving.await.expect("no panic");
    assert!(refused.starts_with("more than "), "{refused}");
    let step = built.vertexes.iter().rfind(|vertex| vertex.name == "[1/1] COPY f g /").expect("is shown");
    assert!(step.cached, "{step:?}");
    assert_eq!(names(&built.archive), ["f", "g"]);
    two.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_layout_goes_to_the_clients_own_store_and_comes_from_there() {
    let daemon = TestDaemon::start().await;
    let mut writer = client(&daemon, "s").await;
    let wish = |request| SolveRequest {
        exporters: vec![Exporter { r#type: "oci".to_owned(), attrs: attrs(&[("tar", "false")]) }],
        ..request
    };
    let built = writer.build_with("b", "oci", wish).await.expect("builds");
    let digest = built.response["containerimage.digest"].clone();
    let blobs = writer.files.blobs();
    let moved = {
        let all = blobs.lock().expect("not poisoned");
        assert!(
            all.contains_key(&("export".to_owned(), digest.clone())) && all.len() == 3,
            "{:?}",
            all.keys()
        );
        all.iter()
            .map(|((_, digest), blob)| (("oci:here".to_owned(), digest.clone()), blob.clone()))
            .collect()
    };
    *blobs.lock().expect("not poisoned") = moved;
    let files = Files::new(&[("h", "3")], "FROM base\nCOPY h /\n").with_blobs(blobs);
    let mut reader = daemon.client("r", "r", files).await;
    let context = format!("oci-layout://here@{digest}");
    let wish = |request| SolveRequest { frontend_attrs: attrs(&[("context:base", &context)]), ..request };
    let built = reader.build_with("c", "tar", wish).await.expect("builds");
    assert_eq!(names(&built.archive), ["f", "g", "h"]);

    let nothing = format!("oci-layout://here@sha256:{}", "0".repeat(64));
    let wish = |request| SolveRequest { frontend_attrs: attrs(&[("context:base", &nothing)]), ..request };
    let status = reader.build_with("d", "tar", wish).await.expect_err("is not there");
    assert!(status.message().contains("not found"), "{status:?}");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_builds_made_can_go_while_the_daemon_lives() {
    let daemon = TestDaemon::start().await;
    client(&daemon, "s").await.build("b", "tar").await.expect("builds");
    let mut control = daemon.control().await;
    let mut pruned = control
        .prune(PruneRequest { all: true, ..PruneRequest::default() })
        .await
        .expect("prunes")
        .into_inner();
    while pruned.message().await.expect("is told").is_some() {}
    let usage = control.disk_usage(DiskUsageRequest::default()).await.expect("answers").into_inner();
    assert_eq!(usage.record, []);
    daemon.stop().await;
}

/// Builds what a front end of the client returns, whose result has no files.
async fn returned(name: &str, exporter: &str, metadata: &[(&str, &str)]) -> Result<Built, String> {
    let daemon = TestDaemon::start().await;
    let mut client = client(&daemon, name).await;
    let front_end = daemon.client(&format!("{name}-front-end"), "", files()).await;
    let metadata = metadata.iter().map(|(key, value)| ((*key).to_owned(), value.as_bytes().to_vec()));
    let result = Results { metadata: metadata.collect(), ..Results::default() };
    let returning = tokio::spawn({
        let build = name.to_owned();
        // It waits for the build to begin.
        async move { front_end.return_result(&build, result).await }
    });
    let built =
        client.build_with(name, exporter, |request| SolveRequest { frontend: String::new(), ..request });
    let built = built.await.map_err(|status| status.message().to_owned());
    returning.await.expect("no panic").expect("is taken");
    daemon.stop().await;
    built
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_result_without_files_is_one() {
    let said = [("frontend.x", "told"), ("other", "not told")];
    let built = returned("empty", "tar", &said).await.expect("builds");
    assert!(names(&built.archive).is_empty());
    assert_eq!(built.response["frontend.x"], "told");
    assert!(!built.response.contains_key("other"));
    let broken = returned("broken", "oci", &[("containerimage.config", "null")]).await.map(|_| ());
    assert_eq!(broken.expect_err("is refused"), "invalid null image config for export");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_built_where_nobody_decides() {
    let daemon = TestDaemon::start().await;
    let mut client = client(&daemon, "s").await;
    let wish = |request| SolveRequest { source_policy_session: "s".to_owned(), ..request };
    let refused = client.build_with("b", "tar", wish).await.map(|_| ()).expect_err("nobody is asked");
    assert!(refused.message().contains("CheckPolicy not supported by the client"), "{refused}");
    daemon.stop().await;
}
