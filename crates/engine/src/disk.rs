//! Disk matters of the store and the build cache together: collecting, and examining.
//!
//! Owns what needs both: what a layer cost to make is in the cache's records, and whether a record's result is
//! there is the store's to say. Start with [`prune`], [`collect`] and [`doctor`].

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use stave_cache::{CacheIndex, IndexError};
use stave_store::{
    DiskPolicy, Finding, FindingKind, ImagePrune, LayerId, PruneRequest, Pruned, Snapshot, Store, StoreError,
};
use stave_worker::manifest;

/// Records of the cache that are read at once.
const MAX_RECORDS: u32 = 1_000_000;

/// Why disk could not be looked after.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The cache's index failed.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// A directory of the store cannot be read.
    #[error("cannot read `{}`", path.display())]
    Io {
        /// Which.
        path: std::path::PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// Removes what a request says, and the cache's records of it.
///
/// # Errors
/// [`DiskError`].
pub fn prune(store: &Store, mut request: PruneRequest) -> Result<Pruned, DiskError> {
    let index = CacheIndex::open(&store.cache_index_path())?;
    request.costs = costs(&index)?;
    let pruned = store.prune(&request)?;
    if !pruned.layers.is_empty() {
        forget(store, &index, true)?;
    }
    index.sweep_claims()?;
    manifest::prune(&store.manifest_directory(), manifest::MAX_BYTES);
    Ok(pruned)
}

/// The automatic collection: each rule of the store's policy in turn. Returns the bytes freed.
///
/// # Errors
/// [`DiskError`].
pub fn collect(store: &Store, policy: &DiskPolicy) -> Result<u64, DiskError> {
    collect_with(store, policy, ImagePrune::Keep)
}

/// The same, where some images may go as well.
///
/// # Errors
/// [`DiskError`].
pub fn collect_with(store: &Store, policy: &DiskPolicy, images: ImagePrune) -> Result<u64, DiskError> {
    let mut freed = 0;
    if policy.cap.is_some() {
        // Room was made without asking the cache's index, which the store does not know.
        forget(store, &CacheIndex::open(&store.cache_index_path())?, true)?;
    }
    for rule in &policy.rules {
        // A rule that does not say where to stop would leave nothing: that is for `prune` alone.
        let used = store.disk_usage()?.total();
        let (_, free) = store.file_system_bytes()?;
        let bounded = rule.limits.target(used, free);
        if bounded.is_none_or(|target| used <= target) && (bounded.is_some() || rule.keep_duration.is_none())
        {
            continue;
        }
        let request = PruneRequest {
            images,
            unused_for: rule.keep_duration,
            filters: rule.filters.clone(),
            limits: rule.limits,
            ..PruneRequest::unused()
        };
        freed += prune(store, request)?.freed;
    }
    Ok(freed)
}

/// How long the newest run that made each layer took.
fn costs(index: &CacheIndex) -> Result<BTreeMap<LayerId, Duration>, IndexError> {
    let mut costs = BTreeMap::new();
    for record in index.list(MAX_RECORDS)? {
        for snapshot in snapshots(record.result.as_str()).into_iter().flatten() {
            if let Some(top) = snapshot.top() {
                costs.entry(top).or_insert(record.duration);
            }
        }
    }
    Ok(costs)
}

/// The snapshots a result names; `None` when it was not written by this worker.
fn snapshots(result: &str) -> Option<Vec<Snapshot>> {
    stave_worker::snapshots_of(result)
}

/// Finds, and with `remove` drops, records whose results are gone.
fn forget(store: &Store, index: &CacheIndex, remove: bool) -> Result<Vec<String>, DiskError> {
    // The records first: what another build makes and records meanwhile is not taken for gone.
    let records = index.list(MAX_RECORDS)?;
    let present = store.layer_ids()?;
    let mut gone = Vec::new();
    for record in records {
        let whole = snapshots(record.result.as_str())
            .is_some_and(|all| all.iter().flat_map(Snapshot::layers).all(|layer| present.contains(layer)));
        if whole || stave_solver::is_elsewhere(&record.result) {
            continue;
        }
        if remove {
            index.remove(&record.result)?;
        }
        gone.push(record.vertex_name);
    }
    Ok(gone)
}

/// Examines everything below a state directory; with `repair`, puts right what can be.
///
/// # Errors
/// When it cannot even be looked at.
pub fn doctor(root: &Path, repair: bool) -> Result<Vec<Finding>, DiskError> {
    // A full disk is one of the reasons to look.
    let _reserve = stave_store::give_up(root)?;
    let mut findings = stave_store::examine(root, repair)?;
    let database_gone = findings
        .iter()
        .any(|found| matches!(found.kind, FindingKind::DatabaseLost | FindingKind::DatabaseDamaged));
    let path = root.join("cache.db");
    if !path.exists() || (database_gone && !repair) {
        return Ok(findings);
    }
    let problems = CacheIndex::inspect(&path)?;
    if !problems.is_empty() {
        findings.push(Finding::new(FindingKind::CacheDamaged, problems.join("; "), repair));
        if !repair {
            return Ok(findings);
        }
        CacheIndex::mark_damaged(&path);
    }
    let store = Store::open(root)?;
    let index = CacheIndex::open(&path)?;
    for name in forget(&store, &index, repair)? {
        findings.push(Finding::new(FindingKind::CacheRecord, name, repair));
    }
    for claim in index.dead_claims(repair)? {
        findings.push(Finding::new(FindingKind::Leftover, claim.display().to_string(), repair));
    }
    half_made(&store, repair, &mut findings)?;
    Ok(findings)
}

/// Directories of builds that died before their first record was whole.
fn half_made(store: &Store, repair: bool, findings: &mut Vec<Finding>) -> Result<(), DiskError> {
    let directory = store.builds_directory();
    let failed = |source| DiskError::Io { path: directory.clone(), source };
    let entries = match std::fs::read_dir(&directory) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(failed)?,
    };
    for entry in entries {
        let entry = entry.map_err(failed)?;
        // A file beside them is a note that a build left for the next one.
        if !entry.file_type().map_err(failed)?.is_dir() {
            continue;
        }
        let path = entry.path();
        let record = std::fs::metadata(path.join("record.json")).map(|metadata| metadata.len());
        if record.is_ok_and(|length| length > 0) {
            continue;
        }
        if repair {
            std::fs::remove_dir_all(&path).map_err(failed)?;
        }
        findings.push(Finding::new(FindingKind::Leftover, path.display().to_string(), repair));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use stave_store::{GcRule, KeepLimits, Sharing};

    use super::*;

    fn rule(filter: Option<&str>, keep: Option<u64>, limits: KeepLimits) -> GcRule {
        GcRule {
            filters: filter.map(|text| text.parse().expect("a filter")).into_iter().collect(),
            keep_duration: keep.map(Duration::from_secs),
            limits,
        }
    }

    /// A store with two layers and a cache mount; what is left of them after a collection.
    #[track_caller]
    fn check(rules: Vec<GcRule>, layers: usize, mounts: usize) {
        let directory = tempfile::tempdir().expect("a directory");
        let store = Store::open(directory.path()).expect("a store");
        for name in ["a", "b"] {
            let layer = store.prepare(&Snapshot::scratch()).expect("a layer").described(name);
            std::fs::write(layer.upper().join(name), vec![1; 100_000]).expect("a file");
            layer.commit().expect("a commit");
        }
        drop(store.mutable_dir("c", Sharing::Shared).and_then(stave_store::MutableDir::initialised));
        collect(&store, &DiskPolicy { cap: None, rules }).expect("a collection");
        let usage = store.disk_usage().expect("a listing");
        let kinds = |wanted| usage.records.iter().filter(|record| record.id.kind() == wanted).count();
        let left = (kinds(stave_store::UsageKind::Layer), kinds(stave_store::UsageKind::CacheMount));
        assert_eq!(left, (layers, mounts));
    }

    #[test]
    fn half_made_is_a_build_without_a_record_and_no_note_beside_builds() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = Store::open(directory.path()).expect("a store");
        let builds = store.builds_directory();
        std::fs::create_dir_all(builds.join("died")).expect("a directory");
        std::fs::write(builds.join(".note"), "").expect("a file");
        let found = |repair| {
            let mut findings = Vec::new();
            half_made(&store, repair, &mut findings).expect("looks");
            findings.len()
        };
        assert_eq!([found(false), found(true), found(false)], [1, 1, 0]);
        assert!(builds.join(".note").exists());
    }

    #[test]
    fn rules_of_the_collection_are_buildkits() {
        let nothing = KeepLimits { max_used: Some(0), ..KeepLimits::default() };
        let enough = KeepLimits { max_used: Some(1 << 40), ..KeepLimits::default() };
        check(Vec::new(), 2, 1);
        check(vec![rule(None, None, nothing)], 0, 0);
        check(vec![rule(None, None, enough)], 2, 1);
        check(vec![rule(None, None, KeepLimits { reserved: Some(1 << 40), ..nothing })], 2, 1);
        check(vec![rule(None, None, KeepLimits { min_free: Some(0), ..KeepLimits::default() })], 2, 1);
        check(vec![rule(None, None, KeepLimits { min_free: Some(u64::MAX), ..KeepLimits::default() })], 0, 0);
        check(vec![rule(Some("type=exec.cachemount"), None, nothing)], 2, 0);
        check(vec![rule(Some("description=a"), None, nothing)], 1, 1);
        check(vec![rule(None, Some(3600), nothing)], 2, 1);
        check(vec![rule(None, Some(0), KeepLimits::default())], 0, 0);
        // A rule that says nothing takes nothing, and the next one is asked all the same.
        let silent = rule(None, None, KeepLimits::default());
        check(vec![silent, rule(Some("type=layer"), None, nothing)], 0, 1);
    }
}
