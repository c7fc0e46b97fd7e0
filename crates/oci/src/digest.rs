//! Content digests in the form `algorithm:hex` (OCI image spec, descriptor.md, "Digests").
//!
//! Owns the validated [`Digest`] and the streaming [`Hasher`]. Knows nothing of what is hashed.

use std::fmt;
use std::io::{self, Write};
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256, Sha512};

/// A registered digest algorithm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Algorithm {
    /// SHA-256: what everything we write uses.
    Sha256,
    /// SHA-512: read, verified, never written.
    Sha512,
}

impl Algorithm {
    fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }

    fn hex_length(self) -> usize {
        match self {
            Self::Sha256 => 64,
            Self::Sha512 => 128,
        }
    }
}

/// A string that is not a digest, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DigestError {
    /// No `algorithm:` in front.
    #[error("invalid digest `{0}`: expected the form `sha256:<hex>`")]
    Form(String),
    /// An algorithm that is not implemented.
    #[error("unsupported digest algorithm `{0}`: expected `sha256` or `sha512`")]
    Algorithm(String),
    /// The part after the colon is not lower-case hex of the right length.
    #[error("invalid digest `{0}`: the part after the colon must be {1} lower-case hex digits")]
    Hex(String, usize),
}

/// A content digest.
///
/// Invariant: the text is `algorithm:hex`, with a known algorithm and lower-case hex of its exact
/// length; so it is safe as a file name and in a URL. Copies share the text: graphs and caches hold many.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(Arc<str>);

impl Digest {
    /// The SHA-256 digest of `bytes`.
    pub fn sha256(bytes: &[u8]) -> Self {
        Self::from_sha256(Sha256::digest(bytes).into())
    }

    /// The digest whose raw SHA-256 value is `raw`.
    pub fn from_sha256(raw: [u8; 32]) -> Self {
        Self::of(Algorithm::Sha256, &raw)
    }

    fn of(algorithm: Algorithm, raw: &[u8]) -> Self {
        let name = algorithm.name();
        let mut text = String::with_capacity(name.len() + 1 + 2 * raw.len());
        text.push_str(name);
        text.push(':');
        push_hex(raw, &mut text);
        Self(text.into())
    }

    /// The whole text, `algorithm:hex`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The algorithm before the colon.
    pub fn algorithm(&self) -> Algorithm {
        if self.0.starts_with("sha512") { Algorithm::Sha512 } else { Algorithm::Sha256 }
    }

    /// The hex digits after the colon.
    pub fn hex(&self) -> &str {
        &self.0[7..]
    }

    /// The first twelve hex digits: what people read.
    pub fn short(&self) -> &str {
        &self.hex()[..12]
    }
}

fn push_hex(bytes: &[u8], text: &mut String) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for byte in bytes {
        text.push(char::from(DIGITS[usize::from(byte >> 4)]));
        text.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let (name, digits) = text.split_once(':').ok_or_else(|| DigestError::Form(clip(text)))?;
        let algorithm = match name {
            "sha256" => Algorithm::Sha256,
            "sha512" => Algorithm::Sha512,
            _ => return Err(DigestError::Algorithm(clip(name))),
        };
        let is_hex = digits.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
        if !is_hex || digits.len() != algorithm.hex_length() {
            return Err(DigestError::Hex(clip(text), algorithm.hex_length()));
        }
        Ok(Self(text.into()))
    }
}

