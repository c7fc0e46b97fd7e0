//! A store of a process that may open few files, with more directories than that beside and below each other.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::count;
use crate::{PruneRequest, Snapshot, Store};

#[test]
fn trees_wider_and_deeper_than_open_files_are_measured_and_removed() {
    let directory = tempfile::tempdir().expect("a directory");
    let output = Command::new("sh")
        .args(["-c", "ulimit -n 128 && exec \"$@\"", "sh"])
        .arg(std::env::current_exe().expect("this binary"))
        .args(["--exact", "tests::open_files::child", "--nocapture"])
        .env("STORE_OPEN_FILES", directory.path())
        .output()
        .expect("a child with a limit of its own");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(count(&directory.path().join("l")), 0, "the child made layers and collected them");
}

/// Does nothing unless started by the test above.
#[test]
fn child() {
    let Some(root) = std::env::var_os("STORE_OPEN_FILES") else { return };
    let root = Path::new(&root);
    let store = Store::open(root).expect("a store");
    for (wide, deep) in [(300, 1), (1, 300)] {
        let active = store.prepare(&Snapshot::scratch()).expect("a layer");
        for number in 0..wide {
            let deep = "/d".repeat(deep);
            fs::create_dir_all(active.upper().join(format!("{number}{deep}"))).expect("directories");
        }
        active.commit().expect("a commit");
    }
    assert!(store.disk_usage().expect("a measurement").total() > 0);
    store.prune(&PruneRequest::unused()).expect("a collection");
    assert_eq!((count(&root.join("l")), count(&root.join("tmp").join(store.inner.session.slot()))), (0, 0));
}
