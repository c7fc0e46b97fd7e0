//! Blobs and manifests out.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use stave_oci::{Descriptor, Digest, media_type};
use stave_registry::{BlobContent, BlobPush, BlobSource, Client, ErrorKind, Keychain, Limits};
use stave_test_support::TestRegistry;
use stave_test_support::registry::Misbehaviour;

use crate::{client, config, limits, noise};

fn blob(length: usize) -> (Descriptor, Bytes) {
    let bytes = Bytes::from(noise(length));
    (Descriptor::of(media_type::OCI_LAYER_GZIP, &bytes), bytes)
}

fn chunked(chunk: u64) -> Client {
    let mut config = config("", Keychain::anonymous());
    config.limits = Limits { upload_chunk: Some(chunk), ..limits() };
    Client::new(config).expect("the tables are valid")
}

#[tokio::test]
async fn a_blob_is_sent_once_and_its_progress_told() {
    let registry = TestRegistry::start();
    let name = registry.reference("app:1");
    let (blob, bytes) = blob(700_000);
    let told = Arc::new(Mutex::new(Vec::new()));
    let listener = Arc::clone(&told);
    let content = BlobContent::new(bytes.clone())
        .watched(Arc::new(move |count| listener.lock().expect("nobody panicked").push(count)));
    let client = client();
    assert!(!client.has_blob(&name, &blob.digest).await.expect("the registry answers"));
    let pushed = client.push_blob(&name, &blob, content.clone(), None).await.expect("it is taken");
    assert_eq!(pushed, BlobPush::Uploaded);
    assert_eq!(registry.blob("app", &blob.digest).as_deref(), Some(&bytes[..]));
    let told = told.lock().expect("nobody panicked").clone();
    assert_eq!(told.last(), Some(&700_000));
    assert!(told.is_sorted(), "{told:?}");
    assert_eq!(
        (registry.count("POST", ""), registry.count("PUT", ""), registry.count("PATCH", "")),
        (1, 1, 0)
    );

    let again = client.push_blob(&name, &blob, content, None).await.expect("it is there");
    assert_eq!(again, BlobPush::Existed);
    assert!(client.has_blob(&name, &blob.digest).await.expect("the registry answers"));
    assert_eq!(registry.count("PUT", ""), 1);
}

#[tokio::test]
async fn a_blob_that_is_known_to_be_missing_is_not_asked_for() {
    let registry = TestRegistry::start();
    let name = registry.reference("app:1");
    let (blob, bytes) = blob(1000);
    client().upload_blob(&name, &blob, BlobContent::new(bytes.clone())).await.expect("it is taken");
    assert_eq!(registry.blob("app", &blob.digest).as_deref(), Some(&bytes[..]));
    assert_eq!(
        (registry.count("HEAD", ""), registry.count("POST", ""), registry.count("PUT", "")),
        (0, 1, 1)
    );
}

#[tokio::test]
async fn files_and_nothing_can_be_sent() {
    let registry = TestRegistry::start();
    let name = registry.reference("app:1");
    let (blob, bytes) = blob(300_000);
    let mut file = tempfile::tempfile().expect("a temporary file");
    io::Write::write_all(&mut file, &bytes).expect("there is room");
    client().push_blob(&name, &blob, BlobContent::new(file), None).await.expect("it is taken");
    assert_eq!(registry.blob("app", &blob.digest).as_deref(), Some(&bytes[..]));
    let empty = Descriptor::of(media_type::OCI_LAYER, b"");
    client().push_blob(&name, &empty, BlobContent::new(Bytes::new()), None).await.expect("it is taken");
    assert_eq!(registry.blob("app", &empty.digest).as_deref(), Some(&b""[..]));
}

#[tokio::test]
async fn a_cut_upload_is_resumed() {
    let registry = TestRegistry::start();
    let name = registry.reference("app:1");
    let (blob, bytes) = blob(300_000);
    registry.script("PUT", "/uploads/", Misbehaviour::CutAfter(100_000));
    client().push_blob(&name, &blob, BlobContent::new(bytes.clone()), None).await.expect("the cut is mended");
    assert_eq!(registry.blob("app", &blob.digest).as_deref(), Some(&bytes[..]));
    let sent: Vec<(String, u64)> = registry
        .requests()
        .into_iter()
        .filter(|request| matches!(request.method.as_str(), "PUT" | "PATCH"))
        .map(|request| (request.method, request.length))
        .collect();
    let expected = [("PUT", 300_000), ("PATCH", 200_000), ("PUT", 0)];
    assert_eq!(sent, expected.map(|(method, length)| (method.to_owned(), length)));
    assert_eq!(registry.count("POST", ""), 1);
}

