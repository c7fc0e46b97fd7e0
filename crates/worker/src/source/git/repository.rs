//! The repository of this machine that a remote is fetched into: it stays, so that only what is new travels.
//! Owns its life and the order in which a commit is asked for. Must not know files. Read [`Repository::bring`] first.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use stave_solver::JobContext;
use stave_store::{MutableDir, Sharing};

use super::cli::{Git, Place, RunError};
use super::error::GitError;
use super::remote::Remote;
use super::{GitPin, is_commit};
use crate::namespace::REPOSITORY;
use crate::root::At as _;
use crate::session::Session;
use crate::source::SourceError;
use crate::source::image::blocking;
use crate::worker::Shared;

/// Between two tries for a repository that another build fetches into.
const LOCK_POLL: Duration = Duration::from_millis(50);

/// What git says when a reference in the repository stands in the way of another, or objects are missing.
const BROKEN: [&str; 5] = [
    "some local refs could not be updated",
    "unable to update local ref",
    "did not send all necessary objects",
    "is corrupt",
    "loose object",
];

/// What git says when a server has no shallow copies.
const NO_SHALLOW: [&str; 3] = ["--depth", "shallow", "dumb http"];

/// What git says when a server gives no commit that no reference names.
const NOT_ADVERTISED: [&str; 3] = ["not our ref", "unadvertised object", "couldn't find remote ref"];

/// A bare repository of the store. Nobody else uses it while this lives.
pub(super) struct Repository {
    directory: MutableDir,
    is_sha256: bool,
}

impl Repository {
    /// Takes the repository of a remote, and makes it if it is the first time.
    pub(super) async fn open(
        git: &Git,
        remote: &Remote,
        pin: &GitPin,
        shared: &Arc<Shared>,
        cx: &JobContext<Session>,
    ) -> Result<Self, SourceError> {
        let cancel = &cx.cancel;
        let is_sha256 = pin.object.len() == 64;
        let format = if is_sha256 { " (sha256)" } else { "" };
        let key = format!("{REPOSITORY}{}{format}", remote.shown());
        let key = cx.session.namespace.key(&key);
        let directory = loop {
            let (shared, key) = (Arc::clone(shared), key.clone());
            match blocking(move || shared.store.try_mutable_dir(&key, Sharing::Locked)).await? {
                Some(directory) => break directory,
                None => tokio::select! {
                    () = tokio::time::sleep(LOCK_POLL) => {}
                    () = cancel.cancelled() => return Err(SourceError::Cancelled),
                },
            }
        };
        let mut repository = Self { directory, is_sha256 };
        if repository.directory.is_fresh() {
            repository.initialise(git).await?;
            repository.directory = repository.directory.initialised()?;
        }
        Ok(repository)
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Whether its hashes are the longer ones.
    pub(super) fn is_sha256(&self) -> bool {
        self.is_sha256
    }

    /// Where commands about it work.
    pub(super) fn place(&self) -> Place<'_> {
        Place { git_dir: Some(self.path()), ..Place::default() }
    }

    async fn initialise(&self, git: &Git) -> Result<(), GitError> {
        let format = if self.is_sha256 { "--object-format=sha256" } else { "--object-format=sha1" };
        let made = git.run_in(self.place(), &["init", "--bare", "--quiet", "--template=", format]).await;
        made.map_err(|error| local(error, "init"))?;
        Ok(())
    }

    /// Makes sure that the commit is here; what is here already is not asked for again.
    pub(super) async fn bring(&self, git: &Git, remote: &Remote, pin: &GitPin) -> Result<(), GitError> {
        if self.has(git, &pin.object).await? {
            return self.name(git, pin).await;
        }
        match self.fetch(git, remote, pin).await {
            Err(error) if error.says(&BROKEN) => {
                self.empty().await?;
                self.initialise(git).await?;
                self.fetch(git, remote, pin).await.map_err(|error| fetching(error, remote))?;
            }
            fetched => fetched.map_err(|error| fetching(error, remote))?,
        }
        if !self.has(git, &pin.object).await? {
            // The reference moved on between question and fetch.
            self.fetch_commit(git, remote, &pin.object).await.map_err(|error| fetching(error, remote))?;
            if !self.has(git, &pin.object).await? {
                let (reference, expected) = (pin.reference.clone(), pin.object.clone());
                return Err(GitError::Moved { reference, expected });
            }
        }
        self.name(git, pin).await
    }

