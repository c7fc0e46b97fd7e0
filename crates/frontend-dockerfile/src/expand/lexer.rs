//! The walk over a word that expands it.
//!
//! Owns quotes, escapes, `$` and `${…}` with their modifiers. Matching of `#`, `%` and `/` is
//! `shell_pattern`'s.

use std::{borrow::Cow, collections::BTreeSet};

use crate::scope::Lookup;

use super::{ExpandErrorKind, Expander, MAX_DEPTH, MAX_VALUES, shell_pattern};

/// Collects words while a text is expanded, where somebody wants them.
struct WordList {
    wanted: bool,
    words: Vec<String>,
    current: String,
}

impl WordList {
    fn new(wanted: bool) -> Self {
        Self { wanted, words: Vec::new(), current: String::new() }
    }

    /// Takes text whose white space separates words.
    fn split(&mut self, text: &str) {
        if !self.wanted {
            return;
        }
        let mut pieces = text.split(char::is_whitespace);
        self.current.push_str(pieces.next().unwrap_or_default());
        for piece in pieces {
            self.finish();
            self.current.push_str(piece);
        }
    }

    /// Takes text that is part of one word.
    fn keep(&mut self, text: &str) {
        if self.wanted {
            self.current.push_str(text);
        }
    }

    /// Drops the word that has begun: the reference reads words inside `${…}` into the same place, so that
    /// `EXPOSE 80${X:-80}` is port 80 and not 8080. Only the words of a list know of it.
    fn forget_if(&mut self, nested: bool) {
        if nested {
            self.current.clear();
        }
    }

    fn finish(&mut self) {
        if !self.current.is_empty() {
            self.words.push(std::mem::take(&mut self.current));
        }
    }
}

/// A letter as a byte that is one whatever stands beside it.
fn ascii(letter: char) -> Option<u8> {
    u8::try_from(letter).ok().filter(u8::is_ascii)
}

/// Reads a word and expands what it meets.
pub(super) struct Lexer<'a> {
    rules: Expander,
    word: &'a str,
    /// Whether the words of the result are wanted.
    split: bool,
    /// Whether a word inside `${…}` was read since this was looked at last.
    nested: bool,
    /// The offset of the next letter.
    at: usize,
    depth: usize,
    /// How many bytes of values may still be put in.
    budget: usize,
    variables: &'a dyn Lookup,
    /// Variables that were looked up and set.
    pub(super) matched: BTreeSet<String>,
    /// Variables that were looked up and not set.
    pub(super) unmatched: BTreeSet<String>,
}

impl<'a> Lexer<'a> {
    pub(super) fn new(rules: Expander, word: &'a str, variables: &'a dyn Lookup, split: bool) -> Self {
        Self {
            rules,
            word,
            split,
            nested: false,
            at: 0,
            depth: 0,
            budget: MAX_VALUES,
            variables,
            matched: BTreeSet::new(),
            unmatched: BTreeSet::new(),
        }
    }

    fn rest(&self) -> &'a str {
        &self.word[self.at..]
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn next(&mut self) -> Option<char> {
        let letter = self.peek();
        self.at += letter.map_or(0, char::len_utf8);
        letter
    }

