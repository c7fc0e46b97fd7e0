//! Images of several platforms, and what is attested of them, at every destination.

use std::error::Error as _;
use std::fs;

use stave_exporter::{
    Annotation, ArchiveDestination, ArchiveLayout, ArchiveTarget, Attestation, Destination, ExportTarget,
    FilesOptions, FilesTime, Image, ImageTarget, LocalMode, PushOptions, SavedImage,
};
use stave_oci::{Digest, Index, Manifest, Platform, media_type};
use stave_store::Snapshot;
use stave_test_support::TestRegistry;

use crate::{Bench, names, tar_target};

/// An image for `architecture` with a file of its own and one that both have.
fn image(bench: &Bench, architecture: &str) -> Image {
    let snapshot = bench.layer(&Snapshot::scratch(), |root| {
        fs::write(root.join("name"), architecture).expect("writes");
        crate::settle(root, &["name"]);
    });
    let mut config = crate::config(1);
    config.architecture = architecture.to_owned();
    let platform = Platform::new("linux", architecture, None);
    Image { platform, ..Image::built(config, &snapshot, &[]) }
}

fn both(bench: &Bench) -> [Image; 2] {
    ["amd64", "riscv64"].map(|architecture| image(bench, architecture))
}

fn attested(image: Image) -> Image {
    let attestation = Attestation {
        predicate_type: "https://slsa.dev/provenance/v1".to_owned(),
        predicate: b"{\"a\":1}".to_vec(),
        file_name: "provenance.json".to_owned(),
        ..Attestation::default()
    };
    Image { attestations: vec![attestation], ..image }
}

