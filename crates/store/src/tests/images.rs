//! Image records and their names.

use stave_oci::{Descriptor, Digest, Platform, Reference};

use super::{TestStore, top};
use crate::{
    ImageLayer, ImagePrune, LocalImage, PruneRequest, Snapshot, StoreError, StoredIndex, StoredManifest,
};

fn image(test: &TestStore, config: &str) -> LocalImage {
    let layer = top(&test.layer(&Snapshot::scratch(), "f", config));
    let diff_id = test.store.diff_id(layer).expect("a digest");
    let manifest = format!("manifest of {config}").into_bytes();
    LocalImage {
        id: Digest::sha256(config.as_bytes()),
        config: config.as_bytes().to_vec(),
        layers: vec![ImageLayer { layer, diff_id, blob: Some(Descriptor::of("application/x", b"blob")) }],
        manifest: Some(StoredManifest {
            media_type: "application/y".to_owned(),
            digest: Digest::sha256(&manifest),
            bytes: manifest,
        }),
        platform: Platform::new("linux", "arm64", Some("v8")),
    }
}

fn name(text: &str) -> Reference {
    text.parse().expect("a reference")
}

#[test]
fn a_stored_image_reads_back_by_every_name() {
    let test = TestStore::new();
    let image = image(&test, "{}");
    test.store.put_image(&[name("app:1.0"), name("app")], &image).expect("a record");
    let digest = image.manifest.as_ref().map(|manifest| manifest.digest.to_string()).unwrap_or_default();
    let store = test.other();
    let hex = image.id.hex();
    let pinned = format!("app@{digest}");
    for text in ["app", "app:1.0", "docker.io/library/app:latest", hex, image.id.as_str(), &hex[..4], &pinned]
    {
        assert_eq!(store.image(text).expect("an answer").as_ref(), Some(&image), "{text}");
    }
    let elsewhere = format!("other@{digest}");
    for text in ["app:2", "zz", "", "!", "ffffffff", &elsewhere] {
        assert_eq!(store.image(text).expect("an answer"), None, "{text}");
    }
    let listed = store.images().expect("a listing");
    assert_eq!(listed[0].names, vec![name("app:1.0"), name("app:latest")]);
    assert!(listed[0].size > 0);
}

#[test]
fn a_moved_name_leaves_a_dangling_image() {
    let test = TestStore::new();
    let (old, new) = (image(&test, "old"), image(&test, "new"));
    test.store.put_image(&[name("app")], &old).expect("a record");
    test.store.put_image(&[name("app")], &new).expect("a record");
    assert_eq!(test.store.image("app").expect("an answer"), Some(new.clone()));
    assert_eq!(test.store.image_names(&old.id).expect("an answer"), vec![]);
    let request = PruneRequest { images: ImagePrune::Dangling, ..PruneRequest::unused() };
    let pruned = test.store.prune(&request).expect("a collection");
    assert_eq!((pruned.images, pruned.layers), (vec![old.id], vec![old.layers[0].layer]));
    assert!(test.store.exists(&new.snapshot()).expect("an image keeps its layers"));
}

#[test]
fn images_that_are_nowhere_else_can_be_kept() {
    let test = TestStore::new();
    let (pulled, built) = (image(&test, "pulled"), LocalImage { manifest: None, ..image(&test, "built") });
    test.store.put_image(&[name("pulled")], &pulled).expect("a record");
    test.store.put_image(&[name("built")], &built).expect("a record");
    let request = PruneRequest { images: ImagePrune::Elsewhere, ..PruneRequest::unused() };
    assert_eq!(test.store.prune(&request).expect("a collection").images, vec![pulled.id]);
    assert!(test.store.exists(&built.snapshot()).expect("an image keeps its layers"));
}

#[test]
fn tags_come_and_go() {
    let test = TestStore::new();
    let image = image(&test, "{}");
    test.store.put_image(&[], &image).expect("a record");
    assert!(test.store.tag(&image.id, &name("a")).expect("an answer"));
    assert!(!test.store.tag(&Digest::sha256(b"none"), &name("a")).expect("an answer"));
    assert_eq!(test.store.untag(&name("a")).expect("an answer"), Some(image.id.clone()));
    assert_eq!(test.store.untag(&name("a")).expect("an answer"), None);
    assert!(test.store.remove_image(&image.id).expect("an answer"));
    assert!(!test.store.remove_image(&image.id).expect("an answer"));
    assert_eq!(test.store.images().expect("a listing"), vec![]);
}

