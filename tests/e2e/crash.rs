//! Kills at random instants, and several processes at once. Whatever dies, the store stays whole.
//!
//! `cargo xtask crash --kills 500` runs the same longer. Runs are repeatable up to what the machine does: the
//! seed is printed, and `STAVE_CRASH_SEED` sets it.

use std::process::Child;
use std::time::{Duration, Instant};

use crate::environment::{Environment, mounts_below, registry};

/// Kills of a plain test run.
const KILLS: usize = 20;
/// After so many kills everything is looked at.
const EXAMINE_EVERY: usize = 10;
/// The longest an operation is left alone.
const LONGEST: u64 = 300;

/// What a kill may leave and holds nothing up: a claim or a half-made record, and records of what a collection took
/// away before it could say so. A look-up that meets one goes on, and a repair takes them all.
const HARMLESS: [&str; 4] = [
    "a dead process left a file",
    "a cache record leads to a result that is gone",
    // The machine's, and perhaps of another process than these.
    "left its bridge network",
    "control group",
];

/// How long a dead process's last copy may take to be gone.
const SWEPT_WITHIN: Duration = Duration::from_secs(10);

/// A small generator: the tests need no good one.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit.max(1)
    }
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

#[test]
fn nothing_is_lost_to_kills_at_random_instants() {
    let kills = setting("STAVE_CRASH_KILLS", KILLS as u64) as usize;
    let seed = setting("STAVE_CRASH_SEED", u64::from(std::process::id()));
    eprintln!("{kills} kills, seed {seed}");
    let mut random = Random(seed);
    let world = project();
    world.build("kept").success();
    let (mut killed, mut round) = (0, 0);
    while killed < kills {
        round += 1;
        let operation = random.below(10);
        world.write("changing", &format!("{round} {}", random.below(u64::MAX)));
        let child = start(&world, operation, round);
        let limit = Duration::from_millis(random.below(LONGEST));
        // What ended by itself was no kill.
        if kill_after(child, limit) {
            continue;
        }
        killed += 1;
        if killed % EXAMINE_EVERY == 0 || killed == kills {
            examine(&world, killed);
        }
    }
    eprintln!("{killed} of {round} operations were killed");
    // The next build works, and every image runs.
    world.write("changing", "last");
    world.build("last").success();
    assert_eq!(world.run("last", &["cat", "/copied"]), "last");
    for image in images(&world) {
        world.run(&image, &["true"]);
    }
    assert_eq!(mounts_below(&world.root()), [""; 0]);
}

fn project() -> Environment {
    let world = Environment::new();
    world.write("stable", "stable").write("changing", "0");
    world.dockerfile(
        "FROM BUSYBOX AS base\nCOPY stable /stable\nRUN --mount=type=cache,target=/c echo more >> /c/f; echo 1 > /one\n\
         FROM base\nCOPY changing /copied\nRUN cat /copied > /made; i=0; while [ $i -lt 200 ]; do echo $i > /f$i; i=$((i+1)); done\n",
    );
    world
}

fn start(world: &Environment, operation: u64, round: usize) -> Child {
    let tag = format!("t{}", round % 5);
    match operation {
        0..=4 => world.start(&["build", "-t", &tag, "."]),
        5 => world.start(&["build", "--no-cache", "-t", &tag, "."]),
        6 => world.start(&["pull", &format!("{}/busybox", registry())]),
        7 => {
            let name = format!("{}/crash-test:{}", registry(), round % 3);
            world.stave(["tag", "kept", &name]);
            world.start(&["push", &name])
        }
        8 => world.start(&["prune", "--all", "--force"]),
        _ => world.start(&["prune", "--force", "--max-used-space", "6mb"]),
    }
}

/// Whether it ended by itself.
fn kill_after(mut child: Child, limit: Duration) -> bool {
    let deadline = Instant::now() + limit;
    while Instant::now() < deadline {
        if child.try_wait().expect("asks").is_some() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    let ended = child.try_wait().expect("asks").is_some();
    drop(child.kill());
    child.wait().expect("ends");
    ended
}

#[track_caller]
fn examine(world: &Environment, round: usize) {
    let begin = Instant::now();
    loop {
        // Any opening sweeps what dead processes left. One that was about to start a program has a copy of itself for
        // as long as that takes, which holds its files: then it is the next opening.
        world.stave(["images"]).success();
        let doctor = world.stave(["doctor"]);
        if doctor.code == Some(0) {
            break;
        }
        let is_harmless = |line: &str| HARMLESS.iter().any(|words| line.contains(words));
        let mut found = doctor.stdout.lines().filter(|line| line.starts_with("found: "));
        if !found.all(is_harmless) {
            assert!(begin.elapsed() < SWEPT_WITHIN, "after {round} kills:\n{}", doctor.stdout);
            continue;
        }
        world.stave(["doctor", "--repair"]).success();
        world.stave(["doctor"]).success();
        break;
    }
    assert_eq!(world.run("kept", &["cat", "/stable"]), "stable");
}

fn images(world: &Environment) -> Vec<String> {
    let list = world.stave(["images", "-q"]).success().stdout;
    list.lines().map(str::to_owned).collect()
}

/// Builds at once on one store; gives back how often a step ran, over all.
fn at_once(world: &Environment, count: usize, dockerfiles: impl Fn(usize) -> String) -> usize {
    for number in 0..count {
        let name = format!("Dockerfile.{number}");
        world.write(&name, &crate::environment::with_images(&dockerfiles(number)));
    }
    let children: Vec<Child> = (0..count)
        .map(|number| world.start(&["build", "-q", "-f", &format!("Dockerfile.{number}"), "."]))
        .collect();
    let mut ran = 0;
    for child in children {
        let output = child.wait_with_output().expect("ends");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let ids = world.stave(["builds", "ls", "-q"]).success().stdout;
    for id in ids.lines().take(count) {
        let text = world.stave(["builds", "inspect", "--format", "json", id]).success().stdout;
        let record: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        let steps = record["steps"].as_array().expect("a list").iter();
        ran += steps
            .filter(|step| step["name"].as_str().is_some_and(|name| name.contains("RUN echo once")))
            .filter(|step| step["state"] == "ran")
            .count();
    }
    ran
}

#[test]
fn what_may_run_once_runs_once_however_many_build_it() {
    for count in [2, 4, 8] {
        let world = Environment::new();
        world.dockerfile("FROM BUSYBOX\n");
        world.build("base").success();
        let equal = at_once(&world, count, |_| format!("FROM BUSYBOX\nRUN echo once {count}; sleep 0.3\n"));
        assert_eq!(equal, 1, "{count} equal builds");
        let different = at_once(&world, count, |number| {
            format!("FROM BUSYBOX\nRUN echo once {number} of {count}; sleep 0.1\n")
        });
        assert_eq!(different, count, "different ones do not wait for each other");
        world.stave(["doctor"]).success();
    }
}

#[test]
fn nobody_waits_for_a_dead_process() {
    let world = Environment::new();
    world.dockerfile("FROM BUSYBOX\nRUN test -e /nothing || sleep ${N:-2}\n");
    let mut holder = world.start(&["build", "-q", "."]);
    let claims = world.root().join("cache.db.claims");
    while std::fs::read_dir(&claims).map_or(0, Iterator::count) < 2 {
        assert!(holder.try_wait().expect("asks").is_none(), "the step is held");
        std::thread::yield_now();
    }
    holder.kill().expect("kills");
    holder.wait().expect("ends");
    let start = Instant::now();
    world.build("it").success();
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
}
