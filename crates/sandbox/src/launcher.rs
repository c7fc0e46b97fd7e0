//! The caller's side of the launcher: a single-threaded second execution of this program that clones the sandboxes.
//!
//! Why it exists: between clone and exec a process may run next to no code if it was cloned from a threaded one.
//! The launcher has one thread, so a sandbox's first process may allocate, parse and mount at leisure.
//!
//! - *Dies together.* The launcher is the first process of a pid namespace that holds every sandbox. When it ends
//!   the kernel kills them all, whatever they do about signals. It is killed when this process dies (parent death
//!   signal) and ends by itself when its socket closes. Where no namespaces can be made, a `keeper` above each
//!   sandbox sees to the same.
//! - *Out of reach.* It is executed from a read-only, detached clone of the mount that holds the program, or else
//!   from a sealed copy in memory. So `/proc/self/exe` of a sandbox's first process, which the program of an image
//!   may name as its own interpreter, can never be opened for writing and the host's file stays as it is.
//!
//! Read [`Launcher`] first.

mod keeper;
mod program;
mod server;
mod spare;

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use rustix::fs::MemfdFlags;
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::cgroup::{CgroupGuard, FreezerGroup};
use crate::channel::{MAX_MESSAGE, Reply, Request, receive, send};
use crate::error::SpawnError;
use crate::net::{BridgeError, BridgeNamespace, BridgeNetwork};
use crate::pretend::{OwnerRecorder, Supervisor};
use crate::room::Room;
use crate::sandbox::{Sandbox, Stdio};
use crate::spec::{Network, RootFs, SandboxSpec};
use crate::stubs::stub_layer;
use crate::user_network::{self, UserNetwork};

pub use server::launcher_entry;

/// Marks an execution as the launcher, as its name.
const LAUNCHER_NAME: &str = "stave-sandbox-launcher";
/// Marks it as well, since anybody may choose a program's name; says whether there are namespaces.
const LAUNCHER_VARIABLE: &str = "STAVE_SANDBOX_LAUNCHER";
/// The variable's value where no namespace can be made.
const WITHOUT_NAMESPACES: &str = "chroot";

/// Starts sandboxes. Cheap to clone; usable from every thread; nothing is started before the first spawn, or before
/// somebody [foresees it](Self::run_ahead).
///
/// The process dies with the last clone and the last [`Sandbox`].
#[derive(Debug, Clone, Default)]
pub struct Launcher {
    running: Arc<Mutex<Option<Arc<Running>>>>,
    recorder: Option<OwnerRecorder>,
    /// Made for the first who asks.
    bridge: Arc<Mutex<Option<BridgeNetwork>>>,
}

impl Launcher {
    /// A launcher whose process is started by the first [`spawn`](Self::spawn).
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The launcher, with a way to record owners that do not exist here ([`IdMap::is_single`](crate::IdMap)).
    #[must_use]
    pub fn recording_owners(self, recorder: OwnerRecorder) -> Self {
        Self { recorder: Some(recorder), ..self }
    }

