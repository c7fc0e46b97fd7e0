//! Splits a line into what its keyword demands: words, one text, a JSON array or pairs.
//!
//! Owns which form each instruction's arguments have, and the complaints about text that does not
//! split. Must not know what the words mean. Start with [`split`].

use std::ops::Range;

use crate::{
    ast::{Pair, Word},
    diagnostic::{Code, Diagnostic},
    dialect::Dialect,
    grammar::{LineParts, Piece},
    lines::LogicalLine,
    quote::quote,
    source::Span,
};

use super::healthcheck;

/// An instruction's arguments, split as its kind demands.
#[derive(Debug)]
pub(super) enum Arguments {
    /// Words, or the one text of a shell form; empty where nothing was given.
    Words(Vec<Word>),
    /// A JSON array; every element has the array's place.
    Json(Vec<Word>),
    /// `name=value` pairs.
    Pairs(Vec<Pair>),
    /// The instruction behind `ONBUILD`, split in turn.
    Nested(Box<Split>),
}

/// An instruction whose text splits into what its keyword demands.
#[derive(Debug)]
pub(crate) struct Split {
    pub(super) keyword: Word,
    pub(super) flags: Vec<Word>,
    pub(super) arguments: Arguments,
    /// The place of the arguments, for complaints about all of them.
    pub(super) span: Span,
}

/// Splits the line.
///
/// # Errors
/// With a [`Code::Syntax`] diagnostic where the arguments do not split.
pub(crate) fn split(line: &LogicalLine, dialect: Dialect) -> Result<Split, Diagnostic> {
    let no_keyword = || {
        let code = Code::Instruction { line: line.lines.first };
        Diagnostic::error(code, line.span, "unknown instruction: ")
            .with_help("a lone continuation is no instruction")
    };
    let parts = line.line.parts().ok_or_else(no_keyword)?;
    split_parts(line, parts, dialect, 0)
}

impl Split {
    /// Whether heredocs may follow.
    pub(crate) fn takes_heredocs(&self) -> bool {
        match &self.arguments {
            Arguments::Nested(inner) => inner.takes_heredocs(),
            Arguments::Json(_) => false,
            _ => ["ADD", "COPY", "RUN"].iter().any(|name| self.keyword.text.eq_ignore_ascii_case(name)),
        }
    }

    /// The keyword as written.
    pub(crate) fn keyword(&self) -> &Word {
        &self.keyword
    }
}

impl Split {
    /// The words, or none where the arguments are something else.
    pub(super) fn words(&self) -> &[Word] {
        match &self.arguments {
            Arguments::Words(words) | Arguments::Json(words) => words,
            _ => &[],
        }
    }
}

impl Arguments {
    pub(super) fn into_words(self) -> Vec<Word> {
        match self {
            Self::Words(words) | Self::Json(words) => words,
            _ => Vec::new(),
        }
    }
}

/// How deep `ONBUILD ONBUILD …` is split; chaining is an error anyway.
const MAX_NESTING: usize = 2;

fn split_parts(
    line: &LogicalLine,
    parts: LineParts,
    dialect: Dialect,
    depth: usize,
) -> Result<Split, Diagnostic> {
    let word = |piece: Piece| Word::new(piece.text, line.source_span(piece.range));
    let range = parts.arguments.clone();
    let span = line.source_span(range.clone());
    let items = || Arguments::Words(line.line.items(range.clone()).into_iter().map(word).collect());
    let text = || match range.is_empty() {
        true => Arguments::Words(Vec::new()),
        false => Arguments::Words(vec![word(line.line.slice(range.clone()))]),
    };
    let keyword = word(parts.keyword);
    let arguments = match keyword.text.to_ascii_uppercase().as_str() {
        "ADD" | "COPY" | "VOLUME" => json(line, range.clone())?.map_or_else(items, Arguments::Json),
        "CMD" | "ENTRYPOINT" | "RUN" | "SHELL" => {
            json(line, range.clone())?.map_or_else(text, Arguments::Json)
        }
        "ARG" => Arguments::Words(line.line.words(range.clone()).into_iter().map(word).collect()),
        name @ ("ENV" | "LABEL") => Arguments::Pairs(pairs(line, range.clone(), name, dialect)?),
        "EXPOSE" | "FROM" => items(),
        "INCLUDE" | "UNSET" if dialect == Dialect::Own => items(),
        "MAINTAINER" | "STOPSIGNAL" | "USER" | "WORKDIR" => text(),
        "HEALTHCHECK" => healthcheck::split(line, range.clone())?,
        "ONBUILD" if !range.is_empty() && depth < MAX_NESTING => match line.line.parts_of(range.clone()) {
            Some(parts) => Arguments::Nested(Box::new(split_parts(line, parts, dialect, depth + 1)?)),
            None => Arguments::Words(Vec::new()),
        },
        _ => Arguments::Words(Vec::new()),
    };
    let flags = parts.flags.into_iter().map(word).collect();
    Ok(Split { keyword, flags, arguments, span })
}

