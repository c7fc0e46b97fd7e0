//! A bucket of an object store that speaks S3, laid out as BuildKit's `s3` cache: `manifests/<name>` is the cache
//! config itself, `blobs/<digest>` are layers.
//!
//! Owns requests, their repetition and their bounds; signatures are [`super::sigv4`]'s. Start with [`S3Store`].

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};
use jiff::Timestamp;
use reqwest::{Method, Response, StatusCode};
use stave_oci::{Descriptor, Digest};
use url::Url;

use super::sigv4::{self, Request};
use super::{BlobReader, Content, MAX_CONFIG_BYTES, PlaceError, pieces};
use crate::spec::S3Place;

/// The largest object that one request can write or copy.
const MAX_OBJECT: u64 = 5 << 30;
/// Bytes of an error answer that are read.
const MAX_ERROR: usize = 16 << 10;
/// Seconds without any byte.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// Time to connect.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// The first wait between two attempts; it doubles.
const BACKOFF: Duration = Duration::from_millis(200);

/// A bucket, reached.
#[derive(Debug, Clone)]
pub struct S3Store {
    place: Arc<S3Place>,
    http: reqwest::Client,
    base: Url,
}

/// One request, to be repeated when the network or the server fails.
struct Ask<'a> {
    action: &'static str,
    method: Method,
    key: &'a str,
    headers: Vec<(&'static str, String)>,
    body: Body<'a>,
}

enum Body<'a> {
    Empty,
    Bytes(&'a Bytes),
    File { file: &'a std::fs::File, size: u64, digest: &'a Digest },
}

impl S3Store {
    /// A store for a bucket; nothing is asked yet.
    ///
    /// # Errors
    /// [`PlaceError::Setting`].
    pub fn new(place: S3Place) -> Result<Self, PlaceError> {
        let setting = |reason: String| PlaceError::Setting(reason);
        let mut base: Url = match &place.endpoint {
            Some(endpoint) => endpoint.parse().map_err(|error| setting(format!("endpoint_url: {error}")))?,
            None => format!("https://s3.{}.amazonaws.com", place.region)
                .parse()
                .map_err(|error| setting(format!("region: {error}")))?,
        };
        if !matches!(base.scheme(), "http" | "https") {
            return Err(setting(format!("endpoint_url: `{}` is neither http nor https", base.scheme())));
        }
        if !place.path_style {
            let host = format!("{}.{}", place.bucket, base.host_str().unwrap_or_default());
            base.set_host(Some(&host)).map_err(|error| setting(format!("bucket: {error}")))?;
        }
        Ok(Self { http: client(base.host_str().unwrap_or_default())?, base, place: Arc::new(place) })
    }

    /// Blobs to write at once.
    pub fn parallel(&self) -> usize {
        self.place.parallel
    }

    /// The same bucket under other names.
    pub(super) fn named(&self, suffix: &str) -> Self {
        let mut place = S3Place::clone(&self.place);
        for name in &mut place.names {
            name.push('-');
            name.push_str(suffix);
        }
        Self { place: Arc::new(place), ..self.clone() }
    }

    /// The first name's document.
    pub(super) async fn manifest(&self) -> Result<Option<Bytes>, PlaceError> {
        let Some(name) = self.place.names.first() else { return Ok(None) };
        let key = format!("{}{}{name}", self.place.prefix, self.place.manifests_prefix);
        let answer = self.ask(&Ask::new("reading a cache", Method::GET, &key)).await?;
        if answer.status() == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        let mut whole = Vec::new();
        let mut answer = self.checked(answer, "reading a cache").await?;
        while let Some(piece) = answer.chunk().await.map_err(|error| self.transfer(error))? {
            whole.extend_from_slice(&piece);
            if whole.len() as u64 > MAX_CONFIG_BYTES {
                let digest = Digest::sha256(&whole);
                return Err(PlaceError::TooLarge { digest, size: whole.len() as u64 });
            }
        }
        Ok(Some(whole.into()))
    }

