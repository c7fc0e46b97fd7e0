//! The daemon as BuildKit's own clients drive it.
//!
//! The client is `buildctl`, or `docker-buildx`, as the variables `STAVE_TEST_BUILDCTL` and `STAVE_TEST_BUILDX` name
//! them; tests of a client that is not there pass without doing anything, as those of a registry that is not there do.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::environment::{Environment, mounts_below, own_sleep, processes_with, program, tool};

/// How long a daemon may take to listen, and to end: what BuildKit's own tests allow.
const LISTENS: Duration = Duration::from_secs(15);
const ENDS: Duration = Duration::from_secs(20);

/// A daemon of one test.
pub(crate) struct Daemon {
    child: Child,
    socket: PathBuf,
}

impl Daemon {
    pub(crate) fn start(environment: &Environment, words: &[&str]) -> Self {
        let socket = environment.path("daemon.sock");
        let address = format!("unix://{}", socket.display());
        let mut command = environment.command();
        command.args(["daemon", "--addr", &address]).args(words);
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the program starts");
        let daemon = Self { child, socket };
        wait_for(LISTENS, || daemon.socket.exists());
        daemon
    }

    pub(crate) fn address(&self) -> String {
        format!("unix://{}", self.socket.display())
    }

    /// Tells it to end, and insists that it does well and leaves nothing.
    pub(crate) fn stop(mut self, root: &Path) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, Signal::TERM).expect("it runs");
        let mut code = None;
        wait_for(ENDS, || {
            code = self.child.try_wait().expect("is ours");
            code.is_some()
        });
        assert!(code.is_some_and(|code| code.success()), "{code:?}");
        assert!(!self.socket.exists());
        assert_eq!(mounts_below(root), Vec::<String>::new());
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may be over already.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Waits until it is so, as long as a daemon may take for anything.
#[track_caller]
pub(crate) fn wait(is_so: impl FnMut() -> bool) {
    wait_for(ENDS, is_so);
}

