//! Names to images.

use stave_oci::{Descriptor, Digest, Platform, media_type};
use stave_registry::{Capability, ErrorKind, RegistryTables};
use stave_test_support::TestRegistry;
use stave_test_support::registry::Misbehaviour;

use crate::{client, client_with_mirrors, client_with_tables, impatient};

const CONFIG: &[u8] = br#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}"#;

fn amd64() -> Platform {
    Platform::new("linux", "amd64", None)
}

/// An index of one image per platform under `app:1`.
fn with_index(registry: &TestRegistry, platforms: &[&str]) -> Digest {
    let entry = |name: &&str| {
        let config = CONFIG.to_ascii_lowercase().iter().chain(name.as_bytes()).copied().collect::<Vec<u8>>();
        let placed = registry.put_image("app", name.replace('/', "-").as_str(), &config, &[name.as_bytes()]);
        Descriptor { platform: Some(name.parse().expect("a platform")), ..placed.manifest }
    };
    let manifests: Vec<Descriptor> = platforms.iter().map(entry).collect();
    let index = serde_json::json!({
        "schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": manifests,
    });
    registry.put_manifest("app", "1", media_type::OCI_INDEX, index.to_string().as_bytes())
}

#[tokio::test]
async fn a_tag_gives_manifest_and_config() {
    let registry = TestRegistry::start();
    let placed = registry.put_image("app", "1", CONFIG, &[b"layer"]);
    let found = client().resolve(&registry.reference("app:1"), &amd64()).await.expect("the image is there");
    assert_eq!(found.root, found.manifest);
    assert_eq!(found.manifest.descriptor, placed.manifest);
    assert_eq!(found.config, CONFIG);
    assert_eq!(found.parsed.layers, placed.layers);
    let head = client().resolve_digest(&registry.reference("app:1")).await.expect("the image is there");
    assert_eq!(head, placed.manifest);
    assert_eq!(registry.count("HEAD", "/v2/app/manifests/1"), 1);
}

#[tokio::test]
async fn of_an_index_only_the_platform_asked_for_is_fetched() {
    let registry = TestRegistry::start();
    let index = with_index(&registry, &["linux/amd64", "linux/arm64"]);
    let arm = Platform::new("linux", "arm64", None);
    let found = client().resolve(&registry.reference("app:1"), &arm).await.expect("the image is there");
    assert_eq!(found.root.descriptor.digest, index);
    assert_eq!(found.parsed.layers[0].digest, Digest::sha256(b"linux/arm64"));
    assert_eq!(registry.count("GET", "/manifests/"), 2);
    assert_eq!(registry.count("GET", "/blobs/"), 1);
}

#[tokio::test]
async fn a_missing_platform_names_those_there() {
    let registry = TestRegistry::start();
    with_index(&registry, &["linux/amd64", "linux/arm64"]);
    let name = registry.reference("app:1");
    let error =
        client().resolve(&name, &Platform::new("linux", "s390x", None)).await.expect_err("no such image");
    let ErrorKind::PlatformNotFound { available, .. } = &*error.kind else { panic!("{error:?}") };
    assert_eq!(available.len(), 2);
    assert_eq!(
        error.to_string(),
        format!(
            "failed to resolve {name}: no match for platform linux/s390x: the image has linux/amd64, linux/arm64"
        )
    );
}

#[tokio::test]
async fn a_missing_name_is_not_found() {
    let registry = TestRegistry::start();
    let name = registry.reference("nothing:1");
    let error = client().resolve(&name, &amd64()).await.expect_err("nothing is there");
    assert!(error.is_not_found());
    assert_eq!(error.to_string(), format!("{name}: not found"));
}

#[tokio::test]
async fn manifests_are_verified_and_bounded() {
    let registry = TestRegistry::start();
    let placed = registry.put_image("app", "1", CONFIG, &[]);
    let [tag, pinned] =
        ["app:1".to_owned(), format!("app@{}", placed.manifest.digest)].map(|name| registry.reference(&name));
    for name in [&tag, &pinned] {
        registry.script("GET", "/manifests/", Misbehaviour::OtherBytes);
        let error = client().fetch_manifest(name).await.expect_err("the bytes are others");
        let ErrorKind::DigestMismatch { expected, actual } = &*error.kind else { panic!("{error:?}") };
        assert_eq!(expected, &placed.manifest.digest);
        assert_ne!(actual, expected);
        assert!(error.to_string().contains(actual.as_str()), "{error}");
    }
    registry.script("GET", "/manifests/", Misbehaviour::Endless);
    let error = client().fetch_manifest(&tag).await.expect_err("it never ends");
    assert!(matches!(*error.kind, ErrorKind::TooLarge { what: "manifest", .. }), "{error:?}");
}

