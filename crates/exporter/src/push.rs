//! An image to a registry: layers compressed and sent side by side, documents last.
//!
//! Owns the order that registries demand (blobs, then the manifest that names them) and the choice
//! between keeping, mounting, fetching back and sending a blob. Must not know the protocol.

mod ahead;
pub(crate) mod indexed;

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};
use stave_oci::{Descriptor, Digest, Reference};
use stave_registry::{BlobContent, BlobPush};
use tokio::sync::oneshot;

use crate::attestation::{self, AttestationManifest};
use crate::blob;
use crate::document::{self, Document, Documents, PlatformEntry};
use crate::error::ExportErrorKind;
use crate::event::{BlobEvents, ExportEvent, ExportStep};
use crate::exporter::Context;
use crate::growing::Growing;
use crate::image::{Image, ImageLayerRef};
use crate::prepare::{self, LayerFormat, Sealed, SealedLayer};
use crate::spec::{ImageFormat, PushOptions};
use crate::supplement::{has_bills, supplemented};

/// Layers compressed or sent at once. Each holds a few megabytes.
const LAYERS_AT_ONCE: usize = 4;

/// What is pushed, and how.
pub(crate) struct Push<'a> {
    /// The platforms of one image.
    pub(crate) images: &'a [Sealed],
    pub(crate) layers_as: LayerFormat,
    pub(crate) format: &'a ImageFormat,
    pub(crate) options: &'a PushOptions,
    /// Whether the images get an index.
    pub(crate) with_index: bool,
}

/// What was pushed.
pub(crate) struct Pushed {
    /// The manifests, in the order of the images.
    pub(crate) manifests: Vec<Document>,
    /// The index over them, if there is one.
    pub(crate) index: Option<Document>,
    /// Bytes of all blobs of the image, sent or not.
    pub(crate) size: u64,
}

impl Pushed {
    /// What the names mean now: the index, else the manifest.
    pub(crate) fn top(&self) -> Option<&Document> {
        self.index.as_ref().or(self.manifests.first())
    }
}

/// One platform, its blobs at the registry.
struct Sent {
    documents: Documents,
    attestation: Option<AttestationManifest>,
    size: u64,
}

pub(crate) async fn push(
    context: &Context,
    job: &Push<'_>,
    names: &[Reference],
) -> Result<Pushed, ExportErrorKind> {
    let context = &for_push(context, job.options, names)?;
    let guard = context.cancel.clone().drop_guard();
    context.events.send(ExportEvent::Started(ExportStep::PushingLayers));
    let repositories = repositories(names);
    let mut sent = Vec::with_capacity(job.images.len());
    for image in job.images {
        sent.push(push_blobs(context, job, image, (&repositories, names)).await?);
    }
    context.events.send(ExportEvent::Done(ExportStep::PushingLayers));
    let size = sent.iter().map(|sent| sent.size).sum();
    let index = job.with_index.then(|| {
        let entries = sent.iter().zip(job.images).map(|(sent, sealed)| PlatformEntry {
            manifest: sent.documents.manifest.descriptor.clone(),
            platform: sealed.image.platform.clone(),
            attestation: sent.attestation.as_ref().map(|found| found.manifest.descriptor.clone()),
        });
        document::platform_index(entries.collect(), &job.format.annotations, job.layers_as.family())
    });
    if index.is_some() {
        // What the index names must be there before it is.
        for sent in &sent {
            let own = sent.attestation.as_ref().map(|found| &found.manifest);
            for document in [&sent.documents.manifest].into_iter().chain(own) {
                for repository in &repositories {
                    push_document(context, &untagged(repository, &document.descriptor.digest), document)
                        .await?;
                }
            }
        }
    }
    let manifests = sent.into_iter().map(|sent| sent.documents.manifest).collect();
    let pushed = Pushed { manifests, index, size };
    let top = pushed.top().ok_or(ExportErrorKind::NoImage)?;
    for name in names {
        let by_digest = job.options.by_digest;
        let name = if by_digest { untagged(name, &top.descriptor.digest) } else { name.clone() };
        let step = ExportStep::PushingManifest(at_digest(&name, &top.descriptor.digest));
        context.events.send(ExportEvent::Started(step.clone()));
        push_document(context, &name, top).await?;
        context.events.send(ExportEvent::Done(step));
    }
    // Everything ended well: nothing is left to cancel, and a dropped guard would only say so twice.
    drop(guard);
    Ok(pushed)
}

