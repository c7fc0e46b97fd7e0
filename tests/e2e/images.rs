//! Image commands: names, listings, archives, registries, disk.

use crate::environment::{Environment, registry, tool};

fn built() -> Environment {
    let world = Environment::new();
    world.dockerfile("FROM BUSYBOX\nRUN echo one > /one\nENV A=b\nCMD [\"cat\", \"/one\"]\n");
    world.build("it:1").success();
    world
}

fn json(text: &str) -> serde_json::Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error} in {text}"))
}

#[test]
fn listings_have_dockers_columns() {
    let world = built();
    let text = world.stave(["images"]).success().stdout;
    let header: Vec<&str> = text
        .lines()
        .next()
        .expect("a header")
        .split("   ")
        .map(str::trim)
        .filter(|c| !c.is_empty())
        .collect();
    assert_eq!(header, ["REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE"]);
    assert!(text.lines().any(|line| line.starts_with("it ") && line.contains(" 1 ")), "{text}");
    let id = world.stave(["images", "-q", "it:1"]).success().stdout;
    assert_eq!(id.trim().len(), 12);
    let history = world.stave(["history", "it:1"]).success().stdout;
    assert!(history.starts_with("IMAGE "), "{history}");
    assert!(
        history.contains("RUN /bin/sh -c echo one > /one # buildkit")
            || history.contains("RUN /bin/sh -c echo one > /one"),
        "{history}"
    );
    let listed = json(
        world
            .stave(["images", "--format", "json"])
            .success()
            .stdout
            .lines()
            .find(|l| l.contains("\"it\""))
            .expect("is listed"),
    );
    assert_eq!(listed["Tag"], "1");
}

#[test]
fn tags_come_and_go() {
    let world = built();
    world.stave(["tag", "it:1", "other/name:2"]).success();
    assert_eq!(world.run("other/name:2", &[]), "one\n");
    world.stave(["rmi", "it:1"]).success();
    world.stave(["inspect", "it:1"]).exits(1).says("it:1");
    assert_eq!(world.run("other/name:2", &[]), "one\n");
    world.stave(["rmi", "other/name:2"]).success();
    world.stave(["run", "--rm", "--pull", "never", "other/name:2"]).exits(125);
    world.stave(["rmi", "it:1"]).exits(1).says("No such image");
    world.stave(["tag", "nothing", "x"]).exits(1).says("No such image");
}

#[test]
fn images_travel_through_archives() {
    let world = built();
    for format in ["docker", "oci"] {
        let archive = world.path(&format!("{format}.tar"));
        let archive = archive.to_str().expect("is text");
        world.stave(["save", "--format", format, "-o", archive, "it:1"]).success();
        let other = Environment::new();
        let loaded = other.stave(["load", "-i", archive]).success();
        assert!(loaded.stdout.contains("Loaded image: it:1"), "{}", loaded.stdout);
        assert_eq!(other.run("it:1", &[]), "one\n");
        let id =
            |world: &Environment| json(&world.stave(["inspect", "it:1"]).success().stdout)[0]["Id"].clone();
        assert_eq!(id(&other), id(&world), "the id survives the archive");
    }
    world.stave_with_input(&["load"], b"this is no archive").exits(1).says("archive");
}

#[test]
fn platforms_are_chosen_from_what_is_here() {
    let world = Environment::new();
    world.dockerfile("FROM scratch\nARG TARGETARCH\nLABEL for=$TARGETARCH\n");
    world.stave(["build", "-q", "-t", "two:1", "--platform", "linux/amd64,linux/arm64", "."]).success();
    let [oci, docker] = ["oci.tar", "docker.tar"].map(|name| world.path(name).display().to_string());
    world.stave(["save", "--format=oci", "-o", &oci, "two:1"]).success();
    world.stave(["save", "--platform=linux/arm64", "-o", &docker, "two:1"]).success();
    world
        .stave(["save", "--platform=linux/s390x", "-o", &docker, "two:1"])
        .exits(1)
        .says("image `two:1` is here for linux/amd64, linux/arm64, not for linux/s390x");
    let label = |world: &Environment, platform: &str| {
        let shown = world.stave(["inspect", "--platform", platform, "two:1"]).success().stdout;
        let shown: serde_json::Value = serde_json::from_str(&shown).expect("JSON");
        shown[0]["Config"]["Labels"]["for"].clone()
    };
    let other = Environment::new();
    let loaded = other.stave(["load", "-i", &oci, "--platform", "linux/arm64,linux/amd64"]).success();
    assert_eq!(loaded.stdout, "Loaded image: two:1\n");
    assert_eq!(
        (label(&other, "linux/amd64"), label(&other, "linux/arm64")),
        ("amd64".into(), "arm64".into())
    );
    let third = Environment::new();
    third
        .stave(["load", "-i", &docker, "--platform", "linux/amd64"])
        .exits(1)
        .says("the archive has linux/arm64");
    third.stave(["load", "-i", &docker]).success();
    assert_eq!(label(&third, "linux/arm64"), "arm64");
    // A registry gets what was asked for: one platform is no index.
    let name = format!("{}/images/platforms:{}", registry(), std::process::id());
    world.stave(["tag", "two:1", &name]).success();
    let manifest = |platforms: &[&str]| {
        world.stave([&["push", "-q", &name], platforms].concat()).success();
        let raw = tool("skopeo", &["inspect", "--raw", "--tls-verify=false", &format!("docker://{name}")]);
        serde_json::from_str::<serde_json::Value>(&raw).expect("JSON")
    };
    assert_eq!(manifest(&[])["manifests"].as_array().map(Vec::len), Some(2));
    assert!(manifest(&["--platform=linux/arm64"])["config"].is_object());
}

