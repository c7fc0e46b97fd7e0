//! What is read of requests, and what is refused.

use super::*;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const TAG: &str = "ffffffffffffffffffffffffffffffffffffffff";

fn request(identifier: &str, attributes: &[(&str, &str)]) -> Result<GitRequest, GitError> {
    let attributes =
        attributes.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let op = SourceOp::new(identifier, attributes);
    match &op.identifier {
        stave_llb::SourceIdentifier::Git(source) => GitRequest::new(source, &op),
        _ => unreachable!("the identifier is one of git's"),
    }
}

#[track_caller]
fn check_error(identifier: &str, attributes: &[(&str, &str)], expected: &str) {
    let known = request(identifier, attributes).and_then(|request| request.known_pin());
    assert_eq!(known.expect_err("is refused").to_string(), expected);
}

#[test]
fn what_is_refused_before_anybody_is_asked() {
    check_error("git://a.test/b#-x", &[], "invalid git ref \"-x\"");
    check_error(
        "git://a.test/b",
        &[("git.checksum", "xyz")],
        "invalid checksum xyz for Git URL, expected hex commit hash",
    );
    check_error(
        &format!("git://a.test/b#{COMMIT}"),
        &[("git.checksum", "ff")],
        &format!("expected checksum to match ff, got {COMMIT}"),
    );
    check_error(
        "git://a.test/b#main",
        &[("git.fetchbycommit", "true")],
        "fetch-by-commit requires a checksum or a commit SHA ref",
    );
    check_error(
        "git://a.test/b#main",
        &[("git.fetchbycommit", "true"), ("git.checksum", "0123")],
        "fetch-by-commit requires a full commit SHA checksum, got \"0123\"",
    );
    check_error(
        "git://a.test/b",
        &[("git.sig.pubkey", "key")],
        "the attribute `git.sig.pubkey` of git sources is not supported yet",
    );
    check_error(
        "git://a.test/b",
        &[("git.mtime", "x")],
        "source attribute `git.mtime` has the invalid value `x`",
    );
}

#[track_caller]
fn check_key(identifier: &str, attributes: &[(&str, &str)], expected: &str) {
    let pin = GitPin { reference: "refs/tags/v1".into(), object: TAG.into(), peeled: Some(COMMIT.into()) };
    assert_eq!(request(identifier, attributes).expect("valid").key(&pin), expected);
}

#[test]
fn keys_are_the_commit_and_what_is_taken_of_it() {
    check_key("git://a.test/b#v1", &[], COMMIT);
    check_key("git://a.test/b#v1:d/../e", &[], &format!("{COMMIT}:e"));
    check_key("git://a.test/b#v1", &[("git.keepgitdir", "true")], &format!("{TAG}.git#refs/tags/v1"));
    check_key(
        "git://a.test/b#v1",
        &[("git.skipsubmodules", "true"), ("git.mtime", "commit")],
        &format!("{COMMIT}(skip-submodules)(mtime=commit)"),
    );
}

#[test]
fn commits_need_no_question() {
    let pin = request(&format!("git://a.test/b#{COMMIT}"), &[("git.checksum", "0123")]);
    assert_eq!(pin.expect("valid").known_pin().expect("fits"), Some(GitPin::commit(COMMIT)));
    let attributes = [("git.fetchbycommit", "true"), ("git.checksum", COMMIT)];
    let pin = request("git://a.test/b#main", &attributes).expect("valid").known_pin().expect("fits");
    assert_eq!(pin.map(|pin| (pin.reference, pin.object)), Some(("refs/heads/main".into(), COMMIT.into())));
    assert_eq!(request("git://a.test/b#main", &[]).expect("valid").known_pin().expect("no fault"), None);
}

#[test]
fn a_checksum_fits_tag_or_commit() {
    let pin = GitPin { reference: "refs/tags/v1".into(), object: TAG.into(), peeled: Some(COMMIT.into()) };
    let check = |checksum: &str| {
        request("git://a.test/b#v1", &[("git.checksum", checksum)]).expect("valid").check(&pin).is_ok()
    };
    assert!(check("ffff") && check("0123") && !check("1234"));
}
