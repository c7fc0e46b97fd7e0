//! The text of a Dockerfile and places in it.
//!
//! Owns byte offsets, spans and their translation to lines and columns. Must not know what the text
//! means. Start with [`Source`] and [`Span`].

use std::ops::Range;

/// A Dockerfile as it was read: its display name and its whole text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// What messages call it, usually the path as the user typed it.
    pub name: String,
    /// The text, with byte-order mark and carriage returns still in it: every [`Span`] counts them.
    /// Included files stand behind the Dockerfile's own text.
    pub text: String,
    /// Names and places of included files, in the order of their places.
    included: Vec<(String, Span)>,
}

/// One of the files that a [`Source`] holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part<'a> {
    /// What messages call it.
    pub name: &'a str,
    /// Its text.
    pub text: &'a str,
    /// Where its text begins in [`Source::text`].
    pub start: usize,
}

/// A byte range of a [`Source`]'s text; both ends lie on character boundaries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span {
    /// Offset of the first byte.
    pub start: usize,
    /// Offset behind the last byte; never below `start`.
    pub end: usize,
}

/// A place for people: both numbers count from 1, the column in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// Line number, the first line being 1.
    pub line: u32,
    /// Column in characters, the first being 1.
    pub column: u32,
}

/// The lines an instruction stands on, both ends included, counted from 1.
///
/// A heredoc's body and terminator belong to its instruction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lines {
    /// The line with the instruction's keyword.
    pub first: u32,
    /// The last line read for the instruction.
    pub last: u32,
}

impl Source {
    /// A source of this name and text.
    pub fn new(name: impl Into<String>, text: impl Into<String>) -> Self {
        Self { name: name.into(), text: text.into(), included: Vec::new() }
    }

    /// With a file that an `INCLUDE` names, by its path from the Dockerfile's directory.
    #[must_use]
    pub fn with_included(mut self, path: impl Into<String>, text: &str) -> Self {
        // One byte keeps the end of a file apart from the beginning of the next.
        self.text.push('\n');
        let start = self.text.len();
        self.text.push_str(text);
        self.included.push((path.into(), Span::new(start, self.text.len())));
        self
    }

    /// Its files, the Dockerfile itself first.
    pub fn parts(&self) -> impl Iterator<Item = Part<'_>> {
        let main = self.included.first().map_or(self.text.len(), |(_, span)| span.start - 1);
        let main = Part { name: &self.name, text: &self.text[..main], start: 0 };
        std::iter::once(main).chain(self.included.iter().map(|(name, span)| Part {
            name,
            text: &self.text[Range::from(*span)],
            start: span.start,
        }))
    }

    /// The file that `offset` stands in, and how many stand before it.
    pub fn part_at(&self, offset: usize) -> (usize, Part<'_>) {
        let before = self.included.partition_point(|(_, span)| span.start <= offset);
        let main = Part { name: &self.name, text: "", start: 0 };
        self.parts().enumerate().nth(before).unwrap_or((0, main))
    }

    /// The included file of this path.
    pub(crate) fn included(&self, path: &str) -> Option<Span> {
        self.included.iter().find(|(name, _)| name == path).map(|(_, span)| *span)
    }

    /// Where `offset` stands in its file; offsets past the end stand at the end.
    pub fn position(&self, offset: usize) -> Position {
        let mut offset = offset.min(self.text.len());
        while !self.text.is_char_boundary(offset) {
            offset -= 1;
        }
        let (_, part) = self.part_at(offset);
        let before = &self.text[part.start..offset];
        let line = before.bytes().filter(|&byte| byte == b'\n').count();
        let start = before.rfind('\n').map_or(0, |at| at + 1);
        Position { line: to_u32(line + 1), column: to_u32(before[start..].chars().count() + 1) }
    }

    /// The bytes of the Dockerfile's own line `line` (counted from 1) without its line end; `None` past
    /// the last line.
    pub fn line_span(&self, line: u32) -> Option<Span> {
        let mut start = 0;
        for _ in 1..line {
            start += self.text[start..].find('\n')? + 1;
        }
        let rest = &self.text[start..];
        let length = rest.find('\n').unwrap_or(rest.len());
        let length = rest[..length].trim_end_matches('\r').len();
        Some(Span::new(start, start + length))
    }

    /// The text under `span`, empty where the span is not of this source.
    pub fn slice(&self, span: Span) -> &str {
        self.text.get(Range::from(span)).unwrap_or_default()
    }
}

impl Span {
    /// The span from `start` up to and without `end`.
    pub fn new(start: usize, end: usize) -> Self {
        Self { start, end: end.max(start) }
    }

    /// The smallest span holding both.
    pub fn join(self, other: Self) -> Self {
        Self { start: self.start.min(other.start), end: self.end.max(other.end) }
    }

    /// Its length in bytes.
    pub fn len(self) -> usize {
        self.end - self.start
    }

    /// Whether it covers no byte.
    pub fn is_empty(self) -> bool {
        self.end == self.start
    }
}

impl From<Span> for Range<usize> {
    fn from(span: Span) -> Self {
        span.start..span.end
    }
}

impl Lines {
    /// Every line number of the range, ascending.
    pub fn iter(self) -> impl Iterator<Item = u32> {
        self.first..=self.last
    }
}

fn to_u32(value: usize) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_count_lines_and_characters() {
        let source = Source::new("Dockerfile", "FROM ä\r\nRUN x\n");
        for (offset, line, column) in [(0, 1, 1), (5, 1, 6), (7, 1, 7), (9, 2, 1), (13, 2, 5), (99, 3, 1)] {
            assert_eq!(source.position(offset), Position { line, column }, "offset {offset}");
        }
        assert_eq!(source.position(6), Position { line: 1, column: 6 }, "inside a character");
    }

    #[test]
    fn included_files_count_their_own_lines() {
        let source = Source::new("Dockerfile", "A\nB").with_included("x", "C\nD\n").with_included("y", "E");
        let place = |text: &str| {
            let offset = source.text.find(text).expect("is there");
            let (at, part) = source.part_at(offset);
            (at, part.name.to_owned(), source.position(offset).line)
        };
        assert_eq!(place("B"), (0, "Dockerfile".to_owned(), 2));
        assert_eq!(place("C"), (1, "x".to_owned(), 1));
        assert_eq!(place("D"), (1, "x".to_owned(), 2));
        assert_eq!(place("E"), (2, "y".to_owned(), 1));
        let texts: Vec<_> = source.parts().map(|part| part.text.to_owned()).collect();
        assert_eq!(texts, ["A\nB", "C\nD\n", "E"]);
    }

    #[test]
    fn line_spans_leave_line_ends_out() {
        let source = Source::new("Dockerfile", "FROM a\r\nRUN x\n");
        assert_eq!(source.line_span(1).map(|span| source.slice(span)), Some("FROM a"));
        assert_eq!(source.line_span(2).map(|span| source.slice(span)), Some("RUN x"));
        assert_eq!(source.line_span(4), None);
    }
}
