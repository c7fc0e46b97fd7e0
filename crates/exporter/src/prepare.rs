//! From an image to the blobs and documents a sink writes.
//!
//! Owns how layers and documents are to be written, and when their every byte is settled; which blob stands for a layer
//! is [`blob`]'s. Must not know where they go.
//!
//! Read [`LayerFormat`] and [`PreparedImage`] first.

use std::num::NonZero;
use std::sync::Mutex;

use rayon::prelude::*;
use stave_oci::{
    Compression, Descriptor, Digest, ImageConfig, Manifest, Platform, Reference, layer_media_type,
};
use stave_store::{LayerTar, Store, StoredIndex};

use crate::attestation::{self, AttestationManifest};
use crate::blob;
use crate::document::{self, Document, Documents, PlatformEntry};
use crate::error::ExportErrorKind;
use crate::exporter::{ArchiveLayout, Context};
use crate::image::{ConfigDocument, Image, ImageLayerRef};
use crate::spec::{Annotations, ImageFormat, MediaTypes};
use crate::supplement::supplemented;

/// The annotation of a layer whose times were rewritten: to which.
const REWRITTEN: &str = "buildkit/rewritten-timestamp";

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
    annotations: Annotations,
    /// Layers of types that may not be distributed keep their type.
    nondistributable: bool,
    /// Whether it was asked for that new layers' times become the epoch.
    is_rewritten: bool,
}

impl LayerFormat {
    /// Whether a layer stays where it lies: its kind may not be distributed, and was asked to be kept.
    pub(crate) fn leaves_elsewhere(&self, blob: &Descriptor) -> bool {
        let is_foreign = || layer_media_type(&blob.media_type).is_some_and(|found| found.foreign);
        self.nondistributable && !blob.urls.is_empty() && is_foreign()
    }

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
            annotations: format.annotations.clone(),
            nondistributable: format.nondistributable,
            is_rewritten: format.rewrite_timestamps == Some(true),
        }
    }

    /// The family of media types its documents carry.
    pub(crate) fn family(&self) -> MediaTypes {
        self.family
    }
}

/// An image whose every byte is settled.
#[derive(Debug)]
pub(crate) struct PreparedImage {
    pub(crate) documents: Documents,
    pub(crate) attestation: Option<AttestationManifest>,
    pub(crate) layers: Vec<PreparedLayer>,
    pub(crate) platform: Platform,
    pub(crate) created: Option<String>,
}

/// One image under its names: of one platform, or of several with their index.
#[derive(Debug)]
pub(crate) struct PreparedSet {
    pub(crate) images: Vec<PreparedImage>,
    pub(crate) index: Option<Document>,
    pub(crate) names: Vec<Reference>,
    /// What stands in a layout's index: the own index's descriptor, else the manifest's.
    pub(crate) top: Descriptor,
    /// What came from elsewhere and is written as it came, in place of all others.
    pub(crate) kept: Option<StoredIndex>,
}

/// An index that is written as it came.
pub(crate) fn kept(index: &StoredIndex, names: &[Reference]) -> Result<PreparedSet, ExportErrorKind> {
    let top = index.top().ok_or(ExportErrorKind::NoImage)?;
    let top = Descriptor::new(&top.media_type, top.digest.clone(), top.bytes.len() as u64);
    let (names, kept) = (names.to_vec(), Some(index.clone()));
    Ok(PreparedSet { images: Vec::new(), index: None, names, top, kept })
}

/// Whether `images` need an index over their manifests; annotations for documents that are not written
/// are errors.
pub(crate) fn needs_index(images: &[Image], format: &ImageFormat) -> Result<bool, ExportErrorKind> {
    let annotations = &format.annotations;
    for platform in annotations.platforms.keys() {
        if !images.iter().any(|image| image.platform.to_string() == *platform) {
            return Err(ExportErrorKind::AnnotationPlatform(platform.clone()));
        }
    }
    let needed =
        format.always_index || images.len() > 1 || images.iter().any(|image| !image.attestations.is_empty());
    let is_annotated = !annotations.index.is_empty() || !annotations.index_descriptor.is_empty();
    if is_annotated && !needed {
        return Err(ExportErrorKind::IndexAnnotations);
    }
    Ok(needed)
}

