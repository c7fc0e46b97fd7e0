//! containerd's content service as it travels (`containerd.services.content.v1`): the calls that are made of it.

use futures::Stream;
use prost::Message;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic::{IntoStreamingRequest, Request, Status, Streaming};
use tonic_prost::ProstCodec;

use super::super::MAX_MESSAGE;

pub(super) const INFO: &str = "/containerd.services.content.v1.Content/Info";
pub(super) const READ: &str = "/containerd.services.content.v1.Content/Read";
pub(super) const WRITE: &str = "/containerd.services.content.v1.Content/Write";

#[derive(Clone, PartialEq, Message)]
pub(super) struct InfoRequest {
    #[prost(string, tag = "1")]
    pub(super) digest: String,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct InfoResponse {
    #[prost(message, optional, tag = "1")]
    pub(super) info: Option<Info>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Info {
    #[prost(string, tag = "1")]
    pub(super) digest: String,
    #[prost(int64, tag = "2")]
    pub(super) size: i64,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct ReadRequest {
    #[prost(string, tag = "1")]
    pub(super) digest: String,
    #[prost(int64, tag = "2")]
    pub(super) offset: i64,
    /// Zero for all.
    #[prost(int64, tag = "3")]
    pub(super) size: i64,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct ReadResponse {
    #[prost(int64, tag = "1")]
    pub(super) offset: i64,
    #[prost(bytes = "vec", tag = "2")]
    pub(super) data: Vec<u8>,
}

/// What a message of a write is for.
pub(super) struct WriteAction;

impl WriteAction {
    pub(super) const STAT: i32 = 0;
    pub(super) const WRITE: i32 = 1;
    pub(super) const COMMIT: i32 = 2;
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct WriteRequest {
    #[prost(int32, tag = "1")]
    pub(super) action: i32,
    #[prost(string, tag = "2")]
    pub(super) r#ref: String,
    #[prost(int64, tag = "3")]
    pub(super) total: i64,
    #[prost(string, tag = "4")]
    pub(super) expected: String,
    #[prost(int64, tag = "5")]
    pub(super) offset: i64,
    #[prost(bytes = "vec", tag = "6")]
    pub(super) data: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct WriteResponse {
    #[prost(int32, tag = "1")]
    pub(super) action: i32,
    #[prost(int64, tag = "4")]
    pub(super) offset: i64,
    #[prost(int64, tag = "5")]
    pub(super) total: i64,
    #[prost(string, tag = "6")]
    pub(super) digest: String,
}

/// The calls.
pub(super) struct ContentClient(Grpc<Channel>);

impl ContentClient {
    pub(super) fn new(channel: Channel) -> Self {
        Self(Grpc::new(channel).max_decoding_message_size(MAX_MESSAGE))
    }

    async fn ready(&mut self) -> Result<(), Status> {
        self.0.ready().await.map_err(|error| Status::unavailable(error.to_string()))
    }

    pub(super) async fn info(&mut self, request: Request<InfoRequest>) -> Result<InfoResponse, Status> {
        self.ready().await?;
        let codec = ProstCodec::<InfoRequest, InfoResponse>::default();
        Ok(self.0.unary(request, PathAndQuery::from_static(INFO), codec).await?.into_inner())
    }

    pub(super) async fn read(
        &mut self,
        request: Request<ReadRequest>,
    ) -> Result<Streaming<ReadResponse>, Status> {
        self.ready().await?;
        let codec = ProstCodec::<ReadRequest, ReadResponse>::default();
        Ok(self.0.server_streaming(request, PathAndQuery::from_static(READ), codec).await?.into_inner())
    }

    pub(super) async fn write(
        &mut self,
        request: Request<impl Stream<Item = WriteRequest> + Send + 'static>,
    ) -> Result<Streaming<WriteResponse>, Status> {
        self.ready().await?;
        let codec = ProstCodec::<WriteRequest, WriteResponse>::default();
        let request = request.into_streaming_request();
        Ok(self.0.streaming(request, PathAndQuery::from_static(WRITE), codec).await?.into_inner())
    }
}
