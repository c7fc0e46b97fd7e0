//! Why a repository could not be had. The words are BuildKit's where it has some, since tools look for them.

use std::path::PathBuf;

use crate::root::IoAt;

/// Why a repository could not be had.
#[derive(Debug, thiserror::Error)]
pub enum GitError {
    /// There is no git.
    #[error("failed to find git binary: sources of this kind need the program `git` in PATH")]
    NoProgram,
    /// git could not be run.
    #[error("failed to run git")]
    Run(#[source] std::io::Error),
    /// The address is none of a repository.
    #[error("invalid git address `{shown}`: {fault}")]
    Address {
        /// The address without credentials.
        shown: String,
        /// What is wrong with it.
        fault: &'static str,
    },
    /// A revision no repository can have.
    #[error("invalid git ref {0:?}")]
    Reference(String),
    /// An attribute has a value that makes no sense.
    #[error("source attribute `{name}` has the invalid value `{value}`")]
    Attribute {
        /// The attribute.
        name: String,
        /// Its value.
        value: String,
    },
    /// An attribute nobody here understands.
    #[error("the attribute `{0}` of git sources is not supported yet")]
    Unsupported(String),
    /// A checksum that is none of git's.
    #[error("invalid checksum {0} for Git URL, expected hex commit hash")]
    ChecksumForm(String),
    /// The revision is another commit than promised.
    #[error("expected checksum to match {expected}, got {actual}")]
    Checksum {
        /// From the definition.
        expected: String,
        /// What the remote has.
        actual: String,
    },
    /// A fetch by commit that does not say which.
    #[error("fetch-by-commit requires a checksum or a commit SHA ref")]
    NoChecksum,
    /// A fetch by commit that says it only in part.
    #[error("fetch-by-commit requires a full commit SHA checksum, got {0:?}")]
    ShortChecksum(String),
    /// The remote could not be asked or fetched from.
    #[error("failed to fetch remote {remote}")]
    Fetch {
        /// Which, without credentials.
        remote: String,
        /// Why.
        #[source]
        source: GitFailure,
    },
    /// The remote could not be asked for its default branch.
    #[error("error fetching default branch for repository {remote}")]
    DefaultBranch {
        /// Which, without credentials.
        remote: String,
        /// Why.
        #[source]
        source: GitFailure,
    },
    /// The remote has no default branch.
    #[error("could not find default branch for repository: {0}")]
    NoDefaultBranch(String),
    /// The remote does not have the revision.
    #[error("repository does not contain ref {revision}, output: {output:?}")]
    NoReference {
        /// The revision.
        revision: String,
        /// What the remote said.
        output: String,
    },
    /// The remote's answer is not what git's are.
    #[error("invalid commit sha {0:?}")]
    CommitForm(String),
    /// The reference moved on while it was fetched, and the commit is gone.
    #[error(
        "fetched ref {reference} does not match expected commit {expected} and commit can not be found in the repository"
    )]
    Moved {
        /// The reference.
        reference: String,
        /// What it was a moment ago.
        expected: String,
    },
    /// The files could not be written.
    #[error("failed to checkout remote {remote}")]
    Checkout {
        /// Which, without credentials.
        remote: String,
        /// Why.
        #[source]
        source: GitFailure,
    },
    /// A submodule could not be had.
    #[error("failed to update submodules for {remote}")]
    Submodules {
        /// Of which remote, without credentials.
        remote: String,
        /// Why.
        #[source]
        source: GitFailure,
    },
    /// The repository on this machine could not be worked with.
    #[error("git {command}")]
    Local {
        /// The command.
        command: String,
        /// Why.
        #[source]
        source: GitFailure,
    },
    /// The directory is not in the repository.
    #[error("invalid subdir {subdir}: failed to lstat {path:?}: no such file or directory")]
    NoSubdir {
        /// What was asked for.
        subdir: String,
        /// What is not there.
        path: PathBuf,
    },
    /// The directory is a file, or behind a link.
    #[error("invalid subdir {subdir}: git subpath {subdir:?} contains non-directory {path:?}")]
    SubdirKind {
        /// What was asked for.
        subdir: String,
        /// What is no directory.
        path: PathBuf,
    },
    /// The build has no agent for this remote.
    #[error("no SSH key {0:?} forwarded from the client")]
    NoAgent(String),
    /// Who lends agents does not lend the one for this remote.
    #[error("{0}")]
    RefusedAgent(String),
    /// The agent could not be reached.
    #[error("ssh agent {id}")]
    Agent {
        /// Its id.
        id: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A secret that cannot be a header.
    #[error("secret {0}: cannot be an HTTP header")]
    Secret(String),
    /// A secret that cannot be read.
    #[error("the secret for {remote} cannot be used: {fault}")]
    UnreadableSecret {
        /// For which remote, without credentials.
        remote: String,
        /// Why.
        fault: String,
    },
    /// More files than any real repository.
    #[error("the repository has more than {0} files")]
    TooMany(usize),
    /// The operating system refused.
    #[error(transparent)]
    Io(#[from] IoAt),
    /// Nobody wants it any more.
    #[error("cancelled")]
    Cancelled,
}

/// What git said when it failed.
#[derive(Debug, thiserror::Error)]
#[error("git stderr:\n{stderr}: {status}")]
pub struct GitFailure {
    /// The end of what it wrote, without credentials.
    pub stderr: String,
    /// How it ended.
    pub status: String,
}
