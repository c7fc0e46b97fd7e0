//! The front door: an [`Image`] and an [`ExportTarget`] in, [`Exported`] out.
//!
//! Owns which steps each target takes and what they share: the store, the registry client, events,
//! standard output and cancellation. Must not know the solver or the worker.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex};

use stave_oci::{Digest, Platform, Reference};
use stave_registry::Client;
use stave_store::{Store, StoreError, StoredIndex};
use tokio_util::sync::CancellationToken;

use crate::archive::{self, LoadSource, LoadedImage};
use crate::blob::{self, Unfetched};
use crate::error::{ExportError, ExportErrorKind, LoadError, LoadErrorKind};
use crate::event::{ExportEvents, ExportStep};
use crate::files;
use crate::image::{Exported, Image};
use crate::output;
use crate::prepare::{self, LayerFormat, PreparedSet, Sealed};
use crate::push;
use crate::sink;
use crate::spec::{
    ArchiveDestination, ArchiveTarget, Destination, EngineName, EngineTarget, ExportTarget, FilesOptions,
    ImageFormat, ImageTarget, PushOptions,
};

/// A stream for results that go to standard output.
pub(crate) type OutputStream = Arc<Mutex<Box<dyn Write + Send>>>;

/// Hears what an archive will be, before its first byte is written.
type Announcement = Arc<dyn Fn(&Exported) + Send + Sync>;

/// Exports images, saves and loads archives. Cheap to clone.
#[derive(Clone)]
pub struct Exporter {
    pub(crate) store: Store,
    pub(crate) client: Client,
    pub(crate) events: ExportEvents,
    stdout: Option<OutputStream>,
    announce: Option<Announcement>,
    unfetched: Unfetched,
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
    pub(crate) unfetched: Unfetched,
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
    /// Its platforms; docker's layout takes one.
    pub images: Vec<Image>,
    /// Its names in the archive.
    pub names: Vec<Reference>,
    /// The index it came with, all of it in the store: OCI's layout then gets that as it is, and nothing of `images`.
    pub index: Option<StoredIndex>,
}

