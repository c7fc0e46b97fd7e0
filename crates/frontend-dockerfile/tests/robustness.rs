//! Whatever the text: parsing ends, never panics, and every span lies in the source.

use proptest::prelude::*;
use stave_frontend_dockerfile::{
    ContextSource, NamedContext, PlanRequest, ResolvedSources, Source, Span,
    ast::{Instruction, InstructionKind, Word},
    dockerignore, exchange,
    expand::Expander,
    input::ContextForm,
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
        "# syntax=stave/1\n",
        "# syntax=docker/dockerfile:1-labs\n",
        "INCLUDE x\n",
        "UNSET ENV",
        "ENV a=$(b)\n",
        "--if-exists",
        "--parents",
        "--device=a",
        "--mount=type=secret,id=a,cache=keyed",
        "--mount=type=ssh",
        "--chmod=u+x",
        "--checksum=",
        "https://a.test/b.git?ref=c#d:e",
        "git@a:b",
        "a/./b",
        "trigger",
        "FROM trigger AS t\n",
        "SOURCE_DATE_EPOCH=1",
        "SOURCE_DATE_EPOCH=t",
    ];
    prop_oneof![
        8 => proptest::sample::select(fixed.to_vec()).prop_map(str::to_owned),
        1 => ".{0,6}",
    ]
}

fn text() -> impl Strategy<Value = String> {
    proptest::collection::vec(piece(), 0..40).prop_map(|pieces| pieces.concat())
}

/// Something of everything.
const SOUND: &str = "# syntax=stave/1\n# check=skip=none\nARG V=1 W=${V:-x}\nFROM trigger:$V AS one\nARG V\n\
    ENV A=b C=\"$A d\" E=$(echo x)\nRUN --mount=type=cache,target=/c --mount=from=alpine,target=/m <<EOF cat\n\
    body $A\nEOF\nCOPY --chown=1:2 --chmod=u+x --parents --exclude=*.x a/./b c* /d/\n\
    ADD --checksum=abc https://a.test/b.git?tag=c /f\nADD --keep-git-dir=true git@a.test:b/c.git /g\n\
    ADD https://a.test/h /i\nINCLUDE part\nHEALTHCHECK --interval=1s CMD x\nONBUILD COPY --from=one a b\n\
    FROM --platform=linux/arm64 one AS two\nCOPY --link --from=0 /x /y\nCOPY <<E1 <<-'E2' /z/\n$A\nE1\n\t$A\nE2\n\
    UNSET ENV A\nEXPOSE 80-82/udp $V\nVOLUME [\"/v\", \"/w\"]\nLABEL a=b c='d e'\nUSER $V:g\nWORKDIR a/b\n\
    SHELL [\"/bin/sh\"]\nSTOPSIGNAL 9\nCMD [\"a\"]\nENTRYPOINT b\nMAINTAINER m\nFROM scratch\n\
    COPY --if-exists --from=two a /\nRUN --network=none --security=insecure --device=x y\n";

fn request() -> PlanRequest {
    PlanRequest::new(Platform::new("linux", "amd64", None))
}

/// Whatever it is, it ends without a panic, and an error has a text.
fn drive(text: &str) {
    let target = Platform::new("linux", "arm64", None);
    for request in
        [request(), PlanRequest { target_platform: Some(target), multi_platform: true, ..request() }]
    {
        if let Err(message) = exchange::drive(text, &request) {
            assert!(!message.is_empty(), "{text:?}");
        }
    }
}

#[test]
fn the_sound_file_is_sound() {
    let lowered = exchange::drive(SOUND, &request()).expect("lowers");
    assert!(lowered.definition.vertices().len() > 5, "{}", lowered.definition.vertices().len());
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
    fn lowering_is_total(text in text()) {
        drive(&text);
    }

    #[test]
    fn damaged_files_are_errors_at_worst(cuts in proptest::collection::vec((0..SOUND.len(), piece()), 1..6)) {
        let mut text = SOUND.to_owned();
        for (at, piece) in cuts {
            let at = (0..=at.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
            let end = (at + piece.len()).min(text.len());
            let end = (end..=text.len()).find(|end| text.is_char_boundary(*end)).unwrap_or(text.len());
            text.replace_range(at..end, &piece);
        }
        drive(&text);
    }

    #[test]
    fn lines_in_any_order_are_errors_at_worst(order in proptest::collection::vec(0..SOUND.lines().count(), 1..40)) {
        let lines: Vec<&str> = SOUND.lines().collect();
        let text: String = order.into_iter().flat_map(|at| [lines[at], "\n"]).collect();
        drive(&text);
    }

    #[test]
    fn contexts_are_total(
        text in "(https?://|git://|ssh://|git@|docker-image://|oci-layout://|local:)?[a-z.:/@?&=%#;+-]{0,30}|.{0,20}"
    ) {
        drop(ContextForm::of(&text));
        if let Ok(context) = NamedContext::parse("trigger", &text) {
            let mut request = request();
            request.named_contexts.insert("trigger".to_owned(), context);
            drop(exchange::drive(SOUND, &request));
        }
        let context = ContextSource::Git(text.clone());
        drop(exchange::drive("FROM scratch\nCOPY a b", &PlanRequest { context, ..request() }));
        drop(exchange::drive(&format!("FROM scratch\nADD {text} /x\n"), &request()));
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
