//! One request and its answer: authorization, redirects, retries, and what an answer's status means.
//!
//! Owns the rules that hold for every request: credentials stay with the host they are for, waiting is bounded,
//! bodies of answers are bounded. Start with [`Exchange`] and its `send`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{AUTHORIZATION, CONTENT_LENGTH, HeaderMap, HeaderValue, LOCATION};
use reqwest::{Method, Response, StatusCode};
use url::Url;

use crate::answer::Answer;
use crate::auth::ScopeSet;
use crate::client::Shared;
use crate::endpoint::{Endpoint, Scheme, Speaks};
use crate::error::{ErrorKind, RedirectFault};
use crate::keychain::Credential;
use crate::limits::{Limits, MAX_HEADER_VALUE_BYTES, MAX_REDIRECTS, MAX_SERVER_MESSAGE_CHARS};
use crate::transport::{connection_fault, is_broken_off, is_not_tls};

/// How often a host that refuses connections is tried: it is more likely down than busy.
const CONNECT_ATTEMPTS: u32 = 3;

/// Talking to one endpoint with one scope.
#[derive(Clone)]
pub(crate) struct Exchange {
    pub(crate) shared: Arc<Shared>,
    pub(crate) endpoint: Endpoint,
    pub(crate) scope: ScopeSet,
    /// A credential to use instead of the keychain's: a login tries it before it is stored.
    pub(crate) trial: Option<Credential>,
    scheme: Scheme,
}

/// One request, without its authorization.
#[derive(Clone)]
pub(crate) struct Call {
    pub(crate) method: Method,
    pub(crate) url: Url,
    pub(crate) headers: HeaderMap,
    pub(crate) payload: Payload,
    /// The answer is checked against a digest, so that it does not matter who sends it.
    pub(crate) is_verified: bool,
}

/// What a request carries.
#[derive(Clone)]
pub(crate) enum Payload {
    Empty,
    Bytes(Bytes),
    /// Bytes that are not sent to wherever a redirect points.
    Secret(Bytes),
    /// Made afresh for each attempt. The length must be exact; without one, the body ends where it ends.
    Stream {
        length: Option<u64>,
        open: Arc<dyn Fn() -> reqwest::Body + Send + Sync>,
        /// Bytes given to the connection so far.
        handed_out: Arc<AtomicU64>,
    },
}

/// A failed attempt, and how long the server asks to wait before the next.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) kind: ErrorKind,
    pub(crate) retry_after: Option<Duration>,
}

impl From<ErrorKind> for Failure {
    fn from(kind: ErrorKind) -> Self {
        Self { kind, retry_after: None }
    }
}

impl Call {
    pub(crate) fn get(url: Url) -> Self {
        Self::new(Method::GET, url)
    }

    pub(crate) fn new(method: Method, url: Url) -> Self {
        Self { method, url, headers: HeaderMap::new(), payload: Payload::Empty, is_verified: false }
    }
}

impl Exchange {
    /// Finds out how the endpoint is spoken to, if that is not known.
    pub(crate) async fn open(
        shared: &Arc<Shared>,
        endpoint: Endpoint,
        scope: ScopeSet,
    ) -> Result<Self, ErrorKind> {
        let known = match endpoint.speaks {
            Speaks::Only(scheme) => Some(scheme),
            Speaks::HttpsElseHttp => shared.known_scheme(&endpoint.host),
        };
        let scheme = known.unwrap_or(Scheme::Https);
        let mut exchange = Self { shared: Arc::clone(shared), endpoint, scope, trial: None, scheme };
        if known.is_none() {
            exchange.scheme = exchange.probe().await?;
        }
        Ok(exchange)
    }

