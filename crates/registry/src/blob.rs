//! Blobs in: a byte stream that ends well only if digest and size are right.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::stream::{self, BoxStream};
use futures::{Stream, StreamExt as _, TryStreamExt as _};
use reqwest::header::{CONTENT_LENGTH, CONTENT_RANGE, HeaderMap, HeaderValue, RANGE};
use reqwest::{Method, StatusCode};
use stave_oci::{Descriptor, Digest, Hasher, Reference};
use tokio::io::AsyncRead;
use url::Url;

use crate::answer::Answer;
use crate::auth::ScopeSet;
use crate::client::Subject;
use crate::config::Capability;
use crate::endpoint::{Endpoint, endpoints};
use crate::error::{Action, ErrorKind, MirrorFailure, ResponseFault};
use crate::limits::{MAX_CONFIG_BYTES, MAX_FOREIGN_URLS, RESUME_PROGRESS_BYTES};
use crate::request::{Call, Exchange, Failure, shown};
use crate::{Client, RegistryError};

/// The media type of what nobody says more about.
const OCTETS: &str = "application/octet-stream";

/// The bytes of one blob, verified as they pass: the stream's last item is an error unless digest and size are
/// those of the descriptor. Cut connections are resumed within. Use nothing of it before it ended without error.
pub struct BlobStream {
    pieces: BoxStream<'static, Result<Bytes, RegistryError>>,
}

impl BlobStream {
    /// The same as a reader; a [`RegistryError`] is the source inside the `io::Error`.
    pub fn into_async_read(self) -> impl AsyncRead + Send + Unpin + 'static {
        tokio_util::io::StreamReader::new(self.pieces.map_err(std::io::Error::other))
    }
}

impl Stream for BlobStream {
    type Item = Result<Bytes, RegistryError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.pieces.as_mut().poll_next(cx)
    }
}

impl fmt::Debug for BlobStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlobStream").finish_non_exhaustive()
    }
}

impl Client {
    /// Opens a blob for reading, from the mirrors first. After a [`crate::ErrorKind::DigestMismatch`] a second call
    /// asks the hosts that have not served wrong bytes.
    ///
    /// # Errors
    /// [`RegistryError`], at opening and as the stream's last item.
    pub async fn fetch_blob(&self, name: &Reference, blob: &Descriptor) -> Result<BlobStream, RegistryError> {
        let tables = &self.shared.config.registries;
        let mut hosts = endpoints(tables, name.registry(), Capability::Pull);
        let is_trusted = |endpoint: &Endpoint| !self.shared.is_distrusted(&endpoint.host, &blob.digest);
        if hosts.iter().any(is_trusted) {
            hosts.retain(is_trusted);
        }
        hosts.reverse();
        let mut download = Download {
            client: self.clone(),
            subject: Subject::of(Action::Pull, name),
            name: name.clone(),
            blob: blob.clone(),
            hosts,
            urls: foreign_urls(blob),
            failed: Vec::new(),
            position: 0,
            hasher: Some(Hasher::new(blob.digest.algorithm())),
            source: None,
            attempt: 1,
            since_cut: 0,
        };
        download.connect().await?;
        let pieces = stream::try_unfold(download, async |mut download| {
            let piece = download.next().await?;
            Ok(piece.map(|piece| (piece, download)))
        });
        Ok(BlobStream { pieces: pieces.boxed() })
    }

