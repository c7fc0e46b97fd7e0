//! Other people's tools read what we write, and the reverse.

use crate::environment::{Environment, Outcome, is_privileged, registry, tool};

fn built() -> Environment {
    let world = Environment::new();
    world.write("data", &"some data that compresses well\n".repeat(200_000));
    world.dockerfile(
        "FROM BUSYBOX\nCOPY data /data\nRUN rm /home -r && ln -s /data /link && echo done > /done\nENV X=1\nCMD [\"cat\", \"/done\"]\n",
    );
    world.build("it").success();
    world
}

/// Podman with a store of its own.
struct Podman {
    root: String,
    /// Not below the test's own folder: podman refuses long paths there.
    run: tempfile::TempDir,
}

impl Podman {
    fn new(world: &Environment) -> Self {
        let run = tempfile::Builder::new().prefix("podman").tempdir_in("/tmp").expect("a folder");
        Self { root: world.path("podman-root").display().to_string(), run }
    }

    /// A call of it, in so many words.
    fn command(&self) -> std::process::Command {
        let mut command = std::process::Command::new("podman");
        command.args(["--root", &self.root, "--runroot"]).arg(self.run.path());
        command.args(["--storage-driver", "vfs", "--cgroup-manager", "cgroupfs", "--runtime", "runc"]);
        if !is_privileged() {
            // A user without other ids cannot keep others' files.
            command.args(["--storage-opt", "vfs.ignore_chown_errors=true"]);
        }
        command
    }

    #[track_caller]
    fn call(&self, words: &[&str]) -> String {
        Outcome::of(self.command().args(words).output().expect("podman is needed by this test"))
            .success()
            .stdout
    }
}

fn inspect(source: &str) -> serde_json::Value {
    let text = tool("skopeo", &["inspect", "--tls-verify=false", source]);
    serde_json::from_str(&text).expect("JSON")
}

#[test]
fn skopeo_reads_a_pushed_image() {
    let world = built();
    for compression in ["gzip", "zstd", "uncompressed"] {
        let name = format!("{}/interop/{compression}:{}", registry(), std::process::id());
        let spec =
            format!("type=image,name={name},push=true,compression={compression},force-compression=true");
        world.stave(["build", "-o", &spec, "."]).success();
        let found = inspect(&format!("docker://{name}"));
        assert!(found["Env"].as_array().expect("a list").contains(&"X=1".into()));
        // Copying reads every layer and checks its digest and, unpacked, its diff id.
        let folder = world.path(compression);
        tool(
            "skopeo",
            &[
                "copy",
                "--src-tls-verify=false",
                &format!("docker://{name}"),
                &format!("oci:{}:x", folder.display()),
            ],
        );
        let other = Environment::new();
        other.stave(["run", "--rm", &name]).success();
    }
}

#[test]
fn skopeo_and_podman_read_our_archives() {
    let world = built();
    let [oci, docker] = ["oci.tar", "docker.tar"].map(|name| world.path(name).display().to_string());
    world.stave(["build", "-t", "it", "-o", &format!("type=oci,dest={oci}"), "."]).success();
    world.stave(["build", "-t", "it", "-o", &format!("type=docker,dest={docker}"), "."]).success();
    assert_eq!(
        inspect(&format!("oci-archive:{oci}"))["Architecture"],
        stave_oci::Platform::host().architecture
    );
    inspect(&format!("docker-archive:{docker}"));
    let podman = Podman::new(&world);
    let loaded = podman.call(&["load", "-i", &docker]);
    assert!(loaded.contains("it:latest"), "{loaded}");
    // Limits that a machine without CAP_SYS_RESOURCE can set.
    let run =
        ["run", "--rm", "--network=host", "--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024", "it"];
    assert_eq!(podman.call(&run), "done\n");
    let script = ["sh", "-c", "test -e /home || readlink /link"];
    assert_eq!(podman.call(&[run.as_slice(), &script].concat()), "/data\n");
}

