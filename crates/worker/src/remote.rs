//! Local contexts of somebody else's machine: what the worker asks of whoever can fetch them.
//! Owns the trait and its values. Must not know protocols. Read [`ContextProvider`] first.

use std::any::Any;
use std::fmt;
use std::path::PathBuf;

use futures::future::BoxFuture;
use tokio_util::sync::CancellationToken;

/// Gives directories that are not on this machine.
pub trait ContextProvider: Send + Sync + fmt::Debug {
    /// Brings the part of a directory that was asked for here.
    fn fetch<'a>(
        &'a self,
        request: ContextRequest<'a>,
    ) -> BoxFuture<'a, Result<FetchedContext, ContextFetchError>>;
}

/// Which part of which directory is wanted.
pub struct ContextRequest<'a> {
    /// The directory, as the definition names it.
    pub name: &'a str,
    /// The session whose directory it is; `None` is the build's own.
    pub session: Option<&'a str>,
    /// Tells directories of one name apart that have little in common.
    pub shared_key_hint: &'a str,
    /// What takes part; empty for everything.
    pub include: &'a [String],
    /// What does not, in `.dockerignore`'s language.
    pub exclude: &'a [String],
    /// Paths that are needed, with whatever their symlinks lead to; empty for everything.
    pub follow: &'a [String],
    /// Which files travel.
    pub differ: Differ,
    /// Of all but what these patterns match only names, modes and times come, in a file; `None` for everything.
    pub metadata_but: Option<&'a [String]>,
    /// Told the bytes received so far.
    pub progress: &'a (dyn Fn(u64) + Send + Sync),
    /// Fires when nobody wants it any more.
    pub cancel: &'a CancellationToken,
}

/// How it is decided which files travel again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Differ {
    /// Those that have another size, mode, owner or time than what came before.
    #[default]
    Metadata,
    /// All.
    None,
}

impl fmt::Debug for ContextRequest<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ContextRequest").field("name", &self.name).finish_non_exhaustive()
    }
}

/// A directory as fetched: exactly what was asked for is in it.
pub struct FetchedContext {
    /// Where it is.
    pub directory: PathBuf,
    /// Keeps it as it is, for as long as it lives.
    pub guard: Box<dyn Any + Send + Sync>,
}

impl fmt::Debug for FetchedContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FetchedContext").field("directory", &self.directory).finish_non_exhaustive()
    }
}

/// Why a directory could not be fetched: the client's or the transport's own words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ContextFetchError(pub String);
