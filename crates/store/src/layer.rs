//! Layers: prepared aside, committed by rename, looked up with a touch. Start with [`ActiveLayer`].

use std::fs;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use rusqlite::{OptionalExtension as _, Transaction};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;
use stave_oci::{Compression, Descriptor, Digest};

use crate::cap::LayerRoom;
use crate::database::{Failure, milliseconds, now, time};
use crate::fault::{reach, refused};
use crate::journal::{self, Line};
use crate::lease::Start;
use crate::removal::remove_tree;
use crate::transplant::transplant;
use crate::{LayerId, Snapshot, Store, StoreError};

/// Bytes that the smallest layer takes: asked for before it is begun.
const LEAST: u64 = 16 << 10;

/// The mode of the root of a layer that has no base to take it from.
const ROOT_MODE: u32 = 0o755;

/// A layer being made: an upper and a work directory for an overlay mount on the base's layers.
/// Removed on drop unless committed.
#[derive(Debug)]
pub struct ActiveLayer {
    store: Store,
    base: Snapshot,
    directory: PathBuf,
    upper: PathBuf,
    work: PathBuf,
    /// Whether somebody was told where the work directory is: it may hold anything since.
    work_is_known: AtomicBool,
    lowers: Vec<PathBuf>,
    description: String,
    /// When it was made, if that is known.
    made: Option<SystemTime>,
    is_committed: bool,
    /// Whether the upper directory became the layer; it does not when there is one with the same content.
    is_moved: bool,
    room: LayerRoom,
}

impl ActiveLayer {
    /// The overlay upper directory: what is written here becomes the layer.
    pub fn upper(&self) -> &Path {
        &self.upper
    }

    /// The overlay work directory, on the same file system.
    pub fn work(&self) -> &Path {
        self.work_is_known.store(true, Ordering::Relaxed);
        &self.work
    }

    /// What it is made on.
    pub fn base(&self) -> &Snapshot {
        &self.base
    }

    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    /// The base's layers, top first, as `lowerdir` takes them.
    pub fn lowers(&self) -> &[PathBuf] {
        &self.lowers
    }

    /// The room it has, to ask for more before more is written.
    pub fn room(&self) -> &LayerRoom {
        &self.room
    }

    /// The layer's base as a tree in the work directory, where no overlay can be mounted. What changes there is
    /// the layer once it is [collected](crate::FlatTree::collect) into [`upper`](Self::upper).
    ///
    /// # Errors
    /// When it cannot be copied.
    pub fn flatten(&self, taking: crate::Taking) -> Result<crate::FlatTree, StoreError> {
        self.store.flatten(&self.lowers, self.work().join("tree"), taking)
    }

    /// Sets what disk usage shows for the layer.
    #[must_use]
    pub fn described(mut self, description: &str) -> Self {
        description.clone_into(&mut self.description);
        self
    }

    /// Dates the layer; `None` for the time at which it is committed.
    pub(crate) fn made(mut self, at: Option<SystemTime>) -> Self {
        self.made = at;
        self
    }

    /// Makes the upper directory a layer on top of the base. No mount may use it any more.
    pub fn commit(mut self) -> Result<Snapshot, StoreError> {
        let layer = self.commit_layer(None)?;
        Ok(self.base.push(layer))
    }

