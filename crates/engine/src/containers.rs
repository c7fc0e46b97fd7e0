//! Processes that somebody drives beside a build: containers of a front end, and front ends that are images.
//!
//! Owns nothing but the way to the worker. Must not know who drives them. Start with [`Engine::container`].

use std::sync::Arc;

use stave_oci::Digest;
use stave_sandbox::Stdio;
use stave_worker::{
    Container, ContainerSpec, FailedStep, Namespace, RunError, RunSpec, Running, Session, StepError,
};
use tokio_util::sync::CancellationToken;

use crate::Engine;

impl Engine {
    /// Makes the file systems of a container ready.
    ///
    /// # Errors
    /// [`StepError`].
    pub async fn container(
        &self,
        spec: ContainerSpec,
        session: Arc<Session>,
        cancel: &CancellationToken,
    ) -> Result<Container, StepError> {
        self.worker.container(spec, session, cancel).await
    }

    /// Starts a process over a snapshot; what it writes is thrown away.
    ///
    /// # Errors
    /// [`RunError`].
    pub async fn start_process(&self, spec: RunSpec, stdio: Stdio) -> Result<Running, RunError> {
        self.worker.start(spec, stdio).await
    }

    /// The devices of this machine that steps may ask for: their names, and what is said about them.
    pub fn devices(&self) -> Vec<(String, std::collections::BTreeMap<String, String>)> {
        self.worker.devices()
    }

    /// What the vertex left that failed just now for a build of this namespace, if it ran a process.
    pub fn failed_step(&self, namespace: &Namespace, vertex: &Digest) -> Option<FailedStep> {
        self.worker.failed_step(namespace, vertex)
    }
}
