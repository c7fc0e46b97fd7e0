//! Reading from registries that are down, slow to forgive, or lie.

use std::net::TcpListener;

use stave_oci::{Descriptor, Digest, Platform, media_type};
use stave_test_support::TestRegistry;
use stave_test_support::registry::{Auth, Misbehaviour};

use super::{FOR_EVER, Site, Way, config, config_for, honest_layer, manifest, one_error, outside, tar, user};

/// An honest image behind a registry that misbehaves this often at this kind of address: refused in every way.
#[track_caller]
fn refuse(path: &str, misbehaviour: &Misbehaviour, words: &[&str]) {
    in_every_way(|way| {
        let site = Site::new();
        site.place_honest();
        for _ in 0..FOR_EVER {
            site.registry.script("GET", path, misbehaviour.clone());
            site.registry.script("HEAD", path, misbehaviour.clone());
        }
        site.refuses(way, words);
    });
}

/// At once: most of the time goes into waiting between attempts.
fn in_every_way(check: impl Fn(Way) + Sync) {
    std::thread::scope(|scope| {
        for way in Way::ALL {
            let check = &check;
            scope.spawn(move || check(way));
        }
    });
}

/// The same a few times only: the image arrives.
#[track_caller]
fn survive(path: &str, times: usize, misbehaviour: &Misbehaviour) -> Site {
    let site = Site::new();
    site.place_honest();
    for _ in 0..times {
        site.registry.script("GET", path, misbehaviour.clone());
    }
    site.ask(Way::Build).success();
    assert_eq!(site.registry.faults_left(), 0);
    site
}

fn status(code: u16, retry_after: Option<u64>, words: &str) -> Misbehaviour {
    let body = serde_json::json!({ "errors": [{ "code": "UNKNOWN", "message": words }] });
    Misbehaviour::Status(code, retry_after, body.to_string())
}

#[test]
fn a_registry_that_is_down() {
    let site = Site::new();
    let port = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("has one").port();
    let name = format!("127.0.0.1:{port}/app:1");
    let before = outside(&site.world);
    let words = [name.as_str(), "refused"];
    one_error(site.world.stave(["pull", &name]), 1, &words);
    one_error(site.world.stave(["run", "--rm", &name]), 125, &words);
    site.world.dockerfile(&format!("FROM {name}\n"));
    one_error(site.world.build("it"), 1, &words).says("Dockerfile:1");
    site.is_untouched(&before);
}

#[test]
fn without_the_right_to_read() {
    for auth in [Auth::Basic(user()), Auth::Bearer { user: user(), anonymous_pull: false }] {
        for way in Way::ALL {
            let site = Site::with_auth(auth.clone());
            site.place_honest();
            let login = format!("stave login {}", site.registry.host());
            let repository = site.image("app");
            site.refuses(way, &["pull access denied", &repository, "authorization", &login]);
        }
    }
}

#[test]
fn too_many_requests() {
    refuse("/manifests/", &status(429, None, "slow down"), &["toomanyrequests", "slow down"]);
    refuse("/blobs/", &status(429, Some(3600), "come back"), &["toomanyrequests", "come back", "3600 s"]);
    survive("/manifests/", 1, &status(429, Some(1), "slow down"));
    survive("/blobs/", 1, &status(429, Some(1), "slow down"));
}

#[test]
fn broken_servers() {
    survive("/manifests/", 2, &status(500, None, "disk full"));
    survive("/blobs/", 2, &status(503, None, "disk full"));
    survive("/manifests/", 2, &Misbehaviour::Drop);
    refuse("/manifests/", &status(500, None, "disk full"), &["500", "disk full", "/v2/app/manifests/1"]);
    refuse("/blobs/", &status(502, None, "no backend"), &["502", "no backend", "/v2/app/blobs/sha256:"]);
    refuse("/manifests/", &Misbehaviour::Drop, &["app:1", "connection"]);
}

