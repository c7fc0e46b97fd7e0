//! A store on a file system of two megabytes, mounted in a mount namespace that a child has alone.

use std::fs;
use std::path::Path;
use std::process::Command;

use rustix::mount::{MountFlags, mount};

use super::{count, layer};
use crate::{ApplyOptions, PruneRequest, Snapshot, Store, StoreError};

#[test]
fn a_full_disk_is_a_typed_error_and_leaves_nothing_half_written() {
    let directory = tempfile::tempdir().expect("a directory");
    let output = Command::new("unshare")
        .args(["--mount", "--propagation", "private"])
        .arg(std::env::current_exe().expect("this binary"))
        .args(["--exact", "tests::full_disk::child", "--nocapture"])
        .env("STORE_FULL_DISK", directory.path())
        .output()
        .expect("a child in a mount namespace of its own");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(count(directory.path()), 0, "the mount was the child's alone");
}

/// Does nothing unless started by the test above.
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
