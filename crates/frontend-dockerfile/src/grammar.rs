//! Reads the words of a logical line with the grammar in `dockerfile.pest`.
//!
//! Owns the grammar: its rules never leave this file. Callers see [`Piece`]s: text and where it
//! stands in the line. Must not know what an instruction takes.

use std::{borrow::Cow, ops::Range};

use pest::{Parser as _, iterators::Pair};

mod derived {
    #[derive(pest_derive::Parser)]
    #[grammar = "dockerfile.pest"]
    pub(super) struct DockerfileGrammar;
}
use derived::{DockerfileGrammar, Rule};

/// Stands for the escape character in what the grammar reads.
const SHADOW_ESCAPE: char = '\u{1b}';
/// Stands for a character that happens to be [`SHADOW_ESCAPE`] in the file.
const SHADOW_OTHER: char = '\u{1a}';
/// Stands for all white space of two bytes, which separates words and is no blank to the reference.
const SHADOW_SPACE_2: char = '\u{85}';
/// As [`SHADOW_SPACE_2`], for that of three bytes.
const SHADOW_SPACE_3: char = '\u{3000}';

/// What makes words more than text between blanks.
const QUOTING: [char; 3] = ['\'', '"', SHADOW_ESCAPE];

/// A line and the shadow of it the grammar reads; both are of equal length.
#[derive(Clone, Debug)]
pub(crate) struct LineText {
    text: String,
    shadow: String,
}

/// A part of a line: what it says, and the bytes of the line it stands on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) text: String,
    pub(crate) range: Range<usize>,
}

/// A line split into keyword, flags and the rest.
#[derive(Clone, Debug)]
pub(crate) struct LineParts {
    pub(crate) keyword: Piece,
    pub(crate) flags: Vec<Piece>,
    /// What is left, trimmed; an empty range at the line's end where nothing is left.
    pub(crate) arguments: Range<usize>,
}

/// Text that is not one line of comma-separated values.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FieldsError {
    #[error("EOF")]
    Empty,
    #[error("parse error on line 1, column {0}: bare \" in non-quoted field")]
    BareQuote(usize),
    #[error("parse error on line 1, column {0}: extraneous or missing \" in quoted-field")]
    Quote(usize),
}

impl LineText {
    pub(crate) fn new(text: String, escape: char) -> Self {
        if let Some(shadow) = shadow_of_ascii(&text, escape) {
            return Self { text, shadow };
        }
        let shadow = text.chars().map(|letter| match letter {
            _ if letter == escape => SHADOW_ESCAPE,
            '\t' | '\n' | '\u{b}' | '\u{c}' | '\r' => ' ',
            SHADOW_ESCAPE => SHADOW_OTHER,
            ..'\u{80}' => letter,
            white if white.is_whitespace() => match white.len_utf8() {
                2 => SHADOW_SPACE_2,
                _ => SHADOW_SPACE_3,
            },
            other => other,
        });
        Self { shadow: shadow.collect(), text }
    }

    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    fn piece(&self, pair: &Pair<'_, Rule>, offset: usize) -> Piece {
        let range = pair.as_span().start() + offset..pair.as_span().end() + offset;
        Piece { text: self.text[range.clone()].to_owned(), range }
    }

    /// The parts of the whole line; `None` where it is blank.
    pub(crate) fn parts(&self) -> Option<LineParts> {
        self.parts_of(0..self.text.len())
    }

    /// The parts of the instruction in `range`, as `ONBUILD` has one inside.
    pub(crate) fn parts_of(&self, range: Range<usize>) -> Option<LineParts> {
        let range = self.trim(range);
        self.plain_parts(range.clone()).or_else(|| self.parsed_parts(range))
    }

