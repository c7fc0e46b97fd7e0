//! `explain`: why each step of a build ran, or did not have to.

use serde_json::json;
use stave_engine::explain::{Cause, Hint};
use stave_engine::record::{History, StepRecord, StepState};

use super::Form;
use super::builds::{find, step_state};
use crate::output::say;
use crate::progress::sanitise::clean;
use crate::report::Failure;
use crate::runtime::with_store;
use crate::state::GlobalOptions;

/// Tell why steps of a build ran
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Id of a build, or the start of one (default: the latest)
    build: Option<String>,
    /// Output form: `table` or `json`
    #[arg(long, value_name = "FORM")]
    format: Option<Form>,
}

/// `stave explain`
pub(crate) fn run(arguments: &Arguments, global: &GlobalOptions) -> Result<u8, Failure> {
    with_store(global, |store| {
        let record = find(&History::of(store), arguments.build.as_deref())?;
        // What happens in every build has no reason worth a line.
        let is_step = |step: &&StepRecord| step.vertex.is_some() && !step.name.starts_with("[internal]");
        let steps: Vec<&StepRecord> = record.steps.iter().filter(is_step).collect();
        if arguments.format == Some(Form::Json) {
            let object = |step: &&StepRecord| {
                json!({
                    "step": step.number, "name": step.name, "lines": step.lines, "state": step.state,
                    "reason": step.reason, "text": step.reason.as_ref().map(ToString::to_string),
                })
            };
            let steps: Vec<_> = steps.iter().map(object).collect();
            let document = json!({ "build": record.id, "state": record.state, "steps": steps });
            say!("{document:#}");
            return Ok(0);
        }
        for step in &steps {
            say!("#{} {}", step.number, clean(&step.name));
            say!("   {}", line(step));
        }
        let modes =
            |step: &&StepRecord| step.reason.as_ref().is_some_and(|r| r.hint == Some(Hint::ContextModes));
        if steps.iter().any(modes) {
            say!("");
            say!(
                "hint: only modes differ that git does not keep; `--context-modes=git` (or `context-modes = \"git\"`"
            );
            say!("      under `[build]` in the configuration file) makes them the same on every machine");
        }
        Ok(0)
    })
}

fn line(step: &StepRecord) -> String {
    let state = step_state(step.state);
    match (&step.reason, step.state) {
        (Some(reason), StepState::Ran | StepState::Failed | StepState::Cancelled) => {
            let since = match &reason.build {
                Some(build) if reason.cause == Cause::Changed => format!(" (since build {build})"),
                _ => String::new(),
            };
            format!("{state}: {}{since}", clean(&reason.to_string()))
        }
        _ => state.to_owned(),
    }
}
