//! Sandboxes that ask before they take much of a disk, and that can be held still.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use stave_sandbox::{ExitStatus, Room, Sandbox, SandboxSpec, Security, Stdio};

use crate::Test;
use crate::fixture::{LAUNCHER, Place, read};

pub(crate) const TESTS: &[Test] = &[
    ("bounded::what_takes_much_at_once_is_asked_for", what_takes_much_at_once_is_asked_for),
    ("bounded::who_copies_asks_for_what_there_is", who_copies_asks_for_what_there_is),
    ("bounded::what_is_refused_finds_the_disk_full", what_is_refused_finds_the_disk_full),
    ("bounded::so_does_what_is_not_confined", so_does_what_is_not_confined),
    ("bounded::what_is_held_still_stands_and_goes_on", what_is_held_still_stands_and_goes_on),
    ("bounded::what_is_held_still_can_be_killed", what_is_held_still_can_be_killed),
];

/// A long time for one test; nothing waits for it to pass.
const LONG: Duration = Duration::from_secs(60);

/// A sandbox, what it prints, and the end of what it reads.
fn start(spec: &SandboxSpec, room: Room) -> (Sandbox, File, File) {
    let (stdin, feed) = std::io::pipe().expect("a pipe");
    let (stdout, inside) = std::io::pipe().expect("a pipe");
    let stderr = inside.try_clone().expect("a copy").into();
    let stdio = Stdio { stdin: stdin.into(), stdout: inside.into(), stderr };
    let sandbox = LAUNCHER.spawn_bounded(spec, stdio, Some(room)).expect("a sandbox");
    (sandbox, OwnedFd::from(stdout).into(), OwnedFd::from(feed).into())
}

/// What a script prints, and what it asked for, when it may have less than so much.
fn ask(script: &str, below: u64, security: Security) -> (String, Vec<u64>) {
    let place = Place::new();
    let mut spec = place.script(script);
    spec.security = security;
    ask_in(&spec, below)
}

/// The same for any specification.
fn ask_in(spec: &SandboxSpec, below: u64) -> (String, Vec<u64>) {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let room = Room::new({
        let asked = Arc::clone(&asked);
        move |bytes| {
            asked.lock().expect("a list").push(bytes);
            bytes < below
        }
    });
    let (mut sandbox, stdout, _feed) = start(spec, room);
    let text = read(stdout);
    sandbox.wait().expect("an end");
    let asked = asked.lock().expect("a list").clone();
    (text, asked)
}

/// Commands that take, and what each asks for.
const TAKING: &str = "busybox fallocate -l 3000000 /f
    busybox fallocate -l 3000000 /f
    busybox dd if=/dev/zero of=/g bs=2M count=2 2>/dev/null
    busybox dd if=/dev/zero of=/h bs=1M count=2 2>/dev/null
    busybox dd if=/dev/zero of=/dev/null bs=2M count=2 2>/dev/null
    busybox dd if=/dev/zero of=/dev/shm/x bs=2M count=2 2>/dev/null
    busybox truncate -s 1000000000000 /t
    busybox stat -c %s /f /g";

fn what_takes_much_at_once_is_asked_for() {
    let (text, asked) = ask(TAKING, u64::MAX, Security::Default);
    assert_eq!((text.as_str(), asked), ("3000000\n4194304\n", vec![3_000_000, 2 << 20, 2 << 20]));
}

fn who_copies_asks_for_what_there_is() {
    let place = Place::new();
    let (text, asked) = ask_in(&place.probe("copies"), u64::MAX);
    assert_eq!(text, format!("{:?}\n", [3, 3, 3 << 20, 3 << 20]));
    assert_eq!(asked, [3 << 20, 3 << 20]);
}

fn what_is_refused_finds_the_disk_full() {
    let script = "busybox fallocate -l 5000000000 /f; busybox stat -c %b /f";
    let (text, asked) = ask(script, 5_000_000_000, Security::Default);
    assert!(text.contains("No space left on device") && text.ends_with("\n0\n"), "{text}");
    assert_eq!(asked, [5_000_000_000]);
}

fn so_does_what_is_not_confined() {
    let (text, asked) = ask("busybox fallocate -l 5000000000 /f", 1, Security::Insecure);
    assert!(text.contains("No space left on device"), "{text}");
    assert_eq!(asked, [5_000_000_000]);
}

fn what_is_held_still_stands_and_goes_on() {
    let place = Place::new();
    let room = Room::new(|_| true).held_still();
    let (mut sandbox, mut stdout, mut feed) = start(&place.script("echo begun; read line; echo $line"), room);
    stdout.read_exact(&mut [0; 6]).expect("it has begun");
    let Some(freezer) = sandbox.freezer() else { return without_groups() };
    {
        let held = freezer.hold(LONG).expect("a group");
        assert!(held.is_still());
        feed.write_all(b"on\n").expect("room in the pipe");
        assert!(sandbox.try_wait().expect("no end").is_none());
    }
    assert_eq!(read(stdout), "on\n");
    assert_eq!(sandbox.wait().expect("an end").status, ExitStatus::Exited(0));
}

fn what_is_held_still_can_be_killed() {
    let place = Place::new();
    let room = Room::new(|_| true).held_still();
    let (mut sandbox, mut stdout, _feed) = start(&place.script("echo begun; sleep 1000 & sleep 1000"), room);
    stdout.read_exact(&mut [0; 6]).expect("it has begun");
    let Some(freezer) = sandbox.freezer() else { return without_groups() };
    let held = freezer.hold(LONG).expect("a group");
    assert!(held.is_still());
    freezer.kill().expect("a group");
    assert_eq!(sandbox.wait().expect("an end").status, ExitStatus::Signaled(9));
    drop(held);
}

/// A machine with the first hierarchies alone, or whose second may not be written.
fn without_groups() {
    let mounted = std::fs::read_to_string("/proc/self/mountinfo").expect("mounts").contains(" - cgroup2 ");
    let writable = mounted && rustix::fs::access("/sys/fs/cgroup", rustix::fs::Access::WRITE_OK).is_ok();
    assert!(!writable, "the unified hierarchy is there");
}