    /// As the rule `line` has it, where no flag has quotes or escapes: then blanks alone tell words apart, and
    /// looking for them is much less work.
    fn plain_parts(&self, range: Range<usize>) -> Option<LineParts> {
        let shadow = &self.shadow[range.clone()];
        let piece = |start: usize, end: usize| self.slice(range.start + start..range.start + end);
        let word_end = |from: usize| shadow[from..].find(' ').map_or(shadow.len(), |length| from + length);
        let mut at = word_end(0);
        if at == 0 {
            return None;
        }
        let keyword = piece(0, at);
        let mut flags = Vec::new();
        loop {
            at += shadow[at..].len() - shadow[at..].trim_start_matches(' ').len();
            let end = word_end(at);
            let word = &shadow[at..end];
            if word == "--" {
                at = end;
                break;
            }
            if !word.starts_with("--") {
                break;
            }
            if word.contains(QUOTING) {
                return None;
            }
            flags.push(self.flag(piece(at, end)));
            at = end;
        }
        Some(LineParts { keyword, flags, arguments: self.trim(range.start + at..range.end) })
    }

    fn parsed_parts(&self, range: Range<usize>) -> Option<LineParts> {
        let line = DockerfileGrammar::parse(Rule::line, &self.shadow[range.clone()]).ok()?.next()?;
        let mut keyword = None;
        let mut flags = Vec::new();
        let mut arguments = range.end..range.end;
        for pair in line.into_inner() {
            let piece = self.piece(&pair, range.start);
            match pair.as_rule() {
                Rule::keyword => keyword = Some(piece),
                Rule::flag => flags.push(self.flag(piece)),
                Rule::arguments => arguments = self.trim(piece.range.start..range.end),
                _ => {}
            }
        }
        Some(LineParts { keyword: keyword?, flags, arguments })
    }

    /// A flag as it was meant, without quotes and escapes. The reference takes each of its bytes for a letter.
    fn flag(&self, piece: Piece) -> Piece {
        let Piece { text, range } = self.unquoted(piece);
        let text = if text.is_ascii() { text } else { text.bytes().map(char::from).collect() };
        Piece { text, range }
    }

    fn unquoted(&self, piece: Piece) -> Piece {
        let shadow = &self.shadow[piece.range.clone()];
        if !shadow.contains(QUOTING) {
            return piece;
        }
        let Ok(pairs) = DockerfileGrammar::parse(Rule::flag_text, shadow) else { return piece };
        let parts = pairs.flat_map(Pair::into_inner).filter(|part| part.as_rule() != Rule::EOI);
        let text = parts.map(|part| self.piece(&part, piece.range.start).text).collect();
        Piece { text, range: piece.range }
    }

    /// Words, their quotes and escapes kept.
    pub(crate) fn words(&self, range: Range<usize>) -> Vec<Piece> {
        match self.shadow[range.clone()].contains(QUOTING) {
            true => self.parsed_words(range),
            false => self.between(range, &[' ', SHADOW_SPACE_2, SHADOW_SPACE_3]),
        }
    }

    fn parsed_words(&self, range: Range<usize>) -> Vec<Piece> {
        let Ok(pairs) = DockerfileGrammar::parse(Rule::words, &self.shadow[range.clone()]) else {
            return Vec::new();
        };
        let inner = pairs.flat_map(Pair::into_inner).filter(|pair| pair.as_rule() == Rule::word);
        inner.map(|pair| self.piece(&pair, range.start)).collect()
    }

    /// What stands between blanks: quotes and escapes mean nothing here.
    pub(crate) fn items(&self, range: Range<usize>) -> Vec<Piece> {
        self.between(range, &[' '])
    }

    fn between(&self, range: Range<usize>, separators: &[char]) -> Vec<Piece> {
        let mut start = range.start;
        let words = self.shadow[range].split_inclusive(separators).filter_map(|word| {
            let begin = start;
            start += word.len();
            let length = word.trim_end_matches(separators).len();
            (length > 0).then(|| self.slice(begin..begin + length))
        });
        words.collect()
    }

    /// The first word and, behind the blanks after it, the rest.
    pub(crate) fn headed(&self, range: Range<usize>) -> Option<(Piece, Option<Piece>)> {
        let line = DockerfileGrammar::parse(Rule::headed, &self.shadow[range.clone()]).ok()?.next()?;
        let mut pieces = line.into_inner().filter(|pair| pair.as_rule() != Rule::EOI);
        let head = pieces.next().map(|pair| self.piece(&pair, range.start))?;
        let body = pieces.next().map(|pair| self.piece(&pair, range.start).range.start);
        Some((head, body.map(|start| self.slice(start..range.end))))
    }

