//! The flags of an instruction, `--name=value`.
//!
//! Owns which forms a flag may take and the complaints about others. Which flags an instruction has
//! is said by the caller. Start with [`Flags::read`].

use crate::{ast::Word, diagnostic::Diagnostic, suggest};

/// What a flag takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FlagKind {
    /// Nothing, or `=true` or `=false`.
    Bool,
    /// A value, once.
    Value,
    /// A value, any number of times.
    Values,
}

/// The flags an instruction was given, checked against those it has.
#[derive(Debug, Default)]
pub(crate) struct Flags {
    given: Vec<(&'static str, Word)>,
}

/// A flag that is wrong: the message, and a similar flag's name.
#[derive(Debug)]
pub(crate) struct FlagError {
    pub(crate) word: Word,
    pub(crate) message: String,
    pub(crate) suggestion: Option<String>,
    /// Whether the flag does not exist at all.
    pub(crate) unknown: bool,
}

impl FlagError {
    pub(crate) fn decorate(&self, diagnostic: Diagnostic) -> Diagnostic {
        let help = self.suggestion.as_ref().map(|name| format!("did you mean `--{name}`?"));
        let mut diagnostic = diagnostic.with_suggestion(self.suggestion.clone());
        if help.is_some() {
            diagnostic.help = help;
        }
        diagnostic
    }
}

impl Flags {
    /// Reads `words` as flags out of `known`.
    pub(crate) fn read(words: &[Word], known: &[(&'static str, FlagKind)]) -> Result<Self, FlagError> {
        let mut flags = Self::default();
        for word in words {
            let fail =
                |message: String| FlagError { word: word.clone(), message, suggestion: None, unknown: false };
            let (dashed, value) = match word.text.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (word.text.as_str(), None),
            };
            let name = dashed.strip_prefix("--").unwrap_or(dashed);
            let Some(&(name, kind)) = known.iter().find(|(candidate, _)| *candidate == name) else {
                let suggestion = suggest::similar(name, known.iter().map(|(name, _)| *name));
                return Err(FlagError {
                    suggestion,
                    unknown: true,
                    ..fail(format!("unknown flag: {dashed}"))
                });
            };
            if kind != FlagKind::Values && flags.is_given(name) {
                return Err(fail(format!("duplicate flag specified: {dashed}")));
            }
            let value = match (kind, value) {
                (FlagKind::Bool, None) => "true".to_owned(),
                (FlagKind::Bool, Some("")) | (FlagKind::Value | FlagKind::Values, None) => {
                    return Err(fail(format!("missing a value on flag: {dashed}")));
                }
                (FlagKind::Bool, Some(value)) => match value.to_lowercase().as_str() {
                    switch @ ("true" | "false") => switch.to_owned(),
                    _ => {
                        return Err(fail(format!("expecting boolean value for flag {dashed}, not: {value}")));
                    }
                },
                (_, Some(value)) => value.to_owned(),
            };
            flags.given.push((name, Word::new(value, word.span)));
        }
        Ok(flags)
    }

    fn is_given(&self, name: &str) -> bool {
        self.given.iter().any(|(given, _)| *given == name)
    }

    /// The value of a flag that may be given once.
    pub(crate) fn value(&self, name: &str) -> Option<Word> {
        self.given.iter().find(|(given, _)| *given == name).map(|(_, word)| word.clone())
    }

    /// As [`Flags::value`], an empty value counting as none.
    pub(crate) fn filled(&self, name: &str) -> Option<Word> {
        self.value(name).filter(|word| !word.text.is_empty())
    }

    /// The values of a flag that may be given often.
    pub(crate) fn values(&self, name: &str) -> Vec<Word> {
        self.given.iter().filter(|(given, _)| *given == name).map(|(_, word)| word.clone()).collect()
    }

    /// A switch; `None` where it was not given.
    pub(crate) fn switch(&self, name: &str) -> Option<bool> {
        self.value(name).map(|word| word.text == "true")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::Span;

    const KNOWN: &[(&str, FlagKind)] =
        &[("link", FlagKind::Bool), ("from", FlagKind::Value), ("exclude", FlagKind::Values)];

    #[track_caller]
    fn check_error(flags: &[&str], message: &str, suggestion: Option<&str>) {
        let words: Vec<_> = flags.iter().map(|flag| Word::new(*flag, Span::default())).collect();
        let error = Flags::read(&words, KNOWN).expect_err("wrong");
        assert_eq!((error.message.as_str(), error.suggestion.as_deref()), (message, suggestion));
    }

    #[test]
    fn wrong_flags_are_named() {
        check_error(&["--form=x"], "unknown flag: --form", Some("from"));
        check_error(&["--from"], "missing a value on flag: --from", None);
        check_error(&["--link="], "missing a value on flag: --link", None);
        check_error(&["--link=x"], "expecting boolean value for flag --link, not: x", None);
        check_error(&["--link", "--link"], "duplicate flag specified: --link", None);
    }

    #[test]
    fn right_flags_are_read() {
        let words = ["--link=False", "--exclude=a", "--exclude=b=c", "--from="];
        let words: Vec<_> = words.iter().map(|flag| Word::new(*flag, Span::default())).collect();
        let flags = Flags::read(&words, KNOWN).expect("right");
        assert_eq!(flags.switch("link"), Some(false));
        assert_eq!(
            flags.values("exclude").iter().map(|word| word.text.as_str()).collect::<Vec<_>>(),
            ["a", "b=c"]
        );
        assert_eq!(flags.filled("from"), None);
    }
}
