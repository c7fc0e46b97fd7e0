//! Sandboxes of an ordinary user: this program again, as a user with and without subordinate ids.

use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode, Stdio};

use stave_sandbox::{Launcher, Network};

use crate::fixture::{Place, bind, read, run, start};

pub(crate) const TESTS: &[crate::Test] = &[
    ("one id is enough for every owner", one_id_is_enough_for_every_owner),
    ("one id is whatever user is asked for", one_id_is_whatever_user_is_asked_for),
    ("a user's sandbox is as confined as root's", a_users_sandbox_is_as_confined_as_roots),
    ("a user's sandbox refuses programs what root's does", a_users_sandbox_refuses_programs_what_roots_does),
    ("subordinate ids are real owners", subordinate_ids_are_real_owners),
    ("the end of a user's caller takes everything", the_end_of_a_users_caller_takes_everything),
];

/// Nobody has this id, so nobody granted it any others.
const LONELY: u32 = 61_234;

/// Runs this program as a user; what it prints.
#[track_caller]
fn as_user(uid: u32, scenario: &str) -> String {
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    let output = command.args(["user", scenario]).uid(uid).gid(uid).output().expect("a run");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The program as an ordinary user's.
pub(crate) fn be_a_user(scenario: &str) -> ExitCode {
    let tier = stave_sandbox::enter().expect("namespaces");
    let place = Place::new();
    println!("{}", tier.name());
    let host = |script: &str| {
        let mut spec = place.script(script);
        spec.network = Network::Host;
        spec
    };
    match scenario {
        "owners" => {
            place.write("root/etc/passwd", "app:x:7:7::/:/bin/sh\n");
            place.write("root/etc/group", "app:x:7:\n");
            let spec = host(
                "set -e; cd /; busybox mkdir d; echo x > d/f; busybox ln -s f d/l; busybox chown 5:6 d/f; \
                 cd d; busybox chown 7 f ../d; busybox chown -h 8 l; busybox chown 9 /dev/stdout; \
                 busybox chown :3 /proc/../d/l; busybox chown 1 gone 2>&1 || echo refused; \
                 busybox chroot / /bin/busybox chown 4 /d/f; busybox su -s /bin/sh app -c true; \
                 busybox id -u",
            );
            let launcher = Launcher::new().recording_owners(record);
            let (output, inside) = std::io::pipe().expect("a pipe");
            let null = || std::fs::File::open("/dev/null").expect("/dev/null").into();
            let errors = std::io::stderr().as_fd().try_clone_to_owned().expect("a descriptor");
            let stdio = stave_sandbox::Stdio { stdin: null(), stdout: inside.into(), stderr: errors };
            let mut sandbox = launcher.spawn(&spec, stdio).expect("a sandbox");
            let text = read(std::os::fd::OwnedFd::from(output).into());
            assert!(sandbox.wait().expect("an end").status.success(), "{text}");
            drop(sandbox);
            print!("{text}");
        }
        "another" => {
            let mut spec =
                host("busybox id -u; busybox id -g; echo mine > /tmp/f; busybox stat -c %u:%g /tmp/f");
            spec.mounts.push(bind(&place.path("root"), "/image", true));
            std::fs::create_dir(place.path("root/tmp")).expect("a directory");
            (spec.process.uid, spec.process.gid) = (1000, 50);
            print!("{}", run(&spec).stdout);
        }
        "confined" => {
            print!(
                "{}",
                run(&host(
                    "busybox mount -t tmpfs none /mnt 2>/dev/null || echo no mount; \
                     busybox mknod /n c 1 3 2>/dev/null || echo no node; \
                     busybox unshare -U true 2>/dev/null || echo no namespace; \
                     (echo x > /sys/kernel/uevent_helper) 2>/dev/null || echo no sys; \
                     (echo x > /proc/sys/kernel/hostname) 2>/dev/null || echo no proc; \
                     busybox grep CapEff /proc/self/status; busybox readlink /proc/self; echo $$"
                ))
                .stdout
            );
        }
        "escapes" => {
            let mut spec = place.probe("escapes");
            let _listening = crate::ways_out::listen(&mut spec);
            print!("{}", run(&spec).stdout);
        }
        "subordinate" => {
            print!("{}", run(&host("echo > /f; busybox chown 5:6 /f; busybox stat -c %u:%g /f; busybox mknod /n p && echo node")).stdout);
        }
        _ => {
            let spec = host(&format!("trap '' TERM; echo ready; exec busybox sleep {scenario}"));
            let (mut sandbox, mut stdout, _stderr) = start(&spec).expect("a sandbox");
            std::io::Read::read_exact(&mut stdout, &mut [0; 6]).expect("a line");
            println!("ready");
            std::io::Write::flush(&mut std::io::stdout()).expect("a reader");
            let _end = sandbox.wait();
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

fn record(_file: BorrowedFd<'_>, uid: Option<u32>, gid: Option<u32>) -> std::io::Result<()> {
    println!("{uid:?} {gid:?}");
    Ok(())
}

fn one_id_is_enough_for_every_owner() {
    // This chown names both ids always, and takes the one not asked for from the status, which shows the one user.
    let expected = "single-id\nSome(5) Some(6)\nSome(7) Some(0)\nSome(7) Some(0)\nSome(0) Some(3)\nSome(4) Some(0)\n\
                    chown: gone: No such file or directory\nrefused\n0\n";
    assert_eq!(as_user(LONELY, "owners"), expected);
}

fn one_id_is_whatever_user_is_asked_for() {
    assert_eq!(as_user(LONELY, "another"), "single-id\n1000\n50\n1000:50\n");
}

fn a_users_sandbox_is_as_confined_as_roots() {
    let expected = "single-id\nno mount\nno node\nno namespace\nno sys\nno proc\nCapEff:\t00000000a80425fb\n";
    let said = as_user(LONELY, "confined");
    let rest = said.strip_prefix(expected).unwrap_or_else(|| panic!("{said}"));
    // A whole `/proc` of its own: numbers there are numbers here.
    let numbers: Vec<u32> = rest.lines().map(|line| line.parse().expect("a number")).collect();
    assert!(matches!(numbers[..], [_, 1]), "{said}");
}

fn a_users_sandbox_refuses_programs_what_roots_does() {
    for (uid, tier) in [(Some(LONELY), "single-id"), (user_with_ids(), "subordinate-ids")] {
        let Some(uid) = uid else { continue };
        let said = as_user(uid, "escapes");
        let (found, printed) = said.split_once('\n').expect("lines");
        assert_eq!((found, crate::ways_out::done(printed)), (tier, Vec::new()));
    }
}

/// Somebody who may have more ids than one.
fn user_with_ids() -> Option<u32> {
    let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let granted = std::fs::read_to_string("/etc/subuid").unwrap_or_default();
    let uid = users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let uid: u32 = fields.nth(1)?.parse().ok()?;
        (uid != 0 && granted.lines().any(|line| line.split(':').next() == Some(name))).then_some(uid)
    });
    let installed =
        ["newuidmap", "newgidmap"].iter().all(|name| std::path::Path::new("/usr/bin").join(name).is_file());
    let found = uid.filter(|_| installed);
    if found.is_none() {
        eprintln!("not run: no user with subordinate ids here, or no `newuidmap`");
    }
    found
}

fn subordinate_ids_are_real_owners() {
    if let Some(uid) = user_with_ids() {
        assert_eq!(as_user(uid, "subordinate"), "subordinate-ids\n5:6\nnode\n");
    }
}

fn the_end_of_a_users_caller_takes_everything() {
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    let command = command.args(["user", "7000009"]).uid(LONELY).gid(LONELY).stdout(Stdio::piped());
    let mut caller = command.spawn().expect("a caller");
    let mut stdout = std::io::BufReader::new(caller.stdout.take().expect("its output"));
    for _ in 0..2 {
        std::io::BufRead::read_line(&mut stdout, &mut String::new()).expect("a line");
    }
    let process = crate::life::find("7000009");
    caller.kill().expect("a signal");
    caller.wait().expect("an end");
    crate::life::assert_ends(&process);
}
