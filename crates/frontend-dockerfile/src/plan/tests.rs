//! Plans of whole files: which stages, arguments and images they come to.

use stave_oci::{Digest, ImageConfig, Platform};

use super::*;
use crate::{
    parse,
    request::{NoCache, ResolvedImage},
    source::Source,
};

fn request() -> PlanRequest {
    PlanRequest::new(Platform::new("linux", "amd64", None))
}

fn with(change: impl FnOnce(&mut PlanRequest)) -> PlanRequest {
    let mut request = request();
    change(&mut request);
    request
}

fn plan_of(text: &str, request: &PlanRequest) -> Result<BuildPlan, PlanError> {
    plan(&parse(&Source::new("Dockerfile", text)).dockerfile, request)
}

#[track_caller]
fn planned(text: &str, request: &PlanRequest) -> BuildPlan {
    plan_of(text, request).unwrap_or_else(|error| panic!("{text}: {error}"))
}

#[track_caller]
fn check_error(text: &str, request: &PlanRequest, expected: &str) {
    let error = plan_of(text, request).expect_err(text);
    assert_eq!(error.to_string(), expected, "{text}");
}

/// Stages as `name=base`, those the target does not need in brackets.
fn shape(plan: &BuildPlan) -> String {
    let stages = plan.stages.iter().map(|stage| {
        let base = match &stage.base {
            Base::Scratch => "scratch".to_owned(),
            Base::Stage(index) => format!("#{}", index.0),
            Base::Image(reference) => reference.familiar(),
            Base::Context(context) => format!("[{}]", context.shown),
        };
        let name = if stage.implicit { "+" } else { stage.display_name.as_str() };
        let text = format!("{name}={base}");
        if stage.reachable { text } else { format!("({text})") }
    });
    stages.collect::<Vec<_>>().join(" ")
}

/// Resolves every image of the plan to one with these triggers.
fn resolve(plan: BuildPlan, triggers: &[(&str, &[&str])]) -> Result<BuildPlan, PlanError> {
    let mut plan = plan;
    let mut resolved = ResolvedSources::default();
    loop {
        let missing = plan.missing(&resolved);
        if missing.is_empty() {
            return Ok(plan);
        }
        for request in missing {
            let mut config: ImageConfig = serde_json::from_str(
                r#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}"#,
            )
            .expect("a config");
            let name = request.reference.familiar();
            let found = triggers.iter().find(|(image, _)| *image == name);
            config.config.on_build = found
                .map(|(_, texts)| texts.iter().map(|&text| text.to_owned()).collect())
                .unwrap_or_default();
            resolved.insert(request, ResolvedImage { digest: Digest::sha256(name.as_bytes()), config });
        }
        plan = plan.with_triggers(&resolved)?;
    }
}

#[test]
fn only_needed_stages_are_reachable() {
    let text =
        "FROM a AS one\nFROM b AS two\nRUN x\nFROM one\nCOPY --from=0 /x /\nCOPY --from=busybox /y /\n";
    let plan = planned(text, &request());
    assert_eq!(shape(&plan), "one=a:latest (two=b:latest) stage-2=#0 +=busybox:latest");
    let plan = planned(text, &with(|request| request.target = Some("TWO".into())));
    assert_eq!(shape(&plan), "(one=a:latest) two=b:latest (stage-2=#0) (+=busybox:latest)");
    assert_eq!(plan.stages[plan.target.0].step_total, 2);
}

#[test]
fn mounts_reach_stages_too() {
    let text = "FROM a AS tools\nFROM scratch\nRUN --mount=from=tools,target=/t --mount=type=cache,target=/c \
                --mount=from=img,target=/i x\n";
    let plan = planned(text, &request());
    assert_eq!(shape(&plan), "tools=a:latest stage-1=scratch +=img:latest");
    let sources = &plan.stages[1].instructions[0].sources;
    assert_eq!(sources, &[Some(StageIndex(0)), None, Some(StageIndex(2))]);
}

#[test]
fn bases_are_expanded_in_the_global_scope() {
    let text = "ARG TAG=1\nARG IMAGE=a:$TAG\nFROM --platform=$BUILDPLATFORM $IMAGE\n";
    let plan = planned(text, &request());
    assert_eq!(shape(&plan), "=a:1");
    assert_eq!(
        plan.request_of(StageIndex(0)).map(|request| request.platform.to_string()),
        Some("linux/amd64".into())
    );
    let plan = planned(
        text,
        &with(|request| {
            request.build_args.insert("TAG".into(), "2".into());
            request.build_args.insert("BUILDPLATFORM".into(), "linux/arm64".into());
        }),
    );
    assert_eq!(shape(&plan), "=a:2");
    assert_eq!(plan.stages[0].platform.as_ref().map(ToString::to_string), Some("linux/arm64".into()));
}

