//! Trees of their own against the snapshots they were made of, and what is told apart as their changes.

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};

use super::*;
use crate::{Snapshot, Store};

fn store() -> (tempfile::TempDir, Store) {
    let place = tempfile::tempdir_in("/var/tmp").expect("a directory");
    let store = Store::open(&place.path().join("state")).expect("a store");
    (place, store)
}

/// A layer on `base`, written by `write`.
fn layer(store: &Store, base: &Snapshot, write: impl FnOnce(&Path)) -> Snapshot {
    let active = store.prepare(base).expect("a layer");
    write(active.upper());
    active.commit().expect("a snapshot")
}

/// A step on `base`, done to a flat tree.
fn step(store: &Store, base: &Snapshot, taking: Taking, left: &Left, run: impl FnOnce(&Path)) -> Snapshot {
    let active = store.prepare(base).expect("a layer");
    let tree = store.flatten(active.lowers(), active.work().join("flat"), taking).expect("a tree");
    run(tree.root());
    tree.collect(active.upper(), left).expect("a layer");
    drop(tree);
    active.commit().expect("a snapshot")
}

/// Paths and contents of a snapshot; directories end in a slash.
fn content(store: &Store, snapshot: &Snapshot) -> BTreeMap<String, String> {
    let view = store.view(snapshot).expect("a view");
    let shown = |entry: crate::MergedEntry| {
        let path = entry.path().display().to_string();
        match entry.file_type() {
            FileType::Directory => (path + "/", String::new()),
            FileType::Symlink => (path, entry.read_link().expect("a link").display().to_string()),
            _ => (path, io::read_to_string(entry.open().expect("a file")).expect("text")),
        }
    };
    view.walk().map(|entry| shown(entry.expect("an entry"))).filter(|(path, _)| path != "/").collect()
}

/// The names in the layer itself.
fn names(store: &Store, snapshot: &Snapshot) -> Vec<String> {
    let top = Snapshot::new(vec![snapshot.top().expect("a layer")]);
    let place = store.layer_paths(&top).expect("paths").remove(0);
    let mut found = Vec::new();
    let mut left = vec![place.clone()];
    while let Some(directory) = left.pop() {
        for entry in fs::read_dir(directory).expect("a directory") {
            let path = entry.expect("an entry").path();
            let stat = fs::symlink_metadata(&path).expect("a status");
            let gone = stat.rdev() == 0 && stat.mode() & 0o170_000 == 0o020_000;
            found.push(format!(
                "{}{}",
                if gone { "-" } else { "" },
                path.strip_prefix(&place).expect("below").display()
            ));
            if stat.is_dir() {
                left.push(path);
            }
        }
    }
    found.sort();
    found
}

fn base(store: &Store) -> Snapshot {
    let first = layer(store, &Snapshot::scratch(), |upper| {
        fs::create_dir_all(upper.join("etc/deep")).expect("directories");
        fs::write(upper.join("etc/passwd"), "root").expect("a file");
        fs::write(upper.join("etc/deep/gone"), "x").expect("a file");
        fs::write(upper.join("hidden"), "x").expect("a file");
        fs::create_dir(upper.join("one")).expect("a directory");
        fs::create_dir(upper.join("two")).expect("a directory");
        fs::write(upper.join("one/name"), "1").expect("a file");
        fs::write(upper.join("two/name"), "2").expect("a file");
    });
    layer(store, &first, |upper| {
        owner::make_whiteout(opened(upper).expect("open"), "hidden").expect("a whiteout");
        symlink("etc/passwd", upper.join("link")).expect("a link");
    })
}

#[test]
fn a_step_changes_what_it_changed() {
    for taking in [Taking::Copies, Taking::Links] {
        let (_place, store) = store();
        let base = base(&store);
        let snapshot = step(&store, &base, taking, &Left::default(), |root| {
            assert!(!root.join("hidden").exists());
            fs::remove_file(root.join("etc/passwd")).expect("gone");
            fs::write(root.join("etc/passwd"), "ROOT").expect("a file");
            fs::remove_dir_all(root.join("etc/deep")).expect("gone");
            fs::create_dir(root.join("new")).expect("a directory");
            fs::write(root.join("new/file"), "n").expect("a file");
        });
        let found = content(&store, &snapshot);
        let shown: Vec<_> = found.iter().map(|(path, text)| format!("{path}={text}")).collect();
        let expected = [
            "etc/=",
            "etc/passwd=ROOT",
            "link=etc/passwd",
            "new/=",
            "new/file=n",
            "one/=",
            "one/name=1",
            "two/=",
            "two/name=2",
        ];
        assert_eq!(shown, expected, "{taking:?}");
        assert_eq!(
            names(&store, &snapshot),
            ["-etc/deep", "etc", "etc/passwd", "new", "new/file"],
            "{taking:?}"
        );
        // The layers below are as they were.
        assert_eq!(content(&store, &base)["etc/passwd"], "root");
    }
}

