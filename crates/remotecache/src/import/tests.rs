//! A cache written and read again through a directory, and caches that lie.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use stave_llb::builder::{About, FileSpec, FileStep, GraphBuilder};
use stave_llb::{CopyAction, FileActionKind, MkdirAction, SourceOp};
use stave_oci::{Descriptor, Platform};

use super::*;
use crate::builder::{BuiltLayer, ChainBuilder};
use crate::config::{CACHE_CONFIG, CacheConfig};
use crate::export::{InputContents, InputLinks, VertexResult, describe, records, write};
use crate::key::content_record;
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
    let hit = ImportHit { cache: 0, vertex: digest("x"), stacks: vec![stack.clone()] };
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
    let hit = ImportHit { cache: 0, vertex: digest("x"), stacks: Vec::new() };
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
        let (another, third, full) = (at("another"), at("third"), at("full"));
        let pass = |layer, stored, to| imports.pass_on(&hit, layer, stored, to);
        pass(&layer, Stored::Own, &to).await.expect("is passed on");
        assert!(to.has_blob(&blob).await.expect("looks"));
        std::fs::remove_dir_all(root.path().join("from")).expect("removed");
        pass(&layer, Stored::Own, &to).await.expect("is there");
        let error = pass(&lost, Stored::Own, &to).await.expect_err("cannot be had any more");
        assert!(matches!(error, PassError::Lost(_)), "{error}");
        // The store has it from the first time; whose it is decides.
        pass(&layer, Stored::Own, &another).await.expect("is his own");
        let error = pass(&layer, Stored::Shared, &third).await.expect_err("may be another's");
        assert!(matches!(error, PassError::Lost(_)), "{error}");
        std::fs::write(root.path().join("full"), "no directory").expect("written");
        let error = pass(&layer, Stored::Own, &full).await.expect_err("cannot be written");
        assert!(matches!(error, PassError::Refused(_)), "{error}");
    });
}

#[test]
fn what_nobody_could_unpack_is_not_passed_on() {
    let (definition, sources) = copying();
    let unasked = |chains| {
        let root = tempfile::tempdir().expect("a directory");
        let store = Store::open(&root.path().join("state")).expect("a store");
        let place = local(root.path().join("cache"), "latest".to_owned(), None);
        let cache = ImportedCache { name: "c".to_owned(), place, chains: vec![chains] };
        let imports =
            Imports::new(store, vec![cache], &definition, &sources, Box::new(|text| panic!("{text}")));
        imports.unasked(&definition.outputs()[0].vertex)
    };
    assert!(unasked(made_of("one")).is_some());
    let untold = made_as("one", |blob| Descriptor::new(&blob.media_type, blob.digest.clone(), blob.size));
    assert!(unasked(untold).is_none());
}

/// An image and a copy over it of what a step makes, by vertex from below.
fn copying() -> (Definition, SourceKeys) {
    let mut graph = GraphBuilder::default();
    let op = SourceOp::new("docker-image://docker.io/library/base".to_owned(), BTreeMap::new());
    let base = graph.source(op, &Platform::new("linux", "amd64", None), About::default());
    let make = MkdirAction { path: "/f".to_owned(), ..MkdirAction::default() };
    let make = FileStep { kind: FileActionKind::Mkdir(make), source: None };
    let step = graph.file(FileSpec { base: Some(base), actions: vec![make], about: About::default() });
    let copy = CopyAction { src: "/f".to_owned(), dest: "/".to_owned(), ..CopyAction::default() };
    let copy = FileStep { kind: FileActionKind::Copy(copy), source: Some(step) };
    let last = graph.file(FileSpec { base: Some(base), actions: vec![copy], about: About::default() });
    let definition = graph.finish(Some(last));
    let source = definition.vertices().iter().find(|vertex| vertex.inputs.is_empty()).expect("an image");
    let sources = SourceKeys::from([(source.digest.clone(), vec!["base".to_owned()])]);
    (definition, sources)
}

/// What a machine knows that made the copy when the step came to `content`.
fn made_of(content: &str) -> Chains {
    made_as(content, |blob| describe(blob, &digest(content), None))
}

fn made_as(content: &str, described: impl Fn(&Descriptor) -> Descriptor) -> Chains {
    let (definition, sources) = copying();
    let edge = definition.outputs()[0].clone();
    let contents = InputContents::from([((edge.vertex.clone(), 1), digest(content))]);
    let blob = Descriptor::of("application/vnd.oci.image.layer.v1.tar+gzip", content.as_bytes());
    let layers = vec![BuiltLayer { blob: blob.digest.clone(), diff_id: digest(content) }];
    let result = VertexResult { layers, created_at: "2026-01-01T00:00:00Z".to_owned() };
    let results = HashMap::from([(edge, result)]);
    let config = records(&definition, &sources, (&contents, &InputLinks::new()), &results).config();
    let blobs = HashMap::from([(blob.digest.clone(), described(&blob))]);
    Chains::read(config, &blobs).expect("a sound cache")
}

/// By which contents the copy is known of which a cache has the result, when that of each of `caches` has been read.
#[track_caller]
fn known(caches: Vec<Vec<Chains>>, expected: &[&str]) {
    let root = tempfile::tempdir().expect("a directory");
    let store = Store::open(&root.path().join("state")).expect("a store");
    let place = local(root.path().join("cache"), "latest".to_owned(), None);
    let (definition, sources) = copying();
    let cache = |chains| ImportedCache { name: "c".to_owned(), place: place.clone(), chains };
    let caches = caches.into_iter().map(cache).collect();
    let imports = Imports::new(store, caches, &definition, &sources, Box::new(|text| panic!("{text}")));
    let copy = &definition.outputs()[0].vertex;
    // The step was loaded by now, and is what the other machine had.
    imports.learn_of(&HashMap::from([((copy.clone(), 1), digest("two"))]));
    let hit = imports.unasked(copy).expect("is known by its definition");
    let expected: Vec<Digest> = expected.iter().map(|text| content_record(&digest(text))).collect();
    assert_eq!(imports.known_by(&hit, 1), expected);
}

#[test]
fn a_result_is_known_by_what_it_was_made_of_and_not_by_what_others_are_made_of() {
    known(vec![vec![made_of("one")]], &["one"]);
    known(vec![vec![made_of("one")], vec![made_of("two")]], &["one"]);
    known(vec![vec![made_of("two")], vec![made_of("one")]], &["two"]);
    // Of one cache that has both, nobody can tell which.
    known(vec![vec![made_of("one"), made_of("two")]], &[]);
}

/// A graph without vertices: what is fetched does not depend on it.
fn definition() -> Definition {
    GraphBuilder::default().finish(None)
}
