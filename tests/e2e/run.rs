//! `stave run`: exit codes, users, mounts, terminals, signals.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::environment::{Environment, own_sleep, processes_with, registry, signal};

fn busybox() -> String {
    format!("{}/busybox", registry())
}

#[test]
fn exit_codes_pass_through() {
    let world = Environment::new();
    let image = busybox();
    world.stave(["run", "--rm", &image, "true"]).success();
    world.stave(["run", "--rm", &image, "sh", "-c", "exit 42"]).exits(42);
    world.stave(["run", "--rm", &image, "no-such-program"]).exits(127).says("no-such-program");
    world.stave(["run", "--rm", &image, "/etc/passwd"]).exits(126);
    world.stave(["run", "--rm", &image, "sh", "-c", "kill -9 $$; sleep 5; exit 1"]).exits(1);
    world.stave(["run", "--no-such-flag", &image]).exits(125);
}

#[test]
fn options_shape_the_process() {
    let world = Environment::new();
    let image = busybox();
    let run = |words: &[&str], command: &str| {
        let all: Vec<&str> = ["run", "--rm"]
            .iter()
            .chain(words)
            .copied()
            .chain([image.as_str(), "sh", "-c", command])
            .collect();
        world.stave(all).success().stdout
    };
    assert_eq!(run(&["-e", "A=b c", "-e", "HOST_SET"], "echo \"$A\" \"$HOST_SET\""), "b c \n");
    assert_eq!(run(&["-w", "/tmp/new"], "pwd"), "/tmp/new\n");
    assert_eq!(run(&["-u", "nobody"], "id -u; id -g"), "65534\n65534\n");
    assert_eq!(run(&["-u", "12:34"], "id -u; id -g"), "12\n34\n");
    assert_eq!(run(&["--network", "none"], "ls /sys/class/net"), "lo\n");
    let sysctl = ["--network", "none", "--sysctl", "net.core.somaxconn=77"];
    assert_eq!(run(&sysctl, "cat /proc/sys/net/core/somaxconn"), "77\n");
    for (words, refusal) in [
        (["--sysctl", "net.core.somaxconn=77"], "not allowed in host network namespace"),
        (["--sysctl", "kernel.panic=1"], "sysctl 'kernel.panic' is not allowed"),
        (["--no-such-flag=1", "x"], "unknown flag: --no-such-flag\n"),
        (["-xyz", "--rm"], "unknown shorthand flag: 'x' in -xyz\n"),
    ] {
        world.stave(["run", words[0], words[1], &image, "true"]).exits(125).says(refusal);
    }
    assert_eq!(run(&["--read-only"], "touch /x 2>/dev/null || echo refused"), "refused\n");
    let entry = world.stave(["run", "--rm", "--entrypoint", "echo", &image, "an", "echo"]).success();
    assert_eq!(entry.stdout, "an echo\n");
}

#[test]
fn volumes_are_the_hosts_files() {
    let world = Environment::new();
    let image = busybox();
    let shared = world.path("shared");
    std::fs::create_dir(&shared).expect("creates");
    std::fs::write(shared.join("in"), "given").expect("writes");
    let volume = format!("{}:/v", shared.display());
    let words = ["run", "--rm", "-v", &volume, &image, "sh", "-c", "cat /v/in; echo made > /v/out"];
    assert_eq!(world.stave(words).success().stdout, "given");
    assert_eq!(std::fs::read_to_string(shared.join("out")).expect("is there"), "made\n");
    let readonly = format!("{volume}:ro");
    world.stave(["run", "--rm", "-v", &readonly, &image, "touch", "/v/no"]).exits(1);
    world.stave(["run", "--rm", "-v", "/no/such/place/at-all:/v:bad", &image, "true"]).exits(125);
}

#[test]
fn each_container_has_files_of_its_own() {
    let world = Environment::new();
    let image = busybox();
    world.stave(["run", "--rm", &image, "touch", "/mine"]).success();
    world.stave(["run", "--rm", &image, "test", "-e", "/mine"]).exits(1);
}

#[test]
fn stdin_is_passed_with_i() {
    let world = Environment::new();
    let image = busybox();
    assert_eq!(
        world.stave_with_input(&["run", "--rm", "-i", &image, "cat"], b"typed in").success().stdout,
        "typed in"
    );
    assert_eq!(world.stave_with_input(&["run", "--rm", &image, "cat"], b"unheard").success().stdout, "");
}

#[test]
fn a_terminal_is_one() {
    let world = Environment::new();
    let line = format!(
        "{} run --rm -t {} sh -c 'test -t 0 && test -t 1 && tty'",
        crate::environment::program().display(),
        busybox()
    );
    let mut command = std::process::Command::new("script");
    command.args(["-qec", &line, "/dev/null"]).env("STAVE_ROOT", world.root());
    let output = command.output().expect("script runs");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}");
    assert!(text.contains("/dev/pts/0") || text.contains("/dev/console"), "{text}");
    world.stave(["run", "--rm", "-t", &busybox(), "true"]).exits(125).says("not a terminal");
}

#[test]
fn signals_are_forwarded() {
    let world = Environment::new();
    let sleep = own_sleep(86_000);
    let script = format!(
        "n=0; trap 'n=$((n+1)); echo caught $n; test $n -lt 3 || exit 7' TERM; echo ready; while :; do {sleep} & wait; done"
    );
    let mut child = world.start(&["run", "--rm", &busybox(), "sh", "-c", &script]);
    let mut out = std::io::BufReader::new(child.stdout.take().expect("is piped"));
    let mut line = String::new();
    std::io::BufRead::read_line(&mut out, &mut line).expect("reads");
    assert_eq!(line, "ready\n");
    let start = Instant::now();
    for number in 1..=3 {
        // Each is the command's own business, however many there are.
        signal(&child, Signal::TERM);
        line.clear();
        std::io::BufRead::read_line(&mut out, &mut line).expect("reads");
        assert_eq!(line, format!("caught {number}\n"));
    }
    let status = child.wait().expect("ends");
    assert_eq!(status.code(), Some(7));
    assert!(start.elapsed() < Duration::from_secs(5));
    assert_eq!(processes_with(&sleep), [""; 0]);
}
