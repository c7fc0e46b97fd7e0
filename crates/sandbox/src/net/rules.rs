//! Packet rules of one network namespace, by nf_tables over netlink.
//!
//! Owns the messages and the few expressions that bridges need; the rules themselves are in [`super::policy`]. The
//! kernel's names and numbers are those of `linux/netfilter/nf_tables.h`. Read [`Rules::install`] first.

use std::io;
use std::net::IpAddr;

use super::address::{Subnet, Version};
use super::netlink::{Message, Socket};

const SUBSYSTEM: u16 = 10 << 8;
const NEW_TABLE: u16 = SUBSYSTEM;
const DELETE_TABLE: u16 = SUBSYSTEM | 2;
const NEW_CHAIN: u16 = SUBSYSTEM | 3;
const NEW_RULE: u16 = SUBSYSTEM | 6;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
/// Rules for both versions of IP.
const FAMILY_INET: u8 = 1;
/// The table goes when the socket that made it does, however that comes about; Linux 5.12.
const TABLE_OWNER: u32 = 2;
const REGISTER_VERDICT: u32 = 0;
const REGISTER: u32 = 1;
const META_IIFNAME: u32 = 6;
const META_OIFNAME: u32 = 7;
const META_NFPROTO: u32 = 15;
const CT_STATE: u32 = 0;
/// Bits of the states "established" and "related".
const CT_ANSWERS: u32 = 2 | 4;
const NETWORK_HEADER: u32 = 1;
/// Bytes of a device's name, with the zeroes behind it.
const NAME_LENGTH: usize = 16;

/// Where a chain is consulted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hook {
    /// Packets that are passed on.
    Forward,
    /// Packets about to leave, to change their sender.
    SourceAddress,
}

/// A device, by its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Device {
    /// Exactly this one.
    Named(String),
    /// All whose names begin so.
    Beginning(&'static str),
}

/// What a packet is looked at for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Match {
    /// It came in there, or (`false`) did not.
    In(Device, bool),
    /// It goes out there, or does not.
    Out(Device, bool),
    /// Its sender is in the network, or is not.
    From(Subnet, bool),
    /// It is of this version.
    Is(Version),
    /// It belongs to what somebody behind asked for.
    Answer,
}

/// What becomes of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Accept,
    Drop,
    /// Its sender becomes the address of the device it leaves by.
    Masquerade,
}

/// One rule: all that match get the verdict.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) hook: Hook,
    pub(super) matches: Vec<Match>,
    pub(super) verdict: Verdict,
}

/// The packet rules of a network namespace.
#[derive(Debug)]
pub(super) struct Rules(Socket);

impl Rules {
    /// Those of the calling thread's namespace, wherever the thread goes afterwards.
    pub(super) fn here() -> io::Result<Self> {
        Socket::rules().map(Self)
    }

    /// Makes a table with these rules, all or none. It is gone when this is, if the kernel can do that.
    pub(super) fn install(&mut self, table: &str, rules: &[Rule]) -> io::Result<()> {
        match self.install_as(table, rules, TABLE_OWNER) {
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => self.install_as(table, rules, 0),
            other => other,
        }
    }

    fn install_as(&mut self, table: &str, rules: &[Rule], flags: u32) -> io::Result<()> {
        let flags_created = (libc::NLM_F_CREATE | libc::NLM_F_EXCL) as u16;
        let mut messages =
            vec![Message::new(NEW_TABLE, flags_created, &header()).text(1, table).network_number(2, flags)];
        for hook in [Hook::Forward, Hook::SourceAddress] {
            if rules.iter().any(|rule| rule.hook == hook) {
                messages.push(chain(table, hook, flags_created));
            }
        }
        messages.extend(rules.iter().map(|rule| rule_message(table, rule)));
        self.0.batch(limit(BATCH_BEGIN), messages, limit(BATCH_END))
    }

    /// Removes a table with all it holds.
    pub(super) fn remove(&mut self, table: &str) -> io::Result<()> {
        let message = Message::new(DELETE_TABLE, 0, &header()).text(1, table);
        self.0.batch(limit(BATCH_BEGIN), vec![message], limit(BATCH_END))
    }
}

fn header() -> [u8; 4] {
    [FAMILY_INET, 0, 0, 0]
}

fn limit(kind: u16) -> Message {
    let [high, low] = (SUBSYSTEM >> 8).to_be_bytes();
    Message::new(kind, 0, &[0, 0, high, low])
}