    /// Commits, with what is already known of the layer. A layer with that diff id is used instead.
    pub(crate) fn commit_layer(&mut self, diff_id: Option<&Digest>) -> Result<LayerId, StoreError> {
        // An archive's room was asked for while it was read; what a step wrote is measured now, at the latest.
        if diff_id.is_none() && self.store.cap().is_some() {
            let size = crate::diff::allocated(&self.upper)?;
            self.room.with(|room| room.cover(size))?;
        }
        self.bring_home()?;
        let database = &self.store.inner.database;
        let mut placed = None;
        let committed = database.write(|tx| {
            // Two processes may unpack the same archive at once: the second uses the first's.
            if let Some(layer) = diff_id.map(|diff_id| by_diff_id(tx, diff_id)).transpose()?.flatten() {
                return Ok(layer);
            }
            let (name, path) = self.place()?;
            reach("layer-renamed");
            placed = Some(path);
            let used = now();
            // What comes from elsewhere was not made later than now, whatever is said of it.
            let created = self.made.map_or(used, |at| milliseconds(at).min(used));
            let id: i64 = tx
                .prepare_cached("UPDATE clock SET next_layer = next_layer + 1 RETURNING next_layer - 1")?
                .query_row([], |row| row.get(0))?;
            tx.prepare_cached(
                "INSERT INTO layer (id, name, diff_id, description, created, used, use_seq, parent)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, (SELECT use_seq FROM clock), ?7)",
            )?
            .execute((
                id,
                &name,
                diff_id.map(Digest::as_str),
                &self.description,
                created,
                used,
                self.base.top().map(|layer| layer.0),
            ))?;
            let diff_id = diff_id.map(ToString::to_string);
            let description = self.description.clone();
            journal::append(tx, &[Line::Layer { id, name, diff_id, description, created }])?;
            reach("layer-noted");
            Ok(LayerId(id))
        });
        self.is_moved = placed.is_some() && committed.is_ok();
        if let (Err(_), Some(path)) = (&committed, placed) {
            // Back into the session's directory, from where the drop removes it.
            if let Err(error) = fs::rename(&path, &self.upper) {
                tracing::warn!(path = %path.display(), %error, "left for the next sweep");
            }
        }
        self.is_committed = committed.is_ok();
        committed
    }

    /// A layer made elsewhere comes to the store's file system.
    fn bring_home(&mut self) -> Result<(), StoreError> {
        let device = |path: &Path| match fs::metadata(path) {
            Ok(found) => Ok(found.dev()),
            Err(error) => Err(StoreError::io("read", path, error)),
        };
        if device(&self.upper)? == device(&self.store.inner.root.join("l"))? {
            return Ok(());
        }
        let home = self.store.inner.session.fresh_path("t");
        transplant(&self.upper, &home)?;
        self.upper = home;
        Ok(())
    }

    /// Renames the upper directory to a free name under `l/`.
    fn place(&self) -> Result<(String, PathBuf), StoreError> {
        loop {
            let name = self.store.inner.session.fresh_name();
            let path = self.store.layer_path(&name);
            refused("layer-rename")
                .map_err(|error: std::io::Error| StoreError::io("rename", &self.upper, error))?;
            match renameat_with(CWD, &self.upper, CWD, &path, RenameFlags::NOREPLACE) {
                Ok(()) => return Ok((name, path)),
                // An earlier session drew the same name.
                Err(Errno::EXIST) => {}
                Err(error) => return Err(StoreError::io("rename", &self.upper, error)),
            }
        }
    }
}

impl Drop for ActiveLayer {
    fn drop(&mut self) {
        if self.is_committed {
            let inner = &self.store.inner;
            let is_as_made =
                self.is_moved && !*self.work_is_known.get_mut() && inner.session.holds(&self.directory);
            if is_as_made && inner.reaper.keep(&self.directory) {
                return;
            }
            // What is left is mostly empty directories, and each removal may wait for the disk.
            return inner.reaper.remove(&self.directory);
        }
        if let Err(error) = remove_tree(&self.directory) {
            tracing::warn!(path = %self.directory.display(), %error, "left for the end of the session");
        }
    }
}

/// Where a layer is made.
enum Place {
    /// Nothing is there yet.
    New(PathBuf),
    /// An earlier layer was made there: its work directory is, and empty.
    Kept(PathBuf),
}

/// What a use of a layer finds.
struct Found {
    name: String,
    stamp: Start,
}

fn find(tx: &Transaction<'_>, layer: LayerId) -> Result<Option<Found>, Failure> {
    let mut statement = tx.prepare_cached("SELECT name, use_seq FROM layer WHERE id = ?1 AND state = 0")?;
    let found = |row: &rusqlite::Row<'_>| Ok(Found { name: row.get(0)?, stamp: row.get(1)? });
    Ok(statement.query_row([layer.0], found).optional()?)
}

