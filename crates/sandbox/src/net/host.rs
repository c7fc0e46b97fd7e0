//! The host's side of one bridge: its network, the switches it needs, its device, its rules.
//!
//! A guard: dropped, everything is as it was before. Must not know what is behind the device. Read [`HostSide::claim`] first.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::rand::GetRandomFlags;
use rustix::thread::LinkNameSpaceType;

use super::address::{Place, Plan, Subnet, Version};
use super::error::{AtPart as _, BridgeError, BridgePart};
use super::forwarding::{self, Router};
use super::lease::{Lease, Slots};
use super::policy::{self, UPLINK};
use super::route::{End, Routes};
use super::rules::Rules;

/// Largest packet when no route says better.
const DEFAULT_MTU: u32 = 1500;

/// The calling thread's network namespace.
pub(super) fn namespace() -> io::Result<OwnedFd> {
    Ok(File::open("/proc/thread-self/ns/net")?.into())
}

/// Brings the calling thread into a namespace.
pub(super) fn enter(namespace: BorrowedFd<'_>) -> io::Result<()> {
    rustix::thread::move_into_link_name_space(namespace, Some(LinkNameSpaceType::Network))?;
    Ok(())
}

/// A network that is ours on the host.
#[derive(Debug)]
pub(super) struct HostSide {
    namespace: OwnedFd,
    routes: Routes,
    rules: Rules,
    slots: Slots,
    /// Taken when it is dropped.
    lease: Option<Lease>,
    /// Versions of IP that the host passes on for bridges alone.
    shut: Vec<Version>,
    pub(super) plan: Plan,
    pub(super) mtu: u32,
    /// Why there is no IPv6.
    pub(super) without_v6: Option<&'static str>,
}

impl HostSide {
    /// Takes a network of the calling thread's namespace; removes what dead processes left.
    pub(super) fn claim(directory: &Path) -> Result<Self, BridgeError> {
        let namespace = namespace().at(BridgePart::Namespace)?;
        let mut routes = Routes::here().at(BridgePart::Netlink)?;
        let mut rules = Rules::here().at(BridgePart::Netlink)?;
        let slots = Slots::new(directory).at(BridgePart::Lease)?;
        let turn = slots.turn().at(BridgePart::Lease)?;
        slots.sweep(&turn, &mut routes, &mut rules).at(BridgePart::Lease)?;
        let v6 = forwarding::has_v6(&mut routes);
        let random = v6.is_ok().then(random).transpose().at(BridgePart::Look)?;
        let taken = taken(&mut routes).at(BridgePart::Look)?;
        let mtu = mtu(&mut routes).at(BridgePart::Look)?;
        let lease = slots.claim(&turn, &mut routes).at(BridgePart::Lease)?.ok_or(BridgeError::Full)?;
        let Some(plan) = Plan::choose(lease.slot, &taken, random) else {
            slots.release(&turn, lease).at(BridgePart::Lease)?;
            return Err(BridgeError::NoSubnet);
        };
        let (lease, without_v6) = (Some(lease), v6.err());
        let mut side =
            Self { namespace, routes, rules, slots, lease, shut: Vec::new(), plan, mtu, without_v6 };
        // Another process that ends now must not switch off what this one is about to need.
        let opened = side.open();
        drop(turn);
        opened.at(BridgePart::Forwarding)?;
        Ok(side)
    }

    fn open(&mut self) -> io::Result<()> {
        let record = self.slots.record();
        for subnet in self.plan.subnets() {
            let version = subnet.version();
            if forwarding::open(version, &mut self.routes, &record)? == Router::ForBridges {
                self.shut.push(version);
            }
        }
        Ok(())
    }

