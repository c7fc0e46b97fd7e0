//! What is written is read back the same, byte for byte and twice.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;

use proptest::prelude::*;
use rustix::fs::{CWD, FileType, Mode, XattrFlags, lsetxattr, makedev, mkdirat, mknodat, open, openat};
use rustix::io::Errno;
use stave_oci::Digest;

use crate::tests::{TestStore, top};
use crate::view::directory_flags;
use crate::{ApplyOptions, MergedView, Snapshot, Store, StoreError, TarOptions, Timestamps};

const EXACT: TarOptions = TarOptions { timestamps: Timestamps::Nanoseconds, clamp: None };

/// A layer directory as an overlay mount could leave it, every kind of entry in it.
fn fill(upper: &Path) {
    let mode = |path: &str, mode| {
        fs::set_permissions(upper.join(path), fs::Permissions::from_mode(mode)).expect("a mode");
    };
    fs::create_dir_all(upper.join("etc/opaque")).expect("a directory");
    fs::write(upper.join("etc/passwd"), "root\n").expect("a file");
    fs::write(upper.join("etc/empty"), "").expect("a file");
    fs::write(upper.join("tool"), "x".repeat(1000)).expect("a file");
    mode("tool", 0o4755);
    mode("etc", 0o1750);
    fs::hard_link(upper.join("tool"), upper.join("twice")).expect("a link");
    symlink("../a b", upper.join("link")).expect("a symlink");
    fs::write(upper.join(format!("etc/{}", "long".repeat(40))), "1").expect("a file");
    fs::write(upper.join("häßlich"), "1").expect("a file");
    let node = |name: &str, kind, device| {
        mknodat(CWD, upper.join(name), kind, Mode::from_raw_mode(0o600), device).expect("a node");
    };
    node("gone", FileType::CharacterDevice, makedev(0, 0));
    node("null", FileType::CharacterDevice, makedev(1, 3));
    node("disk", FileType::BlockDevice, makedev(8, 1));
    node("fifo", FileType::Fifo, 0);
    drop(std::os::unix::net::UnixListener::bind(upper.join("socket")).expect("a socket"));
    let attribute = |path: &str, name: &str, value: &[u8]| {
        lsetxattr(upper.join(path), name, value, XattrFlags::empty()).expect("an attribute");
    };
    attribute("etc/opaque", "trusted.overlay.opaque", b"y");
    attribute("etc", "trusted.overlay.origin", b"whatever");
    attribute("etc", "trusted.overlay.impure", b"y");
    attribute("tool", "user.note", b"a\nb\0c");
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    attribute("tool", "security.capability", &capability);
    for (path, time) in [("tool", 7), ("etc/passwd", -1), ("etc", 1_000_000), ("etc/opaque", 5)] {
        let time = rustix::fs::Timespec { tv_sec: time, tv_nsec: 500_000_000 };
        let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
        rustix::fs::utimensat(CWD, upper.join(path), &times, rustix::fs::AtFlags::empty()).expect("a time");
    }
}

fn tar(store: &Store, snapshot: &Snapshot, options: &TarOptions) -> Vec<u8> {
    let mut bytes = Vec::new();
    store.write_layer_tar(top(snapshot), &mut bytes, options).expect("an archive");
    bytes
}

/// Everything a layer directory says, as text.
fn describe(path: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    let mut pending = vec![path.to_owned()];
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(directory).expect("a directory") {
            let entry = entry.expect("an entry").path();
            let found = fs::symlink_metadata(&entry).expect("an entry");
            let kind = found.file_type();
            if kind.is_socket() {
                continue;
            }
            let mut names = vec![0; 1024];
            let length = rustix::fs::llistxattr(&entry, &mut names[..]).expect("attributes");
            let mut attributes = Vec::new();
            for name in names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
                let name = std::str::from_utf8(name).expect("a plain name");
                let mut value = [0; 256];
                let length = rustix::fs::lgetxattr(&entry, name, &mut value[..]).expect("an attribute");
                if !name.ends_with(".origin") && !name.ends_with(".impure") {
                    attributes.push(format!("{name}={:?}", &value[..length]));
                }
            }
            attributes.sort();
            let content = if kind.is_file() {
                String::from_utf8(fs::read(&entry).expect("a file")).expect("text")
            } else if kind.is_symlink() {
                fs::read_link(&entry).expect("a link").display().to_string()
            } else {
                String::new()
            };
            let is_whiteout = kind.is_char_device() && found.rdev() == 0;
            let name = entry.strip_prefix(path).expect("below the root").display();
            let links = if kind.is_dir() || is_whiteout { 1 } else { found.nlink() };
            let facts = if is_whiteout {
                String::new()
            } else {
                let (mode, time) = (found.mode(), (found.mtime(), found.mtime_nsec()));
                format!("{mode:o} {}:{} {time:?} {}", found.uid(), found.gid(), found.rdev())
            };
            lines.push(format!("{name} {facts} {links} {attributes:?} {content}"));
            if kind.is_dir() {
                pending.push(entry);
            }
        }
    }
    lines.sort();
    lines
}

