//! Mounts saved, merged and restored through a directory.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::PathBuf;

use super::*;
use crate::place::local;

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

fn place(at: &Path) -> Place {
    local(at.join("cache"), "latest".to_owned(), None)
}

fn save(place: &Place, id: &str, directory: &Path, limit: Option<u64>) -> Saved {
    let saved = async {
        let mut saving = Saving::begin(place, limit).await?;
        saving.take(id, directory).await?;
        saving.finish("2026-01-01T00:00:00Z").await
    };
    runtime().block_on(saved).expect("saved")
}

fn restore(place: &Place, id: &str, into: &Path) -> bool {
    fs::create_dir_all(into).expect("a directory");
    let restored = async { MountArchive::read(place).await?.restore(place, id, into).await };
    runtime().block_on(restored).expect("restored")
}

/// Bytes that do not repeat.
fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[0]
    };
    std::iter::repeat_with(next).take(length).collect()
}

fn set_time(path: &Path, seconds: u64) {
    let file = fs::File::options().write(true).open(path).expect("a file");
    file.set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_secs(seconds)).expect("a time");
}

fn sample(root: &Path) -> PathBuf {
    let directory = root.join("mount");
    fs::create_dir_all(directory.join("a/b")).expect("directories");
    fs::write(directory.join("a/b/large"), noise(3 << 20, 7)).expect("a file");
    fs::write(directory.join("empty"), b"").expect("a file");
    fs::write(directory.join("run.sh"), b"#!/bin/sh\n").expect("a file");
    fs::set_permissions(directory.join("run.sh"), fs::Permissions::from_mode(0o755)).expect("a mode");
    symlink("a/b/large", directory.join("link")).expect("a link");
    directory
}

#[test]
fn a_mount_comes_back_as_it_was() {
    let root = tempfile::tempdir().expect("a directory");
    let (directory, place) = (sample(root.path()), place(root.path()));
    let saved = save(&place, "npm", &directory, None);
    assert!(saved.sent > 3 << 20 && saved.read == 3, "{saved:?}");
    let into = root.path().join("restored");
    assert!(restore(&place, "npm", &into));
    assert_eq!(fs::read(into.join("a/b/large")).expect("a file"), noise(3 << 20, 7));
    assert_eq!(fs::read_link(into.join("link")).expect("a link"), Path::new("a/b/large"));
    let meta = |at: &Path| fs::metadata(at.join("run.sh")).expect("a file");
    assert_eq!(meta(&into).permissions().mode() & 0o7777, 0o755);
    assert_eq!(meta(&into).modified().expect("a time"), meta(&directory).modified().expect("a time"));
    assert!(!restore(&place, "other", &root.path().join("none")));
}

#[test]
fn content_leaves_before_the_end_and_counts_from_then_on() {
    let root = tempfile::tempdir().expect("a directory");
    let (directory, place) = (sample(root.path()), place(root.path()));
    runtime().block_on(async {
        let mut saving = Saving::begin(&place, None).await.expect("begun");
        saving.take("npm", &directory).await.expect("sent");
        let mounts = MountArchive::read(&place).await.expect("an archive");
        assert_eq!(mounts.mounts().count(), 0, "nobody finds it before the end");
        // A step that comes later adds a file; another machine has saved its own meanwhile.
        fs::write(directory.join("later"), b"1").expect("a file");
        let mut other = Saving::begin(&place, None).await.expect("begun");
        other.take("go", &directory.join("a")).await.expect("sent");
        other.finish("2026-01-01T00:00:00Z").await.expect("saved");
        saving.take("npm", &directory).await.expect("sent");
        let saved = saving.finish("2026-01-01T00:00:00Z").await.expect("saved");
        assert_eq!(saved.read, 4, "three files, and one that came later");
    });
    let into = root.path().join("restored");
    assert!(restore(&place, "npm", &into) && into.join("later").exists());
    assert!(restore(&place, "go", &root.path().join("other")));
}

