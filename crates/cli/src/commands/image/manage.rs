//! `stave image`: docker's management commands for images, and a look into their layers.

use super::contents::{self, ContentsArguments, DiffArguments};
use super::referrers::{ReferrersArguments, referrers};
use super::{
    HistoryArguments, InspectArguments, ListArguments, RemoveArguments, TagArguments, history, inspect, list,
    remove, tag,
};
use crate::commands::transfer::{
    LoadArguments, PullArguments, PushArguments, SaveArguments, load, pull, push, save,
};
use crate::report::Failure;
use crate::state::GlobalOptions;

/// Manage images and look into them
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Subcommand,
}

#[derive(Debug, clap::Subcommand)]
enum Subcommand {
    #[command(visible_alias = "list")]
    Ls(ListArguments),
    #[command(visible_alias = "remove")]
    Rm(RemoveArguments),
    Tag(TagArguments),
    Inspect(InspectArguments),
    History(HistoryArguments),
    Pull(PullArguments),
    Push(PushArguments),
    Save(SaveArguments),
    Load(LoadArguments),
    /// List an image's layers: what made each, and how large it is
    Layers(ContentsArguments),
    /// List an image's files, each with its layer
    Files(ContentsArguments),
    /// List what an image carries and nobody sees: files that a later layer replaces or removes
    Waste(ContentsArguments),
    /// Show what two images differ in: config and files
    Diff(DiffArguments),
    /// List what refers to an image at its registry: signatures, statements, other artifacts
    Referrers(ReferrersArguments),
}

/// Runs the subcommand.
pub(crate) fn run(arguments: &Arguments, global: &GlobalOptions) -> Result<u8, Failure> {
    match &arguments.command {
        Subcommand::Ls(arguments) => list(arguments, global),
        Subcommand::Rm(arguments) => remove(arguments, global),
        Subcommand::Tag(arguments) => tag(arguments, global),
        Subcommand::Inspect(arguments) => inspect(arguments, global),
        Subcommand::History(arguments) => history(arguments, global),
        Subcommand::Pull(arguments) => pull(arguments, global),
        Subcommand::Push(arguments) => push(arguments, global),
        Subcommand::Save(arguments) => save(arguments, global),
        Subcommand::Load(arguments) => load(arguments, global),
        Subcommand::Layers(arguments) => contents::layers(arguments, global),
        Subcommand::Files(arguments) => contents::files(arguments, global),
        Subcommand::Waste(arguments) => contents::waste(arguments, global),
        Subcommand::Diff(arguments) => contents::diff(arguments, global),
        Subcommand::Referrers(arguments) => referrers(arguments, global),
    }
}
