//! Path patterns, as `.dockerignore`, includes, excludes and wildcards write them.
//!
//! Owns two languages. [`Glob`] is Go's `filepath.Match`: `*`, `?`, `[…]` and escapes within one path
//! component each. [`PatternMatcher`] adds what moby's pattern matcher adds: `**`, `!` with the last
//! match winning, and that a pattern matching a directory matches all below it. Must not know files:
//! paths are slash-separated, relative and cleaned by the caller. Start with [`PatternMatcher`].
//!
//! Matching is by sets of states, so that no pattern takes more than pattern times path.

mod glob;

pub use glob::Glob;
use glob::{Token, Tokens};

/// Longer patterns are refused.
pub const MAX_PATTERN_LENGTH: usize = 64 * 1024;

/// Text that is no pattern.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// A bracket is not closed or empty, a range runs backwards or an escape ends the pattern.
    #[error("syntax error in pattern `{0}`")]
    Syntax(String),
    /// A `!` with nothing behind it.
    #[error("illegal exclusion pattern: \"!\"")]
    EmptyExclusion,
    /// Longer than [`MAX_PATTERN_LENGTH`].
    #[error("pattern of {0} bytes is longer than {MAX_PATTERN_LENGTH}")]
    TooLong(usize),
}

/// A list of patterns, of which the last that matches decides.
#[derive(Clone, Debug, Default)]
pub struct PatternMatcher {
    patterns: Vec<Pattern>,
}

/// One pattern of a [`PatternMatcher`].
#[derive(Clone, Debug)]
pub struct Pattern {
    text: String,
    exclusion: bool,
    form: Form,
}

/// How a pattern is compared; the plain forms need no states.
#[derive(Clone, Debug)]
enum Form {
    /// Equal to the text.
    Exact,
    /// `x/**`: begins with this.
    Prefix(String),
    /// `**/x` and `**x`: ends with this; without its leading slash it may also be the whole path.
    Suffix(String),
    /// All else. What a match begins and ends with is looked at before any state: most paths end there.
    Wild { tokens: Tokens, start: String, end: String },
}

/// What [`PatternMatcher::matches_within`] learnt about a directory, for the paths right below it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DirectoryMatches {
    matched: Vec<bool>,
}

impl PatternMatcher {
    /// Compiles patterns; blank ones are passed over.
    ///
    /// # Errors
    /// For the first pattern that is malformed.
    pub fn new<I: IntoIterator<Item: AsRef<str>>>(patterns: I) -> Result<Self, PatternError> {
        let mut compiled = Vec::new();
        for pattern in patterns {
            let pattern = pattern.as_ref().trim();
            if !pattern.is_empty() {
                compiled.push(Pattern::new(pattern)?);
            }
        }
        Ok(Self { patterns: compiled })
    }

    /// Whether there is no pattern.
    pub fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }

    /// The patterns in order.
    pub fn patterns(&self) -> &[Pattern] {
        &self.patterns
    }

    /// Whether some pattern starts with `!`.
    pub fn has_exclusions(&self) -> bool {
        self.patterns.iter().any(|pattern| pattern.exclusion)
    }

    /// Whether the list selects `path`: by itself, or because it selects a directory above it.
    pub fn matches(&self, path: &str) -> bool {
        let mut selected = false;
        for pattern in &self.patterns {
            let matters = pattern.exclusion == selected;
            if matters && (pattern.matches(path) || pattern.matches_parent_of(path)) {
                selected = !pattern.exclusion;
            }
        }
        selected
    }

    /// As [`PatternMatcher::matches`], for a walk from the top: `parent` is the answer for the
    /// directory `path` stands in, the default at the top. Costs no look at the parents.
    pub fn matches_within(&self, path: &str, parent: &DirectoryMatches) -> (bool, DirectoryMatches) {
        let mut matched = Vec::with_capacity(self.patterns.len());
        let mut selected = false;
        for (index, pattern) in self.patterns.iter().enumerate() {
            let inherited = parent.matched.get(index).copied().unwrap_or(false);
            // A pattern that cannot change the answer is not tried; that is how the reference tells
            // its descendants about it, too.
            let matches = inherited || (pattern.exclusion == selected && pattern.matches(path));
            matched.push(matches);
            if matches {
                selected = !pattern.exclusion;
            }
        }
        (selected, DirectoryMatches { matched })
    }

    /// Whether a `!` pattern may match something below `directory`, so that a walk must enter it
    /// although the directory itself is selected.
    pub fn exclusion_below(&self, directory: &str) -> bool {
        self.patterns.iter().any(|pattern| pattern.exclusion && pattern.may_match_below(directory))
    }

    /// Whether any pattern may match something below `directory`: for lists of what to include.
    pub fn match_below(&self, directory: &str) -> bool {
        self.patterns.iter().any(|pattern| !pattern.exclusion && pattern.may_match_below(directory))
    }
}

