//! Reading archives of images into the store: OCI layouts, docker's archives old and new, tars
//! (compressed or not), streams and directories.
//!
//! Archives are hostile: everything is limited, every blob is verified against the digest it is named
//! by, and layers are unpacked by the store, which holds them to the config's diff ids.
//!
//! Read [`load`] first.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::PathBuf;

use stave_oci::{
    Algorithm, Compression, Descriptor, Digest, Hasher, ImageConfig, Index, MAX_MANIFEST_SIZE, Manifest,
    ManifestOrIndex, Platform, Reference, Sha256Writer, layer_media_type, media_type,
};
use stave_store::{
    ApplyOptions, ImageLayer, LayerId, LocalImage, Store, StoreError, StoredManifest, TarOptions,
};

use super::source::{ArchiveSource, Content};
use crate::compress::{Codec, Compressor};
use crate::document::{CONTAINERD_NAME, DockerArchiveEntry, REF_NAME, blob_path};
use crate::error::LoadErrorKind;
use crate::event::ExportStep;
use crate::exporter::Context;
use crate::output::Counted;

/// The most images one archive may hold.
pub const MAX_IMAGES: usize = 1024;
/// The most layers one image may have.
pub const MAX_LAYERS: usize = 512;
/// The most bytes of an archive that has to be put aside first, because it is compressed or a stream.
pub const MAX_SPOOL: u64 = 1 << 40;
/// The largest image config read, in bytes.
const MAX_CONFIG: u64 = 8 << 20;
/// How deep indexes may nest.
const MAX_INDEX_DEPTH: usize = 4;
/// The annotation by which BuildKit marks attestations, which are no images.
const ATTESTATION: &str = "vnd.docker.reference.type";

/// Where an archive is.
pub enum LoadSource {
    /// A file or directory.
    Path(PathBuf),
    /// A stream, such as standard input.
    Stream(Box<dyn Read + Send>),
}

impl LoadSource {
    pub(crate) fn describe(&self) -> String {
        match self {
            Self::Path(path) => format!("`{}`", path.display()),
            Self::Stream(_) => "the stream".to_owned(),
        }
    }
}

impl fmt::Debug for LoadSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LoadSource").field(&self.describe()).finish()
    }
}

/// An image that came in.
#[derive(Debug, Clone)]
pub struct LoadedImage {
    /// As the store has it now.
    pub image: LocalImage,
    /// Its names in the archive; may be empty. Images for several platforms may share them.
    pub names: Vec<Reference>,
}

/// Reads the images for `platforms`; if that names none, those of docker's own archives, and of an index the one
/// for this machine.
pub(crate) fn load(
    context: &Context,
    source: LoadSource,
    platforms: &[Platform],
) -> Result<Vec<LoadedImage>, LoadErrorKind> {
    let _lease = context.store.lease()?;
    let archive = open(context, source)?;
    let mut loader = Loader { context, archive, layers: HashMap::new() };
    // A layout with digests goes before docker's own description of the same images.
    let index = loader.archive.read("index.json", MAX_MANIFEST_SIZE, "`index.json`")?;
    let loaded = match index.map(|index| loader.layout(&index, platforms)) {
        // What docker describes is meant, whatever it is for, unless somebody asks for a platform.
        Some(Err(LoadErrorKind::Platform { wanted, found })) if platforms.is_empty() => {
            Err(LoadErrorKind::Platform { wanted, found })
        }
        Some(loaded) => return loaded,
        None => Err(LoadErrorKind::NotImages),
    };
    match loader.archive.read("manifest.json", MAX_MANIFEST_SIZE, "`manifest.json`")? {
        Some(manifest) => loader.docker(&manifest, platforms),
        None => loaded,
    }
}

