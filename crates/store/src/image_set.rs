//! Names that stand for several images, one a platform, the index such a name came with, and what is attested of
//! images under their names.
//!
//! The first image of a name is the one a listing and `run` mean; the others and the index hang on the name and go
//! with it. Must not know what documents say: those of images built here are made when they leave.

use rusqlite::{OptionalExtension as _, Transaction};
use stave_oci::{Descriptor, Digest, Hasher, Platform, Reference};

use crate::database::Failure;
use crate::image::{id_by_name, insert, load, point, require_layers};
use crate::journal;
use crate::lease::Start;
use crate::{LocalImage, Store, StoreError, StoredManifest};

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

/// What a name stood for where it came from: an index and all it leads to, byte for byte. Its blobs stay in the store
/// as long as the name does; of images that are here, the store has the configs as theirs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StoredIndex {
    /// Its manifests and the indexes in it, each before those that name it: the name's own index is the last.
    pub documents: Vec<StoredManifest>,
    /// The blobs that its manifests name, each once.
    pub blobs: Vec<Descriptor>,
}

impl StoredIndex {
    /// The name's own index.
    pub fn top(&self) -> Option<&StoredManifest> {
        self.documents.last()
    }

    fn verify(&self) -> Result<(), StoreError> {
        self.documents.iter().try_for_each(|document| {
            let mut hasher = Hasher::new(document.digest.algorithm());
            hasher.update(&document.bytes);
            let (expected, found) = (document.digest.clone(), hasher.finish());
            if found == expected { Ok(()) } else { Err(StoreError::DigestMismatch { expected, found }) }
        })
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

/// What hangs on names beside their images.
#[derive(Debug, Clone, Copy, Default)]
struct Hanging<'a> {
    index: Option<&'a StoredIndex>,
    /// `None` if that is not told: what is known of images that stay under a name stays.
    attested: Option<&'a [Attested]>,
}

/// What is attested of an image.
type Attested = (Digest, Vec<StoredAttestation>);

impl Hanging<'_> {
    /// What shall be attested of an image of which `known` is.
    fn of(&self, image: &LocalImage, known: Vec<StoredAttestation>) -> Vec<StoredAttestation> {
        let Some(attested) = self.attested else { return known };
        attested.iter().find(|(id, _)| *id == image.id).map(|(_, all)| all.clone()).unwrap_or_default()
    }
}

fn damaged<E>(_: E) -> Failure {
    Failure::Store(StoreError::DamagedRecord { what: "an image" })
}

impl Store {
    /// Stores images of one build for several platforms and points `names` to all of them, at once or
    /// not at all. The names alone mean the first. Nothing happens when there is none.
    pub fn put_images(&self, names: &[Reference], images: &[LocalImage]) -> Result<(), StoreError> {
        self.put(names, images, Hanging::default())
    }

    /// The same, with the index that the images came in.
    pub fn put_indexed(
        &self,
        names: &[Reference],
        images: &[LocalImage],
        index: Option<&StoredIndex>,
    ) -> Result<(), StoreError> {
        // The statements of an index are in it.
        self.put(names, images, Hanging { index, attested: index.map(|_| &[][..]) })
    }

    /// The same, with what is attested of them under these names; without a name, of them as such.
    pub fn put_attested(
        &self,
        names: &[Reference],
        images: &[LocalImage],
        attested: &[(Digest, Vec<StoredAttestation>)],
    ) -> Result<(), StoreError> {
        self.put(names, images, Hanging { index: None, attested: Some(attested) })
    }

    fn put(
        &self,
        names: &[Reference],
        images: &[LocalImage],
        hanging: Hanging<'_>,
    ) -> Result<(), StoreError> {
        if images.is_empty() {
            return Ok(());
        }
        images.iter().try_for_each(LocalImage::verify)?;
        hanging.index.map_or(Ok(()), StoredIndex::verify)?;
        // A build of what is there already writes nothing: each write may wait for a busy disk. That its layers were
        // used since is noted already, if a lease of ours keeps them.
        if let Some(lease) = self.newest_lease()
            && self.inner.database.read(|tx| is_put(tx, lease, names, (images, hanging)))?
        {
            return Ok(());
        }
        self.inner.database.write(|tx| {
            for image in images {
                require_layers(tx, image)?;
                insert(tx, image)?;
            }
            names.iter().try_for_each(|name| put_name(tx, name, images, hanging))?;
            if names.is_empty() {
                for image in images {
                    attest(tx, "", &image.id, &hanging.of(image, attested(tx, "", &image.id)?))?;
                }
            }
            Ok(())
        })
    }

