//! The commands: one module each, with `Arguments` and `run`.

pub(crate) mod build;
mod builds;
mod cache;
pub(crate) mod daemon;
mod debug;
pub(crate) mod disk;
mod explain;
mod image;
mod info;
mod limits;
mod login;
mod run;
mod transfer;
mod version;

use crate::report::Failure;
use crate::state::GlobalOptions;

/// What to do.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    Build(Box<build::Arguments>),
    Run(Box<run::Arguments>),
    Images(image::ListArguments),
    Image(Box<image::Arguments>),
    Pull(transfer::PullArguments),
    Push(transfer::PushArguments),
    Tag(image::TagArguments),
    Rmi(image::RemoveArguments),
    Save(transfer::SaveArguments),
    Load(transfer::LoadArguments),
    Inspect(image::InspectArguments),
    History(image::HistoryArguments),
    Login(login::LoginArguments),
    Logout(login::LogoutArguments),
    Explain(explain::Arguments),
    Logs(builds::LogArguments),
    Builds(builds::Arguments),
    Du(disk::UsageArguments),
    Prune(disk::prune::Arguments),
    Cache(cache::Arguments),
    Doctor(disk::doctor::Arguments),
    Daemon(Box<daemon::Arguments>),
    Info(info::Arguments),
    Version(version::Arguments),
    Debug(debug::Arguments),
}

impl Command {
    /// Runs the command; the value is the exit code.
    pub(crate) fn run(&self, global: &GlobalOptions) -> Result<u8, Failure> {
        match self {
            Self::Build(arguments) => build::run(arguments, global),
            Self::Run(arguments) => run::run(arguments, global),
            Self::Images(arguments) => image::list(arguments, global),
            Self::Image(arguments) => image::run(arguments, global),
            Self::Pull(arguments) => transfer::pull(arguments, global),
            Self::Push(arguments) => transfer::push(arguments, global),
            Self::Tag(arguments) => image::tag(arguments, global),
            Self::Rmi(arguments) => image::remove(arguments, global),
            Self::Save(arguments) => transfer::save(arguments, global),
            Self::Load(arguments) => transfer::load(arguments, global),
            Self::Inspect(arguments) => image::inspect(arguments, global),
            Self::History(arguments) => image::history(arguments, global),
            Self::Login(arguments) => login::login(arguments, global),
            Self::Logout(arguments) => login::logout(arguments, global),
            Self::Explain(arguments) => explain::run(arguments, global),
            Self::Logs(arguments) => builds::logs(arguments, global),
            Self::Builds(arguments) => builds::run(arguments, global),
            Self::Du(arguments) => disk::usage(arguments, global),
            Self::Prune(arguments) => disk::prune::run(arguments, global),
            Self::Cache(arguments) => cache::run(arguments, global),
            Self::Doctor(arguments) => disk::doctor::run(arguments, global),
            Self::Daemon(arguments) => daemon::run(arguments, global),
            Self::Info(arguments) => info::run(arguments, global),
            Self::Version(arguments) => version::run(arguments),
            Self::Debug(arguments) => debug::run(arguments, global),
        }
    }

    /// Whether the command reads or writes the state directory.
    pub(crate) fn opens_store(&self) -> bool {
        match self {
            Self::Login(_) | Self::Logout(_) | Self::Version(_) => false,
            Self::Debug(arguments) => arguments.enters(),
            _ => true,
        }
    }

    /// Whether the command mounts file systems.
    pub(crate) fn mounts(&self) -> bool {
        match self {
            Self::Build(arguments) => arguments.builds(),
            Self::Run(_) | Self::Daemon(_) | Self::Info(_) => true,
            Self::Debug(arguments) => arguments.enters(),
            _ => false,
        }
    }
}

/// `--format`
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Form {
    /// For people
    Table,
    /// For programs
    Json,
}
