//! `cargo xtask test`: every check there is, in the order of what fails fastest.

use std::process::Command;

use clap::Args;

use crate::registry::Registry;
use crate::suite::Suite;
use crate::{Failure, clients, images, instructions, machine, rootless};

/// Real clients and tools that the integration tests call.
const PACKAGES: &[&str] =
    &["skopeo", "podman", "buildah", "runc", "crun", "iproute2", "procps", "curl", "systemd", "openssl"];

/// Gigabytes that a first run takes, base images among them.
const ROOM: u64 = 8;

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
///
/// The tests are compiled once, and the program that they compile is the one they test: with debug assertions and
/// overflow checks, and without a second compilation of everything for release.
pub(crate) fn run(options: &Options) -> Result<(), Failure> {
    machine::require_root()?;
    machine::warn_of_room(ROOM)?;
    machine::install(images::PACKAGES)?;
    machine::install(PACKAGES)?;
    let is_whole = options.filter.is_none() && !options.rootless;
    if is_whole && !options.no_lint {
        let format = || machine::run(machine::cargo().args(["fmt", "--all", "--check"]));
        machine::timed("format", format)?;
        let clippy = ["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"];
        machine::timed("lints", || machine::run(machine::cargo().args(clippy)))?;
    }
    let suite = machine::timed("compilation", Suite::compile)?;
    if is_whole {
        machine::timed("recorded answers", || conformance(&suite))?;
    }
    if is_whole && !options.no_lint {
        machine::timed("instruction counts", || instructions::run(&instructions::Options::default()))?;
    }
    let registry = Registry::start(&images::storage())?;
    machine::timed("base images", || images::make(&suite.stave, &registry, images::ALL))?;
    if options.rootless {
        return rootless::run(&suite, &registry.host(), options.filter.as_deref().as_slice());
    }
    let mut variables = vec![
        ("STAVE_TEST_REGISTRY", registry.host()),
        ("STAVE_TEST_PROGRAM", suite.stave.display().to_string()),
    ];
    if let Some(program) = machine::timed("clients", || Ok(clients::buildx()))? {
        variables.push(("STAVE_TEST_BUILDX", program.display().to_string()));
    }
    machine::timed("tests", || Suite::run(options.filter.as_deref(), &variables))?;
    if is_whole {
        machine::timed("tests without privileges", || rootless::run_chosen(&suite, &registry.host()))?;
    }
    Ok(())
}

/// Holds the front end against recorded answers of the reference, where a folder with them lies beside the
/// checkout; they are other projects' files and are not part of this one.
fn conformance(suite: &Suite) -> Result<(), Failure> {
    let check = crate::root().join("../shared/conformance/llb/check.py");
    if !check.is_file() {
        println!("no recorded answers beside the checkout: the conformance check is left out");
        return Ok(());
    }
    machine::install(&["python3"])?;
    machine::run(Command::new("python3").arg(check).arg("--").arg(&suite.stave).args(["debug", "lower"]))?;
    machine::run(Command::new(&suite.vectors).arg(crate::root().join("../shared/conformance/vectors")))
}
