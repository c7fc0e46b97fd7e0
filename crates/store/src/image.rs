//! The local image store: records by id, names that point to them. Start with [`LocalImage`].

use std::collections::BTreeMap;
use std::time::SystemTime;

use rusqlite::{OptionalExtension as _, Row, Transaction};
use stave_oci::{Descriptor, Digest, Platform, Reference};

use crate::database::{Failure, now, time};
use crate::image_set::{attest, attested};
use crate::journal::{self, Line};
use crate::layer::touch;
use crate::{LayerId, Snapshot, Store, StoreError};

/// One layer of a local image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageLayer {
    /// Where its files are.
    pub layer: LayerId,
    /// The digest of its uncompressed tar.
    pub diff_id: Digest,
    /// Its blob, if it came as one or was made into one.
    pub blob: Option<Descriptor>,
}

/// The manifest an image came with, byte for byte.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredManifest {
    /// Its media type.
    pub media_type: String,
    /// Its digest: what `name@sha256:…` means.
    pub digest: Digest,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// An image in the local store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalImage {
    /// The digest of the config bytes.
    pub id: Digest,
    /// The image config, byte for byte.
    pub config: Vec<u8>,
    /// Its layers, bottom first.
    pub layers: Vec<ImageLayer>,
    /// The manifest it came with; `None` for an image built here.
    pub manifest: Option<StoredManifest>,
    /// What it runs on.
    pub platform: Platform,
}

impl LocalImage {
    /// The image's file system.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot::new(self.layers.iter().map(|layer| layer.layer).collect())
    }

    /// Whether its digests are those of its documents.
    pub(crate) fn verify(&self) -> Result<(), StoreError> {
        let invalid = |problem| StoreError::InvalidImage { id: self.id.clone(), problem };
        if Digest::sha256(&self.config) != self.id {
            return Err(invalid("its id is not the digest of its config"));
        }
        if self.manifest.as_ref().is_some_and(|manifest| Digest::sha256(&manifest.bytes) != manifest.digest) {
            return Err(invalid("its manifest has another digest"));
        }
        Ok(())
    }
}

/// An image with its names, as a listing shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedImage {
    /// The names that point to it; none for a dangling image.
    pub names: Vec<Reference>,
    /// The image.
    pub image: LocalImage,
    /// When it was first stored.
    pub stored_at: SystemTime,
    /// Allocated bytes of its layers, shared ones included.
    pub size: u64,
}

/// What a damaged row of this module is called.
const RECORD: &str = "an image";

fn damaged<E>(_: E) -> Failure {
    Failure::Store(StoreError::DamagedRecord { what: RECORD })
}

impl Store {
    /// Stores an image and points `names` to it, at once or not at all. A name that pointed to
    /// another image moves; that image stays, dangling if it has no other name. Storing an id again
    /// replaces its layers; a manifest it came with earlier is kept unless a new one is given.
    pub fn put_image(&self, names: &[Reference], image: &LocalImage) -> Result<(), StoreError> {
        self.put_images(names, std::slice::from_ref(image))
    }

    /// Points another name to a stored image; `false` if there is no such image.
    pub fn tag(&self, id: &Digest, name: &Reference) -> Result<bool, StoreError> {
        self.inner.database.write(|tx| {
            let found = tx.prepare_cached("SELECT 1 FROM image WHERE id = ?1")?.exists([id.as_str()])?;
            if found {
                point(tx, name, id)?;
                // What is attested of it under no name.
                let statements = attested(tx, "", id)?;
                attest(tx, &name.canonical(), id, &statements)?;
            }
            Ok(found)
        })
    }

    /// The image a name points to. `name@sha256:…` also finds the image whose manifest has that
    /// digest under any name of that repository.
    pub fn image_by_name(&self, name: &Reference) -> Result<Option<LocalImage>, StoreError> {
        self.inner.database.read(|tx| {
            let id = match id_by_name(tx, name)? {
                Some(id) => Some(id),
                None => id_by_manifest(tx, name)?,
            };
            id.map(|id| load(tx, &id)).transpose().map(Option::flatten)
        })
    }

