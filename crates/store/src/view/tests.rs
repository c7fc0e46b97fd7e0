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
    test.store.view(&snapshot(test)).expect("a view")
}

fn snapshot(test: &TestStore) -> Snapshot {
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
    active.commit().expect("a commit")
}

#[track_caller]
fn check(path: &str, expected: Option<&str>) {
    let test = TestStore::new();
    let snapshot = snapshot(&test);
    // What is remembered of layers, and what is found out, say the same.
    for view in [test.store.view(&snapshot), test.store.glance(&snapshot), test.store.glance(&snapshot)] {
        let file = view.expect("a view").open(Path::new(path)).expect("an answer");
        let found = file.map(|file| read_to_string(file).expect("text"));
        assert_eq!(found.as_deref(), expected, "{path}");
    }
}

#[test]
fn a_glance_sees_what_a_view_does() {
    let test = TestStore::new();
    let first = snapshot(&test);
    // A whiteout, an opaque directory and more names than are remembered, each at the top of a layer.
    let active = test.store.prepare(&first).expect("a layer");
    let lib = active.upper().join("lib");
    mknodat(CWD, &lib, FileType::CharacterDevice, Mode::empty(), makedev(0, 0)).expect("a whiteout");
    fs::create_dir(active.upper().join("etc")).expect("a directory");
    let opaque = test.store.inner.config.xattrs.opaque();
    let etc = fs::File::open(active.upper().join("etc")).expect("a directory");
    rustix::fs::fsetxattr(&etc, opaque, b"y", rustix::fs::XattrFlags::empty()).expect("an attribute");
    let second = active.commit().expect("a commit");
    let active = test.store.prepare(&second).expect("a layer");
    for number in 0..300 {
        fs::write(active.upper().join(format!("f{number}")), "x").expect("a file");
    }
    let third = active.commit().expect("a commit");
    let active = test.store.prepare(&third).expect("a layer");
    let twice = Snapshot::new(third.layers().iter().chain(first.layers()).copied().collect());
    for snapshot in [&first, &second, &third, &twice] {
        let whole = test.store.view(snapshot).expect("a view");
        let mut glances = vec![test.store.glance(snapshot).expect("a view")];
        if snapshot == &third {
            glances.push(active.glance().expect("a view"));
        }
        for glance in glances {
            let paths = |view: &MergedView| -> Vec<_> {
                view.walk().map(|entry| entry.expect("an entry").path().to_owned()).collect()
            };
            assert_eq!(paths(&glance), paths(&whole));
            for path in
                ["", "lib", "etc", "etc/passwd", "etc/gone", "usr", "usr/lib/so", "f7", "f299", "none"]
            {
                let seen = |view: &MergedView| {
                    let entry = view.symlink_metadata(Path::new(path)).expect("an answer");
                    entry.map(|entry| (entry.stat().st_ino, entry.stat().st_mode, entry.mtime()))
                };
                assert_eq!(seen(&glance), seen(&whole), "{path}");
                let names = |view: &MergedView| view.read_dir(Path::new(path)).expect("an answer");
                assert_eq!(names(&glance), names(&whole), "{path}");
                for most in [0, 1, 2, 1000] {
                    let expected = names(&whole).map(|all| all.into_iter().take(most).collect::<Vec<_>>());
                    let first = whole.read_dir_first(Path::new(path), most).expect("an answer");
                    assert_eq!(first, expected, "{most} of {path}");
                }
            }
        }
    }
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
fn a_file_is_at_home_in_the_layer_it_is_read_from() {
    let test = TestStore::new();
    let snapshot = snapshot(&test);
    let paths = test.store.layer_paths(&snapshot).expect("layers");
    let home = |path: &str| {
        let view = test.store.glance(&snapshot).expect("a view");
        let entry = view.symlink_metadata(Path::new(path)).expect("an answer").expect("an entry");
        view.home(&entry).expect("an answer").map(|layer| {
            let found = rustix::fs::fstat(&*layer).expect("a status").st_ino;
            let is_it = |path: &std::path::PathBuf| {
                std::os::unix::fs::MetadataExt::ino(&fs::metadata(path).expect("a status")) == found
            };
            paths.iter().position(is_it).expect("a layer of it")
        })
    };
    assert_eq!(home("etc/passwd"), Some(0));
    assert_eq!(home("usr/lib/so"), Some(1));
    assert_eq!(home("usr/up"), Some(1));
    assert_eq!(home("loop"), Some(1));
    assert_eq!(home("etc"), None);
    assert_eq!(home(""), None);
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