#[test]
fn a_layer_survives_writing_and_unpacking() {
    let [first, second] = [TestStore::new(), TestStore::new()];
    let active = first.store.prepare(&Snapshot::scratch()).expect("a layer");
    fill(active.upper());
    let snapshot = active.commit().expect("a commit");
    let written = tar(&first.store, &snapshot, &EXACT);
    assert_eq!(written, tar(&first.store, &snapshot, &EXACT));
    let applied = second.store.apply_layer(&written[..], &ApplyOptions::default()).expect("a layer");
    assert_eq!(applied.diff_id, Digest::sha256(&written));
    let copy = Snapshot::new(vec![applied.layer]);
    let [original, unpacked] = [(&first, &snapshot), (&second, &copy)]
        .map(|(test, snapshot)| describe(&test.store.layer_paths(snapshot).expect("paths")[0]));
    assert_eq!(original, unpacked);
    assert_eq!(written, tar(&second.store, &copy, &EXACT));
}

#[test]
fn other_readers_agree() {
    let test = TestStore::new();
    let active = test.store.prepare(&Snapshot::scratch()).expect("a layer");
    fill(active.upper());
    let snapshot = active.commit().expect("a commit");
    let written = tar(&test.store, &snapshot, &TarOptions::default());
    let mut names = Vec::new();
    for entry in tar::Archive::new(&written[..]).entries().expect("an archive") {
        let entry = entry.expect("an entry");
        let kind = char::from(entry.header().entry_type().as_byte());
        names.push(format!("{kind} {}", String::from_utf8_lossy(&entry.path_bytes())));
    }
    let long = format!("0 etc/{}", "long".repeat(40));
    let expected = [
        "4 disk",
        "5 etc/",
        "0 etc/empty",
        &long,
        "5 etc/opaque/",
        "0 etc/opaque/.wh..wh..opq",
        "0 etc/passwd",
        "6 fifo",
        "0 .wh.gone",
        "0 häßlich",
        "2 link",
        "3 null",
        "0 tool",
        "1 twice",
    ];
    assert_eq!(names, expected);
}

/// The archive's bytes are part of image identity: changing them changes every image built.
#[test]
fn the_bytes_of_an_archive_are_fixed() {
    let test = TestStore::new();
    let active = test.store.prepare(&Snapshot::scratch()).expect("a layer");
    fs::create_dir(active.upper().join("d")).expect("a directory");
    fs::write(active.upper().join("d/f"), "content").expect("a file");
    fs::set_permissions(active.upper().join("d/f"), fs::Permissions::from_mode(0o644)).expect("a mode");
    fs::set_permissions(active.upper().join("d"), fs::Permissions::from_mode(0o755)).expect("a mode");
    symlink("f", active.upper().join("d/l")).expect("a symlink");
    let snapshot = active.commit().expect("a commit");
    let written = tar(&test.store, &snapshot, &TarOptions { clamp: Some(1), ..TarOptions::default() });
    assert_eq!((written.len(), Digest::sha256(&written).short()), (3072, "b4ccc2bbd0ca"));
}

#[test]
fn times_are_clamped_to_an_epoch() {
    let test = TestStore::new();
    let active = test.store.prepare(&Snapshot::scratch()).expect("a layer");
    fill(active.upper());
    let snapshot = active.commit().expect("a commit");
    let written = tar(&test.store, &snapshot, &TarOptions { clamp: Some(6), ..EXACT });
    let path = |test: &TestStore| {
        let applied = test.store.apply_layer(&written[..], &ApplyOptions::default()).expect("a layer");
        test.store.layer_paths(&Snapshot::new(vec![applied.layer])).expect("paths").remove(0)
    };
    let time = |name: &str| {
        let found = fs::metadata(path(&test).join(name)).expect("an entry");
        (found.mtime(), found.mtime_nsec())
    };
    assert_eq!(["tool", "etc/passwd", "etc/opaque"].map(time), [(6, 0), (-1, 500_000_000), (5, 500_000_000)]);
}

