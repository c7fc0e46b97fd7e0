//! Images from a registry into the store: what is fetched, what is not, and what a wrong byte does.

use std::sync::Mutex;

use stave_oci::{Descriptor, Digest, ImageConfig, Platform, media_type};
use stave_registry::{Client, ClientConfig, ErrorKind, Keychain, Limits, RegistryTables};
use stave_store::Store;
use stave_test_support::TestRegistry;
use stave_test_support::registry::Misbehaviour;
use stave_worker::{IndexSurvey, Puller, SourceError};
use tokio_util::sync::CancellationToken;

struct Place {
    registry: TestRegistry,
    _directory: tempfile::TempDir,
    store: Store,
    client: Client,
}

fn place() -> Place {
    let directory = tempfile::tempdir().expect("tempdir");
    let store = Store::open(&directory.path().join("store")).expect("store");
    let client = Client::new(ClientConfig {
        registries: RegistryTables::default(),
        keychain: Keychain::anonymous(),
        limits: Limits::default(),
        user_agent: "test".into(),
    });
    Place { registry: TestRegistry::start(), _directory: directory, store, client: client.expect("client") }
}

/// A layer with one file: its gzip form and the digest of the tar.
fn layer(path: &str, content: &str) -> (Vec<u8>, Digest) {
    use std::io::Write as _;
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    header.set_cksum();
    builder.append_data(&mut header, path, content.as_bytes()).expect("append");
    let tar = builder.into_inner().expect("tar");
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&tar).expect("gzip");
    (gzip.finish().expect("gzip"), Digest::sha256(&tar))
}

fn config(diff_ids: Vec<Digest>) -> Vec<u8> {
    let mut config =
        ImageConfig { os: "linux".into(), architecture: "amd64".into(), ..ImageConfig::default() };
    config.rootfs.diff_ids = diff_ids;
    config.to_bytes()
}

async fn pull(place: &Place, name: &str) -> Result<stave_store::LocalImage, SourceError> {
    let seen = Mutex::new(Vec::new());
    let progress = |layer: &Digest, current: u64, total: u64| {
        seen.lock().expect("lock").push((layer.clone(), current, total));
    };
    let cancel = CancellationToken::new();
    let puller = Puller { store: &place.store, client: &place.client, progress: &progress, cancel: &cancel };
    let image = puller.pull(&place.registry.reference(name), &Platform::new("linux", "amd64", None)).await?;
    let seen = seen.into_inner().expect("lock");
    for layer in &image.layers {
        let blob = layer.blob.as_ref().expect("blob");
        assert!(seen.contains(&(blob.digest.clone(), blob.size, blob.size)), "told to its end");
    }
    Ok(image)
}

#[tokio::test]
async fn a_layer_is_fetched_once_whatever_asks_for_it() {
    let place = place();
    let lease = place.store.lease().expect("lease");
    let (one, one_id) = layer("a", "1");
    let (two, two_id) = layer("b", "2");
    let both = config(vec![one_id.clone(), two_id]);
    place.registry.put_image("app", "both", &both, &[&one, &two]);
    place.registry.put_image("app", "single", &config(vec![one_id]), &[&one]);
    let image = pull(&place, "app:both").await.expect("pull");
    assert_eq!(image.id, Digest::sha256(&both));
    let view = place.store.view(&image.snapshot()).expect("view");
    for path in ["/a", "/b"] {
        assert!(view.open(std::path::Path::new(path)).expect("open").is_some(), "{path}");
    }
    let fetched = place.registry.count("GET", Digest::sha256(&one).as_str());
    assert_eq!(fetched, 1);
    let single = pull(&place, "app:single").await.expect("pull");
    assert_eq!(single.layers[0], image.layers[0]);
    assert_eq!(place.registry.count("GET", Digest::sha256(&one).as_str()), 1);
    assert!(place.store.has_blob(&Digest::sha256(&one)).expect("store"), "kept for pushing");
    drop(lease);
}

