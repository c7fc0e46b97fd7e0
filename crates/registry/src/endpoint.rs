//! Which hosts serve a registry, in which order, and how each is spoken to.
//!
//! Owns mirrors, the Docker Hub alias and the choice between https and http; pure. Start with [`endpoints`].

use std::net::IpAddr;

use url::Url;

use crate::config::{Capability, RegistryConfig, RegistryTables};
use crate::error::ErrorKind;

/// The registry of names without a host, and the host that serves it.
const DOCKER_HUB: (&str, &str) = ("docker.io", "registry-1.docker.io");

/// How a host is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scheme {
    Https,
    Http,
}

/// What is known before asking about how a host is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Speaks {
    Only(Scheme),
    /// https, unless the host does not speak TLS: loopback hosts that the configuration is silent about.
    HttpsElseHttp,
}

/// One host that serves a registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Endpoint {
    /// `host[:port]` connected to.
    pub(crate) host: String,
    /// The name that its table and its credentials are under.
    pub(crate) key: String,
    pub(crate) speaks: Speaks,
    /// A path below `/v2/`, empty or with a slash at its end.
    prefix: String,
    /// For a mirror: the registry it stands in for, which it is told (containerd's `ns` parameter).
    namespace: Option<String>,
}

impl Endpoint {
    /// The address of `path` below `/v2/`.
    pub(crate) fn url(&self, scheme: Scheme, path: &str) -> Result<Url, ErrorKind> {
        let name = match scheme {
            Scheme::Https => "https",
            Scheme::Http => "http",
        };
        let text = format!("{name}://{}/v2/{}{path}", self.host, self.prefix);
        let mut url = Url::parse(&text).map_err(|_| ErrorKind::Address(text))?;
        if let Some(namespace) = &self.namespace {
            url.query_pairs_mut().append_pair("ns", namespace);
        }
        Ok(url)
    }

    /// The host of a registry itself, not of its mirrors.
    pub(crate) fn origin(tables: &RegistryTables, registry: &str) -> Self {
        let host = if registry == DOCKER_HUB.0 { DOCKER_HUB.1 } else { registry };
        Self {
            host: host.to_owned(),
            key: registry.to_owned(),
            speaks: speaks(host, tables.0.get(registry)),
            prefix: String::new(),
            namespace: None,
        }
    }

    fn mirror(tables: &RegistryTables, registry: &str, mirror: &str) -> Self {
        let (host, path) = mirror.split_once('/').unwrap_or((mirror, ""));
        let path = path.trim_matches('/');
        Self {
            host: host.to_owned(),
            key: host.to_owned(),
            speaks: speaks(host, tables.0.get(host)),
            prefix: if path.is_empty() { String::new() } else { format!("{path}/") },
            namespace: Some(registry.to_owned()),
        }
    }
}

/// The hosts to ask, in order: mirrors as configured, then the registry itself, each only if it may serve `wanted`.
pub(crate) fn endpoints(tables: &RegistryTables, registry: &str, wanted: Capability) -> Vec<Endpoint> {
    let mirrors = tables.0.get(registry).map_or(&[][..], |table| &table.mirrors);
    let mirrors = mirrors.iter().map(|mirror| Endpoint::mirror(tables, registry, mirror));
    let mut found: Vec<Endpoint> = mirrors.filter(|mirror| may(tables, mirror, wanted, false)).collect();
    let origin = Endpoint::origin(tables, registry);
    if may(tables, &origin, wanted, true) {
        found.push(origin);
    }
    found
}

fn may(tables: &RegistryTables, endpoint: &Endpoint, wanted: Capability, is_origin: bool) -> bool {
    match tables.0.get(&endpoint.key).map(|table| table.capabilities.as_slice()) {
        None | Some([]) => is_origin || wanted != Capability::Push,
        // Writing to a mirror would leave the registry without the image.
        Some(listed) => listed.contains(&wanted) && (is_origin || wanted != Capability::Push),
    }
}

fn speaks(host: &str, table: Option<&RegistryConfig>) -> Speaks {
    let insecure = table.and_then(|table| table.insecure).unwrap_or(false);
    match table.and_then(|table| table.http) {
        Some(true) if insecure => Speaks::HttpsElseHttp,
        Some(true) => Speaks::Only(Scheme::Http),
        Some(false) => Speaks::Only(Scheme::Https),
        None if is_loopback(host) => Speaks::HttpsElseHttp,
        None => Speaks::Only(Scheme::Https),
    }
}

/// Whether `host[:port]` is this machine by name or address, as docker decides it.
pub(crate) fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or(rest),
        None => host.split(':').next().unwrap_or(host),
    };
    name == "localhost" || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(toml: &str, registry: &str, wanted: Capability, expected: &[&str]) {
        let tables: RegistryTables = RegistryTables::parse(toml).expect("the table is valid");
        let found: Vec<String> = endpoints(&tables, registry, wanted)
            .iter()
            .map(|endpoint| {
                let scheme = match endpoint.speaks {
                    Speaks::Only(scheme) => scheme,
                    Speaks::HttpsElseHttp => Scheme::Https,
                };
                endpoint.url(scheme, "x/manifests/y").expect("hosts were checked").to_string()
            })
            .collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn mirrors_come_before_the_registry() {
        let toml = "[registry.\"docker.io\"]\nmirrors = [\"m:5000\", \"n.example/hub/\"]\n[registry.\"m:5000\"]\nhttp = true";
        let expected = [
            "http://m:5000/v2/x/manifests/y?ns=docker.io",
            "https://n.example/v2/hub/x/manifests/y?ns=docker.io",
            "https://registry-1.docker.io/v2/x/manifests/y",
        ];
        check(toml, "docker.io", Capability::Pull, &expected);
        check(toml, "docker.io", Capability::Push, &expected[2..]);
        check(toml, "other.example", Capability::Pull, &["https://other.example/v2/x/manifests/y"]);
    }

    #[test]
    fn capabilities_leave_hosts_out() {
        let toml = "[registry.\"a.example\"]\nmirrors = [\"m.example\"]\ncapabilities = [\"push\"]\n\
                    [registry.\"m.example\"]\ncapabilities = [\"pull\"]";
        check(toml, "a.example", Capability::Pull, &["https://m.example/v2/x/manifests/y?ns=a.example"]);
        check(toml, "a.example", Capability::Resolve, &[]);
        check(toml, "a.example", Capability::Push, &["https://a.example/v2/x/manifests/y"]);
    }

    #[test]
    fn only_loopback_falls_back_to_http() {
        let cases = [
            ("localhost", true),
            ("localhost:5000", true),
            ("127.0.0.1:5000", true),
            ("127.8.9.1", true),
            ("[::1]:5000", true),
            ("localhost.example", false),
            ("10.0.0.1:5000", false),
            ("docker.io", false),
        ];
        for (host, expected) in cases {
            assert_eq!(is_loopback(host), expected, "{host}");
            let speaks = speaks(host, None);
            assert_eq!(speaks == Speaks::HttpsElseHttp, expected, "{host}");
        }
        let strict = RegistryConfig { http: Some(false), ..RegistryConfig::default() };
        assert_eq!(speaks("localhost", Some(&strict)), Speaks::Only(Scheme::Https));
    }
}