#[test]
fn platforms_are_pulled_together_and_pushed_as_they_came() {
    let world = Environment::new();
    world.dockerfile("FROM scratch\nARG TARGETARCH\nLABEL for=$TARGETARCH\n");
    let [name, copy] = ["together", "together-again"]
        .map(|one| format!("{}/images/{one}:{}", registry(), std::process::id()));
    let platforms = "linux/amd64,linux/arm64,linux/s390x";
    world.stave(["build", "-q", "-t", &name, "--push", "--platform", platforms, "."]).success();
    let raw =
        |name: &str| tool("skopeo", &["inspect", "--raw", "--tls-verify=false", &format!("docker://{name}")]);
    let other = Environment::new();
    let pulled = other.stave(["pull", "--all-platforms", &name]).success().stdout;
    for platform in platforms.split(',') {
        assert!(pulled.contains(&format!("{platform}: sha256:")), "{pulled}");
        let shown = other.stave(["inspect", "--platform", platform, &name]).success().stdout;
        assert!(shown.contains(&platform[6..]), "{shown}");
    }
    other.stave(["tag", &name, &copy]).success();
    other.stave(["push", "-q", &copy]).success();
    assert_eq!(raw(&copy), raw(&name));
    other.stave(["pull", "--platform=linux/arm64,linux/s390x", &name]).success();
    other
        .stave(["push", "-q", "--platform=linux/amd64", &name])
        .exits(1)
        .says("is here for linux/arm64, linux/s390x");
    other.stave(["pull", "--platform=linux/arm64,linux/mips", &name]).exits(1).says("linux/mips");
}

#[test]
fn an_index_of_others_comes_back_byte_for_byte() {
    let world = Environment::new();
    world.dockerfile("FROM scratch\nARG TARGETARCH\nCOPY <<EOF /for\n$TARGETARCH\nEOF\n");
    let ours = |one: &str| format!("{}/images/{one}:{}", registry(), std::process::id());
    let (theirs, copy) = (ours("theirs"), ours("theirs-again"));
    let spec = format!("type=registry,name={theirs},compression=zstd,force-compression=true");
    let platforms = "--platform=linux/amd64,linux/arm64";
    world.stave(["build", "-q", "-o", &spec, "--provenance=mode=max", platforms, "."]).success();
    let raw =
        |name: &str| tool("skopeo", &["inspect", "--raw", "--tls-verify=false", &format!("docker://{name}")]);
    // Another writer's index: not in our form, with more in it than images.
    let mut index: serde_json::Value = serde_json::from_str(&raw(&theirs)).expect("JSON");
    index["annotations"] = serde_json::json!({"org.example.by": "others"});
    index["manifests"].as_array_mut().expect("a list").reverse();
    let text = serde_json::to_string_pretty(&index).expect("JSON");
    let place = world.context().join("index.json").display().to_string();
    world.write("index.json", &text);
    let (site, path) = theirs.split_once('/').expect("a registry");
    let (repository, tag) = path.rsplit_once(':').expect("a tag");
    let address = format!("http://{site}/v2/{repository}/manifests/{tag}");
    let kind = "Content-Type: application/vnd.oci.image.index.v1+json";
    tool("curl", &["-sSf", "-X", "PUT", "-H", kind, "--data-binary", &format!("@{place}"), &address]);
    let other = Environment::new();
    other.stave(["pull", "-q", "--all-platforms", &theirs]).success();
    other.stave(["tag", &theirs, &copy]).success();
    other.stave(["push", "-q", &copy]).success();
    assert_eq!(raw(&copy), text);
    // Everything in it is there: statements, too.
    let [first, second] = ["one", "two"].map(|name| world.path(name).display().to_string());
    for (from, to) in [(&theirs, &first), (&copy, &second)] {
        let (from, to) = (format!("docker://{from}"), format!("dir:{to}"));
        tool("skopeo", &["copy", "-q", "--all", "--preserve-digests", "--src-tls-verify=false", &from, &to]);
    }
    tool("diff", &["-r", &first, &second]);
    // And in an archive.
    let archive = world.path("saved.tar").display().to_string();
    other.stave(["save", "--format=oci", "-o", &archive, &copy]).success();
    let third = world.path("three").display().to_string();
    let from = format!("oci-archive:{archive}");
    tool("skopeo", &["copy", "-q", "--all", "--preserve-digests", &from, &format!("dir:{third}")]);
    tool("diff", &["-r", &first, &third]);
}