    /// The image with this id.
    pub fn image_by_id(&self, id: &Digest) -> Result<Option<LocalImage>, StoreError> {
        self.inner.database.read(|tx| load(tx, id.as_str()))
    }

    /// The images that came or went with this manifest, the newest first.
    pub fn images_by_manifest(&self, digest: &Digest) -> Result<Vec<LocalImage>, StoreError> {
        self.inner.database.read(|tx| {
            let query = "SELECT id FROM image WHERE manifest_digest = ?1 ORDER BY stored DESC, id";
            let mut statement = tx.prepare_cached(query)?;
            let ids = statement.query_map([digest.as_str()], |row| row.get(0))?;
            let ids: Vec<String> = ids.collect::<rusqlite::Result<_>>()?;
            let images = ids.iter().map(|id| load(tx, id));
            Ok(images.collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect())
        })
    }

    /// The image that `text` means, as docker reads it: a whole id, else a name, else the start of
    /// an id that only one image has.
    pub fn image(&self, text: &str) -> Result<Option<LocalImage>, StoreError> {
        if let Some(image) = text.parse().ok().map(|id| self.image_by_id(&id)).transpose()?.flatten() {
            return Ok(Some(image));
        }
        if let Some(image) = text.parse().ok().map(|name| self.image_by_name(&name)).transpose()?.flatten() {
            return Ok(Some(image));
        }
        let prefix = text.strip_prefix("sha256:").unwrap_or(text);
        if prefix.is_empty() || !prefix.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
            return Ok(None);
        }
        self.inner.database.read(|tx| {
            // `g` sorts right after every hex digit.
            let mut statement =
                tx.prepare_cached("SELECT id FROM image WHERE id >= ?1 AND id < ?1 || 'g'")?;
            let ids = statement.query_map([format!("sha256:{prefix}")], |row| row.get(0))?;
            let ids: Vec<String> = ids.collect::<rusqlite::Result<_>>()?;
            match ids.as_slice() {
                [] => Ok(None),
                [id] => load(tx, id),
                _ => Err(StoreError::AmbiguousId { prefix: text.to_owned(), matches: ids.len() }.into()),
            }
        })
    }

    /// The names that point to an image, sorted.
    pub fn image_names(&self, id: &Digest) -> Result<Vec<Reference>, StoreError> {
        self.inner.database.read(|tx| {
            let query = "SELECT name FROM image_name WHERE image = ?1
                         UNION SELECT name FROM image_variant WHERE image = ?1 ORDER BY name";
            let mut statement = tx.prepare_cached(query)?;
            let names = statement.query_map([id.as_str()], |row| row.get::<_, String>(0))?;
            names.map(|name| name?.parse().map_err(damaged)).collect()
        })
    }

    /// All images, the newest first.
    pub fn images(&self) -> Result<Vec<ListedImage>, StoreError> {
        self.measure_layers()?;
        self.inner.database.read(|tx| {
            let mut names: BTreeMap<String, Vec<Reference>> = BTreeMap::new();
            let query = "SELECT image, name FROM image_name
                         UNION SELECT image, name FROM image_variant ORDER BY name";
            let mut statement = tx.prepare_cached(query)?;
            let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get::<_, String>(1)?)))?;
            for row in rows {
                let (image, name) = row?;
                names.entry(image).or_default().push(name.parse().map_err(damaged)?);
            }
            let mut statement = tx.prepare_cached(
                "SELECT id, stored, (SELECT coalesce(sum(size), 0) FROM layer
                                     WHERE id IN (SELECT layer FROM image_layer WHERE image = image.id))
                 FROM image ORDER BY stored DESC, id",
            )?;
            let rows = statement.query_map([], |row| {
                Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?, row.get::<_, i64>(2)?))
            })?;
            let mut listed = Vec::new();
            for row in rows {
                let (id, stored, size) = row?;
                let image = load(tx, &id)?.ok_or(()).map_err(damaged)?;
                let names = names.remove(&id).unwrap_or_default();
                let size = u64::try_from(size).map_err(damaged)?;
                listed.push(ListedImage { names, image, stored_at: time(stored), size });
            }
            Ok(listed)
        })
    }

    /// Allocated bytes of a stored image's layers, measured if they were not yet.
    pub fn image_size(&self, id: &Digest) -> Result<u64, StoreError> {
        self.measure_layers_of(Some(id))?;
        self.inner.database.read(|tx| {
            let query = "SELECT coalesce(sum(size), 0) FROM layer
                         WHERE id IN (SELECT layer FROM image_layer WHERE image = ?1)";
            let size: i64 = tx.prepare_cached(query)?.query_row([id.as_str()], |row| row.get(0))?;
            u64::try_from(size).map_err(damaged)
        })
    }

    /// Removes a name. Returns the id it pointed to; the image stays, dangling if that was its last.
    pub fn untag(&self, name: &Reference) -> Result<Option<Digest>, StoreError> {
        self.inner.database.write(|tx| {
            let mut statement =
                tx.prepare_cached("DELETE FROM image_name WHERE name = ?1 RETURNING image")?;
            let id: Option<String> = statement.query_row([name.canonical()], |row| row.get(0)).optional()?;
            journal::append(tx, &[Line::Untagged { name: name.canonical() }])?;
            id.map(|id| id.parse().map_err(damaged)).transpose()
        })
    }

    /// Removes an image and all its names; its layers become cache. `false` if there was none.
    pub fn remove_image(&self, id: &Digest) -> Result<bool, StoreError> {
        self.inner.database.write(|tx| {
            journal::append(tx, &[Line::Removed { image: id.to_string() }])?;
            Ok(tx.prepare_cached("DELETE FROM image WHERE id = ?1")?.execute([id.as_str()])? == 1)
        })
    }
}

