//! A daemon over TCP: who is let in by certificate, and certificates that are replaced under it.
//!
//! `openssl` makes the certificates. Start with [`Authority`].

use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, SystemTime};

use rustix::process::Signal;

use crate::environment::{Environment, Outcome, signal, tool};

/// How long a daemon may take for anything: machines are slow.
const PATIENCE: Duration = Duration::from_secs(20);

/// What signs certificates.
pub(crate) struct Authority {
    folder: PathBuf,
}

impl Authority {
    pub(crate) fn new(folder: PathBuf) -> Self {
        std::fs::create_dir(&folder).expect("is made");
        let own = Self { folder };
        let (key, file) = (own.path("ca-key.pem"), own.path("ca.pem"));
        let words = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];
        let more = ["-subj", "/CN=authority", "-days", "2", "-keyout", &key, "-out", &file];
        tool("openssl", &[&words[..], &more[..]].concat());
        own
    }

    pub(crate) fn path(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }

    /// `NAME.pem` and `NAME-key.pem`, for so many days; none: it is over with the second in which it was made.
    pub(crate) fn sign(&self, name: &str, days: u32) {
        let (key, request, file) =
            (self.path(&format!("{name}-key.pem")), self.path("request"), self.path(&format!("{name}.pem")));
        let subject = format!("/CN={name}");
        let alternative = "subjectAltName=DNS:localhost,IP:127.0.0.1";
        let words = ["req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj"];
        let more = [&subject, "-addext", alternative, "-keyout", &key, "-out", &request];
        tool("openssl", &[&words[..], &more[..]].concat());
        let (authority, own) = (self.path("ca.pem"), self.path("ca-key.pem"));
        let extensions = self.path("extensions");
        std::fs::write(&extensions, alternative).expect("is written");
        let days = days.to_string();
        let words = ["x509", "-req", "-in", &request, "-CA", &authority, "-CAkey", &own, "-CAcreateserial"];
        let more = ["-days", &days, "-extfile", &extensions, "-out", &file];
        tool("openssl", &[&words[..], &more[..]].concat());
    }
}

/// A daemon whose words are read.
pub(crate) struct Served {
    child: Child,
    pub(crate) address: String,
    said: Receiver<String>,
}

impl Drop for Served {
    fn drop(&mut self) {
        // It may be over already.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

impl Served {
    fn start(environment: &Environment, words: &[&str]) -> Self {
        Self::at(environment, "tcp://127.0.0.1:0", words)
    }

    /// One that listens there.
    pub(crate) fn at(environment: &Environment, address: &str, words: &[&str]) -> Self {
        let mut command = environment.command();
        command.args(["daemon", "--addr", address]).args(words);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("starts");
        let lines = BufReader::new(child.stderr.take().expect("is piped")).lines();
        let (sender, said) = channel();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                // Nobody may listen any more.
                sender.send(line).ok();
            }
        });
        let mut served = Self { child, address: String::new(), said };
        let line = served.says("listening at ");
        served.address = line.trim_start_matches("listening at ").to_owned();
        served
    }

    /// Waits for a line with this part.
    #[track_caller]
    fn says(&self, part: &str) -> String {
        loop {
            let line = self.said.recv_timeout(PATIENCE);
            let line = line.unwrap_or_else(|error| panic!("`{part}` is not said: {error}"));
            if line.contains(part) {
                return line;
            }
        }
    }

    fn reload(&self) {
        signal(&self.child, Signal::HUP);
        self.says("the configuration was read again");
    }
}

/// The clock, as certificates have it.
fn seconds() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.expect("is after 1970").as_secs()
}

fn build(environment: &Environment, served: &Served, trusted: &str, shown: Option<(&str, &str)>) -> Outcome {
    let mut words = vec!["build", "--builder", &served.address, "--tlscacert", trusted];
    if let Some((certificate, key)) = shown {
        words.extend(["--tlscert", certificate, "--tlskey", key]);
    }
    words.extend(["-o", "type=tar,dest=out.tar", "."]);
    environment.stave(words)
}

