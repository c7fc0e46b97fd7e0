//! Blobs and manifests out.

use std::fmt;
use std::fs::File;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderValue, IF_MATCH};
use reqwest::{Method, StatusCode};
use stave_oci::{Descriptor, Digest, ManifestError, Reference, media_type};
use url::Url;

use crate::auth::ScopeSet;
use crate::client::Subject;
use crate::config::Capability;
use crate::endpoint::endpoints;
use crate::error::{Action, ErrorKind};
use crate::limits::{MAX_LIST_ATTEMPTS, MAX_MANIFEST_BYTES};
use crate::referrers::{SUBJECT_HEADER, referrer, with_referrer};
use crate::request::{Call, Exchange, Payload};
use crate::upload::{self, Upload, holds, next_location};
use crate::{Client, RegistryError};

/// Where an upload's bytes come from, at any offset: an upload that was cut resumes in the middle.
pub trait BlobSource: Send + Sync + 'static {
    /// At most `length` bytes from `offset` on; empty at the end. May block; called off the async threads.
    ///
    /// # Errors
    /// When the bytes cannot be read.
    fn read_at(&self, offset: u64, length: usize) -> io::Result<Bytes>;
}

impl BlobSource for Bytes {
    fn read_at(&self, offset: u64, length: usize) -> io::Result<Bytes> {
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(self.len());
        Ok(self.slice(start..start.saturating_add(length).min(self.len())))
    }
}

impl BlobSource for File {
    fn read_at(&self, offset: u64, length: usize) -> io::Result<Bytes> {
        use std::os::unix::fs::FileExt;
        let mut buffer = vec![0; length];
        let count = FileExt::read_at(self, &mut buffer, offset)?;
        buffer.truncate(count);
        Ok(buffer.into())
    }
}

/// Called with the number of bytes of the blob handed to the network; it falls back when an upload starts over.
pub type Progress = Arc<dyn Fn(u64) + Send + Sync>;

/// The bytes of an upload, and who watches them go.
#[derive(Clone)]
pub struct BlobContent {
    /// Where the bytes are read.
    pub source: Arc<dyn BlobSource>,
    /// Who is told how many have gone.
    pub progress: Option<Progress>,
}

impl BlobContent {
    /// Bytes that nobody watches.
    pub fn new(source: impl BlobSource) -> Self {
        Self { source: Arc::new(source), progress: None }
    }

    /// The same, watched.
    #[must_use]
    pub fn watched(self, progress: Progress) -> Self {
        Self { progress: Some(progress), ..self }
    }
}

impl fmt::Debug for BlobContent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlobContent").finish_non_exhaustive()
    }
}

/// How a blob got into the repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlobPush {
    /// It was there.
    Existed,
    /// The registry took it from another of its repositories.
    Mounted,
    /// It was sent.
    Uploaded,
}

impl Client {
    /// Whether a repository holds a blob.
    ///
    /// # Errors
    /// [`RegistryError`], save that the blob's absence is an answer.
    pub async fn has_blob(&self, name: &Reference, digest: &Digest) -> Result<bool, RegistryError> {
        let session = Session::open(self, name, None).await?;
        session.has(digest).await.map_err(|kind| session.error(kind))
    }

    /// Asks the registry to take a blob from another of its repositories (`library/busybox`); `false` if it does not.
    ///
    /// # Errors
    /// [`RegistryError`], save that refusing a mount is an answer.
    pub async fn mount_blob(
        &self,
        name: &Reference,
        digest: &Digest,
        from: &str,
    ) -> Result<bool, RegistryError> {
        let session = Session::open(self, name, Some(from)).await?;
        match session.mount(digest, from).await.map_err(|kind| session.error(kind))? {
            Mounting::Done => Ok(true),
            Mounting::Uploading(location) => {
                upload::give_up(self, name, location).await;
                Ok(false)
            }
            Mounting::Refused => Ok(false),
        }
    }

    /// Makes sure that a repository holds a blob: checks, mounts from `mount_from` if given, or uploads.
    ///
    /// # Errors
    /// [`RegistryError`]; [`crate::ErrorKind::Source`] if `source` fails.
    pub async fn push_blob(
        &self,
        name: &Reference,
        blob: &Descriptor,
        content: BlobContent,
        mount_from: Option<&str>,
    ) -> Result<BlobPush, RegistryError> {
        let session = Session::open(self, name, None).await?;
        if session.has(&blob.digest).await.map_err(|kind| session.error(kind))? {
            return Ok(BlobPush::Existed);
        }
        let mut opened = None;
        if let Some(from) = mount_from {
            let mounting = Session::open(self, name, Some(from)).await?;
            match mounting.mount(&blob.digest, from).await.map_err(|kind| session.error(kind))? {
                Mounting::Done => return Ok(BlobPush::Mounted),
                Mounting::Uploading(location) => opened = Some(upload::Session { location, received: 0 }),
                Mounting::Refused => {}
            }
        }
        let upload = Upload { blob: blob.clone(), content };
        let sent = upload.run(&session.exchange, name.repository(), opened).await;
        sent.map_err(|kind| session.error(kind))?;
        Ok(BlobPush::Uploaded)
    }

