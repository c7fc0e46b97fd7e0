//! Why steps ran: what is said in a build's output, in `explain`, in records and logs.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use serde_json::Value;

use crate::environment::Environment;
use crate::scenarios::{all, run};

#[test]
fn cache_scenarios() {
    let scenarios = all();
    assert!(scenarios.len() >= 60, "{}", scenarios.len());
    run(&scenarios);
}

#[test]
fn a_miss_is_told_where_it_happens() {
    let world = Environment::new();
    world.write("src/a.rs", "1").write("src/b.rs", "1").write("src/c.rs", "1");
    for name in ["a.rs", "b.rs", "c.rs"] {
        let path = world.context().join("src").join(name);
        fs::set_permissions(path, fs::Permissions::from_mode(0o664)).expect("changes");
    }
    world.dockerfile("FROM BUSYBOX\nCOPY src /src\nRUN cat /src/*\n");
    world.build("it").success().never_says("cache miss");
    world.build("it").success().never_says("cache miss");
    world.write("src/a.rs", "2");
    for name in ["b.rs", "c.rs"] {
        let path = world.context().join("src").join(name);
        fs::set_permissions(path, fs::Permissions::from_mode(0o644)).expect("changes");
    }
    world
        .build("it")
        .success()
        .says("cache miss: src/a.rs changed; 2 files mode 664 → 644")
        .says("cache miss: [2/3] COPY src /src made another result");
    let text = world.stave(["explain"]).success().stdout;
    assert!(text.contains("run: src/a.rs changed; 2 files mode 664 → 644 (since build "), "{text}");
    assert!(!text.contains("--context-modes=git"), "content changed as well: {text}");
}

#[test]
fn a_step_that_failed_had_no_result_to_lose() {
    let world = Environment::new();
    world.dockerfile("FROM BUSYBOX\nRUN false\n");
    world.build("it").exits(1);
    world.build("it").exits(1).never_says("cache miss");
    world.dockerfile("FROM BUSYBOX\nRUN true\n");
    world.build("it").success().never_says("cache miss");
    // What it is compared with is the last that came to something.
    world.dockerfile("FROM BUSYBOX\nRUN false\n");
    world.build("it").exits(1);
    world.dockerfile("FROM BUSYBOX\nRUN echo\n");
    world.build("it").success().says("cache miss: the instruction changed: `RUN true` → `RUN echo`");
}

#[test]
fn values_of_secrets_are_told_at_no_miss() {
    let world = Environment::new();
    world.write("old", "first-hunter2\n").write("new", "second-hunter2\n");
    world.dockerfile("FROM BUSYBOX\nARG HARMLESS\nRUN --mount=type=secret,id=token true\n");
    let build = |value: &str| {
        let secret = format!("id=token,src={}", world.context().join(value).display());
        let value = fs::read_to_string(world.context().join(value)).expect("is there");
        let argument = format!("HARMLESS={}", value.trim());
        world
            .stave(["build", "--no-secret-scan", "--secret", &secret, "--build-arg", &argument, "."])
            .success()
    };
    build("old");
    let told = build("new");
    told.says("cache miss: HARMLESS changed: `***` → `***`");
    let explained = world.stave(["explain", "--format", "json"]).success().stdout;
    assert!(!explained.contains("hunter2"), "{explained}");
}

#[test]
fn modes_alone_suggest_gits_model() {
    let world = Environment::new();
    world.write("a", "1").dockerfile("FROM scratch\nCOPY a /\n");
    world.build("it").success();
    fs::set_permissions(world.context().join("a"), fs::Permissions::from_mode(0o664)).expect("changes");
    world.build("it").success().says("a mode 644 → 664");
    let text = world.stave(["explain"]).success().stdout;
    assert!(text.contains("--context-modes=git"), "{text}");
    let json: Value =
        serde_json::from_str(&world.stave(["explain", "--format", "json"]).success().stdout).expect("JSON");
    assert_eq!(json["steps"][0]["reason"]["hint"], "context-modes", "{json:#}");
    assert_eq!(json["steps"][0]["state"], "ran");
}

