//! How ssh is called for a remote: with the session's agent, and with host keys that somebody vouched for.
//! Must not know agents' insides. Read [`SshAccess::open`] first.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use stave_store::ScratchDir;

use super::Access;
use super::error::GitError;
use super::remote::Protocol;
use crate::root::At as _;
use crate::session::Session;
use crate::ssh::{AgentSocket, SocketOwner, SshAgent};
use crate::worker::Shared;

/// What ssh needs for one request; gone with it.
pub(super) struct SshAccess {
    agent: Option<AgentSocket>,
    /// Host keys, in a file of our own, since ssh writes to it.
    known_hosts: Option<(ScratchDir, PathBuf)>,
    /// Whether keys of hosts that nobody knows are taken.
    strict: bool,
}

impl SshAccess {
    /// Readies agent and host keys; nothing for other protocols.
    pub(super) async fn open(
        access: &Access,
        protocol: Protocol,
        shared: &Arc<Shared>,
        session: &Session,
    ) -> Result<Self, GitError> {
        let mut ssh = Self { agent: None, known_hosts: None, strict: false };
        if protocol != Protocol::Ssh {
            return Ok(ssh);
        }
        if let Some(id) = &access.ssh_agent {
            let agent = match session.ssh.get(id) {
                None => return Err(GitError::NoAgent(id.clone())),
                Some(SshAgent::Refused(why)) => return Err(GitError::RefusedAgent(why.clone())),
                Some(agent) => agent,
            };
            let opened = AgentSocket::open(agent, SocketOwner::own(), shared);
            ssh.agent = Some(opened.map_err(|source| GitError::Agent { id: id.clone(), source })?);
        }
        let known = access.known_hosts.as_deref().or(session.known_hosts.as_deref());
        if let Some(known) = known {
            ssh.strict = access.known_hosts.is_some();
            ssh.known_hosts = Some(write(known, shared)?);
        }
        Ok(ssh)
    }

    /// The command git is to use. No file of the user's takes part, whoever that is.
    pub(super) fn command(&self) -> String {
        let mut command = "ssh -F /dev/null -o BatchMode=yes -o IdentityFile=none".to_owned();
        match &self.known_hosts {
            Some((_, path)) => {
                let strict = if self.strict { "yes" } else { "accept-new" };
                let path = path.display().to_string().replace('\'', "'\\''");
                command.push_str(&format!(
                    " -o StrictHostKeyChecking={strict} -o 'UserKnownHostsFile=\"{path}\"' \
                     -o GlobalKnownHostsFile=/dev/null"
                ));
            }
            None => command
                .push_str(" -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR"),
        }
        command
    }

    /// The agent's socket.
    pub(super) fn socket(&self) -> Option<&Path> {
        self.agent.as_ref().map(AgentSocket::path)
    }
}

fn write(known: &str, shared: &Arc<Shared>) -> Result<(ScratchDir, PathBuf), GitError> {
    let scratch = shared.store.scratch_dir().map_err(|error| GitError::Run(std::io::Error::other(error)))?;
    let path = scratch.path().join("known_hosts");
    let written = std::fs::File::create(&path).and_then(|mut file| file.write_all(known.as_bytes()));
    written.at("writing", &path)?;
    Ok((scratch, path))
}
