//! The room a tenant's builds may take: looked after before each of them. Start with [`make`].

use std::sync::Arc;

use stave_engine::Engine;
use stave_store::{KeepLimits, PruneRequest};

use super::Caller;
use crate::failure::Failure;

/// Sees to it that a tenant is below its bound, by removing what it alone has and nobody uses.
pub(super) async fn make(engine: &Arc<Engine>, caller: &Caller, most: u64) -> Result<(), Failure> {
    let (engine, caller) = (Arc::clone(engine), caller.clone());
    let made = tokio::task::spawn_blocking(move || {
        let failed = |error: stave_engine::disk::DiskError| Failure::Value(stave_engine::one_line(&error));
        let used = |engine: &Engine| -> Result<u64, Failure> {
            let records = engine.tenant_usage(&caller.namespace).map_err(failed)?;
            Ok(records.iter().filter(|record| !record.in_image).map(|record| record.size).sum())
        };
        let before = used(&engine)?;
        if before <= most {
            return Ok(());
        }
        // The store reckons with all it holds: down by what is too much of this tenant's.
        let all = engine.store().disk_usage()?.total();
        let limits =
            KeepLimits { max_used: Some(all.saturating_sub(before - most)), ..KeepLimits::default() };
        let request = PruneRequest { limits, ..PruneRequest::unused() };
        engine.prune_tenant(&caller.namespace, request).map_err(failed)?;
        let after = used(&engine)?;
        match after <= most {
            true => Ok(()),
            false => Err(Failure::Quota(format!(
                "the builds of `{}` take {after} bytes, more than the {most} they may, and what is left is in use",
                caller.identity
            ))),
        }
    });
    made.await.unwrap_or(Err(Failure::Cancelled))
}
