//! Images a Dockerfile names become pinned sources: from the local store first, else from a registry.
//!
//! Owns the choice and what a pin is. Must not know how layers are fetched: nothing but manifests and
//! configs is read here. Start with [`Resolver`].

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;

use stave_frontend_dockerfile::request::ImageOrigin;
use stave_frontend_dockerfile::{ResolvedImage, ResolvedSources, SourceRequest};
use stave_llb::policy::{PolicyError, SourcePolicies};
use stave_llb::{Definition, SourceIdentifier, SourceOp};
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
    /// A rule of the build does not allow it.
    #[error("could not resolve image due to policy: {0}")]
    Policy(#[from] PolicyError),
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
    /// What rules of the build put in the place of images: the pinned source that a graph names, and what it becomes.
    pub(crate) replaced: BTreeMap<String, String>,
    /// The same, by the names that were asked for.
    pub(crate) used: BTreeMap<Reference, Reference>,
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
    /// Rules about what may be used.
    policy: Option<&'a SourcePolicies>,
}

/// How often rules may replace one image by another.
const MAX_REPLACEMENTS: usize = 8;

impl Resolved {
    /// Takes up what was found for another platform.
    pub(crate) fn absorb(&mut self, other: Self) {
        for (request, image) in other.sources.images() {
            self.sources.insert(request.clone(), image.clone());
        }
        self.remote.extend(other.remote);
        self.replaced.extend(other.replaced);
        self.used.extend(other.used);
    }

    /// The image that stands for the one that was asked for.
    pub(crate) fn used(&self, reference: &Reference) -> Reference {
        self.used.get(reference).unwrap_or(reference).clone()
    }

    /// A graph of these images as the rules of the build have it. These images were looked at when they were resolved;
    /// others may be in it, which contexts that are graphs bring along.
    pub(crate) fn under(
        &self,
        policy: &SourcePolicies,
        definition: Definition,
    ) -> Result<Definition, PolicyError> {
        if policy.is_empty() {
            return Ok(definition);
        }
        let pinned = |(request, image): (&SourceRequest, &ResolvedImage)| {
            source_of(&request.reference.pinned(image.digest.clone()))
        };
        let known: HashSet<String> = self.sources.images().map(pinned).collect();
        definition.with_sources(&mut |source| match (&source.identifier, self.replaced.get(&source.raw)) {
            (_, Some(other)) => Ok(Some(SourceOp::new(other.clone(), source.attrs.clone()))),
            (SourceIdentifier::DockerImage { .. }, None) if known.contains(&source.raw) => Ok(None),
            _ => policy.evaluate(source),
        })
    }

    /// The same of several, pinned first.
    pub(crate) fn all_under(
        &self,
        policy: &SourcePolicies,
        definitions: BTreeMap<String, Definition>,
    ) -> Result<BTreeMap<String, Definition>, PolicyError> {
        let one = |(name, definition)| Ok((name, self.under(policy, self.pinned(definition))?));
        definitions.into_iter().map(one).collect()
    }
}

/// What is used for an image that was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Used {
    Image(Reference),
    /// A rule puts a source in its place that is no image, and so has no config.
    Other(String),
}

enum Found {
    Local(ResolvedImage),
    Remote(Box<stave_registry::ResolvedImage>, ResolvedImage),
}

impl<'a> Resolver<'a> {
    /// Looks in the engine's store and at `registry`.
    pub(crate) fn new(engine: &'a Engine, registry: &'a Client, pull: PullPolicy, steps: &'a Steps) -> Self {
        Self { store: &engine.store, registry, pull, steps, layouts: None, policy: None }
    }

    /// The same, with OCI layouts to look in.
    pub(crate) fn with_layouts(self, layouts: &'a BTreeMap<String, PathBuf>) -> Self {
        Self { layouts: Some(layouts), ..self }
    }

