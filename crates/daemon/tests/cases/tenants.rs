//! Several tenants on one daemon: what each can reach of the others', which must be nothing.
//!
//! Tenants are told apart by tokens here; by what else is tested where names are read. Start with [`client`].

use std::path::Path;

use crate::client::{Files, TestDaemon, content};
use crate::directories::built;
use bollard_buildkit_proto::moby::buildkit::v1::control_client::ControlClient;
use bollard_buildkit_proto::moby::buildkit::v1::frontend::ReadFileRequest;
use bollard_buildkit_proto::moby::buildkit::v1::{
    BuildHistoryRequest, DiskUsageRequest, Exporter, InfoRequest, PruneRequest, SolveRequest, StatusRequest,
};
use stave_daemon::{DaemonConfig, InheritedSocket, Listener, TenancyConfig, TlsIdentity};
use stave_oci::Digest;
use tonic::Code;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};

const DOCKERFILE: &str = "FROM scratch\nCOPY f g /\n";

fn tenants(config: &mut DaemonConfig, folder: &Path) {
    let lines =
        ["alice", "bob", "ci"].map(|name| format!("{name} {}\n", Digest::sha256(name.as_bytes()).hex()));
    let path = folder.join("tokens");
    std::fs::write(&path, lines.concat()).expect("written");
    let table = TenancyConfig {
        enabled: true,
        trusted: vec!["token:ci".to_owned()],
        tokens: Some(path),
        ..TenancyConfig::default()
    };
    let read = |path: &Path| std::fs::read(path).map_err(|error| error.to_string());
    config.tenancy = table.load(&read).expect("tenants");
    config.audit = Some(folder.join("audit.jsonl"));
}

async fn daemon() -> TestDaemon {
    TestDaemon::start_with(tenants).await
}

