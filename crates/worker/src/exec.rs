//! Running processes over mounted snapshots.
//! Owns the seam [`Executor`] and its implementation on the sandbox crate: starting, output, waiting, cancelling.
//! Must not know LLB or the store: a [`MountSet`] already names directories. Read [`Executor`] first.

pub(crate) mod network_files;
mod runtime;
pub(crate) mod tree;
mod usage;

use std::borrow::Cow;
use std::future::Future;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rustix::pipe::{PipeFlags, pipe_with};
use stave_sandbox::{
    CgroupLimits, CgroupParent, Exit, ExitStatus, Launcher, MountSpec, Network, Process, RootFs, Sandbox,
    SandboxSpec, Security, SpawnError, Stdio, Urgent, WaitError,
};
use stave_solver::{EventSubscription, LogStream};
use stave_store::{Store, StoreError};
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;
use tokio_util::sync::CancellationToken;

pub use self::runtime::{RuntimeError, RuntimeExecutor};
pub use self::tree::TreeError;
use self::tree::{ProcessTree, Trees};
use crate::redact::Redactions;
use crate::starts::Turn;
use crate::watch::{Watch, Watching};

/// Bytes of output read at a time.
const OUTPUT_BUFFER: usize = 16 << 10;

/// Pause after a wake-up without an end.
const SPURIOUS_PAUSE: std::time::Duration = std::time::Duration::from_millis(1);

/// Bytes of output kept for the error message of a failed step.
pub(crate) const TAIL_LIMIT: usize = 8 << 10;

/// What to run.
#[derive(Debug, Clone)]
pub struct ProcessSpec {
    /// Program, environment, user, limits.
    pub process: Process,
    /// Host name inside.
    pub hostname: String,
    /// Which network.
    pub network: Network,
    /// How confined.
    pub security: Security,
    /// Limits of its control group; `None` makes none, unless there is a parent.
    pub limits: Option<CgroupLimits>,
    /// Where the control group is made.
    pub cgroup_parent: CgroupParent,
    /// What holds it to the store's cap.
    pub(crate) watch: Option<Arc<Watch>>,
    /// Its turn to start, if it has to wait for one: ends as soon as it has started.
    pub(crate) turn: Option<Arc<Turn>>,
}

/// What the process sees as file system.
#[derive(Debug, Clone)]
pub struct MountSet {
    /// The root.
    pub root: RootFs,
    /// Whether the root refuses writes.
    pub readonly_root: bool,
    /// Mounts on top, in this order.
    pub mounts: Vec<MountSpec>,
    /// Size of `/dev/shm` in bytes; `None` for the default.
    pub shm_size: Option<u64>,
}

/// Where input comes from and output goes to.
#[derive(Debug)]
pub enum ProcessIo {
    /// No input; output becomes log events of a vertex.
    Logged(StepLog),
    /// The given descriptors.
    Given(Stdio),
}

/// Where the output of a step goes, and what is left out of it.
#[derive(Debug, Clone)]
pub struct StepLog {
    /// The vertex's events.
    pub events: EventSubscription,
    pub(crate) redactions: Option<Arc<Redactions>>,
    /// What the process and its children hold now, in bytes: the executor writes it while they run.
    pub held: Arc<AtomicU64>,
}

impl StepLog {
    /// A log in which nothing is replaced.
    #[must_use]
    pub fn new(events: EventSubscription) -> Self {
        Self { events, redactions: None, held: Arc::default() }
    }
}

/// What a process and its children used.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ProcessUsage {
    /// The most memory they held at once, in bytes; files' pages left out. Short peaks of several processes together
    /// may be missed.
    pub memory: u64,
    /// The most that counted against the limit, in bytes; files' pages are in it. `None` without a control group.
    pub limited_memory: Option<u64>,
    /// CPU time.
    pub cpu_time: Duration,
    /// Whether one was killed for want of memory.
    pub oom_killed: bool,
    /// Limits that did not hold, each with its reason.
    pub unlimited: Vec<String>,
}

/// The end of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finished {
    /// How it ended.
    pub status: ExitStatus,
    /// The last of what it wrote, both streams together; empty when it wrote to given descriptors.
    pub tail: Vec<u8>,
    /// Mount points that had to be created in the root, absolute paths inside.
    pub created_mount_points: Vec<PathBuf>,
    /// What was used.
    pub usage: ProcessUsage,
}

