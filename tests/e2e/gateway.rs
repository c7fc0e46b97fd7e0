//! `--builder`, the history that a daemon keeps, and front ends that are images.

use std::io::{BufRead as _, BufReader};

use rustix::process::Signal;

use crate::daemon::{Daemon, wait};
use crate::environment::{Environment, processes_with, registry, signal, tool, with_images};

#[test]
fn a_build_on_a_daemon_gets_what_it_needs_and_is_remembered() {
    let environment = Environment::new();
    environment.dockerfile(
        "FROM BUSYBOX\nARG A\nCOPY . /context/\n\
         RUN --mount=type=secret,id=s wc -c < /run/secrets/s > /out && echo $A >> /out && ls /context >> /out && echo said\n",
    );
    environment
        .write("f", "")
        .write("ignored", "")
        .write(".dockerignore", "ignored\nDockerfile*\n.dockerignore\n");
    std::fs::write(environment.path("secret"), "hidden\n").expect("writes");
    let daemon = Daemon::start(&environment, &[]);
    let (out, address) = (environment.path("out"), daemon.address());
    let (secret, dest) = (environment.path("secret").display().to_string(), out.display().to_string());
    let secret = format!("id=s,src={secret}");
    let words = ["build", "--builder", &address, "--secret", &secret, "--build-arg", "A=b", "-o", &dest, "."];
    environment.stave(words).success().says("RUN --mount=type=secret");
    assert_eq!(std::fs::read_to_string(out.join("out")).expect("is there"), "7\nb\nf\n");

    environment.dockerfile("FROM BUSYBOX\nRUN false\n");
    let failed = environment.stave(["build", "--builder", &address, "."]).exits(1);
    failed.says(">>> RUN false").says("did not complete successfully: exit code: 1");
    let listed = environment.stave(["builds", "ls", "-q"]).success();
    assert_eq!(listed.stdout.lines().count(), 2, "{}", listed.stdout);
    let first = listed.stdout.lines().last().expect("has two").to_owned();
    let logs = environment.stave(["builds", "inspect", &first]).success().stdout;
    assert!(logs.contains("Completed") && logs.contains("RUN --mount=type=secret"), "{logs}");
    assert!(environment.stave(["logs", &first]).success().stdout.contains("said"));
    daemon.stop(&environment.root());
}

#[test]
fn what_a_daemon_cannot_be_asked_for_is_an_error() {
    let environment = Environment::new();
    environment.dockerfile("FROM scratch\n");
    let check = |words: &[&str], part: &str| {
        let all = ["build", "--builder", "unix:///nowhere/at.all"];
        environment
            .stave(all.iter().chain(words))
            .exits(if part.starts_with("cannot") { 1 } else { 2 })
            .says(part);
    };
    check(&["."], "cannot connect to `unix:///nowhere/at.all`");
    check(&["--squash", "."], "not supported yet with --builder: --squash");
    check(&["--retry", "2", "."], "not supported yet with --builder: --retry");
    check(&["-o", "type=local", "."], "type `local` needs `dest`");
    environment.stave(["build", "--builder", "builder:1", "."]).exits(2).says("invalid address `builder:1`");
}

/// A front end that keeps to no protocol, each way by an option.
#[test]
fn front_ends_that_misbehave_fail_their_build_only() {
    let environment = Environment::new();
    let image = format!("{}/misbehaving-{}", registry(), std::process::id());
    environment.dockerfile(
        "FROM BUSYBOX\nENTRYPOINT [\"sh\", \"-c\", \"case $(env) in \\\n\
         *MODE=exit*) echo product $BUILDKIT_EXPORTEDPRODUCT >&2; exit 3;; \\\n\
         *MODE=endless*) cat /dev/zero;; \\\n\
         *) echo nonsense;; esac\"]\n",
    );
    environment.stave(["build", "-t", &image, "--push", "."]).success();
    environment.write("Dockerfile", &with_images(&format!("# syntax={image}\nWHATEVER\n")));
    let check = |mode: &str, part: &str| {
        let mode = format!("MODE={mode}");
        environment.stave(["build", "--build-arg", &mode, "."]).exits(1).says(part);
    };
    check("exit", "exit code: 3: product stave");
    check("endless", "exit code: ");
    check("quiet", "no result for incomplete build");
}

/// A front end that speaks the protocol and means no good: of the daemon it keeps nothing and takes nothing, of others
/// it learns nothing, and it goes with its build.
#[test]
fn a_front_end_that_attacks_by_the_protocol_fails_its_build_only() {
    let environment = Environment::new();
    let script = format!("frontend-{}.py", std::process::id());
    let image = format!("{}/hostile-front-end-{}", registry(), std::process::id());
    environment.write(&script, include_str!("gateway/frontend.py"));
    environment.dockerfile(&format!(
        "FROM REGISTRY/python\nCOPY {script} /\nENTRYPOINT [\"python3\", \"/{script}\"]\n"
    ));
    environment.stave(["build", "-t", &image, "--push", "."]).success();
    environment.write("Dockerfile", &with_images(&format!("# syntax={image}\nWHATEVER\n")));
    let daemon = Daemon::start(&environment, &[]);
    let address = daemon.address();
    let words = |mode: &str| {
        let option = format!("MODE={mode}");
        ["build", "--builder", &address, "--build-arg", &option, "."].map(str::to_owned)
    };
    let check = |mode: &str, part: &str| {
        environment.stave(words(mode)).exits(1).says(part);
    };
    check("large", "exit code: 9: answered");
    check("unknown", "exit code: 9: answered");
    check("broken", "exit code: 9: the connection is given up");
    check("others", "no such ref: 1");
    // These end with their client only.
    for mode in ["never", "flood", "settings"] {
        let words = words(mode);
        let client = environment.start(&words.each_ref().map(String::as_str));
        wait(|| !processes_with(&script).is_empty());
        signal(&client, Signal::INT);
        let ended = client.wait_with_output().expect("ends");
        assert_eq!(ended.status.code(), Some(130), "{mode}: {}", String::from_utf8_lossy(&ended.stderr));
        wait(|| processes_with(&script).is_empty());
    }
    environment.dockerfile("FROM BUSYBOX\nRUN true\n");
    environment.stave(["build", "--builder", &address, "-o", "type=cacheonly", "."]).success();
    daemon.stop(&environment.root());
}

/// The page without a daemon that runs: for as long as somebody looks.
#[test]
fn a_build_of_a_daemon_is_opened_again() {
    let environment = Environment::new();
    environment.dockerfile("FROM scratch\nCOPY Dockerfile /\n");
    let daemon = Daemon::start(&environment, &[]);
    environment.stave(["build", "--builder", &daemon.address(), "-o", "type=cacheonly", "."]).success();
    daemon.stop(&environment.root());
    let id = environment.stave(["builds", "ls", "-q"]).success().stdout.trim().to_owned();
    let mut shown = environment.start(&["builds", "open", &id, "--no-browser"]);
    let mut address = String::new();
    let said = shown.stdout.take().expect("is piped");
    BufReader::new(said).read_line(&mut address).expect("is said");
    let (page, build) = address.trim().split_once("#build/").expect("names the build");
    let events = tool("curl", &["-sS", "--max-time", "20", &format!("{page}api/builds")]);
    assert!(events.contains(&format!("\"ref\":\"{build}\"")), "{events}");
    signal(&shown, Signal::INT);
    shown.wait().expect("ends");
}
