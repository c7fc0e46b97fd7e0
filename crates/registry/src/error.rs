//! What can go wrong between us and a registry, as data: action, subject, host, kind.
//!
//! Owns the error types and their one-line texts, in the words docker and containerd use. Must not know hints or
//! exit codes: callers match on [`ErrorKind`]. No secret ever enters one; URLs are shown without query and user.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use stave_oci::{Digest, ManifestError, Platform};

use crate::keychain::KeychainError;

/// A registry operation that failed: what was tried, on what, where, and why.
#[derive(Debug, thiserror::Error)]
pub struct RegistryError {
    /// What was being done.
    pub action: Action,
    /// The familiar name it was done for (`busybox:latest`, `host:5000/app@sha256:…`), or a host for a login.
    pub subject: String,
    /// The repository part of the name, empty for a login.
    pub repository: String,
    /// The host that gave the answer or none; a mirror or redirect target can differ from the name's registry.
    pub host: String,
    /// Why.
    #[source]
    pub kind: Box<ErrorKind>,
    /// The mirrors asked before, in order, and why each did not serve.
    pub mirrors: Vec<MirrorFailure>,
}

/// One mirror that was asked and did not serve.
#[derive(Debug)]
pub struct MirrorFailure {
    /// The mirror's host.
    pub host: String,
    /// Why not.
    pub kind: ErrorKind,
}

/// What the client was doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Asking what a name stands for.
    Resolve,
    /// Reading a blob.
    Pull,
    /// Writing a blob or manifest.
    Push,
    /// Verifying credentials.
    Login,
}

