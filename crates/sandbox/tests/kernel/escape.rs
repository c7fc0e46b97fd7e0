//! Ways out of a container that need a program: each is tried from inside, and each is refused. (Those a shell can try
//! are in the end-to-end tests.) And that many starts leave nothing behind.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use stave_sandbox::{CgroupGuard, CgroupLimits, CgroupParent, ExitStatus, MountSpec, Network, Security};

use crate::fixture::{LAUNCHER, Place, bind, read, run, start};
use crate::{Test, ways_out};

pub(crate) const TESTS: &[Test] = &[
    ("escape::programs_are_refused", programs_are_refused),
    ("escape::abstract_sockets_of_the_host_need_its_network", abstract_sockets_of_the_host_need_its_network),
    ("escape::links_in_mount_targets_stay_inside", links_in_mount_targets_stay_inside),
    ("escape::a_device_is_usable_where_it_is_given", a_device_is_usable_where_it_is_given),
    ("escape::groups_of_dead_processes_are_swept", groups_of_dead_processes_are_swept),
    ("escape::limits_within_a_group_of_a_build", limits_within_a_group_of_a_build),
    ("escape::groups_made_inside_are_removed", groups_made_inside_are_removed),
    ("escape::memory_of_a_tree_is_measured", memory_of_a_tree_is_measured),
    ("escape::many_starts_leave_nothing", many_starts_leave_nothing),
];

fn programs_are_refused() {
    let place = Place::new();
    let mut spec = place.probe("escapes");
    let _listening = ways_out::listen(&mut spec);
    assert_eq!(ways_out::done(&run(&spec).stdout), [""; 0]);
}

/// With the host's network a step reaches sockets that have a name there and no file; with its own it does not.
fn abstract_sockets_of_the_host_need_its_network() {
    use std::os::linux::net::SocketAddrExt as _;
    use std::os::unix::net::{SocketAddr, UnixListener};
    let address = SocketAddr::from_abstract_name("stave-escape-test").expect("an address");
    let _listening = UnixListener::bind_addr(&address).expect("listens");
    let place = Place::new();
    let mut spec = place.probe("abstract-socket");
    assert_eq!(run(&spec).stdout, "refused\n");
    fs::remove_dir_all(place.path("work")).and_then(|()| fs::create_dir(place.path("work"))).expect("work");
    spec.network = Network::Host;
    assert_eq!(run(&spec).stdout, "connected\n");
}

fn links_in_mount_targets_stay_inside() {
    let place = Place::new();
    let outside = place.write("outside/secret", "outside");
    fs::create_dir_all(place.path("root/data")).expect("a directory");
    let up = format!("../../../../../..{}", place.path("outside").display());
    std::os::unix::fs::symlink(&up, place.path("root/data/out")).expect("a link");
    std::os::unix::fs::symlink(place.path("outside"), place.path("root/absolute")).expect("a link");
    place.write("given", "given");
    let mut spec = place.script("busybox cat /data/out/secret /absolute/secret 2>/dev/null; true");
    for target in ["/data/out/secret", "/absolute/secret"] {
        spec.mounts.push(bind(&place.path("given"), target, true));
    }
    assert_eq!(run(&spec).stdout, "givengiven");
    assert_eq!(fs::read_to_string(outside).expect("the host's file"), "outside");
}

fn a_device_is_usable_where_it_is_given() {
    let place = Place::new();
    let mut spec = place.script("busybox head -c 3 /dev/acme/zero | busybox wc -c");
    spec.mounts.push(MountSpec::Device { source: "/dev/zero".into(), target: "/dev/acme/zero".into() });
    assert_eq!(run(&spec).stdout.trim(), "3");
}

/// The memory hierarchy, if it is there and may be changed.
fn memory_groups() -> Option<CgroupGuard> {
    let limits = CgroupLimits { memory: Some(256 << 20), ..CgroupLimits::default() };
    let guard = CgroupGuard::create(&limits, &CgroupParent::Default);
    if guard.unlimited().is_empty() {
        return Some(guard);
    }
    eprintln!("not checked: {:?}", guard.unlimited());
    None
}

fn find(name: &str) -> String {
    let found = Command::new("find").args(["/sys/fs/cgroup", "-name", name]).output().expect("find");
    String::from_utf8_lossy(&found.stdout).into_owned()
}

fn groups_of_dead_processes_are_swept() {
    if memory_groups().is_none() {
        return;
    }
    // Another process makes a group, with one in it, and is killed.
    let mut caller = Command::new(std::env::current_exe().expect("this program"));
    let mut caller = caller.args(["grouped", "x"]).spawn().expect("starts");
    let name = format!("stave-{}-*", caller.id());
    while find(&name).lines().count() < 2 {
        std::thread::yield_now();
    }
    caller.kill().and_then(|()| caller.wait()).expect("killed");
    // Another test's process may have swept already; one that begins now does in any case. Once for each process and directory: a fresh one has to look.
    let sweeper = Command::new(std::env::current_exe().expect("this program")).args(["sweep", "x"]).status();
    assert!(sweeper.expect("runs").success());
    assert_eq!(find(&name), "");
}

/// What [`groups_of_dead_processes_are_swept`] kills.
pub(crate) fn be_grouped() -> ! {
    let outer = memory_groups().expect("a group");
    let _inner = CgroupGuard::create(&CgroupLimits::default(), &CgroupParent::Within(outer.place()));
    loop {
        std::thread::park();
    }
}

