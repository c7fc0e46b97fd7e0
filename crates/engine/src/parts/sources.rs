//! What is asked of sources before a graph is made of them.
//!
//! Owns nothing but the way in. Start with [`Parts::facts_of`].

use std::path::{Path, PathBuf};
use std::sync::Arc;

use stave_llb::SourceOp;
use stave_oci::{Digest, Platform};
use stave_worker::{GitObjects, OciLayout, Session, SourceError, SourceFacts};

use super::Parts;
use crate::resolve::ResolveErrorKind;

impl Parts<'_> {
    /// What a repository or an address holds now; `None` for other sources. What the session's build takes from there is
    /// the same.
    ///
    /// # Errors
    /// [`SourceError`].
    pub async fn facts_of(
        &self,
        op: &SourceOp,
        session: Arc<Session>,
    ) -> Result<Option<SourceFacts>, SourceError> {
        let step = self.steps.start(format!("[internal] load metadata for {}", shown(op)));
        step.end(self.engine.worker.facts_of(op, session, &self.cancel).await)
    }

    /// The commit of a repository, and its tag, byte for byte; `None` for other sources.
    ///
    /// # Errors
    /// [`SourceError`].
    pub async fn git_objects_of(
        &self,
        op: &SourceOp,
        session: Arc<Session>,
    ) -> Result<Option<GitObjects>, SourceError> {
        let step = self.steps.start(format!("[internal] load metadata for {}", shown(op)));
        step.end(self.engine.worker.git_objects_of(op, session, &self.cancel).await)
    }

    /// The config of an image in an OCI layout of this build.
    ///
    /// # Errors
    /// When there is no such layout or no such image in it.
    pub fn config_in_layout(
        &self,
        (store, digest): (&str, &Digest),
        platform: &Platform,
    ) -> Result<Vec<u8>, ResolveErrorKind> {
        let layout: Option<&PathBuf> = self.layouts.get(store);
        let directory: &Path = layout.ok_or_else(|| ResolveErrorKind::UnknownLayout(store.to_owned()))?;
        Ok(OciLayout::open(directory)?.image(digest, platform)?.config)
    }
}

/// An address without what may be secret in it.
fn shown(op: &SourceOp) -> String {
    crate::without_credentials(&op.raw).into_owned()
}
