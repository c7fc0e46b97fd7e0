//! Where files come from besides the context's directory: repositories, downloads, archives, named contexts, and
//! several platforms of one build. Everything is served on loopback.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use stave_test_support::GitServer;
use stave_test_support::git_server::{Repository, StaticFile};

use crate::environment::{Environment, Outcome};

/// A repository with two commits, a branch, a tag, an annotated tag, a directory and a link.
struct Forge {
    server: GitServer,
    repository: Repository,
    first: String,
    second: String,
}

impl Forge {
    fn new() -> Self {
        let server = GitServer::start().expect("serves");
        let repository = server.repository("app").expect("repository");
        repository.write("file", "one\n").expect("write");
        repository.write("dir/inner", "inner\n").expect("write");
        repository.write("script.sh", "#!/bin/sh\n").expect("write");
        let script = repository.tree().join("script.sh");
        fs::set_permissions(script, fs::Permissions::from_mode(0o755)).expect("chmod");
        std::os::unix::fs::symlink("file", repository.tree().join("link")).expect("symlink");
        let first = repository.commit("first").expect("commit");
        repository.git(&["tag", "light"]).expect("tag");
        repository.git(&["tag", "--annotate", "--message", "v1", "v1"]).expect("tag");
        repository.git(&["branch", "old"]).expect("branch");
        repository.write("file", "two\n").expect("write");
        let second = repository.commit("second").expect("commit");
        Self { server, repository, first, second }
    }

    fn url(&self) -> String {
        self.server.url("app")
    }

    /// Requests for objects so far.
    fn fetches(&self) -> usize {
        self.server.requests().iter().filter(|line| line.contains("POST /app.git/git-upload-pack")).count()
    }
}

/// Builds into the folder `out`.
fn build_out(world: &Environment, words: &[&str]) -> Outcome {
    let out = world.path("out");
    if out.exists() {
        fs::remove_dir_all(&out).expect("removes");
    }
    let output = format!("type=local,dest={}", out.display());
    world.stave([&["build", "-o", output.as_str()], words].concat())
}

