//! The bytes that represent a layer: the blob it came as, one made before, or a new one.
//!
//! Owns which of them it is, and the one pass over a layer's files that makes a new one. Must not know where blobs go.
//!
//! Start with [`make`].

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::sync::{Arc, Mutex, PoisonError};

use futures::TryStreamExt as _;
use stave_oci::{Compression, Descriptor, Digest, Sha256Writer, layer_media_type};
use stave_registry::RegistryError;
use stave_store::{LayerTar, Store};
use tokio::sync::oneshot;
use tokio_util::io::SyncIoBridge;
use tokio_util::sync::CancellationToken;

use crate::compress::{Codec, Compressor};
use crate::error::ExportErrorKind;
use crate::exporter::Context;
use crate::growing::{Growing, GrowingWriter};
use crate::image::{Image, ImageLayerRef};
use crate::output::Counted;
use crate::prepare::{LayerFormat, SealedLayer};

/// Blobs fetched back from their registry at once.
const FETCHES: usize = 4;
/// Bytes of the largest layer blob written.
const MAX_LAYER_BLOB: u64 = 1 << 40;

/// Blobs that could not be had again from where they came, and why: no failure until something turns out to need one.
#[derive(Debug, Clone, Default)]
pub(crate) struct Unfetched(Arc<Mutex<Missed>>);

/// The blob that something is missed of, and why that is not here.
type Missed = HashMap<Digest, (Digest, Arc<RegistryError>)>;

impl Unfetched {
    /// Keeps why a layer's blob is not here, by all the digests that it is missed by.
    pub(crate) fn note(&self, blob: &Digest, layer: Option<&Digest>, error: RegistryError) {
        let error = Arc::new(error);
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for digest in std::iter::once(blob).chain(layer) {
            known.insert(digest.clone(), (blob.clone(), Arc::clone(&error)));
        }
    }

    /// A failure, with what led to it.
    pub(crate) fn explain(&self, kind: ExportErrorKind) -> ExportErrorKind {
        let missed = match &kind {
            ExportErrorKind::LayerChanged { expected, .. } => expected,
            ExportErrorKind::BlobMissing(digest) => digest,
            _ => return kind,
        };
        let found = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(missed).cloned();
        found.map_or(kind, |(blob, source)| ExportErrorKind::NotFetched { blob, source })
    }
}

/// The layer's blob in the store, made if there is none that will do. `started` gets it while it is made, for whoever
/// wants to send it meanwhile.
pub(crate) fn make(
    store: &Store,
    (layer, sealed): (&ImageLayerRef, &SealedLayer),
    format: &LayerFormat,
    cancel: &CancellationToken,
    started: Option<oneshot::Sender<Arc<Growing>>>,
) -> Result<Descriptor, ExportErrorKind> {
    if let Some(kept) = kept(store, layer, sealed.tar, format)? {
        return Ok(kept);
    }
    let mut writer = store.blob_writer(None, MAX_LAYER_BLOB)?;
    let mut watched = GrowingWriter::new(&mut writer)?;
    if let Some(started) = started {
        // Nobody may be left to send it.
        drop(started.send(watched.growing()));
    }
    let mut counted = Counted::new(&mut watched, cancel);
    let mut compressor = Compressor::new(&mut counted, Codec::new(format.algorithm, format.level));
    write_plain(store, layer, sealed, &mut compressor)?;
    compressor.finish()?;
    watched.finish();
    let (digest, size) = writer.commit()?;
    let descriptor = Descriptor::new(format.algorithm.oci_media_type(), digest, size);
    if format.level.is_none() {
        store.set_compressed_tar(sealed.tar, format.algorithm, &descriptor)?;
    }
    Ok(descriptor)
}

/// A blob that is in the store and need not be made again.
pub(crate) fn kept(
    store: &Store,
    layer: &ImageLayerRef,
    tar: LayerTar,
    format: &LayerFormat,
) -> Result<Option<Descriptor>, ExportErrorKind> {
    if let Some(blob) = &layer.blob
        && wanted(blob, format)
        && store.has_blob(&blob.digest)?
    {
        return Ok(Some(blob.clone()));
    }
    // What the store remembers was made at the default level.
    if format.level.is_none()
        && let Some(blob) = store.compressed_tar(tar, format.algorithm)?
        && store.has_blob(&blob.digest)?
    {
        return Ok(Some(blob));
    }
    Ok(None)
}

