//! The launcher's own process: receives requests, clones, reaps, reports.
//!
//! Must not set anything up itself: that is the cloned process's work, so that many can do it at once.
//! Read [`launcher_entry`] first.

use std::fs::File;
use std::io::{self, Read as _, Seek as _};
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{Mode, OFlags};

use super::spare::{Spare, Traits};
use super::{LAUNCHER_NAME, LAUNCHER_VARIABLE, WITHOUT_NAMESPACES, keeper};
use crate::capability::CapabilitySet;
use crate::cgroup::CgroupHierarchy;
use crate::channel::{AtStep as _, Failure, Reply, Request, receive, reply};
use crate::child::{Child, Model, ReadyNetwork, StandardStreams, bounded};
use crate::error::SetupStep;
use crate::sandbox::encode_exit;
use crate::seccomp::Filter;
use crate::spec::{RootFs, Security};
use crate::sys::{self, Cloned};

/// How long something waits for the next sandbox while nothing happens: what it sees of the host's mounts cannot be
/// unmounted meanwhile.
const IDLE: Timespec = Timespec { tv_sec: 5, tv_nsec: 0 };

/// Runs the launcher and never returns, if this process was executed as one; call it first in `main`, before any
/// thread is started.
pub fn launcher_entry() {
    let named = std::env::args_os().next().is_some_and(|name| name == LAUNCHER_NAME);
    if named && std::env::var_os(LAUNCHER_VARIABLE).is_some() {
        let ended = serve();
        sys::exit_now(i32::from(ended.is_err()));
    }
}

/// A sandbox that has not ended.
struct Live {
    pidfd: OwnedFd,
    /// Where its end is told; `None` if its keeper does that.
    report: Option<OwnedFd>,
}

struct Server {
    permitted: CapabilitySet,
    bounding: CapabilitySet,
    hierarchy: CgroupHierarchy,
    /// The filter last used: nearly every sandbox has the default capabilities.
    filter: Option<Filter>,
    live: Vec<Live>,
    ahead: Ahead,
}

/// What is there for the next sandbox.
enum Ahead {
    /// Nothing yet: who starts one sandbox may not start a second.
    Nothing,
    /// Nothing, since the last one was used.
    Used,
    /// A process that waits, or will.
    Waiting(Box<Spare>),
    /// Making one failed, and so would the next.
    GivenUp,
}

fn serve() -> io::Result<()> {
    let socket = detach()?;
    // Looked up here, the answer is inherited by every sandbox's first process.
    let _known = crate::overlay::in_user_namespace();
    if std::env::var_os(LAUNCHER_VARIABLE).is_some_and(|mode| mode == WITHOUT_NAMESPACES) {
        crate::userns::forgo_namespaces();
    }
    let mut server = Server {
        permitted: sys::permitted_capabilities()?,
        bounding: sys::bounding_set(),
        hierarchy: CgroupHierarchy::detect(),
        filter: None,
        live: Vec::new(),
        ahead: Ahead::Nothing,
    };
    loop {
        let mut polled = vec![PollFd::new(&socket, PollFlags::IN)];
        polled.extend(server.live.iter().map(|live| PollFd::new(&live.pidfd, PollFlags::IN)));
        let spare = match &server.ahead {
            Ahead::Waiting(spare) => Some(PollFd::new(spare.pidfd(), PollFlags::IN)),
            Ahead::Nothing | Ahead::Used | Ahead::GivenUp => None,
        };
        let patience = spare.is_some().then_some(&IDLE);
        polled.extend(spare);
        let is_idle = match rustix::event::poll(&mut polled, patience) {
            Err(rustix::io::Errno::INTR) => continue,
            other => other? == 0,
        };
        if is_idle {
            server.dismiss();
            server.ahead = Ahead::Used;
            continue;
        }
        let ready: Vec<bool> = polled.iter().map(|fd| !fd.revents().is_empty()).collect();
        let mut position = 0;
        server.live.retain(|live| {
            position += 1;
            !ready[position] || !report_end(live)
        });
        if ready.get(position + 1) == Some(&true) {
            server.dismiss();
        }
        if ready[0] && !server.request(&socket)? {
            return Ok(());
        }
    }
}

/// Cuts the ties to whoever executed this: its terminal, descriptors, umask. Returns the socket.
fn detach() -> io::Result<OwnedFd> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    // Here once for all sandboxes, which inherit it.
    sys::reset_signals();
    // Keys typed at the terminal are for the parent, which decides what becomes of the sandboxes.
    rustix::process::setsid()?;
    // SAFETY: the process has just been executed and has opened nothing yet; these are leaks of its parent, which
    // must not stay open for as long as this process lives.
    unsafe { sys::close_from(3) }?;
    let socket = sys::duplicate_standard_input()?;
    sys::duplicate_onto(File::open("/dev/null")?.as_fd(), 0)?;
    Ok(socket)
}

/// Reaps and reports a sandbox that has ended; false if it has not.
fn report_end(live: &Live) -> bool {
    match sys::reap(live.pidfd.as_fd()) {
        Ok(Some(exit)) => {
            // Nobody reads it when the parent has dropped the sandbox: that is its right.
            if let Some(report) = &live.report {
                let _unread = rustix::io::write(report, &encode_exit(exit));
            }
            true
        }
        Ok(None) => false,
        Err(_) => true,
    }
}

