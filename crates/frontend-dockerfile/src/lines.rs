//! Physical lines to logical lines.
//!
//! Owns continuations, the comments and empty lines inside them, the byte-order mark, line ends,
//! parser directives and the extent of heredoc bodies; and it remembers where in the file each byte
//! of a joined line stands. Must not know instructions. Start with [`LineReader`].

use std::ops::Range;

use crate::{
    ast::{Directive, DirectiveKind},
    grammar::{self, LineText},
    source::{Lines, Span},
};

/// What a Dockerfile escapes with unless a directive says otherwise.
const DEFAULT_ESCAPE: char = '\\';

/// Longer lines are refused, as the reference's reader refuses them.
const MAX_LINE_LENGTH: usize = 64 * 1024 - 1;

/// A line of the file: its place and its number.
#[derive(Clone, Copy, Debug)]
struct PhysicalLine {
    /// The line with its line end.
    full: Span,
    /// The line without its line end.
    content: Span,
}

/// One instruction's line, continuations joined.
#[derive(Clone, Debug)]
pub(crate) struct LogicalLine {
    pub(crate) line: LineText,
    /// Offset in `line` and offset in the file, ascending; each holds up to the next.
    map: Vec<(usize, usize)>,
    pub(crate) lines: Lines,
    pub(crate) span: Span,
    pub(crate) comments: Vec<String>,
    /// The last physical line, where an empty line stood inside the continuation.
    pub(crate) empty_continuation: Option<Span>,
}

/// A heredoc's body as it stands in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HeredocBody {
    pub(crate) content: String,
    pub(crate) span: Span,
    /// The line of the terminator.
    pub(crate) last_line: u32,
    /// The end of the terminator.
    pub(crate) end: usize,
}

/// What is wrong with the file before any instruction is read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum LineError {
    #[error("only one {0} parser directive can be used")]
    Repeated(String),
    #[error("invalid escape token '{0}' does not match ` or \\")]
    Escape(String),
    #[error("dockerfile line greater than max allowed size of {MAX_LINE_LENGTH}")]
    LongLine,
}

/// Hands out logical lines and heredoc bodies in order.
#[derive(Debug)]
pub(crate) struct LineReader<'a> {
    text: &'a str,
    lines: Vec<PhysicalLine>,
    next: usize,
    escape: char,
    directives: Vec<Directive>,
    errors: Vec<(LineError, Span)>,
    comments: Vec<String>,
}

impl<'a> LineReader<'a> {
    pub(crate) fn new(text: &'a str) -> Self {
        Self::of_main(text, Span::new(0, text.len()))
    }

    /// A reader of a part of the text that obeys no directives of its own.
    pub(crate) fn of_part(text: &'a str, part: Span, escape: char) -> Self {
        let mut reader = Self::over(text, part, escape);
        reader.refuse_long_lines();
        reader
    }

    /// A reader of the part that obeys its directives.
    pub(crate) fn of_main(text: &'a str, part: Span) -> Self {
        let mut reader = Self::over(text, part, DEFAULT_ESCAPE);
        reader.read_directives();
        reader.refuse_long_lines();
        reader
    }

    fn over(text: &'a str, part: Span, escape: char) -> Self {
        LineReader {
            text,
            lines: split(text, part),
            next: 0,
            escape,
            directives: Vec::new(),
            errors: Vec::new(),
            comments: Vec::new(),
        }
    }

    pub(crate) fn escape(&self) -> char {
        self.escape
    }

    pub(crate) fn take_directives(&mut self) -> (Vec<Directive>, Vec<(LineError, Span)>) {
        (std::mem::take(&mut self.directives), std::mem::take(&mut self.errors))
    }

