//! Equal inputs give equal images: on another machine, at another time, with other cores, folders and umasks.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use stave_test_support::workloads::Workload;

use crate::environment::{Environment, registry, tool};

/// Builds a folder on an empty store of its own, under an umask and on these processors, and returns the
/// image id.
fn build(context: &Path, umask: &str, processors: &str) -> String {
    let world = Environment::new();
    let script = format!("umask {umask}; exec taskset -c {processors} \"$@\"");
    let argument = format!("REGISTRY={}", registry());
    let mut command = Command::new("sh");
    command.args(["-c", &script, "sh"]).arg(crate::environment::program()).arg("--root").arg(world.root());
    command.current_dir(context).args(["build", "-q", "--build-arg", &argument, "."]);
    let output = command.output().expect("the program starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("an id").trim().to_owned()
}

/// A workload in a new folder, all of it just made.
fn written(workload: Workload, folder: &Path) -> std::path::PathBuf {
    let context = workload.write(folder).expect("writes the workload");
    tool("sh", &["-c", &format!("find {} -exec touch {{}} +", context.display())]);
    context
}

#[track_caller]
fn check(workload: Workload) {
    let folders = [tempfile::tempdir(), tempfile::tempdir()].map(|folder| folder.expect("a folder"));
    let first = build(&written(workload, folders[0].path()), "022", "0,1");
    let deeper = folders[1].path().join("some/where/else");
    fs::create_dir_all(&deeper).expect("creates");
    let second = build(&written(workload, &deeper), "077", "0");
    assert_eq!(first, second, "{workload:?}");
}

#[test]
fn a_static_program_in_scratch() {
    check(Workload::HelloC);
}

#[test]
fn sixty_steps() {
    check(Workload::Chain60);
}

#[test]
fn twelve_stages() {
    check(Workload::FanOut);
}

#[test]
fn twenty_thousand_files() {
    check(Workload::ManyFiles);
}

#[test]
fn when_files_were_checked_out_does_not_matter() {
    let build = |time: &str| {
        let world = Environment::new();
        world.write("d/file", "content\n").write("d/deep/other", "more\n");
        world.dockerfile(
            "FROM BUSYBOX AS made\nCOPY d /d\nRUN chmod 700 /d/file && mv /d/file /copy\n\
             FROM BUSYBOX\nCOPY --from=made /copy /d /from/\nCOPY d /own\nRUN chmod 711 /own/file\n",
        );
        let touch = |time: &str| {
            tool("find", &[&world.context().to_string_lossy(), "-exec", "touch", "-d", time, "{}", "+"])
        };
        touch(time);
        // Between the two times: the earlier one is not clamped because it is late.
        let epoch = "--build-arg=SOURCE_DATE_EPOCH=1700000000";
        let id = world.stave(["build", "-q", epoch, "."]).success().stdout;
        // What comes from the cache has the times of whoever was first.
        touch("now");
        world.stave(["build", "--verify", epoch, "."]).success();
        (id, world.stave(["build", "-q", epoch, "--squash=all", "."]).success().stdout)
    };
    assert_eq!(build("@1000000000.5"), build("now"));
}

fn world() -> Environment {
    let world = Environment::new();
    world.write("file", "content\n");
    world.dockerfile("FROM BUSYBOX\nRUN echo made > /made\nCOPY file /file\n");
    world
}

fn inspect(world: &Environment, image: &str) -> Value {
    let text = world.stave(["inspect", image]).success().stdout;
    serde_json::from_str::<Value>(&text).expect("JSON")[0].clone()
}

/// Times of files in the image as a tar has them.
fn times(world: &Environment, words: &[&str]) -> Vec<(String, u64)> {
    let folder = world.path("times");
    let spec = format!(
        "type=oci,tar=false,dest={},compression=uncompressed,force-compression=true",
        folder.display()
    );
    world.stave([&["build", "-q", "-o", &spec], words, &["."]].concat()).success();
    let read = |digest: &Value| {
        fs::read(folder.join("blobs").join(digest.as_str().expect("a digest").replace(':', "/")))
            .expect("is there")
    };
    let index: Value =
        serde_json::from_slice(&fs::read(folder.join("index.json")).expect("is there")).expect("JSON");
    let manifest: Value = serde_json::from_slice(&read(&index["manifests"][0]["digest"])).expect("JSON");
    let mut found = Vec::new();
    for layer in manifest["layers"].as_array().expect("a list").iter().rev().take(2) {
        let path = folder.join("blobs").join(layer["digest"].as_str().expect("a digest").replace(':', "/"));
        let listed = tool("tar", &["--full-time", "--utc", "-tvf", path.to_str().expect("text")]);
        for line in listed.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            let date = format!("{} {}", words[3], words[4]);
            let seconds = tool("date", &["-u", "-d", &date, "+%s"]);
            found.push((words[5].to_owned(), seconds.trim().parse().expect("a time")));
        }
    }
    found.sort();
    fs::remove_dir_all(&folder).expect("removes");
    found
}