#[test]
fn we_read_what_skopeo_writes() {
    let world = built();
    let name = format!("{}/busybox", registry());
    let [oci, docker] =
        ["theirs-oci.tar", "theirs-docker.tar"].map(|file| world.path(file).display().to_string());
    tool(
        "skopeo",
        &[
            "copy",
            "--src-tls-verify=false",
            &format!("docker://{name}"),
            &format!("oci-archive:{oci}:theirs:oci"),
        ],
    );
    tool(
        "skopeo",
        &[
            "copy",
            "--src-tls-verify=false",
            &format!("docker://{name}"),
            &format!("docker-archive:{docker}:theirs:docker"),
        ],
    );
    for (archive, image) in [(&oci, "theirs:oci"), (&docker, "theirs:docker")] {
        world.stave(["load", "-i", archive]).success();
        assert_eq!(world.run(image, &["echo", "loaded"]), "loaded\n");
    }
    // Docker's manifest types, as most registries still serve them.
    let converted = format!("{}/interop/v2s2:{}", registry(), std::process::id());
    let words = ["copy", "--format=v2s2", "--src-tls-verify=false", "--dest-tls-verify=false"];
    let all: Vec<&str> = words.into_iter().chain([]).collect();
    let (from, to) = (format!("docker://{name}"), format!("docker://{converted}"));
    tool("skopeo", &[all.as_slice(), &[&from, &to]].concat());
    assert_eq!(Environment::new().run(&converted, &["echo", "pulled"]), "pulled\n");
}

#[test]
fn we_read_layers_in_every_compression() {
    let world = Environment::new();
    let forms = [
        ("zstd", &["--dest-compress", "--dest-compress-format=zstd"][..]),
        ("plain", &["--dest-decompress"]),
    ];
    for (form, flags) in forms {
        let folder = format!("dir:{}", world.path(form).display());
        let from = format!("docker://{}/busybox", registry());
        tool("skopeo", &[&["copy", "--src-tls-verify=false"], flags, &[&from, &folder]].concat());
        let name = format!("{}/interop/theirs-{form}:{}", registry(), std::process::id());
        let to = format!("docker://{name}");
        tool("skopeo", &["copy", "--dest-tls-verify=false", &folder, &to]);
        let raw = tool("skopeo", &["inspect", "--raw", "--tls-verify=false", &to]);
        assert_eq!(raw.contains("tar+zstd"), form == "zstd", "{raw}");
        assert_eq!(world.run(&name, &["echo", form]), format!("{form}\n"));
        // A layer that is here by its content is not asked for again, whatever it was compressed with.
        world.dockerfile(&format!("FROM {name}\nRUN echo {form} > /form\n"));
        world.stave(["build", "-q", "--push", "-t", &format!("{name}-on"), "."]).success();
        assert_eq!(Environment::new().run(&format!("{name}-on"), &["cat", "/form"]), format!("{form}\n"));
    }
}

/// Podman's service, which speaks docker's API.
struct Service(std::process::Child);