    /// How the endpoint is spoken to. A host that does not answer is asked again: what it speaks is not guessed, for a
    /// wrong guess would fail each retry of the request for another reason.
    async fn probe(&self) -> Result<Scheme, ErrorKind> {
        let client = self.shared.transport(&self.endpoint.key)?.own.clone();
        let patience = self.limits().connect_timeout + self.limits().idle_timeout;
        let mut attempt = 1;
        loop {
            let asked = client.get(self.endpoint.url(Scheme::Https, "")?).send();
            let scheme = match tokio::time::timeout(patience, asked).await {
                Ok(Ok(_)) => Scheme::Https,
                Ok(Err(error)) if is_not_tls(&error) => Scheme::Http,
                Ok(Err(error)) if is_broken_off(&error) && self.answers_plainly(&client, patience).await => {
                    Scheme::Http
                }
                Ok(Err(error)) => {
                    let fault = connection_fault(&error, self.limits().connect_timeout);
                    self.pause(&mut attempt, fault.into()).await?;
                    continue;
                }
                Err(_) => {
                    self.pause(&mut attempt, ErrorKind::Timeout(patience).into()).await?;
                    continue;
                }
            };
            self.shared.learn_scheme(&self.endpoint.host, scheme);
            return Ok(scheme);
        }
    }

    /// Whether it speaks http. One that wants TLS says so with the status of a bad request.
    async fn answers_plainly(&self, client: &reqwest::Client, patience: Duration) -> bool {
        let Ok(url) = self.endpoint.url(Scheme::Http, "") else { return false };
        let asked = tokio::time::timeout(patience, client.get(url).send()).await;
        matches!(asked, Ok(Ok(answer)) if answer.status() != StatusCode::BAD_REQUEST)
    }

    pub(crate) fn url(&self, path: &str) -> Result<Url, ErrorKind> {
        self.endpoint.url(self.scheme, path)
    }

    /// Whether the endpoint is spoken to in the clear.
    pub(crate) fn is_plain(&self) -> bool {
        self.scheme == Scheme::Http
    }

    fn limits(&self) -> &Limits {
        &self.shared.config.limits
    }

    /// Sends until there is an answer that another attempt would not change, and gives that, whatever its status.
    pub(crate) async fn send(&self, call: &Call) -> Result<Answer, ErrorKind> {
        let mut attempt = 1;
        loop {
            let failure = match self.send_once(call).await {
                Ok(answer) if is_transient(answer.response.status()) => answer.fault().await,
                Ok(answer) => return Ok(answer),
                Err(failure) => failure,
            };
            self.pause(&mut attempt, failure).await?;
        }
    }

    /// The same to an address that a manifest names: no credential is shown, whoever asks for one.
    pub(crate) async fn send_anonymously(&self, call: &Call) -> Result<Answer, ErrorKind> {
        let home = self.url("")?;
        let mut attempt = 1;
        loop {
            let failure = match self.follow(call, None, &home).await {
                Ok(answer) if is_transient(answer.response.status()) => answer.fault().await,
                Ok(answer) => return Ok(answer),
                Err(failure) => failure,
            };
            self.pause(&mut attempt, failure).await?;
        }
    }

    /// Waits for the next attempt, or gives the failure back if there is to be none.
    pub(crate) async fn pause(&self, attempt: &mut u32, failure: Failure) -> Result<(), ErrorKind> {
        let limits = self.limits();
        let Failure { kind, retry_after } = failure;
        let allowed = match &kind {
            ErrorKind::Connect { is_certificate: true, .. } => 1,
            ErrorKind::Connect { .. } => limits.attempts.min(CONNECT_ATTEMPTS),
            ErrorKind::Timeout(_) | ErrorKind::Interrupted(_) | ErrorKind::TooManyRequests { .. } => {
                limits.attempts
            }
            ErrorKind::Status(fault) if is_transient_code(fault.code) => limits.attempts,
            _ => 1,
        };
        *attempt += 1;
        if *attempt > allowed {
            return Err(kind);
        }
        let wait = match retry_after {
            Some(asked) if asked > limits.retry_after_ceiling => return Err(kind),
            Some(asked) => asked,
            None => limits.backoff_before(*attempt),
        };
        tracing::debug!(host = self.endpoint.host, reason = %kind, ?wait, attempt = *attempt, "trying again");
        tokio::time::sleep(wait).await;
        Ok(())
    }