impl Exporter {
    /// An exporter from `store`, pushing through `client`. Nobody hears its events, and results for
    /// standard output are refused, until [`Self::with_events`] and [`Self::with_stdout`].
    pub fn new(store: Store, client: Client) -> Self {
        let events = ExportEvents::ignored();
        Self { store, client, events, stdout: None, announce: None, unfetched: Unfetched::default() }
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

    /// The same, with `announce` told of an archive what it will be, its size excepted, before it is written.
    #[must_use]
    pub fn announcing(self, announce: impl Fn(&Exported) + Send + Sync + 'static) -> Self {
        Self { announce: Some(Arc::new(announce)), ..self }
    }

    /// Exports the platforms of one image to `target`: several, or one with attestations, get an index.
    /// Hold a lease on their layers. Dropping the future ends the work; files that were being written do
    /// not appear.
    ///
    /// # Errors
    /// [`ExportError`], which names the target.
    pub async fn export(&self, images: &[Image], target: &ExportTarget) -> Result<Exported, ExportError> {
        let result = match target {
            ExportTarget::CacheOnly => Ok(Exported::nothing()),
            _ if images.is_empty() => Err(ExportErrorKind::NoImage),
            ExportTarget::Image(target) => self.export_image(images, target).await,
            ExportTarget::Oci(target) => self.export_archive(images, target, ArchiveLayout::Oci).await,
            ExportTarget::Docker(target) => self.export_archive(images, target, ArchiveLayout::Docker).await,
            ExportTarget::Engine(target) => self.export_to_engine(images, target).await,
            ExportTarget::Local { dest, options } => self.export_directory(images, dest, options).await,
            ExportTarget::Tar { dest, options } => self.export_tar(images, dest, options).await,
        };
        result.map_err(|kind| self.failed(describe(target), kind))
    }

    /// Whether all that an index leads to is in the store, so that it can leave as it came.
    ///
    /// # Errors
    /// When the store fails.
    pub fn is_whole(&self, index: &StoredIndex) -> Result<bool, StoreError> {
        push::indexed::is_whole(&self.store, index)
    }

    /// Pushes an index that came from elsewhere, and all it leads to, byte for byte. `origins` are repositories that
    /// have blobs of it: where one is at the same registry, a blob is mounted from there.
    ///
    /// # Errors
    /// [`ExportError`].
    pub async fn push_index(
        &self,
        index: &StoredIndex,
        origins: &BTreeMap<Digest, Reference>,
        names: &[Reference],
        options: &PushOptions,
    ) -> Result<Exported, ExportError> {
        let pushed = push::indexed::push(&self.context(), index, origins, options, names).await;
        let target = names.first().map_or("image".to_owned(), |name| format!("image `{}`", name.familiar()));
        let top = pushed.map_err(|kind| self.failed(target, kind))?;
        let size = index.blobs.iter().map(|blob| blob.size).sum();
        Ok(Exported { manifest: Some(top), names: names.to_vec(), size, ..Exported::nothing() })
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
        self.save_inner(images, layout, dest).await.map_err(|kind| self.failed(target, kind))
    }

    async fn save_inner(
        &self,
        images: &[SavedImage],
        layout: ArchiveLayout,
        dest: &ArchiveDestination,
    ) -> Result<u64, ExportErrorKind> {
        let mut prepared = Vec::with_capacity(images.len());
        let format = ImageFormat::default();
        for saved in images {
            check_layout(layout, &saved.images)?;
            let layers_as = LayerFormat::archive(layout, &format);
            if let (Some(index), ArchiveLayout::Oci) = (&saved.index, layout) {
                prepared.push(prepare::kept(index, &saved.names)?);
                continue;
            }
            prepared.push(self.prepare(&saved.images, &saved.names, &format, layers_as).await?);
        }
        let dest = dest.clone();
        self.blocking(move |context| {
            let write = || archive::write(context, &prepared, layout, &BTreeMap::new(), &dest);
            context.events.step(ExportStep::Archive, write)
        })
        .await
    }

    /// Reads the images of an archive into the store and gives them their names there: those for
    /// `platforms`, which must all be there; if that names none, of an index the one for this machine.
    ///
    /// # Errors
    /// [`LoadError`]; images before the failing one stay.
    pub async fn load(
        &self,
        source: LoadSource,
        platforms: &[Platform],
    ) -> Result<Vec<LoadedImage>, LoadError> {
        let archive = source.describe();
        let platforms = platforms.to_vec();
        let context = self.context();
        let guard = context.cancel.clone().drop_guard();
        let task = tokio::task::spawn_blocking(move || archive::load(&context, source, &platforms));
        let result = task.await.unwrap_or(Err(LoadErrorKind::ThreadDied));
        drop(guard);
        result.map_err(|kind| LoadError { archive, kind: Box::new(kind) })
    }

    async fn export_image(
        &self,
        images: &[Image],
        target: &ImageTarget,
    ) -> Result<Exported, ExportErrorKind> {
        let with_index = prepare::needs_index(images, &target.format)?;
        let sealed = self.seal(images, &target.format).await?;
        let pushed = match &target.push {
            None => None,
            Some(_) if target.names.is_empty() => return Err(ExportErrorKind::PushWithoutName),
            Some(options) => {
                let (layers_as, format) = (LayerFormat::push(&target.format), &target.format);
                let job = push::Push { images: &sealed, layers_as, format, options, with_index };
                Some(push::push(&self.context(), &job, &target.names).await?)
            }
        };
        let mut exported = Exported { names: target.names.clone(), ..Exported::nothing() };
        if pushed.is_none() && !target.store {
            // It goes nowhere: what it would be is told all the same.
            let (layers_as, format) = (LayerFormat::push(&target.format), &target.format);
            exported.manifest = Some(self.prepare(images, &target.names, format, layers_as).await?.top);
        }
        if let [only] = sealed.as_slice() {
            exported.config_digest = Some(only.id());
        }
        if let Some(pushed) = &pushed {
            exported.size = pushed.size;
            exported.manifest = pushed.top().map(|top| top.descriptor.clone());
        }
        let first = sealed.first().map(Sealed::id);
        if let Some(digest) = exported.digest().or(first.as_ref()).cloned() {
            exported.names.extend(digest_names(target, &digest));
        }
        if target.store {
            let (names, manifests) = (exported.names.clone(), pushed.map(|pushed| pushed.manifests));
            let put = move |context: &Context| {
                sink::store::put(context, &sealed, &manifests.unwrap_or_default(), &names)
            };
            let (local, size) = self.blocking(put).await?;
            exported.stored = Some(local);
            if exported.manifest.is_none() {
                exported.size = size;
            }
        }
        Ok(exported)
    }

    async fn export_archive(
        &self,
        images: &[Image],
        target: &ArchiveTarget,
        layout: ArchiveLayout,
    ) -> Result<Exported, ExportErrorKind> {
        let images = &fitting(layout, images);
        check_layout(layout, images)?;
        let layers_as = LayerFormat::archive(layout, &target.format);
        let prepared = self.prepare(images, &target.names, &target.format, layers_as).await?;
        let dest = target.dest.clone();
        // Over an image's own index, the one of the layout is only a list of names.
        let own = prepared.index.is_some();
        let annotations = if own { BTreeMap::new() } else { target.format.annotations.index.clone() };
        let mut exported = Exported {
            config_digest: match prepared.images.as_slice() {
                [only] => Some(only.documents.config.descriptor.digest.clone()),
                _ => None,
            },
            manifest: Some(prepared.top.clone()),
            names: target.names.clone(),
            ..Exported::nothing()
        };
        if let Some(announce) = &self.announce {
            announce(&exported);
        }
        exported.size = self
            .blocking(move |context| {
                context.events.step(ExportStep::Archive, || {
                    archive::write(context, &[prepared], layout, &annotations, &dest)
                })
            })
            .await?;
        Ok(exported)
    }

    async fn export_to_engine(
        &self,
        images: &[Image],
        target: &EngineTarget,
    ) -> Result<Exported, ExportErrorKind> {
        let address = match &target.engine {
            EngineName::At(address) => address,
            EngineName::Context(name) => return Err(ExportErrorKind::EngineContext(name.clone())),
        };
        check_layout(ArchiveLayout::Docker, images)?;
        let layers_as = LayerFormat::archive(ArchiveLayout::Docker, &target.format);
        let prepared = self.prepare(images, &target.names, &target.format, layers_as).await?;
        let config_digest =
            prepared.images.first().map(|image| image.documents.config.descriptor.digest.clone());
        let size = sink::engine::send(self, address, prepared).await?;
        Ok(Exported { config_digest, names: target.names.clone(), size, ..Exported::nothing() })
    }

    async fn export_directory(
        &self,
        images: &[Image],
        dest: &Path,
        options: &FilesOptions,
    ) -> Result<Exported, ExportErrorKind> {
        let (images, dest, options) = (images.to_vec(), dest.to_owned(), options.clone());
        let write = move |context: &Context| {
            context.events.step(ExportStep::Files, || files::directory(context, &images, &dest, &options))
        };
        Ok(Exported { size: self.blocking(write).await?, ..Exported::nothing() })
    }

    async fn export_tar(
        &self,
        images: &[Image],
        dest: &Destination,
        options: &FilesOptions,
    ) -> Result<Exported, ExportErrorKind> {
        let (images, dest, options) = (images.to_vec(), dest.clone(), options.clone());
        let write = move |context: &Context| {
            context.events.step(ExportStep::Archive, || {
                output::write(context, &dest, |out| files::tar(context, &images, out, &options))
            })
        };
        Ok(Exported { size: self.blocking(write).await?, ..Exported::nothing() })
    }

    async fn seal(&self, images: &[Image], format: &ImageFormat) -> Result<Vec<Sealed>, ExportErrorKind> {
        let (images, format) = (images.to_vec(), format.clone());
        self.blocking(move |context| {
            let seal = || images.iter().map(|image| prepare::seal(&context.store, image, &format)).collect();
            context.events.step(ExportStep::Layers, seal)
        })
        .await
    }

    /// Layers as blobs, and the documents that name them.
    async fn prepare(
        &self,
        images: &[Image],
        names: &[Reference],
        format: &ImageFormat,
        layers_as: LayerFormat,
    ) -> Result<PreparedSet, ExportErrorKind> {
        for image in images {
            blob::fetch_missing(&self.context(), image).await?;
        }
        let (images, names, format) = (images.to_vec(), names.to_vec(), format.clone());
        self.blocking(move |context| {
            let prepare = || prepare::set(context, &images, names, &format, &layers_as);
            context.events.step(ExportStep::Layers, prepare)
        })
        .await
    }

    pub(crate) fn context(&self) -> Context {
        Context {
            store: self.store.clone(),
            client: self.client.clone(),
            events: self.events.clone(),
            stdout: self.stdout.clone(),
            cancel: CancellationToken::new(),
            unfetched: self.unfetched.clone(),
        }
    }

    /// A failure of an operation on `target`.
    pub(crate) fn failed(&self, target: String, kind: ExportErrorKind) -> ExportError {
        ExportError { target, kind: Box::new(self.unfetched.explain(kind)) }
    }

    pub(crate) async fn blocking<T: Send + 'static>(
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

/// The images without what docker's archives cannot hold and nobody insisted on.
fn fitting(layout: ArchiveLayout, images: &[Image]) -> Vec<Image> {
    let mut images = images.to_vec();
    if layout == ArchiveLayout::Docker {
        for image in &mut images {
            image.attestations.retain(|one| !one.images_only);
        }
    }
    images
}

/// docker's archives hold images of one platform, and nothing about them.
fn check_layout(layout: ArchiveLayout, images: &[Image]) -> Result<(), ExportErrorKind> {
    match (layout, images) {
        (ArchiveLayout::Oci, _) => Ok(()),
        (ArchiveLayout::Docker, [only]) if only.attestations.is_empty() => Ok(()),
        (ArchiveLayout::Docker, [_]) => Err(ExportErrorKind::DockerAttestations),
        (ArchiveLayout::Docker, _) => Err(ExportErrorKind::ManifestList),
    }
}

/// The names that hold the image's digest, where the target asks for some.
fn digest_names(target: &ImageTarget, digest: &Digest) -> Vec<Reference> {
    let canonical = target.names.iter().filter(|_| target.canonical_names);
    let dangling = target.dangling.iter().filter(|name| !name.empty_only || target.names.is_empty());
    let bases = canonical.chain(dangling.map(|name| &name.prefix));
    bases.map(|name| push::untagged(name, digest)).collect()
}

fn describe(target: &ExportTarget) -> String {
    match target {
        ExportTarget::Image(target) => match target.names.first() {
            Some(name) => format!("image `{}`", name.familiar()),
            None => "image".to_owned(),
        },
        ExportTarget::Oci(target) => archive_target(ArchiveLayout::Oci, &target.dest),
        ExportTarget::Docker(target) => archive_target(ArchiveLayout::Docker, &target.dest),
        ExportTarget::Engine(EngineTarget { engine: EngineName::At(address), .. }) => {
            format!("image to the engine at `{address}`")
        }
        ExportTarget::Engine(EngineTarget { engine: EngineName::Context(name), .. }) => {
            format!("image to the engine of docker context `{name}`")
        }
        ExportTarget::Local { dest, .. } => format!("files to `{}`", dest.display()),
        ExportTarget::Tar { dest, .. } => format!("file system tar {}", place(dest)),
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
