//! `prune`: giving room back.

use std::collections::BTreeSet;
use std::io::{BufRead as _, Write as _};
use std::time::Duration;

use stave_engine::disk;
use stave_store::{ImagePrune, KeepLimits, PruneRequest, Pruned, UsageFilter};

use crate::commands::Form;
use crate::format;
use crate::output::say;
use crate::report::Failure;
use crate::runtime::with_store;
use crate::state::GlobalOptions;

/// Remove what nothing needs: build cache and images without a name
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Remove all cache, also what was used lately, and downloaded blobs
    #[arg(short, long)]
    all: bool,
    /// Do not ask
    #[arg(short, long)]
    force: bool,
    /// Only what matches (`until=24h`, `type=`, `id=`, `parents=`, `inuse=`, `shared=`, `private=`, `mutable=`, `immutable=`, `description=`)
    #[arg(long, value_name = "KEY=VALUE")]
    filter: Vec<String>,
    /// Keep what was used within this time (`48h`)
    #[arg(long, value_name = "DURATION", conflicts_with = "all")]
    keep_duration: Option<String>,
    /// Leave this much (`10g`); the old name of --reserved-space
    #[arg(long, value_name = "BYTES", conflicts_with = "reserved_space")]
    keep_storage: Option<String>,
    /// Never go below this much
    #[arg(long, value_name = "BYTES")]
    reserved_space: Option<String>,
    /// Go down to this much
    #[arg(long, value_name = "BYTES")]
    max_used_space: Option<String>,
    /// Go on until the file system has this much free
    #[arg(long, value_name = "BYTES")]
    min_free_space: Option<String>,
    /// Show what goes
    #[arg(short, long)]
    verbose: bool,
    /// Output form: `table` or `json`
    #[arg(long, value_name = "FORM")]
    format: Option<Form>,
}

/// What plain `prune` spares: the cache of what somebody is working on.
const RECENT: Duration = Duration::from_secs(24 * 3600);

/// `stave prune`
pub(crate) fn run(arguments: &Arguments, global: &GlobalOptions) -> Result<u8, Failure> {
    let request = request(arguments)?;
    if !arguments.force && !confirmed(arguments.all)? {
        return Ok(0);
    }
    with_store(global, |store| {
        let pruned = disk::prune(store, request).map_err(|error| Failure::new(&error))?;
        if arguments.format == Some(Form::Json) {
            say!("{}", document(&pruned));
            return Ok(0);
        }
        for image in &pruned.images {
            say!("deleted: {image}");
        }
        if arguments.verbose {
            print_each(&pruned);
        }
        say!(
            "removed {} layers, {} blobs, {} cache mounts",
            pruned.layers.len(),
            pruned.blobs.len(),
            pruned.cache_mounts.len()
        );
        say!("Total reclaimed space: {}", format::size(pruned.freed));
        Ok(0)
    })
}

fn print_each(pruned: &Pruned) {
    for layer in &pruned.layers {
        say!("layer: {layer}");
    }
    for blob in &pruned.blobs {
        say!("blob: {blob}");
    }
    for mount in &pruned.cache_mounts {
        say!("exec.cachemount: {mount}");
    }
}

fn document(pruned: &Pruned) -> serde_json::Value {
    serde_json::json!({
        "ImagesDeleted": pruned.images.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "CachesDeleted": pruned.layers.iter().map(ToString::to_string)
            .chain(pruned.blobs.iter().map(ToString::to_string))
            .chain(pruned.cache_mounts.iter().cloned()).collect::<Vec<_>>(),
        "SpaceReclaimed": pruned.freed,
    })
}

fn request(arguments: &Arguments) -> Result<PruneRequest, Failure> {
    let size = |text: &Option<String>| {
        let parsed = text.as_deref().map(crate::commands::build::size).transpose();
        parsed.map_err(|error| Failure::usage(error.to_string()))
    };
    let limits = KeepLimits {
        reserved: size(&arguments.reserved_space)?.or(size(&arguments.keep_storage)?),
        max_used: size(&arguments.max_used_space)?,
        min_free: size(&arguments.min_free_space)?,
    };
    let mut unused_for = (!arguments.all).then_some(RECENT);
    if limits != KeepLimits::default() {
        // Who says how much shall stay means the oldest of it, however old.
        unused_for = None;
    }
    if let Some(text) = &arguments.keep_duration {
        unused_for = Some(super::duration(text)?);
    }
    let (mut filters, mut kinds) = (Vec::new(), BTreeSet::new());
    for text in &arguments.filter {
        match super::filter(text)? {
            // Several types are alternatives; everything else must hold at once.
            UsageFilter::Kind(named) => kinds.extend(named),
            UsageFilter::UnusedFor(age) => unused_for = Some(age),
            filter => filters.push(filter),
        }
    }
    if kinds.is_empty() && arguments.filter.iter().any(|text| text.starts_with("type=")) {
        // A type that takes no room here.
        filters.push(UsageFilter::Kind(Vec::new()));
    }
    Ok(PruneRequest {
        images: ImagePrune::Dangling,
        kinds,
        unused_for,
        filters,
        limits,
        ..PruneRequest::unused()
    })
}

fn confirmed(all: bool) -> Result<bool, Failure> {
    let what = if all { "all build cache" } else { "build cache that was not used for 24 hours" };
    eprint!(
        "WARNING! This will remove {what} and images without a name.\nAre you sure you want to continue? [y/N] "
    );
    let io = |error: std::io::Error| Failure::new(&error);
    std::io::stderr().flush().map_err(io)?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer).map_err(io)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