#[test]
fn overlay_features_that_move_content_are_refused() {
    let test = TestStore::new();
    let active = test.store.prepare(&Snapshot::scratch()).expect("a layer");
    fs::create_dir(active.upper().join("d")).expect("a directory");
    lsetxattr(active.upper().join("d"), "trusted.overlay.redirect", b"/x", XattrFlags::empty())
        .expect("an attribute");
    let snapshot = active.commit().expect("a commit");
    let error = test.store.diff_id(top(&snapshot)).expect_err("a redirect");
    assert!(matches!(&error, StoreError::OverlayFeature { feature, .. } if feature == "redirect"), "{error}");
}

#[test]
fn a_full_output_is_reported() {
    struct Full;
    impl std::io::Write for Full {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::StorageFull.into())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let test = TestStore::new();
    let snapshot = test.layer(&Snapshot::scratch(), "f", "1");
    let error = test.store.write_layer_tar(top(&snapshot), &mut Full, &EXACT).expect_err("no room");
    assert!(matches!(error, StoreError::StorageFull { .. }), "{error}");
}

/// One change to a file system, on a few short names.
#[derive(Debug, Clone)]
enum Change {
    Write(String, String),
    Directory(String),
    Link(String),
    Remove(String),
}

fn changes() -> impl Strategy<Value = Vec<Change>> {
    let path = prop::collection::vec(prop::sample::select(vec!["a", "b", "c"]), 1..4)
        .prop_map(|parts| parts.join("/"));
    let change = (path, "[a-z]{0,3}", 0..6u8).prop_map(|(path, text, kind)| match kind {
        0 | 1 => Change::Write(path, text),
        2 => Change::Directory(path),
        3 => Change::Link(path),
        _ => Change::Remove(path),
    });
    prop::collection::vec(change, 0..12)
}

/// Applies a change where its parent is a directory, else does nothing.
fn change(root: &Path, change: &Change) {
    let (Change::Write(path, _) | Change::Directory(path) | Change::Link(path) | Change::Remove(path)) =
        change;
    let path = root.join(path);
    if !path.parent().is_some_and(|parent| fs::symlink_metadata(parent).is_ok_and(|found| found.is_dir())) {
        return;
    }
    let is_directory = fs::symlink_metadata(&path).is_ok_and(|found| found.is_dir());
    if !(is_directory && matches!(change, Change::Directory(_))) {
        crate::removal::remove_tree(&path).expect("a removal");
    }
    match change {
        Change::Write(_, text) => fs::write(&path, text).expect("a file"),
        Change::Directory(_) if !is_directory => fs::create_dir(&path).expect("a directory"),
        Change::Link(_) => symlink("a", &path).expect("a symlink"),
        _ => {}
    }
}

/// What an overlay mount would leave in its upper directory for `old` to become `new`.
fn diff(old: &Path, new: &Path, upper: &Path) {
    let names = |path: &Path| -> std::collections::BTreeSet<_> {
        fs::read_dir(path).expect("a directory").map(|entry| entry.expect("an entry").file_name()).collect()
    };
    for name in names(old).difference(&names(new)) {
        let node = upper.join(name);
        mknodat(CWD, node, FileType::CharacterDevice, Mode::empty(), makedev(0, 0)).expect("a whiteout");
    }
    for name in names(new) {
        let [old, new, upper] = [old, new, upper].map(|path| path.join(&name));
        let [was, is] = [&old, &new].map(|path| fs::symlink_metadata(path).map(|found| found.file_type()));
        let is = is.expect("an entry");
        if is.is_symlink() {
            symlink(fs::read_link(&new).expect("a link"), &upper).expect("a symlink");
        } else if is.is_file() {
            fs::copy(&new, &upper).expect("a file");
        } else {
            fs::create_dir(&upper).expect("a directory");
            if was.as_ref().is_ok_and(fs::FileType::is_dir) {
                diff(&old, &new, &upper);
            } else {
                let nothing = tempfile::tempdir().expect("an empty directory");
                diff(nothing.path(), &new, &upper);
                if was.is_ok() {
                    lsetxattr(&upper, "trusted.overlay.opaque", b"y", XattrFlags::empty()).expect("a mark");
                }
            }
        }
    }
}

