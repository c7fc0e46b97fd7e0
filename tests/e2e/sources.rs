//! What a Dockerfile takes from elsewhere before it is built: the files it includes, and the time that a source gives.
//! Everything is served on loopback.

use stave_test_support::GitServer;
use stave_test_support::git_server::StaticFile;

use crate::environment::{Environment, Outcome};
use crate::inputs::tar;

const MAIN: &str = "# syntax=stave/1\nFROM scratch\nINCLUDE parts/one\n";

/// Builds without keeping a result, and shows the last step's name.
fn build(world: &Environment, words: &[&str], input: &[u8]) -> Outcome {
    world.stave_with_input(&[&["build", "--progress=plain", "-o", "type=cacheonly"], words].concat(), input)
}

fn file(body: &str) -> StaticFile {
    StaticFile { body: body.as_bytes().to_vec(), ..StaticFile::default() }
}

#[test]
fn files_are_included_wherever_the_dockerfile_is_from() {
    let (world, server) = (Environment::new(), GitServer::start().expect("serves"));
    let shown = "COPY <<f /included";
    world.write("parts/one", "INCLUDE two\n").write("parts/two", "COPY <<f /included\nf\n");
    build(&world, &["-f", "-", "."], MAIN.as_bytes()).success().says(shown);

    let repository = server.repository("app").expect("repository");
    repository.write("sub/Dockerfile", MAIN).expect("writes");
    repository.write("sub/parts/one", "COPY <<f /included\nf\n").expect("writes");
    repository.write("parts/one", "COPY <<f /included\nf\nCOPY <<g /outer\ng\n").expect("writes");
    repository.commit("all").expect("commits");
    build(&world, &["-f", "sub/Dockerfile", &server.url("app")], b"").success().says(shown).never_says("<<g");
    build(&world, &["-f", "-", &server.url("app")], MAIN.as_bytes()).success().says("COPY <<g /outer");

    server.put("/files/Dockerfile", file(MAIN));
    server.put("/files/parts/one", file("COPY <<f /included\nf\n"));
    build(&world, &["-f", &server.file_url("/files/Dockerfile"), "."], b"").success().says(shown);

    let one = "COPY <<f /included\nf\n";
    let archive =
        tar(&[("Dockerfile", MAIN), ("parts/one", one), ("sub/Dockerfile", MAIN), ("sub/parts/one", one)]);
    build(&world, &["-"], &archive).success().says(shown);
    build(&world, &["-f", "sub/Dockerfile", "-"], &archive).success().says(shown);

    build(&world, &["-"], MAIN.as_bytes()).exits(1).says("cannot read the included file \"parts/one\"");
}

/// The time of an image in an archive of it, in seconds.
fn created(world: &Environment, words: &[&str]) -> String {
    world.stave([&["build", "-t", "dated"], words, &["."]].concat()).success();
    let config = world.stave(["inspect", "dated"]).success().stdout;
    let value =
        |line: &str| Some(line.trim().strip_prefix("\"Created\": ")?.trim_end_matches(',').to_owned());
    config.lines().find_map(value).unwrap_or_else(|| panic!("no time: {config}")).trim_matches('"').to_owned()
}

#[test]
fn a_source_dates_the_build() {
    let (world, server) = (Environment::new(), GitServer::start().expect("serves"));
    let dated = StaticFile {
        headers: vec![("Last-Modified".to_owned(), "Sun, 06 Nov 1994 08:49:37 GMT".to_owned())],
        ..file("dated\n")
    };
    server.put("/dated", dated);
    server.put("/undated", file("undated\n"));
    let repository = server.repository("app").expect("repository");
    repository.write("f", "x").expect("writes");
    repository.commit("one").expect("commits");
    let commit = repository.git(&["log", "-1", "--format=%ct"]).expect("logs");

    let (http, undated, git) = (server.file_url("/dated"), server.file_url("/undated"), server.url("app"));
    world.dockerfile(&format!(
        "ARG SOURCE_DATE_EPOCH=release\nFROM scratch AS release\nADD {http} /\nFROM scratch AS undated\n\
         ADD {undated} /\nFROM scratch AS repository\nADD {git} /\nFROM scratch\nARG SOURCE_DATE_EPOCH\n\
         COPY <<f /f\n$SOURCE_DATE_EPOCH\nf\n"
    ));
    let release = "1994-11-06T08:49:37Z";
    assert_eq!(created(&world, &[]), release);
    // A source without a time is no time: what else dates a build does.
    assert_eq!(created(&world, &["--build-arg", "SOURCE_DATE_EPOCH=undated"]), "2000-01-01T00:00:00Z");
    let context = format!("named={http}");
    let words = ["--build-arg", "SOURCE_DATE_EPOCH=named", "--build-context", &context];
    assert_eq!(created(&world, &words), release);
    assert_eq!(created(&world, &["--build-arg", "SOURCE_DATE_EPOCH=7"]), "1970-01-01T00:00:07Z");

    let out = format!("type=local,dest={}", world.path("out").display());
    for words in
        [["SOURCE_DATE_EPOCH=repository", "x=/"], ["SOURCE_DATE_EPOCH=named", &format!("named={git}")]]
    {
        let [argument, context] = words;
        let context = if context == "x=/" { Vec::new() } else { vec!["--build-context", context] };
        let words = [&["build", "-o", out.as_str(), "--build-arg", argument], context.as_slice(), &["."]];
        world.stave(words.concat()).success();
        let found = std::fs::read_to_string(world.path("out/f")).expect("is there");
        assert_eq!(found.trim(), commit.trim());
    }
    world
        .stave(["build", "--build-arg", "SOURCE_DATE_EPOCH=x", "."])
        .exits(1)
        .says("invalid SOURCE_DATE_EPOCH: x");
}
