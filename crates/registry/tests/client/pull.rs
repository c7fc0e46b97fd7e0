//! Blobs in.

use bytes::Bytes;
use futures::StreamExt as _;
use stave_oci::{Descriptor, Digest, Reference, media_type};
use stave_registry::{Client, ErrorKind, RegistryError};
use stave_test_support::TestRegistry;
use stave_test_support::registry::Misbehaviour;
use tokio::io::AsyncReadExt as _;

use crate::{client, client_with_mirrors, impatient, noise};

fn place(registry: &TestRegistry, length: usize) -> (Reference, Descriptor, Vec<u8>) {
    let bytes = noise(length);
    registry.put_blob("app", &bytes);
    (registry.reference("app:1"), Descriptor::of(media_type::OCI_LAYER_GZIP, &bytes), bytes)
}

async fn fetch(client: &Client, name: &Reference, blob: &Descriptor) -> Result<Vec<u8>, RegistryError> {
    let mut stream = client.fetch_blob(name, blob).await?;
    let mut whole = Vec::new();
    while let Some(piece) = stream.next().await {
        let piece: Bytes = piece?;
        whole.extend_from_slice(&piece);
    }
    Ok(whole)
}

#[tokio::test]
async fn a_blob_arrives_whole() {
    let registry = TestRegistry::start();
    let (name, blob, bytes) = place(&registry, 300_000);
    assert_eq!(fetch(&client(), &name, &blob).await.expect("it is there"), bytes);
    let stream = client().fetch_blob(&name, &blob).await.expect("it is there");
    let mut read = Vec::new();
    stream.into_async_read().read_to_end(&mut read).await.expect("it is right");
    assert_eq!(read, bytes);
    let empty = Descriptor::of(media_type::OCI_LAYER, b"");
    registry.put_blob("app", b"");
    assert_eq!(fetch(&client(), &name, &empty).await.expect("nothing is something"), b"");
}

#[tokio::test]
async fn a_cut_blob_is_resumed_where_it_was_cut() {
    let registry = TestRegistry::start();
    let (name, blob, bytes) = place(&registry, 300_000);
    registry.script("GET", "/blobs/", Misbehaviour::CutAfter(100_000));
    registry.script("GET", "/blobs/", Misbehaviour::CutAfter(50_000));
    registry.script("GET", "/blobs/", Misbehaviour::StallAfter(50_000));
    assert_eq!(fetch(&impatient(), &name, &blob).await.expect("the cuts are mended"), bytes);
    let ranges: Vec<Option<String>> = registry.requests().into_iter().map(|request| request.range).collect();
    let range = |start: u32| Some(format!("bytes={start}-"));
    assert_eq!(ranges, [None, range(100_000), range(150_000), range(200_000)]);
}

#[tokio::test]
async fn a_server_that_starts_over_is_followed() {
    let registry = TestRegistry::start();
    let (name, blob, bytes) = place(&registry, 300_000);
    let [elsewhere, _] = std::array::from_fn(|_| TestRegistry::start());
    registry.script("GET", "/blobs/", Misbehaviour::CutAfter(100_000));
    // The redirect loses nothing of the range; a server without ranges is played by one that has the header taken.
    elsewhere.put_blob("app", &bytes);
    let target = format!("http://{}/v2/app/blobs/{}", elsewhere.host(), blob.digest);
    registry.script("GET", "/blobs/", Misbehaviour::Redirect(target));
    assert_eq!(fetch(&client(), &name, &blob).await.expect("the rest comes from elsewhere"), bytes);
    assert_eq!(elsewhere.requests()[0].range.as_deref(), Some("bytes=100000-"));
}

#[tokio::test]
async fn cuts_without_end_are_an_error() {
    let registry = TestRegistry::start();
    let (name, blob, _) = place(&registry, 300_000);
    for _ in 0..20 {
        registry.script("GET", "/blobs/", Misbehaviour::CutAfter(10));
    }
    let error = fetch(&client(), &name, &blob).await.expect_err("it never gets far");
    assert!(matches!(*error.kind, ErrorKind::Interrupted(_)), "{error:?}");
    assert_eq!(registry.faults_left(), 16);
}

#[tokio::test]
async fn another_range_than_asked_for_is_refused() {
    let registry = TestRegistry::start();
    let (name, blob, _) = place(&registry, 300_000);
    registry.script("GET", "/blobs/", Misbehaviour::CutAfter(1000));
    registry.script(
        "GET",
        "/blobs/",
        Misbehaviour::Header("Content-Range", "bytes 5-299999/300000".to_owned()),
    );
    let error = fetch(&client(), &name, &blob).await.expect_err("it would be put together wrongly");
    assert!(matches!(*error.kind, ErrorKind::Response(_)), "{error:?}");
}