/// Fails unless every layer of `image` is whole; counts as a use of them.
pub(crate) fn require_layers(tx: &Transaction<'_>, image: &LocalImage) -> Result<(), Failure> {
    let layers: Vec<LayerId> = image.layers.iter().map(|layer| layer.layer).collect();
    for layer in &layers {
        let query = "SELECT 1 FROM layer WHERE id = ?1 AND state = 0";
        if !tx.prepare_cached(query)?.exists([layer.0])? {
            return Err(StoreError::LayerGone(*layer).into());
        }
    }
    touch(tx, &layers)
}

pub(crate) fn insert(tx: &Transaction<'_>, image: &LocalImage) -> Result<(), Failure> {
    let manifest = image.manifest.as_ref();
    tx.prepare_cached(
        "INSERT INTO image (id, config, platform, manifest_type, manifest_digest, manifest, stored)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
         ON CONFLICT (id) DO UPDATE SET platform = excluded.platform,
         manifest_type = coalesce(excluded.manifest_type, manifest_type),
         manifest_digest = coalesce(excluded.manifest_digest, manifest_digest),
         manifest = coalesce(excluded.manifest, manifest)",
    )?
    .execute((
        image.id.as_str(),
        &image.config,
        serde_json::to_string(&image.platform).map_err(damaged)?,
        manifest.map(|manifest| &manifest.media_type),
        manifest.map(|manifest| manifest.digest.as_str()),
        manifest.map(|manifest| &manifest.bytes),
        now(),
    ))?;
    tx.prepare_cached("DELETE FROM image_layer WHERE image = ?1")?.execute([image.id.as_str()])?;
    let mut statement = tx.prepare_cached(
        "INSERT INTO image_layer (image, position, layer, diff_id, blob, blob_digest)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
    )?;
    for (position, layer) in (0i64..).zip(&image.layers) {
        let blob = layer.blob.as_ref().map(serde_json::to_string).transpose().map_err(damaged)?;
        let digest = layer.blob.as_ref().map(|blob| blob.digest.as_str());
        let row = (image.id.as_str(), position, layer.layer.0, layer.diff_id.as_str(), blob, digest);
        statement.execute(row)?;
    }
    journal::append(tx, &[journal::image_line(tx, image.id.as_str())?])
}

