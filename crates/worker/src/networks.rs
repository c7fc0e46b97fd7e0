//! The networks steps ask for, as this machine can give them: what the sandbox is told, and what files and names say.
//!
//! Owns the choice where there is one, and the host's resolvers. Must not know how a network is made. Read
//! [`Networks::connect`] first. A network with a name of its own would be one more kind of [`StepNetwork`].

use std::io::Read as _;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use stave_sandbox::{BridgeError, Launcher, Network, UserNetworkProgram};

use crate::exec::network_files::{HOST_GATEWAY, HostEntry, RESOLV_LIMIT, resolv_conf, with_server};
use crate::session::StepNetwork;

/// Why a step does not get the network it asked for.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// There is no bridge.
    #[error("network `bridge` is not available{}", remedy(source))]
    Bridge {
        /// Why.
        #[source]
        source: BridgeError,
    },
    /// A program in user space is what there would be for this user, and there is none.
    #[error(
        "network `bridge` is not available: an ordinary user cannot make one, and {pasta}; {slirp4netns}"
    )]
    NoProgram {
        /// Why not by `pasta`.
        pasta: String,
        /// Why not by `slirp4netns`.
        slirp4netns: String,
    },
    /// The program that was named cannot be used.
    #[error("network `{}` is not available: {reason}", program.name())]
    Program {
        /// Which.
        program: UserNetworkProgram,
        /// Why.
        reason: String,
    },
    /// The host has no address that a step in this network could reach it under.
    #[error("`{HOST_GATEWAY}` has no meaning in network `{}`: give an address", program.name())]
    NoGateway {
        /// What connects the step.
        program: UserNetworkProgram,
    },
}

fn remedy(error: &BridgeError) -> String {
    error.remedy().map_or_else(String::new, |remedy| format!(" (it takes {remedy})"))
}

/// A network that a step can have.
#[derive(Debug, Clone)]
pub(crate) struct Connected {
    /// What the sandbox is told.
    pub(crate) network: Network,
    /// `/etc/resolv.conf` inside.
    pub(crate) resolv: String,
    gateway: Gateway,
}

/// What `host-gateway` stands for.
#[derive(Debug, Clone)]
enum Gateway {
    At(Vec<IpAddr>),
    /// Nothing is reached, the host neither.
    Nowhere,
    Unknown(UserNetworkProgram),
}

/// Gives networks. Clones of one launcher have one bridge.
#[derive(Debug, Clone, Default)]
pub(crate) struct Networks {
    launcher: Launcher,
    /// Whether the bridge was begun ahead of need.
    begun: Arc<AtomicBool>,
}

impl Networks {
    /// Networks of the sandboxes that `launcher` starts.
    pub(crate) fn new(launcher: &Launcher) -> Self {
        Self { launcher: launcher.clone(), begun: Arc::default() }
    }

    /// Sees to it that a network can be had; blocks for some ten milliseconds when the bridge is made for it.
    pub(crate) fn connect(&self, asked: StepNetwork) -> Result<Connected, NetworkError> {
        let host = host_resolvers();
        match asked {
            StepNetwork::Host => Ok(Connected {
                network: Network::Host,
                resolv: resolv_conf(&host, true),
                gateway: Gateway::At(vec![Ipv4Addr::LOCALHOST.into()]),
            }),
            StepNetwork::None => Ok(Connected {
                network: Network::None,
                resolv: resolv_conf(&host, false),
                gateway: Gateway::Nowhere,
            }),
            StepNetwork::User(program) => match program.refusal() {
                None => Ok(by_program(program, &host)),
                Some(reason) => Err(NetworkError::Program { program, reason }),
            },
            StepNetwork::Bridge => self.bridge(&host),
        }
    }

    fn bridge(&self, host: &str) -> Result<Connected, NetworkError> {
        match self.launcher.bridge() {
            Ok(bridge) => Ok(Connected {
                network: Network::Bridge,
                resolv: resolv_conf(host, false),
                gateway: Gateway::At(bridge.facts().host.clone()),
            }),
            Err(BridgeError::Unprivileged) => {
                let usable = UserNetworkProgram::first_usable();
                usable.map(|program| by_program(program, host)).ok_or_else(|| {
                    let reason = |program: UserNetworkProgram| program.refusal().unwrap_or_default();
                    NetworkError::NoProgram {
                        pasta: reason(UserNetworkProgram::Pasta),
                        slirp4netns: reason(UserNetworkProgram::Slirp4netns),
                    }
                })
            }
            Err(source) => Err(NetworkError::Bridge { source }),
        }
    }

