//! An index that came from elsewhere, to a registry as it came: blobs, the documents that name them, the index last.
//!
//! Owns where each blob's bytes are. Must not know what the documents say. Start with [`push`].

use std::collections::BTreeMap;

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};
use stave_oci::{Descriptor, Digest, Reference};
use stave_registry::BlobContent;
use stave_store::{Store, StoreError, StoredIndex, StoredManifest};

use super::{LAYERS_AT_ONCE, for_push, origin_at, repositories, send, untagged};
use crate::error::ExportErrorKind;
use crate::event::{ExportEvent, ExportStep};
use crate::exporter::Context;
use crate::spec::PushOptions;

/// Whether everything that the index leads to is here.
pub(crate) fn is_whole(store: &Store, index: &StoredIndex) -> Result<bool, StoreError> {
    for blob in &index.blobs {
        // Configs of images are with their images.
        if !store.has_blob(&blob.digest)? && store.image_by_id(&blob.digest)?.is_none() {
            return Ok(false);
        }
    }
    Ok(!index.documents.is_empty())
}

/// Sends all of it under `names`. `origins` are repositories that have blobs.
pub(crate) async fn push(
    context: &Context,
    index: &StoredIndex,
    origins: &BTreeMap<Digest, Reference>,
    options: &PushOptions,
    names: &[Reference],
) -> Result<Descriptor, ExportErrorKind> {
    let context = &for_push(context, options, names)?;
    let repositories = repositories(names);
    context.events.send(ExportEvent::Started(ExportStep::PushingLayers));
    let mut pushes = Vec::new();
    for repository in &repositories {
        for blob in &index.blobs {
            pushes.push(push_blob(context, repository, blob, origins.get(&blob.digest)));
        }
    }
    futures::stream::iter(pushes).buffer_unordered(LAYERS_AT_ONCE).try_collect::<()>().await?;
    context.events.send(ExportEvent::Done(ExportStep::PushingLayers));
    let (top, inner) = index.documents.split_last().ok_or(ExportErrorKind::NoImage)?;
    for document in inner {
        for repository in &repositories {
            put(context, &untagged(repository, &document.digest), document).await?;
        }
    }
    for name in names {
        let name = if options.by_digest { untagged(name, &top.digest) } else { name.clone() };
        let step = ExportStep::PushingManifest(super::at_digest(&name, &top.digest));
        context.events.send(ExportEvent::Started(step.clone()));
        put(context, &name, top).await?;
        context.events.send(ExportEvent::Done(step));
    }
    Ok(Descriptor::new(&top.media_type, top.digest.clone(), top.bytes.len() as u64))
}

async fn put(context: &Context, name: &Reference, document: &StoredManifest) -> Result<(), ExportErrorKind> {
    let bytes = Bytes::from(document.bytes.clone());
    context.client.push_manifest(name, &document.media_type, bytes).await?;
    Ok(())
}

async fn push_blob(
    context: &Context,
    repository: &Reference,
    blob: &Descriptor,
    origin: Option<&Reference>,
) -> Result<(), ExportErrorKind> {
    let content = match context.store.open_blob(&blob.digest)? {
        Some(file) => BlobContent::new(file),
        None => match context.store.image_by_id(&blob.digest)? {
            Some(image) => BlobContent::new(Bytes::from(image.config)),
            None => return Err(ExportErrorKind::BlobMissing(blob.digest.clone())),
        },
    };
    let from = origin.and_then(|origin| origin_at(origin, repository));
    send(context, repository, blob, content, from).await
}
