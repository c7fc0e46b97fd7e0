//! One process of a container: its descriptors, what it says, how it ends. Start with [`start`].

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, PoisonError};

use bollard_buildkit_proto::google::rpc;
use bollard_buildkit_proto::moby::buildkit::v1::frontend::exec_message::Input;
use bollard_buildkit_proto::moby::buildkit::v1::frontend::{DoneMessage, ExitMessage, FdMessage};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::pipe::{PipeFlags, pipe_with};
use stave_llb::ExecOp;
use stave_worker::{ContainerProcess, ExecError, Running, Session, Stdio, TerminalSize};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::unix::pipe;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

use super::Open;
use super::voice::Voice;
use crate::failure::Failure;

/// Bytes of output of one message.
const CHUNK: usize = 32 << 10;
/// Orders that wait for a process.
const ORDERS: usize = 16;
/// The code of a process whose end nobody knows.
const UNKNOWN_CODE: u32 = 255;
/// The size a terminal has before anybody says another.
const TERMINAL: TerminalSize = TerminalSize { rows: 24, columns: 80 };

/// What a client wants of a process.
#[derive(Debug)]
pub(super) enum Order {
    /// Bytes for one of its descriptors.
    Input(FdMessage),
    Resize(TerminalSize),
    /// A signal's number.
    Signal(i32),
}

/// A process as its client's call holds it.
#[derive(Debug)]
pub(super) struct Process {
    input: Option<mpsc::Sender<FdMessage>>,
    orders: mpsc::Sender<Order>,
    running: JoinHandle<()>,
}

/// A process that was started and whose descriptors nobody reads yet.
pub(super) struct Started {
    running: Running,
    input: Option<pipe::Sender>,
    /// What is read, by the number that the client knows it by.
    outputs: Vec<(u32, pipe::Receiver)>,
    is_first: bool,
    permit: OwnedSemaphorePermit,
}

/// The end of a process that could not be started.
pub(super) fn not_started(failure: &Failure) -> ExitMessage {
    let status = failure.status();
    let error =
        rpc::Status { code: status.code().into(), message: status.message().to_owned(), details: Vec::new() };
    ExitMessage { code: UNKNOWN_CODE, error: Some(error) }
}

/// Starts a process in a container. Of its descriptors, 0 is read by it and the others are written; one that the client
/// does not name leads nowhere.
pub(super) async fn start(
    open: &Arc<Open>,
    (op, session): (ExecOp, Arc<Session>),
    (fds, tty): (&[u32], bool),
) -> Result<Started, Failure> {
    if open.over.is_cancelled() {
        return Err(Failure::NotFound("the container has ended".to_owned()));
    }
    let permit = Arc::clone(&open.processes).try_acquire_owned();
    let permit = permit.map_err(|_| Failure::Value("too many processes in one container".to_owned()))?;
    let failed = |error: io::Error| Failure::Value(format!("cannot open a pipe: {error}"));
    let (stdio, input, mut outputs) = descriptors(if tty { &[] } else { fds }).map_err(failed)?;
    let mut input = input.map(writer).transpose().map_err(failed)?;
    let terminal = tty.then_some(TERMINAL);
    let process = ContainerProcess { op, terminal };
    let running = open.container.start(process, session, stdio).await?;
    if let Some(master) = running.terminal() {
        let again = || master.try_clone_to_owned();
        input = Some(again().and_then(writer).map_err(failed)?);
        outputs = vec![(1, again().and_then(reader).map_err(failed)?)];
    }
    let mut has_first = open.has_first.lock().unwrap_or_else(PoisonError::into_inner);
    let is_first = !std::mem::replace(&mut *has_first, true);
    Ok(Started { running, input, outputs, is_first, permit })
}

type Descriptors = (Stdio, Option<OwnedFd>, Vec<(u32, pipe::Receiver)>);

fn descriptors(fds: &[u32]) -> io::Result<Descriptors> {
    let nowhere = |flags| openat(CWD, "/dev/null", flags | OFlags::CLOEXEC, Mode::empty());
    let mut outputs = Vec::new();
    let mut output = |number: u32| -> io::Result<OwnedFd> {
        if !fds.contains(&number) {
            return Ok(nowhere(OFlags::WRONLY)?);
        }
        let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
        outputs.push((number, reader(read)?));
        Ok(write)
    };
    let (stdout, stderr) = (output(1)?, output(2)?);
    let (stdin, input) = match fds.contains(&0) {
        false => (nowhere(OFlags::RDONLY)?, None),
        true => pipe_with(PipeFlags::CLOEXEC).map(|(read, write)| (read, Some(write)))?,
    };
    Ok((Stdio { stdin, stdout, stderr }, input, outputs))
}

