//! The worker on the real kernel: definitions solved in real sandboxes over real overlays.
//!
//! The program is also executed as the launcher, so it has a `main` of its own. Needs root; without, it fails in CI
//! and elsewhere says why it does nothing.

mod cache;
mod fixture;
mod mounts;
mod run;
mod steps;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

fn main() -> ExitCode {
    stave_sandbox::launcher_entry();
    let arguments = Arguments::from_args();
    if let Err(error) = stave_sandbox::enter_private_mounts()
        && !arguments.list
    {
        eprintln!("the kernel tests need root: {error}: {:?}", std::error::Error::source(&error));
        return if std::env::var_os("CI").is_some() { ExitCode::FAILURE } else { ExitCode::SUCCESS };
    }
    let tests = [cache::TESTS, mounts::TESTS, run::TESTS, steps::TESTS].concat();
    let trials = tests.into_iter().map(|(name, test)| {
        Trial::test(name, move || {
            test();
            Ok(())
        })
    });
    libtest_mimic::run(&arguments, trials.collect()).exit_code()
}

/// A named test; it fails by panicking.
type Test = (&'static str, fn());
