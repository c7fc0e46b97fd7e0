//! Layers of a cache into the store: those that are here are not fetched, and what arrives is verified before it
//! is unpacked.

use std::fs::File;
use std::io;
use std::time::SystemTime;

use futures::{StreamExt as _, TryStreamExt as _};
use stave_oci::{Compression, Descriptor, Digest, layer_media_type};
use stave_store::{AbsoluteNames, ApplyOptions, LayerId, LayerLimits, Store, StoreError};
use tokio_util::io::SyncIoBridge;

use crate::chains::LayerStack;
use crate::config::{CREATED_AT, UNCOMPRESSED};
use crate::place::{Content, Place, PlaceError};

/// Layers fetched at once.
const PARALLEL: usize = 4;

/// Bounds on one layer nobody vouches for.
const LIMITS: LayerLimits = LayerLimits { entries: 10_000_000, path_bytes: 4096, total_bytes: 1 << 40 };

/// Why a layer could not be had.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The place failed.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// The bytes are not what was promised, or no layer.
    #[error("layer {digest}")]
    Layer {
        /// Which.
        digest: Digest,
        /// Why.
        #[source]
        source: Box<StoreError>,
    },
    /// The cache does not say what the layer's uncompressed digest is.
    #[error("missing uncompressed annotation for {0}")]
    NoDiffId(Digest),
    /// Not a layer's media type.
    #[error("layer {digest} has the unknown media type `{media_type}`")]
    MediaType {
        /// Which.
        digest: Digest,
        /// Its type.
        media_type: String,
    },
}

/// Why a layer is not at the place it was to be brought to.
#[derive(Debug, thiserror::Error)]
pub enum PassError {
    /// The cache does not have it any more, or not as it says.
    #[error(transparent)]
    Lost(FetchError),
    /// The place it was to go to failed.
    #[error(transparent)]
    Refused(PlaceError),
}

/// Whose the blobs in the store are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    /// Who builds may read all of them.
    Own,
    /// Others', too. A digest in a cache is no leave to read one: the cache has to bring the bytes.
    Shared,
}

/// The layers of a stack in the store, bottom first.
pub(super) async fn stack(
    store: &Store,
    place: &Place,
    name: &str,
    stack: &LayerStack,
) -> Result<Vec<LayerId>, FetchError> {
    // A result is as old as its uppermost layer. Of the others a cache may say when they were made, if not to the
    // millisecond; where it does not, they are not younger than what stands on them.
    let top = stack.layers.len().saturating_sub(1);
    let mut fetches = Vec::with_capacity(stack.layers.len());
    for (at, descriptor) in stack.layers.iter().enumerate() {
        let own = descriptor.annotations.get(CREATED_AT).and_then(|text| time(text));
        let of_result = time(&stack.created_at);
        let made = if at == top { of_result.or(own) } else { own.or(of_result) };
        fetches.push(layer((store, place, name), descriptor, made));
    }
    futures::stream::iter(fetches).buffered(PARALLEL).try_collect().await
}

/// A record's time; caches know a time before all times for those that have none.
fn time(text: &str) -> Option<SystemTime> {
    let at = text.parse::<jiff::Timestamp>().ok()?;
    (at > jiff::Timestamp::UNIX_EPOCH).then(|| at.into())
}

