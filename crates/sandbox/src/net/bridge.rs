//! A bridge in a network namespace of its own, and the namespaces on it.
//!
//! ```text
//! host's namespace            bridge's namespace                 a sandbox's
//! eth0 ── masquerade ── stv3 ═══ uplink ── routes ── bridge ── port ═══ eth0
//! ```
//!
//! Everything hangs on descriptors of this process: when it ends, however it does, the namespaces go, with them the
//! devices on both sides, and the rules, which belong to a socket. Only the host's switches outlast it
//! ([`super::forwarding`]). No namespace learns who is where from packets: every address has its neighbour said once
//! and for all, so that nobody can pass for somebody else. Namespaces are entered by the calling thread, which must do
//! nothing else. Read [`Bridge::connect`] first.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use rustix::thread::UnshareFlags;

use super::address::{Place, Plan};
use super::error::{AtPart as _, BridgeError, BridgePart};
use super::host::{HostSide, enter, namespace, whole};
use super::policy::{self, BRIDGE, UPLINK};
use super::route::{End, LinkIndex, Routes};
use super::rules::Rules;
use crate::sys;

/// Name of a sandbox's device.
const INSIDE: &str = "eth0";
/// The first link of every namespace.
const LOOPBACK: LinkIndex = LinkIndex(1);
/// The table of rules where the bridge is.
const TABLE: &str = "stave";
/// What a router and what a sandbox needs switched, as docker has it: any user may use small ports and ping.
const ROUTER: &[(&str, &str)] =
    &[("ipv4/ip_forward", "1"), ("ipv6/conf/all/forwarding", "1"), ("ipv6/conf/all/accept_dad", "0")];
const SANDBOX: &[(&str, &str)] =
    &[("ipv4/ip_unprivileged_port_start", "0"), ("ipv4/ping_group_range", "0 2147483647")];

/// A bridge that is connected to the host.
#[derive(Debug)]
pub(super) struct Bridge {
    // First, so that nothing is behind the device any more.
    routes: Routes,
    _rules: Rules,
    namespace: OwnedFd,
    bridge: LinkIndex,
    /// Namespaces made, to tell their ports apart.
    made: u64,
    host: HostSide,
}

impl Bridge {
    /// Makes a bridge and connects it to the network of the calling thread. `directory` is where the processes of this
    /// machine agree who has which network.
    pub(super) fn connect(directory: &Path) -> Result<Self, BridgeError> {
        let mut host = HostSide::claim(directory)?;
        let namespace = enter_new().at(BridgePart::Namespace)?;
        let mut routes = Routes::here().at(BridgePart::Netlink)?;
        let mut rules = Rules::here().at(BridgePart::Netlink)?;
        switch(ROUTER).at(BridgePart::Forwarding)?;
        rules.install(TABLE, &policy::on_bridge(host.plan.subnets())).at(BridgePart::Rules)?;
        let bridge = add_bridge(&mut routes, &host.plan, host.mtu).at(BridgePart::Bridge)?;
        host.connect(namespace.as_fd())?;
        address_uplink(&mut routes, &host.plan).at(BridgePart::Address)?;
        Ok(Self { routes, _rules: rules, namespace, bridge, made: 0, host })
    }

    /// The host's addresses as a sandbox reaches them.
    pub(super) fn gateways(&self) -> Vec<IpAddr> {
        self.host.plan.addresses(Place::Host).map(|(address, _)| address).collect()
    }

    /// Why there is no IPv6.
    pub(super) fn without_v6(&self) -> Option<&'static str> {
        self.host.without_v6
    }

    /// Makes a namespace on the bridge, with the addresses of this number, which nobody else has.
    pub(super) fn add_namespace(&mut self, number: u32) -> Result<OwnedFd, BridgeError> {
        let (plan, place) = (self.host.plan, Place::Sandbox(number));
        let namespace = enter_new().at(BridgePart::Namespace)?;
        switch(SANDBOX).at(BridgePart::Namespace)?;
        if self.host.without_v6.is_some() {
            // Without IPv6 in the kernel there is nothing to switch off.
            let _absent = fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
        }
        self.made += 1;
        let name = format!("port{}", self.made % 1_000_000_000);
        let port = End { name: &name, hardware: [0x02, 0x73, 0x74, 0xff, 0xff, 0xff] };
        let inside = End { name: INSIDE, hardware: plan.hardware(place) };
        self.routes
            .add_pair(&port, Some(self.bridge), (&inside, namespace.as_fd()), self.host.mtu)
            .at(BridgePart::Pair)?;
        let port = self.routes.link(&name).at(BridgePart::Look)?;
        self.routes.isolate_port(port).at(BridgePart::Port)?;
        self.routes.bring_up(port).at(BridgePart::Port)?;
        self.address(port, place).at(BridgePart::Address)?;
        Ok(namespace)
    }

    /// Addresses and routes of a sandbox, whose namespace the thread is in.
    fn address(&mut self, port: LinkIndex, place: Place) -> io::Result<()> {
        let plan = self.host.plan;
        let mut inside = Routes::here()?;
        let link = inside.link(INSIDE)?;
        inside.bring_up(LOOPBACK)?;
        inside.bring_up(link)?;
        self.routes.add_bridged(port, plan.hardware(place))?;
        let gateways = plan.addresses(Place::Bridge);
        for ((address, _), (gateway, _)) in plan.addresses(place).zip(gateways) {
            self.routes.add_neighbour(self.bridge, address, plan.hardware(place))?;
            // Alone in its network: even the next sandbox is behind the gateway, which lets nobody through.
            inside.add_address(link, address, whole(address.is_ipv4()))?;
            inside.add_route_to(gateway, link)?;
            inside.add_neighbour(link, gateway, plan.hardware(Place::Bridge))?;
            inside.add_route(None, gateway, link)?;
        }
        Ok(())
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        // The host's side goes last, and by itself.
        let _anywhere = enter(self.namespace.as_fd());
        if let Err(error) = self.routes.remove_link(UPLINK) {
            tracing::debug!(%error, "the uplink of a bridge is gone already");
        }
    }
}

/// Brings the calling thread into a new namespace.
fn enter_new() -> io::Result<OwnedFd> {
    sys::unshare(UnshareFlags::NEWNET)?;
    namespace()
}

/// Sets switches of the thread's namespace. A kernel without IPv6 has none of it.
fn switch(switches: &[(&str, &str)]) -> io::Result<()> {
    for (name, value) in switches {
        match fs::write(Path::new("/proc/sys/net").join(name), value) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => other?,
        }
    }
    Ok(())
}

fn add_bridge(routes: &mut Routes, plan: &Plan, mtu: u32) -> io::Result<LinkIndex> {
    routes.add_bridge(&End { name: BRIDGE, hardware: plan.hardware(Place::Bridge) }, mtu)?;
    let bridge = routes.link(BRIDGE)?;
    routes.bring_up(bridge)?;
    for (address, subnet) in plan.addresses(Place::Bridge) {
        routes.add_address(bridge, address, subnet.prefix())?;
    }
    Ok(bridge)
}

/// The way to the host: everything that is not on the bridge goes there.
fn address_uplink(routes: &mut Routes, plan: &Plan) -> io::Result<()> {
    let uplink = routes.link(UPLINK)?;
    routes.bring_up(uplink)?;
    for (host, _) in plan.addresses(Place::Host) {
        routes.add_neighbour(uplink, host, plan.hardware(Place::Host))?;
        routes.add_route_to(host, uplink)?;
        routes.add_route(None, host, uplink)?;
    }
    Ok(())
}
