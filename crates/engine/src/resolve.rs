//! Images a Dockerfile names become pinned sources: from the local store first, else from a registry.
//!
//! Owns the choice and what a pin is. Must not know how layers are fetched: nothing but manifests and
//! configs is read here. Start with [`Resolver`].

use std::collections::BTreeMap;
use std::path::PathBuf;

use stave_frontend_dockerfile::request::ImageOrigin;
use stave_frontend_dockerfile::{ResolvedImage, ResolvedSources, SourceRequest};
use stave_oci::{Digest, ImageConfig, Platform, Reference};
use stave_registry::{Client, RegistryError};
use stave_store::{LocalImage, Store, StoreError};
use stave_worker::{LayoutError, OciLayout};

use crate::Engine;
use crate::event::Steps;
use crate::request::PullPolicy;

/// An image that could not be resolved.
#[derive(Debug, thiserror::Error)]
#[error("failed to resolve source metadata for {}", .request.reference)]
pub struct ResolveError {
    /// Which.
    pub request: SourceRequest,
    /// Why.
    #[source]
    pub kind: Box<ResolveErrorKind>,
}

/// Why an image could not be resolved.
#[derive(Debug, thiserror::Error)]
pub enum ResolveErrorKind {
    /// The registry refused or could not be reached.
    // Not transparent: callers look for the registry's error among the causes.
    #[error("{0}")]
    Registry(#[from] RegistryError),
    /// The local store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The image's config is not one.
    #[error("malformed image config")]
    Config(#[from] serde_json::Error),
    /// Layers and diff ids do not pair up.
    #[error("its manifest lists {layers} layers, its configuration {diff_ids}")]
    LayerCount {
        /// In the manifest.
        layers: usize,
        /// In the configuration.
        diff_ids: usize,
    },
    /// The build has no such layout.
    #[error("no OCI layout named `{0}`")]
    UnknownLayout(String),
    /// An OCI layout does not have it.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// It is not here and pulling was ruled out.
    #[error("not in the local store, and pulling is switched off")]
    NotHere,
}

/// The images of one build, as they were found.
#[derive(Debug, Default)]
pub(crate) struct Resolved {
    /// What the front end gets.
    pub(crate) sources: ResolvedSources,
    /// What registries answered, by the pinned digest: the worker pulls from there without asking again.
    pub(crate) remote: BTreeMap<Digest, stave_registry::ResolvedImage>,
}

/// Looks images up.
#[derive(Debug)]
pub(crate) struct Resolver<'a> {
    pub(crate) store: &'a Store,
    pub(crate) registry: &'a Client,
    pub(crate) pull: PullPolicy,
    pub(crate) steps: &'a Steps,
    /// OCI layouts by name.
    layouts: Option<&'a BTreeMap<String, PathBuf>>,
}

impl Resolved {
    /// Takes up what was found for another platform.
    pub(crate) fn absorb(&mut self, other: Self) {
        for (request, image) in other.sources.images() {
            self.sources.insert(request.clone(), image.clone());
        }
        self.remote.extend(other.remote);
    }
}

enum Found {
    Local(ResolvedImage),
    Remote(Box<stave_registry::ResolvedImage>, ResolvedImage),
}

impl<'a> Resolver<'a> {
    /// Looks in the engine's store and at `registry`.
    pub(crate) fn new(engine: &'a Engine, registry: &'a Client, pull: PullPolicy, steps: &'a Steps) -> Self {
        Self { store: &engine.store, registry, pull, steps, layouts: None }
    }

    /// The same, with OCI layouts to look in.
    pub(crate) fn with_layouts(self, layouts: &'a BTreeMap<String, PathBuf>) -> Self {
        Self { layouts: Some(layouts), ..self }
    }
}

impl Resolver<'_> {
    /// Resolves all requests at once and adds what was found to `resolved`.
    pub(crate) async fn resolve(
        &self,
        requests: Vec<SourceRequest>,
        resolved: &mut Resolved,
    ) -> Result<(), ResolveError> {
        let lookups = requests.into_iter().map(|request| async move {
            let step =
                self.steps.start(format!("{} load metadata for {}", label(&request), request.reference));
            let found = step.end(self.one(&request).await)?;
            Ok::<_, ResolveError>((request, found))
        });
        for (request, found) in futures::future::try_join_all(lookups).await? {
            let image = match found {
                Found::Local(image) => image,
                Found::Remote(remote, image) => {
                    resolved.remote.insert(image.digest.clone(), *remote);
                    image
                }
            };
            resolved.sources.insert(request, image);
        }
        Ok(())
    }

