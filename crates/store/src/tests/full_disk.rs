//! A store on a file system of two megabytes, mounted in a mount namespace that a child has alone.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Command;

use rustix::mount::{MountFlags, mount};

use super::{count, layer};
use crate::{ApplyOptions, DiskPolicy, PruneRequest, Snapshot, Store, StoreError, give_up};

#[test]
fn a_full_disk_is_a_typed_error_and_leaves_nothing_half_written() {
    alone("tests::full_disk::child");
}

#[test]
fn a_disk_without_one_free_block_can_be_cleaned() {
    alone("tests::full_disk::cleaning_child");
}

/// Runs a test in a mount namespace of its own.
fn alone(test: &str) {
    let directory = tempfile::tempdir().expect("a directory");
    let output = Command::new("unshare")
        .args(["--mount", "--propagation", "private"])
        .arg(std::env::current_exe().expect("this binary"))
        .args(["--exact", test, "--nocapture"])
        .env("STORE_FULL_DISK", directory.path())
        .output()
        .expect("a child in a mount namespace of its own");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(count(directory.path()), 0, "the mount was the child's alone");
}

/// Does nothing unless started by a test above.
#[test]
fn cleaning_child() {
    let Some(root) = std::env::var_os("STORE_FULL_DISK") else { return };
    let root = Path::new(&root);
    mount("tmpfs", root, "tmpfs", MountFlags::empty(), c"size=16m").expect("a small file system");
    let store = Store::open(root).expect("a store");
    store.keep_reserve();
    let reserve = || fs::metadata(root.join("reserve")).map_or(0, |file| file.blocks() * 512);
    assert_eq!(reserve(), 1 << 20);
    // More rows than a log of the reserve's size could hold if they were all changed at once.
    for name in 0..300 {
        layer(&store, &Snapshot::scratch(), &format!("f{name}"), "1");
    }
    let file = |size| fs::write(root.join("filler"), vec![1; size]);
    drop(store);
    file(16 << 20).expect_err("no room");
    let error = Store::open(root).expect_err("not even for a mark");
    assert!(matches!(error, StoreError::StorageFull { .. }), "{error:?}");
    {
        let given_up = give_up(root).expect("is given up");
        assert_eq!(reserve(), 0);
        let store = Store::open(root).expect("opens");
        let pruned = store.prune(&PruneRequest::unused()).expect("prunes");
        assert_eq!((pruned.layers.len(), count(&root.join("l"))), (300, 0));
        // Another's end does not take from who still works.
        drop(give_up(root).expect("is given up"));
        assert_eq!(reserve(), 0);
        drop((store, given_up));
    }
    assert_eq!(reserve(), 1 << 20, "for the next time");
    // Only looking leaves it as it was, too.
    file(16 << 20).expect_err("no room");
    drop(give_up(root).expect("is given up"));
    assert_eq!(reserve(), 1 << 20);
    {
        let _given_up = give_up(root).expect("is given up");
        file(16 << 20).expect_err("somebody takes all of it");
    }
    assert_eq!(reserve(), 0);
    file(1).expect("is written");
    let store = Store::open(root).expect("opens");
    store.keep_reserve();
    assert_eq!(reserve(), 1 << 20);
    // Whoever has the store open gives it up as well, and takes it back.
    layer(&store, &Snapshot::scratch(), "again", "1");
    file(16 << 20).expect_err("no room");
    assert_eq!(store.prune(&PruneRequest::unused()).expect("prunes").layers.len(), 1);
    assert!(reserve() > 0);
    // One that found no room for it has it after its next collection: nobody starts it again for that.
    file(1).expect("is written");
    fs::remove_file(root.join("reserve")).expect("removed");
    file(13 << 20).expect("is written");
    store.keep_reserve();
    assert_eq!(reserve(), 0);
    file(1).expect("is written");
    store.prune(&PruneRequest::unused()).expect("prunes");
    assert_eq!(reserve(), 1 << 20);
    drop(give_up(root).expect("nothing is given up"));
    store.hold_to(DiskPolicy { cap: Some(8 << 20), rules: Vec::new() });
    store.keep_reserve();
    assert!(!root.join("reserve").exists(), "a small cap has none");
}

/// Does nothing unless started by a test above.
#[test]
fn child() {
    let Some(root) = std::env::var_os("STORE_FULL_DISK") else { return };
    let root = Path::new(&root);
    mount("tmpfs", root, "tmpfs", MountFlags::empty(), c"size=2m").expect("a small file system");
    let store = Store::open(root).expect("a store");
    let small = layer(&store, &Snapshot::scratch(), "small", "1");
    let session = root.join("tmp").join(store.inner.session.slot());

    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_size(4 << 20);
    tar.append_data(&mut header, "big", &vec![1; 4 << 20][..]).expect("an entry");
    let tar = tar.into_inner().expect("an archive");
    let error = store.apply_layer(&tar[..], &ApplyOptions::default()).expect_err("no room");
    assert!(matches!(&error, StoreError::StorageFull { path, .. } if path.ends_with("big")), "{error:?}");

    let mut writer = store.blob_writer(None, u64::MAX).expect("a writer");
    let error = writer.push(&tar).expect_err("no room");
    assert!(matches!(error, StoreError::StorageFull { .. }), "{error:?}");
    drop(writer);
    assert_eq!((count(&session), count(&root.join("l"))), (0, 1));

    // With not a byte left even the database cannot grow; then there is room again.
    let filler = root.join("filler");
    fs::write(&filler, vec![1; 4 << 20]).expect_err("no room");
    let committed = (0..2000).map(|_| try_layer(&store)).find_map(Result::err);
    assert!(matches!(committed, Some(StoreError::StorageFull { .. })), "{committed:?}");
    fs::remove_file(filler).expect("a removal");
    assert!(store.exists(&small).expect("an answer"));
    store.prune(&PruneRequest::unused()).expect("a collection");
    assert_eq!((count(&session), count(&root.join("l"))), (0, 0));
    layer(&store, &Snapshot::scratch(), "again", "1");
}

fn try_layer(store: &Store) -> Result<Snapshot, StoreError> {
    store.prepare(&Snapshot::scratch())?.commit()
}
