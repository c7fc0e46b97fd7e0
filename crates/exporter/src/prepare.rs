//! From an image to the blobs and documents a sink writes.
//!
//! Owns which bytes represent a layer: the blob it came as, a blob made before (the store remembers),
//! or a new one. Must not know where they go.
//!
//! Read [`LayerFormat`] and [`PreparedImage`] first.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::num::NonZero;
use std::sync::Mutex;

use futures::TryStreamExt as _;
use rayon::prelude::*;
use stave_oci::{
    Compression, Descriptor, Digest, ImageConfig, Manifest, Platform, Reference, Sha256Writer,
    layer_media_type,
};
use stave_store::{Store, TarOptions};
use tokio_util::io::SyncIoBridge;
use tokio_util::sync::CancellationToken;

use crate::compress::{Codec, Compressor};
use crate::document::{self, Document, Documents};
use crate::error::ExportErrorKind;
use crate::exporter::{ArchiveLayout, Context};
use crate::image::{ConfigDocument, Image, ImageLayerRef};
use crate::output::Counted;
use crate::spec::{ImageFormat, MediaTypes};

/// Blobs fetched back from their registry at once.
const FETCHES: usize = 4;
/// Bytes of the largest layer blob written.
const MAX_LAYER_BLOB: u64 = 1 << 40;

/// How layers and documents are to be written, defaults settled.
#[derive(Debug, Clone)]
pub(crate) struct LayerFormat {
    pub(crate) algorithm: Compression,
    pub(crate) level: Option<i32>,
    /// Recompress blobs of another compression.
    pub(crate) force: bool,
    family: MediaTypes,
    /// Whether `family` was asked for, so that an image's own manifest of the other one must go.
    family_asked: bool,
    annotations: BTreeMap<String, String>,
}

impl LayerFormat {
    /// How layers are pushed: gzip unless something else was asked for, for every reader there is.
    pub(crate) fn push(format: &ImageFormat) -> Self {
        Self::new(format, Compression::Gzip, MediaTypes::Oci)
    }

    /// How layers lie in an archive.
    pub(crate) fn archive(layout: ArchiveLayout, format: &ImageFormat) -> Self {
        match layout {
            ArchiveLayout::Oci => Self::new(format, Compression::Gzip, MediaTypes::Oci),
            // As `docker save`: every loader takes plain tars, and no time goes into compression.
            ArchiveLayout::Docker => {
                let plain = Self::new(format, Compression::None, MediaTypes::Oci);
                Self { force: plain.force || format.compression.algorithm.is_none(), ..plain }
            }
        }
    }

    fn new(format: &ImageFormat, compression: Compression, family: MediaTypes) -> Self {
        Self {
            algorithm: format.compression.algorithm.unwrap_or(compression),
            level: format.compression.level,
            force: format.compression.force,
            family: format.media_types.unwrap_or(family),
            family_asked: format.media_types.is_some(),
            annotations: format.annotations.manifest.clone(),
        }
    }
}

/// An image whose every byte is settled.
#[derive(Debug)]
pub(crate) struct PreparedImage {
    pub(crate) documents: Documents,
    pub(crate) layers: Vec<PreparedLayer>,
    pub(crate) names: Vec<Reference>,
    pub(crate) platform: Platform,
    pub(crate) created: Option<String>,
}

/// A layer's descriptor, and how to come by its bytes.
#[derive(Debug, Clone)]
pub(crate) struct PreparedLayer {
    pub(crate) descriptor: Descriptor,
    pub(crate) content: LayerContent,
}

/// Where a layer's bytes come from.
#[derive(Debug, Clone)]
pub(crate) enum LayerContent {
    /// The store's blob of the descriptor's digest.
    Blob,
    /// An uncompressed tar, made while it is written.
    Plain(Box<ImageLayerRef>),
}

/// The config's bytes with everything filled in, and the layers' diff ids.
pub(crate) fn seal(store: &Store, image: &Image) -> Result<(Vec<u8>, Vec<Digest>), ExportErrorKind> {
    let layers: Vec<_> = image.layers.iter().map(|layer| layer.layer).collect();
    let diff_ids = layers.par_iter().map(|layer| store.diff_id(*layer)).collect::<Result<Vec<_>, _>>()?;
    let config = match &image.config {
        ConfigDocument::Built(config) => {
            document::seal_config(config.as_ref().clone(), diff_ids.clone()).to_bytes()
        }
        ConfigDocument::Fixed(bytes) => bytes.clone(),
    };
    Ok((config, diff_ids))
}

/// Settles an image in `format`, several layers at a time.
pub(crate) fn image(
    context: &Context,
    image: &Image,
    names: Vec<Reference>,
    format: &LayerFormat,
) -> Result<PreparedImage, ExportErrorKind> {
    let (config, diff_ids) = seal(&context.store, image)?;
    let jobs: Vec<_> = image.layers.iter().zip(&diff_ids).collect();
    let layers = in_parallel(&jobs, |(layer, diff_id)| prepare_layer(context, layer, diff_id, format))?;
    let descriptors: Vec<_> = layers.iter().map(|layer| layer.descriptor.clone()).collect();
    let documents = documents(image, config, &descriptors, format);
    let created =
        serde_json::from_slice::<ImageConfig>(&documents.config.bytes).ok().and_then(|config| config.created);
    Ok(PreparedImage { documents, layers, names, platform: image.platform.clone(), created })
}

