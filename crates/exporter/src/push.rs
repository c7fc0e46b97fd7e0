//! An image to a registry: layers compressed and sent side by side, documents last.
//!
//! Owns the order that registries demand (blobs, then the manifest that names them) and the choice
//! between keeping, mounting, fetching back and sending a blob. Must not know the protocol.

use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};
use stave_oci::{Descriptor, Digest, Reference};
use stave_registry::{BlobContent, BlobPush};

use crate::document::Document;
use crate::error::ExportErrorKind;
use crate::event::{ExportEvent, ExportStep};
use crate::exporter::Context;
use crate::image::{Image, ImageLayerRef};
use crate::prepare::{self, LayerFormat};
use crate::spec::PushOptions;

/// Layers compressed or sent at once. Each holds a few megabytes.
const LAYERS_AT_ONCE: usize = 4;

/// What is pushed, and how.
pub(crate) struct Push<'a> {
    pub(crate) image: &'a Image,
    pub(crate) config: &'a [u8],
    pub(crate) diff_ids: &'a [Digest],
    pub(crate) format: LayerFormat,
    pub(crate) options: &'a PushOptions,
}

/// What was pushed.
pub(crate) struct Pushed {
    pub(crate) manifest: Document,
    /// Bytes of all blobs of the image, sent or not.
    pub(crate) size: u64,
}

pub(crate) async fn push(
    context: &Context,
    job: &Push<'_>,
    names: &[Reference],
) -> Result<Pushed, ExportErrorKind> {
    let guard = context.cancel.clone().drop_guard();
    context.events.send(ExportEvent::Started(ExportStep::PushingLayers));
    let repositories = repositories(names);
    let layers = job.image.layers.iter().zip(job.diff_ids);
    let descriptors: Vec<Descriptor> = futures::stream::iter(layers)
        .map(|(layer, diff_id)| push_layer(context, job, &repositories, layer, diff_id))
        .buffered(LAYERS_AT_ONCE)
        .try_collect()
        .await?;
    let documents = prepare::documents(job.image, job.config.to_vec(), &descriptors, &job.format);
    for repository in &repositories {
        let source = Bytes::from(documents.config.bytes.clone());
        send(context, repository, &documents.config.descriptor, BlobContent::new(source), None).await?;
    }
    context.events.send(ExportEvent::Done(ExportStep::PushingLayers));
    let manifest = documents.manifest;
    for name in names {
        let name =
            if job.options.by_digest { untagged(name, &manifest.descriptor.digest) } else { name.clone() };
        let step = ExportStep::PushingManifest(name.canonical());
        context.events.send(ExportEvent::Started(step.clone()));
        let bytes = Bytes::from(manifest.bytes.clone());
        context.client.push_manifest(&name, &manifest.descriptor.media_type, bytes).await?;
        context.events.send(ExportEvent::Done(step));
    }
    let size = descriptors.iter().map(|layer| layer.size).sum::<u64>() + documents.config.descriptor.size;
    // Everything ended well: nothing is left to cancel, and a dropped guard would only say so twice.
    drop(guard);
    Ok(Pushed { manifest, size })
}

/// The image `digest` in a name's repository, under no tag.
fn untagged(name: &Reference, digest: &Digest) -> Reference {
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
    diff_id: &Digest,
) -> Result<Descriptor, ExportErrorKind> {
    if let Some(blob) = &layer.blob
        && prepare::wanted(blob, &job.format)
        && !context.store.has_blob(&blob.digest)?
    {
        if at_all(context, repositories, layer, blob).await? {
            return Ok(blob.clone());
        }
        prepare::fetch(context, layer).await?;
    }
    let (store, cancel, format) = (context.store.clone(), context.cancel.clone(), job.format.clone());
    let (made, made_diff_id) = (layer.clone(), diff_id.clone());
    let compressed =
        tokio::task::spawn_blocking(move || prepare::blob(&store, &made, &made_diff_id, &format, &cancel));
    let descriptor = compressed.await.unwrap_or(Err(ExportErrorKind::ThreadDied))?;
    for repository in repositories {
        let file = context.store.open_blob(&descriptor.digest)?;
        let file = file.ok_or_else(|| ExportErrorKind::BlobMissing(descriptor.digest.clone()))?;
        send(context, repository, &descriptor, BlobContent::new(file), mount_source(layer, repository))
            .await?;
    }
    Ok(descriptor)
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
    let origin = layer.origin.as_ref()?;
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
    let step = ExportStep::PushingBlob(blob.digest.clone());
    let (events, total, progressing) = (context.events.clone(), blob.size, step.clone());
    let content = content.watched(Arc::new(move |current| {
        events.send(ExportEvent::Progress { step: progressing.clone(), current, total: Some(total) });
    }));
    context.events.send(ExportEvent::Started(step.clone()));
    let pushed = context.client.push_blob(repository, blob, content, mount_from).await?;
    if pushed != BlobPush::Uploaded {
        context.events.done(ExportStep::KeptBlob(blob.digest.clone()));
    }
    context.events.send(ExportEvent::Done(step));
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
