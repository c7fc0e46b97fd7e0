//! Interrupted builds: nothing stays mounted or running, and the next build works.

use std::io::{BufRead as _, BufReader};
use std::process::Child;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::environment::{Environment, mounts_below, own_sleep, processes_with, signal, tool};

/// Takes long enough to be recorded before the next step begins.
const LONG: &str = "RUN sleep 0.6; echo first > /first\n";

fn slow_build(world: &Environment, step: &str) -> Child {
    world.dockerfile(&format!("FROM BUSYBOX\n{LONG}RUN echo started; {step}\nRUN echo last > /last\n"));
    let mut child = world.start(&["build", "-t", "slow", "."]);
    let stderr = BufReader::new(child.stderr.take().expect("is piped"));
    let mut lines = stderr.lines();
    let started = lines.find(|line| line.as_ref().is_ok_and(|line| line.ends_with(" started")));
    assert!(started.is_some(), "the slow step never began");
    // The pipe must stay open and drained, or the program would notice.
    std::thread::spawn(move || lines.for_each(drop));
    child
}

#[track_caller]
fn nothing_is_left(world: &Environment, step: &str) {
    let deadline = Instant::now() + Duration::from_secs(5);
    while !processes_with(step).is_empty() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(processes_with(step), [""; 0]);
    assert_eq!(mounts_below(&world.root()), [""; 0]);
}

#[track_caller]
fn the_next_build_works(world: &Environment) {
    world.dockerfile(&format!("FROM BUSYBOX\n{LONG}RUN echo quick > /last\n"));
    let outcome = world.build("slow").success();
    assert_eq!(outcome.cached(), 1, "the finished step is kept:\n{}", outcome.stderr);
    assert_eq!(world.run("slow", &["cat", "/last"]), "quick\n");
}

#[test]
fn ctrl_c_ends_a_build_within_a_second() {
    let world = Environment::new();
    let step = own_sleep(7011);
    let mut child = slow_build(&world, &step);
    let start = Instant::now();
    signal(&child, Signal::INT);
    let status = child.wait().expect("ends");
    assert!(start.elapsed() < Duration::from_secs(1), "took {:?}", start.elapsed());
    assert_eq!(status.code(), Some(130));
    nothing_is_left(&world, &step);
    the_next_build_works(&world);
}

#[test]
fn ctrl_c_twice_ends_a_build_at_once() {
    let world = Environment::new();
    let step = own_sleep(7013);
    let mut child = slow_build(&world, &step);
    for _ in 0..2 {
        // The first may have been enough; then the second meets what nobody waited for.
        signal(&child, Signal::INT);
    }
    assert_eq!(child.wait().expect("ends").code(), Some(130));
    nothing_is_left(&world, &step);
    the_next_build_works(&world);
}

#[test]
fn a_killed_build_leaves_nothing() {
    let world = Environment::new();
    let step = own_sleep(7012);
    let mut child = slow_build(&world, &step);
    child.kill().expect("kills");
    child.wait().expect("ends");
    nothing_is_left(&world, &step);
    the_next_build_works(&world);
}

#[test]
fn kills_at_many_moments() {
    let world = Environment::new();
    world.write("data/file", "content");
    let text: String = (0..12).map(|step| format!("RUN echo {step} > /f{step}\n")).collect();
    world.dockerfile(&format!("FROM BUSYBOX\nCOPY data /data\n{text}"));
    for delay in [5, 20, 35, 50, 70, 90, 120, 150, 200] {
        let mut child = world.start(&["build", "--no-cache", "-t", "killed", "."]);
        std::thread::sleep(Duration::from_millis(delay));
        child.kill().expect("kills");
        child.wait().expect("ends");
    }
    world.build("whole").success();
    assert_eq!(world.run("whole", &["sh", "-c", "cat /f0 /f11 /data/file"]), "0\n11\ncontent");
    assert_eq!(mounts_below(&world.root()), [""; 0]);
}

#[test]
fn a_full_disk_is_one_clear_error() {
    let world = Environment::new();
    // Who may not mount is given one.
    let (small, unmount) = match std::env::var_os("STAVE_TEST_SMALL_DISK") {
        Some(given) => (given.into(), None),
        None => {
            let small = world.path("small");
            std::fs::create_dir(&small).expect("creates");
            tool("mount", &["-t", "tmpfs", "-o", "size=24m", "tmpfs", small.to_str().expect("is text")]);
            (small.clone(), Some(Unmount(small)))
        }
    };
    world.dockerfile("FROM BUSYBOX\nRUN echo small > /small\n");
    let root = small.join("state").display().to_string();
    world.stave(["build", "--root", &root, "-t", "small", "."]).success();
    world.dockerfile("FROM BUSYBOX\nRUN echo small > /small\nCOPY big /big\n");
    std::fs::write(world.context().join("big"), vec![7; 40 << 20]).expect("writes");
    world.stave(["build", "--root", &root, "-t", "big", "."]).exits(1).says("No space left on device");
    std::fs::write(world.context().join("big"), "small after all").expect("writes");
    world.stave(["build", "--root", &root, "-t", "big", "."]).success();
    // Somebody else takes every block that is left: what looks at the store or makes room still works.
    let filler = small.join("filler");
    std::fs::write(&filler, vec![7; 40 << 20]).expect_err("no room");
    world.stave(["build", "--root", &root, "-t", "big", "."]).exits(1).says("No space left on device");
    world.stave(["du", "--root", &root]).success();
    world.stave(["doctor", "--root", &root]).success();
    world.stave(["rmi", "--root", &root, "small", "big"]).success();
    let pruned = world.stave(["prune", "--root", &root, "--all", "--force"]).success().stdout;
    assert!(!pruned.contains("removed 0 layers"), "{pruned}");
    std::fs::remove_file(filler).expect("removes");
    world.stave(["build", "--root", &root, "-t", "again", "."]).success();
    drop(unmount);
}

struct Unmount(std::path::PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        tool("umount", &[self.0.to_str().expect("is text")]);
    }
}
