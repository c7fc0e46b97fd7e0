//! Compressions of archives, told by their first bytes: gzip, bzip2, xz, zstd. Pure but for the reading.
//! Must not know archives. Read [`decompressed`] first.

use std::io::{self, BufRead, Read};

/// Bytes that tell a compression.
pub(crate) const COMPRESSION_HEAD: usize = 6;

/// A stream as what it holds. `head` is how it begins; the stream still has it.
///
/// # Errors
/// When a decoder cannot be made.
pub fn decompressed<'a>(head: &[u8], stream: impl BufRead + 'a) -> io::Result<Box<dyn Read + 'a>> {
    Ok(match head {
        [0x1f, 0x8b, ..] => Box::new(flate2::bufread::MultiGzDecoder::new(stream)),
        [b'B', b'Z', b'h', ..] => Box::new(bzip2::bufread::MultiBzDecoder::new(stream)),
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => {
            Box::new(liblzma::bufread::XzDecoder::new_multi_decoder(stream))
        }
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Box::new(zstd::stream::read::Decoder::with_buffer(stream)?),
        _ => Box::new(stream),
    })
}

/// Whether a stream that begins so is compressed.
pub fn is_compressed(head: &[u8]) -> bool {
    matches!(
        head,
        [0x1f, 0x8b, ..]
            | [b'B', b'Z', b'h', ..]
            | [0xfd, b'7', b'z', b'X', b'Z', 0, ..]
            | [0x28, 0xb5, 0x2f, 0xfd, ..]
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    #[track_caller]
    fn check(bytes: &[u8], compressed: bool) {
        let mut text = String::new();
        let head = &bytes[..bytes.len().min(COMPRESSION_HEAD)];
        decompressed(head, bytes).expect("decoder").read_to_string(&mut text).expect("readable");
        assert_eq!((text.as_str(), is_compressed(head)), ("content", compressed));
    }

    #[test]
    fn compressions_by_their_first_bytes() {
        check(b"content", false);
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(b"content").expect("write");
        check(&gzip.finish().expect("finish"), true);
        let mut bzip2 = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
        bzip2.write_all(b"content").expect("write");
        check(&bzip2.finish().expect("finish"), true);
        let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 1);
        xz.write_all(b"content").expect("write");
        check(&xz.finish().expect("finish"), true);
        check(&zstd::encode_all(&b"content"[..], 1).expect("encode"), true);
    }
}
