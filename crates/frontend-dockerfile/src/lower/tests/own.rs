//! Our own language: what each of its features lowers to, and what is said without it.

use stave_llb::SourceIdentifier;

use super::*;
use crate::request::CommandRequest;

const OWN: &str = "# syntax=stave/1\n";

fn own(text: &str) -> String {
    format!("{OWN}{text}")
}

#[track_caller]
fn check_error(text: &str, expected: &str) {
    let error = try_lower(text, &request()).map(drop).expect_err(text);
    assert_eq!(error, expected, "{text}");
}

/// Lowers with each command answered by its own script's first line in capitals.
fn with_outputs(text: &str) -> (Lowered, Vec<String>) {
    let dockerfile = parse(&Source::new("Dockerfile", text)).dockerfile;
    let plan = crate::plan(&dockerfile, &request()).expect(text);
    let mut resolved = ResolvedSources::default();
    for request in plan.missing(&resolved) {
        let image = base_image(&request.reference.canonical());
        resolved.insert(request, image);
    }
    let mut asked = Vec::new();
    loop {
        let commands = plan.commands(&resolved).expect(text);
        if commands.is_empty() {
            return (lower(&plan, &resolved).expect(text), asked);
        }
        for CommandRequest { key, definition, .. } in commands {
            let Some(Vertex { op: Op::Exec(exec), .. }) = definition.vertex(&key) else { panic!("{text}") };
            let script = exec.args.last().expect("a script").clone();
            let command = script.lines().nth(1).unwrap_or_default().to_owned();
            resolved.insert_output(key, format!("{}\n\n", command.to_uppercase()));
            asked.push(command);
        }
    }
}

#[test]
fn commands_are_asked_for_and_their_output_is_the_value() {
    let text = own("FROM alpine\nENV A=$(one two) B=\"$(three)\"\nENV C=$A\nRUN x\nLABEL l=$B");
    let (lowered, asked) = with_outputs(&text);
    assert_eq!(asked, ["one two", "three"]);
    let env = &lowered.image.config.env;
    assert_eq!(
        env[1..4],
        ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "A=ONE TWO", "B=THREE"]
    );
    assert_eq!(lowered.image.config.labels["l"], "THREE");
    assert_eq!(lowered.definition.vertices().len(), 2, "only the base and the step are left");
}

#[test]
fn a_command_depends_on_what_stands_above_it() {
    let dockerfile = |text: &str| parse(&Source::new("Dockerfile", own(text))).dockerfile;
    let keys = |text: &str| {
        let plan = crate::plan(&dockerfile(text), &request()).expect(text);
        let mut resolved = ResolvedSources::default();
        for request in plan.missing(&resolved) {
            let image = base_image(&request.reference.canonical());
            resolved.insert(request, image);
        }
        let commands = plan.commands(&resolved).expect(text);
        commands.into_iter().map(|command| (command.key, command.definition)).collect::<Vec<_>>()
    };
    let first = keys("FROM alpine\nCOPY a b\nENV A=$(x)\nCOPY c d");
    let second = keys("FROM alpine\nCOPY a b\nENV A=$(x)\nCOPY e f");
    let third = keys("FROM alpine\nCOPY q b\nENV A=$(x)");
    assert_eq!(first[0].0, second[0].0);
    assert_ne!(first[0].0, third[0].0);
    let output = &first[0].1.outputs()[0];
    assert_eq!(output.output, 1, "the mount, not the root file system");
    let several =
        keys("FROM alpine AS a\nENV A=$(x)\nFROM busybox AS b\nENV B=$(y)\nFROM a\nCOPY --from=b x y");
    assert_eq!(several.len(), 2, "stages that do not need each other ask together");
}

#[test]
fn parts_of_values_are_no_commands() {
    check_error(
        &own("FROM alpine\nENV A=x$(y)"),
        "a command must be the whole value, as in `ENV NAME=$(command)`",
    );
    let plain = lowered(&own("FROM alpine\nENV A=\\$(y)"), &request());
    assert_eq!(plain.image.config.env.last().map(String::as_str), Some("A=$(y)"));
    let off = lowered("FROM alpine\nENV A=$(y)", &request());
    assert_eq!(off.image.config.env.last().map(String::as_str), Some("A=$(y)"));
    check_error(&own("FROM alpine\nENV A=$(y)"), "the output of the command is not known");
}

