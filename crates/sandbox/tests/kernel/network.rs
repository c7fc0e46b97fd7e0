//! The bridge on the real kernel: in a network namespace that stands for the host, beside one that stands for the world.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use stave_sandbox::{BridgeNetwork, Launcher, Network, SandboxSpec};
use tempfile::TempDir;

use crate::Test;
use crate::fixture::{Outcome, Place, bind, run_by, start_by};

pub(crate) const TESTS: &[Test] = &[
    ("network::a_sandbox_reaches_the_world_and_the_host", a_sandbox_reaches_the_world_and_the_host),
    ("network::sandboxes_do_not_reach_each_other", sandboxes_do_not_reach_each_other),
    ("network::nothing_is_left_behind", nothing_is_left_behind),
    ("network::a_host_without_v6_has_none_inside", a_host_without_v6_has_none_inside),
    ("network::what_a_killed_process_left_is_removed", what_a_killed_process_left_is_removed),
    ("network::taking_a_namespace_takes_no_time", taking_a_namespace_takes_no_time),
];

/// How long a connection that is not let through is tried.
const PATIENCE: Duration = Duration::from_millis(500);

/// Leaves the thread's network for an empty one.
fn leave_network() {
    // SAFETY: takes integers only, and concerns the calling thread alone.
    assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0, "{}", std::io::Error::last_os_error());
    ip("link set lo up");
    // As it is where nobody asked for more, whatever the machine's own network inherited to this one.
    for switch in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
        std::fs::write(format!("/proc/sys/net/{switch}"), "0").expect("a switch");
    }
}

