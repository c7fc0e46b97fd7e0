//! `cargo xtask test`: every check there is, in the order of what fails fastest.

use std::path::Path;
use std::process::Command;

use clap::Args;

use crate::registry::Registry;
use crate::{Failure, images, instructions, machine, rootless};

/// Real clients and tools that the integration tests call.
const PACKAGES: &[&str] = &["skopeo", "podman", "runc", "iproute2", "procps", "curl"];

/// What to leave out.
#[derive(Args)]
pub(crate) struct Options {
    /// Skip formatting and lints.
    #[arg(long)]
    no_lint: bool,
    /// Run all integration tests as ordinary users and inside a container, and nothing else.
    #[arg(long)]
    rootless: bool,
    /// Run only the tests whose name contains this.
    filter: Option<String>,
}

/// Runs the checks; the first failure ends it.
pub(crate) fn run(options: &Options) -> Result<(), Failure> {
    machine::require_root()?;
    machine::install(images::PACKAGES)?;
    machine::install(PACKAGES)?;
    if options.rootless {
        let stave = machine::release_binary()?;
        let registry = Registry::start(&images::storage())?;
        images::make(&stave, &registry, images::ALL)?;
        return rootless::run(&stave, &registry.host(), options.filter.as_deref().as_slice());
    }
    if !options.no_lint {
        machine::run(cargo().args(["fmt", "--all", "--check"]))?;
        let clippy = ["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"];
        machine::run(cargo().args(clippy))?;
    }
    let stave = machine::release_binary()?;
    conformance(&stave)?;
    if options.filter.is_none() && !options.no_lint {
        instructions::run(&instructions::Options::default())?;
    }
    let registry = Registry::start(&images::storage())?;
    images::make(&stave, &registry, images::ALL)?;
    let mut tests = cargo();
    tests.args(["test", "--workspace", "--locked", "--no-fail-fast"]);
    tests.args(options.filter.as_deref());
    tests.env("STAVE_TEST_REGISTRY", registry.host()).env("STAVE_TEST_PROGRAM", &stave);
    machine::run(&mut tests)?;
    match options.filter {
        Some(_) => Ok(()),
        None => rootless::run_chosen(&stave, &registry.host()),
    }
}

/// Holds the front end against recorded answers of the reference, where a folder with them lies beside the
/// checkout; they are other projects' files and are not part of this one.
fn conformance(stave: &Path) -> Result<(), Failure> {
    let check = crate::root().join("../shared/conformance/llb/check.py");
    if !check.is_file() {
        println!("no recorded answers beside the checkout: the conformance check is left out");
        return Ok(());
    }
    machine::install(&["python3"])?;
    machine::run(Command::new("python3").arg(check).arg("--").arg(stave).args(["debug", "lower"]))?;
    let vectors = crate::root().join("../shared/conformance/vectors");
    let example = ["run", "-q", "--locked", "-p", "stave-frontend-dockerfile", "--example", "vectors", "--"];
    machine::run(cargo().args(example).arg(vectors))
}

fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(crate::root());
    command
}
