//! `stave build`: flags to a request, the outcome to files and exit codes.

mod answer;
mod arguments;
mod attest;
mod caches;
mod confine;
mod contexts;
mod elsewhere;
mod failure;
mod findings;
mod includes;
mod input;
mod inquiry;
mod metadata;
mod outputs;
mod policy;
mod remote;
mod request;
mod ssh;
mod tables;
mod timing;
mod values;
mod verify;

use std::io::IsTerminal as _;
use std::path::Path;

pub(crate) use arguments::{Arguments, ProgressForm};
pub(crate) use request::secrets;
use serde_json::Value;
use stave_engine::vcs::Checkout;
use stave_engine::{BuildError, BuildOutcome, BuildRequest, Engine, Timeline};
use stave_frontend_dockerfile::ContextSource;
use stave_solver::{OpErrorKind, SolveError};
pub(crate) use values::{hosts, limits as ulimits, size};

use verify::VerifyError;

use crate::config;
use crate::output::say;
use crate::progress::Display;
use crate::report::{self, Failure};
use crate::runtime::{Interrupt, with_engine};
use crate::state::GlobalOptions;

/// Builds.
pub(crate) fn run(arguments: &Arguments, global: &GlobalOptions) -> Result<u8, Failure> {
    // Everything that can be wrong with the flags is said before the state directory is touched.
    let config = config::load(&global.config_file()).map_err(|error| Failure::new(&error))?;
    let wishes = request::Wishes::of(arguments, &config)?;
    arguments.failure.check()?;
    if let Some(builder) = arguments.elsewhere.builder() {
        return elsewhere::run((arguments, &wishes), builder, global);
    }
    with_engine(global, async |engine, interrupt| {
        let input = remote::open(arguments, &wishes, engine, interrupt).await?;
        if arguments.builds() && names_front_end(&input) {
            return elsewhere::inside(engine, (arguments, &wishes), &input, interrupt).await;
        }
        let mut request = wishes.request(&input);
        label_with_checkout(&mut request, arguments).await;
        if let Some(inquiry) = arguments.inquiry.inquiry() {
            return answer::answer(inquiry, engine, request, arguments, interrupt).await;
        }
        let timeline = arguments.timing.timeline();
        let warnings = metadata::Warnings::default();
        let built = build(engine, &request, arguments, (interrupt, timeline.as_ref(), &warnings)).await;
        arguments.timing.finish(timeline.as_ref())?;
        let outcome = match built {
            Ok(outcome) => outcome,
            Err(error) => {
                let explained = explain(&error, &request, input.ignore_file.as_deref());
                arguments.failure.attend(engine, &error, &request, &explained, interrupt).await;
                return Err(explained);
            }
        };
        finish(arguments, &outcome, warnings.entry(&request.dockerfile))?;
        if arguments.result.verify {
            let checked = verify::verify(engine, &request, &outcome, (arguments, interrupt)).await;
            checked.map_err(|error| match error {
                VerifyError::Build(error) => explain(&error, &request, input.ignore_file.as_deref()),
                VerifyError::Differs(failure) => failure,
            })?;
        }
        Ok(0)
    })
}

/// Whether the Dockerfile is for a front end that is an image, and not the one inside.
fn names_front_end(input: &input::Input) -> bool {
    let line = stave_engine::syntax_line(&input.dockerfile);
    let image = line.as_deref().and_then(|line| line.split_whitespace().next());
    image.is_some_and(|image| !stave_engine::is_built_in_frontend(image))
}

/// Adds the labels of the git checkout where `BUILDX_GIT_LABELS` asks for them; those given by flags win.
async fn label_with_checkout(request: &mut BuildRequest, arguments: &Arguments) {
    let is_set = |name: &str| {
        std::env::var(name).is_ok_and(|value| value == "full" || attest::boolean(&value) == Some(true))
    };
    if !is_set("BUILDX_GIT_LABELS") || request.plan.context != ContextSource::Local {
        return;
    }
    let checkout = Checkout::of(&request.context, is_set("BUILDX_GIT_CHECK_DIRTY")).await;
    let dockerfile = arguments.file.clone().unwrap_or_else(|| request.context.join("Dockerfile"));
    for (name, value) in checkout.iter().flat_map(|checkout| checkout.labels(&dockerfile)) {
        request.plan.labels.entry(name).or_insert(value);
    }
}

async fn build(
    engine: &Engine,
    request: &BuildRequest,
    arguments: &Arguments,
    (interrupt, timeline, warnings): (&Interrupt, Option<&Timeline>, &metadata::Warnings),
) -> Result<BuildOutcome, BuildError> {
    let display = Display::start(arguments.form(), &request.dockerfile);
    let observer = warnings.observer(timing::observed(timeline, display.observer()));
    let result = engine.build(request, observer, interrupt.token()).await;
    match &result {
        Ok(outcome) => display.finish(outcome),
        Err(_) => display.abandon(),
    }
    result
}

