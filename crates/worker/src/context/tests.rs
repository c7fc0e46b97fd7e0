//! What a context shows through its filter, and that its bytes decide its digest.

use super::*;
use crate::input::Input;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::sync::Arc;

use stave_solver::Selector;

fn filter(include: &[&str], exclude: &[&str], follow: &[&str]) -> ContextFilter {
    let own = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
    ContextFilter {
        include: own(include),
        exclude: own(exclude),
        follow: own(follow),
        modes: ContextModes::Kept,
    }
}

fn sample() -> tempfile::TempDir {
    let directory = tempfile::tempdir().expect("tempdir");
    let at = |path: &str| directory.path().join(path);
    for path in ["a/deep", "b", "node_modules/x"] {
        std::fs::create_dir_all(at(path)).expect("mkdir");
    }
    for path in ["a/one", "a/deep/two", "b/three.md", "b/four", "node_modules/x/big", "top"] {
        std::fs::write(at(path), path).expect("write");
    }
    symlink("a/deep", at("link")).expect("symlink");
    directory
}

fn paths(node: &Node, at: &str, found: &mut Vec<String>) {
    for child in node.children() {
        let path = crate::tree::join(at, &child.name);
        if !child.is_dir() {
            found.push(path.clone());
        }
        paths(child, &path, found);
    }
}

#[track_caller]
fn check(filter: &ContextFilter, expected: &[&str]) {
    let directory = sample();
    let context = Context::scan(directory.path(), filter, None).expect("scan");
    let mut found = Vec::new();
    paths(context.tree(), "", &mut found);
    assert_eq!(found, expected);
}

#[test]
fn what_takes_part() {
    let all = ["a/deep/two", "a/one", "b/four", "b/three.md", "link", "node_modules/x/big", "top"];
    check(&filter(&[], &[], &[]), &all);
    check(
        &filter(&[], &["node_modules"], &[]),
        &["a/deep/two", "a/one", "b/four", "b/three.md", "link", "top"],
    );
    check(&filter(&[], &["*", "!b/four"], &[]), &["b/four"]);
    check(
        &filter(&[], &["**/*.md", "a", "!a/deep"], &[]),
        &["a/deep/two", "b/four", "link", "node_modules/x/big", "top"],
    );
    check(&filter(&["a"], &[], &[]), &["a/deep/two", "a/one"]);
    check(&filter(&["a"], &["a/deep"], &[]), &["a/one"]);
    check(&filter(&["**/two"], &[], &[]), &["a/deep/two"]);
    check(&filter(&[], &[], &["link"]), &["a/deep/two", "link"]);
    check(&filter(&[], &[], &["top", "b/*.md"]), &["b/three.md", "top"]);
    check(&filter(&[], &[], &["."]), &all);
    check(&filter(&[], &["**"], &[]), &[]);
}

fn digest(directory: &Path, kept: Option<&Path>, selector: &Selector) -> [u8; 32] {
    let context = Context::scan(directory, &ContextFilter::default(), kept).expect("scan");
    Input::Context(Arc::new(context)).digest(selector).expect("digest").0
}

#[test]
fn content_counts_and_times_do_not() {
    let directory = sample();
    let whole = Selector::whole();
    let before = digest(directory.path(), None, &whole);
    let file = directory.path().join("a/one");
    let old = std::fs::File::options().write(true).open(&file).expect("open");
    old.set_modified(std::time::UNIX_EPOCH).expect("touch");
    assert_eq!(digest(directory.path(), None, &whole), before);
    std::fs::write(&file, "a/onf").expect("write");
    let changed = digest(directory.path(), None, &whole);
    assert_ne!(changed, before);
    std::fs::write(&file, "a/one").expect("write");
    assert_eq!(digest(directory.path(), None, &whole), before);
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).expect("chmod");
    assert_ne!(digest(directory.path(), None, &whole), before);
}

#[test]
fn a_selector_sees_only_its_part() {
    let directory = sample();
    let selector = Selector::path("/a");
    let before = digest(directory.path(), None, &selector);
    std::fs::write(directory.path().join("b/four"), "changed").expect("write");
    assert_eq!(digest(directory.path(), None, &selector), before);
    assert_ne!(digest(directory.path(), None, &Selector::path("/b")), before);
    assert_eq!(
        digest(directory.path(), None, &Selector::path("/link")),
        digest(directory.path(), None, &Selector::path("/a/deep")),
        "a followed symlink is what it leads to"
    );
}

/// The same size, the same mtime, written again at once: only content (or ctime, once a tick has passed) tells.
#[test]
fn a_change_that_keeps_size_and_mtime_is_seen() {
    let directory = sample();
    let kept = tempfile::tempdir().expect("tempdir");
    let file = directory.path().join("top");
    let whole = Selector::whole();
    let mut seen = std::collections::BTreeSet::new();
    for round in 0..20u8 {
        std::fs::write(&file, [b'a' + round; 3]).expect("write");
        let open = std::fs::File::options().write(true).open(&file).expect("open");
        open.set_modified(std::time::UNIX_EPOCH).expect("touch");
        assert!(seen.insert(digest(directory.path(), Some(kept.path()), &whole)), "round {round}");
    }
}

#[test]
fn fingerprints_save_reading() {
    let directory = sample();
    let kept = tempfile::tempdir().expect("tempdir");
    let whole = Selector::whole();
    let first = digest(directory.path(), Some(kept.path()), &whole);
    let context =
        Context::scan(directory.path(), &ContextFilter::default(), Some(kept.path())).expect("scan");
    // With the directory's content out of reach, only remembered digests can answer.
    let meta = context.tree().get(Path::new("top")).expect("node").meta;
    assert!(context.fingerprints().get(&fingerprint::key("top", &meta)).is_some());
    assert_eq!(Input::Context(Arc::new(context)).digest(&whole).expect("digest").0, first);
}

#[test]
fn gits_model_of_modes_makes_machines_agree() {
    let write = |mode: u32| {
        let directory = tempfile::tempdir().expect("a directory");
        for (name, mode) in [("text", mode), ("program", mode | 0o111)] {
            let path = directory.path().join(name);
            std::fs::write(&path, "x").expect("writes");
            std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(mode))
                .expect("changes");
        }
        directory
    };
    let digest = |directory: &tempfile::TempDir, modes| {
        let filter = ContextFilter { modes, ..ContextFilter::default() };
        let context = Context::scan(directory.path(), &filter, None).expect("scan");
        Input::Context(Arc::new(context)).digest(&Selector::whole()).expect("digest").0
    };
    let (one, other) = (write(0o644), write(0o664));
    assert_ne!(digest(&one, ContextModes::Kept), digest(&other, ContextModes::Kept));
    assert_eq!(digest(&one, ContextModes::Git), digest(&other, ContextModes::Git));
}
