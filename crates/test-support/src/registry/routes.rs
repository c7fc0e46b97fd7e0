//! The distribution specification's end points, and the token service.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use stave_oci::Digest;

use super::http::{Head, Response, form_values};
use super::state::State;
use super::{Auth, User};

/// Answers one request.
pub(super) fn respond(state: &mut State, head: &Head, body: &[u8]) -> Response {
    if head.path() == "/token" {
        return token(state, head, body);
    }
    let Some(path) = head.path().strip_prefix("/v2/") else {
        return error(404, "UNSUPPORTED", "no such page");
    };
    let (repository, route) = Route::parse(path);
    if let Some(refusal) = refuse(state, head, repository) {
        return refusal;
    }
    match route {
        Route::Ping => Response::new(200),
        Route::Manifest(name) => manifest(state, head, body, (repository, name)),
        Route::Blob(digest) => blob(state, head, repository, digest),
        Route::Referrers(digest) => referrers(state, head, repository, digest),
        Route::Uploads => start_upload(state, head, repository),
        Route::Upload(id) => upload(state, head, body, (repository, id)),
        Route::Unknown => error(404, "UNSUPPORTED", "no such page"),
    }
}

enum Route<'a> {
    Ping,
    Manifest(&'a str),
    Blob(&'a str),
    Referrers(&'a str),
    Uploads,
    Upload(u64),
    Unknown,
}

impl<'a> Route<'a> {
    fn parse(path: &'a str) -> (&'a str, Self) {
        if path.is_empty() {
            return ("", Self::Ping);
        }
        if let Some((repository, id)) = path.split_once("/blobs/uploads/") {
            let route = match (id, id.parse()) {
                ("", _) => Self::Uploads,
                (_, Ok(id)) => Self::Upload(id),
                (_, Err(_)) => Self::Unknown,
            };
            return (repository, route);
        }
        if let Some((repository, digest)) = path.split_once("/blobs/") {
            return (repository, Self::Blob(digest));
        }
        if let Some((repository, digest)) = path.split_once("/referrers/") {
            return (repository, Self::Referrers(digest));
        }
        path.split_once("/manifests/")
            .map_or(("", Self::Unknown), |(repository, name)| (repository, Self::Manifest(name)))
    }
}

fn error(status: u16, code: &str, message: &str) -> Response {
    let body = serde_json::json!({ "errors": [{ "code": code, "message": message }] });
    Response::new(status).header("Content-Type", "application/json").with_body(body.to_string().into_bytes())
}

/// The answer to a request that may not be made.
fn refuse(state: &State, head: &Head, repository: &str) -> Option<Response> {
    let shown = head.header("authorization").unwrap_or_default();
    let action = if matches!(head.method.as_str(), "GET" | "HEAD") { "pull" } else { "push" };
    let challenge = match &state.auth {
        _ if state.challenge.is_some() => state.challenge.clone().unwrap_or_default(),
        Auth::Open => return None,
        Auth::Basic(user) if is_user(shown, user) => return None,
        Auth::Basic(_) => "Basic realm=\"test\"".to_owned(),
        Auth::Bearer { .. } => {
            let token = shown.strip_prefix("Bearer ").and_then(|token| state.tokens.get(token));
            if token.is_some_and(|scopes| repository.is_empty() || allows(scopes, repository, action)) {
                return None;
            }
            let realm = format!("Bearer realm=\"http://{}/token\",service=\"test\"", state.host);
            let scope = if action == "push" { "pull,push" } else { "pull" };
            let reason = if token.is_some() { ",error=\"insufficient_scope\"" } else { "" };
            match repository {
                "" => realm,
                repository => format!("{realm},scope=\"repository:{repository}:{scope}\"{reason}"),
            }
        }
    };
    Some(error(401, "UNAUTHORIZED", "authentication required").header("WWW-Authenticate", &challenge))
}

fn is_user(shown: &str, user: &User) -> bool {
    let expected = STANDARD.encode(format!("{}:{}", user.name, user.password));
    shown.strip_prefix("Basic ") == Some(expected.as_str())
}

fn allows(scopes: &[String], repository: &str, action: &str) -> bool {
    scopes.iter().any(|scope| {
        let mut parts = scope.splitn(2, ':').skip(1).flat_map(|rest| rest.rsplitn(2, ':'));
        let (actions, name) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        name == repository && actions.split(',').any(|known| known == action)
    })
}

fn token(state: &mut State, head: &Head, body: &[u8]) -> Response {
    let Auth::Bearer { user, anonymous_pull } = state.auth.clone() else {
        return error(404, "UNSUPPORTED", "no tokens here");
    };
    let form = String::from_utf8_lossy(body);
    let (is_known, wanted) = match head.method.as_str() {
        "POST" => {
            let shown = form_values(&form, "refresh_token");
            let scopes = form_values(&form, "scope")
                .iter()
                .flat_map(|all| all.split(' ').map(str::to_owned))
                .collect();
            (Some(shown == [format!("identity-of-{}", user.name)]), scopes)
        }
        _ => (head.header("authorization").map(|shown| is_user(shown, &user)), head.query_all("scope")),
    };
    let granted: Vec<String> = match is_known {
        Some(true) => wanted,
        Some(false) => {
            let body = br#"{"details":"incorrect username or password"}"#;
            return Response::new(401).with_body(body.to_vec());
        }
        None if anonymous_pull => wanted.iter().map(|scope| scope.replace("pull,push", "pull")).collect(),
        None => Vec::new(),
    };
    let token = format!("token-{}", state.next_number());
    let body = serde_json::json!({ "token": token, "expires_in": 300 });
    state.tokens.insert(token, granted);
    Response::new(200).with_body(body.to_string().into_bytes())
}

fn manifest(state: &mut State, head: &Head, body: &[u8], (repository, name): (&str, &str)) -> Response {
    if head.method == "PUT" {
        let kind = head.header("content-type").unwrap_or_default().to_owned();
        if let Some(missing) = missing_blob(state, repository, body) {
            return error(400, "MANIFEST_BLOB_UNKNOWN", &format!("blob unknown to registry: {missing}"));
        }
        let digest = state.put_manifest(repository, name, &kind, body.to_vec());
        let response = Response::new(201).header("Docker-Content-Digest", digest.as_str());
        return match subject(body).filter(|_| state.lists_referrers) {
            Some(subject) => response.header("OCI-Subject", &subject),
            None => response,
        };
    }
    let Some((kind, bytes)) = state.manifest(repository, name) else {
        return error(404, "MANIFEST_UNKNOWN", "manifest unknown");
    };
    let response = Response::new(200)
        .header("Content-Type", kind)
        .header("Docker-Content-Digest", Digest::sha256(bytes).as_str());
    response.with_body(bytes.clone())
}

/// What a manifest refers to.
fn subject(manifest: &[u8]) -> Option<String> {
    let manifest: serde_json::Value = serde_json::from_slice(manifest).ok()?;
    manifest["subject"]["digest"].as_str().map(str::to_owned)
}

/// One page holds one entry, so that whoever reads only the first does not find all.
fn referrers(state: &State, head: &Head, repository: &str, digest: &str) -> Response {
    if !state.lists_referrers {
        return error(404, "UNSUPPORTED", "no such page");
    }
    let refers = |(_, bytes): &(&str, &[u8])| subject(bytes).as_deref() == Some(digest);
    let all: Vec<_> = state.manifests(repository).into_iter().filter(refers).collect();
    let page: usize = head.query("page").and_then(|page| page.parse().ok()).unwrap_or(0);
    let entries = all.iter().skip(page).take(1).map(|(kind, bytes)| {
        let manifest: serde_json::Value = serde_json::from_slice(bytes).unwrap_or_default();
        serde_json::json!({
            "mediaType": kind, "digest": Digest::sha256(bytes), "size": bytes.len(),
            "artifactType": manifest["artifactType"],
        })
    });
    let entries: Vec<_> = entries.collect();
    let index = serde_json::json!({
        "schemaVersion": 2, "mediaType": stave_oci::media_type::OCI_INDEX, "manifests": entries,
    });
    let response = Response::new(200).header("Content-Type", stave_oci::media_type::OCI_INDEX);
    let response = response.with_body(index.to_string().into_bytes());
    if page + 1 >= all.len() {
        return response;
    }
    let next = format!("</v2/{repository}/referrers/{digest}?page={}>; rel=\"next\"", page + 1);
    response.header("Link", &next)
}

/// The first blob or manifest that a document needs and the repository lacks.
fn missing_blob(state: &State, repository: &str, document: &[u8]) -> Option<String> {
    let document: serde_json::Value = serde_json::from_slice(document).ok()?;
    let entries = |key: &str| document[key].as_array().cloned().unwrap_or_default();
    // As registries do that take such layers at all: whoever says where else one lies need not bring it.
    let is_elsewhere =
        |entry: &serde_json::Value| entry["urls"].as_array().is_some_and(|urls| !urls.is_empty());
    let layers = entries("layers").into_iter().filter(|entry| !is_elsewhere(entry));
    let blobs = layers.chain([document["config"].clone()]);
    let text = |entry: &serde_json::Value| entry["digest"].as_str().map(str::to_owned);
    let lacks_blob =
        |digest: &String| digest.parse().is_ok_and(|digest| state.blob(repository, &digest).is_none());
    let lacks_manifest = |digest: &String| state.manifest(repository, digest).is_none();
    let blob = blobs.filter_map(|entry| text(&entry)).find(lacks_blob);
    blob.or_else(|| entries("manifests").iter().filter_map(text).find(lacks_manifest))
}

fn blob(state: &State, head: &Head, repository: &str, digest: &str) -> Response {
    let found = digest.parse().ok().and_then(|digest| state.blob(repository, &digest));
    let Some(bytes) = found else { return error(404, "BLOB_UNKNOWN", "blob unknown to registry") };
    let response = |status| {
        let response = Response::new(status).header("Content-Type", "application/octet-stream");
        response.header("Docker-Content-Digest", digest)
    };
    let start =
        head.header("range").and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
    match start {
        None => response(200).with_body(bytes.to_vec()),
        Some(start) if start < bytes.len() => {
            let range = format!("bytes {start}-{}/{}", bytes.len() - 1, bytes.len());
            let part = bytes[start..].to_vec();
            response(206).header("Content-Range", &range).with_body(part)
        }
        Some(_) => error(416, "RANGE_INVALID", "range not satisfiable"),
    }
}

fn start_upload(state: &mut State, head: &Head, repository: &str) -> Response {
    if let (Some(digest), Some(from)) = (head.query("mount"), head.query("from")) {
        let found = digest.parse().ok().and_then(|digest| state.blob(&from, &digest)).map(<[u8]>::to_vec);
        if let Some(bytes) = found {
            state.put_blob(repository, bytes);
            return Response::new(201).header("Docker-Content-Digest", &digest);
        }
    }
    let id = state.next_number();
    state.uploads.insert(id, Vec::new());
    session(202, repository, id, 0)
}

fn upload(state: &mut State, head: &Head, body: &[u8], (repository, id): (&str, u64)) -> Response {
    if head.method == "DELETE" && state.uploads.remove(&id).is_some() {
        return Response::new(204);
    }
    let Some(received) = state.uploads.get_mut(&id) else {
        return error(404, "BLOB_UPLOAD_UNKNOWN", "blob upload unknown to registry");
    };
    let start = head.header("content-range").and_then(|range| range.split('-').next()?.parse().ok());
    if start.is_some_and(|start: usize| start != received.len()) {
        return session(416, repository, id, received.len());
    }
    if head.method == "GET" {
        return session(204, repository, id, received.len());
    }
    received.extend_from_slice(body);
    if head.method == "PATCH" {
        return session(202, repository, id, received.len());
    }
    let bytes = state.uploads.remove(&id).unwrap_or_default();
    let digest = Digest::sha256(&bytes);
    if head.query("digest").as_deref() != Some(digest.as_str()) {
        return error(400, "DIGEST_INVALID", "provided digest did not match uploaded content");
    }
    state.put_blob(repository, bytes);
    Response::new(201).header("Docker-Content-Digest", digest.as_str())
}

fn session(status: u16, repository: &str, id: u64, received: usize) -> Response {
    let last = received.saturating_sub(1);
    Response::new(status)
        .header("Location", &format!("/v2/{repository}/blobs/uploads/{id}?state=x"))
        .header("Range", &format!("0-{last}"))
}
