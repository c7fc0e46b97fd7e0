//! The daemon over the listeners of those who watch it: metrics, readiness, dumps, the web page.
//!
//! A small client of our own speaks HTTP/1.1 here. Start with [`client`].

use crate::client::{Files, TestDaemon};
use stave_daemon::{Address, WebPage};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

pub(crate) async fn daemon() -> TestDaemon {
    TestDaemon::start_with(|config, _| {
        let address: Address = "tcp://127.0.0.1:0".parse().expect("an address");
        config.monitor = Some(address.clone());
        config.web = Some(WebPage { address, hosts: vec!["builder.example".to_owned()] });
    })
    .await
}

/// An answer: its head and body.
pub(crate) async fn get(daemon: &TestDaemon, at: usize, path: &str, host: &str) -> (String, String) {
    ask(daemon, at, &format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n")).await
}

async fn ask(daemon: &TestDaemon, at: usize, request: &str) -> (String, String) {
    let address = daemon.watched[at].trim_start_matches("http://").trim_end_matches('/').to_owned();
    let mut stream = tokio::net::TcpStream::connect(address).await.expect("connects");
    stream.write_all(request.as_bytes()).await.expect("is sent");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.expect("is answered");
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let (head, body) = answer.split_once("\r\n\r\n").expect("an answer");
    (head.to_owned(), body.to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_count_builds_and_readiness_is_told() {
    let daemon = daemon().await;
    let files = Files::new(&[("f", "one"), ("g", "two")], "FROM scratch\nCOPY f g /\n");
    let mut client = daemon.client("s", "", files).await;
    client.build("b", "tar").await.expect("builds");
    let (head, body) = get(&daemon, 0, "/metrics", "anything").await;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert!(body.contains("result=\"succeeded\"} 1"), "{body}");
    assert!(body.contains("stave_steps_total{state=\"ran\"}"), "{body}");
    assert!(body.contains("stave_store_bytes "), "{body}");
    let (head, _) = get(&daemon, 0, "/healthz", "anything").await;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    let (head, body) = get(&daemon, 0, "/debug/graph", "anything").await;
    assert!(head.starts_with("HTTP/1.1 200") && body.contains("\"operations\""), "{head} {body}");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_page_is_for_who_knows_its_name_and_looks_only() {
    let daemon = daemon().await;
    let (head, body) = get(&daemon, 1, "/", "localhost").await;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert!(body.contains("page.js"));
    let policy = "content-security-policy: default-src 'none'; script-src 'self'";
    assert!(head.to_lowercase().contains(policy), "{head}");
    for (host, code) in [("builder.example", "200"), ("evil.example", "421"), ("127.0.0.1", "200")] {
        for path in ["/api/builds", "/", "/api/disk"] {
            let (head, _) = get(&daemon, 1, path, host).await;
            assert!(head.starts_with(&format!("HTTP/1.1 {code}")), "{host} {path}: {head}");
        }
    }
    let post =
        "POST /api/builds HTTP/1.1\r\nhost: localhost\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    assert!(ask(&daemon, 1, post).await.0.starts_with("HTTP/1.1 405"));
    let (head, _) = get(&daemon, 1, "/api/builds/nothing/events", "localhost").await;
    assert!(head.starts_with("HTTP/1.1 404"), "{head}");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_build_of_the_past_is_followed_from_its_begin_to_its_error() {
    let daemon = daemon().await;
    let files = Files::new(&[("f", "one")], "FROM scratch\nCOPY f /\nCOPY <script>alert(1)</script> /\n");
    let mut client = daemon.client("s", "", files).await;
    client.build("b", "tar").await.expect_err("no such file");
    let (_, listed) = get(&daemon, 1, "/api/builds", "localhost").await;
    assert!(listed.contains("\"ref\":\"b\"") && listed.contains("\"state\":\"failed\""), "{listed}");
    let (head, body) = get(&daemon, 1, "/api/builds/b/events", "localhost").await;
    assert!(head.to_lowercase().contains("content-type: text/event-stream"), "{head}");
    assert!(body.contains("\"vertexes\":[") && body.contains("\"over\":true"), "{body}");
    assert!(body.contains("<script>alert(1)"), "what a build says is told as it is, in JSON: {body}");
    daemon.stop().await;
}