/// Makes the archive a plain tar that can be read at any place, or a directory.
fn open(context: &Context, source: LoadSource) -> Result<ArchiveSource, LoadErrorKind> {
    let mut stream: Box<dyn Read + Send> = match source {
        LoadSource::Path(path) if path.is_dir() => return ArchiveSource::directory(&path),
        LoadSource::Path(path) => {
            let mut file = File::open(path)?;
            let seekable = file.metadata()?.is_file();
            let mut magic = Vec::new();
            if seekable {
                Read::take(&mut file, 4).read_to_end(&mut magic)?;
                file.seek(SeekFrom::Start(0))?;
                if Compression::sniff(&magic) == Compression::None {
                    return ArchiveSource::tar(file);
                }
            }
            Box::new(file)
        }
        LoadSource::Stream(stream) => stream,
    };
    let mut magic = Vec::new();
    Read::take(&mut stream, 4).read_to_end(&mut magic)?;
    let compression = Compression::sniff(&magic);
    let whole = io::Cursor::new(magic).chain(stream);
    let mut plain: Box<dyn Read> = match compression {
        Compression::None => Box::new(whole),
        Compression::Gzip => Box::new(flate2::read::MultiGzDecoder::new(io::BufReader::new(whole))),
        Compression::Zstd => Box::new(zstd::stream::read::Decoder::new(whole)?),
    };
    let scratch = context.store.scratch_dir()?;
    // The name goes with the scratch directory; the open file stays as long as it is read.
    let mut file =
        File::options().read(true).write(true).create_new(true).open(scratch.path().join("archive"))?;
    let mut counted = Counted::new(&mut file, &context.cancel);
    let copied = io::copy(&mut Read::take(&mut plain, MAX_SPOOL + 1), &mut counted)?;
    if copied > MAX_SPOOL {
        return Err(LoadErrorKind::Limit { what: "archive bytes", limit: MAX_SPOOL });
    }
    file.flush()?;
    ArchiveSource::tar(file)
}

struct Loader<'a> {
    context: &'a Context,
    archive: ArchiveSource,
    /// Layers unpacked from this archive, by diff id: images often share them.
    layers: HashMap<Digest, LayerId>,
}

/// A manifest found in an index, with every name it has there.
struct Found {
    descriptor: Descriptor,
    names: Vec<Reference>,
}

