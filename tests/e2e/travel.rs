//! Caches from and for elsewhere: written by one state directory, found by another.

use std::fs;

use stave_test_support::TestBucket;
use stave_test_support::bucket::{ACCESS_KEY, SECRET_KEY};

use crate::environment::{Environment, Outcome, registry};

const STEPS: &str = "FROM BUSYBOX AS tools\nRUN echo tool > /tool\nCOPY src /src\n\
    FROM BUSYBOX\nWORKDIR /w\nCOPY --from=tools /tool /src/a ./\nRUN cat tool a > both\nCOPY --chown=1:2 b* ./\n";

/// A project of which several machines have a copy.
fn project() -> Environment {
    let world = Environment::new();
    world.write("src/a", "a\n").write("b1", "b\n").write("b2", "b\n").dockerfile(STEPS);
    world
}

fn place(world: &Environment) -> String {
    world.path("cache").display().to_string()
}

fn build(world: &Environment, flags: &[&str]) -> Outcome {
    let context = world.context().display().to_string();
    let mut words = vec!["build", "-t", "it", "--progress=plain"];
    words.extend(flags);
    words.push(&context);
    world.stave(&words)
}

/// Forgets everything this machine has built.
fn another_machine(world: &Environment) {
    fs::remove_dir_all(world.root()).expect("a state directory");
}

#[track_caller]
fn travels(world: &Environment, to: &str, from: &str) {
    let first = build(world, &["--cache-to", to]).success();
    assert_eq!(first.cached(), 0);
    another_machine(world);
    let second = build(world, &["--cache-from", from]).success().says("importing cache manifest from");
    assert_eq!(second.cached(), 6, "{}", second.stderr);
    assert_eq!(world.run("it", &["cat", "/w/both"]), "tool\na\n");
    // What was imported is this machine's own from now on.
    assert_eq!(build(world, &[]).success().cached(), 6);
}

#[test]
fn through_a_directory() {
    let world = project();
    let dir = place(&world);
    travels(&world, &format!("type=local,dest={dir},mode=max"), &format!("type=local,src={dir}"));
}

#[test]
fn the_layers_of_the_result_are_enough_for_the_same_result() {
    let world = project();
    let dir = place(&world);
    let to = format!("type=local,dest={dir},compression=zstd,image-manifest=false,tag=t");
    travels(&world, &to, &format!("type=local,src={dir},tag=t"));
}

#[test]
fn through_a_registry_in_every_form() {
    let name = |tag: &str| format!("{}/travel/e2e:{tag}-{}", registry(), std::process::id());
    for (tag, options) in [("max", ",mode=max"), ("list", ",oci-mediatypes=false")] {
        let (world, name) = (project(), name(tag));
        travels(&world, &format!("type=registry,ref={name}{options}"), &name);
    }
}

#[test]
fn through_a_bucket() {
    let (world, bucket) = (project(), TestBucket::start().expect("a server"));
    let place = |secret: &str| {
        format!(
            "type=s3,bucket=caches,region=eu-test-1,endpoint_url={},use_path_style=true,name=app,prefix=a b/,\
             access_key_id={ACCESS_KEY},secret_access_key={secret}",
            bucket.url()
        )
    };
    let from = place(SECRET_KEY);
    travels(&world, &format!("{from},mode=max"), &from);
    let objects = bucket.objects();
    assert!(objects.contains(&"/caches/a%20b/manifests/app".to_owned()), "{objects:?}");
    assert!(objects.iter().any(|name| name.starts_with("/caches/a%20b/blobs/sha256%3A")), "{objects:?}");
    // What is there is touched, not sent again.
    build(&world, &["--no-cache-filter", "nothing", "--cache-to", &format!("{from},mode=max")]).success();
    assert!(bucket.touched() > 0 && bucket.objects() == objects);
    let wrong = build(&world, &["--cache-to", &place("guessed")]).exits(1);
    wrong.says("403").never_says("guessed");
}

#[test]
fn inside_of_an_image() {
    let world = project();
    let name = format!("{}/travel/inline:{}", registry(), std::process::id());
    let output = format!("type=image,name={name},push=true");
    let context = world.context().display().to_string();
    let image = |flags: &[&str]| {
        let words = ["build", "-q", "-o", &output, "--cache-to", "type=inline"];
        world.stave([&words, flags, &[&context]].concat()).success().stdout
    };
    let first = image(&[]);
    another_machine(&world);
    assert_eq!(build(&world, &["--cache-from", &name]).success().cached(), 6);
    another_machine(&world);
    assert_eq!(image(&["--cache-from", &name]), first, "and it has the whole cache again");
}

#[test]
fn what_changed_runs_and_the_rest_is_found() {
    let world = project();
    let dir = place(&world);
    build(&world, &["--cache-to", &format!("type=local,dest={dir},mode=max")]).success();
    another_machine(&world);
    world.write("b2", "other\n");
    let from = format!("type=local,src={dir}");
    assert_eq!(build(&world, &["--cache-from", &from]).success().cached(), 5);
    another_machine(&world);
    world.write("src/a", "changed\n");
    // The tool is found; what copies the file, and all above it, runs.
    assert_eq!(build(&world, &["--cache-from", &from]).success().cached(), 2);
    assert_eq!(world.run("it", &["cat", "/w/both"]), "tool\nchanged\n");
}

