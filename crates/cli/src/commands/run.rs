//! `stave run`: a command in an image's file system.

mod arguments;
mod terminal;

use std::io::IsTerminal as _;
use std::os::fd::{AsFd as _, OwnedFd};

pub(crate) use arguments::Arguments;
use rustix::fs::{CWD, Mode, OFlags, openat};
use stave_engine::{Engine, PullPolicy, RunRequest};
use stave_oci::Platform;
use stave_sandbox::{ExitStatus, Stdio};
use stave_worker::Running;
pub(crate) use terminal::size as terminal_size;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use self::arguments::PullMode;
use super::build::ProgressForm;
use crate::progress::Display;
use crate::report::Failure;
use crate::runtime::{Interrupt, with_engine};
use crate::state::GlobalOptions;

/// docker's exit code for everything that goes wrong before the command runs.
const NOT_RUN: u8 = 125;

/// Signals that are passed on to the command.
const FORWARDED: [i32; 6] = [1, 2, 3, 10, 12, 15];

/// Runs; the exit code is the command's.
pub(crate) fn run(arguments: &Arguments, global: &GlobalOptions) -> Result<u8, Failure> {
    if arguments.tty && !std::io::stdin().is_terminal() {
        return Err(Failure::message("the input device is not a terminal: `-t` needs one").with_code(NOT_RUN));
    }
    let wishes = arguments.wishes().map_err(|failure| failure.with_code(NOT_RUN))?;
    let result = with_engine(global, async |engine, interrupt| {
        let image = obtain(engine, arguments, interrupt).await?;
        let request = RunRequest {
            image,
            entrypoint: wishes.entrypoint,
            command: arguments.command().to_vec(),
            env: wishes.env,
            cwd: arguments.workdir.clone(),
            user: arguments.user.clone(),
            hostname: arguments.hostname.clone().unwrap_or_else(container_id),
            binds: wishes.binds,
            network: wishes.network,
            readonly_root: arguments.read_only,
            extra_hosts: wishes.extra_hosts,
            limits: wishes.limits,
            cgroup_parent: wishes.cgroup_parent,
            rlimits: wishes.rlimits,
            shm_size: wishes.shm_size,
            sysctls: wishes.sysctls,
            terminal: arguments.tty.then(terminal::size),
        };
        let stdio = stdio(arguments.interactive || arguments.tty).map_err(|error| Failure::new(&error))?;
        // Heard from before there is a process: it may talk, and be answered, before this one is told that it runs.
        let signals = Forwarded::listen()?;
        let running = engine.start(request, stdio).await.map_err(|error| {
            let code = error.exit_code();
            Failure::new(&error).with_code(code)
        })?;
        interrupt.hand_over();
        let status = attend(running, signals).await?;
        Ok(u8::try_from(status.code()).unwrap_or(u8::MAX))
    });
    // 1 is what a failure has by default; before the command ran it would be taken for the command's own.
    result.map_err(|failure| if failure.code == 1 { failure.with_code(NOT_RUN) } else { failure })
}

async fn obtain(
    engine: &Engine,
    arguments: &Arguments,
    interrupt: &Interrupt,
) -> Result<stave_store::LocalImage, Failure> {
    let platform = arguments.platform.clone().unwrap_or_else(Platform::host);
    let policy = match arguments.pull {
        PullMode::Always => PullPolicy::Always,
        PullMode::Missing => PullPolicy::Missing,
        PullMode::Never => PullPolicy::Never,
    };
    let display = Display::steps(ProgressForm::Auto);
    let obtained =
        engine.obtain(arguments.image(), &platform, policy, display.observer(), interrupt.token()).await;
    display.abandon();
    let mut image = obtained.map_err(|error| Failure::new(&error))?;
    let missed = arguments.platform.as_ref().filter(|wanted| !image.platform.matches(wanted));
    if missed.is_some() && policy == PullPolicy::Missing {
        // The name is here, but for another machine: what was asked for is at the registry.
        let name =
            arguments.image().parse().map_err(|_| Failure::message("the image is for another platform"))?;
        let pulled =
            engine.pull(&name, &platform, stave_engine::Observer::ignored(), interrupt.token()).await;
        image = pulled.map_err(|error| Failure::new(&error))?;
    }
    Ok(image)
}

/// The process's descriptors: ours, with an empty standard input unless it was asked for.
pub(crate) fn stdio(interactive: bool) -> std::io::Result<Stdio> {
    let stdin: OwnedFd = if interactive {
        std::io::stdin().as_fd().try_clone_to_owned()?
    } else {
        openat(CWD, "/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?
    };
    Ok(Stdio {
        stdin,
        stdout: std::io::stdout().as_fd().try_clone_to_owned()?,
        stderr: std::io::stderr().as_fd().try_clone_to_owned()?,
    })
}

/// The signals for a process, in the order in which they came.
pub(crate) struct Forwarded(tokio::sync::mpsc::UnboundedReceiver<i32>);

impl Forwarded {
    /// Listens from now on.
    pub(crate) fn listen() -> Result<Self, Failure> {
        let (sender, signals) = tokio::sync::mpsc::unbounded_channel();
        for number in FORWARDED {
            let stream = signal(SignalKind::from_raw(number)).map_err(|error| Failure::new(&error));
            let (mut stream, sender) = (stream?, sender.clone());
            tokio::spawn(
                async move { while stream.recv().await.is_some() && sender.send(number).is_ok() {} },
            );
        }
        Ok(Self(signals))
    }
}

/// Passes signals and terminal traffic until the process ends.
pub(crate) async fn attend(mut running: Running, mut signals: Forwarded) -> Result<ExitStatus, Failure> {
    let failed = |error: std::io::Error| Failure::new(&error);
    for reason in running.unlimited() {
        eprintln!("WARNING: a limit does not hold: {reason}");
    }
    let session = match running.terminal() {
        Some(master) => {
            Some(terminal::Session::start(master.try_clone_to_owned().map_err(failed)?).map_err(failed)?)
        }
        None => None,
    };
    let mut resized = signal(SignalKind::window_change()).map_err(failed)?;
    // Nothing cancels a container but its own end: signals are its business.
    let never = CancellationToken::new();
    let status = loop {
        let waiting = running.wait(&never);
        tokio::select! {
            status = waiting => break status,
            Some(number) = signals.0.recv() => drop(running.signal(number)),
            _ = resized.recv() => drop(running.resize(terminal::size())),
        }
    };
    if let Some(session) = session {
        session.finish().await;
    }
    status.map_err(|error| Failure::new(&error))
}

/// Twelve hex digits, as docker names the hosts of its containers.
fn container_id() -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let seed = format!("{} {}", std::process::id(), now.as_nanos());
    stave_oci::Digest::sha256(seed.as_bytes()).short().to_owned()
}
