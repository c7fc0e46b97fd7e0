//! An answer: its bounded body, its headers, and what its status means.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use reqwest::header::{DATE, HeaderMap, HeaderName, RETRY_AFTER};
use reqwest::{Method, Response, StatusCode};
use serde::Deserialize;
use stave_oci::Digest;
use tokio::sync::OwnedSemaphorePermit;
use url::Url;

use crate::auth::{Authorization, Challenge, challenges};
use crate::error::{ErrorKind, ResponseFault, StatusFault};
use crate::limits::{MAX_ERROR_BODY_BYTES, MAX_HEADER_VALUE_BYTES, MAX_SERVER_MESSAGE_CHARS};
use crate::request::{Failure, shown};
use crate::transport::connection_fault;

/// An answer, with what is needed to judge it.
pub(crate) struct Answer {
    pub(crate) response: Response,
    /// Where it came from, after redirects.
    pub(crate) url: Url,
    pub(crate) method: Method,
    pub(crate) authenticated: bool,
    /// Whether it came from the endpoint itself and not from where that redirected to.
    pub(crate) is_own: bool,
    pub(crate) idle: Duration,
    /// The turn at the host, for as long as its body is read.
    pub(crate) turn: Option<OwnedSemaphorePermit>,
}

impl Answer {
    pub(crate) fn note(&mut self, authorization: Option<&Authorization>) {
        self.authenticated = authorization.is_some_and(|shown| shown.authenticated);
    }

    /// The next piece of the body, `None` at its end.
    pub(crate) async fn piece(&mut self) -> Result<Option<Bytes>, ErrorKind> {
        match tokio::time::timeout(self.idle, self.response.chunk()).await {
            Ok(Ok(piece)) => Ok(piece),
            Ok(Err(error)) => Err(connection_fault(&error, self.idle)),
            Err(_) => Err(ErrorKind::Timeout(self.idle)),
        }
    }

    /// The whole body, of at most `limit` bytes; `what` it is, for the error.
    pub(crate) async fn body(mut self, what: &'static str, limit: u64) -> Result<Bytes, ErrorKind> {
        if self.response.content_length().is_some_and(|length| length > limit) {
            return Err(ErrorKind::TooLarge { what, limit });
        }
        let mut body = Vec::new();
        while let Some(piece) = self.piece().await? {
            if (body.len() + piece.len()) as u64 > limit {
                return Err(ErrorKind::TooLarge { what, limit });
            }
            body.extend_from_slice(&piece);
        }
        Ok(body.into())
    }

    /// What an answer that is no success means.
    pub(crate) async fn fault(self) -> Failure {
        let status = self.response.status();
        let (method, url, authenticated) = (self.method.to_string(), shown(&self.url), self.authenticated);
        let retry_after = wait_asked_for(self.response.headers(), SystemTime::now());
        let refused = challenges(self.response.headers()).into_iter().find_map(|challenge| match challenge {
            Challenge::Bearer(bearer) => bearer.error,
            Challenge::Basic => None,
        });
        let message = self.message().await;
        let kind = match status {
            StatusCode::NOT_FOUND => ErrorKind::NotFound,
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                let message = if message.is_empty() { clean(&refused.unwrap_or_default()) } else { message };
                ErrorKind::AccessDenied { authenticated, message }
            }
            StatusCode::TOO_MANY_REQUESTS => ErrorKind::TooManyRequests { retry_after, message },
            _ => ErrorKind::Status(Box::new(StatusFault {
                method,
                url,
                status: status.to_string(),
                code: status.as_u16(),
                message,
            })),
        };
        Failure { kind, retry_after }
    }

    /// What the body of an error answer says, bounded and cleaned. Its failures do not matter: the status is known.
    pub(crate) async fn message(mut self) -> String {
        let mut body = Vec::new();
        while let Ok(Some(piece)) = self.piece().await {
            body.extend_from_slice(&piece);
            if body.len() as u64 > MAX_ERROR_BODY_BYTES {
                break;
            }
        }
        server_message(&body)
    }

    /// A header as text.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let value = self.response.headers().get(name)?;
        value.to_str().ok().filter(|text| text.len() <= MAX_HEADER_VALUE_BYTES)
    }

    /// The `Docker-Content-Digest` header, which need not be there but must be a digest if it is.
    pub(crate) fn digest_header(&self) -> Result<Option<Digest>, ErrorKind> {
        let text = self.header("docker-content-digest").filter(|text| !text.is_empty());
        let parsed = text.map(|text| text.trim().parse()).transpose();
        parsed.map_err(|_| ResponseFault::DigestHeader.into())
    }
}

