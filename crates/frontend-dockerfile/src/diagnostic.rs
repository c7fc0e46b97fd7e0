//! What the front end has to say about a Dockerfile, as data.
//!
//! Owns errors and warnings with their places; drawing them is the program's work. The wording of
//! `message` is the one docker users know. Start with [`Diagnostic`].

use std::fmt;

use crate::{check::Rule, source::Span};

/// One error or warning, with its place in the source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// What kind of finding it is.
    pub code: Code,
    /// Whether it stops the build.
    pub severity: Severity,
    /// The place it points at.
    pub span: Span,
    /// The finding in one line, without place and without help.
    pub message: String,
    /// What to write instead, where a similar name exists.
    pub suggestion: Option<Box<str>>,
    /// What to do about it, a fragment such as "did you mean `COPY`?".
    pub help: Option<String>,
    /// Further places or facts.
    pub notes: Vec<Note>,
}

/// A fact that helps with a diagnostic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// Where it is about, if about a place.
    pub span: Option<Span>,
    /// The fact.
    pub text: String,
}

/// Whether a diagnostic stops the build.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The build cannot go on.
    Error,
    /// The build goes on; a check found something.
    Warning,
}

/// The step that found it; errors of an earlier step are reported before those of a later one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Code {
    /// The text does not split into instructions and arguments.
    Syntax,
    /// An instruction's arguments or flags are not what it takes.
    Instruction {
        /// The line the instruction starts on, named in the message's classic form.
        line: u32,
    },
    /// Stages, names and sources do not fit together.
    Plan,
    /// The instruction cannot be turned into operations.
    Lower,
    /// It works, but nothing of ours carries it out yet.
    Unsupported,
    /// A build check.
    Check(Rule),
    /// The request names something that the file has no use for.
    Unused,
}

impl Diagnostic {
    /// An error of `code` at `span`.
    pub fn error(code: Code, span: Span, message: impl Into<String>) -> Self {
        Self::new(code, Severity::Error, span, message.into())
    }

    /// A build check's warning at `span`.
    pub fn warning(rule: Rule, span: Span, message: impl Into<String>) -> Self {
        Self::new(Code::Check(rule), Severity::Warning, span, message.into())
    }

    fn new(code: Code, severity: Severity, span: Span, message: String) -> Self {
        Self { code, severity, span, message, suggestion: None, help: None, notes: Vec::new() }
    }

    /// With a similar name to offer; `None` leaves it as it is.
    #[must_use]
    pub fn with_suggestion(mut self, suggestion: Option<String>) -> Self {
        if let Some(name) = suggestion {
            self.help = Some(format!("did you mean `{name}`?"));
            self.suggestion = Some(name.into_boxed_str());
        }
        self
    }

    /// With a word on what to do, unless a suggestion already says it.
    #[must_use]
    pub fn with_help(mut self, help: impl Into<String>) -> Self {
        self.help.get_or_insert_with(|| help.into());
        self
    }

    /// With one more fact.
    #[must_use]
    pub fn with_note(mut self, span: Option<Span>, text: impl Into<String>) -> Self {
        self.notes.push(Note { span, text: text.into() });
        self
    }

    /// The build check that made it, if one did.
    pub fn rule(&self) -> Option<Rule> {
        match self.code {
            Code::Check(rule) => Some(rule),
            _ => None,
        }
    }

    /// Whether it stops the build.
    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }
}

/// The classic one-line form: `dockerfile parse error on line 3: unknown instruction: FRO (did you mean FROM?)`.
impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Code::Instruction { line } = self.code {
            write!(f, "dockerfile parse error on line {line}: ")?;
        }
        f.write_str(&self.message)?;
        match (&self.suggestion, self.severity) {
            (Some(name), Severity::Error) => write!(f, " (did you mean {name}?)"),
            _ => Ok(()),
        }
    }
}
