//! Which addresses a bridge and what is on it have. Arithmetic only. Read [`Subnet`], then [`Plan`].

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::route::HardwareAddress;

/// Networks from which bridges take theirs, in the order in which they are tried: each holds one for every slot.
const POOLS: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 228, 0, 0), Ipv4Addr::new(172, 28, 0, 0)];
/// Bridges on one machine at once; with [`PREFIX`] the pools are /14.
pub(super) const SLOTS: u8 = 64;
/// Prefix of one bridge's network.
const PREFIX: u8 = 20;
/// Where the addresses of sandboxes begin in the network.
const FIRST: u32 = 16;
/// Addresses for sandboxes on one bridge.
pub(super) const HOSTS: u32 = (1 << (32 - PREFIX)) - FIRST - 1;

/// A version of IP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Version {
    V4,
    V6,
}

impl Version {
    /// The kernel's number for it.
    pub(super) fn family(self) -> libc::c_int {
        match self {
            Self::V4 => libc::AF_INET,
            Self::V6 => libc::AF_INET6,
        }
    }
}

/// A network: its first address and the length of its prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Subnet {
    first: IpAddr,
    prefix: u8,
}

impl Subnet {
    /// The network of this prefix in which `inside` is.
    pub(super) fn new(inside: IpAddr, prefix: u8) -> Self {
        let first = match inside {
            IpAddr::V4(address) => Ipv4Addr::from_bits(address.to_bits() & mask4(prefix)).into(),
            IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & mask6(prefix)).into(),
        };
        Self { first, prefix }
    }

    /// Its first address.
    pub(super) fn first(self) -> IpAddr {
        self.first
    }

    /// Length of its prefix in bits.
    pub(super) fn prefix(self) -> u8 {
        self.prefix
    }

    /// Which version of IP it is of.
    pub(super) fn version(self) -> Version {
        if self.first.is_ipv4() { Version::V4 } else { Version::V6 }
    }

    /// Whether some address is in both.
    pub(super) fn overlaps(self, other: Self) -> bool {
        let shorter = self.prefix.min(other.prefix);
        Self::new(self.first, shorter) == Self::new(other.first, shorter)
    }

    /// The address with this number.
    fn nth(self, number: u32) -> IpAddr {
        match self.first {
            IpAddr::V4(first) => Ipv4Addr::from_bits(first.to_bits() + number).into(),
            IpAddr::V6(first) => Ipv6Addr::from_bits(first.to_bits() + u128::from(number)).into(),
        }
    }
}

fn mask4(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix.min(32))).unwrap_or(0)
}

fn mask6(prefix: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(prefix.min(128))).unwrap_or(0)
}

/// The networks of one bridge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Plan {
    slot: u8,
    /// IPv4, then IPv6 if the machine has it.
    v4: Subnet,
    v6: Option<Subnet>,
}

/// Who has an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// The bridge: the gateway of every sandbox.
    Bridge,
    /// The host's end: what a sandbox calls the host.
    Host,
    /// The far end of the host's.
    Uplink,
    /// A sandbox, by its number below [`HOSTS`].
    Sandbox(u32),
}

impl Place {
    fn number(self) -> u32 {
        match self {
            Self::Bridge => 1,
            Self::Host => 2,
            Self::Uplink => 3,
            Self::Sandbox(number) => FIRST + number % HOSTS,
        }
    }
}

impl Plan {
    /// The networks of a slot that overlap none of `taken`; `None` when all pools are taken there. `random` makes
    /// the IPv6 prefix one that no other machine has (RFC 4193).
    pub(super) fn choose(slot: u8, taken: &[Subnet], random: Option<[u8; 5]>) -> Option<Self> {
        let pools = POOLS.iter().map(|pool| {
            let first = pool.to_bits() + (u32::from(slot) << (32 - PREFIX));
            Subnet::new(Ipv4Addr::from_bits(first).into(), PREFIX)
        });
        let v4 = pools.into_iter().find(|pool| !taken.iter().any(|taken| taken.overlaps(*pool)))?;
        let v6 = random.map(|[a, b, c, d, e]| {
            let first = [0xfd, a, b, c, d, e, 0, slot, 0, 0, 0, 0, 0, 0, 0, 0];
            Subnet::new(Ipv6Addr::from(first).into(), 64)
        });
        Some(Self { slot, v4, v6 })
    }

