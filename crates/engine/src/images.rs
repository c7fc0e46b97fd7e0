//! Images as a user names them: found, pulled, pushed, saved, loaded.
//!
//! Listings, tags and removal need no wiring and are asked of the store directly. Start with
//! [`Engine::pull`] and [`Engine::push`].

use std::collections::BTreeMap;

use stave_exporter::{
    ArchiveDestination, ArchiveLayout, ExportError, ExportTarget, Exported, Image, ImageFormat,
    ImageLayerRef, ImageTarget, LoadError, LoadSource, LoadedImage, PushOptions, SavedImage,
};
use stave_oci::{Digest, Platform, Reference};
use stave_store::{LocalImage, StoreError};
use stave_worker::{Puller, SourceError};
use tokio_util::sync::CancellationToken;

use crate::Engine;
use crate::event::{EngineEvent, Observer, Steps};
use crate::request::PullPolicy;

/// Why an image command failed.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// No image of that name or id is here.
    #[error("No such image: {0}")]
    NotFound(String),
    /// A name was needed and an id given.
    #[error("`{0}` is not an image name")]
    NotAName(String),
    /// Pulling failed.
    #[error(transparent)]
    Pull(#[from] SourceError),
    /// Pushing or saving failed.
    #[error(transparent)]
    Export(#[from] ExportError),
    /// Loading failed.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The state directory failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Interrupted.
    #[error("cancelled")]
    Cancelled,
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
        let puller =
            Puller { store: &self.store, client: &self.registry, progress: &progress, cancel: &cancel };
        puller.local(name, platform)
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
        let (to, id) = (steps.observer().clone(), step.id());
        let progress = move |layer: &Digest, current: u64, total: u64| {
            let total = Some(total);
            to.send(EngineEvent::StepProgress { step: id, id: layer.to_string(), current, total });
        };
        let puller = Puller { store: &self.store, client: &self.registry, progress: &progress, cancel };
        let image = step.end(puller.pull(name, platform).await)?;
        self.store.put_image(std::slice::from_ref(name), &image)?;
        drop(lease);
        Ok(image)
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

    /// Pushes a local image under its name.
    ///
    /// # Errors
    /// [`ImageError`].
    pub async fn push(
        &self,
        name: &Reference,
        format: ImageFormat,
        observer: Observer,
        cancel: &CancellationToken,
    ) -> Result<Exported, ImageError> {
        let lease = self.store.lease()?;
        let local = self.store.images_by_name(name)?;
        let local = local.ok_or_else(|| ImageError::NotFound(name.familiar()))?;
        let mut images = Vec::new();
        for local in local.all() {
            let mut image = Image::stored(local).attested(self.store.attestations(&local.id)?);
            self.mark_origins(name, &mut image.layers)?;
            images.push(image);
        }
        let push = Some(PushOptions::default());
        let target = ImageTarget { names: vec![name.clone()], push, format, ..ImageTarget::default() };
        let steps = Steps::new(observer);
        let step = steps.start(format!("pushing {name}"));
        let exporter = self.exporter().with_events(steps.export_events(&step));
        let target = ExportTarget::Image(target);
        let exported = tokio::select! {
            exported = exporter.export(&images, &target) => step.end(exported)?,
            () = cancel.cancelled() => return Err(ImageError::Cancelled),
        };
        drop(lease);
        Ok(exported)
    }

    /// Tells the exporter in which other repositories of the target's registry a layer's blob was seen:
    /// the registry can then take it from there.
    fn mark_origins(&self, target: &Reference, layers: &mut [ImageLayerRef]) -> Result<(), StoreError> {
        let mut seen = BTreeMap::new();
        for listed in self.store.images()? {
            let pulled = listed.image.manifest.is_some();
            let here = listed.names.iter().find(|name| name.registry() == target.registry());
            if let (true, Some(name)) = (pulled, here) {
                let blobs = listed.image.layers.iter().filter_map(|layer| layer.blob.as_ref());
                seen.extend(blobs.map(|blob| (blob.digest.clone(), name.clone())));
            }
        }
        for layer in layers {
            layer.origin = layer.blob.as_ref().and_then(|blob| seen.get(&blob.digest).cloned());
        }
        Ok(())
    }

    /// Writes local images into one archive; returns its size in bytes.
    ///
    /// # Errors
    /// [`ImageError`].
    pub async fn save(
        &self,
        texts: &[String],
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
            let all = match name.as_ref().filter(|_| layout == ArchiveLayout::Oci) {
                Some(name) => self.store.images_by_name(name)?.map(|named| named.all().cloned().collect()),
                // docker's own layout holds one platform: the one the name alone means.
                None => None,
            };
            let all: Vec<LocalImage> = all.unwrap_or_else(|| vec![local.clone()]);
            let mut platforms = Vec::new();
            for local in &all {
                let attestations = match layout {
                    ArchiveLayout::Oci => self.store.attestations(&local.id)?,
                    ArchiveLayout::Docker => Vec::new(),
                };
                platforms.push(Image::stored(local).attested(attestations));
            }
            images.push(SavedImage { images: platforms, names: name.into_iter().collect() });
        }
        let size = self.exporter().save(&images, layout, dest).await?;
        drop(lease);
        Ok(size)
    }

    /// Reads the images of an archive into the store.
    ///
    /// # Errors
    /// [`ImageError::Load`].
    pub async fn load(
        &self,
        source: LoadSource,
        platform: &Platform,
    ) -> Result<Vec<LoadedImage>, ImageError> {
        let lease = self.store.lease()?;
        let loaded = self.exporter().load(source, platform).await?;
        drop(lease);
        Ok(loaded)
    }
}
