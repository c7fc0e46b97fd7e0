//! The cap: nothing is written that would pass it, and what may go makes room.

use std::io::Write as _;

use super::{TestStore, layer};
use crate::cap::Reservation;
use crate::{ApplyOptions, DiskPolicy, Growth, Sharing, Snapshot, Store, StoreError, UsageId};

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
fn who_begins_waits_for_what_others_hold_and_give_back() {
    let test = capped(10 * MIB);
    let _lease = test.store.lease().expect("a lease");
    let waiting = || test.store.inner.releases.lock().expect("no panic").waiting;
    let mut held = test.store.blob_writer(None, 100 * MIB).expect("a writer");
    while held.write_all(&[1; 16 << 10]).is_ok() {}
    std::thread::scope(|scope| {
        let beginning = scope.spawn(|| test.store.prepare(&Snapshot::scratch()).map(drop));
        while waiting() == 0 && !beginning.is_finished() {
            std::thread::yield_now();
        }
        drop(held);
        beginning.join().expect("no panic").expect("room, once there is some");
    });
    // Where nobody holds anything there is nothing to wait for.
    test.store.apply_layer(&tar(6 * MIB)[..], &ApplyOptions::default()).expect("room");
    let left = test.store.room_left().expect("an answer");
    let refused = Reservation::new(&test.store).begin(left + MIB).expect_err("full");
    assert!(words(&refused).contains("the store is full"), "{refused}");
}

#[test]
fn what_is_known_to_come_is_refused_at_once() {
    let test = capped(10 * MIB);
    let _lease = test.store.lease().expect("a lease");
    test.store.expect_bytes(9 * MIB).expect("room");
    test.store.expect_bytes(9 * MIB).expect("nothing was taken");
    assert!(matches!(test.store.expect_bytes(11 * MIB), Err(StoreError::CapReached { .. })));
    TestStore::new().store.expect_bytes(u64::MAX / 2).expect("no cap");
}

/// A layer into which somebody writes, as a process does.
fn written(store: &Store, bytes: u64) -> crate::ActiveLayer {
    let active = store.prepare(&Snapshot::scratch()).expect("a layer");
    std::fs::write(active.upper().join("f"), vec![1; bytes as usize]).expect("a file");
    active
}

#[test]
fn a_running_step_that_writes_too_much_is_stopped() {
    let test = capped(12 * MIB);
    let active = written(&test.store, 6 * MIB);
    let mut growth = Growth::of(&test.store, [&active]).expect("a margin").expect("a cap");
    growth.look(true).expect("it fits");
    assert!(test.store.blob_writer(None, 100 * MIB).expect("a writer").write_all(&vec![1; 7 << 20]).is_err());
    std::fs::write(active.upper().join("g"), vec![1; 7 << 20]).expect("a file");
    let refused = growth.look(true).expect_err("too much");
    assert!(words(&refused).contains("the store is full"), "{refused}");
    let uncapped = Growth::of(&TestStore::new().store, [&active]).expect("nothing is asked for");
    assert!(uncapped.is_none(), "nothing to look for");
}

#[test]
fn unused_cache_goes_while_a_step_grows_and_its_room_is_not_counted_twice() {
    let test = capped(20 * MIB);
    drop(written(&test.store, 9 * MIB).commit().expect("cache"));
    let active = written(&test.store, 6 * MIB);
    let mut growth = Growth::of(&test.store, [&active]).expect("a margin").expect("a cap");
    growth.look(true).expect("it fits");
    std::fs::write(active.upper().join("g"), vec![1; 7 << 20]).expect("a file");
    growth.look(true).expect("the cache has gone");
    std::fs::remove_file(active.upper().join("g")).expect("a removal");
    growth.look(true).expect("it shrank");
    test.store.expect_bytes(10 * MIB).expect("what it gave back");
    std::fs::write(active.upper().join("g"), vec![1; 7 << 20]).expect("a file");
    drop(growth);
    active.commit().expect("it is as large as what was seen");
}

