//! The file actions on an open root: copy, mkdir, mkfile, symlink, rm, with BuildKit's semantics.
//! Owns where things land and what must exist. Must not know LLB or snapshots: plain requests come in.
//! Read [`CopyRequest`] first.

use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags};
use stave_llb::pattern::PatternError;
use stave_store::LayerRoom;
use tokio_util::sync::CancellationToken;

use super::copy::{Copier, CopyError, CopyRules};
use super::place::{PARENT_MODE, Stamp, create_directories, create_directory, remove_all};
use super::reuse::Reuse;
use super::unpack::{UnpackError, Unpacking, unpack};
use crate::filter::Filter;
use crate::input::Input;
use crate::mode::{ModeChange, ModeError};
use crate::root::{At as _, IoAt, Last, RootDir, absent, clean, stat_at};
use crate::view::ViewError;

/// Why a file action failed.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The operating system refused.
    #[error(transparent)]
    Io(#[from] IoAt),
    /// A copy stopped.
    #[error(transparent)]
    Copy(#[from] CopyError),
    /// An archive was not unpacked.
    #[error(transparent)]
    Unpack(#[from] UnpackError),
    /// A source path is not there. The quoted path and what follows it are BuildKit's words.
    #[error("failed to compute cache key: {0:?}: not found")]
    NotFound(String),
    /// The same where the files come from what is written to, or from nothing: no digest is asked for there, and
    /// BuildKit's words are those of the copy itself.
    #[error("lstat {0}: no such file or directory")]
    Missing(String),
    /// A path to remove is not there.
    #[error("cannot remove `{0}`: not found")]
    NothingToRemove(String),
    /// The parent of a destination is not there and is not to be created.
    #[error("the parent directory of `{0}` does not exist")]
    NoParent(String),
    /// The root itself cannot be removed or replaced by a file.
    #[error("`{0}` is the root directory")]
    Root(String),
    /// A pattern is malformed.
    #[error(transparent)]
    Pattern(#[from] PatternError),
    /// A mode is malformed.
    #[error(transparent)]
    Mode(#[from] ModeError),
    /// A file system view could not be mounted.
    #[error(transparent)]
    View(#[from] ViewError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] stave_store::StoreError),
    /// The op refers to inputs or outputs it does not have.
    #[error("file op refers to {0}, which it does not have")]
    Reference(&'static str),
}

/// A copy, with numeric owner and parsed mode.
#[derive(Debug, Clone)]
pub(crate) struct CopyRequest {
    pub source: String,
    pub destination: String,
    pub follow_symlinks: bool,
    pub directory_contents: bool,
    pub attempt_unpack: bool,
    pub create_destination: bool,
    pub wildcard: bool,
    pub allow_empty_wildcard: bool,
    pub include: Vec<String>,
    pub exclude: Vec<String>,
    pub required: Vec<String>,
    pub rules: CopyRules,
}

impl CopyRequest {
    /// Whether nothing of a directory is left out.
    pub(crate) fn takes_all(&self) -> bool {
        self.include.is_empty() && self.exclude.is_empty()
    }
}

/// A destination as written: its canonical form depends on the root.
pub(super) struct Destination {
    pub(super) path: PathBuf,
    /// Ends in `/` or `/.`, or is the root: the destination is a directory, whatever the source is.
    pub(super) is_directory: bool,
}

impl Destination {
    pub(super) fn new(text: &str) -> Self {
        let path = clean(Path::new(text));
        let is_directory = path.as_os_str().is_empty() || text.ends_with('/') || text.ends_with("/.");
        Self { path, is_directory }
    }
}

/// What a copy may use beside its source.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Means<'a> {
    /// Files of an earlier copy.
    pub reuse: Option<&'a Reuse>,
    /// Room for what is written.
    pub room: Option<&'a LayerRoom>,
    /// Stops it.
    pub cancel: &'a CancellationToken,
}

/// Copies; true when a source file changed while it was read.
pub(crate) fn copy(
    root: &RootDir,
    input: &Input,
    request: &CopyRequest,
    means: Means<'_>,
) -> Result<bool, FileError> {
    let destination = Destination::new(&request.destination);
    if !request.create_destination {
        let path = resolve(root, &destination.path, Last::Follow)?;
        let parent = path.parent().unwrap_or(Path::new(""));
        if root.directory(parent).is_err() {
            return Err(FileError::NoParent(request.destination.clone()));
        }
    }
    let shown = Path::new(&request.source);
    let matches = if request.wildcard {
        input.expand(&request.source).at("searching", shown)?
    } else {
        vec![clean(shown)]
    };
    if matches.is_empty() {
        return if request.allow_empty_wildcard {
            Ok(false)
        } else {
            Err(FileError::NotFound(request.source.clone()))
        };
    }
    require(input, request)?;
    let filter = if request.include.is_empty() && request.exclude.is_empty() {
        None
    } else {
        Some(Filter::new(&request.include, &request.exclude)?)
    };
    let mut copying = Copying { root, input, request, destination, filter, means, changed: false };
    for path in &matches {
        if !(request.attempt_unpack && copying.unpack(path)?) {
            copying.one(path)?;
        }
    }
    Ok(copying.changed)
}

/// Required paths, from the input's root, count only beside include patterns, which alone could match nothing
/// silently.
fn require(input: &Input, request: &CopyRequest) -> Result<(), FileError> {
    if request.include.is_empty() {
        return Ok(());
    }
    for required in &request.required {
        let path = clean(Path::new(required));
        let real = input.resolve(&path, Last::Keep).at("resolving", &path)?;
        if input.file_type(&real).at("looking at", &path)?.is_none() {
            return Err(FileError::NotFound(shown(&path)));
        }
    }
    Ok(())
}

struct Copying<'a> {
    root: &'a RootDir,
    input: &'a Input,
    request: &'a CopyRequest,
    destination: Destination,
    filter: Option<Filter>,
    means: Means<'a>,
    changed: bool,
}

impl Copying<'_> {
    fn stamp(&self) -> Stamp {
        Stamp { owner: self.request.rules.owner, time: self.request.rules.time }
    }

    /// Unpacks a source that is an archive; false when it is to be copied.
    fn unpack(&self, source: &Path) -> Result<bool, FileError> {
        let real = self.input.resolve(source, Last::Follow).at("resolving", source)?;
        if self.input.file_type(&real).at("looking at", source)? != Some(FileType::RegularFile) {
            return Ok(false);
        }
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = self.input.root().open_at(&real, flags, Mode::empty()).at("opening", source)?;
        let directory = resolve(self.root, &self.destination.path, Last::Follow)?;
        let to = Unpacking {
            root: self.root,
            directory: &directory,
            owner: self.request.rules.owner,
            time: self.request.rules.time,
            room: self.means.room,
            cancel: self.means.cancel,
        };
        Ok(unpack(file, source, &to)?)
    }

    fn one(&mut self, source: &Path) -> Result<(), FileError> {
        let last = if self.request.follow_symlinks { Last::Follow } else { Last::Keep };
        let real = self.input.resolve(source, last).at("resolving", source)?;
        let Some(node) = self.input.node(&real).at("scanning", source)? else {
            return Err(FileError::NotFound(shown(source)));
        };
        let to = self.target(source, node.is_dir())?;
        let pruned;
        let node = match &self.filter {
            None => &*node,
            Some(filter) => match node.prune(filter) {
                Some(kept) => {
                    pruned = kept;
                    &pruned
                }
                None => return Ok(()),
            },
        };
        let rules = &self.request.rules;
        let owners = self.input.owners();
        let copier = Copier::new(self.input.root(), self.root, owners, rules, self.means.cancel);
        let copier = copier.of_context(self.input.has_context_times());
        let copier = copier.with_reuse(self.means.reuse).with_room(self.means.room);
        copier.copy(node, &real, &to)?;
        self.changed |= copier.source_changed() && matches!(self.input, Input::Context(_));
        Ok(())
    }

    /// The canonical path the source becomes; its parent exists afterwards.
    fn target(&self, source: &Path, is_directory: bool) -> Result<PathBuf, FileError> {
        let stamp = self.stamp();
        let written = &self.destination.path;
        let ensured =
            if self.destination.is_directory { written } else { written.parent().unwrap_or(written) };
        // A mode given as a number is that of the directories above, too.
        let mode = if let ModeChange::Set(mode) = self.request.rules.mode { mode } else { PARENT_MODE };
        create_directories(self.root, &resolve(self.root, ensured, Last::Follow)?, mode, &stamp)?;
        let mut target = resolve(self.root, written, Last::Follow)?;
        let existing = self.root.stat(&target).at("looking at", &target)?;
        let existing = existing.map(|stat| FileType::from_raw_mode(stat.st_mode));
        let contents = self.request.directory_contents;
        let goes_inside = if is_directory {
            !contents && existing.is_some()
        } else {
            existing == Some(FileType::Directory)
        };
        if goes_inside {
            target.push(source.file_name().unwrap_or_default());
        }
        let parent = if is_directory && contents && existing.is_none() {
            target.as_path()
        } else {
            target.parent().unwrap_or(Path::new(""))
        };
        create_directories(self.root, parent, PARENT_MODE, &stamp)?;
        Ok(target)
    }
}

/// Creates a directory; one that is there already is left as it is.
pub(crate) fn mkdir(
    root: &RootDir,
    path: &str,
    mode: u32,
    parents: bool,
    stamp: &Stamp,
) -> Result<(), FileError> {
    let real = resolve(root, Path::new(path), Last::Follow)?;
    if parents {
        create_directories(root, &real, mode, stamp)?;
    } else {
        match create_directory(root, &real, mode, stamp) {
            Err(error)
                if absent(error.io()) && root.directory(real.parent().unwrap_or(Path::new(""))).is_err() =>
            {
                return Err(FileError::NoParent(path.to_owned()));
            }
            other => other?,
        };
    }
    Ok(())
}

/// Writes a file, in place of one that is there.
pub(crate) fn mkfile(
    root: &RootDir,
    path: &str,
    mode: u32,
    data: &[u8],
    stamp: &Stamp,
) -> Result<(), FileError> {
    let real = resolve(root, Path::new(path), Last::Follow)?;
    let (parent, name) = entry(root, &real, path)?;
    if let Some(stat) = stat_at(&parent, name).at("looking at", &real)? {
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            return Err(CopyError::OverDirectory(real.clone()).into());
        }
        remove_all(parent.as_fd(), name).at("replacing", &real)?;
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(&parent, name, flags, Mode::from_raw_mode(0o600)).at("creating", &real)?;
    let mut file = std::fs::File::from(fd);
    file.write_all(data).at("writing", &real)?;
    Ok(stamp.apply(&file, mode).at("setting metadata of", &real)?)
}

/// Creates a symlink; what is there already is an error, as with `ln -s`.
pub(crate) fn symlink(root: &RootDir, target: &str, path: &str, stamp: &Stamp) -> Result<(), FileError> {
    let real = resolve(root, Path::new(path), Last::Keep)?;
    let (parent, name) = entry(root, &real, path)?;
    rustix::fs::symlinkat(target, &parent, name).at("creating symlink", &real)?;
    Ok(stamp.apply_at(&parent, name).at("setting metadata of", &real)?)
}

/// Removes a path, or everything a pattern matches.
pub(crate) fn remove(
    root: &RootDir,
    path: &str,
    wildcard: bool,
    allow_absent: bool,
) -> Result<(), FileError> {
    let input = Input::borrowing(root).at("opening", Path::new(path))?;
    let matches = if wildcard {
        input.expand(path).at("searching", Path::new(path))?
    } else {
        vec![clean(Path::new(path))]
    };
    let mut removed = false;
    for shown in matches {
        let real = resolve(root, &shown, Last::Keep)?;
        if real.as_os_str().is_empty() {
            return Err(FileError::Root(path.to_owned()));
        }
        let (parent, name) = match root.entry(&real) {
            Err(error) if absent(&error) => continue,
            other => other.at("opening", &real)?,
        };
        if stat_at(&parent, name).at("looking at", &real)?.is_some() {
            remove_all(parent.as_fd(), name).at("removing", &real)?;
            removed = true;
        }
    }
    if removed || allow_absent { Ok(()) } else { Err(FileError::NothingToRemove(path.to_owned())) }
}

fn entry<'p>(
    root: &RootDir,
    real: &'p Path,
    shown: &str,
) -> Result<(std::os::fd::OwnedFd, &'p std::ffi::OsStr), FileError> {
    if real.as_os_str().is_empty() {
        return Err(FileError::Root(shown.to_owned()));
    }
    match root.entry(real) {
        Err(error) if absent(&error) => Err(FileError::NoParent(shown.to_owned())),
        other => Ok(other.at("opening the parent of", real)?),
    }
}

fn resolve(root: &RootDir, path: &Path, last: Last) -> Result<PathBuf, IoAt> {
    root.resolve(path, last).at("resolving", path)
}

fn shown(path: &Path) -> String {
    format!("/{}", path.display())
}

#[cfg(test)]
mod tests;
