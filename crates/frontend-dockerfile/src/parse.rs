//! Text to syntax tree.
//!
//! Owns the walk over the file: which heredocs belong to which instruction, which instruction to
//! which stage, and the order in which errors count. It always gives a tree; what could not be read
//! is missing from it and named in the diagnostics. Start with [`parse`].

use crate::{
    ast::{DirectiveKind, Dockerfile, Heredoc, Instruction, InstructionKind, Stage},
    check::{self, Checks},
    diagnostic::{Code, Diagnostic},
    heredoc,
    instruction::{self, Reading, Split},
    lines::{LineReader, LogicalLine},
    source::{Lines, Source, Span},
};

/// The result of parsing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parsed {
    /// The tree; with errors it is incomplete and [`crate::plan()`] refuses it.
    pub dockerfile: Dockerfile,
    /// Errors, the most basic first, then the warnings that need no more than the text.
    pub diagnostics: Vec<Diagnostic>,
}

/// Parses a Dockerfile; whatever is wrong with it ends up in the diagnostics.
pub fn parse(source: &Source) -> Parsed {
    let mut reader = LineReader::new(&source.text);
    let (directives, directive_errors) = reader.take_directives();
    let mut tree = Tree {
        dockerfile: Dockerfile {
            source: source.clone(),
            escape: reader.escape(),
            directives,
            globals: Vec::new(),
            stages: Vec::new(),
            errors: Vec::new(),
            empty_continuations: Vec::new(),
        },
        lost_stage: false,
        syntax_errors: Vec::new(),
    };
    for (error, span) in directive_errors {
        tree.syntax_errors.push(Diagnostic::error(Code::Syntax, span, error.to_string()));
    }
    let mut empty = true;
    while let Some(line) = reader.next_line() {
        empty = false;
        tree.dockerfile.empty_continuations.extend(line.empty_continuation);
        match instruction(&mut reader, &line) {
            Ok(instruction) => tree.add(instruction),
            Err(error) => tree.lose(error),
        }
    }
    let end = Span::new(source.text.len(), source.text.len());
    if source.text.is_empty() {
        tree.syntax_errors.insert(0, Diagnostic::error(Code::Syntax, end, "the Dockerfile cannot be empty"));
    } else if empty {
        tree.syntax_errors.push(Diagnostic::error(Code::Syntax, end, "file with no instructions"));
    }
    tree.finish(end)
}

struct Tree {
    dockerfile: Dockerfile,
    /// Whether the last `FROM` was unsound, so that what follows has no stage to go to.
    lost_stage: bool,
    syntax_errors: Vec<Diagnostic>,
}

/// Why there is no instruction, and whether a stage was lost with it.
struct Lost {
    error: Box<Diagnostic>,
    was_from: bool,
}

impl Tree {
    fn add(&mut self, instruction: Instruction) {
        if let InstructionKind::From(from) = &instruction.kind {
            self.lost_stage = false;
            let from = from.clone();
            self.dockerfile.stages.push(Stage { from, instruction, instructions: Vec::new() });
            return;
        }
        if self.lost_stage {
            return;
        }
        match (self.dockerfile.stages.last_mut(), &instruction.kind) {
            (Some(stage), _) => stage.instructions.push(instruction),
            (None, InstructionKind::Arg(_)) => self.dockerfile.globals.push(instruction),
            (None, _) => {
                let error =
                    Diagnostic::error(Code::Plan, instruction.span, "no build stage in current context")
                        .with_help("start the file with `FROM`; only `ARG` may stand before it");
                self.dockerfile.errors.push(error);
            }
        }
    }

    fn lose(&mut self, lost: Lost) {
        self.lost_stage |= lost.was_from;
        match lost.error.code {
            Code::Syntax => self.syntax_errors.push(*lost.error),
            _ => self.dockerfile.errors.push(*lost.error),
        }
    }