    /// Makes the device and its far end in `there`, and the rules. The calling thread is the host's afterwards.
    pub(super) fn connect(&mut self, there: BorrowedFd<'_>) -> Result<(), BridgeError> {
        let (plan, name) = (self.plan, self.plan.name());
        enter(self.namespace.as_fd()).at(BridgePart::Namespace)?;
        self.rules
            .install(&name, &policy::on_host(&name, plan.subnets(), &self.shut))
            .at(BridgePart::Rules)?;
        let ours = End { name: &name, hardware: plan.hardware(Place::Host) };
        let theirs = End { name: UPLINK, hardware: plan.hardware(Place::Uplink) };
        self.routes.add_pair(&ours, None, (&theirs, there), self.mtu).at(BridgePart::Pair)?;
        for subnet in plan.subnets() {
            forwarding::open_device(subnet.version(), &name).at(BridgePart::Forwarding)?;
        }
        self.address(&name).at(BridgePart::Address)
    }

    fn address(&mut self, name: &str) -> io::Result<()> {
        let plan = self.plan;
        let link = self.routes.link(name)?;
        self.routes.bring_up(link)?;
        for (address, _) in plan.addresses(Place::Host) {
            self.routes.add_address(link, address, whole(address.is_ipv4()))?;
        }
        for (bridge, subnet) in plan.addresses(Place::Bridge) {
            self.routes.add_neighbour(link, bridge, plan.hardware(Place::Uplink))?;
            self.routes.add_route(Some(subnet), bridge, link)?;
        }
        Ok(())
    }
}

impl Drop for HostSide {
    fn drop(&mut self) {
        let name = self.plan.name();
        // Either may not have been made.
        let _gone = self.routes.remove_link(&name);
        let _gone = self.rules.remove(&name);
        let Some(lease) = self.lease.take() else { return };
        let released = enter(self.namespace.as_fd())
            .and_then(|()| self.slots.turn())
            .and_then(|turn| self.slots.release(&turn, lease));
        if let Err(error) = released {
            tracing::warn!(%error, "a bridge network is not given back; the next process does it");
        }
    }
}

/// Prefix of a single address.
pub(super) fn whole(v4: bool) -> u8 {
    if v4 { 32 } else { 128 }
}

fn random() -> io::Result<[u8; 5]> {
    let mut bytes = [0; 5];
    rustix::rand::getrandom(&mut bytes[..], GetRandomFlags::empty())?;
    Ok(bytes)
}

fn taken(routes: &mut Routes) -> io::Result<Vec<Subnet>> {
    let known = routes.known_routes(libc::AF_INET)?;
    Ok(known.into_iter().filter_map(|route| route.to).collect())
}

/// The largest packet of the device that leads anywhere.
fn mtu(routes: &mut Routes) -> io::Result<u32> {
    let mut known = routes.known_routes(libc::AF_INET)?;
    known.extend(routes.known_routes(libc::AF_INET6)?);
    let by = known.into_iter().find(|route| route.to.is_none()).and_then(|route| route.link);
    let links = routes.links()?;
    let mtu = links.into_iter().find(|(index, ..)| Some(*index) == by).and_then(|(.., mtu)| mtu);
    Ok(mtu.unwrap_or(DEFAULT_MTU))
}

/// The slots in a directory where there are some that this process may look into.
fn existing(directory: &Path) -> io::Result<Option<Slots>> {
    let readable = fs::read_dir(directory).map(drop);
    match readable {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied) => {
            Ok(None)
        }
        other => other.and_then(|()| Slots::new(directory)).map(Some),
    }
}

/// Removes what dead processes left in the calling thread's network; returns of how many.
pub(super) fn sweep(directory: &Path) -> io::Result<usize> {
    let Some(slots) = existing(directory)? else { return Ok(0) };
    let turn = slots.turn()?;
    slots.sweep(&turn, &mut Routes::here()?, &mut Rules::here()?)
}

/// The devices of dead processes.
pub(super) fn abandoned(directory: &Path) -> io::Result<Vec<String>> {
    let Some(slots) = existing(directory)? else { return Ok(Vec::new()) };
    let turn = slots.turn()?;
    slots.abandoned(&turn)
}