    /// Makes what steps will ask for before they do, once, beside everything else. What fails then fails again, and is
    /// said, when a step asks.
    pub(crate) fn prepare(&self, asked: StepNetwork) {
        if asked == StepNetwork::Bridge && !self.begun.swap(true, Ordering::Relaxed) {
            let launcher = self.launcher.clone();
            let thread = std::thread::Builder::new().name("stave-network-start".into());
            let _started = thread.spawn(move || launcher.bridge().map(drop));
        }
    }
}

impl Connected {
    /// The extra lines of `/etc/hosts`, with the host's own addresses where it is meant.
    pub(crate) fn entries(&self, asked: &[HostEntry]) -> Result<Vec<HostEntry>, NetworkError> {
        let mut entries = Vec::new();
        for entry in asked {
            match &self.gateway {
                _ if entry.address != HOST_GATEWAY => entries.push(entry.clone()),
                Gateway::Nowhere => {}
                Gateway::Unknown(program) => return Err(NetworkError::NoGateway { program: *program }),
                Gateway::At(addresses) => entries.extend(
                    addresses
                        .iter()
                        .map(|address| HostEntry { name: entry.name.clone(), address: address.to_string() }),
                ),
            }
        }
        Ok(entries)
    }
}

fn by_program(program: UserNetworkProgram, host: &str) -> Connected {
    Connected {
        network: Network::User(program),
        resolv: match program.resolver() {
            Some(server) => with_server(host, server),
            None => resolv_conf(host, false),
        },
        gateway: Gateway::Unknown(program),
    }
}

/// The host's `resolv.conf`. What cannot be read is as good as absent: a step without name servers says so itself.
fn host_resolvers() -> String {
    let read = |path: &str| {
        let mut bytes = Vec::new();
        let file = std::fs::File::open(path)?;
        file.take(RESOLV_LIMIT).read_to_end(&mut bytes)?;
        std::io::Result::Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    read("/etc/resolv.conf").unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(gateway: Gateway, expected: &[&str]) {
        let connected = Connected { network: Network::None, resolv: String::new(), gateway };
        let asked = [("db", "10.0.0.7"), ("host", HOST_GATEWAY)]
            .map(|(name, address)| HostEntry { name: name.to_owned(), address: address.to_owned() });
        let found = connected.entries(&asked).expect("entries");
        let lines: Vec<String> =
            found.iter().map(|entry| format!("{} {}", entry.address, entry.name)).collect();
        assert_eq!(lines, expected);
    }

    #[test]
    fn the_host_has_the_addresses_it_is_reached_under() {
        let both = ["10.228.0.2", "fd00::2"].map(|text| text.parse().expect("an address")).to_vec();
        check(Gateway::At(both), &["10.0.0.7 db", "10.228.0.2 host", "fd00::2 host"]);
        check(Gateway::Nowhere, &["10.0.0.7 db"]);
    }

    #[test]
    fn a_network_without_a_way_to_the_host_says_so() {
        let connected = by_program(UserNetworkProgram::Slirp4netns, "nameserver 127.0.0.53\n");
        assert_eq!(connected.resolv, "nameserver 10.0.2.3\n");
        let host = HostEntry { name: "host".to_owned(), address: HOST_GATEWAY.to_owned() };
        let error = connected.entries(&[host]).expect_err("no address");
        assert_eq!(
            error.to_string(),
            "`host-gateway` has no meaning in network `slirp4netns`: give an address"
        );
    }

    #[test]
    fn the_hosts_network_and_none_need_nothing() {
        let networks = Networks::default();
        let network = |asked| networks.connect(asked).expect("a network").network;
        assert_eq!(network(StepNetwork::Host), Network::Host);
        assert_eq!(network(StepNetwork::None), Network::None);
    }
}