    /// Passes over all up to a letter that `ends` it, or to the end.
    fn run(&mut self, ends: impl Fn(char) -> bool) -> &'a str {
        let rest = self.rest();
        let run = &rest[..rest.find(ends).unwrap_or(rest.len())];
        self.at += run.len();
        run
    }

    /// The same for letters all of which are ASCII.
    fn run_to(&mut self, ends: impl Fn(u8) -> bool) -> &'a str {
        let rest = self.rest();
        let run = &rest[..rest.bytes().position(ends).unwrap_or(rest.len())];
        self.at += run.len();
        run
    }

    fn lookup(&mut self, name: &str) -> Result<Option<&'a str>, ExpandErrorKind> {
        let value = self.variables.value(name);
        // Without a limit a few lines of `ENV x=$x$x` fill any memory.
        let length = value.map_or(0, str::len);
        self.budget = self.budget.checked_sub(length).ok_or(ExpandErrorKind::TooLong)?;
        let seen = if value.is_some() { &mut self.matched } else { &mut self.unmatched };
        if !seen.contains(name) {
            seen.insert(name.to_owned());
        }
        Ok(value)
    }

    /// Expands up to `stop`, which is consumed, or to the end where there is none.
    pub(super) fn until(
        &mut self,
        stop: Option<char>,
        raw_escapes: bool,
    ) -> Result<(String, Vec<String>), ExpandErrorKind> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(ExpandErrorKind::TooDeep);
        }
        self.nested |= self.depth > 1;
        let outer = std::mem::replace(&mut self.rules.raw_escapes, raw_escapes);
        let result = self.until_inner(stop);
        self.rules.raw_escapes = outer;
        self.depth -= 1;
        result
    }

    fn until_inner(&mut self, stop: Option<char>) -> Result<(String, Vec<String>), ExpandErrorKind> {
        let mut text = String::with_capacity(self.rest().len());
        let mut words = WordList::new(self.split);
        let escape = self.rules.escape;
        loop {
            let plain = match ascii(escape).zip(stop.map_or(Some(b'$'), ascii)) {
                Some((escape, stop)) => self.run_to(|letter| {
                    matches!(letter, b'$' | b'<' | b'\'' | b'"') || letter == escape || letter == stop
                }),
                None => self.run(|letter| {
                    matches!(letter, '$' | '<' | '\'' | '"') || letter == escape || stop == Some(letter)
                }),
            };
            words.split(plain);
            text.push_str(plain);
            let Some(letter) = self.peek() else { break };
            if stop == Some(letter) {
                self.at += letter.len_utf8();
                words.finish();
                return Ok((text, words.words));
            }
            self.nested = false;
            match letter {
                '$' => {
                    let value = self.dollar()?;
                    words.forget_if(self.nested);
                    words.split(&value);
                    text.push_str(&value);
                }
                '<' | '\'' | '"' if letter == '<' || !self.rules.skip_quotes => {
                    let raw = match letter {
                        '<' => Cow::Borrowed(self.possible_heredoc()),
                        '\'' => Cow::Borrowed(self.single_quote()?),
                        _ => Cow::Owned(self.double_quote()?),
                    };
                    words.forget_if(self.nested);
                    words.keep(&raw);
                    text.push_str(&raw);
                }
                _ => {
                    let start = self.at;
                    self.at += letter.len_utf8();
                    if letter != escape {
                        let quote = &self.word[start..self.at];
                        words.keep(quote);
                        text.push_str(quote);
                        continue;
                    }
                    let start = if self.rules.raw_escapes { start } else { self.at };
                    let more = self.next().is_some();
                    let kept = &self.word[start..self.at];
                    words.keep(kept);
                    text.push_str(kept);
                    if !more {
                        break;
                    }
                }
            }
        }
        match stop {
            Some('}') => Err(ExpandErrorKind::Unterminated("}")),
            Some(_) => Err(ExpandErrorKind::Unterminated("/")),
            None => {
                words.finish();
                Ok((text, words.words))
            }
        }
    }

    /// Everything up to the next `'` as it stands.
    fn single_quote(&mut self) -> Result<&'a str, ExpandErrorKind> {
        let start = self.at;
        self.at += 1;
        let content = self.run(|letter| letter == '\'');
        if self.next().is_none() {
            return Err(ExpandErrorKind::Unterminated("single-quote"));
        }
        Ok(if self.rules.raw_quotes { &self.word[start..self.at] } else { content })
    }

    /// Everything up to the next `"`, with variables; the escape character acts on `"`, `$` and itself.
    fn double_quote(&mut self) -> Result<String, ExpandErrorKind> {
        let mut text = String::new();
        let escape = self.rules.escape;
        self.at += 1;
        if self.rules.raw_quotes {
            text.push('"');
        }
        loop {
            text.push_str(self.run(|letter| matches!(letter, '"' | '$') || letter == escape));
            match self.peek() {
                None => return Err(ExpandErrorKind::Unterminated("double-quote")),
                Some('"') => {
                    self.at += 1;
                    if self.rules.raw_quotes {
                        text.push('"');
                    }
                    return Ok(text);
                }
                Some('$') => text.push_str(&self.dollar()?),
                Some(letter) => {
                    self.at += letter.len_utf8();
                    if self.rules.raw_escapes {
                        text.push(letter);
                    }
                    match self.peek() {
                        None => {}
                        Some(escaped) if escaped == '"' || escaped == '$' || escaped == escape => {
                            self.at += escaped.len_utf8();
                            text.push(escaped);
                        }
                        Some(_) => text.push(letter),
                    }
                }
            }
        }
    }

    /// `<<` takes the blanks behind it into the word, so that `<< EOF` is one.
    fn possible_heredoc(&mut self) -> &'a str {
        let start = self.at;
        self.at += 1;
        if self.peek() == Some('<') {
            self.at += 1;
            self.run(|letter| !matches!(letter, '\t' | '\r' | ' '));
        }
        &self.word[start..self.at]
    }

    fn dollar(&mut self) -> Result<Cow<'a, str>, ExpandErrorKind> {
        let start = self.at;
        self.at += 1;
        if self.peek() != Some('{') {
            let name = self.name();
            if name.is_empty() {
                return Ok(Cow::Borrowed("$"));
            }
            return Ok(Cow::Borrowed(match self.lookup(name)? {
                Some(value) => value,
                None if self.rules.skip_unset => &self.word[start..self.at],
                None => "",
            }));
        }
        self.at += 1;
        match self.peek() {
            None => return Err(ExpandErrorKind::Missing('}', "")),
            Some('{' | '}' | ':') => return Err(ExpandErrorKind::BadSubstitution),
            Some(_) => {}
        }
        let name = self.name();
        match self.next() {
            Some('}') => Ok(Cow::Borrowed(match self.lookup(name)? {
                Some(value) => value,
                None if self.rules.skip_unset => &self.word[start..self.at],
                None => "",
            })),
            Some(':') => {
                let modifier = self.next();
                self.modified(name, modifier, true).map(Cow::Owned)
            }
            Some('/') => self.replaced(name).map(Cow::Owned),
            modifier => self.modified(name, modifier, false).map(Cow::Owned),
        }
    }

    /// `${name-word}` and its kin; `colon` says that an empty value counts as unset.
    fn modified(
        &mut self,
        name: &str,
        modifier: Option<char>,
        colon: bool,
    ) -> Result<String, ExpandErrorKind> {
        let written =
            format!("{}{}", if colon { ":" } else { "" }, modifier.map_or('\u{fffd}', |letter| letter));
        let unsupported = || ExpandErrorKind::UnsupportedModifier(written.clone());
        let trims = matches!(modifier, Some('#' | '%'));
        if !matches!(modifier, Some('+' | '-' | '?' | '#' | '%')) && !colon || colon && trims {
            return Err(unsupported());
        }
        let word = match self.until(Some('}'), trims) {
            Ok((word, _)) => word,
            Err(_) if self.peek().is_none() => return Err(ExpandErrorKind::Missing('}', "")),
            Err(error) => return Err(error),
        };
        let value = self.lookup(name)?;
        if value.is_none() && self.rules.skip_unset {
            return Ok(format!("${{{name}{written}{word}}}"));
        }
        let present = value.filter(|value| !(colon && value.is_empty()));
        match modifier {
            Some('-') => Ok(present.map_or(word, str::to_owned)),
            Some('+') => Ok(present.map_or_else(String::new, |_| word)),
            Some('?') => present.map(str::to_owned).ok_or_else(|| {
                let missing = if value.is_none() { "unset" } else { "empty" };
                let message = if word.is_empty() { format!("is not allowed to be {missing}") } else { word };
                ExpandErrorKind::Required { name: name.to_owned(), message }
            }),
            Some(end @ ('#' | '%')) => {
                let (pattern, greedy) =
                    word.strip_prefix(end).map_or((word.as_str(), false), |rest| (rest, true));
                let value = value.unwrap_or_default();
                match end {
                    '#' => shell_pattern::trim_prefix(pattern, value, greedy),
                    _ => shell_pattern::trim_suffix(pattern, value, greedy),
                }
            }
            _ => Err(unsupported()),
        }
    }

    /// `${name/pattern/text}` and `${name//pattern/text}`.
    fn replaced(&mut self, name: &str) -> Result<String, ExpandErrorKind> {
        let all = self.peek() == Some('/');
        self.at += usize::from(all);
        let pattern = match self.until(Some('/'), true) {
            Ok((pattern, _)) => pattern,
            Err(_) if self.peek().is_none() => return Err(ExpandErrorKind::Missing('/', " in ${}")),
            Err(error) => return Err(error),
        };
        let replacement = match self.until(Some('}'), true) {
            Ok((replacement, _)) => replacement,
            Err(_) if self.peek().is_none() => return Err(ExpandErrorKind::Missing('}', "")),
            Err(error) => return Err(error),
        };
        let value = self.lookup(name)?;
        if value.is_none() && self.rules.skip_unset {
            return Ok(format!("${{{name}/{pattern}/{replacement}}}"));
        }
        let value = value.unwrap_or_default();
        if value.len().saturating_mul(replacement.len()) > MAX_VALUES {
            return Err(ExpandErrorKind::TooLong);
        }
        shell_pattern::replace(&pattern, value, &replacement, all)
    }

    /// A name, a number or one of the shell's special parameters; empty where there is none.
    fn name(&mut self) -> &'a str {
        let start = self.at;
        match self.peek() {
            Some(digit) if digit.is_numeric() => self.run(|letter| !letter.is_numeric()),
            Some('@' | '*' | '#' | '?' | '-' | '$' | '!') => {
                self.at += 1;
                &self.word[start..self.at]
            }
            _ => self.run(|letter| !(letter.is_alphanumeric() || letter == '_')),
        }
    }
}
