//! The mounts of a sandbox: made detached while host paths can be seen, placed once the root has changed.
//!
//! Read [`basic`] and [`asked_for`] first, then [`Prepared::place`].

use std::io::{self, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Gid, Mode, OFlags, Uid};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen,
};

use super::devices;
use super::root::Root;
use crate::cgroup::CgroupHierarchy;
use crate::channel::{AtStep as _, Failure};
use crate::error::SetupStep;
use crate::ids::IdMap;
use crate::spec::{MountSpec, SandboxSpec, Security};
use crate::stubs::PointKind;
use crate::sys::{MountFlags, restrict_mount};
use crate::sysctl;

/// A detached mount and where it belongs.
pub(super) struct Prepared<'a> {
    pub(super) mount: OwnedFd,
    pub(super) target: &'a Path,
    pub(super) kind: PointKind,
    pub(super) step: SetupStep,
    /// What its own place needs before the next mount.
    pub(super) after: After,
}

/// What follows the placing of a mount.
pub(super) enum After {
    Nothing,
    /// Directories and links of `/dev`.
    PopulateDev,
}

impl Prepared<'_> {
    /// A mount on a directory.
    pub(super) fn directory(mount: OwnedFd, target: &'static str, step: SetupStep) -> Prepared<'static> {
        let target = Path::new(target);
        Prepared { mount, target, kind: PointKind::Directory, step, after: After::Nothing }
    }

    /// Attaches it inside the root, making the mount point when it is missing.
    pub(super) fn place(self, root: &mut Root) -> Result<(), Failure> {
        let point =
            root.mount_point(self.target, self.kind).with(SetupStep::MountPoint, self.target.display())?;
        attach_onto(&self.mount, &point).with(self.step, self.target.display())?;
        match self.after {
            After::Nothing => Ok(()),
            After::PopulateDev => {
                devices::populate(&self.mount).with(SetupStep::MountDev, self.target.display())
            }
        }
    }
}

/// Makes what every sandbox has mounted, in the order it is to be placed.
pub(super) fn basic(
    spec: &SandboxSpec,
    controllers: &[String],
    hierarchy: CgroupHierarchy,
) -> Result<Vec<Prepared<'static>>, Failure> {
    let proc = proc().at(SetupStep::MountProc)?;
    sysctl::set(&proc, &spec.sysctls)?;
    let mut prepared = vec![Prepared::directory(proc, "/proc", SetupStep::MountProc)];
    let readonly = match spec.security {
        Security::Default => MountAttrFlags::MOUNT_ATTR_RDONLY,
        Security::Insecure => MountAttrFlags::empty(),
    };
    prepared.push(file_system("/sys", SetupStep::MountSys, || sysfs(readonly))?);
    prepared.extend(cgroups(controllers, hierarchy, HARDENED | readonly)?);
    prepared.extend(devices::prepare(spec)?);
    Ok(prepared)
}

/// Makes what was asked for beyond that.
pub(super) fn asked_for(spec: &SandboxSpec) -> Result<Vec<Prepared<'_>>, Failure> {
    let mut prepared = Vec::new();
    let files = FileMounts::make(spec)?;
    for mount in &spec.mounts {
        prepared.push(user_mount(mount, spec.security, &files)?);
    }
    Ok(prepared)
}

/// `/proc` of the sandbox's processes. In a container that masks parts of its own, the kernel refuses a user
/// namespace a whole one; then that of the container is bound: its processes are seen, but cannot be touched, since
/// their numbers mean nothing in here and their owner has more capabilities.
fn proc() -> io::Result<OwnedFd> {
    match make("proc", &[], HARDENED) {
        Err(error) if refused_in_user_namespace(&error) => {
            let tree = open_tree(CWD, Path::new("/proc"), true)?;
            restrict_mount(tree.as_fd(), MountFlags { readonly: false, nosuid: true, nodev: true }, true)?;
            Ok(tree)
        }
        other => other,
    }
}

/// `/sys`, as the network namespace shows it. Who does not own that one may only bind the host's, read-only.
fn sysfs(readonly: MountAttrFlags) -> io::Result<OwnedFd> {
    match make("sysfs", &[], HARDENED | readonly) {
        Err(error) if refused_in_user_namespace(&error) => {
            let tree = open_tree(CWD, Path::new("/sys"), true)?;
            restrict_mount(tree.as_fd(), MountFlags { readonly: true, nosuid: true, nodev: true }, true)?;
            Ok(tree)
        }
        other => other,
    }
}

fn refused_in_user_namespace(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EPERM) && crate::overlay::in_user_namespace()
}

/// Flags of file systems that hold neither programs nor devices.
pub(super) const HARDENED: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NOSUID
    .union(MountAttrFlags::MOUNT_ATTR_NODEV)
    .union(MountAttrFlags::MOUNT_ATTR_NOEXEC);

