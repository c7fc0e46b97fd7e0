//! Images as sources: the layers of one platform's image, fetched in parallel straight into the store.
//! A layer the store has, under whatever blob it came, is not fetched; a blob it has is not downloaded. What is
//! downloaded is verified, kept as a blob and unpacked in one pass.
//! Must not know the store's files or how registries speak. Read [`Puller`] first.

use std::io::{self, Read};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures::{FutureExt as _, StreamExt as _, TryStreamExt as _};
use stave_oci::{
    Compression, Descriptor, Digest, ImageConfig, LayerMediaType, Platform, Reference, layer_media_type,
};
use stave_registry::{Client, ErrorKind, RegistryError, ResolvedImage};
use stave_store::{
    AbsoluteNames, AppliedLayer, ApplyOptions, ImageLayer, LayerId, LayerLimits, LocalImage, Store,
    StoreError, StoredManifest,
};
use tokio::sync::{Semaphore, SemaphorePermit, mpsc};
use tokio_util::sync::CancellationToken;

use super::{ImageFault, SourceError};

/// Layers fetched at the same time, as docker does.
const PARALLEL_LAYERS: usize = 3;

/// Times a layer is fetched when what arrives is not what its digest says.
const FETCH_ATTEMPTS: usize = 3;

/// Bytes still read of a layer that cannot be unpacked, to learn whether the layer is bad or its transport.
const VERIFY_LIMIT: u64 = 256 << 20;

/// Pieces of a download waiting to be unpacked.
const PIECE_QUEUE: usize = 64;
/// Bytes of them: over a fast line a piece alone has half a megabyte.
const QUEUE_BYTES: u32 = 2 << 20;

/// Bounds on one layer of an image nobody vouches for.
pub(crate) const LAYER_LIMITS: LayerLimits =
    LayerLimits { entries: 10_000_000, path_bytes: 4096, total_bytes: 1 << 40 };

/// Hears about the progress of a pull: layer, bytes so far, bytes in all.
pub trait PullProgress: Send + Sync {
    /// A layer moved on. Called often.
    fn progress(&self, layer: &Digest, current: u64, total: u64);
}

impl<F: Fn(&Digest, u64, u64) + Send + Sync> PullProgress for F {
    fn progress(&self, layer: &Digest, current: u64, total: u64) {
        self(layer, current, total);
    }
}

/// Brings images into a store.
pub struct Puller<'a> {
    /// Where to.
    pub store: &'a Store,
    /// Where from.
    pub client: &'a Client,
    /// Who hears about it.
    pub progress: &'a dyn PullProgress,
    /// Ends it.
    pub cancel: &'a CancellationToken,
}