#[test]
fn images_travel_through_a_registry() {
    let world = built();
    let name = format!("{}/travel/it:{}", registry(), std::process::id());
    world.stave(["tag", "it:1", &name]).success();
    let pushed = world.stave(["push", &name]).success();
    assert!(
        pushed.stdout.contains("digest: sha256:") || pushed.stderr.contains("digest: sha256:"),
        "{}{}",
        pushed.stdout,
        pushed.stderr
    );
    let other = Environment::new();
    other.stave(["pull", &name]).success();
    assert_eq!(other.run(&name, &[]), "one\n");
    let again = world.stave(["push", &name]).success();
    assert!(
        again.stderr.contains("already exists") && !again.stderr.contains("pushing sha256:"),
        "{}",
        again.stderr
    );
}

#[test]
fn all_tags_travel_together() {
    let world = built();
    let name = format!("{}/travel/all-{}", registry(), std::process::id());
    for tag in ["one", "two"] {
        world.stave(["tag", "it:1", &format!("{name}:{tag}")]).success();
    }
    let pushed = world.stave(["push", "--all-tags", &name]).success().stdout;
    let told = |tag: &str| pushed.lines().any(|line| line.starts_with(&format!("{tag}: digest: sha256:")));
    assert!(told("one") && told("two") && pushed.lines().count() == 2, "{pushed}");
    let other = Environment::new();
    let pulled = other.stave(["pull", "-q", "-a", &name]).success();
    assert_eq!(pulled.stdout, format!("{name}\n"));
    for tag in ["one", "two"] {
        assert_eq!(other.run(&format!("{name}:{tag}"), &[]), "one\n");
    }
    for command in ["push", "pull"] {
        let refused = world.stave([command, "-a", &format!("{name}:one")]).exits(1);
        refused.says("tag can't be used with --all-tags/-a");
    }
    world.stave(["push", "-a", &format!("{name}-none")]).exits(1).says("does not exist locally with the tag");
    world.stave(["pull", "-a", &format!("{name}-none")]).exits(1).says("-none: not found");
}

#[test]
fn templates_show_what_is_asked_for() {
    let world = built();
    let shown = |words: &[&str]| world.stave(words).success().stdout;
    let id = shown(&["inspect", "-f", "{{.Id}}", "it:1"]);
    assert!(id.starts_with("sha256:") && id.lines().count() == 1, "{id}");
    assert_eq!(
        shown(&["images", "it", "--no-trunc", "--format", "{{.Repository}}:{{.Tag}} {{.ID}}"]),
        format!("it:1 {id}")
    );
    let columns = shown(&["images", "it", "--format", r"table {{.Tag}}\t{{.Repository}}"]);
    assert_eq!(columns.split_whitespace().collect::<Vec<_>>(), ["TAG", "REPOSITORY", "1", "it"]);
    let config = shown(&[
        "image",
        "inspect",
        "--format",
        "{{json .Config.Cmd}} {{.Config.User}}|{{.Config.Labels}}",
        "it:1",
    ]);
    assert_eq!(config, "[\"cat\",\"/one\"] |map[]\n");
    assert!(shown(&["history", "--format", "{{.CreatedBy}}", "it:1"]).starts_with("CMD [\"cat\""));
    world.stave(["inspect", "-f", "{{.Nope}}", "it:1"]).exits(1).says("can't evaluate field Nope");
    world.stave(["images", "--format", "{{.ID"]).exits(2).says("unclosed action");
}