#[track_caller]
fn text(world: &Environment, path: &str) -> String {
    let path = world.path("out").join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn repositories_are_added_at_any_revision() {
    let (world, forge) = (Environment::new(), Forge::new());
    let url = forge.url();
    let (first, second) = (&forge.first, &forge.second);
    let prefix = &first[..12];
    world.dockerfile(&format!(
        "FROM scratch\nADD {url} /default\nADD {url}#old /branch\nADD {url}#v1 /tag\nADD {url}#refs/tags/light /light\n\
         ADD {url}#{second} /commit\nADD {url}#:dir /dir\nADD {url}?ref=old&subdir=dir&checksum={prefix} /query\n\
         ADD --checksum={first} {url}#v1 /checked\n"
    ));
    build_out(&world, &["."]).success();
    for (folder, expected) in
        [("default", "two\n"), ("branch", "one\n"), ("tag", "one\n"), ("light", "one\n"), ("commit", "two\n")]
    {
        assert_eq!(text(&world, &format!("{folder}/file")), expected, "{folder}");
    }
    assert_eq!(text(&world, "dir/inner"), "inner\n");
    assert_eq!(text(&world, "query/inner"), "inner\n");
    assert_eq!(text(&world, "checked/file"), "one\n");
    assert_eq!(fs::read_link(world.path("out/default/link")).expect("a link"), Path::new("file"));
    let mode =
        |path: &str| fs::metadata(world.path("out").join(path)).expect("there").permissions().mode() & 0o777;
    assert_eq!((mode("default/file"), mode("default/script.sh"), mode("default/dir")), (0o644, 0o755, 0o755));
    assert!(!world.path("out/default/.git").exists());
}

#[test]
fn an_unchanged_commit_is_cached_and_only_new_objects_travel() {
    let (world, forge) = (Environment::new(), Forge::new());
    let noise: String = (0..20_000_u32).map(|n| format!("{:x}\n", n.wrapping_mul(2_654_435_761))).collect();
    forge.repository.write("large", &noise).expect("write");
    forge.repository.commit("large").expect("commit");
    world.dockerfile(&format!("FROM scratch\nADD {}#main /src\n", forge.url()));
    build_out(&world, &["."]).success();
    let (fetches, sent) = (forge.fetches(), forge.server.sent());
    assert!(sent > 50_000, "{sent}");
    build_out(&world, &["."]).success().says("1 of 1 steps cached");
    // One question, no objects.
    assert_eq!(forge.fetches(), fetches + 1);
    forge.repository.write("file", "three\n").expect("write");
    forge.repository.commit("third").expect("commit");
    build_out(&world, &["."]).success();
    assert_eq!(text(&world, "src/file"), "three\n");
    assert_eq!(text(&world, "src/large"), noise);
    let more = forge.server.sent() - sent;
    assert!(more < 20_000, "the large file travelled again: {more} bytes");
}

#[test]
fn the_git_directory_is_kept_if_asked_for() {
    let (world, forge) = (Environment::new(), Forge::new());
    world.dockerfile(&format!(
        "FROM scratch\nADD --keep-git-dir=true {url}#v1 /tag\nADD {url}?branch=old&keep-git-dir /branch\n",
        url = forge.url()
    ));
    build_out(&world, &["."]).success();
    let git = |folder: &str, words: &[&str]| {
        let output = std::process::Command::new("git")
            .arg("-C")
            .arg(world.path("out").join(folder))
            .args(["-c", "safe.directory=*"])
            .args(words)
            .output()
            .expect("git runs");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    };
    assert_eq!(git("tag", &["rev-parse", "HEAD"]), forge.first);
    assert_eq!(git("tag", &["describe", "--tags", "--exact-match"]), "v1");
    assert_eq!(git("tag", &["status", "--porcelain"]), "");
    assert_eq!(git("tag", &["config", "remote.origin.url"]), forge.url());
    assert_eq!(git("branch", &["rev-parse", "refs/heads/old"]), forge.first);
    assert!(!world.path("out/tag/.git/FETCH_HEAD").exists());
}

#[test]
fn submodules_come_along_unless_told_not_to() {
    let (world, forge) = (Environment::new(), Forge::new());
    let inner = forge.server.repository("inner").expect("repository");
    inner.write("content", "of the submodule\n").expect("write");
    inner.commit("inner").expect("commit");
    let url = forge.server.url("inner");
    forge.repository.git(&["submodule", "--quiet", "add", &url, "sub"]).expect("submodule");
    // Addresses are relative to the repository's more often than not.
    forge
        .repository
        .git(&["config", "--file", ".gitmodules", "submodule.sub.url", "../inner.git"])
        .expect("config");
    forge.repository.commit("with submodule").expect("commit");
    world.dockerfile(&format!(
        "FROM scratch\nADD {url} /with\nADD {url}?submodules=false /without\nADD {url}?keep-git-dir=1 /kept\n",
        url = forge.url()
    ));
    build_out(&world, &["."]).success();
    assert_eq!(text(&world, "with/sub/content"), "of the submodule\n");
    assert_eq!(text(&world, "kept/sub/content"), "of the submodule\n");
    assert!(!world.path("out/with/sub/.git").exists());
    assert!(!world.path("out/without/sub/content").exists());
}

#[test]
fn what_is_wrong_with_a_repository_is_said_in_known_words() {
    let (world, forge) = (Environment::new(), Forge::new());
    let url = forge.url();
    for (source, expected) in [
        (format!("{url}#gone"), "repository does not contain ref gone, output: \"\"".to_owned()),
        (format!("{url}?ref=main&checksum=0123456"), "expected checksum to match 0123456, got ".to_owned()),
        (format!("{url}#v1:nowhere"), "invalid subdir nowhere: failed to lstat".to_owned()),
        (format!("{url}#v1:file"), "contains non-directory \"file\"".to_owned()),
        (forge.server.url("none"), "error fetching default branch for repository http://".to_owned()),
        (format!("{}#x", forge.server.url("none")), "failed to fetch remote http://".to_owned()),
        (
            format!("{url}?checksum=xyz"),
            "invalid checksum xyz for Git URL, expected hex commit hash".to_owned(),
        ),
    ] {
        world.dockerfile(&format!("FROM scratch\nADD {source} /src\n"));
        build_out(&world, &["."]).exits(1).says(&expected);
    }
}

#[test]
fn tokens_reach_the_server_and_nothing_else() {
    let (world, forge) = (Environment::new(), Forge::new());
    forge.server.require("basic eC1hY2Nlc3MtdG9rZW46czNjcjN0LXRva2Vu");
    world.dockerfile(&format!("FROM scratch\nADD {}#main /src\n", forge.url()));
    build_out(&world, &["."]).exits(1).says("failed to fetch remote");
    fs::write(world.path("token"), "s3cr3t-token\n").expect("write");
    let secret = format!("id=GIT_AUTH_TOKEN,src={}", world.path("token").display());
    let outcome = build_out(&world, &["--secret", &secret, "."]).success();
    outcome.never_says("s3cr3t-token").never_says("eC1hY2Nlc3M");
    assert_eq!(text(&world, "src/file"), "two\n");
    // By host, before the one for all.
    let wrong = format!("id=GIT_AUTH_TOKEN.{},src=/etc/hostname", forge.server.host());
    build_out(&world, &["--no-cache", "--secret", &secret, "--secret", &wrong, "."]).exits(1);
    // In the address itself; neither stored nor shown.
    let address = forge.url().replace("http://", "http://x-access-token:s3cr3t-token@");
    world.dockerfile(&format!("FROM scratch\nADD --keep-git-dir=true {address}#old /src\n"));
    let outcome = build_out(&world, &["--progress=quiet", "."]);
    // The header's name is spelt in the other case, which this server takes for another.
    assert_ne!(outcome.code, None);
    let kept = std::process::Command::new("grep")
        .args(["-rl", "s3cr3t-token"])
        .arg(world.root().join("mutable"))
        .output();
    assert!(kept.expect("grep runs").stdout.is_empty(), "a token lies in a repository of the store");
}

#[test]
fn a_repository_is_a_build_context() {
    let (world, forge) = (Environment::new(), Forge::new());
    forge.repository.write("Dockerfile", "FROM scratch\nCOPY file dir/inner /\n").expect("write");
    forge.repository.write("dir/Dockerfile", "FROM scratch\nCOPY inner /from-dir\n").expect("write");
    forge.repository.write("other.Dockerfile", "FROM scratch\nCOPY file /other\n").expect("write");
    // It does not apply to repositories.
    forge.repository.write(".dockerignore", "file\n").expect("write");
    forge.repository.commit("dockerfiles").expect("commit");
    let url = forge.url();
    build_out(&world, &[&url]).success().says("load git source");
    assert_eq!((text(&world, "file"), text(&world, "inner")), ("two\n".into(), "inner\n".into()));
    build_out(&world, &[&format!("{url}#main:dir")]).success();
    assert_eq!(text(&world, "from-dir"), "inner\n");
    build_out(&world, &["-f", "other.Dockerfile", &format!("{url}?branch=main")]).success();
    assert_eq!(text(&world, "other"), "two\n");
    let out = format!("type=local,dest={}", world.path("piped").display());
    let piped = b"FROM scratch\nCOPY script.sh /piped\n";
    world.stave_with_input(&["build", "-o", &out, "-f", "-", &url], piped).success();
    assert!(world.path("piped/piped").exists());
    build_out(&world, &["-f", "nowhere", &url]).exits(1).says("failed to read dockerfile: open nowhere");
    build_out(&world, &[&format!("{url}?what=1")]).exits(1).says("unexpected query \"what\"");
}

pub(crate) fn tar(files: &[(&str, &str)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, text) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, text.as_bytes()).expect("appends");
    }
    builder.into_inner().expect("finishes")
}

