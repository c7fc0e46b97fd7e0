//! The ports of `EXPOSE`.
//!
//! Owns `[address:][host port:]port[-port][/protocol]` and its errors. Start with [`parse`].

use std::net::IpAddr;

use crate::quote::quote;

/// Why a port is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum PortError {
    #[error("invalid port: {}: {reason}", quote(.port))]
    Form { port: String, reason: String },
    #[error("invalid IP address: {0}")]
    Address(String),
    #[error("invalid containerPort: {0}")]
    Container(String),
    #[error("invalid hostPort: {0}")]
    Host(String),
    #[error("invalid ranges specified for container and host Ports: {0} and {1}")]
    Ranges(String, String),
}

/// All ports of one word, each as `port/protocol`.
pub(super) fn parse(word: &str) -> Result<Vec<String>, PortError> {
    let (address, host, container) = split(word);
    let form = |reason: String| PortError::Form { port: word.to_owned(), reason };
    let (ports, protocol) = container.split_once('/').unwrap_or((container, ""));
    if ports.is_empty() {
        return Err(form("no port specified".to_owned()));
    }
    let protocol = match protocol.to_lowercase().as_str() {
        "" => "tcp".to_owned(),
        known @ ("tcp" | "udp" | "sctp") => known.to_owned(),
        _ => return Err(form(format!("invalid proto: {protocol}"))),
    };
    let bare = address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(&address);
    if !bare.is_empty() && bare.parse::<IpAddr>().is_err() {
        return Err(PortError::Address(bare.to_owned()));
    }
    let (first, last) = range(ports).ok_or_else(|| PortError::Container(ports.to_owned()))?;
    if !host.is_empty() {
        let (host_first, host_last) = range(host).ok_or_else(|| PortError::Host(host.to_owned()))?;
        if last - first != host_last - host_first && first != last {
            return Err(PortError::Ranges(ports.to_owned(), host.to_owned()));
        }
    }
    Ok((first..=last).map(|port| format!("{port}/{protocol}")).collect())
}

fn split(word: &str) -> (String, &str, &str) {
    let parts: Vec<&str> = word.split(':').collect();
    match parts.as_slice() {
        [.., _, _, _] => {
            let at = parts.len() - 2;
            (parts[..at].join(":"), parts[at], parts[at + 1])
        }
        [host, container] => (String::new(), host, container),
        _ => (String::new(), "", word),
    }
}

fn range(text: &str) -> Option<(u16, u16)> {
    let (start, end) = text.split_once('-').unwrap_or((text, text));
    let (start, end) = (start.parse().ok()?, end.parse().ok()?);
    (start <= end).then_some((start, end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(word: &str, expected: Result<&[&str], &str>) {
        let found = parse(word).map_err(|cause| cause.to_string());
        assert_eq!(
            found,
            expected.map(|all| all.iter().map(|one| (*one).to_owned()).collect()).map_err(str::to_owned)
        );
    }

    #[test]
    fn ports() {
        check("80", Ok(&["80/tcp"]));
        check("53/UDP", Ok(&["53/udp"]));
        check("8000-8002/sctp", Ok(&["8000/sctp", "8001/sctp", "8002/sctp"]));
        check("127.0.0.1:1:2", Ok(&["2/tcp"]));
        check("[::1]:1:2", Ok(&["2/tcp"]));
        check("/tcp", Err("invalid port: \"/tcp\": no port specified"));
        check("80/x", Err("invalid port: \"80/x\": invalid proto: x"));
        check("99999", Err("invalid containerPort: 99999"));
        check("9-8", Err("invalid containerPort: 9-8"));
        check("a.b:1:2", Err("invalid IP address: a.b"));
        check("1-2:3-5", Err("invalid ranges specified for container and host Ports: 3-5 and 1-2"));
    }
}
