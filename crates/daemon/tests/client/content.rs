//! The test client's store of content, served as containerd does: blobs by digest in memory.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures::future::BoxFuture;
use futures::{Stream, StreamExt as _, stream};
use prost::Message;
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::server::{Grpc, NamedService, ServerStreamingService, StreamingService, UnaryService};
use tonic::{Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;

use super::Shared;

/// What the client says that it serves.
pub(crate) const METHODS: [&str; 3] = [
    "/containerd.services.content.v1.Content/Info",
    "/containerd.services.content.v1.Content/Read",
    "/containerd.services.content.v1.Content/Write",
];

/// Blobs by store and digest.
pub(crate) type Blobs = Shared<BTreeMap<(String, String), Vec<u8>>>;

#[derive(Clone, PartialEq, Message)]
struct ByDigest {
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
}

#[derive(Clone, PartialEq, Message)]
struct ReadResponse {
    #[prost(bytes = "vec", tag = "2")]
    data: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct WriteRequest {
    #[prost(int32, tag = "1")]
    action: i32,
    #[prost(string, tag = "4")]
    expected: String,
    #[prost(bytes = "vec", tag = "6")]
    data: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct WriteResponse {
    #[prost(int64, tag = "4")]
    offset: i64,
}

/// The service.
#[derive(Clone)]
pub(crate) struct ContentServer(pub(crate) Blobs);

fn store<T>(request: &Request<T>) -> String {
    let id = request.metadata().get("buildkit-attachable-store-id").expect("names a store");
    id.to_str().expect("text").to_owned()
}

impl ContentServer {
    fn find(&self, store: String, digest: &str) -> Result<Vec<u8>, Status> {
        let found = self.0.lock().expect("not poisoned").get(&(store, digest.to_owned())).cloned();
        found.ok_or_else(|| Status::not_found(digest.to_owned()))
    }
}

impl UnaryService<ByDigest> for ContentServer {
    type Response = InfoResponse;
    type Future = BoxFuture<'static, Result<Response<InfoResponse>, Status>>;

    fn call(&mut self, request: Request<ByDigest>) -> Self::Future {
        let found = self.find(store(&request), &request.get_ref().digest);
        let digest = request.into_inner().digest;
        let info = |blob: Vec<u8>| Info { digest, size: i64::try_from(blob.len()).expect("small") };
        let answer = found.map(|blob| Response::new(InfoResponse { info: Some(info(blob)) }));
        Box::pin(std::future::ready(answer))
    }
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl ServerStreamingService<ByDigest> for ContentServer {
    type Response = ReadResponse;
    type ResponseStream = Answers<ReadResponse>;
    type Future = BoxFuture<'static, Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: Request<ByDigest>) -> Self::Future {
        let found = self.find(store(&request), &request.get_ref().digest);
        let answer = found.map(|blob| {
            let pieces: Vec<_> =
                blob.chunks(1000).map(|piece| Ok(ReadResponse { data: piece.to_vec() })).collect();
            Response::new(stream::iter(pieces).boxed() as Answers<ReadResponse>)
        });
        Box::pin(std::future::ready(answer))
    }
}

impl StreamingService<WriteRequest> for ContentServer {
    type Response = WriteResponse;
    type ResponseStream = Answers<WriteResponse>;
    type Future = BoxFuture<'static, Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: Request<Streaming<WriteRequest>>) -> Self::Future {
        let (store, blobs) = (store(&request), self.0.clone());
        let written = (request.into_inner(), Vec::new(), blobs, store);
        let answers = stream::unfold(written, |(mut requests, mut written, blobs, store)| async move {
            let request: WriteRequest = requests.message().await.ok()??;
            written.extend(&request.data);
            // 2 is the commit.
            if request.action == 2 {
                let key = (store.clone(), request.expected);
                blobs.lock().expect("not poisoned").insert(key, written.clone());
            }
            let offset = i64::try_from(written.len()).expect("small");
            Some((Ok(WriteResponse { offset }), (requests, written, blobs, store)))
        });
        Box::pin(std::future::ready(Ok(Response::new(answers.boxed() as Answers<WriteResponse>))))
    }
}

impl NamedService for ContentServer {
    const NAME: &'static str = "containerd.services.content.v1.Content";
}

impl Service<http::Request<Body>> for ContentServer {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let this = self.clone();
        let method = request.uri().path().to_owned();
        Box::pin(async move {
            Ok(match METHODS.iter().position(|known| *known == method).expect("is known") {
                0 => Grpc::new(ProstCodec::default()).unary(this, request).await,
                1 => Grpc::new(ProstCodec::default()).server_streaming(this, request).await,
                _ => Grpc::new(ProstCodec::default()).streaming(this, request).await,
            })
        })
    }
}