/// The context with a client that may talk to the registries of `names` as `options` say.
fn for_push(
    context: &Context,
    options: &PushOptions,
    names: &[Reference],
) -> Result<Context, ExportErrorKind> {
    let mut context = context.clone();
    if options.insecure {
        let hosts: BTreeSet<&str> = names.iter().map(Reference::registry).collect();
        context.client = context.client.with_insecure(hosts)?;
    }
    Ok(context)
}

async fn push_document(
    context: &Context,
    name: &Reference,
    document: &Document,
) -> Result<(), ExportErrorKind> {
    let bytes = Bytes::from(document.bytes.clone());
    context.client.push_manifest(name, &document.descriptor.media_type, bytes).await?;
    Ok(())
}

/// Sends what the manifests of one platform will name.
async fn push_blobs(
    context: &Context,
    job: &Push<'_>,
    image: &Sealed,
    (repositories, names): (&[Reference], &[Reference]),
) -> Result<Sent, ExportErrorKind> {
    let layers = image.image.layers.iter().zip(&image.layers);
    // Made here, not in the stream: a closure over two borrows would keep the future from other threads.
    let mut pushes = Vec::with_capacity(image.layers.len());
    for (layer, sealed) in layers {
        pushes.push(push_layer(context, job, repositories, layer, sealed));
    }
    let descriptors: Vec<Descriptor> =
        futures::stream::iter(pushes).buffered(LAYERS_AT_ONCE).try_collect().await?;
    let documents = prepare::documents(image, &descriptors, &job.layers_as);
    let target = &documents.manifest.descriptor;
    let told = told(context, &image.image, &descriptors).await?;
    let attestation = attestation::manifest(&told, target, names, job.format)?;
    let blobs = attestation.iter().flat_map(AttestationManifest::blobs).chain([&documents.config]);
    for blob in blobs {
        for repository in repositories {
            let source = Bytes::from(blob.bytes.clone());
            send(context, repository, &blob.descriptor, BlobContent::new(source), None).await?;
        }
    }
    let size = descriptors.iter().map(|layer| layer.size).sum::<u64>() + documents.config.descriptor.size;
    Ok(Sent { documents, attestation, size })
}

/// The image with what its layers say to its bills of materials.
async fn told<'a>(
    context: &Context,
    image: &'a Image,
    layers: &[Descriptor],
) -> Result<Cow<'a, Image>, ExportErrorKind> {
    if !has_bills(image) {
        return Ok(Cow::Borrowed(image));
    }
    let (store, image, layers) = (context.store.clone(), image.clone(), layers.to_vec());
    let reading = tokio::task::spawn_blocking(move || {
        Ok::<_, ExportErrorKind>(supplemented(&store, &image, &layers)?.into_owned())
    });
    Ok(Cow::Owned(reading.await.unwrap_or(Err(ExportErrorKind::ThreadDied))?))
}

/// A name with what it stands for from now on, as progress shows it.
fn at_digest(name: &Reference, digest: &Digest) -> String {
    match name.digest() {
        Some(_) => name.canonical(),
        None => format!("{}@{digest}", name.canonical()),
    }
}

/// The image `digest` in a name's repository, under no tag.
pub(crate) fn untagged(name: &Reference, digest: &Digest) -> Reference {
    let pinned = format!("{}@{digest}", name.name());
    // The name part of a reference, normalised, is a reference's name.
    pinned.parse().unwrap_or_else(|_| name.pinned(digest.clone()))
}

/// One name of each repository: blobs belong to repositories, tags share them.
fn repositories(names: &[Reference]) -> Vec<Reference> {
    let mut found: Vec<Reference> = Vec::new();
    for name in names {
        if !found.iter().any(|known| known.name() == name.name()) {
            found.push(name.clone());
        }
    }
    found
}

