//! Networks of steps and containers: the host's, none, a bridge, and programs in user space; and what is said where one is
//! missing.
//!
//! What a machine has, `info` says; each test then shows either that it works or that it is refused in the same words.

use std::io::Write as _;
use std::net::TcpListener;

use crate::environment::{Environment, Outcome, own_sleep, program, tool};

/// What `--network=bridge` is on this machine.
#[derive(Debug, PartialEq, Eq)]
enum Bridge {
    /// A bridge; with IPv6 or without.
    Kernel { v6: bool },
    /// A program in user space.
    Program,
    /// Nothing.
    Refused,
}

/// What `info` says of networks: the names, and why there are no more.
fn networks(world: &Environment) -> (String, String) {
    let said = world.stave(["info", "--format", "json"]).success().stdout;
    let said: serde_json::Value = serde_json::from_str(&said).expect("JSON");
    let text = |key: &str| said["Networks"][key].as_str().unwrap_or_default().to_owned();
    (text("Value"), text("Why"))
}

fn bridge(world: &Environment) -> Bridge {
    let (names, why) = networks(world);
    if !names.split(' ').any(|name| name == "bridge") {
        assert!(why.starts_with("no `bridge`: "), "{why}");
        return Bridge::Refused;
    }
    match why.contains("an ordinary user cannot make a bridge") {
        true => Bridge::Program,
        false => Bridge::Kernel { v6: why.is_empty() },
    }
}

/// A server that greets every caller. It ends with the test's process.
fn greeter() -> u16 {
    let listener = TcpListener::bind("[::]:0").or_else(|_| TcpListener::bind("0.0.0.0:0")).expect("a port");
    let port = listener.local_addr().expect("an address").port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let _gone = writeln!(stream, "greetings");
        }
    });
    port
}

#[track_caller]
fn refused(outcome: Outcome) {
    outcome.exits(1).says("network `bridge` is not available");
}

#[test]
fn a_step_on_a_bridge_reaches_the_host_under_its_gateway() {
    let world = Environment::new();
    let port = greeter();
    world.dockerfile(&format!(
        "FROM BUSYBOX\nRUN ls /sys/class/net > /devices; grep -w gateway /etc/hosts | cut -f1 > /addresses; \
         for at in $(cat /addresses); do nc -w 10 $at {port} < /dev/null; done > /said; \
         ! nc -w 1 127.0.0.1 {port} < /dev/null; ! grep -E '^nameserver (127|::1)' /etc/resolv.conf; \
         ping -c 1 -W 5 127.0.0.1\n"
    ));
    let words = ["build", "--network", "bridge", "--add-host", "gateway:host-gateway", "-t", "bridged", "."];
    let outcome = world.stave(words);
    let v6 = match bridge(&world) {
        Bridge::Kernel { v6 } => v6,
        Bridge::Program => {
            outcome.exits(1).says("`host-gateway` has no meaning in network");
            return;
        }
        Bridge::Refused => return refused(outcome),
    };
    outcome.success();
    let seen = world.run("bridged", &["cat", "/devices", "/said"]);
    assert_eq!(seen, format!("eth0\nlo\n{}", "greetings\n".repeat(1 + usize::from(v6))));
    let addresses = world.run("bridged", &["cat", "/addresses"]);
    assert!(addresses.starts_with("10.228.") || addresses.starts_with("172.28."), "{addresses}");
    // The address differs from process to process; the key must not.
    assert_eq!(world.stave(words).success().cached(), 1);
}

#[test]
fn run_takes_the_networks_that_build_takes() {
    let world = Environment::new();
    world.dockerfile("FROM BUSYBOX\n");
    world.build("plain").success();
    let devices = |network: &str| world.stave(["run", "--network", network, "plain", "ls", "/sys/class/net"]);
    assert_eq!(devices("none").success().stdout, "lo\n");
    let host = devices("host").success().stdout;
    assert_eq!(host.lines().count(), std::fs::read_dir("/sys/class/net").expect("devices").count());
    let bridged = devices("bridge");
    match bridge(&world) {
        Bridge::Refused => {
            bridged.exits(125).says("network `bridge` is not available");
        }
        Bridge::Kernel { .. } => assert_eq!(bridged.success().stdout, "eth0\nlo\n"),
        Bridge::Program => assert_eq!(bridged.success().stdout.lines().count(), 2),
    }
}

