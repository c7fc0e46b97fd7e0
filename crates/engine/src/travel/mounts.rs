//! Cache mounts that travel with a cache, and on their own (`stave cache mounts`).
//!
//! Owns which of this machine's mounts go where. Must not know their format.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;
use stave_llb::{Definition, Mount, Op};
use stave_oci::Digest;
use stave_remotecache::import::Warn;
use stave_remotecache::mounts::{MountArchive, MountEntry, MountError, MountImports, Saved, Saving};
use stave_remotecache::place::Place;
use stave_remotecache::spec::{ExportSpec, ImportSpec, MountLimits};
use stave_store::{MutableDir, Sharing, Store, StoreError, UsageId, UsageKind};
use stave_worker::is_cache_mount_id;

use super::{Caches, import};
use crate::Engine;
use crate::event::Step;

/// Why cache mounts could not be copied.
#[derive(Debug, thiserror::Error)]
pub enum MountCopyError {
    /// The archive or its place.
    #[error(transparent)]
    Archive(#[from] MountError),
    /// The local store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// An image has no room for mounts.
    #[error("cache mounts cannot go into an image: use `type=registry`, `local` or `s3`")]
    Inline,
    /// A place without any.
    #[error("no cache mounts in {0}")]
    None(String),
    /// A mount that is not there.
    #[error("no cache mount `{0}`")]
    Unknown(String),
    /// A mount that a step uses alone.
    #[error("cache mount `{0}` is in use")]
    Busy(String),
}

/// One cache mount of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalMount {
    /// What steps call it.
    pub id: String,
    /// Bytes on disk.
    pub size: u64,
    /// When a step last used it, seconds since 1970.
    pub last_used: i64,
}

/// The archives that belong to caches which bring mounts.
pub(super) async fn imports(engine: &Engine, caches: &Caches, warn: Warn) -> Option<MountImports> {
    let mut places = Vec::new();
    for spec in caches.from.iter().filter(|spec| spec.mounts.is_some()) {
        match import::place(engine, &spec.source, caches.owner.as_ref()).await {
            Ok(place) => places.push((spec.source.to_string(), place)),
            Err(error) => warn(format!("cache mounts from {}: {error}", spec.source)),
        }
    }
    (!places.is_empty()).then(|| MountImports::new(places, warn))
}

/// The mounts of a build on their way to one place: each leaves when the last step that uses it has ended.
#[derive(Debug)]
pub(super) struct Departing {
    store: Store,
    place: Place,
    limits: MountLimits,
    /// How many steps of the definition will still use each mount.
    users: Mutex<HashMap<String, usize>>,
    /// The mounts of each step.
    of: HashMap<Digest, Vec<String>>,
    saving: tokio::sync::Mutex<Option<Saving>>,
}

impl Departing {
    pub(super) fn new(store: &Store, place: &Place, limits: MountLimits, definition: &Definition) -> Self {
        let (mut users, mut of) = (HashMap::new(), HashMap::new());
        for vertex in definition.vertices() {
            let ids = ids(&vertex.op);
            for id in &ids {
                *users.entry(id.clone()).or_default() += 1;
            }
            if !ids.is_empty() {
                of.insert(vertex.digest.clone(), ids);
            }
        }
        let (store, place) = (store.clone(), place.clone());
        Self { store, place, limits, users: Mutex::new(users), of, saving: tokio::sync::Mutex::default() }
    }

    /// A step has ended; the mounts that no later one uses.
    pub(super) fn ended(&self, vertex: &Digest) -> Vec<String> {
        let Some(ids) = self.of.get(vertex) else { return Vec::new() };
        let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        let is_last = |id: &&String| {
            users.get_mut(id.as_str()).is_some_and(|left| {
                *left = left.saturating_sub(1);
                *left == 0
            })
        };
        ids.iter().filter(is_last).cloned().collect()
    }

