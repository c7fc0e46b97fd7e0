//! Build contexts that are not a directory of this machine, and the Dockerfiles in them.
//!
//! Owns finding out what the text that names a context is, fetching it, and reading the Dockerfile out of what
//! came: it has to be there before anything can be planned. The commit found here is the one that the build
//! uses, through [`Pins`]. Must not know flags. Start with [`Engine::open_remote`].

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use stave_frontend_dockerfile::input::{
    ARCHIVE_HEAD, ContextError, ContextForm, DOWNLOAD_NAME, download, is_archive,
};
use stave_frontend_dockerfile::{ContextSource, Includes, PlanRequest, Source, TooMuchIncluded};
use stave_llb::Definition;
use stave_llb::policy::SourcePolicies;
use stave_store::{Snapshot, StoreError};
use stave_worker::{Confinement, Extent, Pins, ReadError, Secret, Session, SshAgent};
use tokio_util::sync::CancellationToken;

use crate::event::{Observer, Steps};
use crate::{BuildError, Engine};

/// Bytes of the largest Dockerfile.
const MAX_DOCKERFILE: u64 = 16 << 20;

/// The Dockerfile that nobody names.
const DEFAULT_NAME: &str = "Dockerfile";

/// How many names of a context a message shows.
const SIMILAR_LIMIT: usize = 8;

/// What is to be fetched before a build can be planned.
#[derive(Debug, Clone)]
pub struct RemoteRequest {
    /// The build context: a repository, an archive or a Dockerfile behind http; `None` for one that is here.
    pub context: Option<String>,
    /// Where the Dockerfile is.
    pub dockerfile: DockerfileAt,
    /// The build's arguments: some say how a context is fetched.
    pub plan: PlanRequest,
    /// Secrets by id.
    pub secrets: BTreeMap<String, Secret>,
    /// ssh agents by id.
    pub ssh: BTreeMap<String, SshAgent>,
    /// Host keys that the owner of the build trusts, in the form of `known_hosts`.
    pub known_hosts: Option<String>,
    /// Rules about what the build may be made from.
    pub policy: SourcePolicies,
}

/// Where a Dockerfile is.
#[derive(Debug, Clone)]
pub enum DockerfileAt {
    /// In the fetched context, at this path or, without one, at the usual.
    Context(Option<String>),
    /// Behind http.
    Url(String),
    /// Here.
    Given(Source),
}

/// What was fetched.
#[derive(Debug, Clone)]
pub struct RemoteInput {
    /// The context, for [`PlanRequest::context`].
    pub context: ContextSource,
    /// The Dockerfile.
    pub dockerfile: Source,
    /// Which commit and which content that was, for [`crate::BuildRequest::pins`].
    pub pins: Pins,
}

