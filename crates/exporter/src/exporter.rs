//! The front door: an [`Image`] and an [`ExportTarget`] in, [`Exported`] out.
//!
//! Owns which steps each target takes and what they share: the store, the registry client, events,
//! standard output and cancellation. Must not know the solver or the worker.

use std::fmt;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use stave_oci::{Platform, Reference};
use stave_registry::Client;
use stave_store::{LocalImage, Store};
use tokio_util::sync::CancellationToken;

use crate::archive::{self, LoadSource, LoadedImage};
use crate::error::{ExportError, ExportErrorKind, LoadError, LoadErrorKind};
use crate::event::{ExportEvents, ExportStep};
use crate::image::{Exported, Image};
use crate::output;
use crate::prepare::{self, LayerFormat, PreparedImage};
use crate::push;
use crate::sink;
use crate::spec::{ArchiveDestination, ArchiveTarget, Destination, ExportTarget, ImageTarget};

/// A stream for results that go to standard output.
pub(crate) type OutputStream = Arc<Mutex<Box<dyn Write + Send>>>;

/// Exports images, saves and loads archives. Cheap to clone.
#[derive(Clone)]
pub struct Exporter {
    pub(crate) store: Store,
    pub(crate) client: Client,
    pub(crate) events: ExportEvents,
    stdout: Option<OutputStream>,
}

/// What the blocking part of an operation works with.
#[derive(Clone)]
pub(crate) struct Context {
    pub(crate) store: Store,
    pub(crate) client: Client,
    pub(crate) events: ExportEvents,
    pub(crate) stdout: Option<OutputStream>,
    /// Set when nobody waits for the operation any more: writers then fail at their next write.
    pub(crate) cancel: CancellationToken,
}

/// The form of an archive of images.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ArchiveLayout {
    /// Docker's: `manifest.json` beside an OCI layout, layers uncompressed.
    Docker,
    /// An OCI image layout, layers compressed.
    Oci,
}

/// An image to save, with the names it is saved under.
#[derive(Debug, Clone)]
pub struct SavedImage {
    /// The image.
    pub image: Image,
    /// Its names in the archive.
    pub names: Vec<Reference>,
}

impl Exporter {
    /// An exporter from `store`, pushing through `client`. Nobody hears its events, and results for
    /// standard output are refused, until [`Self::with_events`] and [`Self::with_stdout`].
    pub fn new(store: Store, client: Client) -> Self {
        Self { store, client, events: ExportEvents::ignored(), stdout: None }
    }

    /// The same, with events going to `events`.
    #[must_use]
    pub fn with_events(self, events: ExportEvents) -> Self {
        Self { events, ..self }
    }

    /// The same, with results for standard output going to `stream`.
    #[must_use]
    pub fn with_stdout(self, stream: impl Write + Send + 'static) -> Self {
        Self { stdout: Some(Arc::new(Mutex::new(Box::new(stream)))), ..self }
    }

    /// Exports `image` to `target`. Hold a lease on the image's layers. Dropping the future ends the
    /// work; files that were being written do not appear.
    ///
    /// # Errors
    /// [`ExportError`], which names the target.
    pub async fn export(&self, image: &Image, target: &ExportTarget) -> Result<Exported, ExportError> {
        let result = match target {
            ExportTarget::CacheOnly => Ok(Exported::nothing()),
            ExportTarget::Image(target) => self.export_image(image, target).await,
            ExportTarget::Oci(target) => self.export_archive(image, target, ArchiveLayout::Oci).await,
            ExportTarget::Docker(target) => self.export_archive(image, target, ArchiveLayout::Docker).await,
            ExportTarget::Local { dest } => self.export_directory(image, dest.clone()).await,
            ExportTarget::Tar { dest } => self.export_tar(image, dest.clone()).await,
        };
        result.map_err(|kind| ExportError { target: describe(target), kind: Box::new(kind) })
    }

