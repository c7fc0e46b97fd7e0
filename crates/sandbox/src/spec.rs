//! What a sandbox is to be: root file system, mounts, process, isolation. Plain data, no kernel calls.
//!
//! Must not know how any of it is done. Read [`SandboxSpec`] first.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::capability::CapabilitySet;
use crate::cgroup::{CgroupLimits, CgroupParent};
use crate::error::SpawnError;
use crate::sysctl::Sysctl;
use crate::user_network::UserNetworkProgram;

/// The search path used when the process's environment has no `PATH`: docker's default for Linux.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Size of `/dev/shm` in bytes when nobody asks for another: docker's 64 MiB.
pub const DEFAULT_SHM_SIZE: u64 = 64 << 20;

/// The kernel's limit on host names, in bytes.
const MAX_HOSTNAME: usize = 64;

/// Paths hidden from the process, as docker hides them.
const MASKED_PATHS: &[&str] = &[
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

/// Paths the process may read but never write, as docker has them.
const READONLY_PATHS: &[&str] = &["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Everything needed to start one sandbox.
///
/// Invariant: strings hold no NUL byte; paths are UTF-8 (both checked when it is spawned).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxSpec {
    /// The root file system.
    pub rootfs: RootFs,
    /// Whether the root file system refuses writes (mounts on it keep their own mode).
    pub readonly_root: bool,
    /// Mounts on top of the root, in this order.
    pub mounts: Vec<MountSpec>,
    /// What runs inside.
    pub process: Process,
    /// Host name seen inside; empty keeps the host's.
    pub hostname: String,
    /// Which network the process sees.
    pub network: Network,
    /// How far the process is confined.
    pub security: Security,
    /// Absolute paths inside that are hidden; those that do not exist are skipped. Ignored for [`Security::Insecure`].
    pub masked_paths: Vec<PathBuf>,
    /// Absolute paths inside that are made read-only; missing ones are skipped. Ignored for [`Security::Insecure`].
    pub readonly_paths: Vec<PathBuf>,
    /// Resource limits; `None` creates no control group, unless a parent is named.
    pub cgroup: Option<CgroupLimits>,
    /// The group in which the sandbox's is made.
    pub cgroup_parent: CgroupParent,
    /// Size of `/dev/shm` in bytes.
    pub shm_size: u64,
    /// Kernel parameters of its own namespaces.
    pub sysctls: Vec<Sysctl>,
}

impl SandboxSpec {
    /// A sandbox as docker starts it by default: no network, default confinement, no extra mounts.
    #[must_use]
    pub fn new(rootfs: RootFs, process: Process) -> Self {
        Self {
            rootfs,
            readonly_root: false,
            mounts: Vec::new(),
            process,
            hostname: String::new(),
            network: Network::None,
            security: Security::Default,
            masked_paths: MASKED_PATHS.iter().map(PathBuf::from).collect(),
            readonly_paths: READONLY_PATHS.iter().map(PathBuf::from).collect(),
            cgroup: None,
            cgroup_parent: CgroupParent::Default,
            shm_size: DEFAULT_SHM_SIZE,
            sysctls: Vec::new(),
        }
    }
}

impl SandboxSpec {
    /// Checks what the types cannot say.
    pub(crate) fn validate(&self) -> Result<(), SpawnError> {
        let invalid = |reason: String| Err(SpawnError::InvalidSpec { reason });
        let process = &self.process;
        if process.args.first().is_none_or(String::is_empty) {
            return invalid("no command specified".into());
        }
        if process.args.iter().chain(&process.env).chain([&self.hostname]).any(|text| text.contains('\0')) {
            return invalid("a NUL byte in an argument, the environment or the host name".into());
        }
        if self.hostname.len() > MAX_HOSTNAME {
            return invalid(format!("host name `{}` is longer than {MAX_HOSTNAME} bytes", self.hostname));
        }
        let inside = self.mounts.iter().map(MountSpec::target).chain([process.cwd.as_path()]);
        let inside = inside.chain(self.masked_paths.iter().chain(&self.readonly_paths).map(PathBuf::as_path));
        if let Some(path) = inside.into_iter().find(|path| !path.is_absolute()) {
            return invalid(format!("path `{}` is not absolute", path.display()));
        }
        if let Some(mount) = self.mounts.iter().find(|mount| mount.target() == Path::new("/")) {
            return invalid(format!("a mount on the root `{}` itself", mount.target().display()));
        }
        if let Some(reason) = self.sysctls.iter().find_map(|sysctl| sysctl.refusal(self.network)) {
            return invalid(reason);
        }
        if matches!(self.rootfs, RootFs::Chroot { .. }) {
            if !self.sysctls.is_empty() {
                return invalid("kernel parameters need namespaces, which cannot be made here".into());
            }
            if self.network != Network::Host {
                return invalid(
                    "a network of its own needs a network namespace, which cannot be made here".into(),
                );
            }
            if self.readonly_root {
                return invalid("a read-only root needs a mount, which cannot be made here".into());
            }
            if let Some(mount) = self.mounts.first() {
                return invalid(format!(
                    "`{}` needs a mount, which cannot be made here",
                    mount.target().display()
                ));
            }
        }
        match self.paths().find(|path| path.to_str().is_none_or(|path| path.contains('\0'))) {
            Some(path) => invalid(format!("path `{}` is not UTF-8 or holds a NUL byte", path.display())),
            None => Ok(()),
        }
    }

    fn paths(&self) -> impl Iterator<Item = &Path> {
        let mounts = self.mounts.iter().flat_map(|mount| {
            let source = match mount {
                MountSpec::Bind { source, .. } | MountSpec::Device { source, .. } => Some(source.as_path()),
                MountSpec::Tmpfs { .. } | MountSpec::File { .. } => None,
            };
            [Some(mount.target()), source]
        });
        let root: Vec<&PathBuf> = match &self.rootfs {
            RootFs::Directory { path } | RootFs::Chroot { path } => vec![path],
            RootFs::Overlay(root) => {
                root.lower.iter().chain([&root.upper, &root.work]).chain(&root.stubs).collect()
            }
        };
        let lists = self.masked_paths.iter().chain(&self.readonly_paths).chain([&self.process.cwd]);
        mounts.flatten().chain(root.into_iter().chain(lists).map(PathBuf::as_path))
    }
}

/// The root file system of a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum RootFs {
    /// An overlay mounted for this sandbox alone; it is gone with the sandbox.
    Overlay(OverlayRoot),
    /// An existing directory, used in place.
    Directory {
        /// The directory on the host.
        path: PathBuf,
    },
    /// An existing directory that becomes the root by chroot(2), where no namespaces can be made: no mounts, no
    /// network, no processes and no host name of its own. It holds all that is to be seen, `/dev` included; a spec
    /// with mounts or a network is refused.
    Chroot {
        /// The directory on the host.
        path: PathBuf,
    },
}