impl Puller<'_> {
    /// The image of this name and platform that is in the store already, without asking anybody. A pinned name
    /// finds an image by its manifest's digest, or a built one by its id.
    ///
    /// # Errors
    /// When the store fails.
    pub fn local(&self, name: &Reference, platform: &Platform) -> Result<Option<LocalImage>, StoreError> {
        let Some(digest) = name.digest() else {
            let named = self.store.images_by_name(name)?;
            return Ok(named.and_then(|named| named.of(platform).cloned()));
        };
        if let Some(image) = self.store.image_by_id(digest)? {
            return Ok(Some(image));
        }
        let pinned = self.store.images_by_manifest(digest)?;
        Ok(pinned.into_iter().find(|image| image.platform.matches(platform)))
    }

    /// Gives an image its name. Images of that name for other platforms keep it; what runs here comes first.
    ///
    /// # Errors
    /// When the store fails.
    pub fn keep(&self, name: &Reference, image: &LocalImage) -> Result<(), StoreError> {
        // The platforms of one build come at the same time.
        static NAMING: Mutex<()> = Mutex::new(());
        let _naming = NAMING.lock().unwrap_or_else(PoisonError::into_inner);
        let mut images = vec![image.clone()];
        if let Some(named) = self.store.images_by_name(name)? {
            // What the name came with stays, too.
            if named.all().any(|known| known == image) {
                return Ok(());
            }
            images.extend(named.all().filter(|other| other.platform != image.platform).cloned());
        }
        let host = Platform::host();
        images.sort_by_key(|image| !image.platform.matches(&host));
        self.store.put_images(std::slice::from_ref(name), &images)
    }

    /// Resolves a name and pulls what it stands for.
    ///
    /// # Errors
    /// [`SourceError`], by registry, layer or configuration.
    pub async fn pull(&self, name: &Reference, platform: &Platform) -> Result<LocalImage, SourceError> {
        let resolved = self.resolve(name, platform).await?;
        self.pull_resolved(name, &resolved).await
    }

    /// Asks what a name stands for.
    ///
    /// # Errors
    /// [`SourceError::Registry`].
    pub async fn resolve(&self, name: &Reference, platform: &Platform) -> Result<ResolvedImage, SourceError> {
        let resolving = self.client.resolve(name, platform);
        let resolved = tokio::select! {
            resolved = resolving => resolved,
            () = self.cancel.cancelled() => return Err(SourceError::Cancelled),
        };
        resolved.map_err(|source| SourceError::Registry { image: name.clone(), source: Box::new(source) })
    }

    /// Pulls the layers of a resolved image. The image is not put under a name: that is the caller's choice.
    ///
    /// # Errors
    /// [`SourceError`], by registry, layer or configuration.
    pub async fn pull_resolved(
        &self,
        name: &Reference,
        image: &ResolvedImage,
    ) -> Result<LocalImage, SourceError> {
        let fault = |fault| SourceError::Image { image: name.clone(), fault: Box::new(fault) };
        let config: ImageConfig = serde_json::from_slice(&image.config)
            .map_err(|error| fault(ImageFault::Config(error.to_string())))?;
        let (layers, diff_ids) = (&image.parsed.layers, &config.rootfs.diff_ids);
        if layers.len() != diff_ids.len() {
            return Err(fault(ImageFault::LayerCount { layers: layers.len(), diff_ids: diff_ids.len() }));
        }
        self.expect(name, layers, diff_ids).await?;
        let mut fetches = Vec::with_capacity(layers.len());
        for (blob, diff_id) in layers.iter().zip(diff_ids) {
            fetches.push(self.layer(name, blob, diff_id).boxed());
        }
        let fetching = futures::stream::iter(fetches).buffered(PARALLEL_LAYERS).try_collect::<Vec<LayerId>>();
        let ids = tokio::select! {
            ids = fetching => ids?,
            () = self.cancel.cancelled() => return Err(SourceError::Cancelled),
        };
        let layers = layers.iter().zip(diff_ids).zip(ids);
        let layers = layers.map(|((blob, diff_id), layer)| ImageLayer {
            layer,
            diff_id: diff_id.clone(),
            blob: Some(blob.clone()),
        });
        Ok(LocalImage {
            id: Digest::sha256(&image.config),
            config: image.config.to_vec(),
            layers: layers.collect(),
            manifest: Some(StoredManifest {
                media_type: image.manifest.descriptor.media_type.clone(),
                digest: image.manifest.descriptor.digest.clone(),
                bytes: image.manifest.bytes.to_vec(),
            }),
            platform: config.platform(),
        })
    }

    /// Room for all that will be downloaded, before the first byte: an image that cannot fit is not begun.
    async fn expect(
        &self,
        name: &Reference,
        layers: &[Descriptor],
        diff_ids: &[Digest],
    ) -> Result<(), SourceError> {
        if self.store.cap().is_none() {
            return Ok(());
        }
        let store = self.store.clone();
        let wanted: Vec<_> = layers.iter().cloned().zip(diff_ids.iter().cloned()).collect();
        let expected = blocking(move || {
            let mut bytes = 0_u64;
            for (blob, diff_id) in &wanted {
                if store.layer_by_diff_id(diff_id)?.is_none() && !store.has_blob(&blob.digest)? {
                    bytes = bytes.saturating_add(blob.size);
                }
            }
            store.expect_bytes(bytes)
        });
        expected.await.map_err(|source| SourceError::Room { image: name.clone(), source: Box::new(source) })
    }

    async fn layer(
        &self,
        name: &Reference,
        blob: &Descriptor,
        diff_id: &Digest,
    ) -> Result<LayerId, SourceError> {
        let compression = self.compression(name, blob)?;
        let options = ApplyOptions {
            // By the first bytes: media types in the wild lie.
            compression: None,
            diff_id: Some(diff_id.clone()),
            limits: LAYER_LIMITS,
            absolute_names: AbsoluteNames::Refuse,
            description: format!("pulled from {}", name.familiar()),
            made: None,
        };
        let (store, digest, wanted) = (self.store.clone(), blob.digest.clone(), diff_id.clone());
        let unpack = options.clone();
        let known = blocking(move || -> Result<Option<LayerId>, StoreError> {
            if let Some(layer) = store.layer_by_diff_id(&wanted)? {
                return Ok(Some(layer));
            }
            let Some(file) = store.open_blob(&digest)? else { return Ok(None) };
            Ok(Some(store.apply_layer(io::BufReader::new(file), &unpack)?.layer))
        })
        .await;
        let broken = |source| SourceError::Layer {
            image: name.clone(),
            layer: blob.digest.clone(),
            source: Box::new(source),
        };
        if let Some(layer) = known.map_err(broken)? {
            self.progress.progress(&blob.digest, blob.size, blob.size);
            return Ok(layer);
        }
        for attempt in 1.. {
            match self.download(name, blob, &options).await {
                Ok(applied) => {
                    let store = self.store.clone();
                    let (layer, descriptor) = (applied.layer, blob.clone());
                    let remembered = blocking(move || store.set_compressed(layer, compression, &descriptor));
                    remembered.await.map_err(broken)?;
                    return Ok(applied.layer);
                }
                Err(Fetch::Registry(error))
                    if attempt < FETCH_ATTEMPTS
                        && matches!(*error.kind, ErrorKind::DigestMismatch { .. }) => {}
                Err(Fetch::Registry(source)) => {
                    return Err(SourceError::Registry { image: name.clone(), source: Box::new(source) });
                }
                Err(Fetch::Store(source)) => return Err(broken(source)),
            }
        }
        Err(SourceError::Cancelled)
    }

    fn compression(&self, name: &Reference, blob: &Descriptor) -> Result<Compression, SourceError> {
        match layer_media_type(&blob.media_type) {
            Some(LayerMediaType { compression, .. }) => Ok(compression),
            None => {
                let fault = ImageFault::MediaType {
                    digest: blob.digest.clone(),
                    media_type: blob.media_type.clone(),
                };
                Err(SourceError::Image { image: name.clone(), fault: Box::new(fault) })
            }
        }
    }

    /// Downloads, keeps and unpacks in one pass. The two halves run at the same time; the first real error wins.
    async fn download(
        &self,
        name: &Reference,
        blob: &Descriptor,
        options: &ApplyOptions,
    ) -> Result<AppliedLayer, Fetch> {
        let mut stream = self.client.fetch_blob(name, blob).await.map_err(Fetch::Registry)?;
        let (sender, receiver) = mpsc::channel::<Result<Bytes, Cut>>(PIECE_QUEUE);
        let (store, options, expected) = (self.store.clone(), options.clone(), blob.clone());
        let waiting = Arc::new(Semaphore::new(QUEUE_BYTES as usize));
        let taken = Arc::clone(&waiting);
        let unpacking = tokio::task::spawn_blocking(move || -> Result<AppliedLayer, StoreError> {
            // Whoever waits for room is not left waiting when nobody reads any more.
            let taken = Closing(taken);
            let mut kept = store.blob_writer(Some(&expected.digest), expected.size)?;
            let reader = Pieces { receiver, taken: &taken.0, current: Bytes::new(), kept: &mut kept };
            let applied = store.apply_layer(reader, &options)?;
            kept.commit()?;
            Ok(applied)
        });
        let mut done = 0;
        let (mut failed, mut unpacks) = (None, true);
        while let Some(piece) = stream.next().await {
            match piece {
                Ok(bytes) => {
                    done += bytes.len() as u64;
                    self.progress.progress(&blob.digest, done, blob.size);
                    // A closed queue means that unpacking failed. Wrong bytes would be the cause of that, and
                    // only the digest of all of them tells.
                    let length = u32::try_from(bytes.len()).unwrap_or(QUEUE_BYTES).min(QUEUE_BYTES);
                    unpacks =
                        unpacks && waiting.acquire_many(length).await.map(SemaphorePermit::forget).is_ok();
                    unpacks = unpacks && sender.send(Ok(bytes)).await.is_ok();
                    if !unpacks && blob.size.saturating_sub(done) > VERIFY_LIMIT {
                        break;
                    }
                }
                Err(error) => {
                    let is_wrong = matches!(
                        *error.kind,
                        ErrorKind::DigestMismatch { .. } | ErrorKind::SizeMismatch { .. }
                    );
                    if unpacks || is_wrong {
                        failed = Some(error);
                    }
                    // Nobody listens any more if unpacking failed.
                    drop(sender.send(Err(Cut)).await);
                    break;
                }
            }
        }
        drop(sender);
        let applied = match unpacking.await {
            Ok(applied) => applied,
            Err(join) => std::panic::resume_unwind(join.into_panic()),
        };
        match failed {
            Some(error) => Err(Fetch::Registry(error)),
            None => applied.map_err(Fetch::Store),
        }
    }
}

