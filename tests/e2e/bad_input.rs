//! Mistakes get one clear error: what, where, why, what to do; and the right exit code.

use crate::environment::{Environment, Outcome};

#[track_caller]
fn refuse(dockerfile: &str, parts: &[&str]) -> Outcome {
    let world = Environment::new();
    world.dockerfile(dockerfile).write("present", "x");
    let mut outcome = world.build("it").exits(1);
    for part in parts {
        outcome = outcome.says(part);
    }
    assert_eq!(outcome.stdout, "");
    world.stave(["inspect", "it"]).exits(1);
    outcome
}

#[test]
fn no_dockerfile() {
    let world = Environment::new();
    world
        .build("it")
        .exits(1)
        .says("failed to read dockerfile")
        .says("no such file or directory")
        .says("hint:");
    world.write("api.Dockerfile", "FROM scratch\n");
    world.build("it").exits(1).says("api.Dockerfile");
    world.stave(["build", "no-such-folder"]).exits(1).says("path \"no-such-folder\" not found");
    world.stave(["build"]).exits(2).says("CONTEXT");
    world.stave(["build", "--no-such-flag", "."]).exits(2).says("--no-such-flag");
    world.stave(["bild", "."]).exits(2).says("build");
}

#[test]
fn mistakes_in_the_dockerfile() {
    refuse("FROM BUSYBOX\nRUM true\n", &["unknown instruction: RUM", "Dockerfile:2", "RUN"]);
    refuse("FROM BUSYBOX\nCOPY --chwon=1 present /\n", &["unknown flag: --chwon", "--chown"]);
    refuse("", &["the Dockerfile cannot be empty"]);
    refuse("RUN true\n", &["no build stage in current context"]);
    refuse("FROM BUSYBOX\nCOPY present\n", &["COPY requires at least two arguments"]);
    refuse("FROM BUSYBOX\nENV\n", &["ENV requires at least one argument"]);
    refuse("FROM BUSYBOX AS Ä\n", &["invalid name for build stage"]);
    refuse("FROM BUSYBOX\nRUN <<EOF\nno end\n", &["unterminated heredoc"]);
}

#[test]
fn stages_that_are_not_there_or_need_themselves() {
    refuse("FROM BUSYBOX AS build\nRUN true\nFROM scratch\nCOPY --from=biuld /x /x\n", &["build"]);
    let world = Environment::new();
    world.dockerfile("FROM BUSYBOX AS one\nFROM BUSYBOX AS two\n");
    world
        .stave(["build", "--target", "tow", "."])
        .exits(1)
        .says("target stage \"tow\" could not be found")
        .says("two");
    refuse(
        "FROM BUSYBOX AS self\nCOPY --from=self /a /b\n",
        &["circular dependency detected on stage: self"],
    );
}

#[test]
fn missing_and_forbidden_files() {
    refuse(
        "FROM BUSYBOX\nCOPY missing /\n",
        &["\"/missing\": not found", "Dockerfile:2", ">>> COPY missing /"],
    );
    let world = Environment::new();
    world
        .dockerfile("FROM BUSYBOX\nCOPY secret.env /\n")
        .write("secret.env", "x")
        .write(".dockerignore", "*.env\n");
    world.build("it").exits(1).says("\"/secret.env\": not found").says("`.dockerignore` excludes it");
    let world = Environment::new();
    std::fs::write(world.path("outside"), "x").expect("writes");
    world.dockerfile("FROM BUSYBOX\nCOPY ../outside /\n");
    world.build("it").exits(1).says("not found");
    std::os::unix::fs::symlink(world.path("outside"), world.context().join("link")).expect("links");
    world.dockerfile("FROM BUSYBOX\nCOPY link/ /\n");
    world.build("it").exits(1);
}

#[test]
fn a_failing_step_shows_itself() {
    let outcome = refuse(
        "FROM BUSYBOX\nRUN true\nRUN echo about to fail; echo on stderr >&2; \\\n  exit 3\nRUN echo never\n",
        &[
            "about to fail",
            "on stderr",
            "did not complete successfully: exit code: 3",
            "   3 | >>> RUN echo about",
            "   4 | >>>   exit 3",
        ],
    );
    assert!(!outcome.stderr.contains("#6 "), "nothing runs after the failure:\n{}", outcome.stderr);
    refuse("FROM BUSYBOX\nRUN no-such-program\n", &["not found", "exit code: 127"]);
    refuse("FROM BUSYBOX\nRUN [\"/no/such/program\"]\n", &["/no/such/program", "no such file or directory"]);
    refuse("FROM BUSYBOX\nUSER nobody-knows\nRUN true\n", &["nobody-knows"]);
}

#[test]
fn values_of_flags() {
    let world = Environment::new();
    world.dockerfile("FROM scratch\n");
    world
        .stave(["build", "-t", "UPPER", "."])
        .exits(2)
        .says("repository name (library/UPPER) must be lowercase");
    world.stave(["build", "-o", "type=nothing", "."]).exits(2).says("type");
    world.stave(["build", "--platform", "a/b/c/d", "."]).exits(2).says("platform");
    world.stave(["build", "--secret", "id=x,src=/no/such/file", "."]).exits(1).says("/no/such/file");
    world.stave(["build", "--add-host", "x", "."]).exits(2).says("name:address");
    let repository = "http://127.0.0.1:1/repository.git";
    world.stave(["build", repository]).exits(1).says("error fetching default branch").says(repository);
}

#[test]
fn an_empty_variable_is_one_that_is_not_set() {
    let world = Environment::new();
    world.dockerfile("FROM scratch\nCOPY Dockerfile /\n");
    let mut command = world.command();
    for name in ["STAVE_CONFIG", "STAVE_OCI_RUNTIME", "DOCKER_DEFAULT_PLATFORM", "BUILDKIT_PROGRESS"] {
        command.env(name, "");
    }
    Outcome::of(command.args(["build", "."]).output().expect("the program starts")).success();
}

#[test]
fn images_that_cannot_be_had() {
    refuse("FROM 127.0.0.1:1/nothing\n", &["127.0.0.1:1/nothing", "Dockerfile:1"]);
    refuse("FROM REGISTRY/no-such-image\n", &["no-such-image", "not found"]);
    let world = Environment::new();
    world.stave(["run", "--rm", "127.0.0.1:1/nothing"]).exits(125).says("127.0.0.1:1");
    world.stave(["pull", "127.0.0.1:1/nothing"]).exits(1).says("127.0.0.1:1");
    world.stave(["push", "127.0.0.1:1/never-built"]).exits(1).says("never-built");
}

#[test]
fn a_broken_configuration_file() {
    let world = Environment::new();
    world.dockerfile("FROM scratch\n");
    std::fs::write(world.path("config.toml"), "[registry.\"docker.io\"]\nmirorrs = []\n").expect("writes");
    let config = world.path("config.toml").display().to_string();
    world.stave(["build", "--config", &config, "."]).exits(1).says("mirorrs").says("config.toml");
    world.stave(["build", "--config", "/no/such.toml", "."]).exits(1).says("/no/such.toml");
}
