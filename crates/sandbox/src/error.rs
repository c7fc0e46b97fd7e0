//! What can go wrong, by the step that failed, so that a caller can tell a wrong command from a broken host.
//!
//! Read [`SpawnError`] first: [`SpawnError::exit_code`] has docker's mapping to 125, 126 and 127.

use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::net::BridgeError;

macro_rules! steps {
    ($($variant:ident $text:literal),+ $(,)?) => {
        /// A step of setting a sandbox up.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
        #[expect(missing_docs, reason = "each variant is said in words by `describe`")]
        pub enum SetupStep { $($variant),+ }

        impl SetupStep {
            /// The step in words, reading after "cannot".
            #[must_use]
            pub const fn describe(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }
        }
    };
}

steps! {
    Clone "start a process", Session "start a session", JoinCgroup "join the control group",
    Namespaces "create namespaces", PrivateMounts "make mounts private", Stubs "create mount-point stubs",
    OpenBind "open the bind source", MountRoot "mount the root file system", MountProc "mount `/proc`",
    MountSys "mount `/sys`", MountDev "mount `/dev`", MountCgroup "mount `/sys/fs/cgroup`",
    MountTmpfs "mount a tmpfs", MountFile "mount a file", MountBind "mount a bind", PivotRoot "change the root", ChangeRoot "change the root (chroot)",
    MountPoint "create a mount point", MaskPath "mask a path", ReadonlyPath "make a path read-only",
    Hostname "set the host name", Sysctl "set the kernel parameter", Loopback "bring up the loopback device", Terminal "open a terminal",
    Stdio "set up standard streams", WorkingDirectory "enter the working directory", Rlimit "set a resource limit",
    Capabilities "set capabilities", Seccomp "install the system call filter", NoNewPrivileges "give up new privileges",
    User "change the user", Network "connect the network", Descriptors "close inherited descriptors", Unexpected "complete the set-up",
}

/// Why a sandbox could not be started.
#[derive(Debug, Error)]
pub enum SpawnError {
    /// The spec cannot be carried out as written.
    #[error("invalid sandbox specification: {reason}")]
    InvalidSpec {
        /// What is wrong with it.
        reason: String,
    },
    /// A step of setting it up failed in the kernel.
    #[error("cannot {}{}", step.describe(), path.as_ref().map(|path| format!(" `{path}`")).unwrap_or_default())]
    Setup {
        /// Which step.
        step: SetupStep,
        /// The path or name it was about.
        path: Option<String>,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The program does not exist inside.
    #[error("{reason}")]
    NotFound {
        /// Says which program was looked for, in docker's words.
        reason: String,
    },
    /// The program exists but cannot be executed.
    #[error("{reason}")]
    NotExecutable {
        /// Says which program and why, in docker's words.
        reason: String,
    },
    /// The launcher could not be started.
    #[error("cannot start the launcher")]
    StartLauncher(#[source] io::Error),
    /// The launcher ended or broke the protocol.
    #[error("the launcher is gone")]
    LauncherGone(#[source] io::Error),
    /// The network could not be connected.
    #[error("cannot connect the network")]
    Network(#[source] io::Error),
    /// There is no bridge network.
    #[error("no bridge network{}", source.remedy().map(|remedy| format!(" (it takes {remedy})")).unwrap_or_default())]
    Bridge {
        /// Why.
        #[source]
        source: BridgeError,
    },
    /// The stub layers could not be made.
    #[error("cannot create mount-point stubs in `{}`", path.display())]
    StubLayer {
        /// The directory of stubs.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
}

impl SpawnError {
    /// The exit code docker's `run` has for it: 127 not found, 126 not executable, 125 anything else.
    #[must_use]
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::NotFound { .. } => 127,
            Self::NotExecutable { .. } => 126,
            _ => 125,
        }
    }
}

/// Why the end of a sandbox could not be learnt.
#[derive(Debug, Error)]
pub enum WaitError {
    /// The launcher died, and every sandbox with it.
    #[error("the launcher ended before the sandbox did")]
    LauncherGone,
    /// The report could not be read.
    #[error("cannot read the exit report")]
    Read(#[source] io::Error),
}

/// Why a mount in the caller's own namespace failed.
#[derive(Debug, Error)]
#[error("cannot {action} at `{}`", at.display())]
pub struct MountError {
    /// What was attempted, for instance `mount an overlay`.
    pub action: &'static str,
    /// Where.
    pub at: PathBuf,
    /// The kernel's answer.
    #[source]
    pub source: io::Error,
}
