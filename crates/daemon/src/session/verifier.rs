//! A client that decides itself what its build may be made from: it is asked about each source.
//!
//! Owns the messages of `moby.buildkit.v1.sourcepolicy.policysession.PolicyVerifier`, of which the protobuf crate knows
//! nothing. Must not know how sources are looked up. Start with [`check`].

use bollard_buildkit_proto::moby::buildkit::v1::frontend::{
    ResolveSourceMetaRequest, ResolveSourceMetaResponse,
};
use bollard_buildkit_proto::pb;
use tonic::Status;

use super::exporters::unary;
use super::{ClientSession, SessionError};

const CHECK: &str = "/moby.buildkit.v1.sourcepolicy.policysession.PolicyVerifier/CheckPolicy";

/// What a client is asked.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct CheckRequest {
    /// The platform that the source is for.
    #[prost(message, optional, tag = "1")]
    pub(crate) platform: Option<pb::Platform>,
    /// The source, and what is known of it.
    #[prost(message, optional, tag = "2")]
    pub(crate) source: Option<ResolveSourceMetaResponse>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct CheckResponse {
    #[prost(oneof = "Answer", tags = "1, 2")]
    result: Option<Answer>,
}

/// What a client says.
#[derive(Clone, PartialEq, prost::Oneof)]
#[expect(clippy::large_enum_variant, reason = "one exists at a time, and the message's form asks for it")]
pub(crate) enum Answer {
    /// It has decided.
    #[prost(message, tag = "1")]
    Decision(Decision),
    /// It wants to know more first.
    #[prost(message, tag = "2")]
    Request(ResolveSourceMetaRequest),
}

/// What a client decided.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Decision {
    /// A `PolicyAction` of source policies.
    #[prost(int32, tag = "1")]
    pub(crate) action: i32,
    /// Why not.
    #[prost(message, repeated, tag = "2")]
    pub(crate) messages: Vec<DenyMessage>,
    /// What takes its place.
    #[prost(message, optional, tag = "3")]
    pub(crate) update: Option<pb::SourceOp>,
}

/// A reason.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct DenyMessage {
    /// Its words.
    #[prost(string, tag = "1")]
    pub(crate) message: String,
}

/// Asks a client.
pub(crate) async fn check(
    session: &ClientSession,
    request: CheckRequest,
) -> Result<Result<Option<Answer>, Status>, SessionError> {
    let channel = session.channel(CHECK)?;
    let answer: Result<CheckResponse, Status> = unary(channel, CHECK, request).await;
    Ok(answer.map(|answer| answer.result))
}
