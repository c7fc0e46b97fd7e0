//! The encoding of cache keys.
//!
//! Owns the byte form that is hashed: `magic, CACHE_FORMAT, domain, field*`, where a field is
//! `label, type tag, value` and everything of variable length carries its length in front as a 64-bit
//! little-endian number. So no two different lists of fields have the same bytes.
//! Must not know which operation has which fields. Start with [`KeyBuilder`].

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::preimage::{Field, FieldValue};

/// The version of the key rules, hashed into every key. Changing the encoding, or any rule of what a
/// key contains, is a format break and needs another number; old records are then never found again.
pub const CACHE_FORMAT: u32 = 1;

const MAGIC: &[u8] = b"stave cache key";

/// A text that is not 64 lower-case hex digits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid key `{text}`: expected 64 lower-case hex digits")]
pub struct IdError {
    text: String,
}

macro_rules! hash_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name([u8; 32]);

        impl $name {
            /// Wraps a blake3 hash made elsewhere.
            pub const fn from_bytes(bytes: [u8; 32]) -> Self {
                Self(bytes)
            }

            /// The raw hash.
            pub const fn as_bytes(&self) -> &[u8; 32] {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&blake3::Hash::from_bytes(self.0).to_hex())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), &blake3::Hash::from_bytes(self.0).to_hex()[..12])
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                let is_lower_hex =
                    text.len() == 64 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
                match blake3::Hash::from_hex(text) {
                    Ok(hash) if is_lower_hex => Ok(Self(*hash.as_bytes())),
                    _ => Err(IdError { text: text.chars().take(80).collect() }),
                }
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

hash_type! {
    /// What a result is found by.
    CacheKey
}

hash_type! {
    /// The blake3 hash of file content as some selector sees it; how it is made is the worker's affair.
    ContentDigest
}

impl ContentDigest {
    /// The digest of plain bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }
}

/// A finished hash over fields, with the fields themselves for a later explanation.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyPart {
    hash: [u8; 32],
    fields: Vec<Field>,
}

impl KeyPart {
    /// The hash as a key.
    pub fn key(&self) -> CacheKey {
        CacheKey(self.hash)
    }

    /// The fields, in the order they were added.
    pub fn fields(&self) -> &[Field] {
        &self.fields
    }

    /// The hash as a key, and the fields.
    pub fn into_parts(self) -> (CacheKey, Vec<Field>) {
        (CacheKey(self.hash), self.fields)
    }
}

impl fmt::Debug for KeyPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyPart").field("key", &self.key()).field("fields", &self.fields).finish()
    }
}

/// One byte in front of each value, so that a number never equals a text.
#[derive(Debug, Clone, Copy)]
enum Tag {
    Absent = 0,
    Text = 1,
    Bytes = 2,
    Number = 3,
    Signed = 4,
    Flag = 5,
    List = 6,
    Map = 7,
    Hash = 8,
    Group = 9,
    Groups = 10,
}

/// Collects typed, labelled fields into a key.
///
/// Order matters: callers add fields in a fixed order and sort what has none.
#[derive(Debug, Clone)]
pub struct KeyBuilder {
    hasher: blake3::Hasher,
    fields: Vec<Field>,
}

impl KeyBuilder {
    /// Starts a key of one domain, such as `op.exec`; keys of different domains never collide.
    pub fn new(domain: &'static str) -> Self {
        let mut builder = Self { hasher: blake3::Hasher::new(), fields: Vec::new() };
        builder.hasher.update(MAGIC);
        builder.hasher.update(&CACHE_FORMAT.to_le_bytes());
        builder.sized(domain.as_bytes());
        builder
    }

    /// Adds a text.
    pub fn text(&mut self, label: &'static str, value: &str) -> &mut Self {
        self.head(label, Tag::Text);
        self.sized(value.as_bytes());
        self.keep(label, FieldValue::text(value))
    }

    /// Adds a text that may be missing; missing differs from empty.
    pub fn optional_text(&mut self, label: &'static str, value: Option<&str>) -> &mut Self {
        match value {
            Some(value) => self.text(label, value),
            None => self.absent(label),
        }
    }

    /// Adds bytes; the preimage keeps only their hash.
    pub fn bytes(&mut self, label: &'static str, value: &[u8]) -> &mut Self {
        self.head(label, Tag::Bytes);
        self.sized(value);
        self.keep(label, FieldValue::Hash(ContentDigest::of(value).to_string()))
    }

