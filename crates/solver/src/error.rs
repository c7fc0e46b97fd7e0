//! Why a vertex, and with it a build, failed.
//!
//! Owns the error that crosses the worker seam and the one a build ends with. Both are cheap to clone,
//! because every build that shares a vertex gets the same one. Start with [`SolveError`].

use std::error::Error;
use std::fmt;
use std::sync::Arc;

use stave_oci::Digest;

/// What kind of failure it is, for those who decide by it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OpErrorKind {
    /// A process of the operation ended with a code that is not accepted.
    ExitCode {
        /// The code; 128 plus the number when a signal ended it.
        code: i32,
        /// The signal that ended it.
        signal: Option<i32>,
    },
    /// Nobody wanted the outcome any more.
    Cancelled,
    /// The operation asks for something that is not supported.
    Unsupported,
    /// The definition or its input is wrong: a missing file, a bad path, a bad option.
    Input,
    /// A source could not be fetched.
    Source,
    /// This machine refused: disk, kernel, memory, permissions.
    System,
    /// A defect of this program.
    Internal,
}

/// A failed operation: a kind and a typed chain of causes.
#[derive(Clone)]
pub struct OpError {
    inner: Arc<OpErrorInner>,
}

struct OpErrorInner {
    kind: OpErrorKind,
    source: Box<dyn Error + Send + Sync>,
}

impl OpError {
    /// Wraps the worker's own error.
    pub fn new(kind: OpErrorKind, source: impl Error + Send + Sync + 'static) -> Self {
        Self { inner: Arc::new(OpErrorInner { kind, source: Box::new(source) }) }
    }

    /// The operation stopped because its token fired.
    pub fn cancelled() -> Self {
        Self::new(OpErrorKind::Cancelled, Cancelled)
    }

    /// The kind.
    pub fn kind(&self) -> &OpErrorKind {
        &self.inner.kind
    }

    /// The worker's error when it is a `T`.
    pub fn downcast_ref<T: Error + 'static>(&self) -> Option<&T> {
        self.inner.source.downcast_ref()
    }
}

impl fmt::Display for OpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.source.fmt(f)
    }
}

impl fmt::Debug for OpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpError").field("kind", &self.inner.kind).field("source", &self.inner.source).finish()
    }
}

/// Transparent: shows and chains as the worker's own error does.
impl Error for OpError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.inner.source.source()
    }
}

#[derive(Debug, thiserror::Error)]
#[error("cancelled")]
struct Cancelled;

/// The worker panicked instead of returning.
#[derive(Debug, thiserror::Error)]
#[error("the operation panicked: {message}")]
pub(crate) struct Panicked {
    pub(crate) message: String,
}

/// The worker broke the contract of its trait.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ContractError {
    /// `cache_map` described another number of inputs than the vertex has.
    #[error("cache map of {found} inputs for a vertex of {expected}")]
    InputCount { found: usize, expected: usize },
    /// A user of the vertex wants an output it did not make.
    #[error("output {wanted} of a vertex that made {made}")]
    MissingOutput { wanted: u32, made: usize },
}

impl From<ContractError> for OpError {
    fn from(error: ContractError) -> Self {
        Self::new(OpErrorKind::Internal, error)
    }
}

/// Why a build failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SolveError {
    /// A vertex failed.
    #[error("failed to solve `{name}`")]
    Vertex {
        /// Its digest, which leads to its place in the source.
        vertex: Digest,
        /// Its name, for people.
        name: String,
        /// Why.
        #[source]
        source: OpError,
    },
    /// The job was cancelled.
    #[error("the build was cancelled")]
    Cancelled,
    /// The solver was shut down while the job ran.
    #[error("the solver was shut down")]
    Closed,
    /// An input or output names a vertex the definition does not have, or one that comes after its user.
    #[error("the definition refers to vertex `{vertex}` before or without defining it")]
    Definition {
        /// The digest referred to.
        vertex: Digest,
    },
}

impl SolveError {
    /// The failed operation's error, when an operation failed.
    pub fn op(&self) -> Option<&OpError> {
        match self {
            Self::Vertex { source, .. } => Some(source),
            Self::Cancelled | Self::Closed | Self::Definition { .. } => None,
        }
    }
}
