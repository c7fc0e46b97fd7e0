//! Compressing a stream in parallel, to bytes that do not depend on the number of threads.
//!
//! Input is cut at fixed offsets, each piece becomes a gzip member (RFC 1952 section 2.2 allows any
//! number of them in a row) or a zstd frame (RFC 8878 section 3), and pieces are written in order.
//! Where nobody asked for a level, pieces without repeats are not searched for them ([`kind`]).
//! Must not know where bytes come from or go to.
//!
//! Read [`Compressor`] first.

mod kind;
mod literal;

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use stave_oci::Compression;

use kind::Kind;

/// Bytes of input in one gzip member. Changing this changes the digest of every layer pushed.
pub const GZIP_MEMBER: usize = 1 << 20;
/// Bytes of input in one zstd frame. Changing this changes the digest of every layer pushed.
pub const ZSTD_FRAME: usize = 4 << 20;
/// The gzip level used when none is asked for: libdeflate's fastest whose layers are not larger than BuildKit's.
pub const DEFAULT_GZIP_LEVEL: i32 = 2;
/// The zstd level used when none is asked for, as BuildKit's.
pub const DEFAULT_ZSTD_LEVEL: i32 = 3;
/// The zstd level of pieces without repeats: their bytes' frequencies are used at every positive level.
const ZSTD_LITERALS: i32 = 1;

/// Pieces in flight per thread of the pool: enough to keep it busy, little enough to bound memory.
const PIECES_PER_THREAD: usize = 2;

/// How much work is put into a piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effort {
    /// The default level, less where it gains nothing.
    Sampled,
    /// This level, whatever the piece is like.
    Level(i32),
}

/// An algorithm with its effort settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Codec {
    /// Bytes pass unchanged.
    Store,
    /// gzip; libdeflate's levels, 0 to 12.
    Gzip(Effort),
    /// zstd; levels of 1 to 22.
    Zstd(Effort),
}

impl Codec {
    /// The codec for `algorithm` at `level`, or at this crate's default level.
    pub(crate) fn new(algorithm: Compression, level: Option<i32>) -> Self {
        let effort = |least, most| match level {
            Some(level) => Effort::Level(level.clamp(least, most)),
            None => Effort::Sampled,
        };
        match algorithm {
            Compression::None => Self::Store,
            Compression::Gzip => Self::Gzip(effort(0, 12)),
            Compression::Zstd => Self::Zstd(effort(1, 22)),
        }
    }

    fn piece_length(self) -> usize {
        match self {
            Self::Store => usize::MAX,
            Self::Gzip(_) => GZIP_MEMBER,
            Self::Zstd(_) => ZSTD_FRAME,
        }
    }

    fn compress(self, input: &[u8], scratch: &mut Scratch) -> io::Result<()> {
        match self {
            Self::Store => {
                scratch.room(input.len())[..input.len()].copy_from_slice(input);
                scratch.length = input.len();
                Ok(())
            }
            Self::Gzip(effort) => scratch.gzip(input, effort),
            Self::Zstd(effort) => scratch.zstd(input, effort),
        }
    }
}

/// What one thread compresses with and into: kept from piece to piece, since fresh memory costs as much as fast
/// compression does.
#[derive(Default)]
struct Scratch {
    searcher: Option<libdeflater::Compressor>,
    output: Vec<u8>,
    /// Bytes of `output` that are the result.
    length: usize,
}

impl Scratch {
    /// At least `length` bytes of output, whatever stands in them.
    fn room(&mut self, length: usize) -> &mut [u8] {
        if self.output.len() < length {
            self.output.resize(length, 0);
        }
        &mut self.output
    }

