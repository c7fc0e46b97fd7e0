//! Links, addresses, routes and neighbours of one network namespace, by rtnetlink.
//!
//! Owns the messages; holds no policy. Read [`Routes`] first. The kernel's names and numbers are those of
//! `linux/if_link.h`, `linux/rtnetlink.h` and `linux/neighbour.h`.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use super::address::Subnet;
use super::netlink::{Message, Socket, attributes, number};

const BRPORT_LEARNING: u16 = 8;
const BRPORT_UNICAST_FLOOD: u16 = 9;
const BRPORT_ISOLATED: u16 = 33;
const VETH_INFO_PEER: u16 = 1;
const IFA_F_NODAD: u8 = 2;
const RTNH_F_ONLINK: u32 = 4;
const NUD_PERMANENT: u16 = 0x80;
const NUD_NOARP: u16 = 0x40;
const NTF_MASTER: u8 = 4;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;

/// An Ethernet address.
pub(super) type HardwareAddress = [u8; 6];

/// Number of a link in its namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LinkIndex(pub(super) u32);

/// One end of a pair of virtual Ethernet devices.
#[derive(Debug)]
pub(super) struct End<'a> {
    pub(super) name: &'a str,
    pub(super) hardware: HardwareAddress,
}

/// A route as the kernel lists it: not to this machine itself, from its main table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct KnownRoute {
    /// Where to; `None` is anywhere.
    pub(super) to: Option<Subnet>,
    pub(super) link: Option<LinkIndex>,
}

/// The links, addresses and routes of a network namespace.
#[derive(Debug)]
pub(super) struct Routes(Socket);

impl Routes {
    /// Those of the calling thread's namespace, wherever the thread goes afterwards.
    pub(super) fn here() -> io::Result<Self> {
        Socket::route().map(Self)
    }

    /// A bridge.
    pub(super) fn add_bridge(&mut self, bridge: &End<'_>, mtu: u32) -> io::Result<()> {
        let message = Message::new(libc::RTM_NEWLINK, created(), &link_header(0, LinkIndex(0), false));
        self.0.request(
            message
                .text(libc::IFLA_IFNAME, bridge.name)
                .number(libc::IFLA_MTU, mtu)
                .put(libc::IFLA_ADDRESS, &bridge.hardware)
                .nest(libc::IFLA_LINKINFO, |info| info.text(libc::IFLA_INFO_KIND, "bridge")),
        )
    }

    /// A pair of devices, `here` in this namespace, a port of `bridge` if there is one, and `there` in another.
    pub(super) fn add_pair(
        &mut self,
        here: &End<'_>,
        bridge: Option<LinkIndex>,
        (there, namespace): (&End<'_>, BorrowedFd<'_>),
        mtu: u32,
    ) -> io::Result<()> {
        let mut message = Message::new(libc::RTM_NEWLINK, created(), &link_header(0, LinkIndex(0), false))
            .text(libc::IFLA_IFNAME, here.name)
            .number(libc::IFLA_MTU, mtu)
            .put(libc::IFLA_ADDRESS, &here.hardware);
        if let Some(bridge) = bridge {
            message = message.number(libc::IFLA_MASTER, bridge.0);
        }
        let peer = |data: Message| {
            data.nest(VETH_INFO_PEER, |peer| {
                peer.raw(&link_header(0, LinkIndex(0), false))
                    .text(libc::IFLA_IFNAME, there.name)
                    .number(libc::IFLA_MTU, mtu)
                    .put(libc::IFLA_ADDRESS, &there.hardware)
                    .number(libc::IFLA_NET_NS_FD, namespace.as_raw_fd().unsigned_abs())
            })
        };
        self.0.request(message.nest(libc::IFLA_LINKINFO, |info| {
            info.text(libc::IFLA_INFO_KIND, "veth").nest(libc::IFLA_INFO_DATA, peer)
        }))
    }