/// Error texts quote hostile input: they quote a bounded part of it.
fn clip(text: &str) -> String {
    text.chars().take(160).collect()
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// A streaming hash that ends in a [`Digest`].
#[derive(Debug, Clone)]
pub struct Hasher(State);

#[derive(Debug, Clone)]
enum State {
    Sha256(Sha256),
    Sha512(Sha512),
}

impl Hasher {
    /// A hasher for `algorithm`.
    pub fn new(algorithm: Algorithm) -> Self {
        Self(match algorithm {
            Algorithm::Sha256 => State::Sha256(Sha256::new()),
            Algorithm::Sha512 => State::Sha512(Sha512::new()),
        })
    }

    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.0 {
            State::Sha256(state) => state.update(bytes),
            State::Sha512(state) => state.update(bytes),
        }
    }

    /// The digest of all bytes added.
    pub fn finish(self) -> Digest {
        match self.0 {
            State::Sha256(state) => Digest::of(Algorithm::Sha256, &state.finalize()),
            State::Sha512(state) => Digest::of(Algorithm::Sha512, &state.finalize()),
        }
    }
}

/// Passes bytes on to a writer while hashing and counting them.
#[derive(Debug)]
pub struct Sha256Writer<W> {
    inner: W,
    state: Sha256,
    written: u64,
}

impl<W: Write> Sha256Writer<W> {
    /// Wraps `inner`.
    pub fn new(inner: W) -> Self {
        Self { inner, state: Sha256::new(), written: 0 }
    }

    /// The inner writer, the digest and the number of bytes that went through.
    pub fn finish(self) -> (W, Digest, u64) {
        (self.inner, Digest::from_sha256(self.state.finalize().into()), self.written)
    }
}

impl<W: Write> Write for Sha256Writer<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(bytes)?;
        self.state.update(&bytes[..count]);
        self.written += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// The chain id of a stack of layers, bottom first (OCI image spec, config.md, "Layer ChainID").
/// `None` for no layers.
pub fn chain_id(diff_ids: &[Digest]) -> Option<Digest> {
    let (first, rest) = diff_ids.split_first()?;
    Some(rest.iter().fold(first.clone(), |chain, diff| Digest::sha256(format!("{chain} {diff}").as_bytes())))
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[track_caller]
    fn check(text: &str, expected: Result<&str, &str>) {
        let found = text.parse::<Digest>().map(|d| d.to_string()).map_err(|e| e.to_string());
        assert_eq!(found, expected.map(str::to_owned).map_err(str::to_owned));
    }

    #[test]
    fn parses_only_canonical_digests() {
        check(EMPTY, Ok(EMPTY));
        check("e3b0", Err("invalid digest `e3b0`: expected the form `sha256:<hex>`"));
        check("md5:00", Err("unsupported digest algorithm `md5`: expected `sha256` or `sha512`"));
        let upper = EMPTY.replace('e', "E");
        assert!(upper.parse::<Digest>().is_err());
        check(
            "sha256:../../etc/passwd",
            Err(
                "invalid digest `sha256:../../etc/passwd`: the part after the colon must be 64 lower-case hex digits",
            ),
        );
    }

    #[test]
    fn hashing_in_pieces_equals_hashing_at_once() {
        let mut hasher = Hasher::new(Algorithm::Sha256);
        hasher.update(b"ab");
        hasher.update(b"c");
        assert_eq!(hasher.finish(), Digest::sha256(b"abc"));
        assert_eq!(Digest::sha256(b"").as_str(), EMPTY);
        let mut writer = Sha256Writer::new(Vec::new());
        writer.write_all(b"abc").expect("a vector takes all");
        let (bytes, digest, count) = writer.finish();
        assert_eq!((bytes.as_slice(), digest, count), (&b"abc"[..], Digest::sha256(b"abc"), 3));
        let long = Hasher::new(Algorithm::Sha512).finish();
        assert_eq!((long.algorithm(), long.hex().len()), (Algorithm::Sha512, 128));
    }

    #[test]
    fn chain_ids_follow_the_specification() {
        let [a, b] = [Digest::sha256(b"a"), Digest::sha256(b"b")];
        assert_eq!(chain_id(&[]), None);
        assert_eq!(chain_id(std::slice::from_ref(&a)), Some(a.clone()));
        assert_eq!(chain_id(&[a.clone(), b.clone()]), Some(Digest::sha256(format!("{a} {b}").as_bytes())));
    }
}