pub(super) fn file_system(
    target: &'static str,
    step: SetupStep,
    make: impl FnOnce() -> io::Result<OwnedFd>,
) -> Result<Prepared<'static>, Failure> {
    Ok(Prepared::directory(make().at(step)?, target, step))
}

/// A new, detached file system. An option without value is a flag.
pub(super) fn make(kind: &str, options: &[(&str, &str)], flags: MountAttrFlags) -> io::Result<OwnedFd> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(context.as_fd(), "source", kind)?;
    for (key, value) in options {
        match *value {
            "" => fsconfig_set_flag(context.as_fd(), *key)?,
            value => fsconfig_set_string(context.as_fd(), *key, value)?,
        }
    }
    fsconfig_create(context.as_fd())?;
    Ok(fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, flags)?)
}

/// A detached copy of the mount, or part of one, at `path`.
pub(super) fn open_tree(at: impl AsFd, path: &Path, recursive: bool) -> io::Result<OwnedFd> {
    let mut flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    Ok(rustix::mount::open_tree(at, path, flags)?)
}

/// Attaches a detached mount at a path.
pub(super) fn attach(mount: &OwnedFd, at: impl AsFd, path: &Path) -> io::Result<()> {
    Ok(rustix::mount::move_mount(mount, "", at, path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
}

fn attach_onto(mount: &OwnedFd, point: &OwnedFd) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(rustix::mount::move_mount(mount, "", point, "", flags)?)
}

/// The control group file systems: the unified one wherever it rules; v1 only for a sandbox with limits, since
/// each controller costs a mount.
fn cgroups(
    controllers: &[String],
    hierarchy: CgroupHierarchy,
    flags: MountAttrFlags,
) -> Result<Vec<Prepared<'static>>, Failure> {
    const AT: &str = "/sys/fs/cgroup";
    let step = SetupStep::MountCgroup;
    match hierarchy {
        CgroupHierarchy::V2 => match make("cgroup2", &[], flags) {
            // What `/sys` shows of it stays.
            Err(error) if refused_in_user_namespace(&error) => Ok(Vec::new()),
            made => Ok(vec![file_system(AT, step, || made)?]),
        },
        CgroupHierarchy::V1 | CgroupHierarchy::Hybrid if !controllers.is_empty() => {
            let base = file_system(AT, step, || make("tmpfs", &[("mode", "755")], HARDENED))?;
            let mut mounts = vec![base];
            for controller in controllers {
                let target = match controller.as_str() {
                    "memory" => "/sys/fs/cgroup/memory",
                    "cpu" => "/sys/fs/cgroup/cpu",
                    "cpuset" => "/sys/fs/cgroup/cpuset",
                    "pids" => "/sys/fs/cgroup/pids",
                    _ => continue,
                };
                mounts.push(file_system(target, step, || make("cgroup", &[(controller, "")], flags))?);
            }
            Ok(mounts)
        }
        CgroupHierarchy::V1 | CgroupHierarchy::Hybrid | CgroupHierarchy::Absent => Ok(Vec::new()),
    }
}

fn user_mount<'a>(
    mount: &'a MountSpec,
    security: Security,
    files: &FileMounts,
) -> Result<Prepared<'a>, Failure> {
    let nodev = security == Security::Default;
    let target = mount.target();
    match mount {
        MountSpec::Bind { source, readonly, recursive, .. } => {
            let step = SetupStep::OpenBind;
            let tree = open_tree(CWD, source, *recursive).with(step, source.display())?;
            let flags = MountFlags { readonly: *readonly, nodev, ..MountFlags::default() };
            restrict_mount(tree.as_fd(), flags, *recursive).with(step, source.display())?;
            let kind = kind_of(&tree).with(step, source.display())?;
            Ok(Prepared { mount: tree, target, kind, step: SetupStep::MountBind, after: After::Nothing })
        }
        MountSpec::Device { source, .. } => {
            let step = SetupStep::OpenBind;
            let tree = open_tree(CWD, source, false).with(step, source.display())?;
            let flags = MountFlags { nosuid: true, ..MountFlags::default() };
            restrict_mount(tree.as_fd(), flags, false).with(step, source.display())?;
            let kind = kind_of(&tree).with(step, source.display())?;
            Ok(Prepared { mount: tree, target, kind, step: SetupStep::MountDev, after: After::Nothing })
        }
        MountSpec::Tmpfs { size, mode, .. } => {
            let (mode, size) = (format!("{mode:o}"), size.map(|size| size.to_string()));
            let mut options = vec![("mode", mode.as_str())];
            options.extend(size.as_deref().map(|size| ("size", size)));
            let step = SetupStep::MountTmpfs;
            // Programs may be run from it: builds unpack and execute in memory.
            let mut flags = MountAttrFlags::MOUNT_ATTR_NOSUID;
            if nodev {
                flags |= MountAttrFlags::MOUNT_ATTR_NODEV;
            }
            let tmpfs = make("tmpfs", &options, flags).with(step, target.display())?;
            Ok(Prepared { mount: tmpfs, target, kind: PointKind::Directory, step, after: After::Nothing })
        }
        MountSpec::File { .. } => {
            let step = SetupStep::MountFile;
            let file = files.mount(mount).with(step, target.display())?;
            Ok(Prepared { mount: file, target, kind: PointKind::File, step, after: After::Nothing })
        }
    }
}