    pub(super) async fn put_manifest(&self, bytes: Bytes) -> Result<(), PlaceError> {
        for name in &self.place.names {
            let key = format!("{}{}{name}", self.place.prefix, self.place.manifests_prefix);
            let mut ask = Ask::new("writing a cache", Method::PUT, &key);
            ask.body = Body::Bytes(&bytes);
            let answer = self.ask(&ask).await?;
            self.checked(answer, ask.action).await?;
        }
        Ok(())
    }

    pub(super) async fn blob(&self, digest: &Digest) -> Result<BlobReader, PlaceError> {
        let key = self.blob_key(digest);
        let answer = self.ask(&Ask::new("reading a blob", Method::GET, &key)).await?;
        let answer = self.checked(answer, "reading a blob").await?;
        let stream = answer.bytes_stream().map_err(std::io::Error::other);
        Ok(Box::pin(tokio_util::io::StreamReader::new(stream.boxed())))
    }

    /// Whether a blob is there; one that is old is touched, so that it does not expire.
    pub(super) async fn keep_blob(&self, digest: &Digest) -> Result<bool, PlaceError> {
        let key = self.blob_key(digest);
        let answer = self.ask(&Ask::new("looking for a blob", Method::HEAD, &key)).await?;
        if answer.status() == StatusCode::NOT_FOUND {
            return Ok(false);
        }
        let answer = self.checked(answer, "looking for a blob").await?;
        let header = |name: &str| answer.headers().get(name).and_then(|value| value.to_str().ok());
        let modified = header("last-modified")
            .and_then(|text| jiff::fmt::rfc2822::parse(text).ok())
            .map(|time| time.timestamp());
        let size: u64 = header("content-length").and_then(|text| text.parse().ok()).unwrap_or(0);
        let refresh = i64::try_from(self.place.touch_refresh.as_secs()).unwrap_or(i64::MAX);
        let age = modified.map(|time| Timestamp::now().as_second().saturating_sub(time.as_second()));
        if age.is_some_and(|age| age > refresh) && size < MAX_OBJECT {
            let source = sigv4::encode(&format!("{}/{key}", self.place.bucket), true);
            let mut ask = Ask::new("touching a blob", Method::PUT, &key);
            ask.headers.push(("x-amz-copy-source", source));
            ask.headers.push(("x-amz-metadata-directive", "REPLACE".to_owned()));
            ask.headers.push(("x-amz-meta-updated-at", Timestamp::now().to_string()));
            let answer = self.ask(&ask).await?;
            self.checked(answer, ask.action).await?;
        }
        Ok(true)
    }

    pub(super) async fn put_blob(&self, descriptor: &Descriptor, content: Content) -> Result<(), PlaceError> {
        let Descriptor { digest, size, .. } = descriptor;
        if *size > MAX_OBJECT {
            return Err(PlaceError::TooLarge { digest: digest.clone(), size: *size });
        }
        let key = self.blob_key(digest);
        let mut ask = Ask::new("writing a blob", Method::PUT, &key);
        ask.body = match &content {
            Content::Bytes(bytes) => Body::Bytes(bytes),
            Content::File(file) => Body::File { file, size: *size, digest },
        };
        let answer = self.ask(&ask).await?;
        self.checked(answer, ask.action).await?;
        Ok(())
    }

    fn blob_key(&self, digest: &Digest) -> String {
        format!("{}{}{digest}", self.place.prefix, self.place.blobs_prefix)
    }

    /// Asks until there is an answer that repeating would not change, or no attempt is left.
    async fn ask(&self, ask: &Ask<'_>) -> Result<Response, PlaceError> {
        let mut wait = BACKOFF;
        for attempt in 1.. {
            let result = self.once(ask).await;
            let again = match &result {
                Ok(answer) => answer.status().is_server_error() || answer.status() == 429,
                Err(PlaceError::Transfer { source, .. }) => !source.is_builder(),
                Err(_) => false,
            };
            if !again || attempt >= self.place.attempts {
                return result;
            }
            tokio::time::sleep(wait).await;
            wait *= 2;
        }
        Err(PlaceError::Setting("no attempts".to_owned()))
    }

