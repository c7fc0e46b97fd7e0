//! `login` and `logout`, and what they are good for.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use stave_test_support::registry::Auth;

use super::{Site, one_error, user};

#[track_caller]
fn check(auth: Auth) {
    let site = Site::with_auth(auth);
    let (host, name) = (site.registry.host(), site.image("app:1"));
    let file = site.world.path("docker-config/config.json");
    let login = |password: &[u8]| {
        let words = ["login", "--username", "somebody", "--password-stdin", host.as_str()];
        site.world.stave_with_input(&words, password)
    };
    site.world.dockerfile("FROM scratch\nCOPY present /present\n");
    site.world.build(&name).success();
    one_error(login(b"wrong horse\n"), 1, &[&host, "incorrect username or password"])
        .never_says("wrong horse");
    assert!(!file.exists(), "a refused password is not kept");
    one_error(site.world.stave(["push", &name]), 1, &["denied"]);

    let outcome = login(b"correct horse\n").success();
    assert_eq!(outcome.stdout, "Login Succeeded\n");
    assert!(!outcome.stderr.contains("correct horse"), "{}", outcome.stderr);
    let mode = fs::metadata(&file).expect("the file is there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let entry = || {
        let text = fs::read_to_string(&file).expect("the file is there");
        let config: serde_json::Value = serde_json::from_str(&text).expect("is JSON");
        config["auths"].get(&host).cloned()
    };
    assert!(entry().is_some());

    site.world.stave(["push", &name]).success();
    site.world.stave(["rmi", &name]).success();
    let outcome = site.world.stave(["--debug", "pull", &name]).success();
    let shown = site.registry.requests().into_iter().filter_map(|request| request.authorization);
    for secret in shown.chain(["correct horse".to_owned()]) {
        let secret = secret.split(' ').next_back().unwrap_or_default().to_owned();
        assert!(!outcome.stderr.contains(&secret), "`{secret}` is in the log:\n{}", outcome.stderr);
    }
    let outcome = site.world.stave(["logout", &host]).success();
    assert_eq!(outcome.stdout, format!("Removing login credentials for {host}\n"));
    assert!(entry().is_none());
    one_error(site.world.stave(["push", &name]), 1, &["denied", "stave login"]);
    let outcome = site.world.stave(["logout", &host]).success();
    assert_eq!(outcome.stdout, format!("Not logged in to {host}\n"));
}

#[test]
fn basic() {
    check(Auth::Basic(user()));
}

#[test]
fn bearer() {
    check(Auth::Bearer { user: user(), anonymous_pull: false });
}

#[test]
fn a_wider_file_is_narrowed_and_its_other_contents_kept() {
    let site = Site::with_auth(Auth::Basic(user()));
    let host = site.registry.host();
    let folder = site.world.path("docker-config");
    fs::create_dir(&folder).expect("creates");
    let file = folder.join("config.json");
    fs::write(&file, r#"{"psFormat":"mine","auths":{"other.example":{"auth":"YTpi"}}}"#).expect("writes");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).expect("changes the mode");
    let words = ["login", "--username", "somebody", "--password-stdin", &host];
    site.world.stave_with_input(&words, b"correct horse").success();
    let config: serde_json::Value =
        serde_json::from_slice(&fs::read(&file).expect("is there")).expect("is JSON");
    assert_eq!(config["psFormat"], "mine");
    assert_eq!(config["auths"]["other.example"]["auth"], "YTpi");
    assert!(config["auths"][&host].is_object());
    let mode = fs::metadata(&file).expect("the file is there").permissions().mode();
    assert_eq!(mode & 0o077, 0, "{mode:o}");
}

#[test]
fn a_broken_file_is_named() {
    let site = Site::with_auth(Auth::Basic(user()));
    fs::create_dir(site.world.path("docker-config")).expect("creates");
    fs::write(site.world.path("docker-config/config.json"), "{ not json").expect("writes");
    one_error(site.world.stave(["pull", &site.image("app:1")]), 1, &["config.json"]);
}
