//! What the process may and what it sees: capabilities, system calls, devices, paths, network.

use std::fs::{self, File};
use std::os::fd::AsRawFd as _;

use stave_sandbox::{Capability, CapabilitySet, Network, Security};

use crate::Test;
use crate::fixture::{Place, run};

pub(crate) const TESTS: &[Test] = &[
    ("isolation::capabilities_of_root", capabilities_of_root),
    ("isolation::capabilities_of_another_user", capabilities_of_another_user),
    ("isolation::capabilities_are_clamped_to_those_held", capabilities_are_clamped_to_those_held),
    ("isolation::insecure_has_all_that_is_held", insecure_has_all_that_is_held),
    ("isolation::system_calls", system_calls),
    ("isolation::no_new_privileges", no_new_privileges),
    ("isolation::masked_and_readonly_paths", masked_and_readonly_paths),
    ("isolation::devices", devices),
    ("isolation::foreign_devices_cannot_be_opened", foreign_devices_cannot_be_opened),
    ("isolation::no_network_but_loopback", no_network_but_loopback),
    ("isolation::host_network", host_network),
    ("isolation::nothing_is_inherited", nothing_is_inherited),
    ("isolation::the_launchers_program_is_read_only", the_launchers_program_is_read_only),
    ("isolation::host_mounts_are_gone", host_mounts_are_gone),
];

const STATUS: &str =
    "busybox grep -E '^(CapInh|CapPrm|CapEff|CapBnd|CapAmb)' /proc/self/status | busybox cut -f2";

/// Inheritable, permitted, effective, bounding and ambient sets.
#[track_caller]
fn check_sets(printed: &str, expected: [u64; 5]) {
    let sets: Vec<u64> = printed.lines().map(|line| u64::from_str_radix(line, 16).expect("a set")).collect();
    assert_eq!(sets, expected, "{printed}");
}

fn held() -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("the status");
    let line = status.lines().find_map(|line| line.strip_prefix("CapPrm:")).expect("capabilities");
    u64::from_str_radix(line.trim(), 16).expect("a set")
}

fn capabilities_of_root() {
    let docker = CapabilitySet::DOCKER_DEFAULT.bits() & held();
    check_sets(&Place::new().output(STATUS), [0, docker, docker, docker, 0]);
}

fn capabilities_of_another_user() {
    let place = Place::new();
    let mut spec = place.script(&format!("{STATUS}; busybox id"));
    (spec.process.uid, spec.process.gid, spec.process.groups) = (1000, 1001, vec![7, 9]);
    let printed = run(&spec).stdout;
    let (sets, id) = printed.split_at(printed.find("uid=").expect("ids"));
    check_sets(sets, [0, 0, 0, CapabilitySet::DOCKER_DEFAULT.bits() & held(), 0]);
    assert_eq!(id, "uid=1000 gid=1001 groups=7,9\n");
}

fn capabilities_are_clamped_to_those_held() {
    let place = Place::new();
    let mut spec = place.script(STATUS);
    spec.process.capabilities = CapabilitySet::ALL;
    check_sets(&run(&spec).stdout, [0, held(), held(), held(), 0]);
    spec.process.capabilities = CapabilitySet::EMPTY.with(Capability::Kill);
    fs::remove_dir_all(place.path("work"))
        .and_then(|()| fs::create_dir(place.path("work")))
        .expect("a clean work");
    let kill = 1 << 5;
    check_sets(&run(&spec).stdout, [0, kill, kill, kill, 0]);
}

fn insecure_has_all_that_is_held() {
    let place = Place::new();
    let mut spec = place.script(&format!("{STATUS}; busybox grep Seccomp: /proc/self/status"));
    spec.security = Security::Insecure;
    let printed = run(&spec).stdout;
    let (sets, filter) = printed.split_at(printed.find("Seccomp").expect("the filter"));
    check_sets(sets, [0, held(), held(), held(), 0]);
    assert_eq!(filter, "Seccomp:\t0\n");
}

fn system_calls() {
    let place = Place::new();
    let expected = "mount: refused\numount2: refused\nmove_mount: refused\nfsopen: refused\nunshare: refused\n\
        setns: refused\nkeyctl: refused\nadd_key: refused\nbpf: refused\nperf_event_open: refused\n\
        userfaultfd: refused\nio_uring_setup: refused\ninit_module: refused\nkexec_load: refused\n\
        open_by_handle_at: refused\nreboot: refused\nsettimeofday: refused\nclone(CLONE_NEWNS): refused\n\
        clone3: missing\nsocket(AF_VSOCK): refused\nsocket(AF_ALG): refused\nsocket(AF_UNIX): allowed\n\
        personality(query): allowed\npersonality(no randomness): refused\ngetpid: allowed\n\
        a call of the future: missing\n";
    assert_eq!(run(&place.probe("calls")).stdout, expected);
    let seccomp = place.output("busybox grep Seccomp: /proc/self/status");
    assert_eq!(seccomp, "Seccomp:\t2\n");
}

