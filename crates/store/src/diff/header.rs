//! Writing tar headers: ustar, with a pax header in front when a value does not fit.
//!
//! The same entry gives the same bytes everywhere: no user names, no access or change times, records
//! sorted. Start with [`Header`].

use std::collections::BTreeMap;
use std::io::{self, Write};

/// The unit of the format, in bytes.
const BLOCK: usize = 512;
/// The largest number in a 7- and an 11-digit octal field.
const MAX_7: u64 = 0o7_777_777;
const MAX_11: u64 = 0o77_777_777_777;

/// What an entry's header says.
#[derive(Debug, Clone, Default)]
pub(super) struct Header {
    pub(super) path: Vec<u8>,
    pub(super) link: Vec<u8>,
    pub(super) flag: u8,
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) size: u64,
    pub(super) seconds: i64,
    pub(super) nanoseconds: u32,
    pub(super) device: (u32, u32),
    pub(super) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

type Records = BTreeMap<Vec<u8>, Vec<u8>>;

impl Header {
    /// Writes the header, after its pax header if it needs one.
    pub(super) fn write(&self, output: &mut impl Write) -> io::Result<()> {
        let mut records = Records::new();
        let block = self.block(&mut records);
        if !records.is_empty() {
            let body: Vec<u8> = records.iter().flat_map(|(key, value)| record(key, value)).collect();
            let pax =
                Self { path: pax_name(&self.path), flag: b'x', size: body.len() as u64, ..Self::default() };
            // Its own fields always fit, so it asks for no records.
            output.write_all(&pax.block(&mut Records::new()))?;
            output.write_all(&body)?;
            write_padding(output, body.len() as u64)?;
        }
        output.write_all(&block)
    }

    /// The ustar block; what does not fit goes into `records`.
    fn block(&self, records: &mut Records) -> [u8; BLOCK] {
        let mut block = [0; BLOCK];
        match split_path(&self.path) {
            Some((prefix, name)) => {
                put(&mut block[..100], name);
                put(&mut block[345..500], prefix);
            }
            None => {
                put(&mut block[..100], &self.path);
                records.insert(b"path".to_vec(), self.path.clone());
            }
        }
        if self.link.len() > 100 || !self.link.is_ascii() {
            records.insert(b"linkpath".to_vec(), self.link.clone());
        }
        put(&mut block[157..257], &self.link);
        octal(&mut block[100..108], self.mode.into());
        let mut fitting = |key: &str, field: &mut [u8], value: u64, largest: u64| {
            let fits = value <= largest;
            if !fits {
                records.insert(key.into(), value.to_string().into_bytes());
            }
            octal(field, if fits { value } else { 0 });
        };
        fitting("uid", &mut block[108..116], self.uid.into(), MAX_7);
        fitting("gid", &mut block[116..124], self.gid.into(), MAX_7);
        fitting("size", &mut block[124..136], self.size, MAX_11);
        let seconds = u64::try_from(self.seconds).ok().filter(|seconds| *seconds <= MAX_11);
        if seconds.is_none() || self.nanoseconds != 0 {
            records.insert(b"mtime".to_vec(), time(self.seconds, self.nanoseconds).into_bytes());
        }
        octal(&mut block[136..148], seconds.unwrap_or(0));
        block[156] = self.flag;
        block[257..265].copy_from_slice(b"ustar\x0000");
        octal(&mut block[329..337], self.device.0.into());
        octal(&mut block[337..345], self.device.1.into());
        for (name, value) in &self.xattrs {
            records.insert([b"SCHILY.xattr.", name.as_slice()].concat(), value.clone());
        }
        block[148..156].fill(b' ');
        let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
        octal(&mut block[148..155], sum);
        block
    }
}

/// Fills the last block of an entry's data.
pub(super) fn write_padding(output: &mut impl Write, size: u64) -> io::Result<()> {
    let missing = usize::try_from(size.wrapping_neg() % BLOCK as u64).unwrap_or(0);
    output.write_all(&[0; BLOCK][..missing])
}

