//! What a piece of input is like, told from a sample: whether it is worth while to search it for repeats.
//!
//! Compressed, encrypted and encoded data has none, and a search for them takes most of the time that
//! compressing takes. Must not know how pieces are written.
//!
//! Read [`Kind::of`] first.

use super::literal::{Code, count};

/// What helps to make a piece small.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// It repeats itself.
    Repeats,
    /// It does not: what there is to gain is in the frequency of its bytes.
    Literals,
}

/// Windows in a sample.
const WINDOWS: usize = 8;
/// Bytes of each.
const WINDOW: usize = 4 << 10;
/// Shorter pieces are not sampled: one window in four would be read anyway.
const SAMPLED: usize = 4 * WINDOWS * WINDOW;
/// A search for repeats must save this part of what the frequencies leave, one in so many.
const WORTH: u64 = 20;

impl Kind {
    /// The kind of `piece`, where `with_repeats` tells how many bytes a sample takes if repeats are searched for.
    /// Depends on the bytes alone.
    pub(super) fn of(piece: &[u8], with_repeats: impl FnOnce(&[u8]) -> usize) -> Self {
        if piece.len() < SAMPLED {
            return Self::Repeats;
        }
        let sample = sample(piece);
        let counts = count(&sample);
        let alone = Code::new(&counts).bits(&counts).div_ceil(8).min(sample.len() as u64);
        let searched = with_repeats(&sample) as u64;
        if searched > alone - alone / WORTH { Self::Literals } else { Self::Repeats }
    }
}

/// Windows from all over `piece`, at uneven distances: tables and pages repeat at even ones.
fn sample(piece: &[u8]) -> Vec<u8> {
    let stride = piece.len() / WINDOWS;
    let mut sample = Vec::with_capacity(WINDOWS * WINDOW);
    for window in 0..WINDOWS {
        let start = window * stride + (window * 40_503 + 12_289) % (stride - WINDOW);
        sample.extend_from_slice(&piece[start..start + WINDOW]);
    }
    sample
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(piece: &[u8], expected: Kind) {
        let level = libdeflater::CompressionLvl::new(2).expect("a level");
        let searched = |sample: &[u8]| {
            let mut compressor = libdeflater::Compressor::new(level);
            let mut output = vec![0; compressor.deflate_compress_bound(sample.len())];
            compressor.deflate_compress(sample, &mut output).expect("fits")
        };
        assert_eq!(Kind::of(piece, searched), expected);
    }

    fn noise(length: usize, bits: u32) -> Vec<u8> {
        let mut state = 1u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> (64 - bits)) as u8
        };
        (0..length).map(|_| next()).collect()
    }

    #[test]
    fn noise_has_no_repeats() {
        for bits in [5, 6, 8] {
            check(&noise(1 << 20, bits), Kind::Literals);
        }
    }

    #[test]
    fn text_and_short_pieces_are_searched() {
        let text: Vec<u8> =
            (0..40_000).flat_map(|line| format!("line {line} of a text\n").into_bytes()).collect();
        check(&text, Kind::Repeats);
        check(&noise(SAMPLED - 1, 8), Kind::Repeats);
        check(&vec![0; 1 << 20], Kind::Repeats);
    }

    #[test]
    fn half_a_text_is_searched() {
        let mut mixed = noise(1 << 20, 8);
        for (line, bytes) in mixed[300_000..700_000].chunks_exact_mut(8).enumerate() {
            bytes.copy_from_slice(format!("{:08}", line / 3).as_bytes());
        }
        check(&mixed, Kind::Repeats);
    }
}
