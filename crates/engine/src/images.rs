//! Images as a user names them: found, pulled, pushed, saved, loaded.
//!
//! Listings, tags and removal need no wiring and are asked of the store directly. Start with
//! [`Engine::pull`] and [`Engine::push`].

use std::collections::BTreeMap;

use stave_exporter::{
    ArchiveDestination, ArchiveLayout, ExportError, ExportTarget, Exported, Image, ImageTarget, LoadError,
    LoadSource, LoadedImage, PushOptions, SavedImage,
};
use stave_oci::media_type::is_index;
use stave_oci::{Descriptor, Digest, Platform, Reference};
use stave_registry::{FetchedManifest, RegistryError};
use stave_store::{LocalImage, StoreError, StoredIndex};
use stave_worker::{PullProgress, Puller, SourceError};
use tokio_util::sync::CancellationToken;

use crate::Engine;
use crate::event::{EngineEvent, Observer, Step, Steps};
use crate::request::PullPolicy;

/// Why an image command failed.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// No image of that name or id is here.
    #[error("No such image: {0}")]
    NotFound(String),
    /// It is not here for this platform.
    #[error("image `{image}` is here for {}, not for {wanted}", .here.join(", "))]
    Platform {
        /// As the user named it.
        image: String,
        /// The platform asked for.
        wanted: Box<Platform>,
        /// Those it is here for.
        here: Vec<String>,
    },
    /// A name was needed and an id given.
    #[error("`{0}` is not an image name")]
    NotAName(String),
    /// Pulling failed.
    #[error(transparent)]
    Pull(#[from] SourceError),
    /// The registry did not answer as it should.
    #[error("{0}")]
    Registry(#[from] RegistryError),
    /// Pushing or saving failed.
    #[error(transparent)]
    Export(#[from] ExportError),
    /// Loading failed.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// An index of artifacts alone.
    #[error("`{0}` has no images")]
    NoImages(String),
    /// The state directory failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Interrupted.
    #[error("cancelled")]
    Cancelled,
}

/// Images of one name that were pulled together.
#[derive(Debug, Clone)]
pub struct PulledImages {
    /// What the name stands for at the registry: their index, or the only manifest.
    pub digest: Digest,
    /// The images; what runs here first.
    pub images: Vec<LocalImage>,
}

impl Engine {
    /// The local image that a user's text means: a name, an id, or the start of an id.
    ///
    /// # Errors
    /// [`ImageError::NotFound`], or when the store fails.
    pub fn find(&self, text: &str) -> Result<LocalImage, ImageError> {
        self.store.image(text)?.ok_or_else(|| ImageError::NotFound(text.to_owned()))
    }

    /// The local image of this name (pinned or not) and platform.
    pub(crate) fn local_image(
        &self,
        name: &Reference,
        platform: &Platform,
    ) -> Result<Option<LocalImage>, StoreError> {
        let cancel = CancellationToken::new();
        let progress = |_: &Digest, _: u64, _: u64| {};
        self.puller(&progress, &cancel).local(name, platform)
    }

    /// Pulls an image and gives it its name here.
    ///
    /// # Errors
    /// [`ImageError::Pull`], or when the store fails.
    pub async fn pull(
        &self,
        name: &Reference,
        platform: &Platform,
        observer: Observer,
        cancel: &CancellationToken,
    ) -> Result<LocalImage, ImageError> {
        let lease = self.store.lease()?;
        let steps = Steps::new(observer);
        let step = steps.start(format!("pulling {name}"));
        let progress = layer_progress(&steps, &step);
        let image = step.end(self.puller(&progress, cancel).pull(name, platform).await)?;
        self.store.put_image(std::slice::from_ref(name), &image)?;
        drop(lease);
        Ok(image)
    }

    /// Pulls what an index has for `platforms`, or all its images if that names none, and gives them their name here.
    /// The name alone means the one for this machine, if that is among them.
    ///
    /// # Errors
    /// [`ImageError`]; nothing has the name then.
    pub async fn pull_platforms(
        &self,
        name: &Reference,
        platforms: &[Platform],
        observer: Observer,
        cancel: &CancellationToken,
    ) -> Result<PulledImages, ImageError> {
        let lease = self.store.lease()?;
        let found = tokio::select! {
            found = self.registry.fetch_manifest(name) => found?,
            () = cancel.cancelled() => return Err(ImageError::Cancelled),
        };
        // All of one index, whatever the tag means by the time the last of them comes.
        let pinned = name.pinned(found.descriptor.digest.clone());
        let steps = Steps::new(observer);
        let (mut images, index) = if platforms.is_empty() && is_index(&found.descriptor.media_type) {
            let (images, index) = self.pull_index(&pinned, &found, &steps, cancel).await?;
            (images, Some(index))
        } else {
            // Of a single manifest, its config tells the platform.
            let host = [Platform::host()];
            let platforms = if platforms.is_empty() { &host } else { platforms };
            let mut images: Vec<LocalImage> = Vec::new();
            for platform in platforms {
                let step = steps.start(format!("pulling {name} for {platform}"));
                let progress = layer_progress(&steps, &step);
                let image = step.end(self.puller(&progress, cancel).pull(&pinned, platform).await)?;
                if !images.iter().any(|known| known.id == image.id) {
                    images.push(image);
                }
            }
            (images, None)
        };
        let host = Platform::host();
        images.sort_by_key(|image| !image.platform.matches(&host));
        self.store.put_indexed(std::slice::from_ref(name), &images, index.as_ref())?;
        drop(lease);
        Ok(PulledImages { digest: found.descriptor.digest, images })
    }

    /// Pulls all that an index leads to.
    async fn pull_index(
        &self,
        pinned: &Reference,
        found: &FetchedManifest,
        steps: &Steps,
        cancel: &CancellationToken,
    ) -> Result<(Vec<LocalImage>, StoredIndex), ImageError> {
        let silent = |_: &Digest, _: u64, _: u64| {};
        let survey = self.puller(&silent, cancel).survey(pinned, found).await?;
        let mut images: Vec<LocalImage> = Vec::new();
        for resolved in &survey.images {
            let platform = resolved.image_config().map(|config| config.platform().to_string());
            let platform = platform.unwrap_or_else(|_| "an unknown platform".to_owned());
            let step = steps.start(format!("pulling {} for {platform}", pinned.familiar_name()));
            let progress = layer_progress(steps, &step);
            let image = step.end(self.puller(&progress, cancel).pull_resolved(pinned, resolved).await)?;
            if !images.iter().any(|known| known.id == image.id) {
                images.push(image);
            }
        }
        if images.is_empty() {
            return Err(ImageError::NoImages(pinned.familiar()));
        }
        let step = steps.start("pulling what else the index has");
        let progress = layer_progress(steps, &step);
        step.end(self.puller(&progress, cancel).bring_rest(pinned, &survey.index, &images).await)?;
        Ok((images, survey.index))
    }

    fn puller<'a>(&'a self, progress: &'a dyn PullProgress, cancel: &'a CancellationToken) -> Puller<'a> {
        Puller { store: &self.store, client: &self.registry, progress, cancel }
    }

    /// The image of a name or id, pulled if the policy says so.
    ///
    /// # Errors
    /// [`ImageError`].
    pub async fn obtain(
        &self,
        text: &str,
        platform: &Platform,
        policy: PullPolicy,
        observer: Observer,
        cancel: &CancellationToken,
    ) -> Result<LocalImage, ImageError> {
        if policy != PullPolicy::Always
            && let Some(image) = self.store.image(text)?
        {
            if image.platform.matches(platform) {
                return Ok(image);
            }
            // A name may stand for other platforms, too.
            let name = text.parse::<Reference>().ok();
            let named = name.map(|name| self.store.images_by_name(&name)).transpose()?.flatten();
            let other = named.and_then(|named| named.of(platform).cloned());
            return Ok(other.unwrap_or(image));
        }
        if policy == PullPolicy::Never {
            return Err(ImageError::NotFound(text.to_owned()));
        }
        let name: Reference = text.parse().map_err(|_| ImageError::NotAName(text.to_owned()))?;
        self.pull(&name, platform, observer, cancel).await
    }

    /// Pushes a local image under its name: for `platforms`, or for all that are here if that names none.
    ///
    /// # Errors
    /// [`ImageError`].
    pub async fn push(
        &self,
        name: &Reference,
        platforms: &[Platform],
        observer: Observer,
        cancel: &CancellationToken,
    ) -> Result<Exported, ImageError> {
        let lease = self.store.lease()?;
        let local = self.store.images_by_name(name)?;
        let local = local.ok_or_else(|| ImageError::NotFound(name.familiar()))?;
        let index = if platforms.is_empty() { self.whole_index(name)? } else { None };
        let origins = self.origins(name)?;
        let mut images = Vec::new();
        if index.is_none() {
            for local in of_platforms(local.all(), platforms, &name.familiar())? {
                let mut image =
                    Image::stored(local).attested(self.store.attestations(Some(name), &local.id)?);
                for layer in &mut image.layers {
                    layer.origin = layer.blob.as_ref().and_then(|blob| origins.get(&blob.digest).cloned());
                }
                images.push(image);
            }
        }
        let (names, push) = (vec![name.clone()], PushOptions::default());
        let steps = Steps::new(observer);
        let step = steps.start(format!("pushing {name}"));
        let exporter = self.exporter().with_events(steps.export_events(&step));
        let exporting = async {
            match &index {
                Some(index) => exporter.push_index(index, &origins, &names, &push).await,
                None => {
                    let target = ImageTarget { names, push: Some(push), ..ImageTarget::default() };
                    exporter.export(&images, &ExportTarget::Image(target)).await
                }
            }
        };
        let exported = tokio::select! {
            exported = exporting => step.end(exported)?,
            () = cancel.cancelled() => return Err(ImageError::Cancelled),
        };
        drop(lease);
        Ok(exported)
    }

    /// What a name's repository has tags for, at its registry.
    ///
    /// # Errors
    /// [`ImageError::Registry`].
    pub async fn tags(&self, name: &Reference) -> Result<Vec<Reference>, ImageError> {
        Ok(self.registry.tags(name).await?)
    }

    /// The names of a name's repository that images here have, in order.
    ///
    /// # Errors
    /// When the store fails.
    pub fn local_tags(&self, name: &Reference) -> Result<Vec<Reference>, ImageError> {
        let names = self.store.images()?.into_iter().flat_map(|listed| listed.names);
        let mut tags: Vec<Reference> =
            names.filter(|other| other.name() == name.name() && other.tag().is_some()).collect();
        tags.sort();
        tags.dedup();
        Ok(tags)
    }

    /// What refers to an image at its registry, of one artifact type or of all; of an index with `platform`, to that
    /// image of it.
    ///
    /// # Errors
    /// [`ImageError::Registry`].
    pub async fn referrers(
        &self,
        name: &Reference,
        platform: Option<&Platform>,
        artifact_type: Option<&str>,
    ) -> Result<Vec<Descriptor>, ImageError> {
        let subject = match platform {
            None => self.registry.resolve_digest(name).await?.digest,
            Some(platform) => self.registry.resolve(name, platform).await?.manifest.descriptor.digest,
        };
        Ok(self.registry.referrers(name, &subject, artifact_type).await?)
    }

    /// The index that a name came with, if all it leads to is still here.
    fn whole_index(&self, name: &Reference) -> Result<Option<StoredIndex>, StoreError> {
        let Some(index) = self.store.index_by_name(name)? else { return Ok(None) };
        if self.exporter().is_whole(&index)? {
            return Ok(Some(index));
        }
        tracing::warn!(name = %name.familiar(), "part of its index is gone: what is left gets a new one");
        Ok(None)
    }

    /// In which other repositories blobs were seen: of the target's registry, which can then take them from there, if
    /// there is one, else of any, from where they can be had again.
    fn origins(&self, target: &Reference) -> Result<BTreeMap<Digest, Reference>, StoreError> {
        let mut seen = BTreeMap::new();
        for listed in self.store.images()?.iter().filter(|listed| listed.image.manifest.is_some()) {
            let elsewhere = listed.names.iter().filter(|name| name.name() != target.name());
            let best = elsewhere.max_by_key(|name| name.registry() == target.registry());
            let blobs = listed.image.layers.iter().filter_map(|layer| layer.blob.as_ref());
            for (blob, name) in blobs.zip(std::iter::repeat(best)) {
                let Some(name) = name else { continue };
                let is_better = |known: &Reference| {
                    known.registry() != target.registry() && name.registry() == target.registry()
                };
                if seen.get(&blob.digest).is_none_or(is_better) {
                    seen.insert(blob.digest.clone(), name.clone());
                }
            }
        }
        Ok(seen)
    }

    /// Writes local images into one archive; returns its size in bytes. `platforms` are those written; if that names
    /// none, docker's layout gets what the name alone means, and OCI's all.
    ///
    /// # Errors
    /// [`ImageError`].
    pub async fn save(
        &self,
        texts: &[String],
        platforms: &[Platform],
        layout: ArchiveLayout,
        dest: &ArchiveDestination,
    ) -> Result<u64, ImageError> {
        let lease = self.store.lease()?;
        let mut images: Vec<SavedImage> = Vec::new();
        for text in texts {
            let local = self.find(text)?;
            let id = Some(&local.id);
            // Saved by id, an image has no names in the archive: docker's rule.
            let name = text.parse::<Reference>().ok().filter(|name| {
                self.store.image_by_name(name).is_ok_and(|found| found.as_ref().map(|image| &image.id) == id)
            });
            let takes_all = layout == ArchiveLayout::Oci || !platforms.is_empty();
            let all = match name.as_ref().filter(|_| takes_all) {
                Some(name) => self.store.images_by_name(name)?.map(|named| named.all().cloned().collect()),
                // docker's own layout holds one platform: the one the name alone means.
                None => None,
            };
            let all: Vec<LocalImage> = all.unwrap_or_else(|| vec![local.clone()]);
            let mut chosen = Vec::new();
            for local in of_platforms(all.iter(), platforms, text)? {
                let attestations = match layout {
                    ArchiveLayout::Oci => self.store.attestations(name.as_ref(), &local.id)?,
                    ArchiveLayout::Docker => Vec::new(),
                };
                chosen.push(Image::stored(local).attested(attestations));
            }
            let whole = name.as_ref().filter(|_| layout == ArchiveLayout::Oci && platforms.is_empty());
            let index = whole.map(|name| self.whole_index(name)).transpose()?.flatten();
            images.push(SavedImage { images: chosen, names: name.into_iter().collect(), index });
        }
        let size = self.exporter().save(&images, layout, dest).await?;
        drop(lease);
        Ok(size)
    }

    /// Reads the images of an archive into the store: those for `platforms`, or for this machine if that names none.
    ///
    /// # Errors
    /// [`ImageError::Load`].
    pub async fn load(
        &self,
        source: LoadSource,
        platforms: &[Platform],
    ) -> Result<Vec<LoadedImage>, ImageError> {
        let lease = self.store.lease()?;
        let loaded = self.exporter().load(source, platforms).await?;
        drop(lease);
        Ok(loaded)
    }
}