    /// Writes several images into one archive. Returns its size in bytes.
    ///
    /// # Errors
    /// [`ExportError`].
    pub async fn save(
        &self,
        images: &[SavedImage],
        layout: ArchiveLayout,
        dest: &ArchiveDestination,
    ) -> Result<u64, ExportError> {
        let target = archive_target(layout, dest);
        self.save_inner(images, layout, dest)
            .await
            .map_err(|kind| ExportError { target, kind: Box::new(kind) })
    }

    async fn save_inner(
        &self,
        images: &[SavedImage],
        layout: ArchiveLayout,
        dest: &ArchiveDestination,
    ) -> Result<u64, ExportErrorKind> {
        let mut prepared = Vec::with_capacity(images.len());
        for saved in images {
            let format = LayerFormat::archive(layout, &crate::spec::ImageFormat::default());
            prepared.push(self.prepare(&saved.image, &saved.names, format).await?);
        }
        let dest = dest.clone();
        self.blocking(move |context| {
            let annotations = crate::spec::Annotations::default();
            context
                .events
                .step(ExportStep::Archive, || archive::write(context, &prepared, layout, &annotations, &dest))
        })
        .await
    }

    /// Reads the images of an archive into the store and gives them their names there. Of images
    /// for several platforms, those for `platform` are taken.
    ///
    /// # Errors
    /// [`LoadError`]; images before the failing one stay.
    pub async fn load(&self, source: LoadSource, platform: &Platform) -> Result<Vec<LoadedImage>, LoadError> {
        let archive = source.describe();
        let platform = platform.clone();
        let context = self.context();
        let guard = context.cancel.clone().drop_guard();
        let task = tokio::task::spawn_blocking(move || archive::load(&context, source, &platform));
        let result = task.await.unwrap_or(Err(LoadErrorKind::ThreadDied));
        drop(guard);
        result.map_err(|kind| LoadError { archive, kind: Box::new(kind) })
    }

    async fn export_image(&self, image: &Image, target: &ImageTarget) -> Result<Exported, ExportErrorKind> {
        let (config, diff_ids) = self.seal(image).await?;
        let pushed = match &target.push {
            None => None,
            Some(_) if target.names.is_empty() => return Err(ExportErrorKind::PushWithoutName),
            Some(options) => {
                let format = LayerFormat::push(&target.format);
                let job = push::Push { image, config: &config, diff_ids: &diff_ids, format, options };
                Some(push::push(&self.context(), &job, &target.names).await?)
            }
        };
        let config_digest = Some(stave_oci::Digest::sha256(&config));
        let mut exported = Exported { config_digest, names: target.names.clone(), ..Exported::nothing() };
        if let Some(pushed) = &pushed {
            exported.size = pushed.size;
            exported.manifest = Some(pushed.manifest.descriptor.clone());
        }
        if target.store {
            let manifest = pushed.map(|pushed| pushed.manifest);
            let (local, size) = self.put(image, config, &diff_ids, manifest, target.names.clone()).await?;
            exported.stored = Some(local);
            if exported.manifest.is_none() {
                exported.size = size;
            }
        }
        Ok(exported)
    }

    async fn put(
        &self,
        image: &Image,
        config: Vec<u8>,
        diff_ids: &[stave_oci::Digest],
        manifest: Option<crate::document::Document>,
        names: Vec<Reference>,
    ) -> Result<(LocalImage, u64), ExportErrorKind> {
        let (image, diff_ids) = (image.clone(), diff_ids.to_vec());
        self.blocking(move |context| sink::store::put(context, &image, config, &diff_ids, manifest, &names))
            .await
    }

    async fn export_archive(
        &self,
        image: &Image,
        target: &ArchiveTarget,
        layout: ArchiveLayout,
    ) -> Result<Exported, ExportErrorKind> {
        let format = LayerFormat::archive(layout, &target.format);
        let prepared = self.prepare(image, &target.names, format).await?;
        let (dest, annotations) = (target.dest.clone(), target.format.annotations.clone());
        let mut exported = Exported {
            config_digest: Some(prepared.documents.config.descriptor.digest.clone()),
            manifest: Some(prepared.documents.manifest.descriptor.clone()),
            names: target.names.clone(),
            ..Exported::nothing()
        };
        exported.size = self
            .blocking(move |context| {
                context.events.step(ExportStep::Archive, || {
                    archive::write(context, &[prepared], layout, &annotations, &dest)
                })
            })
            .await?;
        Ok(exported)
    }