impl Loader<'_> {
    fn store(&self) -> &Store {
        &self.context.store
    }

    fn layout(&mut self, index: &[u8], platforms: &[Platform]) -> Result<Vec<LoadedImage>, LoadErrorKind> {
        let wanted = if platforms.is_empty() { vec![Platform::host()] } else { platforms.to_vec() };
        let index: Index = match parse("index.json", index, None)? {
            ManifestOrIndex::Index(index) => *index,
            ManifestOrIndex::Manifest(_) => return Err(LoadErrorKind::NotImages),
        };
        let mut seen = Vec::new();
        let mut found: Vec<Found> = Vec::new();
        let mut missing = wanted.clone();
        for descriptor in index.manifests.into_iter().filter(|descriptor| !is_attestation(descriptor)) {
            let name = name_of(&descriptor.annotations);
            for platform in &wanted {
                let manifest = self.manifest_for(descriptor.clone(), platform, &mut seen, 0)?;
                let Some(manifest) = manifest else { continue };
                missing.retain(|missing| missing != platform);
                match found.iter_mut().find(|known| known.descriptor.digest == manifest.digest) {
                    Some(known) if name.as_ref().is_some_and(|name| known.names.contains(name)) => {}
                    Some(known) => known.names.extend(name.clone()),
                    None => found.push(Found { descriptor: manifest, names: name.iter().cloned().collect() }),
                }
            }
            if found.len() > MAX_IMAGES {
                return Err(LoadErrorKind::Limit { what: "images", limit: MAX_IMAGES as u64 });
            }
        }
        if let Some(wanted) = missing.into_iter().next() {
            seen.sort();
            seen.dedup();
            return Err(LoadErrorKind::Platform { wanted: Box::new(wanted), found: seen });
        }
        let images: Vec<LoadedImage> =
            found.into_iter().map(|found| self.oci_image(found)).collect::<Result<_, _>>()?;
        self.name(&images)?;
        Ok(images)
    }

    /// Gives images for several platforms the names they share; the one for this machine is what a name alone means.
    fn name(&self, images: &[LoadedImage]) -> Result<(), LoadErrorKind> {
        let host = Platform::host();
        let mut named: BTreeMap<String, (Reference, Vec<LocalImage>)> = BTreeMap::new();
        for loaded in images {
            for name in &loaded.names {
                let (_, all) = named.entry(name.canonical()).or_insert_with(|| (name.clone(), Vec::new()));
                all.push(loaded.image.clone());
            }
        }
        for (name, mut all) in named.into_values().filter(|(_, all)| all.len() > 1) {
            all.sort_by_key(|image| !image.platform.matches(&host));
            self.store().put_images(&[name], &all)?;
        }
        Ok(())
    }

    /// The manifest that `descriptor` stands for on `platform`; indexes are followed.
    fn manifest_for(
        &self,
        descriptor: Descriptor,
        platform: &Platform,
        seen: &mut Vec<String>,
        depth: usize,
    ) -> Result<Option<Descriptor>, LoadErrorKind> {
        if let Some(own) = &descriptor.platform
            && !own.matches(platform)
        {
            seen.push(own.to_string());
            return Ok(None);
        }
        if !media_type::is_index(&descriptor.media_type) {
            return Ok(Some(descriptor));
        }
        if depth >= MAX_INDEX_DEPTH {
            return Err(LoadErrorKind::Limit { what: "nested indexes", limit: MAX_INDEX_DEPTH as u64 });
        }
        let path = blob_path(&descriptor.digest);
        let bytes = self.verified(&descriptor, MAX_MANIFEST_SIZE, "index")?;
        let ManifestOrIndex::Index(index) = parse(&path, &bytes, Some(&descriptor.media_type))? else {
            return Ok(None);
        };
        for inner in index.manifests.into_iter().filter(|inner| !is_attestation(inner)) {
            if let Some(manifest) = self.manifest_for(inner, platform, seen, depth + 1)? {
                return Ok(Some(manifest));
            }
        }
        Ok(None)
    }

    fn oci_image(&mut self, found: Found) -> Result<LoadedImage, LoadErrorKind> {
        let path = blob_path(&found.descriptor.digest);
        let bytes = self.verified(&found.descriptor, MAX_MANIFEST_SIZE, "manifest")?;
        let parsed = parse(&path, &bytes, Some(&found.descriptor.media_type))?;
        let ManifestOrIndex::Manifest(manifest) = parsed else { return Err(LoadErrorKind::NotImages) };
        let Manifest { config, layers, .. } = *manifest;
        let config_bytes = self.verified(&config, MAX_CONFIG, "image config")?;
        let (parsed, diff_ids) = read_config(&blob_path(&config.digest), &config_bytes, layers.len())?;
        let mut image_layers = Vec::with_capacity(layers.len());
        for (descriptor, diff_id) in layers.into_iter().zip(diff_ids) {
            image_layers.push(self.oci_layer(descriptor, diff_id)?);
        }
        let image = LocalImage {
            id: config.digest,
            config: config_bytes,
            layers: image_layers,
            manifest: Some(StoredManifest {
                media_type: found.descriptor.media_type,
                digest: found.descriptor.digest,
                bytes,
            }),
            platform: parsed.platform(),
        };
        self.keep(image, found.names)
    }

    fn oci_layer(&mut self, descriptor: Descriptor, diff_id: Digest) -> Result<ImageLayer, LoadErrorKind> {
        let media_type = layer_media_type(&descriptor.media_type)
            .ok_or_else(|| LoadErrorKind::LayerType(descriptor.media_type.chars().take(160).collect()))?;
        let path = blob_path(&descriptor.digest);
        let known = self.known_layer(&diff_id)?;
        let is_plain = media_type.compression == Compression::None && descriptor.digest == diff_id;
        if let Some(layer) = known
            && !is_plain
            && self.store().has_blob(&descriptor.digest)?
        {
            self.check_pair(layer, &descriptor, &diff_id)?;
            return Ok(ImageLayer { layer, diff_id, blob: Some(descriptor) });
        }
        if is_plain {
            if let Some(content) = self.archive.find(&path)? {
                check_size(&path, descriptor.size, content.left())?;
            }
            return self.plain_layer(&path, diff_id);
        }
        let content = self.archive.find(&path)?;
        let Some(content) = content else {
            // A layer that is here already needs no bytes; docker leaves foreign layers out, too. That the blob
            // would be one of this layer is only the archive's word, which counts where it says where to look.
            let layer = known.ok_or(LoadErrorKind::Missing(path))?;
            let is_known = self.is_known_pair(layer, &descriptor)? || !descriptor.urls.is_empty();
            return Ok(ImageLayer { layer, diff_id, blob: is_known.then_some(descriptor) });
        };
        check_size(&path, descriptor.size, content.left())?;
        let layer = self.unpack_blob(&path, content, &descriptor, &diff_id)?;
        self.store().set_compressed(layer, media_type.compression, &descriptor)?;
        Ok(ImageLayer { layer, diff_id, blob: Some(descriptor) })
    }

    /// Whether a blob is recorded as one of a layer.
    fn is_known_pair(&self, layer: LayerId, blob: &Descriptor) -> Result<bool, LoadErrorKind> {
        let Some(media_type) = layer_media_type(&blob.media_type) else { return Ok(false) };
        let recorded = self.store().compressed(layer, media_type.compression)?;
        Ok(recorded.is_some_and(|recorded| recorded.digest == blob.digest))
    }

    /// Makes sure that a blob of the store is the compressed form of a layer's tar: an archive may name any
    /// two digests together.
    fn check_pair(&self, layer: LayerId, blob: &Descriptor, diff_id: &Digest) -> Result<(), LoadErrorKind> {
        if self.is_known_pair(layer, blob)? {
            return Ok(());
        }
        let path = blob_path(&blob.digest);
        let Some(file) = self.store().open_blob(&blob.digest)? else {
            return Err(LoadErrorKind::Missing(path));
        };
        let mut nowhere = io::sink();
        let mut hashing = Sha256Writer::new(Counted::new(&mut nowhere, &self.context.cancel));
        io::copy(&mut crate::blob::decompress(file)?, &mut hashing)?;
        let found = hashing.finish().1;
        if found == *diff_id {
            return Ok(());
        }
        Err(LoadErrorKind::Digest { path, expected: diff_id.clone(), found })
    }

    /// A layer that is a plain tar in the archive. The diff id holds its bytes to their digest.
    fn plain_layer(&mut self, path: &str, diff_id: Digest) -> Result<ImageLayer, LoadErrorKind> {
        if let Some(layer) = self.known_layer(&diff_id)? {
            let blob = self.store().compressed(layer, Compression::Gzip)?;
            let Some(blob) = blob else { return Ok(ImageLayer { layer, diff_id, blob: None }) };
            if self.store().has_blob(&blob.digest)? {
                return Ok(ImageLayer { layer, diff_id, blob: Some(blob) });
            }
        }
        let missing = || LoadErrorKind::Missing(path.to_owned());
        let content = self.archive.find(path)?.ok_or_else(missing)?;
        let layer = self.unpack(path, content, &diff_id)?;
        let mut nowhere = io::sink();
        let mut hashing = Sha256Writer::new(Counted::new(&mut nowhere, &self.context.cancel));
        self.store().write_layer_tar(layer, &mut hashing, &TarOptions::default())?;
        if hashing.finish().1 == diff_id {
            return Ok(ImageLayer { layer, diff_id, blob: None });
        }
        // Another program wrote this tar, and its files alone do not say how: it is kept, as the blob
        // that a push would make of it.
        let mut content = self.archive.find(path)?.ok_or_else(missing)?;
        let mut writer = self.store().blob_writer(None, content.left().saturating_mul(2).max(1 << 20))?;
        let mut counted = Counted::new(&mut writer, &self.context.cancel);
        let mut compressor = Compressor::new(&mut counted, Codec::new(Compression::Gzip, None));
        io::copy(&mut content, &mut compressor)?;
        compressor.finish()?;
        let (digest, size) = writer.commit()?;
        let blob = Descriptor::new(Compression::Gzip.oci_media_type(), digest, size);
        self.store().set_compressed(layer, Compression::Gzip, &blob)?;
        Ok(ImageLayer { layer, diff_id, blob: Some(blob) })
    }

    /// Unpacks a blob while it is copied into the store, so that it can be pushed as it is.
    fn unpack_blob(
        &mut self,
        path: &str,
        content: Content,
        descriptor: &Descriptor,
        diff_id: &Digest,
    ) -> Result<LayerId, LoadErrorKind> {
        let mut writer = self.store().blob_writer(Some(&descriptor.digest), descriptor.size)?;
        let mut copied = Copied { input: content, output: &mut writer };
        let unpacked = self.unpack(path, &mut copied, diff_id);
        let drained = io::copy(&mut copied, &mut io::sink());
        // Wrong bytes are the cause of what unpacking says about them.
        drained?;
        match writer.commit() {
            Ok(_) => unpacked,
            Err(StoreError::DigestMismatch { expected, found }) => {
                Err(LoadErrorKind::Digest { path: path.to_owned(), expected, found })
            }
            Err(error) => Err(error.into()),
        }
    }

    fn unpack(
        &mut self,
        path: &str,
        content: impl Read + Send,
        diff_id: &Digest,
    ) -> Result<LayerId, LoadErrorKind> {
        let cancel = &self.context.cancel;
        let content = Cancellable { input: content, cancelled: || cancel.is_cancelled() };
        let options = ApplyOptions {
            diff_id: Some(diff_id.clone()),
            description: format!("loaded {}", diff_id.short()),
            ..ApplyOptions::default()
        };
        let applied = self.context.events.step(ExportStep::LoadingLayer(diff_id.clone()), || {
            self.store()
                .apply_layer(content, &options)
                .map_err(|source| LoadErrorKind::Layer { path: path.to_owned(), source })
        })?;
        self.layers.insert(diff_id.clone(), applied.layer);
        Ok(applied.layer)
    }

    fn known_layer(&self, diff_id: &Digest) -> Result<Option<LayerId>, LoadErrorKind> {
        match self.layers.get(diff_id) {
            Some(layer) => Ok(Some(*layer)),
            None => Ok(self.store().layer_by_diff_id(diff_id)?),
        }
    }

    fn docker(&mut self, manifest: &[u8], platforms: &[Platform]) -> Result<Vec<LoadedImage>, LoadErrorKind> {
        let entries: Vec<DockerArchiveEntry> = serde_json::from_slice(manifest)
            .map_err(|source| LoadErrorKind::Json { path: "manifest.json".to_owned(), source })?;
        if entries.len() > MAX_IMAGES {
            return Err(LoadErrorKind::Limit { what: "images", limit: MAX_IMAGES as u64 });
        }
        let (mut loaded, mut seen) = (Vec::new(), Vec::new());
        for entry in entries {
            loaded.extend(self.docker_image(entry, platforms, &mut seen)?);
        }
        match platforms.iter().find(|wanted| !seen.iter().any(|found: &Platform| found.matches(wanted))) {
            Some(wanted) => {
                let found = seen.iter().map(ToString::to_string).collect();
                Err(LoadErrorKind::Platform { wanted: Box::new(wanted.clone()), found })
            }
            None => Ok(loaded),
        }
    }

    /// An image of docker's description, unless it is for none of the platforms wanted.
    fn docker_image(
        &mut self,
        entry: DockerArchiveEntry,
        platforms: &[Platform],
        seen: &mut Vec<Platform>,
    ) -> Result<Option<LoadedImage>, LoadErrorKind> {
        let bytes = self.archive.read(&entry.config, MAX_CONFIG, "image config")?;
        let config = bytes.ok_or_else(|| LoadErrorKind::Missing(entry.config.clone()))?;
        let paths = entry.layers.unwrap_or_default();
        let (parsed, diff_ids) = read_config(&entry.config, &config, paths.len())?;
        seen.push(parsed.platform());
        if !platforms.is_empty() && !platforms.iter().any(|wanted| parsed.platform().matches(wanted)) {
            return Ok(None);
        }
        let mut layers = Vec::with_capacity(paths.len());
        for (path, diff_id) in paths.iter().zip(diff_ids) {
            layers.push(self.plain_layer(path, diff_id)?);
        }
        let image = LocalImage {
            id: Digest::sha256(&config),
            config,
            layers,
            manifest: None,
            platform: parsed.platform(),
        };
        // A tag that is no reference cannot be given; the image is still found by its id.
        let names = entry.repo_tags.unwrap_or_default().iter().filter_map(|tag| tag.parse().ok()).collect();
        self.keep(image, names).map(Some)
    }

    fn keep(&self, image: LocalImage, names: Vec<Reference>) -> Result<LoadedImage, LoadErrorKind> {
        self.store().put_image(&names, &image)?;
        Ok(LoadedImage { image, names })
    }

    /// The bytes of a small blob, held to its descriptor.
    fn verified(
        &self,
        descriptor: &Descriptor,
        limit: u64,
        what: &'static str,
    ) -> Result<Vec<u8>, LoadErrorKind> {
        let path = blob_path(&descriptor.digest);
        let bytes = self.archive.read(&path, limit, what)?;
        let bytes = bytes.ok_or_else(|| LoadErrorKind::Missing(path.clone()))?;
        check_size(&path, descriptor.size, bytes.len() as u64)?;
        let algorithm: Algorithm = descriptor.digest.algorithm();
        let mut hasher = Hasher::new(algorithm);
        hasher.update(&bytes);
        let found = hasher.finish();
        if found != descriptor.digest {
            return Err(LoadErrorKind::Digest { path, expected: descriptor.digest.clone(), found });
        }
        Ok(bytes)
    }
}

