//! Reading a tar stream: ustar, GNU (long names, sparse) and pax, every length bounded.
//!
//! Owns the format and nothing of what entries do to a file system. Names are the archive's bytes,
//! not yet trusted. Format: POSIX.1-2024 `pax`, and GNU tar's manual, "Basic Tar Format" and "Sparse
//! Formats". Start with [`Archive`].

use std::io::{self, Read};

use super::pax::{self, Extensions, SparseMap};
use crate::{LayerErrorKind, LayerLimits};

/// The unit of the format, in bytes.
pub(super) const BLOCK: usize = 512;
/// The largest extended header or sparse map, in bytes (what Go's reader allows).
pub(super) const MAX_EXTENSION: u64 = 1 << 20;
/// Segments of one sparse file.
const MAX_SEGMENTS: usize = 1 << 16;

/// Offset and length of each piece of data in a sparse file.
pub(super) type Segments = Vec<(u64, u64)>;

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    HardLink,
    Symlink,
    CharDevice,
    BlockDevice,
    Directory,
    Fifo,
}

/// One entry's header, extensions applied.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) path: Vec<u8>,
    pub(super) link: Vec<u8>,
    pub(super) kind: Kind,
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Seconds and nanoseconds since the epoch.
    pub(super) mtime: (i64, u32),
    pub(super) device: (u32, u32),
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// The file's size, holes included.
    pub(super) size: u64,
    /// Offset and length of each data segment, for a sparse file.
    pub(super) segments: Option<Segments>,
}

/// Bytes of a link's target that file systems keep beside its other facts.
const SHORT_LINK: usize = 60;

impl Entry {
    /// Whether it takes a block of a disk, whatever it holds. Names and nodes are in their directory's.
    pub(super) fn takes_a_block(&self) -> bool {
        match self.kind {
            Kind::Directory => true,
            Kind::File => self.size > 0 || !self.xattrs.is_empty(),
            Kind::Symlink => self.link.len() >= SHORT_LINK,
            Kind::HardLink | Kind::CharDevice | Kind::BlockDevice | Kind::Fifo => !self.xattrs.is_empty(),
        }
    }
}

/// A tar stream, positioned within it.
#[derive(Debug)]
pub(super) struct Archive<R> {
    input: R,
    limits: LayerLimits,
    entries: u64,
    /// Data of the current entry not yet read, and the padding after it.
    remaining: u64,
    padding: u64,
}

type Block = [u8; BLOCK];

impl<R: Read> Archive<R> {
    pub(super) fn new(input: R, limits: LayerLimits) -> Self {
        Self { input, limits, entries: 0, remaining: 0, padding: 0 }
    }

    /// The stream after the archive.
    pub(super) fn into_inner(self) -> R {
        self.input
    }

    /// Reads data of the current entry; 0 at its end.
    pub(super) fn read_data(&mut self, buffer: &mut [u8]) -> Result<usize, LayerErrorKind> {
        let wanted = buffer.len().min(usize::try_from(self.remaining).unwrap_or(usize::MAX));
        if wanted == 0 {
            return Ok(0);
        }
        match read_some(&mut self.input, &mut buffer[..wanted])? {
            0 => Err(LayerErrorKind::Truncated),
            count => {
                self.remaining -= count as u64;
                Ok(count)
            }
        }
    }

    /// The next entry; `None` at the end of the archive.
    pub(super) fn next(&mut self) -> Result<Option<Entry>, (Vec<u8>, LayerErrorKind)> {
        let mut extensions = Extensions::default();
        loop {
            let block = self
                .next_header()
                .map_err(|kind| (format!("(number {})", self.entries + 1).into_bytes(), kind))?;
            let Some(block) = block else { return Ok(None) };
            let named = |kind| (name_of(&block), kind);
            self.entries += 1;
            if self.entries > self.limits.entries {
                return Err(named(LayerErrorKind::TooManyEntries(self.limits.entries)));
            }
            let size = size_field(&block[124..136]).map_err(named)?;
            match block[156] {
                b'x' => pax::parse(&self.extension(size).map_err(named)?, &mut extensions).map_err(named)?,
                // Global headers carry comments (git archives); no layer relies on more.
                b'g' => self.begin_data(size),
                b'L' => extensions.path = Some(until_nul(&self.extension(size).map_err(named)?).to_vec()),
                b'K' => extensions.link = Some(until_nul(&self.extension(size).map_err(named)?).to_vec()),
                _ => return self.entry(&block, extensions, size).map(Some),
            }
        }
    }

    fn entry(
        &mut self,
        block: &Block,
        mut extensions: Extensions,
        size: u64,
    ) -> Result<Entry, (Vec<u8>, LayerErrorKind)> {
        let path = extensions.path.take().unwrap_or_else(|| name_of(block));
        let read = |path: &[u8]| {
            let kind = kind_of(block[156], path)?;
            let stored = if kind == Kind::File { extensions.size.unwrap_or(size) } else { 0 };
            self.begin_data(stored);
            let segments = match kind {
                Kind::File => self.segments(block, &extensions)?,
                _ => None,
            };
            let (size, segments) = segments.map_or((stored, None), |(size, map)| (size, Some(map)));
            let entry = Entry { size, segments, ..fields(block, extensions, kind)? };
            let longest = self.limits.path_bytes;
            if path.len() > longest || entry.link.len() > longest {
                return Err(LayerErrorKind::PathTooLong(longest));
            }
            Ok(entry)
        };
        match read(&path) {
            Ok(entry) => Ok(Entry { path, ..entry }),
            Err(kind) => Err((path, kind)),
        }
    }

