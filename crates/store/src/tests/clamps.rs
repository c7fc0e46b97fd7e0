//! Tars with clamped times, names of several images, attestations, and stores of an earlier format.

use std::fs::File;
use std::time::{Duration, UNIX_EPOCH};

use stave_oci::{Compression, Descriptor, Digest, Platform, Reference};

use super::{TestStore, top};
use crate::{
    ImageLayer, ImagePrune, LayerTar, LocalImage, PruneRequest, Snapshot, Store, StoredAttestation,
    StoredManifest,
};

#[test]
fn a_clamped_tar_depends_on_the_epoch_only_where_times_are_later() {
    let test = TestStore::new();
    let make = |seconds| {
        let layer = test.store.prepare(&Snapshot::scratch()).expect("prepares");
        let path = layer.upper().join("f");
        std::fs::write(&path, "x").expect("writes");
        let file = File::open(&path).expect("opens");
        file.set_modified(UNIX_EPOCH + Duration::from_secs(seconds)).expect("sets");
        top(&layer.commit().expect("commits"))
    };
    let (early, late) = (make(1000), make(3000));
    let digest = |layer, clamp| test.store.tar_diff_id(LayerTar { layer, clamp }).expect("a digest");
    assert_eq!(digest(early, Some(2000)), digest(early, None));
    // Of a build context's times only the epoch is left.
    let of_context = |seconds| {
        let layer = test.store.prepare(&Snapshot::scratch()).expect("prepares");
        let path = layer.upper().join("f");
        std::fs::write(&path, "x").expect("writes");
        let (seconds, nanoseconds) = crate::context_time((seconds, 5));
        let time = UNIX_EPOCH + Duration::new(seconds.unsigned_abs(), nanoseconds);
        File::open(&path).expect("opens").set_modified(time).expect("sets");
        top(&layer.commit().expect("commits"))
    };
    let contexts = [1000, 2000, 3000].map(of_context);
    let digests = contexts.map(|layer| digest(layer, Some(2000)));
    assert_eq!(digests, [0, 1, 2].map(|_| digest(late, Some(2000))));
    assert_eq!(digest(contexts[0], None), digest(early, None));
    assert_ne!(digest(late, Some(2000)), digest(late, None));
    assert_eq!(digest(late, Some(1000)), digest(early, None));
    // Found again by its digest, by another process too.
    let store = test.other();
    let clamped = LayerTar { layer: late, clamp: Some(2000) };
    assert_eq!(store.tar_of(late, &digest(late, Some(2000))).expect("looks"), Some(clamped));
    assert_eq!(store.tar_of(late, &digest(late, None)).expect("looks"), Some(LayerTar::plain(late)));
    assert_eq!(store.tar_of(late, &Digest::sha256(b"")).expect("looks"), None);
    // Each tar has its own blob.
    let blob = Descriptor::of("application/x", b"blob");
    store.set_compressed_tar(clamped, Compression::Gzip, &blob).expect("remembers");
    assert_eq!(store.compressed_tar(clamped, Compression::Gzip).expect("looks"), Some(blob));
    assert_eq!(store.compressed_tar(LayerTar::plain(late), Compression::Gzip).expect("looks"), None);
}

fn image(test: &TestStore, architecture: &str) -> LocalImage {
    let layer = top(&test.layer(&Snapshot::scratch(), "f", architecture));
    let config = format!("config for {architecture}").into_bytes();
    LocalImage {
        id: Digest::sha256(&config),
        config,
        layers: vec![ImageLayer { layer, diff_id: test.store.diff_id(layer).expect("hashes"), blob: None }],
        manifest: None,
        platform: Platform::new("linux", architecture, None),
    }
}

#[test]
fn a_name_stands_for_several_platforms() {
    let test = TestStore::new();
    let name: Reference = "app:1".parse().expect("a name");
    let both = [image(&test, "amd64"), image(&test, "riscv64")];
    test.store.put_images(std::slice::from_ref(&name), &both).expect("a record");
    let found = test.store.images_by_name(&name).expect("looks").expect("is there");
    assert_eq!(found.all().cloned().collect::<Vec<_>>(), both);
    assert_eq!(found.of(&both[1].platform), Some(&both[1]));
    assert_eq!(test.store.image_names(&both[1].id).expect("looks"), std::slice::from_ref(&name));
    // No platform of a named image dangles.
    let request = PruneRequest { images: ImagePrune::Dangling, ..PruneRequest::unused() };
    assert!(test.store.prune(&request).expect("prunes").images.is_empty());
    // A name that moves takes all of them along.
    test.store.put_image(std::slice::from_ref(&name), &both[1]).expect("a record");
    let found = test.store.images_by_name(&name).expect("looks").expect("is there");
    assert_eq!((found.first, found.others), (both[1].clone(), Vec::new()));
    assert_eq!(test.store.prune(&request).expect("prunes").images, [both[0].id.clone()]);
}

