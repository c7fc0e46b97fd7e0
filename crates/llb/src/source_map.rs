//! Which lines of which file a vertex comes from.
//!
//! Owns the table of files and ranges. Must not know what language the files are in. Start with
//! [`SourceMap`].

use std::collections::BTreeMap;

use stave_oci::Digest;

/// Files, and where in them each vertex comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceMap {
    /// The files.
    pub infos: Vec<SourceInfo>,
    /// Places by vertex, for those that have any: as a message an empty list is left out of the map's entry, and Go's
    /// clients die of that.
    pub locations: BTreeMap<Digest, Vec<SourceLocation>>,
}

/// A file vertices come from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceInfo {
    /// Its name, for messages.
    pub filename: String,
    /// Its content.
    pub data: Vec<u8>,
    /// Its language, such as `Dockerfile`.
    pub language: String,
    /// The graph that it comes from, as a `pb.Definition`; empty where nobody says.
    pub origin: Vec<u8>,
}

/// A place in a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceLocation {
    /// The index into [`SourceMap::infos`].
    pub source: usize,
    /// The ranges, in order.
    pub ranges: Vec<SourceRange>,
}

/// A range of lines, both ends included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SourceRange {
    /// Its start.
    pub start: Position,
    /// Its end.
    pub end: Position,
}

/// A place in a text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// The line, from 1.
    pub line: i32,
    /// The column, from 0.
    pub character: i32,
}

impl SourceMap {
    /// Takes up another's files and places; what both have is there once.
    pub(crate) fn extend(&mut self, other: &Self) {
        let mut positions = Vec::with_capacity(other.infos.len());
        for info in &other.infos {
            let known = self.infos.iter().position(|known| known == info);
            positions.push(known.unwrap_or_else(|| {
                self.infos.push(info.clone());
                self.infos.len() - 1
            }));
        }
        for (vertex, places) in &other.locations {
            let known = self.locations.entry(vertex.clone()).or_default();
            for place in places {
                let Some(&source) = positions.get(place.source) else { continue };
                let place = SourceLocation { source, ranges: place.ranges.clone() };
                if !known.contains(&place) {
                    known.push(place);
                }
            }
        }
    }
}
