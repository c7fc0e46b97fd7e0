//! A child process is killed at a named instant; the next opening must find everything whole.

use std::io::Write as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::Command;

use super::{TestStore, count, layer};
use crate::{ApplyOptions, PruneRequest, Snapshot, Store};

/// Runs `work` in a child that dies at `point`.
#[track_caller]
fn kill_at(root: &Path, work: &str, point: &str) {
    let status = Command::new(std::env::current_exe().expect("this binary"))
        .args(["--exact", "tests::kills::child", "--nocapture"])
        .env("STORE_KILL_AT", point)
        .env("STORE_KILL_WORK", work)
        .env("STORE_KILL_ROOT", root)
        .output()
        .expect("a child");
    assert_eq!(status.status.signal(), Some(9), "{}", String::from_utf8_lossy(&status.stderr));
}

/// Does nothing unless started by [`kill_at`].
#[test]
fn child() {
    let (Some(work), Some(root)) = (std::env::var_os("STORE_KILL_WORK"), std::env::var_os("STORE_KILL_ROOT"))
    else {
        return;
    };
    let store = Store::open(Path::new(&root)).expect("the store");
    let _lease = store.lease().expect("a lease");
    match work.to_str() {
        Some("layer") => drop(layer(&store, &Snapshot::scratch(), "killed", "1")),
        Some("apply") => {
            let mut tar = tar::Builder::new(Vec::new());
            let mut header = tar::Header::new_ustar();
            header.set_size(1);
            tar.append_data(&mut header, "killed", &b"1"[..]).expect("an entry");
            let tar = tar.into_inner().expect("an archive");
            store.apply_layer(&tar[..], &ApplyOptions::default()).expect("a layer");
        }
        Some("blob") => {
            let mut writer = store.blob_writer(None, 100).expect("a writer");
            writer.write_all(b"killed").expect("room");
            writer.commit().expect("a commit");
        }
        _ => drop(store.prune(&PruneRequest::unused()).expect("a collection")),
    }
    panic!("the instant never came");
}

/// What is left once the store was opened again.
#[track_caller]
fn check(work: &str, point: &str, layers: usize) {
    check_with(work, point, layers, Inherit::Slot);
    check_with(work, point, layers, Inherit::Leftovers);
}

/// How the dead session is found.
enum Inherit {
    /// The next opening gets its slot.
    Slot,
    /// A session with another slot sweeps it.
    Leftovers,
}

const HOUR: std::time::Duration = std::time::Duration::from_secs(3600);

#[track_caller]
fn check_with(work: &str, point: &str, layers: usize, inherit: Inherit) {
    let test = TestStore::new();
    let old = test.layer(&Snapshot::scratch(), "old", "1");
    kill_at(test.root(), work, point);
    let dead = test.root().join("sessions/1");
    assert_eq!(std::fs::read(&dead).expect("the dead session's slot"), b"open\n");
    let store = match inherit {
        Inherit::Slot => test.other(),
        Inherit::Leftovers => {
            // Someone holds the dead slot as the sweep of an opening looks at it: that one leaves it.
            let lock = std::fs::File::open(&dead).expect("the slot");
            rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).expect("a lock");
            let other = test.other();
            assert_eq!(other.inner.session.slot(), "2");
            // Unlocked by name: a child that another test forks this instant holds the descriptor a little longer.
            rustix::fs::flock(&lock, rustix::fs::FlockOperation::Unlock).expect("an unlock");
            other.prune(&PruneRequest { unused_for: Some(HOUR), ..PruneRequest::unused() }).expect("a sweep");
            assert_eq!(std::fs::read(&dead).expect("the slot's file"), b"");
            other
        }
    };
    assert_eq!(count(&test.root().join("tmp/1")), 0);
    assert_eq!(count(&test.root().join("l")), layers, "{point}");
    assert_eq!(count(&test.root().join("blobs/sha256")), 0, "{point}");
    assert_eq!(store.exists(&old).expect("an answer"), layers == 1);
    assert_eq!(store.disk_usage().expect("a listing").records.len(), layers, "{point}");
    // Its lease is gone with it, and the store works on.
    assert_eq!(store.prune(&PruneRequest::unused()).expect("a collection").layers.len(), layers);
    assert!(store.exists(&layer(&store, &Snapshot::scratch(), "new", "1")).expect("an answer"));
}

#[test]
fn killed_between_the_rename_and_the_row_of_a_layer() {
    check("layer", "layer-renamed", 1);
    check("layer", "layer-noted", 1);
}

#[test]
fn killed_after_unpacking_an_archive() {
    check("apply", "layer-unpacked", 1);
}

#[test]
fn killed_before_and_after_the_rename_of_a_blob() {
    check("blob", "blob-written", 1);
    check("blob", "blob-renamed", 1);
}

#[test]
fn killed_within_a_collection() {
    check("prune", "prune-marked", 0);
    check("prune", "prune-moved", 0);
}

#[test]
fn a_slot_is_inherited_once() {
    let test = TestStore::new();
    kill_at(test.root(), "blob", "blob-written");
    let store = test.other();
    assert_eq!(store.inner.session.slot(), "1", "the dead session's");
    let active = store.prepare(&Snapshot::scratch()).expect("a layer");
    store.prune(&PruneRequest::unused()).expect("a collection");
    assert!(active.upper().is_dir(), "what the new owner makes is not the dead one's");
}
