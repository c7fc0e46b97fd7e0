//! A digest made beside the reading: one thread fills buffers, another hashes them.
//!
//! SHA-256 takes about as long as reading the files of a large layer, so that doing both at once halves
//! the time. Small inputs are hashed where they are: a thread costs more than they do.

use std::io::{self, Write};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use stave_oci::{Digest, Sha256Writer};

/// Bytes handed over at once.
const PIECE: usize = 1 << 20;
/// Pieces in flight: what the whole holds in memory at most, in units of [`PIECE`].
const PIECES: usize = 4;

/// Hashes what is written to it.
pub(crate) struct ReadAheadHash {
    buffer: Vec<u8>,
    thread: Option<Hasher>,
}

struct Hasher {
    full: SyncSender<Vec<u8>>,
    empty: Receiver<Vec<u8>>,
    made: usize,
    handle: JoinHandle<Digest>,
}

impl ReadAheadHash {
    pub(crate) fn new() -> Self {
        Self { buffer: Vec::new(), thread: None }
    }

    /// The digest of everything written.
    pub(crate) fn finish(self) -> Digest {
        let Some(hasher) = self.thread else { return Digest::sha256(&self.buffer) };
        let Hasher { full, handle, .. } = hasher;
        // Cannot fail while the thread lives, and `join` tells when it does not.
        drop(full.send(self.buffer));
        drop(full);
        handle.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    fn hand_over(&mut self) -> io::Result<()> {
        let hasher = self.thread.get_or_insert_with(Hasher::start);
        let fresh = if hasher.made < PIECES {
            hasher.made += 1;
            Vec::with_capacity(PIECE)
        } else {
            hasher.empty.recv().map_err(|_| io::Error::other("the hashing thread is gone"))?
        };
        let piece = std::mem::replace(&mut self.buffer, fresh);
        hasher.full.send(piece).map_err(|_| io::Error::other("the hashing thread is gone"))
    }
}

impl Hasher {
    fn start() -> Self {
        let (full, pieces) = sync_channel::<Vec<u8>>(PIECES);
        let (used, empty) = sync_channel::<Vec<u8>>(PIECES);
        let handle = std::thread::spawn(move || {
            let mut hash = Sha256Writer::new(io::sink());
            for mut piece in pieces {
                // A sink takes everything.
                drop(hash.write_all(&piece));
                piece.clear();
                // Nobody may be left to fill it again.
                drop(used.try_send(piece));
            }
            hash.finish().1
        });
        Self { full, empty, made: 1, handle }
    }
}

impl Write for ReadAheadHash {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = PIECE - self.buffer.len().min(PIECE);
        let count = bytes.len().min(room);
        self.buffer.extend_from_slice(&bytes[..count]);
        if self.buffer.len() == PIECE {
            self.hand_over()?;
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(length: usize, step: usize) {
        let bytes: Vec<u8> = (0..length).map(|n| (n * 31 % 251) as u8).collect();
        let mut hash = ReadAheadHash::new();
        bytes.chunks(step).for_each(|chunk| hash.write_all(chunk).expect("a thread that hashes"));
        assert_eq!(hash.finish(), Digest::sha256(&bytes), "{length} by {step}");
    }

    #[test]
    fn pieces_are_hashed_in_order() {
        check(0, 1);
        check(511, 512);
        check(PIECE, 4096);
        check(PIECE * 7 + 13, 100_000);
        check(PIECE * 3, PIECE * 2);
    }
}
