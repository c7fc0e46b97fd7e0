//! Opening, committing, looking up, restarting the machine.

use std::fs;
use std::io::Write as _;

use stave_oci::{Compression, Descriptor, Digest};

use super::{TestStore, count, layer, top};
use crate::{ActiveLayer, Sharing, Snapshot, Store, StoreError};

#[test]
fn layers_stack_and_are_shared_between_sessions() {
    let test = TestStore::new();
    let base = test.layer(&Snapshot::scratch(), "a", "1");
    let both = test.layer(&base, "b", "2");
    let paths = test.other().layer_paths(&both).expect("paths");
    assert_eq!(fs::read_to_string(paths[0].join("b")).expect("the top layer first"), "2");
    assert_eq!(fs::read_to_string(paths[1].join("a")).expect("the base last"), "1");
    assert_eq!(both.to_string(), "1,2");
}

#[test]
fn an_abandoned_layer_leaves_nothing() {
    let test = TestStore::new();
    let active = test.store.prepare(&Snapshot::scratch()).expect("a layer");
    let upper = active.upper().to_owned();
    fs::create_dir(upper.join("d")).expect("a directory");
    drop(active);
    assert!(!upper.exists());
    assert_eq!(count(&test.root().join("l")), 0);
    let scratch = test.store.scratch_dir().expect("a directory");
    let path = scratch.path().to_owned();
    drop(scratch);
    assert!(!path.exists());
}

#[test]
fn a_slot_is_used_again() {
    let test = TestStore::new();
    let other = test.other();
    assert_eq!(other.inner.session.slot(), "1");
    drop(other);
    assert_eq!(fs::read(test.root().join("sessions/1")).expect("the slot's file"), b"");
    assert_eq!(fs::read(test.root().join("sessions/0")).expect("the slot's file"), b"open\n");
    assert_eq!(test.other().inner.session.slot(), "1");
    assert_eq!(count(&test.root().join("sessions")), 2);
}

#[test]
fn the_upper_directory_takes_the_root_of_its_base() {
    use std::os::unix::fs::PermissionsExt as _;
    let test = TestStore::new();
    let active = test.store.prepare(&Snapshot::scratch()).expect("a layer");
    fs::set_permissions(active.upper(), fs::Permissions::from_mode(0o1777)).expect("a mode");
    let base = active.commit().expect("a commit");
    let active = test.store.prepare(&base).expect("a layer");
    let mode = fs::metadata(active.upper()).expect("the upper directory").permissions().mode();
    assert_eq!(mode & 0o7777, 0o1777);
}

#[test]
fn unknown_layers_are_named() {
    let test = TestStore::new();
    let missing: Snapshot = "7".parse().expect("a snapshot");
    assert!(!test.store.exists(&missing).expect("an answer"));
    let error = test.store.prepare(&missing).expect_err("no such base");
    assert_eq!(error.to_string(), "layer 7 is not in the store");
}

#[test]
fn blobs_are_verified_and_kept_once() {
    let test = TestStore::new();
    let digest = Digest::sha256(b"content");
    for _ in 0..2 {
        let mut writer = test.store.blob_writer(Some(&digest), 100).expect("a writer");
        writer.write_all(b"content").expect("room");
        assert_eq!(writer.commit().expect("a commit"), (digest.clone(), 7));
    }
    assert_eq!(count(&test.root().join("blobs/sha256")), 1);
    assert_eq!(test.other().blob_size(&digest).expect("an answer"), Some(7));
    let mut writer = test.store.blob_writer(Some(&digest), 100).expect("a writer");
    writer.write_all(b"contents").expect("room");
    let error = writer.commit().expect_err("another digest");
    assert!(matches!(error, StoreError::DigestMismatch { .. }), "{error}");
    let mut writer = test.store.blob_writer(None, 3).expect("a writer");
    let error = writer.push(b"1234").expect_err("one byte too many");
    assert!(matches!(error, StoreError::BlobTooLarge { limit: 3 }), "{error}");
    drop(writer);
    let session = test.root().join("tmp").join(test.store.inner.session.slot());
    assert_eq!(count(&session), 0, "nothing half-written stays");
}

