//! Sandboxes whose ground was made before they were asked for are those that were made from the start.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use stave_sandbox::{Launcher, MountSpec, Network, SandboxSpec};

use crate::Test;
use crate::fixture::{Place, run_by};

pub(crate) const TESTS: &[Test] = &[
    ("ahead::what_waited_is_as_what_did_not", what_waited_is_as_what_did_not),
    ("ahead::what_does_not_fit_is_made_anew", what_does_not_fit_is_made_anew),
];

/// Longer than any machine needs to make one ahead.
const PATIENCE: Duration = Duration::from_secs(30);

/// Everything a process can tell about where it is.
const LOOK: &str = "cut() { busybox cut \"$@\"; }; busybox cat /proc/self/mountinfo | cut -d' ' -f4-6,8- | busybox sed 's/^.file-[0-9]*/file/' | busybox sort; \
     busybox grep -E 'Cap|Seccomp|NoNewPrivs|Groups|Uid|NSpid|Shd|SigIgn|SigBlk' /proc/self/status; busybox hostname; \
     set -- /proc/[0-9]*; echo $#; busybox ls -l /dev /dev/pts /dev/shm | cut -c1-10; \
     set -- /proc/1/fd/*; echo $#; busybox cat /proc/self/limits; busybox cat /etc/hosts; pwd; \
     busybox cat /proc/1/sessionid /proc/keys; (echo x > /proc/sys/kernel/domainname) 2>&1; busybox ls /sys/firmware; umask";

fn spec(place: &Place, script: &str, number: usize) -> SandboxSpec {
    let mut spec = place.script(script);
    if let stave_sandbox::RootFs::Overlay(root) = &mut spec.rootfs {
        (root.upper, root.work) =
            (place.path(&format!("{number}/upper")), place.path(&format!("{number}/work")));
        for directory in [&root.upper, &root.work] {
            std::fs::create_dir_all(directory).expect("a directory");
        }
    }
    spec.network = Network::Host;
    spec.hostname = "inside".to_owned();
    let (contents, target) = (b"127.0.0.1 inside\n".to_vec(), "/etc/hosts".into());
    spec.mounts.push(MountSpec::File { target, contents, mode: 0o644, uid: 0, gid: 0 });
    spec
}

/// Starts sandboxes until one of them was made ahead, each with the next number; what each printed, and whether it was.
///
/// The launcher tells nobody that the process which waits is ready: the next start shows it.
fn until_ahead(
    launcher: &Launcher,
    numbers: &mut std::ops::RangeFrom<usize>,
    spec: impl Fn(usize) -> SandboxSpec,
) -> Vec<(String, bool)> {
    let begin = Instant::now();
    let mut seen = Vec::new();
    for number in numbers {
        let outcome = run_by(launcher, &spec(number)).expect("a sandbox");
        seen.push((outcome.stdout.replace(&format!("/{number}/"), "/N/"), outcome.ahead));
        if outcome.ahead {
            return seen;
        }
        assert!(begin.elapsed() < PATIENCE, "none of {} sandboxes was made ahead", seen.len());
    }
    seen
}

fn what_waited_is_as_what_did_not() {
    let (launcher, place) = (Launcher::new(), Place::new());
    let mut numbers = 0..;
    let script = format!("busybox readlink /proc/self/ns/mnt; {LOOK}");
    let mut seen = Vec::new();
    for _ in 0..3 {
        seen.extend(until_ahead(&launcher, &mut numbers, |number| spec(&place, &script, number)));
    }
    // Nothing waits for the first, nor before there was a second.
    assert_eq!(seen[..2].iter().map(|(_, ahead)| *ahead).collect::<Vec<_>>(), [false, false]);
    let (namespaces, looks): (BTreeSet<&str>, Vec<&str>) =
        seen.iter().map(|(printed, _)| printed.split_once('\n').expect("lines")).unzip();
    assert!(looks[0].contains("/proc/sys") && looks[0].contains("inside"), "{}", looks[0]);
    for later in &looks[1..] {
        assert_eq!(later, &looks[0]);
    }
    // Numbers of namespaces that are gone are given again, so that not all need be different.
    let own = std::fs::read_link("/proc/self/ns/mnt").expect("a namespace");
    assert!(!namespaces.contains(&*own.to_string_lossy()));
}

fn what_does_not_fit_is_made_anew() {
    let (launcher, place) = (Launcher::new(), Place::new());
    let mut numbers = 0..;
    for mib in [1, 2, 1] {
        let sized = |number| {
            let script = "busybox df -k /dev/shm | busybox tail -1 | busybox awk '{print $2}'";
            let mut spec = spec(&place, script, number);
            spec.shm_size = mib << 20;
            spec
        };
        let seen = until_ahead(&launcher, &mut numbers, sized);
        // What waited when the size changed is not for this one.
        assert!(!seen[0].1);
        for (printed, _) in seen {
            assert_eq!(printed, format!("{}\n", mib << 10));
        }
    }
}
