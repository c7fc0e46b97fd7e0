//! A large layer to a registry while it is being compressed.
//!
//! Owns what happens when the registry turns out to hold the blob already, which nobody can know before it is whole.
//! Start with [`push`].

use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, OnceLock};

use futures::future::{Either, select};
use stave_oci::{Descriptor, Reference};
use stave_registry::{BlobContent, BlobSource};

use crate::error::ExportErrorKind;
use crate::event::{ExportEvent, ExportStep};
use crate::exporter::Context;
use crate::growing::Growing;

/// Blobs beyond this many bytes are sent before they are whole: for smaller ones it is not worth while to send what the
/// registry may hold.
pub(super) const LARGE: u64 = 8 << 20;

/// Sends what `making` makes, as it grows. Returns it once the repository holds it.
pub(super) async fn push(
    context: &Context,
    repository: &Reference,
    growing: Arc<Growing>,
    making: impl Future<Output = Result<Descriptor, ExportErrorKind>>,
) -> Result<Descriptor, ExportErrorKind> {
    let known: Arc<OnceLock<Descriptor>> = Arc::default();
    let content = BlobContent { source: growing as Arc<dyn BlobSource>, progress: None };
    let watched = content.clone().watched(Arc::new({
        let (events, known) = (context.events.clone(), Arc::clone(&known));
        move |current| {
            // Before it has a digest, nobody can be told what is being sent.
            if let Some(blob) = known.get() {
                let step = ExportStep::PushingBlob(blob.digest.clone());
                events.send(ExportEvent::Progress { step, current, total: Some(blob.size) });
            }
        }
    }));
    let looking = pin!(async {
        let blob = known.get_or_init({
            let blob = making.await?;
            || blob
        });
        context.events.send(ExportEvent::Started(ExportStep::PushingBlob(blob.digest.clone())));
        Ok::<_, ExportErrorKind>((blob, context.client.has_blob(repository, &blob.digest).await?))
    });
    let sending = pin!(context.client.upload_ahead(repository, watched.clone()));
    let (blob, ahead) = match select(looking, sending).await {
        Either::Left((found, sending)) => match found? {
            (blob, true) => (blob, None),
            (blob, false) => (blob, Some(sending.await)),
        },
        Either::Right((ahead, looking)) => match looking.await? {
            (blob, true) => (blob, None),
            (blob, false) => (blob, Some(ahead)),
        },
    };
    match ahead {
        None => context.events.done(ExportStep::KeptBlob(blob.digest.clone())),
        Some(ahead) => context.client.finish_blob(repository, blob, watched, ahead).await?,
    }
    context.events.send(ExportEvent::Done(ExportStep::PushingBlob(blob.digest.clone())));
    Ok(blob.clone())
}
