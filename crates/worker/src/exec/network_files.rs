//! `/etc/hosts` and `/etc/resolv.conf` as a build step sees them. Texts in, texts out; the caller reads the host's.
//! Must not know sandboxes. Read [`hosts`] and [`resolv_conf`] first.

use std::fmt::Write as _;
use std::net::IpAddr;

/// Name servers given to a step whose network is not the host's, when the host names none it could reach.
const FALLBACK_SERVERS: [&str; 2] = ["8.8.8.8", "8.8.4.4"];

/// Bytes of the host's `resolv.conf` that are looked at.
pub(crate) const RESOLV_LIMIT: u64 = 64 << 10;

/// What stands for the host's own address where an extra host is asked for; docker's word.
pub(crate) const HOST_GATEWAY: &str = "host-gateway";

/// An extra line of `/etc/hosts`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HostEntry {
    pub name: String,
    pub address: String,
}

/// BuildKit's `/etc/hosts`: loopback names with the step's own, then what was asked for.
pub(crate) fn hosts(hostname: &str, extra: &[HostEntry]) -> String {
    let mut text = String::from("127.0.0.1\tlocalhost");
    if !hostname.is_empty() {
        let _ = write!(text, " {hostname}");
    }
    text.push_str("\n::1\tlocalhost ip6-localhost ip6-loopback\n");
    for entry in extra {
        let _ = writeln!(text, "{}\t{}", entry.address, entry.name);
    }
    text
}

/// The host's `resolv.conf`, or one without its loopback servers for a step that has a network of its own.
pub(crate) fn resolv_conf(host: &str, shares_host_network: bool) -> String {
    if shares_host_network {
        return host.to_owned();
    }
    let mut text = String::new();
    let mut servers = 0;
    for line in host.lines() {
        let mut words = line.split_whitespace();
        if words.next() == Some("nameserver") {
            let address = words.next().unwrap_or_default();
            let address = address.split('%').next().unwrap_or_default();
            if address.parse::<IpAddr>().map_or(true, |address| address.is_loopback()) {
                continue;
            }
            servers += 1;
        }
        text.push_str(line);
        text.push('\n');
    }
    if servers == 0 {
        for server in FALLBACK_SERVERS {
            let _ = writeln!(text, "nameserver {server}");
        }
    }
    text
}

/// The host's `resolv.conf` with one name server instead of the host's, whatever they are.
pub(crate) fn with_server(host: &str, server: &str) -> String {
    let kept = host.lines().filter(|line| line.split_whitespace().next() != Some("nameserver"));
    std::iter::once(format!("nameserver {server}").as_str())
        .chain(kept)
        .fold(String::new(), |text, line| text + line + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_resolv(host: &str, shared: bool, expected: &str) {
        assert_eq!(resolv_conf(host, shared), expected);
    }

    #[test]
    fn one_server_takes_the_place_of_all() {
        let host = "search lan\nnameserver 127.0.0.53\nnameserver 10.0.0.1\noptions edns0\n";
        assert_eq!(with_server(host, "10.0.2.3"), "nameserver 10.0.2.3\nsearch lan\noptions edns0\n");
    }

    #[test]
    fn loopback_servers_are_useless_in_another_network() {
        let stub = "# stub\nnameserver 127.0.0.53\nsearch lan\n";
        check_resolv(stub, true, stub);
        check_resolv(stub, false, "# stub\nsearch lan\nnameserver 8.8.8.8\nnameserver 8.8.4.4\n");
        check_resolv("nameserver ::1\nnameserver 10.0.0.1\n", false, "nameserver 10.0.0.1\n");
        check_resolv("nameserver fe80::1%eth0\n", false, "nameserver fe80::1%eth0\n");
        check_resolv("", false, "nameserver 8.8.8.8\nnameserver 8.8.4.4\n");
    }

    #[test]
    fn hosts_end_with_the_asked_for() {
        let entry = HostEntry { name: "db".into(), address: "10.0.0.7".into() };
        let text = hosts("buildkitsandbox", &[entry]);
        let loopback = "127.0.0.1\tlocalhost buildkitsandbox\n::1\tlocalhost ip6-localhost ip6-loopback\n";
        assert_eq!(text, format!("{loopback}10.0.0.7\tdb\n"));
        assert!(hosts("", &[]).starts_with("127.0.0.1\tlocalhost\n::1\t"));
    }
}
