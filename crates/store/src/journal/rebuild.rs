//! The rows made again from the journal and the files. Start with [`rebuild`].

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;

use rusqlite::{Connection, params};

use super::{ImageLine, Line, MAX_LINE, failed};
use crate::StoreError;
use crate::database::{Failure, now};
use crate::session::names;

/// More layers than any store makes between two lines.
const NUMBER_JUMP: i64 = 1 << 20;

/// Types and predicates.
type Statements = Vec<(String, Vec<u8>)>;

/// What the journal comes to.
#[derive(Debug, Default)]
struct Known {
    layers: BTreeMap<i64, (String, Option<String>, String, i64)>,
    images: BTreeMap<String, ImageLine>,
    names: BTreeMap<String, Named>,
    /// By name, of which the empty one is none, and image.
    attested: BTreeMap<(String, String), Statements>,
    synced: i64,
    highest: i64,
    boot: String,
}

/// What a name means.
#[derive(Debug, Default)]
struct Named {
    image: String,
    variants: Vec<String>,
    documents: Vec<(String, String, Vec<u8>)>,
    /// How many documents there must be, and their blobs.
    index: Option<(usize, Vec<String>)>,
}

/// Whether there is a journal to rebuild from.
pub(crate) fn exists(root: &Path) -> bool {
    fs::metadata(root.join("journal")).is_ok_and(|metadata| metadata.len() > 0)
}

/// Fills the tables of a new database from the journal and the files of the store at `root`.
pub(crate) fn rebuild(connection: &Connection, root: &Path) -> Result<(), Failure> {
    let known = read(&root.join("journal"))?;
    let present: Vec<String> = names(&root.join("l"))?;
    for (id, (name, diff_id, description, created)) in &known.layers {
        if present.contains(name) {
            connection.execute(
                "INSERT OR IGNORE INTO layer (id, name, synced, diff_id, description, created, used, use_seq)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?6, 1)",
                params![id, name, *id <= known.synced, diff_id, description, created],
            )?;
        }
    }
    for algorithm in ["sha256", "sha512"] {
        let directory = root.join("blobs").join(algorithm);
        for name in names(&directory)? {
            let size =
                fs::metadata(directory.join(&name)).map_err(|error| failed("read", &directory, error))?.len();
            connection.execute(
                "INSERT OR IGNORE INTO blob (digest, size, created, used, use_seq) VALUES (?1, ?2, ?3, ?3, 1)",
                params![format!("{algorithm}:{name}"), i64::try_from(size).unwrap_or(i64::MAX), now()],
            )?;
        }
    }
    for image in known.images.values() {
        restore_image(connection, image)?;
    }
    for (name, named) in &known.names {
        restore_name(connection, name, named)?;
    }
    for ((called, image), all) in &known.attested {
        for (position, (predicate_type, predicate)) in (0i64..).zip(all) {
            connection.execute(
                "INSERT INTO image_attestation (name, image, position, predicate_type, predicate)
                 SELECT ?1, id, ?3, ?4, ?5 FROM image
                 WHERE id = ?2 AND (?1 = '' OR EXISTS (SELECT 1 FROM image_name WHERE name = ?1))",
                params![called, image, position, predicate_type, predicate],
            )?;
        }
    }
    for name in names(&root.join("mutable"))?.iter().filter(|name| !name.ends_with(".lock")) {
        connection.execute(
            "INSERT OR IGNORE INTO cache_mount (name, description, created, used) VALUES (?1, '', ?2, ?2)",
            params![name, now()],
        )?;
    }
    connection.execute(
        "UPDATE clock SET next_layer = ?1, boot = ?2",
        // Numbers of removed layers and of blobs are in no line: as in a new store, the time is beyond those, too.
        params![now().max(known.highest + NUMBER_JUMP), known.boot],
    )?;
    Ok(())
}

/// Stores an image again if all its layers are there.
fn restore_image(connection: &Connection, image: &ImageLine) -> Result<(), Failure> {
    for (layer, ..) in &image.layers {
        if !connection.prepare_cached("SELECT 1 FROM layer WHERE id = ?1")?.exists([layer])? {
            return Ok(());
        }
    }
    let (kind, digest, bytes) = match &image.manifest {
        Some((kind, digest, bytes)) => (Some(kind), Some(digest), Some(bytes)),
        None => (None, None, None),
    };
    connection.execute(
        "INSERT OR REPLACE INTO image (id, config, platform, manifest_type, manifest_digest, manifest, stored)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        params![image.id, image.config, image.platform, kind, digest, bytes, image.stored],
    )?;
    for (position, (layer, diff_id, blob)) in (0i64..).zip(&image.layers) {
        let digest = blob.as_ref().and_then(|text| serde_json::from_str::<stave_oci::Descriptor>(text).ok());
        connection.execute(
            "INSERT INTO image_layer (image, position, layer, diff_id, blob, blob_digest) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            params![image.id, position, layer, diff_id, blob, digest.map(|blob| blob.digest.to_string())],
        )?;
    }
    Ok(())
}