#[tokio::test]
async fn content_types_are_not_believed_against_the_document() {
    let registry = TestRegistry::start();
    registry.put_image("app", "1", CONFIG, &[]);
    let name = registry.reference("app:1");
    registry.script("GET", "/manifests/", Misbehaviour::ContentType(media_type::OCI_INDEX.to_owned()));
    let error = client().fetch_manifest(&name).await.expect_err("two types for one document");
    assert!(matches!(*error.kind, ErrorKind::Manifest(_)), "{error:?}");
    registry.script("GET", "/manifests/", Misbehaviour::ContentType("text/html".to_owned()));
    let found = client().fetch_manifest(&name).await.expect("the document says what it is");
    assert_eq!(found.descriptor.media_type, media_type::OCI_MANIFEST);
}

#[tokio::test]
async fn what_is_no_manifest_is_an_error() {
    let registry = TestRegistry::start();
    registry.put_manifest("app", "1", media_type::OCI_MANIFEST, b"{\"schemaVersion\":2,\"layers\":7}");
    registry.put_manifest("app", "2", media_type::DOCKER_SCHEMA1, b"{\"schemaVersion\":1}");
    for tag in ["app:1", "app:2"] {
        let error = client().fetch_manifest(&registry.reference(tag)).await.expect_err("no manifest");
        assert!(error.to_string().contains("manifest"), "{error}");
        assert!(!error.to_string().contains('\n'), "{error}");
    }
}

#[tokio::test]
async fn server_faults_are_tried_again() {
    let registry = TestRegistry::start();
    registry.put_image("app", "1", CONFIG, &[]);
    let name = registry.reference("app:1");
    registry.script("GET", "/manifests/", Misbehaviour::Status(500, None, String::new()));
    registry.script("GET", "/manifests/", Misbehaviour::Status(429, Some(0), String::new()));
    registry.script("GET", "/manifests/", Misbehaviour::Drop);
    client().fetch_manifest(&name).await.expect("the fourth attempt succeeds");
    assert_eq!(registry.count("GET", "/manifests/"), 4);
    registry.script("GET", "/manifests/", Misbehaviour::CutAfter(10));
    client().fetch_manifest(&name).await.expect("a cut manifest is asked for again");
}

#[tokio::test]
async fn attempts_are_bounded() {
    let registry = TestRegistry::start();
    let name = registry.reference("app:1");
    for _ in 0..9 {
        registry.script("GET", "/manifests/", Misbehaviour::Status(503, None, "{}".to_owned()));
    }
    let error = client().fetch_manifest(&name).await.expect_err("the registry is broken");
    let ErrorKind::Status(fault) = &*error.kind else { panic!("{error:?}") };
    assert_eq!(fault.code, 503);
    assert_eq!(
        error.to_string(),
        format!(
            "failed to resolve {name}: unexpected status from GET request to http://{}/v2/app/manifests/1: 503 Service Unavailable",
            registry.host()
        )
    );
    assert_eq!(registry.count("GET", "/manifests/"), 4);
}

#[tokio::test]
async fn a_retry_after_may_be_a_date() {
    let registry = TestRegistry::start();
    registry.put_image("app", "1", CONFIG, &[]);
    let name = registry.reference("app:1");
    let at = |until: &str| {
        let date = ("Date", "Sun, 06 Nov 1994 08:49:37 GMT".to_owned());
        Misbehaviour::StatusWith(429, vec![("Retry-After", until.to_owned()), date])
    };
    registry.script("GET", "/manifests/", at("Sun, 06 Nov 1994 08:49:37 GMT"));
    client().fetch_manifest(&name).await.expect("the date has come");
    registry.script("GET", "/manifests/", at("Sun, 06 Nov 1994 09:49:37 GMT"));
    let error = client().fetch_manifest(&name).await.expect_err("an hour is too long");
    assert!(error.to_string().contains("asks to wait 3600 s"), "{error}");
}

#[tokio::test]
async fn a_long_retry_after_is_an_error_at_once() {
    let registry = TestRegistry::start();
    let body =
        r#"{"errors":[{"code":"TOOMANYREQUESTS","message":"You have reached your pull rate limit."}]}"#;
    registry.script("GET", "/manifests/", Misbehaviour::Status(429, Some(3600), body.to_owned()));
    let name = registry.reference("app:1");
    let error = client().fetch_manifest(&name).await.expect_err("an hour is too long");
    let ErrorKind::TooManyRequests { retry_after, .. } = &*error.kind else { panic!("{error:?}") };
    assert_eq!(retry_after.map(|wait| wait.as_secs()), Some(3600));
    assert_eq!(
        error.to_string(),
        format!(
            "failed to resolve {name}: toomanyrequests: You have reached your pull rate limit. \
             (the server asks to wait 3600 s)"
        )
    );
    assert_eq!(registry.count("GET", "/manifests/"), 1);
}

