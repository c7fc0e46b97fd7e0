//! The daemon as `docker buildx` drives it: Debian trixie's, over a socket and from another network by certificates.
//!
//! `STAVE_TEST_BUILDX` names the client (`cargo xtask test` unpacks it privately); without it these tests pass and show
//! nothing. Start with [`Buildx`].

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::certificates::{Authority, Served};
use crate::daemon::{Daemon, wait};
use crate::environment::{
    Environment, Outcome, is_privileged, own_sleep, processes_with, registry, signal, tool, with_images,
};

/// A step for each thing that a client gives to a build.
const DOCKERFILE: &str = "FROM BUSYBOX\nARG A=default\n\
     RUN --mount=type=secret,id=s wc -c < /run/secrets/s > /secret\n\
     RUN --mount=type=ssh test -S $SSH_AUTH_SOCK && echo yes > /agent\n\
     COPY f /f\nRUN echo $A > /argument\n";
/// How many of its steps a cache can give: all but the base.
const STEPS: usize = 4;

/// The client, with a builder called `it`.
struct Buildx<'a> {
    environment: &'a Environment,
    program: PathBuf,
    /// What is put before the program's name.
    before: Vec<String>,
}

impl<'a> Buildx<'a> {
    fn find(environment: &'a Environment) -> Option<Self> {
        let program = PathBuf::from(std::env::var_os("STAVE_TEST_BUILDX")?);
        Some(Self { environment, program, before: Vec::new() })
    }

    fn create(&self, address: &str, options: &str) {
        let mut words = vec!["create", "--name", "it", "--driver", "remote"];
        if !options.is_empty() {
            words.extend(["--driver-opt", options]);
        }
        words.push(address);
        self.call(&words).success();
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut all: Vec<&str> = self.before.iter().map(String::as_str).collect();
        let program = self.program.to_string_lossy();
        all.push(&program);
        let mut command = Command::new(all[0]);
        command.args(&all[1..]).args(words).current_dir(self.environment.context());
        command.env("BUILDX_CONFIG", self.environment.path("buildx"));
        command.env("DOCKER_CONFIG", self.environment.path("docker-config"));
        // No engine is there, and none is needed.
        command.env("DOCKER_HOST", "unix:///nowhere/docker.sock").env("BUILDX_NO_DEFAULT_LOAD", "1");
        command
    }

    fn call(&self, words: &[&str]) -> Outcome {
        Outcome::of(self.command(words).output().expect("the client starts"))
    }

    fn build(&self, words: &[&str]) -> Outcome {
        self.call(&[&["build", "--builder", "it", "--progress", "plain"], words, &["."]].concat())
    }

    /// What one of the daemon's own kinds of result holds under a name.
    fn build_into(&self, kind: &str, name: &str, words: &[&str]) -> PathBuf {
        let path = self.environment.path(name);
        let output = format!("type={kind},dest={}", path.display());
        self.build(&[words, &["--output", &output]].concat()).success();
        path
    }

    /// Forgets all, so that what comes next is from elsewhere.
    fn forget(&self) {
        self.call(&["prune", "--builder", "it", "--all", "--force"]).success();
    }
}

fn names(archive: &Path) -> Vec<String> {
    tool("tar", &["-tf", &archive.to_string_lossy()]).lines().map(str::to_owned).collect()
}

fn world() -> Environment {
    let world = Environment::new();
    world.dockerfile(DOCKERFILE).write("f", "content\n");
    std::fs::write(world.path("secret"), "hidden\n").expect("writes");
    tool("ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-f", &world.path("key").to_string_lossy()]);
    world
}

/// The flags for what [`DOCKERFILE`] needs.
fn needs(world: &Environment) -> [String; 4] {
    let secret = format!("id=s,src={}", world.path("secret").display());
    ["--secret".to_owned(), secret, "--ssh".to_owned(), format!("default={}", world.path("key").display())]
}

