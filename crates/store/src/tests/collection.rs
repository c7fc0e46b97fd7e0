//! Leases, limits and garbage collection.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::time::Duration;

use super::{TestStore, count, layer, top};
use crate::{ImagePrune, KeepLimits, PruneRequest, Sharing, Snapshot, UsageKind};

#[test]
fn what_nobody_needs_goes_and_frees_its_room() {
    let test = TestStore::new();
    let snapshot = test.layer(&Snapshot::scratch(), "a", &"x".repeat(10_000));
    let mut writer = test.store.blob_writer(None, 100).expect("a writer");
    writer.write_all(b"blob").expect("room");
    let (digest, _) = writer.commit().expect("a commit");
    drop(test.store.mutable_dir("go", Sharing::Locked).expect("a cache mount"));
    let usage = test.store.disk_usage().expect("a listing");
    assert_eq!(usage.records.len(), 3);
    assert!(usage.reclaimable() >= 10_000, "{usage:?}");
    let pruned = test.other().prune(&PruneRequest::unused()).expect("a collection");
    assert_eq!((pruned.layers, pruned.blobs), (vec![top(&snapshot)], vec![digest]));
    assert_eq!(pruned.freed, usage.total() - usage.internal);
    assert!(!test.store.exists(&snapshot).expect("an answer"));
    for directory in ["l", "blobs/sha256", "mutable"] {
        assert_eq!(count(&test.root().join(directory)), 0, "{directory}");
    }
    assert_eq!(test.store.disk_usage().expect("a listing").records, vec![]);
}

#[test]
fn a_collection_in_parts_takes_the_same_as_one_at_once() {
    for at_once in [1, 2, 3, 100] {
        let test = TestStore::new();
        let mut layers: Vec<_> =
            (0..5).map(|name| top(&test.layer(&Snapshot::scratch(), &name.to_string(), "1"))).collect();
        let mount = test.store.mutable_dir("busy", Sharing::Locked).expect("a cache mount");
        drop(test.store.mutable_dir("idle", Sharing::Locked).expect("a cache mount"));
        let usage = test.store.disk_usage().expect("a listing");
        let size = usage.records.iter().map(|record| record.size).max().expect("has layers");
        let limits = KeepLimits { max_used: Some(usage.total() - 2 * size), ..KeepLimits::default() };
        let some = test.store.prune_by(at_once, &PruneRequest { limits, ..PruneRequest::unused() });
        let some = some.expect("a collection");
        assert!(some.freed >= 2 * size, "{at_once}: {some:?}");
        let left = test.store.prune_by(at_once, &PruneRequest::unused()).expect("a collection");
        let mut gone = [some.layers, left.layers].concat();
        gone.sort();
        layers.sort();
        assert_eq!(gone, layers, "{at_once}");
        let idle = [some.cache_mounts, left.cache_mounts].concat();
        drop(mount);
        let busy = test.store.prune_by(at_once, &PruneRequest::unused()).expect("a collection").cache_mounts;
        assert!(idle.len() == 1 && busy.len() == 1 && idle != busy, "{at_once}: {idle:?} {busy:?}");
    }
}

#[test]
fn a_lease_keeps_what_was_used_since_it_began() {
    let test = TestStore::new();
    let used = test.layer(&Snapshot::scratch(), "a", "1");
    let unused = test.layer(&Snapshot::scratch(), "b", "2");
    let lease = test.store.lease().expect("a lease");
    assert!(test.store.exists(&used).expect("an answer"));
    let made = test.layer(&used, "c", "3");
    let other = test.other();
    let pruned = other.prune(&PruneRequest::unused()).expect("a collection");
    assert_eq!(pruned.layers, vec![top(&unused)]);
    assert!(test.store.exists(&made).expect("an answer"));
    // Later leases do not stand in for the older one.
    let _later = other.lease().expect("a lease");
    assert_eq!(other.prune(&PruneRequest::unused()).expect("a collection").layers, vec![]);
    drop(lease);
    assert_eq!(other.prune(&PruneRequest::unused()).expect("a collection").layers.len(), 2);
}

#[test]
fn a_second_use_under_the_same_lease_writes_nothing() {
    let test = TestStore::new();
    let snapshot = test.layer(&Snapshot::scratch(), "a", "1");
    let _lease = test.store.lease().expect("a lease");
    assert!(test.store.exists(&snapshot).expect("an answer"));
    // Another process holds the write lock: a second look must not need it.
    let other = test.other();
    let looked = other.inner.database.write(|_| Ok(test.store.exists(&snapshot)?));
    assert!(looked.expect("an answer"));
}

