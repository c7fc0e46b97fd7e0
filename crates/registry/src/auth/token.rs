//! Fetching a bearer token (distribution token and OAuth2 specifications).

use std::time::{Duration, Instant};

use bytes::Bytes;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{Method, StatusCode};
use serde::Deserialize;
use url::Url;

use super::{Authorization, Bearer, basic_header, sensitive};
use crate::answer::Answer;
use crate::error::{AuthFault, ErrorKind};
use crate::keychain::{Credential, Secret};
use crate::limits::{DEFAULT_TOKEN_LIFE, MAX_TOKEN_BYTES, MAX_TOKEN_RESPONSE_BYTES, TOKEN_RENEWAL_MARGIN};
use crate::request::{Call, Exchange, Failure, Payload, shown};

/// What the token service is told that we are.
const CLIENT_ID: &str = "stave";

/// A token as it is sent, and until when.
pub(super) struct Token {
    pub(super) authorization: Authorization,
    pub(super) expires: Instant,
}

#[derive(Deserialize)]
struct TokenResponse {
    #[serde(default)]
    token: String,
    #[serde(default)]
    access_token: String,
    #[serde(default)]
    expires_in: Option<u64>,
}

pub(super) async fn fetch(exchange: &Exchange, bearer: &Bearer) -> Result<Token, Failure> {
    let credential = exchange.credential().await?;
    if let Some(Credential::RegistryToken(token)) = &credential {
        // It cannot be renewed: it is good until the registry says otherwise.
        return held(token.expose(), true, Duration::from_secs(u64::from(u32::MAX)));
    }
    let realm = realm(exchange, bearer)?;
    let started = Instant::now();
    let answer = match &credential {
        Some(Credential::IdentityToken(token)) => refresh(exchange, bearer, realm.clone(), token).await?,
        Some(Credential::Basic { username, password }) => {
            let header = basic_header(username, password)?;
            ask(exchange, bearer, realm.clone(), Some((username, header))).await?
        }
        Some(Credential::RegistryToken(_)) | None => ask(exchange, bearer, realm.clone(), None).await?,
    };
    let authenticated = credential.is_some();
    let TokenResponse { token, access_token, expires_in } = read(answer, authenticated, &realm).await?;
    let text = if token.is_empty() { access_token } else { token };
    if text.is_empty() || text.len() > MAX_TOKEN_BYTES || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(ErrorKind::from(AuthFault::Token(shown(&realm))).into());
    }
    let life = expires_in.map_or(DEFAULT_TOKEN_LIFE, Duration::from_secs).max(DEFAULT_TOKEN_LIFE);
    held(&text, authenticated, life.saturating_sub(started.elapsed()))
}

fn held(token: &str, authenticated: bool, life: Duration) -> Result<Token, Failure> {
    let header = sensitive(&format!("Bearer {token}"))?;
    let now = Instant::now();
    let expires = now.checked_add(life.saturating_sub(TOKEN_RENEWAL_MARGIN)).unwrap_or(now);
    Ok(Token { authorization: Authorization { header, authenticated }, expires })
}

/// The token service's address. A registry on https must not have its tokens sent in the clear.
fn realm(exchange: &Exchange, bearer: &Bearer) -> Result<Url, Failure> {
    let fault = |text: String| -> Failure { ErrorKind::from(AuthFault::Realm(text)).into() };
    let mut url = Url::parse(&bearer.realm).map_err(|_| fault(bearer.realm.chars().take(160).collect()))?;
    let is_fitting = match url.scheme() {
        "https" => true,
        "http" => exchange.is_plain(),
        _ => false,
    };
    if !is_fitting || !url.has_host() {
        return Err(fault(shown(&url)));
    }
    // A user in the address would be sent as a credential that nobody gave.
    let cleared = url.set_username("").and_then(|()| url.set_password(None));
    cleared.map_err(|()| fault(shown(&url)))?;
    url.set_fragment(None);
    Ok(url)
}

/// The token specification's request: `GET` with the scopes, and the user's name and password as basic auth.
async fn ask(
    exchange: &Exchange,
    bearer: &Bearer,
    mut url: Url,
    user: Option<(&str, HeaderValue)>,
) -> Result<Answer, Failure> {
    {
        let mut query = url.query_pairs_mut();
        if let Some(service) = &bearer.service {
            query.append_pair("service", service);
        }
        for scope in exchange.scope.clone().union(bearer.scope.as_deref().unwrap_or_default()).texts() {
            query.append_pair("scope", &scope);
        }
        if let Some((username, _)) = &user {
            query.append_pair("account", username).append_pair("client_id", CLIENT_ID);
        }
    }
    let home = url.clone();
    exchange.follow(&Call::get(url), user.map(|(_, header)| header).as_ref(), &home).await
}

/// OAuth2: an identity token is exchanged in a form, never in an address.
async fn refresh(exchange: &Exchange, bearer: &Bearer, url: Url, token: &Secret) -> Result<Answer, Failure> {
    let scope = exchange.scope.clone().union(bearer.scope.as_deref().unwrap_or_default()).to_string();
    let form = url::form_urlencoded::Serializer::new(String::new())
        .append_pair("grant_type", "refresh_token")
        .append_pair("service", bearer.service.as_deref().unwrap_or_default())
        .append_pair("client_id", CLIENT_ID)
        .append_pair("scope", &scope)
        .append_pair("refresh_token", token.expose())
        .finish();
    let form_type = HeaderValue::from_static("application/x-www-form-urlencoded");
    let headers = HeaderMap::from_iter([(CONTENT_TYPE, form_type)]);
    let payload = Payload::Secret(Bytes::from(form));
    let call = Call { method: Method::POST, url, headers, payload, is_verified: false };
    exchange.follow(&call, None, &call.url).await
}

async fn read(answer: Answer, authenticated: bool, realm: &Url) -> Result<TokenResponse, Failure> {
    let status = answer.response.status();
    if status.is_success() {
        let body = answer.body("token response", MAX_TOKEN_RESPONSE_BYTES).await?;
        let unusable = |_| ErrorKind::from(AuthFault::Token(shown(realm))).into();
        return serde_json::from_slice(&body).map_err(unusable);
    }
    if status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error() {
        return Err(answer.fault().await);
    }
    // Our own text says the same.
    let message = Some(answer.message().await).filter(|text| text != "incorrect username or password");
    let message = message.unwrap_or_default();
    Err(match (status, authenticated) {
        (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, false) => {
            ErrorKind::AccessDenied { authenticated, message }.into()
        }
        (StatusCode::UNAUTHORIZED, true) => ErrorKind::Unauthorized(message).into(),
        _ => ErrorKind::from(AuthFault::Service { url: shown(realm), status: status.to_string(), message })
            .into(),
    })
}