/// Settles the platforms of one image.
pub(crate) fn set(
    context: &Context,
    images: &[Image],
    names: Vec<Reference>,
    format: &ImageFormat,
    layers_as: &LayerFormat,
) -> Result<PreparedSet, ExportErrorKind> {
    let with_index = needs_index(images, format)?;
    let prepared = images
        .iter()
        .map(|one| image(context, one, &names, format, layers_as))
        .collect::<Result<Vec<_>, _>>()?;
    let first = prepared.first().ok_or(ExportErrorKind::NoImage)?;
    let (index, top) = if with_index {
        let entries = prepared.iter().map(|image| PlatformEntry {
            manifest: image.documents.manifest.descriptor.clone(),
            platform: image.platform.clone(),
            attestation: image.attestation.as_ref().map(|found| found.manifest.descriptor.clone()),
        });
        let index = document::platform_index(entries.collect(), &format.annotations, layers_as.family());
        let mut top = index.descriptor.clone();
        top.annotations.extend(format.annotations.index_descriptor.clone());
        (Some(index), top)
    } else {
        let mut top = first.documents.manifest.descriptor.clone();
        top.annotations.extend(format.annotations.of_descriptor(&first.platform));
        top.platform = Some(first.platform.clone());
        (None, top)
    };
    Ok(PreparedSet { images: prepared, index, names, top, kept: None })
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
    Plain(Box<(ImageLayerRef, SealedLayer)>),
}

/// The tar that stands for a layer of `image`, and its digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SealedLayer {
    pub(crate) tar: LayerTar,
    pub(crate) diff_id: Digest,
    /// The digest was made here, of what the layer's files give: writing them again gives the same tar.
    pub(crate) is_own: bool,
}

/// An image whose config is complete.
#[derive(Debug, Clone)]
pub(crate) struct Sealed {
    pub(crate) image: Image,
    pub(crate) config: Vec<u8>,
    pub(crate) layers: Vec<SealedLayer>,
}

impl Sealed {
    /// The image id.
    pub(crate) fn id(&self) -> Digest {
        Digest::sha256(&self.config)
    }
}

/// The config's bytes with everything filled in, and the layers' diff ids.
pub(crate) fn seal(store: &Store, image: &Image, format: &ImageFormat) -> Result<Sealed, ExportErrorKind> {
    let epoch = clamp(image, format);
    let layers = seal_layers(store, &image.layers, epoch)?;
    let diff_ids = layers.iter().map(|layer| layer.diff_id.clone()).collect();
    let config = match &image.config {
        ConfigDocument::Built(config) => {
            let config = document::dated(config.as_ref().clone(), format.epoch);
            document::seal_config(config, diff_ids).to_bytes()
        }
        ConfigDocument::Fixed(bytes) => bytes.clone(),
    };
    Ok(Sealed { image: image.clone(), config, layers })
}

/// The latest time that files of new layers carry: the image's, unless the target says otherwise.
fn clamp(image: &Image, format: &ImageFormat) -> Option<i64> {
    match format.rewrite_timestamps {
        Some(false) => None,
        Some(true) => format.epoch.or(image.epoch),
        None => image.epoch.and(format.epoch.or(image.epoch)),
    }
}

/// Layers whose digests are remembered are looked up here: the threads that digest the others are made when they are
/// needed.
fn seal_layers(
    store: &Store,
    layers: &[ImageLayerRef],
    epoch: Option<i64>,
) -> Result<Vec<SealedLayer>, ExportErrorKind> {
    let mut unknown = Vec::new();
    for layer in layers.iter().filter(|layer| layer.diff_id.is_none()) {
        if store.known_tar_diff_id(tar_of(layer, epoch))?.is_none() {
            unknown.push(tar_of(layer, epoch));
        }
    }
    if !unknown.is_empty() {
        unknown.par_iter().try_for_each(|tar| store.tar_diff_id(*tar).map(drop))?;
    }
    layers.iter().map(|layer| seal_layer(store, layer, epoch)).collect()
}

/// The tar of a layer that no digest is known of. What was unpacked came with its times, which are its image's and not
/// this build's.
fn tar_of(layer: &ImageLayerRef, epoch: Option<i64>) -> LayerTar {
    LayerTar { layer: layer.layer, clamp: if layer.blob.is_some() { None } else { epoch } }
}

