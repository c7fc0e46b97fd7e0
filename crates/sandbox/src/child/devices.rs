//! `/dev`: an empty file system in memory with the devices every container has.
//!
//! The devices are the host's, bound one by one through read-only mounts: they can be used, not changed.
//! Read [`prepare`] first.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode};
use rustix::mount::MountAttrFlags;

use super::mounts::{After, HARDENED, Prepared, file_system, make, open_tree};
use crate::channel::{AtStep as _, Failure};
use crate::error::SetupStep;
use crate::ids::IdMap;
use crate::spec::{SandboxSpec, Security};
use crate::stubs::PointKind;
use crate::sys::{MountFlags, restrict_mount};

const DEVICES: [&str; 6] = ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty"];
const DIRECTORIES: [&str; 3] = ["/dev/pts", "/dev/shm", "/dev/mqueue"];
/// Name and what it points to, as docker has them.
const LINKS: [(&str, &str); 6] = [
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
    ("/dev/core", "/proc/kcore"),
    ("/dev/ptmx", "pts/ptmx"),
];
/// What runc gives `/dev`.
const SIZE: &str = "65536k";

/// Makes `/dev` and what is mounted in it.
pub(super) fn prepare(spec: &SandboxSpec) -> Result<Vec<Prepared<'static>>, Failure> {
    let step = SetupStep::MountDev;
    let nosuid = MountAttrFlags::MOUNT_ATTR_NOSUID;
    let flags = match spec.security {
        Security::Default => nosuid | MountAttrFlags::MOUNT_ATTR_NODEV,
        Security::Insecure => nosuid,
    };
    let mut dev = file_system("/dev", step, || make("tmpfs", &[("mode", "755"), ("size", SIZE)], flags))?;
    dev.after = After::PopulateDev;
    let mut prepared = vec![dev];
    for device in DEVICES {
        let bind = || -> io::Result<_> {
            let tree = open_tree(CWD, Path::new(device), false)?;
            restrict_mount(tree.as_fd(), MountFlags { readonly: true, nosuid: true, nodev: false }, false)?;
            Ok(tree)
        };
        let mount = bind().with(step, device)?;
        let target = Path::new(device);
        prepared.push(Prepared { mount, target, kind: PointKind::File, step, after: After::Nothing });
    }
    let mut pts = vec![("newinstance", ""), ("ptmxmode", "0666"), ("mode", "0620")];
    // The group `tty` of every distribution, where it exists.
    if IdMap::current().has_gid(5) {
        pts.push(("gid", "5"));
    }
    let no_programs = nosuid | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    prepared.push(file_system("/dev/pts", step, || make("devpts", &pts, no_programs))?);
    // A mount of the caller's own takes its place.
    if !spec.mounts.iter().any(|mount| mount.target() == Path::new("/dev/shm")) {
        let size = spec.shm_size.to_string();
        let shm = [("mode", "1777"), ("size", size.as_str())];
        prepared.push(file_system("/dev/shm", step, || make("tmpfs", &shm, HARDENED))?);
    }
    prepared.push(file_system("/dev/mqueue", step, || make("mqueue", &[], HARDENED))?);
    Ok(prepared)
}

/// Fills the new `/dev` with what is no mount, and with the points for those that are.
pub(super) fn populate(dev: &OwnedFd) -> io::Result<()> {
    for directory in DIRECTORIES {
        rustix::fs::mkdirat(dev, name_of(directory), Mode::from_raw_mode(0o755))?;
    }
    for (link, target) in LINKS {
        rustix::fs::symlinkat(target, dev, name_of(link))?;
    }
    for device in DEVICES {
        create_file(dev, name_of(device))?;
    }
    Ok(())
}

/// The name of one of our own paths in `/dev`.
fn name_of(path: &'static str) -> &'static str {
    path.trim_start_matches("/dev/")
}

/// Whether something of ours has this name in `/dev`.
pub(super) fn is_own(name: &OsStr) -> bool {
    let links = LINKS.iter().map(|(link, _)| *link);
    DIRECTORIES.into_iter().chain(DEVICES).chain(links).any(|path| name == name_of(path))
}

/// An empty file to mount on.
pub(super) fn create_file(at: impl AsFd, path: &str) -> io::Result<()> {
    use rustix::fs::OFlags;
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    drop(rustix::fs::openat(at, path, flags, Mode::from_raw_mode(0o644))?);
    Ok(())
}