async fn push_layer(
    context: &Context,
    job: &Push<'_>,
    repositories: &[Reference],
    layer: &ImageLayerRef,
    sealed: &SealedLayer,
) -> Result<Descriptor, ExportErrorKind> {
    if let Some(blob) = layer.blob.as_ref().filter(|blob| job.layers_as.leaves_elsewhere(blob)) {
        return Ok(blob.clone());
    }
    if let Some(blob) = &layer.blob
        && blob::wanted(blob, &job.layers_as)
        && !context.store.has_blob(&blob.digest)?
    {
        if at_all(context, repositories, layer, blob).await? {
            return Ok(blob.clone());
        }
        blob::fetch(context, layer).await?;
    }
    let (started, growing) = oneshot::channel();
    let (store, cancel, format) = (context.store.clone(), context.cancel.clone(), job.layers_as.clone());
    let (made, sealed) = (layer.clone(), sealed.clone());
    let making = tokio::task::spawn_blocking(move || {
        blob::make(&store, (&made, &sealed), &format, &cancel, Some(started))
    });
    let making = async { making.await.unwrap_or(Err(ExportErrorKind::ThreadDied)) };
    let (descriptor, rest) = match (large(growing).await, repositories.split_first()) {
        (Some(growing), Some((first, rest))) => (ahead::push(context, first, growing, making).await?, rest),
        _ => (making.await?, repositories),
    };
    for repository in rest {
        let file = context.store.open_blob(&descriptor.digest)?;
        let file = file.ok_or_else(|| ExportErrorKind::BlobMissing(descriptor.digest.clone()))?;
        send(context, repository, &descriptor, BlobContent::new(file), mount_source(layer, repository))
            .await?;
    }
    Ok(descriptor)
}

/// The blob that is being made, once that is large enough to be sent before it is whole.
async fn large(growing: oneshot::Receiver<Arc<Growing>>) -> Option<Arc<Growing>> {
    let growing = growing.await.ok()?;
    let waiting = Arc::clone(&growing);
    let is_large = tokio::task::spawn_blocking(move || waiting.grows_beyond(ahead::LARGE)).await.ok()?;
    is_large.then_some(growing)
}

/// Whether every repository has the blob, or takes it from where the layer came from: then its bytes
/// are not needed here.
async fn at_all(
    context: &Context,
    repositories: &[Reference],
    layer: &ImageLayerRef,
    blob: &Descriptor,
) -> Result<bool, ExportErrorKind> {
    for repository in repositories {
        let there = context.client.has_blob(repository, &blob.digest).await?
            || match mount_source(layer, repository) {
                Some(from) => context.client.mount_blob(repository, &blob.digest, from).await?,
                None => false,
            };
        if !there {
            return Ok(false);
        }
        context.events.done(ExportStep::KeptBlob(blob.digest.clone()));
    }
    Ok(true)
}

/// The repository on the same registry that the layer's blob can be mounted from.
fn mount_source<'a>(layer: &'a ImageLayerRef, to: &Reference) -> Option<&'a str> {
    origin_at(layer.origin.as_ref()?, to)
}

/// The repository of `origin` if that is another one of the registry of `to`.
fn origin_at<'a>(origin: &'a Reference, to: &Reference) -> Option<&'a str> {
    let other = origin.registry() == to.registry() && origin.repository() != to.repository();
    other.then(|| origin.repository())
}

async fn send(
    context: &Context,
    repository: &Reference,
    blob: &Descriptor,
    content: BlobContent,
    mount_from: Option<&str>,
) -> Result<(), ExportErrorKind> {
    let told = Arc::new(BlobEvents::new(&context.events, blob));
    let moving = Arc::clone(&told);
    let content = content.watched(Arc::new(move |current| moving.moved(current)));
    match context.client.push_blob(repository, blob, content, mount_from).await? {
        BlobPush::Uploaded => told.sent(),
        BlobPush::Existed | BlobPush::Mounted => told.kept(),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Reference {
        text.parse().expect("a valid name")
    }

    #[test]
    fn tags_of_one_repository_share_its_blobs() {
        let names = ["r:5000/a:1", "r:5000/a:2", "r:5000/b:1", "a:1"].map(name);
        let found: Vec<_> = repositories(&names).iter().map(Reference::name).collect();
        assert_eq!(found, ["r:5000/a", "r:5000/b", "docker.io/library/a"]);
        let pinned = untagged(&names[0], &Digest::sha256(b""));
        assert_eq!((pinned.tag(), pinned.digest()), (None, Some(&Digest::sha256(b""))));
    }
}
