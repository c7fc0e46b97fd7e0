//! Files and helpers as docker writes them.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use super::*;

fn basic(username: &str, password: &str) -> Credential {
    Credential::Basic { username: username.to_owned(), password: Secret::new(password) }
}

fn home(text: &str) -> (tempfile::TempDir, Keychain) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    fs::write(directory.path().join("config.json"), text).expect("there is room");
    let keychain = Keychain::at(directory.path().join("config.json")).with_helpers_in(directory.path());
    (directory, keychain)
}

/// A helper that keeps one secret in a file and notes what it was asked.
fn install_helper(directory: &Path, name: &str) {
    let script = format!(
        "#!/bin/sh\ncd {directory:?}\ninput=$(cat)\necho \"$1 $input\" >> asked-{name}\ncase $1 in\n\
         get) if [ -f secret-{name} ]; then cat secret-{name}; else echo 'credentials not found in native keychain'; exit 1; fi;;\n\
         store) echo \"$input\" > secret-{name};;\nerase) rm -f secret-{name};;\nesac\n"
    );
    let program = directory.join(format!("docker-credential-{name}"));
    fs::write(&program, script).expect("there is room");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("the file is ours");
}

#[track_caller]
fn check(text: &str, registry: &str, expected: Option<Credential>) {
    let (directory, _keychain) = home(text);
    let config =
        ConfigFile::read(&directory.path().join("config.json")).expect("it is JSON").expect("it is there");
    assert_eq!(config.credential(registry).expect("the entry is usable"), expected);
}

#[test]
fn finds_what_docker_wrote() {
    let auths = |key: &str| format!("{{\"auths\":{{{key:?}:{{\"auth\":\"dXNlcjpwYTpzcw==\"}}}}}}");
    let found = Some(basic("user", "pa:ss"));
    check(&auths("https://index.docker.io/v1/"), "docker.io", found.clone());
    check(&auths("docker.io"), "docker.io", found.clone());
    check(&auths("localhost:5000"), "localhost:5000", found.clone());
    check(&auths("https://images.example"), "images.example", found.clone());
    check(&auths("http://images.example/v2/"), "images.example", found);
    check(&auths("images.example"), "images.example.evil.example", None);
    check(&auths("images.example:443"), "images.example", None);
    check("", "images.example", None);
    check("{\"auths\":{\"x\":{}}}", "x", None);
    check("{\"auths\":{\"x\":{\"username\":\"u\",\"password\":\"p\"}}}", "x", Some(basic("u", "p")));
    check("{\"auths\":{\"x\":{\"auth\":\"dTpwAAA=\"}}}", "x", Some(basic("u", "p")));
    let token = |name: &str| format!("{{\"auths\":{{\"x\":{{\"auth\":\"dTo=\",{name:?}:\"t\"}}}}}}");
    check(&token("identitytoken"), "x", Some(Credential::IdentityToken(Secret::new("t"))));
    check(&token("registrytoken"), "x", Some(Credential::RegistryToken(Secret::new("t"))));
}

#[tokio::test]
async fn unusable_files_are_named_without_their_secrets() {
    let cases = [
        ("{\"auths\": {\"x\": hunter2", "is not a docker configuration: invalid JSON at line 1 column"),
        ("[\"hunter2\"]", "expected a JSON object"),
        ("{\"auths\":{\"x\":{\"auth\":\"hunter2!\"}}}", "unusable entry for `x`"),
        ("{\"credsStore\":\"../hunter\"}", "invalid credential helper name `../hunter`"),
    ];
    for (text, expected) in cases {
        let (_directory, keychain) = home(text);
        let error = keychain.credential("x").await.expect_err("it is unusable").to_string();
        assert!(error.contains(expected) && !error.contains("hunter2"), "{error}");
    }
    let nobody = Keychain::at("/nonexistent/config.json");
    assert_eq!(nobody.credential("x").await.expect("no file is no credential"), None);
    assert_eq!(Keychain::anonymous().credential("x").await.expect("no file is no credential"), None);
}

