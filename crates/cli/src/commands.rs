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
pub(crate) mod spelling;
mod transfer;
mod version;

use std::io::IsTerminal as _;
use std::str::FromStr;

use serde_json::Value;

use crate::format;
use crate::output::say;
use crate::progress::sanitise::clean;
use crate::report::Failure;
use crate::state::GlobalOptions;
use crate::template::Template;

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

/// `--format` of what docker fills templates with
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Format {
    /// For people
    Table,
    /// For programs
    Json,
    /// One line an object, as the template has it
    Lines(Template),
    /// The same in columns, where it has tabs, under a header
    Columns(Template),
}

impl FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // What a shell's quotes leave as it is.
        let template = |text: &str| text.replace("\\t", "\t").replace("\\n", "\n").parse::<Template>();
        match text {
            "table" => Ok(Self::Table),
            "json" => Ok(Self::Json),
            _ if !text.contains("{{") => {
                Err("expected `table`, `json` or a template such as `{{.ID}}`".to_owned())
            }
            _ => match text.strip_prefix("table ") {
                Some(columns) => template(columns).map(Self::Columns),
                None => template(text).map(Self::Lines),
            }
            .map_err(|error| error.to_string()),
        }
    }
}

/// Prints objects by a template, each as a line of its own; in columns, `names` has what stands above them.
pub(crate) fn fill(template: &Template, objects: &[Value], columns: Option<&Value>) -> Result<(), Failure> {
    let render = |object| template.render(object).map_err(|error| Failure::new(&error));
    let Some(names) = columns else {
        let at_terminal = std::io::stdout().is_terminal();
        for object in objects {
            say!("{}", harmless(render(object)?, at_terminal));
        }
        return Ok(());
    };
    let cells = |text: String| text.split('\t').map(str::to_owned).collect::<Vec<_>>();
    let header = cells(render(names)?);
    let rows =
        objects.iter().map(|object| Ok(cells(render(object)?))).collect::<Result<Vec<_>, Failure>>()?;
    let header: Vec<&str> = header.iter().map(String::as_str).collect();
    say!("{}", format::table(&header, &rows));
    Ok(())
}

/// What images say of themselves tells a terminal nothing; a program gets it as it is.
fn harmless(text: String, at_terminal: bool) -> String {
    match at_terminal {
        true => text.split('\n').map(clean).collect::<Vec<_>>().join("\n"),
        false => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_tell_a_terminal_nothing() {
        let text = "a\u{1b}]0;title\u{7}b\tc\nd".to_owned();
        assert_eq!(harmless(text.clone(), true), "ab\tc\nd");
        assert_eq!(harmless(text.clone(), false), text);
    }
}