/// Whether a layer may stay the blob it came as.
pub(crate) fn wanted(blob: &Descriptor, format: &LayerFormat) -> bool {
    let compression = layer_media_type(&blob.media_type).map(|media_type| media_type.compression);
    !format.force || (compression == Some(format.algorithm) && format.level.is_none())
}

/// Writes the layer's uncompressed tar, and makes sure that it is the one its image names. One that was digested here
/// is not digested again: layers do not change.
pub(crate) fn write_plain(
    store: &Store,
    layer: &ImageLayerRef,
    sealed: &SealedLayer,
    output: &mut dyn Write,
) -> Result<(), ExportErrorKind> {
    // An archive's tar is not the one we would write of its files, so its blob goes first.
    let source = source(store, layer)?;
    if sealed.is_own && source.is_none() {
        let mut output = output;
        return Ok(store.write_layer_tar(layer.layer, &mut output, &sealed.tar.options())?);
    }
    let diff_id = &sealed.diff_id;
    let mut hashing = Sha256Writer::new(output);
    match source {
        Some(file) => {
            io::copy(&mut decompress(file)?, &mut hashing)?;
        }
        None => store.write_layer_tar(layer.layer, &mut hashing, &sealed.tar.options())?,
    }
    let (_, found, _) = hashing.finish();
    if found != *diff_id {
        return Err(ExportErrorKind::LayerChanged { expected: diff_id.clone(), found });
    }
    Ok(())
}

/// Bytes of the layer's uncompressed tar.
pub(crate) fn plain_length(
    context: &Context,
    layer: &ImageLayerRef,
    sealed: &SealedLayer,
) -> Result<u64, ExportErrorKind> {
    let Some(file) = source(&context.store, layer)? else {
        return Ok(context.store.layer_tar_length(layer.layer, &sealed.tar.options())?);
    };
    let mut sink = io::sink();
    let mut counted = Counted::new(&mut sink, &context.cancel);
    Ok(io::copy(&mut decompress(file)?, &mut counted)?)
}

fn source(store: &Store, layer: &ImageLayerRef) -> Result<Option<File>, ExportErrorKind> {
    match &layer.blob {
        Some(blob) => Ok(store.open_blob(&blob.digest)?),
        None => Ok(None),
    }
}

/// Reads a blob uncompressed, by what its first bytes say.
pub(crate) fn decompress(file: File) -> io::Result<Box<dyn Read>> {
    use std::os::unix::fs::FileExt as _;
    let mut magic = [0; 4];
    let count = file.read_at(&mut magic, 0)?;
    Ok(match Compression::sniff(&magic[..count]) {
        Compression::None => Box::new(file),
        Compression::Gzip => {
            Box::new(flate2::read::MultiGzDecoder::new(io::BufReader::with_capacity(128 << 10, file)))
        }
        Compression::Zstd => Box::new(zstd::stream::read::Decoder::new(file)?),
    })
}

/// Brings back blobs of pulled layers that the store let go, from where they came.
pub(crate) async fn fetch_missing(context: &Context, image: &Image) -> Result<(), ExportErrorKind> {
    let layers = futures::stream::iter(image.layers.iter().map(Ok));
    layers.try_for_each_concurrent(FETCHES, |layer| fetch(context, layer)).await
}

/// Brings one layer's blob back. A layer without a known origin, or with one that does not have it, stays as it is:
/// perhaps its own files give the same tar. Else it is told why it could not be had.
pub(crate) async fn fetch(context: &Context, layer: &ImageLayerRef) -> Result<(), ExportErrorKind> {
    let (Some(blob), Some(origin)) = (&layer.blob, &layer.origin) else { return Ok(()) };
    if context.store.has_blob(&blob.digest)? {
        return Ok(());
    }
    let stream = match context.client.fetch_blob(origin, blob).await {
        Ok(stream) => stream,
        Err(error) => {
            tracing::debug!(blob = %blob.digest, %error, "not where its image came from");
            context.unfetched.note(&blob.digest, layer.diff_id.as_ref(), error);
            return Ok(());
        }
    };
    let (store, digest, size) = (context.store.clone(), blob.digest.clone(), blob.size);
    let cancel = context.cancel.clone();
    let mut reader = SyncIoBridge::new(stream.into_async_read());
    let copied = tokio::task::spawn_blocking(move || -> Result<(), ExportErrorKind> {
        let mut writer = store.blob_writer(Some(&digest), size)?;
        io::copy(&mut reader, &mut Counted::new(&mut writer, &cancel))?;
        writer.commit()?;
        Ok(())
    });
    copied.await.unwrap_or(Err(ExportErrorKind::ThreadDied))
}