/// What a program makes of bytes.
fn through(program: &str, bytes: &[u8]) -> Vec<u8> {
    use std::io::Write as _;
    use std::process::{Command, Stdio};
    let mut child = Command::new(program)
        .arg("-c")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{program} is needed by this test: {error}"));
    child.stdin.take().expect("piped").write_all(bytes).expect("writes");
    child.wait_with_output().expect("ends").stdout
}

#[test]
fn archives_and_dockerfiles_behind_http_are_contexts() {
    let world = Environment::new();
    let server = GitServer::start().expect("serves");
    let archive = tar(&[
        ("Dockerfile", "FROM scratch\nCOPY data /\n"),
        ("data", "in the archive\n"),
        ("sub/D", "FROM scratch\nCOPY data /sub\n"),
    ]);
    for (path, body) in [
        ("/plain.tar", archive.clone()),
        ("/gzip", through("gzip", &archive)),
        ("/bzip2", through("bzip2", &archive)),
        ("/xz", through("xz", &archive)),
    ] {
        server.put(path, StaticFile { body, ..StaticFile::default() });
        build_out(&world, &[&server.file_url(path)]).success();
        assert_eq!(text(&world, "data"), "in the archive\n", "{path}");
    }
    build_out(&world, &["-f", "sub/D", &server.file_url("/xz")]).success();
    assert_eq!(text(&world, "sub"), "in the archive\n");
    let dockerfile =
        StaticFile { body: b"FROM scratch\nCOPY context /self\n".to_vec(), ..StaticFile::default() };
    server.put("/Dockerfile", dockerfile.clone());
    build_out(&world, &[&server.file_url("/Dockerfile")]).success();
    assert!(text(&world, "self").contains("COPY context"));
    // A Dockerfile from elsewhere for files from here.
    let here = StaticFile { body: b"FROM scratch\nCOPY local /\n".to_vec(), ..StaticFile::default() };
    server.put("/elsewhere", here);
    world.write("local", "from here\n");
    build_out(&world, &["-f", &server.file_url("/elsewhere"), "."]).success();
    assert_eq!(text(&world, "local"), "from here\n");
    build_out(&world, &[&server.file_url("/none")]).exits(1).says("invalid response status 404");
}

