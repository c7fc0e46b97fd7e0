//! A session: what a daemon may ask of this client while it builds. Start with [`open`].

use std::sync::Arc;

use bollard_buildkit_proto::health::health_server::HealthServer;
use bollard_buildkit_proto::moby::buildkit::secrets::v1::secrets_server::SecretsServer;
use bollard_buildkit_proto::moby::buildkit::v1::BytesMessage;
use bollard_buildkit_proto::moby::buildkit::v1::control_client::ControlClient;
use bollard_buildkit_proto::moby::filesync::packet::file_sync_server::FileSyncServer;
use bollard_buildkit_proto::moby::filesync::v1::auth_server::AuthServer;
use bollard_buildkit_proto::moby::sshforward::v1::ssh_server::SshServer;
use bollard_buildkit_proto::moby::upload::v1::upload_server::UploadServer;
use futures::{StreamExt as _, stream};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Server};
use tonic::{Request, Status};

use super::RemoteBuild;
use super::outputs::Outputs;
use super::services::Services;
use crate::health::Health;

/// Bytes on their way in each direction.
const BUFFER: usize = 256 << 10;
/// Bytes of one message to the daemon.
const CHUNK: usize = 32 << 10;
/// Messages to the daemon that wait for the network.
const MESSAGES: usize = 16;
/// Calls of the daemon at a time.
const MAX_STREAMS: u32 = 256;

/// What a daemon is told that it may call.
const METHODS: [&str; 8] = [
    "/grpc.health.v1.Health/Check",
    "/moby.filesync.v1.FileSync/DiffCopy",
    "/moby.filesync.v1.FileSend/DiffCopy",
    "/moby.filesync.v1.Auth/Credentials",
    "/moby.buildkit.secrets.v1.Secrets/GetSecret",
    "/moby.sshforward.v1.SSH/CheckAgent",
    "/moby.sshforward.v1.SSH/ForwardAgent",
    "/moby.upload.v1.Upload/Pull",
];

/// Serves a session until `over`. Returns only when the daemon ended it: with a failure if it did not do so well.
pub(super) async fn open(
    mut control: ControlClient<Channel>,
    session: &str,
    build: Arc<RemoteBuild>,
    over: &CancellationToken,
) -> Result<(), Status> {
    let (ours, theirs) = tokio::io::duplex(BUFFER);
    let services = Services { build: Arc::clone(&build) };
    let health = Health { closing: over.clone() };
    let mut server = Server::builder().max_concurrent_streams(MAX_STREAMS);
    let router = server
        .add_service(HealthServer::new(health))
        .add_service(FileSyncServer::new(services.clone()))
        .add_service(Outputs::new(&build))
        .add_service(AuthServer::new(services.clone()))
        .add_service(SecretsServer::new(services.clone()))
        .add_service(SshServer::new(services.clone()))
        .add_service(UploadServer::new(services));
    let connections = stream::iter([Ok::<_, std::io::Error>(ours)]).chain(stream::pending());
    let stopped = over.clone();
    tokio::spawn(async move {
        tokio::select! {
            served = router.serve_with_incoming(connections) => {
                if let Err(error) = served {
                    tracing::debug!(%error, "the session broke");
                }
            }
            () = stopped.cancelled() => {}
        }
    });
    let (mut read, mut write) = tokio::io::split(theirs);
    let (sender, outgoing) = mpsc::channel::<BytesMessage>(MESSAGES);
    let sending = async {
        let mut buffer = vec![0; CHUNK];
        while let Ok(count @ 1..) = read.read(&mut buffer).await {
            if sender.send(BytesMessage { data: buffer[..count].to_vec() }).await.is_err() {
                break;
            }
        }
        // The daemon's half says how it ended.
        std::future::pending::<()>().await;
    };
    let receiving = async {
        let mut incoming = match control.session(request(session, outgoing)).await {
            Ok(answer) => answer.into_inner(),
            Err(status) => return Err(status),
        };
        while let Some(message) = incoming.message().await? {
            if write.write_all(&message.data).await.is_err() {
                return Err(Status::unavailable("the session broke"));
            }
        }
        Ok(())
    };
    tokio::select! {
        ended = receiving => ended,
        () = sending => Err(Status::unavailable("the session broke")),
    }
}

fn request(
    session: &str,
    outgoing: mpsc::Receiver<BytesMessage>,
) -> Request<impl futures::Stream<Item = BytesMessage> + Send + 'static> {
    let messages =
        stream::unfold(outgoing, |mut outgoing| async { Some((outgoing.recv().await?, outgoing)) });
    let mut request = Request::new(messages);
    let headers = request.metadata_mut();
    // Ids are made here, of letters and digits.
    if let Ok(id) = MetadataValue::try_from(session) {
        headers.insert("x-docker-expose-session-uuid", id);
    }
    headers.insert("x-docker-expose-session-name", MetadataValue::from_static("stave"));
    headers.insert("x-docker-expose-session-sharedkey", MetadataValue::from_static(""));
    for method in METHODS {
        headers.append("x-docker-expose-session-grpc-method", MetadataValue::from_static(method));
    }
    request
}