    /// One attempt: authorized as far as known, and once more if the host asks for (fresh) authorization.
    pub(crate) async fn send_once(&self, call: &Call) -> Result<Answer, Failure> {
        let home = self.url("")?;
        let sent = self.authorization().await?;
        let mut answer = self.follow(call, sent.as_ref().map(|sent| &sent.header), &home).await?;
        answer.note(sent.as_ref());
        if answer.response.status() != StatusCode::UNAUTHORIZED || !answer.is_own {
            return Ok(answer);
        }
        // Whoever waits for a token must not hold up others, who may be fetching it.
        drop(answer.turn.take());
        let Some(shown) = self.answer(answer.response.headers(), sent.as_ref()).await? else {
            return Ok(answer);
        };
        let mut answer = self.follow(call, Some(&shown.header), &home).await?;
        answer.note(Some(&shown));
        Ok(answer)
    }

    /// Sends a request and follows redirects. `authorization` is for the origin of `home` and goes nowhere else.
    pub(crate) async fn follow(
        &self,
        call: &Call,
        authorization: Option<&HeaderValue>,
        home: &Url,
    ) -> Result<Answer, Failure> {
        let mut url = call.url.clone();
        let mut is_trusted = true;
        let turn = self.shared.turn(&self.endpoint.host, &self.endpoint.key).await;
        for _ in 0..=MAX_REDIRECTS {
            is_trusted = is_trusted && same_origin(&url, home);
            let mut request = self.client_for(&url)?.request(call.method.clone(), url.clone());
            request = request.headers(call.headers.clone());
            if let Some(header) = authorization.filter(|_| is_trusted) {
                request = request.header(AUTHORIZATION, header.clone());
            }
            let response = self.transmit(request, &call.payload).await?;
            let Some(next) = redirect(&response, call, &url)? else {
                return Ok(Answer {
                    response,
                    is_own: is_trusted,
                    url,
                    method: call.method.clone(),
                    authenticated: false,
                    idle: self.limits().idle_timeout,
                    turn,
                });
            };
            url = next;
        }
        Err(ErrorKind::from(RedirectFault::TooMany(MAX_REDIRECTS)).into())
    }

    fn client_for(&self, url: &Url) -> Result<reqwest::Client, ErrorKind> {
        if same_origin(url, &self.url("")?) {
            return Ok(self.shared.transport(&self.endpoint.key)?.own.clone());
        }
        let host = authority(url);
        if self.shared.config.registries.0.contains_key(&host) {
            return Ok(self.shared.transport(&host)?.own.clone());
        }
        Ok(self.shared.transport(&self.endpoint.key)?.foreign.clone())
    }

    async fn transmit(
        &self,
        request: reqwest::RequestBuilder,
        payload: &Payload,
    ) -> Result<Response, Failure> {
        let limits = self.limits();
        let patience = limits.connect_timeout + limits.idle_timeout;
        let (request, upload) = match payload {
            Payload::Empty => (request, None),
            Payload::Bytes(bytes) | Payload::Secret(bytes) => (request.body(bytes.clone()), None),
            Payload::Stream { length: Some(length), open, handed_out } => {
                (request.header(CONTENT_LENGTH, *length).body(open()), Some((*length, handed_out)))
            }
            Payload::Stream { length: None, open, handed_out } => {
                (request.body(open()), Some((u64::MAX, handed_out)))
            }
        };
        let sending = request.send();
        tokio::pin!(sending);
        let (mut before, mut silence) = (0, Duration::ZERO);
        loop {
            match tokio::time::timeout(patience, &mut sending).await {
                Ok(Ok(response)) => return Ok(response),
                Ok(Err(error)) => return Err(connection_fault(&error, limits.connect_timeout).into()),
                Err(_) => silence += patience,
            }
            // An upload takes as long as it takes while bytes move, and then the registry may have to copy it.
            let (allowed, now) = match upload {
                None => (patience, 0),
                Some((length, handed_out)) => match handed_out.load(Ordering::Relaxed) {
                    now if now >= length => (limits.commit_timeout, now),
                    now => (patience, now),
                },
            };
            if now != before {
                (before, silence) = (now, Duration::ZERO);
            } else if silence >= allowed {
                return Err(ErrorKind::Timeout(silence).into());
            }
        }
    }
}

