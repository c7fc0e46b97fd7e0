//! Git repositories as sources: a revision becomes a commit, the commit a directory.
//! Owns what the attributes mean, in BuildKit's words, and the order of the steps: which commit ([`resolve`]), its
//! objects ([`repository`]), its files ([`checkout`]). The work is git's own program ([`cli`]). Must not know graphs.
//! Read [`GitRequest`] first, then [`GitRequest::pin`].

mod checkout;
mod cli;
mod error;
mod objects;
mod remote;
mod repository;
mod resolve;
mod ssh;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use stave_llb::{GitSource, SourceOp};
use stave_solver::JobContext;
use stave_store::{Snapshot, StoreError};

use self::cli::Git;
pub use self::error::{GitError, GitFailure};
pub use self::objects::GitObjects;
use self::remote::Remote;
use self::repository::Repository;
use super::SourceError;
use super::image::blocking;
use crate::session::Session;
use crate::watch::Watch;
use crate::worker::Shared;

/// Attributes that are about who may ask, or that hints about transport; they change no file.
const SIGNATURE: &str = "git.sig.";

/// What to bring of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct GitRequest {
    remote: Remote,
    /// Branch, tag, full reference name or commit; empty for the default branch.
    revision: String,
    /// A directory in it, without leading slash; empty for all.
    subdir: String,
    /// The commit, or its first digits.
    checksum: Option<String>,
    keep_git_dir: bool,
    with_submodules: bool,
    times: FileTimes,
    fetch_by_commit: bool,
    access: Access,
}

/// What time files get.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FileTimes {
    /// When they were checked out.
    Checkout,
    /// The commit's.
    Commit,
}

/// By which of the session's means a remote is asked. Names only: values are looked up for each use.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Access {
    token_secret: Option<String>,
    header_secret: Option<String>,
    ssh_agent: Option<String>,
    known_hosts: Option<String>,
}

/// The commit that a request stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GitPin {
    /// The full name of the reference, or the commit where that is what was asked for.
    pub reference: String,
    /// What the reference names: a commit, or an annotated tag.
    pub object: String,
    /// The commit of an annotated tag.
    pub peeled: Option<String>,
}

impl GitPin {
    /// A commit that nobody needs to be asked about.
    fn commit(hash: &str) -> Self {
        Self { reference: hash.to_owned(), object: hash.to_owned(), peeled: None }
    }

    /// The commit.
    #[must_use]
    pub fn hash(&self) -> &str {
        self.peeled.as_ref().unwrap_or(&self.object)
    }
}

impl GitRequest {
    /// Reads the identifier and the attributes of a source op.
    pub(crate) fn new(source: &GitSource, op: &SourceOp) -> Result<Self, GitError> {
        let attribute = |name: &str| op.attrs.get(name).filter(|value| !value.is_empty()).cloned();
        let switch = |name: &str| op.attrs.get(name).is_some_and(|value| value == "true");
        refuse_unsupported(&op.attrs)?;
        let address = attribute("git.fullurl").unwrap_or_else(|| source.remote.clone());
        let revision = source.revision.clone();
        if revision.starts_with('-') || revision.contains(|letter: char| letter.is_control()) {
            return Err(GitError::Reference(revision));
        }
        let checksum = attribute("git.checksum");
        if let Some(checksum) = &checksum
            && !checksum.bytes().all(|byte| byte.is_ascii_hexdigit())
        {
            return Err(GitError::ChecksumForm(checksum.clone()));
        }
        let times = match attribute("git.mtime").as_deref() {
            None | Some("checkout") => FileTimes::Checkout,
            Some("commit") => FileTimes::Commit,
            Some(other) => return Err(GitError::Attribute { name: "git.mtime".into(), value: other.into() }),
        };
        let subdir = crate::root::clean(std::path::Path::new(&source.subdir));
        Ok(Self {
            remote: Remote::parse(&address)?,
            revision,
            subdir: subdir.to_string_lossy().into_owned(),
            checksum,
            keep_git_dir: switch("git.keepgitdir"),
            with_submodules: !switch("git.skipsubmodules"),
            times,
            fetch_by_commit: switch("git.fetchbycommit"),
            access: Access {
                token_secret: attribute("git.authtokensecret"),
                header_secret: attribute("git.authheadersecret"),
                ssh_agent: attribute("git.mountsshsock"),
                known_hosts: attribute("git.knownsshhosts"),
            },
        })
    }

    /// Finds out which commit is meant. Asks the remote, but for a commit; an answer holds as long as its session,
    /// so that everything that one build takes from one revision is of one commit.
    pub(crate) async fn pin(
        &self,
        shared: &Arc<Shared>,
        cx: &JobContext<Session>,
    ) -> Result<GitPin, SourceError> {
        if let Some(pin) = self.known_pin()? {
            return Ok(pin);
        }
        let key = self.question();
        if let Some(pin) = cx.session.pins.git(&key) {
            self.check(&pin)?;
            return Ok(pin);
        }
        let git = Git::open(self, shared, cx).await?;
        let pin = resolve::ask(&git, &self.remote, &self.revision).await?;
        cx.session.pins.set_git(key, pin.clone());
        self.check(&pin)?;
        Ok(pin)
    }

