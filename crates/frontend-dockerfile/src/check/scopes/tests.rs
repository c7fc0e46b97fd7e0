//! What each check over stages reports, and what it leaves alone.

use stave_oci::{Digest, ImageConfig, Platform};

use super::*;
use crate::{
    PlanRequest, Source, parse, plan,
    request::{ResolvedImage, SourceRequest},
};

fn image(env: &[&str], shell: Option<&str>, architecture: &str) -> ResolvedImage {
    let text = r#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}"#;
    let mut config: ImageConfig = serde_json::from_str(text).expect("a config");
    architecture.clone_into(&mut config.architecture);
    config.config.env = env.iter().map(|&entry| entry.to_owned()).collect();
    config.config.shell = shell.map(|shell| vec![shell.to_owned()]);
    ResolvedImage { digest: Digest::sha256(b""), config }
}

#[track_caller]
fn check_with(text: &str, change: impl FnOnce(&mut PlanRequest), expected: &[&str]) {
    let platform = Platform::new("linux", "amd64", None);
    let mut request = PlanRequest::new(platform.clone());
    change(&mut request);
    let plan = plan(&parse(&Source::new("Dockerfile", text)).dockerfile, &request).expect("a sound plan");
    let mut resolved = ResolvedSources::default();
    for (name, image) in [
        ("base", image(&["BASE=1"], None, "amd64")),
        ("shelled", image(&[], Some("/bin/x"), "amd64")),
        ("foreign", image(&[], None, "arm64")),
    ] {
        let reference = name.parse().expect("a name");
        resolved.insert(SourceRequest::plain(reference, platform.clone()), image);
    }
    let found: Vec<_> = of_plan(&plan, &resolved)
        .iter()
        .map(|finding| {
            let crate::Code::Check(rule) = finding.code else { panic!("a check") };
            let line = plan.dockerfile.source.position(finding.span.start).line;
            format!("{line} {}: {}", rule.name(), finding.message)
        })
        .collect();
    assert_eq!(found, expected, "{text}");
}

#[track_caller]
fn check(text: &str, expected: &[&str]) {
    check_with(text, |_| {}, expected);
}

#[test]
fn variables_must_be_set_or_declared() {
    check(
        "FROM base\nARG a\nENV b=$a c=$BASE d=$BAES e=$PATH\nCOPY $b $missing /\n",
        &[
            "3 UndefinedVar: Usage of undefined variable '$BAES' (did you mean $BASE?)",
            "4 UndefinedVar: Usage of undefined variable '$missing'",
        ],
    );
    check(
        "FROM base AS one\nARG a\nENV b=1\nFROM one\nUSER $a$b$c\n",
        &["5 UndefinedVar: Usage of undefined variable '$c' (did you mean $b?)"],
    );
    check(
        "FROM base\nARG a=$first\nRUN --mount=type=cache,target=/$second --mount=target=/z $z\n",
        &[
            "2 UndefinedVar: Usage of undefined variable '$first'",
            "3 UndefinedVar: Usage of undefined variable '$second'",
        ],
    );
    check(
        "FROM base\nCOPY <<A <<'B' /\n$x\nA\n$y\nB\n",
        &["2 UndefinedVar: Usage of undefined variable '$x'"],
    );
    check("FROM base\nUSER ${x:?}\nUSER $y\n", &["2 UndefinedVar: Usage of undefined variable '$x'"]);
    check_with(
        "FROM base\nARG a=$x\n",
        |request| {
            request.build_args.insert("a".into(), "1".into());
        },
        &[],
    );
}

#[test]
fn unneeded_stages_are_not_looked_at() {
    check("FROM base\nUSER $x\nFROM scratch\n", &[]);
}

#[test]
fn pairs_should_be_written_with_equals() {
    check(
        "FROM base\nenv a b\nLABEL c d\nENV TOKEN=x\nARG API_KEY\n",
        &[
            "2 LegacyKeyValueFormat: \"env key=value\" should be used instead of legacy \"env key value\" format",
            "3 LegacyKeyValueFormat: \"LABEL key=value\" should be used instead of legacy \"LABEL key value\" format",
            "4 SecretsUsedInArgOrEnv: Do not use ARG or ENV instructions for sensitive data (ENV \"TOKEN\")",
            "5 SecretsUsedInArgOrEnv: Do not use ARG or ENV instructions for sensitive data (ARG \"API_KEY\")",
        ],
    );
}

#[test]
fn commands_should_stand_once_and_in_exec_form() {
    check("FROM base\nCMD a\nCMD [\"b\"]\nENTRYPOINT c\nFROM shelled\nCMD a\n", &[]);
    check(
        "FROM base AS one\nCMD a\nCMD [\"b\"]\nFROM one\nCMD [\"c\"]\nSHELL [\"/x\"]\nENTRYPOINT d\n",
        &[
            "2 JSONArgsRecommended: JSON arguments recommended for CMD to prevent unintended behavior related to OS signals",
            "2 MultipleInstructionsDisallowed: Multiple CMD instructions should not be used in the same stage because only the last one will be used",
        ],
    );
}

#[test]
fn working_directories_should_start_absolute() {
    check(
        "FROM base AS one\nWORKDIR a\nWORKDIR b\nFROM one\nWORKDIR c\n",
        &[
            "2 WorkdirRelativePath: Relative workdir \"a\" can have unexpected results if the base image changes",
        ],
    );
}

#[test]
fn bases_should_fit_the_platform() {
    check(
        "FROM foreign\n",
        &[
            "1 InvalidBaseImagePlatform: Base image foreign was pulled with platform \"linux/arm64\", expected \"linux/amd64\" for current build",
        ],
    );
}

#[test]
fn windows_has_no_search_path_of_its_own() {
    let windows = |request: &mut PlanRequest| {
        request.target_platform = Some(Platform::new("windows", "amd64", None));
    };
    let text = "FROM scratch\nENV PATH=/a:$PATH\n";
    check_with(text, windows, &["2 UndefinedVar: Usage of undefined variable '$PATH'"]);
    check(text, &[]);
}

#[test]
fn ports_should_be_plain() {
    check(
        "FROM base\nEXPOSE 80/TCP 8080:80 80/udp\n",
        &[
            "2 ExposeProtoCasing: Defined protocol '80/TCP' in EXPOSE instruction should be lowercase",
            "2 ExposeInvalidFormat: EXPOSE instruction should not define an IP address or host-port mapping, found '8080:80'",
        ],
    );
}

#[test]
fn ignored_files_should_not_be_copied() {
    let ignoring = |request: &mut PlanRequest| request.dockerignore = vec!["gone".into()];
    check_with(
        "FROM base AS one\nFROM base\nCOPY gone /\nADD http://gone ./gone/x /\nCOPY --from=one gone /\n",
        ignoring,
        &[
            "3 CopyIgnoredFile: Attempting to Copy file \"gone\" that is excluded by .dockerignore",
            "4 CopyIgnoredFile: Attempting to Add file \"gone/x\" that is excluded by .dockerignore",
        ],
    );
}