fn syntax(span: Span, message: impl Into<String>) -> Diagnostic {
    Diagnostic::error(Code::Syntax, span, message)
}

/// A JSON array of strings; `None` where the text is no JSON array and thus in another form.
pub(super) fn json(line: &LogicalLine, range: Range<usize>) -> Result<Option<Vec<Word>>, Diagnostic> {
    let span = line.source_span(range.clone());
    let text = line.line.text()[range].trim_start();
    if !text.starts_with('[') {
        return Ok(None);
    }
    let Ok(values) = serde_json::from_str::<Vec<serde_json::Value>>(text) else { return Ok(None) };
    let mut words = Vec::with_capacity(values.len());
    for value in values {
        let serde_json::Value::String(text) = value else {
            let message = "when using JSON array syntax, arrays must be comprised of strings only";
            return Err(syntax(span, message).with_help("put every element into double quotes"));
        };
        words.push(Word::new(text, span));
    }
    Ok(Some(words))
}

fn pairs(
    line: &LogicalLine,
    range: Range<usize>,
    name: &str,
    dialect: Dialect,
) -> Result<Vec<Pair>, Diagnostic> {
    let mut words = line.line.words(range.clone());
    if dialect == Dialect::Own && name == "ENV" {
        words = with_commands(line, words);
    }
    let span = line.source_span(range.clone());
    let Some(first) = words.first() else { return Ok(Vec::new()) };
    let word = |piece: Piece| Word::new(piece.text, line.source_span(piece.range));
    if !first.text.contains('=') {
        return match line.line.headed(range) {
            Some((head, Some(body))) => Ok(vec![Pair { name: word(head), value: word(body), legacy: true }]),
            _ => Err(syntax(span, format!("{name} must have two arguments"))
                .with_help(format!("write `{name} {}=value`", first.text))),
        };
    }
    let pair = |piece: Piece| match piece.text.find('=') {
        Some(at) => {
            let split = piece.range.start + at;
            Ok(Pair {
                name: word(line.line.slice(piece.range.start..split)),
                value: word(line.line.slice(split + 1..piece.range.end)),
                legacy: false,
            })
        }
        None => {
            let message = format!(
                "Syntax error - can't find = in {}. Must be of the form: name=value",
                quote(&piece.text)
            );
            Err(syntax(line.source_span(piece.range), message).with_help("quote a value that has spaces"))
        }
    };
    words.into_iter().map(pair).collect()
}

/// Joins the words of `NAME=$(a command)`, which ends with the parenthesis that closes it.
fn with_commands(line: &LogicalLine, words: Vec<Piece>) -> Vec<Piece> {
    let mut joined: Vec<Piece> = Vec::with_capacity(words.len());
    for piece in words {
        match joined.last_mut() {
            Some(last) if is_open_command(&last.text) => {
                *last = line.line.slice(last.range.start..piece.range.end);
            }
            _ => joined.push(piece),
        }
    }
    joined
}

fn is_open_command(text: &str) -> bool {
    let Some((_, value)) = text.split_once('=') else { return false };
    let count = |letter| value.matches(letter).count();
    value.starts_with("$(") && count('(') > count(')')
}
