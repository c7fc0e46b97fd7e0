//! Merged views of snapshots: an overlay mounted nowhere, reachable only through its descriptor.
//! Owns the `fsopen`/`fsmount` sequence. A detached mount needs no mount point and no private namespace, cannot be
//! seen by other processes, and is gone with the last descriptor, even after `SIGKILL`.
//! Must not know the store or ops. Read [`writable`] and [`readable`] first.

use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string,
    fsmount, fsopen,
};
use stave_sandbox::{OverlayLayers, detached_overlay};
use stave_store::StoreError;

use crate::root::{At as _, IoAt, RootDir};

/// Layers the kernel accepts in one overlay (`OVL_MAX_STACK`).
pub(crate) const LAYER_LIMIT: usize = 500;

/// Why a view could not be had.
#[derive(Debug, thiserror::Error)]
pub enum ViewError {
    /// Overlay cannot stack that many layers.
    #[error("the image has {0} layers, more than the {LAYER_LIMIT} the kernel can stack")]
    TooManyLayers(usize),
    /// The kernel refused.
    #[error(transparent)]
    Io(#[from] IoAt),
    /// No tree could be made in its place.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The merged content of read-only layers (top first). What `empty` makes stands for a snapshot without layers.
pub(crate) fn readable(
    lowers: &[PathBuf],
    empty: impl FnOnce() -> Result<PathBuf, StoreError>,
) -> Result<RootDir, ViewError> {
    match lowers {
        [] => Ok(RootDir::open(&empty()?)?),
        // Overlay refuses a single read-only layer; a lone layer hides nothing, so it is its own view.
        [only] => Ok(RootDir::open(only)?),
        layers => Ok(overlay(layers, None)?),
    }
}

/// A writable view: changes go to `upper`. Without layers below, `upper` itself is the view.
pub(crate) fn writable(lowers: &[PathBuf], upper: &Path, work: &Path) -> Result<RootDir, ViewError> {
    if lowers.is_empty() {
        return Ok(RootDir::open(upper)?);
    }
    overlay(lowers, Some((upper, work)))
}

fn overlay(lowers: &[PathBuf], upper: Option<(&Path, &Path)>) -> Result<RootDir, ViewError> {
    if lowers.len() > LAYER_LIMIT {
        return Err(ViewError::TooManyLayers(lowers.len()));
    }
    let place = upper.map_or_else(|| lowers[0].as_path(), |(upper, _)| upper);
    let mounted = match mount(lowers, upper) {
        // Kernels before 6.5 do not know `lowerdir+`.
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::INVAL.raw_os_error()) => {
            legacy(lowers, upper).map_err(|_| error)
        }
        mounted => mounted,
    };
    Ok(RootDir::from_fd(mounted.at("mounting an overlay of", place)?))
}

/// The same by `mount(2)`, which needs a place for a moment.
fn legacy(lowers: &[PathBuf], upper: Option<(&Path, &Path)>) -> std::io::Result<OwnedFd> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let name = format!("view-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let at = match upper {
        // Beside the layer, in a directory that is removed with it.
        Some((upper, _)) => upper.with_file_name(name),
        None => std::env::temp_dir().join(name),
    };
    std::fs::create_dir(&at)?;
    let upper = upper.map(|(upper, work)| (upper.to_owned(), work.to_owned()));
    let layers = OverlayLayers { lower: lowers.to_vec(), volatile: upper.is_some(), upper };
    let mounted = detached_overlay(&layers, &at);
    std::fs::remove_dir(&at)?;
    mounted.map_err(|error| error.source)
}

fn mount(lowers: &[PathBuf], upper: Option<(&Path, &Path)>) -> std::io::Result<OwnedFd> {
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for lower in lowers {
        fsconfig_set_string(&context, "lowerdir+", text(lower)?)?;
    }
    if let Some((upper, work)) = upper {
        fsconfig_set_string(&context, "upperdir", text(upper)?)?;
        fsconfig_set_string(&context, "workdir", text(work)?)?;
        // The store syncs a layer when it commits it; syncing the disk at every unmount would be paid for nothing.
        fsconfig_set_flag(&context, "volatile")?;
    }
    // Layers must mean the same wherever they are stacked: nothing may refer to the layers they were made on.
    fsconfig_set_string(&context, "index", "off")?;
    if stave_store::owner::may_be_recorded() {
        // In a user namespace `trusted.*` attributes are out of reach. Implies what is set otherwise.
        fsconfig_set_flag(&context, "userxattr")?;
    } else {
        fsconfig_set_string(&context, "redirect_dir", "off")?;
        fsconfig_set_string(&context, "metacopy", "off")?;
    }
    fsconfig_create(&context)?;
    let attributes =
        if upper.is_some() { MountAttrFlags::empty() } else { MountAttrFlags::MOUNT_ATTR_RDONLY };
    Ok(fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
}

fn text(path: &Path) -> std::io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Needs the right to mount, as the product does: without it this fails and says so.
    #[test]
    fn a_view_merges_and_writes_go_up() {
        let directory = tempfile::tempdir().expect("tempdir");
        let path = |name: &str| directory.path().join(name);
        for name in ["low", "top", "upper", "work"] {
            std::fs::create_dir(path(name)).expect("mkdir");
        }
        std::fs::write(path("low/a"), "low").expect("write");
        std::fs::write(path("low/b"), "low").expect("write");
        std::fs::write(path("top/a"), "top").expect("write");
        let lowers = [path("top"), path("low")];
        let view = readable(&lowers, || Ok(directory.path().to_owned()))
            .expect("mounting an overlay needs CAP_SYS_ADMIN");
        assert_eq!(view.read_file(Path::new("a"), 10).expect("read"), b"top");
        assert_eq!(view.read_file(Path::new("b"), 10).expect("read"), b"low");
        let writable = writable(&lowers, &path("upper"), &path("work")).expect("overlay");
        rustix::fs::mkdirat(writable.fd(), "made", rustix::fs::Mode::from_raw_mode(0o755)).expect("mkdir");
        drop(writable);
        assert!(path("upper/made").is_dir());
        assert!(!path("top/made").exists());
    }
}
