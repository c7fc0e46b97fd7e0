//! Text to syntax tree.
//!
//! Owns the walk over the file: which heredocs belong to which instruction, which instruction to
//! which stage, and the order in which errors count. It always gives a tree; what could not be read
//! is missing from it and named in the diagnostics. Start with [`parse`].

use std::sync::Arc;

use crate::{
    ast::{DirectiveKind, Dockerfile, Heredoc, Instruction, InstructionKind, Stage, Word},
    check::{self, Checks},
    diagnostic::{Code, Diagnostic},
    dialect::Dialect,
    heredoc,
    instruction::{self, Reading, Split},
    lines::{LineReader, LogicalLine},
    path,
    quote::quote,
    source::{Lines, Source, Span},
};

/// How deep files may include files.
const MAX_INCLUDE_DEPTH: usize = 16;
/// How many `INCLUDE`s are carried out in all.
const MAX_INCLUDES: usize = 1000;

/// The result of parsing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parsed {
    /// The tree; with errors it is incomplete and [`crate::plan()`] refuses it.
    pub dockerfile: Dockerfile,
    /// Errors, the most basic first, then the warnings that need no more than the text; beside errors only those
    /// about what stands before the first.
    pub diagnostics: Vec<Diagnostic>,
    /// Files that are included and not in the source: whoever can read them adds them with
    /// [`Source::with_included`] and parses again. Each is an error as long as it is missing.
    pub missing_includes: Vec<IncludeRequest>,
}

/// A file that an `INCLUDE` names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IncludeRequest {
    /// Its path from the Dockerfile's directory, which it does not leave.
    pub path: String,
    /// The word that names it.
    pub span: Span,
}

/// Parses a Dockerfile; whatever is wrong with it ends up in the diagnostics.
pub fn parse(source: &Source) -> Parsed {
    let length = source.parts().next().map_or(0, |main| main.text.len());
    let mut reader = LineReader::of_main(&source.text, Span::new(0, length));
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
        missing_includes: Vec::new(),
        includes: 0,
    };
    for (error, span) in directive_errors {
        tree.syntax_errors.push(Diagnostic::error(Code::Syntax, span, error.to_string()));
    }
    let dialect = tree.dockerfile.dialect();
    let empty = tree.read(source, reader, dialect, &mut Vec::new());
    let end = Span::new(length, length);
    if length == 0 {
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
    missing_includes: Vec<IncludeRequest>,
    /// How many files were included so far.
    includes: usize,
}

/// Why there is no instruction, and whether a stage was lost with it.
struct Lost {
    error: Box<Diagnostic>,
    was_from: bool,
}

impl Tree {
    /// Takes up the instructions of one file; whether there are none. `open` are the files that include
    /// it, from the first to the last.
    fn read(
        &mut self,
        source: &Source,
        mut reader: LineReader<'_>,
        dialect: Dialect,
        open: &mut Vec<String>,
    ) -> bool {
        let mut empty = true;
        while let Some(line) = reader.next_line() {
            empty = false;
            self.dockerfile.empty_continuations.extend(line.empty_continuation);
            match instruction(&mut reader, &line, dialect) {
                Ok(Read::Instruction(instruction)) => self.add(*instruction),
                Ok(Read::Include(word)) => self.include(source, &word, dialect, open),
                Err(error) => self.lose(error),
            }
        }
        empty
    }

    fn include(&mut self, source: &Source, word: &Word, dialect: Dialect, open: &mut Vec<String>) {
        let path = match self.place_of(word, open) {
            Ok(path) => path,
            Err(message) => {
                let error = Diagnostic::error(Code::Plan, word.span, message);
                self.dockerfile.errors.push(error);
                return;
            }
        };
        self.includes += 1;
        let Some(part) = source.included(&path) else {
            let message = format!("cannot read the included file {}", quote(&path));
            let error = Diagnostic::error(Code::Plan, word.span, message)
                .with_help("it is looked for beside the file that includes it");
            self.dockerfile.errors.push(error);
            if self.missing_includes.iter().all(|request| request.path != path) {
                self.missing_includes.push(IncludeRequest { path, span: word.span });
            }
            return;
        };
        open.push(path);
        let reader = LineReader::of_part(&source.text, part, self.dockerfile.escape);
        self.read(source, reader, dialect, open);
        open.pop();
    }

