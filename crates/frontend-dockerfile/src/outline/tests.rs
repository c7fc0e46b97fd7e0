//! Outlines and targets of small files.

use stave_oci::Platform;

use super::*;
use crate::{PlanRequest, Source, parse, plan};

fn read(text: &str, target: Option<&str>, build_args: &[(&str, &str)]) -> Outline {
    let build_args = build_args.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    let request = PlanRequest {
        target: target.map(str::to_owned),
        build_args: build_args.collect(),
        ..PlanRequest::new(Platform::new("linux", "amd64", None))
    };
    let parsed = parse(&Source::new("Dockerfile", text));
    outline(&plan(&parsed.dockerfile, &request).expect("sound"))
}

#[track_caller]
fn check(text: &str, target: Option<&str>, expected: &[&str]) {
    let found = read(text, target, &[("GIVEN", "yes")]);
    let mut shown: Vec<String> = Vec::new();
    for argument in &found.arguments {
        let description = argument.description.as_deref().unwrap_or("-");
        shown.push(format!("{}={} {description} @{}", argument.name, argument.value, argument.lines.first));
    }
    for (kind, all) in [("secret", &found.secrets), ("ssh", &found.agents)] {
        shown
            .extend(all.iter().map(|one| format!("{kind} {} {} @{}", one.id, one.required, one.lines.first)));
    }
    assert_eq!(shown, expected, "{text}");
}

#[test]
fn arguments_of_stages_and_globals() {
    check(
        "# BASE where it starts\nARG BASE=scratch\nARG UNUSED=1\nFROM ${BASE}\nARG NONE\nARG GIVEN=no\n",
        None,
        &["BASE=scratch where it starts @2", "NONE= - @5", "GIVEN=yes - @6"],
    );
    check("ARG A=1\nFROM scratch\nARG A\nARG B=$A-2\nARG TARGETOS\n", None, &["A=1 - @1", "B=1-2 - @4"]);
    check("ARG A=1\nARG B=a$A\nARG C=$B\nFROM img:$B\n", None, &["A=1 - @1", "B=a1 - @2"]);
    check("FROM scratch\nENV E=x\n# A of E\nARG A=${E}y\n", None, &["A=xy of E @4"]);
    check("FROM img\nARG A=${X:?no}\n", None, &["A=${X:?no} - @2"]);
}

#[test]
fn only_what_the_target_needs_counts() {
    let text = "FROM img AS one\nARG A=1\nFROM img AS two\nARG B=2\nFROM one\nARG C=3\nCOPY --from=two / /\n";
    check(text, None, &["A=1 - @2", "B=2 - @4", "C=3 - @6"]);
    check(text, Some("two"), &["B=2 - @4"]);
    let text = "FROM img AS one\nARG A=1\nFROM one\nARG A=2\n";
    check(text, None, &["A=2 - @4"]);
}

#[test]
fn secrets_and_agents() {
    check(
        "FROM img\nARG N=x\nRUN --mount=type=secret,id=t --mount=type=ssh make\n\
         RUN --mount=type=secret,id=t,required=true --mount=type=secret,target=/a/b-$N \\\n\
         --mount=type=ssh,id=git,required make\n",
        None,
        &["N=x - @2", "secret t false @3", "secret b-x false @4", "ssh default false @3", "ssh git true @4"],
    );
}

#[test]
fn a_target_has_a_name_and_a_description() {
    let text = "# Builder makes it\n# builder makes it\nFROM img AS builder\nFROM scratch\n";
    let found = read(text, Some("builder"), &[]);
    assert_eq!((found.name.as_deref(), found.description.as_deref()), (Some("builder"), Some("makes it")));
    assert_eq!(read(text, None, &[]), Outline::default());
}

#[test]
fn targets_are_listed_as_written() {
    let text = "ARG V=1\n# a first\nFROM --platform=$BUILDPLATFORM img:$V AS A\n# other\nFROM a\n";
    let found = targets(&parse(&Source::new("Dockerfile", text)).dockerfile);
    let expected = [
        Target {
            name: Some("a".to_owned()),
            default: false,
            description: Some("first".to_owned()),
            base: "img:$V".to_owned(),
            platform: Some("$BUILDPLATFORM".to_owned()),
            lines: Lines { first: 3, last: 3 },
        },
        Target {
            name: None,
            default: true,
            description: None,
            base: "a".to_owned(),
            platform: None,
            lines: Lines { first: 5, last: 5 },
        },
    ];
    assert_eq!(found, expected);
}

#[test]
fn growing_values_stop_growing() {
    let mut text = String::from("FROM scratch\nARG A=0123456789\n");
    for _ in 0..5000 {
        text.push_str("ARG A=$A$A\n");
    }
    assert_eq!(read(&text, None, &[]).arguments.len(), 1);
}