/// An overlay root.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OverlayRoot {
    /// Read-only layers, top first; at most 500.
    pub lower: Vec<PathBuf>,
    /// Receives the changes.
    pub upper: PathBuf,
    /// Overlay's own scratch directory: empty, on the file system of `upper`.
    pub work: PathBuf,
    /// Skips syncing `upper` on unmount: whoever keeps `upper` must sync it.
    pub volatile: bool,
    /// A directory for mount-point stubs, best on the file system of `upper`, shared by the sandboxes of one
    /// process; created when missing. The stubs become the lowest layers, so that mount points exist without
    /// ever entering `upper`. With `None`, missing mount points are made in `upper` and reported by
    /// [`Sandbox::created_mount_points`](crate::Sandbox::created_mount_points).
    pub stubs: Option<PathBuf>,
}

/// One mount on top of the root. Targets are absolute paths inside; symbolic links in them are followed inside
/// the root and cannot leave it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum MountSpec {
    /// A file or directory of the host.
    Bind {
        /// Path on the host.
        source: PathBuf,
        /// Path inside.
        target: PathBuf,
        /// Refuses writes, in the whole tree below it as well.
        readonly: bool,
        /// Takes the mounts below `source` along.
        recursive: bool,
    },
    /// A device node of the host, usable inside though other nodes are not.
    Device {
        /// Path on the host.
        source: PathBuf,
        /// Path inside.
        target: PathBuf,
    },
    /// An empty file system in memory.
    Tmpfs {
        /// Path inside.
        target: PathBuf,
        /// Limit in bytes; `None` is the kernel's default (half the memory).
        size: Option<u64>,
        /// Permission bits of its root, for instance `0o1777`.
        mode: u32,
    },
    /// One read-only file in memory with the given bytes: generated `/etc/hosts`, secrets. Never touches a disk.
    File {
        /// Path inside.
        target: PathBuf,
        /// What the file holds.
        contents: Vec<u8>,
        /// Permission bits, for instance `0o400`.
        mode: u32,
        /// Owner.
        uid: u32,
        /// Group.
        gid: u32,
    },
}

