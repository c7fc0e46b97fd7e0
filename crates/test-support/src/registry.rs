//! An in-process registry: real distribution behaviour over loopback, with scripted misbehaviour.
//!
//! Owns [`TestRegistry`]: blobs, resumable uploads, mounts, manifests, tags, ranges, basic auth, and bearer auth with
//! its own token service. It runs on threads of its own, so it serves blocking and async tests alike, and ends when
//! dropped. Faults are handed out one by one, in the order scripted, to the requests they match.

mod http;
mod routes;
mod state;
mod tls;

use std::io::Read as _;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use rustls::{ServerConfig, ServerConnection, StreamOwned};
use stave_oci::{Descriptor, Digest, Reference, media_type};

use http::{Head, Response, Stream};
use state::State;
pub use tls::Tls;

/// Who is let in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Auth {
    /// Everybody.
    Open,
    /// Who shows this name and password with every request.
    Basic(User),
    /// Who shows a token; the service at `/token` gives them to this user.
    Bearer {
        /// Who gets tokens for everything.
        user: User,
        /// Whether anybody gets tokens for reading.
        anonymous_pull: bool,
    },
}

/// A name and password; for bearer auth also the identity token `identity-of-<name>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// The name.
    pub name: String,
    /// The password.
    pub password: String,
}

impl User {
    /// A user.
    pub fn new(name: &str, password: &str) -> Self {
        Self { name: name.to_owned(), password: password.to_owned() }
    }
}

/// One thing to go wrong, once.
#[derive(Debug, Clone)]
pub struct Fault {
    /// The method of the request it is for.
    pub method: &'static str,
    /// A part of its path and query.
    pub path: String,
    /// What goes wrong.
    pub misbehaviour: Misbehaviour,
}

