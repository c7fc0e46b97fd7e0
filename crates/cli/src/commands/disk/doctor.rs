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