    /// A launcher whose process runs.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start() -> Result<Self, SpawnError> {
        let launcher = Self::new();
        let _running = launcher.running()?;
        Ok(launcher)
    }

    /// Starts the process if it does not run, so that the first sandbox need not wait for it. Blocks for milliseconds;
    /// says nothing of failure, which the sandbox will tell.
    pub fn run_ahead(&self) {
        if let Err(error) = self.running() {
            tracing::debug!(error = &error as &dyn std::error::Error, "the launcher does not start");
        }
    }

    /// No more sandboxes are wanted: the process begins to end if nothing runs, beside whatever comes before the drop,
    /// which waits for it. A sandbox that is started all the same gets another.
    pub fn end_ahead(&self) {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(running) = running.as_ref().filter(|running| Arc::strong_count(running) == 1)
            && let Some(socket) = &running.socket
        {
            // A process that is gone has closed its own end.
            rustix::net::shutdown(socket, rustix::net::Shutdown::Both).ok();
        }
    }

    /// The bridge network of this process's sandboxes, made now if nobody asked before. It goes with the last clone and the
    /// last [`Sandbox`].
    ///
    /// # Errors
    /// Why there cannot be one.
    pub fn bridge(&self) -> Result<BridgeNetwork, BridgeError> {
        let mut bridge = self.bridge.lock().unwrap_or_else(PoisonError::into_inner);
        match &*bridge {
            Some(bridge) => Ok(bridge.clone()),
            None => Ok(bridge.insert(BridgeNetwork::start()?).clone()),
        }
    }

    /// The launcher, with a bridge network that is there already.
    #[must_use]
    pub fn on_bridge(self, bridge: BridgeNetwork) -> Self {
        Self { bridge: Arc::new(Mutex::new(Some(bridge))), ..self }
    }

    /// Starts a sandbox and returns once its program is being executed. Blocks for milliseconds.
    ///
    /// # Errors
    /// When the spec is wrong, a step of the set-up fails, or the program cannot be executed.
    pub fn spawn(&self, spec: &SandboxSpec, stdio: Stdio) -> Result<Sandbox, SpawnError> {
        self.spawn_bounded(spec, stdio, None)
    }

    /// The same; its processes ask for `room` before they take much of a disk in one call, and can be held still
    /// ([`Sandbox::freezer`]) where the kernel can.
    ///
    /// # Errors
    /// As [`spawn`](Self::spawn).
    pub fn spawn_bounded(
        &self,
        spec: &SandboxSpec,
        stdio: Stdio,
        room: Option<Room>,
    ) -> Result<Sandbox, SpawnError> {
        spec.validate()?;
        let mut spec = spec.clone();
        if let RootFs::Overlay(root) = &spec.rootfs
            && let Some(stubs) = &root.stubs
        {
            let layer = stub_layer(stubs, &spec.mounts)
                .map_err(|source| SpawnError::StubLayer { path: stubs.clone(), source })?;
            if let RootFs::Overlay(root) = &mut spec.rootfs {
                root.lower.push(layer);
            }
        }
        let cgroup = CgroupGuard::for_sandbox(spec.cgroup.as_ref(), &spec.cgroup_parent);
        let by_chroot = matches!(spec.rootfs, RootFs::Chroot { .. });
        let freezer = room
            .as_ref()
            .filter(|room| room.stands())
            .and_then(|_| FreezerGroup::for_sandbox(cgroup.as_ref(), &spec.cgroup_parent))
            // One that only another root holds is not cloned into a group of its own.
            .filter(|group| !by_chroot || group.entrance().is_none());
        let request = Request {
            freezer: freezer.as_ref().and_then(|group| Some(group.entrance()?.to_owned())),
            announces: room.as_ref().map(Room::bound),
            cgroup_procs: cgroup.as_ref().map(CgroupGuard::procs_files).unwrap_or_default(),
            cgroup_controllers: cgroup.as_ref().map(CgroupGuard::v1_controllers).unwrap_or_default(),
            spec,
        };
        let bridge = match request.spec.network {
            Network::Bridge => self.bridge().and_then(|bridge| bridge.take()).map(Some),
            Network::Host | Network::None | Network::User(_) => Ok(None),
        };
        let bridge = bridge.map_err(|source| SpawnError::Bridge { source })?;
        let order = Order::new(&request, stdio, bridge).map_err(SpawnError::LauncherGone)?;
        let running = self.deliver(&order)?;
        order.collect(running, (cgroup, freezer), (self.recorder, room))
    }

    /// Hands the order over. A launcher that died takes no more; then it was not begun, and a new one gets it.
    fn deliver(&self, order: &Order) -> Result<Arc<Running>, SpawnError> {
        let running = self.running()?;
        match running.send(order) {
            Ok(()) => Ok(running),
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                self.forget(&running);
                let next = self.running()?;
                next.send(order).map_err(SpawnError::LauncherGone)?;
                Ok(next)
            }
            Err(error) => Err(SpawnError::LauncherGone(error)),
        }
    }

    fn forget(&self, dead: &Arc<Running>) {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if running.as_ref().is_some_and(|current| Arc::ptr_eq(current, dead)) {
            *running = None;
        }
    }

    /// The running process; started when there is none, or when the last one died.
    fn running(&self) -> Result<Arc<Running>, SpawnError> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(running) = running.as_ref().filter(|running| running.alive()) {
            return Ok(Arc::clone(running));
        }
        let started = Arc::new(Running::start().map_err(SpawnError::StartLauncher)?);
        *running = Some(Arc::clone(&started));
        Ok(started)
    }
}

/// A launcher process.
#[derive(Debug)]
pub(crate) struct Running {
    /// Requests go out here; `None` only while it is dropped.
    socket: Option<OwnedFd>,
    /// The thread that started the process and waits for it: a parent death signal fires when the thread that
    /// started a process ends, so this one has to live as long.
    keeper: Option<JoinHandle<()>>,
}

impl Running {
    fn start() -> io::Result<Self> {
        let (ours, theirs) = packet_pair()?;
        let (started, start) = std::sync::mpsc::sync_channel(1);
        let keeper = std::thread::Builder::new().name("stave-launcher".into()).spawn(move || {
            let child = program::execute_launcher(theirs);
            match child {
                Ok(mut child) => {
                    let _received = started.send(Ok(()));
                    let _ended = child.wait();
                }
                Err(error) => {
                    let _received = started.send(Err(error));
                }
            }
        })?;
        start.recv().map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))??;
        Ok(Self { socket: Some(ours), keeper: Some(keeper) })
    }

    fn alive(&self) -> bool {
        self.keeper.as_ref().is_some_and(|keeper| !keeper.is_finished())
    }

    fn send(&self, order: &Order) -> io::Result<()> {
        let socket = self.socket.as_ref().ok_or(io::ErrorKind::BrokenPipe)?;
        let Order { body, stdio, control_inside, report_inside, .. } = order;
        let Stdio { stdin, stdout, stderr } = stdio;
        let mut descriptors =
            [body, stdin, stdout, stderr, control_inside, report_inside].map(AsFd::as_fd).to_vec();
        descriptors.extend(order.bridge.as_ref().map(AsFd::as_fd));
        send(socket.as_fd(), b"spawn", &descriptors)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.socket.take());
        if let Some(keeper) = self.keeper.take() {
            let _panicked = keeper.join();
        }
    }
}