    /// The same, with rules about what may be used.
    pub(crate) fn with_policy(self, policy: &'a SourcePolicies) -> Self {
        Self { policy: Some(policy).filter(|policy| !policy.is_empty()), ..self }
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
            let found = step.end(self.allowed(&request).await)?;
            Ok::<_, ResolveError>((request, found))
        });
        for (request, (used, found)) in futures::future::try_join_all(lookups).await? {
            let used = match used {
                Used::Image(used) => used,
                Used::Other(other) => {
                    let Found::Local(image) = &found else { continue };
                    let pinned = source_of(&request.reference.pinned(image.digest.clone()));
                    resolved.replaced.insert(pinned, other);
                    request.reference.clone()
                }
            };
            if used != request.reference {
                let digest = match &found {
                    Found::Local(image) | Found::Remote(_, image) => &image.digest,
                };
                let pinned = |name: &Reference| source_of(&name.pinned(digest.clone()));
                resolved.replaced.insert(pinned(&request.reference), pinned(&used));
                resolved.used.insert(request.reference.clone(), used);
            }
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
        let step = self.steps.start(format!("[internal] load metadata for {reference}"));
        step.end(self.look_quietly(reference, platform).await)
    }

    /// The same, without showing it as a step.
    pub(crate) async fn look_quietly(
        &self,
        reference: &Reference,
        platform: &Platform,
    ) -> Result<(Digest, Vec<u8>), ResolveError> {
        let request = SourceRequest::plain(reference.clone(), platform.clone());
        let failed = |kind| ResolveError { request: request.clone(), kind: Box::new(kind) };
        let local = if self.pull == PullPolicy::Always { Ok(None) } else { self.named(reference, platform) };
        match local {
            Err(error) => Err(failed(error.into())),
            Ok(Some(image)) => Ok((pin(&image), image.config)),
            Ok(_) if self.pull == PullPolicy::Never => Err(failed(ResolveErrorKind::NotHere)),
            Ok(_) => match self.registry.resolve(reference, platform).await {
                Ok(remote) => Ok((remote.manifest.descriptor.digest.clone(), remote.config.to_vec())),
                Err(error) => Err(failed(error.into())),
            },
        }
    }

    /// The local image of a name for a platform.
    fn named(&self, name: &Reference, platform: &Platform) -> Result<Option<LocalImage>, StoreError> {
        let named = self.store.images_by_name(name)?;
        Ok(named.and_then(|named| named.of(platform).cloned()))
    }

    /// The image that the rules of the build allow in the place of the one that is asked for, and its name.
    async fn allowed(&self, request: &SourceRequest) -> Result<(Used, Found), ResolveError> {
        let failed = |kind| ResolveError { request: request.clone(), kind: Box::new(kind) };
        let mut used = self.replacement(&request.reference).map_err(failed)?;
        for _ in 0..MAX_REPLACEMENTS {
            let reference = match used.clone() {
                None => request.reference.clone(),
                Some(Used::Image(reference)) => reference,
                Some(Used::Other(other)) => {
                    let image = files_alone(&other, &request.platform);
                    return Ok((Used::Other(other), Found::Local(image)));
                }
            };
            let found = self.one(&SourceRequest { reference: reference.clone(), ..request.clone() }).await;
            // Errors are about what was asked for.
            let found = found.map_err(|error| ResolveError { request: request.clone(), ..error })?;
            let pinned = match &found {
                Found::Remote(remote, _) => reference.pinned(remote.root.descriptor.digest.clone()),
                // What was asked for by its digest was looked at with it.
                Found::Local(_) if reference.digest().is_some() => {
                    return Ok((Used::Image(reference), found));
                }
                Found::Local(image) => reference.pinned(image.digest.clone()),
            };
            // Rules may be about digests.
            match self.replacement(&pinned).map_err(failed)? {
                Some(other) if other != Used::Image(reference.clone()) => used = Some(other),
                _ => return Ok((Used::Image(reference), found)),
            }
        }
        Err(failed(PolicyError::TooManyConversions.into()))
    }

    /// What the rules of the build put in the place of an image.
    fn replacement(&self, reference: &Reference) -> Result<Option<Used>, ResolveErrorKind> {
        let Some(policy) = self.policy else { return Ok(None) };
        Ok(policy.evaluate(&SourceOp::new(source_of(reference), BTreeMap::new()))?.map(|other| {
            match other.identifier {
                SourceIdentifier::DockerImage { reference } => Used::Image(reference),
                _ => Used::Other(other.raw),
            }
        }))
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

/// What stands for the config of a source that is no image: it has files, and nothing is said about them.
fn files_alone(source: &str, platform: &Platform) -> ResolvedImage {
    let digest = Digest::sha256(source.as_bytes());
    let mut config = ImageConfig::default();
    config.architecture.clone_from(&platform.architecture);
    config.os.clone_from(&platform.os);
    config.rootfs.diff_ids.push(digest.clone());
    ResolvedImage { digest, config }
}

/// An image as a source of a graph.
pub(crate) fn source_of(reference: &Reference) -> String {
    format!("docker-image://{}", reference.canonical())
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

#[cfg(test)]
mod tests {
    use stave_llb::builder::{About, GraphBuilder};
    use stave_llb::policy::SourcePolicy;

    use super::*;

    #[test]
    fn rules_hold_for_images_that_nobody_resolved() {
        let rules = r#"{"rules":[{"action":"DENY","selector":{"identifier":"docker-image://*"}}]}"#;
        let policy = SourcePolicy::rules_of_json(rules).and_then(SourcePolicy::new).expect("is a policy");
        let policy = SourcePolicies::new(vec![policy]).expect("is one");
        let platform = Platform::new("linux", "amd64", None);
        let reference: Reference = "a:1".parse().expect("a name");
        let digest = Digest::sha256(b"x");
        let request = SourceRequest::plain(reference.clone(), platform.clone());
        let image = ResolvedImage { digest: digest.clone(), config: ImageConfig::default() };
        let mut resolved = Resolved::default();
        resolved.sources.insert(request, image);
        let graph = |name: &Reference| {
            let mut graph = GraphBuilder::default();
            let op = SourceOp::new(source_of(name), BTreeMap::new());
            let output = graph.source(op, &platform, About::named("a"));
            graph.finish(Some(output))
        };
        let known = graph(&reference.pinned(digest.clone()));
        assert_eq!(resolved.under(&policy, known.clone()), Ok(known));
        let other: Reference = "b:1".parse().expect("a name");
        for unknown in [other.pinned(digest), other, reference] {
            let denied = resolved.under(&policy, graph(&unknown)).expect_err("is denied");
            assert_eq!(denied, PolicyError::Denied(source_of(&unknown)));
        }
    }
}
