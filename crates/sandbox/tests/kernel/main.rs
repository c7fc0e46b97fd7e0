//! The sandbox on the real kernel: every default checked from inside, every way of dying from outside.
//!
//! The program is several things by its first argument: the tests, a probe run inside sandboxes, a caller that
//! exists to be killed, one that counts what it holds, and one whose file is gone. Needs root; without, it fails in CI and elsewhere says why it does nothing.

mod ahead;
mod bounded;
mod chroot;
mod defaults;
mod escape;
mod fixture;
mod isolation;
mod life;
mod mounts;
mod network;
mod probe;
mod process;
mod user;
mod ways_out;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

fn main() -> ExitCode {
    stave_sandbox::launcher_entry();
    let mut arguments = std::env::args().skip(1);
    match (arguments.next().as_deref(), arguments.next()) {
        (Some("probe"), Some(what)) if what.starts_with("chroot-") => return chroot::be_inside(&what),
        (Some("probe"), Some(what)) => return probe::run(&what),
        (Some("grouped"), Some(_)) => escape::be_grouped(),
        (Some("sweep"), Some(_)) => {
            escape::sweep();
            return ExitCode::SUCCESS;
        }
        (Some("counted"), Some(_)) => {
            escape::start_many();
            return ExitCode::SUCCESS;
        }
        (Some("caller"), Some(marker)) => return life::be_a_caller(&marker),
        (Some("bridged"), Some(directory)) => return network::be_bridged(&directory),
        (Some("user"), Some(scenario)) => return user::be_a_user(&scenario),
        (Some("deleted"), Some(word)) => return life::be_a_deleted_caller(&word),
        _ => {}
    }
    let listing = Arguments::from_args();
    if let Err(error) = stave_sandbox::enter_private_mounts()
        && !listing.list
    {
        eprintln!("the kernel tests need root: {error}: {:?}", std::error::Error::source(&error));
        return if std::env::var_os("CI").is_some() { ExitCode::FAILURE } else { ExitCode::SUCCESS };
    }
    let tests = [
        ahead::TESTS,
        bounded::TESTS,
        chroot::TESTS,
        defaults::TESTS,
        escape::TESTS,
        isolation::TESTS,
        life::TESTS,
        mounts::TESTS,
        network::TESTS,
        process::TESTS,
        user::TESTS,
    ]
    .concat();
    let trials = tests.into_iter().map(|(name, test)| {
        Trial::test(name, move || {
            test();
            Ok(())
        })
    });
    libtest_mimic::run(&listing, trials.collect()).exit_code()
}

/// A named test; it fails by panicking.
type Test = (&'static str, fn());