    /// The path of an included file from the Dockerfile's directory.
    fn place_of(&self, word: &Word, open: &[String]) -> Result<String, String> {
        let folder = open.last().and_then(|file| file.rsplit_once('/')).map_or("", |(folder, _)| folder);
        let path = path::join(folder, &word.text);
        if word.text.starts_with('/') || path == "." || path == ".." || path.starts_with("../") {
            return Err(format!("{} leads out of the Dockerfile's directory", quote(&word.text)));
        }
        if open.contains(&path) {
            return Err(format!("files include each other in a ring: {} -> {path}", open.join(" -> ")));
        }
        if open.len() >= MAX_INCLUDE_DEPTH {
            return Err(format!("files include each other more than {MAX_INCLUDE_DEPTH} deep"));
        }
        if self.includes >= MAX_INCLUDES {
            return Err(format!("more than {MAX_INCLUDES} files are included"));
        }
        Ok(path)
    }

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
            (Some(stage), _) => stage.instructions.push(Arc::new(instruction)),
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
        let Self { mut dockerfile, lost_stage, syntax_errors, missing_includes, .. } = self;
        let mut errors = syntax_errors;
        if let Err(failure) = Checks::directive(&dockerfile) {
            let check = dockerfile.directives.iter().find(|directive| directive.kind == DirectiveKind::Check);
            let span = check.map_or(end, |directive| directive.span);
            let help = "the options are skip, experimental and error, as in `# check=skip=all;error=true`";
            let message = format!("failed to parse check options: {failure}");
            errors.insert(0, Diagnostic::error(Code::Syntax, span, message).with_help(help));
        }
        errors.append(&mut dockerfile.errors);
        if errors.is_empty() && dockerfile.stages.is_empty() && !lost_stage {
            let error = Diagnostic::error(Code::Plan, end, "dockerfile contains no stages to build")
                .with_help("add `FROM image`");
            errors.push(error);
        }
        dockerfile.errors.clone_from(&errors);
        let mut warnings = check::of_text(&dockerfile, &Checks::of(&dockerfile));
        if let Some(first) = errors.iter().map(|error| error.span.start).min() {
            warnings.retain(|warning| warning.span.start < first);
        }
        let mut diagnostics = errors;
        diagnostics.append(&mut warnings);
        Parsed { dockerfile, diagnostics, missing_includes }
    }
}

/// What stands on a line.
enum Read {
    Instruction(Box<Instruction>),
    /// The file that an `INCLUDE` names.
    Include(Word),
}

/// Reads the instruction on `line`, and its heredocs from the lines after it.
fn instruction(reader: &mut LineReader<'_>, line: &LogicalLine, dialect: Dialect) -> Result<Read, Lost> {
    let split = instruction::split(line, dialect).map_err(|error| {
        let was_from = line.line.text().get(..4).is_some_and(|start| start.eq_ignore_ascii_case("from"));
        Lost { error: Box::new(error), was_from }
    })?;
    let was_from = split.keyword().text.eq_ignore_ascii_case("from");
    let lost = |error| Lost { error: Box::new(error), was_from };
    let keyword = split.keyword().text.clone();
    let mut lines = line.lines;
    let mut span = line.span;
    let heredocs = heredocs(reader, line, &split, &mut lines, &mut span).map_err(lost)?;
    let reading = Reading { line, heredocs, dialect };
    if let Some(file) = reading.include(&split).map_err(lost)? {
        return Ok(Read::Include(file));
    }
    let kind = reading.kind(split).map_err(lost)?;
    let code = line.line.text().trim().to_owned();
    let comments = line.comments.clone();
    Ok(Read::Instruction(Box::new(Instruction { span, lines, keyword, code, comments, kind })))
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
pub(crate) fn parse_trigger(
    trigger: &str,
    from: &Instruction,
    dialect: Dialect,
) -> Result<Instruction, Diagnostic> {
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
    let read = instruction(&mut reader, &line, dialect).map_err(|lost| moved(*lost.error))?;
    let Read::Instruction(mut instruction) = read else {
        return Err(place("INCLUDE isn't allowed as an ONBUILD trigger".to_owned(), None));
    };
    if reader.next_line().is_some() {
        return Err(place("onbuild trigger should be a single expression".to_owned(), None));
    }
    if matches!(instruction.kind, InstructionKind::From(_)) {
        return Err(place("FROM isn't allowed as an ONBUILD trigger".to_owned(), None));
    }
    instruction.span = from.span;
    instruction.lines = from.lines;
    Ok(*instruction)
}

#[cfg(test)]
mod tests;
