//! Whole files: the tree they become, the places it points at, the errors.

use super::*;
use crate::ast::{CommandLine, Healthcheck, RunNetwork};

fn read(text: &str) -> Parsed {
    parse(&Source::new("Dockerfile", text))
}

#[track_caller]
fn only(instruction: &str) -> InstructionKind {
    let parsed = read(&format!("FROM x\n{instruction}"));
    assert_eq!(parsed.dockerfile.errors(), &[], "{instruction}");
    assert_eq!(parsed.dockerfile.stages[0].instructions.len(), 1, "{instruction}");
    parsed.dockerfile.stages[0].instructions[0].kind.clone()
}

#[track_caller]
fn check_error(text: &str, expected: &str, pointed_at: &str) {
    let parsed = read(text);
    let error = parsed.dockerfile.errors().first().expect("an error");
    assert_eq!(error.to_string(), expected);
    assert_eq!(parsed.dockerfile.source.slice(error.span), pointed_at);
}

#[test]
fn stages_gather_their_instructions() {
    let parsed = read("ARG V=1\nFROM a:$V AS Build\nRUN x\n\nfrom build\nCOPY --from=build /a /b\n");
    let dockerfile = parsed.dockerfile;
    assert_eq!(dockerfile.errors(), &[]);
    assert_eq!((dockerfile.globals.len(), dockerfile.stages.len()), (1, 2));
    let name = dockerfile.stages[0].from.name.as_ref().expect("named");
    assert_eq!(
        (name.name.as_str(), name.written.text.as_str(), name.keyword.text.as_str()),
        ("build", "Build", "AS")
    );
    let InstructionKind::Copy(copy) = &dockerfile.stages[1].instructions[0].kind else { panic!("a COPY") };
    assert_eq!(copy.from.as_ref().map(|word| word.text.as_str()), Some("build"));
    assert_eq!(copy.transfer.destination.text, "/b");
    assert_eq!(dockerfile.source.slice(copy.transfer.destination.span), "/b");
}

#[test]
fn commands_have_two_forms() {
    let InstructionKind::Cmd(command) = only("CMD [\"a\", \"b c\"]") else { panic!("a CMD") };
    assert_eq!(command, CommandLine::Exec(vec!["a".into(), "b c".into()]));
    let InstructionKind::Cmd(CommandLine::Shell(command)) = only("CMD [\"a\", 'b']") else {
        panic!("a shell CMD")
    };
    assert_eq!(command.text, "[\"a\", 'b']");
    let InstructionKind::Entrypoint(command) = only("ENTRYPOINT []") else { panic!("an ENTRYPOINT") };
    assert_eq!(command, CommandLine::Exec(Vec::new()));
    let InstructionKind::Run(run) = only("RUN --network=none --mount=type=cache,target=/c  a  b ") else {
        panic!("a RUN")
    };
    assert_eq!(run.network, RunNetwork::None);
    assert_eq!(run.mounts[0].options.text, "type=cache,target=/c");
    let CommandLine::Shell(command) = run.command else { panic!("shell form") };
    assert_eq!(command.text, "a  b");
}

#[test]
fn pairs_have_two_forms() {
    let InstructionKind::Env(pairs) = only("ENV a=\"b c\" d=e\\ f") else { panic!("an ENV") };
    let pairs: Vec<_> =
        pairs.iter().map(|pair| (pair.name.text.as_str(), pair.value.text.as_str(), pair.legacy)).collect();
    assert_eq!(pairs, [("a", "\"b c\"", false), ("d", "e\\ f", false)]);
    let InstructionKind::Label(pairs) = only("LABEL a  b = c") else { panic!("a LABEL") };
    assert_eq!(
        (pairs[0].name.text.as_str(), pairs[0].value.text.as_str(), pairs[0].legacy),
        ("a", "b = c", true)
    );
    let InstructionKind::Arg(arguments) = only("ARG a b= c=d") else { panic!("an ARG") };
    let defaults: Vec<_> =
        arguments.iter().map(|argument| argument.default.as_ref().map(|word| word.text.as_str())).collect();
    assert_eq!(defaults, [None, Some(""), Some("d")]);
}