#[test]
fn arguments_come_from_args_defaults_and_globals() {
    let request = with(|request| {
        request.build_args.insert("GIVEN".into(), "g".into());
    });
    let plan = planned("ARG GLOBAL=x\nFROM scratch", &request);
    let value = |name, default: Option<&str>| plan.argument_value(name, default.map(str::to_owned));
    assert_eq!(value("GIVEN", Some("d")).as_deref(), Some("g"));
    assert_eq!(value("OTHER", Some("d")).as_deref(), Some("d"));
    assert_eq!(value("GLOBAL", None).as_deref(), Some("x"));
    assert_eq!(value("GLOBAL", Some("d")).as_deref(), Some("d"));
    assert_eq!(value("TARGETOS", None).as_deref(), Some("linux"));
    assert_eq!(value("NOTHING", None), None);
}

#[test]
fn the_epoch_is_a_number() {
    let epoch = |value: &str| {
        plan_of(
            "FROM scratch",
            &with(|request| {
                request.build_args.insert("SOURCE_DATE_EPOCH".into(), value.into());
            }),
        )
        .map(|plan| plan.epoch)
        .map_err(|error| error.to_string())
    };
    assert_eq!(epoch("1700000000"), Ok(Some(1_700_000_000)));
    assert_eq!(epoch(""), Ok(None));
    assert_eq!(epoch("yesterday"), Err("invalid SOURCE_DATE_EPOCH: yesterday".into()));
    assert_eq!(epoch("253402300799"), Ok(Some(253_402_300_799)));
    assert_eq!(epoch("253402300800"), Err("invalid SOURCE_DATE_EPOCH: 253402300800".into()));
    assert_eq!(epoch("-62167219201"), Err("invalid SOURCE_DATE_EPOCH: -62167219201".into()));
}

#[test]
fn unsound_plans_are_errors() {
    let arm = with(|request| request.target = Some("bulid".into()));
    check_error("FROM a AS build", &arm, "target stage \"bulid\" could not be found (did you mean build?)");
    for (text, expected) in [
        ("FROM $NO", "base name ($NO) should not be blank"),
        ("FROM ${NO:?needed}", "failed to process \"${NO:?needed}\": NO: needed"),
        ("FROM a-", "failed to parse stage name \"a-\": invalid reference format"),
        (
            "FROM --platform=linux/$X a",
            "failed to parse platform linux/$X: \"\" is an invalid component of \"linux/\": platform specifier \
             component must match \"^[A-Za-z0-9_.-]+$\": invalid argument",
        ),
        (
            "FROM --platform=$TARGETPLATFROM a",
            "empty platform value from expression $TARGETPLATFROM (did you mean TARGETPLATFORM?)",
        ),
        ("FROM a\nCOPY --from=7 x y", "invalid stage index 7"),
        (
            "FROM a\nCOPY --from=$x y z",
            "variable expansion is not supported for --from, define a new stage with FROM using ARG from global \
             scope as a workaround",
        ),
        ("FROM a\nCOPY --from=0 x y", "circular dependency detected on stage: stage-0"),
        (
            "FROM a AS one\nCOPY --from=two x y\nFROM b AS two\nCOPY --from=one x y",
            "circular dependency detected on stage: one",
        ),
        (
            "FROM a AS one\nCOPY --from=two x y\nFROM b AS two\nFROM one",
            "cannot copy from stage \"two\", it needs to be defined before current stage \"one\"",
        ),
        (
            "FROM a AS one\nRUN --mount=from=two,target=/t x\nFROM b AS two\nFROM one",
            "cannot mount from stage \"two\" to \"/t\", stage needs to be defined before current command",
        ),
        ("FROM a\nCOPY --from=B-/ x y", "failed to parse stage name \"B-/\": invalid reference format"),
        ("FRO a", "dockerfile parse error on line 1: unknown instruction: FRO (did you mean FROM?)"),
    ] {
        check_error(text, &request(), expected);
    }
}

#[test]
fn triggers_come_first_and_bring_their_images() {
    let plan = planned("FROM a AS one\nRUN own\nONBUILD RUN late\nFROM one\nFROM a\n", &request());
    let plan = resolve(plan, &[("a:latest", &["COPY --from=b /x /", "RUN first"])]).expect("sound triggers");
    assert_eq!(shape(&plan), "(one=a:latest) (stage-1=#0) stage-2=a:latest +=b:latest");
    let codes: Vec<_> =
        plan.stages[2].instructions.iter().map(|planned| planned.instruction.code.as_str()).collect();
    assert_eq!(codes, ["COPY --from=b /x /", "RUN first"]);
    assert!(plan.stages[2].instructions.iter().all(|planned| planned.on_build));
    assert_eq!(plan.stages[2].step_total, 3);

    let plan = planned("FROM a AS one\nONBUILD RUN late\nFROM one\nRUN own", &request());
    let plan = resolve(plan, &[]).expect("sound triggers");
    let codes: Vec<_> =
        plan.stages[1].instructions.iter().map(|planned| planned.instruction.code.as_str()).collect();
    assert_eq!(codes, ["RUN late", "RUN own"]);
}

