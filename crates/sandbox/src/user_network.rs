//! A network of a sandbox's own that a program in user space connects to the host's: no privileges, no bridge.
//!
//! The program ends with the sandbox's guard and with this process, however that ends: `slirp4netns` by the closing of a
//! pipe, `pasta` by its parent's death. Must not know sandboxes: it gets a process in the namespace. Read [`attach`] first.

use std::fs::File;
use std::io::{self, Read as _, Seek as _};
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::fs::MemfdFlags;
use rustix::process::PidfdFlags;
use serde::{Deserialize, Serialize};

use crate::sys;

/// Where `slirp4netns` forwards questions for names from, as its manual has it.
pub const USER_NETWORK_RESOLVER: &str = "10.0.2.3";
/// Longest text of a program's errors that is passed on, in bytes.
const SAID_LIMIT: u64 = 1000;
/// How long `pasta` may take, which does not say when it is ready.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often it is looked whether it is.
const LOOK: Duration = Duration::from_millis(2);

/// A program that connects a network namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum UserNetworkProgram {
    /// `pasta`: the sandbox has the host's addresses.
    Pasta,
    /// `slirp4netns`: the sandbox has an address in 10.0.2.0/24.
    Slirp4netns,
}

impl UserNetworkProgram {
    /// Both, the faster one first.
    pub const ALL: [Self; 2] = [Self::Pasta, Self::Slirp4netns];

    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pasta => "pasta",
            Self::Slirp4netns => "slirp4netns",
        }
    }

    /// Why no network can be had from it here; `None` if one can, as far as can be told without trying.
    #[must_use]
    pub fn refusal(self) -> Option<String> {
        if self == Self::Pasta && !crate::overlay::in_user_namespace() {
            return Some("`pasta` gives up root's rights before it can enter a network of root's".to_owned());
        }
        if crate::userns::on_path(self.name()).is_none() {
            return Some(format!("`{}` is not installed", self.name()));
        }
        let device = File::options().read(true).write(true).open("/dev/net/tun");
        device.err().map(|error| format!("/dev/net/tun cannot be opened: {error}"))
    }

    /// The first of which a network can be had.
    #[must_use]
    pub fn first_usable() -> Option<Self> {
        Self::ALL.into_iter().find(|program| program.refusal().is_none())
    }

    /// The name server it has for sandboxes; `None` when they ask the host's.
    #[must_use]
    pub const fn resolver(self) -> Option<&'static str> {
        match self {
            Self::Pasta => None,
            Self::Slirp4netns => Some(USER_NETWORK_RESOLVER),
        }
    }
}

/// A network that is up. Dropped, it is taken down.
#[derive(Debug)]
pub(crate) enum UserNetwork {
    Slirp4netns {
        program: Child,
        /// Open for as long as the network is wanted.
        wanted: Option<ChildStdin>,
    },
    Pasta {
        process: OwnedFd,
        /// The thread that started it, with which it would end.
        keeper: Option<JoinHandle<()>>,
    },
}

impl Drop for UserNetwork {
    fn drop(&mut self) {
        match self {
            Self::Slirp4netns { program, wanted } => {
                drop(wanted.take());
                if let Err(error) = program.wait() {
                    tracing::warn!(%error, "cannot wait for slirp4netns");
                }
            }
            Self::Pasta { process, keeper } => {
                use std::os::fd::AsFd as _;
                // It may have ended by itself.
                let _gone = sys::send_signal(process.as_fd(), libc::SIGKILL);
                if let Some(keeper) = keeper.take() {
                    let _panicked = keeper.join();
                }
            }
        }
    }
}

/// Connects the network namespace of the process of `pidfd`; returns once packets can flow.
pub(crate) fn attach(pidfd: BorrowedFd<'_>, by: UserNetworkProgram) -> io::Result<UserNetwork> {
    let program = crate::userns::on_path(by.name()).ok_or_else(|| {
        io::Error::new(io::ErrorKind::NotFound, format!("`{}` is not installed", by.name()))
    })?;
    let process = number(pidfd)?;
    match by {
        UserNetworkProgram::Slirp4netns => slirp4netns(program, process),
        UserNetworkProgram::Pasta => pasta(program, process),
    }
}