#[test]
fn buildx_gets_every_kind_of_result() {
    let world = world();
    let Some(client) = Buildx::find(&world) else { return };
    let daemon = Daemon::start(&world, &[]);
    client.create(&daemon.address(), "");
    let needs = needs(&world);
    let needs = needs.each_ref().map(String::as_str);

    let out = client.build_into("local", "out", &[&needs[..], &["--build-arg", "A=other"]].concat());
    let read = |name: &str| std::fs::read_to_string(out.join(name)).expect("is there");
    assert_eq!(["secret", "agent", "f", "argument"].map(read), ["7\n", "yes\n", "content\n", "other\n"]);
    let archive = client.build_into("tar", "out.tar", &needs);
    assert!(names(&archive).iter().any(|name| name == "argument"));
    let layout = client.build_into("oci", "oci.tar", &needs);
    assert!(names(&layout).iter().any(|name| name == "index.json"));
    let docker = client.build_into("docker", "docker.tar", &[&needs[..], &["-t", "it:1"]].concat());
    let manifest = tool("tar", &["-xOf", &docker.to_string_lossy(), "manifest.json"]);
    assert!(manifest.contains("\"RepoTags\":[\"it:1\"]"), "{manifest}");

    let image = format!("{}/buildx-{}", registry(), std::process::id());
    let metadata = world.path("metadata.json").display().to_string();
    let push =
        ["--push", "-t", &image, "--metadata-file", &metadata, "--platform", "linux/amd64,linux/arm64"];
    world.dockerfile("FROM scratch\nCOPY f /\n");
    client.build(&push).success();
    let pushed: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&metadata).expect("is there")).expect("is JSON");
    let told = client.call(&["imagetools", "inspect", &image]).success().stdout;
    let digest = pushed["containerimage.digest"].as_str().expect("is told");
    assert!(told.contains(digest) && told.contains("linux/arm64"), "{told}");

    let used = client.call(&["du", "--builder", "it"]).success().stdout;
    assert!(used.contains("Reclaimable:") && !used.contains("Total:\t\t0B"), "{used}");
    client.forget();
    let listed = world.stave(["builds", "ls", "-q"]).success().stdout;
    assert_eq!(
        listed.lines().count(),
        5,
        "each build is remembered, what buildx asks beforehand is not: {listed}"
    );
    daemon.stop(&world.root());
}

#[test]
fn buildx_takes_caches_elsewhere_and_back() {
    let world = world();
    let Some(client) = Buildx::find(&world) else { return };
    let daemon = Daemon::start(&world, &[]);
    client.create(&daemon.address(), "");
    let needs = needs(&world);
    let needs = needs.each_ref().map(String::as_str);
    let with = |words: &[&str]| client.build(&[&needs[..], words].concat()).success();
    let image = format!("{}/buildx-cache-{}", registry(), std::process::id());
    let folder = world.path("cache").display().to_string();
    let places = [
        (format!("type=local,dest={folder},mode=max"), format!("type=local,src={folder}")),
        (format!("type=registry,ref={image}:c,mode=max"), format!("type=registry,ref={image}:c")),
        ("type=inline".to_owned(), format!("{image}:1")),
    ];
    for (to, from) in &places {
        with(&["--cache-to", to, "--push", "-t", &format!("{image}:1")]);
        client.forget();
        let found = with(&["--cache-from", from, "--output", "type=cacheonly"]);
        assert_eq!(found.cached(), STEPS, "{from}: {}", found.stderr);
        client.forget();
    }
    daemon.stop(&world.root());
}

/// Targets that are made of other targets, one of them of two.
const BAKE: &str = r#"
group "default" { targets = ["app", "tool"] }
target "base" {
  args = { MSG = "default" }
  dockerfile-inline = "FROM BUSYBOX\nARG MSG\nRUN echo $MSG > /base\nENV OF=base\n"
}
target "lib" { dockerfile-inline = "FROM scratch\nCOPY f /lib/\n" }
target "app" {
  contexts = { base = "target:base", lib = "target:lib" }
  dockerfile-inline = "FROM base AS made\nRUN echo $OF > /made\nFROM scratch\nCOPY --from=made /base /made /\nCOPY --from=lib /lib/f /\n"
  output = ["type=local,dest=app"]
}
target "tool" {
  contexts = { base = "target:base" }
  dockerfile-inline = "FROM base\nCMD cat /base\n"
}
"#;

#[test]
fn buildx_bakes_targets_out_of_targets() {
    let world = Environment::new();
    world.write("f", "content\n").write("docker-bake.hcl", &with_images(BAKE));
    let Some(client) = Buildx::find(&world) else { return };
    let daemon = Daemon::start(&world, &[]);
    client.create(&daemon.address(), "");
    let bake = |words: &[&str]| {
        client.call(&[&["bake", "--builder", "it", "--progress", "plain"], words].concat()).success()
    };
    let planned: serde_json::Value =
        serde_json::from_str(&bake(&["--print", "app"]).stdout).expect("is JSON");
    assert_eq!(planned["target"]["app"]["contexts"]["lib"], "target:lib");

    let image = format!("{}/buildx-baked-{}", registry(), std::process::id());
    let (tags, pushed) = (format!("tool.tags={image}"), "tool.output=type=registry");
    let baked = bake(&["--set", "base.args.MSG=told", "--set", &tags, "--set", pushed]);
    let read =
        |name: &str| std::fs::read_to_string(world.context().join("app").join(name)).expect("is there");
    assert_eq!(["base", "made", "f"].map(read), ["told\n", "base\n", "content\n"]);
    // The name of a step is written again when others wrote meanwhile; its number is the same.
    let lines = baked.stderr.lines().filter(|line| line.contains("RUN echo told > /base"));
    let runs: BTreeSet<_> = lines.map(|line| line.split_whitespace().next()).collect();
    assert_eq!(runs.len(), 1, "what targets share is one step: {}", baked.stderr);
    let told = client.call(&["imagetools", "inspect", &image]).success().stdout;
    assert!(told.contains("sha256:"), "{told}");
    let missing = client.call(&["bake", "--builder", "it", "nosuch"]);
    missing.exits(1).says("failed to find target nosuch");
    daemon.stop(&world.root());
}

