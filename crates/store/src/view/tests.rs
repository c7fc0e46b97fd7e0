//! Reading a snapshot through its layers.

use std::fs;
use std::io::read_to_string;
use std::os::unix::fs::symlink;
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};

use crate::tests::TestStore;
use crate::{MergedView, Snapshot, StoreError};

/// A base and a layer that changes it.
fn view(test: &TestStore) -> MergedView {
    let active = test.store.prepare(&Snapshot::scratch()).expect("a layer");
    let path = |name: &str| active.upper().join(name);
    fs::create_dir_all(path("usr/lib")).expect("a directory");
    fs::create_dir(path("etc")).expect("a directory");
    fs::write(path("etc/passwd"), "base").expect("a file");
    fs::write(path("etc/gone"), "base").expect("a file");
    fs::write(path("usr/lib/so"), "library").expect("a file");
    symlink("usr/lib", path("lib")).expect("a symlink");
    symlink("/lib/so", path("absolute")).expect("a symlink");
    symlink("../../../etc/passwd", path("usr/up")).expect("a symlink");
    symlink("loop", path("loop")).expect("a symlink");
    let base = active.commit().expect("a commit");
    let active = test.store.prepare(&base).expect("a layer");
    let path = |name: &str| active.upper().join(name);
    fs::create_dir(path("etc")).expect("a directory");
    fs::write(path("etc/passwd"), "top").expect("a file");
    let gone = path("etc/gone");
    mknodat(CWD, gone, FileType::CharacterDevice, Mode::empty(), makedev(0, 0)).expect("a whiteout");
    test.store.view(&active.commit().expect("a commit")).expect("a view")
}

#[track_caller]
fn check(path: &str, expected: Option<&str>) {
    let test = TestStore::new();
    let file = view(&test).open(Path::new(path)).expect("an answer");
    let found = file.map(|file| read_to_string(file).expect("text"));
    assert_eq!(found.as_deref(), expected, "{path}");
}

#[test]
fn files_are_found_through_layers_and_symlinks() {
    check("etc/passwd", Some("top"));
    check("/etc/passwd", Some("top"));
    check("etc/gone", None);
    check("lib/so", Some("library"));
    check("absolute", Some("library"));
    check("usr/up", Some("top"));
    check("../../etc/passwd", Some("top"));
    check("lib/../../etc/passwd", Some("top"));
    check("etc/passwd/x", None);
    check("none/x", None);
}

#[test]
fn links_in_a_circle_end() {
    let test = TestStore::new();
    let error = view(&test).open(Path::new("loop")).expect_err("a circle");
    assert!(matches!(error, StoreError::View { .. }), "{error}");
}

#[test]
fn directories_are_merged() {
    let test = TestStore::new();
    let view = view(&test);
    let names = |path: &str| view.read_dir(Path::new(path)).expect("an answer");
    assert_eq!(names("etc"), Some(vec!["passwd".into()]));
    assert_eq!(names("lib"), Some(vec!["so".into()]));
    assert_eq!(names("etc/passwd"), None);
    let link = view.symlink_metadata(Path::new("lib")).expect("an answer").expect("an entry");
    assert_eq!(link.file_type(), FileType::Symlink);
    assert_eq!(link.read_link().expect("a target"), Path::new("usr/lib"));
    let followed = view.metadata(Path::new("lib")).expect("an answer").expect("an entry");
    assert_eq!(followed.file_type(), FileType::Directory);
}

#[test]
fn scratch_is_empty() {
    let test = TestStore::new();
    let view = test.store.view(&Snapshot::scratch()).expect("a view");
    assert_eq!(view.walk().count(), 0);
    assert!(view.metadata(Path::new("/")).expect("an answer").is_none());
}
