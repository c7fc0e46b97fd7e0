//! DEFLATE without matches: each byte coded by its frequency (RFC 1951 section 3.2.7), or blocks stored as they
//! are where even that gains nothing. Several times as fast as a search for repeats that finds none.
//!
//! Owns one code over bytes and the gzip member written with it. Must not know when that is worth while:
//! [`super::kind`] says so.
//!
//! Read [`gzip_member`] and [`Code`] first.

use libdeflater::Crc;

/// Bytes that share one code. Each block costs 139 bytes for its code.
const BLOCK: usize = 128 << 10;
/// All byte values and the end of a block.
const SYMBOLS: usize = 257;
/// The symbol that ends a block.
const END: usize = 256;
/// The longest codeword. DEFLATE allows 15 bits; four of 14 fit into 64 bits beside the seven that may be left.
const LONGEST: u8 = 14;
/// Literals written between two flushes.
const AT_ONCE: usize = 4;
/// Bytes of the largest block that is stored as it is.
const STORED: usize = 65_535;
/// Bits of a block's code, see [`BitWriter::code`].
const CODE_BITS: u64 = 3 + 14 + 19 * 3 + (SYMBOLS as u64 + 2) * 4;
/// The end of a gzip member: CRC-32 and length.
const TRAILER: usize = 8;
/// The start of one: no name, no time, no operating system (RFC 1952 section 2.3).
const HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff];

/// How often each symbol occurs.
pub(super) type Counts = [u32; SYMBOLS];

/// How often each byte occurs in `input`, and one end of a block.
pub(super) fn count(input: &[u8]) -> Counts {
    // Four tables: equal bytes in a row would each wait for the last one's addition.
    let mut tables = [[0u32; 256]; 4];
    let mut chunks = input.chunks_exact(4);
    for chunk in &mut chunks {
        for (table, byte) in tables.iter_mut().zip(chunk) {
            table[usize::from(*byte)] += 1;
        }
    }
    for byte in chunks.remainder() {
        tables[0][usize::from(*byte)] += 1;
    }
    let mut counts = [0; SYMBOLS];
    for (value, count) in counts.iter_mut().take(256).enumerate() {
        *count = tables.iter().map(|table| table[value]).sum();
    }
    counts[END] = 1;
    counts
}

/// A prefix code: for each symbol its codeword, first bit lowest, and its length in bits.
pub(super) struct Code {
    words: [(u16, u8); SYMBOLS],
}

impl Code {
    /// The shortest code for these counts whose words have at most [`LONGEST`] bits, or nearly that.
    pub(super) fn new(counts: &Counts) -> Self {
        let mut counts = *counts;
        loop {
            let lengths = lengths(&counts);
            if lengths.iter().all(|length| *length <= LONGEST) {
                return Self { words: canonical(&lengths) };
            }
            // Flatter counts make a flatter tree.
            for count in counts.iter_mut().filter(|count| **count > 0) {
                *count = count.div_ceil(2);
            }
        }
    }

    /// Bits that symbols of these counts take.
    pub(super) fn bits(&self, counts: &Counts) -> u64 {
        let symbols = self.words.iter().zip(counts);
        symbols.map(|((_, length), count)| u64::from(*length) * u64::from(*count)).sum()
    }
}

