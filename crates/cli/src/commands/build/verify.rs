//! `--verify`: says whether a second build came out the same, and what did not.

use stave_engine::{BuildError, BuildOutcome, BuildRequest, Deviation, Engine, Verified};

use super::arguments::Arguments;
use crate::progress::Display;
use crate::report::Failure;
use crate::runtime::Interrupt;

/// Why a verification did not succeed.
pub(super) enum VerifyError {
    /// The second build failed.
    Build(BuildError),
    /// It made something else.
    Differs(Failure),
}

/// Builds again and compares.
pub(super) async fn verify(
    engine: &Engine,
    request: &BuildRequest,
    outcome: &BuildOutcome,
    (arguments, interrupt): (&Arguments, &Interrupt),
) -> Result<(), VerifyError> {
    let display = Display::start(arguments.form(), &request.dockerfile);
    let verified = engine.verify(request, &outcome.images, display.observer(), interrupt.token()).await;
    display.abandon();
    match verified.map_err(VerifyError::Build)? {
        Verified::Same => {
            if !arguments.quiet {
                eprintln!("verified: a second build without the cache made the same image");
            }
            Ok(())
        }
        Verified::Differs(deviation) => Err(VerifyError::Differs(failure(&deviation))),
    }
}

fn failure(deviation: &Deviation) -> Failure {
    let text = match deviation {
        Deviation::File { path, how, instruction, others } => {
            let how = if how.is_empty() {
                "only one of the builds has it".to_owned()
            } else {
                let names: Vec<String> = how.iter().map(ToString::to_string).collect();
                format!("{} differs", names.join(", "))
            };
            let others = match others {
                0 => String::new(),
                1 => ", and 1 more entry of the same layer".to_owned(),
                count => format!(", and {count} more entries of the same layer"),
            };
            let by = instruction.as_ref().map(|text| format!(" (made by `{text}`)")).unwrap_or_default();
            format!("`{}`: {how}{others}{by}", path.display())
        }
        Deviation::Layers { first, second } => format!("{first} layers, then {second}"),
        Deviation::Config => "the image config differs".to_owned(),
    };
    Failure::message(format!("the build is not reproducible: {text}"))
}
