//! A sandbox where no namespace can be made: another root, fewer rights, a filter, and nothing else.
//!
//! What is around it stays in sight: the processes, the network and the host name are those of the caller. What would
//! lead out of the root is taken away: `CAP_SYS_CHROOT`, `CAP_MKNOD`, tracing. Set-user-id programs gain nothing,
//! since the kernel wants that for a filter from those without `CAP_SYS_ADMIN`. Mounts are not made here: the
//! caller has put into the directory what is to be seen. Read [`Child::set_up_in`] first.

use std::os::fd::AsFd as _;
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::pty::OpenptFlags;

use super::root::Root;
use super::{Child, identity, program, terminal};
use crate::capability::{Capability, CapabilitySet};
use crate::channel::{AtStep as _, Failure, Reply, reply};
use crate::error::SetupStep;
use crate::seccomp::Answered;
use crate::spec::{Process, Security, TerminalSize};
use crate::sys;

/// What leads out of a root that is no mount of its own.
const WAYS_OUT: [Capability; 4] =
    [Capability::SysChroot, Capability::Mknod, Capability::SysPtrace, Capability::SysAdmin];

/// What of `capabilities` a process may have that is held by its root alone.
pub(crate) fn bounded(capabilities: CapabilitySet) -> CapabilitySet {
    WAYS_OUT.into_iter().fold(capabilities, CapabilitySet::without)
}

impl Child<'_> {
    /// Becomes the sandbox's program with `path` as its root.
    pub(super) fn set_up_in(&self, path: &Path) -> Result<std::convert::Infallible, Failure> {
        let spec = &self.request.spec;
        rustix::process::setsid().at(SetupStep::Session)?;
        sys::leave_session_keyring();
        for procs in &self.request.cgroup_procs {
            std::fs::write(procs, "0").with(SetupStep::JoinCgroup, procs.display())?;
        }
        if let Some(size) = spec.process.terminal {
            self.open_terminal(size)?;
        }
        rustix::process::chroot(path).with(SetupStep::ChangeRoot, path.display())?;
        rustix::process::chdir("/").at(SetupStep::ChangeRoot)?;
        let mut root = Root::open().at(SetupStep::ChangeRoot)?;
        if spec.process.terminal.is_none() {
            for (number, stream) in (0..).zip(&self.streams.0) {
                terminal::give_pipe_to(stream, spec.process.uid);
                sys::duplicate_onto(stream.as_fd(), number).at(SetupStep::Stdio)?;
            }
        }
        self.enter_working_directory(&mut root)?;
        drop(root);
        // Without CAP_SETPCAP the bounding set stays; what follows keeps root from regaining it.
        let _kept = sys::limit_bounding_set(self.bounding, self.capabilities);
        if let Some(bound) = self.request.announces {
            self.announce_room(&spec.process, bound)?;
        }
        let confined = spec.security == Security::Default;
        let no_new_privileges = spec.process.no_new_privileges || confined;
        let process = Process { no_new_privileges, ..spec.process.clone() };
        identity::assume(&process, self.capabilities, self.filter)?;
        Err(program::execute(&process))
    }

    /// Has calls answered that take much of a disk, if the kernel lets this process.
    fn announce_room(&self, process: &Process, bound: u32) -> Result<(), Failure> {
        if process.no_new_privileges || self.request.spec.security == Security::Default {
            rustix::thread::set_no_new_privs(true).at(SetupStep::NoNewPrivileges)?;
        }
        // Where a container's own filter has a listener there cannot be a second.
        match crate::pretend::install(Answered { owners: false, room: Some(bound) }) {
            Ok(listener) => reply(self.control, &Reply::Calls, &[listener.as_fd()]).at(SetupStep::Seccomp),
            Err(_) => Ok(()),
        }
    }

    /// A terminal of the caller's `/dev/pts`, which cannot be seen from the new root.
    fn open_terminal(&self, size: TerminalSize) -> Result<(), Failure> {
        let open = || -> std::io::Result<_> {
            let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
            let master = rustix::fs::open("/dev/ptmx", flags, Mode::empty())?;
            rustix::pty::unlockpt(&master)?;
            let peer = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
            let slave = rustix::pty::ioctl_tiocgptpeer(&master, peer)?;
            rustix::termios::tcsetwinsize(&master, size.into())?;
            rustix::process::ioctl_tiocsctty(&slave)?;
            for number in 0..3 {
                sys::duplicate_onto(slave.as_fd(), number)?;
            }
            Ok(master)
        };
        let master = open().at(SetupStep::Terminal)?;
        reply(self.control, &Reply::Terminal, &[master.as_fd()]).at(SetupStep::Terminal)
    }
}