#[tokio::test]
async fn storing_keeps_the_rest_of_the_file() {
    let before = "{\"psFormat\":\"a\",\"auths\":{\"z\":{\"auth\":\"dTpw\",\"email\":\"e\"},\"y\":{}},\"plugins\":{\"n\":1}}";
    let (directory, keychain) = home(before);
    let path = directory.path().join("config.json");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("the file is ours");
    keychain.store("docker.io", &basic("me", "secret")).await.expect("it is stored");
    keychain.store("z", &basic("me", "new")).await.expect("it is stored");
    let text = fs::read_to_string(&path).expect("it is there");
    let after: serde_json::Value = serde_json::from_str(&text).expect("it is JSON");
    assert_eq!(after["auths"]["https://index.docker.io/v1/"]["auth"], "bWU6c2VjcmV0");
    assert_eq!(after["auths"]["z"], serde_json::json!({"email": "e", "auth": "bWU6bmV3"}));
    let keys: Vec<&String> = after.as_object().expect("an object").keys().collect();
    assert_eq!(keys, ["psFormat", "auths", "plugins"]);
    assert!(text.starts_with("{\n\t\"psFormat\""), "{text}");
    let mode = fs::metadata(&path).expect("it is there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(fs::read_dir(directory.path()).expect("it is there").count(), 1, "nothing is left beside it");
    assert!(keychain.erase("docker.io").await.expect("it is erased"));
    assert_eq!(keychain.credential("docker.io").await.expect("it reads"), None);
}

#[tokio::test]
async fn a_link_stays_a_link_and_a_missing_directory_is_made() {
    let (directory, _keychain) = home("{}");
    let link = directory.path().join("link.json");
    std::os::unix::fs::symlink(directory.path().join("config.json"), &link).expect("links work");
    Keychain::at(&link).store("x", &basic("u", "p")).await.expect("it is stored");
    assert!(fs::symlink_metadata(&link).expect("it is there").is_symlink());
    let text = fs::read_to_string(directory.path().join("config.json")).expect("it is there");
    assert!(text.contains("dTpw"), "{text}");
    let deep = Keychain::at(directory.path().join("a/b/config.json"));
    deep.store("x", &basic("u", "p")).await.expect("it is stored");
    assert_eq!(deep.credential("x").await.expect("it reads"), Some(basic("u", "p")));
    let mode = fs::metadata(directory.path().join("a/b")).expect("it is there").permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
}

#[tokio::test]
async fn helpers_keep_secrets_out_of_the_file() {
    let (directory, keychain) =
        home("{\"credsStore\":\"all\",\"credHelpers\":{\"special.example\":\"one\"}}");
    install_helper(directory.path(), "all");
    install_helper(directory.path(), "one");
    assert_eq!(keychain.credential("docker.io").await.expect("it answers"), None);
    let stored = keychain.store("docker.io", &basic("me", "secret")).await.expect("it is stored");
    assert_eq!(stored, StoredIn::Helper("all".to_owned()));
    let text = fs::read_to_string(directory.path().join("config.json")).expect("it is there");
    assert!(!text.contains("secret") && text.contains("https://index.docker.io/v1/"), "{text}");
    assert_eq!(keychain.credential("docker.io").await.expect("it answers"), Some(basic("me", "secret")));
    keychain
        .store("special.example", &Credential::IdentityToken(Secret::new("t")))
        .await
        .expect("it is stored");
    let token = Some(Credential::IdentityToken(Secret::new("t")));
    assert_eq!(keychain.credential("special.example").await.expect("it answers"), token);
    let asked = fs::read_to_string(directory.path().join("asked-one")).expect("it was asked");
    assert!(
        asked.contains("store {\"ServerURL\":\"special.example\",\"Username\":\"<token>\",\"Secret\":\"t\"}"),
        "{asked}"
    );
    assert!(keychain.erase("special.example").await.expect("it answers"));
    assert_eq!(keychain.credential("special.example").await.expect("it answers"), None);
}

#[tokio::test]
async fn a_helper_that_is_missing_or_broken_is_named() {
    let (directory, keychain) = home("{\"credsStore\":\"gone\"}");
    let error = keychain.credential("x").await.expect_err("there is no such program");
    assert!(matches!(error, KeychainError::HelperRun { .. }), "{error:?}");
    assert!(error.to_string().starts_with("cannot run `docker-credential-gone`: "), "{error}");
    let program = directory.path().join("docker-credential-gone");
    fs::write(&program, "#!/bin/sh\necho 'keychain is locked'\nexit 1\n").expect("there is room");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("the file is ours");
    let error = keychain.credential("x").await.expect_err("it fails");
    assert_eq!(error.to_string(), "`docker-credential-gone get` failed: keychain is locked");
}