/// Writes the files that were asked for, and the id for `--quiet`.
fn finish(
    arguments: &Arguments,
    outcome: &BuildOutcome,
    warnings: Option<(String, Value)>,
) -> Result<(), Failure> {
    let id = outcome.image.as_ref().map(ToString::to_string);
    if let (Some(path), Some(id)) = (&arguments.iidfile, &id) {
        write(path, id)?;
    }
    if let Some(path) = &arguments.metadata_file {
        let detail = std::env::var(metadata::DETAIL_VARIABLE).ok();
        let mut metadata = metadata::metadata(outcome, metadata::Detail::of(detail.as_deref()));
        let asked = std::env::var(metadata::WARNINGS_VARIABLE).ok();
        let is_asked = asked.is_some_and(|value| attest::boolean(&value) == Some(true));
        metadata.extend(warnings.filter(|_| is_asked));
        let text = serde_json::to_string_pretty(&metadata).map_err(|error| Failure::new(&error))?;
        write(path, &text)?;
    }
    if arguments.quiet
        && let Some(id) = &id
    {
        say!("{id}");
    }
    Ok(())
}

fn write(path: &Path, text: &str) -> Result<(), Failure> {
    std::fs::write(path, text)
        .map_err(|error| Failure::message(format!("cannot write `{}`: {error}", path.display())))
}

/// A failed build with the part of the Dockerfile it came from and what to do.
fn explain(error: &BuildError, request: &BuildRequest, ignore_file: Option<&str>) -> Failure {
    let source = &request.dockerfile;
    match error {
        BuildError::Dockerfile(found) => report::diagnostics(source, found, std::io::stderr().is_terminal()),
        BuildError::Solve { error: SolveError::Cancelled, .. } => Failure::message("the build was cancelled"),
        BuildError::Solve { error: failed, lines } => {
            let mut failure =
                Failure::message(format!("failed to build: failed to solve: {}", cause(failed)));
            if let Some((first, last)) = *lines {
                failure.details = report::excerpt(source, first, last);
            }
            failure.with_hint(hint(failed, request, ignore_file))
        }
        BuildError::Image { image, error } => {
            let colour = std::io::stderr().is_terminal();
            let drawn = report::draw(source, image, colour);
            Failure {
                details: format!("{drawn}\n"),
                ..Failure::message(format!("failed to build: failed to solve: {image}"))
            }
            .with_hint(report::advice(error.as_ref()))
        }
        other => Failure::message(format!("failed to build: {}", report::chain(other)))
            .with_hint(report::advice(other)),
    }
}

/// A fetch that failed before there was a Dockerfile to show.
fn solve_failure(error: &BuildError) -> Failure {
    match error {
        BuildError::Solve { error: SolveError::Cancelled, .. } => Failure::message("the build was cancelled"),
        BuildError::Solve { error: failed, .. } => {
            let text = cause(failed);
            Failure::message(format!("failed to build: failed to solve: {text}"))
                .with_hint(report::advice(failed))
        }
        other => Failure::message(format!("failed to build: {}", report::chain(other)))
            .with_hint(report::advice(other)),
    }
}

/// The failed vertex's own words: what it was called stands in the progress and the excerpt.
fn cause(error: &SolveError) -> String {
    error.op().map_or_else(|| report::chain(error), |op| report::chain(op))
}

fn hint(error: &SolveError, request: &BuildRequest, ignore_file: Option<&str>) -> Option<String> {
    let op = error.op()?;
    let text = report::chain(op);
    match op.kind() {
        OpErrorKind::ExitCode { .. } if text.contains("was killed: out of memory (limit") => Some(
            "raise the limit: `--memory` is the whole build's, `--resource memory=` each step's".to_owned(),
        ),
        OpErrorKind::ExitCode { code: 127, .. } => Some(
            "exit code 127 means that a command was not found: is it installed in this stage?".to_owned(),
        ),
        OpErrorKind::ExitCode { code: 126, .. } => {
            Some("exit code 126 means that a command is not executable".to_owned())
        }
        OpErrorKind::ExitCode { signal: Some(9), .. } => {
            Some("the process was killed: the machine may have run out of memory".to_owned())
        }
        OpErrorKind::ExitCode { .. } => Some("`stave debug` opens a shell in what the step left".to_owned()),
        OpErrorKind::Input if text.contains("failed to compute cache key") => {
            Some(missing(&text, request, ignore_file))
        }
        _ if text.contains("No space left on device") => {
            Some("free some space, for instance with `stave prune --all`".to_owned())
        }
        _ => None,
    }
}

/// Why a path that COPY names is not there: excluded, misspelt, or outside.
fn missing(text: &str, request: &BuildRequest, ignore_file: Option<&str>) -> String {
    let named = text.split('"').nth(1).unwrap_or_default().trim_start_matches('/');
    match ignore_file {
        Some(file) if !named.is_empty() && request.context.join(named).exists() => {
            format!("`{named}` is in the build context, but `{file}` excludes it")
        }
        _ => "paths are looked up in the build context, and cannot lead out of it".to_owned(),
    }
}