    /// The size and the map of a sparse file, in whichever of the formats it is.
    fn segments(
        &mut self,
        block: &Block,
        extensions: &Extensions,
    ) -> Result<Option<(u64, Segments)>, LayerErrorKind> {
        let real_size = || extensions.real_size.ok_or(LayerErrorKind::Header("sparse file without a size"));
        let (size, segments) = match (block[156], &extensions.sparse) {
            (b'S', _) => (size_field(&block[483..495])?, self.gnu_map(block)?),
            (_, Some(SparseMap::InData)) => (real_size()?, self.leading_map()?),
            (_, Some(SparseMap::Here(numbers))) => {
                (real_size()?, numbers.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect())
            }
            (_, None) => return Ok(None),
        };
        let (mut end, mut data) = (0u64, 0u64);
        for (offset, length) in &segments {
            let after = offset.checked_add(*length).filter(|after| *offset >= end && *after <= size);
            end = after.ok_or(LayerErrorKind::Header("sparse map out of order"))?;
            data += length;
        }
        if data != self.remaining {
            return Err(LayerErrorKind::Header("sparse map and data differ in size"));
        }
        Ok(Some((size, segments)))
    }

    /// The old GNU form: four segments in the header, 21 in each block after it.
    fn gnu_map(&mut self, block: &Block) -> Result<Segments, LayerErrorKind> {
        let mut segments = Vec::new();
        push_segments(&block[386..482], &mut segments)?;
        let mut more = block[482] != 0;
        while more {
            let mut next = [0; BLOCK];
            self.fill(&mut next)?;
            push_segments(&next[..504], &mut segments)?;
            more = next[504] != 0;
        }
        Ok(segments)
    }

    /// Pax form 1.0: decimal lines in front of the data, padded to a block.
    fn leading_map(&mut self) -> Result<Segments, LayerErrorKind> {
        let mut text = Vec::new();
        let mut numbers = Vec::new();
        let mut wanted = None;
        loop {
            let mut block = [0; BLOCK];
            if self.remaining < BLOCK as u64 || text.len() as u64 > MAX_EXTENSION {
                return Err(LayerErrorKind::Header("sparse map is cut short"));
            }
            self.fill(&mut block)?;
            self.remaining -= BLOCK as u64;
            text.extend_from_slice(&block);
            while let Some(end) = text.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = text.drain(..=end).collect();
                numbers.push(pax::decimal(&line[..end])?);
                let count = *wanted.get_or_insert(numbers[0]);
                if count > MAX_SEGMENTS as u64 {
                    return Err(LayerErrorKind::Header("sparse map is too long"));
                }
                if numbers.len() as u64 == 1 + 2 * count {
                    return Ok(numbers[1..].chunks_exact(2).map(|pair| (pair[0], pair[1])).collect());
                }
            }
        }
    }

    /// Skips what is left of the current entry, then reads a header; `None` at the end.
    fn next_header(&mut self) -> Result<Option<Block>, LayerErrorKind> {
        let skip = self.remaining + self.padding;
        let skipped = io::copy(&mut (&mut self.input).take(skip), &mut io::sink());
        let skipped = skipped.map_err(LayerErrorKind::Stream)?;
        // The padding of the last entry may be missing; its data may not.
        if skipped < self.remaining {
            return Err(LayerErrorKind::Truncated);
        }
        (self.remaining, self.padding) = (0, 0);
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            match read_some(&mut self.input, &mut block[filled..])? {
                // Some writers leave out the end marker.
                0 if filled == 0 => return Ok(None),
                0 => return Err(LayerErrorKind::Truncated),
                count => filled += count,
            }
        }
        if block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        check_sum(&block)?;
        Ok(Some(block))
    }

    fn begin_data(&mut self, size: u64) {
        self.remaining = size;
        self.padding = size.wrapping_neg() % BLOCK as u64;
    }

    fn extension(&mut self, size: u64) -> Result<Vec<u8>, LayerErrorKind> {
        if size > MAX_EXTENSION {
            return Err(LayerErrorKind::ExtendedHeaderTooLarge(MAX_EXTENSION));
        }
        self.begin_data(size);
        let mut bytes = vec![0; usize::try_from(size).unwrap_or(0)];
        self.fill(&mut bytes)?;
        self.remaining = 0;
        Ok(bytes)
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<(), LayerErrorKind> {
        self.input.read_exact(buffer).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => LayerErrorKind::Truncated,
            _ => LayerErrorKind::Stream(error),
        })
    }
}