/// The lengths of Huffman's code, of any length; ties go by symbol, so that every machine makes the same one.
fn lengths(counts: &Counts) -> [u8; SYMBOLS] {
    let mut leaves: Vec<(u32, usize)> =
        (0..SYMBOLS).filter(|symbol| counts[*symbol] > 0).map(|symbol| (counts[symbol], symbol)).collect();
    let mut lengths = [0; SYMBOLS];
    if leaves.len() == 1 {
        // A codeword has at least one bit.
        lengths[leaves[0].1] = 1;
        return lengths;
    }
    leaves.sort_unstable();
    // Nodes are made in the order of their weight: leaves first, then the joints over them.
    let mut weights: Vec<u64> = leaves.iter().map(|(count, _)| u64::from(*count)).collect();
    let mut parents = vec![0; 2 * leaves.len() - 1];
    let (mut leaf, mut joint) = (0, leaves.len());
    for made in leaves.len()..parents.len() {
        let mut take = || {
            let is_leaf = leaf < leaves.len() && (joint >= made || weights[leaf] <= weights[joint]);
            let next = if is_leaf { &mut leaf } else { &mut joint };
            *next += 1;
            *next - 1
        };
        let (first, second) = (take(), take());
        (parents[first], parents[second]) = (made, made);
        weights.push(weights[first] + weights[second]);
    }
    let mut depths = vec![0u8; parents.len()];
    for node in (0..parents.len() - 1).rev() {
        depths[node] = depths[parents[node]].saturating_add(1);
    }
    for ((_, symbol), depth) in leaves.iter().zip(depths) {
        lengths[*symbol] = depth;
    }
    lengths
}

/// The codewords of RFC 1951 section 3.2.2, reversed: DEFLATE packs them from their first bit.
fn canonical(lengths: &[u8; SYMBOLS]) -> [(u16, u8); SYMBOLS] {
    let mut next = 0u16;
    let mut words = [(0, 0); SYMBOLS];
    for length in 1..=LONGEST {
        next <<= 1;
        for (word, _) in words.iter_mut().zip(lengths).filter(|(_, own)| **own == length) {
            *word = (next.reverse_bits() >> (16 - length), length);
            next += 1;
        }
    }
    words
}

/// The most bytes that [`gzip_member`] makes of `length` bytes.
pub(super) fn bound(length: usize) -> usize {
    // A block that its code does not make smaller is stored, and stored ones cost five bytes and what is left
    // of a byte; flushes write eight bytes of which one may count.
    HEADER.len() + TRAILER + length + (length / STORED + length / BLOCK + 2) * 8 + 16
}

/// Writes `input` as one gzip member. `output` must have [`bound`] bytes; how many were written is returned.
pub(super) fn gzip_member(input: &[u8], output: &mut [u8]) -> usize {
    output[..HEADER.len()].copy_from_slice(&HEADER);
    let mut bits = BitWriter { output, position: HEADER.len(), held: 0, count: 0 };
    let mut rest = input;
    loop {
        let (block, after) = rest.split_at(rest.len().min(BLOCK));
        rest = after;
        bits.block(block, rest.is_empty());
        if rest.is_empty() {
            break;
        }
    }
    let end = bits.finish();
    let mut crc = Crc::new();
    crc.update(input);
    output[end..end + 4].copy_from_slice(&crc.sum().to_le_bytes());
    // The length modulo 2^32, as the format has it.
    output[end + 4..end + TRAILER].copy_from_slice(&(input.len() as u32).to_le_bytes());
    end + TRAILER
}

struct BitWriter<'a> {
    output: &'a mut [u8],
    position: usize,
    held: u64,
    count: u32,
}