#[tokio::test]
async fn an_upload_cut_anywhere_is_made_whole() {
    let registry = TestRegistry::start();
    let client = client();
    let (blob, bytes) = blob(4_099);
    let edges = [1, 2, 511, 512, 513, 4_095, 4_096, 4_097, 4_098, 4_099];
    for cut in edges.into_iter().chain((0..4_099).step_by(97)) {
        let name = registry.reference(&format!("app{cut}:1"));
        registry.script("PUT", "/uploads/", Misbehaviour::CutAfter(cut));
        let pushed = client.push_blob(&name, &blob, BlobContent::new(bytes.clone()), None).await;
        assert_eq!(pushed.expect("the cut is mended"), BlobPush::Uploaded, "cut after {cut}");
        assert_eq!(registry.blob(&format!("app{cut}"), &blob.digest).as_deref(), Some(&bytes[..]), "{cut}");
        assert_eq!(registry.faults_left(), 0, "cut after {cut}");
    }
}

#[tokio::test]
async fn a_push_that_hangs_is_given_up() {
    let registry = TestRegistry::start();
    let (blob, bytes) = blob(3000);
    for _ in 0..9 {
        registry.script("PUT", "/uploads/", Misbehaviour::Hang);
    }
    let mut config = config("", Keychain::anonymous());
    let short = Duration::from_millis(200);
    config.limits = Limits {
        attempts: 2,
        connect_timeout: short,
        idle_timeout: short,
        commit_timeout: short,
        ..limits()
    };
    let client = Client::new(config).expect("the tables are valid");
    let name = registry.reference("app:1");
    let error = client.push_blob(&name, &blob, BlobContent::new(bytes), None).await.expect_err("no answer");
    assert!(matches!(*error.kind, ErrorKind::Timeout(_)), "{error:?}");
}

/// What was written, and the lengths announced.
fn sent(registry: &TestRegistry) -> Vec<(String, u64)> {
    let writes = |method: &str| matches!(method, "POST" | "PUT" | "PATCH");
    let requests = registry.requests().into_iter().filter(|request| writes(&request.method));
    requests.map(|request| (request.method, request.length)).collect()
}

/// Sends a blob before its digest is told, at a registry with a fault for that.
async fn check_ahead(fault: Option<Misbehaviour>, expected: &[(&str, u64)]) {
    let registry = TestRegistry::start();
    let name = registry.reference("app:1");
    let (blob, bytes) = blob(300_000);
    if let Some(fault) = fault {
        registry.script("PATCH", "/uploads/", fault);
    }
    let content = BlobContent::new(bytes.clone());
    let ahead = client().upload_ahead(&name, content.clone()).await;
    client().finish_blob(&name, &blob, content, ahead).await.expect("it is taken");
    assert_eq!(registry.blob("app", &blob.digest).as_deref(), Some(&bytes[..]));
    let expected: Vec<_> = expected.iter().map(|(method, length)| ((*method).to_owned(), *length)).collect();
    assert_eq!(sent(&registry), expected);
}

#[tokio::test]
async fn what_is_sent_before_its_digest_is_known_is_sent_once() {
    // A body without a length announces none.
    check_ahead(None, &[("POST", 0), ("PATCH", 0), ("PUT", 0)]).await;
    let cut = Some(Misbehaviour::CutAfter(100_000));
    check_ahead(cut, &[("POST", 0), ("PATCH", 0), ("PATCH", 200_000), ("PUT", 0)]).await;
    // A server that wants lengths.
    let refused = Some(Misbehaviour::Status(411, None, String::new()));
    check_ahead(refused, &[("POST", 0), ("PATCH", 0), ("POST", 0), ("PUT", 300_000)]).await;
    let lies = Some(Misbehaviour::Header("Range", "0-99".to_owned()));
    check_ahead(lies, &[("POST", 0), ("PATCH", 0), ("PUT", 0)]).await;
}

#[tokio::test]
async fn what_was_taken_wrongly_is_sent_anew() {
    for status in [400, 416] {
        let registry = TestRegistry::start();
        let name = registry.reference("app:1");
        let (blob, bytes) = blob(300_000);
        registry.script("PUT", "/uploads/", Misbehaviour::Status(status, None, String::new()));
        let content = BlobContent::new(bytes.clone());
        let ahead = client().upload_ahead(&name, content.clone()).await;
        client().finish_blob(&name, &blob, content, ahead).await.expect("it is taken");
        assert_eq!(registry.blob("app", &blob.digest).as_deref(), Some(&bytes[..]));
        let expected = [("POST", 0), ("PATCH", 0), ("PUT", 0), ("POST", 0), ("PUT", 300_000)];
        assert_eq!(sent(&registry), expected.map(|(method, length)| (method.to_owned(), length)));
    }
}

