//! `cargo xtask test`: every check there is, in the order of what fails fastest.

use std::process::Command;

use clap::Args;

use crate::registry::Registry;
use crate::{Failure, images, machine};

/// Real clients and tools that the integration tests call.
const PACKAGES: &[&str] = &["skopeo", "podman", "runc", "iproute2", "procps", "curl"];

/// What to leave out.
#[derive(Args)]
pub(crate) struct Options {
    /// Skip formatting and lints.
    #[arg(long)]
    no_lint: bool,
    /// Run only the tests whose name contains this.
    filter: Option<String>,
}

/// Runs the checks; the first failure ends it.
pub(crate) fn run(options: &Options) -> Result<(), Failure> {
    machine::require_root()?;
    machine::install(images::PACKAGES)?;
    machine::install(PACKAGES)?;
    if !options.no_lint {
        machine::run(cargo().args(["fmt", "--all", "--check"]))?;
        let clippy = ["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"];
        machine::run(cargo().args(clippy))?;
    }
    let stave = machine::release_binary()?;
    let registry = Registry::start(&images::storage())?;
    images::make(&stave, &registry, images::ALL)?;
    let mut tests = cargo();
    tests.args(["test", "--workspace", "--locked", "--no-fail-fast"]);
    tests.args(options.filter.as_deref());
    tests.env("STAVE_TEST_REGISTRY", registry.host()).env("STAVE_TEST_PROGRAM", &stave);
    machine::run(&mut tests)
}

fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(crate::root());
    command
}
