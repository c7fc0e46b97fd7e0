//! One request and its response: redirects, bounds, and the file that the bytes become.
//! Must not know keys. Read [`Transfer::ask`] first.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures::StreamExt as _;
use reqwest::header::{
    ACCEPT_ENCODING, AUTHORIZATION, HeaderMap, HeaderName, HeaderValue, IF_MODIFIED_SINCE, IF_NONE_MATCH,
};
use reqwest::redirect::{Attempt, Policy};
use rustix::fs::{Mode, OFlags};
use stave_oci::{Algorithm, Digest, Hasher};
use stave_solver::EventSubscription;
use stave_store::{LayerRoom, Snapshot};

use super::kept::Known;
use super::names::{disposition_name, http_date, url_name};
use super::{HttpError, HttpSource};
use crate::file::place::Stamp;
use crate::root::{At as _, RootDir};
use crate::source::SourceError;
use crate::source::image::blocking;
use crate::worker::Shared;

/// Redirects followed, as curl and Go do.
const REDIRECT_LIMIT: usize = 10;

/// Bytes of one response.
pub(super) const SIZE_LIMIT: u64 = 64 << 30;

/// Who asks. Servers that treat builders in a way of their own know BuildKit's name.
const USER_AGENT: &str = concat!("buildkit/v0.29.0 stave/", env!("CARGO_PKG_VERSION"));

/// Without any byte.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// To connect.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// Bytes of an entity tag or a date that are remembered.
const HEADER_LIMIT: usize = 4096;

/// Bytes of the store's room asked for at once.
const ROOM_STEP: u64 = 1 << 20;

/// The only encoding of a body in transit that is understood.
const GZIP: &str = "gzip";

/// Bytes of a body that are decoded at a time: what they become lies in memory.
const DECODED_AT_ONCE: usize = 4 << 10;

/// Name when neither the URL nor the response has one.
const DEFAULT_NAME: &str = "download";

/// Name of the file while its own is not known.
const ASIDE: &str = "download";

/// One request.
pub(super) struct Transfer<'a> {
    pub source: &'a HttpSource,
    /// The `Authorization` header.
    pub authorization: Option<String>,
    pub events: &'a EventSubscription,
}

/// What a server says.
pub(super) enum Answer {
    /// What is known is still so.
    Same,
    /// Here is what there is now.
    New(reqwest::Response),
}