#[test]
fn images_are_listed_by_what_they_are() {
    let world = built();
    world.dockerfile("FROM BUSYBOX\nLABEL kind=test colour=blue\n");
    world.build("other:2").success();
    world.stave(["rmi", "-f", "nothing"]).success();
    let listed = |words: &[&str]| {
        let shown = world.stave([&["images", "--format", "json"], words].concat()).success().stdout;
        let names = shown.lines().map(|line| {
            let line: serde_json::Value = serde_json::from_str(line).expect("JSON");
            format!("{}:{}", line["Repository"].as_str().expect("text"), line["Tag"].as_str().expect("text"))
        });
        names.collect::<Vec<_>>().join(" ")
    };
    assert_eq!(listed(&["-f", "label=kind"]), "other:2");
    assert_eq!(listed(&["-f", "label=kind=test", "-f", "label=colour=red"]), "");
    assert_eq!(listed(&["--filter", "reference=oth*"]), "other:2");
    assert_eq!(listed(&["ot*"]), "other:2");
    assert_eq!(listed(&["-f", "reference=it", "-f", "before=other:2"]), "it:1");
    assert_eq!(listed(&["-f", "since=it:1", "-f", "dangling=false"]), "other:2");
    // The name moves on, the image stays without one.
    world.dockerfile("FROM BUSYBOX\nLABEL kind=new\n");
    world.build("other:2").success();
    assert_eq!(listed(&["-f", "dangling=true"]), "<none>:<none>");
    world.stave(["images", "-f", "colour=blue"]).exits(1).says("invalid filter `colour`");
    world.stave(["images", "-f", "dangling"]).exits(2).says("invalid filter `dangling`");
    world.stave(["images", "-f", "since=nothing"]).exits(1).says("No such image: nothing");
}

#[test]
fn disk_use_goes_down_when_things_go() {
    let world = built();
    assert!(world.stave(["du"]).success().stdout.contains("Total"));
    world.write("blob", &"x".repeat(3_000_000)).dockerfile("FROM BUSYBOX\nCOPY blob /blob\n");
    world.build("large").success();
    world.stave(["rmi", "large"]).success();
    let pruned = world.stave(["prune", "--all", "--force"]).success().stdout;
    assert!(pruned.contains("Total"), "{pruned}");
    assert_eq!(world.run("it:1", &[]), "one\n", "a tagged image survives");
    let size = |folder: &std::path::Path| {
        let text =
            crate::environment::tool("du", &["-s", "--block-size=1", folder.to_str().expect("is text")]);
        text.split_whitespace().next().and_then(|n| n.parse::<u64>().ok()).expect("a number")
    };
    world.build("large").success();
    let with = size(&world.root());
    world.stave(["rmi", "large"]).success();
    world.stave(["prune", "--all", "--force"]).success();
    assert!(size(&world.root()) + 2_500_000 < with, "pruning gives the disk back");
}

#[test]
fn version_and_help() {
    let world = Environment::new();
    assert!(world.stave(["version"]).success().stdout.contains(env!("CARGO_PKG_VERSION")));
    let help = world.stave(["--help"]).success().stdout;
    for verb in [
        "build", "run", "images", "pull", "push", "tag", "rmi", "save", "load", "inspect", "history",
        "login", "logout", "du", "prune", "version",
    ] {
        assert!(
            help.lines().any(|line| line.trim_start().starts_with(verb)),
            "{verb} is missing in:\n{help}"
        );
    }
}

#[test]
fn a_reader_that_stops_reading_is_no_panic() {
    let world = built();
    let line = format!("{} images | true; echo ${{PIPESTATUS[0]}}", crate::environment::program().display());
    let mut command = std::process::Command::new("bash");
    // The store is opened before anything is written: by then nobody reads any more.
    let output = command.args(["-c", &line]).env("STAVE_ROOT", world.root()).output().expect("bash runs");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    let code = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    assert!(code == "141" || code == "0", "{code}");
}

#[test]
fn a_mirror_serves_the_hubs_names() {
    let world = built();
    let tag = std::process::id();
    let there = format!("{}/library/mirrored:{tag}", registry());
    world.stave(["tag", "it:1", &there]).success();
    world.stave(["push", &there]).success();
    let other = Environment::new();
    let config = format!("[registry.\"docker.io\"]\nmirrors = [\"{}\"]\n", registry());
    std::fs::write(other.path("config.toml"), config).expect("writes");
    let config = other.path("config.toml").display().to_string();
    other.dockerfile(&format!("FROM mirrored:{tag}\nRUN cat /one > /two\n"));
    other.stave(["build", "--config", &config, "-t", "two", "."]).success();
    assert_eq!(other.run("two", &["cat", "/two"]), "one\n");
    // The base is kept under the hub's name: no mirror is needed for it any more.
    assert_eq!(other.run(&format!("mirrored:{tag}"), &[]), "one\n");
}