    /// What a remote is asked, by which a session remembers the answer.
    pub(super) fn question(&self) -> String {
        format!("{}#{}", self.remote.address(), self.revision)
    }

    /// What the request alone says: a commit as the revision, or one to be fetched by itself.
    pub(super) fn known_pin(&self) -> Result<Option<GitPin>, GitError> {
        if is_commit(&self.revision) {
            let pin = GitPin::commit(&self.revision);
            self.check(&pin)?;
            return Ok(Some(pin));
        }
        if !self.fetch_by_commit {
            return Ok(None);
        }
        match &self.checksum {
            None => Err(GitError::NoChecksum),
            Some(checksum) if !is_commit(checksum) => Err(GitError::ShortChecksum(checksum.clone())),
            Some(checksum) => {
                let reference = match self.revision.as_str() {
                    "" => checksum.clone(),
                    name if name.starts_with("refs/") => name.to_owned(),
                    name => format!("refs/heads/{name}"),
                };
                Ok(Some(GitPin { reference, object: checksum.clone(), peeled: None }))
            }
        }
    }

    fn check(&self, pin: &GitPin) -> Result<(), GitError> {
        let Some(expected) = &self.checksum else { return Ok(()) };
        let fits = |hash: &str| hash.starts_with(expected.as_str());
        if fits(&pin.object) || pin.peeled.as_deref().is_some_and(fits) {
            return Ok(());
        }
        let actual = match &pin.peeled {
            Some(peeled) => format!("{} or {peeled}", pin.object),
            None => pin.object.clone(),
        };
        Err(GitError::Checksum { expected: expected.clone(), actual })
    }

    /// What names the files for good, as BuildKit writes it.
    pub(crate) fn key(&self, pin: &GitPin) -> String {
        // Without `.git`, a tag and the commit it stands for are the same files.
        let mut key = if self.keep_git_dir { pin.object.clone() } else { pin.hash().to_owned() };
        if self.keep_git_dir {
            let _ = write!(key, ".git#{}", pin.reference);
        }
        if !self.subdir.is_empty() {
            let _ = write!(key, ":{}", self.subdir);
        }
        if !self.with_submodules {
            key.push_str("(skip-submodules)");
        }
        if self.times == FileTimes::Commit {
            key.push_str("(mtime=commit)");
        }
        key
    }

    /// Brings what the commit is, without its files.
    pub(crate) async fn objects(
        &self,
        shared: &Arc<Shared>,
        cx: &JobContext<Session>,
    ) -> Result<GitObjects, SourceError> {
        let pin = self.pin(shared, cx).await?;
        let git = Git::open(self, shared, cx).await?;
        let repository = Repository::open(&git, &self.remote, &pin, shared, cx).await?;
        repository.bring(&git, &self.remote, &pin).await?;
        Ok(objects::read(&git, &repository, &pin).await?)
    }

    /// Brings the files of the commit into a layer.
    pub(crate) async fn fetch(
        &self,
        pin: &GitPin,
        shared: &Arc<Shared>,
        cx: &JobContext<Session>,
    ) -> Result<Snapshot, SourceError> {
        let mut git = Git::open(self, shared, cx).await?;
        let description = format!("git snapshot for {}#{}", self.remote.shown(), self.revision);
        let layer = {
            let shared = Arc::clone(shared);
            blocking(move || shared.prepare(&Snapshot::scratch(), &description)).await?
        };
        // The repository is a directory that is measured with every look; what git writes is not announced either.
        let (layer, watch) = {
            let store = shared.store.clone();
            let watched = move || Watch::of(&store, [&layer]).map(|watch| (layer, watch));
            blocking(watched).await.map_err(|error: StoreError| error)?
        };
        let ending = git.ended_by_itself();
        let work = async {
            let repository = Repository::open(&git, &self.remote, pin, shared, cx).await?;
            repository.bring(&git, &self.remote, pin).await?;
            checkout::checkout(self, pin, &repository, &git, (shared, layer.upper())).await
        };
        match watch {
            Some(watch) => watch.over(work, &ending).await?,
            None => work.await?,
        }
        Ok(blocking(move || layer.commit()).await.map_err(|error: StoreError| error)?)
    }
}

/// Whether a text is a whole commit hash, of either length.
fn is_commit(text: &str) -> bool {
    matches!(text.len(), 40 | 64) && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// A signature that was asked for and not checked would be worse than none.
fn refuse_unsupported(attributes: &BTreeMap<String, String>) -> Result<(), GitError> {
    let refused = |name: &str| {
        name.starts_with(SIGNATURE) || matches!(name, "git.bundle") || name == "git.checkoutbundle"
    };
    match attributes.iter().find(|(name, value)| refused(name) && !value.is_empty() && *value != "false") {
        Some((name, _)) => Err(GitError::Unsupported(name.clone())),
        None => Ok(()),
    }
}
