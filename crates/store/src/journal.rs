//! The journal: what the database says, in a file that can be read without it.
//!
//! `<root>/journal` is one JSON value a line, appended inside the write transaction that changes the rows, so
//! that writers queue on the database's own lock. It holds what the files alone do not tell: which number,
//! digest and description a layer directory has, which images there are and what they are called. When
//! `store.db` is lost or damaged, [`rebuild`] makes it again from the journal and the files: what is in both.
//! A transaction that fails after its line leaves a line too much, which names nothing that exists.
//!
//! Once it is larger than [`COMPACT_AT`] and twice what its last compaction left, it is written anew from the
//! rows. Start with [`Line`].

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, Transaction, params};
use serde::{Deserialize, Serialize};

use crate::StoreError;
use crate::database::{Failure, now};
use crate::fault::refused;
use crate::session::names;

/// Size from which the journal is written anew when it has doubled.
const COMPACT_AT: u64 = 8 << 20;
/// Bytes of one line that is believed: an image's config and manifest, as JSON.
const MAX_LINE: u64 = 64 << 20;
/// More layers than any store makes between two lines.
const NUMBER_JUMP: i64 = 1 << 20;

/// One change of the rows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Line {
    /// A layer directory has a number.
    Layer { id: i64, name: String, diff_id: Option<String>, description: String, created: i64 },
    /// The digest of a layer's tar is known.
    DiffId { layer: i64, diff_id: String },
    /// An image is stored.
    Image(Box<ImageLine>),
    /// A name points to an image.
    Name { name: String, image: String },
    /// It stands for these images as well.
    Variants { name: String, images: Vec<String> },
    /// It came with an index: the next of the documents that this leads to, itself the last.
    Document { name: String, media_type: String, digest: String, bytes: Vec<u8> },
    /// So many documents those were, and the blobs that they name, as descriptors.
    Index { name: String, documents: usize, blobs: Vec<String> },
    /// What is attested of an image: types and predicates.
    Attested { image: String, all: Vec<(String, Vec<u8>)> },
    /// A name points to nothing any more.
    Untagged { name: String },
    /// An image is gone.
    Removed { image: String },
    /// Everything up to these rows is on stable storage.
    Synced { layer: i64 },
    /// The machine runs under this boot id.
    Boot { id: String },
}

/// A stored image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ImageLine {
    pub(crate) id: String,
    pub(crate) config: Vec<u8>,
    pub(crate) platform: String,
    pub(crate) manifest: Option<(String, String, Vec<u8>)>,
    pub(crate) stored: i64,
    /// Number, diff id and blob of each layer, bottom first.
    pub(crate) layers: Vec<(i64, String, Option<String>)>,
}

/// Appends lines for the store of an open transaction.
pub(crate) fn append(tx: &Transaction<'_>, lines: &[Line]) -> Result<(), Failure> {
    let Some(path) = path_of(tx) else { return Ok(()) };
    let mut text = Vec::new();
    for line in lines {
        serde_json::to_writer(&mut text, line).map_err(|error| failed("write", &path, error.into()))?;
        text.push(b'\n');
    }
    let open =
        || refused("journal-open").and_then(|()| File::options().append(true).create(true).open(&path));
    let mut file = open().map_err(|error| failed("open", &path, error))?;
    let before = file.metadata().map_err(|error| failed("read", &path, error))?.size();
    if let Err(error) = refused("journal-write").and_then(|()| file.write_all(&text)) {
        // Half a line would swallow the next one.
        file.set_len(before).map_err(|error| failed("write", &path, error))?;
        return Err(failed("write", &path, error));
    }
    // The first line of a store from before there was a journal.
    if before == 0 {
        return compact(tx, &path);
    }
    // One that has grown: it says the same as it is, and a full disk must not keep anybody from removing things.
    if before > COMPACT_AT
        && before > 2 * compacted_size(tx)?
        && let Err(failure) = compact(tx, &path)
    {
        fs::remove_file(path.with_extension("new")).ok();
        tracing::warn!(path = %path.display(), ?failure, "the journal stays as it is");
    }
    Ok(())
}

