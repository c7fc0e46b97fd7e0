//! Cache mounts that travel: directories as trees of chunks, next to a cache's layers.
//!
//! Owns the format and both directions. Must not know the solver or steps. Start with [`MountArchive`].
//!
//! A cache's mounts lie at the place of the cache under its name with `-mounts` behind, as an OCI artifact. Files are
//! cut where their content says so (FastCDC), so that a change in the middle moves no later cut; chunks are named by
//! their blake3 and packed into blobs of some megabytes, zstd-compressed, each chunk once in all mounts. A tree per
//! mount names files with their chunks. A new archive takes over the packs of the old one and adds what is new.
//!
//! Two writers at once: each reads the archive again right before it writes, and merges; of a file that both have,
//! the newer (by mtime) wins, and files that only one has stay.

mod chunk;
mod imports;
mod restore;
mod saving;
mod tree;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use stave_oci::{Descriptor, Digest, Manifest, ManifestOrIndex, media_type};

use crate::config::NO_TIME;
use crate::place::{Content, Place, PlaceError};

pub use chunk::ChunkId;
pub use imports::MountImports;
pub use saving::Saving;
pub use tree::{Entry, EntryKind, Tree};

/// Behind a cache's name: where its mounts are.
pub const SUFFIX: &str = "mounts";

/// The artifact's own type.
pub const ARTIFACT: &str = "application/vnd.stave.cachemounts.v1";
/// Media type of the list of mounts and packs.
const INDEX: &str = "application/vnd.stave.cachemounts.index.v1+json";
/// Media type of a mount's tree.
const TREE: &str = "application/vnd.stave.cachemounts.tree.v1+zstd";
/// Media type of a pack of chunks.
const PACK: &str = "application/vnd.stave.cachemounts.pack.v1+zstd";

/// Mounts in one archive.
const MAX_MOUNTS: usize = 1000;
/// Chunks in one archive.
const MAX_CHUNKS: usize = 4_000_000;
/// Bytes of the largest tree, uncompressed.
const MAX_TREE: u64 = 512 << 20;

/// Why mounts did not travel.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The place failed.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// A directory could not be read or written.
    #[error("cannot {action} `{}`", .path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: std::path::PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// Not an archive of mounts, or one that contradicts itself.
    #[error("malformed archive of cache mounts: {0}")]
    Malformed(&'static str),
    /// Not the JSON it should be.
    #[error("malformed archive of cache mounts")]
    Json(#[from] serde_json::Error),
    /// More of something than there may be.
    #[error("archive of cache mounts has more than {limit} {what}")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many there may be.
        limit: usize,
    },
}

/// The mounts at a place, as last read.
#[derive(Debug, Clone, Default)]
pub struct MountArchive {
    index: ArchiveIndex,
    /// Packs and trees as the manifest describes them.
    blobs: HashMap<Digest, Descriptor>,
    manifest: Option<Digest>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct ArchiveIndex {
    #[serde(default)]
    mounts: BTreeMap<String, MountEntry>,
    /// Per pack, its chunks in order.
    #[serde(default)]
    packs: BTreeMap<Digest, Vec<(ChunkId, u32)>>,
}

/// One mount of an archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountEntry {
    /// The blob with its tree.
    pub tree: Digest,
    /// Bytes of its files.
    pub size: u64,
    /// How many files.
    pub files: u64,
    /// When it was saved, RFC 3339.
    #[serde(default = "no_time")]
    pub saved_at: String,
}

fn no_time() -> String {
    NO_TIME.to_owned()
}

/// What an export did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Saved {
    /// Bytes of all files.
    pub size: u64,
    /// Bytes sent, compressed.
    pub sent: u64,
    /// Files that were read, because the archive did not know them.
    pub read: u64,
}

impl MountArchive {
    /// Reads the archive that belongs to the cache at `place`; an empty one when there is none.
    ///
    /// # Errors
    /// [`MountError`].
    pub async fn read(place: &Place) -> Result<Self, MountError> {
        let place = place.companion(SUFFIX);
        let Some(document) = place.document().await? else { return Ok(Self::default()) };
        let manifest = match place {
            // Nothing but the document has a name in a bucket, so it is the manifest itself.
            Place::S3(_) => serde_json::from_slice::<Manifest>(&document.bytes)?,
            _ => match ManifestOrIndex::parse(&document.bytes, document.media_type.as_deref()) {
                Ok(ManifestOrIndex::Manifest(manifest)) => *manifest,
                _ => return Err(MountError::Malformed("not a manifest")),
            },
        };
        if manifest.config.media_type != INDEX {
            return Err(MountError::Malformed("another artifact"));
        }
        let index: ArchiveIndex = serde_json::from_slice(&place.small_blob(&manifest.config).await?)?;
        if index.mounts.len() > MAX_MOUNTS {
            return Err(MountError::TooMany { what: "mounts", limit: MAX_MOUNTS });
        }
        if index.packs.values().map(Vec::len).sum::<usize>() > MAX_CHUNKS {
            return Err(MountError::TooMany { what: "chunks", limit: MAX_CHUNKS });
        }
        let blobs = manifest.layers.into_iter().map(|layer| (layer.digest.clone(), layer)).collect();
        Ok(Self { index, blobs, manifest: Some(Digest::sha256(&document.bytes)) })
    }