#[track_caller]
fn wait_for(patience: Duration, mut is_so: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !is_so() {
        assert!(begin.elapsed() < patience, "not within {patience:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_daemon_listens_for_its_owner_and_ends_on_request() {
    let environment = Environment::new();
    let daemon = Daemon::start(&environment, &[]);
    let mode = std::fs::metadata(&daemon.socket).expect("is there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let second = environment.stave(["daemon", "--addr", &daemon.address()]);
    second.exits(1).says("another daemon listens at");
    daemon.stop(&environment.root());
}

#[test]
fn a_group_may_use_the_socket() {
    let environment = Environment::new();
    let own = rustix::process::getegid().as_raw().to_string();
    let daemon = Daemon::start(&environment, &["--group", &own]);
    let mode = std::fs::metadata(&daemon.socket).expect("is there").permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
    let group = std::fs::metadata(&daemon.socket).expect("is there").gid();
    assert_eq!(group.to_string(), own);
    daemon.stop(&environment.root());
}

#[test]
fn a_build_that_runs_comes_to_its_end_when_the_daemon_shall() {
    let environment = Environment::new();
    let step = own_sleep(1);
    environment.dockerfile(&format!("FROM BUSYBOX\nRUN {step}; echo done > /out\n"));
    let daemon = Daemon::start(&environment, &[]);
    let out = environment.path("out");
    let output = format!("type=local,dest={}", out.display());
    let mut command = environment.command();
    command.args(["build", "--builder", &daemon.address(), "-o", &output, "."]);
    let mut building = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("starts");
    wait_for(LISTENS, || !processes_with(&step).is_empty());
    daemon.stop(&environment.root());
    assert!(building.wait().expect("ends").success());
    assert_eq!(std::fs::read_to_string(out.join("out")).expect("is there"), "done\n");
}

#[test]
fn what_cannot_be_honoured_is_an_error() {
    let environment = Environment::new();
    let check = |words: &[&str], code: i32, part: &str| {
        let words = ["daemon"].iter().chain(words);
        environment.stave(words).exits(code).says(part);
    };
    check(&["--addr", "tcp://127.0.0.1:0"], 1, "tcp needs --tlscert, --tlskey and --tlscacert");
    check(&["--addr", "fd://3"], 1, "invalid address `fd://3`");
    check(&["--oci-worker=false"], 1, "--oci-worker=false");
    check(&["--containerd-worker=true"], 1, "--containerd-worker=true");
    check(&["--oci-worker-snapshotter=native"], 2, "native");
    check(&["--nonsense"], 2, "--nonsense");
    check(&["--oci-worker-no-process-sandbox"], 1, "is not supported: steps have processes of their own");
    check(&["--containerd-worker-addr=/x"], 1, "is not supported: there is no containerd worker");
    check(&["--log-level", "loud"], 1, "unknown log level `loud`: expected panic");
    check(&["--allow-insecure-entitlement", "all"], 1, "unknown entitlement `all`: expected network.host");
    check(&["--oci-worker-binary", "/nowhere/runc"], 1, "the OCI runtime `/nowhere/runc` is not there");
    check(&["--oci-worker-labels", "=x"], 1, "invalid label `=x`");
    check(&["--web-addr", "tcp://127.0.0.1:0", "--web-host", ""], 1, "invalid host name ``");
    check(&["--tlscert", "cert.pem"], 1, "tcp needs --tlscert, --tlskey and --tlscacert");
    let names = ["--tlscert", "c", "--tlskey", "k", "--tlscacert", "a"];
    check(&names, 1, "cannot read `c`");
    check(&[&names[..], &["--insecure-tcp"]].concat(), 1, "--insecure-tcp serves without certificates");
    check(&["--debugaddr", "127.0.0.1"], 1, "invalid address `127.0.0.1`");
    check(&["--group", "nobody-has-this-group"], 1, "no group called");
    environment.write("bad.toml", "[worker.containerd]\nenabled = true\n");
    check(&["--config", "bad.toml"], 1, "`worker.containerd`");
}

#[test]
fn called_as_buildkitd_it_is_one() {
    let environment = Environment::new();
    let socket = environment.path("b.sock");
    let config = "[registry.\"localhost:1\"]\n  http = true\n[otel]\n  socketPath = \"/nowhere\"\n";
    environment.write("buildkitd.toml", config);
    let mut command = Command::new(program());
    command.arg0("buildkitd").current_dir(environment.context()).stdout(Stdio::null()).stderr(Stdio::null());
    command.args(["--oci-worker=true", "--containerd-worker=false", "--oci-worker-gc=false"]);
    command.args(["--oci-worker-labels=org.mobyproject.buildkit.worker.sandbox=true", "--debug"]);
    command.arg("--config=buildkitd.toml").arg("--root").arg(environment.root());
    command.args(["--addr", &format!("unix://{}", socket.display())]);
    let daemon = Daemon { child: command.spawn().expect("starts"), socket };
    wait_for(LISTENS, || daemon.socket.exists());
    daemon.stop(&environment.root());
}

/// `buildctl` against a daemon, if there is one.
fn buildctl(daemon: &Daemon, environment: &Environment, words: &[&str]) -> Option<String> {
    let client = std::env::var("STAVE_TEST_BUILDCTL").ok()?;
    let (address, context) = (daemon.address(), environment.context().display().to_string());
    let mut all = vec!["--addr", &address, "build", "--frontend", "dockerfile.v0", "--progress", "plain"];
    let (local, dockerfile) = (format!("context={context}"), format!("dockerfile={context}"));
    all.extend(["--local", &local, "--local", &dockerfile]);
    all.extend(words);
    Some(tool(&client, &all))
}

#[test]
fn buildctl_builds() {
    let environment = Environment::new();
    environment.dockerfile("FROM BUSYBOX\nCOPY f /f\nRUN cat /f > /out\n");
    environment.write("f", "content");
    let daemon = Daemon::start(&environment, &[]);
    let out = environment.path("out");
    let output = format!("type=local,dest={}", out.display());
    if buildctl(&daemon, &environment, &["--output", &output]).is_some() {
        assert_eq!(std::fs::read_to_string(out.join("out")).expect("is there"), "content");
    }
    daemon.stop(&environment.root());
}

#[test]
fn a_daemon_killed_in_a_build_leaves_nothing() {
    let environment = Environment::new();
    let step = own_sleep(98_765);
    environment.dockerfile(&format!("FROM BUSYBOX\nRUN {step}\n"));
    let mut daemon = Daemon::start(&environment, &[]);
    let Ok(client) = std::env::var("STAVE_TEST_BUILDCTL") else { return };
    let (address, context) = (daemon.address(), environment.context().display().to_string());
    let mut command = Command::new(client);
    command.args(["--addr", &address, "build", "--frontend", "dockerfile.v0"]);
    command.args(["--local", &format!("context={context}"), "--local", &format!("dockerfile={context}")]);
    let mut building = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("starts");
    wait_for(LISTENS, || !processes_with(&step).is_empty());
    daemon.child.kill().expect("runs");
    daemon.child.wait().expect("is ours");
    wait_for(ENDS, || processes_with(&step).is_empty());
    assert!(!building.wait().expect("ends").success());
    assert_eq!(mounts_below(&environment.root()), Vec::<String>::new());
    // What it left in its directory is swept by the next one.
    std::fs::remove_file(&daemon.socket).ok();
    Daemon::start(&environment, &[]).stop(&environment.root());
}