/// Why a process did not run to its end.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// It could not be started.
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    /// Its end could not be learnt.
    #[error(transparent)]
    Wait(#[from] WaitError),
    /// Its output could not be read.
    #[error("reading the output of a process")]
    Output(#[source] io::Error),
    /// Its file system could not be made a tree.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// The external runtime could not run it.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// Nothing more fits into the store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It was killed because nobody wanted the outcome any more.
    #[error("cancelled")]
    Cancelled,
}

/// Runs processes. A second implementation (an external OCI runtime) fits behind this.
pub trait Executor: Send + Sync + 'static {
    /// Soon a process is to be run: what takes its time and is the same for all of them may begin. Returns at once.
    fn prepare(&self) {}

    /// Probably no process is to be run any more. Returns at once.
    fn end(&self) {}

    /// Runs a process to its end. When `cancel` fires, everything inside is killed and waited for first.
    fn run(
        &self,
        process: ProcessSpec,
        mounts: MountSet,
        io: ProcessIo,
        cancel: &CancellationToken,
    ) -> impl Future<Output = Result<Finished, ExecError>> + Send;
}

/// Runs processes in sandboxes of this machine.
#[derive(Debug, Clone)]
pub struct SandboxExecutor {
    launcher: Launcher,
    /// Where nothing can be mounted: each process gets a tree.
    trees: Option<Trees>,
    /// Whether the launcher was started ahead.
    is_prepared: Arc<AtomicBool>,
}

/// A process that was started. Fields are dropped in order: what it works in goes after it.
#[derive(Debug)]
pub(crate) struct Started {
    pub(crate) watching: Option<Watching>,
    pub(crate) sandbox: Sandbox,
    pub(crate) tree: Option<ProcessTree>,
}

impl SandboxExecutor {
    /// An executor; its launcher is started by the first process.
    #[must_use]
    pub fn new(launcher: Launcher) -> Self {
        let launcher = launcher.recording_owners(stave_store::owner::change);
        Self { launcher, trees: None, is_prepared: Arc::default() }
    }

    /// Starts a sandbox and returns it running, for those who want to talk to it.
    pub(crate) async fn spawn(
        &self,
        mut spec: SandboxSpec,
        stdio: Stdio,
        watch: Option<Arc<Watch>>,
    ) -> Result<Started, ExecError> {
        let (launcher, trees) = (self.launcher.clone(), self.trees.clone());
        awaited(move || {
            let tree = trees.map(|trees| ProcessTree::build(&trees, &mut spec)).transpose()?;
            start(&launcher, &spec, stdio, (tree, watch))
        })
        .await
    }

    /// Starts a sandbox without input; what it writes to its two streams comes out of the pipes.
    async fn spawn_logged(
        &self,
        mut spec: SandboxSpec,
        watch: Option<Arc<Watch>>,
    ) -> Result<(Started, OwnedFd, OwnedFd), ExecError> {
        let (launcher, trees) = (self.launcher.clone(), self.trees.clone());
        awaited(move || {
            let tree = trees.map(|trees| ProcessTree::build(&trees, &mut spec)).transpose()?;
            let pipes = match &tree {
                Some(tree) => tree.named_pipes(),
                None => anonymous_pipes(),
            };
            let [(stdout, inside_stdout), (stderr, inside_stderr)] = pipes.map_err(ExecError::Output)?;
            let stdin = null().map_err(ExecError::Output)?;
            let stdio = Stdio { stdin, stdout: inside_stdout, stderr: inside_stderr };
            Ok((start(&launcher, &spec, stdio, (tree, watch))?, stdout, stderr))
        })
        .await
    }
}

/// Runs processes in sandboxes of this machine, or by an external runtime if one is named. What somebody talks to
/// (`stave run`, a shell in a failed step) is in a sandbox either way.
#[derive(Debug, Clone)]
pub struct LocalExecutor {
    sandbox: SandboxExecutor,
    runtime: Option<RuntimeExecutor>,
}

impl LocalExecutor {
    /// An executor; without a runtime it uses sandboxes alone.
    #[must_use]
    pub fn new(launcher: Launcher, runtime: Option<RuntimeExecutor>) -> Self {
        Self { sandbox: SandboxExecutor::new(launcher), runtime }
    }

    /// The executor for a machine where nothing can be mounted, if `store` is there.
    pub(crate) fn in_trees_of(mut self, store: Option<Store>) -> Self {
        self.sandbox.trees = store.map(Trees::of);
        self
    }

    /// What starts sandboxes.
    pub(crate) fn sandbox(&self) -> &SandboxExecutor {
        &self.sandbox
    }
}

impl Executor for LocalExecutor {
    fn prepare(&self) {
        if self.runtime.is_none() {
            self.sandbox.prepare();
        }
    }

    fn end(&self) {
        self.sandbox.end();
    }

    async fn run(
        &self,
        mut process: ProcessSpec,
        mounts: MountSet,
        io: ProcessIo,
        cancel: &CancellationToken,
    ) -> Result<Finished, ExecError> {
        match &self.runtime {
            Some(runtime) => {
                // When its container has started, the runtime does not tell. Dropped here and not left behind in
                // `process`, which lives until the container has ended.
                drop(process.turn.take());
                runtime.run(process, mounts, io, cancel).await
            }
            None => self.sandbox.run(process, mounts, io, cancel).await,
        }
    }
}

