//! Digests against records that BuildKit 0.32 wrote into a cache of the same files.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::sync::Arc;

use stave_remotecache::key::content_record;

use super::*;
use crate::context::{Context, ContextFilter};

fn write(root: &Path, name: &str, text: &str, mode: u32) {
    fs::write(root.join(name), text).expect("a file");
    fs::set_permissions(root.join(name), fs::Permissions::from_mode(mode)).expect("a mode");
}

fn sample(root: &Path) -> Input {
    for directory in ["src", "src/sub"] {
        fs::create_dir(root.join(directory)).expect("a directory");
        fs::set_permissions(root.join(directory), fs::Permissions::from_mode(0o755)).expect("a mode");
    }
    write(root, "a.txt", "hello\n", 0o644);
    write(root, "f1.log", "x1\n", 0o644);
    write(root, "f2.log", "x2\n", 0o644);
    write(root, "src/b.txt", "two\n", 0o640);
    write(root, "src/skip.md", "skip\n", 0o644);
    write(root, "src/sub/c.txt", "three\n", 0o644);
    symlink("b.txt", root.join("src/link")).expect("a link");
    Input::Context(Arc::new(Context::scan(root, &ContextFilter::default(), None).expect("scanned")))
}

fn path(path: &str) -> ContentPath {
    ContentPath { path: path.into(), follow_links: true, ..ContentPath::default() }
}

#[track_caller]
fn check(input: &Input, wanted: ContentPath, record: &str) {
    let found = digest(input, &[wanted], &FileDigests::none()).expect("readable").expect("there");
    assert_eq!(content_record(&found).to_string(), format!("sha256:{record}"));
}

#[test]
fn files_directories_and_patterns_are_what_the_reference_found() {
    let root = tempfile::tempdir().expect("a directory");
    let input = sample(root.path());
    check(&input, path("/a.txt"), "c24a47b576469b52903dd7e5045a62fee5855b447dee1771d67b829458d2c08e");
    check(&input, path("/src"), "a06c16377903b7e0ff23fa802daaf972c6437a8ea9ce1313905a33b192ed8fb3");
    let logs = ContentPath { wildcard: true, ..path("/f*.log") };
    check(&input, logs, "057672d581d292a1bc484db7377e4246d9e1f0371771e8b8d3be4fbbb82be423");
    let filtered = ContentPath { exclude_patterns: vec!["*.md".into()], ..path("/src") };
    check(&input, filtered, "413d8ac2b981b2d3cb23eab11157ee16340f4b487e93800ed800b4094f585dfe");
}

#[test]
fn what_does_not_count_changes_nothing_and_the_rest_does() {
    let root = tempfile::tempdir().expect("a directory");
    let of =
        |input: &Input, path: ContentPath| digest(input, &[path], &FileDigests::none()).expect("readable");
    let (a, b) = (root.path().join("a"), root.path().join("b"));
    for directory in [&a, &b] {
        fs::create_dir(directory).expect("a directory");
    }
    let (one, other) = (sample(&a), sample(&b));
    assert_eq!(of(&one, path("/")), of(&other, path("/")), "times and places do not count");
    let excluded = || ContentPath { exclude_patterns: vec!["**/*.md".into()], ..path("/src") };
    let before = of(&other, excluded());
    write(&b, "src/skip.md", "changed\n", 0o644);
    let other =
        Input::Context(Arc::new(Context::scan(&b, &ContextFilter::default(), None).expect("scanned")));
    assert_eq!(of(&other, excluded()), before);
    assert_ne!(of(&other, path("/src")), of(&one, path("/src")));
    let followed = of(&one, path("/src/link"));
    assert_eq!(followed, of(&one, path("/src/b.txt")));
    assert_ne!(followed, of(&one, ContentPath { follow_links: false, ..path("/src/link") }));
    assert_eq!(of(&one, path("/nowhere")), None);
    let nothing = ContentPath { wildcard: true, ..path("/no*") };
    assert_eq!(of(&one, nothing), Some(content_digest(&[Digest::sha256(b"")])));
    let whole = digest(&one, &[], &FileDigests::none()).expect("readable");
    assert_eq!(whole, of(&one, ContentPath { follow_links: false, ..path("/") }));
}

#[test]
fn an_empty_file_system_has_its_whole_and_nothing_else() {
    assert_eq!(digest_of_nothing(&[]), Some(content_digest(&[Digest::sha256(b"")])));
    assert_eq!(digest_of_nothing(&[path("/x")]), None);
}