fn parse(path: &str, bytes: &[u8], media_type: Option<&str>) -> Result<ManifestOrIndex, LoadErrorKind> {
    ManifestOrIndex::parse(bytes, media_type)
        .map_err(|source| LoadErrorKind::Manifest { path: path.to_owned(), source })
}

/// The config and its diff ids, which must be as many as the manifest has layers.
fn read_config(path: &str, bytes: &[u8], layers: usize) -> Result<(ImageConfig, Vec<Digest>), LoadErrorKind> {
    let config: ImageConfig = serde_json::from_slice(bytes)
        .map_err(|source| LoadErrorKind::Json { path: path.to_owned(), source })?;
    let diff_ids = config.rootfs.diff_ids.clone();
    if layers > MAX_LAYERS {
        return Err(LoadErrorKind::Limit { what: "layers", limit: MAX_LAYERS as u64 });
    }
    if diff_ids.len() != layers {
        return Err(LoadErrorKind::LayerCount { image: path.to_owned(), diff_ids: diff_ids.len(), layers });
    }
    Ok((config, diff_ids))
}

fn check_size(path: &str, expected: u64, found: u64) -> Result<(), LoadErrorKind> {
    if expected == found {
        Ok(())
    } else {
        Err(LoadErrorKind::Size { path: path.to_owned(), expected, found })
    }
}

