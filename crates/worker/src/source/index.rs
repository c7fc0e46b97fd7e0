//! All that an index leads to: its images, and what goes along when it leaves again as it came.
//! Must not know which names images get. Read [`Puller::survey`] first; images themselves are [`super::image`]'s.

use std::collections::{BTreeSet, HashMap};

use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt as _};
use futures::{StreamExt as _, TryStreamExt as _};
use stave_oci::{Descriptor, Digest, Manifest, ManifestOrIndex, Reference, media_type};
use stave_registry::{FetchedManifest, RegistryError, ResolvedImage};
use stave_store::{LocalImage, StoreError, StoredIndex, StoredManifest};

use super::image::{Puller, blocking};
use super::{ImageFault, SourceError};

/// How deep indexes may nest.
const MAX_DEPTH: usize = 4;
/// Most manifests and indexes that one index may lead to.
const MAX_DOCUMENTS: usize = 1024;
/// Bytes of all of them together, configs included.
const MAX_DOCUMENT_BYTES: usize = 64 << 20;
/// Blobs fetched at the same time, as layers are.
const PARALLEL_BLOBS: usize = 3;

/// What an index leads to.
#[derive(Debug)]
pub struct IndexSurvey {
    /// The images in it, in its order.
    pub images: Vec<ResolvedImage>,
    /// Everything, to leave again as it came.
    pub index: StoredIndex,
}

impl Puller<'_> {
    /// Fetches all documents that an index leads to, and the configs of its images. Statements and other artifacts are
    /// no images.
    ///
    /// # Errors
    /// [`SourceError`]; an entry that is neither a manifest nor an index is one, too.
    pub async fn survey(&self, name: &Reference, root: &FetchedManifest) -> Result<IndexSurvey, SourceError> {
        let mut walk = Walk {
            puller: self,
            name,
            root,
            images: Vec::new(),
            index: StoredIndex::default(),
            known: BTreeSet::new(),
            configs: HashMap::new(),
        };
        tokio::select! {
            walked = walk.follow(root.clone(), None, 0) => walked?,
            () = self.cancel.cancelled() => return Err(SourceError::Cancelled),
        }
        let Walk { images, index, .. } = walk;
        Ok(IndexSurvey { images, index })
    }

    /// Brings the blobs of an index that its `images` have not brought: those of artifacts, and layers whose files the
    /// store has from elsewhere.
    ///
    /// # Errors
    /// [`SourceError`], by registry or store.
    pub async fn bring_rest(
        &self,
        name: &Reference,
        index: &StoredIndex,
        images: &[LocalImage],
    ) -> Result<(), SourceError> {
        let mut fetches = Vec::new();
        for blob in &index.blobs {
            let is_config = images.iter().any(|image| image.id == blob.digest);
            let is_here = is_config || self.store.has_blob(&blob.digest)?;
            if !is_here {
                fetches.push(self.bring(name, blob).boxed());
            }
        }
        let fetching = futures::stream::iter(fetches).buffer_unordered(PARALLEL_BLOBS).try_collect::<()>();
        tokio::select! {
            fetched = fetching => fetched,
            () = self.cancel.cancelled() => Err(SourceError::Cancelled),
        }
    }

    async fn bring(&self, name: &Reference, blob: &Descriptor) -> Result<(), SourceError> {
        let broken = |source: StoreError| SourceError::Layer {
            image: name.clone(),
            layer: blob.digest.clone(),
            source: Box::new(source),
        };
        let opened = self.client.fetch_blob(name, blob).await;
        let mut pieces = opened.map_err(|error| unreachable_at(name, error))?;
        let mut writer = self.store.blob_writer(Some(&blob.digest), blob.size).map_err(broken)?;
        while let Some(piece) = pieces.next().await {
            let piece = piece.map_err(|error| unreachable_at(name, error))?;
            let written = blocking(move || writer.push(&piece).map(|()| writer));
            writer = written.await.map_err(broken)?;
            self.progress.progress(&blob.digest, writer.written(), blob.size);
        }
        blocking(move || writer.commit()).await.map(drop).map_err(broken)
    }
}

/// One way through all documents of an index.
struct Walk<'a> {
    puller: &'a Puller<'a>,
    name: &'a Reference,
    root: &'a FetchedManifest,
    images: Vec<ResolvedImage>,
    index: StoredIndex,
    /// Digests of the index's blobs.
    known: BTreeSet<Digest>,
    /// Several manifests may have one config.
    configs: HashMap<Digest, Bytes>,
}

