//! Types an instruction: keyword, flags and arguments to [`InstructionKind`].
//!
//! Owns which arguments and flags each instruction takes, and the complaints about others. Must not
//! know stages or variables' values. Start with [`Reading::kind`].
//!
//! Two kinds of errors are told apart, because the reference reports all of the first kind, anywhere
//! in the file, before any of the second: arguments that do not split, and arguments that make no
//! sense for their instruction.

use crate::{
    ast::{Argument, CommandLine, From, Heredoc, InstructionKind, Onbuild, Pair, StageName, Word},
    diagnostic::{Code, Diagnostic},
    dialect::{Dialect, OWN_SYNTAX},
    flags::{FlagError, FlagKind, Flags},
    lines::LogicalLine,
    quote::quote,
    source::Span,
    suggest,
};

mod healthcheck;
mod own;
mod run;
mod split;
mod transfer;

use split::Arguments;
pub(crate) use split::{Split, split};

/// Every instruction's keyword.
const KEYWORDS: [&str; 18] = [
    "ADD",
    "ARG",
    "CMD",
    "COPY",
    "ENTRYPOINT",
    "ENV",
    "EXPOSE",
    "FROM",
    "HEALTHCHECK",
    "LABEL",
    "MAINTAINER",
    "ONBUILD",
    "RUN",
    "SHELL",
    "STOPSIGNAL",
    "USER",
    "VOLUME",
    "WORKDIR",
];

/// Those of our own language.
const OWN_KEYWORDS: [&str; 2] = ["INCLUDE", "UNSET"];

/// What to do about something that only our own language has.
pub(crate) fn needs_own_syntax(what: &str) -> String {
    format!("`{what}` needs `# syntax={OWN_SYNTAX}` as the first line")
}

/// What typing an instruction needs besides its words.
pub(crate) struct Reading<'a> {
    pub(crate) line: &'a LogicalLine,
    pub(crate) heredocs: Vec<Heredoc>,
    pub(crate) dialect: Dialect,
}

