//! Garbage collection, safe beside running builds. Start with [`Store::prune`].
//!
//! Two transactions, over and over: the first picks what no image, no live lease and no lock needs and marks it, so
//! that from its commit on nobody finds it; the second, under the write lock again, renames what is
//! still marked into the session's directory and deletes the rows. The slow removal comes last and
//! blocks nobody. Killed in between, marked rows and moved files fall to the next sweep.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use rusqlite::Transaction;
use stave_oci::Digest;

use crate::database::Failure;
use crate::fault::reach;
use crate::journal::{self, Line};
use crate::limits::grace;
use crate::reconcile::{self, move_aside};
use crate::reserve::give_up;
use crate::usage::rows;
use crate::{KeepLimits, LayerId, Store, StoreError, UsageFilter, UsageId, UsageKind, UsageRecord};

/// Records that are marked in one transaction.
const AT_ONCE: usize = 1000;

/// Which images go before their layers are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImagePrune {
    /// None: only cache goes.
    Keep,
    /// Those without a name.
    Dangling,
    /// Those that came with a manifest or went out with one: they are somewhere else, too.
    Elsewhere,
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
    /// Only these; `None` means all.
    pub only: Option<BTreeSet<UsageId>>,
    /// Only what fulfils all of these.
    pub filters: Vec<UsageFilter>,
    /// Where to stop; what is least worth keeping goes first.
    pub limits: KeepLimits,
    /// How long it took to make layers: what is slow to make again stays longer.
    pub costs: BTreeMap<LayerId, Duration>,
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

impl PruneRequest {
    /// Everything that neither an image nor a live lease needs.
    pub fn unused() -> Self {
        Self {
            images: ImagePrune::Keep,
            kinds: BTreeSet::new(),
            unused_for: None,
            only: None,
            filters: Vec::new(),
            limits: KeepLimits::default(),
            costs: BTreeMap::new(),
        }
    }

    fn wants(&self, record: &UsageRecord) -> bool {
        let kind = self.kinds.is_empty() || self.kinds.contains(&record.id.kind());
        let is_named = self.only.as_ref().is_none_or(|only| only.contains(&record.id));
        is_named && kind && self.filters.iter().all(|filter| filter.matches(record))
    }

    /// When it counts as last used: later than it was if making it again takes long.
    fn worth(&self, record: &UsageRecord) -> SystemTime {
        let cost = match &record.id {
            UsageId::Layer(layer) => self.costs.get(layer).copied().unwrap_or_default(),
            UsageId::Blob(_) | UsageId::CacheMount(_) => Duration::ZERO,
        };
        record.last_used + grace(cost, record.size)
    }

    /// The latest last use that still goes.
    fn cutoff(&self) -> Option<SystemTime> {
        self.unused_for.map(|age| SystemTime::now().checked_sub(age).unwrap_or(SystemTime::UNIX_EPOCH))
    }
}

impl Store {
    /// Removes what the request says and nothing needs.
    pub fn prune(&self, request: &PruneRequest) -> Result<Pruned, StoreError> {
        let pruned = self.prune_by(AT_ONCE, request);
        self.renew_reserve();
        pruned
    }

    /// The same, with so many records in one transaction: others need not wait for all of it, and on a full disk the
    /// first ones make the room that is needed to tell of the next.
    pub(crate) fn prune_by(&self, at_once: usize, request: &PruneRequest) -> Result<Pruned, StoreError> {
        let inner = &self.inner;
        let _reserve = give_up(&inner.root)?;
        // First, so that leases of dead processes protect nothing.
        reconcile::sweep(&inner.root, &inner.database, &inner.session)?;
        inner.reaper.let_go();
        self.measure_layers()?;
        let images = match request.images {
            ImagePrune::Keep => Vec::new(),
            _ => inner.database.write(|tx| remove_images(tx, request))?,
        };
        let mut pruned = Pruned { images, ..Pruned::default() };
        let mut tried = BTreeSet::new();
        loop {
            let mounts = self.cache_mount_usage()?;
            let (_, free) = self.file_system_bytes()?;
            let internal = self.internal_bytes();
            let chosen = inner.database.write(|tx| {
                let mut records = rows(tx)?;
                records.extend(mounts);
                let used = internal + records.iter().map(|record| record.size).sum::<u64>();
                let mut chosen = choose(records, request, used, request.limits.target(used, free));
                // A cache mount that somebody began to use since stays, whatever it is worth.
                chosen.retain(|record| !tried.contains(&record.id));
                chosen.truncate(at_once);
                mark(tx, &chosen)?;
                Ok(chosen)
            })?;
            reach("prune-marked");
            let rubbish = inner.database.write(|tx| self.move_marked(tx))?;
            reach("prune-moved");
            reconcile::remove_all(&rubbish)?;
            let is_last = chosen.len() < at_once;
            tried.extend(chosen.iter().map(|record| record.id.clone()));
            self.told(chosen, &mut pruned)?;
            if is_last {
                return Ok(pruned);
            }
        }
    }

