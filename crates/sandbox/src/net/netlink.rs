//! Netlink: messages with attributes out, acknowledgements and dumps in.
//!
//! Owns the wire form that links, addresses, routes and packet rules have in common. Must not know what any of them
//! means. Read [`Message`], then [`Socket`].

use std::io;
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType};

/// Bytes of a message's header: length, kind, flags, sequence number, sender.
const HEADER: usize = 16;
/// Bytes of an attribute's header: length, kind.
const ATTRIBUTE_HEADER: usize = 4;
/// Marks an attribute that holds others.
const NESTED: u16 = 1 << 15;
/// Bytes of what is received at once; the kernel sends no larger parts of a dump.
const RECEIVE_BUFFER: usize = 64 << 10;
/// Most messages of one dump: routing tables of routers are larger, and are not looked at whole.
const MAX_DUMPED: usize = 100_000;
/// How long an answer may take, in seconds: the kernel answers within the call.
const ANSWER_SECONDS: u64 = 10;

const fn aligned(length: usize) -> usize {
    length.next_multiple_of(4)
}

/// A message being written.
#[derive(Debug, Clone)]
pub(super) struct Message {
    bytes: Vec<u8>,
}

impl Message {
    /// A request of a kind, with flags beside that of a request, and the fixed header of its family.
    pub(super) fn new(kind: u16, flags: u16, fixed: &[u8]) -> Self {
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&(flags | libc::NLM_F_REQUEST as u16).to_ne_bytes());
        bytes.extend_from_slice(fixed);
        bytes.resize(aligned(bytes.len()), 0);
        Self { bytes }
    }

    /// An attribute.
    pub(super) fn put(mut self, kind: u16, value: &[u8]) -> Self {
        let length = (ATTRIBUTE_HEADER + value.len()) as u16;
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.bytes.resize(aligned(self.bytes.len()), 0);
        self
    }

    /// An attribute with a number in the machine's order of bytes.
    pub(super) fn number(self, kind: u16, value: u32) -> Self {
        self.put(kind, &value.to_ne_bytes())
    }

    /// An attribute with a number in the network's order of bytes.
    pub(super) fn network_number(self, kind: u16, value: u32) -> Self {
        self.put(kind, &value.to_be_bytes())
    }

    /// An attribute with a text.
    pub(super) fn text(self, kind: u16, value: &str) -> Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.put(kind, &bytes)
    }

    /// An attribute that holds others.
    pub(super) fn nest(mut self, kind: u16, inside: impl FnOnce(Self) -> Self) -> Self {
        let start = self.bytes.len();
        self = inside(self.put(kind | NESTED, &[]));
        let length = (self.bytes.len() - start) as u16;
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self
    }

    /// Bytes without a header of their own, as a message within an attribute has them.
    pub(super) fn raw(mut self, bytes: &[u8]) -> Self {
        self.bytes.extend_from_slice(bytes);
        self.bytes.resize(aligned(self.bytes.len()), 0);
        self
    }

    fn finished(mut self, sequence: u32, flags: u16) -> Vec<u8> {
        let length = self.bytes.len() as u32;
        self.bytes[..4].copy_from_slice(&length.to_ne_bytes());
        let flags = u16::from_ne_bytes([self.bytes[6], self.bytes[7]]) | flags;
        self.bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        self.bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.bytes
    }
}

/// The attributes in `bytes`: kind without marks, and value. What is cut off ends them.
pub(super) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes([*bytes.first()?, *bytes.get(1)?]));
        let kind = u16::from_ne_bytes([*bytes.get(2)?, *bytes.get(3)?]) & 0x3fff;
        let value = bytes.get(ATTRIBUTE_HEADER..length)?;
        bytes = bytes.get(aligned(length)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// A number in the machine's order of bytes.
pub(super) fn number(bytes: &[u8]) -> Option<u32> {
    bytes.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))
}

/// A connection to one protocol of the kernel, in the network namespace in which it was opened.
#[derive(Debug)]
pub(super) struct Socket {
    socket: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Socket {
    /// Links, addresses, routes, neighbours.
    pub(super) fn route() -> io::Result<Self> {
        Self::open(None)
    }

    /// Packet rules.
    pub(super) fn rules() -> io::Result<Self> {
        Self::open(Some(rustix::net::netlink::NETFILTER))
    }

    fn open(protocol: Option<Protocol>) -> io::Result<Self> {
        let socket = rustix::net::socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            protocol,
        )?;
        let patience = Some(std::time::Duration::from_secs(ANSWER_SECONDS));
        rustix::net::sockopt::set_socket_timeout(&socket, rustix::net::sockopt::Timeout::Recv, patience)?;
        Ok(Self { socket, sequence: 0, buffer: vec![0; RECEIVE_BUFFER] })
    }

    /// Has a request carried out.
    pub(super) fn request(&mut self, message: Message) -> io::Result<()> {
        self.sequence += 1;
        let sequence = self.sequence;
        self.send(&message.finished(sequence, libc::NLM_F_ACK as u16))?;
        self.until_done(sequence, |_, _| ())
    }