#[tokio::test]
async fn other_bytes_are_an_error_with_both_digests() {
    let registry = TestRegistry::start();
    let (name, blob, bytes) = place(&registry, 70_000);
    registry.script("GET", "/blobs/", Misbehaviour::OtherBytes);
    let error = fetch(&client(), &name, &blob).await.expect_err("the bytes are others");
    let flipped: Vec<u8> = bytes.iter().map(|byte| byte ^ 1).collect();
    let text = format!(
        "failed to pull {name}: content does not match its digest: expected {}, got {}",
        blob.digest,
        Digest::sha256(&flipped)
    );
    assert_eq!(error.to_string(), text);
    assert_eq!(error.host, registry.host());
}

#[tokio::test]
async fn another_length_is_an_error() {
    let registry = TestRegistry::start();
    let (name, blob, _) = place(&registry, 70_000);
    registry.script("GET", "/blobs/", Misbehaviour::Short(60_000));
    let error = fetch(&client(), &name, &blob).await.expect_err("it is too short");
    let ErrorKind::SizeMismatch { expected, actual, at_least, .. } = &*error.kind else {
        panic!("{error:?}")
    };
    assert_eq!((*expected, *actual, *at_least), (70_000, 60_000, false));

    registry.script("GET", "/blobs/", Misbehaviour::Endless);
    let error = fetch(&client(), &name, &blob).await.expect_err("it is too long");
    assert!(matches!(*error.kind, ErrorKind::SizeMismatch { at_least: true, .. }), "{error:?}");

    let liar = Descriptor { size: 10, ..blob };
    let error = fetch(&client(), &name, &liar).await.expect_err("the descriptor lies");
    assert!(matches!(*error.kind, ErrorKind::SizeMismatch { expected: 10, actual: 70_000, .. }), "{error:?}");
}

#[tokio::test]
async fn a_missing_blob_is_not_found() {
    let registry = TestRegistry::start();
    let name = registry.reference("app:1");
    let blob = Descriptor::of(media_type::OCI_LAYER, b"nowhere");
    let error = fetch(&client(), &name, &blob).await.expect_err("it is nowhere");
    assert!(error.is_not_found());
}

#[tokio::test]
async fn large_configurations_are_refused_unread() {
    let registry = TestRegistry::start();
    let blob = Descriptor { size: 1 << 30, ..Descriptor::of(media_type::OCI_CONFIG, b"{}") };
    let error =
        client().fetch_small_blob(&registry.reference("app:1"), &blob).await.expect_err("it is too large");
    assert!(matches!(*error.kind, ErrorKind::TooLarge { .. }), "{error:?}");
    assert!(registry.requests().is_empty());
}

#[tokio::test]
async fn a_lying_mirror_is_not_asked_again() {
    let [origin, mirror] = std::array::from_fn(|_| TestRegistry::start());
    let (name, blob, bytes) = place(&origin, 5000);
    place(&mirror, 5000);
    let client = client_with_mirrors(&origin, &[&mirror]);
    mirror.script("GET", "/blobs/", Misbehaviour::OtherBytes);
    let error = fetch(&client, &name, &blob).await.expect_err("the mirror lies");
    assert_eq!(error.host, mirror.host());
    assert_eq!(fetch(&client, &name, &blob).await.expect("the registry itself does not"), bytes);
    assert_eq!((mirror.count("GET", "/blobs/"), origin.count("GET", "/blobs/")), (1, 1));
}

#[tokio::test]
async fn a_mirror_that_dies_midway_is_replaced() {
    let [origin, mirror] = std::array::from_fn(|_| TestRegistry::start());
    let (name, blob, bytes) = place(&origin, 50_000);
    place(&mirror, 50_000);
    mirror.script("GET", "/blobs/", Misbehaviour::CutAfter(20_000));
    for _ in 0..9 {
        mirror.script("GET", "/blobs/", Misbehaviour::Drop);
    }
    let client = client_with_mirrors(&origin, &[&mirror]);
    assert_eq!(fetch(&client, &name, &blob).await.expect("the registry itself has the rest"), bytes);
    assert_eq!(origin.requests()[0].range.as_deref(), Some("bytes=20000-"));
}

