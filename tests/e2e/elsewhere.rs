//! `--builder`: what this machine gives to a build of another daemon and takes from it.
//!
//! The daemon is this program's, and BuildKit's where `STAVE_TEST_BUILDKITD` names it. Start with [`check`].

use std::path::Path;
use std::process::{Child, Command, Stdio};

use stave_test_support::TestRegistry;
use stave_test_support::registry::{Auth, User};

use crate::daemon::{Daemon, wait};
use crate::environment::{Environment, Outcome, registry, tool};

const DOCKERFILE: &str = "FROM BUSYBOX\nARG A=default\n\
     RUN --mount=type=secret,id=s wc -c < /run/secrets/s > /secret\n\
     RUN --mount=type=ssh test -S $SSH_AUTH_SOCK && echo yes > /agent\n\
     COPY f /f\nRUN echo $A > /argument\n";
/// How many of its steps a cache can give.
const STEPS: usize = 4;

fn world() -> Environment {
    let world = Environment::new();
    world.dockerfile(DOCKERFILE).write("f", "content\n");
    std::fs::write(world.path("secret"), "hidden\n").expect("writes");
    tool("ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-f", &world.path("key").to_string_lossy()]);
    world
}

fn names(archive: &Path) -> String {
    tool("tar", &["-tf", &archive.to_string_lossy()])
}

/// Everything that a build on the daemon at `address` can be given and can give.
fn check(world: &Environment, address: &str) {
    let secret = format!("id=s,src={}", world.path("secret").display());
    let key = format!("default={}", world.path("key").display());
    let build = |words: &[&str]| -> Outcome {
        let given = ["build", "--builder", address, "--secret", &secret, "--ssh", &key];
        world.stave(given.iter().chain(words).chain(&["."]))
    };
    let place = |name: &str| world.path(name).display().to_string();
    let dest = |kind: &str, name: &str| format!("type={kind},dest={}", place(name));

    // Several results of one build, with all that its steps need.
    let docker = format!("{},name=it:1", dest("docker", "docker.tar"));
    let outputs = [dest("local", "out"), dest("tar", "out.tar"), dest("oci", "oci.tar"), docker];
    let mut words = vec!["--build-arg", "A=other"];
    words.extend(outputs.iter().flat_map(|output| ["-o", output]));
    build(&words).success();
    let read = |name: &str| std::fs::read_to_string(world.path("out").join(name)).expect("is there");
    assert_eq!(["secret", "agent", "f", "argument"].map(read), ["7\n", "yes\n", "content\n", "other\n"]);
    for (archive, part) in
        [("out.tar", "argument"), ("oci.tar", "index.json"), ("docker.tar", "manifest.json")]
    {
        assert!(names(&world.path(archive)).contains(part), "{archive}");
    }

    // What is loaded is this machine's, by its name, and runs here.
    let quiet = build(&["--load", "-q", "-t", "loaded:1"]).success().stdout;
    assert!(quiet.starts_with("sha256:") && quiet.lines().count() == 1, "scripts read the id alone: {quiet}");
    assert_eq!(world.run("loaded:1", &["cat", "/f"]), "content\n");

    // A registry that only this machine's user may write to; the daemon has no credentials of its own.
    let user = User::new("me", "secret");
    let closed = TestRegistry::with_auth(Auth::Bearer { user, anonymous_pull: false });
    let image = format!("{}/pushed:1", closed.host());
    build(&["--push", "-t", &image]).exits(1);
    world.stave_with_input(&["login", "-u", "me", "--password-stdin", &closed.host()], b"secret").success();
    build(&["--push", "-t", &image, "--metadata-file", &place("metadata.json")]).success();
    let told: serde_json::Value =
        serde_json::from_slice(&std::fs::read(world.path("metadata.json")).expect("is there"))
            .expect("is JSON");
    assert!(closed.manifest("pushed", "1").is_some() && told["containerimage.digest"].is_string(), "{told}");
    world.stave(["logout", &closed.host()]).success();

    // A cache that goes through a registry.
    let cache = format!("{}/elsewhere-{}", registry(), std::process::id());
    let (to, from) = (format!("type=registry,ref={cache},mode=max"), format!("type=registry,ref={cache}"));
    build(&["--cache-to", &to, "-o", "type=cacheonly"]).success();
    let cached = build(&["--cache-from", &from, "-o", "type=cacheonly"]).success();
    assert_eq!(cached.cached(), STEPS, "{}", cached.stderr);

    world.dockerfile("FROM BUSYBOX\nRUN exit 7\n");
    build(&[]).exits(1).says(">>> RUN exit 7").says("did not complete successfully: exit code: 7");
}

