//! Answers to questions about a Dockerfile: what is asked is read, planned or looked up, and printed on
//! standard output. Nothing is exported, and nothing runs but what the graph itself depends on.

use serde_json::Value;
use stave_engine::{BuildError, BuildRequest, Engine, Inspected};
use stave_frontend_dockerfile::{
    BuildPlan, CheckReport, Diagnostic, Dockerfile, ResolvedSources, lower, outline, parse, plan, targets,
};

use super::inquiry::{Form, Inquiry, Print};
use super::{Arguments, findings, tables};
use crate::output::say;
use crate::progress::Display;
use crate::report::Failure;
use crate::runtime::Interrupt;

/// Answers; the value is the exit code.
pub(super) async fn answer(
    inquiry: Inquiry,
    engine: &Engine,
    mut request: BuildRequest,
    arguments: &Arguments,
    interrupt: &Interrupt,
) -> Result<u8, Failure> {
    let source = &request.dockerfile;
    let explain = |error: BuildError| super::explain(&error, &request, None);
    match inquiry {
        Inquiry::Check { form, ignore_status } => {
            request.plan.all_stages = request.plan.target.as_deref().unwrap_or_default().is_empty();
            let inspected = inspect(engine, &request, arguments, interrupt).await;
            let report = report(inspected, &request)?;
            let print = match form {
                Form::Text => findings::text(&request.dockerfile, &report),
                Form::Json => findings::json(&request.dockerfile, &report)?,
            };
            print_text(&print);
            if let Some(error) = &report.error {
                return Err(findings::failure(&request.dockerfile, error));
            }
            Ok(u8::from(!report.is_clean() && !ignore_status))
        }
        Inquiry::Targets(form) => {
            let dockerfile = sound(&request).map_err(explain)?;
            let found = targets(&dockerfile);
            print_text(&match form {
                Form::Text => tables::targets(&found),
                Form::Json => tables::targets_json(source, &found)?,
            });
            Ok(0)
        }
        Inquiry::Outline(form) => {
            let found = outline(&planned(&request).map_err(explain)?);
            print_text(&match form {
                Form::Text => tables::outline(&found),
                Form::Json => tables::outline_json(source, &found)?,
            });
            Ok(0)
        }
        Inquiry::Describe(form) => {
            print_text(match form {
                Form::Text => tables::DESCRIPTION,
                Form::Json => tables::DESCRIPTION_JSON,
            });
            Ok(0)
        }
        Inquiry::Print(what) => {
            let value = match what {
                Print::Ast => sound(&request).map_err(explain)?.to_json(),
                Print::Plan => planned(&request).map_err(explain)?.to_json(),
                Print::Llb => {
                    let display = Display::start(arguments.form(), &request.dockerfile);
                    let found = engine.inspect_graph(&request, display.observer(), interrupt.token()).await;
                    display.abandon();
                    let found = found.map_err(explain)?;
                    graph(&found, &request).map_err(explain)?
                }
            };
            print_text(&serde_json::to_string_pretty(&value).map_err(|error| Failure::new(&error))?);
            Ok(0)
        }
    }
}

fn print_text(text: &str) {
    if !text.is_empty() {
        say!("{}", text.strip_suffix('\n').unwrap_or(text));
    }
}

async fn inspect(
    engine: &Engine,
    request: &BuildRequest,
    arguments: &Arguments,
    interrupt: &Interrupt,
) -> Result<Inspected, BuildError> {
    let display = Display::start(arguments.form(), &request.dockerfile);
    let found = engine.inspect(request, display.observer(), interrupt.token()).await;
    display.abandon();
    found
}

/// A file that cannot be built is a result of a check, too; only what is about neither file nor images
/// is a failure of the check itself.
fn report(inspected: Result<Inspected, BuildError>, request: &BuildRequest) -> Result<CheckReport, Failure> {
    match inspected {
        Ok(found) => Ok(CheckReport::of(&found.plan, &found.sources)),
        Err(BuildError::Dockerfile(diagnostics)) => {
            Ok(CheckReport::of_failure(stave_frontend_dockerfile::PlanError { diagnostics }))
        }
        Err(error @ BuildError::Image { .. }) => {
            let text = crate::report::chain(&error);
            let BuildError::Image { image, .. } = error else { return Err(Failure::message(text)) };
            let warnings = planned(request).map(|plan| plan.warnings).unwrap_or_default();
            Ok(CheckReport { warnings, error: Some(Diagnostic { message: text, ..*image }) })
        }
        Err(error) => Err(super::explain(&error, request, None)),
    }
}

/// The syntax tree of a file without errors.
fn sound(request: &BuildRequest) -> Result<Dockerfile, BuildError> {
    let parsed = parse(&request.dockerfile);
    match parsed.dockerfile.errors() {
        [] => Ok(parsed.dockerfile),
        errors => Err(BuildError::Dockerfile(errors.to_vec())),
    }
}

/// The plan as far as it is known without any image: with the triggers of the file's own stages only.
fn planned(request: &BuildRequest) -> Result<BuildPlan, BuildError> {
    let planned = plan(&sound(request)?, &request.plan);
    planned
        .and_then(|plan| plan.with_triggers(&ResolvedSources::default()))
        .map_err(|failure| BuildError::Dockerfile(failure.diagnostics))
}

fn graph(found: &Inspected, request: &BuildRequest) -> Result<Value, BuildError> {
    let lowered = lower(&found.plan, &found.sources)
        .map_err(|failure| BuildError::Dockerfile(failure.into_diagnostics()))?;
    Ok(lowered.report(&request.dockerfile))
}