    /// Sends what is new of these mounts.
    pub(super) async fn take(&self, ids: impl IntoIterator<Item = String>) -> Result<usize, MountError> {
        let mut saving = self.saving.lock().await;
        let mut count = 0;
        for id in ids {
            // A mount that another build has alone is left for that build's own export.
            let directory = match self.store.existing_mutable_dir(&id) {
                Ok(Some(directory)) => directory,
                Ok(None) => continue,
                Err(error) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, id, "a mount stays behind");
                    continue;
                }
            };
            let mut now = match saving.take() {
                Some(saving) => saving,
                None => Saving::begin(&self.place, self.limits.max_size).await?,
            };
            // What failed is begun anew by the next one.
            now.take(&id, directory.path()).await?;
            *saving = Some(now);
            count += 1;
        }
        Ok(count)
    }

    /// Saves the mounts of a build that has succeeded: those that its steps used, and those that its cached steps
    /// would have.
    pub(super) async fn finish(&self, used: &[String], step: &Step) -> Result<(), MountError> {
        let mut ids: BTreeSet<String> = used.iter().cloned().collect();
        ids.extend(self.of.values().flatten().cloned());
        let count = self.take(ids).await?;
        let Some(saving) = self.saving.lock().await.take() else { return Ok(()) };
        let saved = saving.finish(&Timestamp::now().to_string()).await?;
        step.part(format!("saving {count} cache mounts: {}B sent of {}B", saved.sent, saved.size));
        Ok(())
    }
}

/// The mounts of an op that have one name for all builds; one with a seed has the seed's content in its name.
fn ids(op: &Op) -> Vec<String> {
    let Op::Exec(op) = op else { return Vec::new() };
    let id = |mount: &Mount| match mount {
        Mount::Cache { id, input: None, .. } if is_cache_mount_id(id) => Some(id.clone()),
        _ => None,
    };
    let ids: BTreeSet<String> = op.mounts.iter().filter_map(id).collect();
    ids.into_iter().collect()
}

async fn save(
    place: &Place,
    held: &[(String, MutableDir)],
    max_size: Option<u64>,
) -> Result<Saved, MountError> {
    let mut saving = Saving::begin(place, max_size).await?;
    for (id, directory) in held {
        saving.take(id, directory.path()).await?;
    }
    saving.finish(&Timestamp::now().to_string()).await
}

/// Ids as the store has them: a Dockerfile's `id=deps` is `/deps` there, after the empty cache namespace.
fn spelled(ids: &[String], known: &BTreeSet<String>) -> Vec<String> {
    let one = |id: &String| {
        let spelled = format!("/{id}");
        if !known.contains(id) && known.contains(&spelled) { spelled } else { id.clone() }
    };
    ids.iter().map(one).collect()
}

impl Engine {
    /// The cache mounts of this machine.
    ///
    /// # Errors
    /// When the store fails.
    pub fn cache_mounts(&self) -> Result<Vec<LocalMount>, MountCopyError> {
        let usage = self.store.disk_usage()?;
        let mounts = usage.records.into_iter().filter(|record| record.id.kind() == UsageKind::CacheMount);
        let seconds = |at: std::time::SystemTime| {
            let since = at.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
            i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
        };
        let mut found: Vec<LocalMount> = mounts
            .filter(|record| stave_worker::is_cache_mount(&record.description))
            .map(|record| LocalMount {
                id: record.description,
                size: record.size,
                last_used: seconds(record.last_used),
            })
            .collect();
        found.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(found)
    }

    /// Removes cache mounts of this machine; the ids that were there and not in use.
    ///
    /// # Errors
    /// When the store fails.
    pub fn remove_mounts(&self, ids: &[String]) -> Result<Vec<String>, MountCopyError> {
        let known: BTreeSet<String> = self.cache_mounts()?.into_iter().map(|mount| mount.id).collect();
        let ids = spelled(ids, &known);
        let mut removed = Vec::new();
        for record in self.store.disk_usage()?.records {
            let UsageId::CacheMount(name) = &record.id else { continue };
            if ids.contains(&record.description) && self.store.remove_cache_mount(name)? {
                removed.push(record.description);
            }
        }
        removed.dedup();
        Ok(removed)
    }

