//! From the document at a place to the records of a cache: a cache of its own, or one inside of images.

use std::collections::HashMap;

use base64::Engine as _;
use serde::Deserialize;
use stave_oci::{Descriptor, Digest, Index, Manifest, ManifestError, ManifestOrIndex};

use crate::chains::{ChainError, Chains};
use crate::config::{CACHE_CONFIG, CREATED_AT, CacheConfig, CacheLayer, CacheRecord, UNCOMPRESSED};
use crate::place::{Document, Place, PlaceError};

/// Manifests of an index of images that are looked into.
const MAX_IMAGES: usize = 64;
/// Indexes inside of indexes.
const MAX_DEPTH: usize = 3;

/// Why a cache could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The place failed.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// What lies there is not a manifest or an index.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// A config that is not one.
    #[error("malformed cache config")]
    Config(#[source] serde_json::Error),
    /// A config that contradicts itself, or is larger than any.
    #[error("unusable cache config")]
    Chains(#[from] ChainError),
    /// More images than are looked into.
    #[error("index has more than {MAX_IMAGES} manifests")]
    TooManyImages,
}

/// The part of an image's config that matters here.
#[derive(Deserialize)]
struct ImageCache {
    #[serde(default)]
    rootfs: RootFs,
    #[serde(default, rename = "moby.buildkit.cache.v0")]
    cache: Option<String>,
    #[serde(default)]
    history: Option<Vec<History>>,
}

#[derive(Deserialize, Default)]
struct RootFs {
    #[serde(default)]
    diff_ids: Vec<Digest>,
}

#[derive(Deserialize)]
struct History {
    #[serde(default)]
    created: Option<String>,
    #[serde(default)]
    empty_layer: bool,
}

/// The records at a place; `None` when nothing lies there.
pub(super) async fn chains(place: &Place) -> Result<Option<Vec<Chains>>, ImportError> {
    let Some(document) = place.document().await? else { return Ok(None) };
    if let Place::S3(_) = place {
        return bare(&document).map(|chains| Some(vec![chains]));
    }
    let served = document.media_type.as_deref();
    let (config, layers) = match ManifestOrIndex::parse(&document.bytes, served)? {
        ManifestOrIndex::Manifest(manifest) => {
            let is_cache = manifest.config.media_type == CACHE_CONFIG;
            if !is_cache {
                return Ok(Some(inline(place, &manifest).await?.into_iter().collect()));
            }
            (manifest.config, manifest.layers)
        }
        ManifestOrIndex::Index(index) => {
            let is_config = |entry: &&Descriptor| entry.media_type == CACHE_CONFIG;
            match index.manifests.iter().find(is_config).cloned() {
                Some(config) => (config, index.manifests),
                None => return images(place, *index).await.map(Some),
            }
        }
    };
    let bytes = place.small_blob(&config).await?;
    let config: CacheConfig = serde_json::from_slice(&bytes).map_err(ImportError::Config)?;
    let blobs = layers.into_iter().map(|layer| (layer.digest.clone(), layer)).collect();
    Ok(Some(vec![Chains::read(config, &blobs)?]))
}

/// A config without a manifest: layers describe themselves.
fn bare(document: &Document) -> Result<Chains, ImportError> {
    let config: CacheConfig = serde_json::from_slice(&document.bytes).map_err(ImportError::Config)?;
    let describe = |layer: &CacheLayer| {
        let known = layer.annotations.as_ref()?;
        let size = u64::try_from(known.size).ok()?;
        let mut descriptor = Descriptor::new(&known.media_type, layer.blob.clone(), size);
        descriptor.annotations.insert(UNCOMPRESSED.to_owned(), known.diff_id.as_ref()?.to_string());
        descriptor.annotations.insert(CREATED_AT.to_owned(), known.created_at.clone());
        Some((layer.blob.clone(), descriptor))
    };
    let blobs: HashMap<Digest, Descriptor> = config.layers.iter().filter_map(describe).collect();
    Ok(Chains::read(config, &blobs)?)
}

/// The caches inside of an index's images.
async fn images(place: &Place, index: Index) -> Result<Vec<Chains>, ImportError> {
    let mut open: Vec<(Descriptor, usize)> = index.manifests.into_iter().map(|entry| (entry, 1)).collect();
    let (mut found, mut seen) = (Vec::new(), 0);
    while let Some((entry, depth)) = open.pop() {
        seen += 1;
        if seen > MAX_IMAGES {
            return Err(ImportError::TooManyImages);
        }
        let bytes = place.manifest(&entry).await?;
        match ManifestOrIndex::parse(&bytes, Some(&entry.media_type))? {
            ManifestOrIndex::Manifest(manifest) => found.extend(inline(place, &manifest).await?),
            ManifestOrIndex::Index(inner) if depth < MAX_DEPTH => {
                open.extend(inner.manifests.into_iter().map(|entry| (entry, depth + 1)));
            }
            ManifestOrIndex::Index(_) => {}
        }
    }
    Ok(found)
}

/// The cache inside of an image, if it has one: its records name the image's layers.
async fn inline(place: &Place, manifest: &Manifest) -> Result<Option<Chains>, ImportError> {
    if manifest.layers.is_empty() {
        return Ok(None);
    }
    let bytes = place.small_blob(&manifest.config).await?;
    // An artifact's config is no image's, and has no cache.
    let Ok(image) = serde_json::from_slice::<ImageCache>(&bytes) else { return Ok(None) };
    let Some(cache) = image.cache else { return Ok(None) };
    if image.rootfs.diff_ids.len() != manifest.layers.len() {
        return Ok(None);
    }
    let Ok(text) = base64::engine::general_purpose::STANDARD.decode(cache) else { return Ok(None) };
    let records: Option<Vec<CacheRecord>> = serde_json::from_slice(&text).map_err(ImportError::Config)?;
    let times: Vec<String> = image
        .history
        .unwrap_or_default()
        .into_iter()
        .filter(|line| !line.empty_layer)
        .map(|line| line.created.unwrap_or_default())
        .collect();
    let (mut layers, mut blobs) = (Vec::new(), HashMap::new());
    for (at, (layer, diff_id)) in manifest.layers.iter().zip(&image.rootfs.diff_ids).enumerate() {
        let mut described = layer.clone();
        described.annotations.insert(UNCOMPRESSED.to_owned(), diff_id.to_string());
        if let Some(time) = times.get(at).filter(|time| !time.is_empty()) {
            described.annotations.insert(CREATED_AT.to_owned(), time.clone());
        }
        let parent = i64::try_from(at).unwrap_or(i64::MAX) - 1;
        layers.push(CacheLayer { blob: layer.digest.clone(), parent, annotations: None });
        blobs.insert(layer.digest.clone(), described);
    }
    let config = CacheConfig { layers, records: records.unwrap_or_default() };
    Ok(Some(Chains::read(config, &blobs)?))
}
