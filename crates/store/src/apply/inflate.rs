//! The uncompressed stream of a layer archive, made on a thread of its own.
//!
//! Reading, inflating and hashing take about as long as writing the files does, so the two go on side by
//! side: [`Inflating`] is the one, [`Inflated`] the reading end of a short queue between them. Knows no
//! tar. Start with [`Inflating::run`].

use std::io::{self, Read};
use std::sync::mpsc::{Receiver, SyncSender};

use stave_oci::{Algorithm, Compression, Digest, Hasher};

use super::BUFFER;
use crate::cap::Reservation;

/// Bytes handed over at once.
const PIECE: usize = 256 << 10;
/// Pieces on their way: 2 MiB a layer.
pub(super) const PIECES: usize = 8;

type Piece = io::Result<Vec<u8>>;

/// Makes the uncompressed stream and hashes it.
pub(super) struct Inflating<'a> {
    input: Box<dyn Read + Send + 'a>,
    limit: u64,
    room: Reservation,
}

/// The stream has ended.
pub(super) struct Whole {
    pub(super) diff_id: Digest,
    /// Bytes of the uncompressed stream.
    pub(super) size: u64,
    /// What was reserved for the files.
    pub(super) room: Reservation,
}

impl<'a> Inflating<'a> {
    /// `compression` of `None` is found out from the first bytes.
    ///
    /// # Errors
    /// What reading these bytes gives.
    pub(super) fn new(
        archive: impl Read + Send + 'a,
        compression: Option<Compression>,
        limit: u64,
        room: Reservation,
    ) -> io::Result<Self> {
        Ok(Self { input: decompress(archive, compression)?, limit, room })
    }

    /// Sends the stream to its end; `None` if it broke, which the reader was told, or if nobody reads any more.
    pub(super) fn run(mut self, sender: &SyncSender<Piece>) -> Option<Whole> {
        let mut hasher = Hasher::new(Algorithm::Sha256);
        let mut size = 0;
        loop {
            let mut piece = Vec::with_capacity(PIECE);
            let read = (&mut self.input).take(PIECE as u64).read_to_end(&mut piece).map(drop);
            hasher.update(&piece);
            let is_last = piece.len() < PIECE;
            let ended = read.and(self.allow(size, &mut piece));
            size += piece.len() as u64;
            if !piece.is_empty() {
                sender.send(Ok(piece)).ok()?;
            }
            if let Err(error) = ended {
                // Nobody reads any more: then something worse is known there.
                let _unread = sender.send(Err(error));
                return None;
            }
            if is_last {
                return Some(Whole { diff_id: hasher.finish(), size, room: self.room });
            }
        }
    }

    /// Cuts a piece that passes the limit: the entry that does it is in what is left.
    fn allow(&mut self, before: u64, piece: &mut Vec<u8>) -> io::Result<()> {
        let left = self.limit.saturating_sub(before);
        if piece.len() as u64 > left {
            piece.truncate(usize::try_from(left).unwrap_or(usize::MAX));
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        // What was read is about to be written; what that takes beyond its bytes is measured at the end.
        self.room.grow(piece.len() as u64).map_err(|error| {
            piece.clear();
            io::Error::other(error)
        })
    }
}

/// The reading end.
pub(super) struct Inflated {
    receiver: Receiver<Piece>,
    piece: Vec<u8>,
    at: usize,
}

impl Inflated {
    pub(super) fn new(receiver: Receiver<Piece>) -> Self {
        Self { receiver, piece: Vec::new(), at: 0 }
    }
}

impl Read for Inflated {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.at == self.piece.len() {
            let Ok(piece) = self.receiver.recv() else { return Ok(0) };
            (self.piece, self.at) = (piece?, 0);
        }
        let count = (&self.piece[self.at..]).read(buffer)?;
        self.at += count;
        Ok(count)
    }
}

fn decompress<'a>(
    mut input: impl Read + Send + 'a,
    compression: Option<Compression>,
) -> io::Result<Box<dyn Read + Send + 'a>> {
    let mut head = Vec::with_capacity(4);
    if compression.is_none() {
        (&mut input).take(4).read_to_end(&mut head)?;
    }
    let compression = compression.unwrap_or_else(|| Compression::sniff(&head));
    let input = io::Cursor::new(head).chain(input);
    let input = io::BufReader::with_capacity(BUFFER, input);
    Ok(match compression {
        Compression::None => Box::new(input),
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(input)),
        Compression::Zstd => Box::new(zstd::Decoder::with_buffer(input)?),
    })
}
