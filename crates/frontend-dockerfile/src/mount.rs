//! The options of `RUN --mount` and `RUN --device`.
//!
//! Owns the comma-separated form and which option goes with which kind of mount. Expansion of values
//! is the caller's: [`parse`] is handed a function for it. Start with [`Mount`].

/// A `--mount` with its options read and expanded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// What is mounted.
    pub kind: MountKind,
    /// `from=`: the stage, named context or image it comes from.
    pub from: Option<String>,
    /// `source=`
    pub source: Option<String>,
    /// `target=`
    pub target: Option<String>,
    /// Whether the step must not write: the option, or the kind's default.
    pub read_only: bool,
    /// `id=`: the id of a cache, secret or agent.
    pub id: Option<String>,
    /// `mode=`
    pub mode: Option<u32>,
    /// `uid=`
    pub uid: Option<u32>,
    /// `gid=`
    pub gid: Option<u32>,
    /// `env=`: the variable a secret goes into; empty means the secret's own id.
    pub env: Option<String>,
}

/// What a mount mounts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MountKind {
    /// `type=bind`, the default.
    Bind,
    /// `type=cache`
    Cache {
        /// How steps share it.
        sharing: Sharing,
    },
    /// `type=tmpfs`
    Tmpfs {
        /// `size=` in bytes, 0 without limit.
        size: i64,
    },
    /// `type=secret`
    Secret {
        /// `required=`
        required: bool,
    },
    /// `type=ssh`
    Ssh {
        /// `required=`
        required: bool,
    },
}

/// How several steps use one cache mount at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sharing {
    /// All at once.
    #[default]
    Shared,
    /// Each its own.
    Private,
    /// One after the other.
    Locked,
}

/// Why a `--mount` was not understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct MountError {
    /// What is wrong.
    pub message: String,
    /// A similar key or value that exists.
    pub suggestion: Option<String>,
}
