//! `ADD` of a URL: one file, fetched with bounds, verified if a checksum is given.
//! Owns what the response says about name and time. Must not know the store: bytes go to a writer.
//! Read [`HttpSource`] first.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures::StreamExt as _;
use stave_oci::{Digest, Hasher};
use tokio_util::sync::CancellationToken;

use super::SourceError;

/// Redirects followed, as curl and Go do.
const REDIRECT_LIMIT: usize = 10;

/// Bytes of one response.
const SIZE_LIMIT: u64 = 64 << 30;

/// Seconds without any byte.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// Time to connect.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// Bytes of a file name.
const NAME_LIMIT: usize = 255;

/// Name when neither the URL nor the response has one.
const DEFAULT_NAME: &str = "download";

/// Mode when the definition gives none.
const DEFAULT_MODE: u32 = 0o600;

/// What to fetch, and how the file is to look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HttpSource {
    pub url: String,
    pub checksum: Option<Digest>,
    pub filename: Option<String>,
    pub mode: u32,
    pub owner: (u32, u32),
}

/// What arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fetched {
    /// Name of the file.
    pub filename: String,
    /// Seconds since the epoch, by the server's `Last-Modified`.
    pub modified: Option<i64>,
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
    #[error("the server answered {0}")]
    Status(u16),
    /// More bytes than allowed.
    #[error("more than {SIZE_LIMIT} bytes")]
    TooLarge,
    /// Other content than promised.
    #[error("digest mismatch: expected {expected}, got {actual}")]
    Checksum {
        /// From the definition.
        expected: Digest,
        /// Of what arrived.
        actual: Digest,
    },
    /// The file could not be written.
    #[error("keeping the file")]
    Write(#[from] std::io::Error),
}

impl HttpSource {
    /// Reads the attributes of a source op (`http.checksum`, `http.filename`, `http.perm`, `http.uid`, `http.gid`).
    pub(crate) fn new(url: &str, attributes: &BTreeMap<String, String>) -> Result<Self, SourceError> {
        let invalid =
            |name: &str, value: &str| SourceError::Attribute { name: name.into(), value: value.into() };
        let number = |name: &str, radix: u32, default: u32| match attributes.get(name) {
            Some(value) => {
                let digits = if radix == 8 { value.trim_start_matches("0o") } else { value };
                u32::from_str_radix(digits, radix).map_err(|_| invalid(name, value))
            }
            None => Ok(default),
        };
        let checksum = match attributes.get("http.checksum") {
            Some(value) => Some(value.parse().map_err(|_| invalid("http.checksum", value))?),
            None => None,
        };
        let filename = attributes.get("http.filename").filter(|name| !name.is_empty()).cloned();
        if let Some(name) = &filename
            && safe_name(name).is_none()
        {
            return Err(invalid("http.filename", name));
        }
        let mode = number("http.perm", 8, DEFAULT_MODE)?;
        let owner = (number("http.uid", 10, 0)?, number("http.gid", 10, 0)?);
        Ok(Self { url: url.to_owned(), checksum, filename, mode, owner })
    }

    /// Fetches into a file.
    pub(crate) async fn fetch(
        &self,
        into: &mut File,
        cancel: &CancellationToken,
    ) -> Result<Fetched, SourceError> {
        tokio::select! {
            fetched = self.transfer(into) => {
                fetched.map_err(|source| SourceError::Http { url: self.shown(), source })
            }
            () = cancel.cancelled() => Err(SourceError::Cancelled),
        }
    }

    async fn transfer(&self, into: &mut File) -> Result<Fetched, HttpError> {
        let response = client()?.get(&self.url).send().await.map_err(reqwest::Error::without_url)?;
        if !response.status().is_success() {
            return Err(HttpError::Status(response.status().as_u16()));
        }
        let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
        let filename = self
            .filename
            .clone()
            .or_else(|| header("content-disposition").and_then(disposition_name))
            .or_else(|| url_name(response.url().path()))
            .unwrap_or_else(|| DEFAULT_NAME.to_owned());
        let modified = header("last-modified").and_then(http_date);
        let mut hasher =
            Hasher::new(self.checksum.as_ref().map_or(stave_oci::Algorithm::Sha256, Digest::algorithm));
        let mut size = 0;
        let mut body = response.bytes_stream();
        while let Some(piece) = body.next().await {
            let piece = piece.map_err(reqwest::Error::without_url)?;
            size += piece.len() as u64;
            if size > SIZE_LIMIT {
                return Err(HttpError::TooLarge);
            }
            hasher.update(&piece);
            into.write_all(&piece)?;
        }
        let actual = hasher.finish();
        match &self.checksum {
            Some(expected) if *expected != actual => {
                Err(HttpError::Checksum { expected: expected.clone(), actual })
            }
            _ => Ok(Fetched { filename, modified }),
        }
    }