#[test]
fn heredocs_are_bodies() {
    let InstructionKind::Run(run) = only("RUN <<-EOF cat <<'X'\n\ta $b\n\tEOF\nc\nX\n") else {
        panic!("a RUN")
    };
    let bodies: Vec<_> = run.heredocs.iter().map(|heredoc| (heredoc.body(), heredoc.expand)).collect();
    assert_eq!(bodies, [("a $b\n".to_owned(), true), ("c\n".to_owned(), false)]);
    let InstructionKind::Copy(copy) = only("COPY <<a \\\n <<\"b\" c /d/\n1\na\n2\nb\n") else {
        panic!("a COPY")
    };
    let files: Vec<_> = copy
        .transfer
        .inline
        .iter()
        .map(|file| (file.name.as_str(), file.content.as_str(), file.expand))
        .collect();
    assert_eq!(files, [("a", "1\n", true), ("b", "2\n", false)]);
    assert_eq!(copy.transfer.sources[0].text, "c");
    let InstructionKind::Onbuild(onbuild) = only("ONBUILD RUN <<E\nx\nE\n") else { panic!("an ONBUILD") };
    assert_eq!(onbuild.expression, "RUN <<E\nx\nE");
}

#[test]
fn healthchecks_have_times() {
    let kind = only("HEALTHCHECK --interval=1m30s --retries=3 CMD [\"x\"]");
    let InstructionKind::Healthcheck(Healthcheck::Command { command, interval, retries, .. }) = kind else {
        panic!("a HEALTHCHECK")
    };
    assert_eq!((command, interval, retries), (CommandLine::Exec(vec!["x".into()]), 90_000_000_000, 3));
    assert_eq!(only("HEALTHCHECK none"), InstructionKind::Healthcheck(Healthcheck::None));
}

#[test]
fn escapes_follow_the_directive() {
    let parsed = read("# escape=`\nFROM x\nENV a=b` c d=C:\\\nCOPY a `\n  b\n");
    assert_eq!(parsed.dockerfile.errors(), &[]);
    let InstructionKind::Env(pairs) = &parsed.dockerfile.stages[0].instructions[0].kind else {
        panic!("an ENV")
    };
    assert_eq!((pairs[0].value.text.as_str(), pairs[1].value.text.as_str()), ("b` c", "C:\\"));
    assert_eq!(parsed.dockerfile.stages[0].instructions[1].code, "COPY a   b");
}