    /// `range` as a piece.
    pub(crate) fn slice(&self, range: Range<usize>) -> Piece {
        Piece { text: self.text[range.clone()].to_owned(), range }
    }

    fn trim(&self, range: Range<usize>) -> Range<usize> {
        let text = &self.text[range.clone()];
        let start = range.start + (text.len() - text.trim_start().len());
        start..(range.end - (text.len() - text.trim_end().len())).max(start)
    }
}

/// The shadow of a line that is ASCII, as nearly all are.
fn shadow_of_ascii(text: &str, escape: char) -> Option<String> {
    let escape = u8::try_from(escape).ok().filter(u8::is_ascii)?;
    if !text.is_ascii() {
        return None;
    }
    let shadow = text.bytes().map(|letter| match letter {
        _ if letter == escape => 0x1b,
        b'\t'..=b'\r' => b' ',
        0x1b => 0x1a,
        other => other,
    });
    String::from_utf8(shadow.collect()).ok()
}

/// Splits comma-separated options, taking quotes away.
pub(crate) fn fields(text: &str) -> Result<Vec<Cow<'_, str>>, FieldsError> {
    if text.is_empty() {
        return Err(FieldsError::Empty);
    }
    // Options with quotes are rare, and those without need no grammar.
    if !text.contains('"') {
        return Ok(text.split(',').map(Cow::Borrowed).collect());
    }
    let pairs = DockerfileGrammar::parse(Rule::fields, text).map_err(|error| {
        let at = match error.location {
            pest::error::InputLocation::Pos(at) | pest::error::InputLocation::Span((at, _)) => at,
        };
        // A field that begins with a quote is read past it; another stops before it.
        match text.get(at..).is_some_and(|rest| rest.starts_with('"')) {
            true => FieldsError::BareQuote(at + 1),
            false => FieldsError::Quote(at),
        }
    })?;
    let unquote = |pair: Pair<'_, Rule>| match pair.as_rule() {
        Rule::quoted_field => {
            Some(pair.as_str().get(1..pair.as_str().len() - 1).unwrap_or_default().replace("\"\"", "\""))
        }
        Rule::bare_field => Some(pair.as_str().to_owned()),
        _ => None,
    };
    Ok(pairs.flat_map(Pair::into_inner).filter_map(unquote).map(Cow::Owned).collect())
}