    async fn fetch(&self, git: &Git, remote: &Remote, pin: &GitPin) -> Result<(), RunError> {
        // Left by a command that was killed.
        self.remove("shallow.lock").await.map_err(|error| RunError::Broken(error.into()))?;
        if is_commit(&pin.reference) {
            return self.fetch_commit(git, remote, &pin.object).await;
        }
        let refspec = format!("+{}:{}", pin.reference, own_name(&pin.reference));
        let shallow = ["fetch", "--depth=1", "--no-tags", "--", remote.address(), &refspec];
        match git.run_in(self.place(), &shallow).await {
            Err(error) if error.says(&NO_SHALLOW) => {
                git.run_in(self.place(), &["fetch", "--no-tags", "--", remote.address(), &refspec]).await?
            }
            fetched => fetched?,
        };
        Ok(())
    }

    /// One commit without its past, where the server gives that; else everything there is.
    async fn fetch_commit(&self, git: &Git, remote: &Remote, hash: &str) -> Result<(), RunError> {
        let address = remote.address();
        let alone = git.run_in(self.place(), &["fetch", "--depth=1", "--no-tags", "--", address, hash]).await;
        match alone {
            Ok(_) => return Ok(()),
            // A server of plain files gives everything that it has, named by a reference or not.
            Err(error) if error.says(&NO_SHALLOW) => {
                let whole = ["fetch", "--no-tags", "--", address, hash];
                if git.run_in(self.place(), &whole).await.is_ok() {
                    return Ok(());
                }
            }
            Err(error) if error.says(&NOT_ADVERTISED) => {}
            Err(error) => return Err(error),
        }
        let unshallow: &[&str] = if self.path().join("shallow").exists() { &["--unshallow"] } else { &[] };
        let everything =
            [&["fetch", "--tags"], unshallow, &["--", address, "+refs/*:refs/stave/all/*"]].concat();
        git.run_in(self.place(), &everything).await?;
        Ok(())
    }

    async fn has(&self, git: &Git, hash: &str) -> Result<bool, GitError> {
        let object = format!("{hash}^{{commit}}");
        match git.run_in(self.place(), &["cat-file", "-e", &object]).await {
            Ok(_) => Ok(true),
            Err(RunError::Failed(_)) => Ok(false),
            Err(RunError::Broken(error)) => Err(error),
        }
    }

    /// Gives the commit a name here, by which the next fetch knows what need not travel.
    async fn name(&self, git: &Git, pin: &GitPin) -> Result<(), GitError> {
        let name = own_name(&pin.reference);
        let named = git.run_in(self.place(), &["update-ref", "--no-deref", &name, &pin.object]).await;
        named.map_err(|error| local(error, "update-ref"))?;
        Ok(())
    }

    async fn remove(&self, name: &str) -> Result<(), crate::root::IoAt> {
        let path = self.path().join(name);
        match tokio::fs::remove_file(&path).await {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error).at("removing", &path),
            _ => Ok(()),
        }
    }

    async fn empty(&self) -> Result<(), crate::root::IoAt> {
        let path = self.path().to_owned();
        blocking(move || {
            let entries = std::fs::read_dir(&path).at("reading", &path)?;
            for entry in entries {
                let entry: PathBuf = entry.at("reading", &path)?.path();
                let removed = if entry.is_dir() {
                    std::fs::remove_dir_all(&entry)
                } else {
                    std::fs::remove_file(&entry)
                };
                removed.at("removing", &entry)?;
            }
            Ok(())
        })
        .await
    }
}

/// The name of a remote's reference here. A hash, since one name may lie below another that was there earlier.
pub(super) fn own_name(reference: &str) -> String {
    format!("refs/stave/{}", &blake3::hash(reference.as_bytes()).to_hex()[..32])
}

fn fetching(error: RunError, remote: &Remote) -> GitError {
    error.because(|source| GitError::Fetch { remote: remote.shown().to_owned(), source })
}

/// A command on the repository of this machine failed.
pub(super) fn local(error: RunError, command: &str) -> GitError {
    error.because(|source| GitError::Local { command: command.to_owned(), source })
}
