//! How failures look: the Dockerfile excerpt, the message, the help, the exit code.
//!
//! Diagnostics of the front end are drawn as rustc draws them; a failed step as BuildKit draws it, so
//! that tools which read its output find what they look for. Owns no algorithm. Start with [`Failure`].

use std::fmt::Write as _;

use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};
pub(crate) use stave_engine::one_line as chain;
use stave_frontend_dockerfile::{Diagnostic, Severity, Source};
use stave_oci::Reference;
use stave_registry::{ErrorKind, RegistryError};

use crate::progress::sanitise::clean;

/// Lines shown before one marked line, and after it; around several it is one, as BuildKit has it.
const CONTEXT_LINES: usize = 2;

/// A command's failure, ready to be shown.
#[derive(Debug)]
pub(crate) struct Failure {
    /// Everything above the last line: excerpt, log tail.
    pub(crate) details: String,
    /// What happened, in one line.
    pub(crate) message: String,
    /// What to do about it.
    pub(crate) hints: Vec<String>,
    /// The exit code.
    pub(crate) code: u8,
}

impl Failure {
    /// A build or command that failed: exit code 1.
    pub(crate) fn new(error: &(dyn std::error::Error + 'static)) -> Self {
        Self::message(chain(error)).with_hint(advice(error))
    }

    /// The same from a ready message.
    pub(crate) fn message(message: impl Into<String>) -> Self {
        Self { details: String::new(), message: message.into(), hints: Vec::new(), code: 1 }
    }

    /// A call that cannot be understood: exit code 2.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self { code: 2, ..Self::message(message) }
    }

    /// With a word on what to do.
    #[must_use]
    pub(crate) fn with_hint(mut self, hint: impl Into<Option<String>>) -> Self {
        self.hints.extend(hint.into());
        self
    }

    /// With another exit code.
    #[must_use]
    pub(crate) fn with_code(self, code: u8) -> Self {
        Self { code, ..self }
    }

    /// What goes to standard error. Messages quote names from archives, images and registries.
    pub(crate) fn render(&self) -> String {
        let shown = |text: &str| text.split('\n').map(clean).collect::<Vec<_>>().join("\n");
        let mut text = self.details.clone();
        // Writing to a String cannot fail.
        let _infallible = writeln!(text, "ERROR: {}", shown(&self.message));
        for hint in &self.hints {
            let _infallible = writeln!(text, "hint: {}", shown(hint));
        }
        text
    }
}

