//! `login` and `logout`: credentials are tried before they are stored.

use reqwest::StatusCode;

use crate::auth::ScopeSet;
use crate::client::Subject;
use crate::endpoint::Endpoint;
use crate::error::{Action, ErrorKind};
use crate::request::{Call, Exchange};
use crate::{Client, Credential, RegistryError, StoredIn};

impl Client {
    /// Tries a credential at a registry host and, if it is accepted, stores it in the keychain.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Unauthorized`] if it is refused; whatever else keeps the registry from answering; a keychain
    /// that cannot be written.
    pub async fn login(&self, registry: &str, credential: &Credential) -> Result<StoredIn, RegistryError> {
        let subject = login_subject(registry);
        let endpoint = Endpoint::origin(&self.shared.config.registries, registry);
        let host = endpoint.host.clone();
        self.try_credential(endpoint, credential).await.map_err(|kind| subject.error(&host, kind))?;
        let stored = self.shared.config.keychain.store(registry, credential).await;
        stored.map_err(|error| subject.error(&host, error.into()))
    }

    /// Forgets the credential for a registry host; says whether there was one.
    ///
    /// # Errors
    /// A keychain that cannot be read or written.
    pub async fn logout(&self, registry: &str) -> Result<bool, RegistryError> {
        let erased = self.shared.config.keychain.erase(registry).await;
        erased.map_err(|error| login_subject(registry).error(registry, error.into()))
    }

    async fn try_credential(&self, endpoint: Endpoint, credential: &Credential) -> Result<(), ErrorKind> {
        // A fresh client: what is cached for other credentials must not vouch for these.
        let fresh =
            Self::new(self.shared.config.clone()).map_err(|_| ErrorKind::Address(endpoint.host.clone()))?;
        let mut exchange = Exchange::open(&fresh.shared, endpoint, ScopeSet::default()).await?;
        exchange.trial = Some(credential.clone());
        let answer = exchange.send(&Call::get(exchange.url("")?)).await?;
        match answer.response.status() {
            status if status.is_success() => Ok(()),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(ErrorKind::Unauthorized(String::new())),
            _ => Err(answer.fault().await.kind),
        }
    }
}

fn login_subject(registry: &str) -> Subject {
    Subject { action: Action::Login, name: registry.to_owned(), repository: String::new() }
}
