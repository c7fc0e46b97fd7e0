//! A running sandbox as its owner sees it: wait, signal, terminal, usage.
//!
//! Must not know how it was set up. Read [`Sandbox`] first.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use crate::cgroup::CgroupGuard;
use crate::error::WaitError;
use crate::spec::TerminalSize;

/// Descriptors the process gets as 0, 1 and 2; unused when it has a terminal.
#[derive(Debug)]
pub struct Stdio {
    /// Read end for descriptor 0.
    pub stdin: OwnedFd,
    /// Descriptor 1.
    pub stdout: OwnedFd,
    /// Descriptor 2.
    pub stderr: OwnedFd,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitStatus {
    /// It ended by itself with this code, 0 to 255.
    Exited(u8),
    /// A signal ended it.
    Signaled(i32),
}

impl ExitStatus {
    /// The code a shell or docker reports: the exit code, or 128 and the signal's number.
    #[must_use]
    pub fn code(self) -> i32 {
        match self {
            Self::Exited(code) => i32::from(code),
            Self::Signaled(signal) => 128 + signal,
        }
    }

    /// Whether it exited with 0.
    #[must_use]
    pub fn success(self) -> bool {
        self == Self::Exited(0)
    }
}

/// What a sandbox consumed, over all its processes that were waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// CPU time in user mode.
    pub user_time: Duration,
    /// CPU time in the kernel.
    pub system_time: Duration,
    /// Largest resident set of any one process, in bytes.
    pub max_rss: u64,
}

/// The end of a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// How pid 1 ended.
    pub status: ExitStatus,
    /// What was consumed.
    pub usage: Usage,
}

/// A running sandbox. Dropping it kills every process inside and waits until they are gone.
///
/// [`as_fd`](AsFd::as_fd) becomes readable when it ended: poll it, then call [`try_wait`](Self::try_wait).
#[derive(Debug)]
pub struct Sandbox {
    pub(crate) pidfd: OwnedFd,
    pub(crate) report: OwnedFd,
    pub(crate) terminal: Option<OwnedFd>,
    pub(crate) created: Vec<PathBuf>,
    pub(crate) cgroup: Option<CgroupGuard>,
    pub(crate) exit: Option<Exit>,
}

impl Sandbox {
    /// Waits until it ended, blocking the thread.
    ///
    /// # Errors
    /// When the launcher is gone.
    pub fn wait(&mut self) -> Result<Exit, WaitError> {
        unimplemented_yet()
    }

    /// The end, if it has come; never blocks.
    ///
    /// # Errors
    /// When the launcher is gone.
    pub fn try_wait(&mut self) -> Result<Option<Exit>, WaitError> {
        unimplemented_yet()
    }

    /// Sends a signal (its number) to pid 1 of the sandbox. A sandbox that has ended is not an error.
    ///
    /// # Errors
    /// What the kernel says, for instance for a number that is no signal.
    pub fn signal(&self, _signal: i32) -> std::io::Result<()> {
        unimplemented_yet()
    }

    /// Kills every process inside.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn kill(&self) -> std::io::Result<()> {
        self.signal(libc::SIGKILL)
    }

    /// The master side of the terminal, if one was asked for: read the output, write the input.
    #[must_use]
    pub fn terminal(&self) -> Option<BorrowedFd<'_>> {
        self.terminal.as_ref().map(AsFd::as_fd)
    }

    /// Changes the size of the terminal; nothing happens without one.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn resize(&self, _size: TerminalSize) -> std::io::Result<()> {
        unimplemented_yet()
    }

    /// Mount points that had to be created in the root itself, absolute paths inside. The owner of the upper
    /// directory removes them afterwards with [`remove_mount_points`](crate::remove_mount_points).
    #[must_use]
    pub fn created_mount_points(&self) -> &[PathBuf] {
        &self.created
    }

    /// The control group, if limits were asked for.
    #[must_use]
    pub fn cgroup(&self) -> Option<&CgroupGuard> {
        self.cgroup.as_ref()
    }
}

impl AsFd for Sandbox {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.report.as_fd()
    }
}

fn unimplemented_yet<T>() -> T {
    unreachable!("published ahead of its body")
}