fn files() -> Files {
    Files::new(&[("f", "one"), ("g", "two")], DOCKERFILE)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_is_none_lets_nobody_in() {
    let daemon = daemon().await;
    let refused = daemon.control_as("mallory").await.info(InfoRequest {}).await.expect_err("is refused");
    assert_eq!((refused.code(), refused.message()), (Code::Unauthenticated, "the token is not known"));
    daemon.control_as("alice").await.info(InfoRequest {}).await.expect("is let in");
    // The kernel vouches for whoever shows none.
    daemon.control().await.info(InfoRequest {}).await.expect("is let in");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenants_files_do_not_stand_for_anothers_that_look_alike() {
    let daemon = daemon().await;
    let mut alice = daemon.client_as(Some("alice"), "a", "key", files()).await;
    alice.build("build-a", "tar").await.expect("builds");
    drop(alice);
    // The same key, names, sizes and times; other content. What is not asked for would be alice's.
    let theirs = Files::new(&[("f", "111"), ("g", "222")], DOCKERFILE);
    let mut bob = daemon.client_as(Some("bob"), "b", "key", theirs).await;
    let built = bob.build("build-b", "tar").await.expect("builds");
    assert_eq!(content(&built.archive, "f"), "111");
    assert_eq!(bob.files.asked(), ["Dockerfile", "f", "g"]);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_what_trusted_builds_made_is_found_by_others() {
    let daemon = daemon().await;
    let mut cached = Vec::new();
    for (build, token) in ["alice", "bob", "bob", "ci", "alice"].into_iter().enumerate() {
        let mut client = daemon.client_as(Some(token), &format!("s{build}"), token, files()).await;
        let built = client.build(&format!("b{build}"), "tar").await.expect("builds");
        assert_eq!(crate::client::names(&built.archive), ["f", "g"]);
        let copy = built.vertexes.iter().rev().find(|vertex| vertex.name.contains("COPY")).expect("is told");
        cached.push(copy.cached);
    }
    // Another tenant's result is not found, one's own is; nor does the trusted one take any.
    assert_eq!(cached, [false, false, true, false, true]);
    let files = Files::new(&[("f", "trusted"), ("g", "x")], DOCKERFILE);
    let mut ci = daemon.client_as(Some("ci"), "ci", "", files.clone()).await;
    ci.build("ci-build", "tar").await.expect("builds");
    let mut bob = daemon.client_as(Some("bob"), "bob", "", files).await;
    let built = bob.build("bob-build", "tar").await.expect("builds");
    assert!(built.vertexes.iter().any(|vertex| vertex.name.contains("COPY") && vertex.cached));
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn builds_sessions_history_and_room_of_others_are_nowhere() {
    let daemon = daemon().await;
    let mut alice = daemon.client_as(Some("alice"), "a", "", files()).await;
    alice.build("build-a", "tar").await.expect("builds");
    let bob = daemon.client_as(Some("bob"), "b", "", files()).await;

    // A session of another is none.
    let mut control = daemon.control_as("bob").await;
    let request = SolveRequest {
        r#ref: "stolen".to_owned(),
        session: "a".to_owned(),
        frontend: "dockerfile.v0".to_owned(),
        ..SolveRequest::default()
    };
    let refused = control.solve(request).await.expect_err("is refused");
    assert!(refused.message().contains("no active session for a"), "{refused}");

    let request =
        ReadFileRequest { r#ref: "x".to_owned(), file_path: "/f".to_owned(), ..ReadFileRequest::default() };
    let refused = bob.read_file("build-a", request).await.expect_err("is refused");
    assert!(refused.message().contains("no such job build-a"), "{refused}");
    let mut status =
        control.status(StatusRequest { r#ref: "build-a".to_owned() }).await.expect_err("is refused");
    assert_eq!(status.code(), Code::NotFound);
    status.metadata_mut().clear();

    let mut seen = Vec::new();
    for token in ["alice", "bob", "ci"] {
        let mut control = daemon.control_as(token).await;
        let request = BuildHistoryRequest { early_exit: true, ..BuildHistoryRequest::default() };
        let mut listed = control.listen_build_history(request).await.expect("is listed").into_inner();
        let mut count = 0;
        while let Some(event) = listed.message().await.expect("is told") {
            count += usize::from(event.record.is_some_and(|record| record.r#ref == "build-a"));
        }
        let used =
            control.disk_usage(DiskUsageRequest::default()).await.expect("is told").into_inner().record;
        seen.push((token, count, !used.is_empty()));
    }
    assert_eq!(seen, [("alice", 1, true), ("bob", 0, false), ("ci", 1, true)]);

    // What bob prunes is not alice's.
    let mut pruned = control
        .prune(PruneRequest { all: true, ..PruneRequest::default() })
        .await
        .expect("prunes")
        .into_inner();
    assert!(pruned.message().await.expect("is told").is_none());
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_is_never_another_tenants_session() {
    let daemon = daemon().await;
    let files = |text| Files::new(&[("f", text)], "");
    let mut alice = daemon.client_as(Some("alice"), "hers", "key", files("alices")).await;
    let mut bob = daemon.client_as(Some("bob"), "his", "key", files("bobs!!")).await;
    // Both ask for the same graph, which names her session, at a time and one after the other.
    let graph = [("local.session", "hers")];
    let (hers, his) = tokio::join!(built(&mut alice, "a", &graph), built(&mut bob, "b", &graph));
    assert_eq!(content(&hers.expect("builds").archive, "f"), "alices");
    assert_eq!(content(&his.expect("builds").archive, "f"), "bobs!!");
    assert_eq!((alice.files.asked(), bob.files.asked()), (vec!["f".to_owned()], vec!["f".to_owned()]));
    let again = built(&mut bob, "c", &graph).await.expect("builds");
    assert_eq!(content(&again.archive, "f"), "bobs!!");
    assert_eq!(alice.files.asked(), ["f"], "nobody else's build asks her");

    // Whoever wants to be asked in her place does not get to be.
    let squatter = daemon.client_as(Some("bob"), "hers", "key", files("bobs!!")).await;
    let refused = squatter.start_build("d").await.expect("no panic").map(drop).expect_err("is refused");
    assert!(refused.message().contains("no active session for hers"), "{refused}");
    let again = built(&mut alice, "e", &[("local.session", "hers")]).await.expect("builds");
    assert_eq!(content(&again.archive, "f"), "alices");
    // A directory that is named apart from the graph needs a session of one's own, too.
    let options = [("local-sessionid:context".to_owned(), "hers".to_owned())];
    let named = |request| SolveRequest { frontend_attrs: options.into_iter().collect(), ..request };
    let refused = bob.build_with("g", "tar", named).await.map(drop).expect_err("is refused");
    assert!(refused.message().contains("no active session for hers"), "{refused}");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_tenants_may_not_is_refused_and_taken_down() {
    let daemon = daemon().await;
    let alice = daemon.client_as(Some("alice"), "a", "", files()).await;
    let mut control = daemon.control_as("alice").await;
    let attrs = [("name", "docker.io/library/golang:1"), ("store", "true")];
    let attrs = attrs.map(|(key, value)| (key.to_owned(), value.to_owned())).into_iter().collect();
    let request = SolveRequest {
        r#ref: "poison".to_owned(),
        session: "a".to_owned(),
        frontend: "dockerfile.v0".to_owned(),
        exporters: vec![Exporter { r#type: "image".to_owned(), attrs }],
        ..SolveRequest::default()
    };
    let refused = control.solve(request).await.expect_err("is refused");
    assert_eq!(refused.code(), Code::PermissionDenied);
    let text = std::fs::read_to_string(daemon.folder.path().join("audit.jsonl")).expect("is there");
    let lines: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).expect("an object")).collect();
    let told = |key: &str| lines[0][key].as_str().unwrap_or_default().to_owned();
    assert_eq!(
        (told("who"), told("what"), told("result")),
        ("token:alice".into(), "build".into(), "failed".into())
    );
    assert_eq!(told("ref"), "poison");
    drop(alice);
    daemon.stop().await;
}

/// A file of the test's certificates.
fn pem(name: &str) -> Vec<u8> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/daemon");
    std::fs::read(folder.join(name)).expect("is there")
}

async fn tls_client(port: u16, own: Option<&str>) -> Result<String, String> {
    let mut tls =
        ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem("ca.pem"))).domain_name("localhost");
    if let Some(name) = own {
        let (certificate, key) = (pem(&format!("{name}.pem")), pem(&format!("{name}.key")));
        tls = tls.identity(Identity::from_pem(certificate, key));
    }
    let endpoint = Endpoint::from_shared(format!("https://127.0.0.1:{port}")).expect("an address");
    let channel = endpoint.tls_config(tls).expect("certificates").connect().await;
    let channel = channel.map_err(|error| format!("{error:?}"))?;
    let pruned = ControlClient::new(channel).prune(PruneRequest::default()).await;
    let mut pruned = pruned.map_err(|status| format!("{status:?}"))?.into_inner();
    pruned.message().await.map_err(|status| format!("{status:?}"))?;
    Ok("let in".to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificates_name_is_its_clients() {
    let identity = TlsIdentity {
        certificate: pem("server.pem"),
        key: pem("server.key"),
        client_authority: pem("ca.pem"),
    };
    let socket = std::net::TcpListener::bind("127.0.0.1:0").expect("binds");
    let port = socket.local_addr().expect("is bound").port();
    let daemon = TestDaemon::start_with(|config, folder| {
        config.audit = Some(folder.join("audit.jsonl"));
        let socket = InheritedSocket::Tcp(socket);
        config.listeners.push(Listener::Inherited { socket, identity: Some(identity) });
    })
    .await;
    assert_eq!(tls_client(port, Some("alice")).await.as_deref(), Ok("let in"));
    for name in [None, Some("stranger"), Some("expired")] {
        tls_client(port, name).await.expect_err("is refused");
    }
    let text = std::fs::read_to_string(daemon.folder.path().join("audit.jsonl")).expect("is there");
    let refused = text.lines().filter(|line| line.contains("\"result\":\"refused\"")).count();
    assert!(refused >= 3, "each of the three is taken down: {text}");
    assert_eq!(text.lines().count(), 1 + refused, "{text}");
    assert!(text.contains("\"who\":\"cert:alice\"") && text.contains("\"what\":\"prune\""), "{text}");
    daemon.stop().await;
}