impl Service {
    fn start(podman: &Podman, socket: &std::path::Path) -> Self {
        let address = format!("unix://{}", socket.display());
        let mut command = podman.command();
        command.args(["system", "service", "--time", "0", &address]);
        command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
        let mut service = Self(command.spawn().expect("podman is needed by this test"));
        while std::os::unix::net::UnixStream::connect(socket).is_err() {
            assert!(service.0.try_wait().expect("is a child").is_none(), "podman's service ended");
            std::thread::yield_now();
        }
        service
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

#[test]
fn another_engine_gets_only_what_it_lacks() {
    let world = Environment::new();
    let socket = world.path("engine.sock");
    let podman = Podman::new(&world);
    let _service = Service::start(&podman, &socket);
    let spec = format!("type=docker,context=unix://{}", socket.display());
    let send = |name: &str| world.stave(["build", "-o", &spec, "-t", name, "."]).success().stderr;
    let kept = |said: &str| said.lines().filter(|line| line.contains("already exists sha256:")).count();
    world.dockerfile("FROM BUSYBOX\nRUN echo base > /base\n");
    assert_eq!(kept(&send("it:base")), 0);
    world.dockerfile("FROM it:base\nRUN echo more > /more\nCMD [\"cat\", \"/base\", \"/more\"]\n");
    let layers = world.stave(["image", "layers", "--json", "it:base"]).success().stdout.lines().count();
    assert_eq!(kept(&send("it:more")), layers);
    let run =
        ["run", "--rm", "--network=host", "--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024", "it:more"];
    assert_eq!(podman.call(&run), "base\nmore\n");
    // The same again is only named.
    assert_eq!(kept(&send("it:again")), layers + 1);
    assert!(podman.call(&["image", "exists", "it:again"]).is_empty());
}

#[test]
fn two_pushes_of_one_build_are_the_same_bytes() {
    let world = built();
    let digest = |tag: &str| {
        let name = format!("{}/interop/same-{tag}:{}", registry(), std::process::id());
        world.stave(["tag", "it", &name]).success();
        world.stave(["push", &name]).success();
        inspect(&format!("docker://{name}"))["Digest"].clone()
    };
    assert_eq!(digest("one"), digest("two"));
}

/// Files alone, so that no step of another machine's has to run.
fn for_two_platforms(name: &str, more: &str) -> Environment {
    let world = Environment::new();
    world.write("data", &"some data that compresses well\n".repeat(100_000));
    world.dockerfile(
        "FROM scratch\nARG TARGETARCH\nCOPY data /data\nLABEL for=$TARGETARCH\nCMD [\"/data\"]\n",
    );
    let spec = format!("type=image,name={name},push=true{more}");
    world.stave(["build", "--platform", "linux/amd64,linux/arm64", "-o", &spec, "."]).success();
    world
}

#[test]
fn an_index_of_two_platforms_is_read_by_all() {
    for (kind, more) in [("plain", ""), ("zstd", ",compression=zstd"), ("docker", ",oci-mediatypes=false")] {
        let name = format!("{}/interop/two-{kind}:{}", registry(), std::process::id());
        let world = for_two_platforms(&name, more);
        let source = format!("docker://{name}");
        for architecture in ["amd64", "arm64"] {
            let words = ["--override-arch", architecture, "inspect", "--tls-verify=false", &source];
            let found: serde_json::Value = serde_json::from_str(&tool("skopeo", &words)).expect("JSON");
            assert_eq!(found["Labels"]["for"], architecture);
        }
        // Every blob of every platform, checked as it is copied.
        let layout = format!("oci:{}:all", world.path("all").display());
        tool("skopeo", &["copy", "--all", "--src-tls-verify=false", &source, &layout]);
        let listed = tool("docker", &["manifest", "inspect", "--insecure", &name]);
        let listed: serde_json::Value = serde_json::from_str(&listed).expect("JSON");
        assert_eq!(listed["manifests"].as_array().map(Vec::len), Some(2));
        let pull = ["pull", "-q", "--tls-verify=false", "--arch", "arm64", &name];
        let podman = Podman::new(&world);
        podman.call(&pull);
        let inspect: serde_json::Value =
            serde_json::from_str(&podman.call(&["image", "inspect", &name])).expect("JSON");
        assert_eq!(inspect[0]["Architecture"], "arm64");
        // And back: theirs, with all its platforms, is one of ours.
        let theirs = format!("{}/interop/two-{kind}-theirs:{}", registry(), std::process::id());
        let to = format!("docker://{theirs}");
        let flags = ["copy", "--all", "--src-tls-verify=false", "--dest-tls-verify=false"];
        tool("skopeo", &[flags.as_slice(), &[&source, &to]].concat());
        world.stave(["pull", "-q", "--platform", "linux/arm64", &theirs]).success();
        assert!(world.stave(["inspect", &theirs]).success().stdout.contains("\"arm64\""));
    }
}

#[test]
fn buildah_builds_on_what_we_push() {
    let name = format!("{}/interop/base:{}", registry(), std::process::id());
    let world = built();
    world.stave(["tag", "it", &name]).success();
    world.stave(["push", "-q", &name]).success();
    let root = world.path("buildah").display().to_string();
    let run = world.path("buildah-run").display().to_string();
    let ids: &[&str] = if is_privileged() { &[] } else { &["--storage-opt", "vfs.ignore_chown_errors=true"] };
    let storage = [&["--root", &root, "--runroot", &run, "--storage-driver", "vfs"], ids].concat();
    let buildah = |words: &[&str]| tool("buildah", &[storage.as_slice(), words].concat());
    let container = buildah(&["from", "--tls-verify=false", &name]);
    let container = container.trim();
    let theirs = format!("{}/interop/buildah:{}", registry(), std::process::id());
    for format in ["oci", "docker"] {
        buildah(&["config", "--label", &format!("with={format}"), container]);
        let image = format!("local-{format}");
        buildah(&["commit", "--format", format, container, &image]);
        buildah(&["push", "--tls-verify=false", &image, &format!("docker://{theirs}")]);
        let other = Environment::new();
        assert_eq!(other.run(&theirs, &["cat", "/done"]), "done\n", "{format}");
        let labels = other.stave(["inspect", &theirs]).success().stdout;
        assert!(labels.contains(&format!("\"with\": \"{format}\"")), "{labels}");
    }
    buildah(&["rm", container]);
}
