//! Whole Dockerfiles to names, operations, configs and errors.

use stave_llb::{FileActionKind, Mount, Op, Vertex};
use stave_oci::Digest;

use super::*;
use crate::{
    parse,
    request::{BuildNetwork, NoCache, PlanRequest, ResolvedImage},
    source::Source,
};

mod limits;
mod named;
mod own;
mod scanned;
mod unusual;

fn request() -> PlanRequest {
    let platform = Platform::new("linux", "amd64", None);
    PlanRequest { target_platform: Some(platform.clone()), ..PlanRequest::new(platform) }
}

fn with(change: impl FnOnce(&mut PlanRequest)) -> PlanRequest {
    let mut request = request();
    change(&mut request);
    request
}

/// A base image with a layer, a variable, a directory of its own, and a trigger if its name says so.
fn base_image(name: &str) -> ResolvedImage {
    let mut config =
        ImageConfig { os: "linux".into(), architecture: "amd64".into(), ..ImageConfig::default() };
    config.config.env = vec!["BASE=1".into()];
    config.config.cmd = Some(vec!["base".into()]);
    config.rootfs.diff_ids = vec![Digest::sha256(b"layer")];
    if name.contains("trigger") {
        config.config.on_build = vec!["RUN triggered".into()];
    }
    ResolvedImage { digest: Digest::sha256(name.as_bytes()), config }
}

fn try_lower(text: &str, request: &PlanRequest) -> Result<Lowered, String> {
    let dockerfile = parse(&Source::new("Dockerfile", text)).dockerfile;
    let mut plan = crate::plan(&dockerfile, request).map_err(|error| error.to_string())?;
    let mut resolved = ResolvedSources::default();
    loop {
        let missing = plan.missing(&resolved);
        if missing.is_empty() {
            return lower(&plan, &resolved).map_err(|error| error.to_string());
        }
        for request in missing {
            let image = base_image(&request.reference.canonical());
            resolved.insert(request, image);
        }
        plan = plan.with_triggers(&resolved).map_err(|error| error.to_string())?;
    }
}

