//! Writing to registries that fail: the image stays, and the next push works.

use stave_test_support::registry::{Auth, Misbehaviour};

use super::{FOR_EVER, Site, one_error, user};

fn built(auth: Auth) -> Site {
    let site = Site::with_auth(auth);
    site.world.dockerfile("FROM scratch\nCOPY present /present\n");
    site.world.build(&site.image("app:1")).success();
    site
}

/// Fails `times` times where `method` and `path` say, then works.
#[track_caller]
fn survive(method: &'static str, path: &str, times: usize, fault: &Misbehaviour) {
    let site = built(Auth::Open);
    for _ in 0..times {
        site.registry.script(method, path, fault.clone());
    }
    site.world.stave(["push", &site.image("app:1")]).success();
    assert_eq!(site.registry.faults_left(), 0, "{:?}", site.registry.requests());
    works(&site);
}

/// Never works: one error. The image is still here and goes to a registry that is well.
#[track_caller]
fn refuse(method: &'static str, path: &str, fault: &Misbehaviour, words: &[&str]) {
    let site = built(Auth::Open);
    for _ in 0..FOR_EVER {
        site.registry.script(method, path, fault.clone());
    }
    let name = site.image("app:1");
    one_error(site.world.stave(["push", &name]), 1, words).says(&name);
    assert!(site.registry.manifest("app", "1").is_none(), "nothing was published");
    one_error(site.world.stave(["build", "--push", "-t", &name, "."]), 1, words);
    let well = built(Auth::Open);
    site.world.stave(["tag", &name, &well.image("app:1")]).success();
    site.world.stave(["push", &well.image("app:1")]).success();
    works(&well);
}

/// What was pushed can be pulled by somebody else.
#[track_caller]
fn works(site: &Site) {
    let other = crate::environment::Environment::new();
    other.stave(["pull", &site.image("app:1")]).success();
}

fn status(code: u16, words: &str) -> Misbehaviour {
    let body = serde_json::json!({ "errors": [{ "code": "UNKNOWN", "message": words }] });
    Misbehaviour::Status(code, None, body.to_string())
}

#[test]
fn servers_that_break() {
    survive("POST", "/blobs/uploads/", 2, &status(500, "disk full"));
    survive("PUT", "/blobs/uploads/", 2, &status(503, "disk full"));
    survive("PUT", "/manifests/", 2, &status(500, "disk full"));
    survive("PUT", "/manifests/", 2, &Misbehaviour::Drop);
    refuse("POST", "/blobs/uploads/", &status(500, "disk full"), &["500", "disk full"]);
    refuse("PUT", "/manifests/", &status(500, "disk full"), &["500", "disk full"]);
    refuse("PUT", "/manifests/", &status(400, "no such thing"), &["400", "no such thing"]);
}

#[test]
fn connections_that_break() {
    survive("PUT", "/blobs/uploads/", 2, &Misbehaviour::CutAfter(10));
    refuse("PUT", "/blobs/uploads/", &Misbehaviour::CutAfter(0), &["connection broke"]);
}

#[test]
fn a_registry_that_asks_for_patience() {
    survive("PUT", "/blobs/uploads/", 1, &Misbehaviour::Status(429, Some(1), String::new()));
    refuse("POST", "/blobs/uploads/", &status(429, "slow down"), &["toomanyrequests", "slow down"]);
}

#[test]
fn without_the_right_to_write() {
    for auth in [
        Auth::Basic(user()),
        Auth::Bearer { user: user(), anonymous_pull: false },
        Auth::Bearer { user: user(), anonymous_pull: true },
    ] {
        let site = built(auth);
        let (name, login) = (site.image("app:1"), format!("stave login {}", site.registry.host()));
        let words = ["push access denied", &site.image("app"), &login];
        one_error(site.world.stave(["push", &name]), 1, &words);
        one_error(site.world.stave(["build", "--push", "-t", &name, "."]), 1, &words);
    }
}

#[test]
fn uploads_that_lead_nowhere() {
    let header = |value: &str| Misbehaviour::Header("Location", value.to_owned());
    refuse("POST", "/blobs/uploads/", &header("file:///etc/passwd"), &["Location"]);
    refuse("POST", "/blobs/uploads/", &header(""), &["app:1"]);
}