fn no_new_privileges() {
    let place = Place::new();
    let mut spec = place.script("busybox grep NoNewPrivs /proc/self/status");
    assert_eq!(run(&spec).stdout, "NoNewPrivs:\t0\n");
    spec.process.no_new_privileges = true;
    assert_eq!(run(&spec).stdout, "NoNewPrivs:\t1\n");
}

fn masked_and_readonly_paths() {
    let place = Place::new();
    let script = "busybox wc -c < /proc/keys; busybox wc -c < /proc/timer_list; busybox ls /sys/firmware /proc/acpi; \
        (echo x > /proc/sys/kernel/domainname) 2>&1; (busybox mkdir /sys/x) 2>&1";
    let printed = place.output(&format!("{script}; true"));
    assert!(printed.starts_with("0\n0\n"), "{printed}");
    assert!(!printed.contains("DSDT") && !printed.contains("memmap"), "{printed}");
    assert_eq!(printed.matches("Read-only file system").count(), 2, "{printed}");
}

fn devices() {
    let printed = Place::new().output(
        "cd /dev; busybox ls; echo x > null; busybox head -c 3 zero | busybox wc -c; busybox head -c 3 urandom | \
         busybox wc -c; busybox readlink fd; busybox readlink core; (echo x > full) 2>&1; (busybox chmod 000 null) 2>&1; true",
    );
    let names =
        "core\nfd\nfull\nmqueue\nnull\nptmx\npts\nrandom\nshm\nstderr\nstdin\nstdout\ntty\nurandom\nzero\n";
    assert!(printed.starts_with(&format!("{names}3\n3\n")), "{printed}");
    assert!(printed.contains("/proc/self/fd\n") && printed.contains("No space left"), "{printed}");
    assert!(printed.contains("null: Read-only file system"), "{printed}");
}

fn foreign_devices_cannot_be_opened() {
    let script = "for at in / /dev/ /dev/shm/ /tmp/; do busybox mknod ${at}kmsg c 1 11 && (: < ${at}kmsg) 2>&1; done; true";
    let place = Place::new();
    let mut spec = place.script(script);
    spec.mounts.push(stave_sandbox::MountSpec::Tmpfs { target: "/tmp".into(), size: None, mode: 0o1777 });
    let outcome = run(&spec);
    assert_eq!(outcome.stdout.matches("Permission denied").count(), 4, "{outcome:?}");
}

fn no_network_but_loopback() {
    let printed = Place::new()
        .output("busybox ip -o link; busybox ping -c 1 -W 1 127.0.0.1 | busybox grep -c 'bytes from'");
    let lines: Vec<&str> = printed.lines().collect();
    assert!(lines.len() == 2 && lines[0].starts_with("1: lo: <LOOPBACK,UP,"), "{printed}");
    assert_eq!(lines[1], "1");
}

fn host_network() {
    let place = Place::new();
    let mut spec = place.script("busybox readlink /proc/self/ns/net");
    let host = fs::read_link("/proc/self/ns/net").expect("a namespace").display().to_string();
    assert_ne!(run(&spec).stdout.trim(), host);
    spec.network = Network::Host;
    assert_eq!(run(&spec).stdout.trim(), host);
}

fn nothing_is_inherited() {
    // A descriptor the caller forgot to protect.
    let leaked = File::open("/etc/passwd").expect("a file");
    // SAFETY: clears the flag of a descriptor owned here.
    assert_eq!(unsafe { libc::fcntl(leaked.as_raw_fd(), libc::F_SETFD, 0) }, 0);
    let place = Place::new();
    assert_eq!(run(&place.probe("descriptors")).stdout, "0 1 2\n");
    // The shell's own variables are all there is: no environment is inherited either.
    let printed = place.output("busybox env | busybox grep -vE '^(PWD|SHLVL|PATH|_)='; busybox true");
    assert_eq!(printed, "");
    let signals = place
        .output("busybox grep -E '^Sig(Blk|Ign|Cgt)' /proc/1/status | busybox cut -f2 | busybox sort -u");
    assert!(
        signals.lines().all(|set| u64::from_str_radix(set, 16).is_ok_and(|set| set & 1 << 12 == 0)),
        "{signals}"
    );
    drop(leaked);
}

fn the_launchers_program_is_read_only() {
    // An image may name the process that starts it as its program; what it then is must not be writable.
    let place = Place::new();
    assert_eq!(run(&place.spec(&["/proc/self/exe", "probe", "exe"])).stdout, "read-only\n");
}

fn host_mounts_are_gone() {
    let printed = Place::new().output("busybox cut -d' ' -f5 /proc/self/mountinfo");
    let foreign = |path: &str| !["/", "/proc", "/sys", "/dev"].contains(&path);
    let inside = ["/proc/", "/sys/", "/dev/"];
    let left: Vec<&str> = printed
        .lines()
        .filter(|path| foreign(path) && !inside.iter().any(|above| path.starts_with(above)))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}