    /// The index that a name came with, if all its images came together.
    pub fn index_by_name(&self, name: &Reference) -> Result<Option<StoredIndex>, StoreError> {
        let found = self.inner.database.read(|tx| load_index(tx, name))?;
        Ok(Some(found).filter(|index| !index.documents.is_empty()))
    }

    /// All images of a name.
    pub fn images_by_name(&self, name: &Reference) -> Result<Option<NamedImages>, StoreError> {
        let Some(first) = self.image_by_name(name)? else { return Ok(None) };
        let others = self.inner.database.read(|tx| variants(tx, name))?;
        Ok(Some(NamedImages { first, others }))
    }

    /// What is attested of an image under a name, or of one that was stored under none.
    pub fn attestations(
        &self,
        name: Option<&Reference>,
        image: &Digest,
    ) -> Result<Vec<StoredAttestation>, StoreError> {
        let name = name.map(Reference::canonical).unwrap_or_default();
        self.inner.database.read(|tx| attested(tx, &name, image))
    }
}

/// Points a name to images, with what hangs on it.
fn put_name(
    tx: &Transaction<'_>,
    name: &Reference,
    images: &[LocalImage],
    hanging: Hanging<'_>,
) -> Result<(), Failure> {
    let Some((first, others)) = images.split_first() else { return Ok(()) };
    let called = name.canonical();
    let known = images.iter().map(|image| Ok(hanging.of(image, attested(tx, &called, &image.id)?)));
    let known = known.collect::<Result<Vec<_>, Failure>>()?;
    point(tx, name, &first.id)?;
    let mut statement =
        tx.prepare_cached("INSERT INTO image_variant (name, position, image) VALUES (?1, ?2, ?3)")?;
    for (position, other) in (0i64..).zip(others) {
        statement.execute((&called, position, other.id.as_str()))?;
    }
    hanging.index.map_or(Ok(()), |index| insert_index(tx, name, index))?;
    for (image, all) in images.iter().zip(&known) {
        attest(tx, &called, &image.id, all)?;
    }
    match journal::hanging(tx, &called)? {
        none if none.is_empty() => Ok(()),
        lines => journal::append(tx, &lines),
    }
}

