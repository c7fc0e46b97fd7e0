//! Where a daemon listens, for whom, and what it proves itself with. Start with [`Arguments::listeners`].

use std::collections::BTreeMap;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::os::fd::AsFd;
use std::path::Path;

use stave_daemon::{Address, FileConfig, InheritedSocket, Listener, TlsIdentity, WebPage};

use super::arguments::Arguments;
use super::error::StartError;
use super::{is_buildkitd, read};

/// Where a daemon listens that is told nothing.
const DEFAULT_SOCKET: &str = "/run/stave/stave.sock";
/// The same, when called as `buildkitd`.
const BUILDKIT_SOCKET: &str = "/run/buildkit/buildkitd.sock";
/// The address that stands for sockets that are there already, as buildkitd has it.
const INHERITED: &str = "fd://";

impl Arguments {
    /// What it listens at.
    pub(super) fn listeners(&self, file: &FileConfig) -> Result<Vec<Listener>, StartError> {
        let mut addresses = if self.addr.is_empty() { file.grpc.address.clone() } else { self.addr.clone() };
        // What the service's supervisor listens at already is meant, if nothing else is named.
        let inherits = addresses.iter().any(|text| text == INHERITED)
            || (addresses.is_empty() && std::env::var_os("LISTEN_FDS").is_some());
        addresses.retain(|text| text != INHERITED);
        let mut listeners = if inherits { self.inherited(file)? } else { Vec::new() };
        if addresses.is_empty() && !inherits {
            let socket = if is_buildkitd() { BUILDKIT_SOCKET } else { DEFAULT_SOCKET };
            addresses.push(format!("unix://{socket}"));
        }
        let group = match &self.group {
            Some(name) => Some(group_here(name)?),
            None => file.grpc.gid,
        };
        let listener = |text: &String| {
            Ok::<_, StartError>(match text.parse()? {
                Address::Unix(path) => Listener::Unix { path, group },
                Address::Tcp(address) if self.insecure_tcp => Listener::Plain { address },
                Address::Tcp(address) => Listener::Tls { address, identity: self.identity(file)? },
            })
        };
        for text in &addresses {
            listeners.push(listener(text)?);
        }
        if self.tlscert.is_some() || self.tlskey.is_some() || self.tlscacert.is_some() {
            if self.insecure_tcp {
                return Err(StartError::NeedlessCertificates);
            }
            // Whoever names them means to be protected by them: also where no address needs them, they must be whole.
            self.identity(file)?;
        }
        Ok(listeners)
    }

    /// The sockets that whoever started the program listens at.
    fn inherited(&self, file: &FileConfig) -> Result<Vec<Listener>, StartError> {
        let mut handed = listenfd::ListenFd::from_env();
        let mut listeners = Vec::new();
        for at in 0..handed.len() {
            let unix = handed.take_unix_listener(at);
            let (socket, identity) = match unix {
                Ok(Some(listener)) => (InheritedSocket::Unix(listener), None),
                Ok(None) => continue,
                Err(_) => match handed.take_tcp_listener(at).map_err(StartError::Inherited)? {
                    Some(listener) if self.insecure_tcp => (InheritedSocket::Tcp(listener), None),
                    Some(listener) => (InheritedSocket::Tcp(listener), Some(self.identity(file)?)),
                    None => continue,
                },
            };
            let close = |socket: &dyn AsFd| rustix::io::fcntl_setfd(socket, rustix::io::FdFlags::CLOEXEC);
            let closed = match &socket {
                InheritedSocket::Unix(listener) => close(listener),
                InheritedSocket::Tcp(listener) => close(listener),
            };
            closed.map_err(|error| StartError::Inherited(error.into()))?;
            listeners.push(Listener::Inherited { socket, identity });
        }
        if listeners.is_empty() { Err(StartError::NothingInherited) } else { Ok(listeners) }
    }

