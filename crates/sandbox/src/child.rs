//! The first process of a sandbox, from its clone to the execution of the user's program.
//!
//! It runs alone on a copy of the launcher's memory, so it may allocate; everything it learns goes back over the
//! control channel, whose closing by the exec says that all went well. The order is: namespaces; everything that
//! needs host paths (bind sources, devices, layers) opened or mounted detached; the root changed and the host's
//! mounts let go; then mounts placed inside the new root, where no path leads out; identity last.
//! Read [`Child::run`] first.
//!
//! Devices: docker gives `CAP_MKNOD` and forbids the use of foreign device nodes by the device controller. Here
//! every mount of the sandbox is `nodev`, including `/dev`, and the harmless devices are bound there one by one:
//! that holds with either cgroup version and without any.

mod chroot;
mod devices;
mod ground;
mod identity;
mod mounts;
mod own_user;
mod program;
mod root;
mod terminal;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::mount::UnmountFlags;
use rustix::thread::{LinkNameSpaceType, UnshareFlags};

use crate::capability::CapabilitySet;
use crate::cgroup::CgroupHierarchy;
use crate::channel::{AtStep as _, Failure, Reply, Request, reply};
use crate::error::SetupStep;
use crate::ids::IdMap;
use crate::seccomp::{Answered, Filter};
use crate::spec::{Network, RootFs, SandboxSpec, Security};
use crate::sys::{self, MountFlags};
use crate::user_network::UserNetworkProgram;
pub(crate) use chroot::bounded;
pub(crate) use ground::{Ground, Model};
use root::Root;

/// A directory every host has and the set-up does not need: mounts are attached there before the root changes.
const STAGING: &str = "/sys";

/// Exit code of a first process that did not get to its program; nobody sees it, the failure is sent instead.
pub(crate) const SETUP_FAILED: i32 = 125;

/// Standard input, output and error.
pub(crate) struct StandardStreams(pub(crate) [OwnedFd; 3]);

/// A network namespace that was made for the sandbox.
pub(crate) struct ReadyNetwork(pub(crate) OwnedFd);

/// What the first process has.
pub(crate) struct Child<'a> {
    pub(crate) request: &'a Request,
    pub(crate) streams: StandardStreams,
    /// The network, if it is there already.
    pub(crate) network: Option<ReadyNetwork>,
    /// What was made before the request came.
    pub(crate) ground: Option<Ground>,
    pub(crate) control: &'a OwnedFd,
    /// What the program's bounding set will be.
    pub(crate) capabilities: CapabilitySet,
    /// The bounding set until then.
    pub(crate) bounding: CapabilitySet,
    pub(crate) filter: Option<&'a Filter>,
    pub(crate) hierarchy: CgroupHierarchy,
}

