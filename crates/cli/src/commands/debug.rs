//! `stave debug`: a shell in the failed step of a build; and looks inside, for people who work on stave.

mod lower;
pub(crate) mod shell;

use std::path::PathBuf;

use stave_engine::{FailedError, Means};
use stave_worker::Confinement;

use crate::commands::build::secrets;
use crate::report::Failure;
use crate::runtime::with_engine;
use crate::state::GlobalOptions;

/// Open a shell in the failed step of a build
///
/// The step's file system is as its process left it, with the step's environment, mounts, user and working directory.
/// Secrets are not kept: give again those the step needs. What is kept goes after a day, or when three later builds failed.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Option<Subcommand>,
    /// Id of a build, or the start of one (default: the latest that failed)
    build: Option<String>,
    /// A secret of the step (`id=token,src=FILE` or `id=token,env=NAME`)
    #[arg(long = "secret", value_name = "SPEC")]
    secrets: Vec<String>,
    /// Grant the step a right again: `network.host`, `security.insecure`, `device[=NAME]`
    #[arg(long, value_name = "ENTITLEMENT")]
    allow: Vec<String>,
    /// What to run instead of a shell
    #[arg(last = true)]
    words: Vec<String>,
}

#[derive(Debug, clap::Subcommand)]
enum Subcommand {
    /// Lower Dockerfiles, one JSON case a line on standard input, to LLB as JSON
    #[command(hide = true)]
    Lower {
        /// What images stand for: one JSON object a line with `ref`, `platform`, `digest`, `config`
        #[arg(long, value_name = "FILE")]
        images: PathBuf,
    },
}

impl Arguments {
    /// Whether a step is entered.
    pub(crate) fn enters(&self) -> bool {
        self.command.is_none()
    }
}

/// Runs the subcommand, or enters a step.
pub(crate) fn run(arguments: &Arguments, global: &GlobalOptions) -> Result<u8, Failure> {
    if let Some(Subcommand::Lower { images }) = &arguments.command {
        return lower::run(images);
    }
    let mut confinement = Confinement::default();
    for word in &arguments.allow {
        confinement.entitlements.grant(word).map_err(|error| Failure::usage(error.to_string()))?;
    }
    let means = Means { secrets: secrets(&arguments.secrets)?, confinement, ..Means::default() };
    with_engine(global, async |engine, interrupt| {
        let failed = engine.failed(arguments.build.as_deref()).map_err(|error| refused(&error))?;
        shell::enter(engine, &failed, &arguments.words, means, interrupt).await
    })
}

fn refused(error: &FailedError) -> Failure {
    let failure = Failure::new(error);
    let kept =
        "only a step that runs a process leaves a file system, for a day, until three later ones failed";
    match error {
        FailedError::LatestLeftNothing { earlier: Some(earlier), .. } => {
            failure.with_hint(format!("{kept}; `stave debug {earlier}` enters an earlier build's"))
        }
        FailedError::LatestLeftNothing { earlier: None, .. } | FailedError::NotKept(_) => {
            failure.with_hint(kept.to_owned())
        }
        _ => failure,
    }
}