    fn gzip(&mut self, input: &[u8], effort: Effort) -> io::Result<()> {
        let level = match effort {
            Effort::Sampled => DEFAULT_GZIP_LEVEL,
            Effort::Level(level) => level,
        };
        let level = libdeflater::CompressionLvl::new(level)
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "gzip level out of range"))?;
        // One scratch serves one stream, and so one level.
        let mut searcher = self.searcher.take().unwrap_or_else(|| libdeflater::Compressor::new(level));
        let bound = searcher.gzip_compress_bound(input.len()).max(literal::bound(input.len()));
        let output = self.room(bound);
        let written =
            if effort == Effort::Sampled && gzip_kind(input, &mut searcher, output) == Kind::Literals {
                Ok(literal::gzip_member(input, output))
            } else {
                searcher.gzip_compress(input, output)
            };
        self.searcher = Some(searcher);
        self.length = written.map_err(|error| io::Error::other(error.to_string()))?;
        Ok(())
    }

    fn zstd(&mut self, input: &[u8], effort: Effort) -> io::Result<()> {
        let output = self.room(zstd::zstd_safe::compress_bound(input.len()));
        let level = match effort {
            Effort::Level(level) => level,
            Effort::Sampled => match zstd_kind(input, output) {
                Kind::Literals => ZSTD_LITERALS,
                Kind::Repeats => DEFAULT_ZSTD_LEVEL,
            },
        };
        // A context of its own: at high levels what one has compressed before changes what it makes.
        self.length = zstd::bulk::compress_to_buffer(input, output, level)?;
        Ok(())
    }
}

fn zstd_kind(input: &[u8], output: &mut [u8]) -> Kind {
    Kind::of(input, |sample| {
        // The piece itself will tell why it cannot be compressed.
        zstd::bulk::compress_to_buffer(sample, output, DEFAULT_ZSTD_LEVEL).unwrap_or(usize::MAX)
    })
}

fn gzip_kind(input: &[u8], searcher: &mut libdeflater::Compressor, output: &mut [u8]) -> Kind {
    Kind::of(input, |sample| searcher.deflate_compress(sample, output).unwrap_or(usize::MAX))
}

/// What waits to be used again.
#[derive(Default)]
struct Spare {
    scratches: Mutex<Vec<Scratch>>,
    pieces: Mutex<Vec<Vec<u8>>>,
}

fn take<T: Default>(spare: &Mutex<Vec<T>>) -> T {
    spare.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default()
}

fn give<T>(spare: &Mutex<Vec<T>>, used: T) {
    spare.lock().unwrap_or_else(PoisonError::into_inner).push(used);
}

/// A writer whose input reaches `W` compressed. [`Compressor::finish`] must be called; a dropped
/// compressor leaves `W` with a prefix.
pub(crate) struct Compressor<W: Write> {
    output: W,
    codec: Codec,
    piece: Vec<u8>,
    in_flight: VecDeque<Receiver<io::Result<Scratch>>>,
    most_in_flight: usize,
    spare: Arc<Spare>,
    wrote_any: bool,
}

impl<W: Write> Compressor<W> {
    pub(crate) fn new(output: W, codec: Codec) -> Self {
        Self {
            output,
            codec,
            piece: Vec::new(),
            in_flight: VecDeque::new(),
            most_in_flight: rayon::current_num_threads() * PIECES_PER_THREAD,
            spare: Arc::default(),
            wrote_any: false,
        }
    }

    /// Writes what is left and returns the inner writer.
    pub(crate) fn finish(mut self) -> io::Result<W> {
        // Even no input is one member: zero bytes are not a gzip file.
        if !self.piece.is_empty() || !self.wrote_any {
            self.send_piece()?;
        }
        while !self.in_flight.is_empty() {
            self.write_first()?;
        }
        Ok(self.output)
    }

    fn send_piece(&mut self) -> io::Result<()> {
        if self.in_flight.len() >= self.most_in_flight {
            self.write_first()?;
        }
        self.wrote_any = true;
        let (sender, receiver) = sync_channel(1);
        let (mut piece, codec) = (std::mem::take(&mut self.piece), self.codec);
        let spare = Arc::clone(&self.spare);
        self.in_flight.push_back(receiver);
        rayon::spawn(move || {
            let mut scratch = take(&spare.scratches);
            let result = codec.compress(&piece, &mut scratch);
            piece.clear();
            give(&spare.pieces, piece);
            // The receiver is gone when the writer failed; then nobody wants the piece.
            let _unwanted = sender.send(result.map(|()| scratch));
        });
        Ok(())
    }

