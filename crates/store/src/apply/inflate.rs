//! The uncompressed stream of a layer archive, made on a thread of its own.
//!
//! Inflating, hashing and writing the files take about as long each, so they go on side by side: [`Inflating`]
//! is the first, with the digest on a thread of its own where there is much to hash, [`Inflated`] the reading
//! end of a short queue to the writer. Knows no tar. Start with [`Inflating::run`].

use std::io::{self, Read};
use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use stave_oci::{Algorithm, Compression, Digest, Hasher};

use super::BUFFER;
use crate::cap::Reservation;

/// Bytes handed over at once.
const PIECE: usize = 256 << 10;
/// Pieces on their way: 1 MiB a layer.
pub(super) const PIECES: usize = 4;

type Piece = io::Result<Arc<Vec<u8>>>;

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
        let first = self.read(0);
        if first.is_last {
            let diff_id = digest([Arc::clone(&first.piece)]);
            let size = first.hand_over(sender)?;
            return Some(Whole { diff_id, size, room: self.room });
        }
        // Inflating takes longer than anything else that is done to the stream: it does not wait for the digest.
        thread::scope(|scope| {
            let (to_hash, pieces) = sync_channel(PIECES);
            let hashing = thread::Builder::new().name("stave-hash".to_owned());
            let hashing = match hashing.spawn_scoped(scope, move || digest(pieces)) {
                Ok(hashing) => hashing,
                Err(error) => {
                    let _unread = sender.send(Err(error));
                    return None;
                }
            };
            let (mut next, mut size) = (first, 0);
            loop {
                let is_last = next.is_last;
                to_hash.send(Arc::clone(&next.piece)).ok()?;
                size += next.hand_over(sender)?;
                if is_last {
                    break;
                }
                next = self.read(size);
            }
            drop(to_hash);
            let diff_id = hashing.join().unwrap_or_else(|panic| resume_unwind(panic));
            Some(Whole { diff_id, size, room: self.room })
        })
    }

    /// The next piece, after `before` bytes.
    fn read(&mut self, before: u64) -> Next {
        let mut piece = Vec::with_capacity(PIECE);
        let read = (&mut self.input).take(PIECE as u64).read_to_end(&mut piece).map(drop);
        let is_last = piece.len() < PIECE;
        let ended = read.and(self.allow(before, &mut piece));
        Next { piece: Arc::new(piece), ended, is_last }
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

/// A piece that was read.
struct Next {
    piece: Arc<Vec<u8>>,
    /// Whether the stream broke after it.
    ended: io::Result<()>,
    is_last: bool,
}

impl Next {
    /// Gives it to the reader; returns its length, or `None` if it is of no use to go on.
    fn hand_over(self, sender: &SyncSender<Piece>) -> Option<u64> {
        let length = self.piece.len() as u64;
        if length > 0 {
            sender.send(Ok(self.piece)).ok()?;
        }
        if let Err(error) = self.ended {
            // Nobody reads any more: then something worse is known there.
            let _unread = sender.send(Err(error));
            return None;
        }
        Some(length)
    }
}

/// The digest of pieces in a row.
fn digest(pieces: impl IntoIterator<Item = Arc<Vec<u8>>>) -> Digest {
    let mut hasher = Hasher::new(Algorithm::Sha256);
    pieces.into_iter().for_each(|piece| hasher.update(&piece));
    hasher.finish()
}

/// The reading end.
pub(super) struct Inflated {
    receiver: Receiver<Piece>,
    piece: Arc<Vec<u8>>,
    at: usize,
}

impl Inflated {
    pub(super) fn new(receiver: Receiver<Piece>) -> Self {
        Self { receiver, piece: Arc::default(), at: 0 }
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
