//! Uploads that begin before their blob is whole: what is being compressed is on its way already.
//!
//! Owns how bytes of a digest not yet known are sent: one PATCH without a length, as docker sends its layers. Whatever
//! goes wrong with it is mended by the ordinary upload, which goes on in the same session if it can. Must not know
//! who makes the bytes. Start with [`Client::upload_ahead`].

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use reqwest::Method;
use reqwest::header::{HeaderMap, RANGE};
use stave_oci::{Descriptor, Reference};

use crate::error::{ErrorKind, ResponseFault};
use crate::push::{BlobContent, Session};
use crate::request::{Call, Payload};
use crate::upload::{self, Upload, next_location, resume, send_bytes, start};
use crate::{Client, RegistryError};

/// How far an upload came before its blob was known.
#[derive(Debug)]
pub struct UploadAhead(Progress);

#[derive(Debug)]
enum Progress {
    /// The registry has no part of it, or none that can be told.
    Nothing,
    /// Everything was taken.
    Whole(upload::Session),
    /// The connection broke on the way.
    Cut(upload::Session),
}

impl UploadAhead {
    /// An upload that has not begun.
    pub fn nothing() -> Self {
        Self(Progress::Nothing)
    }
}

impl Client {
    /// Sends bytes as they are made: reading `content` waits for more of them and gives none at their end. Never an
    /// error: what was not taken is sent by [`Self::finish_blob`]. Nothing is sent where uploads go in pieces of a
    /// given length.
    pub async fn upload_ahead(&self, name: &Reference, content: BlobContent) -> UploadAhead {
        if self.limits().upload_chunk.is_some() {
            return UploadAhead::nothing();
        }
        let opened = async {
            let session = Session::open(self, name, None).await?;
            let first = start(&session.exchange, name.repository()).await;
            first.map_err(|kind| session.error(kind)).map(|first| (session, first))
        };
        let (session, first) = match opened.await {
            Ok(opened) => opened,
            Err(error) => {
                tracing::debug!(%error, "no upload ahead");
                return UploadAhead::nothing();
            }
        };
        match fill(&session, &first, content).await {
            Ok(whole) => UploadAhead(Progress::Whole(whole)),
            Err(reason) => {
                tracing::debug!(%reason, "an upload ahead was cut");
                UploadAhead(Progress::Cut(first))
            }
        }
    }

    /// Ends the upload of a blob that the repository does not hold: sends what is missing, and says what it is.
    ///
    /// # Errors
    /// [`RegistryError`]; [`ErrorKind::Source`] if `content` fails.
    pub async fn finish_blob(
        &self,
        name: &Reference,
        blob: &Descriptor,
        content: BlobContent,
        ahead: UploadAhead,
    ) -> Result<(), RegistryError> {
        let session = Session::open(self, name, None).await?;
        let first = match ahead.0 {
            Progress::Nothing => None,
            Progress::Whole(first) => Some(first),
            Progress::Cut(first) => resume(&session.exchange, &first).await,
        };
        let upload = Upload { blob: blob.clone(), content };
        let was_ahead = first.is_some();
        let mut sent = upload.run(&session.exchange, name.repository(), first).await;
        // What the registry took is not what was sent: it gets all of it anew.
        if was_ahead && matches!(&sent, Err(ErrorKind::Status(fault)) if matches!(fault.code, 400 | 416)) {
            sent = upload.run(&session.exchange, name.repository(), None).await;
        }
        sent.map_err(|kind| session.error(kind))
    }

    /// Tells the registry that an upload is not wanted after all, so that it need not keep what it has of it. Never an
    /// error: registries throw away what nobody ends, too.
    pub async fn give_up_blob(&self, name: &Reference, ahead: UploadAhead) {
        let (Progress::Whole(left) | Progress::Cut(left)) = ahead.0 else { return };
        upload::give_up(self, name, left.location).await;
    }
}

/// Sends everything in one request.
async fn fill(
    session: &Session<'_>,
    first: &upload::Session,
    content: BlobContent,
) -> Result<upload::Session, ErrorKind> {
    let sent = Arc::new(AtomicU64::new(0));
    let (counter, watcher) = (Arc::clone(&sent), content.progress.clone());
    let content = content.watched(Arc::new(move |position| {
        counter.store(position, Ordering::Relaxed);
        if let Some(watcher) = &watcher {
            watcher(position);
        }
    }));
    let call = Call {
        method: Method::PATCH,
        url: first.location.clone(),
        headers: HeaderMap::new(),
        payload: Payload::Empty,
        is_verified: false,
    };
    let answer = send_bytes(&session.exchange, call, &content, (0, None)).await;
    let answer = answer.map_err(|failure| failure.kind)?;
    if !answer.response.status().is_success() {
        return Err(answer.fault().await.kind);
    }
    let received = sent.load(Ordering::Relaxed);
    // `0-9` of ten bytes; not every registry says it.
    let last = answer.header(RANGE.as_str()).and_then(|range| range.split('-').nth(1)?.parse::<u64>().ok());
    if last.is_some_and(|last| last.saturating_add(1) != received) {
        return Err(ResponseFault::Range.into());
    }
    Ok(upload::Session { location: next_location(&answer)?, received })
}
