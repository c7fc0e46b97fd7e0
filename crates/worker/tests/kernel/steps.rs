//! What a process of a step sees, leaves and how its end is told.

use std::time::{Duration, Instant};

use stave_llb::builder::GraphBuilder;
use stave_llb::{HostIp, NetMode, SecurityMode, Ulimit};
use stave_solver::{OpErrorKind, SolveError};
use stave_worker::StepError;
use tokio_util::sync::CancellationToken;

use crate::Test;
use crate::fixture::{Machine, chain, copy, definition_of, exec, local, root_mount, script, shell};

pub(crate) const TESTS: &[Test] = &[
    ("steps::writes_become_a_layer_and_nothing_else_does", writes_become_a_layer_and_nothing_else_does),
    ("steps::the_environment_is_the_ops_own", the_environment_is_the_ops_own),
    ("steps::users_come_from_the_image", users_come_from_the_image),
    ("steps::names_and_name_servers", names_and_name_servers),
    ("steps::output_is_complete_and_in_order", output_is_complete_and_in_order),
    ("steps::a_failing_step_tells_code_and_log", a_failing_step_tells_code_and_log),
    ("steps::an_absent_program_is_code_127", an_absent_program_is_code_127),
    ("steps::other_codes_can_be_valid", other_codes_can_be_valid),
    ("steps::cancelling_ends_a_step_at_once", cancelling_ends_a_step_at_once),
    ("steps::limits_reach_the_process", limits_reach_the_process),
    ("steps::insecure_needs_to_be_granted", insecure_needs_to_be_granted),
    ("steps::steps_see_the_files_of_copies", steps_see_the_files_of_copies),
];

fn writes_become_a_layer_and_nothing_else_does() {
    let machine = Machine::new();
    let op = script(
        "echo made > /made; rm /etc/group; sh -c true 2>/dev/null; echo x > /tmp/y; echo x > /bin/y; rm /bin/y",
    );
    let built = machine.build(&definition_of(op, Vec::new()));
    let result = built.first();
    assert_eq!(machine.read(result, "/made").as_deref(), Some("made\n"));
    assert_eq!(machine.read(result, "/etc/group"), None);
    let top = result.snapshot().expect("layers").top().expect("layer");
    let mut tar = Vec::new();
    machine.store.write_layer_tar(top, &mut tar, &stave_store::TarOptions::default()).expect("tar");
    let mut names: Vec<String> = tar::Archive::new(tar.as_slice())
        .entries()
        .expect("entries")
        .map(|entry| entry.expect("entry").path().expect("path").display().to_string())
        .collect();
    names.sort_unstable();
    assert_eq!(
        names,
        ["dev/", "etc/", "etc/.wh.group", "made", "proc/", "sys/", "tmp/", "tmp/y"],
        "of mounts only the directories that every image has; no network files"
    );
}

#[track_caller]
fn check_log(op: stave_llb::ExecOp, expected: &str) {
    let built = Machine::new().build(&definition_of(op, Vec::new()));
    built.first();
    assert_eq!(built.log(), expected);
}

fn the_environment_is_the_ops_own() {
    let mut op = script("export -p; pwd; umask");
    op.args[0] = "/bin/sh".into();
    op.env = vec!["A=b c".into()];
    op.cwd = "/not/there/yet".into();
    let built = Machine::new().build(&definition_of(op, Vec::new()));
    built.first();
    let mut lines: Vec<String> = built.log().lines().map(str::to_owned).collect();
    lines.retain(|line| !line.contains("SHLVL") && !line.contains("OLDPWD") && !line.contains("export PWD"));
    assert_eq!(
        lines,
        [
            "export A='b c'",
            "export HOME='/root'",
            "export PATH='/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin'",
            "/not/there/yet",
            "0022"
        ]
    );
}

fn users_come_from_the_image() {
    for (user, expected) in [
        ("", "0:0 0 /root\n"),
        ("app", "1000:1001 50 1001 /home/app\n"),
        ("1000", "1000:1001 50 1001 /home/app\n"),
        ("app:root", "1000:0 0 /home/app\n"),
        ("77:88", "77:88 88 /\n"),
    ] {
        // The shell is all there is in the image: its own words for the kernel's table.
        let mut op = script(
            "while read name values; do case $name in Uid:) set -- $values; u=$1;; Gid:) set -- $values; g=$1;; \
             Groups:) s=$values;; esac; done < /proc/self/status; echo $u:$g $s $HOME",
        );
        op.user = user.into();
        check_log(op, expected);
    }
    let mut op = script("true");
    op.user = "ghost".into();
    let built = Machine::new().build(&definition_of(op, Vec::new()));
    let error = built.results.expect_err("no such user");
    assert!(chain(&error).contains("unable to find user `ghost`"), "{}", chain(&error));
}