pub(crate) fn seal_layer(
    store: &Store,
    layer: &ImageLayerRef,
    epoch: Option<i64>,
) -> Result<SealedLayer, ExportErrorKind> {
    if let Some(diff_id) = &layer.diff_id {
        // One that is not known to be of these files can still be: writing it will tell.
        let tar = store.tar_of(layer.layer, diff_id)?.unwrap_or(LayerTar::plain(layer.layer));
        // A plain tar's digest may be that of the archive that the files came from.
        return Ok(SealedLayer { tar, diff_id: diff_id.clone(), is_own: tar.clamp.is_some() });
    }
    let tar = tar_of(layer, epoch);
    let is_own = layer.blob.is_none() && tar.clamp.is_some();
    Ok(SealedLayer { diff_id: store.tar_diff_id(tar)?, tar, is_own })
}

/// Settles an image in `format`, several layers at a time.
pub(crate) fn image(
    context: &Context,
    image: &Image,
    names: &[Reference],
    format: &ImageFormat,
    layers_as: &LayerFormat,
) -> Result<PreparedImage, ExportErrorKind> {
    let sealed = seal(&context.store, image, format)?;
    let jobs: Vec<_> = image.layers.iter().zip(&sealed.layers).collect();
    let layers = in_parallel(&jobs, |(layer, tar)| prepare_layer(context, layer, tar, layers_as))?;
    let descriptors: Vec<_> = layers.iter().map(|layer| layer.descriptor.clone()).collect();
    let documents = documents(&sealed, &descriptors, layers_as);
    let created = created(&sealed.config);
    let told = supplemented(&context.store, image, &descriptors)?;
    let attestation = attestation::manifest(&told, &documents.manifest.descriptor, names, format)?;
    Ok(PreparedImage { documents, attestation, layers, platform: image.platform.clone(), created })
}

/// The time a config carries.
pub(crate) fn created(config: &[u8]) -> Option<String> {
    serde_json::from_slice::<ImageConfig>(config).ok().and_then(|config| config.created)
}

/// The documents over `layers`: the image's own manifest while it still says the truth.
pub(crate) fn documents(sealed: &Sealed, layers: &[Descriptor], format: &LayerFormat) -> Documents {
    let annotations = format.annotations.of_manifest(&sealed.image.platform);
    let marked = if format.is_rewritten { marked(sealed, layers) } else { layers.to_vec() };
    let documents = document::assemble(
        sealed.config.clone(),
        &marked,
        (format.family, format.nondistributable),
        &annotations,
    );
    let Some(own) = &sealed.image.manifest else { return documents };
    let same_family = !format.family_asked || own.media_type == documents.manifest.descriptor.media_type;
    let Ok(manifest) = serde_json::from_slice::<Manifest>(&own.bytes) else { return documents };
    let same_layers =
        manifest.layers.iter().map(|layer| &layer.digest).eq(layers.iter().map(|layer| &layer.digest));
    let same_config = manifest.config.digest == documents.config.descriptor.digest;
    if !same_family || !same_layers || !same_config || !annotations.is_empty() {
        return documents;
    }
    let config = Document { descriptor: manifest.config, ..documents.config };
    Documents { config, manifest: Document::new(&own.media_type, own.bytes.clone()) }
}

/// Layers made here say which time theirs became, as BuildKit's do.
fn marked(sealed: &Sealed, layers: &[Descriptor]) -> Vec<Descriptor> {
    let mut layers = layers.to_vec();
    let known = sealed.image.layers.iter().zip(&sealed.layers);
    for (descriptor, (origin, layer)) in layers.iter_mut().zip(known) {
        if let (None, None, Some(epoch)) = (&origin.blob, &origin.diff_id, layer.tar.clamp) {
            descriptor.annotations.insert(REWRITTEN.to_owned(), epoch.to_string());
        }
    }
    layers
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
    sealed: &SealedLayer,
    format: &LayerFormat,
) -> Result<PreparedLayer, ExportErrorKind> {
    if format.algorithm == Compression::None
        && (format.force || blob::kept(&context.store, layer, sealed.tar, format)?.is_none())
    {
        let length = blob::plain_length(context, layer, sealed)?;
        let media_type = Compression::None.oci_media_type();
        let descriptor = Descriptor::new(media_type, sealed.diff_id.clone(), length);
        let content = LayerContent::Plain(Box::new((layer.clone(), sealed.clone())));
        return Ok(PreparedLayer { descriptor, content });
    }
    let descriptor = blob::make(&context.store, (layer, sealed), format, &context.cancel, None)?;
    Ok(PreparedLayer { descriptor, content: LayerContent::Blob })
}
