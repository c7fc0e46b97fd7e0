//! Another engine's image API: docker's, which podman's service speaks, too.
//!
//! Owns the few requests that sending an image takes, each bounded, over a Unix socket or plain TCP. Must not know
//! what is sent, nor where an engine's address comes from. Start with [`Api`].

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use bytes::Bytes;
use futures::stream;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Empty, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use stave_oci::{Digest, Reference};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::mpsc;

/// The API version asked for: docker 18.09's, which engines of today still speak.
const VERSION: &str = "v1.39";
/// The longest an engine may take to answer a question.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// The largest answer read, in bytes.
const MAX_ANSWER: usize = 16 << 20;
/// The longest message of an engine's that is repeated, in characters.
const MAX_MESSAGE: usize = 300;
/// The most images of an engine's that are looked at.
const MAX_IMAGES_ASKED: usize = 512;

/// Where an engine listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EngineAddress {
    /// `unix:///var/run/docker.sock`
    Unix(PathBuf),
    /// `tcp://127.0.0.1:2375`, in the clear.
    Tcp(String),
}

/// Text that is no address of an engine, or one that is not spoken to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not the address of an engine: expected `unix:///PATH` or `tcp://HOST:PORT` (without TLS)")]
pub struct EngineAddressError(pub String);

impl FromStr for EngineAddress {
    type Err = EngineAddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || EngineAddressError(text.chars().take(MAX_MESSAGE).collect());
        match text.split_once("://") {
            Some(("unix", path)) if path.starts_with('/') => Ok(Self::Unix(path.into())),
            Some(("tcp" | "http", host)) => {
                let host = host.trim_end_matches('/');
                let is_host = !host.contains(['/', '@', '?', '#']) && !host.is_empty();
                let has_port = host.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
                if is_host && has_port { Ok(Self::Tcp(host.to_owned())) } else { Err(wrong()) }
            }
            _ => Err(wrong()),
        }
    }
}

impl fmt::Display for EngineAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Tcp(host) => write!(f, "tcp://{host}"),
        }
    }
}