    /// The networks.
    pub(super) fn subnets(&self) -> impl Iterator<Item = Subnet> + use<> {
        [Some(self.v4), self.v6].into_iter().flatten()
    }

    /// Addresses of somebody, with the networks they are in.
    pub(super) fn addresses(&self, place: Place) -> impl Iterator<Item = (IpAddr, Subnet)> + use<> {
        self.subnets().map(move |subnet| (subnet.nth(place.number()), subnet))
    }

    /// The Ethernet address of somebody: one that no maker of devices gives away.
    pub(super) fn hardware(&self, place: Place) -> HardwareAddress {
        let [_, _, high, low] = place.number().to_be_bytes();
        [0x02, 0x73, 0x74, self.slot, high, low]
    }

    /// Name of the host's end, and of the rules beside it.
    pub(super) fn name(&self) -> String {
        device(self.slot)
    }
}

/// How the names of all hosts' ends begin.
pub(super) const DEVICE_PREFIX: &str = "stv";

/// Name of a slot's device on the host.
pub(super) fn device(slot: u8) -> String {
    format!("{DEVICE_PREFIX}{slot}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subnet(text: &str) -> Subnet {
        let (address, prefix) = text.split_once('/').expect("a prefix");
        Subnet::new(address.parse().expect("an address"), prefix.parse().expect("a length"))
    }

    #[track_caller]
    fn check_overlap(one: &str, other: &str, expected: bool) {
        assert_eq!(subnet(one).overlaps(subnet(other)), expected);
        assert_eq!(subnet(other).overlaps(subnet(one)), expected);
    }

    #[test]
    fn networks_overlap_when_one_holds_the_other() {
        check_overlap("10.0.0.0/8", "10.228.16.0/20", true);
        check_overlap("10.228.16.7/32", "10.228.16.0/20", true);
        check_overlap("10.228.32.0/20", "10.228.16.0/20", false);
        check_overlap("0.0.0.0/0", "10.228.16.0/20", true);
        check_overlap("fd00::/8", "fd12:3456:789a:1::/64", true);
        check_overlap("fd00::/8", "10.0.0.0/8", false);
    }

    #[track_caller]
    fn check_plan(slot: u8, taken: &[&str], expected: Option<&str>) {
        let taken: Vec<Subnet> = taken.iter().map(|text| subnet(text)).collect();
        let plan = Plan::choose(slot, &taken, None);
        assert_eq!(plan.map(|plan| plan.v4), expected.map(subnet));
    }

    #[test]
    fn a_network_that_the_host_uses_is_not_taken() {
        check_plan(0, &[], Some("10.228.0.0/20"));
        check_plan(63, &["192.168.1.0/24"], Some("10.231.240.0/20"));
        check_plan(1, &["10.228.16.0/24"], Some("172.28.16.0/20"));
        check_plan(1, &["10.0.0.0/8", "172.16.0.0/12"], None);
    }

    #[test]
    fn everybody_has_addresses_of_their_own() {
        let plan = Plan::choose(3, &[], Some([1, 2, 3, 4, 5])).expect("a plan");
        let texts = |place| -> Vec<String> {
            plan.addresses(place).map(|(address, _)| address.to_string()).collect()
        };
        assert_eq!(texts(Place::Bridge), ["10.228.48.1", "fd01:203:405:3::1"]);
        assert_eq!(texts(Place::Sandbox(0)), ["10.228.48.16", "fd01:203:405:3::10"]);
        assert_eq!(texts(Place::Sandbox(HOSTS - 1)), ["10.228.63.254", "fd01:203:405:3::ffe"]);
        assert_eq!(texts(Place::Sandbox(HOSTS)), texts(Place::Sandbox(0)));
        assert_eq!(plan.hardware(Place::Sandbox(0)), [2, 0x73, 0x74, 3, 0, 16]);
        assert!(plan.name().len() < 16);
    }
}
