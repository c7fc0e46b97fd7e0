//! Why there is no bridge, in words that say what would help. Read [`BridgeError`] first.

use std::io;

use thiserror::Error;

/// A part of making a bridge network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "each variant is said in words by `describe`")]
pub enum BridgePart {
    Lease,
    Netlink,
    Namespace,
    Look,
    Pair,
    Bridge,
    Port,
    Address,
    Rules,
    Forwarding,
    Thread,
}

impl BridgePart {
    /// The part in words, reading after "cannot".
    const fn describe(self) -> &'static str {
        match self {
            Self::Lease => "agree with other processes on a network (`/run/stave/network`)",
            Self::Netlink => "talk to the kernel by netlink",
            Self::Namespace => "create a network namespace",
            Self::Look => "look at the host's links and routes",
            Self::Pair => "create a pair of `veth` devices",
            Self::Bridge => "create a bridge device",
            Self::Port => "isolate the ports of a bridge",
            Self::Address => "set addresses and routes",
            Self::Rules => "install packet rules by nf_tables",
            Self::Forwarding => "switch on the forwarding of packets",
            Self::Thread => "start a thread",
        }
    }

    /// What the kernel needs for it.
    const fn needs(self) -> Option<&'static str> {
        match self {
            Self::Pair => Some("a kernel with `veth` (CONFIG_VETH; `modprobe veth`)"),
            Self::Bridge => Some("a kernel with bridges (CONFIG_BRIDGE; `modprobe bridge`)"),
            Self::Port => Some("Linux 4.18 or newer"),
            Self::Rules => Some(
                "a kernel with nf_tables (CONFIG_NF_TABLES_INET, CONFIG_NFT_CT, CONFIG_NFT_MASQ; \
                 `modprobe -a nf_tables nft_ct nft_masq`)",
            ),
            Self::Forwarding => Some("a `/proc/sys` that can be written to"),
            _ => None,
        }
    }
}

/// Why a bridge network, or a namespace on it, could not be made.
#[derive(Debug, Error)]
pub enum BridgeError {
    /// This process has no rights over the host's network.
    #[error("an ordinary user cannot connect a bridge to the host's network")]
    Unprivileged,
    /// As many processes have a bridge as can.
    #[error("every bridge network of this machine is in use")]
    Full,
    /// The host's own networks leave no room.
    #[error(
        "the host has routes to all networks that bridges take theirs from: 10.228.0.0/14, 172.28.0.0/14"
    )]
    NoSubnet,
    /// The kernel refused a part.
    #[error("cannot {}", part.describe())]
    Refused {
        /// Which part.
        part: BridgePart,
        /// The kernel's answer.
        source: io::Error,
    },
}

impl BridgeError {
    /// What would lift it.
    #[must_use]
    pub fn remedy(&self) -> Option<&'static str> {
        match self {
            Self::Unprivileged => Some("install `pasta` (package passt) or `slirp4netns`, or run as root"),
            Self::Full | Self::NoSubnet => None,
            Self::Refused { source, .. } if source.raw_os_error() == Some(libc::EPERM) => {
                Some("the capabilities CAP_NET_ADMIN and CAP_SYS_ADMIN over the host's network")
            }
            Self::Refused { part, .. } => part.needs(),
        }
    }
}

/// Says at which part something happened.
pub(super) trait AtPart<T> {
    /// As [`BridgeError::Refused`].
    fn at(self, part: BridgePart) -> Result<T, BridgeError>;
}

impl<T, E: Into<io::Error>> AtPart<T> for Result<T, E> {
    fn at(self, part: BridgePart) -> Result<T, BridgeError> {
        self.map_err(|error| BridgeError::Refused { part, source: error.into() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(part: BridgePart, errno: i32, said: &str, remedy: &str) {
        let error = BridgeError::Refused { part, source: io::Error::from_raw_os_error(errno) };
        assert!(error.to_string().contains(said), "{error}");
        assert!(error.remedy().is_some_and(|words| words.contains(remedy)), "{:?}", error.remedy());
    }

    #[test]
    fn a_missing_part_of_the_kernel_is_named() {
        check(BridgePart::Pair, libc::EOPNOTSUPP, "create a pair of `veth` devices", "modprobe veth");
        check(BridgePart::Bridge, libc::EOPNOTSUPP, "create a bridge device", "modprobe bridge");
        check(BridgePart::Rules, libc::EPROTONOSUPPORT, "nf_tables", "CONFIG_NFT_MASQ");
        check(BridgePart::Rules, libc::ENOENT, "nf_tables", "modprobe -a nf_tables");
        check(BridgePart::Forwarding, libc::EROFS, "forwarding", "/proc/sys");
        check(BridgePart::Pair, libc::EPERM, "veth", "CAP_NET_ADMIN");
        assert!(BridgeError::Unprivileged.remedy().is_some_and(|words| words.contains("pasta")));
    }
}
