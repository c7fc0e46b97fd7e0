//! What few files ask for and the reference still has an answer to.

use super::*;

/// The platforms of the base image and of the process that runs on it.
#[track_caller]
fn check_platforms(written: &str, image: &str, process: &str) {
    let lowered = lowered(&format!("FROM --platform={written} a\nRUN x\n"), &request());
    let platforms: Vec<String> = lowered
        .definition
        .vertices()
        .iter()
        .filter_map(|vertex| vertex.platform.as_ref())
        .map(|Platform { os, architecture, variant, .. }| {
            [Some(os), Some(architecture), variant.as_ref()]
                .into_iter()
                .flatten()
                .cloned()
                .collect::<Vec<_>>()
        })
        .map(|parts| parts.join("/"))
        .collect();
    assert_eq!(platforms, [image, process], "{written}");
}

#[test]
fn images_have_the_platform_as_written_and_processes_in_its_usual_form() {
    check_platforms("linux/arm", "linux/arm", "linux/arm/v7");
    check_platforms("linux/arm64/v8", "linux/arm64/v8", "linux/arm64");
    check_platforms("linux/arm/v6", "linux/arm/v6", "linux/arm/v6");
    check_platforms("linux/arm64", "linux/arm64", "linux/arm64");
}

#[test]
fn a_cache_of_nothing_is_one_of_the_stage_that_is_called_so() {
    let of = |mount: &str| {
        let text = format!("FROM a AS scratch\nRUN x\nFROM b\nRUN --mount={mount},target=/c y\n");
        let lowered = lowered(&text, &request());
        let names = lowered.definition.vertices().iter().filter_map(Vertex::name);
        names.filter(|name| name.contains("RUN")).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(of("type=cache"), ["[scratch 2/2] RUN x", "[stage-1 2/2] RUN --mount=type=cache,target=/c y"]);
    assert_eq!(of("type=tmpfs"), ["[stage-1 2/2] RUN --mount=type=tmpfs,target=/c y"]);
    check_error(
        "FROM a AS scratch\nRUN --mount=from=scratch,target=/c y\n",
        "circular dependency detected on stage: scratch",
    );
}

#[test]
fn triggers_of_the_files_own_stages_need_no_image() {
    let text = "FROM scratch AS base\nONBUILD RUN triggered\nFROM base\nCOPY a b\n";
    let names =
        ["[internal] load build context", "[stage-1 1/2] ONBUILD RUN triggered", "[stage-1 2/2] COPY a b"];
    let lowered = lowered(text, &request());
    let found: Vec<_> = lowered.definition.vertices().iter().filter_map(Vertex::name).collect();
    assert_eq!(found, [names[1], names[0], names[2]]);
}

/// The help of the error that lowering gives, and the text that its place marks.
#[track_caller]
fn check_help(instruction: &str, marked: &str, help: &str) {
    let text = format!("FROM scratch\n{instruction}\n");
    let plan =
        crate::plan(&parse(&Source::new("Dockerfile", &*text)).dockerfile, &request()).expect("is sound");
    let failure = lower(&plan, &ResolvedSources::default()).expect_err(instruction).diagnostic;
    assert_eq!(&text[failure.span.start..failure.span.end], marked, "{instruction}");
    let found = failure.help.unwrap_or_default();
    assert!(found.contains(help), "{instruction}: {found}");
}

#[test]
fn mistakes_are_marked_and_what_is_right_is_said() {
    check_help("EXPOSE 80 99999", "99999", "a port is a number up to 65535");
    check_help("STOPSIGNAL SIGFOO", "SIGFOO", "such as `SIGTERM`");
    check_help("COPY --chmod=u+q a b", "--chmod=u+q", "such as `0755`");
    check_help("ENV X=${Y", "${Y", "close `${` with `}`");
    check_help("USER ${}", "${}", "`${NAME}`");
    check_help("USER a\"b", "a\"b", "close the quote with `\"`");
    check_help("USER a'b", "a'b", "close the quote with `'`");
}

#[test]
fn other_drives_of_windows() {
    let windows = with(|request| request.target_platform = Some(Platform::new("windows", "amd64", None)));
    let drive = "removing drive letter: The specified path is not on the system drive (C:)";
    let refused = |text: &str| try_lower(text, &windows).expect_err(text);
    assert_eq!(refused("FROM a\nCOPY D:/x /y\n"), format!("removing drive letter: {drive}"));
    assert_eq!(refused("FROM a\nCOPY x D:/y\n"), drive);
}
