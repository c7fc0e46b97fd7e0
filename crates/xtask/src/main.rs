//! The project's own commands, so that two lines set a fresh machine up.
//!
//! `cargo xtask demo` runs the main job, `cargo xtask test` passes every check, `cargo xtask bench`
//! measures. Owns nothing of the product: it calls the built `stave` as a user would.

mod bench;
mod browser;
mod clients;
mod crash;
mod demo;
mod images;
mod instructions;
mod machine;
mod registry;
mod rootless;
mod soak;
mod suite;
mod test;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Set-up, demonstration, checks and measurements.
#[derive(Parser)]
#[command(name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Build stave, make a base image without any hub, build, push and run a multi-stage image.
    Demo,
    /// Format check, lints, unit and integration tests on the real kernel, registry and clients.
    Test(test::Options),
    /// Make the base images of the tests and push them to a local registry that stays up until a key is pressed.
    Images,
    /// Kill stave at random instants and look at what is left.
    Crash(crash::Options),
    /// Count the instructions of the pure parts and compare them with the recorded counts.
    Instructions(instructions::Options),
    /// Let many clients build on one daemon for a while, and look at its memory and disk.
    Soak(soak::Options),
    /// Look at the daemon's web page in a real browser.
    Browser(browser::Options),
    /// Measure stave, and any peer that is installed, in alternation.
    Bench(bench::Options),
}

/// What went wrong, for a person.
type Failure = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Demo => demo::run(),
        Command::Test(options) => test::run(&options),
        Command::Images => images::serve(),
        Command::Crash(options) => crash::run(&options),
        Command::Bench(options) => bench::run(&options),
        Command::Browser(options) => browser::run(&options),
        Command::Soak(options) => soak::run(&options),
        Command::Instructions(options) => instructions::run(&options),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("xtask: {failure}");
            ExitCode::FAILURE
        }
    }
}

/// The workspace's root.
fn root() -> PathBuf {
    let mut path = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    path.pop();
    path.pop();
    path
}