#[test]
fn what_stood_below_a_hit_goes_on_to_the_next_cache() {
    let world = project();
    let (first, second) = (place(&world), world.path("second").display().to_string());
    build(&world, &["--cache-to", &format!("type=local,dest={first},mode=max")]).success();
    another_machine(&world);
    // Nobody needs more than the result.
    let (from, to) = (format!("type=local,src={first}"), format!("type=local,dest={second},mode=max"));
    assert_eq!(build(&world, &["--cache-from", &from, "--cache-to", &to]).success().cached(), 6);
    another_machine(&world);
    fs::remove_dir_all(&first).expect("is there");
    world.dockerfile(&STEPS.replace("--from=tools", "--from=tools --chown=3:4"));
    let third = build(&world, &["--cache-from", &format!("type=local,src={second}")]).success();
    assert_eq!(third.cached(), 3, "{}", third.stderr);
}

#[test]
fn a_cache_that_is_not_there_or_broken_is_a_miss() {
    let world = project();
    let dir = place(&world);
    let from = format!("type=local,src={dir}");
    build(&world, &["--cache-from", &from]).success().says("there is no cache yet");
    another_machine(&world);
    build(&world, &["--cache-to", &format!("type=local,dest={dir},mode=max")]).success();
    another_machine(&world);
    let blobs = world.path("cache").join("blobs/sha256");
    for blob in fs::read_dir(&blobs).expect("blobs").flatten() {
        // Layers are gzip, documents are not.
        if fs::read(blob.path()).expect("a blob").starts_with(&[0x1f, 0x8b]) {
            fs::write(blob.path(), b"broken").expect("written");
        }
    }
    build(&world, &["--cache-from", &from]).success().says("cannot be used");
    assert_eq!(world.run("it", &["cat", "/w/both"]), "tool\na\n");
    another_machine(&world);
    fs::write(world.path("cache").join("index.json"), b"nonsense").expect("written");
    build(&world, &["--cache-from", &from]).success().says("is not an image layout's index");
}

#[test]
fn an_export_that_fails_fails_the_build_unless_told_otherwise() {
    let world = project();
    world.write("file", "");
    let dest = world.context().join("file/cache");
    let to = format!("type=local,dest={}", dest.display());
    build(&world, &["--cache-to", &to]).exits(1).says("failed to export cache to");
    build(&world, &["--cache-to", &format!("{to},ignore-error=true")]).success();
}

#[test]
fn options_are_checked_before_anything_runs() {
    let world = project();
    for (flag, option, said) in [
        ("--cache-to", "type=gha", "cache type \"gha\" is not supported"),
        ("--cache-to", "mode=max,ref=x", "type required form> \"mode=max,ref=x\""),
        ("--cache-to", "type=registry", "registry cache exporter requires ref"),
        ("--cache-from", "type=local,src=/x,mode=max", "unknown option `mode` for local cache importer"),
        ("--cache-from", "type=s3,region=r", "bucket ($AWS_BUCKET) not set for s3 cache"),
    ] {
        build(&world, &[flag, option]).exits(2).says(said);
    }
}

#[test]
fn cache_mounts_travel() {
    let world = Environment::new();
    let dir = place(&world);
    let run =
        "RUN --mount=type=cache,target=/c,id=deps echo \"had $(cat /c/f 2>/dev/null)\"; echo $N > /c/f\n";
    world.dockerfile(&format!("FROM BUSYBOX\nARG N=1\n{run}"));
    // Nothing of them is rubbish before it has its name.
    build(&world, &["--cache-to", &format!("type=local,dest={dir},mounts=true,reset=true")])
        .success()
        .says("saving 1 cache mounts");
    another_machine(&world);
    let from = format!("type=local,src={dir},mounts=true");
    build(&world, &["--build-arg", "N=2", "--cache-from", &from]).success().says("had 1");
    let ls = world.stave(["cache", "mounts", "ls"]).success();
    assert!(ls.stdout.contains("/deps"), "{}", ls.stdout);
    world.stave(["cache", "mounts", "rm", "deps"]).success();
    let source = format!("type=local,src={dir}");
    world.stave(["cache", "mounts", "import", &source, "deps"]).success();
    build(&world, &["--build-arg", "N=3"]).success().says("had 1");
    world.stave(["cache", "mounts", "export", &format!("type=local,dest={dir}"), "deps"]).success();
    let ls = world.stave(["cache", "mounts", "ls", "--from", &source]).success();
    assert!(ls.stdout.contains("/deps"), "{}", ls.stdout);
    world.stave(["cache", "mounts", "rm", "nothing"]).exits(1);
    let nowhere = world.stave(["cache", "mounts", "import", "type=local,src=/nowhere"]);
    nowhere.exits(1).says("no cache mounts in /nowhere");
}
