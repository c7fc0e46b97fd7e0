//! `ADD` of a URL: one file, fetched with bounds, verified if a checksum is given, and not fetched again while the
//! server says that it is the same.
//! Owns what the attributes mean and what names a download for good. The transfer is in [`transfer`], what is known
//! of earlier ones in [`kept`]. Must not know graphs. Read [`HttpSource`] first.

mod kept;
mod names;
#[cfg(test)]
mod tests;
mod transfer;

use std::collections::BTreeMap;
use std::sync::Arc;

use stave_oci::Digest;
use stave_solver::JobContext;
use stave_store::{Snapshot, StoreError};

use self::kept::{Kept, Known};
use self::names::safe_name;
use self::transfer::{Answer, SIZE_LIMIT, Transfer};
use super::SourceError;
use super::attributes::number;
use super::image::blocking;
use crate::session::Session;
use crate::step::secret_value;
use crate::worker::Shared;

/// Mode when the definition gives none.
const DEFAULT_MODE: u32 = 0o600;

/// Headers that a definition may set.
const OWN_HEADERS: [&str; 2] = ["accept", "user-agent"];

/// What to fetch, and how the file is to look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HttpSource {
    url: String,
    checksum: Option<Digest>,
    filename: Option<String>,
    mode: u32,
    owner: (u32, u32),
    /// The secret that is the `Authorization` header.
    auth_secret: Option<String>,
    headers: BTreeMap<String, String>,
}

/// What a download turned out to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpPin {
    /// The content.
    pub digest: Digest,
    /// Name of the file.
    pub filename: String,
    /// Seconds since the epoch, by the server's `Last-Modified`.
    pub modified: Option<i64>,
    /// The file.
    pub snapshot: Snapshot,
}

