//! A process that waits for the next sandbox, with all that is the same in every one made while the last one runs.
//!
//! Steps of a build mostly follow one another, each like the one before; a second processor has little to do meanwhile.
//! The process is the first of a pid namespace, has left the host's other namespaces and holds `/proc`, `/sys` and
//! `/dev` ready ([`Ground`]); nothing of an image, of a caller or of another sandbox is in it. One that does not fit, or
//! is not ready in time, changes nothing: the sandbox is made from the start then. Must not know what a request asks
//! for beyond its [`Model`]. Read [`Spare::make`] first.

use std::convert::Infallible;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType};

use super::server::read_request;
use crate::capability::CapabilitySet;
use crate::cgroup::CgroupHierarchy;
use crate::channel::{AtStep as _, Failure, Reply, receive, reply, send};
use crate::child::{Child, Ground, Model, SETUP_FAILED, StandardStreams, begin_session};
use crate::error::SetupStep;
use crate::seccomp::Filter;
use crate::sys::{self, Cloned};

/// What the processes of a sandbox may.
#[derive(Clone, Copy)]
pub(super) struct Traits {
    pub(super) capabilities: CapabilitySet,
    pub(super) bounding: CapabilitySet,
    pub(super) hierarchy: CgroupHierarchy,
    /// Whether the calls they may make are limited.
    pub(super) is_filtered: bool,
}

/// The launcher's side of it. On drop the process ends by itself.
pub(super) struct Spare {
    pidfd: OwnedFd,
    socket: OwnedFd,
    model: Model,
    is_ready: bool,
}

impl Spare {
    /// Starts one for requests like `model`.
    pub(super) fn make(model: Model, traits: Traits, filter: Option<&Filter>) -> io::Result<Self> {
        let (socket, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        match sys::clone_into_pid_namespace(None)? {
            Cloned::Child => {
                // SAFETY: this process neither uses nor drops any other descriptor: it ends by `_exit` or an exec, in
                // this call. A stream of a sandbox that stayed open here would keep its reader waiting.
                let _closed = unsafe { sys::close_all_but(&[theirs.as_raw_fd()]) };
                let _ended = wait(&theirs, &model, traits, filter);
                sys::exit_now(1)
            }
            Cloned::Parent(pidfd) => Ok(Self { pidfd, socket, model, is_ready: false }),
        }
    }

    /// Readable when it ended too early.
    pub(super) fn pidfd(&self) -> &OwnedFd {
        &self.pidfd
    }

    /// What it was made for.
    pub(super) fn model(&self) -> &Model {
        &self.model
    }

    /// Whether it can be the sandbox of such a request now.
    pub(super) fn fits(&mut self, model: &Model) -> bool {
        if !self.is_ready && sys::is_readable(&self.socket).unwrap_or(false) {
            self.is_ready = receive(self.socket.as_fd(), &mut [0; 8]).is_ok_and(|(length, _)| length > 0);
        }
        self.is_ready && self.model == *model
    }

    /// Makes it the sandbox of a request; its process, and whether it took that.
    pub(super) fn give(
        self,
        body: &OwnedFd,
        streams: &StandardStreams,
        control: &OwnedFd,
    ) -> (OwnedFd, bool) {
        let StandardStreams([stdin, stdout, stderr]) = streams;
        let descriptors = [body, stdin, stdout, stderr, control].map(|descriptor| descriptor.as_fd());
        let is_taken = send(self.socket.as_fd(), b"begin", &descriptors).is_ok();
        (self.pidfd, is_taken)
    }

    /// Its process, which ends.
    pub(super) fn dismiss(self) -> OwnedFd {
        self.pidfd
    }
}

/// Makes the ground, waits for a request and becomes its sandbox.
fn wait(
    socket: &OwnedFd,
    model: &Model,
    traits: Traits,
    filter: Option<&Filter>,
) -> Result<Infallible, Failure> {
    begin_session()?;
    let Traits { capabilities, bounding, hierarchy, .. } = traits;
    let step = SetupStep::Clone;
    let ground = Some(Ground::make(model, hierarchy)?);
    send(socket.as_fd(), b"ready", &[]).at(step)?;
    let (length, descriptors) = receive(socket.as_fd(), &mut [0; 8]).at(step)?;
    let Ok([body, stdin, stdout, stderr, control]) = <[OwnedFd; 5]>::try_from(descriptors) else {
        // Nothing comes with the end of the launcher's side; a request cut short for want of descriptors must not look
        // like a program that succeeded.
        sys::exit_now(if length == 0 { 0 } else { SETUP_FAILED })
    };
    let request = match read_request(body).at(step) {
        Ok((request, _)) => request,
        Err(failure) => {
            let _unread = reply(&control, &Reply::Failed(failure), &[]);
            sys::exit_now(1)
        }
    };
    let streams = StandardStreams([stdin, stdout, stderr]);
    let (request, control, network) = (&request, &control, None);
    Child { request, streams, network, ground, control, capabilities, bounding, filter, hierarchy }.run()
}
