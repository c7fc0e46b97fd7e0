//! Why a place did not do what it was asked.

use std::io;
use std::path::PathBuf;

use stave_oci::Digest;
use stave_registry::RegistryError;

/// Why a place did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// The registry.
    #[error(transparent)]
    Registry(Box<RegistryError>),
    /// A file of a local cache.
    #[error("cannot {action} `{}`", .path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// On which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A blob broke off.
    #[error("the cache broke off")]
    Cut(#[from] io::Error),
    /// No answer from the object store, or half of one.
    #[error("cannot reach `{host}`")]
    Transfer {
        /// Which host.
        host: String,
        /// Why.
        #[source]
        source: Box<reqwest::Error>,
    },
    /// An answer that is no success.
    #[error("`{host}` answered {status} to {action}: {message}")]
    Status {
        /// Which host.
        host: String,
        /// What was asked.
        action: &'static str,
        /// The HTTP status.
        status: u16,
        /// What it says, shortened.
        message: String,
    },
    /// An address or header that cannot be one.
    #[error("invalid object store setting: {0}")]
    Setting(String),
    /// Other bytes than promised.
    #[error("cache has {found} where {expected} was promised")]
    Digest {
        /// Promised.
        expected: Digest,
        /// Found.
        found: Digest,
    },
    /// More bytes than is read or written in one piece.
    #[error("blob {digest} of {size} bytes is too large")]
    TooLarge {
        /// Which blob.
        digest: Digest,
        /// How large.
        size: u64,
    },
    /// A store of somebody else.
    #[error("{0}")]
    Elsewhere(String),
    /// An index of a local cache that cannot be read.
    #[error("`{}` is not an image layout's index", .path.display())]
    Index {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
}