/// The layer with a diff id, used.
fn by_diff_id(tx: &Transaction<'_>, diff_id: &Digest) -> Result<Option<LayerId>, Failure> {
    let query = "SELECT id FROM layer WHERE diff_id = ?1 AND state = 0 ORDER BY id LIMIT 1";
    let found = tx.prepare_cached(query)?.query_row([diff_id.as_str()], |row| row.get(0)).optional()?;
    let layer = found.map(LayerId);
    touch(tx, layer.as_slice())?;
    Ok(layer)
}

/// Stamps layers as used now.
pub(crate) fn touch(tx: &Transaction<'_>, layers: &[LayerId]) -> Result<(), Failure> {
    let mut statement =
        tx.prepare_cached("UPDATE layer SET used = ?2, use_seq = (SELECT use_seq FROM clock) WHERE id = ?1")?;
    let now = now();
    for layer in layers {
        statement.execute((layer.0, now))?;
    }
    Ok(())
}

impl Store {
    /// The names of the layers, used: stamped in the transaction that found them, unless a lease of
    /// ours already keeps each. `Err(layer)` for the first that is gone.
    fn use_layers(&self, layers: &[LayerId]) -> Result<Result<Vec<String>, LayerId>, StoreError> {
        let database = &self.inner.database;
        let lease = self.newest_lease();
        if lease.is_some() {
            let found = database.read(|tx| collect(tx, layers))?;
            match found {
                Ok(found) if found.iter().any(|found| Some(found.stamp) < lease) => {}
                Ok(found) => return Ok(Ok(found.into_iter().map(|found| found.name).collect())),
                Err(gone) => return Ok(Err(gone)),
            }
        }
        database.write(|tx| {
            let found = collect(tx, layers)?;
            if found.is_ok() {
                touch(tx, layers)?;
            }
            Ok(found.map(|found| found.into_iter().map(|found| found.name).collect()))
        })
    }

    /// Begins a layer on `base`; fails with [`StoreError::LayerGone`] if that is no longer whole.
    pub fn prepare(&self, base: &Snapshot) -> Result<ActiveLayer, StoreError> {
        let lowers = self.layer_paths(base)?;
        match self.inner.reaper.kept() {
            Some(directory) => self.prepare_at(base, lowers, Place::Kept(directory)),
            None => self.prepare_at(base, lowers, Place::New(self.inner.session.fresh_path("a"))),
        }
    }

    /// [`Self::prepare`], with the layer made below `memory`, a directory on another file system. It comes to the
    /// store when it is committed.
    pub fn prepare_in(&self, base: &Snapshot, memory: &Path) -> Result<ActiveLayer, StoreError> {
        let lowers = self.layer_paths(base)?;
        self.prepare_at(base, lowers, Place::New(memory.join(self.inner.session.fresh_name())))
    }

    fn prepare_at(
        &self,
        base: &Snapshot,
        lowers: Vec<PathBuf>,
        place: Place,
    ) -> Result<ActiveLayer, StoreError> {
        let (Place::New(directory) | Place::Kept(directory)) = &place;
        let (upper, work) = (directory.join("u"), directory.join("w"));
        let directory = directory.clone();
        let active = ActiveLayer {
            store: self.clone(),
            base: base.clone(),
            directory,
            upper,
            work,
            work_is_known: AtomicBool::new(false),
            lowers,
            description: String::new(),
            made: None,
            is_committed: false,
            is_moved: false,
            room: LayerRoom::new(self),
        };
        // Nothing begins in a store that is full, nor fails while others fill it for a moment.
        active.room.with(|room| room.begin(LEAST))?;
        let missing = match place {
            Place::New(_) => vec![&active.directory, &active.upper, &active.work],
            Place::Kept(_) => vec![&active.upper],
        };
        for path in missing {
            let made = refused("layer-prepare").and_then(|()| fs::DirBuilder::new().mode(0o700).create(path));
            made.map_err(|error| StoreError::io("create", path, error))?;
        }
        set_root(&active.upper, active.lowers.first().map(PathBuf::as_path))?;
        Ok(active)
    }

