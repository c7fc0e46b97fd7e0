//! Archives written and read again.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::path::Path;

use stave_exporter::{
    ArchiveDestination, ArchiveLayout, ArchiveTarget, ConfigDocument, ExportTarget, Exported, Image,
    ImageTarget, LoadSource, SavedImage,
};
use stave_oci::{Compression, Digest, ImageConfig, Index, Manifest};
use stave_store::LocalImage;

use crate::{Bench, names, tar_target};

fn files(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut archive = tar::Archive::new(fs::File::open(path).expect("opens"));
    let mut found = BTreeMap::new();
    for entry in archive.entries().expect("a tar") {
        let mut entry = entry.expect("an entry");
        let name = entry.path().expect("a path").display().to_string();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).expect("reads");
        assert!(found.insert(name.clone(), content).is_none(), "{name} is there twice");
    }
    found
}

/// What a loaded image looks like from inside.
fn content(bench: &Bench, image: &LocalImage, path: &str) -> Option<String> {
    let view = bench.store.view(&image.snapshot()).expect("a view");
    let file = view.open(Path::new(path)).expect("looks")?;
    Some(std::io::read_to_string(file).expect("reads"))
}

async fn export(bench: &Bench, image: &Image, target: ExportTarget) -> Exported {
    bench.exporter.export(std::slice::from_ref(image), &target).await.expect("exports")
}

async fn load(bench: &Bench, path: &Path) -> Vec<stave_exporter::LoadedImage> {
    bench.exporter.load(LoadSource::Path(path.to_owned()), &[]).await.expect("loads")
}

#[tokio::test]
async fn an_oci_archive_is_deterministic_and_comes_back_the_same() {
    let bench = Bench::new();
    let image = bench.built();
    let [first, second] = ["a.tar", "b.tar"].map(|name| bench.path(name));
    let exported = export(&bench, &image, ExportTarget::Oci(tar_target(&first, &["app:1.0"]))).await;
    // Another store has no blobs made before, and other layer ids.
    let other = Bench::new();
    export(&other, &other.built(), ExportTarget::Oci(tar_target(&second, &["app:1.0"]))).await;
    assert_eq!(fs::read(&first).expect("reads"), fs::read(&second).expect("reads"));
    let first_files = files(&first);
    assert_eq!(exported.size, fs::metadata(&first).expect("is there").len());

    let index: Index = serde_json::from_slice(&first_files["index.json"]).expect("JSON");
    let digest = exported.digest().expect("a manifest").clone();
    assert_eq!(index.manifests[0].digest, digest);
    for (name, bytes) in
        first_files.iter().filter(|(name, _)| name.starts_with("blobs/sha256/") && !name.ends_with('/'))
    {
        assert_eq!(Digest::sha256(bytes).hex(), &name["blobs/sha256/".len()..]);
    }

    let loaded = load(&other, &first).await;
    assert_eq!(loaded.len(), 1);
    assert_eq!(loaded[0].names, names(&["app:1.0"]));
    assert_eq!(Some(&loaded[0].image.id), exported.config_digest.as_ref());
    assert_eq!(loaded[0].image.manifest.as_ref().map(|manifest| &manifest.digest), Some(&digest));
    assert_eq!(content(&other, &loaded[0].image, "etc/name").as_deref(), Some("top"));

    // Saved again, it is the same image under the same digest.
    let again = other.path("again.tar");
    let saved = SavedImage {
        images: vec![Image::stored(&loaded[0].image)],
        names: loaded[0].names.clone(),
        index: None,
    };
    let dest = ArchiveDestination::Tar(stave_exporter::Destination::File(again.clone()));
    other.exporter.save(&[saved], ArchiveLayout::Oci, &dest).await.expect("saves");
    assert_eq!(fs::read(&again).expect("reads"), fs::read(&first).expect("reads"));
}