#[test]
fn archives_on_standard_input_take_every_compression() {
    let world = Environment::new();
    let archive = tar(&[("Dockerfile", "FROM scratch\nCOPY data /\n"), ("data", "piped\n")]);
    for program in ["gzip", "bzip2", "xz", "zstd"] {
        let out = format!("type=local,dest={}", world.path(program).display());
        world.stave_with_input(&["build", "-o", &out, "-"], &through(program, &archive)).success();
        assert_eq!(
            fs::read_to_string(world.path(program).join("data")).expect("there"),
            "piped\n",
            "{program}"
        );
    }
}

#[test]
fn a_download_is_not_fetched_again_while_the_server_says_so() {
    let world = Environment::new();
    let server = GitServer::start().expect("serves");
    let file = |body: &str, tag: &str| StaticFile {
        body: body.as_bytes().to_vec(),
        headers: vec![
            ("ETag".to_owned(), format!("\"{tag}\"")),
            ("Last-Modified".to_owned(), "Sun, 06 Nov 1994 08:49:37 GMT".to_owned()),
        ],
        ..StaticFile::default()
    };
    server.put("/file", file("one\n", "1"));
    world.dockerfile(&format!("FROM scratch\nADD {} /\n", server.file_url("/file")));
    build_out(&world, &["."]).success();
    assert_eq!(text(&world, "file"), "one\n");
    build_out(&world, &["."]).success().says("1 of 1 steps cached");
    assert_eq!(server.requests(), ["GET /file 200", "HEAD /file 304"]);
    server.put("/file", file("two\n", "2"));
    build_out(&world, &["."]).success();
    assert_eq!(text(&world, "file"), "two\n");
}

#[test]
fn a_download_has_its_checksum_and_look() {
    let world = Environment::new();
    let server = GitServer::start().expect("serves");
    server.put("/tool", StaticFile { body: b"tool\n".to_vec(), ..StaticFile::default() });
    let digest = "sha256:9a5e7a8e1ee90a4bc4ea71b0ae9d2fb1b7c7ba4f0b8f0b4b0df0d7f7b1a5d6a1";
    let url = server.file_url("/tool");
    world.dockerfile(&format!("FROM scratch\nADD --checksum={digest} {url} /\n"));
    build_out(&world, &["."])
        .exits(1)
        .says("digest mismatch for http://")
        .says(&format!("(expected: {digest})"));
    world.dockerfile(&format!("FROM scratch\nADD --chmod=755 {url} /bin/\n"));
    build_out(&world, &["."]).success();
    let mode = fs::metadata(world.path("out/bin/tool")).expect("there").permissions().mode();
    assert_eq!(mode & 0o777, 0o755);
}

