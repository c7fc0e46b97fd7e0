//! Variable expansion: `$x`, `${x…}`, quotes and escapes, as the reference expands instructions.
//!
//! Owns the rules of one word and of splitting a word into words. Must not know which variables are
//! in scope: it is handed a [`Lookup`]. Start with [`Expander`].

use std::collections::BTreeSet;

use crate::scope::Lookup;

mod shell_pattern;

/// How to expand: the escape character and what is kept as written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expander {
    /// The character that takes the next one's meaning away.
    pub escape: char,
    /// Keep quotes in the result.
    pub raw_quotes: bool,
    /// Keep escape characters in the result.
    pub raw_escapes: bool,
    /// Give quotes no meaning (file contents).
    pub skip_quotes: bool,
    /// Leave references to unset variables as written.
    pub skip_unset: bool,
}

/// An expanded word.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expansion {
    /// The word with variables put in and quotes gone.
    pub text: String,
    /// The same, split at unquoted white space, that of variables' values included.
    pub words: Vec<String>,
    /// Variables that were looked up and set.
    pub matched: BTreeSet<String>,
    /// Variables that were looked up and not set.
    pub unmatched: BTreeSet<String>,
}

/// A word that cannot be expanded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("failed to process {}: {kind}", crate::quote::quote(.word))]
pub struct ExpandError {
    /// The word as written.
    pub word: String,
    /// What is wrong with it.
    pub kind: ExpandErrorKind,
    /// Variables that were looked up before it failed and are not set.
    pub unmatched: BTreeSet<String>,
}

/// What is wrong with a word.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExpandErrorKind {
    /// The word ends inside a construct.
    #[error("unexpected end of statement while looking for matching {0}")]
    Unterminated(&'static str),
    /// The word ends inside `${`.
    #[error("syntax error: missing '{0}'{1}")]
    Missing(char, &'static str),
    /// `${` is followed by something that is no name.
    #[error("syntax error: bad substitution")]
    BadSubstitution,
    /// The modifier does not exist.
    #[error("unsupported modifier ({0}) in substitution")]
    UnsupportedModifier(String),
    /// The pattern of `#`, `%` or `/` is not one.
    #[error("invalid pattern ({pattern}) in substitution: invalid escape '\\{escaped}'")]
    InvalidPattern {
        /// The pattern.
        pattern: String,
        /// The character behind the escape.
        escaped: char,
    },
    /// `${…}` nests deeper than [`MAX_DEPTH`].
    #[error("substitutions nest deeper than {MAX_DEPTH}")]
    TooDeep,
    /// `${x?}` or `${x:?}` asks for a value that is not there.
    #[error("{name}: {message}")]
    Required {
        /// The variable.
        name: String,
        /// What the author says about it, or a default text.
        message: String,
    },
}

impl Expander {
    /// The usual expansion of an instruction's word.
    pub fn new(escape: char) -> Self {
        Self { escape, raw_quotes: false, raw_escapes: false, skip_quotes: false, skip_unset: false }
    }

    /// Expansion of a file's content: `\` escapes, quotes are text.
    pub fn content() -> Self {
        Self { skip_quotes: true, ..Self::new('\\') }
    }

    /// Expansion for names shown to people: quotes stay and unset variables stay as written.
    pub fn display(escape: char) -> Self {
        Self { raw_quotes: true, skip_unset: true, ..Self::new(escape) }
    }

    /// Expands `word` with `variables`.
    ///
    /// # Errors
    /// Where the word is malformed, nests deeper than [`MAX_DEPTH`] or demands a variable that is not set.
    pub fn expand(&self, word: &str, variables: &dyn Lookup) -> Result<Expansion, ExpandError> {
        let mut lexer = Lexer {
            rules: *self,
            letters: word.chars().collect(),
            at: 0,
            depth: 0,
            variables,
            matched: BTreeSet::new(),
            unmatched: BTreeSet::new(),
        };
        match lexer.until(None, self.raw_escapes) {
            Ok((text, words)) => {
                Ok(Expansion { text, words, matched: lexer.matched, unmatched: lexer.unmatched })
            }
            Err(kind) => Err(ExpandError { word: word.to_owned(), kind, unmatched: lexer.unmatched }),
        }
    }

    /// The expanded text alone.
    ///
    /// # Errors
    /// As [`Expander::expand`].
    pub fn text(&self, word: &str, variables: &dyn Lookup) -> Result<String, ExpandError> {
        self.expand(word, variables).map(|expansion| expansion.text)
    }
}

/// How deep `${x:-${y:-…}}` may nest.
pub const MAX_DEPTH: usize = 100;

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

struct Lexer<'a> {
    rules: Expander,
    letters: Vec<char>,
    at: usize,
    depth: usize,
    variables: &'a dyn Lookup,
    matched: BTreeSet<String>,
    unmatched: BTreeSet<String>,
}

impl Lexer<'_> {
    fn peek(&self) -> Option<char> {
        self.letters.get(self.at).copied()
    }

    fn next(&mut self) -> Option<char> {
        let letter = self.peek();
        self.at += usize::from(letter.is_some());
        letter
    }

    fn lookup(&mut self, name: &str) -> Option<String> {
        let value = self.variables.value(name).map(str::to_owned);
        let seen = if value.is_some() { &mut self.matched } else { &mut self.unmatched };
        seen.insert(name.to_owned());
        value
    }

    /// Expands up to `stop`, which is consumed, or to the end where there is none.
    fn until(
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
            return Ok(match self.lookup(&name) {
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
            Some('}') => Ok(match self.lookup(&name) {
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
        let value = self.lookup(name);
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
        let value = self.lookup(name);
        if value.is_none() && self.rules.skip_unset {
            return Ok(format!("${{{name}/{pattern}/{replacement}}}"));
        }
        shell_pattern::replace(&pattern, &value.unwrap_or_default(), &replacement, all)
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

#[cfg(test)]
mod tests;
