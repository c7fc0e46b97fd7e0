//! Mounts in the caller's own, private mount namespace: overlays for file operations.
//!
//! Must not know sandboxes. Read [`MountGuard`] first.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, Timespec, Timestamps};
use rustix::mount::{MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags};

use crate::error::MountError;
use crate::overlay::mount_overlay_at;
use crate::sys::{MountFlags, restrict_mount, unshare};

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

impl Drop for MountGuard {
    fn drop(&mut self) {
        // Detached: a file still open in it must not keep the guard from letting go of the name.
        if let Err(error) = rustix::mount::unmount(&self.at, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            tracing::warn!(at = %self.at.display(), %error, "cannot unmount");
        }
    }
}

/// Gives this process a mount namespace of its own, which receives the host's mounts but passes none on, so that
/// whatever it mounts dies with it.
///
/// # Errors
/// When the process already has a second thread (only the calling thread would move), or may not.
pub fn enter_private_mounts() -> Result<(), MountError> {
    let fail =
        |source: io::Error| MountError { action: "enter a private mount namespace", at: "/".into(), source };
    let threads = std::fs::read_dir("/proc/self/task").map_err(fail)?.count();
    if threads != 1 {
        return Err(fail(io::Error::new(
            io::ErrorKind::ResourceBusy,
            format!("the process has {threads} threads"),
        )));
    }
    unshare(rustix::thread::UnshareFlags::NEWNS).map_err(fail)?;
    let downstream = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", downstream).map_err(|error| fail(error.into()))
}

/// Mounts an overlay at the existing directory `at`, in this thread's mount namespace. Device nodes in it cannot
/// be opened. The file system of an upper directory is synced as a whole on unmount, unless `volatile`.
///
/// # Errors
/// When there are no layers or too many, or the kernel refuses.
pub fn mount_overlay(layers: &OverlayLayers, at: &Path) -> Result<MountGuard, MountError> {
    let mounted = match (layers.lower.as_slice(), &layers.upper) {
        ([only], None) => bind_readonly(only, at),
        _ => mount_overlay_at(layers, true, at),
    };
    mounted.map_err(|source| MountError { action: "mount an overlay", at: at.into(), source })?;
    Ok(MountGuard { at: at.into() })
}

/// An overlay that is mounted nowhere, as kernels before 6.5 make one: by way of the existing directory `at`, in this
/// thread's mount namespace, which nobody else may use meanwhile.
///
/// # Errors
/// When the kernel refuses.
pub fn detached_overlay(layers: &OverlayLayers, at: &Path) -> Result<OwnedFd, MountError> {
    crate::overlay::detached_legacy(layers, at).map_err(|source| MountError {
        action: "mount an overlay",
        at: at.into(),
        source,
    })
}

/// Mounts an empty file system in memory at the existing directory `at`, in this thread's mount namespace.
///
/// # Errors
/// When the kernel refuses.
pub fn mount_memory(at: &Path) -> Result<MountGuard, MountError> {
    let flags = rustix::mount::MountFlags::NOSUID | rustix::mount::MountFlags::NODEV;
    rustix::mount::mount("tmpfs", at, "tmpfs", flags, c"mode=700").map_err(|error| MountError {
        action: "mount a tmpfs",
        at: at.into(),
        source: error.into(),
    })?;
    Ok(MountGuard { at: at.into() })
}

fn bind_readonly(source: &Path, at: &Path) -> io::Result<()> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = rustix::mount::open_tree(CWD, source, flags)?;
    restrict_mount(tree.as_fd(), MountFlags { readonly: true, nosuid: true, nodev: true }, false)?;
    rustix::mount::move_mount(&tree, "", CWD, at, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    Ok(())
}

/// Removes mount points a sandbox created in its root from `upper`: empty files and empty directories only, and
/// never through a symbolic link. Directories that had them keep their times. `created` is [`Sandbox::created_mount_points`](crate::Sandbox::created_mount_points).
///
/// # Errors
/// When `upper` cannot be opened.
pub fn remove_mount_points(upper: &Path, created: &[PathBuf]) -> io::Result<()> {
    let root = rustix::fs::open(upper, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    // Deepest first: parents were created before their children.
    for path in created.iter().rev() {
        // What the process has since replaced or filled is its own: failures leave it in place.
        let _kept: io::Result<()> = remove_if_empty(&root, path);
    }
    Ok(())
}

fn remove_if_empty(root: &OwnedFd, path: &Path) -> io::Result<()> {
    let relative: PathBuf = path.components().filter(|part| matches!(part, Component::Normal(_))).collect();
    let (Some(parent), Some(name)) = (relative.parent(), relative.file_name()) else { return Ok(()) };
    let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let parent = rustix::fs::openat2(root, parent, flags, Mode::empty(), resolve)?;
    let stat = rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
    let before = rustix::fs::fstat(&parent)?;
    match rustix::fs::FileType::from_raw_mode(stat.st_mode) {
        rustix::fs::FileType::Directory => rustix::fs::unlinkat(&parent, name, AtFlags::REMOVEDIR)?,
        rustix::fs::FileType::RegularFile if stat.st_size == 0 => {
            rustix::fs::unlinkat(&parent, name, AtFlags::empty())?;
        }
        _ => return Ok(()),
    }
    let time = |seconds, nanoseconds: u64| Timespec {
        tv_sec: seconds,
        tv_nsec: i64::try_from(nanoseconds).unwrap_or(0),
    };
    let times = Timestamps {
        last_access: time(before.st_atime, before.st_atime_nsec),
        last_modification: time(before.st_mtime, before.st_mtime_nsec),
    };
    // What it was opened with says no more than where it is.
    Ok(rustix::fs::utimensat(&parent, ".", &times, AtFlags::empty())?)
}
