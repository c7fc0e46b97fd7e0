//! Archives written byte by byte, as honest tools refuse to write them. Start with [`Tar`].

use std::io::Write as _;

use flate2::Compression;
use flate2::write::GzEncoder;

/// The unit of the format, in bytes.
const BLOCK: usize = 512;

/// An archive in the making; names, targets and sizes are taken as they are.
#[derive(Default)]
pub(super) struct Tar(Vec<u8>);

impl Tar {
    /// Any entry; `change` may spoil the header before its checksum is made.
    pub(super) fn raw(
        mut self,
        flag: u8,
        name: &str,
        link: &str,
        data: &[u8],
        change: impl Fn(&mut [u8; BLOCK]),
    ) -> Self {
        let mut block = [0; BLOCK];
        block[..name.len()].copy_from_slice(name.as_bytes());
        block[100..107].copy_from_slice(b"0000755");
        block[108..115].copy_from_slice(b"0000000");
        block[116..123].copy_from_slice(b"0000000");
        block[124..135].copy_from_slice(format!("{:011o}", data.len()).as_bytes());
        block[136..147].copy_from_slice(b"00000000001");
        block[156] = flag;
        block[157..157 + link.len()].copy_from_slice(link.as_bytes());
        block[257..265].copy_from_slice(b"ustar\x0000");
        change(&mut block);
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        self.0.extend_from_slice(&block);
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().next_multiple_of(BLOCK), 0);
        self
    }

    pub(super) fn file(self, name: &str, data: impl AsRef<[u8]>) -> Self {
        self.raw(b'0', name, "", data.as_ref(), |_| {})
    }

    pub(super) fn hard_link(self, name: &str, target: &str) -> Self {
        self.raw(b'1', name, target, b"", |_| {})
    }

    pub(super) fn symlink(self, name: &str, target: &str) -> Self {
        self.raw(b'2', name, target, b"", |_| {})
    }

    /// A character device (`3`) or block device (`4`).
    pub(super) fn device(self, flag: u8, name: &str, (major, minor): (u32, u32)) -> Self {
        self.raw(flag, name, "", b"", |block| {
            block[329..336].copy_from_slice(format!("{major:07o}").as_bytes());
            block[337..344].copy_from_slice(format!("{minor:07o}").as_bytes());
        })
    }

    pub(super) fn fifo(self, name: &str) -> Self {
        self.raw(b'6', name, "", b"", |_| {})
    }

    /// An extended header for the entry after it.
    pub(super) fn pax(self, key: &str, value: &str) -> Self {
        let rest = key.len() + value.len() + 3;
        let is_length = |total: &usize| *total == rest + total.to_string().len();
        let length = (rest..).find(is_length).expect("a record has a length");
        self.raw(b'x', "pax", "", format!("{length} {key}={value}\n").as_bytes(), |_| {})
    }

    /// The archive without an end.
    pub(super) fn cut(self) -> Vec<u8> {
        self.0
    }

    /// The archive.
    pub(super) fn end(mut self) -> Vec<u8> {
        self.0.extend_from_slice(&[0; 2 * BLOCK]);
        self.0
    }
}

/// The bytes in gzip's form.
pub(super) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).expect("writes to memory");
    encoder.finish().expect("writes to memory")
}