    /// Its certificate, and who signs those of its clients.
    pub(super) fn identity(&self, file: &FileConfig) -> Result<TlsIdentity, StartError> {
        let tls = &file.grpc.tls;
        let (certificate, key, authority) = (
            self.tlscert.as_ref().or(tls.cert.as_ref()),
            self.tlskey.as_ref().or(tls.key.as_ref()),
            self.tlscacert.as_ref().or(tls.ca.as_ref()),
        );
        let (Some(certificate), Some(key), Some(authority)) = (certificate, key, authority) else {
            return Err(StartError::NoCertificates);
        };
        Ok(TlsIdentity {
            certificate: read(certificate)?,
            key: read(key)?,
            client_authority: read(authority)?,
        })
    }

    /// The web page; on tcp anybody could look who reaches it.
    pub(super) fn web(&self, file: &FileConfig) -> Result<Option<WebPage>, StartError> {
        let text = self.watch.web_addr.as_ref().or(file.web.address.as_ref());
        let Some(address) = address(text)? else { return Ok(None) };
        if let Address::Tcp(socket) = &address
            && !socket.ip().is_loopback()
            && !self.insecure_tcp
        {
            return Err(StartError::OpenPage(*socket));
        }
        let hosts: Vec<String> = self.watch.web_host.iter().chain(&file.web.hosts).cloned().collect();
        let is_none = |host: &&String| host.is_empty() || host.contains([' ', '/']);
        if let Some(host) = hosts.iter().find(is_none) {
            return Err(StartError::WebHost(host.clone()));
        }
        Ok(Some(WebPage { address, hosts }))
    }
}

/// An address, if there is one.
fn address(text: Option<&String>) -> Result<Option<Address>, StartError> {
    Ok(text.filter(|text| !text.is_empty()).map(|text| text.parse()).transpose()?)
}

/// The same for an address that buildkitd has without `tcp://`: `HOST:PORT`, or `:PORT` for all of this machine's. Of
/// the addresses that a name has, the first of the fourth version is preferred, as Go has it.
pub(super) fn watched(text: Option<&String>) -> Result<Option<Address>, StartError> {
    let plain = text.map(|text| if text.starts_with(':') { format!("0.0.0.0{text}") } else { text.clone() });
    let sockets = plain.filter(|plain| !plain.contains('/')).and_then(|plain| plain.to_socket_addrs().ok());
    let sockets: Vec<SocketAddr> = sockets.into_iter().flatten().collect();
    match sockets.iter().find(|socket| socket.is_ipv4()).or(sockets.first()).copied() {
        Some(socket) => Ok(Some(Address::Tcp(socket))),
        None => address(text),
    }
}

/// A group as files of this process have it.
fn group_here(name: &str) -> Result<u32, StartError> {
    let number = group(name)?;
    let here = stave_sandbox::IdMap::current().gid_inside(number);
    here.ok_or_else(|| StartError::ForeignGroup(name.to_owned()))
}

/// A group by number or by its name in the system's table.
fn group(name: &str) -> Result<u32, StartError> {
    if let Ok(number) = name.parse() {
        return Ok(number);
    }
    let path = Path::new("/etc/group");
    let table = read(path)?;
    let table: BTreeMap<String, u32> = String::from_utf8_lossy(&table)
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(':');
            Some((fields.next()?.to_owned(), fields.nth(1)?.parse().ok()?))
        })
        .collect();
    table.get(name).copied().ok_or_else(|| StartError::NoGroup(name.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_metrics_are_buildkitds() {
        let check = |text: &str, expected: &str| {
            let found = watched(Some(&text.to_owned())).expect("is an address");
            assert!(matches!(found, Some(Address::Tcp(found)) if found.to_string() == expected), "{text}");
        };
        check("127.0.0.1:6060", "127.0.0.1:6060");
        check(":6060", "0.0.0.0:6060");
        check("[::1]:6060", "[::1]:6060");
        check("tcp://127.0.0.1:6060", "127.0.0.1:6060");
        check("localhost:6060", "127.0.0.1:6060");
        watched(Some(&"127.0.0.1".to_owned())).expect_err("no port");
    }
}