/// `Retry-After`, in seconds or as a date (RFC 9110, 10.2.3). A date counts from the server's own `Date`, so that its
/// clock and ours need not agree; from `now` if it does not say. What lies in the past is no wait.
fn wait_asked_for(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = |name: &HeaderName| headers.get(name)?.to_str().ok().map(str::trim);
    let asked = text(&RETRY_AFTER)?;
    if let Ok(seconds) = asked.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let until = httpdate::parse_http_date(asked).ok()?;
    let from = text(&DATE).and_then(|date| httpdate::parse_http_date(date).ok()).unwrap_or(now);
    Some(until.duration_since(from).unwrap_or_default())
}

#[derive(Deserialize)]
struct ErrorBody {
    #[serde(default)]
    errors: Vec<ErrorEntry>,
    #[serde(default)]
    details: Option<String>,
}

#[derive(Deserialize)]
struct ErrorEntry {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
}

/// The specification's error body as docker prints it: `denied: requested access to the resource is denied`.
fn server_message(body: &[u8]) -> String {
    let Ok(ErrorBody { errors, details }) = serde_json::from_slice(body) else { return String::new() };
    let texts = errors.iter().take(3).map(|entry| match (entry.code.as_str(), entry.message.as_str()) {
        ("", message) => message.to_owned(),
        // Docker Hub repeats the code in words that our own text has already said.
        ("TOOMANYREQUESTS", message) => message.to_owned(),
        (code, "") => code.to_ascii_lowercase().replace('_', " "),
        (code, message) => format!("{}: {message}", code.to_ascii_lowercase().replace('_', " ")),
    });
    let text = texts.collect::<Vec<_>>().join(", ");
    clean(if text.is_empty() { details.as_deref().unwrap_or_default() } else { &text })
}

/// Text of a server's that goes to a terminal: one bounded line without control characters.
fn clean(text: &str) -> String {
    let one_line = text.trim().chars().map(|letter| if letter.is_whitespace() { ' ' } else { letter });
    one_line.filter(|letter| !letter.is_control()).take(MAX_SERVER_MESSAGE_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_message(body: &str, expected: &str) {
        assert_eq!(server_message(body.as_bytes()), expected);
    }

    #[test]
    fn waits_are_seconds_or_dates() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        let check = |asked: &str, date: Option<&str>, expected: Option<u64>| {
            let value = |text: &str| text.parse().expect("a header");
            let mut headers = HeaderMap::from_iter([(RETRY_AFTER, value(asked))]);
            headers.extend(date.map(|date| (DATE, value(date))));
            assert_eq!(wait_asked_for(&headers, now), expected.map(Duration::from_secs), "{asked} {date:?}");
        };
        check("7", None, Some(7));
        check(" 0 ", None, Some(0));
        check("Sun, 06 Nov 1994 08:49:39 GMT", None, Some(2));
        // The server's clock is an hour ahead.
        check("Sun, 06 Nov 1994 09:49:47 GMT", Some("Sun, 06 Nov 1994 09:49:37 GMT"), Some(10));
        check("Sunday, 06-Nov-94 08:49:38 GMT", None, Some(1));
        check("Sun, 06 Nov 1994 08:00:00 GMT", None, Some(0));
        for nonsense in ["", "soon", "-1", "1.5", "99999999999999999999999", "Sun, 06 Nov 1994"] {
            check(nonsense, None, None);
        }
    }

    #[test]
    fn repeats_what_servers_say() {
        check_message(
            r#"{"errors":[{"code":"DENIED","message":"requested access to the resource is denied"}]}"#,
            "denied: requested access to the resource is denied",
        );
        check_message(r#"{"errors":[{"code":"NAME_UNKNOWN"}]}"#, "name unknown");
        check_message(
            r#"{"errors":[{"code":"TOOMANYREQUESTS","message":"You have reached your pull rate limit."}]}"#,
            "You have reached your pull rate limit.",
        );
        check_message(r#"{"details":"incorrect username or password"}"#, "incorrect username or password");
        check_message("<html>", "");
        check_message(r#"{"errors":[{"message":"a\u001b[31m\nb"}]}"#, "a[31m b");
    }
}