#[tokio::test]
async fn redirects_are_bounded() {
    let registry = TestRegistry::start();
    let (name, blob, _) = place(&registry, 10);
    let target = format!("http://{}/v2/app/blobs/{}", registry.host(), blob.digest);
    for _ in 0..30 {
        registry.script("GET", "/blobs/", Misbehaviour::Redirect(target.clone()));
    }
    let error = fetch(&client(), &name, &blob).await.expect_err("it goes round");
    assert!(matches!(*error.kind, ErrorKind::Redirect(_)), "{error:?}");
    assert_eq!(registry.faults_left(), 19);
}

#[tokio::test]
async fn futures_may_move_between_threads() {
    let registry = TestRegistry::start();
    let (name, blob, bytes) = place(&registry, 1000);
    let client = client();
    let task = tokio::spawn(async move {
        drop(client.resolve_digest(&name).await);
        fetch(&client, &name, &blob).await
    });
    assert_eq!(task.await.expect("the task ends").expect("it is there"), bytes);
}

#[tokio::test]
async fn a_blob_cut_anywhere_is_made_whole() {
    let registry = TestRegistry::start();
    let (name, blob, bytes) = place(&registry, 4_099);
    let client = client();
    let edges = [0, 1, 511, 512, 513, 4_095, 4_096, 4_097, 4_098];
    for cut in edges.into_iter().chain((0..4_099).step_by(97)) {
        registry.script("GET", "/blobs/", Misbehaviour::CutAfter(cut));
        assert_eq!(fetch(&client, &name, &blob).await.expect("the cut is mended"), bytes, "cut after {cut}");
        assert_eq!(registry.faults_left(), 0, "cut after {cut}");
    }
}

#[tokio::test]
async fn a_foreign_layer_is_fetched_from_where_its_manifest_says_without_credentials() {
    let (registry, elsewhere) = (TestRegistry::start(), TestRegistry::start());
    let bytes = noise(5_000);
    let mut blob = Descriptor::of(media_type::DOCKER_FOREIGN_LAYER_GZIP, &bytes);
    let digest = elsewhere.put_blob("files", &bytes);
    blob.urls = vec![
        "file:///etc/passwd".to_owned(),
        format!("http://user:secret@{}/v2/files/blobs/{digest}", elsewhere.host()),
        format!("http://{}/v2/nothing/blobs/{digest}", elsewhere.host()),
        format!("http://{}/v2/files/blobs/{digest}", elsewhere.host()),
    ];
    elsewhere.script("GET", "/files/", Misbehaviour::CutAfter(1_000));
    assert_eq!(fetch(&client(), &registry.reference("app:1"), &blob).await.expect("is there"), bytes);
    assert!(elsewhere.requests().iter().all(|request| request.authorization.is_none()));
    // A registry that is not to be had has not said that it lacks the layer; it lies elsewhere all the same.
    registry.script("GET", "/app/blobs/", Misbehaviour::Status(403, None, String::new()));
    assert_eq!(fetch(&client(), &registry.reference("app:1"), &blob).await.expect("is there"), bytes);
    assert_eq!(registry.faults_left(), 0);
    // Wrong bytes are as wrong as from the registry itself.
    elsewhere.script("GET", "/files/", Misbehaviour::OtherBytes);
    let error = fetch(&client(), &registry.reference("app:1"), &blob).await.expect_err("other bytes");
    assert!(matches!(*error.kind, ErrorKind::DigestMismatch { .. }), "{error:?}");
}

#[tokio::test]
async fn a_host_is_not_asked_for_more_at_once_than_its_table_says() {
    let registry = TestRegistry::start();
    let blobs: Vec<_> = (0..6usize)
        .map(|n| {
            let bytes = noise(50_000 + n);
            registry.put_blob("app", &bytes);
            Descriptor::of(media_type::OCI_LAYER, &bytes)
        })
        .collect();
    let table = format!("[registry.\"{}\"]\nmax-parallelism = 1\n", registry.host());
    let client = crate::client_with_tables(&table);
    let name = registry.reference("app:1");
    // With one turn, whoever has an open answer holds up the next one until it is dropped.
    let first = client.fetch_blob(&name, &blobs[0]).await.expect("opens");
    let waiting = client.fetch_blob(&name, &blobs[1]);
    tokio::pin!(waiting);
    assert!(futures::poll!(waiting.as_mut()).is_pending());
    tokio::task::yield_now().await;
    assert!(futures::poll!(waiting.as_mut()).is_pending());
    assert_eq!(registry.count("GET", "/blobs/"), 1);
    drop(first);
    drop(waiting.await.expect("opens"));
    let all = blobs.iter().map(|blob| fetch(&client, &name, blob));
    assert!(futures::future::join_all(all).await.iter().all(Result::is_ok));
}