#[test]
fn only_what_is_new_is_read_and_sent() {
    let root = tempfile::tempdir().expect("a directory");
    let (directory, place) = (sample(root.path()), place(root.path()));
    save(&place, "npm", &directory, None);
    let again = save(&place, "npm", &directory, None);
    assert_eq!((again.sent, again.read), (0, 0));
    // A change in the middle moves no later cut: most of the file is known.
    let mut bytes = noise(3 << 20, 7);
    bytes.splice(1 << 20..1 << 20, b"inserted".iter().copied());
    fs::write(directory.join("a/b/large"), &bytes).expect("a file");
    let changed = save(&place, "npm", &directory, None);
    assert!(changed.sent > 0 && changed.sent < 1 << 20, "{changed:?}");
    let into = root.path().join("restored");
    assert!(restore(&place, "npm", &into));
    assert_eq!(fs::read(into.join("a/b/large")).expect("a file"), bytes);
}

#[test]
fn equal_files_of_two_mounts_are_sent_once() {
    let root = tempfile::tempdir().expect("a directory");
    let (directory, place) = (sample(root.path()), place(root.path()));
    save(&place, "one", &directory, None);
    let other = save(&place, "two", &directory, None);
    assert_eq!((other.sent, other.read), (0, 3));
    let removed = runtime().block_on(MountArchive::remove(&place, &["one".to_owned(), "x".to_owned()]));
    assert_eq!(removed.expect("removed"), ["one"]);
    assert!(restore(&place, "two", &root.path().join("restored")));
}

#[test]
fn a_cap_leaves_the_oldest_behind() {
    let root = tempfile::tempdir().expect("a directory");
    let directory = root.path().join("mount");
    fs::create_dir(&directory).expect("a directory");
    for (name, time) in [("old", 1_000), ("new", 2_000)] {
        fs::write(directory.join(name), noise(1000, time)).expect("a file");
        set_time(&directory.join(name), time);
    }
    let place = place(root.path());
    assert_eq!(save(&place, "m", &directory, Some(1500)).size, 1000);
    let into = root.path().join("restored");
    assert!(restore(&place, "m", &into));
    assert!(into.join("new").exists() && !into.join("old").exists());
}

#[test]
fn of_two_writers_the_newer_file_wins() {
    let entry = |time, size| Entry {
        mode: 0o644,
        uid: 0,
        gid: 0,
        mtime: (time, 0),
        kind: EntryKind::File(size, Vec::new()),
    };
    let directory = Entry { kind: EntryKind::Dir, ..entry(0, 0) };
    let tree = |files: &[(&str, i64, u64)]| {
        let mut tree = Tree::default();
        tree.entries.insert(String::new(), directory.clone());
        for (path, time, size) in files {
            tree.entries.insert((*path).to_owned(), entry(*time, *size));
        }
        tree
    };
    let mut ours = tree(&[("both", 1, 10), ("mine", 1, 1), ("newer", 9, 5)]);
    ours.merge(tree(&[("both", 2, 20), ("theirs", 1, 2), ("newer", 3, 6)]));
    let sizes: Vec<(&str, u64)> = ours
        .entries
        .iter()
        .filter_map(|(path, entry)| match entry.kind {
            EntryKind::File(size, _) => Some((path.as_str(), size)),
            _ => None,
        })
        .collect();
    assert_eq!(sizes, [("both", 20), ("mine", 1), ("newer", 5), ("theirs", 2)]);
}

#[test]
fn a_hostile_tree_stays_inside_of_its_mount() {
    let check = |path: &str| {
        let mut tree = Tree::default();
        let directory = Entry { mode: 0o755, uid: 0, gid: 0, mtime: (0, 0), kind: EntryKind::Dir };
        tree.entries.insert(String::new(), directory.clone());
        tree.entries.insert("link".into(), Entry { kind: EntryKind::Link("/".into()), ..directory.clone() });
        tree.entries.insert(path.to_owned(), directory);
        assert!(tree.check().is_err(), "{path}");
    };
    for path in ["../x", "/x", "a/../b", "link/x", "nowhere/x", "a\0b", "./x"] {
        check(path);
    }
}