impl MountSpec {
    /// Where it is mounted inside.
    #[must_use]
    pub fn target(&self) -> &Path {
        match self {
            Self::Bind { target, .. }
            | Self::Device { target, .. }
            | Self::Tmpfs { target, .. }
            | Self::File { target, .. } => target,
        }
    }
}

/// The process of a sandbox; it is pid 1 there, as in docker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Program and arguments. A program without `/` is looked up in the `PATH` of `env`.
    pub args: Vec<String>,
    /// The whole environment, `NAME=value`; nothing is inherited.
    pub env: Vec<String>,
    /// Working directory inside, absolute; created when missing.
    pub cwd: PathBuf,
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// A new terminal for stdin, stdout and stderr instead of the given descriptors.
    pub terminal: Option<TerminalSize>,
    /// Upper bound of the capabilities; clamped to those the caller has. Ignored for [`Security::Insecure`], which
    /// gives all the caller has. A user other than root starts with none effective.
    pub capabilities: CapabilitySet,
    /// Whether set-user-id programs gain nothing.
    pub no_new_privileges: bool,
    /// Limits; a hard limit above the caller's own is lowered to it when the caller may not raise it.
    pub rlimits: Vec<Rlimit>,
    /// File mode creation mask; docker's is `0o022`.
    pub umask: u32,
}

impl Process {
    /// Root in `/` with docker's default capabilities and no environment.
    #[must_use]
    pub fn new(args: Vec<String>) -> Self {
        Self {
            args,
            env: Vec::new(),
            cwd: PathBuf::from("/"),
            uid: 0,
            gid: 0,
            groups: Vec::new(),
            terminal: None,
            capabilities: CapabilitySet::DOCKER_DEFAULT,
            no_new_privileges: false,
            rlimits: Vec::new(),
            umask: 0o022,
        }
    }
}

/// Size of a terminal in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalSize {
    /// Lines.
    pub rows: u16,
    /// Columns.
    pub columns: u16,
}

/// The network a sandbox sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Network {
    /// The host's, unchanged.
    Host,
    /// A network of its own with nothing but a loopback device that is up.
    None,
    /// A network of its own on a bridge of this process, with NAT; what to write into its `resolv.conf` and hosts is the
    /// caller's business ([`Launcher::bridge`](crate::Launcher::bridge)).
    Bridge,
    /// A network of its own that a program in user space connects to the host's; names are resolved by its
    /// [`resolver`](UserNetworkProgram::resolver).
    User(UserNetworkProgram),
}

/// How far a sandbox is confined.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Security {
    /// Docker's defaults: capabilities of the spec, seccomp, masked and read-only paths, no devices but the usual.
    Default,
    /// What `RUN --security=insecure` gives: every capability of the caller, no seccomp, nothing masked, devices usable.
    Insecure,
}