#[test]
fn unsound_triggers_are_errors_at_their_from() {
    let plan = planned("FROM x AS a\n\nFROM a:1\n", &request());
    let error = resolve(plan, &[("a:1", &["RNU y"])]).expect_err("unsound");
    assert_eq!(error.to_string(), "unknown instruction: RNU (did you mean RUN?)");
    assert_eq!(error.diagnostics[0].span, Span::new(13, 21));
    let plan = planned("FROM a:1\n", &request());
    let error = resolve(plan, &[("a:1", &["COPY --from=0 x y"])]).expect_err("needs itself");
    assert_eq!(
        error.to_string(),
        "cannot copy from stage \"0\", it needs to be defined before current stage \"\""
    );
}

#[test]
fn named_contexts_stand_for_stages_and_images() {
    let request = with(|request| {
        request.named_contexts.insert("one".into(), NamedContext::parse("one", "local:dir").expect("is one"));
        request
            .named_contexts
            .insert("b".into(), NamedContext::parse("b", "docker-image://c:1").expect("is one"));
    });
    let plan = planned("FROM a AS one\nRUN x\nFROM b:latest\nCOPY --from=one x y", &request);
    assert_eq!(shape(&plan), "one=[one] stage-1=[b]");
    assert!(plan.stages[0].instructions.is_empty());
}

#[test]
fn all_unsound_stages_and_sources_are_named() {
    let text =
        "FROM $none AS a\nFROM --platform=x/y/z/q b AS b\nFROM a AS c\nCOPY --from=9 x y\nCOPY --from=$v x y";
    let failure = plan(&parse(&Source::new("Dockerfile", text)).dockerfile, &request()).expect_err("unsound");
    let texts: Vec<_> =
        failure.diagnostics.iter().filter(|one| one.is_error()).map(ToString::to_string).collect();
    assert_eq!(texts.len(), 4, "{texts:?}");
    assert_eq!(texts[0], "base name ($none) should not be blank");
    assert!(texts[1].starts_with("failed to parse platform x/y/z/q"));
    assert_eq!(texts[2], "invalid stage index 9");
    assert!(texts[3].starts_with("variable expansion is not supported for --from"));
}

#[test]
fn an_epoch_may_name_a_source() {
    let text = "FROM scratch AS one\nADD https://a.test/x.git#v1 /\nFROM scratch AS two\nADD a /\nFROM b";
    let epoch = |value: &str| {
        let request =
            with(|request| drop(request.build_args.insert("SOURCE_DATE_EPOCH".into(), value.into())));
        plan(&parse(&Source::new("Dockerfile", text)).dockerfile, &request)
    };
    let found = epoch("one").expect("plans");
    assert!(found.epoch.is_none() && !found.request.build_args.contains_key("SOURCE_DATE_EPOCH"));
    let source = found.epoch_source.expect("a source");
    assert_eq!(source.vertices().len(), 1);
    assert!(epoch("context").expect("plans").epoch_source.is_none());
    assert_eq!(epoch("7").expect("plans").epoch, Some(7));
    let text = "SOURCE_DATE_EPOCH stage source must be a single HTTP(S) or Git ADD";
    assert_eq!(epoch("two").expect_err("is no download").to_string(), text);
    assert_eq!(epoch("x").expect_err("is nothing").to_string(), "invalid SOURCE_DATE_EPOCH: x");
}

#[test]
fn the_cache_can_be_switched_off_by_stage() {
    let request = with(|request| request.no_cache = NoCache::Stages(vec!["One".into()]));
    let plan = planned("FROM a AS one\nFROM one", &request);
    assert_eq!(plan.stages.iter().map(|stage| stage.ignore_cache).collect::<Vec<_>>(), [true, false]);
}

#[test]
fn unresolved_images_may_be_mistyped_stages() {
    let plan = planned("FROM a AS build\nFROM scratch\nCOPY --from=biuld /x /", &request());
    let missing = plan.missing(&ResolvedSources::default());
    assert_eq!(missing.len(), 1);
    let error = plan.unresolved(&missing[0], "not found");
    assert_eq!(error.to_string(), "biuld: not found (did you mean build?)");
    assert_eq!(plan.dockerfile.source.slice(error.span), "--from=biuld");
}

