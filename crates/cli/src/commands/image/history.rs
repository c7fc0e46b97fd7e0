//! `stave history`: which instruction made which layer.

use jiff::Timestamp;
use serde_json::json;
use stave_exporter::contents::LayerContents;
use stave_oci::{History, ImageConfig, Platform};
use stave_store::{LocalImage, Store};

use super::find_platform;
use crate::commands::{Format, fill};
use crate::format;
use crate::output::say;
use crate::report::Failure;
use crate::runtime::with_store;
use crate::state::GlobalOptions;

/// Characters of an instruction that a table shows, as docker has it.
const CREATED_BY: usize = 45;

/// Show how an image was made
#[derive(Debug, clap::Args)]
pub(crate) struct HistoryArguments {
    /// Do not shorten anything
    #[arg(long)]
    no_trunc: bool,
    /// Output form: `table`, `json` (one object a line), or a template such as `{{.CreatedBy}}`, in columns with `table `
    /// before it
    #[arg(long, value_name = "FORM")]
    format: Option<Format>,
    /// Of an image for several platforms, the one to show
    #[arg(long, value_name = "OS/ARCH")]
    platform: Option<Platform>,
    /// Name or id
    image: String,
}

/// Prints it, the newest instruction first.
pub(crate) fn history(arguments: &HistoryArguments, global: &GlobalOptions) -> Result<u8, Failure> {
    with_store(global, |store| {
        let image = find_platform(store, &arguments.image, arguments.platform.as_ref())?;
        let config: ImageConfig =
            serde_json::from_slice(&image.config).map_err(|error| Failure::new(&error))?;
        let sizes = sizes(store, &image, &config.history)?;
        let entries: Vec<(&History, u64)> = config.history.iter().zip(sizes).rev().collect();
        print(&entries, &image, arguments)?;
        Ok(0)
    })
}

/// Bytes of the files of each entry's layer, as docker has it; zero for entries without one.
fn sizes(store: &Store, image: &LocalImage, history: &[History]) -> Result<Vec<u64>, Failure> {
    let mut layers = image.layers.iter();
    let size = |entry: &History| {
        let layer = if entry.empty_layer { None } else { layers.next() };
        let contents = layer.map(|layer| LayerContents::of(store, layer.layer, false)).transpose();
        contents.map(|contents| contents.map_or(0, |contents| contents.size()))
    };
    history.iter().map(size).collect::<Result<_, _>>().map_err(|error| Failure::new(&error))
}

fn print(
    entries: &[(&History, u64)],
    image: &LocalImage,
    arguments: &HistoryArguments,
) -> Result<(), Failure> {
    let now = Timestamp::now();
    let id = |index: usize| match (index, arguments.no_trunc) {
        (0, true) => image.id.to_string(),
        (0, false) => image.id.short().to_owned(),
        _ => "<missing>".to_owned(),
    };
    let time = |entry: &History| entry.created.as_deref().and_then(|text| text.parse::<Timestamp>().ok());
    let since = |entry: &History| time(entry).map_or_else(|| "N/A".to_owned(), |then| format::age(then, now));
    let object = |(index, (entry, size)): (usize, &(&History, u64))| {
        json!({
            "ID": id(index), "CreatedAt": entry.created, "CreatedBy": entry.created_by,
            "Size": format::size(*size), "SizeBytes": size, "Comment": entry.comment,
        })
    };
    let by = |entry: &History| {
        let line = entry.created_by.replace('\t', " ");
        if arguments.no_trunc { line } else { format::clip(&line, CREATED_BY) }
    };
    // As docker has it: shortened unless that was not wanted.
    let shown = |(index, one): (usize, &(&History, u64))| {
        let mut object = object((index, one));
        object["CreatedSince"] = since(one.0).into();
        object["CreatedBy"] = by(one.0).into();
        object
    };
    let filled = || entries.iter().enumerate().map(shown).collect::<Vec<_>>();
    match &arguments.format {
        Some(Format::Json) => {
            entries.iter().enumerate().map(object).for_each(|object| say!("{object}"));
            return Ok(());
        }
        Some(Format::Lines(template)) => return fill(template, &filled(), None),
        Some(Format::Columns(template)) => {
            let names = json!({
                "ID": "IMAGE", "CreatedAt": "CREATED AT", "CreatedSince": "CREATED", "CreatedBy": "CREATED BY",
                "Size": "SIZE", "SizeBytes": "SIZE", "Comment": "COMMENT",
            });
            return fill(template, &filled(), Some(&names));
        }
        Some(Format::Table) | None => {}
    }
    let row = |(index, (entry, size)): (usize, &(&History, u64))| {
        vec![id(index), since(entry), by(entry), format::size(*size), entry.comment.clone()]
    };
    let rows: Vec<_> = entries.iter().enumerate().map(row).collect();
    say!("{}", format::table(&["IMAGE", "CREATED", "CREATED BY", "SIZE", "COMMENT"], &rows));
    Ok(())
}
