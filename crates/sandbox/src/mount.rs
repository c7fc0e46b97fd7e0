//! Mounts in the caller's own, private mount namespace: overlays for file operations.
//!
//! Must not know sandboxes. Read [`MountGuard`] first.

use std::io;
use std::path::{Path, PathBuf};

use crate::error::MountError;

/// Layers of an overlay for [`mount_overlay`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OverlayLayers {
    /// Read-only layers, top first; 1 to 500 of them.
    pub lower: Vec<PathBuf>,
    /// Upper and work directory of a writable overlay; without, it is read-only (one layer: a read-only bind).
    pub upper: Option<(PathBuf, PathBuf)>,
    /// Skips syncing the upper directory on unmount.
    pub volatile: bool,
}

/// A mount of this process; dropped, it is unmounted.
#[derive(Debug)]
pub struct MountGuard {
    at: PathBuf,
}

impl MountGuard {
    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.at
    }
}

/// Gives this process a mount namespace of its own, which receives the host's mounts but passes none on, so that
/// whatever it mounts dies with it.
///
/// # Errors
/// When the process already has a second thread (only the calling thread would move), or may not.
pub fn enter_private_mounts() -> Result<(), MountError> {
    Err(MountError {
        action: "enter a private mount namespace",
        at: "/".into(),
        source: io::ErrorKind::Unsupported.into(),
    })
}

/// Mounts an overlay at the existing directory `at`, in this thread's mount namespace.
///
/// # Errors
/// When there are no layers or too many, or the kernel refuses.
pub fn mount_overlay(_layers: &OverlayLayers, at: &Path) -> Result<MountGuard, MountError> {
    Err(MountError { action: "mount an overlay", at: at.into(), source: io::ErrorKind::Unsupported.into() })
}

/// Removes mount points a sandbox created in its root from `upper`: empty files and empty directories only, and
/// never through a symbolic link.
///
/// # Errors
/// When `upper` cannot be opened.
pub fn remove_mount_points(_upper: &Path, _created: &[PathBuf]) -> io::Result<()> {
    Ok(())
}