/// Whether names and images are stored as [`Store::put_indexed`] would store them, and the layers are used under
/// `lease`.
fn is_put(
    tx: &Transaction<'_>,
    lease: Start,
    names: &[Reference],
    (images, hanging): (&[LocalImage], Hanging<'_>),
) -> Result<bool, Failure> {
    let mut stamp = tx.prepare_cached("SELECT use_seq FROM layer WHERE id = ?1 AND state = 0")?;
    for image in images {
        let Some(mut stored) = load(tx, image.id.as_str())? else { return Ok(false) };
        if image.manifest.is_none() {
            stored.manifest = None;
        }
        if stored != *image {
            return Ok(false);
        }
        for layer in &image.layers {
            let used: Option<Start> = stamp.query_row([layer.layer.0], |row| row.get(0)).optional()?;
            if used < Some(lease) {
                return Ok(false);
            }
        }
    }
    let none = StoredIndex::default();
    for name in names {
        let mut meant = id_by_name(tx, name)?.into_iter().collect::<Vec<_>>();
        meant.extend(variant_ids(tx, name)?);
        let is_same = meant.iter().map(String::as_str).eq(images.iter().map(|image| image.id.as_str()))
            && load_index(tx, name)? == *hanging.index.unwrap_or(&none);
        if !is_same {
            return Ok(false);
        }
    }
    let unnamed = names.is_empty().then(String::new);
    for name in names.iter().map(Reference::canonical).chain(unnamed) {
        for image in images {
            let known = attested(tx, &name, &image.id)?;
            if known != hanging.of(image, known.clone()) {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

/// What is attested of an image under a name; the empty one is none.
pub(crate) fn attested(
    tx: &Transaction<'_>,
    name: &str,
    image: &Digest,
) -> Result<Vec<StoredAttestation>, Failure> {
    let query = "SELECT predicate_type, predicate FROM image_attestation
                 WHERE name = ?1 AND image = ?2 ORDER BY position";
    let mut statement = tx.prepare_cached(query)?;
    let rows = statement.query_map([name, image.as_str()], |row| {
        Ok(StoredAttestation { predicate_type: row.get(0)?, predicate: row.get(1)? })
    })?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

/// Replaces what is attested of an image under a name.
pub(crate) fn attest(
    tx: &Transaction<'_>,
    name: &str,
    image: &Digest,
    all: &[StoredAttestation],
) -> Result<(), Failure> {
    let delete = "DELETE FROM image_attestation WHERE name = ?1 AND image = ?2";
    let was = tx.prepare_cached(delete)?.execute([name, image.as_str()])?;
    if was == 0 && all.is_empty() {
        return Ok(());
    }
    let mut statement = tx.prepare_cached(
        "INSERT INTO image_attestation (name, image, position, predicate_type, predicate)
         VALUES (?1, ?2, ?3, ?4, ?5)",
    )?;
    for (position, one) in (0i64..).zip(all) {
        statement.execute((name, image.as_str(), position, &one.predicate_type, &one.predicate))?;
    }
    journal::append(tx, &journal::attested(tx, name, image.as_str())?)
}

fn variant_ids(tx: &Transaction<'_>, name: &Reference) -> Result<Vec<String>, Failure> {
    let query = "SELECT image FROM image_variant WHERE name = ?1 ORDER BY position";
    let mut statement = tx.prepare_cached(query)?;
    let ids = statement.query_map([name.canonical()], |row| row.get(0))?;
    Ok(ids.collect::<rusqlite::Result<_>>()?)
}

fn variants(tx: &Transaction<'_>, name: &Reference) -> Result<Vec<LocalImage>, Failure> {
    let ids = variant_ids(tx, name)?;
    ids.iter().map(|id| load(tx, id)?.ok_or(()).map_err(damaged)).collect()
}

fn insert_index(tx: &Transaction<'_>, name: &Reference, index: &StoredIndex) -> Result<(), Failure> {
    let mut statement = tx.prepare_cached(
        "INSERT INTO image_document (name, position, media_type, digest, bytes) VALUES (?1, ?2, ?3, ?4, ?5)",
    )?;
    for (position, document) in (0i64..).zip(&index.documents) {
        let StoredManifest { media_type, digest, bytes } = document;
        statement.execute((name.canonical(), position, media_type, digest.as_str(), bytes))?;
    }
    let mut statement = tx.prepare_cached(
        "INSERT INTO image_blob (name, position, digest, descriptor) VALUES (?1, ?2, ?3, ?4)",
    )?;
    for (position, blob) in (0i64..).zip(&index.blobs) {
        let descriptor = serde_json::to_string(blob).map_err(damaged)?;
        statement.execute((name.canonical(), position, blob.digest.as_str(), descriptor))?;
    }
    Ok(())
}

fn load_index(tx: &Transaction<'_>, name: &Reference) -> Result<StoredIndex, Failure> {
    let query = "SELECT media_type, digest, bytes FROM image_document WHERE name = ?1 ORDER BY position";
    let mut statement = tx.prepare_cached(query)?;
    let mut rows = statement.query([name.canonical()])?;
    let mut documents = Vec::new();
    while let Some(row) = rows.next()? {
        let digest = row.get::<_, String>(1)?.parse().map_err(damaged)?;
        documents.push(StoredManifest { media_type: row.get(0)?, digest, bytes: row.get(2)? });
    }
    let query = "SELECT descriptor FROM image_blob WHERE name = ?1 ORDER BY position";
    let mut statement = tx.prepare_cached(query)?;
    let rows = statement.query_map([name.canonical()], |row| row.get::<_, String>(0))?;
    let blobs = rows.map(|text| serde_json::from_str(&text?).map_err(damaged)).collect::<Result<_, _>>()?;
    Ok(StoredIndex { documents, blobs })
}