#[test]
fn named_directories_replace_stages_and_images() {
    let world = Environment::new();
    for (path, content) in
        [("other/file", "other\n"), ("other/skipped.log", "log\n"), ("other/.dockerignore", "*.log\n")]
    {
        let path = world.path(path);
        fs::create_dir_all(path.parent().expect("parent")).expect("mkdir");
        fs::write(path, content).expect("write");
    }
    world.write("file", "own\n").write("keep.log", "kept\n");
    world.dockerfile(
        "FROM scratch AS files\nCOPY file /\nFROM scratch\nCOPY --from=files / /from-stage/\nCOPY --from=dir . /from-name/\n\
         COPY . /own/\n",
    );
    let other = format!("{}", world.path("other").display());
    build_out(&world, &["--build-context", &format!("dir={other}"), "."]).success();
    assert_eq!(text(&world, "from-stage/file"), "own\n");
    assert_eq!(text(&world, "from-name/file"), "other\n");
    assert!(!world.path("out/from-name/skipped.log").exists(), "it has an ignore file of its own");
    assert_eq!(text(&world, "own/keep.log"), "kept\n");
    let (dir, files) = (format!("dir={other}"), format!("files={other}"));
    build_out(&world, &["--build-context", &dir, "--build-context", &files, "."]).success();
    assert_eq!(text(&world, "from-stage/file"), "other\n");
    build_out(&world, &["--build-context", "dir=/nowhere", "."])
        .exits(1)
        .says("failed to get build context dir: stat /nowhere: no such file or directory");
    build_out(&world, &["--build-context", "dir", "."])
        .exits(1)
        .says("invalid context value: dir, expected key=value");
}

#[test]
fn named_repositories_downloads_and_layouts() {
    let (world, forge) = (Environment::new(), Forge::new());
    forge.server.put("/file", StaticFile { body: b"downloaded\n".to_vec(), ..StaticFile::default() });
    world.dockerfile(
        "FROM scratch\nCOPY --from=repository file /repository\nCOPY --from=download context /download\n",
    );
    let repository = format!("repository={}#old", forge.url());
    let download = format!("download={}", forge.server.file_url("/file"));
    build_out(&world, &["--build-context", &repository, "--build-context", &download, "."]).success();
    assert_eq!(
        (text(&world, "repository"), text(&world, "download")),
        ("one\n".into(), "downloaded\n".into())
    );
    // An image of a layout is a base like any other, its configuration included.
    world.write("base", "from the layout\n");
    world.dockerfile("FROM scratch\nCOPY base /base\nENV FROM_LAYOUT=yes\n");
    let layout = world.path("layout");
    let output = format!("type=oci,tar=false,dest={}", layout.display());
    world.stave(["build", "-t", "example.test/base:v2", "-o", &output, "."]).success();
    world.dockerfile("FROM base\nCOPY base /${FROM_LAYOUT}\n");
    let context = format!("base=oci-layout://{}:v2", layout.display());
    build_out(&world, &["--build-context", &context, "."]).success().says("[context base] load metadata for");
    assert_eq!(
        (text(&world, "base"), text(&world, "yes")),
        ("from the layout\n".into(), "from the layout\n".into())
    );
    let context = format!("base=oci-layout://{}:v3", layout.display());
    build_out(&world, &["--build-context", &context, "."]).exits(1).says("no image is tagged `v3`");
}

