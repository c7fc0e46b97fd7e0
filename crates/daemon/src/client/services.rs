//! What is given to a daemon: files, credentials, secrets, agents, an uploaded context. Only what the build offers.
//! Start with [`Services`].

use std::io;
use std::pin::Pin;
use std::sync::Arc;

use bollard_buildkit_proto::moby::buildkit::secrets::v1::secrets_server::Secrets;
use bollard_buildkit_proto::moby::buildkit::secrets::v1::{GetSecretRequest, GetSecretResponse};
use bollard_buildkit_proto::moby::filesync::packet::file_sync_server::FileSync;
use bollard_buildkit_proto::moby::filesync::v1::auth_server::Auth;
use bollard_buildkit_proto::moby::filesync::v1::{
    CredentialsRequest, CredentialsResponse, FetchTokenRequest, FetchTokenResponse, GetTokenAuthorityRequest,
    GetTokenAuthorityResponse, VerifyTokenAuthorityRequest, VerifyTokenAuthorityResponse,
};
use bollard_buildkit_proto::moby::sshforward::v1::ssh_server::Ssh;
use bollard_buildkit_proto::moby::sshforward::v1::{
    BytesMessage as SshMessage, CheckAgentRequest, CheckAgentResponse,
};
use bollard_buildkit_proto::moby::upload::v1::BytesMessage as UploadMessage;
use bollard_buildkit_proto::moby::upload::v1::upload_server::Upload;
use futures::{Stream, StreamExt as _, stream};
use stave_registry::Credential;
use stave_worker::{DEFAULT_AGENT, Secret, SshAgent};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status, Streaming};

use super::RemoteBuild;
use crate::fsutil::selection::Selection;
use crate::fsutil::send::send_picked;
use crate::fsutil::{MAX_ENTRIES, PACKETS, Packet};
use crate::session::files::packets;

/// Most patterns of one request.
const MAX_PATTERNS: usize = 10_000;
/// Bytes of one message of an agent or an upload.
const CHUNK: usize = 32 << 10;
/// Bytes of one secret.
const MAX_SECRET: u64 = 500 << 10;

/// The services of one build.
#[derive(Debug, Clone)]
pub(super) struct Services {
    pub(super) build: Arc<RemoteBuild>,
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// A list of a request: URL-encoded where it says so.
fn list(headers: &MetadataMap, name: &'static str) -> Vec<String> {
    let is_encoded = headers.get(format!("{name}-encoded").as_str()).is_some();
    let decoded = |text: &str| match is_encoded {
        true => {
            let pair = format!("x={text}");
            let mut pairs = url::form_urlencoded::parse(pair.as_bytes());
            pairs.next().map(|(_, value)| value.into_owned()).unwrap_or_default()
        }
        false => text.to_owned(),
    };
    let values = headers.get_all(name).iter().take(MAX_PATTERNS);
    values.filter_map(|value| value.to_str().ok()).map(decoded).collect()
}

#[tonic::async_trait]
impl FileSync for Services {
    type DiffCopyStream = Answers<Packet>;
    type TarStreamStream = Answers<Packet>;

    async fn diff_copy(
        &self,
        request: Request<Streaming<Packet>>,
    ) -> Result<Response<Self::DiffCopyStream>, Status> {
        let headers = request.metadata();
        let name = list(headers, "dir-name").into_iter().next().unwrap_or_default();
        let root = self.build.directories.get(&name);
        let root =
            root.ok_or_else(|| Status::not_found(format!("no access allowed to dir {name:?}")))?.clone();
        let lists = ["exclude-patterns", "include-patterns", "followpaths"].map(|name| list(headers, name));
        let (outgoing, packets_out) = mpsc::channel(PACKETS);
        let (forward, mut incoming) = mpsc::unbounded_channel();
        let mut asked = request.into_inner();
        tokio::spawn(async move {
            // Each file is asked for once, so this is bounded by what is offered.
            let mut count = 0;
            while let Ok(Some(packet)) = asked.message().await {
                count += 1;
                if count > MAX_ENTRIES || forward.send(packet).is_err() {
                    return;
                }
            }
        });
        tokio::task::spawn_blocking(move || {
            let [exclude, include, follow] = lists;
            let selection = match Selection::new(&root, &exclude, &include, &follow) {
                Ok(selection) => selection,
                Err(error) => {
                    tracing::warn!(%error, "a pattern of the daemon");
                    return;
                }
            };
            if let Err(error) = send_picked(&root, &selection, &mut incoming, &outgoing) {
                tracing::debug!(%error, "sending a directory failed");
            }
        });
        let packets = stream::unfold(packets_out, |mut packets| async {
            Some((Ok::<_, Status>(packets.recv().await?), packets))
        });
        Ok(Response::new(packets.boxed()))
    }

