//! The caches a build brings from elsewhere and makes for elsewhere.
//!
//! Owns their part of a build: read before it, fed while it runs, written after it. Must not know formats (that is
//! `stave_remotecache`) or how steps run. Start with [`Engine::travel`] and [`Journey`].

mod ahead;
mod bases;
mod export;
mod import;
mod mounts;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use stave_cache::CacheIndex;
use stave_llb::{Definition, Op, SourceIdentifier, Vertex};
use stave_oci::{Digest, ImageConfig, Platform, Reference};
use stave_registry::Client;
use stave_remotecache::import::{Imports, SourceKeys, Stored, Warn};
use stave_remotecache::key::{http_source, image_source};
use stave_remotecache::place::{Contents, Elsewhere, Place, PlaceError, S3Store};
use stave_remotecache::spec::{ExportSpec, ExportTarget, ImportSpec, RegistryPlace};
use stave_worker::{Namespace, Travel};

use crate::Engine;
use crate::event::Steps;
use crate::resolve::{Resolved, Resolver};

use ahead::Ahead;
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
    /// Whose they are; `None` for this machine's own user.
    pub owner: Option<CacheOwner>,
}

/// Finds a directory by the path that its owner names.
pub type Directories = dyn Fn(&Path) -> Arc<dyn Contents> + Send + Sync;

/// Somebody for whom this machine builds: caches are read and written with his credentials, in his directories.
#[derive(Clone)]
pub struct CacheOwner {
    /// Asks registries.
    pub registry: Client,
    /// His directories, by the path he names.
    pub directories: Arc<Directories>,
    /// Whose cache records are his.
    pub namespace: Namespace,
}

impl std::fmt::Debug for CacheOwner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CacheOwner").finish_non_exhaustive()
    }
}

/// What a build needs to know of its images.
#[derive(Debug, Clone, Default)]
pub struct ImageLayers {
    /// Layers by the digest an image is pinned to.
    pinned: HashMap<Digest, ImageKey>,
    /// The digests of those that graphs name without one, by vertex.
    unpinned: HashMap<Digest, Digest>,
}

#[derive(Debug, Clone)]
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
pub struct Journey {
    pub(crate) travel: Arc<Travel>,
    definition: Arc<Definition>,
    sources: SourceKeys,
    outgoing: Vec<Outgoing>,
    /// The cache's index as whoever builds sees it.
    index: CacheIndex,
    stored: Stored,
}

impl ImageLayers {
    pub(crate) fn of(resolved: &Resolved) -> Self {
        let key = |(digest, config): (&Digest, &ImageConfig)| {
            let root = resolved.remote.get(digest).map(|remote| remote.root.descriptor.digest.clone());
            let root = root.filter(|root| root != digest);
            (digest.clone(), ImageKey { root, diff_ids: config.rootfs.diff_ids.clone() })
        };
        let pinned =
            resolved.sources.images().map(|(_, image)| key((&image.digest, &image.config))).collect();
        Self { pinned, unpinned: HashMap::new() }
    }

    /// Finds out what the images are that a graph names by tag alone, as graphs do that no front end has made. One
    /// that cannot be found has no key; the step that needs it will say why.
    pub(crate) async fn find_unpinned(&mut self, definition: &Definition, resolver: &Resolver<'_>) {
        let unpinned = |vertex: &Vertex| {
            let Op::Source(op) = &vertex.op else { return None };
            let SourceIdentifier::DockerImage { reference } = &op.identifier else { return None };
            let platform = vertex.platform.clone().unwrap_or_else(Platform::host);
            reference.digest().is_none().then(|| (vertex.digest.clone(), reference.clone(), platform))
        };
        let wanted: Vec<_> = definition.vertices().iter().filter_map(unpinned).collect();
        let found = wanted.into_iter().map(|(vertex, reference, platform)| async move {
            Some((vertex, resolver.look_quietly(&reference, &platform).await.ok()?))
        });
        for (vertex, (digest, config)) in futures::future::join_all(found).await.into_iter().flatten() {
            let Ok(config) = serde_json::from_slice::<ImageConfig>(&config) else { continue };
            let key = || ImageKey { root: None, diff_ids: config.rootfs.diff_ids };
            self.pinned.entry(digest.clone()).or_insert_with(key);
            self.unpinned.insert(vertex, digest);
        }
    }

    /// Takes up what is known of another platform's.
    pub fn absorb(&mut self, other: &Self) {
        self.pinned.extend(other.pinned.iter().map(|(digest, key)| (digest.clone(), key.clone())));
        self.unpinned.extend(other.unpinned.iter().map(|(vertex, digest)| (vertex.clone(), digest.clone())));
    }
}

impl Journey {
    /// What the steps of the build need of it.
    pub fn travel(&self) -> Arc<Travel> {
        Arc::clone(&self.travel)
    }
}