#[test]
fn several_platforms_are_one_index() {
    let world = Environment::new();
    world.write("file", "content\n");
    world.dockerfile(
        "FROM --platform=$BUILDPLATFORM scratch AS shared\nCOPY file /shared\n\
         FROM scratch\nARG TARGETARCH\nCOPY --from=shared /shared /${TARGETARCH}\nLABEL arch=$TARGETARCH\n",
    );
    let layout = world.path("layout");
    let output = format!("type=oci,tar=false,dest={}", layout.display());
    world.stave(["build", "--platform", "linux/amd64,linux/arm64", "-o", &output, "."]).success();
    let read = |path: &str| -> serde_json::Value {
        serde_json::from_slice(&fs::read(layout.join(path)).expect("there")).expect("JSON")
    };
    let blob = |value: &serde_json::Value| {
        format!("blobs/sha256/{}", value["digest"].as_str().expect("digest").trim_start_matches("sha256:"))
    };
    let index = read("index.json");
    let images = read(&blob(&index["manifests"][0]));
    let found: Vec<_> = images["manifests"]
        .as_array()
        .expect("list")
        .iter()
        .map(|entry| {
            let config = read(&blob(&read(&blob(entry))["config"]));
            (entry["platform"]["architecture"].clone(), config["config"]["Labels"]["arch"].clone())
        })
        .collect();
    assert_eq!(found, [("amd64".into(), "amd64".into()), ("arm64".into(), "arm64".into())]);
    build_out(&world, &["--platform", "linux/amd64", "--platform", "linux/arm64", "."]).success();
    assert_eq!(text(&world, "linux_amd64/amd64"), "content\n");
    assert_eq!(text(&world, "linux_arm64/arm64"), "content\n");
    world.stave(["build", "--platform", "linux/amd64,linux/arm64", "-t", "many:1", "."]).success();
    let inspected: serde_json::Value =
        serde_json::from_str(&world.stave(["inspect", "many:1"]).success().stdout).expect("JSON");
    assert!(inspected[0]["Config"]["Labels"]["arch"].is_string());
}

#[test]
fn agents_are_lent_to_steps_that_ask_for_them() {
    let world = Environment::new();
    let key = world.path("key");
    let made = std::process::Command::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "", "-f"])
        .arg(&key)
        .status();
    assert!(made.expect("ssh-keygen is needed by this test").success());
    world.dockerfile(
        "FROM BUSYBOX\nRUN --mount=type=ssh,mode=0666,uid=5 test -S \"$SSH_AUTH_SOCK\" && stat -c '%a %u' $SSH_AUTH_SOCK > /seen\n\
         RUN test -z \"$SSH_AUTH_SOCK\" && ! ls /run/buildkit/ssh_agent.0\nRUN --mount=type=ssh,id=none true\n",
    );
    let ssh = format!("default={}", key.display());
    world.stave(["build", "--ssh", &ssh, "-t", "it", "."]).success();
    assert_eq!(world.run("it", &["cat", "/seen"]), "666 5\n");
    world.dockerfile("FROM BUSYBOX\nRUN --mount=type=ssh,required=true true\n");
    world.build("it").exits(1).says("no SSH key \"default\" forwarded from the client");
    let other = format!("other={}", key.display());
    world.stave(["build", "--ssh", &other, "."]).exits(1).says("unset ssh forward key default");
}

#[test]
fn foreign_programs_are_named_with_their_cure() {
    let world = Environment::new();
    // The header of a program for s390x.
    let mut program = b"\x7fELF\x02\x02\x01".to_vec();
    program.resize(16, 0);
    program.extend([0, 2, 0, 22, 0, 0, 0, 1]);
    program.resize(64, 0);
    fs::write(world.context().join("sh"), program).expect("write");
    fs::set_permissions(world.context().join("sh"), fs::Permissions::from_mode(0o755)).expect("chmod");
    world.dockerfile("FROM scratch\nCOPY sh /bin/sh\nRUN true\n");
    world
        .stave(["build", "--platform", "linux/s390x", "."])
        .exits(1)
        .says("exec format error: programs for linux/s390x do not run on this machine")
        .says("binfmt_misc");
}

/// A program called `ssh` that runs the remote command here, and says how it was called.
fn fake_ssh(world: &Environment) -> std::path::PathBuf {
    let folder = world.path("bin");
    fs::create_dir_all(&folder).expect("mkdir");
    let script = format!(
        "#!/bin/sh\necho \"$SSH_AUTH_SOCK $*\" >> {}\n\
         if [ -S \"$SSH_AUTH_SOCK\" ]; then ssh-add -l >> {} 2>&1; fi\n\
         for last; do :; done\nexec sh -c \"$last\"\n",
        world.path("calls").display(),
        world.path("keys").display()
    );
    fs::write(folder.join("ssh"), script).expect("write");
    fs::set_permissions(folder.join("ssh"), fs::Permissions::from_mode(0o755)).expect("chmod");
    folder
}