impl Executor for SandboxExecutor {
    fn prepare(&self) {
        if !self.is_prepared.swap(true, Ordering::Relaxed) {
            let launcher = self.launcher.clone();
            // Whoever then starts a sandbox meets the same error, or none.
            drop(tokio::task::spawn_blocking(move || launcher.run_ahead()));
        }
    }

    fn end(&self) {
        self.launcher.end_ahead();
    }

    async fn run(
        &self,
        mut process: ProcessSpec,
        mounts: MountSet,
        io: ProcessIo,
        cancel: &CancellationToken,
    ) -> Result<Finished, ExecError> {
        let (watch, turn) = (process.watch.clone(), process.turn.take());
        let spec = sandbox_spec(process, mounts);
        let kills = usage::oom_kills_before();
        // Kept whole: should this future be dropped, or the end not be learnt, what the process works in goes after it.
        let (mut started, output) = match io {
            ProcessIo::Given(stdio) => (self.spawn(spec, stdio, watch).await?, None),
            ProcessIo::Logged(log) => {
                let (started, stdout, stderr) = self.spawn_logged(spec, watch).await?;
                (started, Some((log, stdout, stderr)))
            }
        };
        drop(turn);
        let held = output.as_ref().map_or_else(Arc::default, |(log, ..)| Arc::clone(&log.held));
        let sandbox = &mut started.sandbox;
        let tail = Arc::new(Tail::default());
        let reading = async {
            match output {
                Some((log, stdout, stderr)) => {
                    tokio::try_join!(
                        forward(stdout, LogStream::Stdout, &log, &tail),
                        forward(stderr, LogStream::Stderr, &log, &tail),
                    )?;
                    Ok(())
                }
                None => Ok(()),
            }
        };
        let waiting = async {
            let mut sampler = usage::Sampler::new(sandbox.meter(), held);
            let exit = tokio::select! {
                exit = wait(sandbox, cancel) => exit,
                never = sampler.run() => match never {},
            };
            exit.map(|exit| (exit, usage::of(sandbox, exit, sampler.peak(), kills)))
        };
        // The pipes reach their end when the last process inside is gone, so both always finish.
        let (read, ended) = tokio::join!(reading, waiting);
        let (exit, usage) = ended?;
        read.map_err(ExecError::Output)?;
        let Started { watching, sandbox, tree } = started;
        let created_mount_points = sandbox.created_mount_points().to_vec();
        if watching.is_none() && tree.is_none() && sandbox.leaves_nothing() {
            return Ok(Finished { status: exit.status, tail: tail.bytes(), created_mount_points, usage });
        }
        // The group is removed with the sandbox, which may take a moment.
        let finished = tokio::task::spawn_blocking(move || {
            drop((watching, sandbox));
            tree.map_or(Ok(()), ProcessTree::finish)
        });
        finished.await.unwrap_or(Ok(())).map_err(TreeError::Store)?;
        Ok(Finished { status: exit.status, tail: tail.bytes(), created_mount_points, usage })
    }
}

/// Starts a sandbox, and the watch over it.
fn start(
    launcher: &Launcher,
    spec: &SandboxSpec,
    stdio: Stdio,
    (tree, watch): (Option<ProcessTree>, Option<Arc<Watch>>),
) -> Result<Started, ExecError> {
    let watching = watch.as_ref().map(Watch::begin);
    // The watch begins no later than the program.
    let urgent = watch.as_ref().and_then(|_| Urgent::begin());
    let sandbox = launcher.spawn_bounded(spec, stdio, watch.as_ref().map(Watch::room))?;
    if let Some(watching) = &watching {
        watching.follow(sandbox.freezer());
    }
    drop(urgent);
    Ok(Started { watching, sandbox, tree })
}

/// The sandbox for a process.
pub(crate) fn sandbox_spec(process: ProcessSpec, mounts: MountSet) -> SandboxSpec {
    let mut spec = SandboxSpec::new(mounts.root, process.process);
    spec.readonly_root = mounts.readonly_root;
    spec.mounts = mounts.mounts;
    spec.hostname = process.hostname;
    spec.network = process.network;
    spec.security = process.security;
    spec.cgroup = process.limits;
    spec.cgroup_parent = process.cgroup_parent;
    if let Some(size) = mounts.shm_size {
        spec.shm_size = size;
    }
    spec
}