#[test]
fn a_limit_spares_the_most_recently_used() {
    let test = TestStore::new();
    let content = "x".repeat(100_000);
    let layers: Vec<_> =
        (0..4).map(|index| test.layer(&Snapshot::scratch(), &index.to_string(), &content)).collect();
    let usage = test.store.disk_usage().expect("a listing");
    let size = (usage.total() - usage.internal) / 4;
    test.store
        .inner
        .database
        .write(|tx| Ok(tx.execute("UPDATE layer SET used = 1000 + id % 2", [])?))
        .expect("made-up times");
    let limits = KeepLimits { max_used: Some(usage.internal + size * 2 + size / 2), ..KeepLimits::default() };
    let request = PruneRequest { limits, ..PruneRequest::unused() };
    let pruned = test.store.prune(&request).expect("a collection");
    let mut gone = pruned.layers;
    gone.sort();
    assert_eq!(gone, vec![top(&layers[1]), top(&layers[3])]);
}

#[test]
fn what_was_slow_to_make_stays_before_what_was_used_later() {
    let test = TestStore::new();
    let content = "x".repeat(100_000);
    let layers: Vec<_> =
        (0..3).map(|index| test.layer(&Snapshot::scratch(), &index.to_string(), &content)).collect();
    let usage = test.store.disk_usage().expect("a listing");
    let size = (usage.total() - usage.internal) / 3;
    let limits = KeepLimits { max_used: Some(usage.internal + size + size / 2), ..KeepLimits::default() };
    let costs = [(top(&layers[0]), Duration::from_secs(60)), (top(&layers[1]), Duration::from_millis(1))];
    let request = PruneRequest { limits, costs: costs.into(), ..PruneRequest::unused() };
    let mut gone = test.store.prune(&request).expect("a collection").layers;
    gone.sort();
    assert_eq!(gone, vec![top(&layers[1]), top(&layers[2])], "the oldest took longest");
    let reserved = KeepLimits { reserved: Some(u64::MAX / 2), ..limits };
    let request = PruneRequest { limits: reserved, ..PruneRequest::unused() };
    assert_eq!(test.store.prune(&request).expect("a collection").layers, vec![]);
}

#[test]
fn filters_select_what_lies_on_something() {
    let test = TestStore::new();
    let base = test.layer(&Snapshot::scratch(), "base", "1");
    let above = test.layer(&base, "above", "2");
    let other = test.layer(&Snapshot::scratch(), "other", "3");
    let filter = |text: String| vec![text.parse().expect("a filter")];
    let filters = filter(format!("parents=={}", top(&base)));
    let pruned = test.store.prune(&PruneRequest { filters, ..PruneRequest::unused() });
    assert_eq!(pruned.expect("a collection").layers, vec![top(&above)]);
    let filters = filter("description!=other".to_owned());
    let pruned = test.store.prune(&PruneRequest { filters, ..PruneRequest::unused() });
    assert_eq!(pruned.expect("a collection").layers, vec![top(&base)]);
    assert!(test.store.exists(&other).expect("an answer"));
}

#[test]
fn kinds_and_age_select() {
    let test = TestStore::new();
    let snapshot = test.layer(&Snapshot::scratch(), "a", "1");
    let blobs_only = PruneRequest { kinds: BTreeSet::from([UsageKind::Blob]), ..PruneRequest::unused() };
    assert_eq!(test.store.prune(&blobs_only).expect("a collection").layers, vec![]);
    let hour = std::time::Duration::from_secs(3600);
    let old_only = PruneRequest { unused_for: Some(hour), ..PruneRequest::unused() };
    assert_eq!(test.store.prune(&old_only).expect("a collection").layers, vec![]);
    assert!(test.store.exists(&snapshot).expect("an answer"));
}

#[test]
fn a_cache_mount_in_use_stays() {
    let test = TestStore::new();
    let mount = test.store.mutable_dir("go", Sharing::Shared).expect("a cache mount");
    let mount = mount.initialised().expect("a mark");
    let usage = test.store.disk_usage().expect("a listing");
    assert!(usage.records[0].in_use);
    let request = PruneRequest { images: ImagePrune::All, ..PruneRequest::unused() };
    assert_eq!(test.store.prune(&request).expect("a collection").cache_mounts, Vec::<String>::new());
    drop(mount);
    assert_eq!(test.store.prune(&request).expect("a collection").cache_mounts.len(), 1);
}

/// Builders that use what they found, beside collectors that remove whatever they may.
#[test]
fn collection_beside_builds_never_takes_what_they_use() {
    let test = TestStore::new();
    let rounds = 40;
    std::thread::scope(|scope| {
        for name in ["left", "right"] {
            let store = test.other();
            scope.spawn(move || {
                let mut last = Snapshot::scratch();
                for round in 0..rounds {
                    let lease = store.lease().expect("a lease");
                    if !store.exists(&last).expect("an answer") {
                        last = Snapshot::scratch();
                    }
                    last = layer(&store, &last, name, &round.to_string());
                    for path in store.layer_paths(&last).expect("kept by the lease") {
                        assert!(fs::exists(path.join(name)).expect("an answer"), "{}", path.display());
                    }
                    drop(lease);
                }
            });
        }
        let store = test.other();
        scope.spawn(move || {
            for _ in 0..rounds {
                store.prune(&PruneRequest::unused()).expect("a collection");
            }
        });
    });
    let rows = test.store.disk_usage().expect("a listing").records.len();
    assert_eq!(count(&test.root().join("l")), rows, "files and rows agree");
}
