//! The test client's word about each source: `PolicyVerifier`, of which the protobuf crate knows nothing.

use std::convert::Infallible;
use std::fmt;
use std::future::{Ready, ready};
use std::sync::Arc;
use std::task::{Context, Poll};

use bollard_buildkit_proto::moby::buildkit::v1::frontend::{
    ResolveSourceMetaRequest, ResolveSourceMetaResponse,
};
use bollard_buildkit_proto::moby::buildkit::v1::sourcepolicy::PolicyAction;
use bollard_buildkit_proto::pb;
use futures::future::BoxFuture;
use prost::Message;
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::server::{Grpc, NamedService, UnaryService};
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

/// What the client says that it serves, where it decides.
pub(crate) const METHOD: &str = "/moby.buildkit.v1.sourcepolicy.policysession.PolicyVerifier/CheckPolicy";

/// What the client is asked.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Question {
    #[prost(message, optional, tag = "1")]
    pub(crate) platform: Option<pb::Platform>,
    #[prost(message, optional, tag = "2")]
    pub(crate) source: Option<ResolveSourceMetaResponse>,
}

/// What it says.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Word {
    #[prost(message, optional, tag = "1")]
    decision: Option<Decision>,
    #[prost(message, optional, tag = "2")]
    request: Option<ResolveSourceMetaRequest>,
}

#[derive(Clone, PartialEq, Message)]
struct Decision {
    #[prost(int32, tag = "1")]
    action: i32,
    #[prost(message, optional, tag = "3")]
    update: Option<pb::SourceOp>,
}

impl Question {
    pub(crate) fn identifier(&self) -> &str {
        let source = self.source.as_ref().and_then(|source| source.source.as_ref());
        source.map_or("", |source| &source.identifier)
    }

    pub(crate) fn architecture(&self) -> &str {
        self.platform.as_ref().map_or("", |platform| &platform.architecture)
    }

    /// Wants to know more of the source.
    pub(crate) fn more(&self) -> Word {
        let source = self.source.as_ref().and_then(|source| source.source.clone());
        let request = ResolveSourceMetaRequest { source, ..ResolveSourceMetaRequest::default() };
        Word { request: Some(request), ..Word::default() }
    }
}

impl Word {
    fn decided(action: PolicyAction, update: Option<pb::SourceOp>) -> Self {
        Self { decision: Some(Decision { action: action.into(), update }), ..Self::default() }
    }

    pub(crate) fn allow() -> Self {
        Self::decided(PolicyAction::Allow, None)
    }

    pub(crate) fn deny() -> Self {
        Self::decided(PolicyAction::Deny, None)
    }

    pub(crate) fn convert(identifier: &str) -> Self {
        let update = pb::SourceOp { identifier: identifier.to_owned(), ..pb::SourceOp::default() };
        Self::decided(PolicyAction::Convert, Some(update))
    }
}

/// How a client decides.
#[derive(Clone)]
pub(crate) struct Decides(Arc<dyn Fn(&Question) -> Word + Send + Sync>);

impl Decides {
    pub(crate) fn by(word: impl Fn(&Question) -> Word + Send + Sync + 'static) -> Self {
        Self(Arc::new(word))
    }
}

impl fmt::Debug for Decides {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Decides")
    }
}

impl UnaryService<Question> for Decides {
    type Response = Word;
    type Future = Ready<Result<Response<Word>, Status>>;

    fn call(&mut self, request: Request<Question>) -> Self::Future {
        ready(Ok(Response::new((self.0)(request.get_ref()))))
    }
}

impl NamedService for Decides {
    const NAME: &'static str = "moby.buildkit.v1.sourcepolicy.policysession.PolicyVerifier";
}

impl Service<http::Request<Body>> for Decides {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let this = self.clone();
        Box::pin(async move { Ok(Grpc::new(ProstCodec::default()).unary(this, request).await) })
    }
}