/// Why a context could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum RemoteError {
    /// The text that names it makes no sense.
    #[error(transparent)]
    Form(#[from] ContextError),
    /// A text that names nothing remote.
    #[error("`{0}` names no remote build context")]
    NotRemote(String),
    /// It could not be fetched.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// It could not be read.
    #[error("failed to read downloaded context")]
    Read(#[from] ReadError),
    /// It has no such Dockerfile.
    #[error("failed to read dockerfile: open {}: no such file or directory", .path.display())]
    NoDockerfile {
        /// Where it was looked for.
        path: PathBuf,
        /// Files of the context whose names are close.
        similar: Vec<String>,
    },
    /// Its Dockerfile is not text.
    #[error("`{}` is not a Dockerfile: {problem}", .path.display())]
    NotText {
        /// The file.
        path: PathBuf,
        /// What it is instead.
        problem: &'static str,
    },
    /// Its included files are too much.
    #[error(transparent)]
    Includes(#[from] TooMuchIncluded),
    /// The state directory failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What fetching works with.
struct Fetching<'a> {
    engine: &'a Engine,
    session: Arc<Session>,
    steps: Steps,
    cancel: &'a CancellationToken,
    policy: &'a SourcePolicies,
}

impl Engine {
    /// Fetches a context that is not here, and reads the Dockerfile. What is fetched is in the cache when the build
    /// asks for it again.
    ///
    /// # Errors
    /// [`RemoteError`].
    pub async fn open_remote(
        &self,
        request: &RemoteRequest,
        observer: Observer,
        cancel: &CancellationToken,
    ) -> Result<RemoteInput, RemoteError> {
        let lease = self.worker.lease()?;
        let pins = Pins::default();
        let session = Session {
            context_modes: stave_worker::ContextModes::Kept,
            asks_for_tags: false,
            contexts: BTreeMap::new(),
            remote: None,
            layouts: BTreeMap::new(),
            ssh: request.ssh.clone(),
            known_hosts: request.known_hosts.clone(),
            pins: pins.clone(),
            secrets: request.secrets.clone(),
            registry: self.registry.clone(),
            resolved: BTreeMap::new(),
            confinement: Confinement::default(),
            namespace: stave_worker::Namespace::Shared,
            travel: None,
        };
        let (session, steps, policy) = (Arc::new(session), Steps::new(observer), &request.policy);
        let fetching = Fetching { engine: self, session, steps, cancel, policy };
        let context = match &request.context {
            Some(text) => fetching.context(text).await?,
            None => ContextSource::Local,
        };
        let dockerfile = match &request.dockerfile {
            DockerfileAt::Given(source) => {
                let plan = PlanRequest { context: context.clone(), ..request.plan.clone() };
                fetching.with_includes(source.clone(), &plan).await?
            }
            DockerfileAt::Url(url) => {
                let snapshot = fetching.solve(&download(url)).await?;
                let name = url.rsplit('/').next().filter(|name| !name.is_empty()).unwrap_or(DEFAULT_NAME);
                let text = fetching.text(&snapshot, Path::new(DOWNLOAD_NAME)).await?;
                let text = text.ok_or_else(|| no_dockerfile(DOWNLOAD_NAME))?;
                fetching.with_downloads(Source::new(name, text), url).await?
            }
            DockerfileAt::Context(file) => {
                let plan = PlanRequest { context: context.clone(), ..request.plan.clone() };
                fetching.dockerfile(&plan, file.as_deref()).await?
            }
        };
        drop(lease);
        Ok(RemoteInput { context, dockerfile, pins })
    }
}

impl Fetching<'_> {
    /// What the text is: for a download, what it turns out to hold.
    async fn context(&self, text: &str) -> Result<ContextSource, RemoteError> {
        match ContextForm::of(text)? {
            ContextForm::Path => Err(RemoteError::NotRemote(text.to_owned())),
            ContextForm::Git => Ok(ContextSource::Git(text.to_owned())),
            ContextForm::Download => {
                let snapshot = self.solve(&download(text)).await?;
                let extent = Extent::Head(ARCHIVE_HEAD as u64);
                let head = self.engine.worker.read_file(&snapshot, Path::new(DOWNLOAD_NAME), extent).await?;
                let url = text.to_owned();
                let found = is_archive(&head.unwrap_or_default());
                Ok(if found { ContextSource::Archive(url) } else { ContextSource::File(url) })
            }
        }
    }

    async fn dockerfile(&self, plan: &PlanRequest, file: Option<&str>) -> Result<Source, RemoteError> {
        let definition = plan.remote_context().map_err(ContextError::Git)?;
        let snapshot = match definition {
            Some(definition) => self.solve(&definition).await?,
            None => Snapshot::scratch(),
        };
        if matches!(plan.context, ContextSource::File(_)) {
            let text = self.text(&snapshot, Path::new(DOWNLOAD_NAME)).await?;
            return Ok(Source::new(DEFAULT_NAME, text.ok_or_else(|| no_dockerfile(DOWNLOAD_NAME))?));
        }
        let path = file.unwrap_or(DEFAULT_NAME);
        // BuildKit takes the usual name in lower case too.
        let lower = path.ends_with(DEFAULT_NAME).then(|| path.replace(DEFAULT_NAME, "dockerfile"));
        for path in [Some(path.to_owned()), lower].into_iter().flatten() {
            if let Some(text) = self.text(&snapshot, Path::new(&path)).await? {
                let name = Path::new(&path).file_name().unwrap_or_default();
                let folder = Path::new(&path).parent().unwrap_or(Path::new(""));
                return self.included(Source::new(name.to_string_lossy(), text), &snapshot, folder).await;
            }
        }
        let folder = Path::new(path).parent().unwrap_or(Path::new(""));
        let names = self.engine.worker.list(&snapshot, folder).await?.into_iter();
        let similar = names.filter(|name| {
            let lower = name.to_ascii_lowercase();
            (lower.contains("dockerfile") || lower.contains("containerfile")) && !lower.ends_with("ignore")
        });
        Err(RemoteError::NoDockerfile { path: path.into(), similar: similar.take(SIMILAR_LIMIT).collect() })
    }

    /// With the files that the source includes, out of the context.
    async fn with_includes(&self, source: Source, plan: &PlanRequest) -> Result<Source, RemoteError> {
        if Includes::new(source.clone()).wanted().is_empty() || matches!(plan.context, ContextSource::File(_))
        {
            return Ok(source);
        }
        let definition = plan.remote_context().map_err(ContextError::Git)?;
        let Some(definition) = definition else { return Ok(source) };
        let snapshot = self.solve(&definition).await?;
        self.included(source, &snapshot, Path::new("")).await
    }

    /// With the files that the source includes, out of a folder of `snapshot`, whose links lead nowhere else.
    async fn included(
        &self,
        source: Source,
        snapshot: &Snapshot,
        folder: &Path,
    ) -> Result<Source, RemoteError> {
        let mut includes = Includes::new(source);
        loop {
            let wanted = includes.wanted();
            if wanted.is_empty() {
                return Ok(includes.finish());
            }
            for path in wanted {
                if let Some(text) = self.text(snapshot, &folder.join(&path)).await? {
                    includes.add(path, &text)?;
                }
            }
        }
    }

    /// With the files that the source includes, from beside its address.
    async fn with_downloads(&self, source: Source, url: &str) -> Result<Source, RemoteError> {
        let mut includes = Includes::new(source);
        let address = url.split(['?', '#']).next().unwrap_or(url);
        let folder = address.rsplit_once('/').map_or(address, |(folder, _)| folder);
        loop {
            let wanted = includes.wanted();
            if wanted.is_empty() {
                return Ok(includes.finish());
            }
            for path in wanted {
                let snapshot = self.solve(&download(&format!("{folder}/{path}"))).await?;
                if let Some(text) = self.text(&snapshot, Path::new(DOWNLOAD_NAME)).await? {
                    includes.add(path, &text)?;
                }
            }
        }
    }

    async fn solve(&self, definition: &Definition) -> Result<Snapshot, BuildError> {
        let definition = &self.policy.apply(definition)?;
        let solved = self.engine.solve(definition, Arc::clone(&self.session), &self.steps, self.cancel).await;
        solved.map(|(snapshot, _)| snapshot)
    }

    async fn text(&self, snapshot: &Snapshot, path: &Path) -> Result<Option<String>, RemoteError> {
        let not_text = |problem| RemoteError::NotText { path: path.to_owned(), problem };
        let bytes = match self.engine.worker.read_file(snapshot, path, Extent::Whole(MAX_DOCKERFILE)).await {
            Err(ReadError::TooLarge { .. }) => return Err(not_text("it is larger than 16 MiB")),
            read => read?,
        };
        let Some(bytes) = bytes else { return Ok(None) };
        if bytes.contains(&0) {
            return Err(not_text("it contains NUL bytes"));
        }
        String::from_utf8(bytes).map(Some).map_err(|_| not_text("it is not valid UTF-8"))
    }
}

fn no_dockerfile(path: &str) -> RemoteError {
    RemoteError::NoDockerfile { path: path.into(), similar: Vec::new() }
}
