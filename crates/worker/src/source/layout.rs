//! OCI image layouts on this machine as sources: a directory with `index.json` and blobs named by their digests.
//! Owns finding an image in one and bringing its layers into the store. What lies there comes from anybody: every
//! byte is held against its digest, and links lead nowhere else. Must not know sessions. Read [`OciLayout`] first.

use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use stave_oci::{
    Descriptor, Digest, Hasher, ImageConfig, Index, Manifest, ManifestOrIndex, Platform, layer_media_type,
    media_type,
};
use stave_store::{
    AbsoluteNames, ApplyOptions, ImageLayer, LayerId, LocalImage, Store, StoreError, StoredManifest,
};

use super::image::LAYER_LIMITS;
use crate::root::{IoAt, RootDir};

/// Bytes of a manifest, an index or a config.
const DOCUMENT_LIMIT: u64 = 16 << 20;

/// Indexes within indexes.
const DEPTH_LIMIT: usize = 4;

/// Bytes of a layer read at once.
const BUFFER: usize = 256 << 10;

/// The annotation of an index's entry that is its tag.
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// A directory in the form of the OCI image layout specification.
#[derive(Debug)]
pub struct OciLayout {
    root: RootDir,
}

/// An image of a layout, for one platform.
#[derive(Debug, Clone)]
pub struct LayoutImage {
    /// Its manifest, byte for byte.
    pub manifest: StoredManifest,
    parsed: Manifest,
    /// Its configuration, verified against the manifest.
    pub config: Vec<u8>,
}

