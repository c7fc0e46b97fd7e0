//! What a build's result says of itself and how it leaves: options, statements, squashed layers, stages,
//! and a look into images.

use std::fs;
use std::io::Read as _;
use std::path::Path;

use serde_json::{Value, json};

use crate::environment::{Environment, registry, tool};

fn world() -> Environment {
    let world = Environment::new();
    world.write("file", "content\n");
    world.dockerfile(
        "FROM BUSYBOX AS base\nFROM base AS test\nRUN echo tested > /report\n\
         FROM base AS app\nRUN mkdir /d && echo one > /d/a && echo two > /d/b\n\
         RUN rm /d/a && echo more > /d/b\nCOPY file /file\nENV X=1\n",
    );
    world
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error} in {text}"))
}

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(json).collect()
}

/// A file of an OCI layout in a directory.
fn blob(layout: &Path, digest: &Value) -> Value {
    let name = digest.as_str().expect("a digest").replace(':', "/");
    json(&fs::read_to_string(layout.join("blobs").join(name)).expect("is there"))
}

/// The build's image as an unpacked OCI layout, by these further words.
fn layout(world: &Environment, name: &str, words: &[&str]) -> (std::path::PathBuf, Value) {
    let folder = world.path(name);
    let spec = format!("type=oci,tar=false,dest={}", folder.display());
    world.stave([&["build", "-q", "-o", &spec], words, &["."]].concat()).success();
    let index = json(&fs::read_to_string(folder.join("index.json")).expect("is there"));
    (folder, index)
}

#[test]
fn annotations_go_where_they_are_meant_for() {
    let world = world();
    let flags = ["--annotation", "a=1", "--annotation", "manifest-descriptor:b=2"];
    let (folder, index) = layout(&world, "plain", &flags);
    let descriptor = &index["manifests"][0];
    assert_eq!(descriptor["annotations"]["b"], "2");
    assert_eq!(blob(&folder, &descriptor["digest"])["annotations"], json!({"a": "1"}));
    // An index is written when something needs one, and only then can it be annotated.
    world
        .stave(["build", "--annotation", "index:c=3", "."].as_slice())
        .exits(1)
        .says("index annotations not supported for single platform export");
    let flags = ["--provenance", "--annotation", "index:c=3,", "--annotation", "index-descriptor:d=4"];
    let (folder, index) = layout(&world, "indexed", &flags);
    assert_eq!(index["manifests"][0]["annotations"]["d"], "4");
    assert_eq!(blob(&folder, &index["manifests"][0]["digest"])["annotations"]["c"], "3,");
}

#[test]
fn unknown_options_are_errors_with_a_suggestion() {
    let world = world();
    for (spec, expected) in [
        ("type=image,pussh=true", "did you mean `push`?"),
        ("type=oci,dest=x,compresion=zstd", "did you mean `compression`?"),
        ("type=locl,dest=x", "did you mean `local`?"),
    ] {
        world.stave(["build", "-o", spec, "."]).exits(2).says(expected);
    }
    world.stave(["build", "--provenance=mode=most", "."]).exits(2).says("expected `min` or `max`");
}

#[test]
fn a_file_tree_can_be_split_cleaned_and_dated() {
    let world = world();
    let dest = world.path("out");
    fs::create_dir(&dest).expect("creates");
    fs::write(dest.join("stale"), "").expect("writes");
    let spec = |more: &str| format!("type=local,dest={}{more}", dest.display());
    let platform = stave_oci::Platform::host();
    let folder = format!("{}_{}", platform.os, platform.architecture);
    world.stave(["build", "-o", &spec(",platform-split=true"), "."]).success();
    assert_eq!(fs::read_to_string(dest.join(&folder).join("file")).expect("is there"), "content\n");
    assert!(dest.join("stale").exists());
    world.stave(["build", "-o", &spec(",mode=delete,source-date-epoch=1000000000"), "."]).success();
    assert!(!dest.join("stale").exists() && !dest.join(&folder).exists());
    let modified = fs::metadata(dest.join("d/b")).expect("is there").modified().expect("a time");
    let since = modified.duration_since(std::time::UNIX_EPOCH).expect("later");
    assert_eq!(since.as_secs(), 1_000_000_000);
}