    /// The mounts, by id.
    pub fn mounts(&self) -> impl Iterator<Item = (&str, &MountEntry)> {
        self.index.mounts.iter().map(|(id, entry)| (id.as_str(), entry))
    }

    /// The files of a mount; `None` when it is not in the archive.
    ///
    /// # Errors
    /// [`MountError`].
    pub async fn tree(&self, place: &Place, id: &str) -> Result<Option<Tree>, MountError> {
        let Some(entry) = self.index.mounts.get(id) else { return Ok(None) };
        let blob = self.blobs.get(&entry.tree).ok_or(MountError::Malformed("a tree is not listed"))?;
        let bytes = place.companion(SUFFIX).small_blob(blob).await?;
        let text = chunk::unpack(&bytes, MAX_TREE).ok_or(MountError::Malformed("a tree is not zstd"))?;
        let tree: Tree = serde_json::from_slice(&text)?;
        tree.check()?;
        Ok(Some(tree))
    }

    /// Fills an empty directory with a mount's files. `false` when the archive does not have it.
    ///
    /// # Errors
    /// [`MountError`]; the directory may then be half full.
    pub async fn restore(&self, place: &Place, id: &str, into: &Path) -> Result<bool, MountError> {
        let Some(tree) = self.tree(place, id).await? else { return Ok(false) };
        restore::fill(self, &place.companion(SUFFIX), &tree, into).await?;
        Ok(true)
    }

    /// Takes mounts out of the archive; the ids that were there.
    ///
    /// # Errors
    /// [`MountError`].
    pub async fn remove(place: &Place, ids: &[String]) -> Result<Vec<String>, MountError> {
        let mut archive = Self::read(place).await?;
        let removed: Vec<String> =
            ids.iter().filter(|id| archive.index.mounts.remove(*id).is_some()).cloned().collect();
        if !removed.is_empty() {
            archive.drop_unused(place).await;
            archive.write(&place.companion(SUFFIX)).await?;
        }
        Ok(removed)
    }

    /// Where each chunk lies: its pack.
    fn chunks(&self) -> HashMap<ChunkId, Digest> {
        let packs = self.index.packs.iter();
        packs.flat_map(|(pack, chunks)| chunks.iter().map(|(id, _)| (id.clone(), pack.clone()))).collect()
    }

    async fn send(&mut self, companion: &Place, pack: chunk::Pack) -> Result<u64, MountError> {
        let bytes = Bytes::from(pack.bytes);
        let (blob, size) = (Descriptor::of(PACK, &bytes), bytes.len() as u64);
        companion.put_blob(&blob, Content::Bytes(bytes)).await?;
        self.index.packs.insert(blob.digest.clone(), pack.chunks);
        self.blobs.insert(blob.digest.clone(), blob);
        Ok(size)
    }

    /// Takes over what a later archive has beside ours.
    fn adopt(&mut self, latest: Self) {
        for (id, entry) in latest.index.mounts {
            self.index.mounts.entry(id).or_insert(entry);
        }
        for (pack, chunks) in latest.index.packs {
            self.index.packs.entry(pack).or_insert(chunks);
        }
        for (digest, blob) in latest.blobs {
            self.blobs.entry(digest).or_insert(blob);
        }
    }

    /// Forgets packs none of whose chunks is used. A tree that cannot be read keeps everything.
    async fn drop_unused(&mut self, place: &Place) {
        let mut used: BTreeSet<ChunkId> = BTreeSet::new();
        let ids: Vec<String> = self.index.mounts.keys().cloned().collect();
        for id in &ids {
            match self.tree(place, id).await {
                Ok(Some(tree)) => used.extend(tree.chunks().cloned()),
                Ok(None) => {}
                Err(_) => return,
            }
        }
        self.index.packs.retain(|_, chunks| chunks.iter().any(|(id, _)| used.contains(id)));
        let trees: BTreeSet<&Digest> = self.index.mounts.values().map(|entry| &entry.tree).collect();
        let packs = &self.index.packs;
        self.blobs.retain(|digest, _| packs.contains_key(digest) || trees.contains(digest));
    }

    async fn write(&self, companion: &Place) -> Result<(), MountError> {
        let bytes = Bytes::from(serde_json::to_vec(&self.index)?);
        let config = Descriptor::of(INDEX, &bytes);
        companion.put_blob(&config, Content::Bytes(bytes)).await?;
        let mut layers: Vec<Descriptor> = self.blobs.values().cloned().collect();
        layers.sort_by(|a, b| a.digest.cmp(&b.digest));
        let manifest = Manifest {
            schema_version: 2,
            media_type: Some(media_type::OCI_MANIFEST.to_owned()),
            artifact_type: Some(ARTIFACT.to_owned()),
            config,
            layers,
            subject: None,
            annotations: BTreeMap::new(),
        };
        companion.put_document(media_type::OCI_MANIFEST, serde_json::to_vec(&manifest)?.into()).await?;
        Ok(())
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, MountError> + Send + 'static,
) -> Result<T, MountError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(join) => std::panic::resume_unwind(join.into_panic()),
    }
}

#[cfg(test)]
mod tests;