impl BitWriter<'_> {
    fn put(&mut self, value: u16, length: u8) {
        self.held |= u64::from(value) << self.count;
        self.count += u32::from(length);
    }

    /// Writes the whole bytes among the bits held; at most seven are left.
    fn flush(&mut self) {
        self.output[self.position..self.position + 8].copy_from_slice(&self.held.to_le_bytes());
        self.position += (self.count / 8) as usize;
        self.held >>= self.count & !7;
        self.count &= 7;
    }

    fn block(&mut self, input: &[u8], is_last: bool) {
        let counts = count(input);
        let code = Code::new(&counts);
        if code.bits(&counts) + CODE_BITS >= input.len() as u64 * 8 {
            self.stored(input, is_last);
            return;
        }
        self.code(&code, is_last);
        let mut chunks = input.chunks_exact(AT_ONCE);
        for chunk in &mut chunks {
            for byte in chunk {
                let (word, length) = code.words[usize::from(*byte)];
                self.put(word, length);
            }
            self.flush();
        }
        for byte in chunks.remainder() {
            let (word, length) = code.words[usize::from(*byte)];
            self.put(word, length);
        }
        self.flush();
        let (word, length) = code.words[END];
        self.put(word, length);
        self.flush();
    }

    /// Bytes as they are.
    fn stored(&mut self, input: &[u8], is_last: bool) {
        let mut rest = input;
        loop {
            let (block, after) = rest.split_at(rest.len().min(STORED));
            rest = after;
            self.put(u16::from(is_last && rest.is_empty()), 3);
            self.count = self.count.next_multiple_of(8);
            self.flush();
            // At most [`STORED`]: the field's type.
            let length = block.len() as u16;
            self.put(length, 16);
            self.put(!length, 16);
            self.flush();
            self.output[self.position..self.position + block.len()].copy_from_slice(block);
            self.position += block.len();
            if rest.is_empty() {
                break;
            }
        }
    }

    /// A block's header: a code for distances that none uses, since old readers want one, and lengths written
    /// with four bits each, which is a code for them.
    fn code(&mut self, code: &Code, is_last: bool) {
        let dynamic = 2 << 1;
        self.put(u16::from(is_last) | dynamic, 3);
        // Symbols beyond 257, distances beyond 1, code length codes beyond 4.
        for (value, length) in [(0, 5), (1, 5), (15, 4)] {
            self.put(value, length);
        }
        self.flush();
        // Lengths 16 to 18, which stand first, mean repeats: not used.
        for position in 0..19 {
            self.put(if position < 3 { 0 } else { 4 }, 3);
            self.flush();
        }
        let distances = [1, 1];
        for length in code.words.iter().map(|(_, length)| *length).chain(distances) {
            self.put((u16::from(length)).reverse_bits() >> 12, 4);
            self.flush();
        }
    }

    /// The end of the stream, at the next whole byte.
    fn finish(mut self) -> usize {
        self.count = self.count.next_multiple_of(8);
        self.flush();
        self.position
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use proptest::prelude::*;

    use super::*;

    /// Compresses, reads it with two other implementations, and returns the length.
    #[track_caller]
    fn check(input: &[u8]) -> usize {
        let mut output = vec![0; bound(input.len())];
        let length = gzip_member(input, &mut output);
        let mut found = Vec::new();
        flate2::read::GzDecoder::new(&output[..length]).read_to_end(&mut found).expect("a gzip member");
        assert!(found == input, "{} bytes came back as {}", input.len(), found.len());
        let mut found = vec![0; input.len()];
        let read = libdeflater::Decompressor::new().gzip_decompress(&output[..length], &mut found);
        assert_eq!(read, Ok(input.len()));
        assert!(found == input);
        length
    }

    fn noise(length: usize, map: impl Fn(u32) -> u8) -> Vec<u8> {
        let mut state = 1u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state >> 8
        };
        (0..length).map(|_| map(next())).collect()
    }

    #[test]
    fn every_length_comes_back() {
        for length in [0, 1, 2, 5, 300, STORED, STORED + 1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 7] {
            for bits in [0, 1, 4, 8] {
                check(&noise(length, |number| (number & ((1 << bits) - 1)) as u8));
            }
        }
    }

    #[test]
    fn bytes_take_what_their_frequency_is_worth() {
        let length = 4 * BLOCK;
        let few = check(&noise(length, |number| b'a' + (number & 15) as u8));
        assert!((length / 2..length / 2 + length / 50).contains(&few), "four bits of eight: {few}");
        let all = check(&noise(length, |number| number as u8));
        assert!((length..length + 100).contains(&all), "stored: {all}");
    }

    #[test]
    fn codewords_have_a_limit() {
        // Each as often as all before it, the end of the block among them: the tree is a chain.
        let mut input = Vec::new();
        for value in 0..17u8 {
            input.resize(input.len() + (1 << value), value);
        }
        let counts = count(&input);
        assert!(lengths(&counts).iter().any(|length| *length > LONGEST));
        assert!(Code::new(&counts).words.iter().all(|(_, length)| *length <= LONGEST));
        check(&input);
    }

    proptest! {
        #[test]
        fn anything_comes_back(input in proptest::collection::vec(any::<u8>(), 0..5000)) {
            check(&input);
        }
    }
}
