//! What earlier stores and programs left behind, and who may take it for theirs.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt as _;
use std::thread;

use rustix::fs::{FlockOperation, flock};

use super::{TestStore, layer, top};
use crate::database::{FORMAT, forget_log_of_none};
use crate::{PruneRequest, Snapshot, Store, StoreError};

#[test]
fn no_number_of_a_lost_store_is_used_again() {
    let test = TestStore::new();
    let first = top(&test.layer(&Snapshot::scratch(), "f", "1"));
    let TestStore { directory, store } = test;
    drop(store);
    // All that knew the numbers is gone, but for the cache, whose records name layers by them.
    for name in ["store.db", "store.db-wal", "store.db-shm", "journal"] {
        fs::remove_file(directory.path().join(name)).expect("removes");
    }
    fs::write(directory.path().join("cache.db"), "").expect("a file");
    let store = Store::open(directory.path()).expect("a new store");
    let second = top(&layer(&store, &Snapshot::scratch(), "g", "2"));
    assert!(second.0 > first.0 + 1_000_000, "{second} after {first}");
    assert!(!store.exists(&Snapshot::new(vec![first])).expect("an answer"));
}

/// A sync marks all that it saw up to a number: what came later must not have one of those.
#[test]
fn no_number_of_a_removed_blob_is_used_again() {
    let test = TestStore::new();
    let number = |content: &[u8]| {
        let mut writer = test.store.blob_writer(None, 100).expect("a writer");
        writer.push(content).expect("room");
        let (digest, _) = writer.commit().expect("a commit");
        let query = "SELECT id FROM blob WHERE digest = ?1 AND synced = 0 AND state = 0";
        test.store.inner.database.read(|tx| Ok(tx.query_row(query, [digest.as_str()], |row| row.get(0))?))
    };
    let mut numbers: Vec<i64> = vec![number(b"a").expect("a row"), number(b"b").expect("a row")];
    assert_eq!(test.store.prune(&PruneRequest::unused()).expect("a collection").blobs.len(), 2);
    numbers.push(number(b"c").expect("a row"));
    // One that is being removed, when somebody has it again.
    let mark = "UPDATE blob SET state = 1, synced = 1";
    test.store.inner.database.write(|tx| Ok(tx.execute(mark, [])?)).expect("marks");
    numbers.push(number(b"c").expect("a row"));
    let layer = top(&test.layer(&Snapshot::scratch(), "f", "1"));
    numbers.push(layer.0);
    numbers.push(number(b"d").expect("a row"));
    assert!(numbers.is_sorted_by(|a, b| a < b), "{numbers:?}");
}

#[test]
fn an_earlier_program_that_has_the_store_open_keeps_it() {
    let test = TestStore::new();
    let database = rusqlite::Connection::open(test.root().join("store.db")).expect("the database");
    database.pragma_update(None, "user_version", FORMAT - 1).expect("an earlier format");
    let error = Store::open(test.root()).expect_err("is in use");
    assert!(matches!(error, StoreError::OlderWhileOpen { found, .. } if found == FORMAT - 1), "{error}");
    let format: i64 = database.pragma_query_value(None, "user_version", |row| row.get(0)).expect("a format");
    assert_eq!(format, FORMAT - 1);
}

#[test]
fn the_log_of_a_database_that_is_being_made_is_not_that_of_one_that_is_gone() {
    let place = tempfile::tempdir().expect("a directory");
    let (path, log) = (place.path().join("store.db"), place.path().join("store.db-wal"));
    let lock = File::create(place.path().join("lock")).expect("a file");
    fs::write(&log, "of one that is gone").expect("a log");
    forget_log_of_none(&path, &lock).expect("works");
    assert!(!log.exists());

    flock(&lock, FlockOperation::LockExclusive).expect("locks");
    let opening = thread::spawn({
        let (path, lock) = (path.clone(), File::open(place.path().join("lock")).expect("opens"));
        move || forget_log_of_none(&path, &lock)
    });
    // Once it waits it has seen that there is no database.
    let inode = format!(":{} ", lock.metadata().expect("a status").ino());
    let waits = || {
        let locks = fs::read_to_string("/proc/locks").expect("the kernel's locks");
        locks.lines().any(|line| line.contains("->") && line.contains(&inode))
    };
    while !waits() && !opening.is_finished() {
        thread::yield_now();
    }
    assert!(!opening.is_finished(), "it did not wait for who makes one");
    for file in [&path, &log] {
        fs::write(file, "of one that is being made").expect("writes");
    }
    flock(&lock, FlockOperation::Unlock).expect("unlocks");
    opening.join().expect("no panic").expect("works");
    assert!(log.exists());
    forget_log_of_none(&path, &lock).expect("works");
    assert!(log.exists());
}