#[test]
fn connections_that_break_in_the_middle() {
    let site = Site::new();
    let layer = site.place_honest().layers.remove(0);
    let blob = format!("/blobs/{}", layer.digest);
    for _ in 0..3 {
        site.registry.script("GET", &blob, Misbehaviour::CutAfter(1000));
    }
    site.ask(Way::Pull).success();
    let ranges: Vec<_> = site.registry.requests().into_iter().filter_map(|request| request.range).collect();
    assert_eq!(ranges, ["bytes=1000-", "bytes=2000-", "bytes=3000-"]);

    in_every_way(|way| {
        let site = Site::new();
        let layer = site.place_honest().layers.remove(0);
        for _ in 0..FOR_EVER {
            site.registry.script("GET", layer.digest.hex(), Misbehaviour::CutAfter(10));
        }
        site.refuses(way, &["app:1", "connection broke"]);
    });
}

#[test]
fn content_that_is_not_what_it_is_called() {
    for way in Way::ALL {
        let site = Site::new();
        let layer = site.place_honest().layers.remove(0);
        for _ in 0..FOR_EVER {
            site.registry.script("GET", layer.digest.hex(), Misbehaviour::OtherBytes);
        }
        let expected = format!("expected {}", layer.digest);
        site.refuses(way, &["app:1", "does not match its digest", &expected]);
    }
    // A cache on the way that was wrong once.
    let site = Site::new();
    let layer = site.place_honest().layers.remove(0);
    site.registry.script("GET", layer.digest.hex(), Misbehaviour::OtherBytes);
    site.ask(Way::Pull).success();

    for (length, words) in [(1_u64, "wrong size"), (1 << 30, "wrong size")] {
        for way in Way::ALL {
            let site = Site::new();
            let placed = site.place_honest();
            let mut layer = serde_json::to_value(&placed.layers[0]).expect("has a JSON form");
            layer["size"] = u64::into(length);
            let config = serde_json::to_value(&placed.config).expect("has a JSON form");
            site.registry.put_manifest("app", "1", media_type::OCI_MANIFEST, &manifest(&config, &layer));
            site.refuses(way, &["app:1", words, placed.layers[0].digest.as_str(), "bytes"]);
        }
    }
}

#[test]
fn short_and_endless_answers() {
    let limit = &["app:1", "over the limit"];
    refuse("/manifests/", &Misbehaviour::Endless, limit);
    refuse("/manifests/", &Misbehaviour::Short(10), &["app:1", "does not match its digest"]);
    for (fault, words) in [(Misbehaviour::Short(100), "wrong size"), (Misbehaviour::Endless, "wrong size")] {
        for way in Way::ALL {
            let site = Site::new();
            let layer = site.place_honest().layers.remove(0);
            for _ in 0..FOR_EVER {
                site.registry.script("GET", layer.digest.hex(), fault.clone());
            }
            site.refuses(way, &["app:1", words]);
        }
    }
}

#[test]
fn documents_of_another_kind() {
    let html = b"<html>Welcome to our hotel. Please accept the terms.</html>";
    let schema1 = br#"{"schemaVersion":1,"name":"app","tag":"1","fsLayers":[],"history":[]}"#;
    let empty = br#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json"}"#;
    let cases: [(&str, &[u8], &[&str]); 4] = [
        ("text/html", html, &["text/html"]),
        (media_type::OCI_MANIFEST, html, &["invalid manifest"]),
        (media_type::DOCKER_SCHEMA1, schema1, &["unsupported manifest media type"]),
        (media_type::OCI_MANIFEST, empty, &["invalid manifest"]),
    ];
    for (kind, bytes, words) in cases {
        for way in Way::ALL {
            let site = Site::new();
            site.registry.put_manifest("app", "1", kind, bytes);
            site.refuses(way, words).says("app:1");
        }
    }
}

