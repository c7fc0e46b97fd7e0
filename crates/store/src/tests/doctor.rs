//! A lost or damaged database comes back from the journal, and an examination finds what is wrong.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;

use stave_oci::{Digest, Platform, Reference};

use super::{TestStore, top};
use crate::{
    FindingKind, ImageLayer, LocalImage, Snapshot, Store, StoreError, StoredAttestation, StoredIndex,
    StoredManifest, examine,
};

fn image(store: &Store, snapshot: &Snapshot, config: &str) -> LocalImage {
    let layer = |layer: &crate::LayerId| ImageLayer {
        layer: *layer,
        diff_id: store.diff_id(*layer).expect("a digest"),
        blob: None,
    };
    LocalImage {
        id: Digest::sha256(config.as_bytes()),
        config: config.into(),
        layers: snapshot.layers().iter().map(layer).collect(),
        manifest: None,
        platform: Platform::new("linux", "amd64", None),
    }
}

fn name(text: &str) -> Reference {
    text.parse().expect("a name")
}

/// Kinds found, without and then with repair; after that nothing is.
#[track_caller]
fn check(test: &TestStore, expected: &[FindingKind]) {
    let kinds = |repair| {
        let mut kinds: Vec<_> =
            examine(test.root(), repair).expect("an examination").iter().map(|found| found.kind).collect();
        kinds.sort();
        kinds
    };
    assert_eq!(kinds(false), expected, "found");
    assert_eq!(kinds(true), expected, "repaired");
    assert_eq!(kinds(false), [], "nothing is left");
}

#[test]
fn a_lost_database_comes_back_with_layers_images_names_and_numbers() {
    let mut test = TestStore::new();
    let base = test.layer(&Snapshot::scratch(), "a", "1");
    let built = test.layer(&base, "b", "2");
    let (kept, gone) =
        (image(&test.store, &built, "{\"kept\":1}"), image(&test.store, &base, "{\"gone\":1}"));
    test.store.put_image(&[name("kept"), name("moved")], &kept).expect("stores");
    test.store.put_image(&[name("gone"), name("moved")], &gone).expect("stores");
    test.store.untag(&name("moved")).expect("untags");
    test.store.remove_image(&gone.id).expect("removes");
    let mut writer = test.store.blob_writer(None, 10).expect("a writer");
    writer.write_all(b"blob").expect("room");
    let (blob, _) = writer.commit().expect("a commit");
    fs::remove_file(test.root().join("store.db")).expect("removes");
    assert!(matches!(Store::open(test.root()), Err(StoreError::LostWhileOpen { .. })), "others still use it");
    let root = test.directory;
    drop(test.store);
    // The open above made a new, empty one; a lost one is lost whole.
    for file in ["store.db", "store.db-wal", "store.db-shm"] {
        drop(fs::remove_file(root.path().join(file)));
    }
    test = TestStore { store: Store::open(root.path()).expect("opens"), directory: root };
    let store = &test.store;
    assert!(store.exists(&built).expect("an answer"), "numbers are the same");
    assert_eq!(store.image_by_name(&name("kept")).expect("an answer").expect("is there"), kept);
    assert_eq!(store.images().expect("a listing").len(), 1);
    assert!(store.image_by_name(&name("moved")).expect("an answer").is_none());
    assert!(store.has_blob(&blob).expect("an answer"));
    let next = test.layer(&Snapshot::scratch(), "c", "3");
    assert!(top(&next) > top(&built), "no number is given twice");
    check(&test, &[]);
}