fn annotation(text: &str) -> Annotation {
    text.parse().expect("an annotation")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_push_of_several_platforms_is_an_index_over_their_manifests() {
    let (bench, registry) = (Bench::new(), TestRegistry::start());
    let name = registry.reference("app:1");
    let push = Some(PushOptions::default());
    let target = ImageTarget { names: vec![name.clone()], store: true, push, ..ImageTarget::default() };
    let annotations = ["index:i=1", "manifest[linux/riscv64]:m=2", "manifest-descriptor:d=3"].map(annotation);
    let target = ExportTarget::Image(target).annotated(&annotations);
    let images = both(&bench).map(attested);
    let exported = bench.exporter.export(&images, &target).await.expect("pushes");
    let (kind, bytes) = registry.manifest("app", "1").expect("is there");
    assert_eq!(kind, media_type::OCI_INDEX);
    assert_eq!(exported.manifest.as_ref().map(|top| top.digest.clone()), Some(Digest::sha256(&bytes)));
    assert_eq!(exported.config_digest, None);
    let index: Index = serde_json::from_slice(&bytes).expect("JSON");
    assert_eq!(index.annotations["i"], "1");
    let platforms: Vec<String> =
        index.manifests.iter().filter_map(|m| Some(m.platform.as_ref()?.to_string())).collect();
    assert_eq!(platforms, ["linux/amd64", "linux/riscv64", "unknown/unknown", "unknown/unknown"]);
    assert!(index.manifests[..2].iter().all(|manifest| manifest.annotations["d"] == "3"));
    for (at, marked) in [(0, false), (1, true)] {
        let digest = index.manifests[at].digest.to_string();
        let (_, bytes) = registry.manifest("app", &digest).expect("is there");
        let manifest: Manifest = serde_json::from_slice(&bytes).expect("JSON");
        assert_eq!(manifest.annotations.contains_key("m"), marked);
        assert_eq!(index.manifests[at + 2].annotations["vnd.docker.reference.digest"], digest);
    }
    // The store has both under the one name, and pushes the same again.
    let named = bench.store.images_by_name(&name).expect("looks").expect("is there");
    assert_eq!(named.all().count(), 2);
    assert!(named.first.platform.matches(&Platform::host()) || Platform::host().architecture != "amd64");
    let stored: Vec<Image> = images
        .iter()
        .map(|image| {
            let local = named.of(&image.platform).expect("is there");
            Image::stored(local).attested(bench.store.attestations(Some(&name), &local.id).expect("looks"))
        })
        .collect();
    let again = ImageTarget {
        names: vec![registry.reference("app:2")],
        push: Some(PushOptions::default()),
        ..ImageTarget::default()
    };
    bench.exporter.export(&stored, &ExportTarget::Image(again)).await.expect("pushes");
    let (_, bytes) = registry.manifest("app", "2").expect("is there");
    let second: Index = serde_json::from_slice(&bytes).expect("JSON");
    let digests =
        |index: &Index| index.manifests.iter().take(2).map(|m| m.digest.clone()).collect::<Vec<_>>();
    assert_eq!(digests(&second), digests(&index));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_index_of_others_is_loaded_and_leaves_as_it_came() {
    let (bench, registry) = (Bench::new(), TestRegistry::start());
    let path = bench.path("x");
    let dest = ArchiveDestination::Directory(path.clone());
    let target = ArchiveTarget { dest, ..tar_target(&path, &["app:1"]) };
    let images = both(&bench).map(attested);
    bench.exporter.export(&images, &ExportTarget::Oci(target)).await.expect("exports");
    // Another writer's form of it, with a note of its own.
    let blob = |digest: &Digest| path.join("blobs/sha256").join(digest.hex());
    let read = |place: &std::path::Path| -> serde_json::Value {
        serde_json::from_slice(&fs::read(place).expect("is there")).expect("JSON")
    };
    let mut outer = read(&path.join("index.json"));
    let ours: Digest = outer["manifests"][0]["digest"].as_str().expect("text").parse().expect("a digest");
    let mut index = read(&blob(&ours));
    index["annotations"] = serde_json::json!({"org.example.by": "others"});
    index["manifests"].as_array_mut().expect("a list").reverse();
    let text = serde_json::to_string_pretty(&index).expect("JSON");
    let theirs = Digest::sha256(text.as_bytes());
    fs::write(blob(&theirs), &text).expect("writes");
    outer["manifests"][0]["digest"] = theirs.to_string().into();
    outer["manifests"][0]["size"] = text.len().into();
    fs::write(path.join("index.json"), outer.to_string()).expect("writes");

    let platforms = images.each_ref().map(|image| image.platform.clone());
    let name = &names(&["app:1"])[0];
    let load = async |platforms: &[Platform]| {
        let other = Bench::new();
        let source = stave_exporter::LoadSource::Path(path.clone());
        let loaded = other.exporter.load(source, platforms).await;
        let index = loaded.map(|_| other.store.index_by_name(name).expect("looks"));
        (other, index)
    };
    let (other, index) = load(&platforms).await;
    let index = index.expect("loads").expect("is kept");
    assert!(other.exporter.is_whole(&index).expect("looks"));
    assert_eq!(other.store.images_by_name(name).expect("looks").expect("is there").all().count(), 2);
    let to = [registry.reference("theirs:1")];
    let (origins, options) = (Default::default(), PushOptions::default());
    other.exporter.push_index(&index, &origins, &to, &options).await.expect("pushes");
    assert_eq!(registry.manifest("theirs", "1").expect("is there").1, text.as_bytes());
    // Of one platform alone it would not be what it says.
    assert_eq!(load(&platforms[..1]).await.1.expect("loads"), None);
    // A statement that the archive lacks, and one that is another.
    let manifest: Digest = index_entry(&text, 0).parse().expect("a digest");
    let statement = read(&blob(&manifest))["layers"][0]["digest"].as_str().expect("text").to_owned();
    let statement = blob(&statement.parse().expect("a digest"));
    let right = fs::read(&statement).expect("reads");
    fs::remove_file(&statement).expect("removes");
    assert_eq!(load(&platforms).await.1.expect("loads"), None);
    fs::write(&statement, vec![b'x'; right.len()]).expect("writes");
    let error = load(&platforms).await.1.expect_err("is another");
    assert!(error.source().expect("a cause").to_string().contains("digest"), "{error:?}");
}

/// The digest of an entry of an index.
fn index_entry(index: &str, at: usize) -> String {
    let index: Index = serde_json::from_str(index).expect("JSON");
    index.manifests[at].digest.to_string()
}

#[tokio::test]
async fn an_archive_holds_the_index_and_loads_its_platform() {
    let bench = Bench::new();
    let path = bench.path("x");
    let dest = ArchiveDestination::Directory(path.clone());
    let target = ArchiveTarget { dest, ..tar_target(&path, &["app:1"]) };
    let images = both(&bench);
    bench.exporter.export(&images, &ExportTarget::Oci(target)).await.expect("exports");
    let read = |name: &str| fs::read(path.join(name)).expect("is there");
    let outer: Index = serde_json::from_slice(&read("index.json")).expect("JSON");
    assert_eq!(outer.manifests.len(), 1);
    assert_eq!(outer.manifests[0].media_type, media_type::OCI_INDEX);
    let inner = outer.manifests[0].digest.hex();
    let inner: Index = serde_json::from_slice(&read(&format!("blobs/sha256/{inner}"))).expect("JSON");
    assert_eq!(inner.manifests.len(), 2);
    for image in &images {
        let other = Bench::new();
        let source = stave_exporter::LoadSource::Path(path.clone());
        let loaded = other.exporter.load(source, std::slice::from_ref(&image.platform)).await.expect("loads");
        assert_eq!(loaded[0].image.platform, image.platform);
        assert_eq!(loaded[0].names, names(&["app:1"]));
    }
    // Both at once share the name, which alone means this machine's.
    let other = Bench::new();
    let source = || stave_exporter::LoadSource::Path(path.clone());
    let platforms = images.clone().map(|image| image.platform);
    assert_eq!(other.exporter.load(source(), &platforms).await.expect("loads").len(), 2);
    let named = other.store.images_by_name(&names(&["app:1"])[0]).expect("looks").expect("is there");
    assert_eq!(named.all().count(), 2);
    assert!(named.first.platform.matches(&stave_oci::Platform::host()));
    // One that is not there is an error that says what is.
    let wanted = [platforms[0].clone(), "linux/s390x".parse().expect("a platform")];
    let error = other.exporter.load(source(), &wanted).await.expect_err("no s390x");
    let text = error.source().map(ToString::to_string).unwrap_or_default();
    assert!(text.starts_with("no image for platform linux/s390x; the archive has "), "{text}");
}

#[tokio::test]
async fn docker_archives_take_one_platform() {
    let bench = Bench::new();
    let target = ExportTarget::Docker(tar_target(&bench.path("x.tar"), &["app"]));
    let error = bench.exporter.export(&both(&bench), &target).await.expect_err("two platforms");
    let text = error.source().map(ToString::to_string);
    assert_eq!(text.as_deref(), Some("docker exporter does not currently support exporting manifest lists"));
    let saved = SavedImage { images: both(&bench).to_vec(), names: names(&["app"]), index: None };
    let dest = ArchiveDestination::Tar(Destination::File(bench.path("y.tar")));
    bench
        .exporter
        .save(std::slice::from_ref(&saved), ArchiveLayout::Docker, &dest)
        .await
        .expect_err("two platforms");
    bench.exporter.save(&[saved], ArchiveLayout::Oci, &dest).await.expect("saves");
}

#[tokio::test]
async fn trees_of_several_platforms_get_folders() {
    let bench = Bench::new();
    let images = both(&bench).map(attested);
    let dest = bench.path("out");
    let local = |options| ExportTarget::Local { dest: dest.clone(), options };
    bench.exporter.export(&images, &local(FilesOptions::default())).await.expect("exports");
    for architecture in ["amd64", "riscv64"] {
        let folder = dest.join(format!("linux_{architecture}"));
        assert_eq!(fs::read_to_string(folder.join("name")).expect("is there"), architecture);
        let statement = fs::read_to_string(folder.join("provenance.json")).expect("is there");
        assert!(statement.contains(Digest::sha256(architecture.as_bytes()).hex()), "{statement}");
    }
    // Without them, files of one name are in each other's way.
    let merged = FilesOptions { platform_split: Some(false), ..FilesOptions::default() };
    let error = bench.exporter.export(&images, &local(merged)).await.expect_err("both have `name`");
    let text = "cannot overwrite name from linux/amd64 with linux/riscv64 when split option is disabled";
    assert!(error.source().is_some_and(|kind| kind.to_string().starts_with(text)), "{error:?}");
    let tar = ExportTarget::Tar {
        dest: Destination::File(bench.path("x.tar")),
        options: FilesOptions { time: FilesTime::Epoch(7), ..FilesOptions::default() },
    };
    bench.exporter.export(&images, &tar).await.expect("exports");
    let mut archive = tar::Archive::new(fs::File::open(bench.path("x.tar")).expect("opens"));
    let mut found = Vec::new();
    for entry in archive.entries().expect("a tar") {
        let entry = entry.expect("an entry");
        assert_eq!(entry.header().mtime().expect("a time"), 7);
        found.push(entry.path().expect("a path").display().to_string());
    }
    let expected = ["linux_amd64/", "linux_amd64/name", "linux_amd64/provenance.json"];
    assert_eq!(found[..3], expected.map(str::to_owned));
    assert_eq!(found.len(), 6);
}

#[tokio::test]
async fn folders_have_the_time_of_what_is_in_them() {
    use std::os::unix::fs::MetadataExt as _;
    let bench = Bench::new();
    let dest = bench.path("out");
    fs::create_dir_all(dest.join("linux_amd64/gone")).expect("creates");
    // What an earlier image may have left.
    let outside = bench.path("outside");
    fs::create_dir(&outside).expect("creates");
    std::os::unix::fs::symlink(&outside, dest.join("linux_riscv64")).expect("links");
    let options =
        FilesOptions { time: FilesTime::Epoch(7), mode: LocalMode::Delete, ..FilesOptions::default() };
    let target = ExportTarget::Local { dest: dest.clone(), options };
    bench.exporter.export(&both(&bench), &target).await.expect("exports");
    assert!(!dest.join("linux_amd64/gone").exists());
    assert_eq!(fs::read_dir(&outside).expect("lists").count(), 0, "no link is followed");
    for path in ["linux_amd64", "linux_amd64/name", "linux_riscv64"] {
        assert_eq!(fs::metadata(dest.join(path)).expect("is there").mtime(), 7, "{path}");
    }
}

#[tokio::test]
async fn annotations_for_what_is_not_written_are_errors() {
    let bench = Bench::new();
    let images = both(&bench);
    let check = async |images: &[Image], text: &str, expected: &str| {
        let target = ExportTarget::store(names(&["app"])).annotated(&[annotation(text)]);
        let error = bench.exporter.export(images, &target).await.expect_err(text);
        assert_eq!(error.source().map(ToString::to_string).as_deref(), Some(expected));
    };
    let unknown = "invalid annotation: no platform linux/s390x found in source";
    check(&images, "manifest[linux/s390x]:a=1", unknown).await;
    check(&images[..1], "index:a=1", "index annotations not supported for single platform export").await;
}

#[tokio::test]
async fn names_by_digest_are_given_where_they_are_asked_for() {
    let bench = Bench::new();
    let spec = "type=image,name=app:1,name-canonical=true,dangling-name-prefix=cache";
    let target: ExportTarget = spec.parse().expect("valid");
    let exported = bench.exporter.export(&[image(&bench, "amd64")], &target).await.expect("stores");
    let id = exported.config_digest.expect("an image");
    let expected = ["app:1".to_owned(), format!("app@{id}"), format!("cache@{id}")];
    let expected: Vec<&str> = expected.iter().map(String::as_str).collect();
    assert_eq!(exported.names, names(&expected));
    for name in &exported.names {
        assert!(bench.store.image_by_name(name).expect("looks").is_some(), "{name}");
    }
}

#[tokio::test]
async fn one_platform_gets_an_index_where_it_is_wanted() {
    let bench = Bench::new();
    let path = bench.path("x");
    let dest = ArchiveDestination::Directory(path.clone());
    let target = ExportTarget::Oci(ArchiveTarget { dest, ..tar_target(&path, &["app:1"]) });
    let target = target.annotated(&[annotation("index:i=1")]);
    let images = [image(&bench, "amd64")];
    bench.exporter.export(&images, &target).await.expect_err("an annotation of no document");
    let exported = bench.exporter.export(&images, &target.indexed()).await.expect("exports");
    let top = exported.manifest.expect("is told");
    assert_eq!(top.media_type, media_type::OCI_INDEX);
    let index = fs::read(path.join(format!("blobs/sha256/{}", top.digest.hex()))).expect("is there");
    let index: Index = serde_json::from_slice(&index).expect("JSON");
    assert_eq!((index.manifests.len(), index.annotations["i"].as_str()), (1, "1"));
    // One that goes nowhere is told all the same.
    let nowhere = ExportTarget::Image(ImageTarget::default());
    let told = bench.exporter.export(&images, &nowhere).await.expect("exports");
    assert!(told.manifest.is_some() && told.stored.is_none());
}
