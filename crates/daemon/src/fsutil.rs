//! fsutil: how BuildKit's clients and daemons exchange directories, packet by packet.
//!
//! One side sends a STAT for every entry, in strict path order, then an empty STAT; the other asks by number for the
//! content of the files it lacks (REQ), gets DATA up to an empty one, and ends with FIN, which is echoed.
//! Owns the protocol's two sides and its limits. Must not know gRPC: packets come from and go to channels. Whatever is
//! received was written by somebody else. Start with [`receive::Receiver`] and [`send::send`].

pub(crate) mod mode;
pub(crate) mod path;
pub(crate) mod receive;
pub(crate) mod selection;
pub(crate) mod send;

pub(crate) use bollard_buildkit_proto::fsutil::types::packet::PacketType;
pub(crate) use bollard_buildkit_proto::fsutil::types::{Packet, Stat};

/// Most entries of one directory tree.
pub(crate) const MAX_ENTRIES: u64 = 2_000_000;
/// Most bytes that the paths and link targets of one tree take together.
pub(crate) const MAX_NAMES: u64 = 256 << 20;
/// Most bytes of one path.
pub(crate) const MAX_PATH: usize = 4096;
/// Most bytes of all files of one tree.
pub(crate) const MAX_BYTES: u64 = 256 << 30;
/// Bytes of content in one packet that is sent; receivers accept any.
pub(crate) const CHUNK: usize = 32 << 10;
/// Packets on their way between the network and the disk.
pub(crate) const PACKETS: usize = 64;

/// A packet without content.
pub(crate) fn packet(kind: PacketType, id: u32) -> Packet {
    Packet { r#type: kind.into(), stat: None, id, data: Vec::new() }
}
