//! One call of `ExecProcess`: messages of the client to its processes. What a process says is in
//! [`process`](super::process). Start with [`exec`].

use std::collections::HashMap;
use std::sync::Arc;

use bollard_buildkit_proto::moby::buildkit::v1::frontend::exec_message::Input;
use bollard_buildkit_proto::moby::buildkit::v1::frontend::{
    DoneMessage, ExecMessage, InitMessage, StartedMessage,
};
use futures::Stream;
use stave_worker::TerminalSize;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Status, Streaming};

use super::process::{self, Order, Process, Started};
use super::voice::Voice;
use super::{Containers, Open, message};
use crate::build::Build;
use crate::failure::Failure;
use crate::gateway::Gateway;
use crate::session::files::packets;

/// Messages to the client that wait for the network.
const MESSAGES: usize = 16;
/// Most processes of one call.
const MAX_PROCESSES: usize = 64;
/// The longest id of a process, in bytes.
const MAX_ID: usize = 256;

/// What a client hears of its processes.
pub(super) type Answers = mpsc::Sender<Result<ExecMessage, Status>>;

/// Serves the call; dropping what is returned kills its processes.
pub(in crate::gateway) async fn exec(
    gateway: &Gateway,
    request: Request<Streaming<ExecMessage>>,
) -> Result<impl Stream<Item = Result<ExecMessage, Status>> + Send + 'static, Failure> {
    let (build, containers) = gateway.containers(request.metadata()).await?;
    let (sender, receiver) = mpsc::channel(MESSAGES);
    let incoming = request.into_inner();
    tokio::spawn(async move {
        let over = build.cancel.child_token();
        let _end = over.clone().drop_guard();
        let (processes, followed) = (HashMap::new(), CancellationToken::new());
        let call = Call { build, containers, answers: sender.clone(), over, processes, followed };
        if let Err(status) = call.serve(incoming).await {
            sender.send(Err(status)).await.ok();
        }
    });
    Ok(packets(receiver))
}

struct Call {
    build: Arc<Build>,
    containers: Arc<Containers>,
    answers: Answers,
    over: CancellationToken,
    processes: HashMap<String, Process>,
    /// Ends what the last process waits for before it says more.
    followed: CancellationToken,
}

impl Call {
    async fn serve(mut self, mut incoming: Streaming<ExecMessage>) -> Result<(), Status> {
        let (answers, over) = (self.answers.clone(), self.over.clone());
        let stopped = async {
            tokio::select! {
                () = answers.closed() => {}
                () = over.cancelled() => {}
            }
        };
        tokio::pin!(stopped);
        loop {
            let message = tokio::select! {
                message = incoming.message() => message?,
                () = &mut stopped => return Ok(()),
            };
            let Some(message) = message else { break };
            tokio::select! {
                taken = self.take(message) => taken?,
                () = &mut stopped => return Ok(()),
            }
        }
        // The client says no more, and its processes go on to their ends.
        let Self { processes, followed, .. } = self;
        followed.cancel();
        for (_, process) in processes {
            tokio::select! {
                () = process.end() => {}
                () = &mut stopped => return Ok(()),
            }
        }
        Ok(())
    }

    async fn take(&mut self, message: ExecMessage) -> Result<(), Status> {
        let id = message.process_id;
        if id.is_empty() || id.len() > MAX_ID {
            return Err(Status::invalid_argument("ProcessID required"));
        }
        let order = match message.input {
            None => return Ok(()),
            Some(Input::Init(init)) => return self.start(id, init).await,
            Some(Input::File(file)) => Order::Input(file),
            Some(Input::Resize(size)) => {
                let number = |value: u32| u16::try_from(value).unwrap_or(u16::MAX);
                Order::Resize(TerminalSize { rows: number(size.rows), columns: number(size.cols) })
            }
            Some(Input::Signal(signal)) => {
                let unknown = || Status::invalid_argument(format!("Unknown signal {}", signal.name));
                Order::Signal(process::signal(&signal.name).ok_or_else(unknown)?)
            }
            // These are ours to say.
            Some(Input::Started(_) | Input::Exit(_) | Input::Done(_)) => return Ok(()),
        };
        let absent = || Status::not_found(format!("IO for process {id:?} not found"));
        self.processes.get(&id).ok_or_else(absent)?.order(order).await
    }

    async fn start(&mut self, id: String, init: InitMessage) -> Result<(), Status> {
        if self.processes.contains_key(&id) {
            return Err(Status::already_exists(format!("Process {id} already exists")));
        }
        if self.processes.len() >= MAX_PROCESSES {
            return Err(Status::new(Code::ResourceExhausted, "too many processes in one call"));
        }
        let open = self.containers.get(&init.container_id).map_err(|failure| failure.status())?;
        // At once, as BuildKit does: clients wait for it whatever comes, and one that connects two processes reads
        // nothing of the first before the second has started.
        self.say(&id, Input::Started(StartedMessage {})).await;
        let own = CancellationToken::new();
        std::mem::replace(&mut self.followed, own.clone()).cancel();
        // Who sits at a terminal connects it to nothing, and sees how long it takes.
        if init.tty {
            own.cancel();
        }
        let voice = Voice::new(id.clone(), self.answers.clone(), own);
        match self.begin(&open, init).await {
            Ok(started) => {
                let process = started.run(voice, open, self.over.child_token());
                self.processes.insert(id, process);
            }
            // Clients hear of a process that could not be from its end.
            Err(failure) => {
                self.say(&id, Input::Exit(process::not_started(&failure))).await;
                self.say(&id, Input::Done(DoneMessage {})).await;
            }
        }
        Ok(())
    }

    async fn begin(&self, open: &Arc<Open>, init: InitMessage) -> Result<Started, Failure> {
        let (fds, tty) = (init.fds.clone(), init.tty);
        let mut op = message::process(init)?;
        if let Some(path) = open.path.filter(|_| !op.env.iter().any(|value| value.starts_with("PATH="))) {
            op.env.push(format!("PATH={path}"));
        }
        let session = self.build.session_for(&op).await?;
        process::start(open, (op, session), (&fds, tty)).await
    }

    async fn say(&self, id: &str, input: Input) {
        let message = ExecMessage { process_id: id.to_owned(), input: Some(input) };
        // A client that is gone is seen by the caller.
        self.answers.send(Ok(message)).await.ok();
    }
}
