//! What must come from the cache, and what must not.

use std::fs;
use std::time::{Duration, SystemTime};

use crate::environment::{Environment, is_privileged};

const FOUR_STEPS: &str = "FROM BUSYBOX\nRUN echo base > /base\nCOPY src /src\nRUN cat /src/a /src/b > /both\nRUN echo end >> /both\n";

fn project() -> Environment {
    let world = Environment::new();
    world.write("src/a", "a\n").write("src/b", "b\n").write("other", "o\n").dockerfile(FOUR_STEPS);
    world.build("it").success();
    world
}

/// The steps that ran, by the text of their instruction.
fn ran(world: &Environment) -> Vec<&'static str> {
    let outcome = world.build("it").success();
    let steps = ["RUN echo base", "COPY src", "RUN cat", "RUN echo end"];
    let state = |step: &&'static str| {
        let header = outcome.stderr.lines().find(|line| line.starts_with('#') && line.contains(*step));
        let number = header.and_then(|line| line.split_whitespace().next()).expect("every step is shown");
        !outcome.stderr.contains(&format!("{number} CACHED\n"))
    };
    steps.into_iter().filter(state).collect()
}

#[test]
fn the_same_build_again_executes_nothing() {
    let world = project();
    assert_eq!(ran(&world), [""; 0]);
    assert_eq!(world.build("it").success().cached(), 4);
}

#[test]
fn touching_a_file_is_no_change() {
    let world = project();
    let file = fs::File::options().write(true).open(world.context().join("src/a")).expect("opens");
    file.set_modified(SystemTime::now() - Duration::from_secs(1000)).expect("sets the time");
    assert_eq!(ran(&world), [""; 0]);
}

#[test]
fn a_changed_file_runs_what_depends_on_it() {
    let world = project();
    world.write("src/b", "c\n");
    assert_eq!(ran(&world), ["COPY src", "RUN cat", "RUN echo end"]);
    assert_eq!(world.run("it", &["cat", "/both"]), "a\nc\nend\n");
    world.write("src/b", "b\n");
    assert_eq!(ran(&world), [""; 0], "the first content is still known");
}

#[test]
fn same_size_same_time_other_content_is_a_change() {
    let world = project();
    let path = world.context().join("src/b");
    let before = fs::metadata(&path).expect("is there").modified().expect("has a time");
    fs::write(&path, "x\n").expect("writes");
    fs::File::options().write(true).open(&path).expect("opens").set_modified(before).expect("sets the time");
    assert_eq!(ran(&world), ["COPY src", "RUN cat", "RUN echo end"]);
}

#[test]
fn a_changed_mode_is_a_change() {
    use std::os::unix::fs::PermissionsExt as _;
    let world = project();
    fs::set_permissions(world.context().join("src/b"), fs::Permissions::from_mode(0o755))
        .expect("sets the mode");
    assert_eq!(ran(&world), ["COPY src", "RUN cat", "RUN echo end"]);
}

#[test]
fn a_file_nobody_copies_is_no_change() {
    let world = project();
    world.write("other", "p\n").write("new", "n\n");
    assert_eq!(ran(&world), [""; 0]);
}

#[test]
fn a_changed_instruction_runs_it_and_what_follows() {
    let world = project();
    world.dockerfile(&FOUR_STEPS.replace("> /both", "> /both; true"));
    assert_eq!(ran(&world), ["RUN cat", "RUN echo end"]);
}

#[test]
fn no_cache_runs_everything_and_refreshes() {
    let world = project();
    let outcome = world.stave(["build", "--no-cache", "-t", "it", "."]).success();
    assert_eq!(outcome.cached(), 0);
    assert_eq!(ran(&world), [""; 0]);
}

