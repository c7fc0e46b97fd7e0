//! The Dockerfiles under `testdata/dockerfiles`: what is read of them and what is said about them.
//!
//! Each has a snapshot beside it; `INSTA_UPDATE=always` writes new ones.

use std::{fmt::Write as _, fs, path::Path};

use stave_frontend_dockerfile::{
    Diagnostic, PlanRequest, Source,
    ast::{Instruction, InstructionKind, Word},
    parse, plan,
};
use stave_oci::Platform;

/// A diagnostic with the text it points at.
fn finding(source: &Source, diagnostic: &Diagnostic) -> String {
    let from = source.position(diagnostic.span.start);
    let to = source.position(diagnostic.span.end);
    let mut text = format!(
        "{:?} {}:{}-{}:{} {diagnostic}\n  at {:?}\n",
        diagnostic.severity,
        from.line,
        from.column,
        to.line,
        to.column,
        source.slice(diagnostic.span)
    );
    if let Some(help) = &diagnostic.help {
        writeln!(text, "  help: {help}").expect("a string takes all");
    }
    for note in &diagnostic.notes {
        writeln!(text, "  note: {}", note.text).expect("a string takes all");
    }
    text
}

fn word(word: &Word) -> String {
    format!("`{}`", word.text)
}

/// An instruction with its lines and, where its words are simple, the words.
fn outline(instruction: &Instruction) -> String {
    let words: Vec<String> = match &instruction.kind {
        InstructionKind::From(from) => std::iter::once(&from.base).chain(&from.platform).map(word).collect(),
        InstructionKind::Env(pairs) | InstructionKind::Label(pairs) => {
            pairs.iter().map(|pair| format!("{}={}", word(&pair.name), word(&pair.value))).collect()
        }
        InstructionKind::Copy(copy) => {
            copy.transfer.sources.iter().chain([&copy.transfer.destination]).map(word).collect()
        }
        InstructionKind::Add(add) => {
            add.transfer.sources.iter().chain([&add.transfer.destination]).map(word).collect()
        }
        InstructionKind::Run(run) => {
            run.heredocs.iter().map(|heredoc| format!("{:?}", heredoc.body())).collect()
        }
        InstructionKind::Expose(words) | InstructionKind::Volume(words) => words.iter().map(word).collect(),
        InstructionKind::Onbuild(onbuild) => vec![onbuild.expression.clone()],
        _ => Vec::new(),
    };
    let lines = instruction.lines;
    format!("{}-{} {}\n    {}", lines.first, lines.last, instruction.code, words.join(" "))
        .trim_end()
        .to_owned()
}

fn report(source: &Source) -> String {
    let parsed = parse(source);
    let mut text = String::new();
    for instruction in &parsed.dockerfile.globals {
        writeln!(text, "global {}", outline(instruction)).expect("a string takes all");
    }
    for stage in &parsed.dockerfile.stages {
        writeln!(text, "stage {}", outline(&stage.instruction)).expect("a string takes all");
        for instruction in &stage.instructions {
            writeln!(text, "  {}", outline(instruction)).expect("a string takes all");
        }
    }
    let diagnostics = match plan(&parsed.dockerfile, &PlanRequest::new(Platform::new("linux", "amd64", None)))
    {
        Ok(plan) => plan.warnings,
        Err(error) => error.diagnostics,
    };
    for diagnostic in &diagnostics {
        text.push_str(&finding(source, diagnostic));
    }
    text
}

#[test]
fn dockerfiles_read_as_recorded() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/dockerfiles");
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path(&folder);
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    let _bound = settings.bind_to_scope();
    let mut seen = 0;
    for entry in fs::read_dir(&folder).expect("the folder is there") {
        let path = entry.expect("readable").path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let Some(stem) = name.strip_suffix(".Dockerfile") else { continue };
        seen += 1;
        let source = Source::new(name, fs::read_to_string(&path).expect("UTF-8"));
        insta::assert_snapshot!(stem, report(&source));
    }
    assert!(seen >= 4, "found only {seen} Dockerfiles in {}", folder.display());
}