/// Makes a group, and so looks at what lies beside.
pub(crate) fn sweep() {
    drop(memory_groups());
}

fn limits_within_a_group_of_a_build() {
    let limits = CgroupLimits { memory: Some(64 << 20), pids: Some(50), ..CgroupLimits::default() };
    let build = CgroupGuard::create(&limits, &CgroupParent::Default);
    if !build.unlimited().is_empty() {
        eprintln!("not checked: {:?}", build.unlimited());
        return;
    }
    let place = Place::new();
    let mut spec = place.probe("memory");
    spec.cgroup_parent = CgroupParent::Within(build.place());
    let (mut sandbox, _stdout, _stderr) = start(&spec).expect("a sandbox");
    assert_eq!(sandbox.wait().expect("an end").status, ExitStatus::Signaled(9));
    let usage = sandbox.cgroup().expect("a group of its own").usage();
    assert!(usage.oom_killed, "{usage:?}");
    drop(sandbox);
    drop(build);
    assert_eq!(find(&format!("stave-{}-*", std::process::id())), "");
}

fn groups_made_inside_are_removed() {
    let place = Place::new();
    let inner = format!("inner-{}", std::process::id());
    let mut spec = place.script(&format!(
        "for group in /sys/fs/cgroup /sys/fs/cgroup/memory; do \
         if [ -f $group/cgroup.procs ]; then busybox mkdir -p $group/{inner}/deep && echo made; fi; done"
    ));
    spec.security = Security::Insecure;
    spec.cgroup = Some(CgroupLimits { memory: Some(64 << 20), ..CgroupLimits::default() });
    let (mut sandbox, stdout, _stderr) = start(&spec).expect("a sandbox");
    let (printed, exit) = (read(stdout), sandbox.wait().expect("an end"));
    let group = sandbox.cgroup().expect("a group");
    if !group.unlimited().is_empty() {
        eprintln!("not checked: {:?}", group.unlimited());
        return;
    }
    assert!(exit.status.success() && printed == "made\n", "{exit:?} {printed}");
    assert_eq!(find(&inner).lines().count(), 1);
    drop(sandbox);
    assert_eq!(find(&inner), "");
}

fn memory_of_a_tree_is_measured() {
    let place = Place::new();
    let script = "for i in 1 2 3; do /probe probe hold & done; wait";
    let mut spec = place.script(script);
    spec.mounts.push(bind(&std::env::current_exe().expect("this program"), "/probe", true));
    let (sandbox, _stdout, _stderr) = start(&spec).expect("a sandbox");
    let meter = sandbox.meter().expect("it runs");
    let begin = std::time::Instant::now();
    while meter.memory() < 3 * (32 << 20) {
        assert!(begin.elapsed().as_secs() < 20, "only {} bytes are seen", meter.memory());
        std::thread::yield_now();
    }
    drop(sandbox);
    assert_eq!(meter.memory(), 0);
}

/// Namespaces that processes of this user hold, mounts, control groups, descriptors of this process.
fn held() -> (usize, usize, String, usize) {
    let namespaces: BTreeSet<_> = fs::read_dir("/proc")
        .expect("processes")
        .flatten()
        .filter_map(|process| fs::read_link(process.path().join("ns/mnt")).ok())
        .collect();
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mounts").lines().count();
    let groups = find(&format!("stave-{}-*", std::process::id()));
    (namespaces.len(), mounts, groups, fs::read_dir("/proc/self/fd").expect("descriptors").count())
}

/// In a process of its own: the other tests of this one open and close what they like meanwhile.
fn many_starts_leave_nothing() {
    let program = std::env::current_exe().expect("this program");
    let output = std::process::Command::new(program).args(["counted", "starts"]).output().expect("a run");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Starts sandboxes one after the other and at once, and looks at what is left.
pub(crate) fn start_many() {
    stave_sandbox::enter_private_mounts().expect("mounts of its own");
    let place = Place::new();
    let spec = |number: usize| {
        let mut spec = place.script("exit 0");
        let layer = place.path(&format!("layers/{number}"));
        for part in ["upper", "work"] {
            fs::create_dir_all(layer.join(part)).expect("directories");
        }
        if let stave_sandbox::RootFs::Overlay(root) = &mut spec.rootfs {
            (root.upper, root.work, root.volatile) = (layer.join("upper"), layer.join("work"), true);
        }
        // With the host's network something is made ahead, without it nothing.
        spec.network = if number.is_multiple_of(4) { Network::None } else { Network::Host };
        spec
    };
    assert_eq!(run(&spec(0)).exit.status, ExitStatus::Exited(0));
    let _running = &*LAUNCHER;
    let (_, mounts, groups, descriptors) = held();
    for number in 1..=1000 {
        assert_eq!(run(&spec(number)).exit.status, ExitStatus::Exited(0));
    }
    std::thread::scope(|scope| {
        for number in 2000..2064 {
            let spec = spec(number);
            scope.spawn(move || assert_eq!(run(&spec).exit.status, ExitStatus::Exited(0)));
        }
    });
    let after = held();
    assert_eq!((after.1, &after.2), (mounts, &groups));
    assert_eq!(after.3, descriptors);
    let children = fs::read_to_string("/proc/thread-self/children").unwrap_or_default();
    assert!(children.split_whitespace().count() <= 1, "{children}");
}