/// Which half of a download failed.
enum Fetch {
    Registry(RegistryError),
    Store(StoreError),
}

/// The download broke off.
#[derive(Debug, thiserror::Error)]
#[error("the download broke off")]
struct Cut;

/// Room in a queue that nobody gets any more once this is gone.
struct Closing(Arc<Semaphore>);

impl Drop for Closing {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// The blocking end of a download: what is read is also kept.
struct Pieces<'a, W> {
    receiver: mpsc::Receiver<Result<Bytes, Cut>>,
    /// Where the room that a piece took in the queue goes back to.
    taken: &'a Semaphore,
    current: Bytes,
    kept: &'a mut W,
}

impl<W: io::Write> Read for Pieces<'_, W> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.receiver.blocking_recv() {
                Some(Ok(bytes)) => {
                    self.taken.add_permits(bytes.len().min(QUEUE_BYTES as usize));
                    self.kept.write_all(&bytes)?;
                    self.current = bytes;
                }
                Some(Err(cut)) => return Err(io::Error::other(cut)),
                None => return Ok(0),
            }
        }
        let length = buffer.len().min(self.current.len());
        buffer[..length].copy_from_slice(&self.current.split_to(length));
        Ok(length)
    }
}

/// Runs blocking work beside the runtime; a panic in it is a panic here.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(join) => std::panic::resume_unwind(join.into_panic()),
    }
}