    /// Makes a port of a bridge one that sees nobody but the bridge, and learns nothing from what comes in.
    pub(super) fn isolate_port(&mut self, port: LinkIndex) -> io::Result<()> {
        let message = Message::new(libc::RTM_SETLINK, 0, &link_header(libc::AF_BRIDGE as u8, port, false));
        self.0.request(message.nest(libc::IFLA_PROTINFO, |options| {
            options.put(BRPORT_ISOLATED, &[1]).put(BRPORT_LEARNING, &[0]).put(BRPORT_UNICAST_FLOOD, &[0])
        }))
    }

    /// Brings a link up.
    pub(super) fn bring_up(&mut self, link: LinkIndex) -> io::Result<()> {
        self.0.request(Message::new(libc::RTM_NEWLINK, 0, &link_header(0, link, true)))
    }

    /// Removes a link, and with it the other end of a pair.
    pub(super) fn remove_link(&mut self, name: &str) -> io::Result<()> {
        let message = Message::new(libc::RTM_DELLINK, 0, &link_header(0, LinkIndex(0), false));
        self.0.request(message.text(libc::IFLA_IFNAME, name))
    }

    /// Number, name and largest packet of every link.
    pub(super) fn links(&mut self) -> io::Result<Vec<(LinkIndex, String, Option<u32>)>> {
        let listed = self.0.dump(Message::new(libc::RTM_GETLINK, 0, &link_header(0, LinkIndex(0), false)))?;
        let link = |body: &[u8]| {
            let index = LinkIndex(number(body.get(4..)?)?);
            let (mut name, mut mtu) = (None, None);
            for (kind, value) in attributes(body.get(16..)?) {
                match kind {
                    libc::IFLA_IFNAME => {
                        name = value.strip_suffix(&[0]).and_then(|name| str::from_utf8(name).ok())
                    }
                    libc::IFLA_MTU => mtu = number(value),
                    _ => {}
                }
            }
            Some((index, name?.to_owned(), mtu))
        };
        Ok(listed.iter().filter_map(|(_, body)| link(body)).collect())
    }