#[test]
fn ambiguous_prefixes_and_bad_records_are_errors() {
    let test = TestStore::new();
    for config in 0..40 {
        test.store.put_image(&[], &image(&test, &config.to_string())).expect("a record");
    }
    let first = Digest::sha256(b"0").hex()[..1].to_owned();
    match test.store.image(&first) {
        Err(StoreError::AmbiguousId { matches, .. }) => assert!(matches > 1),
        other => panic!("{other:?}"),
    }
    let mut bad = image(&test, "{}");
    bad.config.push(b' ');
    let error = test.store.put_image(&[], &bad).expect_err("another config");
    assert!(error.to_string().ends_with("its id is not the digest of its config"), "{error}");
    let mut gone = image(&test, "{}");
    gone.layers[0].layer = crate::LayerId(999);
    let error = test.store.put_image(&[name("x")], &gone).expect_err("no such layer");
    assert!(matches!(error, StoreError::LayerGone(_)), "{error}");
    assert_eq!(test.store.image("x").expect("an answer"), None, "not even its name was stored");
}

#[test]
fn images_lose_to_a_restart_only_with_their_layers() {
    let test = TestStore::new();
    let safe = image(&test, "safe");
    test.store.put_image(&[name("safe")], &safe).expect("a record");
    test.store.sync().expect("a sync");
    let lost = image(&test, "lost");
    test.store.put_image(&[name("lost")], &lost).expect("a record");
    let path = test.store.layer_paths(&lost.snapshot()).expect("paths").remove(0);
    std::fs::write(path.join("torn"), "").expect("a file");
    let store = test.after_reboot("another boot");
    assert_eq!(store.image("safe").expect("an answer"), Some(safe));
    assert_eq!(store.image("lost").expect("an answer"), None);
}

#[test]
fn a_name_keeps_the_index_it_came_with_and_its_blobs() {
    use std::io::Write as _;
    let test = TestStore::new();
    let (image, name, other) = (image(&test, "config"), name("app"), name("other"));
    let statement = b"a statement that no image names";
    let mut writer = test.store.blob_writer(None, 100).expect("a writer");
    writer.write_all(statement).expect("writes");
    let (digest, size) = writer.commit().expect("a blob");
    let document = |bytes: &[u8]| StoredManifest {
        media_type: "application/x".to_owned(),
        digest: Digest::sha256(bytes),
        bytes: bytes.to_vec(),
    };
    let index = StoredIndex {
        documents: vec![document(b"manifest"), document(b"index")],
        blobs: vec![Descriptor::new("application/y", digest.clone(), size)],
    };
    let names = std::slice::from_ref(&name);
    let images = std::slice::from_ref(&image);
    let mut wrong = index.clone();
    wrong.documents[1].bytes.push(b'!');
    let error = test.store.put_indexed(names, images, Some(&wrong)).expect_err("another digest");
    assert!(matches!(error, StoreError::DigestMismatch { .. }), "{error:?}");
    test.store.put_indexed(names, images, Some(&index)).expect("a record");
    let found = test.store.index_by_name(&name).expect("looks").expect("is there");
    assert_eq!((found.top(), &found), (Some(&document(b"index")), &index));
    assert_eq!(test.store.index_by_name(&other).expect("looks"), None);
    // What it needs is no rubbish, until the name means something else.
    assert_eq!(test.store.prune(&PruneRequest::unused()).expect("prunes").blobs, []);
    test.store.put_image(names, &image).expect("a record");
    assert_eq!(test.store.index_by_name(&name).expect("looks"), None);
    assert_eq!(test.store.prune(&PruneRequest::unused()).expect("prunes").blobs, [digest]);
}

/// Bytes of what a change of images is written to.
fn written(test: &TestStore) -> [u64; 2] {
    let length = |file: &str| std::fs::metadata(test.root().join(file)).map_or(0, |found| found.len());
    ["journal", "store.db-wal"].map(length)
}

#[test]
fn what_is_stored_already_is_not_written_again() {
    let test = TestStore::new();
    let lease = test.store.lease().expect("a lease");
    let (image, other) = (image(&test, "{}"), image(&test, "[]"));
    let names = [name("app"), name("app:1")];
    let document = image.manifest.clone().expect("a manifest");
    let index = StoredIndex { documents: vec![document], blobs: vec![Descriptor::of("application/x", b"b")] };
    let both = [image.clone(), other.clone()];
    let put = || {
        test.store.put_indexed(&names, &both, Some(&index)).expect("a record");
    };
    put();
    let before = written(&test);
    put();
    // What an image came with earlier is kept.
    let built = [LocalImage { manifest: None, ..image.clone() }, other.clone()];
    test.store.put_indexed(&names[..1], &built, Some(&index)).expect("a record");
    assert_eq!(written(&test), before);
    drop(lease);
    // Nothing says that the layers were used since this began.
    let lease = test.store.lease().expect("a lease");
    let before = written(&test);
    put();
    assert!(written(&test)[1] > before[1]);
    assert!(test.store.exists(&image.snapshot()).expect("an answer"));
    drop(lease);
}

