//! One blob's upload: a session at the registry, filled in one request or in pieces, resumed after a cut.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures::stream;
use reqwest::header::{CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderValue, RANGE};
use reqwest::{Method, StatusCode};
use stave_oci::{Descriptor, Digest, Reference};
use url::Url;

use crate::Client;
use crate::answer::Answer;
use crate::client::lock;
use crate::error::{ErrorKind, RedirectFault, ResponseFault};
use crate::limits::{GIVE_UP_TIMEOUT, UPLOAD_READ_BYTES};
use crate::push::{self, BlobContent};
use crate::request::{Call, Exchange, Failure, Payload, location, shown};

const OCTETS: HeaderValue = HeaderValue::from_static("application/octet-stream");

/// What is to be uploaded.
pub(crate) struct Upload {
    pub(crate) blob: Descriptor,
    pub(crate) content: BlobContent,
}

/// An open session at the registry: where the next bytes go, and how many it has.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) location: Url,
    pub(crate) received: u64,
}

impl Upload {
    /// Sends the blob. `first` is the session that the registry has opened already, if it has.
    pub(crate) async fn run(
        &self,
        exchange: &Exchange,
        repository: &str,
        first: Option<Session>,
    ) -> Result<(), ErrorKind> {
        let mut attempt = 1;
        let mut session = match first {
            Some(session) if session.received <= self.blob.size => session,
            _ => start(exchange, repository).await?,
        };
        loop {
            let failure = match self.fill(exchange, &mut session).await {
                Ok(()) => return Ok(()),
                Err(failure) => failure,
            };
            // Where a session is gone, a new one can be had; a second refusal is an answer.
            if !matches!(failure.kind, ErrorKind::NotFound) || attempt > 1 {
                exchange.pause(&mut attempt, failure).await?;
            } else {
                attempt += 1;
            }
            session = match resume(exchange, &session).await {
                Some(session) if session.received <= self.blob.size => session,
                // The answer may have been lost after the work was done.
                _ if holds(exchange, repository, &self.blob.digest).await? => return Ok(()),
                _ => start(exchange, repository).await?,
            };
            tracing::debug!(digest = %self.blob.digest, received = session.received, "upload goes on");
        }
    }

    /// Sends what is missing and closes the session with the digest.
    async fn fill(&self, exchange: &Exchange, session: &mut Session) -> Result<(), Failure> {
        let size = self.blob.size;
        if let Some(chunk) = exchange.shared.config.limits.upload_chunk.filter(|chunk| *chunk > 0) {
            while session.received < size {
                let end = session.received.saturating_add(chunk).min(size);
                self.patch(exchange, session, end).await?;
            }
        } else if session.received > 0 && session.received < size {
            // A closing request may not start in the middle at every registry; a piece may.
            self.patch(exchange, session, size).await?;
        }
        let mut url = session.location.clone();
        url.query_pairs_mut().append_pair("digest", self.blob.digest.as_str());
        let answer = self.transmit(exchange, Method::PUT, url, session.received..size).await?;
        if answer.response.status().is_success() { Ok(()) } else { Err(answer.fault().await) }
    }

    async fn patch(&self, exchange: &Exchange, session: &mut Session, end: u64) -> Result<(), Failure> {
        let range = session.received..end;
        let answer = self.transmit(exchange, Method::PATCH, session.location.clone(), range).await?;
        if !answer.response.status().is_success() {
            return Err(answer.fault().await);
        }
        *session = Session { location: next_location(&answer)?, received: end };
        Ok(())
    }

    async fn transmit(
        &self,
        exchange: &Exchange,
        method: Method,
        url: Url,
        range: std::ops::Range<u64>,
    ) -> Result<Answer, Failure> {
        let mut headers = HeaderMap::new();
        if method == Method::PATCH {
            // Both ends inclusive, and no unit: the distribution specification's form.
            let text = format!("{}-{}", range.start, range.end.saturating_sub(1));
            headers.extend(HeaderValue::from_str(&text).ok().map(|value| (CONTENT_RANGE, value)));
        }
        let call = Call { method, url, headers, payload: Payload::Empty, is_verified: false };
        send_bytes(exchange, call, &self.content, (range.start, Some(range.end))).await
    }
}

/// Sends `content` from the first offset to the other, or to where it ends, as the call's body.
pub(crate) async fn send_bytes(
    exchange: &Exchange,
    call: Call,
    content: &BlobContent,
    range: (u64, Option<u64>),
) -> Result<Answer, Failure> {
    let unreadable = Arc::new(Mutex::new(None));
    let mut headers = call.headers;
    headers.insert(CONTENT_TYPE, OCTETS);
    let call = Call { headers, payload: payload(content, range, &unreadable), ..call };
    let sent = exchange.send_once(&call).await;
    // A source that fails breaks the connection; the reason is here, not there.
    match lock(&unreadable).take() {
        Some(error) => Err(ErrorKind::Source(error).into()),
        None => sent,
    }
}