    /// What a blob is that is known by its digest alone: how large, as the first host that has it says.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub async fn find_blob(&self, name: &Reference, digest: &Digest) -> Result<Descriptor, RegistryError> {
        let subject = Subject::of(Action::Pull, name);
        let hosts = endpoints(&self.shared.config.registries, name.registry(), Capability::Pull);
        let (mut hosts, mut mirrors) = (hosts.into_iter().peekable(), Vec::new());
        while let Some(endpoint) = hosts.next() {
            let host = endpoint.host.clone();
            match self.size_at(endpoint, name, digest).await {
                Ok(size) => return Ok(Descriptor::new(OCTETS, digest.clone(), size)),
                Err(kind) if hosts.peek().is_some() => mirrors.push(MirrorFailure { host, kind }),
                Err(kind) => return Err(subject.error_after(&host, kind, mirrors)),
            }
        }
        let registry = name.registry();
        Err(subject.error(registry, ErrorKind::NoEndpoint(registry.to_owned())))
    }

    async fn size_at(&self, endpoint: Endpoint, name: &Reference, digest: &Digest) -> Result<u64, ErrorKind> {
        let exchange = Exchange::open(&self.shared, endpoint, ScopeSet::pull(name.repository())).await?;
        let url = exchange.url(&format!("{}/blobs/{digest}", name.repository()))?;
        let mut call = Call::new(Method::HEAD, url);
        call.is_verified = true;
        let answer = exchange.send(&call).await?;
        if !answer.response.status().is_success() {
            return Err(answer.fault().await.kind);
        }
        let size = answer.header(CONTENT_LENGTH.as_str()).and_then(|text| text.parse().ok());
        size.ok_or_else(|| ResponseFault::Length.into())
    }

    /// A whole small blob (a configuration) of at most 8 MiB.
    ///
    /// # Errors
    /// As [`Client::fetch_blob`]; [`crate::ErrorKind::TooLarge`].
    pub async fn fetch_small_blob(
        &self,
        name: &Reference,
        blob: &Descriptor,
    ) -> Result<Bytes, RegistryError> {
        let limit = MAX_CONFIG_BYTES;
        self.fetch_blob_within(name, blob, ("image configuration", limit)).await
    }

    /// A whole blob of at most so many bytes; what it is goes into the error.
    ///
    /// # Errors
    /// As [`Client::fetch_blob`]; [`crate::ErrorKind::TooLarge`].
    pub async fn fetch_blob_within(
        &self,
        name: &Reference,
        blob: &Descriptor,
        (what, limit): (&'static str, u64),
    ) -> Result<Bytes, RegistryError> {
        if blob.size > limit {
            let kind = ErrorKind::TooLarge { what, limit };
            return Err(Subject::of(Action::Pull, name).error(name.registry(), kind));
        }
        // The stream ends with an error at the first byte too many, so the descriptor's size bounds this.
        let mut pieces = self.fetch_blob(name, blob).await?;
        let mut whole = Vec::new();
        while let Some(piece) = pieces.next().await {
            whole.extend_from_slice(&piece?);
        }
        Ok(whole.into())
    }
}

/// A blob on its way.
struct Download {
    client: Client,
    subject: Subject,
    name: Reference,
    blob: Descriptor,
    /// Endpoints not asked yet, the next one last.
    hosts: Vec<Endpoint>,
    /// Where else its manifest says it can be had, the next one last. Asked last, and never with credentials.
    urls: Vec<Url>,
    failed: Vec<MirrorFailure>,
    /// Bytes given out, all of them hashed.
    position: u64,
    /// Taken when the blob has ended.
    hasher: Option<Hasher>,
    source: Option<Source>,
    attempt: u32,
    since_cut: u64,
}

/// The endpoint that serves, and its answer while that lasts.
struct Source {
    exchange: Exchange,
    /// An address outside of the registry.
    url: Option<Url>,
    answer: Option<Body>,
}

struct Body {
    answer: Answer,
    /// Bytes at the front that were given out before: the server started over instead of resuming.
    skip: u64,
}

impl Download {
    /// Opens the blob at the first endpoint that serves it.
    async fn connect(&mut self) -> Result<(), RegistryError> {
        let Some(mut endpoint) = self.hosts.pop() else {
            let registry = self.name.registry().to_owned();
            return Err(self.subject.error(&registry, ErrorKind::NoEndpoint(registry.clone())));
        };
        loop {
            let host = endpoint.host.clone();
            let kind = match self.open(endpoint).await {
                Ok(source) => {
                    self.source = Some(source);
                    return Ok(());
                }
                Err(kind) => kind,
            };
            let Some(next) = self.hosts.pop() else {
                // Whatever the last of them said: a mirror has what its registry has, and not what lies elsewhere.
                if self.connect_elsewhere().await {
                    return Ok(());
                }
                return Err(self.subject.error_after(&host, kind, std::mem::take(&mut self.failed)));
            };
            tracing::debug!(host, reason = %kind, "mirror does not serve");
            self.failed.push(MirrorFailure { host, kind });
            endpoint = next;
        }
    }

