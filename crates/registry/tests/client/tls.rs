//! Trust: who is believed to be the registry, and who we say we are.

use std::path::{Path, PathBuf};

use stave_oci::{Descriptor, media_type};
use stave_registry::{Client, ErrorKind, Keychain, RegistryError};
use stave_test_support::TestRegistry;
use stave_test_support::registry::{Misbehaviour, Tls};

use crate::config;

fn file(name: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../testdata/registry")).join(name)
}

pub(crate) fn start(asks_for_certificate: bool) -> TestRegistry {
    let authority = asks_for_certificate.then(|| file("ca.pem"));
    let registry = TestRegistry::start_tls(Tls {
        certificate: &file("server.pem"),
        key: &file("server.key"),
        client_authority: authority.as_deref(),
    });
    registry.put_image("app", "1", b"{}", &[b"layer"]);
    registry
}

async fn ask(registry: &TestRegistry, table: &str) -> Result<(), RegistryError> {
    fetch(&client(registry, table), registry).await
}

fn client(registry: &TestRegistry, table: &str) -> Client {
    let tables = format!("[registry.{host:?}]\n{table}", host = registry.host());
    Client::new(config(&tables, Keychain::anonymous())).expect("the tables are valid")
}

async fn fetch(client: &Client, registry: &TestRegistry) -> Result<(), RegistryError> {
    client.fetch_manifest(&registry.reference("app:1")).await.map(drop)
}

pub(crate) fn trusting() -> String {
    format!("ca = [{:?}]\n", file("ca.pem"))
}

fn with_keypair() -> String {
    format!("{}keypair = [{{ key = {:?}, cert = {:?} }}]", trusting(), file("client.key"), file("client.pem"))
}

#[tokio::test]
async fn unknown_authorities_are_not_trusted_and_not_asked_again() {
    let registry = start(false);
    let error = ask(&registry, "").await.expect_err("nobody vouches for it");
    assert!(matches!(*error.kind, ErrorKind::Connect { is_certificate: true, .. }), "{error:?}");
    assert!(error.to_string().contains("certificate"), "{error}");
    assert!(registry.requests().is_empty());
}

#[tokio::test]
async fn a_configured_authority_is_trusted_and_insecure_trusts_anybody() {
    let registry = start(false);
    ask(&registry, &trusting()).await.expect("its authority is known");
    ask(&registry, "insecure = true").await.expect("anybody will do");
    ask(&registry, "insecure = true\nhttp = true").await.expect("https is tried first");
    ask(&registry, "http = true").await.expect_err("it does not speak http");
}

#[tokio::test]
async fn a_client_certificate_is_shown_where_asked_for() {
    let registry = start(true);
    let error = ask(&registry, &trusting()).await.expect_err("a certificate is asked for");
    assert!(matches!(*error.kind, ErrorKind::Connect { is_certificate: true, .. }), "{error:?}");
    ask(&registry, &with_keypair()).await.expect("the certificate is accepted");
    let directory = tempfile::tempdir().expect("a temporary directory");
    for (from, to) in [("ca.pem", "ca.crt"), ("client.pem", "client.cert"), ("client.key", "client.key")] {
        std::fs::copy(file(from), directory.path().join(to)).expect("there is room");
    }
    let table = format!("tlsconfigdir = [{:?}]", directory.path());
    ask(&registry, &table).await.expect("docker's directory holds the same");
}

#[tokio::test]
async fn unusable_files_are_named() {
    let registry = start(false);
    let cases = [
        ("ca = [\"/nonexistent.pem\"]".to_owned(), "cannot read `/nonexistent.pem`"),
        (format!("ca = [{:?}]", file("README.md")), "README.md` holds no certificate in PEM form"),
        (
            format!("keypair = [{{ key = {:?}, cert = {:?} }}]", file("ca.pem"), file("ca.pem")),
            "holds no private key",
        ),
    ];
    for (table, expected) in cases {
        let error = ask(&registry, &table).await.expect_err("the file is unusable").to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[tokio::test]
async fn only_what_has_a_digest_may_come_in_the_clear() {
    let registry = start(false);
    let plain = TestRegistry::start();
    let placed = plain.put_image("app", "1", b"{}", &[b"layer"]);
    let client = client(&registry, &trusting());
    let to = |path: &str| Misbehaviour::Redirect(format!("http://{}/v2/app/{path}", plain.host()));
    registry.script("GET", "/manifests/1", to("manifests/1"));
    let error = fetch(&client, &registry).await.expect_err("anybody could answer for a tag");
    assert!(matches!(*error.kind, ErrorKind::Redirect(_)), "{error:?}");
    assert!(plain.requests().is_empty());
    let layer = &placed.layers[0];
    registry.script("GET", "/blobs/", to(&format!("blobs/{}", layer.digest)));
    let bytes = client.fetch_small_blob(&registry.reference("app:1"), layer).await;
    assert_eq!(bytes.expect("its digest vouches for it"), &b"layer"[..]);
    let new = Descriptor::of(media_type::OCI_LAYER, b"private");
    registry.script("POST", "/uploads/", to("blobs/uploads/"));
    let content = stave_registry::BlobContent::new(bytes::Bytes::from_static(b"private"));
    let error = client.push_blob(&registry.reference("app:1"), &new, content, None).await;
    assert!(matches!(*error.expect_err("it would be seen").kind, ErrorKind::Redirect(_)));
    assert_eq!(plain.count("POST", ""), 0);
}
