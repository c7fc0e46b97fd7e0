//! The index that names of an archive stand for, kept as it came when all its images were loaded.
//!
//! Owns what of it must be there to leave again byte for byte: every document, and every blob those name. An index of
//! which something is missing, or is not wanted here, is made anew when its images leave. Start with
//! [`Loader::whole_index`].

use std::collections::BTreeSet;
use std::io;

use stave_oci::{Descriptor, Digest, MAX_MANIFEST_SIZE, Manifest, ManifestOrIndex, media_type};
use stave_store::{StoreError, StoredIndex, StoredManifest};

use super::{LoadedImage, Loader, MAX_INDEX_DEPTH, check_size, is_attestation, parse};
use crate::document::blob_path;
use crate::error::LoadErrorKind;
use crate::output::Counted;

/// Most manifests and indexes of one that is kept.
const MAX_DOCUMENTS: usize = 1024;
/// Bytes of all of them together.
const MAX_DOCUMENT_BYTES: usize = 64 << 20;

/// One way through all documents of an index.
struct Walk<'a> {
    images: &'a [LoadedImage],
    index: StoredIndex,
    bytes: usize,
    /// Digests of documents, and of blobs.
    known: [BTreeSet<Digest>; 2],
}

impl Loader<'_> {
    /// All that an index leads to, with its blobs in the store; `None` where that is not all here, or has images that
    /// are not among those loaded.
    pub(super) fn whole_index(
        &self,
        top: &Descriptor,
        images: &[LoadedImage],
    ) -> Result<Option<StoredIndex>, LoadErrorKind> {
        let mut walk = Walk { images, index: StoredIndex::default(), bytes: 0, known: Default::default() };
        if !self.follow(&mut walk, top, 0)? {
            return Ok(None);
        }
        for blob in &walk.index.blobs {
            let is_config = images.iter().any(|loaded| loaded.image.id == blob.digest);
            if !is_config && !self.store().has_blob(&blob.digest)? && !self.bring(blob)? {
                return Ok(None);
            }
        }
        Ok(Some(walk.index))
    }

    /// Takes up a document and those it leads to; `false` ends the walk.
    fn follow(&self, walk: &mut Walk<'_>, entry: &Descriptor, depth: usize) -> Result<bool, LoadErrorKind> {
        if depth > MAX_INDEX_DEPTH {
            return Ok(false);
        }
        if !walk.known[0].insert(entry.digest.clone()) {
            return Ok(true);
        }
        let bytes = match self.verified(entry, MAX_MANIFEST_SIZE, "manifest") {
            Err(LoadErrorKind::Missing(_)) => return Ok(false),
            bytes => bytes?,
        };
        walk.bytes += bytes.len();
        if walk.bytes > MAX_DOCUMENT_BYTES || walk.index.documents.len() >= MAX_DOCUMENTS {
            return Ok(false);
        }
        match parse(&blob_path(&entry.digest), &bytes, Some(&entry.media_type))? {
            ManifestOrIndex::Index(index) => {
                for inner in &index.manifests {
                    if !self.follow(walk, inner, depth + 1)? {
                        return Ok(false);
                    }
                }
            }
            ManifestOrIndex::Manifest(manifest) => {
                let is_loaded = |loaded: &LoadedImage| {
                    loaded.image.manifest.as_ref().is_some_and(|known| known.digest == entry.digest)
                };
                if is_image(entry, &manifest) && !walk.images.iter().any(is_loaded) {
                    return Ok(false);
                }
                for blob in std::iter::once(&manifest.config).chain(&manifest.layers) {
                    if walk.known[1].insert(blob.digest.clone()) {
                        walk.index.blobs.push(blob.clone());
                    }
                }
            }
        }
        let (media_type, digest) = (entry.media_type.clone(), entry.digest.clone());
        walk.index.documents.push(StoredManifest { media_type, digest, bytes });
        Ok(true)
    }

    /// Copies a blob of the archive into the store; `false` if it is not there.
    fn bring(&self, blob: &Descriptor) -> Result<bool, LoadErrorKind> {
        let path = blob_path(&blob.digest);
        let Some(mut content) = self.archive.find(&path)? else { return Ok(false) };
        check_size(&path, blob.size, content.left())?;
        let mut writer = self.store().blob_writer(Some(&blob.digest), blob.size)?;
        io::copy(&mut content, &mut Counted::new(&mut writer, &self.context.cancel))?;
        match writer.commit() {
            Ok(_) => Ok(true),
            Err(StoreError::DigestMismatch { expected, found }) => {
                Err(LoadErrorKind::Digest { path, expected, found })
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// Whether a manifest is an image's that somebody may run, and no statement or other artifact.
fn is_image(entry: &Descriptor, manifest: &Manifest) -> bool {
    let config = manifest.config.media_type.as_str();
    !is_attestation(entry) && (config == media_type::OCI_CONFIG || config == media_type::DOCKER_CONFIG)
}
