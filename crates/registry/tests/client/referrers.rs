//! What refers to an image, at registries that list it and at those that do not.

use bytes::Bytes;
use serde_json::{Value, json};
use stave_oci::{Descriptor, Digest, media_type};
use stave_registry::{Client, ErrorKind};
use stave_test_support::TestRegistry;
use stave_test_support::registry::Misbehaviour;

use crate::client;

const SIGNATURE: &str = "application/vnd.example.signature";
const REPORT: &str = "application/vnd.example.report";

/// An artifact about `subject`.
fn artifact(registry: &TestRegistry, subject: &Descriptor, kind: &str, number: u32) -> Bytes {
    let config = Descriptor::of("application/vnd.oci.empty.v1+json", b"{}");
    registry.put_blob("app", b"{}");
    let manifest = json!({
        "schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST, "artifactType": kind, "config": config,
        "layers": [config], "subject": subject, "annotations": {"number": number.to_string()},
    });
    manifest.to_string().into()
}

/// Pushes artifacts about an image and returns their digests.
async fn push(client: &Client, registry: &TestRegistry, kinds: &[&str]) -> (Descriptor, Vec<Digest>) {
    let image = registry.put_image("app", "1", b"{}", &[]).manifest;
    let mut pushed = Vec::new();
    for (number, kind) in (0..).zip(kinds) {
        let bytes = artifact(registry, &image, kind, number);
        let name = registry.reference(&format!("app@{}", Digest::sha256(&bytes)));
        pushed.push(client.push_manifest(&name, media_type::OCI_MANIFEST, bytes).await.expect("it is taken"));
    }
    (image, pushed)
}

fn tag_of(subject: &Descriptor) -> String {
    format!("sha256-{}", subject.digest.hex())
}

/// The digests listed, sorted.
async fn listed(
    client: &Client,
    registry: &TestRegistry,
    subject: &Descriptor,
    kind: Option<&str>,
) -> Vec<Digest> {
    let found = client.referrers(&registry.reference("app:1"), &subject.digest, kind).await;
    let mut digests: Vec<_> =
        found.expect("the registry answers").into_iter().map(|one| one.digest).collect();
    digests.sort();
    digests
}

#[tokio::test]
async fn a_tag_lists_them_where_the_registry_does_not() {
    let (registry, client) = (TestRegistry::start(), client());
    let (image, mut pushed) = push(&client, &registry, &[SIGNATURE, REPORT]).await;
    let (kind, bytes) = registry.manifest("app", &tag_of(&image)).expect("a tag stands in");
    assert_eq!(kind, media_type::OCI_INDEX);
    let index: Value = serde_json::from_slice(&bytes).expect("JSON");
    assert_eq!(index["manifests"].as_array().map(Vec::len), Some(2));
    assert_eq!(index["manifests"][1]["artifactType"], REPORT);
    assert_eq!(index["manifests"][1]["annotations"]["number"], "1");
    assert_eq!(listed(&client, &registry, &image, Some(SIGNATURE)).await, pushed[..1]);
    // Pushed again it is not listed twice.
    push(&client, &registry, &[SIGNATURE]).await;
    pushed.sort();
    assert_eq!(listed(&client, &registry, &image, None).await, pushed);
}

#[tokio::test]
async fn a_list_that_others_write_keeps_what_is_added() {
    let (registry, client) = (TestRegistry::start(), client());
    let (image, first) = push(&client, &registry, &[SIGNATURE]).await;
    let tag = tag_of(&image);
    // The list was replaced since it was read, and then our own is.
    registry.script("GET", &tag, Misbehaviour::Header("ETag", "\"one\"".to_owned()));
    registry.script("PUT", &tag, Misbehaviour::Status(412, None, String::new()));
    registry.script("PUT", &tag, Misbehaviour::StatusWith(201, Vec::new()));
    let bytes = artifact(&registry, &image, REPORT, 7);
    let name = registry.reference(&format!("app@{}", Digest::sha256(&bytes)));
    let second = client.push_manifest(&name, media_type::OCI_MANIFEST, bytes).await.expect("it is listed");
    assert_eq!(registry.faults_left(), 0);
    let conditions: Vec<_> =
        registry.requests().into_iter().filter_map(|request| request.condition).collect();
    assert_eq!(conditions, ["\"one\""]);
    let mut expected = vec![first[0].clone(), second];
    expected.sort();
    assert_eq!(listed(&client, &registry, &image, None).await, expected);
}

