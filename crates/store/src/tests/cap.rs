//! The cap: nothing is written that would pass it, and what may go makes room.

use std::io::Write as _;

use super::{TestStore, layer};
use crate::{ApplyOptions, DiskPolicy, Snapshot, StoreError};

const MIB: u64 = 1 << 20;

fn capped(cap: u64) -> TestStore {
    let test = TestStore::new();
    let used = test.store.disk_usage().expect("a listing").total();
    test.store.hold_to(DiskPolicy { cap: Some(used + cap), rules: Vec::new() });
    test
}

fn tar(bytes: u64) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_size(bytes);
    // Other content each time: equal archives are one layer.
    let content: Vec<u8> = (0..bytes).map(|at| (at * bytes % 251) as u8).collect();
    tar.append_data(&mut header, format!("f{bytes}"), &content[..]).expect("an entry");
    tar.into_inner().expect("an archive")
}

#[test]
fn room_is_made_before_something_is_written() {
    let test = capped(10 * MIB);
    let cap = test.store.inner.policy.get().and_then(|policy| policy.cap).expect("a cap");
    for round in 0..8 {
        let archive = tar(3 * MIB + round);
        test.store.apply_layer(&archive[..], &ApplyOptions::default()).expect("room is made");
        let used = test.store.disk_usage().expect("a listing").total();
        assert!(used <= cap, "{used} > {cap}");
    }
    assert_eq!(test.store.inner.reserved.load(std::sync::atomic::Ordering::Relaxed), 0);
}

#[test]
fn what_is_needed_stays_and_the_writer_is_told() {
    let test = capped(10 * MIB);
    let lease = test.store.lease().expect("a lease");
    let kept = test.store.apply_layer(&tar(6 * MIB)[..], &ApplyOptions::default()).expect("room");
    let refused = test.store.apply_layer(&tar(6 * MIB + 1)[..], &ApplyOptions::default());
    let text = words(&refused.expect_err("no room"));
    assert!(text.contains("the store is full"), "{text}");
    let mut blob = test.store.blob_writer(None, 100 * MIB).expect("a writer");
    assert!(blob.write_all(&vec![0; (6 * MIB) as usize]).is_err());
    drop(blob);
    assert!(test.store.exists(&Snapshot::new(vec![kept.layer])).expect("an answer"));
    assert_eq!(
        std::fs::read_dir(test.root().join("tmp/0")).expect("lists").count(),
        0,
        "nothing half-written stays"
    );
    drop(lease);
    test.store.apply_layer(&tar(6 * MIB + 2)[..], &ApplyOptions::default()).expect("the other may go now");
}

#[test]
fn processes_count_together() {
    let test = capped(20 * MIB);
    let other = test.other();
    other.hold_to(test.store.inner.policy.get().expect("a policy").clone());
    let _leases = (test.store.lease().expect("a lease"), other.lease().expect("a lease"));
    let mut mine = test.store.blob_writer(None, 100 * MIB).expect("a writer");
    mine.write_all(&vec![1; (12 * MIB) as usize]).expect("room");
    let mut theirs = other.blob_writer(None, 100 * MIB).expect("a writer");
    let refused = (0..12).any(|_| theirs.write_all(&vec![2; MIB as usize]).is_err());
    assert!(refused, "what one has reserved the other cannot have");
    drop(mine);
    layer(&test.store, &Snapshot::scratch(), "a", "1");
}

#[test]
fn a_step_that_writes_too_much_is_noticed() {
    let test = capped(5 * MIB);
    assert!(!test.store.is_over_cap(MIB).expect("an answer"));
    assert!(test.store.is_over_cap(6 * MIB).expect("an answer"));
    assert!(!TestStore::new().store.is_over_cap(u64::MAX / 2).expect("an answer"), "no cap");
}

fn words(error: &StoreError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
