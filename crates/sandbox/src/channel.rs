//! Messages with descriptors over a sequenced-packet socket, and the types of those messages.
//!
//! Shared by the caller's side, the launcher and the sandbox's first process; knows none of them.
//! Read [`Request`] and [`Reply`] first.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};
use serde::{Deserialize, Serialize};

use crate::error::{SetupStep, SpawnError};
use crate::spec::SandboxSpec;
use crate::user_network::UserNetworkProgram;

/// Most descriptors in one message.
const MAX_DESCRIPTORS: usize = 8;
/// Longest message in bytes; requests travel in a memory file, so only replies count.
pub(crate) const MAX_MESSAGE: usize = 64 << 10;

/// What the launcher is asked to start. The stub layer is already among the layers of the spec.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Request {
    pub(crate) spec: SandboxSpec,
    /// `cgroup.procs` files the process enters itself into.
    pub(crate) cgroup_procs: Vec<PathBuf>,
    /// v1 controllers to show below `/sys/fs/cgroup`.
    pub(crate) cgroup_controllers: Vec<String>,
    /// A group of the unified hierarchy it is cloned into.
    pub(crate) freezer: Option<PathBuf>,
    /// It stops before it takes more bytes of a disk than these in one call.
    pub(crate) announces: Option<u32>,
}

/// What comes back until the program is being executed, which closes the channel.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Reply {
    /// From the launcher, with the pidfd.
    Cloned {
        /// Whether the process was there before the request.
        ahead: bool,
    },
    /// With the master side of the terminal.
    Terminal,
    /// With the descriptor on which calls are to be answered.
    Calls,
    /// The network namespace is there and waits to be connected by this program; the answer is a message of any kind.
    Network(UserNetworkProgram),
    /// Mount points made in the root itself.
    Created(Vec<PathBuf>),
    /// It ends here.
    Failed(Failure),
}

/// A [`SpawnError`] on its way between processes.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Failure {
    Setup { step: SetupStep, path: Option<String>, errno: Option<i32>, message: String },
    NotFound(String),
    NotExecutable(String),
}

impl From<Failure> for SpawnError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::NotFound(reason) => Self::NotFound { reason },
            Failure::NotExecutable(reason) => Self::NotExecutable { reason },
            Failure::Setup { step, path, errno, message } => {
                let source = errno.map_or_else(|| io::Error::other(message), io::Error::from_raw_os_error);
                Self::Setup { step, path, source }
            }
        }
    }
}

/// Turns an error into a [`Failure`] of a step.
pub(crate) trait AtStep<T> {
    /// Says at which step it happened.
    fn at(self, step: SetupStep) -> Result<T, Failure>;
    /// Says at which step and with what it happened.
    fn with(self, step: SetupStep, what: impl std::fmt::Display) -> Result<T, Failure>;
}

impl<T, E: Into<io::Error>> AtStep<T> for Result<T, E> {
    fn at(self, step: SetupStep) -> Result<T, Failure> {
        self.map_err(|error| failure(step, None, &error.into()))
    }

    fn with(self, step: SetupStep, what: impl std::fmt::Display) -> Result<T, Failure> {
        self.map_err(|error| failure(step, Some(what.to_string()), &error.into()))
    }
}

fn failure(step: SetupStep, path: Option<String>, error: &io::Error) -> Failure {
    Failure::Setup { step, path, errno: error.raw_os_error(), message: error.to_string() }
}

/// Sends one message.
pub(crate) fn send(socket: BorrowedFd<'_>, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    rustix::net::sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Sends a reply.
pub(crate) fn reply(socket: &OwnedFd, reply: &Reply, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    send(socket.as_fd(), &serde_json::to_vec(reply)?, descriptors)
}

/// Receives one message into `buffer`; zero bytes mean the other side is closed.
pub(crate) fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        let mut into = [IoSliceMut::new(buffer)];
        match rustix::net::recvmsg(socket, &mut into, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(rustix::io::Errno::INTR) => {}
            other => break other?,
        }
    };
    let mut descriptors = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    Ok((received.bytes, descriptors))
}
