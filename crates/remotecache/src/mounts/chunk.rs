//! Pieces of files: cut where the content says so, named by what they hold, packed by the megabyte.

use std::io::{self, Read};

use fastcdc::v2020::StreamCDC;
use serde::{Deserialize, Serialize};

/// Bytes of the smallest, usual and largest chunk.
const SIZES: (u32, u32, u32) = (16 << 10, 64 << 10, 256 << 10);

/// Bytes of a pack before compression, at which it is full.
const PACK_SIZE: usize = 8 << 20;

/// Bytes of the largest pack that is unpacked.
pub(super) const MAX_PACK: u64 = (PACK_SIZE + (256 << 10)) as u64;

/// How hard packs are compressed: about as fast as a disk writes.
const LEVEL: i32 = 3;

/// The blake3 of a chunk, hex.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ChunkId(String);

impl ChunkId {
    /// The name of some bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(blake3::hash(bytes).to_hex().to_string())
    }
}

/// Chunks ready to be sent.
#[derive(Debug)]
pub(super) struct Pack {
    pub(super) bytes: Vec<u8>,
    /// In order, with their lengths.
    pub(super) chunks: Vec<(ChunkId, u32)>,
}

/// A pack being filled.
#[derive(Debug, Default)]
pub(super) struct Packer {
    raw: Vec<u8>,
    chunks: Vec<(ChunkId, u32)>,
    pub(super) full: Vec<Pack>,
}

impl Packer {
    pub(super) fn add(&mut self, id: ChunkId, bytes: &[u8]) {
        self.raw.extend_from_slice(bytes);
        self.chunks.push((id, u32::try_from(bytes.len()).unwrap_or(u32::MAX)));
        if self.raw.len() >= PACK_SIZE {
            self.close();
        }
    }

    pub(super) fn close(&mut self) {
        if !self.chunks.is_empty() {
            let bytes = pack(&std::mem::take(&mut self.raw));
            self.full.push(Pack { bytes, chunks: std::mem::take(&mut self.chunks) });
        }
    }
}

/// The chunks of a file in order.
pub(super) fn cut<R: Read>(file: R, mut take: impl FnMut(&[u8])) -> io::Result<()> {
    let (smallest, usual, largest) = SIZES;
    for piece in StreamCDC::new(file, smallest, usual, largest) {
        take(&piece.map_err(io::Error::other)?.data);
    }
    Ok(())
}

pub(super) fn pack(bytes: &[u8]) -> Vec<u8> {
    zstd::bulk::compress(bytes, LEVEL).unwrap_or_default()
}

/// What was packed, if it is at most `limit` bytes.
pub(super) fn unpack(bytes: &[u8], limit: u64) -> Option<Vec<u8>> {
    let mut whole = Vec::new();
    zstd::stream::read::Decoder::new(bytes).ok()?.take(limit + 1).read_to_end(&mut whole).ok()?;
    (whole.len() as u64 <= limit).then_some(whole)
}