/// Why an image of a layout could not be had.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// The directory could not be opened.
    #[error(transparent)]
    Open(#[from] IoAt),
    /// It has no index.
    #[error("no `index.json`: not an OCI image layout")]
    NoIndex,
    /// A document is not what it should be.
    #[error("{0} cannot be read: {1}")]
    Document(String, String),
    /// No image of this tag.
    #[error("no image is tagged `{tag}`; there are: {}", available.join(", "))]
    NoTag {
        /// The tag.
        tag: String,
        /// The tags there are.
        available: Vec<String>,
    },
    /// A blob is not there.
    #[error("blob {0} not found")]
    NoBlob(Digest),
    /// A blob is larger than its kind may be.
    #[error("blob {0} is larger than {DOCUMENT_LIMIT} bytes")]
    TooLarge(Digest),
    /// A blob is not what it is named by.
    #[error("blob {0} does not match its digest")]
    Mismatch(Digest),
    /// The platform is not among those of the index.
    #[error("no match for platform {wanted}; there are: {}", available.join(", "))]
    Platform {
        /// What was asked for.
        wanted: Box<Platform>,
        /// What there is.
        available: Vec<String>,
    },
    /// Indexes that lead nowhere.
    #[error("more than {DEPTH_LIMIT} indexes within each other")]
    Depth,
    /// Layers and diff ids do not pair up.
    #[error("its manifest lists {layers} layers, its configuration {diff_ids}")]
    LayerCount {
        /// In the manifest.
        layers: usize,
        /// In the configuration.
        diff_ids: usize,
    },
    /// A layer whose media type is not a tar.
    #[error("layer {digest} has the unsupported media type `{media_type}`")]
    MediaType {
        /// The layer.
        digest: Digest,
        /// What it says it is.
        media_type: String,
    },
    /// The store failed, or a layer cannot be unpacked.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl OciLayout {
    /// Opens a layout.
    ///
    /// # Errors
    /// When the directory cannot be opened.
    pub fn open(path: &Path) -> Result<Self, LayoutError> {
        Ok(Self { root: RootDir::open(path)? })
    }

    /// The digest of the image with this tag. A name ends in its tag, too.
    ///
    /// # Errors
    /// [`LayoutError`]; without that tag, with the tags there are.
    pub fn tagged(&self, tag: &str) -> Result<Digest, LayoutError> {
        let bytes = match self.root.read_file(Path::new("index.json"), DOCUMENT_LIMIT) {
            Ok(bytes) => bytes,
            Err(_) => return Err(LayoutError::NoIndex),
        };
        let wrong = |error: String| LayoutError::Document("`index.json`".to_owned(), error);
        let parsed = ManifestOrIndex::parse(&bytes, Some(media_type::OCI_INDEX));
        let ManifestOrIndex::Index(index) = parsed.map_err(|error| wrong(error.to_string()))? else {
            return Err(wrong("it is not an index".to_owned()));
        };
        let named =
            index.manifests.iter().filter_map(|entry| Some((entry, entry.annotations.get(REF_NAME)?)));
        let mut found = named.clone().filter(|(_, name)| *name == tag || name.ends_with(&format!(":{tag}")));
        if let Some((entry, _)) = found.next() {
            return Ok(entry.digest.clone());
        }
        Err(LayoutError::NoTag {
            tag: tag.to_owned(),
            available: named.map(|(_, name)| name.clone()).collect(),
        })
    }

    /// The image that a digest stands for, on a platform; of a manifest, that one, whatever it runs on.
    ///
    /// # Errors
    /// [`LayoutError`].
    pub fn image(&self, digest: &Digest, platform: &Platform) -> Result<LayoutImage, LayoutError> {
        let mut digest = digest.clone();
        let mut served = None;
        for _ in 0..DEPTH_LIMIT {
            let bytes = self.document(&digest)?;
            let wrong = |error: &dyn std::fmt::Display| {
                LayoutError::Document(format!("manifest {digest}"), error.to_string())
            };
            match ManifestOrIndex::parse(&bytes, served.as_deref()).map_err(|error| wrong(&error))? {
                ManifestOrIndex::Index(index) => {
                    let chosen = choose(&index, platform)?;
                    (digest, served) = (chosen.digest, Some(chosen.media_type));
                }
                ManifestOrIndex::Manifest(parsed) => {
                    let config = self.document(&parsed.config.digest)?;
                    let media_type = parsed.media_type.clone().or(served);
                    let media_type = media_type.unwrap_or_else(|| media_type::OCI_MANIFEST.to_owned());
                    let manifest = StoredManifest { media_type, digest, bytes };
                    return Ok(LayoutImage { manifest, parsed: *parsed, config });
                }
            }
        }
        Err(LayoutError::Depth)
    }

    /// The layers of an image, in the store; those it has already are not read. Blocks.
    pub(crate) fn bring(&self, image: &LayoutImage, store: &Store) -> Result<LocalImage, LayoutError> {
        let config: ImageConfig = serde_json::from_slice(&image.config)
            .map_err(|error| LayoutError::Document("the configuration".to_owned(), error.to_string()))?;
        let (layers, diff_ids) = (&image.parsed.layers, &config.rootfs.diff_ids);
        if layers.len() != diff_ids.len() {
            return Err(LayoutError::LayerCount { layers: layers.len(), diff_ids: diff_ids.len() });
        }
        let mut brought = Vec::with_capacity(layers.len());
        for (blob, diff_id) in layers.iter().zip(diff_ids) {
            let layer = self.layer(blob, diff_id, store)?;
            brought.push(ImageLayer { layer, diff_id: diff_id.clone(), blob: Some(blob.clone()) });
        }
        Ok(LocalImage {
            id: Digest::sha256(&image.config),
            config: image.config.clone(),
            layers: brought,
            manifest: Some(image.manifest.clone()),
            platform: config.platform(),
        })
    }

    fn layer(&self, blob: &Descriptor, diff_id: &Digest, store: &Store) -> Result<LayerId, LayoutError> {
        let Some(kind) = layer_media_type(&blob.media_type) else {
            let (digest, media_type) = (blob.digest.clone(), blob.media_type.clone());
            return Err(LayoutError::MediaType { digest, media_type });
        };
        if let Some(layer) = store.layer_by_diff_id(diff_id)? {
            return Ok(layer);
        }
        let options = ApplyOptions {
            // By the first bytes: media types in the wild lie.
            compression: None,
            diff_id: Some(diff_id.clone()),
            limits: LAYER_LIMITS,
            absolute_names: AbsoluteNames::Refuse,
            description: "loaded from an OCI layout".to_owned(),
            made: None,
        };
        let mut kept = store.blob_writer(Some(&blob.digest), blob.size)?;
        let reader =
            Kept { inner: BufReader::with_capacity(BUFFER, self.blob(&blob.digest)?), kept: &mut kept };
        let applied = store.apply_layer(reader, &options)?;
        kept.commit()?;
        store.set_compressed(applied.layer, kind.compression, blob)?;
        Ok(applied.layer)
    }

    /// A blob and its size, whatever it holds. Not verified.
    pub(crate) fn open_blob(&self, digest: &Digest) -> Result<(File, u64), LayoutError> {
        let file = self.blob(digest)?;
        match file.metadata() {
            Ok(status) if status.is_file() => Ok((file, status.len())),
            _ => Err(LayoutError::NoBlob(digest.clone())),
        }
    }

    fn blob(&self, digest: &Digest) -> Result<File, LayoutError> {
        let folder = digest.as_str().split(':').next().unwrap_or_default();
        let path = PathBuf::from("blobs").join(folder).join(digest.hex());
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
        let file = self.root.open_at(&path, flags, Mode::empty());
        file.map(File::from).map_err(|_| LayoutError::NoBlob(digest.clone()))
    }

    fn document(&self, digest: &Digest) -> Result<Vec<u8>, LayoutError> {
        let unreadable =
            |error: io::Error| LayoutError::Document(format!("blob {digest}"), error.to_string());
        let mut bytes = Vec::new();
        self.blob(digest)?.take(DOCUMENT_LIMIT + 1).read_to_end(&mut bytes).map_err(unreadable)?;
        if bytes.len() as u64 > DOCUMENT_LIMIT {
            return Err(LayoutError::TooLarge(digest.clone()));
        }
        let mut hasher = Hasher::new(digest.algorithm());
        hasher.update(&bytes);
        if hasher.finish() != *digest {
            return Err(LayoutError::Mismatch(digest.clone()));
        }
        Ok(bytes)
    }
}

/// The entry of an index for a platform; an index of one image without a platform is that image's.
fn choose(index: &Index, wanted: &Platform) -> Result<Descriptor, LayoutError> {
    let made = |entry: &Descriptor| entry.platform.clone().filter(|made| made.os != "unknown");
    let fits = |entry: &&Descriptor| made(entry).is_some_and(|made| made.matches(wanted));
    if let Some(found) = index.manifests.iter().find(fits) {
        return Ok(found.clone());
    }
    if let [only] = index.manifests.as_slice()
        && only.platform.is_none()
    {
        return Ok(only.clone());
    }
    let available = index.manifests.iter().filter_map(made).map(|made| made.to_string()).collect();
    Err(LayoutError::Platform { wanted: Box::new(wanted.clone()), available })
}

/// What is read is also kept.
struct Kept<'a, R, W> {
    inner: R,
    kept: &'a mut W,
}

impl<R: Read, W: Write> Read for Kept<'_, R, W> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.kept.write_all(&buffer[..count])?;
        Ok(count)
    }
}
