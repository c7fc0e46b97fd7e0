//! A network of a sandbox's own that the kernel connects to the host's: a bridge, NAT, packet rules, no daemon.
//!
//! From the bottom: netlink messages ([`netlink`], [`route`], [`rules`]); which addresses and which packets
//! ([`address`], [`policy`]); who has which network ([`lease`]) and what of the host is switched ([`forwarding`]); the
//! host's side and the bridge ([`host`], [`bridge`]); namespaces made ahead ([`pool`]). Nothing here runs a program. Read
//! [`BridgeNetwork`] first. Networks with names and published ports would be further bridges with another policy.

mod address;
mod bridge;
mod error;
mod forwarding;
mod host;
mod lease;
mod netlink;
mod policy;
mod pool;
mod route;
mod rules;

use std::path::Path;

/// Where the processes of a machine agree who has which network.
const DIRECTORY: &str = "/run/stave/network";

pub use error::{BridgeError, BridgePart};
pub use pool::{BridgeFacts, BridgeNamespace, BridgeNetwork};

/// Removes what bridges of killed processes left on this machine; returns of how many.
///
/// # Errors
/// When the kernel refuses.
pub fn sweep_bridges() -> std::io::Result<usize> {
    host::sweep(Path::new(DIRECTORY))
}

/// The devices whose processes were killed; they may be gone already, but what they needed of the host is not.
///
/// # Errors
/// When the files of networks cannot be read.
pub fn abandoned_bridges() -> std::io::Result<Vec<String>> {
    host::abandoned(Path::new(DIRECTORY))
}