#[test]
fn what_is_written_in_place_or_renamed_is_found() {
    let (_place, store) = store();
    let base = base(&store);
    let snapshot = step(&store, &base, Taking::Copies, &Left::default(), |root| {
        // The same length and time as before.
        let file = root.join("etc/passwd");
        let before = fs::metadata(&file).expect("a status").modified().expect("a time");
        let written = File::options().write(true).open(&file).expect("a file");
        std::os::unix::fs::FileExt::write_all_at(&written, b"evil", 0).expect("a write");
        written.set_modified(before).expect("a time");
        // A directory in the place of another, its files untouched.
        fs::remove_dir_all(root.join("two")).expect("gone");
        fs::rename(root.join("one"), root.join("two")).expect("a rename");
        fs::set_permissions(root.join("link"), fs::Permissions::from_mode(0o600)).expect("a mode");
    });
    let found = content(&store, &snapshot);
    assert_eq!((found["etc/passwd"].as_str(), found["two/name"].as_str()), ("evil", "1"));
    assert!(!found.contains_key("one/"));
}

#[test]
fn nothing_changed_is_an_empty_layer() {
    let (_place, store) = store();
    let base = base(&store);
    let left = Left { out: ["etc/hosts".into(), "run/secret".into()].into(), holders: ["run".into()].into() };
    let snapshot = step(&store, &base, Taking::Copies, &left, |root| {
        let before = status(&root.join("etc")).expect("a status").expect("there");
        fs::write(root.join("etc/hosts"), "127.0.0.1").expect("a file");
        fs::create_dir(root.join("run")).expect("a directory");
        fs::write(root.join("run/secret"), "s").expect("a file");
        times(&root.join("etc"), &before).expect("a time");
    });
    assert!(!content(&store, &snapshot).contains_key("run/"));
    assert!(names(&store, &snapshot).iter().all(|name| name == "etc"), "{:?}", names(&store, &snapshot));
}

/// Every file of a tree with all that can be told of it.
fn told(root: &Path) -> BTreeMap<String, String> {
    let mut told = BTreeMap::new();
    let mut left = vec![root.to_owned()];
    while let Some(path) = left.pop() {
        let stat = fs::symlink_metadata(&path).expect("a status");
        let content = if stat.is_file() { fs::read_to_string(&path).expect("text") } else { String::new() };
        let mut names = [0_u8; 256];
        let names = rustix::fs::llistxattr(&path, &mut names).map(|length| names[..length].to_vec());
        let target = fs::read_link(&path).unwrap_or_default();
        let links = if stat.is_dir() { 1 } else { stat.nlink() };
        told.insert(
            path.strip_prefix(root).expect("below").display().to_string(),
            format!(
                "{:o} {} {} {content} {names:?} {target:?} {links}",
                stat.mode(),
                stat.uid(),
                stat.mtime_nsec()
            ),
        );
        if stat.is_dir() {
            left.extend(
                fs::read_dir(&path).expect("a directory").map(|entry| entry.expect("an entry").path()),
            );
        }
    }
    told
}

