//! What every process finds, held against the OCI runtime specification's defaults for Linux (config-linux.md, "Default
//! Filesystems" and "Default Devices") and docker's; and calls and capabilities held against podman's, one by one.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use stave_sandbox::CapabilitySet;

use crate::Test;
use crate::fixture::{Place, run};

pub(crate) const TESTS: &[Test] = &[
    ("defaults::mounts_are_the_specification_s", mounts_are_the_specification_s),
    ("defaults::devices_are_the_specification_s", devices_are_the_specification_s),
    ("defaults::paths_are_masked_and_protected_as_docker_s", paths_are_masked_and_protected_as_docker_s),
    ("defaults::a_process_begins_as_docker_s", a_process_begins_as_docker_s),
    ("defaults::capabilities_compared_with_podman", capabilities_compared_with_podman),
    ("defaults::calls_compared_with_podman", calls_compared_with_podman),
];

/// Mount point, kind and what its options must hold. `rw` of a mount whose file system is read-only says nothing.
const MOUNTS: &[(&str, &str, &[&str])] = &[
    ("/proc", "proc", &["nosuid", "nodev", "noexec", "rw"]),
    ("/dev", "tmpfs", &["nosuid", "mode=755", "size=65536k"]),
    ("/dev/pts", "devpts", &["nosuid", "noexec", "mode=620", "ptmxmode=666", "gid=5"]),
    ("/dev/shm", "tmpfs", &["nosuid", "nodev", "noexec", "size=65536k"]),
    ("/dev/mqueue", "mqueue", &["nosuid", "nodev", "noexec"]),
    ("/sys", "sysfs", &["nosuid", "nodev", "noexec", "ro"]),
];

fn mounts_are_the_specification_s() {
    let place = Place::new();
    let text = place.output("busybox cat /proc/mounts");
    for (at, kind, options) in MOUNTS {
        let line = text.lines().find(|line| line.split(' ').nth(1) == Some(at));
        let fields: Vec<&str> = line.unwrap_or_else(|| panic!("no {at} in\n{text}")).split(' ').collect();
        assert_eq!(fields[2], *kind, "{at}");
        let found: Vec<&str> = fields[3].split(',').collect();
        let missing: Vec<_> = options.iter().filter(|option| !found.contains(option)).collect();
        assert!(missing.is_empty(), "{at}: {missing:?} of {found:?}");
    }
    // The root, what is listed, devices, masks and what is read-only: nothing of the host.
    let others = text.lines().filter_map(|line| line.split(' ').nth(1));
    let known = |at: &str| {
        ["/", "/sys"].contains(&at) || ["/proc", "/dev", "/sys/"].iter().any(|p| at.starts_with(p))
    };
    assert!(others.clone().all(known), "{text}");
}

fn devices_are_the_specification_s() {
    let place = Place::new();
    let text = place.output(
        "cd /dev; busybox stat -c '%n %F %t:%T %a' null zero full random urandom tty ptmx pts/ptmx; \
         for l in fd stdin stdout stderr ptmx; do busybox readlink $l; done; test -d shm && busybox stat -c %a shm",
    );
    let expected = "null character special file 1:3 666\nzero character special file 1:5 666\n\
        full character special file 1:7 666\nrandom character special file 1:8 666\n\
        urandom character special file 1:9 666\ntty character special file 5:0 666\n\
        ptmx symbolic link 0:0 777\npts/ptmx character special file 5:2 666\n\
        /proc/self/fd\n/proc/self/fd/0\n/proc/self/fd/1\n/proc/self/fd/2\npts/ptmx\n1777\n";
    assert_eq!(text, expected);
}

fn paths_are_masked_and_protected_as_docker_s() {
    let place = Place::new();
    let spec = place.script("true");
    let mut script = String::new();
    for path in &spec.masked_paths {
        // A file is the null device, a directory is empty and read-only; what this kernel lacks is missing.
        let path = path.display();
        script += &format!(
            "if test -d {path}; then echo {path} $(busybox ls {path} | busybox wc -l); busybox touch {path}/x 2>/dev/null && \
             echo {path} writable; elif test -e {path}; then echo {path} $(busybox head -c 1 {path} | busybox wc -c); fi;"
        );
    }
    for path in &spec.readonly_paths {
        let path = path.display();
        script += &format!("busybox grep -q ' {path} [a-z]* ro,' /proc/mounts && echo {path} ro;");
    }
    let text = place.output(&format!("{script} true"));
    for line in text.lines() {
        assert!(line.ends_with(" 0") || line.ends_with(" ro"), "{line} in\n{text}");
    }
    // Those that every kernel has.
    for path in ["/proc/keys 0", "/sys/firmware 0", "/proc/sys ro", "/proc/irq ro"] {
        assert!(text.lines().any(|line| line == path), "no `{path}` in\n{text}");
    }
}

fn a_process_begins_as_docker_s() {
    let place = Place::new();
    let mut spec = place.script(
        "echo $$; umask; pwd; busybox hostname; busybox cat /proc/self/oom_score_adj; \
         busybox grep -E '^(NoNewPrivs|Seccomp|Groups)' /proc/self/status | busybox tr -d ' '; \
         busybox cut -d' ' -f6 /proc/1/stat; busybox cat /proc/self/cgroup | busybox grep -vc ':/$'; \
         busybox sed -n 's/Max open files *//p' /proc/self/limits; busybox ls /sys/class/net; busybox readlink /proc/self/fd/3 || true",
    );
    "inside".clone_into(&mut spec.hostname);
    let outcome = run(&spec);
    let adjusted = fs::read_to_string("/proc/self/oom_score_adj").expect("a number");
    let limits = fs::read_to_string("/proc/self/limits").expect("limits");
    let files =
        limits.lines().find_map(|line| line.strip_prefix("Max open files")).expect("a limit").trim_start();
    let expected = format!(
        "1\n0022\n/\ninside\n{adjusted}Groups:\t\nNoNewPrivs:\t0\nSeccomp:\t2\nSeccomp_filters:\t1\n1\n0\n{files}\nlo\n"
    );
    assert_eq!(outcome.stdout, expected, "{outcome:?}");
}