#[test]
fn errors_read_as_dockers() {
    for (text, expected, pointed_at) in [
        ("", "the Dockerfile cannot be empty", ""),
        ("# c\n", "file with no instructions", ""),
        ("ARG a", "dockerfile contains no stages to build", ""),
        ("RUN x\nFROM y", "no build stage in current context", "RUN x"),
        ("FRO x", "dockerfile parse error on line 1: unknown instruction: FRO (did you mean FROM?)", "FRO"),
        ("FROM a\nHEALTH x", "dockerfile parse error on line 2: unknown instruction: HEALTH", "HEALTH"),
        ("FROM a b", "dockerfile parse error on line 1: FROM requires either one or three arguments", "a b"),
        (
            "FROM a AS 1x",
            "dockerfile parse error on line 1: invalid name for build stage: \"1x\", name can't start with a number or contain symbols",
            "1x",
        ),
        ("FROM a\nLABEL b", "LABEL must have two arguments", "b"),
        (
            "FROM a\nFOO\nENV a=b c",
            "Syntax error - can't find = in \"c\". Must be of the form: name=value",
            "c",
        ),
        ("FROM a\nENV =b", "dockerfile parse error on line 2: ENV names can not be blank", "=b"),
        ("FROM a\nRUN [1]", "when using JSON array syntax, arrays must be comprised of strings only", "[1]"),
        ("FROM a\nRUN <<E\nx\n", "unterminated heredoc", "RUN <<E"),
        (
            "FROM a\nCOPY --chwon=b \\\n  c d",
            "dockerfile parse error on line 2: unknown flag: --chwon (did you mean chown?)",
            "--chwon=b",
        ),
        ("FROM a\nUSER", "dockerfile parse error on line 2: USER requires exactly one argument", "USER"),
        (
            "FROM a\nCOPY b",
            "dockerfile parse error on line 2: COPY requires at least two arguments, but only one was provided. Destination could not be determined",
            "b",
        ),
        (
            "FROM a\nCOPY b <<c\nc\n",
            "dockerfile parse error on line 2: COPY cannot accept a heredoc as a destination",
            "<<c",
        ),
        (
            "FROM a\nSHELL sh",
            "dockerfile parse error on line 2: SHELL requires the arguments to be in JSON form",
            "sh",
        ),
        (
            "FROM a\nONBUILD ONBUILD x",
            "dockerfile parse error on line 2: Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed",
            "ONBUILD",
        ),
        (
            "FROM a\nONBUILD FROM x",
            "dockerfile parse error on line 2: FROM isn't allowed as an ONBUILD trigger",
            "FROM",
        ),
        (
            "FROM a\nHEALTHCHECK",
            "dockerfile parse error on line 2: HEALTHCHECK requires at least one argument",
            "HEALTHCHECK",
        ),
        (
            "FROM a\nHEALTHCHECK --timeout=1 CMD x",
            "dockerfile parse error on line 2: time: missing unit in duration \"1\"",
            "--timeout=1",
        ),
        (
            "FROM a\nRUN --network=hots x",
            "dockerfile parse error on line 2: invalid network mode \"hots\"",
            "--network=hots",
        ),
        (
            "FROM a\nRUN --mount=from=$x x",
            "dockerfile parse error on line 2: 'from' doesn't support variable expansion, define alias stage instead",
            "--mount=from=$x",
        ),
        (
            "# check=skp=all\nFROM a",
            "failed to parse check options: invalid check option \"skp\"",
            "# check=skp=all",
        ),
        ("# escape=x\nFROM a", "invalid escape token 'x' does not match ` or \\", "# escape=x"),
    ] {
        check_error(text, expected, pointed_at);
    }
}

#[test]
fn every_error_is_reported_once() {
    let parsed = read("FROM a b\nRUN x\nQUUX\nENV a\n");
    let messages: Vec<_> = parsed.dockerfile.errors().iter().map(ToString::to_string).collect();
    assert_eq!(
        messages,
        [
            "ENV must have two arguments",
            "dockerfile parse error on line 1: FROM requires either one or three arguments",
            "dockerfile parse error on line 3: unknown instruction: QUUX",
        ]
    );
}

#[test]
fn warnings_about_what_stands_before_an_error_come_with_it() {
    let parsed = read("FROM scratch AS Bad\nMAINTAINER x\nRUNX\nFROM scratch AS Worse\n");
    let found: Vec<_> = parsed.diagnostics.iter().map(|found| found.message.as_str()).collect();
    let warnings = [
        "Stage name 'Bad' should be lowercase",
        "Maintainer instruction is deprecated in favor of using label",
    ];
    assert_eq!(found, ["unknown instruction: RUNX", warnings[0], warnings[1]]);
}

#[test]
fn triggers_are_single_instructions() {
    let from = &read("FROM a").dockerfile.stages[0].instruction;
    let trigger = parse_trigger("RUN <<E\nx\nE", from, crate::Dialect::Stable).expect("sound");
    assert!(matches!(trigger.kind, InstructionKind::Run(_)));
    assert_eq!(trigger.span, from.span);
    for (text, expected) in [
        ("RUN a\nRUN b", "onbuild trigger should be a single expression"),
        ("RNU a", "unknown instruction: RNU (did you mean RUN?)"),
        ("", "file with no instructions"),
    ] {
        assert_eq!(
            parse_trigger(text, from, crate::Dialect::Stable).map_err(|error| error.to_string()),
            Err(expected.to_owned())
        );
    }
}