impl std::fmt::Debug for Journey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Journey").finish_non_exhaustive()
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
        let registry = caches.owner.as_ref().map_or(&self.registry, |owner| &owner.registry);
        let bases = Arc::new(Bases::new(self.store.clone(), registry.clone(), names));
        let mut outgoing = Vec::with_capacity(caches.to.len());
        for spec in &caches.to {
            let place = self.export_place(&spec.target, caches.owner.as_ref()).await;
            let place = place.map_err(|error| export::failed(spec, error.into()))?;
            outgoing.push(Outgoing::begin(self, spec, place, &definition, &bases));
        }
        let imports = if caches.from.is_empty() {
            None
        } else {
            let read = import::read(self, caches, steps).await;
            Some(Imports::new(self.store.clone(), read, &definition, &sources, warning(steps)))
        };
        let ahead = outgoing.first().map(|out| Ahead::of(&self.worker, &definition, &out.digests));
        let listener = (!outgoing.is_empty()).then(|| export::listener(&outgoing, &definition, ahead));
        let mounts = mounts::imports(self, caches, warning(steps)).await;
        let travel = Arc::new(Travel::new(imports, mounts, listener));
        let namespace = caches.owner.as_ref().map(|owner| owner.namespace.clone()).unwrap_or_default();
        let index = self.solvers.index_of(&namespace);
        let stored = if caches.owner.is_some() { Stored::Shared } else { Stored::Own };
        Ok(Some(Journey { travel, definition, sources, outgoing, index, stored }))
    }

    /// The place a registry cache lies at.
    async fn registry_place(&self, place: &RegistryPlace, owner: Option<&CacheOwner>) -> Place {
        let reference = place.reference.clone();
        let registry = owner.map_or(&self.registry, |owner| &owner.registry);
        let client = if place.insecure { registry.trusting(&reference).await } else { registry.clone() };
        Place::Registry { client, reference }
    }

    /// The place of an export; `None` for an inline one.
    pub(crate) async fn export_place(
        &self,
        target: &ExportTarget,
        owner: Option<&CacheOwner>,
    ) -> Result<Option<Place>, PlaceError> {
        Ok(Some(match target {
            ExportTarget::Inline => return Ok(None),
            ExportTarget::Registry(place) => self.registry_place(place, owner).await,
            ExportTarget::Local { dest, tag, .. } => match owner {
                Some(owner) => Place::Elsewhere(Elsewhere::new((owner.directories)(dest), None)),
                None => stave_remotecache::place::local(dest.clone(), tag.clone(), None),
            },
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
        // Some layers of an image are another source than the image, and have no key of their own there.
        if op.attrs.contains_key("image.layerlimit") {
            return None;
        }
        let keys = match &op.identifier {
            SourceIdentifier::DockerImage { reference } => {
                let pin = reference.digest().or_else(|| images.unpinned.get(&vertex.digest));
                image_keys(pin?, vertex, images)
            }
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
    let Some(ImageKey { root, diff_ids }) = images.pinned.get(pin) else {
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use stave_llb::SourceOp;
    use stave_llb::builder::{About, GraphBuilder};

    use super::*;

    fn keys(name: &str, images: impl FnOnce(&Digest) -> ImageLayers) -> Option<Vec<String>> {
        keys_with(name, BTreeMap::new(), images)
    }

    fn keys_with(
        name: &str,
        attrs: BTreeMap<String, String>,
        images: impl FnOnce(&Digest) -> ImageLayers,
    ) -> Option<Vec<String>> {
        let mut graph = GraphBuilder::default();
        let op = SourceOp::new(format!("docker-image://docker.io/library/{name}"), attrs);
        let output = graph.source(op, &Platform::new("linux", "amd64", None), About::named("image"));
        let definition = graph.finish(Some(output));
        let vertex = &definition.vertices()[0].digest;
        source_keys(&definition, &images(vertex)).remove(vertex)
    }

    #[test]
    fn an_image_named_by_tag_has_the_keys_of_what_it_is_pinned_to() {
        let (pin, layer) = (Digest::sha256(b"manifest"), Digest::sha256(b"layer"));
        let key = ImageKey { root: None, diff_ids: vec![layer] };
        let pinned = HashMap::from([(pin.clone(), key)]);
        let known = ImageLayers { pinned: pinned.clone(), unpinned: HashMap::new() };
        let by_digest = keys(&format!("busybox@{pin}"), |_| known.clone());
        assert_eq!(by_digest.as_ref().map(Vec::len), Some(2), "by its manifest and by its layers");
        let found = |vertex: &Digest| ImageLayers {
            pinned,
            unpinned: HashMap::from([(vertex.clone(), pin.clone())]),
        };
        assert_eq!(keys("busybox:latest", found), by_digest);
        assert_eq!(keys("busybox:latest", |_| known), None);
    }

    #[test]
    fn some_layers_of_an_image_are_not_found_as_the_whole_one() {
        let name = format!("busybox@{}", Digest::sha256(b"manifest"));
        let attrs = |name: &str| BTreeMap::from([(name.to_owned(), "1".to_owned())]);
        assert_eq!(keys_with(&name, attrs("image.layerlimit"), |_| ImageLayers::default()), None);
        assert!(keys_with(&name, attrs("image.other"), |_| ImageLayers::default()).is_some());
    }
}