#[test]
fn a_directory_is_used_again_unless_something_may_be_left_in_it() {
    let test = TestStore::new();
    let begin = || test.store.prepare(&Snapshot::scratch()).expect("a layer");
    let place = |layer: &ActiveLayer| layer.upper().parent().expect("a parent").to_owned();
    let first = begin();
    let kept = place(&first);
    fs::write(first.upper().join("f"), "1").expect("a file");
    let beside = begin();
    assert_ne!(place(&beside), kept);
    drop(first.commit().expect("a commit"));
    let mut second = begin();
    assert_eq!(place(&second), kept);
    assert_eq!(count(second.upper()), 0);
    // What is there already stays where it is.
    fs::write(second.upper().join("g"), "2").expect("a file");
    let digest = Digest::sha256(b"a tar");
    second.commit_layer(Some(&digest)).expect("a commit");
    drop(second);
    let mut third = begin();
    assert_eq!(place(&third), kept);
    third.commit_layer(Some(&digest)).expect("a commit");
    drop(third);
    let fourth = begin();
    assert_ne!(place(&fourth), kept);
    // An overlay had its work directory.
    let used = place(&fourth);
    fs::create_dir_all(fourth.work().join("work/incompat/volatile")).expect("directories");
    fs::write(fourth.work().join("work/incompat/volatile/dirty"), "").expect("a file");
    drop(fourth.commit().expect("a commit"));
    assert_ne!(place(&begin()), used);
    let session = test.root().join("tmp").join(test.store.inner.session.slot());
    drop(beside);
    let TestStore { directory, store } = test;
    drop(store);
    assert_eq!(count(&session), 0, "nothing stays");
    drop(directory);
}

#[test]
fn a_long_log_is_brought_in_when_there_is_time() {
    let test = TestStore::new();
    // How often the log was begun anew.
    let begun = || {
        let log = fs::read(test.root().join("store.db-wal")).expect("a log");
        u32::from_be_bytes(log[12..16].try_into().expect("four bytes"))
    };
    let write = || drop(test.store.lease().expect("a lease"));
    let first = begun();
    test.store.bring_logs_in().expect("nothing is worth it");
    write();
    assert_eq!(begun(), first);
    while fs::metadata(test.root().join("store.db-wal")).expect("a log").len() < 32 << 12 {
        write();
    }
    test.store.bring_logs_in().expect("works");
    assert_eq!(begun(), first);
    write();
    assert_eq!(begun(), first + 1);
}

#[test]
fn a_diff_id_is_computed_once() {
    let test = TestStore::new();
    let layer = top(&test.layer(&Snapshot::scratch(), "a", "1"));
    assert_eq!(test.store.known_diff_id(layer).expect("an answer"), None);
    let mut tar = Vec::new();
    test.store.write_layer_tar(layer, &mut tar, &crate::TarOptions::default()).expect("an archive");
    let digest = test.store.diff_id(layer).expect("a digest");
    assert_eq!(digest, Digest::sha256(&tar));
    test.store.set_diff_id(layer, &Digest::sha256(b"other")).expect("an update");
    assert_eq!(test.other().known_diff_id(layer).expect("an answer"), Some(digest));
}

/// Workers hold these across threads and await points.
#[test]
fn handles_cross_threads() {
    fn check<T: Send + Sync>() {}
    check::<Store>();
    check::<crate::Lease>();
    check::<crate::ActiveLayer>();
    check::<crate::BlobWriter>();
    check::<crate::MutableDir>();
    check::<crate::MergedView>();
    check::<StoreError>();
}

#[test]
fn what_a_layer_compresses_to_is_remembered() {
    let test = TestStore::new();
    let snapshot = test.layer(&Snapshot::scratch(), "a", "1");
    let blob = Descriptor::of(Compression::Gzip.oci_media_type(), b"blob");
    test.store.set_compressed(top(&snapshot), Compression::Gzip, &blob).expect("a record");
    let other = test.other();
    assert_eq!(other.compressed(top(&snapshot), Compression::Gzip).expect("an answer"), Some(blob));
    assert_eq!(other.compressed(top(&snapshot), Compression::Zstd).expect("an answer"), None);
}

#[test]
fn a_newer_format_is_refused() {
    let test = TestStore::new();
    let root = test.root().to_owned();
    let database = rusqlite::Connection::open(root.join("store.db")).expect("the database");
    database.pragma_update(None, "user_version", 99).expect("a newer format");
    let error = Store::open(&root).expect_err("a newer store");
    assert!(matches!(error, StoreError::NewerFormat { found: 99, supported: 5, .. }), "{error}");
}

/// Changing the schema is a format break: `FORMAT` goes up, and this digest follows.
#[test]
fn the_schema_belongs_to_its_format() {
    let schema = Digest::sha256(include_bytes!("../schema.sql"));
    assert_eq!((crate::database::FORMAT, schema.short()), (5, "bf66096ed3a0"));
}

