//! A cache written and read again through a directory, and caches that lie.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use stave_oci::Descriptor;

use super::*;
use crate::builder::{BuiltLayer, ChainBuilder};
use crate::config::{CACHE_CONFIG, CacheConfig};
use crate::export::{describe, write};
use crate::place::{Content, local};
use crate::spec::ManifestForm;

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

fn digest(text: &str) -> Digest {
    Digest::sha256(text.as_bytes())
}

#[track_caller]
fn round_trip(form: ManifestForm) {
    let root = tempfile::tempdir().expect("a directory");
    let place = local(root.path().join("cache"), "latest".to_owned(), None);
    let mut builder = ChainBuilder::default();
    let base = builder.record(digest("base"), Vec::new());
    let step = builder.record(digest("step"), vec![vec![(base, None)]]);
    let bytes = Bytes::from_static(b"a layer");
    let blob = Descriptor::of("application/vnd.oci.image.layer.v1.tar+gzip", &bytes);
    let layer = BuiltLayer { blob: blob.digest.clone(), diff_id: digest("plain") };
    builder.set_result(step, vec![layer], "2026-01-01T00:00:00Z".to_owned());
    let blobs = BTreeMap::from([(blob.digest.clone(), describe(&blob, &digest("plain"), None))]);
    runtime().block_on(async {
        place.put_blob(&blob, Content::Bytes(bytes)).await.expect("written");
        write(&place, form, &builder, &blobs).await.expect("written").expect("a cache");
        let cache = ImportedCache::read(place.clone(), "c".to_owned()).await.expect("read").expect("there");
        assert_eq!(cache.records(), 2);
        let chains = &cache.chains[0];
        let base = chains.matching(&digest("base"), &[]);
        let input = KnownInput { records: &base, selector: None, content: None };
        let step = chains.matching(&digest("step"), &[input]);
        let stack = &chains.results(step[0])[0];
        assert_eq!(stack.layers[0].digest, blob.digest);
        assert_eq!(stack.layers[0].annotations["containerd.io/uncompressed"], digest("plain").to_string());
    });
}

#[test]
fn every_form_of_document_comes_back() {
    for form in [ManifestForm::OciManifest, ManifestForm::OciIndex, ManifestForm::DockerList] {
        round_trip(form);
    }
}

#[test]
fn nothing_is_no_error_and_nonsense_is_one() {
    let root = tempfile::tempdir().expect("a directory");
    let place = local(root.path().join("cache"), "latest".to_owned(), None);
    let read = || runtime().block_on(ImportedCache::read(place.clone(), "c".to_owned()));
    assert!(matches!(read(), Ok(None)));
    let config = Bytes::from_static(b"{\"records\":7}");
    let described = Descriptor::of(CACHE_CONFIG, &config);
    let manifest = format!(
        "{{\"schemaVersion\":2,\"mediaType\":\"application/vnd.oci.image.manifest.v1+json\",\"config\":{},\"layers\":[]}}",
        serde_json::to_string(&described).expect("JSON")
    );
    runtime().block_on(async {
        place.put_blob(&described, Content::Bytes(config)).await.expect("written");
        place
            .put_document("application/vnd.oci.image.manifest.v1+json", manifest.into())
            .await
            .expect("written");
    });
    assert_eq!(read().expect_err("nonsense").to_string(), "malformed cache config");
    let digest = described.digest.as_str().replace(':', "/");
    std::fs::write(root.path().join("cache/blobs").join(digest), b"other bytes").expect("written");
    assert!(read().expect_err("other bytes").to_string().starts_with("cache has sha256:"));
}

#[test]
fn a_layer_that_lies_is_a_miss_that_is_told_once() {
    let root = tempfile::tempdir().expect("a directory");
    let store = Store::open(&root.path().join("state")).expect("a store");
    let place = local(root.path().join("cache"), "latest".to_owned(), None);
    let blob = Descriptor::new("application/vnd.oci.image.layer.v1.tar+gzip", digest("promised"), 7);
    let stack = LayerStack {
        layers: vec![describe(&blob, &digest("plain"), None)],
        created_at: "2026-01-01T00:00:00Z".to_owned(),
    };
    let path = root.path().join("cache/blobs").join(blob.digest.as_str().replace(':', "/"));
    std::fs::create_dir_all(path.parent().expect("a parent")).expect("made");
    std::fs::write(&path, b"another").expect("written");
    let told = Arc::new(Mutex::new(Vec::new()));
    let heard = Arc::clone(&told);
    let warn: Warn = Box::new(move |text| heard.lock().expect("no panic").push(text));
    let empty = Chains::read(CacheConfig::default(), &HashMap::new()).expect("an empty cache");
    let cache = ImportedCache { name: "c".to_owned(), place, chains: vec![empty] };
    let definition = definition();
    let imports = Imports::new(store, vec![cache], &definition, &SourceKeys::new(), warn);
    let hit = ImportHit { cache: 0, stacks: vec![stack.clone()] };
    assert_eq!(runtime().block_on(imports.fetch(&hit)), None);
    let told = told.lock().expect("no panic");
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].starts_with("cache c cannot be used: "), "{told:?}");
    assert!(imports.state().dead.contains(&(0, digests(&stack))));
}

#[test]
fn a_layer_goes_on_as_it_is() {
    let root = tempfile::tempdir().expect("a directory");
    let store = Store::open(&root.path().join("state")).expect("a store");
    let at = |name: &str| local(root.path().join(name), "latest".to_owned(), None);
    let (from, to) = (at("from"), at("to"));
    let bytes = Bytes::from_static(b"a layer");
    let blob = Descriptor::of("application/vnd.oci.image.layer.v1.tar+gzip", &bytes);
    let layer = describe(&blob, &digest("plain"), None);
    let lost = describe(&Descriptor::of(&blob.media_type, b"lost"), &digest("lost"), None);
    let hit = ImportHit { cache: 0, stacks: Vec::new() };
    let cache = ImportedCache { name: "c".to_owned(), place: from.clone(), chains: Vec::new() };
    let imports = Imports::new(
        store,
        vec![cache],
        &definition(),
        &SourceKeys::new(),
        Box::new(|text| panic!("{text}")),
    );
    runtime().block_on(async {
        from.put_blob(&blob, Content::Bytes(bytes)).await.expect("written");
        imports.pass_on(&hit, &layer, &to).await.expect("is passed on");
        assert!(to.has_blob(&blob).await.expect("looks"));
        std::fs::remove_dir_all(root.path().join("from")).expect("removed");
        imports.pass_on(&hit, &layer, &to).await.expect("is there");
        imports.pass_on(&hit, &lost, &to).await.expect_err("cannot be had any more");
    });
}

/// A graph without vertices: what is fetched does not depend on it.
fn definition() -> Definition {
    stave_llb::builder::GraphBuilder::default().finish(None)
}