impl Server {
    /// Handles one request; false when there will be no more.
    fn request(&mut self, socket: &OwnedFd) -> io::Result<bool> {
        let (length, descriptors) = receive(socket.as_fd(), &mut [0; 64])?;
        if length == 0 {
            return Ok(false);
        }
        let mut descriptors = descriptors.into_iter();
        let six: Vec<OwnedFd> = descriptors.by_ref().take(6).collect();
        let network = descriptors.next().map(ReadyNetwork);
        let Ok([body, stdin, stdout, stderr, control, report]) = <[OwnedFd; 6]>::try_from(six) else {
            return Ok(true); // cut short for want of descriptors: closing them tells the caller
        };
        let streams = StandardStreams([stdin, stdout, stderr]);
        match self.spawn(body, (streams, network), &control, report) {
            Ok(Some((model, traits))) => self.prepare(model, traits),
            Ok(None) => {}
            Err(failure) => {
                let _unread = reply(&control, &Reply::Failed(failure), &[]);
            }
        }
        Ok(true)
    }

    /// Sees to it that something waits for the next request like this one.
    fn prepare(&mut self, model: Model, traits: Traits) {
        match &self.ahead {
            Ahead::Nothing => self.ahead = Ahead::Used,
            Ahead::Waiting(spare) if *spare.model() == model => {}
            Ahead::GivenUp => {}
            Ahead::Used | Ahead::Waiting(_) => {
                self.dismiss();
                let filter = self.filter.as_ref().filter(|_| traits.is_filtered);
                self.ahead = Spare::make(model, traits, filter)
                    .map_or(Ahead::GivenUp, |spare| Ahead::Waiting(Box::new(spare)));
            }
        }
    }

    /// Lets go of what waits; it ends, if it has not.
    fn dismiss(&mut self) {
        if let Ahead::Waiting(spare) = std::mem::replace(&mut self.ahead, Ahead::GivenUp) {
            self.live.push(Live { pidfd: spare.dismiss(), report: None });
        }
    }

    fn spawn(
        &mut self,
        body: OwnedFd,
        (streams, network): (StandardStreams, Option<ReadyNetwork>),
        control: &OwnedFd,
        report: OwnedFd,
    ) -> Result<Option<(Model, Traits)>, Failure> {
        let (request, body) = read_request(body).at(SetupStep::Clone)?;
        let by_chroot = matches!(request.spec.rootfs, RootFs::Chroot { .. });
        let traits = self.traits(&request, by_chroot);
        let model = Model::of(&request).filter(|_| network.is_none());
        if let (Some(wanted), Ahead::Waiting(spare)) = (&model, &mut self.ahead)
            && spare.fits(wanted)
            && let Ahead::Waiting(spare) = std::mem::replace(&mut self.ahead, Ahead::Used)
        {
            let (pidfd, is_taken) = spare.give(&body, &streams, control);
            if is_taken {
                let _unread = reply(control, &Reply::Cloned { ahead: true }, &[pidfd.as_fd()]);
                self.live.push(Live { pidfd, report: Some(report) });
                return Ok(model.map(|model| (model, traits)));
            }
            self.live.push(Live { pidfd, report: None });
        }
        let filter = self.filter.as_ref().filter(|_| traits.is_filtered);
        let child = |streams, control: &OwnedFd| {
            let request = &request;
            let Traits { capabilities, bounding, hierarchy, .. } = traits;
            let ground = None;
            Child { request, streams, network, ground, control, capabilities, bounding, filter, hierarchy }
                .run()
        };
        if by_chroot {
            return match sys::fork_lasting().at(SetupStep::Clone)? {
                Cloned::Child => {
                    let control = control.try_clone().at(SetupStep::Clone)?;
                    keeper::keep(control, report, |control| child(streams, control))
                }
                Cloned::Parent(pidfd) => {
                    self.live.push(Live { pidfd, report: None });
                    Ok(None)
                }
            };
        }
        let group = request.freezer.as_ref().map(|group| {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            rustix::fs::open(group, flags, Mode::empty()).with(SetupStep::JoinCgroup, group.display())
        });
        let group = group.transpose()?;
        let group = group.as_ref().map(AsFd::as_fd);
        match sys::clone_into_pid_namespace(group).at(SetupStep::Clone)? {
            Cloned::Child => {
                child(streams, control);
                sys::exit_now(1)
            }
            Cloned::Parent(pidfd) => {
                let _unread = reply(control, &Reply::Cloned { ahead: false }, &[pidfd.as_fd()]);
                self.live.push(Live { pidfd, report: Some(report) });
                Ok(model.map(|model| (model, traits)))
            }
        }
    }

    /// What the sandbox of a request may; the filter for that is kept.
    fn traits(&mut self, request: &Request, by_chroot: bool) -> Traits {
        let is_filtered = request.spec.security == Security::Default;
        let asked = if is_filtered { request.spec.process.capabilities } else { self.permitted };
        let granted = asked.intersection(self.permitted);
        let capabilities = if by_chroot && is_filtered { bounded(granted) } else { granted };
        if is_filtered && self.filter.as_ref().is_none_or(|filter| filter.capabilities() != capabilities) {
            self.filter = Some(match by_chroot {
                true => Filter::within_chroot(capabilities),
                false => Filter::docker_default(capabilities),
            });
        }
        Traits { capabilities, bounding: self.bounding, hierarchy: self.hierarchy, is_filtered }
    }
}

/// Reads a request; another may read it again.
pub(super) fn read_request(body: OwnedFd) -> io::Result<(Request, OwnedFd)> {
    let mut file = File::from(body);
    file.rewind()?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok((serde_json::from_slice(&bytes)?, file.into()))
}