fn time_of(times: &[(String, u64)], name: &str) -> u64 {
    times.iter().find(|(path, _)| path == name).unwrap_or_else(|| panic!("{name} in {times:?}")).1
}

#[test]
fn one_epoch_dates_the_image_and_its_new_files() {
    let world = world();
    let epoch = ["--build-arg", "SOURCE_DATE_EPOCH=1234567890"];
    world.stave([&["build", "-q", "-t", "it"], epoch.as_slice(), &["."]].concat()).success();
    assert_eq!(inspect(&world, "it")["Created"], "2009-02-13T23:31:30Z");
    let found = times(&world, &epoch);
    assert!(["made", "file"].iter().all(|name| time_of(&found, name) == 1_234_567_890), "{found:?}");
    // Without one the base image dates it, so that nothing is from now.
    let found = times(&world, &[]);
    let base = inspect(&world, "it")["Created"].clone();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("later").as_secs();
    assert!(time_of(&found, "made") + 60 < now, "{base}: {found:?}");
    assert_eq!(time_of(&found, "made"), time_of(&found, "file"));
    // As docker does it.
    let found = times(&world, &["--timestamps=preserve"]);
    assert!(time_of(&found, "made") + 600 > now, "{found:?}");
    // Exporter options say it for one target, as BuildKit has them.
    let folder = world.path("target");
    let spec =
        format!("type=oci,tar=false,dest={},source-date-epoch=7,rewrite-timestamp=true", folder.display());
    world.stave(["build", "-q", "--timestamps=preserve", "-o", &spec, "."]).success();
    let index: Value =
        serde_json::from_slice(&fs::read(folder.join("index.json")).expect("is there")).expect("JSON");
    assert_eq!(
        index["manifests"][0]["annotations"]["org.opencontainers.image.created"],
        "1970-01-01T00:00:07Z"
    );
}

#[test]
fn a_clean_checkout_dates_the_image() {
    let world = world();
    let context = world.context();
    let git = |words: &[&str]| {
        let mut command = Command::new("git");
        command.arg("-C").arg(&context).args(["-c", "user.name=n", "-c", "user.email=e@example"]).args(words);
        command.env("GIT_COMMITTER_DATE", "1300000000 +0000").env("GIT_CONFIG_GLOBAL", "/dev/null");
        assert!(command.output().expect("git").status.success(), "{words:?}");
    };
    git(&["init", "-q"]);
    git(&["add", "."]);
    git(&["commit", "-q", "-m", "one"]);
    world.build("clean").success();
    assert_eq!(inspect(&world, "clean")["Created"], "2011-03-13T07:06:40Z");
    world.write("file", "changed\n");
    world.build("dirty").success();
    assert_ne!(inspect(&world, "dirty")["Created"], "2011-03-13T07:06:40Z");
}

#[test]
fn a_local_base_image_keeps_its_layers() {
    let world = world();
    world.stave(["build", "-q", "-t", "base", "--build-arg", "SOURCE_DATE_EPOCH=1000000000", "."]).success();
    let layers = inspect(&world, "base")["RootFS"]["Layers"].as_array().expect("a list").clone();
    world.dockerfile("FROM base\nRUN echo more > /more\n");
    world.stave(["build", "-q", "-t", "on", "--build-arg", "SOURCE_DATE_EPOCH=1500000000", "."]).success();
    let found = inspect(&world, "on")["RootFS"]["Layers"].as_array().expect("a list").clone();
    assert_eq!(found[..layers.len()], layers[..]);
    let name = format!("{}/reproducible/on:{}", registry(), std::process::id());
    world.stave(["tag", "on", &name]).success();
    world.stave(["push", "-q", &name]).success();
    assert_eq!(Environment::new().run(&name, &["cat", "/made", "/more"]), "made\nmore\n");
}

#[test]
fn verification_names_what_differs() {
    let world = world();
    world.stave(["build", "--verify", "."]).success().says("verified: a second build");
    world.dockerfile(
        "FROM BUSYBOX\nRUN echo same > /same\nRUN date +%N > /stamp; cat /proc/uptime >> /stamp\n",
    );
    let outcome = world.stave(["build", "--verify", "."]).exits(1);
    let outcome = outcome.says("the build is not reproducible: `/stamp`: content differs");
    outcome.says("RUN /bin/sh -c date +%N > /stamp");
}
