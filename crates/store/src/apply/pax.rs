//! Pax extended headers: `length key=value\n` records. Start with [`parse`].

use crate::LayerErrorKind;

/// What extended headers say about the entry after them.
#[derive(Debug, Default)]
pub(super) struct Extensions {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) real_size: Option<u64>,
    pub(super) uid: Option<u64>,
    pub(super) gid: Option<u64>,
    pub(super) mtime: Option<(i64, u32)>,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(super) sparse: Option<SparseMap>,
}

/// Where the map of a sparse file is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum SparseMap {
    /// In the extended header (forms 0.0 and 0.1): offsets and lengths in turn.
    Here(Vec<u64>),
    /// In front of the data (form 1.0).
    InData,
}

/// Reads all records of one extended header.
pub(super) fn parse(mut bytes: &[u8], into: &mut Extensions) -> Result<(), LayerErrorKind> {
    const BAD: LayerErrorKind = LayerErrorKind::Header("pax record");
    while !bytes.is_empty() {
        let space = bytes.iter().position(|byte| *byte == b' ').ok_or(BAD)?;
        let length = usize::try_from(decimal(&bytes[..space])?).map_err(|_| BAD)?;
        let record = bytes.get(space + 1..length).ok_or(BAD)?;
        let record = record.strip_suffix(b"\n").ok_or(BAD)?;
        let equals = record.iter().position(|byte| *byte == b'=').ok_or(BAD)?;
        apply(&record[..equals], &record[equals + 1..], into)?;
        bytes = &bytes[length..];
    }
    Ok(())
}

fn apply(key: &[u8], value: &[u8], into: &mut Extensions) -> Result<(), LayerErrorKind> {
    if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
        into.xattrs.push((name.to_vec(), value.to_vec()));
        return Ok(());
    }
    match key {
        // An empty value takes the record back.
        _ if value.is_empty() => {}
        // The name of a sparse file's plain entry is made up.
        b"path" if into.sparse.is_some() && into.path.is_some() => {}
        b"path" | b"GNU.sparse.name" => into.path = Some(checked(value)?),
        b"linkpath" => into.link = Some(checked(value)?),
        b"size" => into.size = Some(decimal(value)?),
        b"uid" => into.uid = Some(decimal(value)?),
        b"gid" => into.gid = Some(decimal(value)?),
        b"mtime" => into.mtime = Some(time(value)?),
        b"GNU.sparse.size" | b"GNU.sparse.realsize" => into.real_size = Some(decimal(value)?),
        b"GNU.sparse.major" if value == b"1" => into.sparse = Some(SparseMap::InData),
        b"GNU.sparse.map" => {
            let numbers = value.split(|byte| *byte == b',').map(decimal).collect::<Result<_, _>>()?;
            into.sparse = Some(SparseMap::Here(numbers));
        }
        b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => {
            let number = decimal(value)?;
            match &mut into.sparse {
                Some(SparseMap::Here(numbers)) => numbers.push(number),
                _ => into.sparse = Some(SparseMap::Here(vec![number])),
            }
        }
        _ => {}
    }
    Ok(())
}

/// A NUL would cut the name short at the kernel's border: what was checked must be what is used.
fn checked(value: &[u8]) -> Result<Vec<u8>, LayerErrorKind> {
    if value.contains(&0) { Err(LayerErrorKind::Header("NUL in a name")) } else { Ok(value.to_vec()) }
}

/// A decimal number without sign.
pub(super) fn decimal(text: &[u8]) -> Result<u64, LayerErrorKind> {
    let parsed = std::str::from_utf8(text).ok().filter(|text| !text.starts_with('+'));
    parsed.and_then(|text| text.parse().ok()).ok_or(LayerErrorKind::Header("decimal number"))
}

/// `-1.25` is a second and a quarter before the epoch: (-2 s, 750,000,000 ns).
fn time(value: &[u8]) -> Result<(i64, u32), LayerErrorKind> {
    const BAD: LayerErrorKind = LayerErrorKind::Header("time");
    let text = std::str::from_utf8(value).map_err(|_| BAD)?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().map_err(|_| BAD)?;
    let mut nanoseconds = 0u32;
    for index in 0..9 {
        let digit = match fraction.as_bytes().get(index) {
            Some(digit @ b'0'..=b'9') => u32::from(digit - b'0'),
            Some(_) => return Err(BAD),
            None => 0,
        };
        nanoseconds = nanoseconds * 10 + digit;
    }
    if whole.starts_with('-') && nanoseconds > 0 {
        return Ok((seconds.checked_sub(1).ok_or(BAD)?, 1_000_000_000 - nanoseconds));
    }
    Ok((seconds, nanoseconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_time(text: &str, expected: Option<(i64, u32)>) {
        assert_eq!(time(text.as_bytes()).ok(), expected, "{text}");
    }

    #[test]
    fn times() {
        check_time("1.5", Some((1, 500_000_000)));
        check_time("-1.25", Some((-2, 750_000_000)));
        check_time("-0.25", Some((-1, 750_000_000)));
        check_time("7", Some((7, 0)));
        check_time("7.1234567899", Some((7, 123_456_789)));
        check_time("x", None);
        check_time("1.x", None);
    }

    #[test]
    fn damaged_records_are_refused() {
        for bad in ["5", "99 a=b\n", "6 a=b", "5 ab\n", "0 ", "x a=b\n", "18446744073709551615 a=b\n"] {
            assert!(parse(bad.as_bytes(), &mut Extensions::default()).is_err(), "{bad:?}");
        }
        let mut found = Extensions::default();
        parse(b"12 path=a b\n29 SCHILY.xattr.user.x=a=\n\x00b\n", &mut found).expect("two good records");
        assert_eq!(found.path.as_deref(), Some(&b"a b"[..]));
        assert_eq!(found.xattrs, vec![(b"user.x".to_vec(), b"a=\n\0b".to_vec())]);
        assert!(parse(b"11 path=a\0\n", &mut Extensions::default()).is_err(), "a NUL in a name");
    }
}