#[test]
fn configurations_of_another_kind() {
    let plain = honest_layer();
    let cases: [(&[u8], &str); 3] = [
        (b"[]", "lists 1 layers, its configuration 0"),
        (b"\0\x01", "config"),
        (&config(&[]), "lists 1 layers, its configuration 0"),
    ];
    for (config, words) in cases {
        for way in Way::ALL {
            let site = Site::new();
            site.registry.put_image("app", "1", config, &[&plain]);
            site.refuses(way, &["app:1", words]);
        }
    }
}

#[test]
fn images_for_other_machines() {
    let other: Platform = "linux/s390x".parse().expect("a platform");
    for way in Way::ALL {
        let site = Site::new();
        let plain = honest_layer();
        let placed =
            site.registry.put_image("app", "old", &config_for(&other, &[Digest::sha256(&plain)]), &[&plain]);
        let mut entries = Vec::new();
        for platform in [("linux", "s390x"), ("linux", "riscv64")] {
            let mut entry = serde_json::to_value(&placed.manifest).expect("has a JSON form");
            entry["platform"] = serde_json::json!({ "os": platform.0, "architecture": platform.1 });
            entries.push(entry);
        }
        let index = serde_json::json!({
            "schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": entries,
        });
        site.registry.put_manifest("app", "1", media_type::OCI_INDEX, index.to_string().as_bytes());
        let wanted = format!("no match for platform {}", Platform::host());
        site.refuses(way, &["app:1", &wanted, "linux/s390x", "linux/riscv64"]);
    }
}

#[test]
fn indexes_without_end() {
    let site = Site::new();
    let inner = Descriptor::of(media_type::OCI_INDEX, b"");
    let mut inner = serde_json::to_value(&inner).expect("has a JSON form");
    for _ in 0..6 {
        let index = serde_json::json!({
            "schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": [inner],
        });
        let bytes = index.to_string().into_bytes();
        site.registry.put_manifest("app", "1", media_type::OCI_INDEX, &bytes);
        inner = serde_json::to_value(Descriptor::of(media_type::OCI_INDEX, &bytes)).expect("has a JSON form");
    }
    site.refuses(Way::Build, &["app:1", "nested deeper"]);
}

#[test]
fn redirects_get_no_credentials() {
    let elsewhere = TestRegistry::start();
    let site = Site::with_auth(Auth::Basic(user()));
    let placed = site.place_honest();
    let layer = &placed.layers[0];
    elsewhere.put_blob("kept", &site.registry.blob("app", &layer.digest).expect("was placed"));
    let to = format!("http://{}/v2/kept/blobs/{}?signature=secret", elsewhere.host(), layer.digest);
    site.registry.script("GET", layer.digest.hex(), Misbehaviour::Redirect(to));
    let host = site.registry.host();
    let words = ["login", "--username", "somebody", "--password-stdin", &host];
    site.world.stave_with_input(&words, b"correct horse").success();
    site.ask(Way::Build).success();
    let first =
        site.registry.requests().into_iter().find(|request| request.path.contains(layer.digest.hex()));
    assert!(first.is_some_and(|request| request.authorization.is_some()), "the registry itself gets them");
    let foreign = elsewhere.requests();
    assert!(!foreign.is_empty(), "the redirect was followed");
    assert!(foreign.iter().all(|request| request.authorization.is_none()), "{foreign:?}");
}

#[test]
fn redirects_without_end_or_sense() {
    refuse("/blobs/", &Misbehaviour::Redirect("/v2/app/blobs/again".to_owned()), &["app:1", "redirects"]);
    refuse("/blobs/", &Misbehaviour::Redirect("file:///etc/passwd".to_owned()), &["app:1", "Location"]);
}

/// After all this, the very same image can still be had.
#[test]
fn faults_that_end_are_forgotten() {
    let site = Site::new();
    let plain = honest_layer();
    site.place(&tar::gzip(&plain)[..1000], &plain);
    site.refuses(Way::Pull, &["app:1"]);
    site.place_honest();
    site.ask(Way::Pull).success();
    site.ask(Way::Build).success();
}
