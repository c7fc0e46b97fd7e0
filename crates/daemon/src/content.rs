//! containerd's content service (`containerd.services.content.v1`), to read: what hangs on the records of builds, by
//! digest. Nothing is written through it, and of a tenant's builds only itself reads.
//!
//! Owns the calls. Must not know where content lies. Start with [`ContentService`].

use std::convert::Infallible;
use std::io::Read;
use std::sync::Arc;
use std::task::{Context, Poll};

use bollard_buildkit_proto::google::protobuf::Timestamp;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{StreamExt as _, stream};
use prost::Message;
use tokio::sync::mpsc;
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::server::{Grpc, NamedService, ServerStreamingService, UnaryService};
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

use crate::history::{Archive, Content};
use crate::identity::caller;
use crate::progress::timestamp;
use crate::session::files::packets;
use crate::state::Shared;

/// Bytes of one message.
const CHUNK: usize = 1 << 20;
/// Messages that wait for the network.
const MESSAGES: usize = 4;

/// The service.
#[derive(Debug, Clone)]
pub(crate) struct ContentService {
    pub(crate) shared: Arc<Shared>,
}

#[derive(Clone, PartialEq, Message)]
struct InfoRequest {
    #[prost(string, tag = "1")]
    digest: String,
}

#[derive(Clone, PartialEq, Message)]
struct InfoResponse {
    #[prost(message, optional, tag = "1")]
    info: Option<Info>,
}

#[derive(Clone, PartialEq, Message)]
struct Info {
    #[prost(string, tag = "1")]
    digest: String,
    #[prost(int64, tag = "2")]
    size: i64,
    #[prost(message, optional, tag = "3")]
    created_at: Option<Timestamp>,
    #[prost(message, optional, tag = "4")]
    updated_at: Option<Timestamp>,
}

#[derive(Clone, PartialEq, Message)]
struct ListRequest {
    #[prost(string, repeated, tag = "1")]
    filters: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
struct ListResponse {
    #[prost(message, repeated, tag = "1")]
    info: Vec<Info>,
}

#[derive(Clone, PartialEq, Message)]
struct ReadRequest {
    #[prost(string, tag = "1")]
    digest: String,
    #[prost(int64, tag = "2")]
    offset: i64,
    /// Zero for all.
    #[prost(int64, tag = "3")]
    size: i64,
}

#[derive(Clone, PartialEq, Message)]
struct ReadResponse {
    #[prost(int64, tag = "1")]
    offset: i64,
    #[prost(bytes = "vec", tag = "2")]
    data: Vec<u8>,
}

/// Nothing is ever on its way in.
#[derive(Clone, PartialEq, Message)]
struct NoStatuses {}

impl NamedService for ContentService {
    const NAME: &'static str = "containerd.services.content.v1.Content";
}

struct InfoCall(Arc<Shared>);
struct ListCall(Arc<Shared>);
struct ReadCall(Arc<Shared>);
struct StatusesCall;

impl UnaryService<InfoRequest> for InfoCall {
    type Response = InfoResponse;
    type Future = BoxFuture<'static, Result<Response<InfoResponse>, Status>>;

    fn call(&mut self, request: Request<InfoRequest>) -> Self::Future {
        let shared = Arc::clone(&self.0);
        Box::pin(async move {
            let content = find(&shared, &request, &request.get_ref().digest).await?;
            Ok(Response::new(InfoResponse { info: Some(info(&content)) }))
        })
    }
}

impl ServerStreamingService<ListRequest> for ListCall {
    type Response = ListResponse;
    type ResponseStream = BoxStream<'static, Result<ListResponse, Status>>;
    type Future = BoxFuture<'static, Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: Request<ListRequest>) -> Self::Future {
        let shared = Arc::clone(&self.0);
        Box::pin(async move {
            if !request.get_ref().filters.is_empty() {
                return Err(Status::unimplemented("not supported yet: filters of content"));
            }
            let mut all = all(&shared, &request).await?;
            all.sort_by(|one, other| one.digest.cmp(&other.digest));
            all.dedup_by(|one, other| one.digest == other.digest);
            let answers = all.chunks(1000).map(|some| ListResponse { info: some.iter().map(info).collect() });
            let answers: Vec<_> = answers.map(Ok).collect();
            Ok(Response::new(stream::iter(answers).boxed()))
        })
    }
}