#[test]
fn config_can_be_unset() {
    let text = "FROM alpine\nENV A=1 B=2\nLABEL a=1 b=2\nEXPOSE 1 2/udp\nVOLUME /a /b\nUSER me\nWORKDIR /w\n\
                CMD c\nENTRYPOINT e\nSTOPSIGNAL 9\nHEALTHCHECK CMD h\nUNSET ENV A\nUNSET LABEL b\nUNSET EXPOSE 1\n\
                UNSET VOLUME /a\nunset user\nUNSET WORKDIR\nUNSET CMD\nUNSET ENTRYPOINT\nUNSET STOPSIGNAL\n\
                UNSET HEALTHCHECK\nRUN x$A";
    let lowered = lowered(&own(text), &request());
    let config = &lowered.image.config;
    assert_eq!(config.env.last().map(String::as_str), Some("B=2"));
    assert!(!config.env.iter().any(|entry| entry.starts_with("A=")));
    assert_eq!(config.labels.keys().collect::<Vec<_>>(), ["a"]);
    assert_eq!(config.exposed_ports.keys().collect::<Vec<_>>(), ["2/udp"]);
    assert_eq!(config.volumes.keys().collect::<Vec<_>>(), ["/b"]);
    assert_eq!(
        (config.user.as_str(), config.working_dir.as_str(), config.stop_signal.as_str()),
        ("", "/", "")
    );
    assert_eq!((&config.cmd, &config.entrypoint, &config.healthcheck), (&None, &None, &None));
    let step = last_exec(&own(text), &request());
    assert!(!step.env.iter().any(|entry| entry.starts_with("A=")) && step.user.is_empty() && step.cwd == "/");
    let all = super::lowered(&own("FROM alpine\nLABEL a=1 b=2\nUNSET LABEL"), &request());
    assert!(all.image.config.labels.is_empty());
    assert_eq!(all.image.history.last().map(|step| step.created_by.as_str()), Some("UNSET LABEL"));
    check_error(
        &own("FROM alpine\nLABEL abc=1\nUNSET LABEL abd"),
        "UNSET LABEL: `abd` is not set (did you mean abc?)",
    );
    check_error(
        &own("FROM alpine\nUNSET LABL"),
        "dockerfile parse error on line 3: LABL cannot be unset (did you mean LABEL?)",
    );
    check_error(
        &own("FROM alpine\nUNSET CMD x"),
        "dockerfile parse error on line 3: UNSET CMD takes no names",
    );
}

#[test]
fn sources_may_be_missing() {
    let found = lowered(&own("FROM scratch\nCOPY --if-exists a/b.txt c /x/"), &request());
    let copies: Vec<_> = match &found.definition.vertices().last().expect("a step").op {
        Op::File(file) => file
            .actions
            .iter()
            .map(|action| match &action.kind {
                FileActionKind::Copy(copy) => {
                    (copy.src.clone(), copy.allow_wildcard, copy.allow_empty_wildcard)
                }
                other => panic!("{other:?}"),
            })
            .collect(),
        other => panic!("{other:?}"),
    };
    assert_eq!(copies, [("/a/b.tx[t]".to_owned(), true, true), ("/[c]".to_owned(), true, true)]);
    let Op::Source(source) = &found.definition.vertices()[0].op else { panic!() };
    assert!(matches!(&source.identifier, SourceIdentifier::Local { .. }));
    assert_eq!(source.attrs["local.followpaths"], "[\"[c]\",\"a/b.tx[t]\"]");
    assert_eq!(found.image.history[0].created_by, "COPY a/b.txt c /x/ # buildkit");
}

#[test]
fn secrets_may_be_keyed() {
    let step = last(
        &own("FROM alpine\nRUN --mount=type=secret,id=a,cache=keyed --mount=type=secret,id=b x"),
        &request(),
    );
    assert_eq!(step.metadata.description[KEYED_SECRETS], "a");
    let plain = last("FROM alpine\nRUN --mount=type=secret,id=a --mount=type=secret,id=b x", &request());
    assert_eq!(plain.digest, step.digest, "the definition is the same");
}