#[test]
fn the_host_is_itself_in_its_own_network_and_nowhere_in_none() {
    let world = Environment::new();
    world.dockerfile(
        "FROM BUSYBOX\nRUN grep -w gateway /etc/hosts > /host\nRUN --network=none ! grep -w gateway /etc/hosts\n",
    );
    world.stave(["build", "--add-host", "gateway:host-gateway", "-t", "named", "."]).success();
    assert_eq!(world.run("named", &["cat", "/host"]), "127.0.0.1\tgateway\n");
}

#[test]
fn a_configured_network_is_the_default_and_the_hosts_takes_a_right() {
    let world = Environment::new();
    world.write("config.toml", "[build]\nnetwork = \"none\"\n");
    world.dockerfile("FROM BUSYBOX\nRUN ls /sys/class/net > /devices\n");
    let config = world.context().join("config.toml");
    let config = config.to_str().expect("is text");
    world.stave(["--config", config, "build", "-t", "alone", "."]).success();
    assert_eq!(world.run("alone", &["cat", "/devices"]), "lo\n");
    world.dockerfile("FROM BUSYBOX\nRUN --network=host true\n");
    world.stave(["--config", config, "build", "."]).exits(1).says("network.host is not allowed");
    world.stave(["--config", config, "build", "--allow", "network.host", "."]).success();
    world.write("config.toml", "[build]\nnetwork = \"moon\"\n");
    world.stave(["--config", config, "build", "."]).exits(1).says("unknown variant `moon`");
}

#[test]
fn programs_in_user_space_connect_a_step_or_say_why_not() {
    let world = Environment::new();
    world.dockerfile("FROM BUSYBOX\nRUN ls /sys/class/net | wc -l > /devices\n");
    let (names, _) = networks(&world);
    for name in ["pasta", "slirp4netns"] {
        let outcome = world.stave(["build", "--no-cache", "--network", name, "-t", name, "."]);
        if names.split(' ').any(|known| known == name) {
            outcome.success();
            assert_eq!(world.run(name, &["cat", "/devices"]), "2\n");
        } else {
            outcome.exits(1).says(&format!("network `{name}` is not available: "));
        }
    }
}

/// A shell script in a network of its own, with `$STAVE` for the program; its output.
fn in_own_network(world: &Environment, script: &str) -> String {
    let stave = format!("{} --root {}", program().display(), world.root().display());
    // The script waits for links to come and go: what never happens shall not hold the tests up for ever.
    tool(
        "timeout",
        &[
            "120",
            "unshare",
            "--net",
            "sh",
            "-ec",
            &format!("STAVE='{stave}'; ip link set lo up; echo 0 > /proc/sys/net/ipv4/ip_forward; {script}"),
        ],
    )
}

#[test]
fn nothing_of_a_bridge_outlives_its_users() {
    let world = Environment::new();
    world.dockerfile("FROM BUSYBOX\n");
    world.build("plain").success();
    if !matches!(bridge(&world), Bridge::Kernel { .. }) {
        // Whoever has no rights over a network has nothing to leave in it.
        world.stave(["doctor"]).success();
        return;
    }
    let left = "ip -o link | grep -c stv || true; nft list tables 2> /dev/null | wc -l; \
                cat /proc/sys/net/ipv4/conf/lo/forwarding; $STAVE doctor | grep -c bridge || true";
    let sleep = own_sleep(7171);
    let script = format!(
        "for n in 1 2 3; do $STAVE run --network bridge plain true & done; wait; {left}; \
         $STAVE run --network bridge plain {sleep} & victim=$!; \
         until pgrep -fx '{sleep}' > /dev/null; do :; done; kill -9 $victim; ended=0; wait $victim || ended=$?; test $ended = 137; \
         found=0; $STAVE doctor || found=$?; test $found = 1; $STAVE run --network bridge plain ls /sys/class/net; \
         while ip -o link | grep -q stv; do :; done; {left}"
    );
    let printed = in_own_network(&world, &script);
    let said = "found: a process died and left its bridge network: stv";
    let lines: Vec<&str> = printed.lines().filter(|line| !line.contains("hint")).collect();
    assert_eq!(&lines[..4], ["0", "0", "0", "0"], "{printed}");
    assert!(lines.iter().any(|line| line.starts_with(said)), "{printed}");
    assert!(printed.ends_with("eth0\nlo\n0\n0\n0\n0\n"), "{printed}");
}