fn slirp4netns(program: PathBuf, process: u32) -> io::Result<UserNetwork> {
    let said = Said::new()?;
    let mut program = Command::new(program)
        .args(["--configure", "--mtu=65520", "--disable-host-loopback", "--ready-fd=1", "--exit-fd=0"])
        .args([process.to_string().as_str(), "tap0"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(said.0.try_clone()?)
        .spawn()?;
    let wanted = program.stdin.take();
    let mut ready = Vec::new();
    if let Some(stdout) = program.stdout.take() {
        stdout.take(1).read_to_end(&mut ready)?;
    }
    let network = UserNetwork::Slirp4netns { program, wanted };
    if ready == b"1" {
        return Ok(network);
    }
    drop(network);
    Err(said.error("slirp4netns")?)
}

fn pasta(program: PathBuf, process: u32) -> io::Result<UserNetwork> {
    // By descriptor: it gives up the right to look at other processes before it opens what it is told.
    let namespace = File::open(format!("/proc/{process}/ns/net"))?;
    let said = Said::new()?;
    let mut command = Command::new(program);
    command
        .args(["--quiet", "--foreground", "--config-net", "--netns-only", "--netns", "/proc/self/fd/0"])
        .args(["-t", "none", "-u", "none", "-T", "none", "-U", "none", "--no-map-gw"])
        .stdin(namespace)
        .stdout(Stdio::null())
        .stderr(said.0.try_clone()?);
    let (started, start) = sync_channel(1);
    let (tell, ended) = sync_channel::<()>(1);
    let keeper = std::thread::Builder::new().name("stave-pasta".into()).spawn(move || {
        // SAFETY: between fork and exec it makes one system call, and allocates nothing.
        unsafe {
            command.pre_exec(|| {
                rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
                Ok(())
            });
        }
        let child = command.spawn().and_then(|child| {
            let id = rustix::process::Pid::from_child(&child);
            Ok((rustix::process::pidfd_open(id, PidfdFlags::empty())?, child))
        });
        match child {
            Ok((process, mut child)) => {
                let _received = started.send(Ok(process));
                let _ended = child.wait();
                drop(tell);
            }
            Err(error) => {
                let _received = started.send(Err(error));
            }
        }
    })?;
    let connector = start.recv().map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))??;
    let network = UserNetwork::Pasta { process: connector, keeper: Some(keeper) };
    if await_route(process, &ended) {
        return Ok(network);
    }
    drop(network);
    Err(said.error("pasta")?)
}

/// Waits until the namespace of a process has a route, which is what `pasta` sets last; false if it ended instead.
fn await_route(process: u32, ended: &Receiver<()>) -> bool {
    let deadline = Instant::now() + PATIENCE;
    let routes = |file: &str, lines: usize, none: &str| {
        let text = std::fs::read_to_string(format!("/proc/{process}/net/{file}")).unwrap_or_default();
        text.lines().skip(lines).any(|line| !line.trim_end().ends_with(none))
    };
    while Instant::now() < deadline {
        if routes("route", 1, "\tlo") || routes("ipv6_route", 0, " lo") {
            return true;
        }
        if !matches!(ended.recv_timeout(LOOK), Err(RecvTimeoutError::Timeout)) {
            return false;
        }
    }
    false
}

/// What a program writes to its standard error.
struct Said(File);

impl Said {
    fn new() -> io::Result<Self> {
        Ok(Self(File::from(rustix::fs::memfd_create("stave-said", MemfdFlags::CLOEXEC)?)))
    }

    fn error(mut self, name: &str) -> io::Result<io::Error> {
        let mut text = String::new();
        self.0.rewind()?;
        self.0.take(SAID_LIMIT).read_to_string(&mut text)?;
        Ok(io::Error::other(format!("{name}: {}", text.trim().replace('\n', "; "))))
    }
}

/// The number of the process of `pidfd`, in this process's pid namespace.
fn number(pidfd: BorrowedFd<'_>) -> io::Result<u32> {
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd()))?;
    let number = text.lines().find_map(|line| line.strip_prefix("Pid:")?.trim().parse().ok());
    number.ok_or_else(|| io::ErrorKind::NotFound.into())
}
