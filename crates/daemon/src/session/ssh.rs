//! SSH agents of a client: a call for every connection, carried byte by byte. Start with [`ClientAgent`].

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

use bollard_buildkit_proto::moby::sshforward::v1::ssh_client::SshClient;
use bollard_buildkit_proto::moby::sshforward::v1::{BytesMessage, CheckAgentRequest};
use futures::StreamExt as _;
use futures::future::BoxFuture;
use stave_llb::{Definition, ExecOp, Mount, Op, SourceIdentifier};
use stave_worker::{AgentConnector, AgentStream, DEFAULT_AGENT, SshAgent};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tonic::metadata::MetadataValue;
use tonic::{Code, Request};

use super::files::packets;
use super::{ClientSession, MAX_MESSAGE};

const CHECK: &str = "/moby.sshforward.v1.SSH/CheckAgent";
const FORWARD: &str = "/moby.sshforward.v1.SSH/ForwardAgent";
/// The header that names the agent.
const ID: &str = "buildkit.ssh.id";
/// Bytes on their way in each direction.
const BUFFER: usize = 32 << 10;
/// Messages that wait for the network.
const MESSAGES: usize = 4;
/// Letters of a client's word why it has no agent.
const MAX_WORDS: usize = 1000;
/// Most agents of one build.
const MAX_AGENTS: usize = 100;

/// One agent of a client.
pub(crate) struct ClientAgent {
    session: Arc<ClientSession>,
    id: String,
}

/// The agents that a definition wants, as the client lends them or does not; whether a missing one is an error is for the step to say.
pub(crate) async fn agents(
    session: &Arc<ClientSession>,
    definition: &Definition,
) -> BTreeMap<String, SshAgent> {
    agents_of(session, wanted(definition)).await
}

/// The agents of these ids as the client lends them, or does not.
pub(crate) async fn agents_of(
    session: &Arc<ClientSession>,
    ids: BTreeSet<String>,
) -> BTreeMap<String, SshAgent> {
    let mut agents = BTreeMap::new();
    let Ok(channel) = session.channel(CHECK) else { return agents };
    let mut client = SshClient::new(channel);
    for id in ids.into_iter().take(MAX_AGENTS) {
        let agent = match client.check_agent(CheckAgentRequest { id: id.clone() }).await {
            Ok(_) => SshAgent::Remote(Arc::new(ClientAgent { session: Arc::clone(session), id: id.clone() })),
            Err(status) if status.code() == Code::Unimplemented => continue,
            Err(status) => SshAgent::Refused(status.message().chars().take(MAX_WORDS).collect()),
        };
        // The agent that nobody names goes by the usual name here.
        let name = if id.is_empty() { DEFAULT_AGENT.to_owned() } else { id };
        agents.insert(name, agent);
    }
    agents
}

/// The ids of the agents that one step wants.
pub(crate) fn wanted_by(exec: &ExecOp) -> BTreeSet<String> {
    let of = |mount: &Mount| match mount {
        Mount::Ssh { id, .. } => Some(id.clone()),
        _ => None,
    };
    exec.mounts.iter().filter_map(of).collect()
}

fn wanted(definition: &Definition) -> BTreeSet<String> {
    let mut ids = BTreeSet::new();
    for vertex in definition.vertices() {
        match &vertex.op {
            Op::Exec(exec) => ids.extend(wanted_by(exec)),
            Op::Source(source) if matches!(source.identifier, SourceIdentifier::Git(_)) => {
                ids.extend(source.attrs.get("git.mountsshsock").cloned());
            }
            _ => {}
        }
    }
    ids
}

impl AgentConnector for ClientAgent {
    fn connect(&self) -> BoxFuture<'_, io::Result<Box<dyn AgentStream>>> {
        Box::pin(async move {
            let channel = self.session.channel(FORWARD).map_err(io::Error::other)?;
            let id = MetadataValue::try_from(self.id.as_str()).map_err(io::Error::other)?;
            let (ours, theirs) = tokio::io::duplex(BUFFER);
            let (mut read, mut write) = tokio::io::split(theirs);
            let (sender, outgoing) = mpsc::channel(MESSAGES);
            let mut request = Request::new(packets(outgoing));
            request.metadata_mut().insert(ID, id);
            let mut client = SshClient::new(channel).max_decoding_message_size(MAX_MESSAGE);
            tokio::spawn(async move {
                let mut buffer = vec![0; BUFFER];
                while let Ok(count @ 1..) = read.read(&mut buffer).await {
                    if sender.send(BytesMessage { data: buffer[..count].to_vec() }).await.is_err() {
                        break;
                    }
                }
            });
            tokio::spawn(async move {
                // A client answers once its agent does, which is after the first request.
                let Ok(answer) = client.forward_agent(request).await else { return };
                let mut incoming = answer.into_inner();
                while let Some(Ok(message)) = incoming.next().await {
                    if write.write_all(&message.data).await.is_err() {
                        break;
                    }
                }
                // The agent hung up: so do we, or the step would wait for ever.
                write.shutdown().await.ok();
            });
            Ok(Box::new(ours) as Box<dyn AgentStream>)
        })
    }
}
