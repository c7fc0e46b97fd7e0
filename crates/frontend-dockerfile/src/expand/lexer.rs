//! The walk over a word that expands it.
//!
//! Owns quotes, escapes, `$` and `${…}` with their modifiers. Matching of `#`, `%` and `/` is
//! `shell_pattern`'s.

use std::collections::BTreeSet;

use crate::scope::Lookup;

use super::{ExpandErrorKind, Expander, MAX_DEPTH, MAX_VALUES, shell_pattern};

/// Collects words while a text is expanded.
#[derive(Default)]
struct WordList {
    words: Vec<String>,
    current: String,
}

impl WordList {
    /// Takes a letter that separates words if it is white space.
    fn letter(&mut self, letter: char) {
        match letter.is_whitespace() {
            true => self.finish(),
            false => self.current.push(letter),
        }
    }

    fn finish(&mut self) {
        if !self.current.is_empty() {
            self.words.push(std::mem::take(&mut self.current));
        }
    }
}

/// Reads a word letter by letter and expands what it meets.
pub(super) struct Lexer<'a> {
    rules: Expander,
    letters: Vec<char>,
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
    pub(super) fn new(rules: Expander, word: &str, variables: &'a dyn Lookup) -> Self {
        Self {
            rules,
            letters: word.chars().collect(),
            at: 0,
            depth: 0,
            budget: MAX_VALUES,
            variables,
            matched: BTreeSet::new(),
            unmatched: BTreeSet::new(),
        }
    }

    fn peek(&self) -> Option<char> {
        self.letters.get(self.at).copied()
    }

    fn next(&mut self) -> Option<char> {
        let letter = self.peek();
        self.at += usize::from(letter.is_some());
        letter
    }

    fn lookup(&mut self, name: &str) -> Result<Option<String>, ExpandErrorKind> {
        let value = self.variables.value(name);
        // Without a limit a few lines of `ENV x=$x$x` fill any memory.
        let length = value.map_or(0, str::len);
        self.budget = self.budget.checked_sub(length).ok_or(ExpandErrorKind::TooLong)?;
        let value = value.map(str::to_owned);
        let seen = if value.is_some() { &mut self.matched } else { &mut self.unmatched };
        seen.insert(name.to_owned());
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
        let outer = std::mem::replace(&mut self.rules.raw_escapes, raw_escapes);
        let result = self.until_inner(stop);
        self.rules.raw_escapes = outer;
        self.depth -= 1;
        result
    }

    fn until_inner(&mut self, stop: Option<char>) -> Result<(String, Vec<String>), ExpandErrorKind> {
        let mut text = String::new();
        let mut words = WordList::default();
        while let Some(letter) = self.peek() {
            if stop == Some(letter) {
                self.at += 1;
                words.finish();
                return Ok((text, words.words));
            }
            match letter {
                '$' => {
                    let value = self.dollar()?;
                    value.chars().for_each(|letter| words.letter(letter));
                    text.push_str(&value);
                }
                '<' | '\'' | '"' if letter == '<' || !self.rules.skip_quotes => {
                    let raw = match letter {
                        '<' => self.possible_heredoc(),
                        '\'' => self.single_quote()?,
                        _ => self.double_quote()?,
                    };
                    words.current.push_str(&raw);
                    text.push_str(&raw);
                }
                _ => {
                    self.at += 1;
                    if letter != self.rules.escape {
                        words.letter(letter);
                        text.push(letter);
                        continue;
                    }
                    if self.rules.raw_escapes {
                        words.current.push(letter);
                        text.push(letter);
                    }
                    let Some(escaped) = self.next() else { break };
                    words.current.push(escaped);
                    text.push(escaped);
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
    fn single_quote(&mut self) -> Result<String, ExpandErrorKind> {
        let start = self.at;
        self.at += 1;
        while let Some(letter) = self.next() {
            if letter == '\'' {
                let kept = if self.rules.raw_quotes { start..self.at } else { start + 1..self.at - 1 };
                return Ok(self.letters[kept].iter().collect());
            }
        }
        Err(ExpandErrorKind::Unterminated("single-quote"))
    }

    /// Everything up to the next `"`, with variables; the escape character acts on `"`, `$` and itself.
    fn double_quote(&mut self) -> Result<String, ExpandErrorKind> {
        let mut text = String::new();
        self.at += 1;
        if self.rules.raw_quotes {
            text.push('"');
        }
        loop {
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
                Some(letter) if letter == self.rules.escape => {
                    self.at += 1;
                    if self.rules.raw_escapes {
                        text.push(letter);
                    }
                    match self.peek() {
                        None => {}
                        Some(escaped) if escaped == '"' || escaped == '$' || escaped == self.rules.escape => {
                            self.at += 1;
                            text.push(escaped);
                        }
                        Some(_) => text.push(letter),
                    }
                }
                Some(letter) => {
                    self.at += 1;
                    text.push(letter);
                }
            }
        }
    }

    /// `<<` takes the blanks behind it into the word, so that `<< EOF` is one.
    fn possible_heredoc(&mut self) -> String {
        self.at += 1;
        if self.peek() != Some('<') {
            return "<".to_owned();
        }
        self.at += 1;
        let mut text = "<<".to_owned();
        while let Some(blank @ ('\t' | '\r' | ' ')) = self.peek() {
            text.push(blank);
            self.at += 1;
        }
        text
    }

    fn dollar(&mut self) -> Result<String, ExpandErrorKind> {
        self.at += 1;
        if self.peek() != Some('{') {
            let name = self.name();
            if name.is_empty() {
                return Ok("$".to_owned());
            }
            return Ok(match self.lookup(&name)? {
                Some(value) => value,
                None if self.rules.skip_unset => format!("${name}"),
                None => String::new(),
            });
        }
        self.at += 1;
        match self.peek() {
            None => return Err(ExpandErrorKind::Missing('}', "")),
            Some('{' | '}' | ':') => return Err(ExpandErrorKind::BadSubstitution),
            Some(_) => {}
        }
        let name = self.name();
        match self.next() {
            Some('}') => Ok(match self.lookup(&name)? {
                Some(value) => value,
                None if self.rules.skip_unset => format!("${{{name}}}"),
                None => String::new(),
            }),
            Some(':') => {
                let modifier = self.next();
                self.modified(&name, modifier, true)
            }
            Some('/') => self.replaced(&name),
            modifier => self.modified(&name, modifier, false),
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
        let present = value.clone().filter(|value| !(colon && value.is_empty()));
        match modifier {
            Some('-') => Ok(present.unwrap_or(word)),
            Some('+') => Ok(present.map_or_else(String::new, |_| word)),
            Some('?') => present.ok_or_else(|| {
                let missing = if value.is_none() { "unset" } else { "empty" };
                let message = if word.is_empty() { format!("is not allowed to be {missing}") } else { word };
                ExpandErrorKind::Required { name: name.to_owned(), message }
            }),
            Some(end @ ('#' | '%')) => {
                let (pattern, greedy) =
                    word.strip_prefix(end).map_or((word.as_str(), false), |rest| (rest, true));
                let value = value.unwrap_or_default();
                match end {
                    '#' => shell_pattern::trim_prefix(pattern, &value, greedy),
                    _ => shell_pattern::trim_suffix(pattern, &value, greedy),
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
        shell_pattern::replace(&pattern, &value, &replacement, all)
    }

    /// A name, a number or one of the shell's special parameters; empty where there is none.
    fn name(&mut self) -> String {
        let start = self.at;
        match self.peek() {
            Some(digit) if digit.is_numeric() => {
                while self.peek().is_some_and(char::is_numeric) {
                    self.at += 1;
                }
            }
            Some('@' | '*' | '#' | '?' | '-' | '$' | '!') => self.at += 1,
            _ => {
                while self.peek().is_some_and(|letter| letter.is_alphanumeric() || letter == '_') {
                    self.at += 1;
                }
            }
        }
        self.letters[start..self.at].iter().collect()
    }
}
