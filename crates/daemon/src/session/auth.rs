//! Registry credentials of a client, asked for when a registry wants some. Never kept, never shown.

use std::sync::Arc;
use std::time::Duration;

use bollard_buildkit_proto::moby::filesync::v1::CredentialsRequest;
use bollard_buildkit_proto::moby::filesync::v1::auth_client::AuthClient;
use futures::future::BoxFuture;
use stave_registry::{Credential, CredentialSource, KeychainError, Secret};

use super::{ClientSession, SessionError};

const METHOD: &str = "/moby.filesync.v1.Auth/Credentials";
/// A helper program on the client's side may ask its user.
const PATIENCE: Duration = Duration::from_secs(60);

/// The credentials of one client.
#[derive(Debug)]
pub(crate) struct ClientCredentials(pub(crate) Arc<ClientSession>);

impl CredentialSource for ClientCredentials {
    fn credential<'a>(
        &'a self,
        registry: &'a str,
    ) -> BoxFuture<'a, Result<Option<Credential>, KeychainError>> {
        Box::pin(async move {
            let channel = match self.0.channel(METHOD) {
                Ok(channel) => channel,
                // A client without credentials is one that nobody logged in.
                Err(SessionError::Unsupported(_)) => return Ok(None),
                Err(error) => return Err(failed(registry, &error.to_string())),
            };
            // The host that docker.io's own clients know it by.
            let host = if registry == "docker.io" { "registry-1.docker.io" } else { registry }.to_owned();
            let mut client = AuthClient::new(channel);
            let answer =
                tokio::time::timeout(PATIENCE, client.credentials(CredentialsRequest { host })).await;
            let answer = answer.map_err(|_| failed(registry, "the client does not answer"))?;
            let answer = match answer {
                Ok(answer) => answer.into_inner(),
                Err(status) if status.code() == tonic::Code::Unimplemented => return Ok(None),
                Err(status) => return Err(failed(registry, status.message())),
            };
            Ok(match (answer.username, answer.secret) {
                (_, secret) if secret.is_empty() => None,
                (username, secret) if username.is_empty() => {
                    Some(Credential::IdentityToken(Secret::new(secret)))
                }
                (username, secret) => Some(Credential::Basic { username, password: Secret::new(secret) }),
            })
        })
    }
}

fn failed(registry: &str, reason: &str) -> KeychainError {
    KeychainError::Elsewhere { host: registry.to_owned(), reason: reason.to_owned() }
}