#[tokio::test]
async fn a_docker_archive_has_both_descriptions_of_plain_layers() {
    let bench = Bench::new();
    let image = bench.built();
    let path = bench.path("docker.tar");
    let exported =
        export(&bench, &image, ExportTarget::Docker(tar_target(&path, &["app:1.0", "app:latest"]))).await;
    let files = files(&path);
    let listed: serde_json::Value = serde_json::from_slice(&files["manifest.json"]).expect("JSON");
    assert_eq!(listed[0]["RepoTags"], serde_json::json!(["app:1.0", "app:latest"]));
    let config: ImageConfig =
        serde_json::from_slice(&files[listed[0]["Config"].as_str().expect("a path")]).expect("JSON");
    let layers = listed[0]["Layers"].as_array().expect("a list");
    assert_eq!(layers.len(), 2);
    for (path, diff_id) in layers.iter().zip(&config.rootfs.diff_ids) {
        assert_eq!(&Digest::sha256(&files[path.as_str().expect("a path")]), diff_id);
    }
    // Readers of the old form see the same image.
    let old = bench.path("old.tar");
    let mut tar = tar::Builder::new(fs::File::create(&old).expect("creates"));
    for (name, bytes) in files
        .iter()
        .filter(|(name, _)| *name != "index.json" && *name != "oci-layout" && !name.ends_with('/'))
    {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        tar.append_data(&mut header, name, &bytes[..]).expect("appends");
    }
    tar.finish().expect("finishes");
    let other = Bench::new();
    for path in [&path, &old] {
        let loaded = load(&other, path).await;
        assert_eq!(Some(&loaded[0].image.id), exported.config_digest.as_ref());
        assert_eq!(loaded[0].names, names(&["app:1.0", "app:latest"]));
        assert_eq!(content(&other, &loaded[0].image, "etc/name").as_deref(), Some("top"));
    }
}

#[tokio::test]
async fn archives_come_in_compressed_and_as_streams() {
    let bench = Bench::new();
    let path = bench.path("a.tar");
    let exported = export(&bench, &bench.built(), ExportTarget::Docker(tar_target(&path, &["app"]))).await;
    let bytes = fs::read(&path).expect("reads");
    let mut gzip = flate2::read::GzEncoder::new(&bytes[..], flate2::Compression::fast());
    let mut compressed = Vec::new();
    gzip.read_to_end(&mut compressed).expect("compresses");
    for stream in [bytes, compressed] {
        let other = Bench::new();
        let source = LoadSource::Stream(Box::new(std::io::Cursor::new(stream)));
        let loaded = other.exporter.load(source, &[]).await.expect("loads");
        assert_eq!(Some(&loaded[0].image.id), exported.config_digest.as_ref());
    }
}

#[tokio::test]
async fn a_layout_directory_takes_further_images() {
    let bench = Bench::new();
    let dest = bench.path("layout");
    let target = |name: &str| {
        let dest = ArchiveDestination::Directory(dest.clone());
        ExportTarget::Oci(ArchiveTarget { dest, ..tar_target(Path::new(""), &[name]) })
    };
    let image = bench.built();
    export(&bench, &image, target("app:1")).await;
    let (second, blob) = bench.on_pulled_base(None);
    bench.put_blob(&blob);
    export(&bench, &second, target("app:2")).await;
    export(&bench, &second, target("app:2")).await;
    let loaded = load(&Bench::new(), &dest).await;
    let found: Vec<_> = loaded.into_iter().flat_map(|image| image.names).collect();
    assert_eq!(found, names(&["app:2", "app:1"]));
}

#[tokio::test]
async fn several_may_add_to_a_layout_at_once() {
    let bench = Bench::new();
    let (dest, image) = (bench.path("layout"), [bench.built()]);
    let names: Vec<String> = (0..16).map(|number| format!("app:{number}")).collect();
    let exports = names.iter().map(|name| {
        let dest = ArchiveDestination::Directory(dest.clone());
        let target = ExportTarget::Oci(ArchiveTarget { dest, ..tar_target(Path::new(""), &[name]) });
        let image = &image;
        let exporter = &bench.exporter;
        async move { exporter.export(image, &target).await.map(drop) }
    });
    futures::future::try_join_all(exports).await.expect("all are written");
    let index = fs::read(dest.join("index.json")).expect("is there");
    let index: Index = serde_json::from_slice(&index).expect("JSON");
    assert_eq!(index.manifests.len(), names.len());
}