    /// Makes sure that a repository holds a small blob that it most likely does not hold yet. One request asks and opens
    /// the upload: a mount of the blob from the repository itself. A registry that knows no mounts gets the blob again.
    ///
    /// # Errors
    /// [`RegistryError`]; [`crate::ErrorKind::Source`] if `source` fails.
    pub async fn offer_blob(
        &self,
        name: &Reference,
        blob: &Descriptor,
        content: BlobContent,
    ) -> Result<BlobPush, RegistryError> {
        let session = Session::open(self, name, None).await?;
        let mounting = session.mount(&blob.digest, name.repository()).await;
        let opened = match mounting.map_err(|kind| session.error(kind))? {
            Mounting::Done => return Ok(BlobPush::Existed),
            Mounting::Uploading(location) => Some(upload::Session { location, received: 0 }),
            Mounting::Refused => None,
        };
        let upload = Upload { blob: blob.clone(), content };
        let sent = upload.run(&session.exchange, name.repository(), opened).await;
        sent.map_err(|kind| session.error(kind))?;
        Ok(BlobPush::Uploaded)
    }

    /// Uploads a blob that the repository was found not to hold: it is not asked again.
    ///
    /// # Errors
    /// [`RegistryError`]; [`crate::ErrorKind::Source`] if `source` fails.
    pub async fn upload_blob(
        &self,
        name: &Reference,
        blob: &Descriptor,
        content: BlobContent,
    ) -> Result<(), RegistryError> {
        let session = Session::open(self, name, None).await?;
        let upload = Upload { blob: blob.clone(), content };
        let sent = upload.run(&session.exchange, name.repository(), None).await;
        sent.map_err(|kind| session.error(kind))
    }

    /// Writes a manifest or index under the name's tag, or by its digest if the name has no tag. Its digest is
    /// returned. One with a subject is also listed among what refers to that, where the registry does not do it.
    ///
    /// # Errors
    /// [`RegistryError`]; a registry refuses manifests whose blobs it does not hold.
    pub async fn push_manifest(
        &self,
        name: &Reference,
        media_type: &str,
        bytes: Bytes,
    ) -> Result<Digest, RegistryError> {
        let session = Session::open(self, name, None).await?;
        let referrer = referrer(&bytes, media_type);
        let put = session.put_manifest(name, media_type, bytes, None).await;
        let put = put.map_err(|kind| session.error(kind))?;
        if let Some((subject, referrer)) = referrer.filter(|_| !put.is_listed) {
            session.list(&subject, &referrer).await.map_err(|kind| session.error(kind))?;
        }
        Ok(put.digest)
    }
}

/// Writing to one repository.
pub(crate) struct Session<'a> {
    pub(crate) exchange: Exchange,
    name: &'a Reference,
}

/// A manifest that was taken.
struct Put {
    digest: Digest,
    /// The registry lists it among what refers to its subject.
    is_listed: bool,
}

/// What became of a mount.
enum Mounting {
    Done,
    /// Not mounted, but the registry has opened an upload instead.
    Uploading(Url),
    Refused,
}

impl<'a> Session<'a> {
    pub(crate) async fn open(
        client: &Client,
        name: &'a Reference,
        from: Option<&str>,
    ) -> Result<Self, RegistryError> {
        let subject = Subject::of(Action::Push, name);
        let registry = name.registry();
        let tables = &client.shared.config.registries;
        let Some(endpoint) = endpoints(tables, registry, Capability::Push).pop() else {
            return Err(subject.error(registry, ErrorKind::NoEndpoint(registry.to_owned())));
        };
        let host = endpoint.host.clone();
        let scope = ScopeSet::push(name.repository());
        let scope = from.into_iter().fold(scope, ScopeSet::and_pull);
        let exchange = Exchange::open(&client.shared, endpoint, scope).await;
        exchange.map(|exchange| Self { exchange, name }).map_err(|kind| subject.error(&host, kind))
    }

