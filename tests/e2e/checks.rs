//! Questions about a Dockerfile, and the warnings of a build. Nothing here needs a base image.

use serde_json::{Value, json};

use crate::environment::{Environment, Outcome};

const FAULTY: &str = "FROM scratch AS Base\nCOPY a /\nCMD run\nFROM scratch\nCOPY --from=base /a /$X\n";

fn value(outcome: &Outcome) -> Value {
    serde_json::from_str(&outcome.stdout).unwrap_or_else(|error| panic!("{error}: {}", outcome.stdout))
}

/// No image, no layer: what was asked built nothing.
#[track_caller]
fn built_nothing(world: &Environment) {
    assert_eq!(world.stave(["images", "--format", "json"]).success().stdout, "");
}

#[test]
fn a_check_of_a_clean_file() {
    let world = Environment::new();
    // Neither is the file there nor can the command run: a check does not look.
    world.dockerfile("FROM scratch\nCOPY missing /\nRUN [\"/nothing\"]\n");
    for words in [["build", "--check", "."], ["build", "--call=check", "."], ["build", "--call=lint", "."]] {
        assert_eq!(world.stave(words).success().stdout, "Check complete, no warnings found.\n");
    }
    let found = world.stave(["build", "--call=check,format=json", "."]).success();
    assert_eq!(value(&found)["warnings"], Value::Null);
    built_nothing(&world);
}

#[test]
fn a_build_that_a_check_stops_says_why() {
    let world = Environment::new();
    world.dockerfile("# check=error=true\nFROM scratch AS Base\nCOPY Dockerfile /\n");
    world
        .stave(["build", "."])
        .exits(1)
        .says("lint violation found for rules: StageNameCasing")
        .says("warning: Stage name 'Base' should be lowercase");
}

#[test]
fn a_check_lists_what_it_finds_and_fails() {
    let world = Environment::new();
    world.dockerfile(FAULTY);
    let found = world.stave(["build", "--check", "."]).exits(1);
    let expected = "Check complete, 3 warnings have been found!

WARNING: StageNameCasing - https://docs.docker.com/go/dockerfile/rule/stage-name-casing/
Stage name 'Base' should be lowercase
Dockerfile:1
--------------------
   1 | >>> FROM scratch AS Base
   2 |     COPY a /
   3 |     CMD run
--------------------

WARNING: JSONArgsRecommended - https://docs.docker.com/go/dockerfile/rule/json-args-recommended/
JSON arguments recommended for CMD to prevent unintended behavior related to OS signals
Dockerfile:3
--------------------
   1 |     FROM scratch AS Base
   2 |     COPY a /
   3 | >>> CMD run
   4 |     FROM scratch
   5 |     COPY --from=base /a /$X
--------------------

WARNING: UndefinedVar - https://docs.docker.com/go/dockerfile/rule/undefined-var/
Usage of undefined variable '$X'
Dockerfile:5
--------------------
   3 |     CMD run
   4 |     FROM scratch
   5 | >>> COPY --from=base /a /$X
   6 |     
--------------------
";
    assert_eq!(found.stdout, expected);
    let json_words = ["build", "--check", "--call=build,format=json,ignorestatus=true", "."];
    let found = value(&world.stave(json_words).success());
    assert_eq!(found["warnings"].as_array().map(Vec::len), Some(3));
    assert_eq!(found["warnings"][0]["ruleName"], "StageNameCasing");
    assert_eq!(found["sources"][0]["filename"], "Dockerfile");
    // A target narrows the check to what it needs.
    let found = world.stave(["build", "--check", "--target", "base", "."]).exits(1);
    assert!(found.stdout.starts_with("Check complete, 2 warnings have been found!"), "{}", found.stdout);
    world.dockerfile(&format!("# check=skip=all\n{FAULTY}"));
    world.stave(["build", "--check", "."]).success();
    built_nothing(&world);
}

#[test]
fn a_check_reports_what_would_stop_the_build() {
    let world = Environment::new();
    world.dockerfile("FROM scratch AS Base\nCOPY --from=9 a /\n");
    let found = world.stave(["build", "--check", "."]).exits(1);
    assert!(found.stdout.starts_with("Check complete, 1 warning has been found!"), "{}", found.stdout);
    found.says("ERROR: invalid stage index 9\nDockerfile:2\n").says("   2 | >>> COPY --from=9 a /");
    world.dockerfile("# check=error=true\nFROM scratch AS Base\n");
    let found = world.stave(["build", "--call=check,format=json", "."]).exits(1);
    let error = "lint violation found for rules: StageNameCasing";
    assert_eq!(value(&found)["buildError"], json!({"message": error, "location": {}}));
    found.says(error);
    world.stave(["build", "--call=chekc", "."]).exits(2).says("unknown method `chekc`");
}