/// What goes wrong.
#[derive(Debug, Clone)]
pub enum Misbehaviour {
    /// Another status, with a `Retry-After` in seconds and a body.
    Status(u16, Option<u64>, String),
    /// Another status, with these headers and no body.
    StatusWith(u16, Vec<(&'static str, String)>),
    /// The connection breaks after this many bytes of the answer's body, or of the request's if it has one.
    CutAfter(usize),
    /// The connection breaks before any answer.
    Drop,
    /// No answer at all, nothing done, and the connection stays open.
    Hang,
    /// The answer stops after this many bytes of its body, and the connection stays open.
    StallAfter(usize),
    /// Other bytes of the same length.
    OtherBytes,
    /// The answer's body ends after this many bytes, and its headers say so.
    Short(usize),
    /// The body goes on for ever.
    Endless,
    /// A redirect (307) to an address.
    Redirect(String),
    /// Every token given out expires just before this request.
    ExpireTokens,
    /// Another `Content-Type`.
    ContentType(String),
    /// A header more, or another value for one.
    Header(&'static str, String),
}

/// A request as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recorded {
    /// `GET`, …
    pub method: String,
    /// Path and query.
    pub path: String,
    /// The `Authorization` header.
    pub authorization: Option<String>,
    /// The `Range` header.
    pub range: Option<String>,
    /// Bytes of body announced.
    pub length: u64,
    /// The `If-Match` header.
    pub condition: Option<String>,
}

/// An image put into the registry.
#[derive(Debug, Clone)]
pub struct PlacedImage {
    /// The manifest's descriptor.
    pub manifest: Descriptor,
    /// The config's descriptor.
    pub config: Descriptor,
    /// The layers' descriptors.
    pub layers: Vec<Descriptor>,
}

/// A registry on a port of its own.
#[derive(Debug)]
pub struct TestRegistry {
    address: SocketAddr,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    tls: Option<Arc<ServerConfig>>,
    /// Open connections, so that dropping the registry ends their threads.
    open: Mutex<Vec<TcpStream>>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl TestRegistry {
    /// Starts an empty registry open to everybody.
    ///
    /// # Panics
    /// When loopback has no port left.
    pub fn start() -> Self {
        Self::listen(None)
    }

    /// Starts an empty registry on https, open to everybody.
    ///
    /// # Panics
    /// When the files do not hold what they should.
    pub fn start_tls(tls: Tls<'_>) -> Self {
        Self::listen(Some(tls.config()))
    }

    fn listen(tls: Option<Arc<ServerConfig>>) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback has a free port");
        let address = listener.local_addr().expect("a bound socket has an address");
        let shared = Arc::new(Shared { tls, ..Shared::default() });
        shared.state().host = address.to_string();
        let acceptor = thread::spawn({
            let shared = Arc::clone(&shared);
            move || accept(&listener, &shared)
        });
        Self { address, shared, acceptor: Some(acceptor) }
    }

    /// Starts an empty registry that lets in who `auth` says.
    pub fn with_auth(auth: Auth) -> Self {
        let registry = Self::start();
        registry.shared.state().auth = auth;
        registry
    }

    /// `127.0.0.1:<port>`.
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// A reference into this registry: `app:1.0` becomes `127.0.0.1:<port>/app:1.0`.
    ///
    /// # Panics
    /// When `name` is no name.
    pub fn reference(&self, name: &str) -> Reference {
        format!("{}/{name}", self.address).parse().expect("the name is a reference")
    }

    /// Puts a blob into a repository.
    pub fn put_blob(&self, repository: &str, bytes: &[u8]) -> Digest {
        self.shared.state().put_blob(repository, bytes.to_vec())
    }

    /// Puts a manifest or index into a repository, under `tag` and its digest.
    pub fn put_manifest(&self, repository: &str, tag: &str, media_type: &str, bytes: &[u8]) -> Digest {
        self.shared.state().put_manifest(repository, tag, media_type, bytes.to_vec())
    }

    /// Puts an image with a config and layers of these bytes into a repository.
    ///
    /// # Panics
    /// Never: descriptors have a JSON form.
    pub fn put_image(&self, repository: &str, tag: &str, config: &[u8], layers: &[&[u8]]) -> PlacedImage {
        let place = |kind: &str, bytes: &[u8]| {
            self.put_blob(repository, bytes);
            Descriptor::of(kind, bytes)
        };
        let config = place(media_type::OCI_CONFIG, config);
        let layers: Vec<Descriptor> =
            layers.iter().map(|bytes| place(media_type::OCI_LAYER_GZIP, bytes)).collect();
        let manifest = serde_json::json!({
            "schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST, "config": config, "layers": layers,
        });
        let bytes = serde_json::to_vec(&manifest).expect("a manifest has a JSON form");
        self.put_manifest(repository, tag, media_type::OCI_MANIFEST, &bytes);
        PlacedImage { manifest: Descriptor::of(media_type::OCI_MANIFEST, &bytes), config, layers }
    }

    /// The bytes of a blob, if the repository holds it.
    pub fn blob(&self, repository: &str, digest: &Digest) -> Option<Vec<u8>> {
        self.shared.state().blob(repository, digest).map(<[u8]>::to_vec)
    }

    /// Media type and bytes of a manifest by tag or digest.
    pub fn manifest(&self, repository: &str, name: &str) -> Option<(String, Vec<u8>)> {
        self.shared.state().manifest(repository, name).cloned()
    }

    /// Adds a fault for the next request that it matches.
    pub fn script(&self, method: &'static str, path: &str, misbehaviour: Misbehaviour) {
        self.shared.state().faults.push(Fault { method, path: path.to_owned(), misbehaviour });
    }

    /// How many scripted faults have not happened.
    pub fn faults_left(&self) -> usize {
        self.shared.state().faults.len()
    }

    /// Answers every request from now on with 401 and this challenge.
    pub fn refuse_with(&self, challenge: &str) {
        self.shared.state().challenge = Some(challenge.to_owned());
    }

    /// Lists from now on what refers to a manifest, as registries of version 1.1 do.
    pub fn list_referrers(&self) {
        self.shared.state().lists_referrers = true;
    }

    /// Makes every token given out so far worthless.
    pub fn revoke_tokens(&self) {
        self.shared.state().tokens.clear();
    }

    /// What has been asked so far, in order.
    pub fn requests(&self) -> Vec<Recorded> {
        self.shared.state().requests.clone()
    }

    /// How many requests with a method whose path contains `path` have come.
    pub fn count(&self, method: &str, path: &str) -> usize {
        let matches = |request: &&Recorded| request.method == method && request.path.contains(path);
        self.shared.state().requests.iter().filter(matches).count()
    }
}

impl Drop for TestRegistry {
    fn drop(&mut self) {
        self.shared.state().is_closing = true;
        // Accepting ends at the next connection.
        drop(TcpStream::connect(self.address));
        if let Some(acceptor) = self.acceptor.take() {
            drop(acceptor.join());
        }
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    let mut serving = Vec::new();
    for stream in listener.incoming() {
        if shared.state().is_closing {
            break;
        }
        let Ok(stream) = stream else { continue };
        let Ok(handle) = stream.try_clone() else { continue };
        shared.open.lock().unwrap_or_else(PoisonError::into_inner).push(handle);
        let shared = Arc::clone(shared);
        serving.push(thread::spawn(move || drop(serve(stream, &shared))));
    }
    for stream in shared.open.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
        drop(stream.shutdown(Shutdown::Both));
    }
    for thread in serving {
        drop(thread.join());
    }
}

fn serve(stream: TcpStream, shared: &Shared) -> std::io::Result<()> {
    // Else the second half of an answer waits for the first to be acknowledged.
    stream.set_nodelay(true)?;
    let stream = match &shared.tls {
        None => Stream::Plain(stream),
        Some(config) => {
            let connection = ServerConnection::new(Arc::clone(config)).map_err(std::io::Error::other)?;
            Stream::Tls(Box::new(StreamOwned::new(connection, stream)))
        }
    };
    let mut connection = http::Connection::new(stream);
    while let Some(head) = connection.read_head()? {
        let misbehaviour = shared.state().record(&head);
        if let (Some(Misbehaviour::CutAfter(count)), true) = (&misbehaviour, head.has_body()) {
            let part = connection.read_body(&head, *count)?;
            shared.state().keep_partial(&head, &part);
            return connection.close();
        }
        let body = connection.read_body(&head, usize::MAX)?;
        if let Some(Misbehaviour::ExpireTokens) = misbehaviour {
            shared.state().tokens.clear();
        }
        // A request that fails or is sent elsewhere has not done its work.
        let is_replaced = matches!(
            misbehaviour,
            Some(
                Misbehaviour::Status(..)
                    | Misbehaviour::StatusWith(..)
                    | Misbehaviour::Redirect(_)
                    | Misbehaviour::Hang
            )
        );
        let response = match is_replaced {
            true => Response::new(500),
            false => routes::respond(&mut shared.state(), &head, &body),
        };
        if !send(&mut connection, &head, response, misbehaviour)? {
            return Ok(());
        }
    }
    Ok(())
}

/// Sends an answer as it is, or as it misbehaves; `false` if the connection is over.
fn send(
    connection: &mut http::Connection,
    head: &Head,
    response: Response,
    misbehaviour: Option<Misbehaviour>,
) -> std::io::Result<bool> {
    let is_head = head.method == "HEAD";
    let response = match misbehaviour {
        None | Some(Misbehaviour::ExpireTokens) => response,
        Some(Misbehaviour::Status(code, retry_after, body)) => {
            let other =
                Response::new(code).header("Content-Type", "application/json").with_body(body.into_bytes());
            match retry_after {
                Some(seconds) => other.header("Retry-After", &seconds.to_string()),
                None => other,
            }
        }
        Some(Misbehaviour::StatusWith(code, headers)) => {
            headers.iter().fold(Response::new(code), |response, (name, value)| response.header(name, value))
        }
        Some(Misbehaviour::Redirect(to)) => Response::new(307).header("Location", &to),
        Some(Misbehaviour::ContentType(kind)) => response.header("Content-Type", &kind),
        Some(Misbehaviour::Header(name, value)) => response.header(name, &value),
        Some(Misbehaviour::OtherBytes) => {
            let body = response.body.iter().map(|byte| byte ^ 1).collect();
            response.with_body(body)
        }
        Some(Misbehaviour::Short(count)) => {
            let body = response.body[..count.min(response.body.len())].to_vec();
            response.with_body(body)
        }
        Some(Misbehaviour::Endless) => {
            connection.write_endless(&response)?;
            return Ok(false);
        }
        Some(Misbehaviour::Drop) => {
            connection.close()?;
            return Ok(false);
        }
        Some(Misbehaviour::CutAfter(count)) => {
            connection.write_part(&response, count)?;
            connection.close()?;
            return Ok(false);
        }
        Some(silence @ (Misbehaviour::Hang | Misbehaviour::StallAfter(_))) => {
            if let Misbehaviour::StallAfter(count) = silence {
                connection.write_part(&response, count)?;
            }
            // Waits for the other side to give up, or for the registry's end.
            let mut rest = [0; 64];
            while connection.stream().read(&mut rest)? > 0 {}
            return Ok(false);
        }
    };
    connection.write(&response, is_head)?;
    Ok(true)
}