    /// Has requests carried out together or not at all: the first and the last open and close the batch.
    pub(super) fn batch(&mut self, first: Message, requests: Vec<Message>, last: Message) -> io::Result<()> {
        let mut bytes = Vec::new();
        self.sequence += 1;
        bytes.extend(first.finished(self.sequence, 0));
        let begin = self.sequence + 1;
        for request in requests {
            self.sequence += 1;
            bytes.extend(request.finished(self.sequence, libc::NLM_F_ACK as u16));
        }
        let end = self.sequence;
        self.sequence += 1;
        bytes.extend(last.finished(self.sequence, 0));
        self.send(&bytes)?;
        // Every request is answered, also those after one that failed.
        let mut outcome = Ok(());
        for sequence in begin..=end {
            let answer = self.until_done(sequence, |_, _| ());
            outcome = outcome.and(answer);
            if outcome.is_err() {
                break;
            }
        }
        outcome
    }

    /// What the kernel lists: kind and body of each message.
    pub(super) fn dump(&mut self, message: Message) -> io::Result<Vec<(u16, Vec<u8>)>> {
        self.sequence += 1;
        let sequence = self.sequence;
        self.send(&message.finished(sequence, libc::NLM_F_DUMP as u16))?;
        let mut found = Vec::new();
        self.until_done(sequence, |kind, body| {
            if found.len() < MAX_DUMPED {
                found.push((kind, body.to_vec()));
            }
        })?;
        Ok(found)
    }

    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        rustix::net::send(&self.socket, bytes, SendFlags::empty())?;
        Ok(())
    }

    /// Reads up to the end or the acknowledgement of `sequence`. Answers to others are left out.
    fn until_done(&mut self, sequence: u32, mut each: impl FnMut(u16, &[u8])) -> io::Result<()> {
        loop {
            let (_, length) = match rustix::net::recv(&self.socket, &mut self.buffer[..], RecvFlags::empty())
            {
                Err(rustix::io::Errno::INTR) => continue,
                other => other?,
            };
            let mut rest = &self.buffer[..length.min(RECEIVE_BUFFER)];
            while let Some((kind, answered, body, next)) = split(rest) {
                rest = next;
                if answered != sequence {
                    continue;
                }
                match i32::from(kind) {
                    libc::NLMSG_DONE => return Ok(()),
                    libc::NLMSG_ERROR => return outcome(body),
                    _ => each(kind, body),
                }
            }
        }
    }
}

/// The first message of `bytes`: kind, sequence number, body; and what follows it.
fn split(bytes: &[u8]) -> Option<(u16, u32, &[u8], &[u8])> {
    let length = number(bytes)? as usize;
    let body = bytes.get(HEADER..length)?;
    let kind = u16::from_ne_bytes([bytes[4], bytes[5]]);
    Some((kind, number(&bytes[8..])?, body, bytes.get(aligned(length)..).unwrap_or_default()))
}

fn outcome(body: &[u8]) -> io::Result<()> {
    match number(body).map(|code| code as i32) {
        Some(0) => Ok(()),
        Some(code) => Err(io::Error::from_raw_os_error(-code)),
        None => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_aligned_and_nested() {
        let message = Message::new(16, 0, &[1, 2, 3]).text(3, "abc").nest(18, |inside| inside.number(1, 7));
        let bytes = message.finished(5, libc::NLM_F_ACK as u16);
        let (kind, sequence, body, rest) = split(&bytes).expect("a message");
        assert_eq!((kind, sequence, rest.len()), (16, 5, 0));
        let found: Vec<_> = attributes(&body[4..]).collect();
        assert_eq!(found[0], (3, &b"abc\0"[..]));
        let inside: Vec<_> = attributes(found[1].1).collect();
        assert_eq!((found[1].0, number(inside[0].1)), (18, Some(7)));
    }

    #[test]
    fn what_is_cut_off_is_no_attribute() {
        assert_eq!(attributes(&[9, 0, 1, 0, 1, 2]).count(), 0);
        assert_eq!(attributes(&[1, 0, 1, 0]).count(), 0);
        assert_eq!(attributes(&[4]).count(), 0);
        assert!(split(&[200, 0, 0, 0, 1, 2]).is_none());
    }

    #[test]
    fn the_kernel_lists_the_loopback_device() {
        let mut socket = Socket::route().expect("a socket");
        let links = socket.dump(Message::new(libc::RTM_GETLINK, 0, &[0; 16])).expect("links");
        let named = |body: &[u8]| attributes(&body[16..]).any(|(kind, value)| kind == 3 && value == b"lo\0");
        assert!(links.iter().any(|(_, body)| named(body)));
    }

    #[test]
    fn a_refusal_has_the_kernels_reason() {
        let mut socket = Socket::route().expect("a socket");
        let request = Message::new(libc::RTM_DELLINK, 0, &[0; 16]).text(3, "no-such-device");
        assert!(socket.request(request).is_err());
    }
}