/// The documents over `layers`: the image's own manifest while it still says the truth.
pub(crate) fn documents(
    image: &Image,
    config: Vec<u8>,
    layers: &[Descriptor],
    format: &LayerFormat,
) -> Documents {
    let documents = document::assemble(config, layers, format.family, &format.annotations);
    let Some(own) = &image.manifest else { return documents };
    let same_family = !format.family_asked || own.media_type == documents.manifest.descriptor.media_type;
    let Ok(manifest) = serde_json::from_slice::<Manifest>(&own.bytes) else { return documents };
    let same_layers =
        manifest.layers.iter().map(|layer| &layer.digest).eq(layers.iter().map(|layer| &layer.digest));
    let same_config = manifest.config.digest == documents.config.descriptor.digest;
    if !same_family || !same_layers || !same_config || !format.annotations.is_empty() {
        return documents;
    }
    let config = Document { descriptor: manifest.config, ..documents.config };
    Documents { config, manifest: Document::new(&own.media_type, own.bytes.clone()) }
}

/// Runs `work` on every item, on as many threads as there are processors. Not on rayon's: each of
/// these threads waits for pieces that rayon's compress.
fn in_parallel<I: Sync, T: Send>(
    items: &[I],
    work: impl Fn(&I) -> Result<T, ExportErrorKind> + Sync,
) -> Result<Vec<T>, ExportErrorKind> {
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get).min(items.len());
    let next = Mutex::new(0..items.len());
    let take = || next.lock().unwrap_or_else(std::sync::PoisonError::into_inner).next();
    let mut results: Vec<(usize, T)> = std::thread::scope(|scope| {
        let run = || {
            let mut done = Vec::new();
            while let Some(index) = take() {
                done.push((index, work(&items[index])?));
            }
            Ok(done)
        };
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(run)).collect();
        let joined =
            threads.into_iter().map(|thread| thread.join().unwrap_or(Err(ExportErrorKind::ThreadDied)));
        joined.collect::<Result<Vec<_>, _>>().map(|parts| parts.into_iter().flatten().collect())
    })?;
    results.sort_by_key(|(index, _)| *index);
    Ok(results.into_iter().map(|(_, result)| result).collect())
}

fn prepare_layer(
    context: &Context,
    layer: &ImageLayerRef,
    diff_id: &Digest,
    format: &LayerFormat,
) -> Result<PreparedLayer, ExportErrorKind> {
    if format.algorithm == Compression::None
        && (format.force || kept_blob(&context.store, layer, format)?.is_none())
    {
        let mut sink = io::sink();
        let mut counted = Counted::new(&mut sink, &context.cancel);
        write_plain(&context.store, layer, diff_id, &mut counted)?;
        let media_type = Compression::None.oci_media_type();
        let descriptor = Descriptor::new(media_type, diff_id.clone(), counted.written);
        return Ok(PreparedLayer { descriptor, content: LayerContent::Plain(Box::new(layer.clone())) });
    }
    let descriptor = blob(&context.store, layer, diff_id, format, &context.cancel)?;
    Ok(PreparedLayer { descriptor, content: LayerContent::Blob })
}

/// The layer's blob in the store, made if there is none that will do.
pub(crate) fn blob(
    store: &Store,
    layer: &ImageLayerRef,
    diff_id: &Digest,
    format: &LayerFormat,
    cancel: &CancellationToken,
) -> Result<Descriptor, ExportErrorKind> {
    if let Some(kept) = kept_blob(store, layer, format)? {
        return Ok(kept);
    }
    let mut writer = store.blob_writer(None, MAX_LAYER_BLOB)?;
    let mut counted = Counted::new(&mut writer, cancel);
    let mut compressor = Compressor::new(&mut counted, Codec::new(format.algorithm, format.level));
    write_plain(store, layer, diff_id, &mut compressor)?;
    compressor.finish()?;
    let (digest, size) = writer.commit()?;
    let descriptor = Descriptor::new(format.algorithm.oci_media_type(), digest, size);
    if format.level.is_none() {
        store.set_compressed(layer.layer, format.algorithm, &descriptor)?;
    }
    Ok(descriptor)
}

/// A blob that is in the store and need not be made again.
pub(crate) fn kept_blob(
    store: &Store,
    layer: &ImageLayerRef,
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
        && let Some(blob) = store.compressed(layer.layer, format.algorithm)?
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

/// Writes the layer's uncompressed tar, and makes sure that it is the one its image names.
pub(crate) fn write_plain(
    store: &Store,
    layer: &ImageLayerRef,
    diff_id: &Digest,
    output: &mut dyn Write,
) -> Result<(), ExportErrorKind> {
    let mut hashing = Sha256Writer::new(output);
    // An archive's tar is not the one we would write of its files, so its blob goes first.
    match source_blob(store, layer)? {
        Some(file) => {
            io::copy(&mut decompress(file)?, &mut hashing)?;
        }
        None => store.write_layer_tar(layer.layer, &mut hashing, &TarOptions::default())?,
    }
    let (_, found, _) = hashing.finish();
    if found != *diff_id {
        return Err(ExportErrorKind::LayerChanged { expected: diff_id.clone(), found });
    }
    Ok(())
}

fn source_blob(store: &Store, layer: &ImageLayerRef) -> Result<Option<File>, ExportErrorKind> {
    match &layer.blob {
        Some(blob) => Ok(store.open_blob(&blob.digest)?),
        None => Ok(None),
    }
}

/// Reads a blob uncompressed, by what its first bytes say.
fn decompress(file: File) -> io::Result<Box<dyn Read>> {
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

/// Brings one layer's blob back. A layer without a known origin stays as it is: perhaps its own
/// files give the same tar.
pub(crate) async fn fetch(context: &Context, layer: &ImageLayerRef) -> Result<(), ExportErrorKind> {
    let (Some(blob), Some(origin)) = (&layer.blob, &layer.origin) else { return Ok(()) };
    if context.store.has_blob(&blob.digest)? {
        return Ok(());
    }
    let stream = context.client.fetch_blob(origin, blob).await?;
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