    /// One image: its pin and its config, as they are.
    pub(crate) async fn lookup(
        &self,
        reference: &Reference,
        platform: &Platform,
    ) -> Result<(Digest, Vec<u8>), ResolveError> {
        let request = SourceRequest::plain(reference.clone(), platform.clone());
        let step = self.steps.start(format!("[internal] load metadata for {reference}"));
        let failed = |kind| ResolveError { request: request.clone(), kind: Box::new(kind) };
        let local = if self.pull == PullPolicy::Always { Ok(None) } else { self.named(reference, platform) };
        let found = match local {
            Err(error) => Err(failed(error.into())),
            Ok(Some(image)) => Ok((pin(&image), image.config)),
            Ok(_) if self.pull == PullPolicy::Never => Err(failed(ResolveErrorKind::NotHere)),
            Ok(_) => match self.registry.resolve(reference, platform).await {
                Ok(remote) => Ok((remote.manifest.descriptor.digest.clone(), remote.config.to_vec())),
                Err(error) => Err(failed(error.into())),
            },
        };
        step.end(found)
    }

    /// The local image of a name for a platform.
    fn named(&self, name: &Reference, platform: &Platform) -> Result<Option<LocalImage>, StoreError> {
        let named = self.store.images_by_name(name)?;
        Ok(named.and_then(|named| named.of(platform).cloned()))
    }

    async fn one(&self, request: &SourceRequest) -> Result<Found, ResolveError> {
        let failed = |kind| ResolveError { request: request.clone(), kind: Box::new(kind) };
        if let ImageOrigin::OciLayout { store, .. } = &request.origin {
            return self.layout(request, store).map(Found::Local).map_err(failed);
        }
        if self.pull != PullPolicy::Always
            && let Some(image) = self.local(request).map_err(failed)?
        {
            return Ok(Found::Local(image));
        }
        if self.pull == PullPolicy::Never {
            return Err(failed(ResolveErrorKind::NotHere));
        }
        self.remote(request).await.map_err(failed)
    }

    fn local(&self, request: &SourceRequest) -> Result<Option<ResolvedImage>, ResolveErrorKind> {
        let Some(image) = self.named(&request.reference, &request.platform)? else { return Ok(None) };
        let config: ImageConfig = serde_json::from_slice(&image.config)?;
        Ok(Some(ResolvedImage { digest: pin(&image), config }))
    }

    /// An image of a layout of this machine. Its pin is what was asked for.
    fn layout(&self, request: &SourceRequest, store: &str) -> Result<ResolvedImage, ResolveErrorKind> {
        let unknown = || ResolveErrorKind::UnknownLayout(store.to_owned());
        let directory = self.layouts.and_then(|layouts| layouts.get(store)).ok_or_else(unknown)?;
        let digest = request.reference.digest().cloned().ok_or_else(unknown)?;
        let image = OciLayout::open(directory)?.image(&digest, &request.platform)?;
        Ok(ResolvedImage { digest, config: serde_json::from_slice(&image.config)? })
    }

    async fn remote(&self, request: &SourceRequest) -> Result<Found, ResolveErrorKind> {
        let remote = self.registry.resolve(&request.reference, &request.platform).await?;
        let config: ImageConfig = serde_json::from_slice(&remote.config)?;
        // A configuration without layers would make the image an empty one, and nobody would fetch it.
        let (layers, diff_ids) = (remote.parsed.layers.len(), config.rootfs.diff_ids.len());
        if layers != diff_ids {
            return Err(ResolveErrorKind::LayerCount { layers, diff_ids });
        }
        // The image's own manifest, not the index: once pulled, the store knows it by that digest, and
        // the next build must arrive at the same definition without asking the registry.
        let digest = remote.manifest.descriptor.digest.clone();
        Ok(Found::Remote(Box::new(remote), ResolvedImage { digest, config }))
    }
}

/// Who asks for an image: the Dockerfile, or a named context.
fn label(request: &SourceRequest) -> String {
    match &request.origin {
        ImageOrigin::Registry { context: None } => "[internal]".to_owned(),
        ImageOrigin::Registry { context: Some(context) } | ImageOrigin::OciLayout { context, .. } => {
            format!("[context {context}]")
        }
    }
}

/// What a local image is pinned by: the manifest it came with, or its id if it was built here.
fn pin(image: &LocalImage) -> Digest {
    image.manifest.as_ref().map_or_else(|| image.id.clone(), |manifest| manifest.digest.clone())
}
