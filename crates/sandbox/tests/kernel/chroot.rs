//! Sandboxes where no namespace can be made: this program again inside a sandbox, whose filter is docker's.

use std::fs;
use std::process::ExitCode;

use stave_sandbox::{Network, Process, RootFs, SandboxSpec};

use crate::Test;
use crate::fixture::{Place, run, start};

pub(crate) const TESTS: &[Test] = &[
    ("chroot::a_container_s_root_is_confined_by_its_root", a_container_s_root_is_confined_by_its_root),
    ("chroot::programs_are_refused_what_leads_out", programs_are_refused_what_leads_out),
    ("chroot::nothing_outlives_it", nothing_outlives_it),
    ("chroot::what_needs_a_namespace_is_refused", what_needs_a_namespace_is_refused),
];

/// Runs this program in a sandbox, where it is a container's root.
fn inside(scenario: &str) -> String {
    let place = Place::new();
    let outcome = run(&place.probe(scenario));
    assert!(outcome.exit.status.success(), "{outcome:?}");
    outcome.stdout
}

/// The program inside.
pub(crate) fn be_inside(scenario: &str) -> ExitCode {
    let tier = stave_sandbox::enter().expect("another root, at least");
    println!("{}", tier.name());
    fs::create_dir_all("/tree/bin").expect("directories");
    fs::copy("/bin/busybox", "/tree/bin/busybox").expect("a shell");
    std::os::unix::fs::symlink("busybox", "/tree/bin/sh").expect("a link");
    let spec = |script: &str| {
        let args = ["/bin/sh", "-c", script].map(ToOwned::to_owned).to_vec();
        let mut spec = SandboxSpec::new(RootFs::Chroot { path: "/tree".into() }, Process::new(args));
        spec.network = Network::Host;
        spec
    };
    match scenario {
        "chroot-confined" => {
            fs::write("/outside", "outside").expect("a file");
            let tried = "try() { what=$1; shift; if \"$@\" >/tried 2>&1; then echo $what: DONE; else echo $what: refused; fi; }
                try node busybox mknod /n c 1 3; try block busybox mknod /b b 254 0
                try chroot busybox chroot / /bin/sh -c true
                try mount busybox mount -t tmpfs none /bin; try unshare busybox unshare -U /bin/sh -c true
                try outside busybox cat ../../../outside; try proc busybox ls /proc/1
                try program busybox cat /proc/self/exe
                busybox ls -d /* | busybox xargs; busybox id -u; echo $(set | busybox grep -c LEAK)";
            print!("{}", run(&spec(tried)).stdout);
            let mut user =
                spec("busybox id -u; busybox id -g; busybox chown 1 /bin/sh 2>/dev/null || echo refused");
            (user.process.uid, user.process.gid) = (7, 8);
            print!("{}", run(&user).stdout);
            print!("{:?}", run(&spec("exit 7")).exit.status);
        }
        "chroot-escapes" => {
            fs::copy("/probe", "/tree/probe").expect("this program");
            let mut spec = spec("exec /probe probe escapes");
            let _listening = crate::ways_out::listen(&mut spec);
            print!("{}", run(&spec).stdout);
        }
        "chroot-ends" => {
            // In sessions of their own, their parents gone, deaf to signals.
            let leave = "for i in 1 2 3; do (busybox setsid /bin/sh -c \
                         'trap \"\" TERM HUP; while :; do busybox sleep 4321; done' >/dev/null 2>&1 &); done";
            run(&spec(&format!("{leave}; exit 0")));
            println!("{}", sleepers());
            let (sandbox, mut stdout, _stderr) =
                start(&spec(&format!("{leave}; echo ready; exec busybox sleep 4321"))).expect("a sandbox");
            std::io::Read::read_exact(&mut stdout, &mut [0; 6]).expect("a line");
            drop(sandbox);
            println!("{}", sleepers());
        }
        _ => {
            let refused = |change: fn(&mut SandboxSpec)| {
                let mut spec = spec("true");
                change(&mut spec);
                println!("{}", start(&spec).err().map_or("started".to_owned(), |error| error.to_string()));
            };
            refused(|spec| spec.network = Network::None);
            refused(|spec| spec.readonly_root = true);
            refused(|spec| {
                let target = "/cache".into();
                spec.mounts.push(stave_sandbox::MountSpec::Tmpfs { target, size: None, mode: 0o755 });
            });
        }
    }
    ExitCode::SUCCESS
}

/// Processes here that sleep for what those of the test do.
fn sleepers() -> usize {
    let processes = fs::read_dir("/proc").expect("processes").flatten();
    let line = |process: fs::DirEntry| fs::read(process.path().join("cmdline")).unwrap_or_default();
    processes.map(line).filter(|line| line.windows(4).any(|part| part == b"4321")).count()
}

fn a_container_s_root_is_confined_by_its_root() {
    let expected = "chroot\nnode: refused\nblock: refused\nchroot: refused\nmount: refused\nunshare: refused\n\
                    outside: refused\nproc: refused\nprogram: refused\n/bin /tried\n0\n0\n7\n8\nrefused\nExited(7)";
    assert_eq!(inside("chroot-confined"), expected);
}

/// What is around it stays in sight: that much `docs/rootless.md` says.
fn programs_are_refused_what_leads_out() {
    let printed = inside("chroot-escapes");
    let (tier, printed) = printed.split_once('\n').expect("lines");
    assert_eq!(tier, "chroot");
    let known = [
        "limits of the parent",
        "signals to the parent",
        "limits of the first process",
        "signals to the first process",
        "an abstract socket of the host",
    ];
    assert_eq!(crate::ways_out::done(printed), known);
}

fn nothing_outlives_it() {
    assert_eq!(inside("chroot-ends"), "chroot\n0\n0\n");
}

fn what_needs_a_namespace_is_refused() {
    let said = inside("chroot-refused");
    for part in ["a network namespace", "a read-only root needs a mount", "`/cache` needs a mount"] {
        assert!(said.contains(part), "{said}");
    }
}