/// Points a name to its images again, those of them that are there. Without the first it is gone.
fn restore_name(connection: &Connection, name: &str, named: &Named) -> Result<(), Failure> {
    let point = "INSERT OR IGNORE INTO image_name (name, image) SELECT ?1, id FROM image WHERE id = ?2";
    if connection.execute(point, [name, &named.image])? == 0 {
        return Ok(());
    }
    for (position, image) in (0i64..).zip(&named.variants) {
        connection.execute(
            "INSERT INTO image_variant (name, position, image) SELECT ?1, ?2, id FROM image WHERE id = ?3",
            params![name, position, image],
        )?;
    }
    // An index that lacks one of its documents is none.
    let whole = named.index.as_ref().filter(|(count, _)| *count == named.documents.len());
    let Some((_, blobs)) = whole else { return Ok(()) };
    for (position, (media_type, digest, bytes)) in (0i64..).zip(&named.documents) {
        connection.execute(
            "INSERT INTO image_document (name, position, media_type, digest, bytes) VALUES (?1, ?2, ?3, ?4, ?5)",
            params![name, position, media_type, digest, bytes],
        )?;
    }
    for (position, descriptor) in (0i64..).zip(blobs) {
        let Ok(blob) = serde_json::from_str::<stave_oci::Descriptor>(descriptor) else { continue };
        connection.execute(
            "INSERT INTO image_blob (name, position, digest, descriptor) VALUES (?1, ?2, ?3, ?4)",
            params![name, position, blob.digest.as_str(), descriptor],
        )?;
    }
    Ok(())
}

/// Reads the journal. A line that is damaged, such as the last one after a power cut, is left out.
fn read(path: &Path) -> Result<Known, StoreError> {
    let file = File::open(path).map_err(|error| StoreError::io("open", path, error))?;
    let mut reader = BufReader::new(file);
    let mut known = Known::default();
    let mut text = Vec::new();
    loop {
        text.clear();
        let count = (&mut reader).take(MAX_LINE).read_until(b'\n', &mut text);
        if count.map_err(|error| StoreError::io("read", path, error))? == 0 {
            return Ok(known);
        }
        match serde_json::from_slice(&text) {
            Ok(line) => known.take(line),
            Err(error) => tracing::warn!(path = %path.display(), %error, "a damaged line is left out"),
        }
    }
}

impl Known {
    fn take(&mut self, line: Line) {
        match line {
            Line::Layer { id, name, diff_id, description, created } => {
                self.highest = self.highest.max(id);
                self.layers.insert(id, (name, diff_id, description, created));
            }
            Line::DiffId { layer, diff_id } => {
                if let Some(known) = self.layers.get_mut(&layer) {
                    known.1 = Some(diff_id);
                }
            }
            Line::Image(image) => drop(self.images.insert(image.id.clone(), *image)),
            Line::Name { name, image } => {
                self.attested.retain(|(called, _), _| *called != name);
                drop(self.names.insert(name, Named { image, ..Named::default() }));
            }
            Line::Variants { name, images } => {
                if let Some(named) = self.names.get_mut(&name) {
                    named.variants = images;
                }
            }
            Line::Document { name, media_type, digest, bytes } => {
                if let Some(named) = self.names.get_mut(&name) {
                    named.documents.push((media_type, digest, bytes));
                }
            }
            Line::Index { name, documents, blobs } => {
                if let Some(named) = self.names.get_mut(&name) {
                    named.index = Some((documents, blobs));
                }
            }
            Line::Attested { name: Some(name), image, all } => {
                drop(self.attested.insert((name, image), all));
            }
            Line::Attested { name: None, image, all } => {
                let means = |named: &Named| named.image == image || named.variants.contains(&image);
                let names = self.names.iter().filter(|(_, named)| means(named)).map(|(name, _)| name.clone());
                let entries = names.chain([String::new()]).map(|name| ((name, image.clone()), all.clone()));
                let entries: Vec<_> = entries.collect();
                self.attested.extend(entries);
            }
            Line::Statement { name, image, predicate_type, predicate } => {
                self.attested
                    .entry((name, image))
                    .or_default()
                    .push((predicate_type, predicate.into_bytes()));
            }
            Line::Untagged { name } => {
                self.attested.retain(|(called, _), _| *called != name);
                drop(self.names.remove(&name));
            }
            Line::Removed { image } => {
                self.images.remove(&image);
                self.names.retain(|_, named| named.image != image);
                self.attested.retain(|(_, of), _| *of != image);
            }
            Line::Synced { layer } => self.synced = self.synced.max(layer),
            Line::Boot { id } => self.boot = id,
        }
    }
}