    async fn tar_stream(
        &self,
        _: Request<Streaming<Packet>>,
    ) -> Result<Response<Self::TarStreamStream>, Status> {
        Err(Status::unimplemented("directories travel as packets"))
    }
}

#[tonic::async_trait]
impl Auth for Services {
    async fn credentials(
        &self,
        request: Request<CredentialsRequest>,
    ) -> Result<Response<CredentialsResponse>, Status> {
        let host = request.into_inner().host;
        let host = if host == "registry-1.docker.io" { "docker.io".to_owned() } else { host };
        let found = self.build.keychain.credential(&host).await;
        let found = found.map_err(|error| Status::unknown(crate::failure::one_line(&error)))?;
        Ok(Response::new(match found {
            Some(Credential::Basic { username, password }) => {
                CredentialsResponse { username, secret: password.expose().to_owned() }
            }
            Some(Credential::IdentityToken(token) | Credential::RegistryToken(token)) => {
                CredentialsResponse { username: String::new(), secret: token.expose().to_owned() }
            }
            None => CredentialsResponse::default(),
        }))
    }

    async fn fetch_token(
        &self,
        _: Request<FetchTokenRequest>,
    ) -> Result<Response<FetchTokenResponse>, Status> {
        Err(Status::unavailable("tokens are the daemon's to fetch"))
    }

    async fn get_token_authority(
        &self,
        _: Request<GetTokenAuthorityRequest>,
    ) -> Result<Response<GetTokenAuthorityResponse>, Status> {
        Err(Status::unavailable("tokens are the daemon's to fetch"))
    }

    async fn verify_token_authority(
        &self,
        _: Request<VerifyTokenAuthorityRequest>,
    ) -> Result<Response<VerifyTokenAuthorityResponse>, Status> {
        Err(Status::unavailable("tokens are the daemon's to fetch"))
    }
}

#[tonic::async_trait]
impl Secrets for Services {
    async fn get_secret(
        &self,
        request: Request<GetSecretRequest>,
    ) -> Result<Response<GetSecretResponse>, Status> {
        let id = request.into_inner().id;
        let absent = || Status::not_found(format!("secret {id}: not found"));
        let data = match self.build.secrets.get(&id).ok_or_else(absent)? {
            Secret::Value(value) => value.clone(),
            Secret::File(path) => {
                let failed = |error: io::Error| Status::unknown(format!("secret {id}: {error}"));
                let mut value = Vec::new();
                let file = tokio::fs::File::open(path).await.map_err(failed)?;
                file.take(MAX_SECRET).read_to_end(&mut value).await.map_err(failed)?;
                value
            }
        };
        Ok(Response::new(GetSecretResponse { data }))
    }
}

impl Services {
    fn agent(&self, id: &str) -> Result<&SshAgent, Status> {
        let name = if id.is_empty() { DEFAULT_AGENT } else { id };
        self.build.ssh.get(name).ok_or_else(|| Status::not_found(format!("unset ssh forward key {name}")))
    }
}

#[tonic::async_trait]
impl Ssh for Services {
    type ForwardAgentStream = Answers<SshMessage>;

    async fn check_agent(
        &self,
        request: Request<CheckAgentRequest>,
    ) -> Result<Response<CheckAgentResponse>, Status> {
        self.agent(&request.get_ref().id).map(|_| Response::new(CheckAgentResponse {}))
    }

    async fn forward_agent(
        &self,
        request: Request<Streaming<SshMessage>>,
    ) -> Result<Response<Self::ForwardAgentStream>, Status> {
        let id = request.metadata().get("buildkit.ssh.id").and_then(|id| id.to_str().ok());
        let agent = self.agent(id.unwrap_or_default())?;
        let connection = agent
            .connect()
            .map_err(|error| Status::unknown(format!("failed to connect to the agent: {error}")))?;
        let (mut read, mut write) = tokio::io::split(connection);
        let mut incoming = request.into_inner();
        let (sender, outgoing) = mpsc::channel(PACKETS);
        tokio::spawn(async move {
            while let Ok(Some(message)) = incoming.message().await {
                if write.write_all(&message.data).await.is_err() {
                    return;
                }
            }
            // The agent learns that no more requests come; it may be gone by then.
            write.shutdown().await.ok();
        });
        tokio::spawn(async move {
            let mut buffer = vec![0; CHUNK];
            while let Ok(count @ 1..) = read.read(&mut buffer).await {
                let message = SshMessage { data: buffer[..count].to_vec() };
                if sender.send(Ok(message)).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(packets(outgoing))))
    }
}

#[tonic::async_trait]
impl Upload for Services {
    type PullStream = Answers<UploadMessage>;

    async fn pull(&self, _: Request<Streaming<UploadMessage>>) -> Result<Response<Self::PullStream>, Status> {
        let upload = self.build.upload.clone().ok_or_else(|| Status::not_found("nothing to upload"))?;
        let chunks = stream::unfold((upload, 0), |(upload, at)| async move {
            let rest = upload.get(at..).filter(|rest| !rest.is_empty())?;
            let data = rest[..rest.len().min(CHUNK)].to_vec();
            let next = at + data.len();
            Some((Ok(UploadMessage { data }), (upload, next)))
        });
        Ok(Response::new(chunks.boxed()))
    }
}
