//! What can go wrong on disk. Start with [`StoreError`].

use std::io;
use std::path::{Path, PathBuf};

use stave_oci::Digest;

use crate::LayerId;

/// A failed store operation.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file system (or the quota) has no room; nothing half-written is left behind.
    #[error("no space left while writing `{}`", path.display())]
    StorageFull {
        /// What was being written.
        path: PathBuf,
        /// The system's words.
        #[source]
        source: io::Error,
    },
    /// A file operation failed.
    #[error("cannot {action} `{}`", path.display())]
    Io {
        /// The verb: `create`, `open`, `rename`.
        action: &'static str,
        /// Of what.
        path: PathBuf,
        /// The system's words.
        #[source]
        source: io::Error,
    },
    /// The database failed or is damaged.
    #[error("store database `{}` failed", path.display())]
    Database {
        /// The database file.
        path: PathBuf,
        /// Its words.
        #[source]
        source: DatabaseError,
    },
    /// The store was written by a newer program.
    #[error("store `{}` has format {found}, this program reads up to format {supported}", path.display())]
    NewerFormat {
        /// The state directory.
        path: PathBuf,
        /// The format on disk.
        found: i64,
        /// The newest known here.
        supported: i64,
    },
    /// The database is gone, but other processes still use the file that was it.
    #[error("the database `{}` was removed while other processes use the store: end them first", path.display())]
    LostWhileOpen {
        /// The database file.
        path: PathBuf,
    },
    /// An earlier program has the store open, which this one would bring to its own format.
    #[error(
        "store `{}` has format {found} and is in use by an earlier program: end that first, to bring it to format {wanted}",
        path.display()
    )]
    OlderWhileOpen {
        /// The state directory.
        path: PathBuf,
        /// The format on disk.
        found: i64,
        /// The format it would have.
        wanted: i64,
    },
    /// A layer that was removed, or never was.
    #[error("layer {0} is not in the store")]
    LayerGone(LayerId),
    /// Content whose digest is not the promised one.
    #[error("content has digest `{found}`, expected `{expected}`")]
    DigestMismatch {
        /// What was promised.
        expected: Digest,
        /// What arrived.
        found: Digest,
    },
    /// Content larger than its limit.
    #[error("content is larger than {limit} bytes")]
    BlobTooLarge {
        /// The limit, in bytes.
        limit: u64,
    },
    /// A layer archive that is damaged or hostile, at a named entry.
    #[error(transparent)]
    Layer(#[from] LayerError),
    /// An image record whose parts do not fit together.
    #[error("image `{id}` cannot be stored: {problem}")]
    InvalidImage {
        /// The image.
        id: Digest,
        /// What does not fit.
        problem: &'static str,
    },
    /// An id prefix that several images share.
    #[error("id prefix `{prefix}` names {matches} images")]
    AmbiguousId {
        /// The prefix asked for.
        prefix: String,
        /// How many images it fits.
        matches: usize,
    },
    /// The store would pass its configured size.
    #[error("the store is full: {used} of at most {cap} bytes are in use, and {wanted} more are needed")]
    CapReached {
        /// The most it may take.
        cap: u64,
        /// What it takes and cannot give back.
        used: u64,
        /// What was to be written.
        wanted: u64,
    },
    /// A record in the database that this program cannot read.
    #[error("stored record of {what} is damaged")]
    DamagedRecord {
        /// The kind of record.
        what: &'static str,
    },
    /// A layer uses an overlay feature that stave never turns on.
    #[error("`{}` uses the overlay feature `{feature}`, which is not supported", path.display())]
    OverlayFeature {
        /// The directory or file that carries it.
        path: PathBuf,
        /// The xattr's last part.
        feature: String,
    },
    /// A path in a snapshot that cannot be followed.
    #[error("cannot follow `{}` in the snapshot", path.display())]
    View {
        /// The path as asked for.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// The database's own error, kept opaque so that its library stays private.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct DatabaseError(pub(crate) rusqlite::Error);

/// A layer archive was refused; nothing of it stays in the store.
#[derive(Debug, thiserror::Error)]
#[error("layer entry `{entry}`: {kind}")]
pub struct LayerError {
    /// The entry as the archive names it (lossy UTF-8), or the position for damage between entries.
    pub entry: String,
    /// What is wrong.
    #[source]
    pub kind: LayerErrorKind,
}

/// Why a layer archive was refused.
#[derive(Debug, thiserror::Error)]
pub enum LayerErrorKind {
    /// The stream ends within an entry.
    #[error("the archive is cut short")]
    Truncated,
    /// A header that breaks the tar format.
    #[error("damaged header: {0}")]
    Header(&'static str),
    /// The compressed stream is damaged or could not be read.
    #[error("cannot read the stream")]
    Stream(#[source] io::Error),
    /// `..` leads out of the root.
    #[error("the path leads out of the layer")]
    Escapes,
    /// A name with a leading slash.
    #[error("the path is absolute")]
    Absolute,
    /// The path goes through a symlink (or file) that leads to no directory of the layer.
    #[error("the path goes through something that is not a directory of the layer")]
    ThroughNonDirectory,
    /// A hard link to something that is not a file of this layer.
    #[error("hard link to `{0}`, which is not a file of the layer")]
    HardLink(String),
    /// Longer than [`crate::LayerLimits`] allows.
    #[error("a path is longer than {0} bytes")]
    PathTooLong(usize),
    /// More than [`crate::LayerLimits`] allows.
    #[error("more than {0} entries")]
    TooManyEntries(u64),
    /// More than [`crate::LayerLimits`] allows.
    #[error("more than {0} bytes when unpacked")]
    TooLarge(u64),
    /// A header or extension block beyond its limit.
    #[error("an extended header is larger than {0} bytes")]
    ExtendedHeaderTooLarge(u64),
    /// A type of entry that no layer may hold.
    #[error("entry type `{0}` is not supported")]
    UnsupportedType(String),
    /// A whiteout without a proper name.
    #[error("invalid whiteout")]
    Whiteout,
    /// The uncompressed stream has another digest than the image config says.
    #[error("the layer has diff id `{found}`, expected `{expected}`")]
    DiffId {
        /// What the config says.
        expected: Digest,
        /// What was unpacked.
        found: Digest,
    },
    /// The file system refused the entry.
    #[error("cannot {action}")]
    Io {
        /// The verb.
        action: &'static str,
        /// The system's words.
        #[source]
        source: io::Error,
    },
}

impl StoreError {
    /// An error of a file operation; a full disk gets its own kind.
    pub(crate) fn io(action: &'static str, path: impl AsRef<Path>, source: impl Into<io::Error>) -> Self {
        let (path, source) = (path.as_ref().to_owned(), source.into());
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::StorageFull { path, source },
            _ => Self::Io { action, path, source },
        }
    }
}