#[test]
fn targets_and_their_parameters() {
    let world = Environment::new();
    world.dockerfile(
        "# VERSION of everything\nARG VERSION=1\n# base has the tools\nFROM no.such.registry.invalid/img:$VERSION AS base\n\
         # TOKENS to make\nARG TOKENS\nRUN --mount=type=secret,id=login,required=true --mount=type=ssh make\n\
         FROM base AS app\nARG VERSION\n",
    );
    let expected = "TARGET        DESCRIPTION\nbase          has the tools\napp (default) \n";
    assert_eq!(world.stave(["build", "--call=targets", "."]).success().stdout, expected);
    let found = value(&world.stave(["build", "--call=targets,format=json", "."]).success());
    assert_eq!(found["targets"][0]["base"], "no.such.registry.invalid/img:$VERSION");
    assert_eq!(found["targets"][1]["default"], true);
    let found = world.stave(["build", "--call=outline", "--build-arg", "TOKENS=3", "."]).success();
    let expected = "TARGET: app\n\nBUILD ARG   VALUE   DESCRIPTION\nVERSION     1       of everything\n\
                    TOKENS      3       to make\n\nSECRET   REQUIRED\nlogin    true\n\nSSH       REQUIRED\ndefault   \n";
    assert_eq!(found.stdout.trim_end_matches('\n'), expected.trim_end_matches('\n'));
    let found = value(&world.stave(["build", "--call=outline,format=json", "--target=base", "."]).success());
    assert_eq!((&found["name"], &found["description"]), (&json!("base"), &json!("has the tools")));
    assert_eq!(found["secrets"][0]["name"], "login");
}

#[test]
fn the_front_ends_views() {
    let world = Environment::new();
    world.dockerfile(
        "ARG A=1\nFROM scratch AS one\nCOPY a /\nFROM scratch\nCOPY --from=one /a /b\nENV V=$A\n",
    );
    let print = |what: &str| value(&world.stave(["build", "--print", what, "."]).success());
    let tree = print("ast");
    assert_eq!(tree["stages"][0]["instructions"][0]["sources"], json!(["a"]));
    assert_eq!(tree["stages"][1]["instructions"][0]["from"], "one");
    let plan = print("plan");
    assert_eq!(plan["arguments"]["A"], "1");
    assert_eq!(plan["stages"][1]["instructions"][0]["takes_from"], json!(["one"]));
    let graph = print("llb");
    let vertices = graph["vertices"].as_array().expect("a list");
    assert_eq!(vertices.len(), 4, "context, two copies, the output: {graph:#}");
    assert!(
        vertices.iter().all(|vertex| vertex["digest"].as_str().is_some_and(|d| d.starts_with("sha256:")))
    );
    assert_eq!(graph["image"]["config"]["Env"][1], "V=");
    world.dockerfile("FROM scratch\nFRO x\n");
    world.stave(["build", "--print", "ast", "."]).exits(1).says("unknown instruction: FRO");
    built_nothing(&world);
}

#[test]
fn a_build_ends_with_its_warnings() {
    let world = Environment::new();
    world.write("a", "").dockerfile(FAULTY);
    let words = ["build", "--build-arg", "Y=1", "--build-arg", "Z=1", "--build-arg", "HTTP_PROXY=", "."];
    // Stages that nobody needs are built by nobody, and warned about only in what the text shows.
    world
        .stave(words)
        .success()
        .says("\n 4 warnings found (use --check to expand):\n")
        .says("\n - StageNameCasing: Stage name 'Base' should be lowercase (line 1)\n")
        .says("\n - JSONArgsRecommended: JSON arguments recommended for CMD to prevent unintended behavior related to OS signals (line 3)\n")
        .says("\n - UndefinedVar: Usage of undefined variable '$X' (line 5)\n")
        .says("\n - [Warning] One or more build-args [Y Z] were not consumed\n");
    world.dockerfile("ARG VERSION\nFROM scratch\nCOPY a /\n");
    let expected = "[Warning] One or more build-args [VERSOIN] were not consumed (did you mean VERSION?)\n";
    world.stave(["build", "--build-arg", "VERSOIN=1", "."]).success().says(expected);
    world.stave(["build", "--build-arg", "VERSION=1", "."]).success().never_says("warning");
    world.stave(["build", "-q", "--build-arg", "VERSOIN=1", "."]).success().never_says("warning");
}
