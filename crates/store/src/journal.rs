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

mod rebuild;

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rusqlite::Transaction;
use serde::{Deserialize, Serialize};

pub(crate) use rebuild::{exists, rebuild};

use crate::StoreError;
use crate::database::Failure;
use crate::fault::refused;

/// Size from which the journal is written anew when it has doubled.
const COMPACT_AT: u64 = 8 << 20;
/// Bytes of one line: an image's config and manifest, or one statement, as JSON. A longer one is neither written nor
/// believed.
const MAX_LINE: u64 = 128 << 20;

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
    /// What is attested of an image: types and predicates. Whatever was before does not count any more.
    /// Without a name it was written when that was said of all names of an image at once; the empty name is none.
    Attested { name: Option<String>, image: String, all: Vec<(String, Vec<u8>)> },
    /// One more thing that is attested of it.
    Statement { name: String, image: String, predicate_type: String, predicate: Predicate },
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

/// A predicate. What is text, as all JSON is, takes a third as text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum Predicate {
    Text(String),
    Bytes(Vec<u8>),
}

impl Predicate {
    fn of(bytes: Vec<u8>) -> Self {
        String::from_utf8(bytes).map_or_else(|error| Self::Bytes(error.into_bytes()), Self::Text)
    }

    fn into_bytes(self) -> Vec<u8> {
        match self {
            Self::Text(text) => text.into_bytes(),
            Self::Bytes(bytes) => bytes,
        }
    }
}

/// Appends lines for the store of an open transaction.
pub(crate) fn append(tx: &Transaction<'_>, lines: &[Line]) -> Result<(), Failure> {
    let Some(path) = path_of(tx) else { return Ok(()) };
    let text = written(lines, MAX_LINE, &path)?;
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

/// Writes the journal anew from the rows, for the store of an open transaction.
pub(crate) fn renew(tx: &Transaction<'_>) -> Result<(), Failure> {
    path_of(tx).map_or(Ok(()), |path| compact(tx, &path))
}

/// Lines as they are written.
fn written(lines: &[Line], limit: u64, path: &Path) -> Result<Vec<u8>, Failure> {
    let mut text = Vec::new();
    for line in lines {
        let before = text.len();
        serde_json::to_writer(&mut text, line).map_err(|error| failed("write", path, error.into()))?;
        text.push(b'\n');
        if (text.len() - before) as u64 > limit {
            return Err(Failure::Store(StoreError::BlobTooLarge { limit }));
        }
    }
    Ok(text)
}

/// What the rows need: an estimate that is cheap.
fn compacted_size(tx: &Transaction<'_>) -> Result<u64, Failure> {
    let size: i64 = tx.query_row(
        "SELECT 200 * (SELECT count(*) FROM layer) + 200 * (SELECT count(*) FROM image_name)
         + (SELECT coalesce(sum(4 * length(bytes) + 200), 0) FROM image_document)
         + (SELECT coalesce(sum(length(descriptor) + 50), 0) FROM image_blob)
         + (SELECT coalesce(sum(2 * length(predicate) + 200), 0) FROM image_attestation)
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
    let mut pairs = tx.prepare("SELECT DISTINCT name, image FROM image_attestation ORDER BY name, image")?;
    let pairs = pairs.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let pairs: Vec<(String, String)> = pairs.collect::<rusqlite::Result<_>>()?;
    for (name, image) in pairs {
        lines.extend(attested(tx, &name, &image)?);
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

/// What is attested of an image under a name, as lines.
pub(crate) fn attested(tx: &Transaction<'_>, name: &str, image: &str) -> Result<Vec<Line>, Failure> {
    let query = "SELECT predicate_type, predicate FROM image_attestation
                 WHERE name = ?1 AND image = ?2 ORDER BY position";
    let mut statement = tx.prepare_cached(query)?;
    let all = statement.query_map([name, image], |row| {
        let (predicate_type, predicate) = (row.get(0)?, Predicate::of(row.get(1)?));
        Ok(Line::Statement { name: name.to_owned(), image: image.to_owned(), predicate_type, predicate })
    })?;
    let mut lines =
        vec![Line::Attested { name: Some(name.to_owned()), image: image.to_owned(), all: Vec::new() }];
    for line in all {
        lines.push(line?);
    }
    Ok(lines)
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

fn path_of(tx: &Transaction<'_>) -> Option<PathBuf> {
    Some(Path::new(tx.path()?).parent()?.join("journal"))
}

fn failed(action: &'static str, path: &Path, error: io::Error) -> Failure {
    StoreError::io(action, path, error).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(predicate: Vec<u8>, limit: u64, is_written: bool) {
        let line = Line::Statement {
            name: String::new(),
            image: "i".into(),
            predicate_type: "t".into(),
            predicate: Predicate::of(predicate),
        };
        match written(&[line.clone(), line.clone()], limit, Path::new("journal")) {
            Ok(text) => {
                assert!(is_written, "{} bytes", text.len());
                let read = text.split(|byte| *byte == b'\n').next().map(serde_json::from_slice::<Line>);
                assert_eq!(read.expect("a line").expect("is read"), line);
            }
            Err(failure) => {
                let refused =
                    matches!(failure, Failure::Store(StoreError::BlobTooLarge { limit: at }) if at == limit);
                assert!(!is_written && refused, "{failure:?}");
            }
        }
    }

    #[test]
    fn a_line_is_never_longer_than_what_is_believed() {
        let text = br#"{"a": "b"}"#.repeat(100);
        check(text.clone(), 2000, true);
        check(text, 1000, false);
        check(vec![0xff; 100], 1000, true);
        check(vec![0xff; 1000], 2000, false);
    }
}