#[test]
fn a_build_argument_matters_where_it_is_used() {
    let world = Environment::new();
    world.dockerfile("FROM BUSYBOX\nRUN echo before > /b\nARG V\nRUN echo $V > /v\n");
    let build =
        |value: &str| world.stave(["build", "-t", "it", "--build-arg", &format!("V={value}"), "."]).success();
    build("1");
    assert_eq!(build("2").cached(), 1);
    assert_eq!(world.run("it", &["cat", "/v"]), "2\n");
    assert_eq!(build("1").cached(), 2);
}

#[test]
fn an_unchanged_stage_output_cuts_off() {
    let world = Environment::new();
    let text = |word: &str| {
        format!(
            "FROM BUSYBOX AS made\nRUN echo {word} > /log; echo same > /out\nFROM BUSYBOX\nCOPY --from=made /out /out\nRUN cat /out > /copy\n"
        )
    };
    world.dockerfile(&text("one"));
    world.build("it").success();
    world.dockerfile(&text("two"));
    let outcome = world.build("it").success();
    assert_eq!(outcome.cached(), 2, "COPY --from and the RUN after it:\n{}", outcome.stderr);
}

#[test]
fn two_builds_at_once_share_the_store() {
    let world = Environment::new();
    world.write(
        "a/Dockerfile",
        &crate::environment::with_images("FROM BUSYBOX\nRUN sleep 0.3; echo a > /f\nRUN echo x >> /f\n"),
    );
    world.write(
        "b/Dockerfile",
        &crate::environment::with_images("FROM BUSYBOX\nRUN sleep 0.3; echo b > /f\nRUN echo x >> /f\n"),
    );
    let children: Vec<_> = (0..4)
        .map(|number| {
            let folder = if number % 2 == 0 { "a" } else { "b" };
            world.start(&["build", "-t", &format!("image{number}"), folder])
        })
        .collect();
    for child in children {
        let output = child.wait_with_output().expect("ends");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    for number in 0..4 {
        let expected = if number % 2 == 0 { "a\nx\n" } else { "b\nx\n" };
        assert_eq!(world.run(&format!("image{number}"), &["cat", "/f"]), expected);
    }
}

/// Unchanged files of a local context are shared with the layer that the same COPY made before; what is seen is
/// what copying all of them would give.
#[test]
fn a_changed_file_is_copied_alone() {
    let world = Environment::new();
    for file in 0..80 {
        world.write(&format!("src/d{}/f{file}", file / 20), &format!("{file}\n"));
    }
    world.dockerfile("FROM BUSYBOX\nCOPY src /src\n");
    world.build("one").success();
    let links = |image: &str, file: &str| world.run(image, &["stat", "-c", "%h %s", file]);
    assert_eq!(links("one", "/src/d0/f0"), "1 2\n");
    world.write("src/d0/f1", "changed\n").write("src/d3/new", "new\n");
    fs::remove_file(world.context().join("src/d1/f20")).expect("removes");
    world.build("two").success();
    let expected: String =
        (0..80).filter(|file| ![1, 20].contains(file)).map(|file| format!("{file}\n")).collect();
    let read = |image: &str| {
        world.run(image, &["sh", "-c", "cd /src; cat $(ls */f* | grep -v d0/f1$ | sort -t f -k 2 -n)"])
    };
    assert_eq!(read("two"), expected);
    assert_eq!(world.run("two", &["cat", "/src/d0/f1", "/src/d3/new"]), "changed\nnew\n");
    assert_eq!(
        world.run("one", &["cat", "/src/d0/f1", "/src/d1/f20"]),
        "1\n20\n",
        "the first image is as it was"
    );
    // With recorded owners nothing is shared.
    if is_privileged() {
        assert_eq!(links("two", "/src/d0/f0"), "2 2\n");
        assert_eq!(links("two", "/src/d0/f1"), "1 8\n");
    }
    // The layers go one by one, and what they share stays while one is there.
    world.stave(["rmi", "one"]).success();
    world.stave(["prune", "--all", "--force"]).success();
    assert_eq!(read("two"), expected);
}
