//! Whatever the text: parsing ends, never panics, and every span lies in the source.

use proptest::prelude::*;
use stave_frontend_dockerfile::{
    PlanRequest, ResolvedSources, Source, Span,
    ast::{Instruction, InstructionKind, Word},
    dockerignore,
    expand::Expander,
    parse, plan,
    scope::Variables,
};
use stave_oci::Platform;

/// Pieces Dockerfiles are made of, so that random texts reach past the first word.
fn piece() -> impl Strategy<Value = String> {
    let fixed = [
        "FROM",
        "RUN",
        "COPY",
        "ADD",
        "ENV",
        "ARG",
        "LABEL",
        "WORKDIR",
        "USER",
        "EXPOSE",
        "VOLUME",
        "CMD",
        "ENTRYPOINT",
        "SHELL",
        "STOPSIGNAL",
        "HEALTHCHECK",
        "ONBUILD",
        "MAINTAINER",
        "AS",
        "NONE",
        " ",
        "\n",
        "\r\n",
        "\\\n",
        "`\n",
        "\\",
        "# escape=`\n",
        "# check=skip=all\n",
        "\u{feff}",
        "<<EOF",
        "<<-'E'",
        "EOF\n",
        "E\n",
        "--from=0",
        "--mount=type=cache,target=/x",
        "--mount=from=a,\"b\"",
        "--link",
        "--platform=$X",
        "--",
        "[\"a\", \"b\"]",
        "[1]",
        "[",
        "\"",
        "'",
        "$X",
        "${X:-y}",
        "${X",
        "a=b",
        "=",
        "scratch",
        "é",
        "\t",
        "\0",
        "\u{1b}",
        "0",
        "1",
        "/",
        "--interval=5s",
    ];
    prop_oneof![
        8 => proptest::sample::select(fixed.to_vec()).prop_map(str::to_owned),
        1 => ".{0,6}",
    ]
}

fn text() -> impl Strategy<Value = String> {
    proptest::collection::vec(piece(), 0..40).prop_map(|pieces| pieces.concat())
}

fn in_bounds(source: &Source, span: Span) -> bool {
    span.start <= span.end && source.text.get(span.start..span.end).is_some()
}

fn words(kind: &InstructionKind) -> Vec<&Word> {
    match kind {
        InstructionKind::From(from) => std::iter::once(&from.base).chain(&from.platform).collect(),
        InstructionKind::Copy(copy) => {
            copy.transfer.sources.iter().chain([&copy.transfer.destination]).collect()
        }
        InstructionKind::Add(add) => add.transfer.sources.iter().chain([&add.transfer.destination]).collect(),
        InstructionKind::Env(pairs) | InstructionKind::Label(pairs) => {
            pairs.iter().flat_map(|pair| [&pair.name, &pair.value]).collect()
        }
        InstructionKind::Expose(words) | InstructionKind::Volume(words) => words.iter().collect(),
        _ => Vec::new(),
    }
}

fn check_instruction(source: &Source, instruction: &Instruction) -> Result<(), TestCaseError> {
    prop_assert!(in_bounds(source, instruction.span), "{instruction:?}");
    prop_assert!(instruction.lines.first >= 1 && instruction.lines.first <= instruction.lines.last);
    let line = source.position(instruction.span.start).line;
    prop_assert_eq!(line, instruction.lines.first);
    for word in words(&instruction.kind) {
        prop_assert!(in_bounds(source, word.span), "{word:?}");
    }
    Ok(())
}

proptest! {
    #[test]
    fn parsing_is_total_and_spans_are_in_the_source(text in text()) {
        let source = Source::new("Dockerfile", text);
        let parsed = parse(&source);
        for diagnostic in &parsed.diagnostics {
            prop_assert!(in_bounds(&source, diagnostic.span), "{diagnostic:?}");
            prop_assert!(!diagnostic.message.is_empty());
        }
        for instruction in &parsed.dockerfile.globals {
            check_instruction(&source, instruction)?;
        }
        for stage in &parsed.dockerfile.stages {
            check_instruction(&source, &stage.instruction)?;
            for instruction in &stage.instructions {
                check_instruction(&source, instruction)?;
            }
        }
    }

    #[test]
    fn planning_is_total(text in text()) {
        let source = Source::new("Dockerfile", text);
        let parsed = parse(&source);
        match plan(&parsed.dockerfile, &PlanRequest::new(Platform::new("linux", "amd64", None))) {
            Ok(plan) => {
                prop_assert!(parsed.dockerfile.errors().is_empty());
                prop_assert!(plan.stages[plan.target.0].reachable);
                let again = plan.clone().with_triggers(&ResolvedSources::default());
                prop_assert!(again.is_ok_and(|again| again.stages.len() >= plan.stages.len()));
            }
            Err(error) => {
                prop_assert!(!error.diagnostics.is_empty());
                prop_assert!(error.diagnostics.iter().all(|diagnostic| in_bounds(&source, diagnostic.span)));
            }
        }
    }

    #[test]
    fn expansion_is_total(word in "[$a{}:+?#%/\\\\'\"<*! -]{0,24}|.{0,12}") {
        let variables = Variables::from_entries(["a=x*y/z", "b="]);
        for expander in [Expander::new('\\'), Expander::new('`'), Expander::content(), Expander::display('\\')] {
            if let Err(error) = expander.expand(&word, &variables) {
                prop_assert!(error.to_string().starts_with("failed to process"));
            }
        }
    }

    #[test]
    fn words_without_special_letters_expand_to_themselves(word in "[a-zA-Z0-9_./:=,@é-]{1,20}") {
        let expansion = Expander::new('\\').expand(&word, &Variables::default()).expect("nothing to fail on");
        prop_assert_eq!(&expansion.text, &word);
        prop_assert_eq!(expansion.words, vec![word]);
    }

    #[test]
    fn ignore_files_are_lists_of_clean_patterns(text in "[!#a/.* \\n]{0,40}") {
        for pattern in dockerignore::parse(&text) {
            let path = pattern.trim_start_matches('!');
            prop_assert!(!path.contains("//") && !path.contains('\n'), "{pattern:?}");
        }
    }
}