#[tokio::test]
async fn a_layout_is_locked_as_local_caches_lock_it() {
    let bench = Bench::new();
    let (dest, image) = (bench.path("layout"), [bench.built()]);
    let target = |name: &str| {
        let dest = ArchiveDestination::Directory(dest.clone());
        ExportTarget::Oci(ArchiveTarget { dest, ..tar_target(Path::new(""), &[name]) })
    };
    bench.exporter.export(&image, &target("app:1")).await.expect("writes");
    let open = |name: &str| fs::File::options().write(true).open(dest.join(name)).expect("is there");
    let (index, writing) = (open("index.json.lock"), open(".writing"));
    index.lock().expect("is free");
    let second = target("app:2");
    let exported = bench.exporter.export(&image, &second);
    let mut exported = std::pin::pin!(exported);
    // It says that it writes, and then waits for the index.
    while writing.try_lock().is_ok() {
        writing.unlock().expect("unlocks");
        let turn = std::time::Duration::from_millis(1);
        tokio::time::timeout(turn, &mut exported).await.expect_err("somebody has the index");
    }
    let path = dest.join("index.json");
    let other = fs::read_to_string(&path).expect("reads").replace("app:1", "other:1");
    fs::write(&path, other).expect("writes");
    index.unlock().expect("unlocks");
    exported.await.expect("writes");
    writing.try_lock().expect("nobody writes");
    let found = fs::read_to_string(&path).expect("reads");
    assert!(["app:2", "other:1"].iter().all(|name| found.contains(name)), "{found}");
}

#[tokio::test]
async fn a_pulled_layer_keeps_its_blob_and_its_diff_id() {
    let bench = Bench::new();
    let (image, blob) = bench.on_pulled_base(None);
    bench.put_blob(&blob);
    let oci = bench.path("oci.tar");
    export(&bench, &image, ExportTarget::Oci(tar_target(&oci, &["app"]))).await;
    let manifest = manifest(&files(&oci));
    assert_eq!(manifest.layers[0].digest, Digest::sha256(&blob));
    // Recompressed or plain, it is still the tar the image names.
    for (name, force) in [("zstd.tar", true), ("kept.tar", false)] {
        let mut target = tar_target(&bench.path(name), &["app"]);
        target.format.compression.algorithm = Some(Compression::Zstd);
        target.format.compression.force = force;
        export(&bench, &image, ExportTarget::Oci(target)).await;
        let types: Vec<_> =
            self::manifest(&files(&bench.path(name))).layers.into_iter().map(|l| l.media_type).collect();
        let first = if force { Compression::Zstd } else { Compression::Gzip };
        assert_eq!(types, [first.oci_media_type(), Compression::Zstd.oci_media_type()]);
        let other = Bench::new();
        let loaded = load(&other, &bench.path(name)).await;
        assert_eq!(content(&other, &loaded[0].image, "a").as_deref(), Some("first last"));
    }
}

#[tokio::test]
async fn a_loaded_layer_that_another_program_wrote_can_be_saved_again() {
    let bench = Bench::new();
    let (image, blob) = bench.on_pulled_base(None);
    bench.put_blob(&blob);
    let path = bench.path("docker.tar");
    let exported = export(&bench, &image, ExportTarget::Docker(tar_target(&path, &["app"]))).await;
    let other = Bench::new();
    for _ in 0..2 {
        // The second time everything is known already.
        let loaded = load(&other, &path).await;
        assert_eq!(Some(&loaded[0].image.id), exported.config_digest.as_ref());
        let blobs: Vec<_> = loaded[0].image.layers.iter().map(|layer| layer.blob.is_some()).collect();
        assert_eq!(blobs, [true, false], "only the other program's tar needs keeping");
        let again = other.path("again.tar");
        let image = Image::stored(&loaded[0].image);
        export(&other, &image, ExportTarget::Docker(tar_target(&again, &["app"]))).await;
        assert_eq!(files(&again), files(&path));
    }
}