impl Hook {
    /// Name of the chain, its type, number of the hook, priority.
    fn parts(self) -> (&'static str, &'static str, u32, u32) {
        match self {
            Self::Forward => ("forward", "filter", 2, 0),
            Self::SourceAddress => ("postrouting", "nat", 4, 100),
        }
    }
}

fn chain(table: &str, hook: Hook, flags: u16) -> Message {
    let (name, kind, number, priority) = hook.parts();
    Message::new(NEW_CHAIN, flags, &header())
        .text(1, table)
        .text(3, name)
        .nest(4, |hook| hook.network_number(1, number).network_number(2, priority))
        .text(7, kind)
}

fn rule_message(table: &str, rule: &Rule) -> Message {
    let flags = (libc::NLM_F_CREATE | libc::NLM_F_APPEND) as u16;
    let message = Message::new(NEW_RULE, flags, &header()).text(1, table).text(2, rule.hook.parts().0);
    message.nest(4, |mut list| {
        for one in &rule.matches {
            list = match_expressions(list, one);
        }
        verdict(list, rule.verdict)
    })
}

fn expression(list: Message, name: &str, data: impl FnOnce(Message) -> Message) -> Message {
    list.nest(1, |element| element.text(1, name).nest(2, data))
}

fn meta(list: Message, key: u32) -> Message {
    expression(list, "meta", |data| data.network_number(1, REGISTER).network_number(2, key))
}

fn compare(list: Message, equal: bool, value: &[u8]) -> Message {
    expression(list, "cmp", |data| {
        data.network_number(1, REGISTER)
            .network_number(2, u32::from(!equal))
            .nest(3, |wanted| wanted.put(1, value))
    })
}

fn mask(list: Message, mask: &[u8]) -> Message {
    expression(list, "bitwise", |data| {
        data.network_number(1, REGISTER)
            .network_number(2, REGISTER)
            .network_number(3, mask.len() as u32)
            .nest(4, |bits| bits.put(1, mask))
            .nest(5, |flipped| flipped.put(1, &vec![0; mask.len()]))
    })
}

fn match_expressions(list: Message, one: &Match) -> Message {
    match one {
        Match::In(device, wanted) => compare(meta(list, META_IIFNAME), *wanted, &device.bytes()),
        Match::Out(device, wanted) => compare(meta(list, META_OIFNAME), *wanted, &device.bytes()),
        Match::From(subnet, wanted) => sender(list, *subnet, *wanted),
        Match::Is(version) => compare(meta(list, META_NFPROTO), true, &[version.family() as u8]),
        Match::Answer => {
            let list =
                expression(list, "ct", |data| data.network_number(1, REGISTER).network_number(2, CT_STATE));
            compare(mask(list, &CT_ANSWERS.to_ne_bytes()), false, &[0; 4])
        }
    }
}

/// Compares the sender's address, of packets of the network's version of IP.
fn sender(list: Message, subnet: Subnet, wanted: bool) -> Message {
    let (offset, network, ones) = match subnet.first() {
        IpAddr::V4(first) => (12, first.octets().to_vec(), IpAddr::from([0xff; 4])),
        IpAddr::V6(first) => (8, first.octets().to_vec(), IpAddr::from([0xff; 16])),
    };
    let bits = match Subnet::new(ones, subnet.prefix()).first() {
        IpAddr::V4(mask) => mask.octets().to_vec(),
        IpAddr::V6(mask) => mask.octets().to_vec(),
    };
    let list = match_expressions(list, &Match::Is(subnet.version()));
    let list = expression(list, "payload", |data| {
        data.network_number(1, REGISTER)
            .network_number(2, NETWORK_HEADER)
            .network_number(3, offset)
            .network_number(4, network.len() as u32)
    });
    compare(mask(list, &bits), wanted, &network)
}

fn verdict(list: Message, verdict: Verdict) -> Message {
    let code = match verdict {
        Verdict::Masquerade => return expression(list, "masq", |data| data),
        Verdict::Drop => 0,
        Verdict::Accept => 1,
    };
    expression(list, "immediate", |data| {
        data.network_number(1, REGISTER_VERDICT)
            .nest(2, |value| value.nest(2, |verdict| verdict.network_number(1, code)))
    })
}

impl Device {
    fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Named(name) => {
                let mut bytes = name.as_bytes().to_vec();
                bytes.resize(NAME_LENGTH, 0);
                bytes
            }
            Self::Beginning(prefix) => prefix.as_bytes().to_vec(),
        }
    }
}