#[test]
fn provenance_lies_beside_the_image() {
    let world = world();
    let (folder, index) = layout(&world, "out", &["--build-arg", "SECRETIVE=1", "--provenance=mode=max"]);
    let index = blob(&folder, &index["manifests"][0]["digest"]);
    assert_eq!(index["manifests"].as_array().map(Vec::len), Some(2));
    let [image, attestation] = [&index["manifests"][0], &index["manifests"][1]];
    assert_eq!(attestation["platform"], json!({"architecture": "unknown", "os": "unknown"}));
    assert_eq!(attestation["annotations"]["vnd.docker.reference.type"], "attestation-manifest");
    assert_eq!(attestation["annotations"]["vnd.docker.reference.digest"], image["digest"]);
    let manifest = blob(&folder, &attestation["digest"]);
    let layer = &manifest["layers"][0];
    assert_eq!(layer["mediaType"], "application/vnd.in-toto+json");
    assert_eq!(layer["annotations"]["in-toto.io/predicate-type"], "https://slsa.dev/provenance/v1");
    let statement = blob(&folder, &layer["digest"]);
    let predicate = &statement["predicate"];
    let definition = &predicate["buildDefinition"];
    assert_eq!(definition["externalParameters"]["request"]["args"]["build-arg:SECRETIVE"], "1");
    let material = definition["resolvedDependencies"][0]["uri"].as_str().expect("a material");
    assert!(material.starts_with("pkg:docker/") && material.contains("busybox"), "{material}");
    let steps = definition["internalParameters"]["buildConfig"]["llbDefinition"].as_array().expect("steps");
    assert!(steps.len() >= 4, "{steps:?}");
    let source = &predicate["runDetails"]["metadata"]["buildkit_metadata"]["source"]["infos"][0];
    assert_eq!(source["filename"], "Dockerfile");

    let (folder, index) = layout(&world, "min", &["--provenance=mode=min,version=v0.2"]);
    let index = blob(&folder, &index["manifests"][0]["digest"]);
    let manifest = blob(&folder, &index["manifests"][1]["digest"]);
    let statement = blob(&folder, &manifest["layers"][0]["digest"]);
    assert_eq!(statement["predicateType"], "https://slsa.dev/provenance/v0.2");
    assert_eq!(statement["predicate"].get("buildConfig"), None);
    world
        .stave(["build", "--provenance", "-o", "type=docker,dest=x.tar", "."])
        .exits(1)
        .says("does not support attestations");
    let dest = world.path("files");
    world.stave(["build", "--provenance", "-o", dest.to_str().expect("text"), "."]).success();
    let statement = json(&fs::read_to_string(dest.join("provenance.json")).expect("is there"));
    let subjects = statement["subject"].as_array().expect("a list");
    assert!(subjects.iter().any(|subject| subject["name"] == "file"), "{subjects:?}");
}

#[test]
fn provenance_names_the_checkout() {
    let world = world();
    let context = world.context();
    let git = |words: &[&str]| {
        let mut command = std::process::Command::new("git");
        command.arg("-C").arg(&context).args(["-c", "user.name=n", "-c", "user.email=e@example"]).args(words);
        let output = command.env("GIT_CONFIG_GLOBAL", "/dev/null").output().expect("git");
        assert!(output.status.success(), "{words:?}");
        String::from_utf8(output.stdout).expect("text").trim().to_owned()
    };
    git(&["init", "-q"]);
    git(&["add", "."]);
    git(&["commit", "-q", "-m", "one"]);
    git(&["remote", "add", "origin", "https://user:secret@git.example/team/app.git"]);
    let revision = git(&["rev-parse", "HEAD"]);
    let file = world.path("metadata.json");
    let text = file.to_str().expect("text");
    world.stave(["build", "-q", "--provenance", "--metadata-file", text, "-t", "it", "."]).success();
    let metadata = json(&fs::read_to_string(&file).expect("is there"));
    let details = &metadata["buildx.build.provenance"]["runDetails"]["metadata"]["buildkit_metadata"];
    let expected = json!({
        "revision": revision, "source": "https://git.example/team/app.git", "localdir:context": ".",
    });
    assert_eq!(details["vcs"], expected);
    assert_eq!(details.get("source"), None, "the short form");
    for key in ["containerimage.digest", "containerimage.config.digest", "image.name"] {
        assert!(metadata[key].is_string(), "{key} in {metadata}");
    }
    // Labels are opt-in.
    let labels = || json(&world.stave(["inspect", "it"]).success().stdout)[0]["Config"]["Labels"].clone();
    assert_eq!(labels().get("org.opencontainers.image.revision"), None);
    let mut command = world.command();
    let flag = "org.opencontainers.image.source=mine";
    command.env("BUILDX_GIT_LABELS", "1").args(["build", "-q", "-t", "it", "--label", flag, "."]);
    assert!(command.output().expect("starts").status.success());
    assert_eq!(labels()["org.opencontainers.image.revision"], revision.as_str());
    assert_eq!(labels()["org.opencontainers.image.source"], "mine");
    assert_eq!(labels()["com.docker.image.source.entrypoint"], "Dockerfile");
}