/// What to do about an error, if one of its causes tells.
pub(crate) fn advice(error: &(dyn std::error::Error + 'static)) -> Option<String> {
    let mut causes = std::iter::successors(Some(error), |error| error.source());
    let denied: &RegistryError = causes.find_map(|cause| {
        // A box among the causes is a type of its own.
        cause.downcast_ref().or_else(|| cause.downcast_ref::<Box<RegistryError>>().map(Box::as_ref))
    })?;
    let ErrorKind::AccessDenied { authenticated, .. } = *denied.kind else { return None };
    let name: Option<Reference> = denied.subject.parse().ok();
    let host = name.as_ref().map_or(denied.host.as_str(), Reference::registry);
    Some(match authenticated {
        false => format!("log in with `stave login {host}`"),
        true => format!("the stored login may not do this: log in as another user with `stave login {host}`"),
    })
}

/// Front-end diagnostics as a failure.
pub(crate) fn diagnostics(source: &Source, found: &[Diagnostic], colour: bool) -> Failure {
    let mut details = String::new();
    for diagnostic in found {
        details.push_str(&draw(source, diagnostic, colour));
        details.push('\n');
    }
    let first = found.iter().find(|diagnostic| diagnostic.is_error()).or(found.first());
    let message = first.map_or_else(|| "the Dockerfile is not valid".to_owned(), ToString::to_string);
    Failure { details, ..Failure::message(format!("failed to build: failed to solve: {message}")) }
}

/// One diagnostic with the source it points at.
pub(crate) fn draw(source: &Source, diagnostic: &Diagnostic, colour: bool) -> String {
    let level = match diagnostic.severity {
        Severity::Error => Level::ERROR,
        Severity::Warning => Level::WARNING,
    };
    let snippet = |span: stave_frontend_dockerfile::Span| {
        // Each included file is a file of its own to the reader.
        let (_, part) = source.part_at(span.start);
        let inside = |offset: usize| offset.saturating_sub(part.start).min(part.text.len());
        let marked = AnnotationKind::Primary.span(inside(span.start)..inside(span.end));
        Snippet::source(part.text).path(part.name).annotation(marked)
    };
    let mut group: Group<'_> =
        level.primary_title(diagnostic.message.as_str()).element(snippet(diagnostic.span));
    if let Some(help) = &diagnostic.help {
        group = group.element(Level::HELP.message(help.as_str()));
    }
    let mut report = vec![group];
    for note in &diagnostic.notes {
        let note_group = match note.span {
            Some(place) => Level::NOTE.secondary_title(note.text.as_str()).element(snippet(place)),
            None => Group::with_title(Level::NOTE.secondary_title(note.text.as_str())),
        };
        report.push(note_group);
    }
    let renderer = if colour { Renderer::styled() } else { Renderer::plain() };
    renderer.render(&report)
}

/// Lines `first..=last` of a Dockerfile, marked, with some before and after: BuildKit's form.
pub(crate) fn excerpt(source: &Source, first: usize, last: usize) -> String {
    let lines: Vec<&str> = source.text.split('\n').collect();
    excerpt_of(&source.name, &lines, first, last)
}

/// The same of a text already split into its lines.
pub(crate) fn excerpt_of(name: &str, lines: &[&str], first: usize, last: usize) -> String {
    let last = last.clamp(first, lines.len().max(first));
    let context = if first == last { CONTEXT_LINES } else { 1 };
    let from = first.saturating_sub(context + 1);
    let to = (last + context).min(lines.len());
    let mut text = format!("{name}:{first}\n--------------------\n");
    for (index, line) in lines.iter().enumerate().take(to).skip(from) {
        let number = index + 1;
        let mark = if (first..=last).contains(&number) { ">>>" } else { "   " };
        let shown: String = line.chars().filter(|letter| !letter.is_control() || *letter == '\t').collect();
        let _infallible = writeln!(text, "{number:4} | {mark} {shown}");
    }
    text.push_str("--------------------\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source() -> Source {
        Source::new("Dockerfile", "FROM a\nRUN one\nRUN two \\\n  three\nRUN four\nRUN five\nRUN six\n")
    }

    #[test]
    fn excerpts_look_like_buildkits() {
        insta::assert_snapshot!(excerpt(&source(), 3, 4), @r"
        Dockerfile:3
        --------------------
           2 |     RUN one
           3 | >>> RUN two \
           4 | >>>   three
           5 |     RUN four
        --------------------
        ");
        insta::assert_snapshot!(excerpt(&source(), 5, 5), @r"
        Dockerfile:5
        --------------------
           3 |     RUN two \
           4 |       three
           5 | >>> RUN four
           6 |     RUN five
           7 |     RUN six
        --------------------
        ");
        assert!(excerpt(&source(), 1, 1).contains("   1 | >>> FROM a"));
        assert!(excerpt(&source(), 99, 99).starts_with("Dockerfile:99"));
        assert!(!excerpt(&Source::new("D", "RUN \x1b[31mred"), 1, 1).contains('\x1b'));
    }

    #[test]
    fn causes_follow_in_one_line() {
        #[derive(Debug, thiserror::Error)]
        #[error("cannot read")]
        struct Outer(#[source] std::io::Error);
        let error = Outer(std::io::Error::other("disk on fire"));
        assert_eq!(chain(&error), "cannot read: disk on fire");
        let failure = Failure::new(&error).with_hint("use water".to_owned());
        assert_eq!(failure.render(), "ERROR: cannot read: disk on fire\nhint: use water\n");
    }

    #[test]
    fn quoted_names_do_not_reach_the_terminal_as_commands() {
        let failure =
            Failure::message("entry `a\x1b]0;title\x07b\x1b[2J`:\nrefused").with_hint("x\x1b[6n".to_owned());
        assert_eq!(failure.render(), "ERROR: entry `ab`:\nrefused\nhint: x\n");
    }

    #[test]
    fn who_is_not_let_in_is_told_to_log_in() {
        #[derive(Debug, thiserror::Error)]
        #[error("pulling")]
        struct Outer(#[source] Box<RegistryError>);
        let denied = |authenticated| RegistryError {
            action: stave_registry::Action::Pull,
            subject: "host.example:5000/app:1".to_owned(),
            repository: "host.example:5000/app".to_owned(),
            host: "mirror.example".to_owned(),
            kind: Box::new(ErrorKind::AccessDenied { authenticated, message: String::new() }),
            mirrors: Vec::new(),
        };
        let hint = |authenticated| advice(&Outer(Box::new(denied(authenticated)))).unwrap_or_default();
        assert_eq!(hint(false), "log in with `stave login host.example:5000`");
        assert!(hint(true).contains("another user"), "{}", hint(true));
        assert_eq!(advice(&std::io::Error::other("else")), None);
    }
}