/// Why a registry operation failed.
#[derive(Debug, thiserror::Error)]
pub enum ErrorKind {
    /// 401 or 403, or a token service that refused: no such repository or no right to it. Registries do not say which.
    #[error("repository does not exist or may require authorization{}", server_says(.message))]
    AccessDenied {
        /// Whether credentials for the host were known and sent.
        authenticated: bool,
        /// What the server said, without control characters; may be empty.
        message: String,
    },
    /// A login's user name or password was refused.
    #[error("unauthorized: incorrect username or password{}", server_says(.0))]
    Unauthorized(String),
    /// 404.
    #[error("not found")]
    NotFound,
    /// 429, after waiting as often as allowed.
    #[error("toomanyrequests{}{}", server_says(.message), asks_to_wait(*.retry_after))]
    TooManyRequests {
        /// How long the server asks to wait.
        retry_after: Option<Duration>,
        /// What the server said; may be empty.
        message: String,
    },
    /// Any other answer that is no success.
    #[error(transparent)]
    Status(#[from] Box<StatusFault>),
    /// No connection: name resolution, TCP or TLS.
    #[error("cannot connect: {reason}")]
    Connect {
        /// The innermost reason, in the system's words.
        reason: String,
        /// Whether the host name did not resolve.
        is_dns: bool,
        /// Whether the server's certificate was not accepted.
        is_certificate: bool,
    },
    /// Silence for longer than the idle or connect timeout.
    #[error("timed out after {} s of silence", .0.as_secs_f32())]
    Timeout(Duration),
    /// The connection broke in the middle, as often as retried.
    #[error("connection broke: {0}")]
    Interrupted(String),
    /// Content that is not what its digest says. The bytes must not be used.
    #[error("content does not match its digest: expected {expected}, got {actual}")]
    DigestMismatch {
        /// What was asked for.
        expected: Digest,
        /// What arrived.
        actual: Digest,
    },
    /// Content longer or shorter than its descriptor says.
    #[error("content of {digest} has the wrong size: expected {expected} bytes, got {}{actual}", if *.at_least { "at least " } else { "" })]
    SizeMismatch {
        /// The blob.
        digest: Digest,
        /// Bytes by the descriptor.
        expected: u64,
        /// Bytes that came or were announced.
        actual: u64,
        /// More may have followed: reading stopped.
        at_least: bool,
    },
    /// More bytes than we are willing to read for this kind of answer.
    #[error("{what} is over the limit of {limit} bytes")]
    TooLarge {
        /// What kind of answer: `manifest`, `image configuration`, …
        what: &'static str,
        /// The limit.
        limit: u64,
    },
    /// No image for the platform asked for.
    #[error("no match for platform {wanted}{}", platforms(.available))]
    PlatformNotFound {
        /// What was asked for.
        wanted: Box<Platform>,
        /// What there is.
        available: Vec<Platform>,
    },
    /// A document that is neither a manifest nor an index of images.
    #[error("invalid manifest: {}", inline(.0))]
    Manifest(#[source] ManifestError),
    /// An index that contains an index that contains …
    #[error("image index is nested deeper than {0} levels")]
    IndexDepth(usize),
    /// An image configuration that is not its JSON.
    #[error("invalid image configuration: {0}")]
    Config(#[source] serde_json::Error),
    /// An answer that breaks the protocol.
    #[error(transparent)]
    Response(#[from] ResponseFault),
    /// A redirect that is not followed.
    #[error(transparent)]
    Redirect(#[from] RedirectFault),
    /// The way to a token failed.
    #[error(transparent)]
    Auth(#[from] AuthFault),
    /// Stored credentials could not be read.
    #[error(transparent)]
    Keychain(#[from] KeychainError),
    /// Certificates for the host could not be loaded.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The data to upload could not be read.
    #[error("cannot read the data to upload: {0}")]
    Source(#[source] io::Error),
    /// The configuration allows no host for this use.
    #[error("no host of registry `{0}` is configured for this: check its `capabilities`")]
    NoEndpoint(String),
    /// A tag's list of referrers that others keep writing.
    #[error("the list of referrers `{0}` is being written by others, and does not keep what is added to it")]
    ListContended(String),
    /// A host or path that makes no URL.
    #[error("`{0}` is not a valid registry address")]
    Address(String),
}

/// An HTTP answer that is neither success nor any status with a meaning of its own.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unexpected status from {method} request to {url}: {status}{}", server_says(.message))]
pub struct StatusFault {
    /// `GET`, `HEAD`, …
    pub method: String,
    /// Without user, query and fragment.
    pub url: String,
    /// The status line: `500 Internal Server Error`.
    pub status: String,
    /// The number.
    pub code: u16,
    /// What the server said; may be empty.
    pub message: String,
}

/// How an answer breaks the protocol.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResponseFault {
    /// An upload was accepted without saying where to.
    #[error("registry accepted an upload without a usable `Location` header")]
    Location,
    /// A range was asked for and another one came.
    #[error("registry answered with another byte range than the one asked for")]
    Range,
    /// A blob is there, and nobody says how large it is.
    #[error("registry did not say how large the blob is")]
    Length,
    /// A `Docker-Content-Digest` header that is no digest.
    #[error("registry sent an invalid `Docker-Content-Digest` header")]
    DigestHeader,
}

/// Why a redirect is not followed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RedirectFault {
    /// More than allowed for one request.
    #[error("stopped after {0} redirects")]
    TooMany(usize),
    /// From https to http, where nothing verifies what comes.
    #[error("refusing a redirect from https to http (`{0}`)")]
    Downgrade(String),
    /// No or no http(s) `Location`.
    #[error("redirect without a usable `Location` header")]
    Location,
}

/// Why no token was obtained.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AuthFault {
    /// 401 with a challenge of another scheme than basic and bearer.
    #[error("registry asks for authentication in a way that is not supported{}", server_says(.0))]
    Challenge(String),
    /// The token service's address is not http(s), or http for a registry on https.
    #[error("refusing to send credentials to the token service `{0}`: it is not on https")]
    Realm(String),
    /// The token service answered with an error.
    #[error("failed to fetch a token from `{url}`: {status}{}", server_says(.message))]
    Service {
        /// Without query.
        url: String,
        /// The status line.
        status: String,
        /// What it said; may be empty.
        message: String,
    },
    /// The answer holds no (usable) token.
    #[error("token service `{0}` sent no usable token")]
    Token(String),
}

/// Certificates that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file that cannot be read.
    #[error("cannot read `{path}`: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A file without what it should hold.
    #[error("`{path}` holds no {what} in PEM form")]
    Empty {
        /// The file.
        path: PathBuf,
        /// `certificate` or `private key`.
        what: &'static str,
    },
    /// A certificate or key that is not accepted.
    #[error("cannot use `{path}`: {reason}")]
    Invalid {
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// The HTTP client could not be set up.
    #[error("cannot set up TLS: {0}")]
    Setup(String),
}

impl RegistryError {
    /// Whether nothing is there by that name, as far as the registry tells.
    pub fn is_not_found(&self) -> bool {
        matches!(*self.kind, ErrorKind::NotFound)
    }

    /// Whether logging in (or as somebody else) may help.
    pub fn is_access_denied(&self) -> bool {
        matches!(*self.kind, ErrorKind::AccessDenied { .. } | ErrorKind::Unauthorized(_))
    }
}

impl fmt::Display for RegistryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { action, subject, repository, host, kind, mirrors } = self;
        match (action, kind.as_ref()) {
            (Action::Push, ErrorKind::AccessDenied { .. }) => {
                write!(f, "push access denied for {repository}: {kind}")?;
            }
            (Action::Login, kind) => write!(f, "login to {subject} failed: {kind}")?,
            (_, ErrorKind::AccessDenied { .. }) => write!(f, "pull access denied for {repository}: {kind}")?,
            (_, ErrorKind::NotFound) => write!(f, "{subject}: not found")?,
            (_, kind @ (ErrorKind::Connect { .. } | ErrorKind::Timeout(_) | ErrorKind::Interrupted(_))) => {
                write!(f, "failed to {action} {subject}: {host}: {kind}")?;
            }
            (_, kind) => write!(f, "failed to {action} {subject}: {kind}")?,
        }
        for MirrorFailure { host, kind } in mirrors {
            write!(f, "; mirror {host}: {kind}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Resolve => "resolve",
            Self::Pull => "pull",
            Self::Push => "push",
            Self::Login => "log in to",
        })
    }
}

fn server_says(message: &str) -> String {
    if message.is_empty() { String::new() } else { format!(": {message}") }
}

fn asks_to_wait(time: Option<Duration>) -> String {
    time.map_or_else(String::new, |time| format!(" (the server asks to wait {} s)", time.as_secs()))
}

fn platforms(available: &[Platform]) -> String {
    let names: Vec<String> = available.iter().map(ToString::to_string).collect();
    if names.is_empty() { String::new() } else { format!(": the image has {}", names.join(", ")) }
}

/// The JSON reader's reason is one level down and is what a person needs.
fn inline(error: &ManifestError) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}