/// A tree used for one step and then for another is the one that is made for the other; how many files were kept.
#[track_caller]
fn check_refit(run: impl Fn(&Path), on_top: bool) -> usize {
    let (_place, store) = store();
    let base = layer(&store, &base(&store), |upper| {
        fs::write(upper.join("twin"), "t").expect("a file");
        fs::hard_link(upper.join("twin"), upper.join("other twin")).expect("a second name");
    });
    let active = store.prepare(&base).expect("a layer");
    let left = Left { out: ["dev".into(), "etc/hosts".into()].into(), ..Left::default() };
    let tree = store.flatten(active.lowers(), active.work().join("flat"), Taking::Copies).expect("a tree");
    fs::create_dir(tree.root().join("dev")).expect("a directory");
    fs::write(tree.root().join("dev/left"), "x").expect("a file");
    fs::write(tree.root().join("etc/hosts"), "x").expect("a file");
    run(tree.root());
    tree.collect(active.upper(), &left).expect("a layer");
    let mut tree = tree;
    let aside = store.scratch_dir().expect("a directory");
    tree.move_to(aside.path().join("tree")).expect("moves");
    let snapshot = active.commit().expect("a snapshot");
    // A view by second names changes what is known of the sources.
    let next = store.prepare(if on_top { &snapshot } else { &base }).expect("a layer");
    drop(store.flatten(next.lowers(), next.work().join("links"), Taking::Links).expect("a tree"));
    let inodes = |root: &Path| -> BTreeMap<String, u64> {
        let stat = |path: &String| fs::symlink_metadata(root.join(path)).ok();
        let known = told(root).into_keys();
        known
            .filter_map(|path| Some((path.clone(), stat(&path).filter(|stat| !stat.is_dir())?.ino())))
            .collect()
    };
    let before = inodes(tree.root());
    assert_eq!(tree.in_common(next.lowers()), base.layers().len());
    let tree = tree.refit(&store, next.lowers(), next.work().join("again")).expect("a tree");
    let fresh = store.flatten(next.lowers(), next.work().join("fresh"), Taking::Copies).expect("a tree");
    assert_eq!(told(tree.root()), told(fresh.root()));
    let kept = inodes(tree.root()).iter().filter(|(path, inode)| before.get(*path) == Some(inode)).count();
    // And it tells changes as a fresh one does.
    fs::write(tree.root().join("other twin"), "written").expect("a file");
    tree.collect(next.upper(), &Left::default()).expect("a layer");
    let last = next.commit().expect("a snapshot");
    let mut changed = names(&store, &last);
    changed.retain(|name| name != "twin");
    assert_eq!(changed, ["other twin"]);
    kept
}

#[test]
fn a_used_tree_becomes_that_of_the_next_step() {
    // `etc/hosts` is nobody's; all else stays.
    let all = check_refit(|_| (), true);
    assert_eq!(all, check_refit(|_| (), false));
    assert!(all >= 6, "{all}");
    for on_top in [true, false] {
        let kept = check_refit(
            |root| {
                fs::write(root.join("etc/passwd"), "ROOT").expect("a file");
                fs::create_dir(root.join("new")).expect("a directory");
                fs::write(root.join("new/file"), "n").expect("a file");
                fs::remove_file(root.join("one/name")).expect("gone");
                fs::create_dir_all(root.join("one/name/deep")).expect("a directory in its place");
            },
            on_top,
        );
        assert!((1..all).contains(&kept), "{kept}");
    }
}

#[test]
fn nothing_of_a_step_stays_in_a_used_tree() {
    for on_top in [true, false] {
        check_refit(
            |root| {
                // Links where directories were lead nowhere.
                fs::remove_dir_all(root.join("etc")).expect("gone");
                symlink("/var/tmp", root.join("etc")).expect("a link");
                // Attributes, modes and second names of a directory's files.
                fs::set_permissions(root.join("two"), fs::Permissions::from_mode(0o1777)).expect("a mode");
                let flags = rustix::fs::XattrFlags::empty();
                rustix::fs::setxattr(root.join("two"), "user.left", b"x", flags).expect("an attribute");
                fs::hard_link(root.join("two/name"), root.join("one/second")).expect("a second name");
                fs::remove_file(root.join("twin")).expect("gone");
            },
            on_top,
        );
        // Directories that change places are not the same, though no time of theirs says so.
        check_refit(
            |root| {
                for (name, mode) in [("one", 0o700), ("two", 0o711)] {
                    fs::create_dir(root.join(name).join("deep")).expect("a directory");
                    fs::set_permissions(root.join(name).join("deep"), fs::Permissions::from_mode(mode))
                        .expect("a mode");
                }
                for (from, to) in [("one", "x"), ("two", "one"), ("x", "two")] {
                    fs::rename(root.join(from), root.join(to)).expect("a rename");
                }
            },
            on_top,
        );
    }
}

#[test]
fn a_directory_under_one_that_changed_places_is_another() {
    let (_place, store) = store();
    let base = layer(&store, &Snapshot::scratch(), |upper| {
        for (name, mode) in [("one", 0o700), ("two", 0o711)] {
            fs::create_dir_all(upper.join(name).join("deep")).expect("directories");
            fs::set_permissions(upper.join(name).join("deep"), fs::Permissions::from_mode(mode))
                .expect("a mode");
        }
    });
    let snapshot = step(&store, &base, Taking::Copies, &Left::default(), |root| {
        for (from, to) in [("one", "x"), ("two", "one"), ("x", "two")] {
            fs::rename(root.join(from), root.join(to)).expect("a rename");
        }
    });
    let view = store.view(&snapshot).expect("a view");
    let mode =
        |path: &str| view.metadata(Path::new(path)).expect("read").expect("there").stat().st_mode & 0o777;
    assert_eq!((mode("one/deep"), mode("two/deep")), (0o711, 0o700));
}
