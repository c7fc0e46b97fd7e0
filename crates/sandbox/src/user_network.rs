//! A network of a sandbox's own that a program in user space connects to the host's: no privileges, no bridge.
//!
//! The program is `slirp4netns`. It is told to end by the closing of a pipe, so it cannot outlive this process, however
//! that ends. Must not know sandboxes: it gets the number of a process in the namespace. Read [`attach`] first.

use std::fs::File;
use std::io::{self, Read as _, Seek as _};
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};

use rustix::fs::MemfdFlags;

/// The program's name.
const PROGRAM: &str = "slirp4netns";
/// Where it forwards questions for names from, as its manual has it.
pub const USER_NETWORK_RESOLVER: &str = "10.0.2.3";
/// Longest text of its errors that is passed on, in bytes.
const SAID_LIMIT: u64 = 1000;

/// Where the program is, if a network can be had from it: it needs the device for virtual networks.
#[must_use]
pub fn user_network_program() -> Option<PathBuf> {
    let device = File::options().read(true).write(true).open("/dev/net/tun");
    device.ok().and_then(|_| crate::userns::on_path(PROGRAM))
}

/// A network that is up. Dropped, it is taken down.
#[derive(Debug)]
pub(crate) struct UserNetwork {
    program: Child,
    /// Open for as long as the network is wanted.
    wanted: Option<ChildStdin>,
}

impl Drop for UserNetwork {
    fn drop(&mut self) {
        drop(self.wanted.take());
        if let Err(error) = self.program.wait() {
            tracing::warn!(%error, "cannot wait for {PROGRAM}");
        }
    }
}

/// Connects the network namespace of the process of `pidfd`; returns once packets can flow.
pub(crate) fn attach(pidfd: BorrowedFd<'_>) -> io::Result<UserNetwork> {
    let program = crate::userns::on_path(PROGRAM)
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("`{PROGRAM}` is not installed")))?;
    let process = number(pidfd)?;
    let said = File::from(rustix::fs::memfd_create("stave-said", MemfdFlags::CLOEXEC)?);
    let mut program = Command::new(program)
        .args(["--configure", "--mtu=65520", "--disable-host-loopback", "--ready-fd=1", "--exit-fd=0"])
        .args([process.to_string().as_str(), "tap0"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(said.try_clone()?)
        .spawn()?;
    let wanted = program.stdin.take();
    let mut ready = Vec::new();
    if let Some(stdout) = program.stdout.take() {
        stdout.take(1).read_to_end(&mut ready)?;
    }
    let network = UserNetwork { program, wanted };
    if ready == b"1" {
        return Ok(network);
    }
    drop(network);
    let mut text = String::new();
    let mut said = said;
    said.rewind()?;
    said.take(SAID_LIMIT).read_to_string(&mut text)?;
    Err(io::Error::other(format!("{PROGRAM}: {}", text.trim().replace('\n', "; "))))
}

/// The number of the process of `pidfd`, in this process's pid namespace.
fn number(pidfd: BorrowedFd<'_>) -> io::Result<u32> {
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd()))?;
    let number = text.lines().find_map(|line| line.strip_prefix("Pid:")?.trim().parse().ok());
    number.ok_or_else(|| io::ErrorKind::NotFound.into())
}
