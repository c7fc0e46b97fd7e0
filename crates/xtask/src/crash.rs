//! `cargo xtask crash`: the crash test of the integration tests, for as long as one likes.

use std::process::Command;

use clap::Args;

use crate::registry::Registry;
use crate::{Failure, images, machine};

/// How long.
#[derive(Args)]
pub(crate) struct Options {
    /// Processes to kill.
    #[arg(long, default_value_t = 500)]
    kills: u64,
    /// Where the instants begin: an earlier run's seed repeats it.
    #[arg(long)]
    seed: Option<u64>,
}

/// Kills builds, pulls, pushes and collections at random instants, and looks at what is left.
pub(crate) fn run(options: &Options) -> Result<(), Failure> {
    machine::require_root()?;
    machine::install(images::PACKAGES)?;
    let stave = machine::release_binary()?;
    let registry = Registry::start(&images::storage())?;
    images::make(&stave, &registry, images::ALL)?;
    let mut test = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    test.current_dir(crate::root());
    test.args(["test", "-p", "stave-cli", "--test", "e2e", "--locked", "crash::", "--", "--nocapture"]);
    test.env("STAVE_TEST_REGISTRY", registry.host()).env("STAVE_TEST_PROGRAM", &stave);
    test.env("STAVE_CRASH_KILLS", options.kills.to_string());
    if let Some(seed) = options.seed {
        test.env("STAVE_CRASH_SEED", seed.to_string());
    }
    machine::run(&mut test)
}
