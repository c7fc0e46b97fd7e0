//! `du`, `prune` and `doctor`: what takes room, giving it back, and whether all is well.

pub(crate) mod doctor;
pub(crate) mod prune;

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::json;
use stave_store::{DiskUsage, UsageFilter, UsageId, UsageKind, UsageRecord};

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
    /// Only what matches (`until=24h`, `type=`, `id=`, `parents=`, `inuse=`, `shared=`, `private=`, `mutable=`, `immutable=`, `description=`)
    #[arg(long, value_name = "KEY=VALUE")]
    filter: Vec<String>,
    /// Output form: `table` or `json`, one object a line
    #[arg(long, value_name = "FORM")]
    format: Option<Form>,
}

/// `stave du`
pub(crate) fn usage(arguments: &UsageArguments, global: &GlobalOptions) -> Result<u8, Failure> {
    let filters: Vec<UsageFilter> =
        arguments.filter.iter().map(|text| filter(text)).collect::<Result<_, _>>()?;
    with_store(global, |store| {
        let mut usage = store.disk_usage().map_err(|error| Failure::new(&error))?;
        usage.records.retain(|record| filters.iter().all(|filter| filter.matches(record)));
        if !filters.is_empty() {
            usage.internal = 0;
        }
        if arguments.format == Some(Form::Json) {
            for record in &usage.records {
                say!("{}", object(record));
            }
            return Ok(0);
        }
        table(&usage, arguments.verbose);
        Ok(0)
    })
}

/// A filter, with `until` as docker has it.
pub(crate) fn filter(text: &str) -> Result<UsageFilter, Failure> {
    match text.strip_prefix("until=") {
        Some(age) => Ok(UsageFilter::UnusedFor(duration(age)?)),
        None => text.parse().map_err(|error: stave_store::FilterError| Failure::usage(error.to_string())),
    }
}

fn table(usage: &DiskUsage, verbose: bool) {
    let now = Timestamp::now();
    let mut header = vec!["ID", "TYPE", "RECLAIMABLE", "SIZE", "LAST ACCESSED"];
    if verbose {
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
        if verbose {
            row.push(record.description.clone());
        }
        row
    };
    say!("{}", format::table(&header, &usage.records.iter().map(row).collect::<Vec<_>>()));
    let mut kinds: BTreeMap<UsageKind, (u64, u64)> = BTreeMap::new();
    let mut shared = 0;
    for record in &usage.records {
        let (all, free) = kinds.entry(record.id.kind()).or_default();
        *all += record.size;
        *free += if reclaimable(record) { record.size } else { 0 };
        shared += if record.in_image { record.size } else { 0 };
    }
    for (of, (all, free)) in kinds {
        say!("{}:\t{} ({} reclaimable)", kind(of), format::size(all), format::size(free));
    }
    say!("Shared:\t\t{}", format::size(shared));
    say!("Internal:\t{}", format::size(usage.internal));
    say!("Reclaimable:\t{}", format::size(usage.reclaimable()));
    say!("Total:\t\t{}", format::size(usage.total()));
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
        "Shared": record.in_image, "InUse": record.in_use, "Mutable": record.id.kind() == UsageKind::CacheMount,
        "CreatedAt": time(record.created), "LastUsedAt": time(record.last_used), "Description": record.description,
        "Parents": record.parents.iter().map(ToString::to_string).collect::<Vec<_>>(),
    })
}

/// Go's durations, as docker takes them: `36h`, `1h30m`, `45s`; and days.
pub(crate) fn duration(text: &str) -> Result<Duration, Failure> {
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