#[test]
fn whatever_differs_from_what_is_stored_is_written() {
    let test = TestStore::new();
    let lease = test.store.lease().expect("a lease");
    let (image, other) = (image(&test, "{}"), image(&test, "[]"));
    let document = other.manifest.clone();
    let index = StoredIndex { documents: document.clone().into_iter().collect(), blobs: Vec::new() };
    let blob = Some(Descriptor::of("application/x", b"another"));
    let platform = Platform::new("linux", "amd64", None);
    let layers = vec![ImageLayer { blob, ..image.layers[0].clone() }];
    let above = vec![image.layers[0].clone(), other.layers[0].clone()];
    let variants = [
        (vec![LocalImage { manifest: document, ..image.clone() }], None),
        (vec![LocalImage { platform, ..image.clone() }], None),
        (vec![LocalImage { layers, ..image.clone() }], None),
        (vec![LocalImage { layers: above, ..image.clone() }], None),
        (vec![other.clone()], None),
        (vec![image.clone(), other.clone()], None),
        (vec![image.clone()], Some(&index)),
    ];
    for (images, index) in variants {
        test.store.put_image(&[name("app")], &image).expect("a record");
        let before = written(&test);
        test.store.put_indexed(&[name("app")], &images, index).expect("a record");
        assert!(written(&test)[0] > before[0], "{images:?}");
        let stored = test.store.images_by_name(&name("app")).expect("an answer").expect("is there");
        assert_eq!(stored.all().collect::<Vec<_>>(), images.iter().collect::<Vec<_>>());
        assert_eq!(test.store.index_by_name(&name("app")).expect("an answer").as_ref(), index);
    }
    test.store.put_image(&[name("app")], &image).expect("a record");
    test.store.put_image(&[name("app:2")], &image).expect("a record");
    assert_eq!(test.store.image_names(&image.id).expect("an answer").len(), 2);
    let size = test.store.images().expect("a listing").into_iter().find(|listed| listed.image == image);
    assert_eq!(test.store.image_size(&image.id).expect("an answer"), size.expect("is there").size);
    drop(lease);
}

#[test]
fn an_image_is_found_by_its_manifest_alone() {
    let test = TestStore::new();
    let images = [image(&test, "{}"), image(&test, "[]"), LocalImage { manifest: None, ..image(&test, "1") }];
    for image in &images {
        test.store.put_image(&[], image).expect("a record");
    }
    for image in &images[..2] {
        let digest = image.manifest.as_ref().map(|manifest| manifest.digest.clone()).expect("a manifest");
        assert_eq!(test.store.images_by_manifest(&digest).expect("an answer"), std::slice::from_ref(image));
    }
    let unknown = test.store.images_by_manifest(&images[0].id).expect("an answer");
    assert_eq!(unknown, [], "an id is none");
    // Layers of others have nothing to do with it.
    let query = "SELECT count(*) FROM layer WHERE size IS NOT NULL";
    let measured =
        test.store.inner.database.read(|tx| Ok(tx.query_row(query, [], |row| row.get::<_, i64>(0))?));
    assert_eq!(measured.expect("a count"), 0);
}

#[test]
fn what_a_lease_keeps_already_is_not_stamped_again() {
    let test = TestStore::new();
    let image = image(&test, "{}");
    let mut writer = test.store.blob_writer(None, 100).expect("a writer");
    writer.push(b"content").expect("room");
    let (digest, _) = writer.commit().expect("a blob");
    let use_both = || {
        let layer = test.store.layer_by_diff_id(&image.layers[0].diff_id).expect("an answer");
        (layer, test.store.blob_size(&digest).expect("an answer"))
    };
    let none = || test.store.layer_by_diff_id(&digest).expect("an answer");
    let lease = test.store.lease().expect("a lease");
    let before = written(&test);
    let found = use_both();
    assert_eq!((found, none()), ((Some(image.layers[0].layer), Some(7)), None));
    let stamped = written(&test);
    assert!(stamped[1] > before[1]);
    assert_eq!((use_both(), none(), written(&test)), (found, None, stamped));
    assert_eq!(test.other().prune(&PruneRequest::unused()).expect("a collection").layers, []);
    drop(lease);
    assert_eq!(test.store.prune(&PruneRequest::unused()).expect("a collection").blobs, [digest]);
}