#[test]
fn a_scanner_image_says_what_is_in_the_result() {
    let world = world();
    world.write(
        "scanner/scan.sh",
        "#!/bin/sh\nset -e\ntest -f $BUILDKIT_SCAN_SOURCE/file\n! touch $BUILDKIT_SCAN_SOURCE/x 2>/dev/null\n\
         printf '{\"_type\":\"https://in-toto.io/Statement/v0.1\",\"predicateType\":\"https://spdx.dev/Document\",\
         \"predicate\":{\"spdxVersion\":\"SPDX-2.3\",\"files\":%s,\"depth\":\"%s\"}}' \
         $(ls $BUILDKIT_SCAN_SOURCE | wc -l) $BUILDKIT_SCAN_DEPTH > $BUILDKIT_SCAN_DESTINATION/sbom.spdx.json\n",
    );
    let scanner = crate::environment::with_images(
        "FROM BUSYBOX\nCOPY --chmod=755 scan.sh /scan.sh\nENTRYPOINT [\"/scan.sh\"]\n",
    );
    world.write("scanner/Dockerfile", &scanner);
    world.stave(["build", "-q", "-t", "local/scanner:1", "scanner"]).success();
    let flags = ["--sbom=generator=local/scanner:1,depth=3", "--provenance"];
    let (folder, index) = layout(&world, "out", &flags);
    let index = blob(&folder, &index["manifests"][0]["digest"]);
    let manifest = blob(&folder, &index["manifests"][1]["digest"]);
    assert_eq!(manifest["layers"].as_array().map(Vec::len), Some(2));
    let statement = blob(&folder, &manifest["layers"][0]["digest"]);
    assert_eq!(statement["predicateType"], "https://spdx.dev/Document");
    assert_eq!(statement["predicate"]["spdxVersion"], "SPDX-2.3");
    assert_eq!(statement["predicate"]["depth"], "3");
    // Other stages, and the context, where the Dockerfile says so.
    world.write(
        "scanner/scan.sh",
        "#!/bin/sh\nset -e\nfor name in core $(ls $BUILDKIT_SCAN_SOURCE_EXTRAS); do\n\
         printf '{\"predicateType\":\"https://spdx.dev/Document\",\"predicate\":{\"of\":\"%s\"}}' $name \
         > $BUILDKIT_SCAN_DESTINATION/$name.json\ndone\n\
         test -f $BUILDKIT_SCAN_SOURCE_EXTRAS/sbom-base/file\ntest -f $BUILDKIT_SCAN_SOURCE_EXTRAS/sbom-context/file\n",
    );
    world.stave(["build", "-q", "-t", "local/scanner:1", "scanner"]).success();
    world.write(
        "stages",
        "FROM scratch AS base\nARG BUILDKIT_SBOM_SCAN_STAGE=true\nCOPY file /\n\
        FROM base\nARG BUILDKIT_SBOM_SCAN_CONTEXT=true\n",
    );
    let (folder, index) = layout(&world, "more", &["-f", "stages", "--sbom=generator=local/scanner:1"]);
    let index = blob(&folder, &index["manifests"][0]["digest"]);
    let manifest = blob(&folder, &index["manifests"][1]["digest"]);
    let bills = manifest["layers"].as_array().expect("bills").iter();
    let mut bills: Vec<_> =
        bills.map(|bill| blob(&folder, &bill["digest"])["predicate"]["of"].to_string()).collect();
    bills.sort();
    assert_eq!(bills, ["\"core\"", "\"sbom-base\"", "\"sbom-context\""]);
    // A scanner that says something else is not believed.
    world.write("scanner/scan.sh", "#!/bin/sh\necho '{}' > $BUILDKIT_SCAN_DESTINATION/sbom.json\n");
    world.stave(["build", "-q", "-t", "local/scanner:1", "scanner"]).success();
    world
        .stave(["build", "--sbom=generator=local/scanner:1", "."])
        .exits(1)
        .says("cannot decode in-toto statement `sbom.json`");
}

