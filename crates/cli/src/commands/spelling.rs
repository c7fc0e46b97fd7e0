//! docker's other names for some commands: it groups them under `builder`, `buildx` and `system`.
//!
//! Start with [`Spelling::command`].

use super::{Command, build, builds, disk, info, version};

/// A command, as it was written.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Spelling {
    #[command(flatten)]
    Plain(Command),
    /// Build, and what builds leave
    #[command(hide = true, alias = "buildx")]
    Builder {
        #[command(subcommand)]
        command: BuilderCommand,
    },
    /// The state directory
    #[command(hide = true)]
    System {
        #[command(subcommand)]
        command: SystemCommand,
    },
}

/// `builder` and `buildx`
#[derive(Debug, clap::Subcommand)]
pub(crate) enum BuilderCommand {
    #[command(visible_alias = "b")]
    Build(Box<build::Arguments>),
    Du(disk::UsageArguments),
    Prune(disk::prune::Arguments),
    History(builds::Arguments),
    Version(version::Arguments),
}

/// `system`
#[derive(Debug, clap::Subcommand)]
pub(crate) enum SystemCommand {
    Df(disk::UsageArguments),
    Prune(disk::prune::Arguments),
    Info(info::Arguments),
}

impl Spelling {
    /// The command by its name here.
    pub(crate) fn command(self) -> Command {
        match self {
            Self::Plain(command) => command,
            Self::Builder { command } => match command {
                BuilderCommand::Build(arguments) => Command::Build(arguments),
                BuilderCommand::Du(arguments) => Command::Du(arguments),
                BuilderCommand::Prune(arguments) => Command::Prune(arguments),
                BuilderCommand::History(arguments) => Command::Builds(arguments),
                BuilderCommand::Version(arguments) => Command::Version(arguments),
            },
            Self::System { command } => match command {
                SystemCommand::Df(arguments) => Command::Du(arguments),
                SystemCommand::Prune(arguments) => Command::Prune(arguments),
                SystemCommand::Info(arguments) => Command::Info(arguments),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(Debug, clap::Parser)]
    struct Line {
        #[command(subcommand)]
        command: Spelling,
    }

    #[test]
    fn dockers_names_are_commands_here() {
        let check = |line: &str, expected: &str| {
            let parsed = |line: &str| {
                let words = ["stave"].into_iter().chain(line.split(' '));
                format!("{:?}", Line::try_parse_from(words).expect("is known").command.command())
            };
            assert_eq!(parsed(line), parsed(expected));
        };
        check("buildx build -t a --load .", "build -t a --load .");
        check("buildx b .", "build .");
        check("builder build .", "build .");
        check("builder prune -af", "prune -af");
        check("buildx prune --all --force", "prune -af");
        check("buildx du", "du");
        check("buildx history ls", "builds ls");
        check("buildx version", "version");
        check("system df", "du");
        check("system prune -f", "prune -f");
        check("system info", "info");
        check("images -q", "images -q");
    }
}