#[tokio::test]
async fn a_weak_entity_tag_is_no_condition() {
    let (registry, client) = (TestRegistry::start(), client());
    let (image, _) = push(&client, &registry, &[SIGNATURE]).await;
    registry.script("GET", &tag_of(&image), Misbehaviour::Header("ETag", "W/\"one\"".to_owned()));
    let bytes = artifact(&registry, &image, REPORT, 7);
    let name = registry.reference(&format!("app@{}", Digest::sha256(&bytes)));
    client.push_manifest(&name, media_type::OCI_MANIFEST, bytes).await.expect("it is listed");
    assert_eq!(registry.faults_left(), 0);
    assert!(registry.requests().iter().all(|request| request.condition.is_none()));
}

#[tokio::test]
async fn a_list_that_keeps_nothing_is_given_up() {
    let (registry, client) = (TestRegistry::start(), client());
    let (image, _) = push(&client, &registry, &[]).await;
    for _ in 0..20 {
        registry.script("PUT", &tag_of(&image), Misbehaviour::StatusWith(201, Vec::new()));
    }
    let bytes = artifact(&registry, &image, REPORT, 0);
    let name = registry.reference(&format!("app@{}", Digest::sha256(&bytes)));
    let error = client.push_manifest(&name, media_type::OCI_MANIFEST, bytes).await.expect_err("never kept");
    assert!(matches!(*error.kind, ErrorKind::ListContended(_)), "{error:?}");
}

#[tokio::test]
async fn the_registrys_own_list_is_asked_for_page_by_page() {
    let (registry, client) = (TestRegistry::start(), client());
    registry.list_referrers();
    let (image, mut pushed) = push(&client, &registry, &[SIGNATURE, REPORT, SIGNATURE]).await;
    assert_eq!(registry.manifest("app", &tag_of(&image)), None, "no tag is needed");
    assert_eq!(listed(&client, &registry, &image, Some(REPORT)).await, pushed[1..2]);
    pushed.sort();
    assert_eq!(listed(&client, &registry, &image, None).await, pushed);
}

#[tokio::test]
async fn nothing_that_refers_is_an_answer() {
    let registry = TestRegistry::start();
    let (image, _) = push(&client(), &registry, &[]).await;
    assert_eq!(listed(&client(), &registry, &image, None).await, []);
}

#[tokio::test]
async fn lists_that_are_none_are_errors() {
    let (registry, client) = (TestRegistry::start(), client());
    let (image, _) = push(&client, &registry, &[]).await;
    // Somebody's image by the tag's name is not written over.
    let own = registry.put_image("app", &tag_of(&image), b"{}", &[]).manifest;
    let bytes = artifact(&registry, &image, REPORT, 0);
    let error = client.push_manifest(&registry.reference("app:a"), media_type::OCI_MANIFEST, bytes).await;
    assert!(matches!(*error.expect_err("no list").kind, ErrorKind::Manifest(_)));
    let (_, kept) = registry.manifest("app", &tag_of(&image)).expect("is there");
    assert_eq!(Digest::sha256(&kept), own.digest);
    // One that goes on for ever.
    registry.list_referrers();
    let name = registry.reference("app:1");
    for _ in 0..100 {
        let again = format!("</v2/app/referrers/{}>; rel=\"next\"", image.digest);
        registry.script("GET", "/referrers/", Misbehaviour::Header("Link", again));
    }
    let error = client.referrers(&name, &image.digest, None).await.expect_err("over the limit");
    assert!(matches!(*error.kind, ErrorKind::TooLarge { .. }), "{error:?}");
}

#[tokio::test]
async fn a_list_that_is_too_large_in_all_is_not_read_to_its_end() {
    let (registry, client) = (TestRegistry::start(), client());
    registry.list_referrers();
    let (image, _) = push(&client, &registry, &["a".repeat(3 << 20).as_str()]).await;
    for _ in 0..64 {
        let again = format!("</v2/app/referrers/{}>; rel=\"next\"", image.digest);
        registry.script("GET", "/referrers/", Misbehaviour::Header("Link", again));
    }
    let name = registry.reference("app:1");
    let error = client.referrers(&name, &image.digest, None).await.expect_err("over the limit");
    assert!(matches!(*error.kind, ErrorKind::TooLarge { .. }), "{error:?}");
    let asked = registry.requests().iter().filter(|asked| asked.path.contains("/referrers/")).count();
    assert_eq!(asked, 6);
}
