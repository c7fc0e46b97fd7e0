//! Patterns as tokens, and matching them by sets of states.
//!
//! Owns the grammar of wildcards, brackets and escapes. Must not know lists of patterns.

use super::{MAX_PATTERN_LENGTH, PatternError};

/// State sets up to this many words live on the stack.
const STACK_WORDS: usize = 4;

/// One step of a pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Token {
    /// This character.
    Letter(char),
    /// A character that was written with an escape.
    Escaped(char),
    /// `?`: any character but `/`.
    Any,
    /// `*`: any characters but `/`.
    Star,
    /// `**/`: nothing, or anything that ends in `/`. Always followed by [`Token::Inside`].
    Directories,
    /// The state of having taken something for `**/` that does not end in `/` yet.
    Inside,
    /// `**` at the end: anything.
    Everything,
    /// `[…]`: a character of, or outside of, these ranges.
    Class { negated: bool, ranges: Vec<(char, char)> },
}

impl Token {
    pub(super) fn is_plain(&self) -> bool {
        matches!(self, Self::Letter(_))
    }

    /// The only character that the step takes, where there is just one.
    pub(super) fn letter(&self) -> Option<char> {
        match self {
            Self::Letter(letter) | Self::Escaped(letter) => Some(*letter),
            _ => None,
        }
    }

    /// Whether the step takes exactly one character, and takes this one.
    fn takes(&self, letter: char) -> bool {
        match self {
            Self::Letter(wanted) | Self::Escaped(wanted) => *wanted == letter,
            Self::Any => letter != '/',
            Self::Class { negated, ranges } => {
                ranges.iter().any(|&(low, high)| (low..=high).contains(&letter)) != *negated
            }
            Self::Star | Self::Directories | Self::Inside | Self::Everything => false,
        }
    }
}

/// A parsed pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Tokens(Vec<Token>);

/// A pattern in the language of Go's `filepath.Match`: no `**`, and it matches the whole text or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Glob(Tokens);

impl Glob {
    /// Compiles a pattern.
    ///
    /// # Errors
    /// Where the pattern is malformed or too long.
    pub fn new(pattern: &str) -> Result<Self, PatternError> {
        match pattern.len() {
            length if length > MAX_PATTERN_LENGTH => Err(PatternError::TooLong(length)),
            _ => Tokens::parse(pattern, false).map(Self),
        }
    }

    /// Whether the whole of `text` matches; `*` and `?` do not take a `/`.
    pub fn matches(&self, text: &str) -> bool {
        self.0.matches(text)
    }
}

impl Tokens {
    /// Parses a pattern; `deep` gives `**` its meaning.
    pub(super) fn parse(pattern: &str, deep: bool) -> Result<Self, PatternError> {
        let fail = || PatternError::Syntax(pattern.to_owned());
        let mut tokens = Vec::new();
        let mut letters = pattern.chars().peekable();
        while let Some(letter) = letters.next() {
            let token = match letter {
                '*' if deep && letters.peek() == Some(&'*') => {
                    letters.next();
                    if letters.peek() == Some(&'/') {
                        letters.next();
                    }
                    if letters.peek().is_some() {
                        tokens.push(Token::Directories);
                        Token::Inside
                    } else {
                        Token::Everything
                    }
                }
                '*' => Token::Star,
                '?' => Token::Any,
                '\\' => Token::Escaped(letters.next().ok_or_else(fail)?),
                '[' => class(&mut letters).ok_or_else(fail)?,
                other => Token::Letter(other),
            };
            tokens.push(token);
        }
        Ok(Self(tokens))
    }

    pub(super) fn as_slice(&self) -> &[Token] {
        &self.0
    }

    pub(super) fn matches(&self, text: &str) -> bool {
        self.with_states(|states, spare| self.run(states, spare, text.chars()) && get(states, self.0.len()))
    }

    /// Whether some text that starts with `directory` and a slash matches.
    pub(super) fn may_match_after(&self, directory: &str) -> bool {
        self.with_states(|states, spare| self.run(states, spare, directory.chars().chain(['/'])))
    }

    /// Calls `body` with two empty state sets; the first holds the start.
    fn with_states(&self, body: impl FnOnce(&mut [u64], &mut [u64]) -> bool) -> bool {
        let words = self.0.len() / 64 + 1;
        let mut stack = [0; 2 * STACK_WORDS];
        let mut heap = Vec::new();
        let storage = if words <= STACK_WORDS {
            &mut stack[..2 * words]
        } else {
            heap.resize(2 * words, 0);
            heap.as_mut_slice()
        };
        let (states, spare) = storage.split_at_mut(words);
        set(states, 0);
        body(states, spare)
    }

    /// Feeds `text`; false as soon as no state is left.
    fn run(&self, states: &mut [u64], spare: &mut [u64], text: impl Iterator<Item = char>) -> bool {
        self.skip(states);
        for letter in text {
            spare.fill(0);
            let mut alive = false;
            for (word, bits) in states.iter().enumerate() {
                let mut bits = *bits;
                while bits != 0 {
                    let index = word * 64 + bits.trailing_zeros() as usize;
                    bits &= bits - 1;
                    alive |= self.step(index, letter, spare);
                }
            }
            if !alive {
                return false;
            }
            states.copy_from_slice(spare);
            self.skip(states);
        }
        true
    }

    /// Follows `letter` from the state before token `index`.
    fn step(&self, index: usize, letter: char, next: &mut [u64]) -> bool {
        let Some(token) = self.0.get(index) else { return false };
        let target = match token {
            Token::Star if letter != '/' => index,
            Token::Everything => index,
            Token::Directories | Token::Inside => {
                let inside = if *token == Token::Inside { index } else { index + 1 };
                if letter == '/' {
                    set(next, inside + 1);
                }
                inside
            }
            token if token.takes(letter) => index + 1,
            _ => return false,
        };
        set(next, target);
        true
    }

    /// Adds the states behind tokens that may take nothing.
    fn skip(&self, states: &mut [u64]) {
        for (index, token) in self.0.iter().enumerate() {
            let behind = match token {
                Token::Star | Token::Everything => index + 1,
                Token::Directories => index + 2,
                _ => continue,
            };
            if get(states, index) {
                set(states, behind);
            }
        }
    }
}

/// A bracket expression behind its `[`; `None` if it is malformed.
fn class(letters: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Option<Token> {
    let negated = letters.next_if_eq(&'^').is_some();
    let mut ranges = Vec::new();
    loop {
        if !ranges.is_empty() && letters.next_if_eq(&']').is_some() {
            return Some(Token::Class { negated, ranges });
        }
        let low = class_letter(letters)?;
        let high = if letters.next_if_eq(&'-').is_some() { class_letter(letters)? } else { low };
        if low > high {
            return None;
        }
        ranges.push((low, high));
    }
}

fn class_letter(letters: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Option<char> {
    match letters.next()? {
        '-' | ']' => None,
        '\\' => letters.next(),
        other => Some(other),
    }
}

fn get(states: &[u64], index: usize) -> bool {
    states[index / 64] >> (index % 64) & 1 == 1
}

fn set(states: &mut [u64], index: usize) {
    states[index / 64] |= 1 << (index % 64);
}
