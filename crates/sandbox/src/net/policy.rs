//! Which packets may go where. Decides only; [`super::rules`] tells the kernel. Read [`on_host`], then [`on_bridge`].
//!
//! A sandbox may reach what the host reaches, and the host under its own addresses, as on docker's default bridge. It may not
//! reach another sandbox, of this process or of another one. Nobody outside begins anything towards a sandbox.

use super::address::{DEVICE_PREFIX, Subnet, Version};
use super::rules::{Device, Hook, Match, Rule, Verdict};

/// Name of the bridge, in the namespace it is in.
pub(super) const BRIDGE: &str = "bridge";
/// Name of that namespace's end of the way to the host.
pub(super) const UPLINK: &str = "uplink";

fn forward(matches: Vec<Match>, verdict: Verdict) -> Rule {
    Rule { hook: Hook::Forward, matches, verdict }
}

/// The rules of the host's side for the bridge behind `device`. Packets of the versions in `shut` are passed on for
/// bridges, and for nobody else.
pub(super) fn on_host(device: &str, subnets: impl Iterator<Item = Subnet>, shut: &[Version]) -> Vec<Rule> {
    let this = || Device::Named(device.to_owned());
    let bridges = || Device::Beginning(DEVICE_PREFIX);
    let mut rules = vec![
        forward(vec![Match::In(this(), true), Match::Out(bridges(), true)], Verdict::Drop),
        forward(vec![Match::Out(this(), true), Match::Answer], Verdict::Accept),
        forward(vec![Match::Out(this(), true)], Verdict::Drop),
    ];
    rules.extend(shut.iter().map(|version| {
        let others = [Match::Is(*version), Match::In(bridges(), false), Match::Out(bridges(), false)];
        forward(others.to_vec(), Verdict::Drop)
    }));
    rules.extend(subnets.map(|subnet| Rule {
        hook: Hook::SourceAddress,
        matches: vec![Match::From(subnet, true), Match::Out(bridges(), false)],
        verdict: Verdict::Masquerade,
    }));
    rules
}

/// The rules where the bridge is: no way from one port to another, no foreign senders.
pub(super) fn on_bridge(subnets: impl Iterator<Item = Subnet>) -> Vec<Rule> {
    let bridge = || Device::Named(BRIDGE.to_owned());
    let mut rules = vec![forward(vec![Match::In(bridge(), true), Match::Out(bridge(), true)], Verdict::Drop)];
    rules.extend(
        subnets.map(|subnet| {
            forward(vec![Match::In(bridge(), true), Match::From(subnet, false)], Verdict::Drop)
        }),
    );
    rules
}
