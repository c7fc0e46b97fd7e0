//! Listings of the local store and what changes names in it: `images`, `tag`, `rmi`, `inspect`, `history`.

mod contents;
mod filter;
mod history;
mod inspect;
mod manage;
mod referrers;

pub(crate) use history::{HistoryArguments, history};
pub(crate) use inspect::{InspectArguments, inspect};
use jiff::Timestamp;
pub(crate) use manage::{Arguments, run};
use serde_json::{Value, json};
use stave_oci::{Platform, Reference};
use stave_store::{ListedImage, LocalImage, Store, StoreError};

use self::filter::Filters;
use crate::commands::{Format, fill};
use crate::format;
use crate::output::say;
use crate::report::Failure;
use crate::runtime::with_store;
use crate::state::GlobalOptions;

/// List images
#[derive(Debug, clap::Args)]
pub(crate) struct ListArguments {
    /// Only images of this name, in which `*`, `?` and `[…]` may stand for something
    #[arg(value_name = "NAME[:TAG]")]
    name: Option<String>,
    /// Only images of which this holds: `dangling=BOOL`, `label=KEY[=VALUE]`, `reference=PATTERN`, `before=IMAGE`,
    /// `since=IMAGE`, `until=TIME`
    #[arg(short, long, value_name = "NAME=VALUE")]
    filter: Vec<String>,
    /// Only print ids
    #[arg(short, long)]
    quiet: bool,
    /// Do not shorten ids
    #[arg(long)]
    no_trunc: bool,
    /// Show digests
    #[arg(long)]
    digests: bool,
    /// Show all images (there are no hidden ones)
    #[arg(short, long)]
    all: bool,
    /// Output form: `table`, `json` (one object a line), or a template such as `{{.Repository}}:{{.Tag}}`, in columns
    /// with `table ` before it
    #[arg(long, value_name = "FORM")]
    format: Option<Format>,
}

/// One line of a listing: an image under one of its names.
struct Line<'a> {
    name: Option<&'a Reference>,
    listed: &'a ListedImage,
}

impl Line<'_> {
    fn repository(&self) -> String {
        self.name.map_or_else(|| "<none>".to_owned(), Reference::familiar_name)
    }

    fn tag(&self) -> String {
        self.name.and_then(Reference::tag).unwrap_or("<none>").to_owned()
    }

    fn id(&self, full: bool) -> String {
        let id = &self.listed.image.id;
        if full { id.to_string() } else { id.short().to_owned() }
    }

    fn digest(&self) -> String {
        self.listed
            .image
            .manifest
            .as_ref()
            .map_or_else(|| "<none>".to_owned(), |manifest| manifest.digest.to_string())
    }

    fn stored(&self) -> Timestamp {
        Timestamp::try_from(self.listed.stored_at).unwrap_or(Timestamp::UNIX_EPOCH)
    }
}

/// `stave images`
pub(crate) fn list(arguments: &ListArguments, global: &GlobalOptions) -> Result<u8, Failure> {
    with_store(global, |store| {
        let images = store.images().map_err(|error| Failure::new(&error))?;
        let filters = Filters::parse(&arguments.filter, arguments.name.as_deref(), (store, &images))?;
        let lines = images.iter().flat_map(lines);
        let lines: Vec<Line<'_>> = lines.filter(|line| filters.take(line.listed, line.name)).collect();
        print(&lines, arguments)?;
        Ok(0)
    })
}

/// One line a name; one for an image without.
fn lines(listed: &ListedImage) -> Vec<Line<'_>> {
    if listed.names.is_empty() {
        return vec![Line { name: None, listed }];
    }
    listed.names.iter().map(|name| Line { name: Some(name), listed }).collect()
}

/// What stands above the columns of a template.
fn column_names() -> Value {
    json!({
        "Repository": "REPOSITORY", "Tag": "TAG", "ID": "IMAGE ID", "Digest": "DIGEST", "CreatedAt": "CREATED AT",
        "CreatedSince": "CREATED", "Size": "SIZE", "SizeBytes": "SIZE", "Platform": "PLATFORM",
    })
}

fn print(lines: &[Line<'_>], arguments: &ListArguments) -> Result<(), Failure> {
    let now = Timestamp::now();
    if arguments.quiet {
        for line in lines {
            say!("{}", line.id(arguments.no_trunc));
        }
        return Ok(());
    }
    let object = |line: &Line<'_>| {
        json!({
            "Repository": line.repository(), "Tag": line.tag(), "ID": line.id(arguments.no_trunc),
            "Digest": line.digest(), "CreatedAt": line.stored().to_string(),
            "CreatedSince": format::age(line.stored(), now), "Size": format::size(line.listed.size),
            "SizeBytes": line.listed.size, "Platform": line.listed.image.platform.to_string(),
        })
    };
    match &arguments.format {
        Some(Format::Json) => {
            lines.iter().for_each(|line| say!("{}", object(line)));
            return Ok(());
        }
        Some(Format::Lines(template)) => {
            return fill(template, &lines.iter().map(object).collect::<Vec<_>>(), None);
        }
        Some(Format::Columns(template)) => {
            return fill(template, &lines.iter().map(object).collect::<Vec<_>>(), Some(&column_names()));
        }
        Some(Format::Table) | None => {}
    }
    let mut header = vec!["REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE"];
    if arguments.digests {
        header.insert(2, "DIGEST");
    }
    // One line a platform: then they must be told apart.
    let mut names: Vec<&Reference> = lines.iter().filter_map(|line| line.name).collect();
    names.sort();
    let has_several = names.windows(2).any(|pair| pair[0] == pair[1]);
    if has_several {
        header.push("PLATFORM");
    }
    let row = |line: &Line<'_>| {
        let mut row = vec![
            line.repository(),
            line.tag(),
            line.id(arguments.no_trunc),
            format::age(line.stored(), now),
            format::size(line.listed.size),
        ];
        if arguments.digests {
            row.insert(2, line.digest());
        }
        if has_several {
            row.push(line.listed.image.platform.to_string());
        }
        row
    };
    say!("{}", format::table(&header, &lines.iter().map(row).collect::<Vec<_>>()));
    Ok(())
}