fn tree(root: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    let mut pending = vec![root.to_owned()];
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(directory).expect("a directory") {
            let path = entry.expect("an entry").path();
            let kind = fs::symlink_metadata(&path).expect("an entry").file_type();
            let content = match (kind.is_file(), kind.is_symlink()) {
                (true, _) => fs::read_to_string(&path).expect("a file"),
                (_, true) => "-> a".to_owned(),
                _ => "/".to_owned(),
            };
            lines.push(format!("{} {content}", path.strip_prefix(root).expect("below").display()));
            if kind.is_dir() {
                pending.push(path);
            }
        }
    }
    lines.sort();
    lines
}

fn merged(view: &MergedView) -> Vec<String> {
    let mut lines = Vec::new();
    for entry in view.walk() {
        let entry = entry.expect("an entry");
        if entry.path().as_os_str().is_empty() {
            continue;
        }
        let content = match entry.file_type() {
            FileType::RegularFile => std::io::read_to_string(entry.open().expect("a file")).expect("text"),
            FileType::Symlink => "-> a".to_owned(),
            _ => "/".to_owned(),
        };
        lines.push(format!("{} {content}", entry.path().display()));
    }
    lines.sort();
    lines
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Each step's layer goes through an archive into another store; the merge of what arrived is
    /// the tree at the end, for the view and for the flattened archive.
    #[test]
    fn applying_a_diff_gives_the_other_side(steps in prop::collection::vec(changes(), 1..4)) {
        let [here, there] = [TestStore::new(), TestStore::new()];
        let trees = tempfile::tempdir().expect("a directory");
        let mut old = trees.path().join("0");
        fs::create_dir(&old).expect("a directory");
        let mut copy = Snapshot::scratch();
        for (index, step) in steps.iter().enumerate() {
            let new = trees.path().join((index + 1).to_string());
            copy_tree(&old, &new);
            step.iter().for_each(|each| change(&new, each));
            let active = here.store.prepare(&Snapshot::scratch()).expect("a layer");
            diff(&old, &new, active.upper());
            let written = tar(&here.store, &active.commit().expect("a commit"), &EXACT);
            let applied = there.store.apply_layer(&written[..], &ApplyOptions::default()).expect("a layer");
            copy = copy.push(applied.layer);
            old = new;
        }
        let expected = tree(&old);
        prop_assert_eq!(&merged(&there.store.view(&copy).expect("a view")), &expected);
        let mut flat = Vec::new();
        there.store.write_snapshot_tar(&copy, &mut flat, &EXACT).expect("an archive");
        let applied = here.store.apply_layer(&flat[..], &ApplyOptions::default()).expect("a layer");
        let paths = here.store.layer_paths(&Snapshot::new(vec![applied.layer])).expect("paths");
        prop_assert_eq!(&tree(&paths[0]), &expected);
    }
}

fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir(to).expect("a directory");
    let nothing = tempfile::tempdir().expect("an empty directory");
    diff(nothing.path(), from, to);
}

/// A step may nest directories as deep as it likes.
#[test]
fn trees_deeper_than_can_be_unpacked_are_refused() {
    #[track_caller]
    fn check(name: &str, levels: usize, fits: bool) {
        let fixture = TestStore::new();
        let active = fixture.store.prepare(&Snapshot::scratch()).expect("a layer");
        let mut at = open(active.upper(), directory_flags(), Mode::empty()).expect("a directory");
        for _ in 0..levels {
            mkdirat(&at, name, Mode::RWXU).expect("a directory");
            at = openat(&at, name, directory_flags(), Mode::empty()).expect("a directory");
        }
        let layer = top(&active.commit().expect("a commit"));
        let written = fixture.store.write_layer_tar(layer, &mut io::sink(), &TarOptions::default());
        let is_long = |source| Errno::from_io_error(source) == Some(Errno::NAMETOOLONG);
        match written {
            Ok(()) => assert!(fits),
            Err(StoreError::Io { source, .. }) if is_long(&source) => assert!(!fits),
            Err(error) => panic!("{error}"),
        }
    }
    check(&"d".repeat(255), 15, true);
    check(&"d".repeat(255), 20, false);
    check("d", 700, true);
}
