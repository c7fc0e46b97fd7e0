//! Names that stand for several images, one a platform, and what is attested of images.
//!
//! The first image of a name is the one a listing and `run` mean; the others hang on the name and go
//! with it. Must not know manifests or indexes: those are made when the images leave.

use rusqlite::Transaction;
use stave_oci::{Digest, Platform, Reference};

use crate::database::Failure;
use crate::image::{insert, load, point, require_layers};
use crate::{LocalImage, Store, StoreError};

/// All images of a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedImages {
    /// The one the name alone means.
    pub first: LocalImage,
    /// Those for other platforms, in the order they were stored.
    pub others: Vec<LocalImage>,
}

impl NamedImages {
    /// The image for `platform`, if there is one.
    pub fn of(&self, platform: &Platform) -> Option<&LocalImage> {
        self.all().find(|image| image.platform.matches(platform))
    }

    /// All of them, the first first.
    pub fn all(&self) -> impl Iterator<Item = &LocalImage> {
        std::iter::once(&self.first).chain(&self.others)
    }
}

/// Something attested of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredAttestation {
    /// The URI that says what the predicate is.
    pub predicate_type: String,
    /// The predicate, JSON.
    pub predicate: Vec<u8>,
}

fn damaged<E>(_: E) -> Failure {
    Failure::Store(StoreError::DamagedRecord { what: "an image" })
}

impl Store {
    /// Stores images of one build for several platforms and points `names` to all of them, at once or
    /// not at all. The names alone mean the first. Nothing happens when there is none.
    pub fn put_images(&self, names: &[Reference], images: &[LocalImage]) -> Result<(), StoreError> {
        let Some((first, others)) = images.split_first() else { return Ok(()) };
        images.iter().try_for_each(LocalImage::verify)?;
        self.inner.database.write(|tx| {
            for image in images {
                require_layers(tx, image)?;
                insert(tx, image)?;
            }
            names.iter().try_for_each(|name| {
                point(tx, name, &first.id)?;
                let mut statement = tx.prepare_cached(
                    "INSERT INTO image_variant (name, position, image) VALUES (?1, ?2, ?3)",
                )?;
                for (position, other) in (0i64..).zip(others) {
                    statement.execute((name.canonical(), position, other.id.as_str()))?;
                }
                Ok(())
            })
        })
    }

    /// All images of a name.
    pub fn images_by_name(&self, name: &Reference) -> Result<Option<NamedImages>, StoreError> {
        let Some(first) = self.image_by_name(name)? else { return Ok(None) };
        let others = self.inner.database.read(|tx| variants(tx, name))?;
        Ok(Some(NamedImages { first, others }))
    }

    /// What is attested of an image.
    pub fn attestations(&self, image: &Digest) -> Result<Vec<StoredAttestation>, StoreError> {
        self.inner.database.read(|tx| {
            let query = "SELECT predicate_type, predicate FROM image_attestation
                         WHERE image = ?1 ORDER BY position";
            let mut statement = tx.prepare_cached(query)?;
            let rows = statement.query_map([image.as_str()], |row| {
                Ok(StoredAttestation { predicate_type: row.get(0)?, predicate: row.get(1)? })
            })?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        })
    }

    /// Replaces what is attested of a stored image.
    pub fn set_attestations(&self, image: &Digest, all: &[StoredAttestation]) -> Result<(), StoreError> {
        self.inner.database.write(|tx| {
            let delete = "DELETE FROM image_attestation WHERE image = ?1";
            tx.prepare_cached(delete)?.execute([image.as_str()])?;
            let mut statement = tx.prepare_cached(
                "INSERT INTO image_attestation (image, position, predicate_type, predicate)
                 SELECT id, ?2, ?3, ?4 FROM image WHERE id = ?1",
            )?;
            for (position, one) in (0i64..).zip(all) {
                statement.execute((image.as_str(), position, &one.predicate_type, &one.predicate))?;
            }
            Ok(())
        })
    }
}

fn variants(tx: &Transaction<'_>, name: &Reference) -> Result<Vec<LocalImage>, Failure> {
    let query = "SELECT image FROM image_variant WHERE name = ?1 ORDER BY position";
    let mut statement = tx.prepare_cached(query)?;
    let ids = statement.query_map([name.canonical()], |row| row.get::<_, String>(0))?;
    ids.map(|id| load(tx, &id?)?.ok_or(()).map_err(damaged)).collect()
}