/// Points a name to one image; what else hung on it is gone.
pub(crate) fn point(tx: &Transaction<'_>, name: &Reference, id: &Digest) -> Result<(), Failure> {
    for others in ["image_variant", "image_document", "image_blob", "image_attestation"] {
        let delete = format!("DELETE FROM {others} WHERE name = ?1");
        tx.prepare_cached(&delete)?.execute([name.canonical()])?;
    }
    let insert = "INSERT OR REPLACE INTO image_name (name, image) VALUES (?1, ?2)";
    tx.prepare_cached(insert)?.execute((name.canonical(), id.as_str()))?;
    journal::append(tx, &[Line::Name { name: name.canonical(), image: id.to_string() }])
}

pub(crate) fn id_by_name(tx: &Transaction<'_>, name: &Reference) -> Result<Option<String>, Failure> {
    let mut statement = tx.prepare_cached("SELECT image FROM image_name WHERE name = ?1")?;
    Ok(statement.query_row([name.canonical()], |row| row.get(0)).optional()?)
}

fn id_by_manifest(tx: &Transaction<'_>, wanted: &Reference) -> Result<Option<String>, Failure> {
    let Some(digest) = wanted.digest() else { return Ok(None) };
    let mut statement = tx.prepare_cached(
        "SELECT id, name FROM image JOIN image_name ON image = id WHERE manifest_digest = ?1 ORDER BY name",
    )?;
    let rows = statement
        .query_map([digest.as_str()], |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?)))?;
    for row in rows {
        let (id, name) = row?;
        let name: Reference = name.parse().map_err(damaged)?;
        if name.name() == wanted.name() {
            return Ok(Some(id));
        }
    }
    Ok(None)
}

pub(crate) fn load(tx: &Transaction<'_>, id: &str) -> Result<Option<LocalImage>, Failure> {
    type Columns = (Vec<u8>, String, Option<String>, Option<String>, Option<Vec<u8>>);
    let columns = |row: &Row<'_>| -> rusqlite::Result<Columns> {
        Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?))
    };
    let query = "SELECT config, platform, manifest_type, manifest_digest, manifest FROM image WHERE id = ?1";
    let found = tx.prepare_cached(query)?.query_row([id], columns).optional()?;
    let Some((config, platform, media_type, digest, bytes)) = found else { return Ok(None) };
    let manifest = match (media_type, digest, bytes) {
        (Some(media_type), Some(digest), Some(bytes)) => {
            Some(StoredManifest { media_type, digest: digest.parse().map_err(damaged)?, bytes })
        }
        _ => None,
    };
    Ok(Some(LocalImage {
        id: id.parse().map_err(damaged)?,
        config,
        layers: load_layers(tx, id)?,
        manifest,
        platform: serde_json::from_str(&platform).map_err(damaged)?,
    }))
}

fn load_layers(tx: &Transaction<'_>, id: &str) -> Result<Vec<ImageLayer>, Failure> {
    let query = "SELECT layer, diff_id, blob FROM image_layer WHERE image = ?1 ORDER BY position";
    let mut statement = tx.prepare_cached(query)?;
    let rows = statement.query_map([id], |row| {
        Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?, row.get::<_, Option<String>>(2)?))
    })?;
    let mut layers = Vec::new();
    for row in rows {
        let (layer, diff_id, blob) = row?;
        layers.push(ImageLayer {
            layer: LayerId(layer),
            diff_id: diff_id.parse().map_err(damaged)?,
            blob: blob.map(|text| serde_json::from_str(&text)).transpose().map_err(damaged)?,
        });
    }
    Ok(layers)
}