fn read_some(input: &mut impl Read, buffer: &mut [u8]) -> Result<usize, LayerErrorKind> {
    loop {
        match input.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(LayerErrorKind::Truncated);
            }
            result => return result.map_err(LayerErrorKind::Stream),
        }
    }
}

/// All of an entry but its path and data.
fn fields(block: &Block, extensions: Extensions, kind: Kind) -> Result<Entry, LayerErrorKind> {
    let id = |stored: Option<u64>, field: &[u8]| {
        let value = stored.map_or_else(|| number(field).and_then(non_negative), Ok)?;
        u32::try_from(value).map_err(|_| LayerErrorKind::Header("owner out of range"))
    };
    let device = |field: &[u8]| match kind {
        Kind::CharDevice | Kind::BlockDevice => {
            let value = number(field)?;
            u32::try_from(value).map_err(|_| LayerErrorKind::Header("device number out of range"))
        }
        _ => Ok(0),
    };
    let mode = number(&block[100..108])?;
    Ok(Entry {
        path: Vec::new(),
        link: extensions.link.unwrap_or_else(|| until_nul(&block[157..257]).to_vec()),
        kind,
        mode: u32::try_from(mode & 0o7777).map_err(|_| LayerErrorKind::Header("mode"))?,
        uid: id(extensions.uid, &block[108..116])?,
        gid: id(extensions.gid, &block[116..124])?,
        mtime: extensions.mtime.map_or_else(|| Ok((number(&block[136..148])?, 0)), Ok)?,
        device: (device(&block[329..337])?, device(&block[337..345])?),
        xattrs: extensions.xattrs,
        size: 0,
        segments: None,
    })
}

fn kind_of(flag: u8, path: &[u8]) -> Result<Kind, LayerErrorKind> {
    Ok(match flag {
        // Before ustar a directory was a file whose name ends in a slash.
        0 | b'0' if path.ends_with(b"/") => Kind::Directory,
        0 | b'0' | b'7' | b'S' => Kind::File,
        b'1' => Kind::HardLink,
        b'2' => Kind::Symlink,
        b'3' => Kind::CharDevice,
        b'4' => Kind::BlockDevice,
        b'5' => Kind::Directory,
        b'6' => Kind::Fifo,
        other => return Err(LayerErrorKind::UnsupportedType(char::from(other).escape_default().to_string())),
    })
}

/// The name in the header: POSIX archives split it in two.
fn name_of(block: &Block) -> Vec<u8> {
    let name = until_nul(&block[..100]);
    let prefix = until_nul(&block[345..500]);
    if &block[257..263] != b"ustar\0" || prefix.is_empty() {
        return name.to_vec();
    }
    [prefix, b"/", name].concat()
}

fn push_segments(bytes: &[u8], segments: &mut Segments) -> Result<(), LayerErrorKind> {
    for pair in bytes.chunks_exact(24).filter(|pair| pair[0] != 0) {
        if segments.len() == MAX_SEGMENTS {
            return Err(LayerErrorKind::Header("sparse map is too long"));
        }
        segments.push((size_field(&pair[..12])?, size_field(&pair[12..])?));
    }
    Ok(())
}

fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default()
}

fn size_field(field: &[u8]) -> Result<u64, LayerErrorKind> {
    number(field).and_then(non_negative)
}

fn non_negative(value: i64) -> Result<u64, LayerErrorKind> {
    u64::try_from(value).map_err(|_| LayerErrorKind::Header("negative number"))
}

/// A numeric field: octal text, or big-endian two's complement behind a set top bit.
fn number(field: &[u8]) -> Result<i64, LayerErrorKind> {
    const BAD: LayerErrorKind = LayerErrorKind::Header("number");
    if let Some((first, rest)) = field.split_first().filter(|(first, _)| **first & 0x80 != 0) {
        let negative = first & 0x40 != 0;
        let start = i128::from(first & 0x3f) - if negative { 0x40 } else { 0 };
        let value = rest.iter().fold(start, |value, byte| (value << 8) | i128::from(*byte));
        return i64::try_from(value).map_err(|_| BAD);
    }
    let text = field.trim_ascii();
    let text = until_nul(text).trim_ascii();
    if text.is_empty() {
        return Ok(0);
    }
    text.iter().try_fold(0i64, |value, digit| match digit {
        b'0'..=b'7' => value
            .checked_mul(8)
            .map(|value| value + i64::from(digit - b'0'))
            .ok_or(LayerErrorKind::Header("number")),
        _ => Err(LayerErrorKind::Header("number")),
    })
}

/// The sum of all bytes, its own field counted as spaces; old writers summed signed bytes.
fn check_sum(block: &Block) -> Result<(), LayerErrorKind> {
    let stored = number(&block[148..156])?;
    let counted = |index: usize, byte: u8| if (148..156).contains(&index) { b' ' } else { byte };
    let bytes = || block.iter().enumerate().map(|(index, byte)| counted(index, *byte));
    let unsigned: i64 = bytes().map(i64::from).sum();
    let signed: i64 = bytes().map(|byte| i64::from(byte.cast_signed())).sum();
    if stored == unsigned || stored == signed { Ok(()) } else { Err(LayerErrorKind::Header("checksum")) }
}
