//! Sizes as buildkitd's configuration file has them: a number of bytes, a text such as `10GB`, or `20%` of the disk.
//! Start with [`Size`].

use std::fmt;

use serde::Deserialize;

/// A size.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum Size {
    /// Bytes.
    Bytes(u64),
    /// With a unit.
    Text(String),
}

/// Units and what they count. As in docker, `KB` and `k` are powers of 1000 on the wire of TOML and `KiB` of 1024.
const UNITS: [(&str, u64); 13] = [
    ("kib", 1 << 10),
    ("mib", 1 << 20),
    ("gib", 1 << 30),
    ("tib", 1 << 40),
    ("kb", 1_000),
    ("mb", 1_000_000),
    ("gb", 1_000_000_000),
    ("tb", 1_000_000_000_000),
    ("k", 1_000),
    ("m", 1_000_000),
    ("g", 1_000_000_000),
    ("t", 1_000_000_000_000),
    ("b", 1),
];

impl Size {
    /// The size in bytes, of a disk of so many; `None` for a text that is no size.
    pub fn bytes(&self, disk: u64) -> Option<u64> {
        let text = match self {
            Self::Bytes(bytes) => return Some(*bytes),
            Self::Text(text) => text.trim().to_ascii_lowercase(),
        };
        if let Some(percent) = text.strip_suffix('%') {
            let percent: u64 = percent.trim().parse().ok().filter(|percent| *percent <= 100)?;
            return Some(disk / 100 * percent);
        }
        let unit = UNITS.iter().find_map(|(name, count)| Some((text.strip_suffix(name)?, *count)));
        let (number, unit) = unit.unwrap_or((text.as_str(), 1));
        let number: f64 = number.trim().parse().ok()?;
        let bytes = number * unit as f64;
        // Sizes beyond 2^53 are rounded; nobody has such a disk.
        (bytes.is_finite() && bytes >= 0.0 && bytes < u64::MAX as f64).then_some(bytes as u64)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes(bytes) => bytes.fmt(f),
            Self::Text(text) => f.write_str(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Option<u64>) {
        assert_eq!(Size::Text(text.to_owned()).bytes(1000), expected);
    }

    #[test]
    fn sizes() {
        check("10", Some(10));
        check("10GB", Some(10_000_000_000));
        check("1.5 MiB", Some(3 << 19));
        check("512m", Some(512_000_000));
        check("20%", Some(200));
        check("120%", None);
        check("much", None);
        check("-1", None);
        assert_eq!(Size::Bytes(7).bytes(0), Some(7));
    }
}
