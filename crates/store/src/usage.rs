//! What takes how much room. Start with [`DiskUsage`].

use std::time::SystemTime;

use stave_oci::Digest;

use crate::{LayerId, Store, StoreError};

/// A kind of thing that takes room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum UsageKind {
    /// A layer directory.
    Layer,
    /// A blob.
    Blob,
    /// A cache mount.
    CacheMount,
}

/// Which thing.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum UsageId {
    /// A layer.
    Layer(LayerId),
    /// A blob.
    Blob(Digest),
    /// A cache mount: its directory's name.
    CacheMount(String),
}

/// One thing that takes room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsageRecord {
    /// Which.
    pub id: UsageId,
    /// What made it.
    pub description: String,
    /// Allocated bytes.
    pub size: u64,
    /// When it was made.
    pub created: SystemTime,
    /// When it was last used.
    pub last_used: SystemTime,
    /// Kept by a live lease or lock.
    pub in_use: bool,
    /// Part of a stored image.
    pub in_image: bool,
}

/// All that takes room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskUsage {
    /// Everything, the least recently used first.
    pub records: Vec<UsageRecord>,
}

impl UsageId {
    /// What kind it is.
    pub fn kind(&self) -> UsageKind {
        match self {
            Self::Layer(_) => UsageKind::Layer,
            Self::Blob(_) => UsageKind::Blob,
            Self::CacheMount(_) => UsageKind::CacheMount,
        }
    }
}

impl DiskUsage {
    /// Allocated bytes of everything.
    pub fn total(&self) -> u64 {
        self.records.iter().map(|record| record.size).sum()
    }

    /// Bytes that [`Store::prune`] could free now.
    pub fn reclaimable(&self) -> u64 {
        self.records
            .iter()
            .filter(|record| !record.in_use && !record.in_image)
            .map(|record| record.size)
            .sum()
    }
}

impl Store {
    /// Measures everything. Sizes of layers are measured once and remembered.
    pub fn disk_usage(&self) -> Result<DiskUsage, StoreError> {
        todo!()
    }
}