    /// Opens the blob at the first of the addresses its manifest names: layers that registries may not
    /// distribute lie there.
    async fn connect_elsewhere(&mut self) -> bool {
        while let Some(url) = self.urls.pop() {
            match self.open_elsewhere(&url).await {
                Ok(source) => {
                    self.source = Some(source);
                    return true;
                }
                Err(kind) => tracing::debug!(url = shown(&url), reason = %kind, "foreign layer is not there"),
            }
        }
        false
    }

    async fn open_elsewhere(&self, url: &Url) -> Result<Source, ErrorKind> {
        let host = url.host_str().unwrap_or_default();
        let host = url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
        let endpoint = Endpoint::origin(&self.client.shared.config.registries, &host);
        let scope = ScopeSet::pull(self.name.repository());
        let exchange = Exchange::open(&self.client.shared, endpoint, scope).await?;
        let body = self.request(&exchange, Some(url)).await?;
        Ok(Source { exchange, url: Some(url.clone()), answer: Some(body) })
    }

    async fn open(&self, endpoint: Endpoint) -> Result<Source, ErrorKind> {
        let scope = ScopeSet::pull(self.name.repository());
        let exchange = Exchange::open(&self.client.shared, endpoint, scope).await?;
        let body = self.request(&exchange, None).await?;
        Ok(Source { exchange, url: None, answer: Some(body) })
    }

    /// Asks for what is still missing.
    async fn request(&self, exchange: &Exchange, elsewhere: Option<&Url>) -> Result<Body, ErrorKind> {
        let own = || exchange.url(&format!("{}/blobs/{}", self.name.repository(), self.blob.digest));
        let mut call = Call::get(elsewhere.map_or_else(own, |url| Ok(url.clone()))?);
        call.is_verified = true;
        if self.position > 0 {
            let range = HeaderValue::from_str(&format!("bytes={}-", self.position));
            call.headers = HeaderMap::from_iter(range.ok().map(|range| (RANGE, range)));
        }
        let answer = match elsewhere {
            None => exchange.send(&call).await?,
            Some(_) => exchange.send_anonymously(&call).await?,
        };
        let skip = match answer.response.status() {
            StatusCode::PARTIAL_CONTENT if self.position > 0 => {
                let range = answer.header(CONTENT_RANGE.as_str()).and_then(range_start);
                if range != Some(self.position) {
                    return Err(ResponseFault::Range.into());
                }
                0
            }
            StatusCode::OK => self.position,
            StatusCode::PARTIAL_CONTENT => return Err(ResponseFault::Range.into()),
            _ => return Err(answer.fault().await.kind),
        };
        if let Some(length) = answer.response.content_length() {
            let announced = (self.position - skip).saturating_add(length);
            if announced != self.blob.size {
                return Err(self.wrong_size(announced, false));
            }
        }
        Ok(Body { answer, skip })
    }

    /// The next piece, `None` once all have come and are right.
    async fn next(&mut self) -> Result<Option<Bytes>, RegistryError> {
        loop {
            if self.hasher.is_none() {
                return Ok(None);
            }
            match self.read().await {
                Ok(Some(piece)) => return Ok(Some(piece)),
                // A connection that breaks after the last byte has done its work.
                Ok(None) | Err(ErrorKind::Interrupted(_)) if self.position == self.blob.size => {
                    self.verify().map_err(|kind| self.error(kind))?;
                    return Ok(None);
                }
                Ok(None) => return Err(self.error(self.wrong_size(self.position, false))),
                Err(kind) => self.resume(kind).await?,
            }
        }
    }

