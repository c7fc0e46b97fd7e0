//! The objects behind a revision, byte for byte: whoever checks a signature, or asks who wrote a commit and when, reads
//! them. Must not know files. Read [`read`] first.

use super::GitPin;
use super::cli::Git;
use super::error::GitError;
use super::repository::{Repository, local};

/// A commit, and the annotated tag that names it, as git keeps them: without git's header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GitObjects {
    /// What the request stands for. Of a hash it is known by now whether it is a tag's.
    pub pin: GitPin,
    /// The commit.
    pub commit: Vec<u8>,
    /// The tag, if the revision is an annotated one.
    pub tag: Option<Vec<u8>>,
}

/// Reads the objects of a pin that was brought into the repository.
pub(super) async fn read(git: &Git, repository: &Repository, pin: &GitPin) -> Result<GitObjects, GitError> {
    let peeled = format!("{}^{{commit}}", pin.object);
    let commit = git.run_in(repository.place(), &["rev-parse", "--verify", "--quiet", &peeled]).await;
    let commit = commit.map_err(|error| local(error, "rev-parse"))?.trim().to_owned();
    let is_tag = commit != pin.object;
    let tag = if is_tag { Some(object(git, repository, "tag", &pin.object).await?) } else { None };
    let bytes = object(git, repository, "commit", &commit).await?;
    let pin = GitPin { peeled: is_tag.then_some(commit), ..pin.clone() };
    Ok(GitObjects { pin, commit: bytes, tag })
}

async fn object(git: &Git, repository: &Repository, kind: &str, hash: &str) -> Result<Vec<u8>, GitError> {
    let read = git.bytes_in(repository.place(), &["cat-file", kind, hash]).await;
    read.map_err(|error| local(error, "cat-file"))
}