impl Started {
    /// Lets it run; its client hears of it by `voice`.
    pub(super) fn run(self, voice: Voice, open: Arc<Open>, stop: CancellationToken) -> Process {
        let Self { running, input, outputs, is_first, permit } = self;
        let (orders, waiting) = mpsc::channel(ORDERS);
        let input = input.map(|pipe| {
            let (sender, receiver) = mpsc::channel(ORDERS);
            tokio::spawn(feed(pipe, receiver, stop.clone()));
            sender
        });
        let work = async move {
            let readers = outputs.into_iter().map(|(fd, pipe)| forward(pipe, fd, &voice));
            let reading = futures::future::join_all(readers);
            let waiting = wait(running, waiting, &open, &stop);
            let (exit, _) = tokio::join!(waiting, reading);
            if is_first {
                open.over.cancel();
            }
            stop.cancel();
            open.note(&exit);
            // Whether its client reads that or not, it has ended.
            drop(permit);
            for input in [Input::Exit(exit), Input::Done(DoneMessage {})] {
                // A client that is gone need not hear it.
                voice.say(input).await.ok();
            }
        };
        Process { input, orders, running: tokio::spawn(work) }
    }
}

impl Process {
    /// Hands an order over; one for a process that has ended is as good as done.
    pub(super) async fn order(&self, order: Order) -> Result<(), Status> {
        match order {
            Order::Input(message) => {
                let fd = message.fd;
                let input = self.input.as_ref().filter(|_| fd == 0);
                let absent = || Status::out_of_range(format!("fd {fd} unavailable to write"));
                input.ok_or_else(absent)?.send(message).await.ok();
            }
            order => drop(self.orders.send(order).await),
        }
        Ok(())
    }

    /// Waits until everything was said.
    pub(super) async fn end(self) {
        drop((self.input, self.orders));
        // A panic there is reported by the runtime.
        self.running.await.ok();
    }
}

/// Follows orders until the process has ended. Dropped, `running` kills it.
async fn wait(
    mut running: Running,
    mut orders: mpsc::Receiver<Order>,
    open: &Open,
    stop: &CancellationToken,
) -> ExitMessage {
    let killed = CancellationToken::new();
    let mut is_open = true;
    let ended = loop {
        tokio::select! {
            ended = running.wait(&killed) => break ended,
            () = open.over.cancelled(), if !killed.is_cancelled() => killed.cancel(),
            () = stop.cancelled(), if !killed.is_cancelled() => killed.cancel(),
            order = orders.recv(), if is_open => match order {
                // What cannot be done to a process that is ending is no failure.
                Some(Order::Resize(size)) => drop(running.resize(size)),
                Some(Order::Signal(signal)) => drop(running.signal(signal)),
                Some(Order::Input(_)) => {}
                None => is_open = false,
            },
        }
    };
    // The sandbox goes now: its pipes close.
    tokio::task::spawn_blocking(move || drop(running)).await.ok();
    let exit = |code: u32, words: String| {
        let error = rpc::Status { code: Code::Unknown.into(), message: words, details: Vec::new() };
        ExitMessage { code, error: Some(error) }
    };
    match ended.map(stave_worker::ExitStatus::code) {
        Ok(0) => ExitMessage { code: 0, error: None },
        Ok(code) => exit(u32::try_from(code).unwrap_or(UNKNOWN_CODE), format!("exit code: {code}")),
        Err(ExecError::Cancelled) => exit(137, "exit code: 137: context canceled".to_owned()),
        Err(error) => exit(UNKNOWN_CODE, crate::failure::one_line(&error)),
    }
}

/// What the process says at one descriptor, until its end.
async fn forward(mut pipe: pipe::Receiver, fd: u32, voice: &Voice) {
    let mut buffer = vec![0; CHUNK];
    loop {
        // A terminal whose other side is closed is an error to read.
        let count = pipe.read(&mut buffer).await.unwrap_or(0);
        let file = FdMessage { fd, eof: count == 0, data: buffer[..count].to_vec() };
        if voice.say(Input::File(file)).await.is_err() || count == 0 {
            return;
        }
    }
}

/// What the client says, until its end or that of the process.
async fn feed(mut pipe: pipe::Sender, mut messages: mpsc::Receiver<FdMessage>, stop: CancellationToken) {
    let feeding = async {
        while let Some(message) = messages.recv().await {
            if pipe.write_all(&message.data).await.is_err() || message.eof {
                return;
            }
        }
    };
    tokio::select! {
        () = feeding => {}
        () = stop.cancelled() => {}
    }
}

/// Reads of a pipe or a terminal, without blocking a thread.
fn reader(fd: OwnedFd) -> io::Result<pipe::Receiver> {
    rustix::io::ioctl_fionbio(&fd, true)?;
    pipe::Receiver::from_owned_fd_unchecked(fd)
}

/// Writes to a pipe or a terminal, without blocking a thread.
fn writer(fd: OwnedFd) -> io::Result<pipe::Sender> {
    rustix::io::ioctl_fionbio(&fd, true)?;
    pipe::Sender::from_owned_fd_unchecked(fd)
}

/// The number of a signal, called as Linux calls it; `SIG` in front may be left out.
pub(super) fn signal(name: &str) -> Option<i32> {
    const NAMES: [&str; 31] = [
        "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE",
        "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ",
        "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
    ];
    let name = name.strip_prefix("SIG").unwrap_or(name);
    let place = NAMES.iter().position(|known| *known == name)?;
    i32::try_from(place + 1).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_linux_numbers() {
        let found = ["HUP", "SIGINT", "KILL", "TERM", "CHLD", "WINCH", "SYS", "NONE"].map(signal);
        let expected = [Some(1), Some(2), Some(9), Some(15), Some(17), Some(28), Some(31), None];
        assert_eq!(found, expected);
    }
}