/// One resource limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rlimit {
    /// Which resource.
    pub resource: RlimitResource,
    /// Soft limit; `u64::MAX` is unlimited.
    pub soft: u64,
    /// Hard limit; `u64::MAX` is unlimited.
    pub hard: u64,
}

/// Resources with a limit, by the names of docker's `--ulimit`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RlimitResource {
    /// Largest core file, bytes.
    Core,
    /// CPU time, seconds.
    Cpu,
    /// Data segment, bytes.
    Data,
    /// Largest file, bytes.
    Fsize,
    /// File locks.
    Locks,
    /// Locked memory, bytes.
    Memlock,
    /// POSIX message queues, bytes.
    Msgqueue,
    /// Nice ceiling.
    Nice,
    /// Open descriptors.
    Nofile,
    /// Processes of the user.
    Nproc,
    /// Resident set, bytes (no effect in current kernels).
    Rss,
    /// Real-time priority.
    Rtprio,
    /// Real-time CPU time, microseconds.
    Rttime,
    /// Pending signals.
    Sigpending,
    /// Stack, bytes.
    Stack,
}

impl RlimitResource {
    /// Every resource with its name.
    const NAMES: [(&'static str, Self); 15] = [
        ("core", Self::Core),
        ("cpu", Self::Cpu),
        ("data", Self::Data),
        ("fsize", Self::Fsize),
        ("locks", Self::Locks),
        ("memlock", Self::Memlock),
        ("msgqueue", Self::Msgqueue),
        ("nice", Self::Nice),
        ("nofile", Self::Nofile),
        ("nproc", Self::Nproc),
        ("rss", Self::Rss),
        ("rtprio", Self::Rtprio),
        ("rttime", Self::Rttime),
        ("sigpending", Self::Sigpending),
        ("stack", Self::Stack),
    ];

    /// The resource docker calls `name`.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::NAMES.iter().find(|(known, _)| *known == name).map(|(_, resource)| *resource)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> SandboxSpec {
        SandboxSpec::new(RootFs::Directory { path: "/root".into() }, Process::new(vec!["true".into()]))
    }

    #[track_caller]
    fn check(change: impl FnOnce(&mut SandboxSpec), expected: &str) {
        let mut spec = spec();
        change(&mut spec);
        let message = spec.validate().expect_err("invalid").to_string();
        assert_eq!(message, format!("invalid sandbox specification: {expected}"));
    }

    #[test]
    fn wrong_specs_are_refused() {
        assert!(spec().validate().is_ok());
        check(|spec| spec.process.args.clear(), "no command specified");
        check(|spec| spec.process.args[0].clear(), "no command specified");
        check(
            |spec| spec.process.env.push("A=\0".into()),
            "a NUL byte in an argument, the environment or the host name",
        );
        check(|spec| spec.process.cwd = "a".into(), "path `a` is not absolute");
        let tmpfs = |target: &str| MountSpec::Tmpfs { target: target.into(), size: None, mode: 0o755 };
        check(|spec| spec.mounts.push(tmpfs("/.")), "a mount on the root `/.` itself");
        check(|spec| spec.mounts.push(tmpfs("data")), "path `data` is not absolute");
        check(
            |spec| spec.hostname = "h".repeat(65),
            &format!("host name `{}` is longer than 64 bytes", "h".repeat(65)),
        );
    }

    #[test]
    fn limits_have_the_names_of_docker() {
        assert_eq!(RlimitResource::from_name("nofile"), Some(RlimitResource::Nofile));
        assert_eq!(RlimitResource::from_name("NOFILE"), None);
    }

    #[test]
    fn a_spec_survives_the_way_to_the_launcher() {
        let mut spec = spec();
        spec.mounts.push(MountSpec::File {
            target: "/run/secret".into(),
            contents: vec![0, 255],
            mode: 0o400,
            uid: 1,
            gid: 2,
        });
        let bytes = serde_json::to_vec(&spec).expect("JSON");
        assert_eq!(serde_json::from_slice::<SandboxSpec>(&bytes).expect("a spec"), spec);
    }
}
