//! A client that decides, source by source, what its build is made from.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use bollard_buildkit_proto::moby::buildkit::v1::SolveRequest;
use bollard_buildkit_proto::moby::buildkit::v1::frontend::{Result as Results, SolveRequest as Inside};
use bollard_buildkit_proto::moby::buildkit::v1::sourcepolicy::{Policy, PolicyAction};
use bollard_buildkit_proto::pb;
use prost::Message as _;
use stave_llb::SourceOp;
use stave_llb::builder::{About, GraphBuilder};
use stave_oci::{Digest, Platform};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::client::policy::{Question, Word};
use super::client::{Files, TestDaemon, content};
use super::policy::rule;

/// How long a client waits for the question that should come.
const PATIENCE: Duration = Duration::from_secs(20);
/// A client asked more often than this is asked for ever.
const OFTEN: usize = 30;

/// A graph that is made from these sources.
fn graph(sources: &[(&str, &Platform)]) -> pb::Definition {
    let mut graph = GraphBuilder::default();
    let mut made = Vec::new();
    for (identifier, platform) in sources {
        let op = SourceOp::new((*identifier).to_owned(), Default::default());
        made.push(graph.source(op, platform, About::default()));
    }
    let end = match made.as_slice() {
        [only] => Some(*only),
        _ => graph.merge(made.into_iter().map(Some), About::default()),
    };
    pb::Definition::decode(graph.finish(end).to_wire().as_slice()).expect("is one")
}

/// Builds a graph for a client that decides by `word`. Returns the file `x` of what came of it.
async fn built(
    sources: &[(&str, &Platform)],
    word: impl Fn(&Question) -> Word + Send + Sync + 'static,
) -> Result<String, String> {
    let daemon = TestDaemon::start().await;
    let mut client = daemon.client("s", "", Files::new(&[], "").deciding(word)).await;
    let graph = graph(sources);
    let wish = |request| SolveRequest {
        frontend: String::new(),
        definition: Some(graph),
        source_policy_session: "s".to_owned(),
        ..request
    };
    let built = client.build_with("b", "tar", wish).await;
    daemon.stop().await;
    built.map(|built| content(&built.archive, "x")).map_err(|status| status.message().to_owned())
}

