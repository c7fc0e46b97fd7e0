//! Port specifications of `EXPOSE`: `[[address:]host:]port[-port][/protocol]`.
//!
//! Owns their syntax and the complaints about it. Must not know instructions. Start with [`parse`].

use std::net::IpAddr;

use crate::quote::quote;

/// A port specification, read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PortSpec {
    /// The ports as an image config names them, `80/tcp`, ascending.
    pub(crate) exposed: Vec<String>,
    /// Whether the protocol was written in another case than lower.
    pub(crate) odd_case: bool,
    /// Whether an address or a host port was given, which means nothing here.
    pub(crate) mapped: bool,
}

/// Text that specifies no port.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PortError {
    #[error("invalid port: {}: no port specified", quote(.0))]
    NoPort(String),
    #[error("invalid port: {}: invalid proto: {protocol}", quote(.port))]
    Protocol { port: String, protocol: String },
    #[error("invalid IP address: {0}")]
    Address(String),
    #[error("invalid containerPort: {0}")]
    ContainerPort(String),
    #[error("invalid hostPort: {0}")]
    HostPort(String),
    #[error("invalid ranges specified for container and host Ports: {0} and {1}")]
    Ranges(String, String),
}

/// Reads a port specification.
pub(crate) fn parse(text: &str) -> Result<PortSpec, PortError> {
    let mut parts = text.rsplitn(3, ':');
    let container = parts.next().unwrap_or_default();
    let host = parts.next().unwrap_or_default();
    let address = parts.next().unwrap_or_default();
    let (ports, protocol) = container.split_once('/').unwrap_or((container, ""));
    if ports.is_empty() {
        return Err(PortError::NoPort(text.to_owned()));
    }
    let lower = match protocol.to_lowercase().as_str() {
        "" | "tcp" => "tcp",
        "udp" => "udp",
        "sctp" => "sctp",
        _ => return Err(PortError::Protocol { port: text.to_owned(), protocol: protocol.to_owned() }),
    };
    let bare = address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(address);
    if !bare.is_empty() && bare.parse::<IpAddr>().is_err() {
        return Err(PortError::Address(bare.to_owned()));
    }
    let (first, last) = range(ports).ok_or_else(|| PortError::ContainerPort(ports.to_owned()))?;
    if !host.is_empty() {
        let (host_first, host_last) = range(host).ok_or_else(|| PortError::HostPort(host.to_owned()))?;
        if last != first && last - first != host_last - host_first {
            return Err(PortError::Ranges(ports.to_owned(), host.to_owned()));
        }
    }
    Ok(PortSpec {
        exposed: (first..=last).map(|port| format!("{port}/{lower}")).collect(),
        odd_case: protocol != protocol.to_lowercase(),
        mapped: !address.is_empty() || !host.is_empty(),
    })
}

/// `first-last`, or one port for both.
fn range(text: &str) -> Option<(u16, u16)> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (first.parse().ok()?, last.parse().ok()?);
    (first <= last).then_some((first, last))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Result<(&[&str], bool, bool), &str>) {
        let found = parse(text).map_err(|error| error.to_string());
        let expected = expected.map_err(str::to_owned).map(|(exposed, odd_case, mapped)| PortSpec {
            exposed: exposed.iter().map(|&port| port.to_owned()).collect(),
            odd_case,
            mapped,
        });
        assert_eq!(found, expected, "{text}");
    }

    #[test]
    fn ports_have_ranges_and_protocols() {
        check("80", Ok((&["80/tcp"], false, false)));
        check("80/UDP", Ok((&["80/udp"], true, false)));
        check("8000-8002/sctp", Ok((&["8000/sctp", "8001/sctp", "8002/sctp"], false, false)));
        check("8080:80", Ok((&["80/tcp"], false, true)));
        check("127.0.0.1:8080-8081:80-81", Ok((&["80/tcp", "81/tcp"], false, true)));
        check("[::1]::80", Ok((&["80/tcp"], false, true)));
        check("80/", Ok((&["80/tcp"], false, false)));
    }

    #[test]
    fn wrong_ports_are_named() {
        check("", Err("invalid port: \"\": no port specified"));
        check("80/x", Err("invalid port: \"80/x\": invalid proto: x"));
        check("a", Err("invalid containerPort: a"));
        check("70000", Err("invalid containerPort: 70000"));
        check("3-2", Err("invalid containerPort: 3-2"));
        check("x:80", Err("invalid hostPort: x"));
        check("1-2:3-6", Err("invalid ranges specified for container and host Ports: 3-6 and 1-2"));
        check("localhost:1:80", Err("invalid IP address: localhost"));
    }
}