#[test]
fn nothing_of_it_works_without_its_syntax() {
    check_error(
        "FROM alpine\nUNSET CMD",
        "dockerfile parse error on line 2: unknown instruction: UNSET (did you mean USER?)",
    );
    check_error("FROM alpine\nINCLUDE x", "dockerfile parse error on line 2: unknown instruction: INCLUDE");
    check_error(
        "FROM alpine\nCOPY --if-exists a b",
        "dockerfile parse error on line 2: unknown flag: --if-exists",
    );
    check_error(
        "FROM alpine\nRUN --mount=type=secret,id=a,cache=keyed x",
        "unexpected key 'cache' in 'cache=keyed'",
    );
    for text in ["UNSET CMD", "INCLUDE x", "COPY --if-exists a b"] {
        let parsed = parse(&Source::new("Dockerfile", format!("FROM alpine\n{text}")));
        let help = parsed.diagnostics[0].help.clone().unwrap_or_default();
        assert!(help.ends_with("needs `# syntax=stave/1` as the first line"), "{help}");
    }
}

#[test]
fn included_files_stand_in_for_their_line() {
    let main = own("FROM alpine\nINCLUDE parts/one.df\nRUN last");
    let source = Source::new("Dockerfile", main);
    let parsed = parse(&source);
    assert_eq!(parsed.missing_includes.len(), 1);
    assert_eq!(parsed.missing_includes[0].path, "parts/one.df");
    let source = source.with_included("parts/one.df", "# about\nRUN one\nINCLUDE ../two.df\n");
    assert_eq!(parse(&source).missing_includes[0].path, "two.df");
    let source = source.with_included("two.df", "RUN two \\\n  more\nRUN three <<E\nx\nE\n");
    let parsed = parse(&source);
    assert!(parsed.diagnostics.is_empty(), "{:?}", parsed.diagnostics);
    let codes: Vec<_> =
        parsed.dockerfile.stages[0].instructions.iter().map(|one| one.code.as_str()).collect();
    assert_eq!(codes, ["RUN one", "RUN two   more", "RUN three <<E", "RUN last"]);
    let plan = crate::plan(&parsed.dockerfile, &request()).expect("plans");
    let mut resolved = ResolvedSources::default();
    for request in plan.missing(&resolved) {
        let image = base_image(&request.reference.canonical());
        resolved.insert(request, image);
    }
    let lowered = lower(&plan, &resolved).expect("lowers");
    let map = lowered.definition.source_map();
    let files: Vec<_> = map.infos.iter().map(|info| info.filename.as_str()).collect();
    assert_eq!(files, ["Dockerfile", "parts/one.df", "two.df"]);
    let places: Vec<_> = lowered
        .definition
        .vertices()
        .iter()
        .filter_map(|vertex| {
            let place = lowered.definition.source_location(&vertex.digest).first()?;
            Some((place.source, place.ranges[0].start.line, place.ranges[0].end.line))
        })
        .collect();
    assert_eq!(places, [(0, 2, 2), (1, 2, 2), (2, 1, 2), (2, 3, 5), (0, 4, 4)]);
}

#[test]
fn includes_have_limits() {
    let check = |source: &Source, expected: &str| {
        let found = parse(source).diagnostics;
        assert!(found.iter().any(|one| one.to_string() == expected), "{found:?}");
    };
    let main = |line: &str| Source::new("Dockerfile", own(&format!("FROM a\n{line}\n")));
    check(&main("INCLUDE /etc/x"), "\"/etc/x\" leads out of the Dockerfile's directory");
    check(&main("INCLUDE ../x"), "\"../x\" leads out of the Dockerfile's directory");
    check(&main("INCLUDE a b"), "dockerfile parse error on line 3: INCLUDE requires exactly one argument");
    check(&main("INCLUDE x"), "cannot read the included file \"x\"");
    let ring = main("INCLUDE x").with_included("x", "INCLUDE y").with_included("y", "INCLUDE x");
    check(&ring, "files include each other in a ring: x -> y -> x");
    let mut deep = main("INCLUDE f0");
    for at in 0..20 {
        deep = deep.with_included(format!("f{at}"), &format!("INCLUDE f{}", at + 1));
    }
    check(&deep, "files include each other more than 16 deep");
    let mut wide = main("INCLUDE f0");
    for at in 0..12 {
        wide = wide.with_included(format!("f{at}"), &format!("INCLUDE f{0}\nINCLUDE f{0}", at + 1));
    }
    check(&wide.with_included("f12", "RUN x"), "more than 1000 files are included");
    let error = main("INCLUDE x").with_included("x", "RUN a\nFOO");
    let found = parse(&error).diagnostics;
    assert_eq!(
        found[0].to_string(),
        "dockerfile parse error on line 2: unknown instruction: FOO (did you mean FROM?)"
    );
    assert_eq!(error.part_at(found[0].span.start).1.name, "x");
}
