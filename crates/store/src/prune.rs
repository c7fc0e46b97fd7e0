//! Garbage collection, safe beside running builds. Start with [`Store::prune`].

use std::collections::BTreeSet;
use std::time::Duration;

use stave_oci::Digest;

use crate::{LayerId, Store, StoreError, UsageKind};

/// Which images go before their layers are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImagePrune {
    /// None: only cache goes.
    Keep,
    /// Those without a name.
    Dangling,
    /// All.
    All,
}

/// What to remove. What a stored image or a live lease needs always stays.
#[derive(Debug, Clone)]
pub struct PruneRequest {
    /// Images to remove first.
    pub images: ImagePrune,
    /// Only these kinds; empty means all.
    pub kinds: BTreeSet<UsageKind>,
    /// Only what was not used for this long.
    pub unused_for: Option<Duration>,
    /// Stop when the store is down to this many bytes, the least recently used going first.
    pub keep_bytes: Option<u64>,
}

/// What was removed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Pruned {
    /// Images.
    pub images: Vec<Digest>,
    /// Layers; cache records that name them are misses from now on.
    pub layers: Vec<LayerId>,
    /// Blobs.
    pub blobs: Vec<Digest>,
    /// Cache mounts.
    pub cache_mounts: Vec<String>,
    /// Allocated bytes freed.
    pub freed: u64,
}

impl Store {
    /// Removes what the request says and nothing needs.
    pub fn prune(&self, request: &PruneRequest) -> Result<Pruned, StoreError> {
        todo!("{request:?}")
    }
}
