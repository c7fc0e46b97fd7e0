//! What a moving source is now, for whoever asks before anything is made of it: a repository's commit, an address's
//! content. What is found out is remembered in the session, so that a build that follows is of the same moment.
//! Read [`SourceFacts`] first.

use std::collections::BTreeMap;
use std::sync::Arc;

use stave_llb::{SourceIdentifier, SourceOp};
use stave_oci::Digest;
use stave_solver::JobContext;
use tokio_util::sync::CancellationToken;

use super::SourceError;
use super::git::{GitObjects, GitPin, GitRequest};
use super::http::{HttpPin, HttpSource};
use crate::cdi::Devices;
use crate::session::Session;
use crate::worker::LocalWorker;

/// What a source is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SourceFacts {
    /// The commit of a repository.
    Git(GitPin),
    /// The content of an address.
    Http(HttpPin),
}

impl<E> LocalWorker<E> {
    /// The devices of this machine that steps may ask for: their names, and what is said about them. Reads their
    /// specifications now.
    pub fn devices(&self) -> Vec<(String, BTreeMap<String, String>)> {
        Devices::read(&self.shared.device_directories).described()
    }

    /// Finds out what a repository or an address holds; `None` for other sources. A download is brought here for it, a
    /// repository is only asked.
    ///
    /// # Errors
    /// [`SourceError`].
    pub async fn facts_of(
        &self,
        op: &SourceOp,
        session: Arc<Session>,
        cancel: &CancellationToken,
    ) -> Result<Option<SourceFacts>, SourceError> {
        let vertex = Digest::sha256(op.raw.as_bytes());
        let cx = JobContext::alone(session, cancel.clone(), vertex);
        match &op.identifier {
            SourceIdentifier::Git(git) => {
                let pin = GitRequest::new(git, op)?.pin(&self.shared, &cx).await?;
                Ok(Some(SourceFacts::Git(pin)))
            }
            SourceIdentifier::Http { url } => {
                let pin = HttpSource::new(url, &op.attrs)?.pin(&self.shared, &cx).await?;
                Ok(Some(SourceFacts::Http(pin)))
            }
            _ => Ok(None),
        }
    }

    /// The objects behind the revision of a repository, which is fetched for it; `None` for other sources.
    ///
    /// # Errors
    /// [`SourceError`].
    pub async fn git_objects_of(
        &self,
        op: &SourceOp,
        session: Arc<Session>,
        cancel: &CancellationToken,
    ) -> Result<Option<GitObjects>, SourceError> {
        let SourceIdentifier::Git(git) = &op.identifier else { return Ok(None) };
        let cx = JobContext::alone(session, cancel.clone(), Digest::sha256(op.raw.as_bytes()));
        GitRequest::new(git, op)?.objects(&self.shared, &cx).await.map(Some)
    }
}
