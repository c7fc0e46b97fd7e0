//! `doctor`: whether the state directory is as it should be, and making it so.

use serde_json::json;
use stave_engine::disk;
use stave_store::FindingState;

use crate::output::say;
use crate::progress::sanitise::clean;
use crate::report::Failure;
use crate::state::GlobalOptions;

/// Check the state directory, and repair it
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Repair what is wrong
    #[arg(long)]
    repair: bool,
    /// Print one JSON object per finding
    #[arg(long)]
    json: bool,
}

/// `stave doctor`: 0 when all is well or was made so, 1 when something is wrong.
pub(crate) fn run(arguments: &Arguments, global: &GlobalOptions) -> Result<u8, Failure> {
    let findings =
        disk::doctor(&global.state_directory(), arguments.repair).map_err(|error| Failure::new(&error))?;
    for finding in &findings {
        let state = match finding.state {
            FindingState::Found => "found",
            FindingState::Repaired => "repaired",
            FindingState::Unrepairable => "cannot be repaired",
        };
        if arguments.json {
            let kind = format!("{:?}", finding.kind);
            say!("{}", json!({ "kind": kind, "subject": finding.subject, "state": state }));
        } else {
            say!("{state}: {}: {}", finding.kind.words(), clean(&finding.subject));
        }
    }
    let wrong = findings.iter().filter(|finding| finding.state != FindingState::Repaired).count();
    bridges(arguments)?;
    groups(arguments);
    if !arguments.json {
        match (findings.len(), wrong) {
            (0, _) => say!("the store is sound"),
            (count, 0) => say!("{count} found and repaired"),
            (count, wrong) => say!("{count} found, {wrong} not repaired"),
        }
        if wrong > 0 && !arguments.repair {
            eprintln!("hint: `stave doctor --repair` puts right what can be");
        }
    }
    Ok(u8::from(wrong > 0))
}

/// Says which bridge networks dead processes left on this machine, and removes them with `--repair`. They are no fault
/// of the store: the next process with a bridge removes them as well.
fn bridges(arguments: &Arguments) -> Result<(), Failure> {
    let left = stave_sandbox::abandoned_bridges().map_err(|error| Failure::new(&error))?;
    if arguments.repair && !left.is_empty() {
        stave_sandbox::sweep_bridges().map_err(|error| Failure::new(&error))?;
    }
    let state = if arguments.repair { "repaired" } else { "found" };
    for device in &left {
        if arguments.json {
            say!("{}", json!({ "kind": "Bridge", "subject": device, "state": state }));
        } else {
            say!("{state}: a process died and left its bridge network: {device}");
        }
    }
    Ok(())
}

/// Says which control groups dead processes left on this machine, and removes them with `--repair`. They are no fault
/// of the store: the next step with limits removes them as well.
fn groups(arguments: &Arguments) {
    let left = stave_sandbox::abandoned_cgroups();
    if left.is_empty() {
        return;
    }
    if arguments.repair {
        eprintln!(
            "note: {} of {} control groups of dead processes removed",
            stave_sandbox::sweep_cgroups(),
            left.len()
        );
    } else {
        eprintln!("note: dead processes left {} control groups, such as {}", left.len(), left[0].display());
    }
}