#[test]
fn what_is_announced_is_reserved_until_it_is_measured() {
    let test = capped(20 * MIB);
    let active = written(&test.store, MIB);
    let mut growth = Growth::of(&test.store, [&active]).expect("a margin").expect("a cap");
    growth.look(true).expect("it fits");
    let announcements = growth.announcements();
    announcements.take(14 * MIB).expect("room");
    assert!(announcements.take(14 * MIB).is_err(), "once only");
    assert!(test.store.expect_bytes(6 * MIB).is_err(), "nobody else gets it");
    growth.look(false).expect("the call may be under way");
    assert!(test.store.expect_bytes(6 * MIB).is_err());
    growth.look(true).expect("it stands, and has not written");
    test.store.expect_bytes(6 * MIB).expect("it is given back");
    drop(growth);
    drop((announcements, active));
    assert_eq!(test.store.inner.reserved.load(std::sync::atomic::Ordering::Relaxed), 0);
}

#[test]
fn what_was_announced_is_given_back_where_nothing_stands() {
    let test = capped(40 * MIB);
    let active = written(&test.store, MIB);
    let mut growth = Growth::of(&test.store, [&active]).expect("a margin").expect("a cap");
    growth.look(true).expect("it fits");
    let announcements = growth.announcements();
    for round in 0..16 {
        // The same room is written again and again.
        announcements.take(4 * MIB).unwrap_or_else(|error| panic!("round {round}: {}", words(&error)));
        growth.look(false).expect("it fits");
    }
}

#[test]
fn what_can_never_fit_is_refused_and_costs_nothing() {
    let test = capped(20 * MIB);
    let kept = written(&test.store, 2 * MIB).commit().expect("cache");
    let active = written(&test.store, MIB);
    let mut growth = Growth::of(&test.store, [&active]).expect("a margin").expect("a cap");
    growth.look(true).expect("it fits");
    let announcements = growth.announcements();
    let reserved = || test.store.inner.reserved.load(std::sync::atomic::Ordering::Relaxed);
    let before = reserved();
    for bytes in [u64::MAX, u64::MAX - 1, 1 << 40, 20 * MIB] {
        let refused = announcements.take(bytes).expect_err("more than there is");
        assert!(matches!(refused, StoreError::CapReached { wanted, .. } if wanted == bytes), "{refused}");
        assert_eq!(reserved(), before);
    }
    assert!(test.store.exists(&kept).expect("an answer"), "nothing went for it");
}

#[test]
fn what_a_step_wrote_stays_reserved_until_it_is_committed() {
    let test = capped(20 * MIB);
    let active = written(&test.store, MIB);
    let mut growth = Growth::of(&test.store, [&active]).expect("a margin").expect("a cap");
    growth.look(true).expect("it fits");
    std::fs::write(active.upper().join("g"), vec![1; 10 << 20]).expect("a file");
    growth.finish().expect("it fits");
    drop(growth);
    assert!(test.store.expect_bytes(10 * MIB).is_err(), "it is not there any more");
    active.commit().expect("it is as large as what was seen");
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

#[test]
fn many_who_write_little_do_not_hold_all_there_is() {
    let test = capped(500 * MIB);
    let mut rooms = Vec::new();
    for _ in 0..250 {
        let mut room = Reservation::new(&test.store);
        room.grow(16 << 10).expect("there is room");
        rooms.push(room);
    }
    let held: u64 = rooms.iter().map(Reservation::bytes).sum();
    assert!(held < 150 * MIB, "{held}");
}

/// Whoever wants a cache mount alone goes without it while somebody else has it locked, if only to see whether it is in
/// use: where a cap is watched that would be all the time.
#[test]
fn to_watch_the_cap_no_cache_mount_is_locked() {
    let test = capped(10 * MIB);
    drop(test.store.mutable_dir("key", Sharing::Private).expect("a mount"));
    let lock = |entry: std::io::Result<std::fs::DirEntry>| {
        Some(entry.expect("an entry").path()).filter(|path| path.extension().is_some_and(|end| end == "lock"))
    };
    let locks = || std::fs::read_dir(test.root().join("mutable")).expect("lists").filter_map(lock);
    for path in locks() {
        std::fs::remove_file(path).expect("removes");
    }
    test.store.reckon_anew();
    test.store.expect_bytes(MIB).expect("there is room");
    assert_eq!(locks().count(), 0, "one that was locked would be there again");
    let bytes = test.store.cache_mount_bytes().expect("a number");
    let usage = test.store.disk_usage().expect("a listing").records;
    let mounts = usage.iter().filter(|record| matches!(record.id, UsageId::CacheMount(_)));
    assert!(bytes > 0 && bytes == mounts.map(|record| record.size).sum::<u64>());
}