fn names_and_name_servers() {
    let mut op = script(
        "read name < /proc/sys/kernel/hostname; echo $name; while read l; do case $l in *db) echo $l;; esac; done < \
         /etc/hosts; [ -s /etc/resolv.conf ] && echo servers",
    );
    op.extra_hosts = vec![HostIp { host: "db".into(), ip: "10.1.2.3".into() }];
    check_log(op.clone(), "buildkitsandbox\n10.1.2.3 db\nservers\n");
    op.hostname = "mine".into();
    op.network = NetMode::Host;
    let machine = Machine::new();
    let mut session = machine.session();
    session.confinement.entitlements.network_host = true;
    let built = machine.build_in(&definition_of(op, Vec::new()), session, &CancellationToken::new());
    built.first();
    assert!(built.log().starts_with("mine\n"), "{}", built.log());
}

fn output_is_complete_and_in_order() {
    let op = script("i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done");
    let expected: String = (0..20_000).map(|line| format!("line {line}\n")).collect();
    check_log(op, &expected);
}

fn a_failing_step_tells_code_and_log() {
    let built =
        Machine::new().build(&definition_of(script("echo almost; echo gone >&2; exit 3"), Vec::new()));
    let error = built.results.as_ref().expect_err("must fail");
    let op = error.op().expect("an op's error");
    assert_eq!(*op.kind(), OpErrorKind::ExitCode { code: 3, signal: None });
    let Some(StepError::Exit { tail, .. }) = op.downcast_ref() else { panic!("{error:?}") };
    let tail = String::from_utf8_lossy(tail);
    assert!(tail.contains("almost\n") && tail.contains("gone\n"), "{tail}");
    assert!(op.to_string().ends_with("did not complete successfully: exit code: 3"), "{op}");
    let built = Machine::new().build(&definition_of(script("kill -9 $$; exit 4"), Vec::new()));
    let error = built.results.expect_err("must fail");
    // Process 1 of a pid namespace cannot be killed from inside: the shell lives on to its last command.
    assert_eq!(*error.op().expect("op").kind(), OpErrorKind::ExitCode { code: 4, signal: None });
}

fn an_absent_program_is_code_127() {
    let mut op = script("");
    op.args = vec!["/no/such/program".into()];
    let built = Machine::new().build(&definition_of(op, Vec::new()));
    let log = built.log();
    let error = built.results.expect_err("must fail");
    assert_eq!(*error.op().expect("op").kind(), OpErrorKind::ExitCode { code: 127, signal: None });
    assert_eq!(log, "exec: \"/no/such/program\": stat /no/such/program: no such file or directory\n");
}

fn other_codes_can_be_valid() {
    let mut op = script("echo kept > /kept; exit 5");
    op.valid_exit_codes = vec![5];
    let machine = Machine::new();
    let built = machine.build(&definition_of(op, Vec::new()));
    assert_eq!(machine.read(built.first(), "/kept").as_deref(), Some("kept\n"));
}

fn cancelling_ends_a_step_at_once() {
    let machine = Machine::new();
    let cancel = CancellationToken::new();
    let definition = definition_of(script("trap '' TERM INT; echo on; while :; do :; done"), Vec::new());
    let trigger = cancel.clone();
    let started = Instant::now();
    machine.runtime.spawn(async move {
        tokio::time::sleep(Duration::from_millis(300)).await;
        trigger.cancel();
    });
    let built = machine.build_in(&definition, machine.session(), &cancel);
    assert!(matches!(built.results, Err(SolveError::Cancelled)), "{:?}", built.results);
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    let mounts = std::fs::read_to_string("/proc/self/mounts").expect("mounts");
    let left = machine.directory.path().to_str().expect("utf-8");
    assert!(!mounts.contains(left), "{mounts}");
}

fn limits_reach_the_process() {
    let mut op = script("ulimit -n");
    op.ulimits = vec![Ulimit { name: "nofile".into(), soft: 99, hard: 120 }];
    check_log(op, "99\n");
}

fn insecure_needs_to_be_granted() {
    let mut op = script("true");
    op.security = SecurityMode::Insecure;
    let built = Machine::new().build(&definition_of(op, Vec::new()));
    let error = built.results.expect_err("not granted");
    assert_eq!(*error.op().expect("op").kind(), OpErrorKind::Unsupported);
    assert!(chain(&error).contains("security.insecure is not allowed"), "{}", chain(&error));
}

fn steps_see_the_files_of_copies() {
    let machine = Machine::new();
    machine.write("src/main", "echo from the context");
    let mut graph = GraphBuilder::default();
    let base = shell(&mut graph);
    let context = local(&mut graph, "context", &[]);
    let copied = copy(&mut graph, Some(base), context, "/src", "/copied/");
    let output =
        exec(&mut graph, script("sh /copied/main 2>/dev/null || . /copied/main"), vec![root_mount(copied)]);
    let built = machine.build(&graph.finish(Some(output)));
    built.first();
    assert_eq!(built.log(), "from the context\n");
}
