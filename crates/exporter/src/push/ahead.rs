//! A large layer to a registry while it is being compressed.
//!
//! Owns what happens when the registry turns out to hold the blob already, which nobody can know before it is whole.
//! Start with [`push`].

use std::future::Future;
use std::io;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
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
    let ended = Arc::new(AtomicBool::new(false));
    let content = BlobContent::new(Endable { growing, ended: Arc::clone(&ended) });
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
    let (blob, is_there, ahead) = match select(looking, sending).await {
        Either::Left((found, sending)) => {
            let (blob, is_there) = found?;
            // Not cut: after a whole request the registry says how its session is called off.
            ended.store(is_there, Ordering::Relaxed);
            (blob, is_there, sending.await)
        }
        Either::Right((ahead, looking)) => {
            let (blob, is_there) = looking.await?;
            (blob, is_there, ahead)
        }
    };
    if is_there {
        context.client.give_up_blob(repository, ahead).await;
        context.events.done(ExportStep::KeptBlob(blob.digest.clone()));
    } else {
        context.client.finish_blob(repository, blob, watched, ahead).await?;
    }
    context.events.send(ExportEvent::Done(ExportStep::PushingBlob(blob.digest.clone())));
    Ok(blob.clone())
}

/// A blob that can be ended before its end.
struct Endable {
    growing: Arc<Growing>,
    ended: Arc<AtomicBool>,
}

impl BlobSource for Endable {
    fn read_at(&self, offset: u64, length: usize) -> io::Result<Bytes> {
        if self.ended.load(Ordering::Relaxed) {
            return Ok(Bytes::new());
        }
        self.growing.read_at(offset, length)
    }
}
