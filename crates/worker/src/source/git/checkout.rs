//! The files of a commit, written into a layer so that the same commit gives the same layer.
//! Owns submodules, the directory that is picked, and the clean-up: modes, owners, times, what git leaves behind.
//! Read [`checkout`] first.

use std::ffi::OsStr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use stave_store::ScratchDir;

use super::cli::{Git, Place, RunError};
use super::error::GitError;
use super::repository::{Repository, local, own_name};
use super::{FileTimes, GitPin, GitRequest, is_commit};
use crate::file::place::{Stamp, Time, remove_all};
use crate::root::{At as _, RootDir, names, stat_at};
use crate::source::SourceError;
use crate::source::image::blocking;
use crate::tree::open_directory;
use crate::worker::Shared;

/// Files of one checkout.
const FILE_LIMIT: usize = 20_000_000;

/// Directories within each other; the kernel's path length allows no more either.
const DEPTH_LIMIT: usize = 4096;

/// Where git keeps a repository beside its files.
const GIT_DIR: &str = ".git";

/// Writes the files of a commit into `upper`.
pub(super) async fn checkout(
    request: &GitRequest,
    pin: &GitPin,
    repository: &Repository,
    git: &Git,
    (shared, upper): (&Arc<Shared>, &Path),
) -> Result<(), SourceError> {
    let scratch = {
        let shared = Arc::clone(shared);
        blocking(move || shared.store.scratch_dir()).await?
    };
    let keeps = request.keep_git_dir && request.subdir.is_empty();
    let tree = if request.subdir.is_empty() { upper.to_owned() } else { made(&scratch, "tree")? };
    let index = scratch.path().join("index");
    let work = Work { request, pin, repository, git, tree: &tree };
    let own = tree.join(GIT_DIR);
    let place = if keeps {
        work.with_git_dir(&own).await?;
        Place { git_dir: Some(&own), work_tree: Some(&tree), ..Place::default() }
    } else {
        let place = Place {
            git_dir: Some(repository.path()),
            work_tree: Some(&tree),
            index: Some(&index),
            ..Place::default()
        };
        work.files(place).await?;
        place
    };
    if request.with_submodules && tree.join(".gitmodules").is_file() {
        work.submodules(place).await?;
    }
    if keeps {
        work.tidy_git_dir(place).await?;
    }
    let time = match request.times {
        FileTimes::Checkout => None,
        FileTimes::Commit => Some(work.commit_time().await?),
    };
    let (subdir, upper) = (request.subdir.clone(), upper.to_owned());
    blocking(move || {
        if !subdir.is_empty() {
            pick(&tree, &subdir, &upper)?;
        }
        Cleaning { time, keeps_git_dir: keeps, count: 0 }.clean(&upper)
    })
    .await?;
    drop(scratch);
    Ok(())
}

fn made(scratch: &ScratchDir, name: &str) -> Result<PathBuf, GitError> {
    let path = scratch.path().join(name);
    std::fs::create_dir(&path).at("creating", &path)?;
    Ok(path)
}

/// What the steps of one checkout work with.
struct Work<'a> {
    request: &'a GitRequest,
    pin: &'a GitPin,
    repository: &'a Repository,
    git: &'a Git,
    tree: &'a Path,
}