/// A request and the ends of its channels, before it is handed over.
struct Order {
    body: OwnedFd,
    stdio: Stdio,
    control: OwnedFd,
    control_inside: OwnedFd,
    report: OwnedFd,
    report_inside: OwnedFd,
    bridge: Option<BridgeNamespace>,
}

impl Order {
    fn new(request: &Request, stdio: Stdio, bridge: Option<BridgeNamespace>) -> io::Result<Self> {
        let (control, control_inside) = packet_pair()?;
        let (report, report_inside) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        Ok(Self { body: body(request)?, stdio, control, control_inside, report, report_inside, bridge })
    }

    /// Waits until the program is being executed, or cannot be.
    fn collect(
        self,
        launcher: Arc<Running>,
        (cgroup, freezer): (Option<CgroupGuard>, Option<FreezerGroup>),
        (recorder, room): (Option<OwnerRecorder>, Option<Room>),
    ) -> Result<Sandbox, SpawnError> {
        let Self { stdio, control, control_inside, report, report_inside, bridge, .. } = self;
        // Only the sandbox's ends may stay open: their closing is what tells of its progress and its end.
        drop((stdio, control_inside, report_inside));
        let Replies { pidfd, ahead, terminal, calls, network, created } = Replies::collect(&control)?;
        let pidfd = pidfd.ok_or_else(|| SpawnError::LauncherGone(io::ErrorKind::UnexpectedEof.into()))?;
        let mut sandbox = Sandbox {
            pidfd,
            ahead,
            report,
            terminal,
            created,
            cgroup,
            freezer,
            exit: None,
            _calls: None,
            _network: network,
            _bridge: bridge,
            _launcher: launcher,
        };
        // Should that fail, its drop ends what runs by now.
        let calls = calls.map(|listener| Supervisor::start(listener, recorder, room)).transpose();
        sandbox._calls = calls.map_err(SpawnError::LauncherGone)?;
        Ok(sandbox)
    }
}

/// What came back before the program was executed.
#[derive(Default)]
struct Replies {
    pidfd: Option<OwnedFd>,
    ahead: bool,
    terminal: Option<OwnedFd>,
    calls: Option<OwnedFd>,
    network: Option<UserNetwork>,
    created: Vec<std::path::PathBuf>,
}

impl Replies {
    /// Reads until the channel closes, which the exec does.
    fn collect(control: &OwnedFd) -> Result<Self, SpawnError> {
        let mut replies = Self::default();
        let mut failure = None;
        let mut buffer = vec![0; MAX_MESSAGE];
        loop {
            let (length, mut descriptors) =
                receive(control.as_fd(), &mut buffer).map_err(SpawnError::LauncherGone)?;
            if length == 0 {
                break;
            }
            let reply = serde_json::from_slice(&buffer[..length])
                .map_err(|error| SpawnError::LauncherGone(error.into()))?;
            match reply {
                Reply::Cloned { ahead } => {
                    (replies.pidfd, replies.ahead) = (descriptors.pop(), ahead);
                }
                Reply::Terminal => replies.terminal = descriptors.pop(),
                Reply::Network(program) => {
                    let process = replies.pidfd.as_ref().ok_or(io::ErrorKind::NotFound);
                    let process = process.map_err(|error| SpawnError::Network(error.into()))?;
                    replies.network =
                        Some(user_network::attach(process.as_fd(), program).map_err(SpawnError::Network)?);
                    send(control.as_fd(), b"up", &[]).map_err(SpawnError::LauncherGone)?;
                }
                Reply::Calls => replies.calls = descriptors.pop(),
                Reply::Created(paths) => replies.created = paths,
                Reply::Failed(failed) => failure = Some(failed),
            }
        }
        match failure {
            Some(failure) => Err(failure.into()),
            None => Ok(replies),
        }
    }
}

fn packet_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

/// The request in a memory file: arguments and environment may be larger than any message.
fn body(request: &Request) -> io::Result<OwnedFd> {
    let mut file = File::from(rustix::fs::memfd_create("stave-request", MemfdFlags::CLOEXEC)?);
    file.write_all(&serde_json::to_vec(request)?)?;
    Ok(file.into())
}