    /// What a layer came from, in words; empty when nobody said.
    pub fn layer_description(&self, layer: LayerId) -> Result<String, StoreError> {
        self.inner.database.read(|connection| {
            let mut statement = connection.prepare_cached("SELECT description FROM layer WHERE id = ?1")?;
            let found = statement.query_row([layer.0], |row| row.get(0)).optional()?;
            Ok(found.unwrap_or_default())
        })
    }

    /// The layer directories, top first, as `lowerdir` takes them: each once, since overlay refuses a layer twice, in
    /// its highest place, since what it holds hides the same below. Counts as a use.
    pub fn layer_paths(&self, snapshot: &Snapshot) -> Result<Vec<PathBuf>, StoreError> {
        if snapshot.is_scratch() {
            return Ok(Vec::new());
        }
        let names = self.use_layers(snapshot.layers())?.map_err(StoreError::LayerGone)?;
        let mut seen = std::collections::HashSet::with_capacity(names.len());
        let top_first = names.iter().rev().filter(|name| seen.insert(name.as_str()));
        Ok(top_first.map(|name| self.layer_path(name)).collect())
    }

    /// All layers there are. No use of them.
    pub fn layer_ids(&self) -> Result<std::collections::BTreeSet<LayerId>, StoreError> {
        self.inner.database.read(|tx| {
            let mut statement = tx.prepare_cached("SELECT id FROM layer WHERE state = 0")?;
            let ids = statement.query_map([], |row| row.get(0).map(LayerId))?;
            Ok(ids.collect::<rusqlite::Result<_>>()?)
        })
    }

    /// Whether every layer is there. Counts as a use: after `true` a live lease keeps them.
    pub fn exists(&self, snapshot: &Snapshot) -> Result<bool, StoreError> {
        Ok(snapshot.is_scratch() || self.use_layers(snapshot.layers())?.is_ok())
    }

    /// When a layer was made, here or where it came from.
    pub fn layer_created(&self, layer: LayerId) -> Result<Option<SystemTime>, StoreError> {
        self.inner.database.read(|tx| {
            let query = "SELECT created FROM layer WHERE id = ?1 AND state = 0";
            let found: Option<i64> =
                tx.prepare_cached(query)?.query_row([layer.0], |row| row.get(0)).optional()?;
            Ok(found.map(time))
        })
    }