    async fn export_directory(&self, image: &Image, dest: PathBuf) -> Result<Exported, ExportErrorKind> {
        let snapshot = image.snapshot();
        let size = self
            .blocking(move |context| {
                let view = context.store.view(&snapshot)?;
                context.events.step(ExportStep::Files, || sink::local::write(&view, &dest, &context.cancel))
            })
            .await?;
        Ok(Exported { size, ..Exported::nothing() })
    }

    async fn export_tar(&self, image: &Image, dest: Destination) -> Result<Exported, ExportErrorKind> {
        let snapshot = image.snapshot();
        let size = self
            .blocking(move |context| {
                let view = context.store.view(&snapshot)?;
                context.events.step(ExportStep::Archive, || {
                    output::write(context, &dest, |out| sink::tar::write(&view, out))
                })
            })
            .await?;
        Ok(Exported { size, ..Exported::nothing() })
    }

    async fn seal(&self, image: &Image) -> Result<(Vec<u8>, Vec<stave_oci::Digest>), ExportErrorKind> {
        let image = image.clone();
        self.blocking(move |context| {
            context.events.step(ExportStep::Layers, || prepare::seal(&context.store, &image))
        })
        .await
    }

    /// Layers as blobs of `format`, and the documents that name them.
    async fn prepare(
        &self,
        image: &Image,
        names: &[Reference],
        format: LayerFormat,
    ) -> Result<PreparedImage, ExportErrorKind> {
        prepare::fetch_missing(&self.context(), image).await?;
        let (image, names) = (image.clone(), names.to_vec());
        self.blocking(move |context| {
            context.events.step(ExportStep::Layers, || prepare::image(context, &image, names, &format))
        })
        .await
    }

    fn context(&self) -> Context {
        Context {
            store: self.store.clone(),
            client: self.client.clone(),
            events: self.events.clone(),
            stdout: self.stdout.clone(),
            cancel: CancellationToken::new(),
        }
    }

    async fn blocking<T: Send + 'static>(
        &self,
        run: impl FnOnce(&Context) -> Result<T, ExportErrorKind> + Send + 'static,
    ) -> Result<T, ExportErrorKind> {
        let context = self.context();
        let guard = context.cancel.clone().drop_guard();
        let result = tokio::task::spawn_blocking(move || run(&context)).await;
        drop(guard);
        result.unwrap_or(Err(ExportErrorKind::ThreadDied))
    }
}

fn describe(target: &ExportTarget) -> String {
    match target {
        ExportTarget::Image(target) => match target.names.first() {
            Some(name) => format!("image `{}`", name.familiar()),
            None => "image".to_owned(),
        },
        ExportTarget::Oci(target) => archive_target(ArchiveLayout::Oci, &target.dest),
        ExportTarget::Docker(target) => archive_target(ArchiveLayout::Docker, &target.dest),
        ExportTarget::Local { dest } => format!("files to `{}`", dest.display()),
        ExportTarget::Tar { dest } => format!("file system tar {}", place(dest)),
        ExportTarget::CacheOnly => "cache".to_owned(),
    }
}

fn archive_target(layout: ArchiveLayout, dest: &ArchiveDestination) -> String {
    let kind = match layout {
        ArchiveLayout::Docker => "docker",
        ArchiveLayout::Oci => "oci",
    };
    match dest {
        ArchiveDestination::Tar(dest) => format!("{kind} archive {}", place(dest)),
        ArchiveDestination::Directory(path) => format!("{kind} layout `{}`", path.display()),
    }
}

fn place(dest: &Destination) -> String {
    match dest {
        Destination::File(path) => format!("`{}`", Path::display(path)),
        Destination::Stdout => "to standard output".to_owned(),
    }
}

impl fmt::Debug for Exporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exporter").field("store", &self.store).finish_non_exhaustive()
    }
}
