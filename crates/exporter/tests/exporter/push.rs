//! Pushes to a registry in this process.

use std::sync::{Arc, Mutex};

use stave_exporter::{ExportEvent, ExportEvents, ExportStep, ExportTarget, Image, ImageTarget, PushOptions};
use stave_oci::{Descriptor, Digest, Manifest, Reference, media_type};
use stave_test_support::TestRegistry;

use crate::Bench;

fn target(names: Vec<Reference>, store: bool) -> ExportTarget {
    ExportTarget::Image(ImageTarget {
        names,
        store,
        push: Some(PushOptions::default()),
        ..ImageTarget::default()
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_is_pushed_once() {
    let (bench, registry) = (Bench::new(), TestRegistry::start());
    let image = bench.built();
    let names = vec![registry.reference("app:1"), registry.reference("app:2")];
    let seen = Arc::new(Mutex::new(Vec::new()));
    let events = Arc::clone(&seen);
    let exporter = bench.exporter.clone().with_events(ExportEvents::new(move |event| {
        events.lock().expect("no panic").push(event);
    }));
    let exported =
        exporter.export(std::slice::from_ref(&image), &target(names.clone(), true)).await.expect("pushes");
    let (media_type, bytes) = registry.manifest("app", "1").expect("is there");
    let descriptor = exported.manifest.expect("a manifest");
    assert_eq!((descriptor.media_type, descriptor.digest), (media_type, Digest::sha256(&bytes)));
    assert_eq!(registry.manifest("app", "2").map(|(_, bytes)| bytes), Some(bytes.clone()));
    let manifest: Manifest = serde_json::from_slice(&bytes).expect("JSON");
    for blob in manifest.layers.iter().chain([&manifest.config]) {
        assert_eq!(registry.blob("app", &blob.digest).map(|bytes| bytes.len() as u64), Some(blob.size));
    }
    // Progress ends at the size of each blob.
    let seen = seen.lock().expect("no panic").clone();
    for layer in &manifest.layers {
        let step = ExportStep::PushingBlob(layer.digest.clone());
        let (current, total) = (layer.size, Some(layer.size));
        assert!(seen.contains(&ExportEvent::Progress { step: step.clone(), current, total }));
        assert!(seen.contains(&ExportEvent::Done(step)));
    }
    let stored = bench.store.image_by_name(&names[0]).expect("looks").expect("is there");
    assert_eq!(stored.manifest.expect("it was pushed").digest, Digest::sha256(&bytes));

    // A second push sends nothing but the manifest.
    let uploads = registry.count("POST", "/blobs/uploads/");
    bench.exporter.export(std::slice::from_ref(&image), &target(names, false)).await.expect("pushes");
    assert_eq!(registry.count("POST", "/blobs/uploads/"), uploads);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn base_layers_are_mounted_not_sent() {
    let (bench, registry) = (Bench::new(), TestRegistry::start());
    let origin = registry.reference("base:1");
    let (image, blob) = bench.on_pulled_base(Some(origin));
    registry.put_blob("base", &blob);
    // The blob itself is no longer here, and need not be.
    bench
        .exporter
        .export(std::slice::from_ref(&image), &target(vec![registry.reference("app:1")], false))
        .await
        .expect("pushes");
    assert_eq!(registry.blob("app", &Digest::sha256(&blob)), Some(blob.clone()));
    assert!(registry.count("POST", "mount=") > 0);
    assert_eq!(registry.count("GET", "/blobs/"), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_layer_that_lies_elsewhere_is_named_and_not_sent_where_it_keeps_its_kind() {
    let (bench, registry) = (Bench::new(), TestRegistry::start());
    let (mut image, bytes) = bench.on_pulled_base(None);
    let place = vec!["http://127.0.0.1:1/layer".to_owned()];
    let foreign =
        Descriptor { urls: place.clone(), ..Descriptor::of(media_type::DOCKER_FOREIGN_LAYER_GZIP, &bytes) };
    image.layers[0].blob = Some(foreign);
    let push = async |name: &str, nondistributable| {
        let ExportTarget::Image(mut target) = target(vec![registry.reference(name)], false) else {
            unreachable!("it is one");
        };
        target.format.nondistributable = nondistributable;
        let target = ExportTarget::Image(target);
        bench.exporter.export(std::slice::from_ref(&image), &target).await.expect("pushes");
        let (repository, tag) = name.split_once(':').expect("a tag");
        let (_, manifest) = registry.manifest(repository, tag).expect("is there");
        let manifest: Manifest = serde_json::from_slice(&manifest).expect("JSON");
        (manifest.layers[0].clone(), registry.blob(repository, &Digest::sha256(&bytes)))
    };
    // Its bytes are not needed here either.
    let (layer, sent) = push("kept:1", true).await;
    assert_eq!((layer.media_type.as_str(), layer.urls), (media_type::DOCKER_FOREIGN_LAYER_GZIP, place));
    assert_eq!(sent, None);
    bench.put_blob(&bytes);
    let (layer, sent) = push("plain:1", false).await;
    assert_eq!((layer.media_type.as_str(), layer.urls), (media_type::OCI_LAYER_GZIP, Vec::new()));
    assert_eq!(sent, Some(bytes));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_blob_that_is_gone_is_fetched_back_for_another_registry() {
    let (bench, from, to) = (Bench::new(), TestRegistry::start(), TestRegistry::start());
    let (image, blob) = bench.on_pulled_base(Some(from.reference("base:1")));
    from.put_blob("base", &blob);
    bench
        .exporter
        .export(std::slice::from_ref(&image), &target(vec![to.reference("app:1")], false))
        .await
        .expect("pushes");
    assert_eq!(to.blob("app", &Digest::sha256(&blob)), Some(blob));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stored_image_keeps_its_digest_when_pushed_again() {
    let (bench, registry) = (Bench::new(), TestRegistry::start());
    let first = registry.reference("app:1");
    let exported =
        bench.exporter.export(&[bench.built()], &target(vec![first.clone()], true)).await.expect("pushes");
    let stored = bench.store.image_by_name(&first).expect("looks").expect("is there");
    let second = target(vec![registry.reference("other:1")], false);
    let again = bench.exporter.export(&[Image::stored(&stored)], &second).await.expect("pushes");
    assert_eq!(again.manifest, exported.manifest);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_push_by_digest_moves_no_tag() {
    let (bench, registry) = (Bench::new(), TestRegistry::start());
    let push = Some(PushOptions { by_digest: true, ..PushOptions::default() });
    let names = vec![registry.reference("app:1")];
    let target = ExportTarget::Image(ImageTarget { names, push, ..ImageTarget::default() });
    let exported = bench.exporter.export(&[bench.built()], &target).await.expect("pushes");
    let digest = exported.manifest.expect("a manifest").digest;
    assert!(registry.manifest("app", digest.as_str()).is_some());
    assert!(registry.manifest("app", "1").is_none());
}