/// Give an image another name
#[derive(Debug, clap::Args)]
pub(crate) struct TagArguments {
    /// Name or id
    image: String,
    /// The new name
    name: Reference,
}

/// `stave tag`
pub(crate) fn tag(arguments: &TagArguments, global: &GlobalOptions) -> Result<u8, Failure> {
    with_store(global, |store| {
        let image = find(store, &arguments.image)?;
        // A name stands for all its platforms, as they came.
        let named =
            arguments.image.parse().ok().map(|name: Reference| store.images_by_name(&name)).transpose();
        let named = named.map_err(|error| Failure::new(&error))?.flatten();
        let tagged = match named.filter(|named| named.first.id == image.id) {
            Some(named) => {
                let all: Vec<_> = named.all().cloned().collect();
                let from: Option<Reference> = arguments.image.parse().ok();
                copy(store, from.as_ref(), std::slice::from_ref(&arguments.name), &all)
            }
            None => store.tag(&image.id, &arguments.name).map(drop),
        };
        tagged.map_err(|error| Failure::new(&error))?;
        Ok(0)
    })
}

/// Gives images of a name another one, with all that hangs on it.
fn copy(
    store: &Store,
    from: Option<&Reference>,
    to: &[Reference],
    all: &[LocalImage],
) -> Result<(), StoreError> {
    let index = from.map(|from| store.index_by_name(from)).transpose()?.flatten();
    if index.is_some() {
        return store.put_indexed(to, all, index.as_ref());
    }
    let attested = all.iter().map(|image| Ok((image.id.clone(), store.attestations(from, &image.id)?)));
    store.put_attested(to, all, &attested.collect::<Result<Vec<_>, StoreError>>()?)
}

/// Remove images
#[derive(Debug, clap::Args)]
pub(crate) struct RemoveArguments {
    /// Remove an image with several names by its id, and do not mind images that are not there
    #[arg(short, long)]
    force: bool,
    /// Names or ids
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
}

/// `stave rmi`: goes through all arguments, then fails if one failed.
pub(crate) fn remove(arguments: &RemoveArguments, global: &GlobalOptions) -> Result<u8, Failure> {
    with_store(global, |store| {
        let mut failures = Vec::new();
        for text in &arguments.images {
            match remove_one(store, text, arguments.force) {
                Ok(lines) => lines.iter().for_each(|line| say!("{line}")),
                Err(failure) => failures.push(failure),
            }
        }
        let last = failures.pop();
        for failure in failures {
            eprint!("{}", failure.render());
        }
        last.map_or(Ok(0), Err)
    })
}

fn remove_one(store: &Store, text: &str, force: bool) -> Result<Vec<String>, Failure> {
    let failed = |error: stave_store::StoreError| Failure::new(&error);
    let image = match find(store, text) {
        Err(_) if force => return Ok(Vec::new()),
        other => other?,
    };
    let names = store.image_names(&image.id).map_err(failed)?;
    let named = text.parse::<Reference>().ok().filter(|name| names.contains(name));
    let mut lines = Vec::new();
    let mut others = Vec::new();
    match named {
        Some(name) => {
            let all = store.images_by_name(&name).map_err(failed)?;
            others.extend(all.into_iter().flat_map(|all| all.others).map(|other| other.id));
            store.untag(&name).map_err(failed)?;
            lines.push(format!("Untagged: {}", name.familiar()));
            if names.len() > 1 {
                return Ok(lines);
            }
            // Its other platforms go with it unless another name holds them.
            for other in others {
                if store.image_names(&other).map_err(failed)?.is_empty() {
                    store.remove_image(&other).map_err(failed)?;
                    lines.push(format!("Deleted: {other}"));
                }
            }
        }
        None if names.len() > 1 && !force => {
            return Err(Failure::message(format!(
                "unable to delete {text}: image is referenced by several names; remove the names, or use --force"
            )));
        }
        None => lines.extend(names.iter().map(|name| format!("Untagged: {}", name.familiar()))),
    }
    store.remove_image(&image.id).map_err(failed)?;
    lines.push(format!("Deleted: {}", image.id));
    Ok(lines)
}

/// The image a user's text means.
pub(super) fn find(store: &Store, text: &str) -> Result<LocalImage, Failure> {
    let found = store.image(text).map_err(|error| Failure::new(&error))?;
    found.ok_or_else(|| {
        Failure::message(format!("No such image: {text}"))
            .with_hint("`stave images` lists what is here".to_owned())
    })
}

/// The image a user's text means; of one for several platforms, the one asked for.
pub(super) fn find_platform(
    store: &Store,
    text: &str,
    platform: Option<&Platform>,
) -> Result<LocalImage, Failure> {
    let found = find(store, text)?;
    let Some(platform) = platform.filter(|platform| !found.platform.matches(platform)) else {
        return Ok(found);
    };
    let name = text.parse::<Reference>().ok();
    let named = name.map(|name| store.images_by_name(&name)).transpose();
    let named = named.map_err(|error| Failure::new(&error))?.flatten();
    named.and_then(|named| named.of(platform).cloned()).ok_or_else(|| {
        Failure::message(format!("image `{text}` is here for {}, not for {platform}", found.platform))
    })
}
