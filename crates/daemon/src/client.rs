//! A client of BuildKit's API: what drives a daemon elsewhere, this program's or the reference's.
//!
//! Owns the other end of what the rest of the crate serves: the connection, the session in which files, credentials,
//! secrets and agents of this machine are given, one `Solve`, and its progress as events of the engine. Must not know
//! flags. Whatever a daemon sends is taken for hostile: it gets what was offered, and its files go where they were
//! asked for. Start with [`Builder::build`].

mod connect;
mod inside;
mod outputs;
mod services;
mod session;
mod status;

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bollard_buildkit_proto::moby::buildkit::v1::control_client::ControlClient;
use bollard_buildkit_proto::moby::buildkit::v1::{
    CacheOptions, CacheOptionsEntry, Exporter, SolveRequest, StatusRequest,
};
use stave_engine::Observer;
use stave_llb::policy::RuleSpec;
use stave_registry::Keychain;
use stave_worker::{Secret, SshAgent};
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::transport::Channel;

pub use self::connect::{ClientTls, ConnectError, DaemonAddress};
pub use self::outputs::Sink;
use crate::build::random_id;

/// The longest message of a daemon.
const MAX_MESSAGE: usize = 128 << 20;

/// A build as a daemon is asked for it, and what of this machine it may use.
#[derive(Debug, Clone, Default)]
pub struct RemoteBuild {
    /// The front end (`dockerfile.v0`).
    pub frontend: String,
    /// Its options.
    pub attributes: BTreeMap<String, String>,
    /// Directories by the names that the front end asks for.
    pub directories: BTreeMap<String, PathBuf>,
    /// What the build may take from [`UPLOAD`] instead of a directory.
    pub upload: Option<Arc<Vec<u8>>>,
    /// Secrets by id.
    pub secrets: BTreeMap<String, Secret>,
    /// Agents by id.
    pub ssh: BTreeMap<String, SshAgent>,
    /// Credentials of registries.
    pub keychain: Keychain,
    /// What the build wants to be granted.
    pub entitlements: Vec<String>,
    /// Where the result goes.
    pub exports: Vec<RemoteExport>,
    /// Rules about what the build may be made from.
    pub policy: Vec<RuleSpec>,
    /// Caches to be read.
    pub cache_from: Vec<(String, BTreeMap<String, String>)>,
    /// Caches to be written.
    pub cache_to: Vec<(String, BTreeMap<String, String>)>,
}

/// One place where the result goes.
#[derive(Debug, Clone)]
pub struct RemoteExport {
    /// The exporter (`image`, `local`, `tar`, `oci`, `docker`).
    pub kind: String,
    /// Its options.
    pub attributes: BTreeMap<String, String>,
    /// Where what comes back is put.
    pub sink: Sink,
}

/// How long the answer may stay out once the daemon has ended the session.
const LAST_WORD: Duration = Duration::from_secs(5);
/// The option `context` of a build whose context is uploaded.
pub const UPLOAD: &str = "http://buildkit-session/context";

/// Why a build elsewhere failed.
#[derive(Debug, thiserror::Error)]
pub enum RemoteError {
    /// There is no daemon.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// What the daemon said.
    #[error("{message}")]
    Build {
        /// In its own words.
        message: String,
        /// The place in the Dockerfile, if it told one: the file's name, its text, first and last line from 1.
        place: Option<Box<RemotePlace>>,
    },
    /// It was stopped here.
    #[error("the build was cancelled")]
    Cancelled,
}

/// A place in a file of the build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemotePlace {
    /// The file's name.
    pub name: String,
    /// Its text.
    pub text: String,
    /// First and last line, from 1.
    pub lines: (usize, usize),
}

/// A daemon that builds.
#[derive(Debug, Clone)]
pub struct Builder {
    channel: Channel,
}

impl Builder {
    /// Connects to a daemon.
    ///
    /// # Errors
    /// [`ConnectError`].
    pub async fn connect(address: &DaemonAddress, tls: Option<ClientTls>) -> Result<Self, ConnectError> {
        Ok(Self { channel: connect::connect(address, tls).await? })
    }

    /// Builds. Returns what the exporters told. When `cancel` fires, the build is given up.
    ///
    /// # Errors
    /// [`RemoteError`].
    pub async fn build(
        &self,
        build: RemoteBuild,
        observer: &Observer,
        cancel: &CancellationToken,
    ) -> Result<BTreeMap<String, String>, RemoteError> {
        let (session, reference) = (random_id(), random_id());
        let control = ControlClient::new(self.channel.clone())
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE);
        let request = request(&build, &session, &reference);
        let over = CancellationToken::new();
        let _end = over.clone().drop_guard();
        let serving = session::open(control.clone(), &session, Arc::new(build), &over);
        let watching = async {
            let mut updates =
                control.clone().status(StatusRequest { r#ref: reference.clone() }).await?.into_inner();
            let mut translation = status::Translation::default();
            while let Some(update) = updates.message().await? {
                for event in translation.take(update) {
                    observer.send(event);
                }
            }
            Ok::<_, Status>(())
        };
        let solving = async {
            let mut control = control.clone();
            control.solve(request).await
        };
        let whole = async {
            let (solved, watched) = tokio::join!(solving, watching);
            if let Err(status) = watched {
                tracing::debug!(%status, "progress was not told to its end");
            }
            solved
        };
        tokio::pin!(whole);
        let solved = tokio::select! {
            solved = &mut whole => solved,
            // A session that fails tells why, if it never began. One that ends well does so because the build has.
            ended = serving => match ended {
                Err(status) => Err(status),
                Ok(()) => tokio::time::timeout(LAST_WORD, whole)
                    .await
                    .unwrap_or_else(|_| Err(Status::unavailable("the daemon ended the session"))),
            },
            () = cancel.cancelled() => return Err(RemoteError::Cancelled),
        };
        match solved {
            Ok(answer) => Ok(answer.into_inner().exporter_response.into_iter().collect()),
            Err(status) => Err(failure(&status)),
        }
    }
}

fn request(build: &RemoteBuild, session: &str, reference: &str) -> SolveRequest {
    let entry = |(kind, attrs): &(String, BTreeMap<String, String>)| CacheOptionsEntry {
        r#type: kind.clone(),
        attrs: map(attrs),
    };
    let export =
        |export: &RemoteExport| Exporter { r#type: export.kind.clone(), attrs: map(&export.attributes) };
    SolveRequest {
        r#ref: reference.to_owned(),
        session: session.to_owned(),
        frontend: build.frontend.clone(),
        frontend_attrs: map(&build.attributes),
        entitlements: build.entitlements.clone(),
        source_policy: (!build.policy.is_empty()).then(|| crate::policy::to_message(&build.policy)),
        exporters: build.exports.iter().map(export).collect(),
        cache: Some(CacheOptions {
            imports: build.cache_from.iter().map(entry).collect(),
            exports: build.cache_to.iter().map(entry).collect(),
            ..CacheOptions::default()
        }),
        ..SolveRequest::default()
    }
}

fn map(values: &BTreeMap<String, String>) -> HashMap<String, String> {
    values.clone().into_iter().collect()
}

/// What a daemon said went wrong, with the place it named; or what is wrong with the connection.
fn failure(status: &Status) -> RemoteError {
    let message = match std::error::Error::source(status) {
        Some(cause) => format!("{}: {}", status.message(), crate::failure::one_line(cause)),
        None => status.message().to_owned(),
    };
    RemoteError::Build { message, place: status::place(status).map(Box::new) }
}
