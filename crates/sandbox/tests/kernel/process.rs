//! The process: what it is told, where it stands, and what is said when it cannot be executed.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use stave_sandbox::{Rlimit, RlimitResource, SpawnError};

use crate::Test;
use crate::fixture::{Place, run, run_with_input, try_run};

pub(crate) const TESTS: &[Test] = &[
    ("process::it_is_pid_1", it_is_pid_1),
    ("process::host_name", host_name),
    ("process::environment_and_directory", environment_and_directory),
    ("process::standard_input", standard_input),
    ("process::limits", limits),
    ("process::programs_that_cannot_be_executed", programs_that_cannot_be_executed),
    ("process::a_user_can_reopen_its_output", a_user_can_reopen_its_output),
];

fn it_is_pid_1() {
    let printed =
        Place::new().output("echo $$; busybox ls /proc | busybox grep -c '^[0-9]'; umask; busybox id -u");
    assert_eq!(printed, "1\n3\n0022\n0\n");
}

fn host_name() {
    let place = Place::new();
    let mut spec = place.script("busybox hostname");
    spec.hostname = "inside".into();
    assert_eq!(run(&spec).stdout, "inside\n");
    spec.hostname.clear();
    let host = fs::read_to_string("/proc/sys/kernel/hostname").expect("a name");
    assert_eq!(run(&spec).stdout, host);
}

fn environment_and_directory() {
    let place = Place::new();
    let mut spec = place.spec(&["busybox", "env"]);
    spec.process.env = vec!["PATH=/none:/bin".into(), "A=b c".into()];
    assert_eq!(run(&spec).stdout, "PATH=/none:/bin\nA=b c\n");
    let mut spec = place.script("pwd; busybox stat -c '%a %u' .");
    spec.process.cwd = "/made/for/it".into();
    spec.process.uid = 1000;
    assert_eq!(run(&spec).stdout, "/made/for/it\n755 0\n");
    assert_eq!(place.changes(), ["made"]);
    spec.process.cwd = "/bin/busybox".into();
    let error = try_run(&spec).expect_err("no directory");
    assert_eq!(error.to_string(), "cannot enter the working directory `/bin/busybox`");
}

fn standard_input() {
    let text = "line\n".repeat(1000);
    assert_eq!(run_with_input(&Place::new().spec(&["/bin/busybox", "cat"]), &text), text);
}

fn limits() {
    let place = Place::new();
    let mut spec = place.script("ulimit -Sn; ulimit -Hn; ulimit -Hu");
    let limit = |resource, soft, hard| Rlimit { resource, soft, hard };
    spec.process.rlimits =
        vec![limit(RlimitResource::Nofile, 64, 128), limit(RlimitResource::Nproc, 1 << 40, 1 << 40)];
    let stdout = run(&spec).stdout;
    assert!(stdout.starts_with("64\n128\n"), "{stdout}");
    // Where the caller may not raise a hard limit, the process gets what the caller has.
    assert_eq!(stdout.lines().count(), 3, "{stdout}");
}

#[track_caller]
fn check(place: &Place, program: &str, code: u8, message: &str) {
    let mut spec = place.spec(&[program]);
    spec.process.uid = 1000;
    spec.process.env = vec!["PATH=/usr/bin:/bin".into()];
    let error = try_run(&spec).expect_err("an error");
    assert_eq!((error.exit_code(), error.to_string().as_str()), (code, message));
    assert_eq!(matches!(error, SpawnError::NotFound { .. }), code == 127);
}

fn programs_that_cannot_be_executed() {
    let place = Place::new();
    place.write("root/plain", "data");
    place.write("root/bin/plain", "data");
    for (name, contents) in [("garbage", "\x01\x02\x03"), ("script", "#!/no/such/interpreter\n")] {
        let path = place.write(&format!("root/bin/{name}"), contents);
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("permissions");
    }
    check(&place, "nothing", 127, "exec: \"nothing\": executable file not found in $PATH");
    check(&place, "plain", 127, "exec: \"plain\": executable file not found in $PATH");
    check(&place, "/nothing", 127, "exec: \"/nothing\": stat /nothing: no such file or directory");
    check(&place, "/plain", 126, "exec: \"/plain\": permission denied");
    check(&place, "/bin", 126, "exec: \"/bin\": is a directory");
    check(&place, "garbage", 126, "exec /bin/garbage: exec format error");
    check(&place, "script", 127, "exec /bin/script: no such file or directory");
}

fn a_user_can_reopen_its_output() {
    let place = Place::new();
    let mut spec = place.script("echo direct; echo reopened > /dev/stdout");
    spec.process.uid = 1000;
    assert_eq!(run(&spec).stdout, "direct\nreopened\n");
}
