//! Running a process: what, where, with which mounts.
//!
//! Owns [`ExecOp`] and its parts. Must not know how a process is started. Start with [`ExecOp`], then
//! [`Mount`].

use std::path::{Path, PathBuf};

/// A process to run. The mount at `/` is its root file system.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExecOp {
    /// The program and its arguments, never empty.
    pub args: Vec<String>,
    /// `NAME=value` entries, in order.
    pub env: Vec<String>,
    /// The working directory, absolute.
    pub cwd: String,
    /// `user[:group]`, names or numbers; empty for root.
    pub user: String,
    /// The host name; empty for the worker's choice.
    pub hostname: String,
    /// Resource limits.
    pub ulimits: Vec<Ulimit>,
    /// Lines for `/etc/hosts`.
    pub extra_hosts: Vec<HostIp>,
    /// Proxy settings, which take no part in cache keys.
    pub proxy_env: Option<ProxyEnv>,
    /// Exit codes that count as success; empty means only 0.
    pub valid_exit_codes: Vec<i32>,
    /// The control group to run below; empty for the worker's choice.
    pub cgroup_parent: String,
    /// Whether directories made for mount points vanish again with their made parents.
    pub remove_mount_stubs: bool,
    /// What is mounted, in wire order: by target, then secrets, then agents.
    pub mounts: Vec<Mount>,
    /// The network.
    pub network: NetMode,
    /// The confinement.
    pub security: SecurityMode,
    /// Secrets handed over in the environment.
    pub secret_env: Vec<SecretEnv>,
    /// Devices by CDI name.
    pub devices: Vec<CdiDevice>,
}

/// A file system, directory or file visible to a process at `target`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mount {
    /// An input, or an empty file system.
    Bind {
        /// Where it appears.
        target: String,
        /// Input index; `None` is an empty file system.
        input: Option<u32>,
        /// The path in the input to mount; empty for all of it.
        selector: String,
        /// Whether the process cannot write to it.
        readonly: bool,
        /// The index of the output that what was written becomes; `None` throws it away.
        output: Option<u32>,
        /// Whether its content may serve as a cache key.
        content_cache: ContentCache,
    },
    /// A directory that outlives the build.
    Cache {
        /// Where it appears.
        target: String,
        /// Input index of what it holds when new; `None` is an empty directory.
        input: Option<u32>,
        /// The path in the input; empty for all of it.
        selector: String,
        /// Whether the process cannot write to it.
        readonly: bool,
        /// Which cache.
        id: String,
        /// What happens if several steps want it at once.
        sharing: Sharing,
    },
    /// Memory.
    Tmpfs {
        /// Where it appears.
        target: String,
        /// Its limit in bytes, 0 for none.
        size: i64,
        /// Whether the process cannot write to it.
        readonly: bool,
    },
    /// A secret as a file.
    Secret {
        /// Where it appears.
        target: String,
        /// Which secret.
        id: String,
        /// The file's owner and mode.
        owner: MountOwner,
        /// Whether the step runs without it.
        optional: bool,
    },
    /// A forwarded ssh agent's socket.
    Ssh {
        /// Where it appears.
        target: String,
        /// Which agent.
        id: String,
        /// The socket's owner and mode.
        owner: MountOwner,
        /// Whether the step runs without it.
        optional: bool,
    },
}

/// Owner and permission bits of a mounted secret or socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MountOwner {
    /// The user's number.
    pub uid: u32,
    /// The group's number.
    pub gid: u32,
    /// The permission bits.
    pub mode: u32,
}

/// Whether the content of a mount may serve as a cache key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum ContentCache {
    /// Only for read-only mounts.
    #[default]
    Default,
    /// Yes.
    On,
    /// No.
    Off,
}

/// How several steps use one cache mount at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Sharing {
    /// All at once.
    #[default]
    Shared,
    /// Each its own.
    Private,
    /// One after the other.
    Locked,
}

/// The network a process sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum NetMode {
    /// The worker's choice.
    #[default]
    Default,
    /// The host's.
    Host,
    /// None.
    None,
}

/// How a process is confined.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum SecurityMode {
    /// Default capabilities and system call filter.
    #[default]
    Sandbox,
    /// All capabilities, no filter.
    Insecure,
}

/// A resource limit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ulimit {
    /// Its name, such as `nofile`.
    pub name: String,
    /// The soft limit, -1 for none.
    pub soft: i64,
    /// The hard limit, -1 for none.
    pub hard: i64,
}

/// A line of `/etc/hosts`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostIp {
    /// The host's name.
    pub host: String,
    /// Its address.
    pub ip: String,
}

/// Proxy settings for a process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProxyEnv {
    /// `HTTP_PROXY`
    pub http_proxy: String,
    /// `HTTPS_PROXY`
    pub https_proxy: String,
    /// `FTP_PROXY`
    pub ftp_proxy: String,
    /// `NO_PROXY`
    pub no_proxy: String,
    /// `ALL_PROXY`
    pub all_proxy: String,
}

/// A secret in the environment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SecretEnv {
    /// Which secret.
    pub id: String,
    /// The variable.
    pub name: String,
    /// Whether the step runs without it.
    pub optional: bool,
}

/// A device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CdiDevice {
    /// Its CDI name.
    pub name: String,
    /// Whether the step runs without it.
    pub optional: bool,
}

impl Mount {
    /// Where it appears in the process's file system.
    pub fn target(&self) -> &str {
        match self {
            Self::Bind { target, .. }
            | Self::Cache { target, .. }
            | Self::Tmpfs { target, .. }
            | Self::Secret { target, .. }
            | Self::Ssh { target, .. } => target,
        }
    }

    /// The index of the input it shows, if it shows one.
    pub fn input(&self) -> Option<u32> {
        match self {
            Self::Bind { input, .. } | Self::Cache { input, .. } => *input,
            _ => None,
        }
    }

    /// The index of the output it becomes, if it becomes one.
    pub fn output(&self) -> Option<u32> {
        match self {
            Self::Bind { output, .. } => *output,
            _ => None,
        }
    }
}

impl ExecOp {
    /// The mount that is the process's root file system.
    pub fn root(&self) -> Option<&Mount> {
        self.mounts.iter().find(|mount| mount.target() == "/")
    }

    /// Where the process sees a mount: a relative target is below its working directory.
    pub fn place_of(&self, mount: &Mount) -> PathBuf {
        Path::new("/").join(&self.cwd).join(mount.target())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(cwd: &str, target: &str, expected: &str) {
        let op = ExecOp { cwd: cwd.to_owned(), ..ExecOp::default() };
        let mount = Mount::Tmpfs { target: target.to_owned(), size: 0, readonly: false };
        assert_eq!(op.place_of(&mount), Path::new(expected));
    }

    #[test]
    fn a_relative_target_is_below_the_working_directory() {
        check("/here", "/x", "/x");
        check("/here", "x/y", "/here/x/y");
        check("", "x", "/x");
        check("/here", "/", "/");
    }
}