#[test]
fn a_restart_takes_unsynced_layers_and_their_images_only() {
    let test = TestStore::new();
    let safe = test.layer(&Snapshot::scratch(), "a", "1");
    test.store.sync().expect("a sync");
    let lost = test.layer(&safe, "b", "2");
    let store = test.after_reboot("another boot");
    assert!(store.exists(&safe).expect("an answer"));
    assert!(!store.exists(&lost).expect("an answer"));
    assert_eq!(count(&test.root().join("l")), 1, "the lost layer's files went too");
    let next = layer(&store, &safe, "c", "3");
    assert!(top(&next) > top(&lost), "numbers the old boot may have given out are not given again");
}

#[test]
fn a_restart_forgets_rows_whose_files_are_gone() {
    let test = TestStore::new();
    let snapshot = test.layer(&Snapshot::scratch(), "a", "1");
    test.store.sync().expect("a sync");
    let path = test.store.layer_paths(&snapshot).expect("paths").remove(0);
    fs::remove_dir_all(path).expect("a removal");
    assert!(!test.after_reboot("another boot").exists(&snapshot).expect("an answer"));
}

#[test]
fn cache_mounts_are_shared_private_or_locked() {
    let test = TestStore::new();
    let open = |sharing| test.store.try_mutable_dir("go", sharing).expect("an answer");
    let first = open(Sharing::Shared).expect("free");
    assert!(first.is_fresh());
    assert!(open(Sharing::Shared).is_none(), "its first content is being made");
    fs::write(first.path().join("x"), "1").expect("a file");
    let first = first.initialised().expect("a mark");
    let second = open(Sharing::Shared).expect("shared");
    assert_eq!((second.path(), second.is_fresh()), (first.path(), false));
    assert!(open(Sharing::Locked).is_none());
    let private = open(Sharing::Private).expect("another copy");
    assert_ne!(private.path(), first.path());
    assert!(private.is_fresh());
    drop((first, second, private));
    let locked = open(Sharing::Locked).expect("free again");
    assert_eq!(fs::read_to_string(locked.path().join("x")).expect("what was written"), "1");
    assert!(open(Sharing::Shared).is_none());
}

#[test]
fn a_cache_mount_without_whole_first_content_starts_anew() {
    let test = TestStore::new();
    let first = test.store.mutable_dir("go", Sharing::Locked).expect("free");
    fs::write(first.path().join("half"), "1").expect("a file");
    drop(first);
    let again = test.store.mutable_dir("go", Sharing::Locked).expect("free");
    assert!(again.is_fresh());
    assert_eq!(count(again.path()), 0);
}

#[test]
fn a_restart_keeps_layers_that_can_be_shown_to_be_whole() {
    let test = TestStore::new();
    let [whole, torn, unknown] =
        ["whole", "torn", "unknown"].map(|name| test.layer(&Snapshot::scratch(), name, "content"));
    for snapshot in [&whole, &torn] {
        test.store.diff_id(top(snapshot)).expect("a digest");
    }
    // What a power cut does to data that the kernel had not written.
    let path = test.store.layer_paths(&torn).expect("paths").remove(0);
    fs::write(path.join("torn"), "").expect("a file");
    let store = test.after_reboot("another boot");
    let kept = [&whole, &torn, &unknown].map(|snapshot| store.exists(snapshot).expect("an answer"));
    assert_eq!(kept, [true, false, false]);
    // And it is not asked again.
    drop(store);
    assert!(test.after_reboot("a third boot").exists(&whole).expect("an answer"));
}

#[test]
fn a_layer_that_is_in_a_snapshot_twice_is_stacked_once() {
    let test = TestStore::new();
    let [a, b] = ["a", "b"].map(|name| test.layer(&Snapshot::scratch(), name, "1").layers()[0]);
    let paths =
        |layers: &[crate::LayerId]| test.store.layer_paths(&Snapshot::new(layers.to_vec())).expect("paths");
    assert_eq!(paths(&[a, b, a]), paths(&[b, a]));
    assert_eq!(paths(&[b, a, a]), paths(&[b, a]));
}

#[test]
fn cache_mounts_are_removed_by_their_keys() {
    let test = TestStore::new();
    let used =
        |key: &str| test.store.mutable_dir(key, Sharing::Private).and_then(crate::MutableDir::initialised);
    let is_there = |key: &str| test.store.existing_mutable_dir(key).expect("an answer").is_some();
    for key in ["go", "rust"] {
        drop(used(key).expect("free"));
    }
    assert_eq!(test.store.remove_cache_mounts(|key| key == "go").expect("removes"), 1);
    assert!(!is_there("go") && is_there("rust"));
    let held = used("rust").expect("free");
    assert_eq!(test.store.remove_cache_mounts(|_| true).expect("removes"), 0);
    drop(held);
    assert!(is_there("rust"));
}