    /// Errors of the text come before errors of meaning, and the lack of stages comes last.
    fn finish(self, end: Span) -> Parsed {
        let Self { mut dockerfile, lost_stage, syntax_errors } = self;
        let mut errors = syntax_errors;
        if let Err(failure) = Checks::directive(&dockerfile) {
            let check = dockerfile.directives.iter().find(|directive| directive.kind == DirectiveKind::Check);
            let span = check.map_or(end, |directive| directive.span);
            let help = "the options are skip, experimental and error, as in `# check=skip=all;error=true`";
            errors.insert(0, Diagnostic::error(Code::Syntax, span, failure.to_string()).with_help(help));
        }
        errors.append(&mut dockerfile.errors);
        if errors.is_empty() && dockerfile.stages.is_empty() && !lost_stage {
            let error = Diagnostic::error(Code::Plan, end, "dockerfile contains no stages to build")
                .with_help("add `FROM image`");
            errors.push(error);
        }
        dockerfile.errors.clone_from(&errors);
        let mut diagnostics = errors;
        diagnostics.extend(check::of_text(&dockerfile, &Checks::of(&dockerfile)));
        Parsed { dockerfile, diagnostics }
    }
}

/// Reads the instruction on `line`, and its heredocs from the lines after it.
fn instruction(reader: &mut LineReader<'_>, line: &LogicalLine) -> Result<Instruction, Lost> {
    let split = instruction::split(line).map_err(|error| {
        let was_from = line.line.text().get(..4).is_some_and(|start| start.eq_ignore_ascii_case("from"));
        Lost { error: Box::new(error), was_from }
    })?;
    let was_from = split.keyword().text.eq_ignore_ascii_case("from");
    let lost = |error| Lost { error: Box::new(error), was_from };
    let keyword = split.keyword().text.clone();
    let mut lines = line.lines;
    let mut span = line.span;
    let heredocs = heredocs(reader, line, &split, &mut lines, &mut span).map_err(lost)?;
    let kind = Reading { line, heredocs }.kind(split).map_err(lost)?;
    let code = line.line.text().trim().to_owned();
    Ok(Instruction { span, lines, keyword, code, comments: line.comments.clone(), kind })
}

fn heredocs(
    reader: &mut LineReader<'_>,
    line: &LogicalLine,
    split: &Split,
    lines: &mut Lines,
    span: &mut Span,
) -> Result<Vec<Heredoc>, Diagnostic> {
    if !split.takes_heredocs() || !line.line.text().contains("<<") {
        return Ok(Vec::new());
    }
    let words = heredoc::words_of_line(line.line.text())
        .map_err(|error| Diagnostic::error(Code::Syntax, line.span, error.to_string()))?;
    let mut found = Vec::with_capacity(words.len());
    for word in words {
        let Some(body) = reader.heredoc(&word.name, word.strip_tabs) else {
            let help = format!("end it with a line that is `{}` and nothing else", word.name);
            return Err(Diagnostic::error(Code::Syntax, line.span, "unterminated heredoc").with_help(help));
        };
        lines.last = body.last_line;
        span.end = body.end;
        found.push(Heredoc {
            name: word.name,
            file_descriptor: word.file_descriptor,
            expand: word.expand,
            strip_tabs: word.strip_tabs,
            content: body.content,
            span: body.span,
        });
    }
    Ok(found)
}

/// Parses an `ONBUILD` trigger, which stands where `from` stands for want of a place of its own.
///
/// # Errors
/// With a [`Code::Plan`] diagnostic at `from` where the trigger is not exactly one sound instruction.
pub(crate) fn parse_trigger(trigger: &str, from: &Instruction) -> Result<Instruction, Diagnostic> {
    let place = |message: String, help: Option<String>| Diagnostic {
        help,
        ..Diagnostic::error(Code::Plan, from.span, message)
            .with_note(None, format!("it is an `ONBUILD` trigger of the base: `{}`", trigger.trim()))
    };
    let moved =
        |error: Diagnostic| Diagnostic { suggestion: error.suggestion, ..place(error.message, error.help) };
    let mut reader = LineReader::new(trigger);
    let Some(line) = reader.next_line() else {
        return Err(place("file with no instructions".to_owned(), None));
    };
    let mut instruction = instruction(&mut reader, &line).map_err(|lost| moved(*lost.error))?;
    if reader.next_line().is_some() {
        return Err(place("onbuild trigger should be a single expression".to_owned(), None));
    }
    if matches!(instruction.kind, InstructionKind::From(_)) {
        return Err(place("FROM isn't allowed as an ONBUILD trigger".to_owned(), None));
    }
    instruction.span = from.span;
    instruction.lines = from.lines;
    Ok(instruction)
}

#[cfg(test)]
mod tests;