fn kind_of(tree: &OwnedFd) -> io::Result<PointKind> {
    let stat = rustix::fs::fstat(tree)?;
    let directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
    Ok(if directory { PointKind::Directory } else { PointKind::File })
}

/// One file system in memory for all generated files, from which each is bound.
struct FileMounts(Option<OwnedFd>);

/// The name of the one generated file while it is being made.
const FILE_NAME: &str = "file";

impl FileMounts {
    /// Attached at the staging place, since older kernels bind only from attached mounts; the change of root lets
    /// go of it.
    fn make(spec: &SandboxSpec) -> Result<Self, Failure> {
        if !spec.mounts.iter().any(|mount| matches!(mount, MountSpec::File { .. })) {
            return Ok(Self(None));
        }
        let step = SetupStep::MountFile;
        let tmpfs = make("tmpfs", &[("mode", "700")], HARDENED).at(step)?;
        attach(&tmpfs, CWD, Path::new(super::STAGING)).at(step)?;
        Ok(Self(Some(tmpfs)))
    }

    fn mount(&self, mount: &MountSpec) -> io::Result<OwnedFd> {
        let (Self(Some(tmpfs)), MountSpec::File { contents, mode, uid, gid, .. }) = (self, mount) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        let file = rustix::fs::openat(tmpfs, FILE_NAME, flags, Mode::from_raw_mode(0o600))?;
        let mut file = std::fs::File::from(file);
        file.write_all(contents)?;
        // Who does not exist here cannot own it; everybody here is the file's owner then.
        let ids = IdMap::current();
        let uid = ids.has_uid(*uid).then(|| Uid::from_raw(*uid));
        let gid = ids.has_gid(*gid).then(|| Gid::from_raw(*gid));
        rustix::fs::fchown(&file, uid, gid)?;
        rustix::fs::fchmod(&file, Mode::from_raw_mode(*mode))?;
        drop(file);
        let tree = open_tree(tmpfs, Path::new(FILE_NAME), false)?;
        restrict_mount(tree.as_fd(), MountFlags { readonly: true, nosuid: true, nodev: true }, false)?;
        // Renamed, since an unlinked file cannot be mounted; the name is not reachable from inside.
        let kept = format!("{FILE_NAME}-{}", std::os::fd::AsRawFd::as_raw_fd(&tree));
        rustix::fs::renameat(tmpfs, FILE_NAME, tmpfs, kept)?;
        Ok(tree)
    }
}

/// Hides paths: directories behind one empty read-only file system, files behind `/dev/null`.
pub(super) fn mask(root: &Root, paths: &[PathBuf]) -> Result<(), Failure> {
    let mut empty: Option<OwnedFd> = None;
    for path in paths {
        let Ok(point) = root.find(path) else { continue };
        let hide = |empty: &mut Option<OwnedFd>| -> io::Result<()> {
            if kind_of(&point)? == PointKind::File {
                let null = open_tree(CWD, Path::new("/dev/null"), false)?;
                restrict_mount(
                    null.as_fd(),
                    MountFlags { readonly: true, nosuid: true, nodev: false },
                    false,
                )?;
                return attach_onto(&null, &point);
            }
            if let Some(attached) = empty {
                return attach_onto(&open_tree(&*attached, Path::new(""), false)?, &point);
            }
            let fresh = make("tmpfs", &[("size", "0")], HARDENED | MountAttrFlags::MOUNT_ATTR_RDONLY)?;
            attach_onto(&fresh, &point)?;
            *empty = Some(fresh);
            Ok(())
        };
        hide(&mut empty).with(SetupStep::MaskPath, path.display())?;
    }
    Ok(())
}

/// Makes paths read-only, with everything mounted below them.
pub(super) fn protect(root: &Root, paths: &[PathBuf]) -> Result<(), Failure> {
    for path in paths {
        let Ok(point) = root.find(path) else { continue };
        let protect = || -> io::Result<()> {
            let tree = open_tree(&point, Path::new(""), true)?;
            let flags = MountFlags { readonly: true, ..MountFlags::default() };
            restrict_mount(tree.as_fd(), flags, true)?;
            attach_onto(&tree, &point)
        };
        protect().with(SetupStep::ReadonlyPath, path.display())?;
    }
    Ok(())
}
