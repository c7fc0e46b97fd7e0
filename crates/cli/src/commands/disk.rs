//! `du` and `prune`: what takes room, and giving it back.

use std::collections::BTreeSet;
use std::io::{BufRead as _, Write as _};
use std::time::Duration;

use jiff::Timestamp;
use serde_json::json;
use stave_store::{ImagePrune, PruneRequest, UsageId, UsageKind, UsageRecord};

use super::Form;
use crate::format;
use crate::output::say;
use crate::report::Failure;
use crate::runtime::with_store;
use crate::state::GlobalOptions;

/// Show what takes room
#[derive(Debug, clap::Args)]
pub(crate) struct UsageArguments {
    /// Show descriptions
    #[arg(short, long)]
    verbose: bool,
    /// Output form: `table` or `json`, one object a line
    #[arg(long, value_name = "FORM")]
    format: Option<Form>,
}

/// `stave du`
pub(crate) fn usage(arguments: &UsageArguments, global: &GlobalOptions) -> Result<u8, Failure> {
    with_store(global, |store| {
        let usage = store.disk_usage().map_err(|error| Failure::new(&error))?;
        if arguments.format == Some(Form::Json) {
            for record in &usage.records {
                say!("{}", object(record));
            }
            return Ok(0);
        }
        let now = Timestamp::now();
        let mut header = vec!["ID", "TYPE", "RECLAIMABLE", "SIZE", "LAST ACCESSED"];
        if arguments.verbose {
            header.push("DESCRIPTION");
        }
        let row = |record: &UsageRecord| {
            let used = Timestamp::try_from(record.last_used).unwrap_or(Timestamp::UNIX_EPOCH);
            let mut row = vec![
                id(record),
                kind(record.id.kind()).to_owned(),
                reclaimable(record).to_string(),
                format::size(record.size),
                format::age(used, now),
            ];
            if arguments.verbose {
                row.push(record.description.clone());
            }
            row
        };
        say!("{}", format::table(&header, &usage.records.iter().map(row).collect::<Vec<_>>()));
        say!("Reclaimable:\t{}", format::size(usage.reclaimable()));
        say!("Total:\t\t{}", format::size(usage.total()));
        Ok(0)
    })
}

fn id(record: &UsageRecord) -> String {
    match &record.id {
        UsageId::Layer(layer) => layer.to_string(),
        UsageId::Blob(digest) => digest.short().to_owned(),
        UsageId::CacheMount(name) => name.clone(),
    }
}

fn kind(kind: UsageKind) -> &'static str {
    match kind {
        UsageKind::Layer => "layer",
        UsageKind::Blob => "blob",
        UsageKind::CacheMount => "exec.cachemount",
    }
}

fn reclaimable(record: &UsageRecord) -> bool {
    !record.in_use && !record.in_image
}

fn object(record: &UsageRecord) -> serde_json::Value {
    let time = |time| Timestamp::try_from(time).ok().map(|time| time.to_string());
    json!({
        "ID": id(record), "Type": kind(record.id.kind()), "Reclaimable": reclaimable(record), "Size": record.size,
        "CreatedAt": time(record.created), "LastUsedAt": time(record.last_used), "Description": record.description,
    })
}

/// Remove what nothing needs: build cache and images without a name
#[derive(Debug, clap::Args)]
pub(crate) struct PruneArguments {
    /// Remove all cache, also what was used lately, and downloaded blobs
    #[arg(short, long)]
    all: bool,
    /// Do not ask
    #[arg(short, long)]
    force: bool,
    /// Only what matches (`until=24h`, `type=layer|blob|exec.cachemount`)
    #[arg(long, value_name = "KEY=VALUE")]
    filter: Vec<String>,
    /// Leave this much (`10g`)
    #[arg(long, value_name = "BYTES")]
    keep_storage: Option<String>,
}

/// What plain `prune` spares: the cache of what somebody is working on.
const RECENT: Duration = Duration::from_secs(24 * 3600);

/// `stave prune`
pub(crate) fn prune(arguments: &PruneArguments, global: &GlobalOptions) -> Result<u8, Failure> {
    let request = request(arguments)?;
    if !arguments.force && !confirmed(arguments.all)? {
        return Ok(0);
    }
    with_store(global, |store| {
        let pruned = store.prune(&request).map_err(|error| Failure::new(&error))?;
        for image in &pruned.images {
            say!("deleted: {image}");
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

fn request(arguments: &PruneArguments) -> Result<PruneRequest, Failure> {
    let mut request = PruneRequest {
        images: ImagePrune::Dangling,
        kinds: BTreeSet::new(),
        unused_for: (!arguments.all).then_some(RECENT),
        keep_bytes: None,
    };
    if let Some(text) = &arguments.keep_storage {
        let bytes = super::build::size(text).map_err(|error| Failure::usage(error.to_string()))?;
        request.keep_bytes = Some(bytes);
    }
    for filter in &arguments.filter {
        match filter.split_once('=') {
            Some(("until", text)) => request.unused_for = Some(duration(text)?),
            Some(("type", "layer" | "regular")) => drop(request.kinds.insert(UsageKind::Layer)),
            Some(("type", "blob")) => drop(request.kinds.insert(UsageKind::Blob)),
            Some(("type", "exec.cachemount")) => drop(request.kinds.insert(UsageKind::CacheMount)),
            _ => {
                return Err(Failure::usage(format!(
                    "invalid filter `{filter}`: expected `until=DURATION` or `type=layer|blob|exec.cachemount`"
                )));
            }
        }
    }
    Ok(request)
}

/// Go's durations, as docker takes them: `36h`, `1h30m`, `45s`.
fn duration(text: &str) -> Result<Duration, Failure> {
    let wrong =
        || Failure::usage(format!("invalid duration `{text}`: expected for instance `24h` or `1h30m`"));
    let (mut total, mut digits) = (0_u64, String::new());
    for letter in text.chars() {
        if letter.is_ascii_digit() {
            digits.push(letter);
            continue;
        }
        let unit = match letter {
            's' => 1,
            'm' => 60,
            'h' => 3600,
            'd' => 86_400,
            _ => return Err(wrong()),
        };
        let number: u64 = digits.parse().map_err(|_| wrong())?;
        digits.clear();
        total = number.checked_mul(unit).and_then(|part| total.checked_add(part)).ok_or_else(wrong)?;
    }
    if digits.is_empty() && !text.is_empty() { Ok(Duration::from_secs(total)) } else { Err(wrong()) }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, seconds) in [("24h", 86_400), ("1h30m", 5_400), ("45s", 45), ("2d", 172_800)] {
            assert_eq!(duration(text).expect("valid"), Duration::from_secs(seconds));
        }
        for text in ["", "h", "12", "1x", "99999999999999999999h"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }
}
