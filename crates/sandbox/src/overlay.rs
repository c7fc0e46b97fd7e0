//! Mounting an overlay of many layers, by the new mount API and, on older kernels, by `mount(2)`.
//!
//! Must not know sandboxes. Read [`mount_overlay_at`] first.
//!
//! Options: `index`, `metacopy` and `redirect_dir` are off, because the upper directory becomes an image layer and
//! must hold whole files and directories; `userxattr` inside a user namespace, where `trusted.*` is out of reach.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{LazyLock, Mutex, PoisonError};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags,
    fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, mount, move_mount, open_tree,
    unmount,
};

use crate::mount::OverlayLayers;

/// The kernel's limit on read-only layers.
pub(crate) const MAX_LOWER_LAYERS: usize = 500;
/// Longest value `fsconfig` takes, without the NUL.
const MAX_PARAMETER: usize = 255;
/// Longest option string `mount(2)` takes, without the NUL.
const MAX_OPTIONS: usize = 4095;

/// Mounts the overlay on the existing directory `at`.
pub(crate) fn mount_overlay_at(layers: &OverlayLayers, nodev: bool, at: &Path) -> io::Result<()> {
    if layers.lower.is_empty() || layers.lower.len() > MAX_LOWER_LAYERS {
        let reason = format!("{} layers, expected 1 to {MAX_LOWER_LAYERS}", layers.lower.len());
        return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
    }
    if LEGACY.load(Ordering::Relaxed) {
        return match mount_legacy(layers, nodev, at) {
            // One that is older by its number may know the calls all the same.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                mount_listed(layers, nodev, at).map_err(|_| error)
            }
            other => other,
        };
    }
    match mount_listed(layers, nodev, at) {
        Err(error)
            if error.kind() == io::ErrorKind::InvalidInput && mount_legacy(layers, nodev, at).is_ok() =>
        {
            LEGACY.store(true, Ordering::Relaxed);
            Ok(())
        }
        other => other,
    }
}

/// Mounts it by the calls that take a list of layers.
fn mount_listed(layers: &OverlayLayers, nodev: bool, at: &Path) -> io::Result<()> {
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let mounted = configure(&context, layers).and_then(|()| {
        let attributes = if nodev { MountAttrFlags::MOUNT_ATTR_NODEV } else { MountAttrFlags::empty() };
        fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
    });
    let mounted = mounted.map_err(|error| explain(&context, error))?;
    move_mount(&mounted, "", CWD, at, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    Ok(())
}

/// Whether only `mount(2)` takes many layers here.
static LEGACY: LazyLock<AtomicBool> =
    LazyLock::new(|| AtomicBool::new(is_older(&rustix::system::uname().release().to_string_lossy())));

/// Kernels before 6.5 do not know `lowerdir+`: they say so at the end only, and write each try into their log.
fn is_older(release: &str) -> bool {
    let mut numbers = release.split(|letter: char| !letter.is_ascii_digit()).map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor) < (6, 5),
        _ => false,
    }
}

/// An overlay that is mounted nowhere, by way of the existing directory `at`, which nobody else may use meanwhile: for
/// kernels before 6.5, whose new mount calls take no list of layers.
pub(crate) fn detached_legacy(layers: &OverlayLayers, at: &Path) -> io::Result<OwnedFd> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    mount_legacy(layers, false, at)?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let detached = open_tree(CWD, at, flags);
    unmount(at, UnmountFlags::DETACH)?;
    Ok(detached?)
}

fn configure(context: &OwnedFd, layers: &OverlayLayers) -> rustix::io::Result<()> {
    for lower in &layers.lower {
        append_lower(context, lower)?;
    }
    if let Some((upper, work)) = &layers.upper {
        set_path(context, "upperdir", upper)?;
        set_path(context, "workdir", work)?;
        fsconfig_set_string(context.as_fd(), "index", "off")?;
        // `userxattr` implies both, and does not let them be named.
        if !in_user_namespace() {
            fsconfig_set_string(context.as_fd(), "metacopy", "off")?;
            fsconfig_set_string(context.as_fd(), "redirect_dir", "off")?;
        }
        if layers.volatile {
            fsconfig_set_flag(context.as_fd(), "volatile")?;
        }
    }
    if in_user_namespace() {
        fsconfig_set_flag(context.as_fd(), "userxattr")?;
    }
    fsconfig_set_string(context.as_fd(), "source", "overlay")?;
    fsconfig_create(context.as_fd())
}

fn append_lower(context: &OwnedFd, path: &Path) -> rustix::io::Result<()> {
    set_path(context, "lowerdir+", path)
}

/// Sets a path option. The kernel resolves it at once, so a path too long for an option goes by a descriptor.
fn set_path(context: &OwnedFd, key: &str, path: &Path) -> rustix::io::Result<()> {
    if path.as_os_str().len() <= MAX_PARAMETER {
        return fsconfig_set_string(context.as_fd(), key, path);
    }
    let directory = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    fsconfig_set_string(context.as_fd(), key, format!("/proc/self/fd/{}", directory.as_raw_fd()))
}

/// Adds what the kernel logged to the context to the error, since `EINVAL` alone says nothing.
fn explain(context: &OwnedFd, error: rustix::io::Errno) -> io::Error {
    let mut messages = Vec::new();
    let mut buffer = [0; 1024];
    while let Ok(length @ 1..) = rustix::io::read(context, &mut buffer) {
        // Each message starts with its level, as in `e overlay: …`.
        messages
            .push(String::from_utf8_lossy(&buffer[..length]).trim_end().chars().skip(2).collect::<String>());
    }
    let error = io::Error::from(error);
    if messages.is_empty() {
        return error;
    }
    io::Error::new(error.kind(), format!("{error}: {}", messages.join("; ")))
}