fn payload(
    content: &BlobContent,
    (start, end): (u64, Option<u64>),
    unreadable: &Arc<Mutex<Option<io::Error>>>,
) -> Payload {
    if end == Some(start) {
        return Payload::Bytes(Bytes::new());
    }
    let handed_out = Arc::new(AtomicU64::new(0));
    let open = {
        let (content, handed_out, unreadable) =
            (content.clone(), Arc::clone(&handed_out), Arc::clone(unreadable));
        move || {
            handed_out.store(0, Ordering::Relaxed);
            let (content, handed_out, unreadable) =
                (content.clone(), Arc::clone(&handed_out), Arc::clone(&unreadable));
            let first = Reading { content, handed_out, unreadable, position: start, end };
            reqwest::Body::wrap_stream(stream::try_unfold(first, Reading::next))
        }
    };
    Payload::Stream { length: end.map(|end| end.saturating_sub(start)), open: Arc::new(open), handed_out }
}

/// The bytes of one request's body on their way out.
struct Reading {
    content: BlobContent,
    handed_out: Arc<AtomicU64>,
    unreadable: Arc<Mutex<Option<io::Error>>>,
    position: u64,
    /// `None`: as far as there are bytes.
    end: Option<u64>,
}

impl Reading {
    async fn next(mut self) -> io::Result<Option<(Bytes, Self)>> {
        if self.end.is_some_and(|end| self.position >= end) {
            return Ok(None);
        }
        match self.read().await {
            Ok(None) => Ok(None),
            Ok(Some(piece)) => {
                self.position += piece.len() as u64;
                self.handed_out.fetch_add(piece.len() as u64, Ordering::Relaxed);
                if let Some(progress) = &self.content.progress {
                    progress(self.position);
                }
                Ok(Some((piece, self)))
            }
            Err(error) => {
                let broken = io::Error::from(error.kind());
                *lock(&self.unreadable) = Some(error);
                Err(broken)
            }
        }
    }

    async fn read(&self) -> io::Result<Option<Bytes>> {
        let left = self.end.map_or(u64::MAX, |end| end - self.position);
        let length = usize::try_from(left).unwrap_or(usize::MAX).min(UPLOAD_READ_BYTES);
        let (source, position) = (Arc::clone(&self.content.source), self.position);
        let piece = tokio::task::spawn_blocking(move || source.read_at(position, length)).await;
        let mut piece = piece.map_err(io::Error::other)??;
        if piece.is_empty() {
            return match self.end {
                None => Ok(None),
                Some(_) => Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "the data is shorter than its descriptor says",
                )),
            };
        }
        piece.truncate(length);
        Ok(Some(piece))
    }
}

/// Whether a repository holds a blob.
pub(crate) async fn holds(exchange: &Exchange, repository: &str, digest: &Digest) -> Result<bool, ErrorKind> {
    let mut call = Call::new(Method::HEAD, exchange.url(&format!("{repository}/blobs/{digest}"))?);
    call.is_verified = true;
    let answer = exchange.send(&call).await?;
    match answer.response.status() {
        status if status.is_success() => Ok(true),
        StatusCode::NOT_FOUND => Ok(false),
        _ => Err(answer.fault().await.kind),
    }
}

/// Opens a session.
pub(crate) async fn start(exchange: &Exchange, repository: &str) -> Result<Session, ErrorKind> {
    let url = exchange.url(&format!("{repository}/blobs/uploads/"))?;
    let mut call = Call::new(Method::POST, url);
    call.payload = Payload::Bytes(Bytes::new());
    let answer = exchange.send(&call).await?;
    if answer.response.status() != StatusCode::ACCEPTED {
        return Err(answer.fault().await.kind);
    }
    Ok(Session { location: next_location(&answer)?, received: 0 })
}

/// Asks a session how far it has come. `None` where it cannot say: then a new one is opened.
pub(crate) async fn resume(exchange: &Exchange, session: &Session) -> Option<Session> {
    let answer = exchange.send(&Call::get(session.location.clone())).await.ok()?;
    if !answer.response.status().is_success() {
        return None;
    }
    let last: u64 =
        answer.header(RANGE.as_str())?.trim_start_matches("bytes=").split('-').nth(1)?.parse().ok()?;
    // `0-0` is what registries say of one byte, and also of none: only a new session is sure to be empty.
    let received = last.checked_add(1).filter(|received| *received > 1)?;
    let location = next_location(&answer).unwrap_or_else(|_| session.location.clone());
    Some(Session { location, received })
}

/// Where the next bytes go. Not from https to http: what is uploaded may be private.
pub(crate) fn next_location(answer: &Answer) -> Result<Url, ErrorKind> {
    let next = location(answer.response.headers(), &answer.url).ok_or(ResponseFault::Location)?;
    if answer.url.scheme() == "https" && next.scheme() == "http" {
        return Err(RedirectFault::Downgrade(shown(&next)).into());
    }
    Ok(next)
}

/// Closes a session that nobody wants (distribution specification, "Cancel a blob upload"), if the registry can.
pub(crate) async fn give_up(client: &Client, name: &Reference, location: Url) {
    let closing = async {
        let session = push::Session::open(client, name, None).await.map_err(|error| error.to_string())?;
        let answer = session.exchange.send_once(&Call::new(Method::DELETE, location)).await;
        answer.map(|answer| answer.response.status()).map_err(|failure| failure.kind.to_string())
    };
    match tokio::time::timeout(GIVE_UP_TIMEOUT, closing).await {
        Ok(Ok(status)) => tracing::debug!(%status, "an upload is given up"),
        Ok(Err(reason)) => tracing::debug!(reason, "an upload is left"),
        Err(_) => tracing::debug!("an upload is left: the registry does not answer"),
    }
}
