//! Ways out of containers that were found in other runtimes, each tried by a build as its discoverer did.
//!
//! What a shell inside can try is in `confinement/escapes.sh`, what takes a program in the sandbox's own tests. Here are
//! those that take an image, a Dockerfile or a context of the attacker's making. Each has to be refused or to stay inside.

use std::os::unix::net::UnixListener;

use crate::environment::{Environment, Outcome, is_privileged};

/// A file that every machine of ours has and no test image does.
const OUTSIDE: &str = "/var/lib/dpkg/status";

/// A build of `dockerfile` in which no step may find [`OUTSIDE`], however it ends.
#[track_caller]
fn stays_inside(world: &Environment, dockerfile: &str, words: &[&str]) -> Outcome {
    world.dockerfile(dockerfile);
    let outcome = world.stave([&["build", "--no-cache", "-t", "inside"], words, &["."]].concat());
    assert!(!outcome.stderr.contains("ESCAPED"), "{dockerfile}\n{}", outcome.stderr);
    outcome
}

/// CVE-2024-21626, CVE-2019-5736's way in: a working directory that is a descriptor of the runtime's.
#[test]
fn a_working_directory_is_no_leaked_descriptor() {
    let world = Environment::new();
    let stages = (3..11).map(|number| {
        format!(
            "FROM BUSYBOX AS s{number}\nWORKDIR /proc/self/fd/{number}\n\
             RUN for up in . .. ../.. ../../.. ../../../../..; do test ! -e $up{OUTSIDE} || echo ESC''APED; done\n"
        )
    });
    // They fail, or are directories of the image's; either way nothing is found.
    for stage in stages {
        stays_inside(&world, &stage, &[]);
    }
    world.dockerfile("FROM BUSYBOX\nRUN true\n");
    world.build("plain").success();
    for number in 3..11 {
        let directory = format!("/proc/self/fd/{number}");
        let script = format!("cat ../../../../..{OUTSIDE}");
        let seen = world.stave(["run", "--rm", "-w", &directory, "plain", "sh", "-c", &script]);
        assert_ne!(seen.code, Some(0), "{}", seen.stdout);
    }
}

/// CVE-2025-31133 and CVE-2025-52565: devices of the image's own that are links, where the runtime mounts something on
/// them or uses them to mask.
#[test]
fn links_in_an_images_dev_change_no_masks() {
    let world = Environment::new();
    let links = "FROM BUSYBOX AS links\nRUN mkdir -p /l/dev && ln -s /proc/sys/kernel/core_pattern /l/dev/null && \
                 ln -s /proc/sysrq-trigger /l/dev/console && ln -s /proc /l/dev/pts && ln -s /proc /l/dev/shm\n";
    let script = "FROM links\nCOPY --from=links /l/dev /dev\n\
                  RUN if echo x > /proc/sys/kernel/core_pattern; then echo ESC''APED; fi; \
                  if head -c 1 /proc/keys | grep -q .; then echo ESC''APED; fi; test -c /dev/null && echo MASKED\n";
    let outcome = stays_inside(&world, &format!("{links}{script}"), &["--progress=plain"]).success();
    assert!(outcome.stderr.contains("MASKED"), "{}", outcome.stderr);
}

/// CVE-2024-23651 and CVE-2024-23652: a mount's source or target that becomes a link, in the step or before it.
#[test]
fn sources_and_targets_of_mounts_stay_inside() {
    let world = Environment::new();
    let links = "FROM BUSYBOX AS links\nRUN ln -s /var /up && ln -s ../../../../../../var/lib/dpkg /away && mkdir -p /real\n";
    let cases = [
        "RUN --mount=type=bind,from=links,source=/away,target=/m test ! -e /m/status || echo ESC''APED\n",
        "RUN --mount=type=bind,from=links,source=/up/lib,target=/m test ! -e /m/dpkg/status || echo ESC''APED\n",
        "RUN --mount=type=cache,from=links,source=/away,id=a,target=/m test ! -e /m/status || echo ESC''APED\n",
        "RUN --mount=type=cache,id=b,target=/m ln -s / /m/root\n\
         RUN --mount=type=cache,id=b,source=root/var,target=/m test ! -e /m/lib/dpkg/status || echo ESC''APED\n",
        "RUN --mount=type=tmpfs,target=/away/status echo x > /away/status/f; true\n",
    ];
    for case in cases {
        stays_inside(&world, &format!("{links}FROM links\n{case}"), &[]);
    }
    // A mount point that a step replaces by a link is not followed when it is cleaned away.
    let victim = world.path("victim");
    std::fs::create_dir(&victim).expect("creates");
    stays_inside(
        &world,
        &format!(
            "FROM BUSYBOX\nRUN --mount=type=tmpfs,target=/gone/mount true; rm -rf /gone; ln -s {} /gone\n",
            victim.display()
        ),
        &[],
    );
    assert!(victim.is_dir());
}

/// A socket in the context is the host's, and no way to talk to it.
#[test]
fn sockets_of_the_host_are_not_lent_with_the_context() {
    let world = Environment::new();
    let _listening = UnixListener::bind(world.context().join("host.sock")).expect("listens");
    let connect = "perl -MSocket -e 'socket(S, PF_UNIX, SOCK_STREAM, 0); print \"ESC\".\"APED\\n\" \
                   if connect(S, sockaddr_un(\"/context/host.sock\")); print \"TRIED\\n\"'";
    let steps = format!("FROM REGISTRY/debian\nRUN --mount=type=bind,target=/context {connect}\n");
    let said = stays_inside(&world, &steps, &[]).success().stderr;
    assert!(said.lines().any(|line| line.ends_with(" TRIED")), "{said}");
}

/// What a step leaves in a cache for another build's user is that user's container's business, and no right of the host.
#[test]
fn a_program_of_roots_in_a_shared_cache_gains_nothing_outside() {
    let world = Environment::new();
    let make = "FROM BUSYBOX\nRUN --mount=type=cache,id=shared,target=/c cp /bin/busybox /c/id && chmod 4755 /c/id\n";
    stays_inside(&world, make, &[]).success();
    let cache =
        std::process::Command::new("find").arg(world.root()).args(["-perm", "-4000", "-name", "id"]).output();
    let found = String::from_utf8_lossy(&cache.expect("find").stdout).into_owned();
    // Who is not root of the machine must not reach it there; in a user namespace it is not root's to begin with.
    if is_privileged() {
        use std::os::unix::fs::PermissionsExt as _;
        let path = std::path::Path::new(found.trim());
        let closed = path.ancestors().skip(1).take_while(|at| at.starts_with(world.root()));
        let is_closed = |at: &std::path::Path| {
            std::fs::metadata(at).is_ok_and(|folder| folder.permissions().mode() & 0o001 == 0)
        };
        assert!(closed.into_iter().any(is_closed), "{found}");
    }
}
