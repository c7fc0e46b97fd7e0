//! Secrets of a client: fetched before the steps that mount them run. Never kept beyond the build, never shown.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bollard_buildkit_proto::moby::buildkit::secrets::v1::GetSecretRequest;
use bollard_buildkit_proto::moby::buildkit::secrets::v1::secrets_client::SecretsClient;
use stave_llb::{Definition, ExecOp, Mount, Op, SourceIdentifier, SourceOp};
use stave_worker::Secret;
use url::Url;

use super::{ClientSession, SessionError};

const METHOD: &str = "/moby.buildkit.secrets.v1.Secrets/GetSecret";
/// BuildKit's limit of one secret, in bytes.
const MAX_SECRET: usize = 500 << 10;
/// Most secrets of one build.
const MAX_SECRETS: usize = 1000;

/// The ids of the secrets that a definition's steps want.
pub(crate) fn wanted(definition: &Definition) -> BTreeSet<String> {
    let mut ids = BTreeSet::new();
    for vertex in definition.vertices() {
        match &vertex.op {
            Op::Exec(exec) => ids.extend(wanted_by(exec)),
            Op::Source(source) => ids.extend(wanted_by_source(source)),
            _ => {}
        }
    }
    ids
}

/// The ids of the secrets that one step wants.
pub(crate) fn wanted_by(exec: &ExecOp) -> BTreeSet<String> {
    let mut ids = BTreeSet::new();
    ids.extend(exec.secret_env.iter().map(|secret| secret.id.clone()));
    ids.extend(exec.mounts.iter().filter_map(|mount| match mount {
        Mount::Secret { id, .. } => Some(id.clone()),
        _ => None,
    }));
    ids
}

/// The ids of the secrets by which a source may be asked. Those of a repository may be kept by its host.
fn wanted_by_source(source: &SourceOp) -> Vec<String> {
    let named = |name: &str| source.attrs.get(name).filter(|id| !id.is_empty()).cloned();
    let own = ["git.authtokensecret", "git.authheadersecret", "http.authheadersecret"];
    let mut ids: Vec<String> = own.into_iter().filter_map(named).collect();
    let address = source.attrs.get("git.fullurl").map_or(source.raw.as_str(), String::as_str);
    let url = Url::parse(address).ok();
    if let Some(host) = url.as_ref().and_then(host_of) {
        ids.extend(ids.clone().iter().map(|id| format!("{id}.{host}")));
    }
    if let SourceIdentifier::Http { .. } = &source.identifier
        && let Some(host) = url.as_ref().and_then(Url::host_str)
    {
        ids.extend(stave_worker::host_secrets(host));
    }
    ids
}

fn host_of(url: &Url) -> Option<String> {
    let host = url.host_str()?;
    Some(url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}")))
}

/// Asks a client for the secrets of these ids. One that it does not have is left out: the step that wants it says
/// whether that is an error.
pub(crate) async fn fetch(
    session: Arc<ClientSession>,
    ids: BTreeSet<String>,
) -> Result<BTreeMap<String, Secret>, SessionError> {
    let mut secrets = BTreeMap::new();
    if ids.is_empty() {
        return Ok(secrets);
    }
    let Ok(channel) = session.channel(METHOD) else { return Ok(secrets) };
    let mut client = SecretsClient::new(channel).max_decoding_message_size(MAX_SECRET + 1024);
    for id in ids.into_iter().take(MAX_SECRETS) {
        let request = GetSecretRequest { id: id.clone(), annotations: Default::default() };
        match client.get_secret(request).await {
            Ok(answer) => drop(secrets.insert(id, Secret::Value(answer.into_inner().data))),
            Err(status) if status.code() == tonic::Code::NotFound => {}
            Err(status) => {
                let words = format!("failed to fetch remote secret {id}: {}", status.message());
                return Err(SessionError::Connection(words));
            }
        }
    }
    Ok(secrets)
}

#[cfg(test)]
mod tests {
    use stave_llb::builder::{About, GraphBuilder};
    use stave_oci::Platform;

    use super::*;

    #[test]
    fn what_a_source_may_be_asked_with() {
        let attrs = [("git.fullurl", "https://u@h.test:1/r.git"), ("git.authtokensecret", "T")];
        let attrs = attrs.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let mut graph = GraphBuilder::default();
        let source = SourceOp::new("git://h.test:1/r.git", attrs);
        let output = graph.source(source, &Platform::host(), About::default());
        let ids: Vec<String> = wanted(&graph.finish(Some(output))).into_iter().collect();
        assert_eq!(ids, ["T", "T.h.test:1"]);
        let mut graph = GraphBuilder::default();
        let source = SourceOp::new("https://u@h.test:1/file", [].into());
        let output = graph.source(source, &Platform::host(), About::default());
        let ids: Vec<String> = wanted(&graph.finish(Some(output))).into_iter().collect();
        assert_eq!(ids, ["HTTP_AUTH_HEADER_h.test", "HTTP_AUTH_TOKEN_h.test"]);
    }
}