    fn content(&self, line: PhysicalLine) -> &'a str {
        &self.text[Range::from(line.content)]
    }

    /// Directives stand before anything else, comments included; a first line `#!` is passed over,
    /// and behind one an escape directive is only a comment.
    fn read_directives(&mut self) {
        let shebang = self.lines.first().is_some_and(|&line| self.content(line).starts_with("#!"));
        let (mut seen, mut is_flush) = (Vec::new(), true);
        for index in usize::from(shebang)..self.lines.len() {
            let line = self.lines[index];
            is_flush &= self.content(line).starts_with('#');
            let Some(comment) = self.content(line).trim_start().strip_prefix('#') else { return };
            let Some((name, value)) = grammar::directive(comment.trim_start()) else { return };
            let name = name.to_ascii_lowercase();
            let kind = match name.as_str() {
                "syntax" => DirectiveKind::Syntax,
                "escape" => DirectiveKind::Escape,
                "check" => DirectiveKind::Check,
                _ => return,
            };
            if seen.contains(&kind) && shebang {
                // None of these are the parser's, and whoever looks for them stops here.
                return;
            }
            if seen.contains(&kind) {
                self.errors.push((LineError::Repeated(name), line.content));
                continue;
            }
            seen.push(kind);
            self.next = if shebang { 0 } else { index + 1 };
            // Those that are not the parser's own count only at the beginning of a line.
            if kind != DirectiveKind::Escape && !is_flush {
                continue;
            }
            if kind == DirectiveKind::Escape && !shebang {
                match value {
                    "\\" => self.escape = '\\',
                    "`" => self.escape = '`',
                    _ => self.errors.push((LineError::Escape(value.to_owned()), line.content)),
                }
            }
            self.directives.push(Directive { kind, value: value.to_owned(), span: line.content });
        }
    }

    fn refuse_long_lines(&mut self) {
        let long = self.lines.iter().find(|line| line.content.len() > MAX_LINE_LENGTH);
        self.errors.extend(
            long.map(|line| (LineError::LongLine, Span::new(line.content.start, line.content.start))),
        );
    }

    /// The next line that holds an instruction.
    pub(crate) fn next_line(&mut self) -> Option<LogicalLine> {
        loop {
            let first = *self.lines.get(self.next)?;
            self.next += 1;
            let content = self.content(first);
            if is_comment(content) {
                self.comment(content);
                continue;
            }
            let indent = content.len() - content.trim_start().len();
            let start = first.content.start + indent;
            let (kept, continued) = self.cut_continuation(&content[indent..]);
            if kept.is_empty() && !continued {
                continue;
            }
            return Some(self.join(Span::new(start, start + kept.len()), continued));
        }
    }

    fn comment(&mut self, content: &str) {
        let mut letters = content.chars();
        letters.next();
        match letters.as_str().trim() {
            "" => self.comments.clear(),
            comment => self.comments.push(comment.to_owned()),
        }
    }

    fn join(&mut self, first: Span, mut continued: bool) -> LogicalLine {
        let first_line = self.line_number();
        let mut text = self.text[Range::from(first)].to_owned();
        let mut map = vec![(0, first.start)];
        let mut empty = false;
        let mut end = first.end;
        while continued {
            let Some(&line) = self.lines.get(self.next) else { break };
            self.next += 1;
            let content = self.content(line);
            if is_comment(content) {
                continue;
            }
            if content.trim_start().is_empty() {
                empty = true;
                continue;
            }
            let (kept, more) = self.cut_continuation(content);
            map.push((text.len(), line.content.start));
            text.push_str(kept);
            end = line.content.start + kept.len();
            continued = more;
        }
        let last = self.lines[self.next - 1];
        LogicalLine {
            line: LineText::new(text, self.escape),
            map,
            lines: Lines { first: first_line, last: self.line_number() },
            span: Span::new(first.start, end.max(first.start)),
            comments: std::mem::take(&mut self.comments),
            empty_continuation: empty.then_some(last.content),
        }
    }

    /// The number of the line read last.
    fn line_number(&self) -> u32 {
        u32::try_from(self.next).unwrap_or(u32::MAX)
    }

    /// Cuts the escape character that ends a line, and the blanks behind it, unless it is itself escaped.
    fn cut_continuation<'t>(&self, line: &'t str) -> (&'t str, bool) {
        let trimmed = line.trim_end_matches([' ', '\t']);
        match trimmed.strip_suffix(self.escape) {
            Some(rest) if !rest.ends_with(self.escape) => (rest, true),
            _ => (line, false),
        }
    }

    /// The body of a heredoc that starts on the next line; `None` if its terminator never comes.
    pub(crate) fn heredoc(&mut self, terminator: &str, strip_tabs: bool) -> Option<HeredocBody> {
        let begin = self.next;
        for index in begin..self.lines.len() {
            let line = self.lines[index];
            let content = self.content(line);
            let candidate = if strip_tabs { content.trim_start_matches('\t') } else { content };
            if candidate != terminator {
                continue;
            }
            self.next = index + 1;
            let span = Span::new(self.lines[begin].full.start, line.full.start);
            return Some(HeredocBody {
                content: self.text[Range::from(span)].to_owned(),
                span,
                last_line: self.line_number(),
                end: line.content.end,
            });
        }
        self.next = self.lines.len();
        None
    }
}

impl LogicalLine {
    /// Where a range of the joined line stands in the file; comments in between are covered.
    pub(crate) fn source_span(&self, range: Range<usize>) -> Span {
        let place = |offset: usize| {
            let index = self.map.partition_point(|&(joined, _)| joined <= offset).saturating_sub(1);
            let (joined, source) = self.map.get(index).copied().unwrap_or_default();
            source + (offset - joined.min(offset))
        };
        let start = place(range.start);
        if range.is_empty() {
            return Span::new(start, start);
        }
        // The end is the byte behind the last one: the next piece may begin on another line.
        Span::new(start, place(range.end - 1) + 1)
    }
}

fn is_comment(line: &str) -> bool {
    line.trim_start().starts_with('#')
}

fn split(text: &str, part: Span) -> Vec<PhysicalLine> {
    let text = &text[Range::from(part)];
    let bom = if text.starts_with('\u{feff}') { '\u{feff}'.len_utf8() } else { 0 };
    let mut start = part.start + bom;
    let mut lines = Vec::new();
    for line in text[bom..].split_inclusive('\n') {
        let content = line.trim_end_matches(['\r', '\n']);
        lines.push(PhysicalLine {
            full: Span::new(start, start + line.len()),
            content: Span::new(start, start + content.len()),
        });
        start += line.len();
    }
    lines
}

#[cfg(test)]
mod tests;