#[test]
fn certificates_decide_and_are_replaced_while_it_runs() {
    let environment = Environment::new();
    environment.dockerfile("FROM scratch\nCOPY Dockerfile /\n");
    let (first, second) = (Authority::new(environment.path("a")), Authority::new(environment.path("b")));
    for authority in [&first, &second] {
        authority.sign("server", 2);
        authority.sign("client", 2);
    }
    first.sign("old", 0);
    let signed = seconds();
    let (certificate, key) = (first.path("server.pem"), first.path("server-key.pem"));
    let (authority, log) = (first.path("ca.pem"), environment.path("audit.jsonl").display().to_string());
    let tls = ["--tlscert", &certificate, "--tlskey", &key, "--tlscacert", &authority, "--audit-log", &log];
    let served = Served::start(&environment, &tls);
    let own = |authority: &Authority, name: &str| {
        (authority.path(&format!("{name}.pem")), authority.path(&format!("{name}-key.pem")))
    };
    let attempt = |trusted: &Authority, shown: Option<(String, String)>| {
        let shown = shown.as_ref().map(|(certificate, key)| (certificate.as_str(), key.as_str()));
        build(&environment, &served, &trusted.path("ca.pem"), shown)
    };
    attempt(&first, Some(own(&first, "client"))).success();
    while seconds() <= signed {
        std::thread::sleep(Duration::from_millis(10));
    }
    attempt(&first, Some(own(&first, "old"))).exits(1);
    attempt(&first, Some(own(&second, "client"))).exits(1);
    attempt(&first, None).exits(1);
    attempt(&second, Some(own(&first, "client"))).exits(1);
    let refused = std::fs::read_to_string(&log).expect("is there");
    let refused = refused.lines().filter(|line| line.contains("\"result\":\"refused\"")).count();
    assert!(refused >= 3, "an expired, a foreign and no certificate are taken down: {refused}");

    // What cannot be used changes nothing, and is said.
    std::fs::write(&certificate, "nonsense").expect("is written");
    signal(&served.child, Signal::HUP);
    served.says("the certificates stay as they were");
    // Said last, whatever became of the parts.
    served.says("the configuration was read again");
    attempt(&first, Some(own(&first, "client"))).success();

    for name in ["server.pem", "server-key.pem", "ca.pem"] {
        std::fs::copy(second.path(name), first.path(&format!("new-{name}"))).expect("is copied");
        std::fs::rename(first.path(&format!("new-{name}")), first.path(name)).expect("takes its place");
    }
    served.reload();
    attempt(&second, Some(own(&second, "client"))).success();
    attempt(&second, Some(own(&first, "client"))).exits(1);
}

#[test]
fn registries_are_read_again() {
    let environment = Environment::new();
    environment.write("daemon.toml", "");
    let served = Served::start(&environment, &["--insecure-tcp", "--config", "daemon.toml"]);
    let with = |text: &str| {
        environment.write("daemon.toml", text);
    };
    with("[registry.\"registry.example\"]\nca = [\"nowhere.pem\"]\n");
    signal(&served.child, Signal::HUP);
    let said = served.says("the registries stay as they were");
    assert!(said.contains("nowhere.pem"), "{said}");
    served.says("the configuration was read again");
    // A mirror that is there now: the build finds the image by a name that leads nowhere.
    let registry = crate::environment::registry();
    with(&format!(
        "[registry.\"registry.example\"]\nmirrors = [\"{registry}\"]\n[registry.\"{registry}\"]\nhttp = true\n"
    ));
    served.reload();
    environment.dockerfile("FROM registry.example/busybox\nCOPY Dockerfile /\n");
    environment.stave(["build", "--builder", &served.address, "-o", "type=tar,dest=out.tar", "."]).success();
    with("debug = true\n");
    served.reload();
    with("nonsense = true\n");
    signal(&served.child, Signal::HUP);
    served.says("the configuration stays as it was");
}
