//! Named contexts and remote build contexts: the sources they become, and what is asked of them.

use super::*;
use crate::input::{ContextSource, NamedContext};

fn with_context(name: &str, specifier: &str) -> PlanRequest {
    let context = NamedContext::parse(name, specifier).expect(specifier);
    with(|request| drop(request.named_contexts.insert(name.to_owned(), context)))
}

/// The first source's identifier, its attributes that matter here, and its name.
#[track_caller]
fn check_source(text: &str, request: &PlanRequest, expected: (&str, &[(&str, &str)], &str)) {
    let lowered = lowered(text, request);
    let vertex = lowered.definition.vertices().iter().find(|vertex| {
        let name = vertex.name().unwrap_or_default();
        name.starts_with("[context ") || name.contains("load git") || name.contains("remote")
    });
    let vertex = vertex.unwrap_or_else(|| panic!("{text}: {:?}", lowered.definition.vertices()));
    let Op::Source(source) = &vertex.op else { panic!("{vertex:?}") };
    let (identifier, attrs, name) = expected;
    assert_eq!((&*source.raw, vertex.name()), (identifier, Some(name)), "{text}");
    for (key, value) in attrs {
        assert_eq!(source.attrs.get(*key).map(String::as_str), Some(*value), "{text}: {key}");
    }
    if attrs.is_empty() {
        assert!(!source.attrs.contains_key("local.followpaths"), "{text}: {:?}", source.attrs);
    }
}

#[test]
fn every_form_is_its_own_source() {
    let image = with_context("b", "docker-image://c:1");
    check_source("FROM b\nRUN x", &image, ("docker-image://docker.io/library/c:1", &[], "[context b] c:1"));
    let digest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    let layout = with_context("b", &format!("oci-layout://here:tag@{digest}"));
    check_source(
        "FROM b\nRUN x",
        &layout,
        (
            &format!("oci-layout://docker.io/library/b@{digest}"),
            &[("oci.store", "here")],
            "[context b] OCI load from client",
        ),
    );
    let git = with_context("b", "https://a.test/b.git?subdir=d#v1");
    check_source(
        "FROM scratch\nCOPY --from=b x y",
        &git,
        (
            "git://a.test/b.git#v1:d",
            &[("git.fullurl", "https://a.test/b.git")],
            "[internal] load git source https://a.test/b.git?subdir=d#v1",
        ),
    );
    let http = with_context("b", "https://a.test/f");
    check_source(
        "FROM alpine\nRUN --mount=from=b,target=/x y",
        &http,
        ("https://a.test/f", &[("http.filename", "context")], "[context b] https://a.test/f"),
    );
    let nothing = lowered("FROM b\nENV a=1", &with_context("b", "docker-image://scratch"));
    assert!(nothing.definition.outputs().is_empty());
}

#[test]
fn directories_are_asked_for_what_is_used() {
    let local = with_context("b", "local:dir");
    let name = "[context b] load from client";
    let hint = ("local.sharedkeyhint", "context:b-");
    let used = ("local.followpaths", "[\"d/x\",\"y\"]");
    let text = "FROM scratch\nCOPY --from=b d/x /y z/";
    check_source(text, &local, ("local://dir", &[hint, used], name));
    check_source("FROM b\nCOPY a c", &local, ("local://dir", &[], name));
    check_source("FROM b AS x\nRUN y\nFROM scratch\nCOPY --from=x q r", &local, ("local://dir", &[], name));
    let derived = "FROM b AS x\nFROM x AS y\nFROM scratch\nCOPY --from=y q r";
    check_source(derived, &local, ("local://dir", &[("local.followpaths", "[\"q\"]")], name));
    let mounted = "FROM alpine\nRUN --mount=from=b,source=s,target=/t x";
    check_source(mounted, &local, ("local://dir", &[("local.followpaths", "[\"s\"]")], name));
    let mut ignoring = local.clone();
    if let Some(NamedContext::Local(local)) = ignoring.named_contexts.get_mut("b") {
        local.excludes = vec!["a<b".to_owned()];
        local.shared_key = "key".to_owned();
    }
    let excludes = ("local.excludepatterns", "[\"a\\u003cb\"]");
    let hint = ("local.sharedkeyhint", "context:b-key");
    check_source("FROM b\nRUN x", &ignoring, ("local://dir", &[hint, excludes], name));
}

#[test]
fn a_context_may_be_for_one_platform() {
    let mut request = with_context("b::linux/arm64", "docker-image://c:1");
    let other = NamedContext::parse("b", "docker-image://d:1").expect("is one");
    request.named_contexts.insert("b".to_owned(), other);
    check_source("FROM b\nRUN x", &request, ("docker-image://docker.io/library/d:1", &[], "[context b] d:1"));
    let [arm] = request.for_platforms(&[Platform::new("linux", "arm64", None)]).try_into().expect("one");
    let expected = ("docker-image://docker.io/library/c:1", &[][..], "[context b::linux/arm64] c:1");
    check_source("FROM b\nRUN x", &arm, expected);
}

#[test]
fn whole_stages_are_replaced() {
    let request = with_context("one", "docker-image://trigger:1");
    let lowered = lowered("FROM a AS one\nRUN gone\nFROM one\nRUN kept", &request);
    let names: Vec<_> = lowered.definition.vertices().iter().filter_map(Vertex::name).collect();
    assert_eq!(names, ["[context one] trigger:1", "[stage-1 1/1] RUN kept"]);
    assert!(lowered.image.config.on_build.is_empty());
    let lowered = super::lowered("FROM a AS one\nONBUILD RUN triggered\nFROM one\nRUN kept", &request);
    let names: Vec<_> = lowered.definition.vertices().iter().filter_map(Vertex::name).collect();
    assert_eq!(
        names,
        ["[context one] trigger:1", "[stage-1 1/2] ONBUILD RUN triggered", "[stage-1 2/2] RUN kept"]
    );
}

#[test]
fn remote_build_contexts() {
    let git = with(|request| request.context = ContextSource::Git("git@a.test:b.git#v1:d".into()));
    let name = "[internal] load git source git@a.test:b.git#v1:d";
    let attrs = [("git.mountsshsock", "default"), ("git.fullurl", "git@a.test:b.git")];
    check_source("FROM scratch\nCOPY a b", &git, ("git://a.test/b.git#v1:d", &attrs, name));
    assert!(git.remote_context().expect("is sound").is_some());
    let url = "https://a.test/f.tar";
    let archive = with(|request| request.context = ContextSource::Archive(url.into()));
    let name = "[internal] load remote build context";
    check_source("FROM scratch\nCOPY a b", &archive, (url, &[("http.filename", "context")], name));
    let found = lowered("FROM scratch\nCOPY a b", &archive).definition;
    let unpack = match &found.vertices()[1].op {
        Op::File(file) => file.actions[0].kind.clone(),
        other => panic!("{other:?}"),
    };
    assert!(matches!(unpack, FileActionKind::Copy(copy) if copy.attempt_unpack && copy.src == "/context"));
    let kept = with(|request| {
        request.context = ContextSource::Git("https://a.test/b.git".into());
        request.build_args.insert("BUILDKIT_CONTEXT_KEEP_GIT_DIR".into(), "1".into());
        request.build_args.insert("SOURCE_DATE_EPOCH".into(), "5".into());
    });
    let name = "[internal] load git source https://a.test/b.git";
    let attrs = [("git.keepgitdir", "true"), ("git.mtime", "commit")];
    check_source("FROM scratch\nCOPY a b", &kept, ("git://a.test/b.git", &attrs, name));
}