impl Transfer<'_> {
    /// Asks, on the condition that it is not what is known. Of what is known by a tag the head alone is asked first:
    /// some servers send all of it in spite of the condition.
    pub(super) async fn ask(&self, known: Option<&Known>) -> Result<Answer, HttpError> {
        if let Some(tag) = known.and_then(|known| known.etag.as_ref()) {
            let asked = self.client()?.head(&self.source.url).headers(self.headers(known)?).send().await;
            if let Ok(head) = asked {
                let (status, told) = (head.status().as_u16(), header(&head, "etag"));
                let is_same = told.as_ref() == Some(tag) || (told.is_none() && status == 304);
                if matches!(status, 200 | 304) && is_same {
                    return Ok(Answer::Same);
                }
            }
        }
        let response = self.client()?.get(&self.source.url).headers(self.headers(known)?).send().await;
        let response = response.map_err(reqwest::Error::without_url)?;
        let status = response.status().as_u16();
        if status == 304 && known.is_some() {
            return Ok(Answer::Same);
        }
        if !response.status().is_success() {
            return Err(HttpError::Status(status));
        }
        // Some servers ignore the condition, and say by the tag that nothing has changed.
        let tag = header(&response, "etag");
        if tag.is_some() && known.is_some_and(|known| known.etag == tag) {
            return Ok(Answer::Same);
        }
        Ok(Answer::New(response))
    }

    fn headers(&self, known: Option<&Known>) -> Result<HeaderMap, HttpError> {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static(GZIP));
        let value = |text: &str| HeaderValue::from_str(text).ok();
        for (name, text) in &self.source.headers {
            if let (Ok(name), Some(value)) = (HeaderName::from_bytes(name.as_bytes()), value(text)) {
                headers.insert(name, value);
            }
        }
        if let Some(authorization) = &self.authorization {
            let mut value = value(authorization).ok_or_else(|| HttpError::Secret {
                id: self.source.auth_secret.clone().unwrap_or_default(),
                fault: "cannot be an HTTP header".to_owned(),
            })?;
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        let conditions = known.map(|known| match (&known.etag, &known.last_modified) {
            (Some(tag), _) => (IF_NONE_MATCH, tag.as_str()),
            (None, Some(date)) => (IF_MODIFIED_SINCE, date.as_str()),
            (None, None) => (IF_NONE_MATCH, ""),
        });
        if let Some((name, text)) = conditions.filter(|(_, text)| !text.is_empty())
            && let Some(value) = value(text)
        {
            headers.insert(name, value);
        }
        Ok(headers)
    }

    /// The client for what is at stake: an encrypted request may lead to an unencrypted one only if the content is
    /// pinned and nobody's credentials travel.
    fn client(&self) -> Result<reqwest::Client, HttpError> {
        static STRICT: OnceLock<reqwest::Client> = OnceLock::new();
        static PINNED: OnceLock<reqwest::Client> = OnceLock::new();
        let has_login = url::Url::parse(&self.source.url)
            .is_ok_and(|url| !url.username().is_empty() || url.password().is_some());
        let is_secret = has_login || self.authorization.is_some();
        let (place, policy): (_, fn(Attempt<'_>) -> _) = if self.source.is_pinned() && !is_secret {
            (&PINNED, |attempt| follow(attempt, Downgrade::Allow))
        } else {
            (&STRICT, |attempt| follow(attempt, Downgrade::Refuse))
        };
        if let Some(client) = place.get() {
            return Ok(client.clone());
        }
        let client = client(Policy::custom(policy))?;
        Ok(place.get_or_init(|| client).clone())
    }

    /// Writes the body into a layer of its own.
    pub(super) async fn keep(
        &self,
        response: reqwest::Response,
        shared: &Arc<Shared>,
    ) -> Result<Known, SourceError> {
        let source = self.source;
        let filename = source
            .filename
            .clone()
            .or_else(|| header(&response, "content-disposition").as_deref().and_then(disposition_name))
            .or_else(|| url_name(response.url().path()))
            .unwrap_or_else(|| DEFAULT_NAME.to_owned());
        let last_modified = header(&response, "last-modified");
        let modified = last_modified.as_deref().and_then(http_date);
        let etag = header(&response, "etag");
        let description = format!("download of {}", source.shown());
        let layer = {
            let shared = Arc::clone(shared);
            blocking(move || shared.prepare(&Snapshot::scratch(), &description)).await?
        };
        let upper = layer.upper().to_owned();
        let root = RootDir::open(&upper)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let file = rustix::fs::openat(root.fd(), ASIDE, flags, Mode::from_raw_mode(0o600));
        let mut file = File::from(file.at("creating", &upper)?);
        let digest = self.write(response, &mut file, layer.room()).await;
        let digest = digest.map_err(|fault| SourceError::Http { url: source.shown(), source: fault })?;
        // As BuildKit has it: what nobody dates is as old as can be.
        let stamp = Stamp { owner: Some(source.owner), time: Some((modified.unwrap_or(0), 0)) };
        stamp.apply(&file, source.mode).at("setting metadata of", Path::new(&filename))?;
        rustix::fs::renameat(root.fd(), ASIDE, root.fd(), &*filename).at("naming", &upper)?;
        drop((file, root));
        let snapshot = blocking(move || layer.commit()).await?;
        Ok(Known { digest, filename, modified, snapshot, etag, last_modified })
    }

    async fn write(
        &self,
        response: reqwest::Response,
        into: &mut File,
        room: &LayerRoom,
    ) -> Result<Digest, HttpError> {
        let is_encoded =
            header(&response, "content-encoding").is_some_and(|name| name.eq_ignore_ascii_case(GZIP));
        // The length is that of what travels.
        let total = response.content_length().filter(|_| !is_encoded);
        if total.is_some_and(|total| total > SIZE_LIMIT) {
            return Err(HttpError::TooLarge);
        }
        let algorithm = self.source.checksum.as_ref().map_or(Algorithm::Sha256, Digest::algorithm);
        let mut hasher = Hasher::new(algorithm);
        let (mut size, mut asked) = (0, 0);
        let mut decoder = is_encoded.then(|| flate2::write::MultiGzDecoder::new(Vec::new()));
        let mut body = response.bytes_stream();
        while let Some(piece) = body.next().await {
            let piece = piece.map_err(reqwest::Error::without_url)?;
            let step = if is_encoded { DECODED_AT_ONCE } else { piece.len().max(1) };
            for part in piece.chunks(step) {
                let decoded;
                let bytes = match &mut decoder {
                    Some(decoder) => {
                        decoder.write_all(part)?;
                        decoded = std::mem::take(decoder.get_mut());
                        decoded.as_slice()
                    }
                    None => part,
                };
                size += bytes.len() as u64;
                if size > SIZE_LIMIT {
                    return Err(HttpError::TooLarge);
                }
                if size > asked {
                    // Looking what may go takes its time.
                    let (room, wanted) = (room.clone(), (size - asked).max(ROOM_STEP));
                    blocking(move || room.take(wanted)).await?;
                    asked += wanted;
                }
                hasher.update(bytes);
                into.write_all(bytes)?;
            }
            self.events.progress("download", size, total);
        }
        if let Some(decoder) = decoder {
            // What is cut off is an error; nothing is left to be written otherwise.
            let rest = decoder.finish()?;
            hasher.update(&rest);
            into.write_all(&rest)?;
        }
        Ok(hasher.finish())
    }
}

