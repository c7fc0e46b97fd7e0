//! What a sandbox has whatever runs in it: namespaces, and `/proc`, `/sys` and `/dev` with everything in them.
//!
//! Owns how it is made before anybody knows the root file system, so that a waiting process needs only to place it.
//! Must not know who waits. Read [`Ground::make`] first.

use std::os::fd::OwnedFd;
use std::path::{Component, Path};

use rustix::fs::{CWD, Mode};
use rustix::mount::{MountPropagationFlags, UnmountFlags};
use rustix::thread::UnshareFlags;

use super::mounts::{self, HARDENED, Prepared};
use super::root::Root;
use super::{STAGING, devices};
use crate::cgroup::CgroupHierarchy;
use crate::channel::{AtStep as _, Failure, Request};
use crate::error::SetupStep;
use crate::spec::{MountSpec, Network, Process, RootFs, SandboxSpec, Security};
use crate::sys;

/// Where the ground lies in a root.
const PLACES: [&str; 3] = ["/proc", "/sys", "/dev"];

/// What has to be known to make the ground of a sandbox: its specification without all that is placed later.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Model(SandboxSpec);

impl Model {
    /// The model of a request; `None` if its ground cannot be made beforehand.
    pub(crate) fn of(request: &Request) -> Option<Self> {
        let spec = &request.spec;
        let is_usual = spec.security == Security::Default
            && spec.network == Network::Host
            && spec.sysctls.is_empty()
            // What the caller mounted since this process left its mount namespace is not seen from there.
            && matches!(spec.rootfs, RootFs::Overlay(_))
            && !spec.mounts.iter().any(|mount| matches!(mount, MountSpec::Bind { .. }))
            && request.cgroup_procs.is_empty()
            && request.freezer.is_none()
            && request.cgroup_controllers.is_empty()
            && spec.mounts.iter().all(|mount| is_beside(mount.target()))
            // Elsewhere there is nothing yet that could be masked.
            && spec.masked_paths.iter().chain(&spec.readonly_paths).all(|path| is_within(path));
        is_usual.then(|| {
            let mut process = Process::new(Vec::new());
            process.capabilities = spec.process.capabilities;
            let mut model = SandboxSpec::new(RootFs::Directory { path: "/".into() }, process);
            model.network = spec.network;
            model.masked_paths.clone_from(&spec.masked_paths);
            model.readonly_paths.clone_from(&spec.readonly_paths);
            model.shm_size = spec.shm_size;
            Self(model)
        })
    }
}

/// Whether a path is one of the ground.
fn is_within(path: &Path) -> bool {
    let goes_up = path.components().any(|part| part == Component::ParentDir);
    !goes_up && PLACES.iter().any(|place| path.starts_with(place))
}

/// Whether a mount at `target` leaves alone what the ground has.
fn is_beside(target: &Path) -> bool {
    let mut parts =
        target.components().filter(|part| !matches!(part, Component::RootDir | Component::CurDir));
    match (parts.next(), parts.next()) {
        (Some(Component::Normal(top)), below) => {
            top != "proc" && top != "sys" && (top != "dev" || is_device(below))
        }
        _ => false,
    }
}

/// Whether a name in `/dev` is nobody's but the mount's.
fn is_device(name: Option<Component<'_>>) -> bool {
    let Some(Component::Normal(name)) = name else { return false };
    !devices::is_own(name)
}

/// Detached trees, one for each of [`PLACES`].
pub(crate) struct Ground(Vec<(OwnedFd, &'static str)>);

impl Ground {
    /// Leaves the host's namespaces and makes the ground: this process is the first of a new pid namespace.
    pub(crate) fn make(Model(spec): &Model, hierarchy: CgroupHierarchy) -> Result<Self, Failure> {
        leave_namespaces(UnshareFlags::empty())?;
        let step = SetupStep::PrivateMounts;
        let stage = mounts::make("tmpfs", &[("mode", "755")], HARDENED).at(step)?;
        for place in PLACES {
            rustix::fs::mkdirat(&stage, &place[1..], Mode::from_raw_mode(0o755)).at(step)?;
        }
        mounts::attach(&stage, CWD, Path::new(STAGING)).at(step)?;
        let mut root = Root::at(Path::new(STAGING)).at(step)?;
        for mount in mounts::basic(spec, &[], hierarchy)? {
            mount.place(&mut root)?;
        }
        mounts::mask(&root, &spec.masked_paths)?;
        mounts::protect(&root, &spec.readonly_paths)?;
        let tree = |place: &'static str| -> Result<_, Failure> {
            let point = root.find(Path::new(place)).with(step, place)?;
            Ok((mounts::open_tree(point, Path::new(""), true).with(step, place)?, place))
        };
        let trees = PLACES.into_iter().map(tree).collect::<Result<_, _>>()?;
        rustix::mount::unmount(STAGING, UnmountFlags::DETACH).at(step)?;
        Ok(Self(trees))
    }

    /// What is to be placed in the root.
    pub(super) fn prepared(self) -> Vec<Prepared<'static>> {
        let prepared = |(mount, target)| Prepared::directory(mount, target, SetupStep::MountProc);
        self.0.into_iter().map(prepared).collect()
    }
}