    /// Adds an unsigned number.
    pub fn number(&mut self, label: &'static str, value: u64) -> &mut Self {
        self.head(label, Tag::Number);
        self.hasher.update(&value.to_le_bytes());
        self.keep(label, FieldValue::Text(value.to_string()))
    }

    /// Adds a signed number.
    pub fn signed(&mut self, label: &'static str, value: i64) -> &mut Self {
        self.head(label, Tag::Signed);
        self.hasher.update(&value.to_le_bytes());
        self.keep(label, FieldValue::Text(value.to_string()))
    }

    /// Adds an unsigned number that may be missing; missing differs from zero.
    pub fn optional_number(&mut self, label: &'static str, value: Option<u64>) -> &mut Self {
        match value {
            Some(value) => self.number(label, value),
            None => self.absent(label),
        }
    }

    /// Adds a truth value.
    pub fn flag(&mut self, label: &'static str, value: bool) -> &mut Self {
        self.head(label, Tag::Flag);
        self.hasher.update(&[u8::from(value)]);
        self.keep(label, FieldValue::Text(value.to_string()))
    }

    /// Adds texts whose order counts.
    pub fn texts<S: AsRef<str>>(&mut self, label: &'static str, values: &[S]) -> &mut Self {
        self.head(label, Tag::List);
        self.count(values.len());
        for value in values {
            self.sized(value.as_ref().as_bytes());
        }
        self.keep(label, FieldValue::texts(values.iter().map(AsRef::as_ref)))
    }

    /// Adds a sorted map of texts.
    pub fn map(&mut self, label: &'static str, values: &BTreeMap<String, String>) -> &mut Self {
        self.head(label, Tag::Map);
        self.count(values.len());
        for (name, value) in values {
            self.sized(name.as_bytes());
            self.sized(value.as_bytes());
        }
        let shown: Vec<String> = values.iter().map(|(name, value)| format!("{name}={value}")).collect();
        self.keep(label, FieldValue::texts(shown.iter().map(String::as_str)))
    }

    /// Adds another key.
    pub fn key(&mut self, label: &'static str, value: &CacheKey) -> &mut Self {
        self.hash(label, value.as_bytes())
    }

    /// Adds a content digest.
    pub fn content(&mut self, label: &'static str, value: &ContentDigest) -> &mut Self {
        self.hash(label, value.as_bytes())
    }

    /// Adds a finished part: its hash counts, its fields are kept for the explanation.
    pub fn part(&mut self, label: &'static str, value: &KeyPart) -> &mut Self {
        self.head(label, Tag::Group);
        self.hasher.update(&value.hash);
        self.keep(label, FieldValue::Group(value.fields.clone()))
    }

    /// Adds finished parts whose order counts.
    pub fn parts(&mut self, label: &'static str, values: &[KeyPart]) -> &mut Self {
        self.head(label, Tag::Groups);
        self.count(values.len());
        for value in values {
            self.hasher.update(&value.hash);
        }
        self.keep(label, FieldValue::Groups(values.iter().map(|part| part.fields.clone()).collect()))
    }

    /// Says that an optional field has no value.
    pub fn absent(&mut self, label: &'static str) -> &mut Self {
        self.head(label, Tag::Absent);
        self.keep(label, FieldValue::Absent)
    }

    /// Ends the key.
    pub fn finish(&self) -> KeyPart {
        KeyPart { hash: *self.hasher.finalize().as_bytes(), fields: self.fields.clone() }
    }

    fn hash(&mut self, label: &'static str, value: &[u8; 32]) -> &mut Self {
        self.head(label, Tag::Hash);
        self.hasher.update(value);
        self.keep(label, FieldValue::Hash(blake3::Hash::from_bytes(*value).to_hex().to_string()))
    }

    fn head(&mut self, label: &'static str, tag: Tag) {
        self.sized(label.as_bytes());
        self.hasher.update(&[tag as u8]);
    }

    fn sized(&mut self, bytes: &[u8]) {
        self.count(bytes.len());
        self.hasher.update(bytes);
    }

    fn count(&mut self, count: usize) {
        self.hasher.update(&(count as u64).to_le_bytes());
    }

    fn keep(&mut self, label: &'static str, value: FieldValue) -> &mut Self {
        self.fields.push(Field { label: label.to_owned(), value });
        self
    }
}

#[cfg(test)]
mod tests;
