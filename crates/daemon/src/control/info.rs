//! What the daemon says of itself, with the version of the Dockerfile language, which newer clients ask for and the
//! generated messages do not know yet. Everything else goes on to the service. Start with [`WithLanguage`].

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};

use bollard_buildkit_proto::moby::buildkit::v1::InfoRequest;
use futures::future::BoxFuture;
use prost::Message;
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::server::{Grpc, NamedService, UnaryService};
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

use crate::state::Shared;
use crate::{wanted, workers};

const INFO: &str = "/moby.buildkit.v1.Control/Info";

#[derive(Clone, PartialEq, Message)]
struct InfoResponse {
    #[prost(message, optional, tag = "1")]
    version: Option<Version>,
}

#[derive(Clone, PartialEq, Message)]
struct Version {
    #[prost(string, tag = "1")]
    package: String,
    #[prost(string, tag = "2")]
    version: String,
    #[prost(string, tag = "3")]
    revision: String,
    #[prost(string, tag = "4")]
    language: String,
}

/// The service and what is said before it.
#[derive(Clone)]
pub(crate) struct WithLanguage<S> {
    pub(crate) inner: S,
    pub(crate) shared: Arc<Shared>,
}

impl<S: NamedService> NamedService for WithLanguage<S> {
    const NAME: &'static str = S::NAME;
}

struct Info(Arc<Shared>);

impl UnaryService<InfoRequest> for Info {
    type Response = InfoResponse;
    type Future = BoxFuture<'static, Result<Response<InfoResponse>, Status>>;

    fn call(&mut self, _: Request<InfoRequest>) -> Self::Future {
        let known = workers::version(&self.0);
        let version = Version {
            package: known.package,
            version: known.version,
            revision: known.revision,
            language: wanted::LANGUAGE.to_owned(),
        };
        Box::pin(async move { Ok(Response::new(InfoResponse { version: Some(version) })) })
    }
}

type Answer = http::Response<Body>;

impl<S> Service<http::Request<Body>> for WithLanguage<S>
where
    S: Service<http::Request<Body>, Response = Answer, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send + 'static,
{
    type Response = Answer;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Answer, Infallible>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        if request.uri().path() != INFO {
            return Box::pin(self.inner.call(request));
        }
        let info = Info(Arc::clone(&self.shared));
        Box::pin(async move {
            let mut grpc = Grpc::new(ProstCodec::<InfoResponse, InfoRequest>::default());
            Ok(grpc.unary(info, request).await)
        })
    }
}