impl Work<'_> {
    fn failed(&self, error: RunError) -> GitError {
        let remote = self.request.remote.shown().to_owned();
        error.because(|source| GitError::Checkout { remote, source })
    }

    /// Files alone, with an index that nobody keeps.
    async fn files(&self, place: Place<'_>) -> Result<(), GitError> {
        let commit = format!("{}^{{tree}}", self.pin.object);
        let written = self.git.run_in(place, &["read-tree", "--reset", "-u", &commit]).await;
        written.map_err(|error| self.failed(error))?;
        Ok(())
    }

    /// Files beside a repository of their own, which has this one commit.
    async fn with_git_dir(&self, own: &Path) -> Result<(), GitError> {
        let place = Place { git_dir: Some(own), work_tree: Some(self.tree), ..Place::default() };
        let format =
            if self.repository.is_sha256() { "--object-format=sha256" } else { "--object-format=sha1" };
        let made = self.git.run_in(place, &["init", "--quiet", "--template=", format]).await;
        made.map_err(|error| local(error, "init"))?;
        let address = self.request.remote.address();
        let named = self.git.run_in(place, &["remote", "add", "origin", "--", address]).await;
        named.map_err(|error| local(error, "remote"))?;
        // As a remote: a local clone shares files, and what it shares can be chosen by the repository.
        let from = format!("file://{}", self.repository.path().display().to_string().replace('%', "%25"));
        let here = own_name(&self.pin.reference);
        let refspec =
            if is_commit(&self.pin.reference) { here } else { format!("{here}:{}", self.pin.reference) };
        let local_place = Place { local: true, ..place };
        let fetch = ["fetch", "--update-head-ok", "--depth=1", "--no-tags", "--", &from, &refspec];
        let fetched = self.git.run_in(local_place, &fetch).await;
        fetched.map_err(|error| local(error, "fetch"))?;
        let written = self.git.run_in(place, &["checkout", "--quiet", "--detach", "FETCH_HEAD"]).await;
        written.map_err(|error| self.failed(error))?;
        Ok(())
    }

    async fn submodules(&self, place: Place<'_>) -> Result<(), GitError> {
        let wrap = |error: RunError| {
            let remote = self.request.remote.shown().to_owned();
            error.because(|source| GitError::Submodules { remote, source })
        };
        // An address may have changed since this repository first saw it.
        self.git.run_in(place, &["submodule", "sync", "--recursive", "--quiet"]).await.map_err(wrap)?;
        let shallow = ["submodule", "update", "--init", "--recursive", "--force", "--depth=1"];
        match self.git.run_in(place, &shallow).await {
            Err(error) if error.says(&["--depth", "shallow"]) => {
                let whole = self.git.run_in(place, &shallow[..shallow.len() - 1]).await;
                whole.map_err(wrap)?;
            }
            updated => {
                updated.map_err(wrap)?;
            }
        }
        Ok(())
    }

    /// What a fetch left behind, which says when and from where.
    async fn tidy_git_dir(&self, place: Place<'_>) -> Result<(), GitError> {
        let expired = self.git.run_in(place, &["reflog", "expire", "--all", "--expire=now"]).await;
        expired.map_err(|error| local(error, "reflog"))?;
        for name in ["FETCH_HEAD", "ORIG_HEAD"] {
            let path = self.tree.join(GIT_DIR).join(name);
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    Err(error).at("removing", &path)?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// When the commit was made, by its committer.
    async fn commit_time(&self) -> Result<Time, GitError> {
        let place = Place { git_dir: Some(self.repository.path()), ..Place::default() };
        let commit = format!("{}^{{commit}}", self.pin.object);
        let said = self.git.run_in(place, &["log", "-1", "--format=%ct", &commit]).await;
        let said = said.map_err(|error| local(error, "log"))?;
        let seconds = said.trim().parse().map_err(|_| GitError::CommitForm(said.trim().to_owned()))?;
        Ok((seconds, 0))
    }
}

/// Moves what is in a directory of the tree into the layer. Links on the way are refused, as in BuildKit.
fn pick(tree: &Path, subdir: &str, upper: &Path) -> Result<(), GitError> {
    let root = RootDir::open(tree)?;
    let mut path = PathBuf::new();
    for part in Path::new(subdir).components() {
        let Component::Normal(name) = part else { continue };
        path.push(name);
        let found = root.stat(&path).at("looking at", &path)?;
        let Some(found) = found else {
            return Err(GitError::NoSubdir { subdir: subdir.to_owned(), path });
        };
        if FileType::from_raw_mode(found.st_mode) != FileType::Directory {
            return Err(GitError::SubdirKind { subdir: subdir.to_owned(), path });
        }
    }
    let from = root.open_at(&path, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).at("opening", &path)?;
    let to = RootDir::open(upper)?;
    for name in names(&from).at("reading", &path)? {
        rustix::fs::renameat(&from, &name, to.fd(), &name).at("moving", Path::new(&name))?;
    }
    Ok(())
}

/// Makes what git wrote independent of when and by whom.
struct Cleaning {
    time: Option<Time>,
    keeps_git_dir: bool,
    count: usize,
}

impl Cleaning {
    fn clean(&mut self, upper: &Path) -> Result<(), GitError> {
        let root = RootDir::open(upper)?;
        let top = root.open_at(Path::new(""), OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty());
        let top = top.at("opening", upper)?;
        self.directory(&top, Path::new(""), 0)?;
        let stamp = Stamp { owner: None, time: self.time };
        Ok(stamp.apply(&top, 0o755).at("setting metadata of", upper)?)
    }

    fn directory(&mut self, directory: &OwnedFd, shown: &Path, depth: usize) -> Result<(), GitError> {
        if depth > DEPTH_LIMIT {
            return Err(GitError::TooMany(DEPTH_LIMIT));
        }
        let stamp = Stamp { owner: None, time: self.time };
        for name in names(directory).at("reading", shown)? {
            self.count += 1;
            if self.count > FILE_LIMIT {
                return Err(GitError::TooMany(FILE_LIMIT));
            }
            let path = shown.join(&name);
            let Some(stat) = stat_at(directory, &name).at("looking at", &path)? else { continue };
            let is_git_dir = name == OsStr::new(GIT_DIR);
            if is_git_dir && !self.keeps_git_dir {
                // Of a submodule: it names a place of this machine.
                remove_all(directory.as_fd(), &name).at("removing", &path)?;
                continue;
            }
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory => {
                    let inner = open_directory(directory.as_fd(), &name).at("opening", &path)?;
                    self.directory(&inner, &path, depth + 1)?;
                    stamp.apply(&inner, 0o755).at("setting metadata of", &path)?;
                }
                FileType::RegularFile => {
                    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
                    let file = rustix::fs::openat(directory, &name, flags, Mode::empty());
                    let mode = if stat.st_mode & 0o100 == 0 { 0o644 } else { 0o755 };
                    stamp.apply(file.at("opening", &path)?, mode).at("setting metadata of", &path)?;
                }
                FileType::Symlink => stamp.apply_at(directory, &name).at("setting metadata of", &path)?,
                _ => {
                    // git writes nothing else.
                    rustix::fs::unlinkat(directory, &name, AtFlags::empty()).at("removing", &path)?;
                }
            }
        }
        Ok(())
    }
}