impl Child<'_> {
    /// Becomes the sandbox's program, or reports why not.
    pub(crate) fn run(self) -> ! {
        // A panic must not unwind into the launcher's loop, of which this process has a copy.
        let control = self.control;
        let set_up = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.set_up()));
        let failure = match set_up {
            Ok(Ok(never)) => match never {},
            Ok(Err(failure)) => failure,
            Err(_) => Failure::Setup {
                step: SetupStep::Unexpected,
                path: None,
                errno: None,
                message: "a defect in the sandbox set-up".to_owned(),
            },
        };
        let _unread = reply(control, &Reply::Failed(failure), &[]);
        sys::exit_now(SETUP_FAILED)
    }

    fn set_up(mut self) -> Result<std::convert::Infallible, Failure> {
        let spec = &self.request.spec;
        if let RootFs::Chroot { path } = &spec.rootfs {
            return self.set_up_in(path);
        }
        // What is masked and protected in it is so already.
        let (ground, is_finished) = match self.ground.take() {
            Some(ground) => (ground.prepared(), true),
            None => {
                begin_session()?;
                self.enter_namespaces()?;
                (mounts::basic(spec, &self.request.cgroup_controllers, self.hierarchy)?, false)
            }
        };
        let asked_for = mounts::asked_for(spec)?;
        mount_root(spec)?;
        let mut root = change_root()?;
        for mount in ground.into_iter().chain(asked_for) {
            mount.place(&mut root)?;
        }
        if spec.security == Security::Default && !is_finished {
            mounts::mask(&root, &spec.masked_paths)?;
            mounts::protect(&root, &spec.readonly_paths)?;
        }
        if !spec.hostname.is_empty() {
            match rustix::system::sethostname(spec.hostname.as_bytes()) {
                // A container's filter may forbid it to everybody inside; the container's name has to do.
                Err(rustix::io::Errno::PERM) if crate::overlay::in_user_namespace() => {}
                set => set.with(SetupStep::Hostname, &spec.hostname)?,
            }
        }
        if spec.network != Network::Host {
            sys::bring_up_loopback().at(SetupStep::Loopback)?;
        }
        if let Network::User(program) = spec.network {
            self.wait_for_network(program).at(SetupStep::Network)?;
        }
        self.set_streams(&mut root)?;
        self.enter_working_directory(&mut root)?;
        if !root.created().is_empty() {
            let created = Reply::Created(root.created().to_vec());
            reply(self.control, &created, &[]).at(SetupStep::MountPoint)?;
        }
        if spec.readonly_root {
            let readonly = MountFlags { readonly: true, ..MountFlags::default() };
            sys::restrict_mount(root.as_fd(), readonly, false).at(SetupStep::MountRoot)?;
        }
        drop(root);
        own_user::enter(&spec.process)?;
        if spec.process.uid == 0 && IdMap::current().is_single() {
            self.have_calls_answered(Answered { owners: true, room: self.request.announces })?;
        } else if let room @ Some(_) = self.request.announces {
            self.have_calls_answered(Answered { owners: false, room })?;
        }
        sys::limit_bounding_set(self.bounding, self.capabilities).at(SetupStep::Capabilities)?;
        identity::assume(&spec.process, self.capabilities, self.filter)?;
        Err(program::execute(&spec.process))
    }

    fn enter_namespaces(&self) -> Result<(), Failure> {
        for procs in &self.request.cgroup_procs {
            std::fs::write(procs, "0").with(SetupStep::JoinCgroup, procs.display())?;
        }
        let mut namespaces = UnshareFlags::empty();
        match (&self.network, self.request.spec.network) {
            (Some(ReadyNetwork(ready)), _) => {
                let kind = Some(LinkNameSpaceType::Network);
                rustix::thread::move_into_link_name_space(ready.as_fd(), kind).at(SetupStep::Network)?;
            }
            (None, Network::Host) => {}
            (None, Network::None | Network::User(_) | Network::Bridge) => namespaces |= UnshareFlags::NEWNET,
        }
        ground::leave_namespaces(namespaces)
    }

    /// Somebody outside connects the network; there is no answer when that failed.
    fn wait_for_network(&self, program: UserNetworkProgram) -> io::Result<()> {
        reply(self.control, &Reply::Network(program), &[])?;
        let (length, _) = crate::channel::receive(self.control.as_fd(), &mut [0; 8])?;
        if length == 0 { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
    }

    fn have_calls_answered(&self, answered: Answered) -> Result<(), Failure> {
        let listener = match crate::pretend::install(answered) {
            // Where a container's own filter has a listener there cannot be a second: then what is written is measured.
            Err(error) if !answered.owners && error.raw_os_error() == Some(libc::EBUSY) => return Ok(()),
            installed => installed.at(SetupStep::Seccomp)?,
        };
        reply(self.control, &Reply::Calls, &[listener.as_fd()]).at(SetupStep::Seccomp)
    }

    fn set_streams(&self, root: &mut Root) -> Result<(), Failure> {
        let process = &self.request.spec.process;
        if let Some(size) = process.terminal {
            let master = terminal::open(root, size, process.uid)?;
            return reply(self.control, &Reply::Terminal, &[master.as_fd()]).at(SetupStep::Terminal);
        }
        for (number, stream) in (0..).zip(&self.streams.0) {
            terminal::give_pipe_to(stream, process.uid);
            sys::duplicate_onto(stream.as_fd(), number).at(SetupStep::Stdio)?;
        }
        Ok(())
    }

    fn enter_working_directory(&self, root: &mut Root) -> Result<(), Failure> {
        let cwd = &self.request.spec.process.cwd;
        let step = SetupStep::WorkingDirectory;
        match rustix::process::chdir(cwd) {
            Err(rustix::io::Errno::NOENT) => {
                let made = root.make_directory(cwd).with(step, cwd.display())?;
                rustix::process::fchdir(made).with(step, cwd.display())
            }
            other => other.with(step, cwd.display()),
        }
    }
}

/// Cuts what ties a process to the launcher's session.
pub(crate) fn begin_session() -> Result<(), Failure> {
    rustix::process::setsid().at(SetupStep::Session)?;
    sys::leave_session_keyring();
    Ok(())
}

/// Mounts the root file system at the staging place.
fn mount_root(spec: &SandboxSpec) -> Result<(), Failure> {
    let nodev = spec.security == Security::Default;
    let staging = Path::new(STAGING);
    match &spec.rootfs {
        RootFs::Overlay(overlay) => {
            let layers = crate::mount::OverlayLayers {
                lower: overlay.lower.clone(),
                upper: Some((overlay.upper.clone(), overlay.work.clone())),
                volatile: overlay.volatile,
            };
            crate::overlay::mount_overlay_at(&layers, nodev, staging).at(SetupStep::MountRoot)
        }
        RootFs::Directory { path } | RootFs::Chroot { path } => {
            bind_root(path, nodev, staging).with(SetupStep::MountRoot, path.display())
        }
    }
}

fn bind_root(path: &Path, nodev: bool, at: &Path) -> io::Result<()> {
    let tree = mounts::open_tree(rustix::fs::CWD, path, false)?;
    sys::restrict_mount(tree.as_fd(), MountFlags { nodev, ..MountFlags::default() }, false)?;
    mounts::attach(&tree, rustix::fs::CWD, at)
}

/// Makes the staged mount the root and lets go of everything else.
fn change_root() -> Result<Root, Failure> {
    let change = || -> io::Result<Root> {
        rustix::process::chdir(STAGING)?;
        // With both names the same, the old root ends up below the new one's, where only the working
        // directory still leads.
        rustix::process::pivot_root(".", ".")?;
        rustix::mount::unmount(".", UnmountFlags::DETACH)?;
        rustix::process::chdir("/")?;
        Root::open()
    };
    change().at(SetupStep::PivotRoot)
}