#[test]
fn builds_are_recorded_listed_and_removed() {
    let world = Environment::new();
    world
        .write("a", "1")
        .dockerfile("FROM BUSYBOX\nCOPY a /\nRUN echo out; echo err >&2; seq 1 30000\nRUN exit 3\n");
    world.stave(["build", "-t", "it", "."]).exits(1);
    let list = world.stave(["builds", "ls"]).success().stdout;
    assert!(list.contains("BUILD ID") && list.contains("Error"), "{list}");
    let id = world.stave(["builds", "ls", "-q"]).success().stdout.trim().to_owned();
    assert_eq!(id.len(), 12, "{id}");
    let inspect: Value =
        serde_json::from_str(&world.stave(["builds", "inspect", "--format=json", &id[..8]]).success().stdout)
            .expect("JSON");
    assert_eq!(inspect["state"], "failed");
    let step = |words: &str| {
        let steps = inspect["steps"].as_array().expect("a list");
        steps
            .iter()
            .find(|step| step["name"].as_str().is_some_and(|name| name.contains(words)))
            .expect("a step")
    };
    assert_eq!(
        (step("exit 3")["state"].as_str(), step("exit 3")["lines"][0].as_u64()),
        (Some("failed"), Some(4))
    );
    assert_eq!(step("seq 1")["state"], "ran");
    assert!(step("seq 1")["started"].as_u64() < step("seq 1")["ended"].as_u64());
    // The whole log, clipped nowhere.
    let log = world.stave(["logs", &id, "seq 1"]).success().stdout;
    // The two streams are two pipes: which is read first is not said.
    assert!(
        log.contains("out\n") && log.contains("err\n") && log.contains("29999\n30000\n"),
        "{}",
        log.len()
    );
    assert_eq!(log.lines().count(), 30_002);
    let all = world.stave(["logs"]).success().stdout;
    assert!(all.contains("30000") && all.contains("ERROR: "), "{}", all.len());
    let number = step("seq 1")["number"].to_string();
    assert_eq!(world.stave(["builds", "logs", &id, &number]).success().stdout, log);
    world.stave(["logs", &id, "99"]).exits(1);
    let trace: Value =
        serde_json::from_str(&world.stave(["builds", "trace", &id]).success().stdout).expect("JSON");
    let events = trace["traceEvents"].as_array().expect("a list");
    assert!(
        events.iter().any(|event| event["name"] == step("seq 1")["name"] && event["ph"] == "X"),
        "{trace}"
    );
    world.stave(["builds", "open", &id, "--no-browser"]).exits(1).says("was made without a daemon");
    world.stave(["builds", "rm", &id]).success();
    world.stave(["builds", "inspect", &id]).exits(1).says("no such build");
    world.stave(["explain"]).exits(1).says("there are no build records");
}

#[test]
fn a_killed_build_is_seen_as_such() {
    let world = Environment::new();
    world.dockerfile("FROM BUSYBOX\nRUN echo begun; sleep 600\n");
    let mut child = world.start(&["build", "."]);
    let state = || {
        let outcome = world.stave(["builds", "ls", "--format", "json"]);
        let line: Value = serde_json::from_str(outcome.stdout.lines().next().unwrap_or("{}")).expect("JSON");
        line["Status"].as_str().unwrap_or_default().to_owned()
    };
    while state() != "running" {
        std::thread::yield_now();
    }
    world.stave(["builds", "ls"]).success();
    child.kill().expect("kills");
    child.wait().expect("ends");
    assert_eq!(state(), "killed");
    assert!(world.stave(["builds", "inspect"]).success().stdout.contains("Killed"));
}

#[test]
fn states_are_honest() {
    let world = Environment::new();
    world.dockerfile("FROM BUSYBOX\nRUN echo 1 > /1\nRUN echo 2 > /2\nRUN echo 3 > /3\n");
    world.build("it").success();
    world.build("it").success();
    let text = world.stave(["explain"]).success().stdout;
    assert_eq!(text.matches("cached (local)").count(), 1, "only the last is looked up: {text}");
    assert!(text.matches("skipped").count() >= 2, "{text}");
}