/// Where an answer sends us, `None` if it is no redirect.
fn redirect(response: &Response, call: &Call, from: &Url) -> Result<Option<Url>, ErrorKind> {
    let is_reading = matches!(call.method, Method::GET | Method::HEAD);
    let follows = match response.status() {
        StatusCode::TEMPORARY_REDIRECT | StatusCode::PERMANENT_REDIRECT => {
            !matches!(call.payload, Payload::Secret(_))
        }
        StatusCode::MOVED_PERMANENTLY | StatusCode::FOUND | StatusCode::SEE_OTHER => is_reading,
        _ => false,
    };
    if !follows {
        return Ok(None);
    }
    let next = location(response.headers(), from).ok_or(RedirectFault::Location)?;
    // By digest it does not matter who answers; a tag's answer and our uploads must not travel in the clear.
    if from.scheme() == "https" && next.scheme() == "http" && !(is_reading && call.is_verified) {
        return Err(RedirectFault::Downgrade(shown(&next)).into());
    }
    Ok(Some(next))
}

/// A `Location` header as an http(s) address, relative to where it came from.
pub(crate) fn location(headers: &HeaderMap, from: &Url) -> Option<Url> {
    let text = headers.get(LOCATION).filter(|value| value.len() <= MAX_HEADER_VALUE_BYTES)?.to_str().ok()?;
    let mut url = from.join(text).ok()?;
    if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
        return None;
    }
    url.set_username("").and_then(|()| url.set_password(None)).ok()?;
    url.set_fragment(None);
    Some(url)
}

pub(crate) fn same_origin(one: &Url, other: &Url) -> bool {
    one.origin() == other.origin()
}

/// `host[:port]` as endpoints write it.
fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

/// An address for people: without query, where signatures stand.
pub(crate) fn shown(url: &Url) -> String {
    let path: String = url.path().chars().take(MAX_SERVER_MESSAGE_CHARS).collect();
    format!("{}://{}{path}", url.scheme(), authority(url))
}

fn is_transient(status: StatusCode) -> bool {
    is_transient_code(status.as_u16())
}

/// 501 and 505 say that it will never work.
fn is_transient_code(code: u16) -> bool {
    matches!(code, 408 | 429 | 500..=599) && !matches!(code, 501 | 505)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_shown_without_secrets() {
        let url = Url::parse("https://u:p@h.example:444/a/b?X-Amz-Signature=s#f").expect("a URL");
        assert_eq!(shown(&url), "https://h.example:444/a/b");
    }

    #[test]
    fn locations_are_relative_to_where_they_came_from() {
        let from = Url::parse("https://h.example/v2/x/blobs/uploads/").expect("a URL");
        let at = |text: &str| {
            let headers = HeaderMap::from_iter([(LOCATION, HeaderValue::from_str(text).expect("a header"))]);
            location(&headers, &from).map(String::from)
        };
        assert_eq!(at("/u/1?s=2").as_deref(), Some("https://h.example/u/1?s=2"));
        assert_eq!(at("https://u:p@o.example/#x").as_deref(), Some("https://o.example/"));
        assert_eq!(at("file:///etc/passwd"), None);
        assert_eq!(at("gopher://x/"), None);
    }
}