/// Why a URL was not fetched.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// No client could be made.
    #[error("TLS cannot be set up: {0}")]
    Tls(String),
    /// No answer, or it broke off.
    #[error(transparent)]
    Transfer(#[from] reqwest::Error),
    /// An answer that is no success.
    #[error("invalid response status {0}")]
    Status(u16),
    /// It does not fit into the store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// More bytes than allowed.
    #[error("more than {SIZE_LIMIT} bytes")]
    TooLarge,
    /// Other content than promised.
    #[error("digest mismatch for {url}: {actual} (expected: {expected})")]
    Checksum {
        /// The address without credentials.
        url: String,
        /// From the definition.
        expected: Digest,
        /// Of what arrived.
        actual: Digest,
    },
    /// The secret that authenticates.
    #[error("secret {id}: {fault}")]
    Secret {
        /// Its id.
        id: String,
        /// What is wrong with it.
        fault: String,
    },
    /// Something that is asked for and not checked would be worse than nothing.
    #[error("the attribute `{0}` of http sources is not supported yet")]
    Unsupported(String),
    /// The file could not be written.
    #[error("keeping the file")]
    Write(#[from] std::io::Error),
}

impl HttpSource {
    /// Reads the attributes of a source op (`http.checksum`, `http.filename`, `http.perm`, `http.uid`, `http.gid`,
    /// `http.authheadersecret`, `http.header.*`).
    pub(crate) fn new(url: &str, attributes: &BTreeMap<String, String>) -> Result<Self, SourceError> {
        let invalid =
            |name: &str, value: &str| SourceError::Attribute { name: name.into(), value: value.into() };
        let number = |name: &str, default: u32| match attributes.get(name) {
            Some(value) => number(value).ok_or_else(|| invalid(name, value)),
            None => Ok(default),
        };
        let text = |name: &str| attributes.get(name).filter(|value| !value.is_empty()).cloned();
        let checksum = match text("http.checksum") {
            Some(value) => Some(value.parse().map_err(|_| invalid("http.checksum", &value))?),
            None => None,
        };
        let filename = text("http.filename");
        if let Some(name) = filename.as_ref().filter(|name| safe_name(name).is_none()) {
            return Err(invalid("http.filename", name));
        }
        let mut headers = BTreeMap::new();
        for (name, value) in attributes {
            if name.starts_with("http.sig.") {
                let source = HttpError::Unsupported(name.clone());
                return Err(SourceError::Http { url: shown(url), source });
            }
            let Some(header) = name.strip_prefix("http.header.").map(str::to_ascii_lowercase) else {
                continue;
            };
            if OWN_HEADERS.contains(&header.as_str()) {
                headers.insert(header, value.clone());
            }
        }
        Ok(Self {
            url: url.to_owned(),
            checksum,
            filename,
            mode: number("http.perm", DEFAULT_MODE)?,
            owner: (number("http.uid", 0)?, number("http.gid", 0)?),
            auth_secret: text("http.authheadersecret"),
            headers,
        })
    }

    /// The address without credentials and query, for messages.
    pub(crate) fn shown(&self) -> String {
        shown(&self.url)
    }

    /// Whether the definition says what the content is: then nobody needs to be asked before it is needed.
    pub(crate) fn is_pinned(&self) -> bool {
        self.checksum.is_some()
    }

    /// What names the file for good.
    pub(crate) fn key(&self, pin: &HttpPin) -> String {
        let HttpPin { digest, filename, modified, snapshot: _ } = pin;
        match modified {
            Some(seconds) => format!("{digest} {filename} {seconds}"),
            None => format!("{digest} {filename}"),
        }
    }

    /// Finds out what the address holds now, and brings it here unless it is here already. An answer holds as long
    /// as its session.
    pub(crate) async fn pin(
        &self,
        shared: &Arc<Shared>,
        cx: &JobContext<Session>,
    ) -> Result<HttpPin, SourceError> {
        let identity = self.identity();
        if let Some(pin) = cx.session.pins.http(&identity) {
            let (store, snapshot) = (shared.store.clone(), pin.snapshot.clone());
            if blocking(move || store.exists(&snapshot)).await? {
                return Ok(pin);
            }
        }
        let pin = tokio::select! {
            pin = self.bring(&identity, shared, cx) => pin?,
            () = cx.cancel.cancelled() => return Err(SourceError::Cancelled),
        };
        cx.session.pins.set_http(identity, pin.clone());
        Ok(pin)
    }

    async fn bring(
        &self,
        identity: &str,
        shared: &Arc<Shared>,
        cx: &JobContext<Session>,
    ) -> Result<HttpPin, SourceError> {
        let failed = |source| SourceError::Http { url: self.shown(), source };
        let kept = Kept::open(&self.shown(), identity, shared, cx).await?;
        let known = kept.known(shared).await?;
        if let Some(known) = known.as_ref().filter(|known| self.checksum.as_ref() == Some(&known.digest)) {
            return Ok(known.pin());
        }
        let transfer = Transfer {
            source: self,
            authorization: self.authorization(&cx.session).map_err(failed)?,
            events: &cx.events,
        };
        let answer = transfer.ask(known.as_ref()).await.map_err(failed)?;
        let known: Known = match (answer, known) {
            (Answer::Same, Some(known)) => known,
            (Answer::Same, None) => return Err(failed(HttpError::Status(304))),
            (Answer::New(response), _) => transfer.keep(response, shared).await?,
        };
        if let Some(expected) = self.checksum.as_ref().filter(|expected| **expected != known.digest) {
            let (expected, actual) = (expected.clone(), known.digest);
            return Err(failed(HttpError::Checksum { url: self.shown(), expected, actual }));
        }
        kept.set(&known).await?;
        Ok(known.pin())
    }

    /// Everything that makes a request and its file what they are.
    pub(super) fn identity(&self) -> String {
        let Self { url, checksum, filename, mode, owner, auth_secret, headers } = self;
        let text = format!("{url:?} {checksum:?} {filename:?} {mode} {owner:?} {auth_secret:?} {headers:?}");
        blake3::hash(text.as_bytes()).to_hex()[..32].to_owned()
    }

    /// What authenticates: the secret that the definition names, else one that is kept for the host.
    fn authorization(&self, session: &Session) -> Result<Option<String>, HttpError> {
        if let Some(id) = &self.auth_secret {
            return self.header_of(session, id, false);
        }
        let parsed = url::Url::parse(&self.url).ok();
        let Some(host) = parsed.as_ref().and_then(url::Url::host_str) else { return Ok(None) };
        let [header, token] = host_secrets(host);
        if let Some(header) = self.header_of(session, &header, true)? {
            return Ok(Some(header));
        }
        let token = self.header_of(session, &token, true)?;
        Ok(token.map(|token| format!("Bearer {token}")))
    }

    fn header_of(&self, session: &Session, id: &str, optional: bool) -> Result<Option<String>, HttpError> {
        let fault = |fault: String| HttpError::Secret { id: id.to_owned(), fault };
        let value = secret_value(session, id, optional).map_err(|error| {
            // The id is said once.
            let text = error.to_string();
            fault(text.strip_prefix(&format!("secret {id}: ")).unwrap_or(&text).to_owned())
        })?;
        if value.is_none() && optional {
            return Ok(None);
        }
        let text = value.and_then(|value| String::from_utf8(value).ok());
        let text = text.map(|text| text.trim_end_matches(['\r', '\n']).to_owned());
        match text.filter(|text| !text.contains(|letter: char| letter.is_control())) {
            Some(text) => Ok(Some(text)),
            None => Err(fault("cannot be an HTTP header".to_owned())),
        }
    }
}

/// The ids of the secrets that may be kept for a host: a whole header, and a bearer's token.
pub fn host_secrets(host: &str) -> [String; 2] {
    [format!("HTTP_AUTH_HEADER_{host}"), format!("HTTP_AUTH_TOKEN_{host}")]
}

/// An address without credentials and query.
fn shown(url: &str) -> String {
    match url::Url::parse(url) {
        Ok(mut parsed) => {
            let cleared = parsed.set_username("").and_then(|()| parsed.set_password(None));
            if cleared.is_err() {
                return String::new();
            }
            parsed.set_query(None);
            parsed.to_string()
        }
        Err(_) => url.split(['?', '@']).next_back().unwrap_or_default().to_owned(),
    }
}