#[test]
fn statements_are_pushed_as_an_index_or_as_referrers() {
    let world = world();
    for (kind, more) in [("index", ""), ("referrer", ",oci-artifact=true")] {
        let name = format!("{}/exports/{kind}:{}", registry(), std::process::id());
        let spec = format!("type=image,name={name},push=true{more}");
        world.stave(["build", "-q", "--provenance", "-o", &spec, "."]).success();
        let raw = |name: &str| {
            json(&tool("skopeo", &["inspect", "--raw", "--tls-verify=false", &format!("docker://{name}")]))
        };
        let index = raw(&name);
        assert_eq!(index["mediaType"], "application/vnd.oci.image.index.v1+json");
        let (base, _) = name.rsplit_once(':').expect("a tag");
        let at = |n: usize| format!("{base}@{}", index["manifests"][n]["digest"].as_str().expect("a digest"));
        let attestation = raw(&at(1));
        let subject = &attestation["subject"]["digest"];
        assert_eq!(subject, if more.is_empty() { &Value::Null } else { &index["manifests"][0]["digest"] });
        // What the registry does not list, a tag does; whatever does, it is found.
        if !more.is_empty() {
            let image = at(0);
            let tag = image.rsplit_once('@').expect("a digest").1.replace(':', "-");
            let listed = raw(&format!("{base}:{tag}"));
            // Earlier runs at this registry made the same image, and other statements of it.
            let wanted = &index["manifests"][1]["digest"];
            let own = |list: &[Value]| list.iter().find(|one| one["digest"] == *wanted).cloned();
            assert!(own(listed["manifests"].as_array().expect("a list")).is_some(), "{listed}");
            let platform = stave_oci::Platform::host().to_string();
            let words = ["image", "referrers", "--json", "--platform", &platform, &name];
            let found = lines(&world.stave(words).success().stdout);
            let found = own(&found).expect("is listed");
            assert_eq!(found["artifactType"], "application/vnd.docker.attestation.manifest.v1+json");
        }
        // Whoever knows nothing of statements gets the image.
        let other = Environment::new();
        assert_eq!(other.run(&name, &["cat", "/file"]), "content\n");
        // Pushed again from the store it says the same.
        let again = format!("{}/exports/{kind}-again:{}", registry(), std::process::id());
        world.stave(["tag", &name, &again]).success();
        world.stave(["push", "-q", &again]).success();
        assert_eq!(raw(&again)["manifests"][0]["digest"], index["manifests"][0]["digest"]);
        assert_eq!(raw(&again)["manifests"].as_array().map(Vec::len), Some(2));
        // The same image under a name that it was built for without a statement has none.
        let without = format!("{}/exports/{kind}-without:{}", registry(), std::process::id());
        world.stave(["build", "-q", "-t", &without, "."]).success();
        world.stave(["push", "-q", &without]).success();
        assert_eq!(raw(&without)["mediaType"], "application/vnd.oci.image.manifest.v1+json");
    }
}

#[test]
fn squashed_layers_make_the_same_files() {
    let world = world();
    world.stave(["build", "-q", "-t", "plain", "."]).success();
    let layers = |image: &str| lines(&world.stave(["image", "layers", "--json", image]).success().stdout);
    let base = layers("plain").len() - 3;
    for (mode, expected) in [("new", base + 1), ("all", 1)] {
        let flag = format!("--squash={mode}");
        world.stave(["build", "-q", &flag, "-t", mode, "."]).success();
        assert_eq!(layers(mode).len(), expected, "{mode}");
        let words = ["sh", "-c", "cat /d/b /file; test ! -e /d/a; echo $X"];
        assert_eq!(world.run(mode, &words), "more\ncontent\n1\n");
        let diff = world.stave(["image", "diff", "--ignore-times", "plain", mode]).success().stdout;
        assert_eq!(diff, "", "{mode}");
        assert!(world.stave(["history", mode]).success().stdout.contains("layers made one"));
        let id = |image: &str| json(&world.stave(["inspect", image]).success().stdout)[0]["Id"].clone();
        let first = id(mode);
        world.stave(["build", "-q", "--no-cache", &flag, "-t", mode, "."]).success();
        assert_eq!(id(mode), first, "a squashed image is as reproducible as any");
    }
}