#[test]
fn attestations_go_with_their_image_and_its_name() {
    let test = TestStore::new();
    let image = image(&test, "amd64");
    let one = |text: &str| StoredAttestation { predicate_type: text.to_owned(), predicate: b"{}".to_vec() };
    let names: [Reference; 2] = ["app:1", "app:2"].map(|name| name.parse().expect("a name"));
    let put = |names: &[Reference], all: &[StoredAttestation]| {
        let attested = [(image.id.clone(), all.to_vec())];
        test.store.put_attested(names, std::slice::from_ref(&image), &attested).expect("a record");
    };
    #[track_caller]
    fn check(
        test: &TestStore,
        image: &LocalImage,
        expected: [&[StoredAttestation]; 3],
        names: &[Reference; 2],
    ) {
        let of = |name| test.store.attestations(name, &image.id).expect("looks");
        assert_eq!([of(None), of(Some(&names[0])), of(Some(&names[1]))], expected);
    }
    put(&names, &[one("a"), one("b")]);
    check(&test, &image, [&[], &[one("a"), one("b")], &[one("a"), one("b")]], &names);
    // Pulled again, or loaded, as what it is already: nothing is said of statements.
    let bytes = b"another".to_vec();
    let manifest = StoredManifest { media_type: "m".into(), digest: Digest::sha256(&bytes), bytes };
    let pulled = LocalImage { manifest: Some(manifest), ..image.clone() };
    test.store.put_image(&names[..1], &pulled).expect("a record");
    check(&test, &image, [&[], &[one("a"), one("b")], &[one("a"), one("b")]], &names);
    // Built again without a statement under one name, and with another under none.
    put(&names[1..], &[]);
    put(&[], &[one("c")]);
    test.store.put_image(&[], &pulled).expect("a record");
    check(&test, &image, [&[one("c")], &[one("a"), one("b")], &[]], &names);
    test.store.tag(&image.id, &names[1]).expect("a record");
    check(&test, &image, [&[one("c")], &[one("a"), one("b")], &[one("c")]], &names);
    test.store.untag(&names[1]).expect("a record");
    check(&test, &image, [&[one("c")], &[one("a"), one("b")], &[]], &names);
    test.store.remove_image(&image.id).expect("removes");
    check(&test, &image, [&[], &[], &[]], &names);
}

#[test]
fn what_was_attested_of_an_image_is_attested_under_its_names() {
    let test = TestStore::new();
    let both = ["amd64", "arm64"].map(|architecture| image(&test, architecture));
    let name: Reference = "app:1".parse().expect("a name");
    test.store.put_images(std::slice::from_ref(&name), &both).expect("a record");
    let directory = test.directory;
    drop(test.store);
    let database = rusqlite::Connection::open(directory.path().join("store.db")).expect("the database");
    database
        .execute_batch(
            "DROP TRIGGER image_attestation_of_name; DROP TABLE image_attestation;
             CREATE TABLE image_attestation (
                 image TEXT NOT NULL REFERENCES image ON DELETE CASCADE, position INTEGER NOT NULL,
                 predicate_type TEXT NOT NULL, predicate BLOB NOT NULL, PRIMARY KEY (image, position)
             ) WITHOUT ROWID;
             INSERT INTO image_attestation SELECT id, 0, 'urn:x', CAST(platform AS BLOB) FROM image;
             PRAGMA user_version = 4;",
        )
        .expect("an older store");
    let store = Store::open(directory.path()).expect("opens");
    for image in &both {
        let predicate = serde_json::to_vec(&image.platform).expect("JSON");
        let expected = [StoredAttestation { predicate_type: "urn:x".to_owned(), predicate }];
        for name in [Some(&name), None] {
            assert_eq!(store.attestations(name, &image.id).expect("looks"), expected);
        }
    }
    // The journal says it, too.
    drop(store);
    for file in ["store.db", "store.db-wal", "store.db-shm"] {
        drop(std::fs::remove_file(directory.path().join(file)));
    }
    let store = Store::open(directory.path()).expect("opens");
    for name in [Some(&name), None] {
        assert_eq!(store.attestations(name, &both[0].id).expect("looks").len(), 1);
    }
    store.untag(&name).expect("a record");
    assert_eq!(store.attestations(Some(&name), &both[1].id).expect("looks"), []);
}

#[test]
fn a_store_of_the_first_format_is_brought_forward() {
    let test = TestStore::new();
    let layer = test.layer(&Snapshot::scratch(), "f", "kept");
    let directory = test.directory;
    drop(test.store);
    let database = rusqlite::Connection::open(directory.path().join("store.db")).expect("the database");
    database
        .execute_batch(
            "DROP TABLE clamped; DROP TABLE clamped_compressed; DROP TABLE image_variant;
             DROP TRIGGER image_attestation_of_name; DROP TABLE image_attestation; DROP TABLE image_document; DROP TABLE image_blob; ALTER TABLE layer DROP COLUMN parent; PRAGMA user_version = 1;",
        )
        .expect("an older store");
    let store = Store::open(directory.path()).expect("opens");
    assert!(store.exists(&layer).expect("looks"));
    store.tar_diff_id(LayerTar { layer: top(&layer), clamp: Some(1) }).expect("remembers");
}