impl Reading<'_> {
    /// The typed form of `split`.
    ///
    /// # Errors
    /// With a [`Code::Instruction`] diagnostic for the first thing that is wrong.
    pub(crate) fn kind(&self, split: Split) -> Result<InstructionKind, Diagnostic> {
        let name = split.keyword.text.to_ascii_uppercase();
        if name == "UNSET" && self.dialect == Dialect::Own {
            self.flags(&split, &[])?;
            return Ok(InstructionKind::Unset(self.unset(&split)?));
        }
        if !KEYWORDS.contains(&name.as_str()) {
            return Err(self.unknown(&split));
        }
        // These two never look at their flags.
        if !matches!(name.as_str(), "ADD" | "COPY" | "FROM" | "HEALTHCHECK" | "RUN" | "ARG" | "STOPSIGNAL") {
            if matches!(name.as_str(), "MAINTAINER" | "WORKDIR" | "USER") {
                self.one_word(&split, &name)?;
            } else if matches!(name.as_str(), "ONBUILD" | "EXPOSE" | "VOLUME") {
                self.some_words(&split, &name)?;
            }
            self.flags(&split, &[])?;
        }
        Ok(match name.as_str() {
            "ADD" => InstructionKind::Add(self.add(split)?),
            "ARG" => InstructionKind::Arg(self.arguments(split)?),
            "CMD" => InstructionKind::Cmd(command_line(split.arguments, split.span)),
            "COPY" => InstructionKind::Copy(self.copy(split)?),
            "ENTRYPOINT" => InstructionKind::Entrypoint(command_line(split.arguments, split.span)),
            "ENV" => InstructionKind::Env(self.pairs(split, "ENV")?),
            "EXPOSE" => InstructionKind::Expose(self.ports(split)),
            "FROM" => InstructionKind::From(self.from(split)?),
            "HEALTHCHECK" => InstructionKind::Healthcheck(self.healthcheck(split)?),
            "LABEL" => InstructionKind::Label(self.pairs(split, "LABEL")?),
            "MAINTAINER" => InstructionKind::Maintainer(self.one_word(&split, "MAINTAINER")?),
            "ONBUILD" => InstructionKind::Onbuild(self.onbuild(&split)?),
            "RUN" => InstructionKind::Run(self.run(split)?),
            "SHELL" => InstructionKind::Shell(self.shell(split)?),
            "STOPSIGNAL" => InstructionKind::StopSignal(self.one_word(&split, "STOPSIGNAL")?),
            "USER" => InstructionKind::User(self.one_word(&split, "USER")?),
            "VOLUME" => InstructionKind::Volume(self.volumes(split)?),
            _ => InstructionKind::Workdir(self.one_word(&split, "WORKDIR")?),
        })
    }

    fn error(&self, span: Span, message: impl Into<String>) -> Diagnostic {
        let span = if span.is_empty() { self.line.span } else { span };
        Diagnostic::error(Code::Instruction { line: self.line.lines.first }, span, message)
    }

    fn unknown(&self, split: &Split) -> Diagnostic {
        let word = &split.keyword;
        let unknown = self.error(word.span, format!("unknown instruction: {}", word.text));
        if OWN_KEYWORDS.iter().any(|own| own.eq_ignore_ascii_case(&word.text)) {
            // The reference's guess is part of its text; the help says what is the matter.
            let guess = suggest::similar_ignoring_case(&word.text, KEYWORDS);
            return Diagnostic { help: None, ..unknown.with_suggestion(guess) }
                .with_help(needs_own_syntax(&word.text.to_uppercase()));
        }
        unknown
            .with_suggestion(suggest::similar_ignoring_case(&word.text, KEYWORDS))
            .with_help(format!("the instructions are {}", KEYWORDS.join(", ")))
    }

    fn flags(&self, split: &Split, known: &[(&'static str, FlagKind)]) -> Result<Flags, Diagnostic> {
        Flags::read(&split.flags, known).map_err(|error| self.flag_error(&error, known))
    }

    fn flag_error(&self, error: &FlagError, known: &[(&'static str, FlagKind)]) -> Diagnostic {
        let diagnostic = error.decorate(self.error(error.word.span, error.message.clone()));
        if !error.unknown {
            return diagnostic;
        }
        if known.is_empty() {
            return diagnostic.with_help("this instruction has no flags");
        }
        if error.word.text.starts_with("--if-exists") && known.iter().any(|(name, _)| *name == "parents") {
            return Diagnostic { suggestion: None, help: None, ..diagnostic }
                .with_help(needs_own_syntax("COPY --if-exists"));
        }
        let names: Vec<_> = known.iter().map(|(name, _)| format!("--{name}")).collect();
        diagnostic.with_help(format!("the flags here are {}", names.join(", ")))
    }

    fn some_words(&self, split: &Split, name: &str) -> Result<(), Diagnostic> {
        let empty = match &split.arguments {
            Arguments::Words(words) | Arguments::Json(words) => words.is_empty(),
            Arguments::Pairs(pairs) => pairs.is_empty(),
            Arguments::Nested(_) => false,
        };
        match empty {
            true => Err(self.error(split.keyword.span, format!("{name} requires at least one argument"))),
            false => Ok(()),
        }
    }

    fn one_word(&self, split: &Split, name: &str) -> Result<Word, Diagnostic> {
        match &split.arguments {
            Arguments::Words(words) if words.len() == 1 => Ok(words[0].clone()),
            _ => Err(self.error(split.keyword.span, format!("{name} requires exactly one argument"))),
        }
    }

    fn pairs(&self, split: Split, name: &str) -> Result<Vec<Pair>, Diagnostic> {
        self.some_words(&split, name)?;
        let Arguments::Pairs(pairs) = split.arguments else { return Ok(Vec::new()) };
        if pairs.iter().any(|pair| pair.name.text.is_empty()) {
            return Err(self.error(split.span, format!("{name} names can not be blank")));
        }
        Ok(pairs)
    }

    fn arguments(&self, split: Split) -> Result<Vec<Argument>, Diagnostic> {
        self.some_words(&split, "ARG")?;
        let declare = |word: Word| {
            let Some((name, value)) = word.text.split_once('=') else {
                return Ok(Argument { name: word, default: None });
            };
            if name.is_empty() {
                return Err(self.error(word.span, "ARG names can not be blank"));
            }
            let default = Some(Word::new(value, word.span));
            Ok(Argument { name: Word::new(name, word.span), default })
        };
        split.arguments.into_words().into_iter().map(declare).collect()
    }

    fn from(&self, split: Split) -> Result<From, Diagnostic> {
        let name = match split.words() {
            [_] => None,
            [_, keyword, written] if keyword.text.eq_ignore_ascii_case("as") => {
                let name = written.text.to_lowercase();
                if !is_stage_name(&name) {
                    let message = format!(
                        "invalid name for build stage: {}, name can't start with a number or contain symbols",
                        quote(&written.text)
                    );
                    let help =
                        "a name starts with a letter and goes on with letters, digits, `-`, `_` and `.`";
                    return Err(self.error(written.span, message).with_help(help));
                }
                Some(StageName { name, written: written.clone(), keyword: keyword.clone() })
            }
            _ => {
                let message = "FROM requires either one or three arguments";
                let span = if split.span.is_empty() { split.keyword.span } else { split.span };
                return Err(self
                    .error(span, message)
                    .with_help("write `FROM image` or `FROM image AS name`"));
            }
        };
        let flags = self.flags(&split, &[("platform", FlagKind::Value)])?;
        let Some(base) = split.arguments.into_words().into_iter().next() else {
            return Err(self.error(split.span, "FROM requires either one or three arguments"));
        };
        Ok(From { base, platform: flags.filled("platform"), name })
    }

    fn ports(&self, split: Split) -> Vec<Word> {
        let mut ports = split.arguments.into_words();
        ports.sort_by(|one, other| one.text.cmp(&other.text));
        ports
    }

    fn volumes(&self, split: Split) -> Result<Vec<Word>, Diagnostic> {
        let mut volumes = split.arguments.into_words();
        for volume in &mut volumes {
            volume.text = volume.text.trim().to_owned();
            if volume.text.is_empty() {
                return Err(self.error(volume.span, "VOLUME specified can not be an empty string"));
            }
        }
        Ok(volumes)
    }

    fn shell(&self, split: Split) -> Result<Vec<String>, Diagnostic> {
        self.some_words(&split, "SHELL")?;
        match split.arguments {
            Arguments::Json(words) => Ok(words.into_iter().map(|word| word.text).collect()),
            _ => Err(self
                .error(split.span, "SHELL requires the arguments to be in JSON form")
                .with_help("write it as `SHELL [\"/bin/sh\", \"-c\"]`")),
        }
    }

    fn onbuild(&self, split: &Split) -> Result<Onbuild, Diagnostic> {
        let Arguments::Nested(inner) = &split.arguments else {
            return Err(self.error(split.span, "ONBUILD requires at least one argument"));
        };
        match inner.keyword.text.to_ascii_uppercase().as_str() {
            "ONBUILD" => {
                let message = "Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed";
                return Err(self.error(inner.keyword.span, message));
            }
            name @ ("MAINTAINER" | "FROM") => {
                let message = format!("{name} isn't allowed as an ONBUILD trigger");
                return Err(self.error(inner.keyword.span, message));
            }
            _ => {}
        }
        let text = self.line.line.text().trim_start();
        let expression = text.get("ONBUILD".len()..).unwrap_or_default();
        let mut expression = expression.trim_start_matches(['\t', '\u{c}', '\r', ' ']).to_owned();
        for heredoc in &self.heredocs {
            expression.push('\n');
            expression.push_str(&heredoc.content);
            expression.push_str(&heredoc.name);
        }
        Ok(Onbuild { expression })
    }
}

/// Shell or exec form; nothing at all is an empty shell command.
fn command_line(arguments: Arguments, span: Span) -> CommandLine {
    match arguments {
        Arguments::Json(words) => CommandLine::Exec(words.into_iter().map(|word| word.text).collect()),
        other => CommandLine::Shell(other.into_words().into_iter().next().unwrap_or(Word::new("", span))),
    }
}

fn is_stage_name(name: &str) -> bool {
    name.starts_with(|letter: char| letter.is_ascii_lowercase())
        && name.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.'))
}
