//! Disk use and pruning in BuildKit's terms.

use std::collections::HashSet;
use std::time::{Duration, SystemTime};

use bollard_buildkit_proto::moby::buildkit::v1::{
    DiskUsageRequest, DiskUsageResponse, PruneRequest as Request, UsageRecord as Record,
};
use stave_store::{
    FilterError, ImagePrune, KeepLimits, PruneRequest, Store, StoreError, UsageFilter, UsageId, UsageRecord,
};

use crate::failure::Failure;
use crate::progress::timestamp;
use crate::state::Shared;

pub(super) async fn disk_usage(
    shared: &Shared,
    request: DiskUsageRequest,
) -> Result<DiskUsageResponse, Failure> {
    let filters = filters(&request.filter)?;
    let usage = blocking(shared, Store::disk_usage).await?;
    let oldest = cutoff(request.age_limit);
    let wanted = usage.records.iter().filter(|record| {
        oldest.is_none_or(|oldest| record.last_used <= oldest)
            && filters.iter().all(|filter| filter.matches(record))
    });
    let record = wanted.map(describe).collect();
    Ok(DiskUsageResponse { record })
}

pub(super) async fn prune(shared: &Shared, request: Request) -> Result<Vec<Record>, Failure> {
    let bytes = |bytes: i64| u64::try_from(bytes).ok().filter(|bytes| *bytes > 0);
    let wanted = PruneRequest {
        images: ImagePrune::Keep,
        unused_for: bytes(request.keep_duration).map(Duration::from_nanos),
        filters: filters(&request.filter)?,
        limits: KeepLimits {
            reserved: bytes(request.reserved_space),
            max_used: bytes(request.max_used_space),
            min_free: bytes(request.min_free_space),
        },
        ..PruneRequest::unused()
    };
    let (before, pruned) = blocking(shared, move |store| {
        let before = store.disk_usage()?;
        Ok((before, store.prune(&wanted)?))
    })
    .await?;
    let gone: HashSet<UsageId> = pruned
        .layers
        .into_iter()
        .map(UsageId::Layer)
        .chain(pruned.blobs.into_iter().map(UsageId::Blob))
        .chain(pruned.cache_mounts.into_iter().map(UsageId::CacheMount))
        .collect();
    Ok(before.records.iter().filter(|record| gone.contains(&record.id)).map(describe).collect())
}

/// When something was last used that is older than so many nanoseconds; `None` takes all.
fn cutoff(age: i64) -> Option<SystemTime> {
    let age = u64::try_from(age).ok().filter(|age| *age > 0)?;
    SystemTime::now().checked_sub(Duration::from_nanos(age))
}

async fn blocking<T: Send + 'static>(
    shared: &Shared,
    work: impl FnOnce(&Store) -> Result<T, StoreError> + Send + 'static,
) -> Result<T, Failure> {
    let store = shared.engine.store().clone();
    let done = tokio::task::spawn_blocking(move || work(&store)).await;
    Ok(done.map_err(|_| Failure::Cancelled)??)
}

fn describe(record: &UsageRecord) -> Record {
    let (id, record_type) = match &record.id {
        UsageId::Layer(layer) => (format!("layer-{layer}"), "regular"),
        UsageId::Blob(digest) => (digest.to_string(), "internal"),
        UsageId::CacheMount(name) if record.description.starts_with("client-directory:") => {
            (name.clone(), "source.local")
        }
        UsageId::CacheMount(name) => (name.clone(), "exec.cachemount"),
    };
    Record {
        id,
        mutable: matches!(record.id, UsageId::CacheMount(_)),
        in_use: record.in_use,
        size: i64::try_from(record.size).unwrap_or(i64::MAX),
        created_at: Some(timestamp(record.created)),
        last_used_at: Some(timestamp(record.last_used)),
        usage_count: 1,
        description: record.description.clone(),
        record_type: record_type.to_owned(),
        shared: record.in_image,
        ..Record::default()
    }
}

fn filters(texts: &[String]) -> Result<Vec<UsageFilter>, Failure> {
    // One text may hold several, which must all hold.
    let texts = texts.iter().flat_map(|text| text.split(',')).filter(|text| !text.is_empty());
    texts.map(|text| text.parse().map_err(|error: FilterError| Failure::Value(error.to_string()))).collect()
}
