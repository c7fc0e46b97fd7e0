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
    /// Places by vertex.
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
