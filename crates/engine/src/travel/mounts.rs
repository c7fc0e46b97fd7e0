//! Cache mounts that travel with a cache, and on their own (`stave cache mounts`).
//!
//! Owns which of this machine's mounts go where. Must not know their format.

use std::collections::BTreeSet;
use std::path::PathBuf;

use jiff::Timestamp;
use stave_llb::{Definition, Mount, Op};
use stave_remotecache::import::Warn;
use stave_remotecache::mounts::{MountArchive, MountEntry, MountError, MountImports, Saved};
use stave_remotecache::place::Place;
use stave_remotecache::spec::{ExportSpec, ImportSpec, MountLimits};
use stave_store::{MutableDir, Sharing, StoreError, UsageId, UsageKind};

use super::import;
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
pub(super) async fn imports(engine: &Engine, specs: &[ImportSpec], warn: Warn) -> Option<MountImports> {
    let mut places = Vec::new();
    for spec in specs.iter().filter(|spec| spec.mounts.is_some()) {
        match import::place(engine, &spec.source).await {
            Ok(place) => places.push((spec.source.to_string(), place)),
            Err(error) => warn(format!("cache mounts from {}: {error}", spec.source)),
        }
    }
    (!places.is_empty()).then(|| MountImports::new(places, warn))
}

/// Saves the mounts of a build: those that its steps used, and those that its cached steps would have.
pub(super) async fn export(
    engine: &Engine,
    (definition, used): (&Definition, &[String]),
    place: &Place,
    limits: MountLimits,
    step: &Step,
) -> Result<(), MountError> {
    let mut ids: BTreeSet<String> = used.iter().cloned().collect();
    for vertex in definition.vertices() {
        let Op::Exec(op) = &vertex.op else { continue };
        ids.extend(op.mounts.iter().filter_map(|mount| match mount {
            Mount::Cache { id, input: None, .. } => Some(id.clone()),
            _ => None,
        }));
    }
    let mut held = Vec::new();
    for id in ids {
        // A mount that another build has alone is left for that build's own export.
        match engine.store.existing_mutable_dir(&id) {
            Ok(Some(directory)) => held.push((id, directory)),
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, id, "a mount stays behind");
            }
        }
    }
    if held.is_empty() {
        return Ok(());
    }
    let saved = save(place, &held, limits.max_size).await?;
    step.part(format!("saving {} cache mounts: {}B sent of {}B", held.len(), saved.sent, saved.size));
    Ok(())
}

async fn save(
    place: &Place,
    held: &[(String, MutableDir)],
    max_size: Option<u64>,
) -> Result<Saved, MountError> {
    let mounts: Vec<(String, PathBuf)> =
        held.iter().map(|(id, directory)| (id.clone(), directory.path().to_owned())).collect();
    MountArchive::save(place, &mounts, max_size, &Timestamp::now().to_string()).await
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
        let place = import::place(self, &from.source).await.map_err(MountError::from)?;
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
        let place = import::place(self, &from.source).await.map_err(MountError::from)?;
        let archive = MountArchive::read(&place).await?;
        let known: BTreeSet<String> = archive.mounts().map(|(id, _)| id.to_owned()).collect();
        Ok(MountArchive::remove(&place, &spelled(ids, &known)).await?)
    }

    /// Saves cache mounts of this machine; all of them when no id is given.
    ///
    /// # Errors
    /// [`MountCopyError`].
    pub async fn export_mounts(&self, to: &ExportSpec, ids: &[String]) -> Result<Saved, MountCopyError> {
        let place = self.export_place(&to.target).await.map_err(MountError::from)?;
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
        let place = import::place(self, &from.source).await.map_err(MountError::from)?;
        let archive = MountArchive::read(&place).await?;
        let known: BTreeSet<String> = archive.mounts().map(|(id, _)| id.to_owned()).collect();
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