/// Runs `ip` in the calling thread's network.
#[track_caller]
fn ip(words: &str) -> String {
    let output = Command::new("ip").args(words.split(' ')).output().expect("iproute2");
    assert!(output.status.success(), "ip {words}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What the machine looks like to a test.
struct Host {
    directory: TempDir,
}

impl Host {
    fn bridge(&self) -> BridgeNetwork {
        match BridgeNetwork::start_in(self.directory.path()) {
            Ok(bridge) => bridge,
            Err(error) => panic!("{error}: {:?}", std::error::Error::source(&error)),
        }
    }

    fn launcher(&self) -> Launcher {
        Launcher::new().on_bridge(self.bridge())
    }

    /// Links, routes, rules, switches and files: what a bridge may leave behind.
    fn traces(&self) -> String {
        let links = ip("-o link").lines().filter(|line| line.contains("stv")).count();
        let routes = ip("route").lines().filter(|line| line.contains("stv")).count();
        // Where the program is missing, that devices and files are gone has to do.
        let rules = Command::new("nft").args(["list", "tables"]).output();
        let rules = rules.map_or_else(|_| Vec::new(), |output| output.stdout);
        let switches: String = ["wan", "lo"]
            .map(|device| format!("/proc/sys/net/ipv4/conf/{device}/forwarding"))
            .map(|switch| std::fs::read_to_string(switch).expect("a switch"))
            .concat();
        let files = std::fs::read_dir(self.directory.path()).expect("a directory").count();
        format!(
            "{links} {routes} {} {} {files}",
            String::from_utf8_lossy(&rules),
            switches.replace('\n', " ")
        )
    }
}

/// Does something on a host of its own, whose default routes lead to a world where `203.0.113.2` and `2001:db8::2` answer
/// each connection to port 80 with the address it came from.
fn on_a_host(v6: bool, scenario: impl FnOnce(&Host) + Send) {
    std::thread::scope(|scope| {
        let (tell, told) = mpsc::channel();
        let (connected, wait) = mpsc::channel::<()>();
        let (listening, ready) = mpsc::channel();
        scope.spawn(move || {
            leave_network();
            tell.send(rustix_thread()).expect("a listener");
            // Nothing comes where no bridge can be made.
            let Ok(()) = wait.recv() else { return };
            ip("addr add 203.0.113.2/24 dev out");
            ip("link set out up");
            if v6 {
                ip("addr add 2001:db8::2/64 dev out nodad");
            }
            let answering = answer(if v6 { "[::]:80" } else { "0.0.0.0:80" });
            listening.send(()).expect("a listener");
            // Until the scenario is over.
            let _over = wait.recv();
            drop(answering);
        });
        let host = scope.spawn(move || {
            leave_network();
            let world = told.recv().expect("a world");
            let directory = TempDir::new().expect("a directory");
            if let Err(error) = BridgeNetwork::start_in(directory.path()) {
                // Then the words are all there is to test: which part it is, and what it takes.
                let words = error.to_string();
                assert!(words.starts_with("cannot ") && error.remedy().is_some(), "{error:?}");
                eprintln!("no bridge here: {words}: {:?}", error.remedy());
                return;
            }
            ip(&format!("link add wan mtu 1400 type veth peer name out netns {world}"));
            ip("addr add 203.0.113.1/24 dev wan");
            ip("link set wan up");
            connected.send(()).expect("a world");
            ip("route add default via 203.0.113.2");
            if v6 {
                ip("addr add 2001:db8::1/64 dev wan nodad");
                ip("route add default via 2001:db8::2");
            }
            ready.recv().expect("a world");
            scenario(&Host { directory });
            drop(connected);
        });
        if let Err(panic) = host.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

/// Number of the calling thread.
fn rustix_thread() -> i32 {
    // SAFETY: takes nothing and cannot fail.
    unsafe { libc::gettid() }
}

/// A server that answers every connection with where it came from. It ends with the process.
fn answer(at: &str) -> TcpListener {
    let listener = TcpListener::bind(at).expect("a free port");
    let serving = listener.try_clone().expect("a copy");
    std::thread::spawn(move || {
        for stream in serving.incoming() {
            let Ok(mut stream) = stream else { return };
            let Ok(peer) = stream.peer_addr() else { continue };
            let peer = match peer.ip() {
                IpAddr::V6(ip) => ip.to_ipv4_mapped().map_or(IpAddr::V6(ip), IpAddr::V4),
                ip => ip,
            };
            let _request = stream.read(&mut [0; 4096]);
            let text = peer.to_string();
            let _gone = write!(stream, "HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n{text}", text.len());
        }
    });
    listener
}

fn on_bridge(place: &Place, script: &str) -> SandboxSpec {
    let mut spec = place.script(script);
    spec.network = Network::Bridge;
    spec.mounts.push(bind(&std::env::current_exe().expect("this program"), "/probe", true));
    spec
}

#[track_caller]
fn outcome(launcher: &Launcher, place: &Place, script: &str) -> Outcome {
    match run_by(launcher, &on_bridge(place, script)) {
        Ok(outcome) => outcome,
        Err(error) => panic!("{error}: {:?}", std::error::Error::source(&error)),
    }
}

fn a_sandbox_reaches_the_world_and_the_host() {
    on_a_host(true, |host| {
        let bridge = host.bridge();
        let facts = bridge.facts().clone();
        assert_eq!((facts.host.len(), facts.without_v6), (2, None));
        let launcher = Launcher::new().on_bridge(bridge);
        let _host_answers = answer("[::]:81");
        let (v4, v6) = (facts.host[0], facts.host[1]);
        let place = Place::new();
        let script = format!(
            "/probe probe 'fetch 203.0.113.2:80 [2001:db8::2]:80 {v4}:81 [{v6}]:81 203.0.113.1:81'; \
             busybox ip -o link | busybox sed -n 's/.*\\(eth0\\).* mtu \\([0-9]*\\).*/\\1 \\2/p'; \
             busybox ip -o addr show dev eth0 scope global | busybox awk '{{ print $4 }}'"
        );
        let printed = outcome(&launcher, &place, &script).stdout;
        let lines: Vec<&str> = printed.lines().collect();
        assert_eq!(lines.len(), 8, "{printed}");
        // Outside the sandbox is the host; the host sees it as it is.
        assert_eq!(&lines[..2], ["203.0.113.1", "2001:db8::1"], "{printed}");
        assert!(lines[2].starts_with("10.228.") && lines[3].starts_with("fd"), "{printed}");
        assert_eq!((lines[4], lines[5]), (lines[2], "eth0 1400"), "{printed}");
        assert_eq!((lines[6], lines[7]), (&*format!("{}/32", lines[2]), &*format!("{}/128", lines[3])));
    });
}

fn sandboxes_do_not_reach_each_other() {
    on_a_host(true, |host| {
        // Another process is another bridge.
        let (one, other) = (host.launcher(), host.launcher());
        let serving = Place::new();
        let script = "busybox ip -o addr show dev eth0 scope global | busybox awk '{ print $4 }'; \
                      exec /probe probe serve";
        let (mut server, mut said, _) = start_by(&one, &on_bridge(&serving, script)).expect("a sandbox");
        let mut first = [0; 256];
        let mut text = String::new();
        while text.lines().count() < 3 || !text.ends_with('\n') {
            let length = said.read(&mut first).expect("addresses");
            text.push_str(std::str::from_utf8(&first[..length]).expect("text"));
        }
        let addresses: Vec<&str> = text.lines().filter_map(|line| line.split('/').next()).collect();
        let (v4, v6) = (addresses[0], addresses[1]);
        // It does answer those who may ask.
        let mut stream = TcpStream::connect((v4, 80)).expect("the host reaches its sandboxes");
        write!(stream, "GET / HTTP/1.0\r\n\r\n").expect("asks");
        assert_ne!(stream.read(&mut first).expect("an answer"), 0);
        let gateway = one.bridge().expect("a bridge").facts().host[0];
        for launcher in [&one, &other] {
            let place = Place::new();
            let script = format!("/probe probe 'fetch 203.0.113.2:80 {v4}:80 [{v6}]:80 {gateway}:80'");
            let reached = outcome(launcher, &place, &script);
            assert_eq!(reached.stdout, "203.0.113.1\nnot reached\nnot reached\nrefused\n", "{reached:?}");
        }
        server.kill().expect("kills");
        server.wait().expect("an end");
    });
}

fn nothing_is_left_behind() {
    on_a_host(true, |host| {
        std::fs::write(host.directory.path().join("lock"), "").expect("writes");
        let before = host.traces();
        let first = host.launcher();
        let second = host.launcher();
        let place = Place::new();
        for _ in 0..100 {
            let done = run_by(&first, &on_bridge(&place, "true")).expect("a sandbox");
            assert!(done.exit.status.success());
            std::fs::remove_dir_all(place.path("work")).expect("removes");
            std::fs::create_dir(place.path("work")).expect("makes");
        }
        assert!(ip("-o link").lines().filter(|line| line.contains("stv")).count() == 2);
        drop(first);
        // The other still works.
        let printed = outcome(&second, &place, "/probe probe 'fetch 203.0.113.2:80'").stdout;
        assert_eq!(printed, "203.0.113.1\n");
        drop(second);
        assert_eq!(host.traces(), before);
    });
}

fn a_host_without_v6_has_none_inside() {
    on_a_host(false, |host| {
        let launcher = host.launcher();
        let facts = launcher.bridge().expect("a bridge").facts().clone();
        assert_eq!(facts.host.len(), 1);
        assert!(facts.without_v6.is_some_and(|why| why.contains("no route")));
        let place = Place::new();
        let script = "busybox ip -6 -o addr show dev eth0; /probe probe 'fetch 203.0.113.2:80'";
        assert_eq!(outcome(&launcher, &place, script).stdout, "203.0.113.1\n");
    });
}

fn what_a_killed_process_left_is_removed() {
    on_a_host(true, |host| {
        let clean = {
            drop(host.bridge());
            host.traces()
        };
        let mut caller = Command::new(std::env::current_exe().expect("this program"))
            .arg("bridged")
            .arg(host.directory.path())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .expect("a caller");
        let mut said = [0; 6];
        caller.stdout.take().expect("its output").read_exact(&mut said).expect("a word");
        assert_eq!(&said, b"ready\n");
        assert_ne!(host.traces(), clean);
        caller.kill().expect("kills");
        caller.wait().expect("an end");
        // The next one finds what is left; its own goes with it.
        drop(host.bridge());
        let deadline = Instant::now() + Duration::from_secs(20);
        while host.traces() != clean {
            assert!(Instant::now() < deadline, "{} is not {clean}", host.traces());
            std::thread::yield_now();
        }
    });
}

/// A process with a bridge and two sandboxes' worth of namespaces that waits to be killed.
pub(crate) fn be_bridged(directory: &str) -> std::process::ExitCode {
    let bridge = BridgeNetwork::start_in(Path::new(directory)).expect("a bridge");
    let _taken = (bridge.take().expect("a namespace"), bridge.take().expect("a namespace"));
    println!("ready");
    loop {
        std::thread::park();
    }
}

fn taking_a_namespace_takes_no_time() {
    on_a_host(true, |host| {
        let bridge = host.bridge();
        while bridge.waiting() < 2 {
            std::thread::yield_now();
        }
        let started = Instant::now();
        let first = bridge.take().expect("a namespace");
        let second = bridge.take().expect("a namespace");
        println!("two namespaces in {:?}", started.elapsed());
        let number = |namespace: &stave_sandbox::BridgeNamespace| {
            use std::os::fd::{AsFd as _, AsRawFd as _};
            std::fs::read_link(format!("/proc/self/fd/{}", namespace.as_fd().as_raw_fd())).expect("a link")
        };
        assert_ne!(number(&first), number(&second));
    });
}

/// Inside: what answers at these addresses.
pub(crate) fn fetch(addresses: &str) {
    for at in addresses.split(' ') {
        let address = at.parse().expect("an address");
        let answer = TcpStream::connect_timeout(&address, PATIENCE).and_then(|mut stream| {
            write!(stream, "GET / HTTP/1.0\r\n\r\n")?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            Ok(text.rsplit('\n').next().unwrap_or_default().to_owned())
        });
        match answer {
            Ok(text) => println!("{text}"),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => println!("refused"),
            Err(error) => {
                println!("not reached");
                eprintln!("{at}: {error}");
            }
        }
    }
}

/// Inside: answers on port 80 until killed.
pub(crate) fn serve() -> ! {
    let _answering = answer("[::]:80");
    println!("serving");
    loop {
        std::thread::park();
    }
}
