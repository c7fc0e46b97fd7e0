//! Exporters that a client chooses once it knows what its build came to, and what it is told of them at the end.
//!
//! Owns the messages of `moby.exporter.v1.Exporter`, of which the protobuf crate knows nothing. Must not know exporters.
//! Start with [`find`] and [`finish`].

use std::collections::HashMap;

use bollard_buildkit_proto::moby::buildkit::v1::Exporter;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::{Code, Request, Status};
use tonic_prost::ProstCodec;

use super::{ClientSession, MAX_MESSAGE};

const FIND: &str = "/moby.exporter.v1.Exporter/FindExporters";
const FINISH: &str = "/moby.exporter.v1.Exporter/FinalizeExport";

#[derive(Clone, PartialEq, prost::Message)]
struct FindRequest {
    #[prost(map = "string, bytes", tag = "1")]
    metadata: HashMap<String, Vec<u8>>,
    #[prost(string, repeated, tag = "2")]
    refs: Vec<String>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct FindResponse {
    #[prost(message, repeated, tag = "1")]
    exporters: Vec<Chosen>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Chosen {
    #[prost(string, tag = "1")]
    kind: String,
    #[prost(map = "string, string", tag = "2")]
    attrs: HashMap<String, String>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct FinishRequest {
    #[prost(map = "string, string", tag = "1")]
    told: HashMap<String, String>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct FinishResponse {}

/// The exporters that a client wants for results of these ids; none where it does not say.
pub(crate) async fn find(
    session: &ClientSession,
    metadata: HashMap<String, Vec<u8>>,
    refs: Vec<String>,
) -> Result<Vec<Exporter>, Status> {
    let answer: Option<FindResponse> = call(session, FIND, FindRequest { metadata, refs }).await?;
    let exporters = answer.map(|answer| answer.exporters).unwrap_or_default();
    Ok(exporters.into_iter().map(|one| Exporter { r#type: one.kind, attrs: one.attrs }).collect())
}

/// Tells a client what its exporters did.
pub(crate) async fn finish(session: &ClientSession, told: HashMap<String, String>) -> Result<(), Status> {
    call::<_, FinishResponse>(session, FINISH, FinishRequest { told }).await.map(drop)
}

/// Asks; `None` where the client does not serve it.
async fn call<Q, A>(session: &ClientSession, method: &'static str, request: Q) -> Result<Option<A>, Status>
where
    Q: prost::Message + Send + Sync + 'static,
    A: prost::Message + Default + Send + Sync + 'static,
{
    let Ok(channel) = session.channel(method) else { return Ok(None) };
    match unary(channel, method, request).await {
        Ok(answer) => Ok(Some(answer)),
        Err(status) if matches!(status.code(), Code::Unavailable | Code::Unimplemented) => Ok(None),
        Err(status) => Err(status),
    }
}

/// One call whose messages are of this crate's own making.
pub(super) async fn unary<Q, A>(
    channel: tonic::transport::Channel,
    method: &'static str,
    request: Q,
) -> Result<A, Status>
where
    Q: prost::Message + Send + Sync + 'static,
    A: prost::Message + Default + Send + Sync + 'static,
{
    let mut client = Grpc::new(channel).max_decoding_message_size(MAX_MESSAGE);
    client.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    let path = PathAndQuery::from_static(method);
    Ok(client.unary(Request::new(request), path, ProstCodec::default()).await?.into_inner())
}