/// Waits for the end; kills when cancelled, and still waits.
pub(crate) async fn wait(sandbox: &mut Sandbox, cancel: &CancellationToken) -> Result<Exit, ExecError> {
    let ended = sandbox.as_fd().try_clone_to_owned().map_err(ExecError::Output)?;
    rustix::io::ioctl_fionbio(&ended, true).map_err(|error| ExecError::Output(error.into()))?;
    let ended = pipe::Receiver::from_owned_fd_unchecked(ended).map_err(ExecError::Output)?;
    let mut cancelled = false;
    loop {
        if let Some(exit) = sandbox.try_wait()? {
            return if cancelled { Err(ExecError::Cancelled) } else { Ok(exit) };
        }
        tokio::select! {
            ready = ended.readable() => {
                ready.map_err(ExecError::Output)?;
                if let Some(exit) = sandbox.try_wait()? {
                    return if cancelled { Err(ExecError::Cancelled) } else { Ok(exit) };
                }
                // Ready without a report: the runtime cannot forget that without reading, so look again later.
                tokio::time::sleep(SPURIOUS_PAUSE).await;
            }
            () = cancel.cancelled(), if !cancelled => {
                cancelled = true;
                sandbox.kill().map_err(ExecError::Output)?;
            }
        }
    }
}

/// The outcome of work that blocks.
async fn awaited<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ExecError> + Send + 'static,
) -> Result<T, ExecError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(outcome) => outcome,
        Err(join) => std::panic::resume_unwind(join.into_panic()),
    }
}

/// Two pipes, each with its reading end first.
fn anonymous_pipes() -> io::Result<[(OwnedFd, OwnedFd); 2]> {
    Ok([pipe_with(PipeFlags::CLOEXEC)?, pipe_with(PipeFlags::CLOEXEC)?])
}

fn null() -> io::Result<OwnedFd> {
    use rustix::fs::{CWD, Mode, OFlags, openat};
    Ok(openat(CWD, "/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
}

fn logged_stdio() -> io::Result<(Stdio, OwnedFd, OwnedFd)> {
    let [(stdout, stdout_write), (stderr, stderr_write)] = anonymous_pipes()?;
    Ok((Stdio { stdin: null()?, stdout: stdout_write, stderr: stderr_write }, stdout, stderr))
}

/// Sends everything a pipe yields, in order, until its end, with secrets replaced.
async fn forward(pipe: OwnedFd, stream: LogStream, log: &StepLog, tail: &Tail) -> io::Result<()> {
    rustix::io::ioctl_fionbio(&pipe, true)?;
    let mut receiver = pipe::Receiver::from_owned_fd_unchecked(pipe)?;
    let mut redacting = log.redactions.as_ref().map(Redactions::stream);
    let mut buffer = vec![0; OUTPUT_BUFFER];
    loop {
        let length = receiver.read(&mut buffer).await?;
        let bytes = &buffer[..length];
        let shown = match &mut redacting {
            None => Cow::Borrowed(bytes),
            Some(redacting) if length == 0 => Cow::Owned(redacting.finish()),
            Some(redacting) => Cow::Owned(redacting.push(bytes)),
        };
        if !shown.is_empty() {
            tail.push(&shown);
            log.events.log(stream, &shown).await;
        }
        if length == 0 {
            return Ok(());
        }
    }
}

/// The last bytes written.
#[derive(Debug, Default)]
struct Tail(std::sync::Mutex<Vec<u8>>);

impl Tail {
    fn push(&self, bytes: &[u8]) {
        let mut kept = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        kept.extend_from_slice(bytes);
        if kept.len() > 2 * TAIL_LIMIT {
            let surplus = kept.len() - TAIL_LIMIT;
            kept.drain(..surplus);
        }
    }

    fn bytes(&self) -> Vec<u8> {
        let kept = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        kept[kept.len().saturating_sub(TAIL_LIMIT)..].to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_is_the_end() {
        let tail = Tail::default();
        for number in 0..10_000u32 {
            tail.push(format!("{number}\n").as_bytes());
        }
        let bytes = tail.bytes();
        assert_eq!(bytes.len(), TAIL_LIMIT);
        assert!(bytes.ends_with(b"9998\n9999\n"));
    }

    #[tokio::test]
    async fn a_pipe_is_read_to_its_end() {
        use std::io::Write as _;
        let (read, write) = pipe_with(PipeFlags::CLOEXEC).expect("pipe");
        let writer = std::thread::spawn(move || {
            let mut write = std::fs::File::from(write);
            for _ in 0..1000 {
                write.write_all(&[b'x'; 997]).expect("write");
            }
        });
        let tail = Tail::default();
        let log = StepLog::new(EventSubscription::silent(stave_oci::Digest::sha256(b"vertex")));
        forward(read, LogStream::Stdout, &log, &tail).await.expect("forward");
        writer.join().expect("join");
        assert_eq!(tail.bytes(), vec![b'x'; TAIL_LIMIT]);
    }
}
