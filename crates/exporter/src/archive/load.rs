//! Reading archives of images into the store: OCI layouts, docker's archives old and new, tars
//! (compressed or not), streams and directories.
//!
//! Archives are hostile: everything is limited, every blob is verified against the digest it is named
//! by, and layers are unpacked by the store, which holds them to the config's diff ids.
//!
//! Read [`load`] first; layers are [`layer`]'s.

mod index;
mod layer;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::PathBuf;

use stave_oci::{
    Algorithm, Compression, Descriptor, Digest, Hasher, ImageConfig, Index, MAX_MANIFEST_SIZE, Manifest,
    ManifestOrIndex, Platform, Reference, media_type,
};
use stave_store::{LayerId, LocalImage, Store, StoredManifest};

use super::source::ArchiveSource;
use crate::document::{CONTAINERD_NAME, DockerArchiveEntry, REF_NAME, blob_path};
use crate::error::LoadErrorKind;
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
        // A name that two entries share means neither's index.
        let mut indexes: BTreeMap<String, Option<Descriptor>> = BTreeMap::new();
        for descriptor in index.manifests.into_iter().filter(|descriptor| !is_attestation(descriptor)) {
            let name = name_of(&descriptor.annotations);
            if let Some(name) = &name {
                let own = Some(descriptor.clone()).filter(|own| media_type::is_index(&own.media_type));
                indexes.entry(name.canonical()).and_modify(|shared| *shared = None).or_insert(own);
            }
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
        self.name(&images, &indexes)?;
        Ok(images)
    }

    /// Gives images for several platforms the names they share, and an index all of whose images were loaded to its
    /// name; the image for this machine is what a name alone means.
    fn name(
        &self,
        images: &[LoadedImage],
        indexes: &BTreeMap<String, Option<Descriptor>>,
    ) -> Result<(), LoadErrorKind> {
        let host = Platform::host();
        let mut named: BTreeMap<String, (Reference, Vec<LocalImage>)> = BTreeMap::new();
        for loaded in images {
            for name in &loaded.names {
                let (_, all) = named.entry(name.canonical()).or_insert_with(|| (name.clone(), Vec::new()));
                all.push(loaded.image.clone());
            }
        }
        for (canonical, (name, mut all)) in named {
            let top = indexes.get(&canonical).and_then(Option::as_ref);
            let index = top.map(|top| self.whole_index(top, images)).transpose()?.flatten();
            if all.len() > 1 || index.is_some() {
                all.sort_by_key(|image| !image.platform.matches(&host));
                self.store().put_indexed(&[name], &all, index.as_ref())?;
            }
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