#[tokio::test]
async fn bytes_that_stop_coming_are_no_blob() {
    let registry = TestRegistry::start();
    let ahead = client().upload_ahead(&registry.reference("app:1"), BlobContent::new(Failing)).await;
    let (blob, bytes) = blob(3000);
    let name = registry.reference("app:1");
    client().finish_blob(&name, &blob, BlobContent::new(bytes), ahead).await.expect("it is sent anew");
    assert!(registry.blob("app", &blob.digest).is_some());
}

#[tokio::test]
async fn an_upload_whose_session_is_gone_starts_over() {
    let registry = TestRegistry::start();
    let name = registry.reference("app:1");
    let (blob, bytes) = blob(300_000);
    registry.script("PUT", "/uploads/", Misbehaviour::CutAfter(100_000));
    registry.script("GET", "/uploads/", Misbehaviour::Status(404, None, String::new()));
    client().push_blob(&name, &blob, BlobContent::new(bytes.clone()), None).await.expect("it starts over");
    assert_eq!(registry.blob("app", &blob.digest).as_deref(), Some(&bytes[..]));
    assert_eq!(registry.count("POST", ""), 2);
}

#[tokio::test]
async fn an_upload_whose_answer_was_lost_is_not_sent_again() {
    let registry = TestRegistry::start();
    let name = registry.reference("app:1");
    let (blob, bytes) = blob(3000);
    registry.script("PUT", "/uploads/", Misbehaviour::Drop);
    client().push_blob(&name, &blob, BlobContent::new(bytes), None).await.expect("it had arrived");
    assert_eq!((registry.count("PUT", ""), registry.count("POST", "")), (1, 1));
}

#[tokio::test]
async fn pieces_are_sent_and_resumed() {
    let registry = TestRegistry::start();
    let name = registry.reference("app:1");
    let (blob, bytes) = blob(250_000);
    registry.script("PATCH", "/uploads/", Misbehaviour::CutAfter(30_000));
    let pushed = chunked(100_000).push_blob(&name, &blob, BlobContent::new(bytes.clone()), None).await;
    assert_eq!(pushed.expect("the cut is mended"), BlobPush::Uploaded);
    assert_eq!(registry.blob("app", &blob.digest).as_deref(), Some(&bytes[..]));
    let lengths: Vec<u64> = registry
        .requests()
        .into_iter()
        .filter(|request| request.method == "PATCH")
        .map(|request| request.length)
        .collect();
    assert_eq!(lengths, [100_000, 100_000, 100_000, 20_000]);
}

#[tokio::test]
async fn server_faults_are_tried_again() {
    let registry = TestRegistry::start();
    let name = registry.reference("app:1");
    let (blob, bytes) = blob(3000);
    registry.script("POST", "/uploads/", Misbehaviour::Status(500, None, String::new()));
    registry.script("PUT", "/uploads/", Misbehaviour::Status(503, Some(0), String::new()));
    client().push_blob(&name, &blob, BlobContent::new(bytes.clone()), None).await.expect("it goes through");
    assert_eq!(registry.blob("app", &blob.digest).as_deref(), Some(&bytes[..]));
}

#[tokio::test]
async fn a_registry_that_takes_nothing_is_an_error() {
    let registry = TestRegistry::start();
    let name = registry.reference("app:1");
    let (blob, bytes) = blob(3000);
    for _ in 0..9 {
        registry.script("PUT", "/uploads/", Misbehaviour::Status(500, None, String::new()));
    }
    let error =
        client().push_blob(&name, &blob, BlobContent::new(bytes), None).await.expect_err("it is broken");
    assert!(matches!(&*error.kind, ErrorKind::Status(fault) if fault.code == 500), "{error:?}");
    assert_eq!(registry.count("PUT", ""), 4);
}

#[tokio::test]
async fn a_small_blob_is_offered_in_the_request_that_opens_its_upload() {
    let registry = TestRegistry::start();
    let name = registry.reference("app:1");
    let (blob, bytes) = blob(1000);
    let offer = async || client().offer_blob(&name, &blob, BlobContent::new(bytes.clone())).await;
    let counts = || ["HEAD", "POST", "PUT"].map(|method| registry.count(method, "/v2/app/"));
    assert_eq!(offer().await.expect("it is taken"), BlobPush::Uploaded);
    assert_eq!(registry.blob("app", &blob.digest).as_deref(), Some(&bytes[..]));
    assert_eq!(counts(), [0, 1, 1]);
    assert_eq!(offer().await.expect("it is there"), BlobPush::Existed);
    assert_eq!(counts(), [0, 2, 1]);
    // One that knows no mounts from the repository itself gets it again.
    registry.script("POST", "/v2/app/", Misbehaviour::Status(400, None, String::new()));
    assert_eq!(offer().await.expect("it is taken"), BlobPush::Uploaded);
    assert_eq!(counts(), [0, 4, 2]);
}