fn is_attestation(descriptor: &Descriptor) -> bool {
    let unknown = |platform: &Platform| platform.os == "unknown" && platform.architecture == "unknown";
    descriptor.annotations.contains_key(ATTESTATION) || descriptor.platform.as_ref().is_some_and(unknown)
}

/// The name an index entry gives its image: containerd's annotation, else OCI's where it is a whole
/// name (podman's habit) and not a bare tag.
fn name_of(annotations: &BTreeMap<String, String>) -> Option<Reference> {
    let whole = |name: &&String| name.contains(['/', ':']);
    let text = annotations.get(CONTAINERD_NAME).or_else(|| annotations.get(REF_NAME).filter(whole))?;
    text.parse().ok()
}

/// Copies what is read through it.
struct Copied<R, W> {
    input: R,
    output: W,
}

impl<R: Read, W: Write> Read for Copied<R, W> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.input.read(buffer)?;
        self.output.write_all(&buffer[..count])?;
        Ok(count)
    }
}

/// Ends with an error once nobody waits for the archive any more.
struct Cancellable<R, F> {
    input: R,
    cancelled: F,
}

impl<R: Read, F: Fn() -> bool> Read for Cancellable<R, F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if (self.cancelled)() {
            return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "cancelled"));
        }
        self.input.read(buffer)
    }
}