#[test]
fn a_lost_database_comes_back_with_all_that_hangs_on_names_and_images() {
    let test = TestStore::new();
    let base = test.layer(&Snapshot::scratch(), "a", "1");
    let images = ["one", "two", "three"].map(|config| image(&test.store, &base, config));
    let document = |bytes: &[u8]| StoredManifest {
        media_type: "application/x".to_owned(),
        digest: Digest::sha256(bytes),
        bytes: bytes.to_vec(),
    };
    let index = StoredIndex {
        documents: vec![document(b"a \xff manifest"), document(b"the index")],
        blobs: vec![stave_oci::Descriptor::of("application/y", b"blob")],
    };
    let (app, moved, gone) = (name("app"), name("moved"), name("gone"));
    test.store.put_indexed(&[app.clone(), moved.clone()], &images, Some(&index)).expect("stores");
    // What hung on a name is gone when it means something else.
    test.store.put_image(std::slice::from_ref(&moved), &images[0]).expect("stores");
    let statement = |predicate: &[u8]| StoredAttestation {
        predicate_type: "urn:x".into(),
        predicate: predicate.to_vec(),
    };
    let attested = vec![statement(b"{\"a\":1}"), statement(b"no \xff text")];
    let other = name("other");
    for all in [vec![statement(b"replaced")], attested.clone()] {
        let all = [(images[1].id.clone(), all)];
        test.store.put_attested(&[other.clone(), gone.clone()], &images[1..2], &all).expect("stores");
    }
    test.store.untag(&gone).expect("stores");
    test.store.remove_image(&images[2].id).expect("removes");
    let root = test.directory;
    drop(test.store);
    for round in ["as it was written", "as it was written anew"] {
        for file in ["store.db", "store.db-wal", "store.db-shm"] {
            drop(fs::remove_file(root.path().join(file)));
        }
        let store = Store::open(root.path()).expect("opens");
        assert_eq!(store.index_by_name(&app).expect("looks").as_ref(), Some(&index), "{round}");
        assert_eq!(store.index_by_name(&moved).expect("looks"), None, "{round}");
        let named = store.images_by_name(&app).expect("looks").expect("is there");
        assert_eq!(named.all().collect::<Vec<_>>(), [&images[0], &images[1]], "{round}");
        let of = |name| store.attestations(name, &images[1].id).expect("looks");
        assert_eq!(of(Some(&other)), attested, "{round}");
        assert_eq!([of(None), of(Some(&app)), of(Some(&gone))], [const { Vec::new() }; 3], "{round}");
        drop(store);
        // The next line finds no journal, and so it is made from the rows.
        fs::remove_file(root.path().join("journal")).expect("removes");
        examine(root.path(), true).expect("a repair");
    }
    // An index whose documents are not all there is none.
    let journal = fs::read_to_string(root.path().join("journal")).expect("reads");
    let lines = journal.lines().filter(|line| !line.contains(Digest::sha256(b"the index").as_str()));
    fs::write(root.path().join("journal"), lines.flat_map(|line| [line, "\n"]).collect::<String>())
        .expect("writes");
    for file in ["store.db", "store.db-wal", "store.db-shm"] {
        drop(fs::remove_file(root.path().join(file)));
    }
    let store = Store::open(root.path()).expect("opens");
    assert_eq!(store.index_by_name(&app).expect("looks"), None);
    assert!(store.images_by_name(&app).expect("looks").is_some());
}

#[test]
fn a_damaged_database_is_made_again() {
    let test = TestStore::new();
    let layer = test.layer(&Snapshot::scratch(), "a", "1");
    test.store.sync().expect("a sync");
    let root = test.directory;
    drop(test.store);
    fs::write(root.path().join("store.db"), vec![7; 8192]).expect("writes");
    for file in ["store.db-wal", "store.db-shm"] {
        drop(fs::remove_file(root.path().join(file)));
    }
    let found = examine(root.path(), false).expect("an examination");
    assert_eq!(found[0].kind, FindingKind::DatabaseDamaged, "{found:?}");
    examine(root.path(), true).expect("a repair");
    assert_eq!(examine(root.path(), false).expect("an examination"), []);
    assert!(Store::open(root.path()).expect("opens").exists(&layer).expect("an answer"));
}

#[test]
fn rows_files_and_contents_are_compared() {
    let test = TestStore::new();
    let layer = test.layer(&Snapshot::scratch(), "a", "1");
    let lost = image(&test.store, &layer, "{}");
    test.store.put_image(&[], &lost).expect("stores");
    let mut writer = test.store.blob_writer(None, 10).expect("a writer");
    writer.write_all(b"blob").expect("room");
    let (blob, _) = writer.commit().expect("a commit");
    let whole = test.layer(&Snapshot::scratch(), "b", "2");
    check(&test, &[]);
    for path in test.store.layer_paths(&layer).expect("paths") {
        fs::remove_dir_all(path).expect("removes");
    }
    fs::create_dir(test.root().join("l/stray")).expect("a directory");
    fs::write(test.root().join(format!("blobs/sha256/{}", "0".repeat(64))), "x").expect("writes");
    fs::write(test.store.blob_path(&blob), "other").expect("writes");
    fs::set_permissions(test.root().join("l"), fs::Permissions::from_mode(0o755)).expect("changes");
    check(
        &test,
        &[
            FindingKind::LayerMissing,
            FindingKind::LayerOrphan,
            FindingKind::BlobOrphan,
            FindingKind::BlobDamaged,
            FindingKind::Permissions,
        ],
    );
    assert!(test.store.exists(&whole).expect("an answer"));
    assert!(
        test.store.image_by_id(&lost.id).expect("an answer").is_none(),
        "an image without its layer goes"
    );
}

#[test]
fn the_journal_is_written_anew_when_it_is_missing() {
    let test = TestStore::new();
    let layer = test.layer(&Snapshot::scratch(), "a", "1");
    fs::remove_file(test.root().join("journal")).expect("removes");
    check(&test, &[FindingKind::JournalMissing]);
    let root = test.directory;
    drop(test.store);
    fs::remove_file(root.path().join("store.db")).expect("removes");
    assert!(Store::open(root.path()).expect("opens").exists(&layer).expect("an answer"));
}
