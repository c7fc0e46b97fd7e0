//! Where a build's result can go, and what is said about it.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use crate::environment::{Environment, tool};

fn world() -> Environment {
    let world = Environment::new();
    world.write("file", "content\n");
    world.dockerfile(
        "FROM scratch AS files\nCOPY file /dir/file\nCOPY --chown=12:34 --chmod=4755 file /owned\nFROM BUSYBOX\n\
         COPY --from=files / /x/\nRUN ln -s file /x/dir/link && ln /x/dir/file /x/dir/hard && rm /root -r\n",
    );
    world
}

#[test]
fn a_directory_gets_the_root_file_system() {
    let world = world();
    let dest = world.path("out");
    world.stave(["build", "--target", "files", "-o", dest.to_str().expect("is text"), "."]).success();
    assert_eq!(fs::read_to_string(dest.join("dir/file")).expect("is there"), "content\n");
    let owned = fs::metadata(dest.join("owned")).expect("is there");
    // Whoever asks for files gets them, root too.
    let own = fs::metadata(world.context()).expect("is there");
    assert_eq!((owned.uid(), owned.gid()), (own.uid(), own.gid()));
    assert_eq!(owned.permissions().mode() & 0o7777, 0o4755);
    assert!(!dest.join("bin").exists());
}

#[test]
fn a_tar_has_the_merged_tree() {
    let world = world();
    let tar = world.path("out.tar");
    let spec = format!("type=tar,dest={}", tar.display());
    world.stave(["build", "-o", &spec, "."]).success();
    let names = tool("tar", &["-tf", tar.to_str().expect("is text")]);
    assert!(names.lines().any(|name| name.ends_with("x/dir/link")), "{names}");
    assert!(
        !names.lines().any(|name| name.trim_end_matches('/').trim_start_matches("./") == "root"),
        "deleted: {names}"
    );
    assert!(!names.contains(".wh."), "{names}");
    let stdout =
        world.command().args(["build", "--target", "files", "-o", "-", "."]).output().expect("starts");
    assert!(stdout.status.success());
    assert_eq!(&stdout.stdout[257..262], b"ustar", "a tar on standard output");
}

#[test]
fn ids_and_metadata_are_written() {
    let world = world();
    let [id, metadata] = [world.path("iid"), world.path("metadata.json")];
    let words = [
        "build",
        "-q",
        "-t",
        "it",
        "--iidfile",
        id.to_str().expect("text"),
        "--metadata-file",
        metadata.to_str().expect("text"),
        ".",
    ];
    let outcome = world.stave(words).success();
    let id = fs::read_to_string(id).expect("is written");
    assert_eq!(outcome.stdout, format!("{id}\n"));
    assert_eq!(outcome.stderr, "");
    let inspect: serde_json::Value =
        serde_json::from_str(&world.stave(["inspect", "it"]).success().stdout).expect("JSON");
    assert_eq!(inspect[0]["Id"], id);
    assert_eq!(world.stave(["run", "--rm", &id, "cat", "/x/dir/hard"]).success().stdout, "content\n");
    let metadata: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(metadata).expect("is written")).expect("JSON");
    assert_eq!(metadata["containerimage.config.digest"], id);
    assert_eq!(metadata["image.name"], "docker.io/library/it:latest");
    let reference = metadata["buildx.build.ref"].as_str().expect("is there");
    let build = reference.strip_prefix("default/default/").expect("a builder and its node");
    assert!(world.stave(["builds", "ls"]).success().stdout.contains(build), "{build}");
    assert_eq!(metadata.get("buildx.build.warnings"), None);
}

#[test]
fn metadata_holds_warnings_for_those_who_ask() {
    let world = Environment::new();
    world.dockerfile("FROM scratch\nmaintainer me\n");
    let path = world.path("metadata.json");
    let mut command = world.command();
    command.env("BUILDX_METADATA_WARNINGS", "true");
    command.args(["build", "-q", "--metadata-file", path.to_str().expect("text"), "."]);
    assert!(command.output().expect("starts").status.success());
    let metadata: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(path).expect("is written")).expect("JSON");
    let warnings = metadata["buildx.build.warnings"].as_array().expect("warnings");
    let first = &warnings[0];
    assert_eq!(first["range"][0]["start"]["line"], 2);
    assert_eq!(first["sourceInfo"]["filename"], "Dockerfile");
    assert!(first["url"].as_str().is_some_and(|url| url.ends_with("/maintainer-deprecated/")), "{first}");
}

#[test]
fn several_outputs_at_once() {
    let world = world();
    let [oci, local] = [world.path("oci.tar"), world.path("local")];
    let specs = [format!("type=oci,dest={}", oci.display()), format!("type=local,dest={}", local.display())];
    world.stave(["build", "-t", "it", "-o", &specs[0], "-o", &specs[1], "."]).success();
    assert!(oci.is_file());
    assert!(local.join("x/dir/file").is_file());
}

#[test]
fn the_final_line_says_what_was_built() {
    let world = world();
    let first = world.build("it").success();
    let last = first.stderr.trim_end().lines().last().expect("a line").to_owned();
    assert!(last.contains("sha256:"), "{last}");
    let second = world.build("it").success();
    let last = second.stderr.trim_end().lines().last().expect("a line").to_owned();
    assert!(last.contains("cached"), "{last}");
}