#[test]
fn repositories_over_ssh_use_the_agent_that_is_lent() {
    let (world, forge) = (Environment::new(), Forge::new());
    let key = world.path("key");
    let made = std::process::Command::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "", "-f"])
        .arg(&key)
        .status();
    assert!(made.expect("ssh-keygen is needed by this test").success());
    let bare = forge.repository.tree().with_extension("git");
    let path = format!("{}:{}", fake_ssh(&world).display(), std::env::var("PATH").expect("PATH"));
    world.dockerfile(&format!("FROM scratch\nADD git@forge.test:{}#main /src\n", bare.display()));
    let output = format!("type=local,dest={}", world.path("out").display());
    let build = |words: &[&str]| {
        let mut command = world.command();
        command
            .args(["build", "-o", &output])
            .args(words)
            .arg(".")
            .env("PATH", &path)
            .env_remove("SSH_AUTH_SOCK");
        command.output().expect("the program starts")
    };
    let failed = build(&[]);
    let said = String::from_utf8_lossy(&failed.stderr).into_owned();
    assert!(said.contains("no SSH key \"default\" forwarded from the client"), "{said}");
    let ssh = format!("default={}", key.display());
    let built = build(&["--ssh", &ssh]);
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    assert_eq!(text(&world, "src/file"), "two\n");
    let keys = fs::read_to_string(world.path("keys")).expect("the agent answered");
    assert!(keys.contains("(ED25519)"), "{keys}");
    let calls = fs::read_to_string(world.path("calls")).expect("ssh was called");
    assert!(calls.contains("-F /dev/null") && calls.contains("IdentityFile=none"), "{calls}");
}

#[test]
fn commits_are_fetched_by_themselves_and_with_the_longer_hash() {
    let (world, forge) = (Environment::new(), Forge::new());
    let long = forge.server.repository_with("long", "sha256").expect("repository");
    long.write("file", "long\n").expect("write");
    let commit = long.commit("long").expect("commit");
    assert_eq!(commit.len(), 64);
    let url = forge.url();
    world.dockerfile(&format!(
        "FROM scratch\nADD {url}?checksum={first}&fetch-by-commit /first\nADD {long}#{commit} /long\n\
         ADD --keep-git-dir {long} /kept\n",
        first = forge.first,
        long = forge.server.url("long"),
    ));
    build_out(&world, &["."]).success();
    assert_eq!((text(&world, "first/file"), text(&world, "long/file")), ("one\n".into(), "long\n".into()));
    assert_eq!(text(&world, "kept/.git/HEAD").trim(), commit);
}

#[test]
fn a_name_of_several_platforms_is_copied_and_read_whole() {
    let world = Environment::new();
    world.write("file", "content\n");
    world.dockerfile("FROM scratch\nARG TARGETARCH\nCOPY file /${TARGETARCH}\n");
    world.stave(["build", "--platform", "linux/amd64,linux/arm64", "-t", "many:1", "."]).success();
    world.stave(["tag", "many:1", "copy:1"]).success();
    world.dockerfile("FROM copy:1\n");
    build_out(&world, &["--platform", "linux/arm64", "."]).success();
    assert_eq!(text(&world, "arm64"), "content\n");
    build_out(&world, &["--platform", "linux/amd64", "."]).success();
    assert_eq!(text(&world, "amd64"), "content\n");
}

#[test]
fn what_cannot_be_reached_or_is_ignored_is_not_walked() {
    let world = Environment::new();
    world.write("wanted/file", "wanted\n").write("ignored/deep/file", "x").write("other/deep/file", "x");
    world.write(".dockerignore", "ignored\n");
    world.dockerfile("FROM scratch\nCOPY wanted /\n");
    let trace = world.path("trace");
    let out = format!("type=local,dest={}", world.path("out").display());
    let traced = std::process::Command::new("strace")
        .args(["-f", "-e", "trace=openat,openat2,getdents64", "-y", "-o"])
        .arg(&trace)
        .arg(crate::environment::program())
        .args(["build", "-o", &out, "."])
        .current_dir(world.context())
        .env("STAVE_ROOT", world.root())
        .status();
    // Without strace there is nothing to see.
    let Ok(status) = traced else { return };
    assert!(status.success());
    let calls = fs::read_to_string(&trace).expect("a trace");
    assert!(calls.contains("wanted"), "the trace has the context's files");
    for line in calls.lines() {
        assert!(!line.contains("/context/ignored") && !line.contains("\"ignored\""), "{line}");
        assert!(!line.contains("/context/other") && !line.contains("\"other\""), "{line}");
    }
}
