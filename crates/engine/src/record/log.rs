//! The whole output of a step, compressed as it comes.
//!
//! A log is one zstd stream of frames: a byte for the stream (1 standard output, 2 standard error), microseconds
//! from the build's start and the number of bytes as little-endian 64-bit numbers, the bytes. Nothing is cut. A
//! build that is killed leaves a stream without an end: what was flushed (every [`FLUSH_EVERY`]) can be read.
//! Start with [`LogWriter`] and [`LogReader`].

use std::fs::File;
use std::io::{self, BufReader, Read, Write as _};
use std::path::Path;
use std::time::{Duration, Instant};

use stave_solver::LogStream;

/// How much of a log a kill may take.
const FLUSH_EVERY: Duration = Duration::from_millis(500);
/// Compression of logs: they are written while a step waits for us.
const LEVEL: i32 = 1;
/// The largest frame a reader believes in. Writers cut what is longer into several.
const MAX_FRAME: usize = 4 << 20;

/// Writes one log.
pub(super) struct LogWriter {
    encoder: zstd::stream::write::Encoder<'static, File>,
    flushed: Instant,
    /// Bytes of output so far.
    pub(super) written: u64,
}

impl LogWriter {
    pub(super) fn create(path: &Path) -> io::Result<Self> {
        let encoder = zstd::stream::write::Encoder::new(File::create(path)?, LEVEL)?;
        Ok(Self { encoder, flushed: Instant::now(), written: 0 })
    }

    /// Adds bytes written `at` microseconds after the build's start.
    pub(super) fn write(&mut self, at: u64, stream: LogStream, bytes: &[u8]) -> io::Result<()> {
        for part in bytes.chunks(MAX_FRAME) {
            let mut head = [0; 17];
            head[0] = match stream {
                LogStream::Stdout => 1,
                LogStream::Stderr => 2,
            };
            head[1..9].copy_from_slice(&at.to_le_bytes());
            head[9..].copy_from_slice(&(part.len() as u64).to_le_bytes());
            self.encoder.write_all(&head)?;
            self.encoder.write_all(part)?;
        }
        self.written += bytes.len() as u64;
        if self.flushed.elapsed() >= FLUSH_EVERY {
            self.encoder.flush()?;
            self.flushed = Instant::now();
        }
        Ok(())
    }

    /// Ends the stream; returns how many bytes of output it holds.
    pub(super) fn finish(self) -> io::Result<u64> {
        let written = self.written;
        self.encoder.finish()?;
        Ok(written)
    }
}

/// A piece of output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogChunk {
    /// When it was written, from the build's start.
    pub at: Duration,
    /// Where to.
    pub stream: LogStream,
    /// The bytes, cut anywhere.
    pub bytes: Vec<u8>,
}

/// Reads a log in order.
pub struct LogReader {
    decoder: zstd::stream::read::Decoder<'static, BufReader<File>>,
}

impl LogReader {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { decoder: zstd::stream::read::Decoder::new(File::open(path)?)? })
    }

    /// The next piece; `None` at the end, also that of a log that was cut short.
    fn next_chunk(&mut self) -> io::Result<Option<LogChunk>> {
        let mut head = [0; 17];
        if !self.fill(&mut head)? {
            return Ok(None);
        }
        let number = |bytes: &[u8]| bytes.try_into().map(u64::from_le_bytes).unwrap_or(u64::MAX);
        let stream = match head[0] {
            1 => LogStream::Stdout,
            2 => LogStream::Stderr,
            _ => return Err(io::Error::new(io::ErrorKind::InvalidData, "not a log of a step")),
        };
        let length = usize::try_from(number(&head[9..])).ok().filter(|length| *length <= MAX_FRAME);
        let Some(length) = length else {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a log with a frame over its limit"));
        };
        let mut bytes = vec![0; length];
        let whole = self.fill(&mut bytes)?;
        Ok(whole.then(|| LogChunk { at: Duration::from_micros(number(&head[1..9])), stream, bytes }))
    }

    /// `false` when the stream ends first.
    fn fill(&mut self, buffer: &mut [u8]) -> io::Result<bool> {
        match self.decoder.read_exact(buffer) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
            Err(error) => Err(error),
        }
    }
}

impl Iterator for LogReader {
    type Item = io::Result<LogChunk>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_chunk().transpose()
    }
}

impl std::fmt::Debug for LogReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LogReader")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logs_come_back_whole_and_a_cut_one_as_far_as_it_goes() {
        let place = tempfile::tempdir().expect("a directory");
        let path = place.path().join("1.log.zst");
        let mut writer = LogWriter::create(&path).expect("creates");
        let long = vec![b'x'; MAX_FRAME + 10];
        writer.write(5, LogStream::Stdout, b"one\n").expect("writes");
        writer.write(9, LogStream::Stderr, &long).expect("writes");
        assert_eq!(writer.finish().expect("ends"), 4 + long.len() as u64);
        let chunks: Vec<LogChunk> =
            LogReader::open(&path).expect("opens").collect::<Result<_, _>>().expect("reads");
        assert_eq!(chunks[0].bytes, b"one\n");
        assert_eq!((chunks[0].at, chunks[0].stream), (Duration::from_micros(5), LogStream::Stdout));
        assert_eq!(chunks[1..].iter().map(|chunk| chunk.bytes.len()).sum::<usize>(), long.len());

        let bytes = std::fs::read(&path).expect("reads");
        std::fs::write(&path, &bytes[..bytes.len() - 4]).expect("writes");
        let cut: Result<Vec<LogChunk>, _> = LogReader::open(&path).expect("opens").collect();
        assert!(cut.expect("no error").len() <= 3);
    }
}