#[test]
fn a_daemon_of_this_program_gives_and_takes_all() {
    let world = world();
    let daemon = Daemon::start(&world, &[]);
    check(&world, &daemon.address());
    daemon.stop(&world.root());
}

/// A stage that is scanned beside the result, and cannot be made without the secret.
const SCANNED: &str = "FROM BUSYBOX AS tools\nARG BUILDKIT_SBOM_SCAN_STAGE=true\n\
     RUN --mount=type=secret,id=s,required cat /proc/sys/kernel/random/uuid > /id\n\
     FROM scratch\nCOPY --from=tools /id /id\n";
/// Says which file the scanned stage has.
const SCANNER: &str = "#!/bin/sh\nset -e\n\
     printf '{\"predicateType\":\"https://spdx.dev/Document\",\"predicate\":{\"id\":\"%s\"}}' \
     $(cat $BUILDKIT_SCAN_SOURCE_EXTRAS/sbom-tools/id) > $BUILDKIT_SCAN_DESTINATION/sbom.json\n";

#[test]
fn stages_that_are_scanned_have_the_secrets_of_their_build() {
    let world = world();
    let place = |name: &str| format!("{}/{name}-{}", registry(), std::process::id());
    let (scanner, cache) = (place("scanner"), place("scanned"));
    world.write("scan.sh", SCANNER);
    world.dockerfile("FROM BUSYBOX\nCOPY --chmod=755 scan.sh /\nENTRYPOINT [\"/scan.sh\"]\n");
    world.stave(["build", "-q", "--push", "-t", &scanner, "."]).success();
    world.dockerfile(SCANNED);
    let secret = format!("id=s,src={}", world.path("secret").display());
    let sbom = format!("--sbom=generator={scanner}");
    // What the result says, and what the scanner says of the stage.
    let ids = |name: &str| {
        let read = |file| std::fs::read_to_string(world.path(name).join(file)).expect("is there");
        let bill: serde_json::Value = serde_json::from_str(&read("sbom.json")).expect("is JSON");
        (read("id").trim().to_owned(), bill["predicate"]["id"].as_str().expect("an id").to_owned())
    };
    let build = |address: &str, words: &[&str]| {
        let given = ["build", "--builder", address, "--secret", &secret, &sbom];
        world.stave(given.iter().chain(words).chain(&["."])).success()
    };
    let daemon = Daemon::start(&world, &[]);
    let (first, to) = (
        format!("type=local,dest={}", world.path("first").display()),
        format!("type=registry,ref={cache},mode=min"),
    );
    build(&daemon.address(), &["--no-cache", "-o", &first, "--cache-to", &to]);
    let (result, scanned) = ids("first");
    assert_eq!(result, scanned, "what is scanned is what was made");
    daemon.stop(&world.root());
    // Where nothing is but the layers of the result.
    std::fs::remove_dir_all(world.root()).expect("a state directory");
    let daemon = Daemon::start(&world, &[]);
    let second = format!("type=local,dest={}", world.path("second").display());
    build(&daemon.address(), &["-o", &second, "--cache-from", &format!("type=registry,ref={cache}")]);
    let (kept, scanned) = ids("second");
    assert_eq!(kept, result);
    assert_ne!(scanned, result, "the stage was not here");
    daemon.stop(&world.root());
}

#[test]
fn buildkits_own_daemon_gives_and_takes_all() {
    let Some(program) = std::env::var_os("STAVE_TEST_BUILDKITD") else { return };
    let world = world();
    let (socket, root) = (world.path("buildkitd.sock"), world.path("buildkitd"));
    let address = format!("unix://{}", socket.display());
    let mut command = Command::new(program);
    command.args(["--containerd-worker=false", "--oci-worker-net=host", "--root"]).arg(&root);
    let config = world.path("buildkitd.toml");
    std::fs::write(&config, format!("[registry.\"{}\"]\nhttp = true\n", registry())).expect("writes");
    command.args(["--addr", &address, "--config"]).arg(config).stdout(Stdio::null()).stderr(Stdio::null());
    let _daemon = Buildkitd(command.spawn().expect("starts"));
    wait(|| socket.exists());
    check(&world, &address);
}

/// A daemon of BuildKit's, which ends with the test however that does: by itself, so that it leaves no mounts.
struct Buildkitd(Child);

impl Drop for Buildkitd {
    fn drop(&mut self) {
        crate::environment::signal(&self.0, rustix::process::Signal::TERM);
        self.0.wait().ok();
    }
}
