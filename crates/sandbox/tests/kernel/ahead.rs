//! Sandboxes whose ground was made before they were asked for are those that were made from the start.

use std::collections::BTreeSet;

use stave_sandbox::{Launcher, MountSpec, Network, SandboxSpec};

use crate::Test;
use crate::fixture::{Place, run_by};

pub(crate) const TESTS: &[Test] = &[
    ("ahead::what_waited_is_as_what_did_not", what_waited_is_as_what_did_not),
    ("ahead::what_does_not_fit_is_made_anew", what_does_not_fit_is_made_anew),
];

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

/// Namespaces and what is seen in `number` sandboxes, one after the other.
fn seen(
    launcher: &Launcher,
    place: &Place,
    numbers: std::ops::Range<usize>,
) -> (Vec<String>, BTreeSet<String>) {
    let script = format!("busybox readlink /proc/self/ns/mnt; {LOOK}");
    let look = |number| {
        let outcome = run_by(launcher, &spec(place, &script, number)).expect("a sandbox");
        let (namespace, rest) = outcome.stdout.split_once('\n').expect("lines");
        (rest.replace(&format!("/{number}/"), "/N/"), namespace.to_owned())
    };
    numbers.map(look).unzip()
}

fn what_waited_is_as_what_did_not() {
    let (launcher, place) = (Launcher::new(), Place::new());
    let (seen, namespaces) = seen(&launcher, &place, 0..8);
    assert!(seen[0].contains("/proc/sys") && seen[0].contains("inside"), "{}", seen[0]);
    for later in &seen[1..] {
        assert_eq!(later, &seen[0]);
    }
    // Numbers of namespaces that are gone are given again, so that not all need be different.
    let own = std::fs::read_link("/proc/self/ns/mnt").expect("a namespace");
    assert!(!namespaces.contains(&own.to_string_lossy().into_owned()));
}

fn what_does_not_fit_is_made_anew() {
    let (launcher, place) = (Launcher::new(), Place::new());
    let size = |number: usize, bytes: u64| {
        let mut spec =
            spec(&place, "busybox df -k /dev/shm | busybox tail -1 | busybox awk '{print $2}'", number);
        spec.shm_size = bytes;
        run_by(&launcher, &spec).expect("a sandbox").stdout
    };
    let sizes: Vec<String> = [1, 1, 1, 2, 1, 2, 2, 2]
        .into_iter()
        .enumerate()
        .map(|(number, mib)| size(number, mib << 20))
        .collect();
    assert_eq!(sizes.concat(), "1024\n1024\n1024\n2048\n1024\n2048\n2048\n2048\n");
}
