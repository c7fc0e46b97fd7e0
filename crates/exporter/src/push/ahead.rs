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
use crate::event::{BlobEvents, ExportStep};
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
    // Before it has a digest, and is known to be missing, nobody can be told what is being sent.
    let missing: Arc<OnceLock<BlobEvents>> = Arc::default();
    let ended = Arc::new(AtomicBool::new(false));
    let content = BlobContent::new(Endable { growing, ended: Arc::clone(&ended) });
    let watched = content.clone().watched(Arc::new({
        let missing = Arc::clone(&missing);
        move |current| {
            if let Some(told) = missing.get() {
                told.moved(current);
            }
        }
    }));
    let looking = pin!(async {
        let blob = making.await?;
        let is_there = context.client.has_blob(repository, &blob.digest).await?;
        if !is_there {
            missing.get_or_init(|| BlobEvents::new(&context.events, &blob));
        }
        Ok::<_, ExportErrorKind>((blob, is_there))
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
        context.client.finish_blob(repository, &blob, watched, ahead).await?;
        missing.get_or_init(|| BlobEvents::new(&context.events, &blob)).sent();
    }
    Ok(blob)
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