impl Pattern {
    fn new(pattern: &str) -> Result<Self, PatternError> {
        if pattern.len() > MAX_PATTERN_LENGTH {
            return Err(PatternError::TooLong(pattern.len()));
        }
        let cleaned = clean(pattern);
        let (exclusion, text) = match cleaned.strip_prefix('!') {
            Some("") => return Err(PatternError::EmptyExclusion),
            Some(rest) => (true, rest.to_owned()),
            None => (false, cleaned),
        };
        let tokens = Tokens::parse(&text, true)?;
        Ok(Self { form: form(&text, tokens), text, exclusion })
    }

    /// Whether it starts with `!`.
    pub fn is_exclusion(&self) -> bool {
        self.exclusion
    }

    /// The pattern, cleaned and without `!`.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    fn matches(&self, path: &str) -> bool {
        match &self.form {
            Form::Exact => path == self.text,
            Form::Prefix(prefix) => path.starts_with(prefix),
            Form::Suffix(suffix) => path.ends_with(suffix) || suffix.strip_prefix('/') == Some(path),
            Form::Wild { tokens, start, end } => {
                path.starts_with(start) && path.ends_with(end) && tokens.matches(path)
            }
        }
    }

    fn matches_parent_of(&self, path: &str) -> bool {
        path.match_indices('/').any(|(end, _)| self.matches(&path[..end]))
    }

    fn may_match_below(&self, directory: &str) -> bool {
        match &self.form {
            // What lies below a match is matched, too.
            _ if self.matches(directory) || self.matches_parent_of(directory) => true,
            Form::Exact => below(&self.text, directory),
            Form::Prefix(prefix) => {
                below(prefix, directory) || directory.starts_with(prefix) || prefix.starts_with(directory)
            }
            Form::Suffix(_) => true,
            Form::Wild { tokens, start, .. } => {
                (directory.starts_with(start) || start.starts_with(directory))
                    && tokens.may_match_after(directory)
            }
        }
    }
}

fn below(path: &str, directory: &str) -> bool {
    path.strip_prefix(directory).is_some_and(|rest| rest.starts_with('/'))
}

/// `**` at one end with only plain text besides has a form of its own. At the start it then need not
/// end at a slash: `**x` is any path that ends in `x`.
fn form(text: &str, tokens: Tokens) -> Form {
    match tokens.as_slice() {
        [Token::Everything] => return Form::Suffix(String::new()),
        [Token::Directories, Token::Inside, rest @ ..] if rest.iter().all(Token::is_plain) => {
            return Form::Suffix(text["**".len()..].to_owned());
        }
        [rest @ .., Token::Everything] if rest.iter().all(Token::is_plain) => {
            return Form::Prefix(text.strip_suffix("**").unwrap_or(text).to_owned());
        }
        tokens if tokens.iter().all(Token::is_plain) => return Form::Exact,
        _ => {}
    }
    let start = tokens.as_slice().iter().map_while(Token::letter).collect();
    let end: Vec<char> = tokens.as_slice().iter().rev().map_while(Token::letter).collect();
    Form::Wild { tokens, start, end: end.into_iter().rev().collect() }
}

/// The shortest path that says the same, as Go's `filepath.Clean` gives it; nothing becomes `.`.
pub fn clean(path: &str) -> String {
    let rooted = path.starts_with('/');
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|last| *last != "..") => {
                parts.pop();
            }
            ".." if rooted => {}
            part => parts.push(part),
        }
    }
    let joined = parts.join("/");
    match (rooted, joined.is_empty()) {
        (true, _) => format!("/{joined}"),
        (false, true) => ".".to_owned(),
        (false, false) => joined,
    }
}

#[cfg(test)]
mod tests;
