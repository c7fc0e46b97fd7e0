//! What we write in the hands of the programs people use: written by others, in another language, with
//! other readers of tar, gzip and zstd. They must be installed; a silent pass would prove nothing.

use std::path::Path;
use std::process::Command;

use stave_exporter::{ExportTarget, ImageTarget, PushOptions};
use stave_oci::{Compression, Digest, ImageConfig, Manifest};
use stave_test_support::TestRegistry;

use crate::{Bench, names, tar_target};

/// Runs skopeo on this machine's files only, and gives its output.
fn skopeo(home: &Path, arguments: &[&str]) -> String {
    let policy = home.join("policy.json");
    std::fs::write(&policy, r#"{"default":[{"type":"insecureAcceptAnything"}]}"#).expect("writes");
    let output = Command::new("skopeo")
        .args(["--policy", &policy.display().to_string(), "--tmpdir", &home.display().to_string()])
        .args(arguments)
        .env("HOME", home)
        .output()
        .expect("skopeo must be installed (Debian package `skopeo`)");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "skopeo {arguments:?}: {error}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// Copies an image with skopeo, which decompresses every layer; what comes out must be the layers
/// that the config names.
fn verify(home: &Path, source: &str) {
    let copy = home.join("copy");
    drop(std::fs::remove_dir_all(&copy));
    let dest = format!("dir:{}", copy.display());
    skopeo(home, &["copy", "--quiet", "--src-tls-verify=false", "--dest-decompress", source, &dest]);
    let read = |name: &str| std::fs::read(copy.join(name)).expect("it was copied");
    let manifest: Manifest = serde_json::from_slice(&read("manifest.json")).expect("JSON");
    let config: ImageConfig = serde_json::from_slice(&read(manifest.config.digest.hex())).expect("JSON");
    let layers = manifest.layers.iter().map(|layer| Digest::sha256(&read(layer.digest.hex())));
    assert_eq!(layers.collect::<Vec<_>>(), config.rootfs.diff_ids, "{source}");
}

#[tokio::test]
async fn oci_archives_of_every_compression() {
    let bench = Bench::new();
    let image = bench.built();
    for algorithm in [Compression::None, Compression::Gzip, Compression::Zstd] {
        let path = bench.path(&format!("{}.tar", algorithm.name()));
        let mut target = tar_target(&path, &["app:1.0"]);
        target.format.compression.algorithm = Some(algorithm);
        let exported = bench
            .exporter
            .export(std::slice::from_ref(&image), &ExportTarget::Oci(target))
            .await
            .expect("exports");
        let source = format!("oci-archive:{}:1.0", path.display());
        verify(bench.directory.path(), &source);
        let seen = skopeo(bench.directory.path(), &["inspect", "--format", "{{.Digest}}", &source]);
        assert_eq!(Some(seen.trim()), exported.digest().map(Digest::as_str));
    }
}

#[tokio::test]
async fn docker_archives() {
    let bench = Bench::new();
    let path = bench.path("docker.tar");
    let target = ExportTarget::Docker(tar_target(&path, &["app:1.0"]));
    bench.exporter.export(&[bench.built()], &target).await.expect("exports");
    verify(bench.directory.path(), &format!("docker-archive:{}:app:1.0", path.display()));
    let listed = skopeo(bench.directory.path(), &["inspect", &format!("docker-archive:{}", path.display())]);
    assert!(listed.contains("\"Layers\""), "{listed}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pushed_images() {
    let (bench, registry) = (Bench::new(), TestRegistry::start());
    let name = registry.reference("app:1.0");
    let push = Some(PushOptions::default());
    let target = ImageTarget { names: vec![name.clone()], push, ..ImageTarget::default() };
    bench.exporter.export(&[bench.built()], &ExportTarget::Image(target)).await.expect("pushes");
    let home = bench.directory.path().to_owned();
    let source = format!("docker://{}", name.canonical());
    tokio::task::spawn_blocking(move || verify(&home, &source)).await.expect("no panic");
}

#[tokio::test]
async fn archives_that_skopeo_wrote() {
    let bench = Bench::new();
    let path = bench.path("ours.tar");
    let target = ExportTarget::Oci(tar_target(&path, &["app:1.0"]));
    let exported = bench.exporter.export(&[bench.built()], &target).await.expect("exports");
    let source = format!("oci-archive:{}:1.0", path.display());
    for (form, list) in [("docker-archive", vec!["app:2.0"]), ("oci-archive", vec!["app:2.0"])] {
        let theirs = bench.path(&format!("{form}.tar"));
        let dest = format!("{form}:{}:app:2.0", theirs.display());
        skopeo(bench.directory.path(), &["copy", "--quiet", &source, &dest]);
        let other = Bench::new();
        let loading = stave_exporter::LoadSource::Path(theirs);
        let loaded = other.exporter.load(loading, &[]).await.expect("loads");
        assert_eq!(loaded[0].names, names(&list), "{form}");
        assert_eq!(Some(&loaded[0].image.id), exported.config_digest.as_ref(), "{form}");
    }
}

/// Loads an archive with podman into a storage of its own, and gives what it said.
fn podman_load(home: &Path, archive: &Path) -> String {
    let storage = home.join("podman");
    let argument = |name: &str| format!("--{name}={}", storage.join(name).display());
    let policy = home.join("policy.json");
    std::fs::write(&policy, r#"{"default":[{"type":"insecureAcceptAnything"}]}"#).expect("writes");
    let output = Command::new("podman")
        .args([argument("root"), argument("runroot"), argument("tmpdir")])
        .args(["--storage-driver=vfs", "load", "--quiet", "--signature-policy"])
        .arg(&policy)
        .arg("--input")
        .arg(archive)
        .env("HOME", home)
        .output()
        .expect("podman must be installed (Debian package `podman`)");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "podman load {}: {error}", archive.display());
    String::from_utf8(output.stdout).expect("UTF-8")
}

#[tokio::test]
async fn podman_loads_both_kinds_of_archive() {
    let bench = Bench::new();
    let image = bench.built();
    let [docker, oci] = ["docker.tar", "oci.tar"].map(|name| bench.path(name));
    for target in [
        ExportTarget::Docker(tar_target(&docker, &["app:1.0"])),
        ExportTarget::Oci(tar_target(&oci, &["app:1.0"])),
    ] {
        bench.exporter.export(std::slice::from_ref(&image), &target).await.expect("exports");
    }
    let home = bench.directory.path();
    assert!(podman_load(home, &docker).contains("docker.io/library/app:1.0"));
    let said = podman_load(home, &oci);
    assert!(said.contains("Loaded image"), "{said}");
}

/// Debian's registry on a port of its own, killed on drop.
struct DebianRegistry {
    process: std::process::Child,
    host: String,
}

impl DebianRegistry {
    fn start(home: &Path) -> Self {
        let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let host = free.local_addr().expect("it is bound").to_string();
        drop(free);
        let config = home.join("registry.yml");
        let storage = home.join("registry");
        let text = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: {host}}}\n",
            storage.display()
        );
        std::fs::write(&config, text).expect("writes");
        let process = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .env_remove("OTEL_TRACES_EXPORTER")
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .expect("docker-registry must be installed (Debian package `docker-registry`)");
        let registry = Self { process, host };
        let patience = std::time::Instant::now() + std::time::Duration::from_secs(30);
        while std::net::TcpStream::connect(&registry.host).is_err() {
            assert!(std::time::Instant::now() < patience, "the registry does not answer");
            std::thread::yield_now();
        }
        registry
    }
}

impl Drop for DebianRegistry {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_registry_takes_pushes_and_mounts() {
    let bench = Bench::new();
    let registry = DebianRegistry::start(bench.directory.path());
    let push = |repository: &str| {
        let names = names(&[&format!("{}/{repository}:1.0", registry.host)]);
        ExportTarget::Image(ImageTarget {
            names,
            push: Some(PushOptions::default()),
            ..ImageTarget::default()
        })
    };
    let image = bench.built();
    bench.exporter.export(std::slice::from_ref(&image), &push("team/base")).await.expect("pushes");
    // A layer that came from the first repository is mounted into the second.
    let (mut based, blob) = bench.on_pulled_base(None);
    bench.put_blob(&blob);
    bench.exporter.export(std::slice::from_ref(&based), &push("team/base")).await.expect("pushes");
    based.layers[0].origin = names(&[&format!("{}/team/base:1.0", registry.host)]).pop();
    bench.exporter.export(std::slice::from_ref(&based), &push("team/app")).await.expect("pushes");
    let (home, host) = (bench.directory.path().to_owned(), registry.host.clone());
    let check = move || verify(&home, &format!("docker://{host}/team/app:1.0"));
    tokio::task::spawn_blocking(check).await.expect("no panic");
}
