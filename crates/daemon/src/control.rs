//! The control service: builds, their progress and sessions, workers, disk use. Start with [`Control`].

mod history;
pub(crate) mod info;
mod solve;
mod usage;

use std::pin::Pin;
use std::sync::Arc;

use bollard_buildkit_proto::moby::buildkit::v1::control_server::Control as Service;
use bollard_buildkit_proto::moby::buildkit::v1::{
    BuildHistoryEvent, BuildHistoryRequest, BytesMessage, DiskUsageRequest, DiskUsageResponse, InfoRequest,
    InfoResponse, ListWorkersRequest, ListWorkersResponse, PruneRequest, SolveRequest, SolveResponse,
    StatusRequest, StatusResponse, UpdateBuildHistoryRequest, UpdateBuildHistoryResponse, UsageRecord,
};
use futures::{Stream, StreamExt as _, stream};
use tonic::{Request, Response, Status, Streaming};

use crate::failure::Failure;
use crate::identity::caller;
use crate::session::files::packets;
use crate::session::{Introduction, connection};
use crate::state::Shared;
use crate::workers;

/// The service.
#[derive(Debug, Clone)]
pub(crate) struct Control {
    pub(crate) shared: Arc<Shared>,
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

fn told(failure: impl Into<Failure>) -> Status {
    failure.into().status()
}

impl Control {
    /// Serves a session in the background; what is returned goes to the client.
    async fn open(
        &self,
        request: Request<Streaming<BytesMessage>>,
    ) -> Result<Answers<BytesMessage>, Failure> {
        let owner = caller(&request).map_err(|status| Failure::Client(Box::new(status)))?;
        let about = (Introduction::read(request.metadata())?, owner);
        let ended = self.shared.closing.child_token();
        let (sender, receiver) = tokio::sync::mpsc::channel(16);
        let shared = Arc::clone(&self.shared);
        let incoming = request.into_inner();
        tokio::spawn(async move {
            let (channel, mut outgoing) = connection::connect(incoming, &ended);
            let forwarding = async {
                while let Some(message) = outgoing.recv().await {
                    if sender.send(message).await.is_err() {
                        break;
                    }
                }
                // The client hung up.
                ended.cancel();
            };
            let (served, ()) = futures::join!(shared.sessions.run(about, channel, ended.clone()), forwarding);
            if let Err(error) = served {
                sender.send(Err(told(error))).await.ok();
            }
        });
        Ok(Box::pin(packets(receiver)))
    }
}

#[tonic::async_trait]
impl Service for Control {
    type PruneStream = Answers<UsageRecord>;
    type StatusStream = Answers<StatusResponse>;
    type SessionStream = Answers<BytesMessage>;
    type ListenBuildHistoryStream = Answers<BuildHistoryEvent>;

    async fn info(&self, _: Request<InfoRequest>) -> Result<Response<InfoResponse>, Status> {
        Ok(Response::new(InfoResponse { buildkit_version: Some(workers::version(&self.shared)) }))
    }

    async fn list_workers(
        &self,
        _: Request<ListWorkersRequest>,
    ) -> Result<Response<ListWorkersResponse>, Status> {
        Ok(Response::new(ListWorkersResponse { record: vec![workers::record(&self.shared)] }))
    }

    async fn session(
        &self,
        request: Request<Streaming<BytesMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        self.open(request).await.map(Response::new).map_err(told)
    }

    async fn solve(&self, request: Request<SolveRequest>) -> Result<Response<SolveResponse>, Status> {
        let caller = caller(&request)?;
        let solved = solve::solve(&self.shared, &caller, request.into_inner()).await;
        solved.map(Response::new).map_err(|failure| failure.status())
    }

    async fn status(&self, request: Request<StatusRequest>) -> Result<Response<Self::StatusStream>, Status> {
        let (caller, build) = (caller(&request)?, request.get_ref().r#ref.clone());
        // One that runs, or is about to; else one of the past.
        let past = history::past(&self.shared, &caller, &build).await;
        if let Some(past) = past {
            return Ok(Response::new(past));
        }
        let journal = self.shared.builds.journal(&caller, &build).await.map_err(told)?;
        let answers = stream::unfold(journal.reader(), |mut reader| async move {
            let batch = reader.next().await?;
            Some((Ok(batch), reader))
        });
        Ok(Response::new(answers.boxed()))
    }

    async fn disk_usage(
        &self,
        request: Request<DiskUsageRequest>,
    ) -> Result<Response<DiskUsageResponse>, Status> {
        let used = usage::disk_usage(&self.shared, &caller(&request)?, request.into_inner()).await;
        used.map(Response::new).map_err(told)
    }

    async fn prune(&self, request: Request<PruneRequest>) -> Result<Response<Self::PruneStream>, Status> {
        let pruned =
            usage::prune(&self.shared, &caller(&request)?, request.into_inner()).await.map_err(told)?;
        Ok(Response::new(stream::iter(pruned.into_iter().map(Ok)).boxed()))
    }

    async fn listen_build_history(
        &self,
        request: Request<BuildHistoryRequest>,
    ) -> Result<Response<Self::ListenBuildHistoryStream>, Status> {
        let listening = history::listen(&self.shared, &caller(&request)?, request.into_inner()).await;
        listening.map(Response::new).map_err(told)
    }

    async fn update_build_history(
        &self,
        request: Request<UpdateBuildHistoryRequest>,
    ) -> Result<Response<UpdateBuildHistoryResponse>, Status> {
        let updated = history::update(&self.shared, &caller(&request)?, request.into_inner()).await;
        updated.map(|()| Response::new(UpdateBuildHistoryResponse {})).map_err(told)
    }
}
