//! Variable expansion: `$x`, `${x…}`, quotes and escapes, as the reference expands instructions.
//!
//! Owns the rules of one word and of splitting a word into words. Must not know which variables are
//! in scope: it is handed a [`Lookup`]. Start with [`Expander`].

use std::collections::BTreeSet;

use crate::scope::Lookup;

mod lexer;
mod shell_pattern;

use lexer::Lexer;

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
    /// The values put in are longer than [`MAX_VALUES`].
    #[error("values longer than {MAX_VALUES} bytes in one word")]
    TooLong,
    /// `${x?}` or `${x:?}` asks for a value that is not there.
    #[error("{name}: {message}")]
    Required {
        /// The variable.
        name: String,
        /// What the author says about it, or a default text.
        message: String,
    },
}

impl ExpandErrorKind {
    /// What to write instead, where the message does not say it.
    pub fn help(&self) -> Option<&'static str> {
        match self {
            Self::Unterminated("double-quote") => {
                Some("close the quote with `\"`, or write `\\\"` for the letter")
            }
            Self::Unterminated("single-quote") => Some("close the quote with `'`"),
            Self::Unterminated(_) | Self::Missing(..) => {
                Some("close `${` with `}`, or write `\\$` for the letter")
            }
            Self::BadSubstitution => Some("write `${NAME}` or `${NAME:-default}`"),
            Self::UnsupportedModifier(_) => Some(
                "close `${` with `}`; a modifier is one of `:-`, `-`, `:+`, `+`, `:?`, `?`, `#`, `##`, `%`, `%%`, `/` and `//`",
            ),
            Self::InvalidPattern { .. } | Self::TooDeep | Self::TooLong | Self::Required { .. } => None,
        }
    }
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
        self.read(word, variables, true)
    }

    /// As [`Expander::expand`], for whom the result is one word: its `words` stay empty.
    ///
    /// # Errors
    /// As [`Expander::expand`].
    pub fn unsplit(&self, word: &str, variables: &dyn Lookup) -> Result<Expansion, ExpandError> {
        self.read(word, variables, false)
    }

    /// The expanded text alone.
    ///
    /// # Errors
    /// As [`Expander::expand`].
    pub fn text(&self, word: &str, variables: &dyn Lookup) -> Result<String, ExpandError> {
        self.unsplit(word, variables).map(|expansion| expansion.text)
    }

    /// Whether there is nothing in `word` to expand, as in most words.
    pub(crate) fn is_plain(&self, word: &str) -> bool {
        let escape = u8::try_from(self.escape).ok().filter(u8::is_ascii);
        match escape {
            Some(escape) => {
                word.bytes().all(|byte| !matches!(byte, b'$' | b'\'' | b'"' | b'<') && byte != escape)
            }
            None => !word.contains(['$', '\'', '"', '<', self.escape]),
        }
    }

    fn read(&self, word: &str, variables: &dyn Lookup, split: bool) -> Result<Expansion, ExpandError> {
        // The reference's scanner takes one for the mark of a file.
        let written = word;
        let word = word.strip_prefix('\u{feff}').unwrap_or(word);
        if self.is_plain(word) {
            let words = split.then(|| word.split_whitespace().map(str::to_owned).collect());
            let words = words.unwrap_or_default();
            return Ok(Expansion { text: word.to_owned(), words, ..Expansion::default() });
        }
        let mut lexer = Lexer::new(*self, word, variables, split);
        match lexer.until(None, self.raw_escapes) {
            Ok((text, words)) => {
                Ok(Expansion { text, words, matched: lexer.matched, unmatched: lexer.unmatched })
            }
            Err(kind) => Err(ExpandError { word: written.to_owned(), kind, unmatched: lexer.unmatched }),
        }
    }
}

/// How deep `${x:-${y:-…}}` may nest.
pub const MAX_DEPTH: usize = 100;

/// How many bytes of variables' values one word may take up. A process takes no more than 128 KiB of one.
pub const MAX_VALUES: usize = 1 << 20;

#[cfg(test)]
mod tests;