/// What the rows need: an estimate that is cheap.
fn compacted_size(tx: &Transaction<'_>) -> Result<u64, Failure> {
    let size: i64 = tx.query_row(
        "SELECT 200 * (SELECT count(*) FROM layer) + 200 * (SELECT count(*) FROM image_name)
         + (SELECT coalesce(sum(4 * length(bytes) + 200), 0) FROM image_document)
         + (SELECT coalesce(sum(length(descriptor) + 50), 0) FROM image_blob)
         + (SELECT coalesce(sum(4 * length(predicate) + 200), 0) FROM image_attestation)
         + (SELECT coalesce(sum(4 * (length(config) + coalesce(length(manifest), 0)) + 1000), 0) FROM image)",
        [],
        |row| row.get(0),
    )?;
    Ok(u64::try_from(size).unwrap_or(0))
}

/// Writes the journal anew from the rows.
fn compact(tx: &Transaction<'_>, path: &Path) -> Result<(), Failure> {
    let aside = path.with_extension("new");
    let mut file = refused("journal-compact-create")
        .and_then(|()| File::create(&aside))
        .map_err(|error| failed("create", &aside, error))?;
    for line in dump(tx)? {
        serde_json::to_writer(&mut file, &line).map_err(|error| failed("write", &aside, error.into()))?;
        refused("journal-compact-write")
            .and_then(|()| file.write_all(b"\n"))
            .map_err(|error| failed("write", &aside, error))?;
    }
    refused("journal-compact-rename")
        .and_then(|()| fs::rename(&aside, path))
        .map_err(|error| failed("rename", &aside, error))
}

/// Everything the rows say, as lines.
fn dump(tx: &Transaction<'_>) -> Result<Vec<Line>, Failure> {
    let mut lines = Vec::new();
    let mut statement = tx.prepare(
        "SELECT id, name, diff_id, description, created, synced FROM layer WHERE state = 0 ORDER BY id",
    )?;
    let mut rows = statement.query([])?;
    let mut synced = 0;
    while let Some(row) = rows.next()? {
        let id = row.get(0)?;
        if row.get::<_, bool>(5)? {
            synced = id;
        }
        lines.push(Line::Layer {
            id,
            name: row.get(1)?,
            diff_id: row.get(2)?,
            description: row.get(3)?,
            created: row.get(4)?,
        });
    }
    lines.push(Line::Synced { layer: synced });
    let mut ids = tx.prepare("SELECT id FROM image")?;
    let ids: Vec<String> = ids.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
    for id in ids {
        lines.push(image_line(tx, &id)?);
    }
    let mut statement = tx.prepare("SELECT name, image FROM image_name ORDER BY name")?;
    let names = statement.query_map([], |row| Ok(Line::Name { name: row.get(0)?, image: row.get(1)? }))?;
    let names = names.collect::<rusqlite::Result<Vec<_>>>()?;
    for line in names {
        let Line::Name { name, .. } = &line else { continue };
        let hanging = hanging(tx, name)?;
        lines.push(line);
        lines.extend(hanging);
    }
    let mut ids = tx.prepare("SELECT DISTINCT image FROM image_attestation ORDER BY image")?;
    let ids: Vec<String> = ids.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
    for id in ids {
        lines.push(attested(tx, &id)?);
    }
    lines.push(Line::Boot { id: tx.query_row("SELECT boot FROM clock", [], |row| row.get(0))? });
    Ok(lines)
}