/// An HTTP server of this process that answers everything with the same words.
async fn server(body: &'static str) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("is known");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n", body.len());
            let (mut buffer, mut read) = ([0; 4096], 0);
            while !buffer[..read].ends_with(b"\r\n\r\n") {
                match stream.read(&mut buffer[read..]).await {
                    Ok(count @ 1..) => read += count,
                    _ => break,
                }
            }
            let body = if buffer.starts_with(b"HEAD") { "" } else { body };
            let answer = format!("{head}connection: close\r\n\r\n{body}");
            stream.write_all(answer.as_bytes()).await.ok();
        }
    });
    format!("http://{address}/x")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_gets_the_facts_it_asks_for() {
    let source = server("content").await;
    let asked = Arc::new(AtomicUsize::new(0));
    let word = {
        let (asked, digest) = (Arc::clone(&asked), Digest::sha256(b"content").to_string());
        move |question: &Question| {
            let facts = question.source.as_ref().and_then(|source| source.http.as_ref());
            match (asked.fetch_add(1, Ordering::Relaxed), facts) {
                (OFTEN.., _) => Word::deny(),
                (_, None) => question.more(),
                (_, Some(facts)) if facts.checksum == digest => Word::allow(),
                _ => Word::deny(),
            }
        }
    };
    let built = built(&[(source.as_str(), &Platform::host())], word).await;
    assert_eq!(built.as_deref(), Ok("content"));
    assert_eq!(asked.load(Ordering::Relaxed), 2, "once for the source, once with what is known of it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_source_is_replaced_by_one() {
    let source = "docker-image://nowhere.invalid/base:1";
    let platforms = [Platform::new("linux", "amd64", None), Platform::new("linux", "s390x", None)];
    let sources = [(source, &platforms[0]), (source, &platforms[1])];
    let per_platform =
        |question: &Question| match (question.identifier().ends_with("/base:1"), question.architecture()) {
            (true, architecture) => {
                Word::convert(&format!("docker-image://nowhere.invalid/{architecture}:1"))
            }
            _ => Word::allow(),
        };
    let refused = built(&sources, per_platform).await.expect_err("two words");
    assert!(refused.contains("by one source for a platform and by another for the next"), "{refused}");
    let one_goes = |question: &Question| match question.architecture() {
        "amd64" => Word::convert("docker-image://nowhere.invalid/other:1"),
        _ => Word::allow(),
    };
    // Which platform comes first makes no difference.
    for sources in [sources, [sources[1], sources[0]]] {
        let refused = built(&sources, move |question| match question.identifier().ends_with("/other:1") {
            true => Word::allow(),
            false => one_goes(question),
        });
        let refused = refused.await.expect_err("two words");
        assert!(refused.contains("by one source for a platform and by another for the next"), "{refused}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_takes_a_sources_place_is_held_against_the_rules_of_the_call() {
    let daemon = TestDaemon::start().await;
    let word = |question: &Question| match question.identifier() {
        "https://nowhere.invalid/first" => Word::convert("https://nowhere.invalid/second"),
        _ => Word::allow(),
    };
    let mut client = daemon.client("s", "", Files::new(&[], "").deciding(word)).await;
    let front_end = daemon.client("front-end", "", Files::new(&[], "")).await;
    let asking = tokio::spawn(async move {
        let host = Platform::host();
        let inside = |rules: &[PolicyAction]| Inside {
            definition: Some(graph(&[("https://nowhere.invalid/first", &host)])),
            source_policies: rules
                .iter()
                .map(|action| Policy {
                    version: 1,
                    rules: vec![rule(*action, "https://nowhere.invalid/second", None)],
                })
                .collect(),
            ..Inside::default()
        };
        // The build's rules say nothing of it, and the answer is known from then on.
        front_end.solve_inside("b", inside(&[])).await.expect("is taken up");
        let denied = front_end.solve_inside("b", inside(&[PolicyAction::Deny])).await;
        front_end.return_result("b", Results::default()).await.expect("is taken");
        denied
    });
    let wish =
        |request| SolveRequest { frontend: String::new(), source_policy_session: "s".to_owned(), ..request };
    client.build_with("b", "tar", wish).await.expect("builds");
    let denied = asking.await.expect("no panic").expect_err("is denied");
    assert_eq!(
        denied.message(),
        "error evaluating the source policy: source \"https://nowhere.invalid/second\" denied by policy: source \
         denied by policy"
    );
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_client_is_asked_about_several_sources_at_a_time() {
    let sources = [server("a").await, server("b").await];
    let asked = Arc::new((Mutex::new(0), Condvar::new()));
    // Says nothing about the one before it was asked about the other.
    let word = move |_: &Question| {
        let (count, more) = &*asked;
        let mut count = count.lock().expect("not poisoned");
        *count += 1;
        more.notify_all();
        let (_count, waited) =
            more.wait_timeout_while(count, PATIENCE, |count| *count < 2).expect("not poisoned");
        if waited.timed_out() { Word::deny() } else { Word::allow() }
    };
    let host = Platform::host();
    let built = built(&[(&sources[0], &host), (&sources[1], &host)], word).await;
    assert_eq!(built.as_deref(), Ok("b"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_puts_a_source_in_its_own_place_is_asked_again_and_not_for_ever() {
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&asked);
    let itself = "docker-image://docker.io/library/busybox:latest";
    let word = move |question: &Question| {
        counted.fetch_add(1, Ordering::Relaxed);
        Word::convert(question.identifier())
    };
    let refused = built(&[(itself, &Platform::host())], word).await.expect_err("never ends");
    assert!(refused.contains("too many policy requests"), "{refused}");
    // As often as the reference's daemon asks.
    assert_eq!(asked.load(Ordering::Relaxed), 10);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_puts_a_source_in_its_own_place_first_may_decide_then() {
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&asked);
    let word = move |question: &Question| match counted.fetch_add(1, Ordering::Relaxed) {
        0 => Word::convert(question.identifier()),
        _ => Word::allow(),
    };
    let source = server("as it is").await;
    let built = built(&[(&source, &Platform::host())], word).await.expect("is allowed");
    assert_eq!((built.as_str(), asked.load(Ordering::Relaxed)), ("as it is", 2));
}