#[track_caller]
fn lowered(text: &str, request: &PlanRequest) -> Lowered {
    try_lower(text, request).unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// The names of all vertices, digests cut off.
#[track_caller]
fn check_names(text: &str, expected: &[&str]) {
    let lowered = lowered(text, &request());
    let names = lowered.definition.vertices().iter().map(|vertex| vertex.name().unwrap_or("?"));
    let names: Vec<&str> = names.map(|name| name.split("@sha256").next().unwrap_or(name)).collect();
    assert_eq!(names, expected, "{text}");
}

#[track_caller]
fn check_history(text: &str, expected: &[&str]) {
    let image = lowered(text, &request()).image;
    let steps: Vec<String> = image
        .history
        .iter()
        .map(|step| format!("{}{}", if step.empty_layer { "- " } else { "+ " }, step.created_by))
        .collect();
    assert_eq!(steps, expected, "{text}");
}

#[track_caller]
fn check_error(text: &str, expected: &str) {
    assert_eq!(try_lower(text, &request()).map(|_| ()), Err(expected.to_owned()), "{text}");
}

/// The last vertex.
#[track_caller]
fn last(text: &str, request: &PlanRequest) -> Vertex {
    lowered(text, request).definition.vertices().last().unwrap_or_else(|| panic!("{text}: no vertex")).clone()
}

#[track_caller]
fn last_exec(text: &str, request: &PlanRequest) -> stave_llb::ExecOp {
    match last(text, request).op {
        Op::Exec(exec) => exec,
        other => panic!("{text}: {other:?}"),
    }
}

#[track_caller]
fn last_action(text: &str) -> FileActionKind {
    match last(text, &request()).op {
        Op::File(file) => file.actions.last().unwrap_or_else(|| panic!("{text}: no action")).kind.clone(),
        other => panic!("{text}: {other:?}"),
    }
}

#[test]
fn steps_are_named_and_numbered() {
    check_names(
        "FROM alpine AS build\nRUN make\nFROM scratch\nCOPY --from=build /x /\nWORKDIR /w\nWORKDIR /",
        &[
            "[build 1/2] FROM docker.io/library/alpine:latest",
            "[build 2/2] RUN make",
            "[stage-1 1/3] COPY --from=build /x /",
            "[stage-1 2/3] WORKDIR /w",
        ],
    );
    check_names("FROM a\nRUN x", &["[1/2] FROM docker.io/library/a:latest", "[2/2] RUN x"]);
    check_names(
        "FROM trigger\nENV A=b\nrun echo $A $B",
        &[
            "[1/2] FROM docker.io/library/trigger:latest",
            "[2/3] ONBUILD RUN triggered",
            "[3/3] RUN echo b $B",
        ],
    );
}

#[test]
fn stages_that_do_not_need_each_other_fail_together() {
    let text = "FROM a AS one\nEXPOSE x\nRUN y\nFROM a AS two\nSTOPSIGNAL q\nFROM one\nCOPY --from=two a b\nEXPOSE z";
    let dockerfile = parse(&Source::new("Dockerfile", text)).dockerfile;
    let plan = crate::plan(&dockerfile, &request()).expect("plans");
    let mut resolved = ResolvedSources::default();
    for request in plan.missing(&resolved) {
        resolved.insert(request, base_image("a"));
    }
    let failure = lower(&plan, &resolved).expect_err("is unsound");
    let texts: Vec<_> = failure.into_diagnostics().iter().map(ToString::to_string).collect();
    assert_eq!(texts, ["invalid containerPort: x", "invalid signal: q"]);
}

#[test]
fn what_the_checks_found_comes_with_an_error() {
    for text in ["# check=error=true\nFROM scratch AS Bad\n", "FROM scratch AS Bad\nSTOPSIGNAL q\n"] {
        let dockerfile = parse(&Source::new("Dockerfile", text)).dockerfile;
        let plan = crate::plan(&dockerfile, &request()).expect("plans");
        let failure = lower(&plan, &ResolvedSources::default()).expect_err("is refused");
        let found: Vec<_> = failure.into_diagnostics().iter().map(crate::Diagnostic::is_error).collect();
        assert_eq!(found, [true, false], "{text}");
    }
}

#[test]
fn several_platforms_show_in_names() {
    let request = with(|request| {
        request.multi_platform = true;
        request.target_platform = Some(Platform::new("linux", "arm64", None));
    });
    let text = "FROM --platform=$BUILDPLATFORM a AS b\nARG TARGETPLATFORM\nRUN x\nFROM c\nCOPY --from=b /x /";
    let names: Vec<String> = lowered(text, &request)
        .definition
        .vertices()
        .iter()
        .filter_map(|vertex| Some(vertex.name()?.split("] ").next()?.to_owned()))
        .collect();
    // The final stage's base comes first: it is what the last step is done to.
    assert_eq!(
        names,
        [
            "[linux/arm64 stage-1 1/2",
            "[linux/amd64 b 1/2",
            "[linux/amd64->arm64 b 2/2",
            "[linux/arm64 stage-1 2/2"
        ]
    );
}

#[test]
fn history_says_what_was_done() {
    check_history(
        "FROM scratch\nARG A=1 B\nENV C=$A D=\"e f\"\nCOPY --chown=1:2 --chmod=755 x y /z/\nLABEL l=m\n\
         EXPOSE 80 53/udp\nVOLUME [\"/v\", \"/w\"]\nUSER u\nWORKDIR /d\nRUN [\"a\", \"b c\"]\nCMD x\nENTRYPOINT [\"q\"]\n\
         SHELL [\"/bin/bash\", \"-c\"]\nSTOPSIGNAL 9\nHEALTHCHECK --interval=90s CMD t\nMAINTAINER me\nONBUILD RUN x",
        &[
            "- ARG A=1 B",
            "- ENV C=1 D=e f",
            "+ COPY --chown=1:2 --chmod=755 x y /z/ # buildkit",
            "- LABEL l=m",
            "- EXPOSE [53/udp 80/tcp]",
            "- VOLUME [/v /w]",
            "- USER u",
            "+ WORKDIR /d",
            "+ RUN |2 A=1 B= a b c # buildkit",
            "- CMD [\"/bin/sh\" \"-c\" \"x\"]",
            "- ENTRYPOINT [\"q\"]",
            "- SHELL [/bin/bash -c]",
            "- STOPSIGNAL 9",
            "- HEALTHCHECK {Test:[CMD-SHELL t] Interval:1m30s Timeout:0s StartPeriod:0s StartInterval:0s Retries:0}",
            "- MAINTAINER me",
        ],
    );
}

#[test]
fn configs_inherit_and_override() {
    let request = with(|request| drop(request.labels.insert("given".into(), "1".into())));
    let image = lowered(
        "FROM a AS x\nENV BASE=2 N=3\nLABEL own=1\nFROM x\nENTRYPOINT [\"e\"]\nWORKDIR sub",
        &request,
    )
    .image;
    let path = format!("PATH={}", stage::DEFAULT_PATH);
    assert_eq!(image.config.env, ["BASE=2".to_owned(), path, "N=3".to_owned()]);
    assert_eq!(image.config.cmd, None, "an entry point drops the base's command");
    assert_eq!(image.config.working_dir, "/sub");
    let labels: Vec<(&str, &str)> =
        image.config.labels.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    assert_eq!(labels, [("given", "1"), ("own", "1")]);
    assert_eq!(image.created, None);
}

#[test]
fn a_config_alone_has_no_files() {
    let lowered = lowered("FROM scratch\nCMD [\"x\"]", &request());
    assert!(lowered.definition.outputs().is_empty());
    assert_eq!(lowered.image.config.cmd, Some(vec!["x".to_owned()]));
    assert!(lowered.image.config.args_escaped);
}

#[test]
fn variables_reach_steps_in_the_order_they_were_set() {
    let text = "ARG G=g\nFROM a\nARG X=1\nARG G\nENV BASE=2\nARG X=3\nRUN x";
    let exec = last_exec(text, &request());
    let path = format!("PATH={}", stage::DEFAULT_PATH);
    assert_eq!(exec.env, [path.as_str(), "G=g", "BASE=2", "X=3"]);
}

#[test]
fn steps_get_what_the_request_says() {
    let request = with(|request| {
        request.network = BuildNetwork::None;
        request.no_cache = NoCache::Everything;
        request.hostname = Some("h".into());
        request.shm_size = 5;
        request.build_args.insert("HTTP_PROXY".into(), "p".into());
    });
    let vertex = last("FROM a\nUSER u\nRUN x", &request);
    assert!(vertex.metadata.ignore_cache);
    let Op::Exec(exec) = vertex.op else { panic!("not a process") };
    assert_eq!(
        (exec.network, exec.hostname.as_str(), exec.user.as_str()),
        (stave_llb::NetMode::None, "h", "u")
    );
    assert_eq!(exec.mounts.iter().map(Mount::target).collect::<Vec<_>>(), ["/", "/dev/shm"]);
    assert_eq!(exec.proxy_env.map(|proxy| proxy.http_proxy), Some("p".to_owned()));
    let host = last_exec("FROM a\nRUN --network=host x", &request);
    assert_eq!(host.network, stave_llb::NetMode::Host);
}

#[test]
fn heredocs_become_commands_scripts_or_stay() {
    let args = |text: &str| last_exec(text, &request()).args;
    assert_eq!(args("FROM a\nRUN <<EOF\necho 1\nEOF"), ["/bin/sh", "-c", "echo 1\n"]);
    assert_eq!(args("FROM a\nRUN cat <<EOF\nx\nEOF"), ["/bin/sh", "-c", "cat <<EOF\nx\nEOF"]);
    let script = last_exec("FROM a\nRUN <<EOF\n#!/usr/bin/env x\ny\nEOF", &request());
    assert_eq!(script.args, ["/bin/sh", "-c", "/dev/pipes/EOF"]);
    assert_eq!(script.mounts[1].target(), "/dev/pipes/");
    let name = last("FROM a\nRUN <<EOF\n  one\ntwo\nEOF", &request()).name().map(str::to_owned);
    assert_eq!(name.as_deref(), Some("[2/2] RUN <<EOF (one...)"));
}

#[test]
fn mounts_take_their_defaults() {
    let text = "FROM a AS b\nFROM c\nWORKDIR /w\nENV ID=i\nRUN --mount=type=cache,target=d --mount=from=b,source=/s,target=/t \
                --mount=type=tmpfs,target=/tmp,size=1m --mount=type=secret,id=$ID --mount=type=secret,id=e,env=E \
                --mount=type=ssh --mount=target=/ctx,source=sub x";
    let exec = last_exec(text, &request());
    let shown: Vec<String> = exec
        .mounts
        .iter()
        .map(|mount| match mount {
            Mount::Bind { selector, readonly, output, .. } => {
                format!("bind {} {selector} {readonly} {output:?}", mount.target())
            }
            Mount::Cache { target, id, .. } => format!("cache {target} {id}"),
            Mount::Tmpfs { target, size, .. } => format!("tmpfs {target} {size}"),
            Mount::Secret { target, id, owner, optional } => {
                format!("secret {target} {id} {:o} {optional}", owner.mode)
            }
            Mount::Ssh { target, owner, .. } => format!("ssh {target} {:o}", owner.mode),
        })
        .collect();
    assert_eq!(
        shown,
        [
            "bind /  false Some(0)",
            "bind /ctx /sub true None",
            "bind /t /s true None",
            "tmpfs /tmp 1048576",
            "cache /w/d /d",
            "secret /run/secrets/i i 400 true",
            "ssh /run/buildkit/ssh_agent.0 600",
        ]
    );
    assert_eq!(exec.secret_env.iter().map(|secret| secret.name.as_str()).collect::<Vec<_>>(), ["E"]);
    assert!(exec.env.contains(&"SSH_AUTH_SOCK=/run/buildkit/ssh_agent.0".to_owned()));
}

#[test]
fn only_used_paths_of_the_context_are_asked_for() {
    let followed = |text: &str, request: &PlanRequest| {
        let lowered = lowered(text, request);
        let source = lowered.definition.vertices().iter().find_map(|vertex| match &vertex.op {
            Op::Source(source) if source.raw == "local://context" => Some(source.attrs.clone()),
            _ => None,
        });
        source.map(|attrs| {
            (attrs.get("local.followpaths").cloned(), attrs.get("local.excludepatterns").cloned())
        })
    };
    let text = "FROM a\nCOPY b ./c/../d /x/\nADD e* /y/";
    assert_eq!(followed(text, &request()), Some((Some(r#"["b","d","e*"]"#.to_owned()), None)));
    let ignoring = with(|request| request.dockerignore = vec!["<x>".into()]);
    let all = Some((None, Some(r#"["\u003cx\u003e"]"#.to_owned())));
    assert_eq!(followed("FROM a\nCOPY . /x/\nCOPY b /y", &ignoring), all);
    assert_eq!(followed("FROM a\nRUN x", &request()), None);
}

#[test]
fn transfers_differ_by_source() {
    let copy = |text: &str| match last_action(text) {
        FileActionKind::Copy(copy) => copy,
        other => panic!("{text}: {other:?}"),
    };
    let plain = copy("FROM a\nWORKDIR /w\nCOPY --exclude=*.o x/ y/");
    assert_eq!((plain.src.as_str(), plain.dest.as_str()), ("/x", "/w/y/"));
    assert_eq!(plain.exclude_patterns, ["*.o"]);
    assert!(plain.follow_symlink && plain.allow_wildcard && !plain.attempt_unpack);
    assert!(copy("FROM a\nADD x /").attempt_unpack);
    assert!(!copy("FROM a\nADD --unpack=false x /").attempt_unpack);
    let url = copy("FROM a\nADD https://a.test/b.tar /");
    assert!(url.src == "/b.tar" && !url.follow_symlink && !url.attempt_unpack);
    let inline = copy("FROM a\nCOPY <<f /d/\nx\nf");
    assert_eq!((inline.src.as_str(), inline.dest.as_str()), ("/f", "/d/"));
    let parents = copy("FROM a\nCOPY --parents r/./s/t /d/");
    assert_eq!((parents.src.as_str(), parents.include_patterns), ("/r", vec!["s/t".to_owned()]));
    assert_eq!(parents.required_paths, ["/r/s/t"]);
}

#[test]
fn linked_copies_are_merged() {
    let text = "FROM a\nCOPY --link x /";
    let vertex = last(text, &request());
    assert!(matches!(&vertex.op, Op::Merge(merge) if merge.inputs.len() == 2));
    assert_eq!(vertex.name(), Some("[2/2] LINK COPY --link x /"));
    assert!(matches!(last("FROM a\nCOPY --link --chmod=1 x /", &request()).op, Op::File(_)));
    assert!(matches!(last("FROM scratch\nCOPY --link x /", &request()).op, Op::File(_)));
}

#[test]
fn vertices_know_their_lines() {
    let lowered = lowered("FROM a\n\nRUN one \\\n  two\n", &request());
    let step = lowered.definition.vertices().last().expect("a step");
    let places = lowered.definition.source_location(&step.digest);
    let lines: Vec<(i32, i32)> = places
        .iter()
        .flat_map(|place| &place.ranges)
        .map(|range| (range.start.line, range.end.line))
        .collect();
    assert_eq!(lines, [(3, 4)]);
    assert_eq!(lowered.definition.source_map().infos[0].filename, "Dockerfile");
}

#[test]
fn unsound_values_are_errors() {
    check_error("FROM a\nRUN []", "arguments are required");
    check_error(
        "FROM a\nCOPY --chmod=9 x /",
        "invalid chmod parameter: '9'. it should be octal string and between 0 and 07777",
    );
    check_error("FROM a\nCOPY https://a.test/x /", "source can't be a URL for COPY");
    check_error("FROM a\nCOPY git@a.test:x.git /", "source can't be a git ref for COPY");
    check_error("FROM a\nADD --checksum=sha256:1 x /", "checksum requires HTTP(S) or Git sources");
    check_error("FROM a\nADD --checksum=x https://a.test/x /", "invalid checksum digest format");
    check_error("FROM a\nSTOPSIGNAL NO", "invalid signal: NO");
    check_error("FROM a\nVOLUME $X", "VOLUME specified can not be an empty string");
    check_error("FROM a\nEXPOSE x", "invalid containerPort: x");
    check_error("FROM a\nENV A=${B:?no}", "failed to process \"${B:?no}\": B: no");
    check_error("FROM a\nRUN --mount=type=cache,target=/ x", "invalid mount target \"/\"");
}

#[test]
fn the_report_is_json() {
    let source = Source::new("Dockerfile", "FROM scratch\nLABEL a=b");
    let report = lowered(&source.text, &request()).report(&source);
    insta::assert_snapshot!(report, @r#"{"vertices":[],"image":{"architecture":"amd64","os":"linux","config":{"Env":["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],"WorkingDir":"/","Labels":{"a":"b"}},"rootfs":{"type":"layers","diff_ids":null},"history":[{"created_by":"LABEL a=b","comment":"buildkit.dockerfile.v0","empty_layer":true}]},"warnings":[]}"#);
}

#[test]
fn windows_has_its_own_separator_in_the_config_only() {
    let windows = with(|request| request.target_platform = Some(Platform::new("windows", "amd64", None)));
    let directory = |text: &str| lowered(text, &windows).image.config.working_dir;
    assert_eq!(directory("FROM scratch\nCOPY a /\n"), "\\");
    let deep = "FROM scratch\nWORKDIR app\nWORKDIR src\nCOPY a b\n";
    assert_eq!(directory(deep), "\\app\\src");
    let definition = lowered(deep, &windows).definition;
    let copies = definition.vertices().iter().filter_map(|vertex| match &vertex.op {
        Op::File(op) => op.actions.iter().find_map(|action| match &action.kind {
            FileActionKind::Copy(copy) => Some(copy.dest.clone()),
            _ => None,
        }),
        _ => None,
    });
    assert_eq!(copies.collect::<Vec<_>>(), ["/app/src/b"]);
}
