//! The daemon as a service: sockets it is handed, what it tells its supervisor, files that change under it.

use std::os::unix::net::{UnixDatagram, UnixStream};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::environment::{Environment, program, with_images};

/// How long a daemon may take for anything: machines are slow.
const PATIENCE: Duration = Duration::from_secs(20);

/// A daemon of one test.
struct Service(Child);

impl Service {
    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.0), signal).expect("it runs");
    }

    fn ends(mut self) {
        let mut code = None;
        wait(|| {
            code = self.0.try_wait().expect("is ours");
            code.is_some()
        });
        assert!(code.is_some_and(|code| code.success()), "{code:?}");
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // It may be over already.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

#[track_caller]
fn wait(mut is_so: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !is_so() {
        assert!(begin.elapsed() < PATIENCE, "not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[track_caller]
fn heard(socket: &UnixDatagram) -> String {
    let mut bytes = [0; 256];
    let length = socket.recv(&mut bytes).expect("is told in time");
    String::from_utf8_lossy(&bytes[..length]).into_owned()
}

#[test]
fn the_supervisor_hears_and_sighup_reads_again() {
    let environment = Environment::new();
    let socket = UnixDatagram::bind(environment.path("notify")).expect("binds");
    socket.set_read_timeout(Some(PATIENCE)).expect("is set");
    environment.write("daemon.toml", "[audit]\npath = \"audit.jsonl\"\n[worker.oci.labels]\na = \"1\"\n");
    let mut command = environment.command();
    command.args(["daemon", "--config", "daemon.toml", "--addr"]);
    command.arg(format!("unix://{}", environment.path("d.sock").display()));
    command.env("NOTIFY_SOCKET", environment.path("notify")).stdout(Stdio::null()).stderr(Stdio::null());
    let service = Service(command.spawn().expect("starts"));
    assert_eq!(heard(&socket), "READY=1");
    let log = environment.context().join("audit.jsonl");
    std::fs::rename(&log, environment.path("rotated")).expect("it is there from the begin");
    service.signal(Signal::HUP);
    assert_eq!(heard(&socket), "RELOADING=1");
    assert_eq!(heard(&socket), "READY=1");
    assert!(log.exists(), "the log is opened anew");
    // What is wrong changes nothing, and ends nothing.
    environment.write("daemon.toml", "nonsense = 1\n");
    service.signal(Signal::HUP);
    assert_eq!((heard(&socket), heard(&socket)), ("RELOADING=1".to_owned(), "READY=1".to_owned()));
    service.signal(Signal::TERM);
    assert_eq!(heard(&socket), "STOPPING=1");
    service.ends();
}

#[test]
fn a_socket_that_is_handed_over_is_served_and_stays() {
    let environment = Environment::new();
    let path = environment.path("handed.sock");
    let mut command = std::process::Command::new("systemd-socket-activate");
    command
        .arg("--listen")
        .arg(&path)
        .arg("--")
        .arg(program())
        .arg("daemon")
        .arg("--root")
        .arg(environment.root());
    command.current_dir(environment.context()).stdout(Stdio::null()).stderr(Stdio::null());
    let service = Service(command.spawn().expect("Debian's package systemd has it"));
    wait(|| UnixStream::connect(&path).is_ok());
    // It became the daemon with the first connection; its store is there once it serves.
    wait(|| environment.root().join("cache.db").exists());
    service.signal(Signal::TERM);
    service.ends();
    assert!(path.exists(), "the socket is its maker's");
}

#[test]
fn what_cannot_be_served_is_said() {
    let environment = Environment::new();
    let check = |words: &[&str], text: &str, part: &str| {
        environment.write("daemon.toml", text);
        let words = ["daemon", "--config", "daemon.toml"].iter().chain(words);
        environment.stave(words).exits(1).says(part);
    };
    check(&["--addr", "fd://"], "", "no socket was handed over");
    check(&["--web-addr", "tcp://0.0.0.0:0"], "", "the web page at `0.0.0.0:0` would be for everybody");
    check(&["--otlp-endpoint", "https://collector"], "", "invalid collector");
    check(&[], "[tenancy]\ntokens = \"nowhere\"\n", "cannot read `nowhere`");
    check(
        &[],
        "[[tenancy.oidc]]\njwks = \"x\"\nissuer = \"i\"\naudience = []\n",
        "`audience` must not be empty",
    );
    check(&[], "[worker.oci]\nmaxUsedSpace = \"lots\"\n", "invalid size `lots`");
    check(&[], "[[worker.oci.gcpolicy]]\nnonsense = 1\n", "unknown field `nonsense`");
}

/// A program that is larger is one for debugging: something small stands for it, as the Dockerfile is what is tested.
const LARGEST_PROGRAM: u64 = 150 << 20;

#[test]
fn the_image_of_the_program_is_built_and_runs() {
    let environment = Environment::new();
    let folder = environment.path("program");
    std::fs::create_dir(&folder).expect("is made");
    let size = std::fs::metadata(program()).expect("is there").len();
    let place = folder.join("stave");
    match size <= LARGEST_PROGRAM {
        true => drop(std::fs::copy(program(), &place).expect("is copied")),
        false => std::fs::write(&place, "#!/bin/sh\necho \"stave $1\"\n").expect("is written"),
    }
    let context = format!("program={}", folder.display());
    let base = with_images("BASE=BUSYBOX");
    let deploy = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/image");
    let words = ["build", "-t", "stave-image", "--build-arg", &base, "--build-context", &context];
    environment.stave(words.iter().copied().chain([deploy.to_str().expect("is text")])).success();
    let shown = environment.stave(["inspect", "stave-image"]).success().stdout;
    assert!(shown.contains("1000:1000") && shown.contains("/usr/bin/stave"), "{shown}");
    // The least base has no libraries for the real one.
    if size > LARGEST_PROGRAM {
        assert_eq!(environment.run("stave-image", &["version"]), "stave version\n");
    }
}