#[tokio::test]
async fn a_pulled_layer_without_its_blob_is_not_passed_off_as_another() {
    let bench = Bench::new();
    let (image, _) = bench.on_pulled_base(None);
    let target = ExportTarget::Docker(tar_target(&bench.path("x.tar"), &["app"]));
    let error = bench
        .exporter
        .export(std::slice::from_ref(&image), &target)
        .await
        .expect_err("its tar cannot be made again");
    assert!(matches!(*error.kind, stave_exporter::ExportErrorKind::LayerChanged { .. }), "{error:?}");
    assert!(!bench.path("x.tar").exists());
}

#[tokio::test]
async fn why_a_blob_could_not_be_had_again_is_told() {
    use std::error::Error as _;
    for (status, expected) in [(404, "not found"), (403, "may require authorization"), (400, "400")] {
        let (bench, registry) = (Bench::new(), stave_test_support::TestRegistry::start());
        let (image, blob) = bench.on_pulled_base(Some(registry.reference("base:1")));
        let digest = stave_oci::Digest::sha256(&blob);
        let refused = stave_test_support::registry::Misbehaviour::Status(status, None, String::new());
        registry.script("GET", digest.as_str(), refused);
        let target = ExportTarget::Docker(tar_target(&bench.path("x.tar"), &["app"]));
        let error = bench.exporter.export(std::slice::from_ref(&image), &target).await.expect_err("is gone");
        let words = error.kind.to_string();
        assert!(words.contains(digest.as_str()) && words.contains("could not be fetched again"), "{words}");
        let cause = error.kind.source().expect("the registry's answer").to_string();
        assert!(cause.contains(expected), "{status}: {cause}");
    }
}

#[tokio::test]
async fn the_store_takes_an_image_without_compressing_anything() {
    let bench = Bench::new();
    let image = bench.built();
    let target =
        ExportTarget::Image(ImageTarget { names: names(&["app:1"]), store: true, ..ImageTarget::default() });
    let exported = export(&bench, &image, target).await;
    let stored = bench.store.image("app:1").expect("looks").expect("is there");
    assert_eq!(Some(&stored.id), exported.config_digest.as_ref());
    assert_eq!(exported.stored.as_ref().map(|image| &image.id), Some(&stored.id));
    assert!(exported.size > 0);
    let ConfigDocument::Built(before) = &image.config else { panic!("it was built") };
    let after: ImageConfig = serde_json::from_slice(&stored.config).expect("JSON");
    assert_eq!((after.history.len(), &after.created), (2, &before.created));
    assert_eq!(after.rootfs.diff_ids.len(), 2);
    for layer in &image.layers {
        assert_eq!(bench.store.compressed(layer.layer, Compression::Gzip).expect("looks"), None);
    }
}

#[tokio::test]
async fn images_that_share_layers_share_them_in_an_archive() {
    let bench = Bench::new();
    let image = bench.built();
    let [one, two] = ["app:1", "app:2"].map(|name| SavedImage {
        images: vec![image.clone()],
        names: names(&[name]),
        index: None,
    });
    let path = bench.path("two.tar");
    let dest = ArchiveDestination::Tar(stave_exporter::Destination::File(path.clone()));
    bench.exporter.save(&[one, two], ArchiveLayout::Docker, &dest).await.expect("saves");
    // `files` refuses a name that is there twice.
    assert_eq!(
        files(&path).keys().filter(|name| name.starts_with("blobs/sha256/") && !name.ends_with('/')).count(),
        4
    );
    let loaded = load(&Bench::new(), &path).await;
    assert_eq!((loaded.len(), &loaded[0].names), (1, &names(&["app:1", "app:2"])));
}

fn manifest(files: &BTreeMap<String, Vec<u8>>) -> Manifest {
    let index: Index = serde_json::from_slice(&files["index.json"]).expect("JSON");
    serde_json::from_slice(&files[&format!("blobs/sha256/{}", index.manifests[0].digest.hex())])
        .expect("JSON")
}
