//! Every bound the client holds a registry to, in one place.
//!
//! Constants are bounds of the protocol; [`Limits`] are those that a deployment or a test may move.

use std::time::Duration;

/// Largest manifest or index accepted, in bytes: what the distribution specification asks registries to take.
pub(crate) const MAX_MANIFEST_BYTES: u64 = 4 << 20;
/// Largest image configuration accepted, in bytes.
pub(crate) const MAX_CONFIG_BYTES: u64 = 8 << 20;
/// Largest answer of a token service, in bytes.
pub(crate) const MAX_TOKEN_RESPONSE_BYTES: u64 = 1 << 20;
/// Longest token that is sent back, in bytes: more does not fit the header limits of common servers.
pub(crate) const MAX_TOKEN_BYTES: usize = 64 << 10;
/// Largest part of an error answer that is read, in bytes.
pub(crate) const MAX_ERROR_BODY_BYTES: u64 = 16 << 10;
/// Longest message of a server that is repeated in an error, in characters.
pub(crate) const MAX_SERVER_MESSAGE_CHARS: usize = 300;
/// Longest header value that is parsed (challenges, locations), in bytes.
pub(crate) const MAX_HEADER_VALUE_BYTES: usize = 16 << 10;
/// Most headers one HTTP/1.1 answer may carry.
pub(crate) const MAX_HEADERS: usize = 128;
/// Most redirects followed for one request.
pub(crate) const MAX_REDIRECTS: usize = 10;
/// Deepest nesting of indexes inside indexes.
pub(crate) const MAX_INDEX_DEPTH: usize = 3;
/// Most addresses outside of its registry that a layer is looked for at.
pub(crate) const MAX_FOREIGN_URLS: usize = 8;
/// Most pages read of a list of referrers.
pub(crate) const MAX_REFERRER_PAGES: u64 = 64;
/// Bytes of all its pages together: what they become takes some times as much memory.
pub(crate) const MAX_REFERRER_BYTES: u64 = 16 << 20;
/// Most pages read of a list of tags.
pub(crate) const MAX_TAG_PAGES: u64 = 4096;
/// Bytes of all its pages together.
pub(crate) const MAX_TAG_BYTES: u64 = 16 << 20;
/// How often a list of referrers under a tag is written while others write it, too.
pub(crate) const MAX_LIST_ATTEMPTS: u32 = 8;
/// Most challenges read from one answer.
pub(crate) const MAX_CHALLENGES: usize = 8;
/// Most tokens, host states or bad-content notes kept per client.
pub(crate) const MAX_CACHED_ENTRIES: usize = 4096;
/// Bytes that must arrive between two cuts for the retry count to start over.
pub(crate) const RESUME_PROGRESS_BYTES: u64 = 1 << 20;
/// Bytes read from an upload's source at a time.
pub(crate) const UPLOAD_READ_BYTES: usize = 256 << 10;
/// Longest time that telling a registry of an upload's end takes: nobody waits for what it answers.
pub(crate) const GIVE_UP_TIMEOUT: Duration = Duration::from_secs(5);
/// Life of a token whose answer names none (distribution token specification).
pub(crate) const DEFAULT_TOKEN_LIFE: Duration = Duration::from_secs(60);
/// A token is renewed this long before it expires, so that it does not expire on its way.
pub(crate) const TOKEN_RENEWAL_MARGIN: Duration = Duration::from_secs(10);
/// Largest credential file or helper answer read, in bytes.
pub(crate) const MAX_CREDENTIAL_BYTES: u64 = 4 << 20;
/// Longest time a credential helper may take: it may ask a person.
pub(crate) const CREDENTIAL_HELPER_TIMEOUT: Duration = Duration::from_secs(60);

/// Bounds on time and repetition, the same for every registry.
#[derive(Debug, Clone)]
pub struct Limits {
    /// How often one request is tried in all; at least 1.
    pub attempts: u32,
    /// Ceiling of the first wait between two attempts; it doubles with each, and a random part of it is waited.
    pub backoff: Duration,
    /// The longest wait between two attempts.
    pub backoff_ceiling: Duration,
    /// The longest `Retry-After` that is waited for; a longer one is an error at once.
    pub retry_after_ceiling: Duration,
    /// Time to establish a connection, TLS included.
    pub connect_timeout: Duration,
    /// Longest silence while waiting for an answer or between two pieces of a body.
    pub idle_timeout: Duration,
    /// Longest silence after the last byte of an upload: registries move large blobs about before they answer.
    pub commit_timeout: Duration,
    /// Answers of one host that are read, and requests that are sent to it, at once; at least 1. A host's
    /// table may set its own.
    pub requests_at_once: usize,
    /// Uploads are sent in pieces of this many bytes; `None` sends each blob in one request.
    pub upload_chunk: Option<u64>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            attempts: 5,
            backoff: Duration::from_millis(250),
            backoff_ceiling: Duration::from_secs(10),
            retry_after_ceiling: Duration::from_secs(60),
            connect_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(60),
            commit_timeout: Duration::from_secs(600),
            requests_at_once: 16,
            upload_chunk: None,
        }
    }
}

impl Limits {
    /// The wait before attempt `next` (the second attempt is 2): full jitter over an exponential ceiling, so that
    /// many clients cut off by one failure do not come back together.
    pub(crate) fn backoff_before(&self, next: u32) -> Duration {
        let ceiling =
            self.backoff.saturating_mul(1 << next.saturating_sub(2).min(16)).min(self.backoff_ceiling);
        ceiling.mul_f64(fastrand::f64().mul_add(0.5, 0.5))
    }
}