/// Those of `images` that are for `platforms`, each once; all if that names none.
fn of_platforms<'a>(
    images: impl Iterator<Item = &'a LocalImage>,
    platforms: &[Platform],
    text: &str,
) -> Result<Vec<&'a LocalImage>, ImageError> {
    let images: Vec<&LocalImage> = images.collect();
    if platforms.is_empty() {
        return Ok(images);
    }
    let mut chosen: Vec<&LocalImage> = Vec::new();
    for wanted in platforms {
        let found = images.iter().find(|image| image.platform.matches(wanted));
        let found = found.ok_or_else(|| ImageError::Platform {
            image: text.to_owned(),
            wanted: Box::new(wanted.clone()),
            here: images.iter().map(|image| image.platform.to_string()).collect(),
        })?;
        if !chosen.iter().any(|known| known.id == found.id) {
            chosen.push(found);
        }
    }
    Ok(chosen)
}

/// Tells how layers come along as progress of a step.
fn layer_progress(steps: &Steps, step: &Step) -> impl PullProgress + use<> {
    let (to, id) = (steps.observer().clone(), step.id());
    move |layer: &Digest, current: u64, total: u64| {
        let total = Some(total);
        to.send(EngineEvent::StepProgress { step: id, id: layer.to_string(), current, total });
    }
}