#[tokio::test]
async fn what_is_not_what_it_says_is_refused() {
    let place = place();
    let lease = place.store.lease().expect("lease");
    let (one, one_id) = layer("a", "1");
    let (_, other_id) = layer("b", "2");
    place.registry.put_image("app", "lies", &config(vec![other_id.clone()]), &[&one]);
    let error = pull(&place, "app:lies").await.expect_err("another diff id");
    assert!(matches!(error, SourceError::Layer { .. }), "{error:?}");
    assert_eq!(place.store.layer_by_diff_id(&one_id).expect("store"), None);
    place.registry.put_image("app", "short", &config(vec![one_id, other_id]), &[&one]);
    let error = pull(&place, "app:short").await.expect_err("a layer is missing");
    assert!(error.to_string().contains("lists 1 layers, its configuration 2"), "{error}");
    let error = pull(&place, "app:absent").await.expect_err("not there");
    assert!(matches!(error, SourceError::Registry { .. }), "{error:?}");
    drop(lease);
}

#[tokio::test]
async fn a_broken_connection_is_resumed() {
    let place = place();
    let lease = place.store.lease().expect("lease");
    let (one, one_id) = layer("a", "a file of some length");
    place.registry.put_image("app", "cut", &config(vec![one_id]), &[&one]);
    place.registry.script("GET", Digest::sha256(&one).as_str(), Misbehaviour::CutAfter(20));
    let image = pull(&place, "app:cut").await.expect("pull");
    assert_eq!(place.registry.faults_left(), 0);
    let view = place.store.view(&image.snapshot()).expect("view");
    assert!(view.open(std::path::Path::new("/a")).expect("open").is_some());
    drop(lease);
}

#[tokio::test]
async fn bytes_spoilt_on_their_way_are_fetched_again() {
    let place = place();
    let lease = place.store.lease().expect("lease");
    let (one, one_id) = layer("a", "what no unpacking survives when spoilt");
    let digest = Digest::sha256(&one);
    place.registry.put_image("app", "spoilt", &config(vec![one_id]), &[&one]);
    for _ in 0..3 {
        place.registry.script("GET", digest.as_str(), Misbehaviour::OtherBytes);
    }
    let error = pull(&place, "app:spoilt").await.expect_err("never right");
    assert!(error.to_string().contains("app:spoilt"), "{error}");
    let SourceError::Registry { source, .. } = error else { panic!("{error:?}") };
    assert!(matches!(*source.kind, ErrorKind::DigestMismatch { .. }), "{source:?}");
    assert_eq!(place.registry.faults_left(), 0);
    place.registry.script("GET", digest.as_str(), Misbehaviour::OtherBytes);
    pull(&place, "app:spoilt").await.expect("right the second time");
    drop(lease);
}

/// Puts an index over these entries under a tag and its digest; returns its own entry.
fn put_index(place: &Place, tag: &str, entries: &[Descriptor]) -> Descriptor {
    let index =
        serde_json::json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": entries});
    let bytes = serde_json::to_vec_pretty(&index).expect("JSON");
    place.registry.put_manifest("app", tag, media_type::OCI_INDEX, &bytes);
    Descriptor::of(media_type::OCI_INDEX, &bytes)
}

async fn survey(place: &Place, name: &str) -> Result<IndexSurvey, SourceError> {
    let (name, cancel) = (place.registry.reference(name), CancellationToken::new());
    let progress = |_: &Digest, _: u64, _: u64| {};
    let puller = Puller { store: &place.store, client: &place.client, progress: &progress, cancel: &cancel };
    let root = place.client.fetch_manifest(&name).await.expect("is there");
    let survey = puller.survey(&name, &root).await?;
    puller.bring_rest(&name, &survey.index, &[]).await?;
    Ok(survey)
}