#[test]
fn stages_get_names_of_their_own() {
    let world = world();
    world.stave(["build", "-t", "app:1", "-t", "test=app:test", "-t", "base=app:base", "."]).success();
    assert_eq!(world.run("app:test", &["cat", "/report"]), "tested\n");
    assert_eq!(world.run("app:1", &["cat", "/file"]), "content\n");
    world.stave(["run", "--rm", "app:base", "test", "-e", "/file"]).exits(1);
    world.stave(["build", "-t", "nowhere=x", "."]).exits(1).says("nowhere");
}

#[test]
fn an_image_can_be_looked_into() {
    let world = world();
    world.build("it").success();
    let layers = lines(&world.stave(["image", "layers", "--json", "it"]).success().stdout);
    let made: Vec<&str> = layers.iter().filter_map(|layer| layer["CreatedBy"].as_str()).collect();
    assert!(made.last().is_some_and(|text| text.starts_with("COPY file /file")), "{made:?}");
    let files = lines(&world.stave(["image", "files", "--json", "it"]).success().stdout);
    let file = files.iter().find(|file| file["Path"] == "/file").expect("is listed");
    assert_eq!((&file["SizeBytes"], &file["Type"]), (&json!(8), &json!("file")));
    assert!(file["CreatedBy"].as_str().is_some_and(|text| text.starts_with("COPY file")));
    assert!(!files.iter().any(|file| file["Path"] == "/d/a"));
    let waste = lines(&world.stave(["image", "waste", "--json", "it"]).success().stdout);
    let wasted = |path: &str| waste.iter().find(|one| one["Path"] == path).expect("is listed")["How"].clone();
    assert_eq!((wasted("/d/a"), wasted("/d/b")), (json!("removed"), json!("replaced")));
    let table = world.stave(["image", "waste", "it"]).success().stdout;
    assert!(table.contains("removed by") && table.contains("Wasted:"), "{table}");

    world.write("file", "changed\n");
    world.stave(["build", "-q", "--label", "v=2", "-t", "other", "."]).success();
    let diff = world.stave(["image", "diff", "--ignore-times", "--exit-code", "it", "other"]).exits(1).stdout;
    assert_eq!(diff, "config Labels.v: (none) -> \"2\"\nC /file (content)\n");
    world.stave(["image", "diff", "--exit-code", "it", "it"]).success();
}

#[test]
fn management_commands_are_dockers() {
    let world = world();
    world.build("it").success();
    assert!(world.stave(["image", "ls"]).success().stdout.contains("it "));
    world.stave(["image", "tag", "it", "other:2"]).success();
    assert!(world.stave(["image", "history", "other:2"]).success().stdout.contains("COPY file"));
    let archive = world.path("it.tar").display().to_string();
    world.stave(["image", "save", "-o", &archive, "it"]).success();
    world.stave(["image", "rm", "it", "other:2"]).success();
    world.stave(["image", "inspect", "it"]).exits(1);
    world.stave(["image", "load", "-i", &archive]).success();
    world.stave(["image", "inspect", "it"]).success();
}

#[test]
fn several_outputs_of_every_kind_at_once() {
    let world = world();
    let paths = ["a.oci", "b.docker", "c.tar"].map(|name| world.path(name).display().to_string());
    let local = world.path("local").display().to_string();
    let specs = [
        format!("type=oci,dest={},compression=zstd,force-compression=true", paths[0]),
        format!("type=docker,dest={}", paths[1]),
        format!("type=tar,dest={}", paths[2]),
        format!("type=local,dest={local}"),
        "type=image,name=it".to_owned(),
    ];
    let mut words = vec!["build"];
    specs.iter().for_each(|spec| words.extend(["-o", spec]));
    words.push(".");
    world.stave(&words).success();
    for path in &paths {
        let mut head = [0; 262];
        fs::File::open(path).expect("is there").read_exact(&mut head).expect("a tar");
        assert_eq!(&head[257..262], b"ustar", "{path}");
    }
    assert_eq!(fs::read_to_string(Path::new(&local).join("file")).expect("is there"), "content\n");
    assert_eq!(world.run("it", &["cat", "/file"]), "content\n");
}
