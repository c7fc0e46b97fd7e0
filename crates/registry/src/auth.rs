//! Being let in: what each host is known to ask for, and the tokens held for it.
//!
//! Owns [`TokenCache`]: one challenge per host, one token per host and scope, fetched once however many requests
//! wait for it. Secrets leave it only as `Authorization` headers marked sensitive.

mod challenge;
mod scope;
mod token;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::header::{HeaderMap, HeaderValue, WWW_AUTHENTICATE};

pub(crate) use challenge::{Bearer, Challenge, challenges};
pub(crate) use scope::ScopeSet;

use crate::client::lock;
use crate::error::{AuthFault, ErrorKind};
use crate::keychain::{Credential, Secret};
use crate::limits::MAX_CACHED_ENTRIES;
use crate::request::{Exchange, Failure};
use token::Token;

/// What is known about getting into hosts.
#[derive(Default)]
pub(crate) struct TokenCache {
    known: Mutex<HashMap<String, Known>>,
    tokens: Mutex<HashMap<(String, String), TokenSlot>>,
}

/// The lock is held while a token is fetched: the others who want it wait instead of fetching their own.
type TokenSlot = Arc<tokio::sync::Mutex<Option<Token>>>;

/// How a host wants requests authorized.
#[derive(Clone)]
enum Known {
    Basic(HeaderValue),
    Bearer(Bearer),
}

/// An `Authorization` header and whether a credential of the user's stands behind it.
#[derive(Clone)]
pub(crate) struct Authorization {
    pub(crate) header: HeaderValue,
    pub(crate) authenticated: bool,
}

impl Exchange {
    /// The header to send at once, from what earlier answers of the host said.
    pub(crate) async fn authorization(&self) -> Result<Option<Authorization>, Failure> {
        let known = lock(&self.shared.tokens.known).get(&self.endpoint.host).cloned();
        match known {
            None => Ok(None),
            Some(Known::Basic(header)) => Ok(Some(Authorization { header, authenticated: true })),
            Some(Known::Bearer(bearer)) => self.bearer(&bearer, None).await.map(Some),
        }
    }

    /// The header to send after a 401, given what was `sent` before; `None` if there is nothing (else) to show.
    pub(crate) async fn answer(
        &self,
        headers: &HeaderMap,
        sent: Option<&Authorization>,
    ) -> Result<Option<Authorization>, Failure> {
        let asked = challenges(headers);
        let bearer = asked.iter().find_map(|challenge| match challenge {
            Challenge::Bearer(bearer) => Some(bearer.clone()),
            Challenge::Basic => None,
        });
        if let Some(bearer) = bearer {
            self.know(Known::Bearer(bearer.clone()));
            return self.bearer(&bearer, sent).await.map(Some);
        }
        if !asked.contains(&Challenge::Basic) {
            // Without any challenge the answer is a plain no.
            let Some(other) = headers.get(WWW_AUTHENTICATE) else { return Ok(None) };
            let scheme = other.to_str().unwrap_or_default().split(' ').next().unwrap_or_default();
            let scheme = scheme.chars().filter(char::is_ascii_alphanumeric).take(32).collect();
            return Err(ErrorKind::from(AuthFault::Challenge(scheme)).into());
        }
        let Some(header) = self.basic().await? else { return Ok(None) };
        if sent.is_some_and(|sent| sent.header == header) {
            return Ok(None);
        }
        self.know(Known::Basic(header.clone()));
        Ok(Some(Authorization { header, authenticated: true }))
    }

    fn know(&self, known: Known) {
        let mut hosts = lock(&self.shared.tokens.known);
        if hosts.len() < MAX_CACHED_ENTRIES {
            hosts.insert(self.endpoint.host.clone(), known);
        }
    }

    /// A bearer token for this exchange's scope: the one held unless it has expired or was the one `refused`.
    async fn bearer(
        &self,
        bearer: &Bearer,
        refused: Option<&Authorization>,
    ) -> Result<Authorization, Failure> {
        let slot = self.slot();
        let mut held = slot.lock().await;
        if let Some(token) = held.as_ref() {
            let was_refused = refused.is_some_and(|refused| refused.header == token.authorization.header);
            if token.expires > Instant::now() && !was_refused {
                return Ok(token.authorization.clone());
            }
        }
        let token = token::fetch(self, bearer).await?;
        let authorization = token.authorization.clone();
        *held = Some(token);
        Ok(authorization)
    }

    fn slot(&self) -> TokenSlot {
        let mut tokens = lock(&self.shared.tokens.tokens);
        // Dropping all is crude, and right: tokens are cheap, and this many scopes means a very long life.
        if tokens.len() >= MAX_CACHED_ENTRIES {
            tokens.clear();
        }
        Arc::clone(tokens.entry((self.endpoint.host.clone(), self.scope.to_string())).or_default())
    }

    async fn basic(&self) -> Result<Option<HeaderValue>, Failure> {
        match self.credential().await? {
            Some(Credential::Basic { username, password }) => Ok(Some(basic_header(&username, &password)?)),
            Some(Credential::IdentityToken(_) | Credential::RegistryToken(_)) | None => Ok(None),
        }
    }

    pub(crate) async fn credential(&self) -> Result<Option<Credential>, Failure> {
        if let Some(credential) = &self.trial {
            return Ok(Some(credential.clone()));
        }
        let found = self.shared.config.keychain.credential(&self.endpoint.key).await;
        found.map_err(|error| ErrorKind::from(error).into())
    }
}

pub(crate) fn basic_header(username: &str, password: &Secret) -> Result<HeaderValue, Failure> {
    let pair = STANDARD.encode(format!("{username}:{}", password.expose()));
    sensitive(&format!("Basic {pair}"))
}

pub(crate) fn sensitive(text: &str) -> Result<HeaderValue, Failure> {
    let unusable = || ErrorKind::from(AuthFault::Token("the credential store".to_owned())).into();
    let mut header = HeaderValue::from_str(text).map_err(|_| -> Failure { unusable() })?;
    header.set_sensitive(true);
    Ok(header)
}
