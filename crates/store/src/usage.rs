//! What takes how much room. Start with [`DiskUsage`].

use std::collections::{BTreeSet, HashMap};
use std::time::SystemTime;

use rusqlite::Transaction;
use stave_oci::Digest;

use crate::database::{Failure, time};
use crate::diff::allocated;
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
    /// The layers below it: what it was made on, and what it lies on in stored images.
    pub parents: BTreeSet<LayerId>,
}

/// All that takes room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskUsage {
    /// Everything, the least recently used first.
    pub records: Vec<UsageRecord>,
    /// What the store keeps for itself: its databases, journal, build records, manifests, fingerprints. No
    /// collection frees it.
    pub internal: u64,
}

impl UsageKind {
    /// The kinds BuildKit's clients mean by a type's name.
    pub(crate) fn named(name: &str) -> Option<Vec<Self>> {
        Some(match name {
            "layer" => vec![Self::Layer],
            "blob" => vec![Self::Blob],
            "regular" => vec![Self::Layer, Self::Blob],
            "exec.cachemount" => vec![Self::CacheMount],
            // Kinds that BuildKit knows and that take no room of their own here.
            "internal" | "frontend" | "source.local" | "source.git.checkout" => Vec::new(),
            _ => return None,
        })
    }
}

impl std::fmt::Display for UsageId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Layer(layer) => layer.fmt(f),
            Self::Blob(digest) => f.write_str(digest.hex()),
            Self::CacheMount(name) => f.write_str(name),
        }
    }
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
        self.internal + self.records.iter().map(|record| record.size).sum::<u64>()
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

/// What every kind of row tells of itself. A lease that began no later than the stamp keeps it.
const LAYERS: &str = "SELECT id, description, coalesce(size, 0), created, used,
    use_seq >= coalesce((SELECT min(start) FROM lease), use_seq + 1),
    EXISTS (SELECT 1 FROM image_layer WHERE layer = layer_row.id), parent
    FROM layer AS layer_row WHERE state = 0";
const BLOBS: &str = "SELECT digest, '', size, created, used,
    use_seq >= coalesce((SELECT min(start) FROM lease), use_seq + 1),
    EXISTS (SELECT 1 FROM image_layer WHERE blob_digest = blob.digest)
    OR EXISTS (SELECT 1 FROM image_blob WHERE digest = blob.digest), NULL
    FROM blob WHERE state = 0";

impl Store {
    /// Measures everything. Sizes of layers are measured once and remembered.
    pub fn disk_usage(&self) -> Result<DiskUsage, StoreError> {
        self.measure_layers()?;
        let mut records = self.inner.database.read(rows)?;
        records.extend(self.cache_mount_usage()?);
        records.sort_by(|a, b| (a.last_used, &b.id).cmp(&(b.last_used, &a.id)));
        Ok(DiskUsage { records, internal: self.internal_bytes() })
    }

    /// Allocated bytes of what is neither layer nor blob nor cache mount.
    pub(crate) fn internal_bytes(&self) -> u64 {
        let directories = [self.builds_directory(), self.manifest_directory(), self.fingerprint_directory()];
        let below: u64 = directories.iter().filter_map(|path| allocated(path).ok()).sum();
        let files = std::fs::read_dir(self.root()).into_iter().flatten().flatten();
        let files = files.filter_map(|entry| entry.metadata().ok()).filter(std::fs::Metadata::is_file);
        below + files.map(|file| std::os::unix::fs::MetadataExt::blocks(&file) * 512).sum::<u64>()
    }

    /// Measures the layers that were not yet.
    pub(crate) fn measure_layers(&self) -> Result<(), StoreError> {
        self.measure_layers_of(None)
    }

    /// Measures those of an image, or all.
    pub(crate) fn measure_layers_of(&self, image: Option<&Digest>) -> Result<(), StoreError> {
        let unknown: Vec<(i64, String)> = self.inner.database.read(|tx| {
            let mut statement = tx.prepare_cached(
                "SELECT id, name FROM layer WHERE size IS NULL AND state = 0
                 AND (?1 IS NULL OR id IN (SELECT layer FROM image_layer WHERE image = ?1))",
            )?;
            let image = image.map(Digest::as_str);
            let rows = statement.query_map([image], |row| Ok((row.get(0)?, row.get(1)?)))?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        })?;
        let mut sizes = Vec::with_capacity(unknown.len());
        for (id, name) in unknown {
            match allocated(&self.layer_path(&name)) {
                Ok(size) => sizes.push((id, i64::try_from(size).unwrap_or(i64::MAX))),
                // Collected by another process meanwhile.
                Err(StoreError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        if sizes.is_empty() {
            return Ok(());
        }
        self.inner.database.write(|tx| {
            let mut statement = tx.prepare_cached("UPDATE layer SET size = ?2 WHERE id = ?1")?;
            for size in sizes {
                statement.execute(size)?;
            }
            Ok(())
        })
    }
}

/// Which layer lies on which in stored images.
const IMAGE_PARENTS: &str = "SELECT DISTINCT above.layer, below.layer FROM image_layer AS above
    JOIN image_layer AS below ON below.image = above.image AND below.position = above.position - 1";

/// The layers and blobs, in one consistent state.
pub(crate) fn rows(tx: &Transaction<'_>) -> Result<Vec<UsageRecord>, Failure> {
    let mut records = Vec::new();
    let mut statement = tx.prepare_cached(LAYERS)?;
    let mut layers = statement.query([])?;
    while let Some(row) = layers.next()? {
        records.push(record(UsageId::Layer(LayerId(row.get(0)?)), row)?);
    }
    let positions: HashMap<_, _> =
        records.iter().enumerate().map(|(at, record)| (record.id.clone(), at)).collect();
    let mut statement = tx.prepare_cached(IMAGE_PARENTS)?;
    let mut pairs = statement.query([])?;
    while let Some(row) = pairs.next()? {
        if let Some(at) = positions.get(&UsageId::Layer(LayerId(row.get(0)?))) {
            records[*at].parents.insert(LayerId(row.get(1)?));
        }
    }
    let mut statement = tx.prepare_cached(BLOBS)?;
    let mut blobs = statement.query([])?;
    while let Some(row) = blobs.next()? {
        let damaged = |_| StoreError::DamagedRecord { what: "a blob" };
        let digest = row.get::<_, String>(0)?.parse().map_err(damaged)?;
        records.push(record(UsageId::Blob(digest), row)?);
    }
    Ok(records)
}

fn record(id: UsageId, row: &rusqlite::Row<'_>) -> rusqlite::Result<UsageRecord> {
    Ok(UsageRecord {
        id,
        description: row.get(1)?,
        size: u64::try_from(row.get::<_, i64>(2)?).unwrap_or(0),
        created: time(row.get(3)?),
        last_used: time(row.get(4)?),
        in_use: row.get(5)?,
        in_image: row.get(6)?,
        parents: row.get::<_, Option<i64>>(7)?.map(LayerId).into_iter().collect(),
    })
}
