//! A running sandbox as its owner sees it: wait, signal, terminal, usage.
//!
//! Must not know how it was set up. Read [`Sandbox`] first.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::cgroup::{CgroupGuard, Freezer, FreezerGroup};
use crate::error::WaitError;
use crate::launcher::Running;
use crate::meter::Meter;
use crate::net::BridgeNamespace;
use crate::pretend::Supervisor;
use crate::spec::TerminalSize;
use crate::sys;
use crate::user_network::UserNetwork;

/// Length of an exit report: kind, value, user and system time in microseconds, largest resident set in bytes.
const REPORT_LENGTH: usize = 5 * size_of::<u64>();

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
    pub(crate) ahead: bool,
    pub(crate) report: OwnedFd,
    pub(crate) terminal: Option<OwnedFd>,
    pub(crate) created: Vec<PathBuf>,
    pub(crate) cgroup: Option<CgroupGuard>,
    pub(crate) freezer: Option<FreezerGroup>,
    pub(crate) exit: Option<Exit>,
    /// Ends by itself when the last process has.
    pub(crate) _calls: Option<Supervisor>,
    /// Taken down after the processes are gone.
    pub(crate) _network: Option<UserNetwork>,
    /// Its place on the bridge, free again after the processes are gone.
    pub(crate) _bridge: Option<BridgeNamespace>,
    /// Keeps the launcher alive: the sandbox would die with it.
    pub(crate) _launcher: Arc<Running>,
}

impl Sandbox {
    /// Waits until it ended, blocking the thread.
    ///
    /// # Errors
    /// When the launcher is gone.
    pub fn wait(&mut self) -> Result<Exit, WaitError> {
        if let Some(exit) = self.exit {
            return Ok(exit);
        }
        let mut report = [0; REPORT_LENGTH];
        let length = loop {
            match rustix::io::read(&self.report, &mut report) {
                Err(rustix::io::Errno::INTR) => {}
                // Somebody made the pipe non-blocking to poll it.
                Err(rustix::io::Errno::AGAIN) => sys::wait_readable(&self.report).map_err(WaitError::Read)?,
                other => break other.map_err(|error| WaitError::Read(error.into()))?,
            }
        };
        // Reports are shorter than what a pipe writes at once, so they come whole or not at all.
        let exit = (length == REPORT_LENGTH).then(|| decode_exit(&report)).ok_or(WaitError::LauncherGone)?;
        self.exit = Some(exit);
        Ok(exit)
    }

    /// The end, if it has come; never blocks.
    ///
    /// # Errors
    /// When the launcher is gone.
    pub fn try_wait(&mut self) -> Result<Option<Exit>, WaitError> {
        if self.exit.is_none() && !sys::is_readable(&self.report).map_err(WaitError::Read)? {
            return Ok(None);
        }
        self.wait().map(Some)
    }

    /// Sends a signal (its number) to pid 1 of the sandbox. A sandbox that has ended is not an error.
    ///
    /// # Errors
    /// What the kernel says, for instance for a number that is no signal.
    pub fn signal(&self, signal: i32) -> io::Result<()> {
        match sys::send_signal(self.pidfd.as_fd(), signal) {
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            other => other,
        }
    }

    /// Kills every process inside.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn kill(&self) -> io::Result<()> {
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
    pub fn resize(&self, size: TerminalSize) -> io::Result<()> {
        match &self.terminal {
            Some(terminal) => Ok(rustix::termios::tcsetwinsize(terminal, size.into())?),
            None => Ok(()),
        }
    }

    /// Mount points that had to be created in the root itself, absolute paths inside. The owner of the upper
    /// directory removes them afterwards with [`remove_mount_points`](crate::remove_mount_points).
    #[must_use]
    pub fn created_mount_points(&self) -> &[PathBuf] {
        &self.created
    }

    /// Whether a process became it that had waited with namespaces and mounts ready.
    #[must_use]
    pub fn was_ahead(&self) -> bool {
        self.ahead
    }

    /// Measures the memory of the processes inside; `None` once the first of them has ended.
    #[must_use]
    pub fn meter(&self) -> Option<Meter> {
        Meter::of(&self.pidfd)
    }

    /// Holds its processes still, if it is bounded and the kernel can.
    #[must_use]
    pub fn freezer(&self) -> Option<Freezer> {
        self.freezer.as_ref().map(FreezerGroup::freezer)
    }

    /// Whether dropping it takes no time: it has ended, and nothing is to be removed with it.
    #[must_use]
    pub fn leaves_nothing(&self) -> bool {
        let has_more = self.cgroup.is_some() || self.freezer.is_some() || self._calls.is_some();
        let has_network = self._network.is_some() || self._bridge.is_some();
        self.exit.is_some() && !has_more && !has_network && Arc::strong_count(&self._launcher) > 1
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

impl Drop for Sandbox {
    fn drop(&mut self) {
        if self.exit.is_none() {
            // Both fail only when the launcher is gone, and then so is the sandbox.
            let _gone = self.kill();
            let _gone = self.wait();
        }
    }
}

/// The report of an end, as the launcher writes it.
pub(crate) fn encode_exit(exit: Exit) -> [u8; REPORT_LENGTH] {
    let (kind, value) = match exit.status {
        ExitStatus::Exited(code) => (0, u64::from(code)),
        ExitStatus::Signaled(signal) => (1, u64::from(signal.unsigned_abs())),
    };
    let Usage { user_time, system_time, max_rss } = exit.usage;
    let fields = [kind, value, user_time.as_micros() as u64, system_time.as_micros() as u64, max_rss];
    let mut report = [0; REPORT_LENGTH];
    for (place, field) in report.chunks_exact_mut(size_of::<u64>()).zip(fields) {
        place.copy_from_slice(&field.to_ne_bytes());
    }
    report
}

fn decode_exit(report: &[u8; REPORT_LENGTH]) -> Exit {
    let field = |index: usize| {
        let mut bytes = [0; size_of::<u64>()];
        bytes.copy_from_slice(&report[index * size_of::<u64>()..][..size_of::<u64>()]);
        u64::from_ne_bytes(bytes)
    };
    let status = if field(0) == 0 {
        ExitStatus::Exited(field(1) as u8)
    } else {
        ExitStatus::Signaled(field(1) as i32)
    };
    let usage = Usage {
        user_time: Duration::from_micros(field(2)),
        system_time: Duration::from_micros(field(3)),
        max_rss: field(4),
    };
    Exit { status, usage }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(status: ExitStatus, code: i32) {
        let usage = Usage {
            user_time: Duration::from_micros(1_500_000),
            system_time: Duration::from_micros(7),
            max_rss: 1 << 33,
        };
        let exit = Exit { status, usage };
        assert_eq!(decode_exit(&encode_exit(exit)), exit);
        assert_eq!(status.code(), code);
        assert_eq!(status.success(), code == 0);
    }

    #[test]
    fn a_sandbox_may_be_waited_for_on_any_thread() {
        fn shared<T: Send + Sync + 'static>() {}
        shared::<Sandbox>();
        shared::<crate::Launcher>();
    }

    #[test]
    fn reports_survive_the_pipe() {
        check(ExitStatus::Exited(0), 0);
        check(ExitStatus::Exited(255), 255);
        check(ExitStatus::Signaled(9), 137);
    }
}