#[tokio::test]
async fn all_that_an_index_leads_to_is_brought() {
    let place = place();
    let lease = place.store.lease().expect("lease");
    let (one, one_id) = layer("a", "1");
    let image = place.registry.put_image("app", "image", &config(vec![one_id]), &[&one]);
    let mut statement = place.registry.put_image("app", "statement", b"{}", &[b"a statement"]).manifest;
    statement.platform = Some(Platform::new("unknown", "unknown", None));
    let inner = put_index(&place, "inner", &[statement, image.manifest.clone()]);
    let top = put_index(&place, "all", &[inner.clone(), image.manifest.clone()]);
    let found = survey(&place, "app:all").await.expect("all of it");
    // Each once, whatever leads to it more than once, and after what it names.
    let digests: Vec<_> =
        found.index.documents.iter().skip(1).map(|document| document.digest.clone()).collect();
    assert_eq!(digests, [image.manifest.digest, inner.digest, top.digest]);
    assert_eq!(found.images.len(), 1);
    assert_eq!(found.index.blobs.len(), 4);
    for blob in &found.index.blobs {
        assert!(place.store.has_blob(&blob.digest).expect("looks"), "{}", blob.digest);
    }
    drop(lease);
}

#[tokio::test]
async fn indexes_that_lead_nowhere_are_refused() {
    let place = place();
    let mut entry = place.registry.put_image("app", "image", b"{}", &[]).manifest;
    for depth in 0..6 {
        entry = put_index(&place, &format!("deep{depth}"), &[entry]);
    }
    let error = survey(&place, "app:deep5").await.expect_err("too deep");
    assert!(error.to_string().contains("more than 4 nested indexes"), "{error}");
    entry.size += 1;
    put_index(&place, "size", &[entry]);
    let error = survey(&place, "app:size").await.expect_err("another size");
    assert!(error.to_string().contains("its index says that"), "{error}");
    put_index(&place, "gone", &[Descriptor::of(media_type::OCI_MANIFEST, b"nobody has it")]);
    let error = survey(&place, "app:gone").await.expect_err("not there");
    assert!(matches!(error, SourceError::Registry { .. }), "{error:?}");
}

#[tokio::test]
async fn what_an_index_leads_to_is_bounded() {
    const MANY: usize = 10;
    let place = place();
    let large = |number: usize| {
        let config = ImageConfig { author: "x".repeat((8 << 20) - (1 << 10)), ..ImageConfig::default() };
        let config = ImageConfig { architecture: number.to_string(), os: "linux".into(), ..config };
        config.to_bytes()
    };
    // Of images with large configs not all are fetched.
    let configs: Vec<Vec<u8>> = (0..MANY).map(large).collect();
    let put = |config: &Vec<u8>| {
        let tag = Digest::sha256(config).hex()[..8].to_owned();
        place.registry.put_image("app", &tag, config, &[]).manifest
    };
    let entries: Vec<Descriptor> = configs.iter().map(put).collect();
    put_index(&place, "large", &entries);
    let error = survey(&place, "app:large").await.map(|found| found.images.len()).expect_err("too large");
    assert!(error.to_string().contains(&format!("more than {} bytes of documents", 64 << 20)), "{error}");
    let last = Digest::sha256(&configs[MANY - 1]);
    assert_eq!(place.registry.count("GET", last.as_str()), 0);
    // Several manifests of one config are as large as one.
    let shared = &config(vec![Digest::sha256(b"layer")]);
    let entries: Vec<Descriptor> = (0..MANY)
        .map(|number| {
            let layer = number.to_string().into_bytes();
            place.registry.put_image("app", &format!("shared{number}"), shared, &[&layer]).manifest
        })
        .collect();
    put_index(&place, "shared", &entries);
    let fetched = place.registry.count("GET", Digest::sha256(shared).as_str());
    let lease = place.store.lease().expect("lease");
    let found = survey(&place, "app:shared").await.expect("is small");
    assert_eq!((found.images.len(), found.index.documents.len()), (MANY, MANY + 1));
    // Once for the images, once for the store.
    assert_eq!(place.registry.count("GET", Digest::sha256(shared).as_str()), fetched + 2);
    drop(lease);
}
