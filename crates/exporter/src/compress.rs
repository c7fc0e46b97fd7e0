//! Compressing a stream in parallel, to bytes that do not depend on the number of threads.
//!
//! Input is cut at fixed offsets, each piece becomes a gzip member (RFC 1952 section 2.2 allows any
//! number of them in a row) or a zstd frame (RFC 8878 section 3), and pieces are written in order.
//! Must not know where bytes come from or go to.
//!
//! Read [`Compressor`] first.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::mpsc::{Receiver, sync_channel};

use stave_oci::Compression;

/// Bytes of input in one gzip member. Changing this changes the digest of every layer pushed.
pub const GZIP_MEMBER: usize = 1 << 20;
/// Bytes of input in one zstd frame. Changing this changes the digest of every layer pushed.
pub const ZSTD_FRAME: usize = 4 << 20;
/// The gzip level used when none is asked for: zlib's own default ratio.
pub const DEFAULT_GZIP_LEVEL: i32 = 6;
/// The zstd level used when none is asked for, as BuildKit's.
pub const DEFAULT_ZSTD_LEVEL: i32 = 3;

/// Pieces in flight per thread of the pool: enough to keep it busy, little enough to bound memory.
const PIECES_PER_THREAD: usize = 2;

/// An algorithm with its level settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Codec {
    /// Bytes pass unchanged.
    Store,
    /// gzip at a libdeflate level, 0 to 12.
    Gzip(i32),
    /// zstd at a level of 1 to 22.
    Zstd(i32),
}

impl Codec {
    /// The codec for `algorithm` at `level`, or at this crate's default level.
    pub(crate) fn new(algorithm: Compression, level: Option<i32>) -> Self {
        match algorithm {
            Compression::None => Self::Store,
            Compression::Gzip => Self::Gzip(level.unwrap_or(DEFAULT_GZIP_LEVEL).clamp(0, 12)),
            Compression::Zstd => Self::Zstd(level.unwrap_or(DEFAULT_ZSTD_LEVEL).clamp(1, 22)),
        }
    }

    fn piece_length(self) -> usize {
        match self {
            Self::Store => usize::MAX,
            Self::Gzip(_) => GZIP_MEMBER,
            Self::Zstd(_) => ZSTD_FRAME,
        }
    }

    fn compress(self, input: &[u8]) -> io::Result<Vec<u8>> {
        match self {
            Self::Store => Ok(input.to_vec()),
            Self::Gzip(level) => {
                let level = libdeflater::CompressionLvl::new(level)
                    .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "gzip level out of range"))?;
                let mut compressor = libdeflater::Compressor::new(level);
                let mut output = vec![0; compressor.gzip_compress_bound(input.len())];
                let length = compressor
                    .gzip_compress(input, &mut output)
                    .map_err(|error| io::Error::other(error.to_string()))?;
                output.truncate(length);
                Ok(output)
            }
            Self::Zstd(level) => zstd::bulk::compress(input, level),
        }
    }
}

/// A writer whose input reaches `W` compressed. [`Compressor::finish`] must be called; a dropped
/// compressor leaves `W` with a prefix.
pub(crate) struct Compressor<W: Write> {
    output: W,
    codec: Codec,
    piece: Vec<u8>,
    in_flight: VecDeque<Receiver<io::Result<Vec<u8>>>>,
    most_in_flight: usize,
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
        let (piece, codec) = (std::mem::take(&mut self.piece), self.codec);
        self.in_flight.push_back(receiver);
        rayon::spawn(move || {
            // The receiver is gone when the writer failed; then nobody wants the piece.
            let _unwanted = sender.send(codec.compress(&piece));
        });
        Ok(())
    }

    fn write_first(&mut self) -> io::Result<()> {
        let Some(receiver) = self.in_flight.pop_front() else { return Ok(()) };
        let piece = receiver.recv().map_err(|_| io::Error::other("a compression thread died"))??;
        self.output.write_all(&piece)
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
        let codecs = [Codec::Store, Codec::Gzip(6), Codec::Gzip(0), Codec::Zstd(3)];
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
        for codec in [Codec::Gzip(6), Codec::Zstd(3)] {
            let whole = compress(&input, codec, usize::MAX);
            assert_eq!(compress(&input, codec, 1000), whole);
            let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().expect("a pool");
            assert_eq!(pool.install(|| compress(&input, codec, 4096)), whole);
        }
    }

    #[test]
    fn levels_stay_in_range() {
        assert_eq!(Codec::new(Compression::Gzip, None), Codec::Gzip(6));
        assert_eq!(Codec::new(Compression::Zstd, Some(0)), Codec::Zstd(1));
        assert_eq!(Codec::new(Compression::None, Some(5)), Codec::Store);
    }
}