/// The same overlay by `mount(2)`; layers go by descriptor to keep the one option string short.
fn mount_legacy(layers: &OverlayLayers, nodev: bool, at: &Path) -> io::Result<()> {
    let open = |path: &Path| rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
    let name = |fd: &OwnedFd| format!("/proc/self/fd/{}", fd.as_raw_fd());
    let lower = layers.lower.iter().map(|path| open(path)).collect::<Result<Vec<_>, _>>()?;
    let mut options = format!("lowerdir={}", lower.iter().map(name).collect::<Vec<_>>().join(":"));
    let upper =
        layers.upper.as_ref().map(|(upper, work)| Ok::<_, rustix::io::Errno>((open(upper)?, open(work)?)));
    let upper = upper.transpose()?;
    if let Some((upper, work)) = &upper {
        options.push_str(&format!(",upperdir={},workdir={}", name(upper), name(work)));
        options.push_str(if in_user_namespace() {
            ",index=off"
        } else {
            ",index=off,metacopy=off,redirect_dir=off"
        });
        if layers.volatile {
            options.push_str(",volatile");
        }
    }
    if in_user_namespace() {
        options.push_str(",userxattr");
    }
    if options.len() > MAX_OPTIONS {
        let reason = format!("{} layers are too many for this kernel (before 6.5)", layers.lower.len());
        return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
    }
    let flags = if nodev { MountFlags::NODEV } else { MountFlags::empty() };
    let options = std::ffi::CString::new(options)?;
    mount("overlay", at, "overlay", flags, options.as_c_str())?;
    Ok(())
}

/// Whether this process is in a user namespace other than the first: its ids are mapped there.
pub(crate) fn in_user_namespace() -> bool {
    !crate::ids::IdMap::current().is_initial()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// Runs on a thread with mounts of its own; without the right to that it fails in CI and says so elsewhere.
    fn privately(test: fn()) {
        let run = std::thread::spawn(move || {
            if let Err(error) = crate::sys::unshare(rustix::thread::UnshareFlags::NEWNS) {
                assert!(std::env::var_os("CI").is_none(), "needs root: {error}");
                eprintln!("not run: needs root: {error}");
                return;
            }
            let private =
                rustix::mount::MountPropagationFlags::PRIVATE | rustix::mount::MountPropagationFlags::REC;
            rustix::mount::mount_change("/", private).expect("private mounts");
            test();
        });
        run.join().expect("the test passes");
    }

    #[test]
    fn older_kernels_are_told_by_their_release() {
        for older in ["6.1.0-56-cloud-amd64", "5.15.0", "6.4-rc1", "4.18.0-553.el8"] {
            assert!(is_older(older), "{older}");
        }
        for newer in ["6.5.0", "6.18.44-fc", "7.0.0", "10.1", "", "unknown"] {
            assert!(!is_older(newer), "{newer}");
        }
    }

    #[test]
    fn older_kernels_get_a_mount_without_a_place() {
        privately(|| {
            let place = tempfile::tempdir_in("/var/tmp").expect("a directory");
            let path = |name: &str| place.path().join(name);
            for name in ["a", "b", "at"] {
                fs::create_dir(path(name)).expect("a directory");
                fs::write(path(name).join(format!("in-{name}")), "").expect("a file");
            }
            let layers = OverlayLayers { lower: vec![path("a"), path("b")], upper: None, volatile: false };
            let view = detached_legacy(&layers, &path("at")).expect("a mount");
            assert!(rustix::fs::statat(&view, "in-a", rustix::fs::AtFlags::empty()).is_ok());
            assert!(path("at/in-at").exists());
        });
    }

    #[test]
    fn older_kernels_get_the_same_mount() {
        privately(|| {
            let place = tempfile::tempdir_in("/var/tmp").expect("a directory");
            let path = |name: &str| place.path().join(name);
            for name in ["a", "b", "upper", "work", "at"] {
                fs::create_dir(path(name)).expect("a directory");
                fs::write(path(name).join(format!("in-{name}")), "").expect("a file");
            }
            fs::remove_file(path("work/in-work")).expect("an empty directory");
            let upper = Some((path("upper"), path("work")));
            let layers = OverlayLayers { lower: vec![path("a"), path("b")], upper, volatile: true };
            mount_legacy(&layers, true, &path("at")).expect("a mount");
            let mut names: Vec<_> =
                fs::read_dir(path("at")).expect("entries").map(|e| e.expect("one").file_name()).collect();
            names.sort();
            assert_eq!(names, ["in-a", "in-b", "in-upper"]);
            rustix::mount::unmount(path("at"), rustix::mount::UnmountFlags::empty()).expect("not busy");
        });
    }

    #[test]
    fn the_kernels_reason_is_part_of_the_error() {
        privately(|| {
            let place = tempfile::tempdir_in("/var/tmp").expect("a directory");
            let path = |name: &str| place.path().join(name);
            for name in ["a", "at"] {
                fs::create_dir(path(name)).expect("a directory");
            }
            fs::write(path("file"), "").expect("a file");
            let layers = OverlayLayers { lower: vec![path("a"), path("file")], upper: None, volatile: false };
            let error = mount_overlay_at(&layers, false, &path("at")).expect_err("a file as a layer");
            assert!(error.to_string().contains("is not a directory"), "{error}");
        });
    }
}
