//! `stave debug`: looks inside, for people who work on stave.

mod lower;

use std::path::PathBuf;

use crate::report::Failure;

/// Look inside (for work on stave itself)
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Subcommand,
}

#[derive(Debug, clap::Subcommand)]
enum Subcommand {
    /// Lower Dockerfiles, one JSON case a line on standard input, to LLB as JSON
    Lower {
        /// What images stand for: one JSON object a line with `ref`, `platform`, `digest`, `config`
        #[arg(long, value_name = "FILE")]
        images: PathBuf,
    },
}

/// Runs the subcommand.
pub(crate) fn run(arguments: &Arguments) -> Result<u8, Failure> {
    match &arguments.command {
        Subcommand::Lower { images } => lower::run(images),
    }
}