/// Leaves the host's namespaces, those in `more` with the usual ones.
pub(super) fn leave_namespaces(more: UnshareFlags) -> Result<(), Failure> {
    let usual = UnshareFlags::NEWNS | UnshareFlags::NEWUTS | UnshareFlags::NEWIPC | UnshareFlags::NEWCGROUP;
    sys::unshare(usual | more).at(SetupStep::Namespaces)?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private).at(SetupStep::PrivateMounts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::OverlayRoot;

    fn overlay(upper: &str) -> RootFs {
        let (lower, upper, work) = (Vec::new(), upper.into(), "/work".into());
        RootFs::Overlay(OverlayRoot { lower, upper, work, volatile: true, stubs: None })
    }

    fn request(change: impl FnOnce(&mut SandboxSpec)) -> Request {
        let rootfs = overlay("/somewhere");
        let mut spec = SandboxSpec::new(rootfs, Process::new(vec!["true".into()]));
        spec.network = Network::Host;
        change(&mut spec);
        let (cgroup_procs, cgroup_controllers) = (Vec::new(), Vec::new());
        Request { spec, cgroup_procs, cgroup_controllers, freezer: None, announces: None }
    }

    #[track_caller]
    fn check(change: impl FnOnce(&mut SandboxSpec), is_same: bool) {
        let usual = Model::of(&request(|_| ()));
        assert!(usual.is_some());
        assert_eq!(Model::of(&request(change)) == usual, is_same);
    }

    #[test]
    fn a_model_has_what_the_ground_is_made_of() {
        let tmpfs = |target: &str| MountSpec::Tmpfs { target: target.into(), size: None, mode: 0o755 };
        check(|spec| spec.hostname = "other".into(), true);
        check(|spec| spec.rootfs = overlay("/other"), true);
        check(|spec| spec.rootfs = RootFs::Directory { path: "/other".into() }, false);
        let (source, target) = ("/seen/here".into(), "/x".into());
        let bind = MountSpec::Bind { source, target, readonly: true, recursive: true };
        check(|spec| spec.mounts.push(bind), false);
        check(|spec| spec.mounts.push(tmpfs("/data/proc")), true);
        check(|spec| spec.mounts.push(tmpfs("/dev/acme")), true);
        check(|spec| spec.mounts.push(tmpfs("/dev/shm")), false);
        check(|spec| spec.mounts.push(tmpfs("/dev/null/x")), false);
        check(|spec| spec.mounts.push(tmpfs("/./dev")), false);
        check(|spec| spec.mounts.push(tmpfs("/proc/x")), false);
        check(|spec| spec.mounts.push(tmpfs("/a/../sys")), true);
        check(|spec| spec.mounts.push(tmpfs("/../sys")), false);
        check(|spec| spec.network = Network::None, false);
        check(|spec| spec.security = Security::Insecure, false);
        check(|spec| spec.shm_size = 1 << 20, false);
        let sysctl = crate::Sysctl { name: "kernel.shmmni".to_owned(), value: "7".to_owned() };
        check(|spec| spec.sysctls.push(sysctl), false);
        check(|spec| spec.masked_paths.clear(), false);
        check(|spec| spec.masked_paths.push("/etc/secret".into()), false);
        check(|spec| spec.masked_paths.push("/proc/../etc/secret".into()), false);
        check(|spec| spec.readonly_paths.push("/usr".into()), false);
        assert!(Model::of(&request(|spec| spec.readonly_paths.push("/usr".into()))).is_none());
        assert!(Model::of(&request(|spec| spec.masked_paths.push("/proc/x".into()))).is_some());
        check(|spec| spec.process.capabilities = crate::CapabilitySet::EMPTY, false);
    }
}