#[track_caller]
fn check_warnings(text: &str, expected: &[&str]) {
    let plan = planned(text, &request());
    let found: Vec<_> = plan
        .warnings
        .iter()
        .map(|warning| {
            let crate::Code::Check(rule) = warning.code else { panic!("a check") };
            let line = plan.dockerfile.source.position(warning.span.start).line;
            format!("{line} {}: {}", rule.name(), warning.message)
        })
        .collect();
    assert_eq!(found, expected, "{text}");
}

#[test]
fn checks_look_at_bases_and_names() {
    check_warnings(
        "ARG X\nFROM a${X}b$Y$TAGRETOS\n",
        &[
            "2 UndefinedArgInFrom: FROM argument 'TAGRETOS' is not declared (did you mean TARGETOS?)",
            "2 UndefinedArgInFrom: FROM argument 'Y' is not declared (did you mean X?)",
        ],
    );
    check_warnings(
        "ARG X\nARG Z=${X:-b}\nFROM $Z AS C\n",
        &["3 StageNameCasing: Stage name 'C' should be lowercase"],
    );
    check_warnings(
        "FROM --platform=$TARGETPLATFORM a\n",
        &[
            "1 RedundantTargetPlatform: Setting platform to predefined $TARGETPLATFORM in FROM is redundant as this is the default behavior",
        ],
    );
    check_warnings(
        "FROM --platform=linux/arm64 a AS x\nFROM --platform=linux/arm64 a AS arm64",
        &[
            "1 FromPlatformFlagConstDisallowed: FROM --platform flag should not use constant value \"linux/arm64\"",
        ],
    );
    check_warnings(
        "from a as x\nFROM b As x\nRUN a \\\n\n  b\nMAINTAINER me\nFROM scratch AS scratch",
        &[
            "5 NoEmptyContinuation: Empty continuation line",
            "2 FromAsCasing: 'As' and 'FROM' keywords' casing do not match",
            "6 MaintainerDeprecated: Maintainer instruction is deprecated in favor of using label",
            "2 DuplicateStageName: Duplicate stage name \"x\", stage names should be unique",
            "7 ReservedStageName: Stage name should not use the same name as reserved stage \"scratch\"",
            "1 ConsistentInstructionCasing: Command 'from' should match the case of the command majority (uppercase)",
        ],
    );
}

#[test]
fn checks_can_be_skipped_and_asked_for() {
    check_warnings("# check=skip=MaintainerDeprecated,StageNameCasing\nFROM a AS B\nMAINTAINER me", &[]);
    check_warnings(
        "FROM a\n# check=skip=all\nMAINTAINER me\nMAINTAINER you",
        &["4 MaintainerDeprecated: Maintainer instruction is deprecated in favor of using label"],
    );
    check_warnings(
        "# check=experimental=all\n# about\nFROM a AS b\n# c is it\nARG c\n# not it\nARG d e",
        &[
            "3 InvalidDefinitionDescription: Comment for FROM should follow the format: `# b <description>`",
            "7 InvalidDefinitionDescription: Comment for ARG should follow the format: `# <arg_key> <description>`",
        ],
    );
}

#[test]
fn warnings_come_with_an_error() {
    let error = plan_of("from a as A\nFROM $X", &request()).expect_err("no base");
    let found: Vec<_> =
        error.diagnostics.iter().map(|found| (found.is_error(), found.message.as_str())).collect();
    assert_eq!(found[0], (true, "base name ($X) should not be blank"));
    assert!(found.contains(&(false, "FROM argument 'X' is not declared")), "{found:?}");
}

#[test]
fn an_epoch_of_nothing_is_no_build_arg() {
    let plan = planned(
        "ARG SOURCE_DATE_EPOCH=7\nFROM scratch",
        &with(|request| {
            request.build_args.insert("SOURCE_DATE_EPOCH".into(), String::new());
        }),
    );
    assert_eq!((plan.epoch, plan.argument_value("SOURCE_DATE_EPOCH", None)), (None, None));
    let plan = planned("ARG SOURCE_DATE_EPOCH=+7\nFROM scratch", &request());
    assert_eq!((plan.epoch, plan.argument_value("SOURCE_DATE_EPOCH", None)), (Some(7), Some("7".into())));
}

#[test]
fn default_bases_are_checked_without_build_args() {
    let request = with(|request| {
        request.build_args.insert("X".into(), "a".into());
    });
    let plan = planned("ARG X\nFROM $X\n", &request);
    assert_eq!(
        plan.warnings[0].message,
        "Default value for ARG $X results in empty or invalid base image name"
    );
}