    /// The number of a link.
    pub(super) fn link(&mut self, name: &str) -> io::Result<LinkIndex> {
        let found = self.links()?.into_iter().find(|(_, known, _)| known == name);
        found.map(|(index, ..)| index).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Gives a link an address with the length of its network's prefix.
    pub(super) fn add_address(&mut self, link: LinkIndex, address: IpAddr, prefix: u8) -> io::Result<()> {
        let (family, bytes) = parts(address);
        // Nobody else can have it: looking for others would only make it unusable for seconds.
        let mut header = vec![family, prefix, IFA_F_NODAD, 0];
        header.extend(link.0.to_ne_bytes());
        let message = Message::new(libc::RTM_NEWADDR, created(), &header);
        self.0.request(message.put(libc::IFA_LOCAL, &bytes).put(libc::IFA_ADDRESS, &bytes))
    }

    /// A route to what is at the link itself.
    pub(super) fn add_route_to(&mut self, to: IpAddr, link: LinkIndex) -> io::Result<()> {
        let (family, bytes) = parts(to);
        let message =
            Message::new(libc::RTM_NEWROUTE, created(), &route_header(family, bytes.len() as u8 * 8, 253, 0));
        self.0.request(message.put(libc::RTA_DST, &bytes).number(libc::RTA_OIF, link.0))
    }

    /// A route, anywhere if `to` is `None`, by way of a neighbour at the link.
    pub(super) fn add_route(&mut self, to: Option<Subnet>, by: IpAddr, link: LinkIndex) -> io::Result<()> {
        let (family, gateway) = parts(by);
        let prefix = to.map_or(0, Subnet::prefix);
        let header = route_header(family, prefix, 0, RTNH_F_ONLINK);
        let mut message = Message::new(libc::RTM_NEWROUTE, created(), &header);
        if let Some(to) = to {
            message = message.put(libc::RTA_DST, &parts(to.first()).1);
        }
        self.0.request(message.put(libc::RTA_GATEWAY, &gateway).number(libc::RTA_OIF, link.0))
    }

    /// Says once and for all who has an address at a link.
    pub(super) fn add_neighbour(
        &mut self,
        link: LinkIndex,
        address: IpAddr,
        hardware: HardwareAddress,
    ) -> io::Result<()> {
        let (family, bytes) = parts(address);
        let flags = (libc::NLM_F_CREATE | libc::NLM_F_REPLACE) as u16;
        let message =
            Message::new(libc::RTM_NEWNEIGH, flags, &neighbour_header(family, link, NUD_PERMANENT, 0));
        self.0.request(message.put(NDA_DST, &bytes).put(NDA_LLADDR, &hardware))
    }

    /// Says once and for all which port of a bridge leads to an Ethernet address.
    pub(super) fn add_bridged(&mut self, port: LinkIndex, hardware: HardwareAddress) -> io::Result<()> {
        let flags = (libc::NLM_F_CREATE | libc::NLM_F_REPLACE) as u16;
        let header = neighbour_header(libc::AF_BRIDGE as u8, port, NUD_NOARP, NTF_MASTER);
        self.0.request(Message::new(libc::RTM_NEWNEIGH, flags, &header).put(NDA_LLADDR, &hardware))
    }

    /// The routes of the main table that lead away, of one family.
    pub(super) fn known_routes(&mut self, family: libc::c_int) -> io::Result<Vec<KnownRoute>> {
        const UNICAST: u8 = 1;
        let header = route_header(family as u8, 0, 0, 0);
        let listed = self.0.dump(Message::new(libc::RTM_GETROUTE, 0, &header))?;
        let route = |body: &[u8]| {
            let (length, table, kind) = (*body.get(1)?, *body.get(4)?, *body.get(7)?);
            if table != libc::RT_TABLE_MAIN || kind != UNICAST {
                return None;
            }
            let (mut to, mut link) = (None, None);
            for (kind, value) in attributes(body.get(12..)?) {
                match kind {
                    libc::RTA_DST => to = address(value),
                    libc::RTA_OIF => link = number(value).map(LinkIndex),
                    _ => {}
                }
            }
            Some(KnownRoute { to: to.map(|to| Subnet::new(to, length)), link })
        };
        Ok(listed.iter().filter_map(|(_, body)| route(body)).collect())
    }
}

fn created() -> u16 {
    (libc::NLM_F_CREATE | libc::NLM_F_EXCL) as u16
}

fn link_header(family: u8, link: LinkIndex, up: bool) -> [u8; 16] {
    let mut header = [0; 16];
    header[0] = family;
    header[4..8].copy_from_slice(&link.0.to_ne_bytes());
    if up {
        header[8..12].copy_from_slice(&(libc::IFF_UP as u32).to_ne_bytes());
        header[12..16].copy_from_slice(&(libc::IFF_UP as u32).to_ne_bytes());
    }
    header
}

fn route_header(family: u8, prefix: u8, scope: u8, flags: u32) -> [u8; 12] {
    const BOOT: u8 = 3;
    const UNICAST: u8 = 1;
    let [a, b, c, d] = flags.to_ne_bytes();
    [family, prefix, 0, 0, libc::RT_TABLE_MAIN, BOOT, scope, UNICAST, a, b, c, d]
}

fn neighbour_header(family: u8, link: LinkIndex, state: u16, flags: u8) -> [u8; 12] {
    let mut header = [0; 12];
    header[0] = family;
    header[4..8].copy_from_slice(&link.0.to_ne_bytes());
    header[8..10].copy_from_slice(&state.to_ne_bytes());
    header[10] = flags;
    header
}

fn parts(address: IpAddr) -> (u8, Vec<u8>) {
    match address {
        IpAddr::V4(address) => (libc::AF_INET as u8, address.octets().to_vec()),
        IpAddr::V6(address) => (libc::AF_INET6 as u8, address.octets().to_vec()),
    }
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}
