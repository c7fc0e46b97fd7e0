//! The `stave` program: flags, environment, rendering, exit codes. Every algorithm is below, in the
//! libraries.
//!
//! `main` is the whole life of a process: become the launcher if that is what it was started as, read
//! the flags, leave the host's mount namespace before any thread exists, run one command, say what went
//! wrong. A command is a file under `commands/` with its `Arguments` and its `run`.

mod commands;
mod config;
mod engines;
mod format;
mod output;
mod progress;
mod report;
mod runtime;
mod state;
mod template;
mod tracing;

use std::process::ExitCode;

use clap::builder::Resettable;
use clap::{CommandFactory as _, FromArgMatches as _, Parser};

use crate::commands::Command;
use crate::commands::spelling::Spelling;
use crate::report::Failure;
use crate::state::GlobalOptions;

/// Builds images from Dockerfiles, without a daemon, and runs them
#[derive(Debug, Parser)]
#[command(name = "stave", version, propagate_version = true, max_term_width = 100)]
struct Arguments {
    #[command(flatten)]
    global: GlobalOptions,
    #[command(subcommand)]
    command: Spelling,
}

fn main() -> ExitCode {
    stave_sandbox::launcher_entry();
    stave_sandbox::limit_arenas();
    let Arguments { global, command } = match read(words()) {
        Ok(arguments) => arguments,
        Err(error) => return misused(&error),
    };
    let command = command.command();
    if global.debug {
        tracing::begin(tracing::Level::Debug);
    }
    let result = prepare(&command, global.settled()).and_then(|global| command.run(&global));
    match result {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            eprint!("{}", failure.render());
            ExitCode::from(failure.code)
        }
    }
}

fn read(words: Vec<std::ffi::OsString>) -> Result<Arguments, clap::Error> {
    let mut command = Arguments::command();
    // That goes through every flag of every command: mostly for nothing.
    if std::env::vars_os().any(|(_, value)| value.is_empty()) {
        command = ignoring_empty_variables(command);
    }
    let mut matches = command.try_get_matches_from(words)?;
    Arguments::from_arg_matches_mut(&mut matches)
}

/// What an empty variable of the environment stands for is not set: docker reads its own so, and CI systems have
/// no other way to unset one.
fn ignoring_empty_variables(command: clap::Command) -> clap::Command {
    let is_empty = |name: &std::ffi::OsStr| std::env::var_os(name).is_some_and(|value| value.is_empty());
    command
        .mut_args(|argument| match argument.get_env().is_some_and(is_empty) {
            true => argument.env(Resettable::Reset),
            false => argument,
        })
        .mut_subcommands(ignoring_empty_variables)
}

/// The words of the command line; called as `buildkitd`, the program is the daemon.
fn words() -> Vec<std::ffi::OsString> {
    let mut words: Vec<_> = std::env::args_os().collect();
    if commands::daemon::is_buildkitd() {
        words.insert(1, "daemon".into());
    }
    words
}

/// Usage errors exit with 2; those of `run` with 125, as docker's do, so that they cannot be taken for
/// the container's own code.
fn misused(error: &clap::Error) -> ExitCode {
    // Help and version go to standard output; a closed pipe there is nobody's problem.
    drop(error.print());
    if !error.use_stderr() {
        return ExitCode::SUCCESS;
    }
    let is_run =
        std::env::args().skip(1).find(|word| !word.starts_with('-')).is_some_and(|word| word == "run");
    ExitCode::from(if is_run { 125 } else { 2 })
}

/// Mounts made from here on vanish with the process, however it ends; and an ordinary user has the rights and the
/// ids that the files of the store need. Must run before any thread starts.
fn prepare(command: &Command, global: GlobalOptions) -> Result<GlobalOptions, Failure> {
    let mounts = command.mounts();
    if !mounts && (stave_sandbox::is_privileged() || !command.opens_store()) {
        return Ok(global);
    }
    match stave_sandbox::enter() {
        Ok(tier) => Ok(GlobalOptions { tier: Some(tier), ..global }),
        // Whoever only looks can do without; what they may not see, the store says.
        Err(_) if !mounts || matches!(command, Command::Info(_)) => Ok(global),
        Err(error) => {
            let code = if matches!(command, Command::Run(_)) { 125 } else { 1 };
            let failure = Failure::new(&error).with_code(code);
            Err(stave_sandbox::restrictions().into_iter().fold(failure, report::Failure::with_hint))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flags_of_all_commands_may_stand_anywhere() {
        let check = |line: &str| {
            let words = line.split(' ').map(Into::into).collect();
            let global = read(words).map(|arguments| arguments.global).map_err(|error| error.to_string());
            assert_eq!(global.map(|global| global.root), Ok(Some("/x".into())), "{line}");
        };
        check("stave --root /x images");
        check("stave images --root /x");
        check("stave builds --root /x ls");
        check("stave builds ls --root /x");
        check("stave image --root /x ls");
        check("stave cache --root /x mounts ls");
        check("stave system --root /x df");
    }
}