/// Name and value of a comment that has a parser directive's form.
pub(crate) fn directive(comment: &str) -> Option<(&str, &str)> {
    let pair = DockerfileGrammar::parse(Rule::directive, comment).ok()?.next()?;
    let mut inner = pair.into_inner();
    let name = inner.next()?.as_str();
    let value = inner.next()?.as_str().trim_end_matches(['\t', '\n', '\u{c}', '\r', ' ']);
    (!value.is_empty()).then_some((name, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(pieces: Vec<Piece>) -> Vec<String> {
        pieces.into_iter().map(|piece| piece.text).collect()
    }

    #[track_caller]
    fn check_parts(line: &str, keyword: &str, flags: &[&str], arguments: &str) {
        let line = LineText::new(line.to_owned(), '\\');
        let parts = line.parts().expect("not blank");
        assert_eq!(parts.keyword.text, keyword);
        assert_eq!(texts(parts.flags), flags);
        assert_eq!(&line.text()[parts.arguments], arguments);
    }

    #[test]
    fn flags_end_at_the_first_other_word() {
        check_parts("RUN", "RUN", &[], "");
        check_parts("run\t--a --b=c  d --e ", "run", &["--a", "--b=c"], "d --e");
        check_parts("RUN --a=\"b c\" x", "RUN", &["--a=b c"], "x");
        check_parts(r#"RUN --a='b\' c'd x"#, "RUN", &["--a=b' cd"], "x");
        check_parts(r"RUN --a=b\ c x", "RUN", &["--a=b c"], "x");
        check_parts("RUN --a -- --b", "RUN", &["--a"], "--b");
        check_parts("RUN --a --", "RUN", &["--a"], "");
        check_parts("RUN --a=\"open", "RUN", &["--a=open"], "");
        check_parts("RUN --a=b\\", "RUN", &["--a=b"], "");
        check_parts("RUN - x", "RUN", &[], "- x");
        check_parts("RUN \u{a0} --a x", "RUN", &[], "--a x");
        check_parts("RUN --a=\u{a0}b\u{3000} x", "RUN", &["--a=\u{c2}\u{a0}b\u{e3}\u{80}\u{80}"], "x");
    }

    #[track_caller]
    fn check_words(escape: char, text: &str, expected: &[&str]) {
        let line = LineText::new(text.to_owned(), escape);
        assert_eq!(texts(line.words(0..text.len())), expected);
    }

    #[test]
    fn words_keep_quotes_and_escapes() {
        check_words('\\', " a  b=c ", &["a", "b=c"]);
        check_words('\\', r#"a="b c" d='e "f'"#, &[r#"a="b c""#, r#"d='e "f'"#]);
        check_words('\\', r"a\ b c", &[r"a\ b", "c"]);
        check_words('\\', r#"a="b\" c" d"#, &[r#"a="b\" c""#, "d"]);
        check_words('\\', r"a='b\' c", &[r"a='b\'", "c"]);
        check_words('\\', r#"a "open b"#, &["a", r#""open b"#]);
        check_words('\\', "a b\\", &["a", "b"]);
        check_words('\\', "a \"b\\", &["a", "\"b"]);
        check_words('\\', "a \"\" b", &["a", "\"\"", "b"]);
        check_words('`', r"a\ b` c", &[r"a\", "b` c"]);
        check_words('\\', "a\u{1b} b", &["a\u{1b}", "b"]);
        check_words('\\', "é\u{1b} a\u{a0}b\u{2003}\u{3000}c\t\u{b}d", &["é\u{1b}", "a", "b", "c", "d"]);
        check_words('\\', "a\\\u{a0}b\\\u{2003}c \"\u{a0}\"", &["a\\\u{a0}b\\\u{2003}c", "\"\u{a0}\""]);
        check_words('\\', "\\", &[]);
    }

    proptest::proptest! {
        /// What is read without the grammar is what the grammar reads.
        #[test]
        fn short_cuts_read_as_the_grammar(text in "([a-c=,\"'\\\\ \t\u{a0}\u{3000}\u{1b}-]|--| --a=){0,24}") {
            let line = LineText::new(text.clone(), '\\');
            let range = line.trim(0..text.len());
            let whole = |parts: LineParts| (parts.keyword, parts.flags, parts.arguments);
            if let Some(parts) = line.plain_parts(range.clone()) {
                let parsed = line.parsed_parts(range.clone());
                proptest::prop_assert_eq!(Some(whole(parts)), parsed.map(whole));
            }
            proptest::prop_assert_eq!(line.words(range.clone()), line.parsed_words(range));
        }
    }

    #[test]
    fn fields_are_separated_by_commas() {
        let split = |text| fields(text).map_err(|error| error.to_string());
        assert_eq!(
            split("type=bind,\"source=a,b\"\"c\",ro"),
            Ok(vec!["type=bind".into(), "source=a,b\"c".into(), "ro".into()])
        );
        assert_eq!(split("a,,b"), Ok(vec!["a".into(), "".into(), "b".into()]));
        assert_eq!(split("a\"b"), Err("parse error on line 1, column 2: bare \" in non-quoted field".into()));
    }

    #[test]
    fn directives_are_comments_of_one_form() {
        assert_eq!(directive("escape=`"), Some(("escape", "`")));
        assert_eq!(directive("escape = `\u{a0} "), Some(("escape", "`\u{a0}")));
        assert_eq!(directive("syntax = a/b:1 "), Some(("syntax", "a/b:1")));
        assert_eq!(directive("a b=c"), None);
        assert_eq!(directive("escape="), None);
        assert_eq!(directive("escape = "), None);
    }
}