    /// The layer whose uncompressed tar has this digest. Counts as a use.
    pub fn layer_by_diff_id(&self, diff_id: &Digest) -> Result<Option<LayerId>, StoreError> {
        if let Some(lease) = self.newest_lease() {
            let query = "SELECT id, use_seq FROM layer WHERE diff_id = ?1 AND state = 0 ORDER BY id LIMIT 1";
            let found: Option<(i64, Start)> = self.inner.database.read(|tx| {
                let mut statement = tx.prepare_cached(query)?;
                let columns = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?));
                Ok(statement.query_row([diff_id.as_str()], columns).optional()?)
            })?;
            match found {
                None => return Ok(None),
                Some((layer, stamp)) if stamp >= lease => return Ok(Some(LayerId(layer))),
                Some(_) => {}
            }
        }
        self.inner.database.write(|tx| by_diff_id(tx, diff_id))
    }

    /// The digest of the layer's tar (as [`Store::write_layer_tar`] writes it by default, or as it
    /// was unpacked from); computed once, then remembered.
    pub fn diff_id(&self, layer: LayerId) -> Result<Digest, StoreError> {
        self.tar_diff_id(crate::LayerTar::plain(layer))
    }

    /// [`Self::diff_id`], if it need not be computed.
    pub fn known_diff_id(&self, layer: LayerId) -> Result<Option<Digest>, StoreError> {
        let stored = self.inner.database.read(|tx| {
            let mut statement = tx.prepare_cached("SELECT diff_id FROM layer WHERE id = ?1 AND state = 0")?;
            Ok(statement.query_row([layer.0], |row| row.get::<_, Option<String>>(0)).optional()?)
        })?;
        let damaged = |_| StoreError::DamagedRecord { what: "a layer" };
        let text = stored.ok_or(StoreError::LayerGone(layer))?;
        text.map(|text| text.parse().map_err(damaged)).transpose()
    }

    /// Remembers the digest of what [`Store::write_layer_tar`] wrote with the default options, for a
    /// caller that hashed it while compressing. A digest already known stays.
    pub fn set_diff_id(&self, layer: LayerId, digest: &Digest) -> Result<(), StoreError> {
        self.inner.database.write(|tx| {
            let update = "UPDATE layer SET diff_id = ?2 WHERE id = ?1 AND diff_id IS NULL";
            if tx.prepare_cached(update)?.execute((layer.0, digest.as_str()))? == 1 {
                journal::append(tx, &[Line::DiffId { layer: layer.0, diff_id: digest.to_string() }])?;
            }
            Ok(())
        })
    }

    /// The blob this layer is known to compress to. The blob itself may be gone
    /// ([`Store::has_blob`]).
    pub fn compressed(
        &self,
        layer: LayerId,
        compression: Compression,
    ) -> Result<Option<Descriptor>, StoreError> {
        let stored: Option<String> = self.inner.database.read(|tx| {
            let query = "SELECT descriptor FROM compressed WHERE layer = ?1 AND compression = ?2";
            let mut statement = tx.prepare_cached(query)?;
            Ok(statement.query_row((layer.0, compression.name()), |row| row.get(0)).optional()?)
        })?;
        let damaged = |_| StoreError::DamagedRecord { what: "a compressed layer" };
        stored.map(|text| serde_json::from_str(&text).map_err(damaged)).transpose()
    }

    /// Remembers which blob this layer compresses to.
    pub fn set_compressed(
        &self,
        layer: LayerId,
        compression: Compression,
        blob: &Descriptor,
    ) -> Result<(), StoreError> {
        let text = serde_json::to_string(blob)
            .map_err(|_| StoreError::DamagedRecord { what: "a compressed layer" })?;
        let stored = self.inner.database.write(|tx| {
            if find(tx, layer)?.is_none() {
                return Ok(false);
            }
            let insert =
                "INSERT OR REPLACE INTO compressed (layer, compression, descriptor) VALUES (?1, ?2, ?3)";
            tx.prepare_cached(insert)?.execute((layer.0, compression.name(), text))?;
            Ok(true)
        })?;
        if stored { Ok(()) } else { Err(StoreError::LayerGone(layer)) }
    }
}

fn collect(tx: &Transaction<'_>, layers: &[LayerId]) -> Result<Result<Vec<Found>, LayerId>, Failure> {
    let mut all = Vec::with_capacity(layers.len());
    for layer in layers {
        match find(tx, *layer)? {
            Some(found) => all.push(found),
            None => return Ok(Err(*layer)),
        }
    }
    Ok(Ok(all))
}

/// An overlay takes its root's owner and mode from the upper directory: give it the base's.
fn set_root(upper: &Path, base: Option<&Path>) -> Result<(), StoreError> {
    let base = base.map(|base| fs::metadata(base).map_err(|error| StoreError::io("read", base, error)));
    let base = base.transpose()?;
    if let Some(base) = base.as_ref().filter(|base| (base.uid(), base.gid()) != (0, 0)) {
        refused("layer-owner")
            .and_then(|()| chown(upper, Some(base.uid()), Some(base.gid())))
            .map_err(|error| StoreError::io("change the owner of", upper, error))?;
    }
    let mode = base.map_or(ROOT_MODE, |base| base.mode() & 0o7777);
    refused("layer-mode")
        .and_then(|()| fs::set_permissions(upper, fs::Permissions::from_mode(mode)))
        .map_err(|error| StoreError::io("change the mode of", upper, error))
}