/// Ends the archive.
pub(super) fn write_end(output: &mut impl Write) -> io::Result<()> {
    output.write_all(&[0; 2 * BLOCK])
}

/// Prefix and name as ustar holds them; `None` if they do not fit or are not plain ASCII.
fn split_path(path: &[u8]) -> Option<(&[u8], &[u8])> {
    if !path.is_ascii() {
        return None;
    }
    if path.len() <= 100 {
        return Some((b"", path));
    }
    // The slash between them is dropped; the one that ends a directory's name is not it.
    let last = path.len().min(156).min(path.len() - 1);
    let slash = path[..last].iter().rposition(|byte| *byte == b'/').filter(|slash| *slash > 0)?;
    let name = &path[slash + 1..];
    (name.len() <= 100).then_some((&path[..slash], name))
}

/// The name of a pax header, for readers that know none and unpack it as a file.
fn pax_name(path: &[u8]) -> Vec<u8> {
    let path = path.strip_suffix(b"/").unwrap_or(path);
    let base = path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
    let ascii = base.iter().copied().filter(u8::is_ascii).take(80);
    b"PaxHeaders.0/".iter().copied().chain(ascii).collect()
}

/// `length key=value\n`, where the length counts its own digits.
fn record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    [length.to_string().as_bytes(), b" ", key, b"=", value, b"\n"].concat()
}

fn time(seconds: i64, nanoseconds: u32) -> String {
    if nanoseconds == 0 {
        return seconds.to_string();
    }
    // -2 s and 750,000,000 ns are -1.25.
    let (sign, whole, fraction) = if seconds < 0 {
        ("-", (seconds + 1).unsigned_abs(), 1_000_000_000 - nanoseconds)
    } else {
        ("", seconds.unsigned_abs(), nanoseconds)
    };
    let text = format!("{sign}{whole}.{fraction:09}");
    text.trim_end_matches('0').to_owned()
}

fn put(field: &mut [u8], bytes: &[u8]) {
    let length = bytes.len().min(field.len());
    field[..length].copy_from_slice(&bytes[..length]);
}

/// Zero-padded octal digits and a NUL.
fn octal(field: &mut [u8], mut value: u64) {
    let (last, digits) = match field.split_last_mut() {
        Some(parts) => parts,
        None => return,
    };
    *last = 0;
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + u8::try_from(value & 7).unwrap_or(0);
        value >>= 3;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_count_their_own_length() {
        assert_eq!(record(b"path", b"a b"), b"12 path=a b\n");
        let long = record(b"k", &[b'v'; 93]);
        assert_eq!(&long[..4], b"99 k");
        assert_eq!(long.len(), 99);
        let longer = record(b"k", &[b'v'; 94]);
        assert_eq!((&longer[..4], longer.len()), (&b"101 "[..], 101));
    }

    #[track_caller]
    fn check_split(path: &str, expected: Option<(&str, &str)>) {
        let expected = expected.map(|(prefix, name)| (prefix.as_bytes(), name.as_bytes()));
        assert_eq!(split_path(path.as_bytes()), expected, "{path}");
    }

    #[test]
    fn long_paths_are_split_at_a_slash() {
        let (hundred, name) = ("d".repeat(100), "n".repeat(100));
        check_split("etc/", Some(("", "etc/")));
        check_split(&format!("{hundred}/{name}"), Some((&hundred, &name)));
        check_split(&format!("{hundred}/"), None);
        check_split(&"x".repeat(101), None);
        check_split(&format!("{}/{name}", "d".repeat(156)), None);
        check_split("ä", None);
    }

    #[test]
    fn times() {
        assert_eq!(time(-2, 750_000_000), "-1.25");
        assert_eq!(time(-1, 750_000_000), "-0.25");
        assert_eq!(time(7, 1), "7.000000001");
        assert_eq!(time(7, 0), "7");
    }
}