#[test]
fn a_buildx_that_dies_ends_its_build_and_no_other() {
    let world = Environment::new();
    let Some(client) = Buildx::find(&world) else { return };
    let daemon = Daemon::start(&world, &[]);
    client.create(&daemon.address(), "");
    let step = own_sleep(61_000);
    world.dockerfile(&format!("FROM BUSYBOX\nRUN {step}\n"));
    let mut building = client.command(&["build", "--builder", "it", "--progress", "plain", "."]);
    let building = building.stderr(std::process::Stdio::null()).spawn().expect("the client starts");
    wait(|| !processes_with(&step).is_empty());
    signal(&building, rustix::process::Signal::KILL);
    wait(|| processes_with(&step).is_empty());
    building.wait_with_output().expect("ends");
    world.dockerfile("FROM BUSYBOX\nRUN true\n");
    client.build(&["--output", "type=cacheonly"]).success();
    world.dockerfile("FROM BUSYBOX\nRUN exit 7\n");
    client.build(&["--output", "type=cacheonly"]).exits(1).says("exit code: 7").says(">>> RUN exit 7");
    daemon.stop(&world.root());
}

/// A network of its own, joined to this one by a cable; it goes with the test.
struct Network {
    name: String,
    /// This machine's address on the cable.
    here: String,
}

impl Network {
    fn new() -> Self {
        let number = std::process::id();
        let name = format!("stave{number}");
        // RFC 2544's addresses for tests of networks: two of them for each test.
        let [high, low] = [(number >> 6) & 0xff, (number & 0x3f) << 2];
        let (here, there) = (format!("198.18.{high}.{}", low + 1), format!("198.18.{high}.{}", low + 2));
        let own = Self { name: name.clone(), here: here.clone() };
        let (near, far) = (format!("near{number}"), format!("far{number}"));
        let script = format!(
            "ip netns add {name}; ip link add {near} type veth peer name {far} netns {name}; \
             ip addr add {here}/30 dev {near}; ip link set {near} up; \
             ip -n {name} addr add {there}/30 dev {far}; ip -n {name} link set {far} up; ip -n {name} link set lo up"
        );
        tool("sh", &["-ec", &script]);
        own
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // Its end of the cable goes with it.
        Command::new("ip").args(["netns", "del", &self.name]).status().ok();
    }
}

#[test]
fn clients_of_another_network_come_by_certificates() {
    if !is_privileged() {
        return;
    }
    let world = world();
    let (authority, foreign) = (Authority::new(world.path("a")), Authority::new(world.path("b")));
    authority.sign("server", 2);
    authority.sign("client", 2);
    foreign.sign("client", 2);
    let file = |of: &Authority, name: &str| of.path(&format!("{name}.pem"));
    let network = Network::new();
    let address = format!("tcp://{}:0", network.here);
    let tls = ["--tlscert", &file(&authority, "server"), "--tlskey", &file(&authority, "server-key")];
    let served =
        Served::at(&world, &address, &[&tls[..], &["--tlscacert", &file(&authority, "ca")]].concat());
    let inside = ["ip", "netns", "exec", &network.name];

    // Our own client.
    let own = |certificate: &Authority| {
        let mut command = Command::new("ip");
        command.args(&inside[1..]).arg(crate::environment::program()).current_dir(world.context());
        command.env("STAVE_ROOT", world.path("own-state")).env("BUILDKIT_PROGRESS", "plain");
        command.args(["build", "--builder", &served.address, "--tlsservername", "localhost"]);
        command.args(["--tlscacert", &file(&authority, "ca"), "--tlscert", &file(certificate, "client")]);
        command
            .args(["--tlskey", &file(certificate, "client-key"), "-o", "type=tar,dest=own.tar"])
            .args(needs(&world));
        Outcome::of(command.arg(".").output().expect("starts"))
    };
    own(&authority).success();
    assert!(names(&world.context().join("own.tar")).iter().any(|name| name == "argument"));
    own(&foreign).exits(1);

    let Some(mut client) = Buildx::find(&world) else { return };
    client.before = inside.map(str::to_owned).to_vec();
    let options = |of: &Authority| {
        format!(
            "cacert={},cert={},key={},servername=localhost",
            file(&authority, "ca"),
            file(of, "client"),
            file(of, "client-key")
        )
    };
    client.create(&served.address, &options(&authority));
    let needs = needs(&world);
    let out = client.build_into("local", "out", &needs.each_ref().map(String::as_str));
    assert_eq!(std::fs::read_to_string(out.join("f")).expect("is there"), "content\n");
    client.call(&["rm", "it"]).success();
    client.create(&served.address, &options(&foreign));
    assert_ne!(client.build(&["--output", "type=cacheonly"]).code, Some(0));
}