    /// Takes down what was removed, cache mounts as they go.
    fn told(&self, chosen: Vec<UsageRecord>, pruned: &mut Pruned) -> Result<(), StoreError> {
        for record in chosen {
            match record.id {
                UsageId::Layer(layer) => pruned.layers.push(layer),
                UsageId::Blob(digest) => pruned.blobs.push(digest),
                UsageId::CacheMount(name) if self.remove_cache_mount(&name)? => {
                    pruned.cache_mounts.push(name);
                }
                // Someone began to use it since.
                UsageId::CacheMount(_) => continue,
            }
            pruned.freed += record.size;
        }
        Ok(())
    }

    /// Removes these layers, unless an image or a live lease needs them.
    pub fn discard(&self, layers: &[LayerId]) -> Result<(), StoreError> {
        let database = &self.inner.database;
        let wanted = |record: &UsageRecord| matches!(&record.id, UsageId::Layer(id) if layers.contains(id));
        database.write(|tx| {
            let records = rows(tx)?.into_iter();
            let chosen: Vec<UsageRecord> =
                records.filter(|record| wanted(record) && !record.in_use && !record.in_image).collect();
            mark(tx, &chosen)
        })?;
        let rubbish = database.write(|tx| self.move_marked(tx))?;
        reconcile::remove_all(&rubbish)
    }

    /// Moves everything marked (by whomever) into the session's directory and deletes its rows.
    fn move_marked(&self, tx: &Transaction<'_>) -> Result<Vec<PathBuf>, Failure> {
        let mut moved = Vec::new();
        let mut aside = |from: PathBuf| {
            let aside = self.inner.session.fresh_path("d");
            if move_aside(&from, &aside)? {
                moved.push(aside);
            }
            Ok::<(), StoreError>(())
        };
        let mut statement = tx.prepare("DELETE FROM layer WHERE state = 1 RETURNING name")?;
        let names = statement.query_map([], |row| row.get::<_, String>(0))?;
        for name in names.collect::<rusqlite::Result<Vec<_>>>()? {
            aside(self.layer_path(&name))?;
        }
        let mut statement = tx.prepare("DELETE FROM blob WHERE state = 1 RETURNING digest")?;
        let digests = statement.query_map([], |row| row.get::<_, String>(0))?;
        for digest in digests.collect::<rusqlite::Result<Vec<_>>>()? {
            let digest = digest.parse().map_err(|_| StoreError::DamagedRecord { what: "a blob" })?;
            aside(self.blob_path(&digest))?;
        }
        Ok(moved)
    }
}

fn remove_images(tx: &Transaction<'_>, request: &PruneRequest) -> Result<Vec<Digest>, Failure> {
    let condition = match request.images {
        ImagePrune::Keep => return Ok(Vec::new()),
        ImagePrune::Dangling => {
            "id NOT IN (SELECT image FROM image_name UNION SELECT image FROM image_variant)"
        }
        ImagePrune::Elsewhere => "manifest IS NOT NULL",
        ImagePrune::All => "1",
    };
    let latest = request.cutoff().and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok());
    let latest = latest.map_or(i64::MAX, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX));
    let mut statement =
        tx.prepare(&format!("DELETE FROM image WHERE stored <= ?1 AND {condition} RETURNING id"))?;
    let ids = statement.query_map([latest], |row| row.get::<_, String>(0))?;
    let damaged = |_| Failure::Store(StoreError::DamagedRecord { what: "an image" });
    let ids: Vec<Digest> = ids.map(|id| id?.parse().map_err(damaged)).collect::<Result<_, _>>()?;
    let removed: Vec<Line> = ids.iter().map(|id| Line::Removed { image: id.to_string() }).collect();
    journal::append(tx, &removed)?;
    Ok(ids)
}

/// What goes: the least worth keeping first, a layer before the older ones it may lie on.
fn choose(
    mut records: Vec<UsageRecord>,
    request: &PruneRequest,
    mut total: u64,
    target: Option<u64>,
) -> Vec<UsageRecord> {
    let cutoff = request.cutoff();
    records.sort_by(|a, b| (request.worth(a), &b.id).cmp(&(request.worth(b), &a.id)));
    let mut chosen = Vec::new();
    for record in records {
        if target.is_some_and(|keep| total <= keep) {
            break;
        }
        let old_enough = cutoff.is_none_or(|cutoff| record.last_used <= cutoff);
        if old_enough && request.wants(&record) && !record.in_use && !record.in_image {
            total -= record.size;
            chosen.push(record);
        }
    }
    chosen
}

fn mark(tx: &Transaction<'_>, chosen: &[UsageRecord]) -> Result<(), Failure> {
    let mut layer = tx.prepare_cached("UPDATE layer SET state = 1 WHERE id = ?1")?;
    let mut blob = tx.prepare_cached("UPDATE blob SET state = 1 WHERE digest = ?1")?;
    for record in chosen {
        match &record.id {
            UsageId::Layer(id) => layer.execute([id.0])?,
            UsageId::Blob(digest) => blob.execute([digest.as_str()])?,
            UsageId::CacheMount(_) => 0,
        };
    }
    Ok(())
}