#[tokio::test]
async fn blobs_are_mounted_where_the_registry_can() {
    let registry = TestRegistry::start();
    let name = registry.reference("app:1");
    let (blob, bytes) = blob(3000);
    registry.put_blob("library/base", &bytes);
    let mounted =
        client().push_blob(&name, &blob, BlobContent::new(Bytes::new()), Some("library/base")).await;
    assert_eq!(mounted.expect("it is mounted"), BlobPush::Mounted);
    assert!(registry.blob("app", &blob.digest).is_some());

    let other = registry.reference("other:1");
    assert!(client().mount_blob(&other, &blob.digest, "app").await.expect("the registry answers"));
    assert!(!client().mount_blob(&other, &Digest::sha256(b"x"), "app").await.expect("the registry answers"));

    let third = registry.reference("third:1");
    let pushed = client().push_blob(&third, &blob, BlobContent::new(bytes), Some("nowhere")).await;
    assert_eq!(pushed.expect("it is sent instead"), BlobPush::Uploaded);
    assert_eq!(registry.count("POST", "/v2/third/"), 1, "the upload that was offered instead is used");
}

#[tokio::test]
async fn manifests_are_put_by_tag_and_by_digest() {
    let registry = TestRegistry::start();
    let placed = registry.put_image("app", "old", b"{}", &[b"layer"]);
    let (kind, bytes) = registry.manifest("app", "old").expect("it was placed");
    let bytes = Bytes::from([&bytes[..], b"\n"].concat());
    let digest = client().push_manifest(&registry.reference("app:new"), &kind, bytes.clone()).await;
    let digest = digest.expect("it is taken");
    assert_eq!(digest, Digest::sha256(&bytes));
    assert_eq!(registry.manifest("app", "new"), Some((kind.clone(), bytes.to_vec())));
    let pinned = registry.reference(&format!("app@{}", placed.manifest.digest));
    let bytes = registry.manifest("app", "old").expect("it was placed").1;
    client().push_manifest(&pinned, &kind, bytes.into()).await.expect("it is taken");
    assert_eq!(registry.count("PUT", placed.manifest.digest.as_str()), 1);
}

#[tokio::test]
async fn a_manifest_without_its_blobs_is_refused_in_the_registrys_words() {
    let registry = TestRegistry::start();
    let lone = serde_json::json!({
        "schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST, "layers": [],
        "config": Descriptor::of(media_type::OCI_CONFIG, b"nowhere"),
    });
    let name = registry.reference("app:1");
    let error = client().push_manifest(&name, media_type::OCI_MANIFEST, lone.to_string().into()).await;
    let text = error.expect_err("its blob is nowhere").to_string();
    assert!(text.contains("400 Bad Request: manifest blob unknown: blob unknown to registry"), "{text}");
}

/// Fails once it is read past a point.
struct Failing;

impl BlobSource for Failing {
    fn read_at(&self, offset: u64, length: usize) -> io::Result<Bytes> {
        if offset > 0 {
            return Err(io::Error::other("the disk is gone"));
        }
        Ok(vec![0; length.min(1000)].into())
    }
}

#[tokio::test]
async fn a_source_that_fails_is_what_the_error_says() {
    let registry = TestRegistry::start();
    let name = registry.reference("app:1");
    let (blob, _) = blob(300_000);
    let error = client().push_blob(&name, &blob, BlobContent::new(Failing), None).await.expect_err("no data");
    assert_eq!(
        error.to_string(),
        format!("failed to push {name}: cannot read the data to upload: the disk is gone")
    );
    let short = BlobContent::new(Bytes::from_static(b"too short"));
    let error = client().push_blob(&name, &blob, short, None).await.expect_err("too little data");
    assert!(error.to_string().contains("shorter than its descriptor says"), "{error}");
}

#[tokio::test]
async fn an_upload_that_nobody_wants_is_called_off() {
    let registry = TestRegistry::start();
    let name = registry.reference("app:1");
    let (blob, bytes) = blob(300_000);
    let ahead = client().upload_ahead(&name, BlobContent::new(bytes.clone())).await;
    client().give_up_blob(&name, ahead).await;
    assert_eq!(registry.count("DELETE", "/uploads/"), 1);
    // One that the registry opened in place of a mount; it does not matter what it says.
    registry.script("DELETE", "/uploads/", Misbehaviour::Status(500, None, String::new()));
    let mounted = client().mount_blob(&name, &blob.digest, "other").await.expect("an answer");
    assert!(!mounted);
    assert_eq!((registry.count("DELETE", "/uploads/"), registry.faults_left()), (2, 0));
    // Nothing was sent: there is nothing to call off.
    let nothing = chunked(100_000).upload_ahead(&name, BlobContent::new(bytes)).await;
    client().give_up_blob(&name, nothing).await;
    assert_eq!(registry.count("DELETE", ""), 2);
}