    async fn once(&self, ask: &Ask<'_>) -> Result<Response, PlaceError> {
        let mut url = self.base.clone();
        let bucket = if self.place.path_style { format!("/{}", self.place.bucket) } else { String::new() };
        let root = url.path().trim_end_matches('/').to_owned();
        url.set_path(&format!("{root}{}/{}", sigv4::encode(&bucket, true), sigv4::encode(ask.key, true)));
        let payload = match &ask.body {
            Body::Empty => Digest::sha256(b"").hex().to_owned(),
            Body::Bytes(bytes) => Digest::sha256(bytes).hex().to_owned(),
            Body::File { digest, .. } => digest.hex().to_owned(),
        };
        let mut request = self.http.request(ask.method.clone(), url.clone());
        for (name, value) in &ask.headers {
            request = request.header(*name, value);
        }
        if let Some(credentials) = &self.place.credentials {
            let time = Timestamp::now().strftime("%Y%m%dT%H%M%SZ").to_string();
            let signed = Request {
                method: ask.method.as_str(),
                url: &url,
                headers: &ask.headers,
                payload: &payload,
                time: &time,
                region: &self.place.region,
            };
            for (name, value) in sigv4::sign(&signed, credentials) {
                request = request.header(name, value);
            }
        }
        request = match &ask.body {
            Body::Empty if ask.method == Method::PUT => request.header("content-length", "0"),
            Body::Empty => request,
            Body::Bytes(bytes) => request.body(Bytes::clone(bytes)),
            Body::File { file, size, .. } => {
                use std::io::{Seek as _, SeekFrom};
                let mut file = file.try_clone()?;
                file.seek(SeekFrom::Start(0))?;
                request
                    .header("content-length", size.to_string())
                    .body(reqwest::Body::wrap_stream(pieces(file)))
            }
        };
        request.send().await.map_err(|error| self.transfer(error))
    }

    async fn checked(&self, answer: Response, action: &'static str) -> Result<Response, PlaceError> {
        if answer.status().is_success() {
            return Ok(answer);
        }
        let status = answer.status().as_u16();
        let mut body = Vec::new();
        let mut answer = answer;
        while let Ok(Some(piece)) = answer.chunk().await {
            body.extend_from_slice(&piece);
            if body.len() > MAX_ERROR {
                break;
            }
        }
        let text = String::from_utf8_lossy(&body);
        let element = |name: &str| {
            let (_, rest) = text.split_once(&format!("<{name}>"))?;
            Some(rest.split('<').next().unwrap_or_default().chars().take(300).collect::<String>())
        };
        let message =
            element("Message").or_else(|| element("Code")).unwrap_or_else(|| "no reason".to_owned());
        Err(PlaceError::Status { host: self.host(), action, status, message })
    }

    fn host(&self) -> String {
        self.base.host_str().unwrap_or_default().to_owned()
    }

    fn transfer(&self, error: reqwest::Error) -> PlaceError {
        PlaceError::Transfer { host: self.host(), source: Box::new(error.without_url()) }
    }
}

impl<'a> Ask<'a> {
    fn new(action: &'static str, method: Method, key: &'a str) -> Self {
        Self { action, method, key, headers: Vec::new(), body: Body::Empty }
    }
}

fn client(host: &str) -> Result<reqwest::Client, PlaceError> {
    let setting = |reason: String| PlaceError::Setting(reason);
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| setting(error.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let builder = reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .http1_only()
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(CONNECT_TIMEOUT)
        .read_timeout(IDLE_TIMEOUT);
    let is_loopback = host == "localhost" || host.parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback());
    let builder = if is_loopback { builder.no_proxy() } else { builder };
    builder.build().map_err(|error| setting(error.to_string()))
}