#[tokio::test]
async fn nobody_listening_is_said_with_the_host() {
    let registry = TestRegistry::start();
    let name = registry.reference("app:1");
    drop(registry);
    let error = client().fetch_manifest(&name).await.expect_err("nobody listens");
    assert!(
        matches!(*error.kind, ErrorKind::Connect { is_dns: false, is_certificate: false, .. }),
        "{error:?}"
    );
    assert!(error.to_string().contains("cannot connect"), "{error}");
    assert!(error.to_string().contains(name.registry()), "{error}");
}

#[tokio::test]
async fn silence_is_a_timeout() {
    let registry = TestRegistry::start();
    registry.put_image("app", "1", CONFIG, &[]);
    for _ in 0..4 {
        registry.script("GET", "/manifests/", Misbehaviour::StallAfter(5));
    }
    let error = impatient().fetch_manifest(&registry.reference("app:1")).await.expect_err("nothing comes");
    assert!(matches!(*error.kind, ErrorKind::Timeout(_)), "{error:?}");
}

#[tokio::test]
async fn mirrors_come_first_and_the_registry_last() {
    let [origin, empty, mirror] = std::array::from_fn(|_| TestRegistry::start());
    mirror.put_image("app", "1", CONFIG, &[]);
    let name = origin.reference("app:1");
    let client = client_with_mirrors(&origin, &[&empty, &mirror]);
    client.resolve(&name, &amd64()).await.expect("the second mirror has it");
    assert_eq!((empty.count("GET", "/manifests/1?ns="), origin.requests().len()), (1, 0));
    let error = client.fetch_manifest(&origin.reference("app:2")).await.expect_err("nobody has it");
    assert!(error.is_not_found());
    let hosts: Vec<&str> = error.mirrors.iter().map(|failure| failure.host.as_str()).collect();
    assert_eq!(hosts, [empty.host(), mirror.host()]);
    origin.put_image("app", "2", CONFIG, &[]);
    client.fetch_manifest(&origin.reference("app:2")).await.expect("the registry itself has it");
}

#[tokio::test]
async fn a_registry_without_capability_is_not_asked() {
    let registry = TestRegistry::start();
    let tables = format!("[registry.{:?}]\ncapabilities = [\"push\"]", registry.host());
    let tables = RegistryTables::parse(&tables).expect("the tables are valid");
    assert_eq!(tables.0[&registry.host()].capabilities, [Capability::Push]);
    let config = stave_registry::ClientConfig { registries: tables, ..crate::config("", Default::default()) };
    let client = stave_registry::Client::new(config).expect("the tables are valid");
    let error = client.fetch_manifest(&registry.reference("app:1")).await.expect_err("it may not be read");
    assert!(matches!(*error.kind, ErrorKind::NoEndpoint(_)), "{error:?}");
}

/// An address that closes its first connections without a word, as one that is just starting may, and passes the others
/// on to the registry.
fn late(registry: &TestRegistry, closed: usize) -> std::io::Result<String> {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0))?;
    let address = listener.local_addr()?;
    let home = registry.host();
    std::thread::spawn(move || {
        for (number, stream) in listener.incoming().flatten().enumerate() {
            if number < closed {
                continue;
            }
            let Ok(other) = std::net::TcpStream::connect(&home) else { return };
            let (Ok(back), Ok(other_back)) = (stream.try_clone(), other.try_clone()) else { return };
            for (mut from, mut to) in [(stream, other), (other_back, back)] {
                std::thread::spawn(move || {
                    let _ended = std::io::copy(&mut from, &mut to);
                    let _ended = to.shutdown(std::net::Shutdown::Write);
                });
            }
        }
    });
    Ok(address.to_string())
}

#[tokio::test]
async fn what_a_host_speaks_is_not_guessed_while_it_says_nothing() {
    let registry = TestRegistry::start();
    let placed = registry.put_image("app", "1", CONFIG, &[b"layer"]);
    let name = format!("{}/app:1", late(&registry, 2).expect("loopback has a free port"));
    let name = name.parse().expect("a reference");
    let head = client().resolve_digest(&name).await.expect("the third attempt is heard");
    assert_eq!(head, placed.manifest);

    // One that only broke off is not taken for one without TLS.
    let registry = crate::tls::start(false);
    let address = late(&registry, 1).expect("loopback has a free port");
    let trusting = client_with_tables(&format!("[registry.{address:?}]\ninsecure = true"));
    let name = format!("{address}/app:1").parse().expect("a reference");
    trusting.resolve_digest(&name).await.expect("the third attempt is heard");

    let silent = format!("{}/app:1", late(&registry, usize::MAX).expect("loopback has a free port"));
    let error =
        client().resolve_digest(&silent.parse().expect("a reference")).await.expect_err("nothing answers");
    assert!(
        matches!(&*error.kind, ErrorKind::Connect { is_dns: false, .. } | ErrorKind::Interrupted(_)),
        "{error:?}"
    );
}