/// A header that is text of a sensible length.
fn header(response: &reqwest::Response, name: &str) -> Option<String> {
    let value = response.headers().get(name)?.to_str().ok()?;
    (!value.is_empty() && value.len() <= HEADER_LIMIT).then(|| value.to_owned())
}

/// Whether encryption may be given up.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Downgrade {
    Allow,
    Refuse,
}

/// A redirect that is refused.
#[derive(Debug, thiserror::Error)]
enum RedirectError {
    #[error("stopped after {REDIRECT_LIMIT} redirects")]
    TooMany,
    #[error(
        "the redirect from https to http is refused: whoever is on the way could change the content; give a checksum"
    )]
    Downgrade,
}

fn follow(attempt: Attempt<'_>, downgrade: Downgrade) -> reqwest::redirect::Action {
    match verdict(attempt.previous(), attempt.url(), downgrade) {
        Ok(()) => attempt.follow(),
        Err(error) => attempt.error(error),
    }
}

fn verdict(previous: &[url::Url], next: &url::Url, downgrade: Downgrade) -> Result<(), RedirectError> {
    if previous.len() >= REDIRECT_LIMIT {
        return Err(RedirectError::TooMany);
    }
    let was_encrypted = previous.iter().any(|url| url.scheme() == "https");
    if downgrade == Downgrade::Refuse && was_encrypted && next.scheme() != "https" {
        return Err(RedirectError::Downgrade);
    }
    Ok(())
}

fn client(policy: Policy) -> Result<reqwest::Client, HttpError> {
    let tls = |error: &dyn std::fmt::Display| HttpError::Tls(error.to_string());
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let config =
        rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| tls(&error))?
            .with_root_certificates(roots)
            .with_no_client_auth();
    Ok(reqwest::Client::builder()
        .tls_backend_preconfigured(config)
        .redirect(policy)
        .connect_timeout(CONNECT_TIMEOUT)
        .read_timeout(IDLE_TIMEOUT)
        .user_agent(USER_AGENT)
        .build()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(previous: &[&str], next: &str, downgrade: Downgrade, expected: bool) {
        let parse = |text: &str| text.parse::<url::Url>().expect("an address");
        let previous: Vec<url::Url> = previous.iter().map(|text| parse(text)).collect();
        assert_eq!(verdict(&previous, &parse(next), downgrade).is_ok(), expected);
    }

    #[test]
    fn encryption_is_not_given_up_on_the_way() {
        check(&["https://a.test"], "https://b.test", Downgrade::Refuse, true);
        check(&["http://a.test"], "http://b.test", Downgrade::Refuse, true);
        check(&["http://a.test"], "https://b.test", Downgrade::Refuse, true);
        check(&["https://a.test"], "http://b.test", Downgrade::Refuse, false);
        check(&["https://a.test", "https://b.test"], "http://c.test", Downgrade::Refuse, false);
        check(&["https://a.test"], "http://b.test", Downgrade::Allow, true);
        check(&["https://a.test"; REDIRECT_LIMIT], "https://b.test", Downgrade::Allow, false);
    }
}