impl<'a> Walk<'a> {
    /// Goes into a document that an entry of an index led to; the first has none.
    fn follow<'w>(
        &'w mut self,
        document: FetchedManifest,
        entry: Option<Descriptor>,
        depth: usize,
    ) -> BoxFuture<'w, Result<(), SourceError>>
    where
        'a: 'w,
    {
        async move {
            let media_type = document.descriptor.media_type.clone();
            let parsed = ManifestOrIndex::parse(&document.bytes, Some(&media_type));
            match parsed.map_err(|error| self.fault(ImageFault::Document(error)))? {
                ManifestOrIndex::Index(index) => {
                    if depth == MAX_DEPTH {
                        return Err(self.too_many("nested indexes", MAX_DEPTH));
                    }
                    for entry in index.manifests {
                        if !self.index.documents.iter().any(|known| known.digest == entry.digest) {
                            let next = self.fetch(&entry).await?;
                            self.follow(next, Some(entry), depth + 1).await?;
                        }
                    }
                }
                ManifestOrIndex::Manifest(manifest) => {
                    self.manifest(&document, entry.as_ref(), *manifest).await?;
                }
            }
            self.index.documents.push(StoredManifest {
                media_type,
                digest: document.descriptor.digest,
                bytes: document.bytes.to_vec(),
            });
            Ok(())
        }
        .boxed()
    }

    async fn fetch(&self, entry: &Descriptor) -> Result<FetchedManifest, SourceError> {
        if self.index.documents.len() >= MAX_DOCUMENTS {
            return Err(self.too_many("documents", MAX_DOCUMENTS));
        }
        self.bounded()?;
        let found = self.puller.client.fetch_manifest(&self.name.pinned(entry.digest.clone())).await;
        let found = found.map_err(|error| unreachable_at(self.name, error))?;
        if found.descriptor.size != entry.size {
            return Err(self.fault(ImageFault::Size {
                digest: entry.digest.clone(),
                expected: entry.size,
                found: found.descriptor.size,
            }));
        }
        Ok(found)
    }

    async fn manifest(
        &mut self,
        document: &FetchedManifest,
        entry: Option<&Descriptor>,
        manifest: Manifest,
    ) -> Result<(), SourceError> {
        for blob in std::iter::once(&manifest.config).chain(&manifest.layers) {
            if self.known.insert(blob.digest.clone()) {
                self.index.blobs.push(blob.clone());
            }
        }
        if is_image(entry, &manifest) {
            let config = self.config(&manifest.config).await?;
            let (root, document) = (self.root.clone(), document.clone());
            self.images.push(ResolvedImage { root, manifest: document, parsed: manifest, config });
        }
        Ok(())
    }

    async fn config(&mut self, of: &Descriptor) -> Result<Bytes, SourceError> {
        if let Some(known) = self.configs.get(&of.digest) {
            return Ok(known.clone());
        }
        self.bounded()?;
        let config = self.puller.client.fetch_small_blob(self.name, of).await;
        let config = config.map_err(|error| unreachable_at(self.name, error))?;
        self.configs.insert(of.digest.clone(), config.clone());
        Ok(config)
    }

    /// Whether what was fetched leaves room for more.
    fn bounded(&self) -> Result<(), SourceError> {
        let documents = self.index.documents.iter().map(|document| document.bytes.len());
        match documents.chain(self.configs.values().map(Bytes::len)).sum::<usize>() {
            bytes if bytes > MAX_DOCUMENT_BYTES => {
                Err(self.too_many("bytes of documents", MAX_DOCUMENT_BYTES))
            }
            _ => Ok(()),
        }
    }

    fn fault(&self, fault: ImageFault) -> SourceError {
        SourceError::Image { image: self.name.clone(), fault: Box::new(fault) }
    }

    fn too_many(&self, what: &'static str, limit: usize) -> SourceError {
        self.fault(ImageFault::TooMany { what, limit })
    }
}

fn unreachable_at(name: &Reference, source: RegistryError) -> SourceError {
    SourceError::Registry { image: name.clone(), source: Box::new(source) }
}

/// Whether a manifest is an image's that somebody may run: not a statement, which has the config of one for no
/// machine, and no other artifact.
fn is_image(entry: Option<&Descriptor>, manifest: &Manifest) -> bool {
    let config = manifest.config.media_type.as_str();
    let is_known = config == media_type::OCI_CONFIG || config == media_type::DOCKER_CONFIG;
    let platform = entry.and_then(|entry| entry.platform.as_ref());
    let is_unknown = platform.is_some_and(|platform| platform.os == "unknown");
    is_known && !is_unknown
}
