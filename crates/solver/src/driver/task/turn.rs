//! Taking turns with other processes: what may run once runs once.
//!
//! Owns the wait for whoever runs the same step. The claim itself is the index's; it ends with the process
//! that has it, however that dies, so nobody waits for a dead one. Start with [`take`].

use std::time::Duration;

use stave_cache::{CacheIndex, CacheKey, Claim};

use crate::event::Miss;
use crate::worker::JobContext;

/// How often a claim of another process is tried again: first, and at most.
const PATIENCE: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(50));

/// What the wait is called in the step's progress.
const WAITING: &str = "waiting for another build that runs this step";

/// Claims the keys of a step that is about to run. `None` when the step was cancelled meanwhile.
///
/// Without keys, or if the claim cannot be had at all, the step just runs: a claim saves work, and nothing
/// is wrong without it.
pub(super) async fn take<S>(index: &CacheIndex, miss: &Miss, cx: &JobContext<S>) -> Option<Vec<Claim>> {
    let mut keys: Vec<CacheKey> = miss.entries.iter().map(|entry| entry.key).collect();
    if miss.ignored {
        keys.clear();
    }
    // In one order everywhere, so that no two wait for each other.
    keys.sort_unstable();
    keys.dedup();
    let mut claims = Vec::with_capacity(keys.len());
    for key in keys {
        match claim(index, &key, cx).await {
            Ok(Some(claim)) => claims.push(claim),
            Ok(None) => return None,
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "a step runs without its claim");
            }
        }
    }
    Some(claims)
}

async fn claim<S>(
    index: &CacheIndex,
    key: &CacheKey,
    cx: &JobContext<S>,
) -> Result<Option<Claim>, stave_cache::IndexError> {
    let mut pause = PATIENCE.0;
    loop {
        if let Some(claim) = index.claim(key)? {
            return Ok(Some(claim));
        }
        if pause == PATIENCE.0 {
            cx.events.progress(WAITING, 0, None);
        }
        tokio::select! {
            biased;
            () = cx.cancel.cancelled() => return Ok(None),
            () = tokio::time::sleep(pause) => {}
        }
        pause = (pause * 2).min(PATIENCE.1);
    }
}
