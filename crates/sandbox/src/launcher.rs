//! The launcher: a single-threaded second execution of this program that clones the sandboxes.
//!
//! Read [`Launcher`] first.

use crate::error::SpawnError;
use crate::sandbox::{Sandbox, Stdio};
use crate::spec::SandboxSpec;

/// Runs the launcher and never returns, if this process was executed as one; call it first in `main`.
pub fn launcher_entry() {}

/// Starts sandboxes. Cheap to clone; usable from every thread; nothing is started before the first spawn.
#[derive(Debug, Clone, Default)]
pub struct Launcher {}

impl Launcher {
    /// A launcher whose process is started by the first [`spawn`](Self::spawn).
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A launcher whose process runs.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start() -> Result<Self, SpawnError> {
        Ok(Self::new())
    }

    /// Starts a sandbox and returns once its program is being executed. Blocks for milliseconds.
    ///
    /// # Errors
    /// When the spec is wrong, a step of the set-up fails, or the program cannot be executed.
    pub fn spawn(&self, _spec: &SandboxSpec, _stdio: Stdio) -> Result<Sandbox, SpawnError> {
        Err(SpawnError::LauncherGone(std::io::ErrorKind::Unsupported.into()))
    }
}