async fn layer(
    (store, place, name): (&Store, &Place, &str),
    descriptor: &Descriptor,
    made: Option<SystemTime>,
) -> Result<LayerId, FetchError> {
    let digest = &descriptor.digest;
    let diff_id = descriptor.annotations.get(UNCOMPRESSED).and_then(|text| text.parse::<Digest>().ok());
    let diff_id = diff_id.ok_or_else(|| FetchError::NoDiffId(digest.clone()))?;
    let broken = |source| FetchError::Layer { digest: digest.clone(), source: Box::new(source) };
    let Some(media_type) = layer_media_type(&descriptor.media_type) else {
        let media_type = descriptor.media_type.chars().take(160).collect();
        return Err(FetchError::MediaType { digest: digest.clone(), media_type });
    };
    let options = ApplyOptions {
        compression: None,
        diff_id: Some(diff_id.clone()),
        limits: LIMITS,
        absolute_names: AbsoluteNames::Refuse,
        description: format!("imported from {name}"),
        made,
    };
    let (known, wanted) = (store.clone(), diff_id.clone());
    let known = blocking(move || known.layer_by_diff_id(&wanted)).await.map_err(broken)?;
    if let Some(layer) = known {
        return Ok(layer);
    }
    if !store.has_blob(digest).map_err(broken)? {
        download(store, place, descriptor).await?;
    }
    let (store, descriptor) = (store.clone(), descriptor.clone());
    let compression: Compression = media_type.compression;
    blocking(move || {
        let file = store.open_blob(&descriptor.digest)?;
        let file = file.ok_or(StoreError::DamagedRecord { what: "a blob" })?;
        let applied = store.apply_layer(io::BufReader::new(file), &options)?;
        store.set_compressed(applied.layer, compression, &plain(&descriptor))?;
        Ok(applied.layer)
    })
    .await
    .map_err(broken)
}

/// The descriptor without what only this cache says of it.
fn plain(descriptor: &Descriptor) -> Descriptor {
    Descriptor::new(&descriptor.media_type, descriptor.digest.clone(), descriptor.size)
}

/// Makes sure that a layer is at another place, too.
pub(super) async fn pass_on(
    (store, stored): (&Store, Stored),
    from: &Place,
    layer: &Descriptor,
    to: &Place,
) -> Result<(), PassError> {
    if to.has_blob(layer).await.map_err(PassError::Refused)? {
        return Ok(());
    }
    if let Place::Registry { reference, .. } = from
        && to.mount_blob(&layer.digest, reference).await.map_err(PassError::Refused)?
    {
        return Ok(());
    }
    let file = bytes((store, stored), from, layer).await.map_err(PassError::Lost)?;
    to.send_blob(&plain(layer), Content::File(file)).await.map_err(PassError::Refused)
}

/// A layer's bytes, which are what its digest says.
async fn bytes(
    (store, stored): (&Store, Stored),
    from: &Place,
    layer: &Descriptor,
) -> Result<File, FetchError> {
    let digest = &layer.digest;
    let broken = |source| FetchError::Layer { digest: digest.clone(), source: Box::new(source) };
    if stored == Stored::Shared || !store.has_blob(digest).map_err(broken)? {
        download(store, from, layer).await?;
    }
    let file = store.open_blob(digest).map_err(broken)?;
    file.ok_or_else(|| broken(StoreError::DamagedRecord { what: "a blob" }))
}

async fn download(store: &Store, place: &Place, descriptor: &Descriptor) -> Result<(), FetchError> {
    let reader = place.blob(descriptor).await?;
    let (store, digest, size) = (store.clone(), descriptor.digest.clone(), descriptor.size);
    let mut reader = SyncIoBridge::new(reader);
    let copied = blocking(move || {
        let mut writer = store.blob_writer(Some(&digest), size).map_err(Copying::Store)?;
        io::copy(&mut reader, &mut writer).map_err(Copying::Read)?;
        writer.commit().map_err(Copying::Store)
    });
    match copied.await {
        Ok(_) => Ok(()),
        Err(Copying::Read(error)) => Err(PlaceError::Cut(error).into()),
        Err(Copying::Store(source)) => {
            Err(FetchError::Layer { digest: descriptor.digest.clone(), source: Box::new(source) })
        }
    }
}

/// Which end of a download failed.
enum Copying {
    Read(io::Error),
    Store(StoreError),
}

async fn blocking<T: Send + 'static, E: Send + 'static>(
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, E> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(join) => std::panic::resume_unwind(join.into_panic()),
    }
}