/// What hangs on a name beside its first image, as lines.
pub(crate) fn hanging(tx: &Transaction<'_>, name: &str) -> Result<Vec<Line>, Failure> {
    let mut lines = Vec::new();
    let texts = |query: &str| -> Result<Vec<String>, Failure> {
        let mut statement = tx.prepare_cached(query)?;
        let rows = statement.query_map([name], |row| row.get(0))?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    };
    let images = texts("SELECT image FROM image_variant WHERE name = ?1 ORDER BY position")?;
    if !images.is_empty() {
        lines.push(Line::Variants { name: name.to_owned(), images });
    }
    let query = "SELECT media_type, digest, bytes FROM image_document WHERE name = ?1 ORDER BY position";
    let mut statement = tx.prepare_cached(query)?;
    let rows = statement.query_map([name], |row| {
        let (media_type, digest, bytes) = (row.get(0)?, row.get(1)?, row.get(2)?);
        Ok(Line::Document { name: name.to_owned(), media_type, digest, bytes })
    })?;
    let documents: Vec<Line> = rows.collect::<rusqlite::Result<_>>()?;
    if !documents.is_empty() {
        let blobs = texts("SELECT descriptor FROM image_blob WHERE name = ?1 ORDER BY position")?;
        let last = Line::Index { name: name.to_owned(), documents: documents.len(), blobs };
        lines.extend(documents.into_iter().chain([last]));
    }
    Ok(lines)
}

/// What is attested of an image, as a line.
pub(crate) fn attested(tx: &Transaction<'_>, image: &str) -> Result<Line, Failure> {
    let query = "SELECT predicate_type, predicate FROM image_attestation WHERE image = ?1 ORDER BY position";
    let mut statement = tx.prepare_cached(query)?;
    let all = statement.query_map([image], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(Line::Attested { image: image.to_owned(), all: all.collect::<rusqlite::Result<_>>()? })
}

/// A stored image as a line.
pub(crate) fn image_line(tx: &Transaction<'_>, id: &str) -> Result<Line, Failure> {
    let query = "SELECT layer, diff_id, blob FROM image_layer WHERE image = ?1 ORDER BY position";
    let mut statement = tx.prepare_cached(query)?;
    let layers = statement.query_map([id], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
    let layers = layers.collect::<rusqlite::Result<_>>()?;
    let query =
        "SELECT config, platform, manifest_type, manifest_digest, manifest, stored FROM image WHERE id = ?1";
    let line = tx.prepare_cached(query)?.query_row([id], |row| {
        let (kind, digest, bytes): (Option<_>, Option<_>, Option<_>) =
            (row.get(2)?, row.get(3)?, row.get(4)?);
        Ok(ImageLine {
            id: id.to_owned(),
            config: row.get(0)?,
            platform: row.get(1)?,
            manifest: kind.zip(digest).zip(bytes).map(|((kind, digest), bytes)| (kind, digest, bytes)),
            stored: row.get(5)?,
            layers,
        })
    })?;
    Ok(Line::Image(Box::new(line)))
}

/// What the journal comes to.
#[derive(Debug, Default)]
struct Known {
    layers: BTreeMap<i64, (String, Option<String>, String, i64)>,
    images: BTreeMap<String, ImageLine>,
    names: BTreeMap<String, Named>,
    attested: BTreeMap<String, Vec<(String, Vec<u8>)>>,
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
    for (image, all) in &known.attested {
        for (position, (predicate_type, predicate)) in (0i64..).zip(all) {
            connection.execute(
                "INSERT INTO image_attestation (image, position, predicate_type, predicate)
                 SELECT id, ?2, ?3, ?4 FROM image WHERE id = ?1",
                params![image, position, predicate_type, predicate],
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
        params![known.highest + NUMBER_JUMP, known.boot],
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
            Line::Attested { image, all } => drop(self.attested.insert(image, all)),
            Line::Untagged { name } => drop(self.names.remove(&name)),
            Line::Removed { image } => {
                self.images.remove(&image);
                self.names.retain(|_, named| named.image != image);
                self.attested.remove(&image);
            }
            Line::Synced { layer } => self.synced = self.synced.max(layer),
            Line::Boot { id } => self.boot = id,
        }
    }
}

fn path_of(tx: &Transaction<'_>) -> Option<PathBuf> {
    Some(Path::new(tx.path()?).parent()?.join("journal"))
}

fn failed(action: &'static str, path: &Path, error: io::Error) -> Failure {
    StoreError::io(action, path, error).into()
}