    pub(crate) fn error(&self, kind: ErrorKind) -> RegistryError {
        Subject::of(Action::Push, self.name).error(&self.exchange.endpoint.host, kind)
    }

    async fn has(&self, digest: &Digest) -> Result<bool, ErrorKind> {
        holds(&self.exchange, self.name.repository(), digest).await
    }

    async fn mount(&self, digest: &Digest, from: &str) -> Result<Mounting, ErrorKind> {
        let mut url = self.exchange.url(&format!("{}/blobs/uploads/", self.name.repository()))?;
        url.query_pairs_mut().append_pair("mount", digest.as_str()).append_pair("from", from);
        let mut call = Call::new(Method::POST, url);
        call.payload = Payload::Bytes(Bytes::new());
        let answer = match self.exchange.send(&call).await {
            Ok(answer) => answer,
            // A token for the other repository was refused: that is no reason not to upload.
            Err(ErrorKind::AccessDenied { .. }) => return Ok(Mounting::Refused),
            Err(kind) => return Err(kind),
        };
        match answer.response.status() {
            StatusCode::CREATED => Ok(Mounting::Done),
            StatusCode::ACCEPTED => Ok(next_location(&answer).map_or(Mounting::Refused, Mounting::Uploading)),
            status if status.is_client_error() => Ok(Mounting::Refused),
            _ => Err(answer.fault().await.kind),
        }
    }

    /// Writes it; if `replaces` is given, only over what has that entity tag.
    async fn put_manifest(
        &self,
        name: &Reference,
        media_type: &str,
        bytes: Bytes,
        replaces: Option<&str>,
    ) -> Result<Put, ErrorKind> {
        let digest = Digest::sha256(&bytes);
        if bytes.len() as u64 > MAX_MANIFEST_BYTES {
            return Err(ErrorKind::TooLarge { what: "manifest", limit: MAX_MANIFEST_BYTES });
        }
        let target = name.tag().or(name.digest().map(Digest::as_str)).unwrap_or(digest.as_str());
        let url = self.exchange.url(&format!("{}/manifests/{target}", name.repository()))?;
        let mut call = Call::new(Method::PUT, url);
        let content_type = HeaderValue::from_str(media_type)
            .map_err(|_| ErrorKind::Manifest(ManifestError::MediaType(media_type.to_owned())))?;
        call.headers = HeaderMap::from_iter([(CONTENT_TYPE, content_type)]);
        // A weak one never holds as a condition of a write (RFC 9110, 13.1.1).
        let condition = replaces.filter(|entity_tag| !entity_tag.starts_with("W/"));
        let condition = condition.and_then(|entity_tag| HeaderValue::from_str(entity_tag).ok());
        call.headers.extend(condition.map(|entity_tag| (IF_MATCH, entity_tag)));
        call.payload = Payload::Bytes(bytes);
        let answer = self.exchange.send(&call).await?;
        if !answer.response.status().is_success() {
            return Err(answer.fault().await.kind);
        }
        match answer.digest_header()? {
            // The registry has stored something else than what was sent.
            Some(stored) if stored.algorithm() == digest.algorithm() && stored != digest => {
                Err(ErrorKind::DigestMismatch { expected: digest, actual: stored })
            }
            _ => Ok(Put { digest, is_listed: answer.header(SUBJECT_HEADER).is_some() }),
        }
    }

    /// Adds to the list of what refers to `subject`, which registries without one keep under a tag. Others may write
    /// it meanwhile: the list is replaced on condition where the registry heeds one, and read again in any case, since
    /// the distribution specification knows no other way to tell that nothing was lost.
    async fn list(&self, subject: &Digest, referrer: &Descriptor) -> Result<(), ErrorKind> {
        let mut attempt = 1;
        while let Some(list) = with_referrer(&self.exchange, self.name, subject, referrer).await? {
            if attempt > MAX_LIST_ATTEMPTS {
                return Err(ErrorKind::ListContended(list.tag.familiar()));
            }
            if attempt > 1 {
                tokio::time::sleep(self.exchange.shared.config.limits.backoff_before(attempt)).await;
            }
            attempt += 1;
            let put =
                self.put_manifest(&list.tag, media_type::OCI_INDEX, list.bytes, list.replaces.as_deref());
            match put.await {
                Ok(_) => {}
                // Somebody else was first.
                Err(ErrorKind::Status(fault)) if fault.code == StatusCode::PRECONDITION_FAILED.as_u16() => {}
                Err(kind) => return Err(kind),
            }
        }
        Ok(())
    }
}