    fn write_first(&mut self) -> io::Result<()> {
        let Some(receiver) = self.in_flight.pop_front() else { return Ok(()) };
        let scratch = receiver.recv().map_err(|_| io::Error::other("a compression thread died"))??;
        self.output.write_all(&scratch.output[..scratch.length])?;
        give(&self.spare.scratches, scratch);
        Ok(())
    }
}

impl<W: Write> Write for Compressor<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.codec == Codec::Store {
            self.wrote_any = true;
            return self.output.write(bytes);
        }
        let length = self.codec.piece_length();
        if self.piece.capacity() == 0 {
            self.piece = take(&self.spare.pieces);
            self.piece.reserve_exact(length);
        }
        let count = bytes.len().min(length - self.piece.len());
        self.piece.extend_from_slice(&bytes[..count]);
        if self.piece.len() == length {
            self.send_piece()?;
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        // Pieces are cut at fixed offsets only, or the bytes would depend on who flushes when.
        self.output.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    fn sample(length: usize) -> Vec<u8> {
        let mut state = 1u32;
        (0..length)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                // Two bits of noise per byte: compressible, yet not trivial.
                (state >> 30) as u8
            })
            .collect()
    }

    fn compress(input: &[u8], codec: Codec, step: usize) -> Vec<u8> {
        let mut compressor = Compressor::new(Vec::new(), codec);
        for chunk in input.chunks(step) {
            compressor.write_all(chunk).expect("writes to a vector");
        }
        compressor.finish().expect("finishes")
    }

    fn decompress(bytes: &[u8], codec: Codec) -> Vec<u8> {
        let mut output = Vec::new();
        match codec {
            Codec::Store => output.extend_from_slice(bytes),
            Codec::Gzip(_) => {
                flate2::read::MultiGzDecoder::new(bytes).read_to_end(&mut output).map(drop).expect("gzip");
            }
            Codec::Zstd(_) => output = zstd::decode_all(bytes).expect("zstd"),
        }
        output
    }

    #[test]
    fn what_goes_in_comes_out_at_every_length() {
        let codecs = [
            Codec::Store,
            Codec::Gzip(Effort::Sampled),
            Codec::Gzip(Effort::Level(6)),
            Codec::Gzip(Effort::Level(0)),
            Codec::Zstd(Effort::Sampled),
            Codec::Zstd(Effort::Level(3)),
        ];
        for codec in codecs {
            for length in [0, 1, GZIP_MEMBER - 1, GZIP_MEMBER, GZIP_MEMBER + 1, ZSTD_FRAME + 7] {
                let input = sample(length);
                assert_eq!(decompress(&compress(&input, codec, 70_001), codec), input, "{codec:?} {length}");
            }
        }
    }

    #[test]
    fn bytes_depend_on_the_input_alone() {
        let input = sample(3 * GZIP_MEMBER + 5);
        for codec in
            [Codec::Gzip(Effort::Sampled), Codec::Gzip(Effort::Level(6)), Codec::Zstd(Effort::Sampled)]
        {
            let whole = compress(&input, codec, usize::MAX);
            assert_eq!(compress(&input, codec, 1000), whole);
            let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().expect("a pool");
            assert_eq!(pool.install(|| compress(&input, codec, 4096)), whole);
        }
    }

    #[test]
    fn levels_stay_in_range() {
        assert_eq!(Codec::new(Compression::Gzip, None), Codec::Gzip(Effort::Sampled));
        assert_eq!(Codec::new(Compression::Zstd, Some(0)), Codec::Zstd(Effort::Level(1)));
        assert_eq!(Codec::new(Compression::None, Some(5)), Codec::Store);
    }
}
