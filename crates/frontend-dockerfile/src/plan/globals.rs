//! The global scope.
//!
//! Owns the platform arguments, `ARG`s before the first `FROM`, build args over both, and
//! `SOURCE_DATE_EPOCH`.

use std::collections::{BTreeMap, BTreeSet};

use stave_llb::Definition;
use stave_oci::Reference;

use crate::{
    ast::{Dockerfile, InstructionKind},
    check::{Checks, Rule},
    diagnostic::Diagnostic,
    epoch::{self, EPOCH},
    expand::Expander,
    request::PlanRequest,
    scope::{Lookup as _, Variables},
};

use super::{BuildPlan, error};

/// The global scope, and the names declared in the file.
pub(super) fn build(
    dockerfile: &Dockerfile,
    request: &PlanRequest,
    build_args: &BTreeMap<String, String>,
) -> Result<(Variables, BTreeSet<String>), Diagnostic> {
    let mut globals = platform_arguments(dockerfile, request);
    let mut declared = BTreeSet::new();
    let expander = Expander::new(dockerfile.escape);
    for instruction in &dockerfile.globals {
        let InstructionKind::Arg(arguments) = &instruction.kind else { continue };
        for argument in arguments {
            let name = &argument.name.text;
            declared.insert(name.clone());
            let value = match (build_args.get(name), &argument.default) {
                (Some(given), _) => given.clone(),
                (None, Some(default)) => expander
                    .text(&default.text, &globals)
                    .map_err(|failure| error(instruction.span, failure.to_string()))?,
                (None, None) => continue,
            };
            globals.set(name.as_str(), value);
        }
    }
    Ok((globals, declared))
}

impl BuildPlan {
    /// Whether a name is one of those the builder gives a value to.
    pub(crate) fn is_platform_argument(&self, name: &str) -> bool {
        platform_arguments(&self.dockerfile, &self.request).value(name).is_some()
    }
}

fn platform_arguments(dockerfile: &Dockerfile, request: &PlanRequest) -> Variables {
    let build = &request.build_platform;
    let target = request.platform();
    let last_name = || dockerfile.stages.last()?.from.name.as_ref().map(|name| name.name.clone());
    let stage = request.target.clone().filter(|name| !name.is_empty()).or_else(last_name);
    let text = |part: &Option<String>| part.clone().unwrap_or_default();
    let defaults = [
        ("BUILDPLATFORM", build.to_string()),
        ("BUILDOS", build.os.clone()),
        ("BUILDOSVERSION", text(&build.os_version)),
        ("BUILDARCH", build.architecture.clone()),
        ("BUILDVARIANT", text(&build.variant)),
        ("TARGETPLATFORM", target.to_string()),
        ("TARGETOS", target.os.clone()),
        ("TARGETOSVERSION", text(&target.os_version)),
        ("TARGETARCH", target.architecture.clone()),
        ("TARGETVARIANT", text(&target.variant)),
        ("TARGETSTAGE", stage.unwrap_or_else(|| "default".to_owned())),
    ];
    let mut globals = Variables::default();
    for (name, default) in defaults {
        globals.set(name, request.build_args.get(name).cloned().unwrap_or(default));
    }
    globals
}

/// The time of everything the build makes.
#[derive(Default)]
pub(super) struct Epoch {
    pub(super) seconds: Option<i64>,
    pub(super) source: Option<Definition>,
}

/// The time of everything the build makes, in seconds; what stages see of it is brought into line.
pub(super) fn settle_epoch(
    dockerfile: &Dockerfile,
    request: &mut PlanRequest,
    globals: &mut Variables,
) -> Result<Epoch, Diagnostic> {
    let declared = globals.value(EPOCH).filter(|value| !value.is_empty());
    let Some(value) = request.build_args.get(EPOCH).map(String::as_str).or(declared) else {
        return Ok(Epoch::default());
    };
    let epoch = match (value, value.parse::<i64>()) {
        ("", _) => Epoch::default(),
        (_, Ok(seconds)) if !stave_oci::is_date(seconds) => return Err(epoch::beyond(dockerfile, seconds)),
        (_, Ok(seconds)) => Epoch { seconds: Some(seconds), source: None },
        (name, Err(_)) => Epoch { seconds: None, source: epoch::source(name, dockerfile, request, globals)? },
    };
    let Some(seconds) = epoch.seconds else {
        request.build_args.remove(EPOCH);
        globals.unset(EPOCH);
        return Ok(epoch);
    };
    if let Some(given) = request.build_args.get_mut(EPOCH) {
        *given = seconds.to_string();
    }
    if globals.value(EPOCH).is_some() {
        globals.set(EPOCH, seconds.to_string());
    }
    Ok(epoch)
}

/// Whether the bases are sound where no build arg is given.
pub(super) fn check_defaults(
    dockerfile: &Dockerfile,
    request: &PlanRequest,
    checks: &Checks,
    warnings: &mut Vec<Diagnostic>,
) {
    let Ok((globals, _)) = build(dockerfile, request, &BTreeMap::new()) else { return };
    let expander = Expander::new(dockerfile.escape);
    for stage in &dockerfile.stages {
        let base = &stage.from.base.text;
        let Ok(name) = expander.text(base, &globals) else { return };
        if name.parse::<Reference>().is_err() {
            let message = format!("Default value for ARG {base} results in empty or invalid base image name");
            checks.report(warnings, Rule::InvalidDefaultArgInFrom, stage.instruction.span, message);
        }
    }
}