/// What happened between us and an engine.
#[derive(Debug, thiserror::Error)]
pub enum EngineFault {
    /// Nobody listens there.
    #[error("cannot connect")]
    Connect(#[source] io::Error),
    /// The connection broke, or what came is no HTTP.
    #[error("connection broke")]
    Broken(#[source] hyper::Error),
    /// No answer in time.
    #[error("no answer in {} s", .0.as_secs())]
    Timeout(Duration),
    /// An answer that is no success.
    #[error("{status}{}", says(.message))]
    Status {
        /// The status line.
        status: StatusCode,
        /// What the engine said; may be empty.
        message: String,
    },
    /// It failed while it read the image.
    #[error("it says: {0}")]
    Refused(String),
    /// An answer over the limit.
    #[error("answer is over the limit of {0} bytes")]
    TooLarge(usize),
    /// An answer that is not what the API says.
    #[error("malformed answer")]
    Json(#[source] serde_json::Error),
    /// It took the archive, and does not have the image.
    #[error("it took the image `{0}` and does not have it")]
    NotTaken(Digest),
}

fn says(message: &str) -> String {
    if message.is_empty() { String::new() } else { format!(": {message}") }
}

/// Bytes on their way, or why there are no more.
pub(crate) type Pieces = mpsc::Receiver<io::Result<Bytes>>;

type Body = BoxBody<Bytes, io::Error>;

/// An engine.
#[derive(Debug, Clone)]
pub(crate) struct Api {
    address: EngineAddress,
}

/// How an engine keeps images.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keeping {
    /// As layers by their diff ids: an archive may leave out those that are there.
    Layers,
    /// As content by digest (containerd's store): what an archive leaves out is missing afterwards.
    Content,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Info {
    #[serde(default)]
    driver_status: Option<Vec<Vec<String>>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Listed {
    id: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Inspected {
    #[serde(rename = "RootFS", default)]
    root_fs: RootFs,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RootFs {
    #[serde(default)]
    layers: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct Said {
    #[serde(default)]
    message: Option<String>,
    #[serde(default)]
    cause: Option<String>,
    #[serde(default)]
    error: Option<String>,
}

impl Api {
    pub(crate) fn new(address: EngineAddress) -> Self {
        Self { address }
    }

    /// How the engine keeps images.
    pub(crate) async fn keeping(&self) -> Result<Keeping, EngineFault> {
        let info: Option<Info> = self.get("info").await?;
        let status = info.and_then(|info| info.driver_status).unwrap_or_default();
        let is_content = status.iter().flatten().any(|text| text.starts_with("io.containerd.snapshotter"));
        Ok(if is_content { Keeping::Content } else { Keeping::Layers })
    }

    /// Whether the engine has an image by this id.
    pub(crate) async fn has(&self, id: &Digest) -> Result<bool, EngineFault> {
        let found: Option<serde::de::IgnoredAny> = self.get(&format!("images/{id}/json")).await?;
        Ok(found.is_some())
    }

    /// How many of the lowest of `layers` the engine has in this order, as those of its images.
    pub(crate) async fn common_layers(&self, layers: &[Digest]) -> Result<usize, EngineFault> {
        let listed: Vec<Listed> = self.get("images/json?all=1").await?.unwrap_or_default();
        let mut common = 0;
        for image in listed.iter().take(MAX_IMAGES_ASKED) {
            if common == layers.len() {
                break;
            }
            let Ok(id) = image.id.parse::<Digest>() else { continue };
            // One that is gone by now has nothing to give.
            let inspected: Option<Inspected> = self.get(&format!("images/{id}/json")).await?;
            let theirs = inspected.and_then(|image| image.root_fs.layers).unwrap_or_default();
            let same = theirs.iter().zip(layers).take_while(|(theirs, ours)| *theirs == ours.as_str());
            common = common.max(same.count());
        }
        Ok(common)
    }

    /// Gives an image another name.
    pub(crate) async fn tag(&self, id: &Digest, name: &Reference) -> Result<(), EngineFault> {
        let (repository, tag) = (name.name(), name.tag().unwrap_or("latest"));
        let path = format!("images/{id}/tag?repo={}&tag={tag}", repository.replace(':', "%3A"));
        let answer = self.send(Method::POST, &path, None).await?;
        if answer.status().is_success() { Ok(()) } else { Err(fault(answer).await) }
    }

    /// Sends an archive of images. It ends once the engine has read them all.
    pub(crate) async fn load(&self, archive: Pieces) -> Result<(), EngineFault> {
        let answer = self.send(Method::POST, "images/load?quiet=1", Some(archive)).await?;
        if !answer.status().is_success() {
            return Err(fault(answer).await);
        }
        let bytes = bounded(answer).await?;
        // One object after another; an error comes as one of them.
        for said in serde_json::Deserializer::from_slice(&bytes).into_iter::<Said>() {
            if let Some(error) = said.map_err(EngineFault::Json)?.error {
                return Err(EngineFault::Refused(clean(&error)));
            }
        }
        Ok(())
    }

    /// What is at a path; `None` if nothing is.
    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<Option<T>, EngineFault> {
        let asked = async {
            let answer = self.send(Method::GET, path, None).await?;
            match answer.status() {
                StatusCode::NOT_FOUND => Ok(None),
                status if status.is_success() => {
                    let bytes = bounded(answer).await?;
                    serde_json::from_slice(&bytes).map(Some).map_err(EngineFault::Json)
                }
                _ => Err(fault(answer).await),
            }
        };
        let timed_out = |_| EngineFault::Timeout(ANSWER_TIMEOUT);
        tokio::time::timeout(ANSWER_TIMEOUT, asked).await.map_err(timed_out)?
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        archive: Option<Pieces>,
    ) -> Result<Response<Incoming>, EngineFault> {
        match &self.address {
            EngineAddress::Unix(path_of) => {
                let stream = UnixStream::connect(path_of).await.map_err(EngineFault::Connect)?;
                exchange(stream, request(method, path, "docker", archive)).await
            }
            EngineAddress::Tcp(host) => {
                let stream = TcpStream::connect(host).await.map_err(EngineFault::Connect)?;
                exchange(stream, request(method, path, host, archive)).await
            }
        }
    }
}

fn request(method: Method, path: &str, host: &str, archive: Option<Pieces>) -> Request<Body> {
    let body = match archive {
        None => Empty::new().map_err(|never| match never {}).boxed(),
        Some(pieces) => {
            let frames = stream::unfold(pieces, async |mut pieces| {
                let piece = pieces.recv().await?;
                Some((piece.map(Frame::data), pieces))
            });
            BoxBody::new(StreamBody::new(frames))
        }
    };
    let mut request = Request::new(body);
    *request.method_mut() = method;
    // Paths are made of digests, names and words of ours: they always parse.
    *request.uri_mut() = format!("/{VERSION}/{path}").parse().unwrap_or_default();
    let headers = request.headers_mut();
    headers.extend(host.parse().ok().map(|host| (HOST, host)));
    headers.insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static("application/x-tar"));
    request
}

/// One request on a connection of its own, which ends with the answer.
async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<Body>,
) -> Result<Response<Incoming>, EngineFault> {
    let made = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = made.map_err(EngineFault::Broken)?;
    // Ends with the body of the answer, or when the sender is dropped before there is one.
    tokio::spawn(connection);
    sender.send_request(request).await.map_err(EngineFault::Broken)
}

async fn bounded(answer: Response<Incoming>) -> Result<Vec<u8>, EngineFault> {
    let mut body = answer.into_body();
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(EngineFault::Broken)?.into_data() else { continue };
        if bytes.len() + data.len() > MAX_ANSWER {
            return Err(EngineFault::TooLarge(MAX_ANSWER));
        }
        bytes.extend_from_slice(&data);
    }
    Ok(bytes)
}

async fn fault(answer: Response<Incoming>) -> EngineFault {
    let status = answer.status();
    let body = bounded(answer).await.unwrap_or_default();
    let said: Option<Said> = serde_json::from_slice(&body).ok();
    let message = said.and_then(|said| said.message.or(said.cause).or(said.error)).unwrap_or_default();
    EngineFault::Status { status, message: clean(&message) }
}

/// Text of an engine's that goes to a terminal: one bounded line without control characters.
fn clean(text: &str) -> String {
    let one_line = text.trim().chars().map(|letter| if letter.is_whitespace() { ' ' } else { letter });
    one_line.filter(|letter| !letter.is_control()).take(MAX_MESSAGE).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_engines() {
        let address = |text: &str| text.parse::<EngineAddress>().map(|address| address.to_string()).ok();
        for text in ["unix:///var/run/docker.sock", "tcp://127.0.0.1:2375", "tcp://[::1]:2375"] {
            assert_eq!(address(text).as_deref(), Some(text));
        }
        for text in [
            "",
            "unix://x",
            "tcp://host",
            "tcp://u@h:1",
            "ssh://host",
            "tcp://h:1/x",
            "/run/x",
            "npipe:////x",
        ] {
            assert_eq!(address(text), None, "{text}");
        }
    }
}
