//! Disk use and pruning in BuildKit's terms.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bollard_buildkit_proto::moby::buildkit::v1::{
    DiskUsageRequest, DiskUsageResponse, PruneRequest as Request, UsageRecord as Record,
};
use serde_json::json;
use stave_engine::Engine;
use stave_engine::disk::DiskError;
use stave_store::{FilterError, ImagePrune, KeepLimits, PruneRequest, UsageFilter, UsageId, UsageRecord};
use stave_worker::Namespace;

use crate::failure::Failure;
use crate::progress::timestamp;
use crate::state::Shared;
use crate::tenants::Caller;

pub(super) async fn disk_usage(
    shared: &Shared,
    caller: &Caller,
    request: DiskUsageRequest,
) -> Result<DiskUsageResponse, Failure> {
    let filters = filters(&request.filter)?;
    let caller = caller.clone();
    let records = blocking(shared, move |engine| records(engine, &caller)).await?;
    let oldest = cutoff(request.age_limit);
    let wanted = records.iter().filter(|record| {
        oldest.is_none_or(|oldest| record.last_used <= oldest)
            && filters.iter().all(|filter| filter.matches(record))
    });
    let record = wanted.map(describe).collect();
    Ok(DiskUsageResponse { record })
}

pub(super) async fn prune(
    shared: &Shared,
    caller: &Caller,
    request: Request,
) -> Result<Vec<Record>, Failure> {
    let pruned = prune_for(shared, caller, request).await;
    let more = match &pruned {
        Ok(gone) => {
            json!({ "records": gone.len(), "bytes": gone.iter().map(|record| record.size).sum::<i64>() })
        }
        Err(_) => json!({}),
    };
    shared.audit.write(caller, "prune", pruned.as_ref().map(drop).map_err(ToString::to_string), more);
    pruned
}

/// What a caller sees of the store: a tenant what is its own.
fn records(engine: &Engine, caller: &Caller) -> Result<Vec<UsageRecord>, DiskError> {
    match caller.is_trusted() {
        true => Ok(engine.store().disk_usage()?.records),
        false => engine.tenant_usage(&caller.namespace),
    }
}

async fn prune_for(shared: &Shared, caller: &Caller, request: Request) -> Result<Vec<Record>, Failure> {
    let bytes = |bytes: i64| u64::try_from(bytes).ok().filter(|bytes| *bytes > 0);
    let is_everything = request.all && request.filter.is_empty() && caller.is_trusted();
    let wanted = PruneRequest {
        // To clients, an image that was pulled is cache like any other. One that was built into the store and is
        // nowhere else is somebody's work, and stays.
        images: if is_everything { ImagePrune::Elsewhere } else { ImagePrune::Keep },
        unused_for: bytes(request.keep_duration).map(Duration::from_nanos),
        filters: filters(&request.filter)?,
        limits: KeepLimits {
            reserved: bytes(request.reserved_space),
            max_used: bytes(request.max_used_space),
            min_free: bytes(request.min_free_space),
        },
        ..PruneRequest::unused()
    };
    let caller = caller.clone();
    let (before, pruned) = blocking(shared, move |engine| {
        let before = records(engine, &caller)?;
        let pruned = match caller.is_trusted() {
            true => stave_engine::disk::prune(engine.store(), wanted)?,
            false => engine.prune_tenant(&caller.namespace, wanted)?,
        };
        Ok((before, pruned))
    })
    .await?;
    let gone: HashSet<UsageId> = pruned
        .layers
        .into_iter()
        .map(UsageId::Layer)
        .chain(pruned.blobs.into_iter().map(UsageId::Blob))
        .chain(pruned.cache_mounts.into_iter().map(UsageId::CacheMount))
        .collect();
    Ok(before.iter().filter(|record| gone.contains(&record.id)).map(describe).collect())
}

/// When something was last used that is older than so many nanoseconds; `None` takes all.
fn cutoff(age: i64) -> Option<SystemTime> {
    let age = u64::try_from(age).ok().filter(|age| *age > 0)?;
    SystemTime::now().checked_sub(Duration::from_nanos(age))
}

async fn blocking<T: Send + 'static>(
    shared: &Shared,
    work: impl FnOnce(&Engine) -> Result<T, DiskError> + Send + 'static,
) -> Result<T, Failure> {
    let engine = Arc::clone(&shared.engine);
    let done = tokio::task::spawn_blocking(move || work(&engine)).await;
    let done = done.map_err(|_| Failure::Cancelled)?;
    done.map_err(|error| Failure::Value(stave_engine::one_line(&error)))
}

fn describe(record: &UsageRecord) -> Record {
    let (_, description) = Namespace::of_key(&record.description);
    let (id, record_type) = match &record.id {
        UsageId::Layer(layer) => (format!("layer-{layer}"), "regular"),
        UsageId::Blob(digest) => (digest.to_string(), "internal"),
        UsageId::CacheMount(name) if description.starts_with("client-directory:") => {
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
        description: description.to_owned(),
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