    /// The next new bytes of the answer at hand.
    async fn read(&mut self) -> Result<Option<Bytes>, ErrorKind> {
        let position = self.position;
        loop {
            let Some(body) = self.source.as_mut().and_then(|source| source.answer.as_mut()) else {
                return Err(ErrorKind::Interrupted("no answer to read".to_owned()));
            };
            let Some(mut piece) = body.answer.piece().await? else { return Ok(None) };
            let known = usize::try_from(body.skip).unwrap_or(usize::MAX).min(piece.len());
            body.skip -= known as u64;
            let fresh = piece.split_off(known);
            if fresh.is_empty() {
                continue;
            }
            let reached = position + fresh.len() as u64;
            if reached > self.blob.size {
                return Err(self.wrong_size(reached, true));
            }
            self.position = reached;
            self.since_cut += fresh.len() as u64;
            if let Some(hasher) = &mut self.hasher {
                hasher.update(&fresh);
            }
            return Ok(Some(fresh));
        }
    }

    fn verify(&mut self) -> Result<(), ErrorKind> {
        let Some(hasher) = self.hasher.take() else { return Ok(()) };
        let actual = hasher.finish();
        if actual == self.blob.digest {
            return Ok(());
        }
        if let Some(source) = &self.source {
            self.client.shared.distrust(&source.exchange.endpoint.host, &self.blob.digest);
        }
        Err(ErrorKind::DigestMismatch { expected: self.blob.digest.clone(), actual })
    }

    /// After a cut: asks the same endpoint for the rest, then the ones not asked yet.
    async fn resume(&mut self, kind: ErrorKind) -> Result<(), RegistryError> {
        if !matches!(kind, ErrorKind::Interrupted(_) | ErrorKind::Timeout(_)) {
            return Err(self.error(kind));
        }
        if self.since_cut >= RESUME_PROGRESS_BYTES {
            self.attempt = 1;
        }
        self.since_cut = 0;
        let Some(mut source) = self.source.take() else { return Err(self.error(kind)) };
        // Its turn at the host goes with it: the next request needs one.
        source.answer = None;
        let host = source.exchange.endpoint.host.clone();
        let paused = source.exchange.pause(&mut self.attempt, Failure::from(kind)).await;
        let kind = match paused {
            Ok(()) => match self.request(&source.exchange, source.url.as_ref()).await {
                Ok(body) => {
                    source.answer = Some(body);
                    self.source = Some(source);
                    return Ok(());
                }
                Err(kind) => kind,
            },
            Err(kind) => kind,
        };
        if self.hosts.is_empty() {
            return Err(self.subject.error_after(&host, kind, std::mem::take(&mut self.failed)));
        }
        self.failed.push(MirrorFailure { host, kind });
        self.attempt = 1;
        self.connect().await
    }

    fn error(&self, kind: ErrorKind) -> RegistryError {
        let host = self.source.as_ref().map_or(self.name.registry(), |source| &source.exchange.endpoint.host);
        self.subject.error(host, kind)
    }

    fn wrong_size(&self, actual: u64, at_least: bool) -> ErrorKind {
        let Descriptor { digest, size, .. } = &self.blob;
        ErrorKind::SizeMismatch { digest: digest.clone(), expected: *size, actual, at_least }
    }
}

/// The addresses of a layer outside of its registry, the first last.
fn foreign_urls(blob: &Descriptor) -> Vec<Url> {
    let parsed = blob.urls.iter().take(MAX_FOREIGN_URLS).filter_map(|text| Url::parse(text).ok());
    let usable = |url: &Url| {
        let is_plain = url.username().is_empty() && url.password().is_none() && url.has_host();
        is_plain && matches!(url.scheme(), "http" | "https")
    };
    let mut urls: Vec<Url> = parsed.filter(usable).collect();
    urls.reverse();
    urls
}

/// The first byte of `bytes 5-9/10`.
fn range_start(text: &str) -> Option<u64> {
    text.strip_prefix("bytes ")?.split('-').next()?.trim().parse().ok()
}