    /// The URL without credentials and query.
    fn shown(&self) -> String {
        match url::Url::parse(&self.url) {
            Ok(mut url) => {
                let _ = url.set_username("");
                let _ = url.set_password(None);
                url.set_query(None);
                url.to_string()
            }
            Err(_) => self.url.clone(),
        }
    }
}

fn client() -> Result<reqwest::Client, HttpError> {
    static CLIENT: OnceLock<reqwest::Client> = OnceLock::new();
    if let Some(client) = CLIENT.get() {
        return Ok(client.clone());
    }
    let tls = |error: &dyn std::fmt::Display| HttpError::Tls(error.to_string());
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let config =
        rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| tls(&error))?
            .with_root_certificates(roots)
            .with_no_client_auth();
    let client = reqwest::Client::builder()
        .tls_backend_preconfigured(config)
        .redirect(reqwest::redirect::Policy::limited(REDIRECT_LIMIT))
        .connect_timeout(CONNECT_TIMEOUT)
        .read_timeout(IDLE_TIMEOUT)
        .user_agent(concat!("stave/", env!("CARGO_PKG_VERSION")))
        .build()?;
    Ok(CLIENT.get_or_init(|| client).clone())
}

/// A name that is one component and can be a file.
fn safe_name(name: &str) -> Option<String> {
    let base = Path::new(name).file_name()?.to_str()?;
    (base == name && name.len() <= NAME_LIMIT && !name.contains('\0')).then(|| base.to_owned())
}

fn url_name(path: &str) -> Option<String> {
    let base = path.rsplit('/').next().filter(|base| !base.is_empty())?;
    safe_name(&percent_decode(base))
}

fn disposition_name(header: &str) -> Option<String> {
    let value = header.split(';').map(str::trim).find_map(|part| part.strip_prefix("filename="))?;
    // Only the last component counts: a server must not choose directories.
    safe_name(value.trim_matches('"').rsplit(['/', '\\']).next()?)
}

fn percent_decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = text.get(at + 1..at + 3).and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match (bytes[at], hex) {
            (b'%', Some(byte)) => {
                decoded.push(byte);
                at += 3;
            }
            (byte, _) => {
                decoded.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

/// `Sun, 06 Nov 1994 08:49:37 GMT` as seconds since the epoch.
fn http_date(text: &str) -> Option<i64> {
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let mut words = text.split_once(", ")?.1.split([' ', ':']);
    let day: i64 = words.next()?.parse().ok()?;
    let name = words.next()?;
    let month = i64::try_from(MONTHS.iter().position(|month| *month == name)?).ok()? + 1;
    let year: i64 = words.next()?.parse().ok()?;
    let mut clock = || words.next()?.parse::<i64>().ok();
    let (hours, minutes, seconds) = (clock()?, clock()?, clock()?);
    if !(1..=31).contains(&day) || !(0..=9999).contains(&year) {
        return None;
    }
    // Days since the epoch with years that begin in March, so that the leap day is the last.
    let shifted = if month <= 2 { year - 1 } else { year };
    let era = shifted.div_euclid(400);
    let year_of_era = shifted.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let days =
        era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468;
    Some(days * 86_400 + hours * 3600 + minutes * 60 + seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        assert_eq!(http_date("Sun, 06 Nov 1994 08:49:37 GMT"), Some(784_111_777));
        assert_eq!(http_date("Thu, 01 Jan 1970 00:00:00 GMT"), Some(0));
        assert_eq!(http_date("Tue, 29 Feb 2028 23:59:59 GMT"), Some(1_835_481_599));
        assert_eq!(http_date("yesterday"), None);
    }

    #[test]
    fn names_are_single_components() {
        assert_eq!(url_name("/a/b.tar.gz"), Some("b.tar.gz".into()));
        assert_eq!(url_name("/a/b%20c"), Some("b c".into()));
        assert_eq!(url_name("/a/..%2f..%2fetc"), None);
        assert_eq!(url_name("/a/.."), None);
        assert_eq!(url_name("/"), None);
        assert_eq!(disposition_name("attachment; filename=\"x.deb\""), Some("x.deb".into()));
        assert_eq!(disposition_name("attachment; filename=\"../../x\""), Some("x".into()));
        assert_eq!(disposition_name("attachment; filename=\"..\""), None);
        assert_eq!(disposition_name("inline"), None);
    }

    #[test]
    fn attributes() {
        let attribute = |name: &str, value: &str| BTreeMap::from([(name.to_owned(), value.to_owned())]);
        let source = HttpSource::new("http://h/x", &attribute("http.perm", "0755")).expect("valid");
        assert_eq!((source.mode, source.owner, source.checksum), (0o755, (0, 0), None));
        for (name, value) in
            [("http.perm", "9"), ("http.uid", "x"), ("http.checksum", "md5:0"), ("http.filename", "a/b")]
        {
            assert!(HttpSource::new("http://h/x", &attribute(name, value)).is_err(), "{name}");
        }
    }
}