/// What podman's container prints over the same files; `None` where there is no podman.
fn podman(place: &Place, more: &[&str], args: &[&str]) -> Option<String> {
    let root = place.path("root");
    fs::create_dir_all(root.join("proc")).expect("a directory");
    let mut command = Command::new("podman");
    command.args(["run", "--rm", "--network", "none", "--runtime", "runc"]);
    // Its own are more than a caller with a hard limit may set.
    command.args(["--log-driver", "none", "--ulimit", "nofile=1024:1024", "--ulimit", "nproc=4096:4096"]);
    let mount = format!("{}:/probe:ro", std::env::current_exe().expect("this program").display());
    let output = command.args(more).args(["-v", &mount, "--rootfs"]).arg(root).args(args).output();
    match output {
        Ok(output) if output.status.success() => Some(String::from_utf8_lossy(&output.stdout).into_owned()),
        Ok(output) => {
            eprintln!("not compared: {}", String::from_utf8_lossy(&output.stderr));
            None
        }
        Err(error) => {
            eprintln!("not compared: podman: {error}");
            None
        }
    }
}

const BOUNDING: [&str; 4] = ["/bin/busybox", "grep", "CapBnd", "/proc/self/status"];

/// podman grants what docker does, but for three.
fn capabilities_compared_with_podman() {
    let place = Place::new();
    let docker = format!("CapBnd:\t{:016x}\n", CapabilitySet::DOCKER_DEFAULT.bits());
    assert_eq!(run(&place.spec(&BOUNDING)).stdout, docker);
    let added = ["--cap-add", "mknod,net_raw,audit_write"];
    if let Some(theirs) = podman(&Place::new(), &added, &BOUNDING) {
        assert_eq!(theirs, docker);
    }
    if let Some(theirs) = podman(&Place::new(), &[], &BOUNDING) {
        let [mknod, net_raw, audit_write] = [27, 13, 29].map(|number| 1_u64 << number);
        let fewer = CapabilitySet::DOCKER_DEFAULT.bits() & !(mknod | net_raw | audit_write);
        assert_eq!(theirs, format!("CapBnd:\t{fewer:016x}\n"));
    }
}

/// Number and outcome of every call, as the probe prints them.
fn calls(text: &str) -> BTreeMap<u32, String> {
    let line = |line: &str| {
        let (number, word) = line.split_once(' ').expect("two words");
        (number.parse().expect("a number"), word.to_owned())
    };
    text.lines().map(line).collect()
}

/// Calls on which podman's profile answers differently: all of them are refused here. The numbers are x86-64's.
const PODMAN_ALLOWS: &[(u32, &str)] = &[
    // With the flags for namespaces.
    (56, "clone"),
    (238, "set_mempolicy"),
    (239, "get_mempolicy"),
    (165, "mount"),
    (166, "umount2"),
    (155, "pivot_root"),
    (237, "mbind"),
    (250, "keyctl"),
    (272, "unshare"),
    (308, "setns"),
    (428, "open_tree"),
    (429, "move_mount"),
    (430, "fsopen"),
    (431, "fsconfig"),
    (432, "fsmount"),
    (433, "fspick"),
    (435, "clone3"),
    (438, "pidfd_getfd"),
    (442, "mount_setattr"),
];

/// Calls that docker's profile lets through, and podman's, at least of some versions, does not.
const PODMAN_REFUSES: &[(u32, &str)] = &[(278, "vmsplice"), (333, "io_pgetevents")];

/// Tries every call number with senseless arguments, here and in podman: "refused" is `EPERM`, "missing" `ENOSYS`.
fn calls_compared_with_podman() {
    if cfg!(not(target_arch = "x86_64")) {
        return;
    }
    let place = Place::new();
    let ours = calls(&run(&place.probe("every-call")).stdout);
    assert!(ours.len() > 400 && ours[&0] == "allowed" && ours[&165] == "refused", "{ours:?}");
    let with = ["--cap-add", "mknod,net_raw,audit_write"];
    let Some(theirs) = podman(&Place::new(), &with, &["/probe", "probe", "every-call"]) else { return };
    let theirs = calls(&theirs);
    let differ =
        |allowed: &BTreeMap<u32, String>, other: &BTreeMap<u32, String>, words: &[&str]| -> Vec<u32> {
            let through = allowed.iter().filter(|(_, word)| *word == "allowed").map(|(number, _)| *number);
            through.filter(|number| words.contains(&other[number].as_str())).collect()
        };
    // What is missing there is younger than that version of the profile.
    let wider = differ(&theirs, &ours, &["refused", "missing"]);
    let narrower = differ(&ours, &theirs, &["refused"]);
    println!("let through by podman alone: {wider:?}, here alone: {narrower:?}");
    let unknown = |found: Vec<u32>, known: &[(u32, &str)]| -> Vec<u32> {
        found.into_iter().filter(|one| !known.iter().any(|(known, _)| known == one)).collect()
    };
    assert_eq!(unknown(wider, PODMAN_ALLOWS), [0; 0], "podman lets these through, and this does not");
    assert_eq!(unknown(narrower, PODMAN_REFUSES), [0; 0], "podman refuses these, and this does not");
}