impl ServerStreamingService<ReadRequest> for ReadCall {
    type Response = ReadResponse;
    type ResponseStream = BoxStream<'static, Result<ReadResponse, Status>>;
    type Future = BoxFuture<'static, Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: Request<ReadRequest>) -> Self::Future {
        let shared = Arc::clone(&self.0);
        Box::pin(async move {
            let content = find(&shared, &request, &request.get_ref().digest).await?;
            let outside = || Status::out_of_range("read past object length");
            let ReadRequest { offset, size, .. } = request.into_inner();
            let start = u64::try_from(offset).map_err(|_| outside())?;
            let rest = content.size.checked_sub(offset).filter(|rest| *rest >= 0).ok_or_else(outside)?;
            let length = if size == 0 { rest } else { size };
            if length < 0 || length > rest {
                return Err(outside());
            }
            let (sender, receiver) = mpsc::channel(MESSAGES);
            let length = u64::try_from(length).unwrap_or_default();
            tokio::spawn(send(content, (start, length), sender));
            Ok(Response::new(packets(receiver).boxed()))
        })
    }
}

impl ServerStreamingService<ListRequest> for StatusesCall {
    type Response = NoStatuses;
    type ResponseStream = BoxStream<'static, Result<NoStatuses, Status>>;
    type Future = BoxFuture<'static, Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, _: Request<ListRequest>) -> Self::Future {
        Box::pin(async { Ok(Response::new(stream::empty().boxed())) })
    }
}

fn info(content: &Content) -> Info {
    let created = Some(timestamp(content.created));
    Info { digest: content.digest.clone(), size: content.size, created_at: created, updated_at: created }
}

async fn all<T>(shared: &Shared, request: &Request<T>) -> Result<Vec<Content>, Status> {
    let (caller, archive): (_, Arc<Archive>) = (caller(request)?, Arc::clone(&shared.history));
    let found = tokio::task::spawn_blocking(move || archive.content(&caller)).await;
    found.map_err(|error| Status::internal(error.to_string()))
}

async fn find<T>(shared: &Shared, request: &Request<T>, digest: &str) -> Result<Content, Status> {
    let found = all(shared, request).await?.into_iter().find(|content| content.digest == digest);
    found.ok_or_else(|| {
        let shown: String = digest.chars().take(100).collect();
        Status::not_found(format!("content digest {shown}: not found"))
    })
}

/// Sends a part of it. No thread waits for a client that reads slowly: one is taken for each message alone.
async fn send(content: Content, (start, length): (u64, u64), to: mpsc::Sender<Result<ReadResponse, Status>>) {
    let mut offset = i64::try_from(start).unwrap_or(i64::MAX);
    let mut chunk = tokio::task::spawn_blocking(move || {
        let mut bytes = content.open()?;
        std::io::copy(&mut bytes.by_ref().take(start), &mut std::io::sink())?;
        next(bytes.take(length))
    });
    loop {
        let (data, rest) = match chunk.await.unwrap_or_else(|error| Err(std::io::Error::other(error))) {
            Ok((data, _)) if data.is_empty() => return,
            Ok(read) => read,
            // Nobody may read any more.
            Err(error) => return drop(to.send(Err(Status::data_loss(error.to_string()))).await),
        };
        let sent = i64::try_from(data.len()).unwrap_or(i64::MAX);
        if to.send(Ok(ReadResponse { offset, data })).await.is_err() {
            return;
        }
        offset = offset.saturating_add(sent);
        chunk = tokio::task::spawn_blocking(move || next(rest));
    }
}

/// What the next message holds, empty at the end, and where to read on.
fn next<T: Read>(mut bytes: T) -> std::io::Result<(Vec<u8>, T)> {
    let mut data = Vec::new();
    bytes.by_ref().take(CHUNK as u64).read_to_end(&mut data)?;
    Ok((data, bytes))
}

type Answer = http::Response<Body>;

impl Service<http::Request<Body>> for ContentService {
    type Response = Answer;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Answer, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let shared = Arc::clone(&self.shared);
        Box::pin(async move {
            let method = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
            Ok(match method.as_str() {
                "Info" => {
                    let mut grpc = Grpc::new(ProstCodec::<InfoResponse, InfoRequest>::default());
                    grpc.unary(InfoCall(shared), request).await
                }
                "List" => {
                    let mut grpc = Grpc::new(ProstCodec::<ListResponse, ListRequest>::default());
                    grpc.server_streaming(ListCall(shared), request).await
                }
                "Read" => {
                    let mut grpc = Grpc::new(ProstCodec::<ReadResponse, ReadRequest>::default());
                    grpc.server_streaming(ReadCall(shared), request).await
                }
                "ListStatuses" => {
                    let mut grpc = Grpc::new(ProstCodec::<NoStatuses, ListRequest>::default());
                    grpc.server_streaming(StatusesCall, request).await
                }
                _ => Status::unimplemented("content is only read here").into_http(),
            })
        })
    }
}