    /// The mounts of an archive.
    ///
    /// # Errors
    /// [`MountCopyError`].
    pub async fn archived_mounts(
        &self,
        from: &ImportSpec,
    ) -> Result<Vec<(String, MountEntry)>, MountCopyError> {
        let place = import::place(self, &from.source, None).await.map_err(MountError::from)?;
        let archive = MountArchive::read(&place).await?;
        Ok(archive.mounts().map(|(id, entry)| (id.to_owned(), entry.clone())).collect())
    }

    /// Takes mounts out of an archive; the ids that were there.
    ///
    /// # Errors
    /// [`MountCopyError`].
    pub async fn remove_archived_mounts(
        &self,
        from: &ImportSpec,
        ids: &[String],
    ) -> Result<Vec<String>, MountCopyError> {
        let place = import::place(self, &from.source, None).await.map_err(MountError::from)?;
        let archive = MountArchive::read(&place).await?;
        let known: BTreeSet<String> = archive.mounts().map(|(id, _)| id.to_owned()).collect();
        Ok(MountArchive::remove(&place, &spelled(ids, &known)).await?)
    }

    /// Saves cache mounts of this machine; all of them when no id is given.
    ///
    /// # Errors
    /// [`MountCopyError`].
    pub async fn export_mounts(&self, to: &ExportSpec, ids: &[String]) -> Result<Saved, MountCopyError> {
        let place = self.export_place(&to.target, None).await.map_err(MountError::from)?;
        let place = place.ok_or(MountCopyError::Inline)?;
        let all: BTreeSet<String> = self.cache_mounts()?.into_iter().map(|mount| mount.id).collect();
        let ids = spelled(ids, &all);
        let wanted: BTreeSet<String> = if ids.is_empty() { all } else { ids.iter().cloned().collect() };
        let mut held = Vec::new();
        for id in wanted {
            match self.store.existing_mutable_dir(&id)? {
                Some(directory) => held.push((id, directory)),
                None if ids.contains(&id) => return Err(MountCopyError::Unknown(id)),
                None => {}
            }
        }
        let max_size = to.mounts.and_then(|limits| limits.max_size);
        Ok(save(&place, &held, max_size).await?)
    }

    /// Restores cache mounts that this machine does not have yet; all of the archive's when no id is given. The ids
    /// restored.
    ///
    /// # Errors
    /// [`MountCopyError`].
    pub async fn import_mounts(
        &self,
        from: &ImportSpec,
        ids: &[String],
    ) -> Result<Vec<String>, MountCopyError> {
        let place = import::place(self, &from.source, None).await.map_err(MountError::from)?;
        let archive = MountArchive::read(&place).await?;
        let known = archive.mounts().map(|(id, _)| id.to_owned()).filter(|id| is_cache_mount_id(id));
        let known: BTreeSet<String> = known.collect();
        if known.is_empty() {
            return Err(MountCopyError::None(from.source.to_string()));
        }
        let ids = spelled(ids, &known);
        if let Some(unknown) = ids.iter().find(|id| !known.contains(*id)) {
            return Err(MountCopyError::Unknown(unknown.clone()));
        }
        let wanted = if ids.is_empty() { known } else { ids.iter().cloned().collect() };
        let mut restored = Vec::new();
        for id in wanted {
            let directory = self.store.try_mutable_dir(&id, Sharing::Shared)?;
            let directory = directory.ok_or_else(|| MountCopyError::Busy(id.clone()))?;
            if directory.is_fresh() && archive.restore(&place, &id, directory.path()).await? {
                directory.initialised()?;
                restored.push(id);
            }
        }
        Ok(restored)
    }
}
