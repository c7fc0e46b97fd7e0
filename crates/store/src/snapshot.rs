//! A snapshot is a value: the layers of a file system, bottom first.
//!
//! Owns [`Snapshot`] and its text form. Knows no files: whether the layers still exist is a question
//! for the store.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// One overlay-format diff directory. Never reused for another content, even after a power cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LayerId(pub(crate) i64);

impl fmt::Display for LayerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Layers, bottom first; none is the empty file system (`FROM scratch`).
///
/// Its text form (`12,13,14`, or nothing for scratch) goes into cache records: changing it is a
/// format break.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Snapshot {
    layers: Vec<LayerId>,
}

/// Text that is not a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid snapshot `{text}`: expected layer numbers with commas between them")]
pub struct SnapshotError {
    text: String,
}

impl Snapshot {
    /// The empty file system.
    pub fn scratch() -> Self {
        Self::default()
    }

    /// A snapshot of `layers`, bottom first.
    pub fn new(layers: Vec<LayerId>) -> Self {
        Self { layers }
    }

    /// The layers, bottom first.
    pub fn layers(&self) -> &[LayerId] {
        &self.layers
    }

    /// The topmost layer; `None` for scratch.
    pub fn top(&self) -> Option<LayerId> {
        self.layers.last().copied()
    }

    /// Whether there is no layer at all.
    pub fn is_scratch(&self) -> bool {
        self.layers.is_empty()
    }

    /// This snapshot with `layer` on top.
    #[must_use]
    pub fn push(&self, layer: LayerId) -> Self {
        let mut layers = Vec::with_capacity(self.layers.len() + 1);
        layers.extend_from_slice(&self.layers);
        layers.push(layer);
        Self { layers }
    }

    /// What lies on `base`, bottom first, if this snapshot is built on it.
    pub fn above(&self, base: &Self) -> Option<&[LayerId]> {
        self.layers.strip_prefix(base.layers.as_slice())
    }
}

impl fmt::Display for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, layer) in self.layers.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(f, "{comma}{layer}")?;
        }
        Ok(())
    }
}

impl FromStr for Snapshot {
    type Err = SnapshotError;

    fn from_str(text: &str) -> Result<Self, SnapshotError> {
        if text.is_empty() {
            return Ok(Self::scratch());
        }
        let layer = |part: &str| {
            let canonical = part.bytes().all(|byte| byte.is_ascii_digit());
            part.parse().ok().filter(|_| canonical).map(LayerId)
        };
        let layers = text.split(',').map(layer).collect::<Option<Vec<_>>>();
        let clip = || SnapshotError { text: text.chars().take(80).collect() };
        layers.map(Self::new).ok_or_else(clip)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_form_round_trips() {
        let [base, top] = [LayerId(12), LayerId(13)];
        let snapshot = Snapshot::scratch().push(base).push(top);
        assert_eq!(snapshot.to_string(), "12,13");
        assert_eq!("12,13".parse(), Ok(snapshot.clone()));
        assert_eq!("".parse(), Ok(Snapshot::scratch()));
        assert_eq!(snapshot.above(&Snapshot::new(vec![base])), Some(&[top][..]));
        assert_eq!(snapshot.above(&Snapshot::new(vec![top])), None);
        for bad in [",", "1,", "a", "+1", "-1", "1 ,2", "99999999999999999999"] {
            assert!(bad.parse::<Snapshot>().is_err(), "{bad}");
        }
    }
}
