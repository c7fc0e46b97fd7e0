//! The caches a build brings from elsewhere and makes for elsewhere.
//!
//! Owns their part of a build: read before it, fed while it runs, written after it. Must not know formats (that is
//! `stave_remotecache`) or how steps run. Start with [`Engine::travel`] and [`Journey`].

mod bases;
mod export;
mod import;
mod mounts;

use std::collections::HashMap;
use std::sync::Arc;

use stave_llb::{Definition, Op, SourceIdentifier, Vertex};
use stave_oci::{Digest, ImageConfig, Platform, Reference};
use stave_remotecache::import::{Imports, SourceKeys, Warn};
use stave_remotecache::key::{http_source, image_source};
use stave_remotecache::place::{Place, PlaceError, S3Store};
use stave_remotecache::spec::{ExportSpec, ExportTarget, ImportSpec, RegistryPlace};
use stave_worker::Travel;

use crate::Engine;
use crate::event::Steps;
use crate::resolve::Resolved;

use bases::Bases;
pub use export::CacheExportError;
use export::Outgoing;
pub use mounts::{LocalMount, MountCopyError};

/// Which caches a build asks and makes.
#[derive(Debug, Clone, Default)]
pub struct Caches {
    /// Asked in this order where the local cache has missed.
    pub from: Vec<ImportSpec>,
    /// Written when the build has succeeded.
    pub to: Vec<ExportSpec>,
}

/// What a build needs to know of its images: layers by the digest they are pinned to.
#[derive(Debug, Default)]
pub(crate) struct ImageLayers(HashMap<Digest, ImageKey>);

#[derive(Debug)]
struct ImageKey {
    /// What the name stands for, where that is another document.
    root: Option<Digest>,
    diff_ids: Vec<Digest>,
}

/// A cache that turned out to be of no use.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Unusable(String);

/// One build's caches, on their way.
pub(crate) struct Journey {
    pub(crate) travel: Arc<Travel>,
    definition: Arc<Definition>,
    sources: SourceKeys,
    outgoing: Vec<Outgoing>,
}

impl ImageLayers {
    pub(crate) fn of(resolved: &Resolved) -> Self {
        let key = |(digest, config): (&Digest, &ImageConfig)| {
            let root = resolved.remote.get(digest).map(|remote| remote.root.descriptor.digest.clone());
            let root = root.filter(|root| root != digest);
            (digest.clone(), ImageKey { root, diff_ids: config.rootfs.diff_ids.clone() })
        };
        Self(resolved.sources.images().map(|(_, image)| key((&image.digest, &image.config))).collect())
    }
}

impl Engine {
    /// Prepares the caches of a build; `None` when there are none, and then nothing of this costs anything.
    pub(crate) async fn travel(
        &self,
        caches: &Caches,
        definition: &Definition,
        images: &ImageLayers,
        names: Vec<(Reference, Platform)>,
        steps: &Steps,
    ) -> Result<Option<Journey>, CacheExportError> {
        if (caches.from.is_empty() && caches.to.is_empty()) || definition.outputs().is_empty() {
            return Ok(None);
        }
        let definition = Arc::new(definition.clone());
        let sources = source_keys(&definition, images);
        let bases = Arc::new(Bases::new(self.store.clone(), self.registry.clone(), names));
        let mut outgoing = Vec::with_capacity(caches.to.len());
        for spec in &caches.to {
            outgoing.push(Outgoing::begin(self, spec, &definition, &bases).await?);
        }
        let imports = if caches.from.is_empty() {
            None
        } else {
            let read = import::read(self, &caches.from, steps).await;
            Some(Imports::new(self.store.clone(), read, &definition, &sources, warning(steps)))
        };
        let listener = (!outgoing.is_empty()).then(|| export::listener(&outgoing, &definition));
        let mounts = mounts::imports(self, &caches.from, warning(steps)).await;
        let travel = Arc::new(Travel::new(imports, mounts, listener));
        Ok(Some(Journey { travel, definition, sources, outgoing }))
    }

    /// The place a registry cache lies at.
    async fn registry_place(&self, place: &RegistryPlace) -> Place {
        let reference = place.reference.clone();
        let client =
            if place.insecure { self.registry.trusting(&reference).await } else { self.registry.clone() };
        Place::Registry { client, reference }
    }

    /// The place of an export; `None` for an inline one.
    pub(crate) async fn export_place(&self, target: &ExportTarget) -> Result<Option<Place>, PlaceError> {
        Ok(Some(match target {
            ExportTarget::Inline => return Ok(None),
            ExportTarget::Registry(place) => self.registry_place(place).await,
            ExportTarget::Local { dest, tag, .. } => {
                stave_remotecache::place::local(dest.clone(), tag.clone(), None)
            }
            ExportTarget::S3(place) => Place::S3(S3Store::new(place.clone())?),
        }))
    }
}

/// Shows what went wrong as a step that failed; the build goes on without.
fn warning(steps: &Steps) -> Warn {
    let steps = steps.clone();
    Box::new(move |text: String| {
        steps.start("importing from cache").end::<(), _>(Err(Unusable(text))).ok();
    })
}

/// What identifies the sources of a definition in BuildKit's caches.
fn source_keys(definition: &Definition, images: &ImageLayers) -> SourceKeys {
    let keys = |vertex: &Vertex| {
        let Op::Source(op) = &vertex.op else { return None };
        let keys = match &op.identifier {
            SourceIdentifier::DockerImage { reference } => image_keys(reference.digest()?, vertex, images),
            SourceIdentifier::OciLayout { reference } => {
                image_keys(&reference.rsplit_once('@')?.1.parse().ok()?, vertex, images)
            }
            SourceIdentifier::Http { url } => vec![http_key(url, &op.attrs)?],
            _ => return None,
        };
        Some((vertex.digest.clone(), keys))
    };
    definition.vertices().iter().filter_map(keys).collect()
}

fn image_keys(pin: &Digest, vertex: &Vertex, images: &ImageLayers) -> Vec<String> {
    let platform = vertex.platform.as_ref();
    let Some(ImageKey { root, diff_ids }) = images.0.get(pin) else {
        return image_source(pin, platform, &[]);
    };
    let mut keys = image_source(pin, platform, diff_ids);
    // Elsewhere the name may have been pinned to the index the image is listed in.
    if let Some(root) = root {
        keys.extend(image_source(root, platform, &[]));
    }
    keys
}

/// The key of a download with a checksum; without one, only the content tells.
fn http_key(url: &str, attrs: &std::collections::BTreeMap<String, String>) -> Option<String> {
    let checksum: Digest = attrs.get("http.checksum")?.parse().ok()?;
    let path = url.split(['?', '#']).next()?.split_once("://")?.1;
    let last = path.split_once('/').map_or("", |(_, path)| path).rsplit('/').next().unwrap_or_default();
    let name = attrs.get("http.filename").map_or(last, String::as_str);
    let number = |name: &str, radix| {
        attrs.get(name).map_or(Some(0), |text| u32::from_str_radix(text.trim_start_matches("0o"), radix).ok())
    };
    let (mode, owner) = (number("http.perm", 8)?, (number("http.uid", 10)?, number("http.gid", 10)?));
    (!name.is_empty()).then(|| http_source(name, mode, owner, &checksum))
}
