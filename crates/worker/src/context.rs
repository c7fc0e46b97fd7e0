//! Local build contexts: a directory of this machine as a build sees it, filtered, scanned once, told apart by
//! content. Owns the scan, the rule which symlinks are followed to find what a build needs, and the fingerprints.
//! Must not know ops. Read [`Context`] first.
//!
//! A context has no identity but its content: two scans are the same input exactly when the digests of what an op
//! uses of them are equal. Path, size and mtime alone never decide that (see [`fingerprint`]).

pub(crate) mod fingerprint;
mod follow;

use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::StatFs;
use stave_llb::pattern::PatternError;
use stave_store::Snapshot;

use self::fingerprint::Fingerprints;
use crate::contenthash::FileDigests;
use crate::filter::Filter;
use crate::root::{At as _, IoAt, RootDir};
use crate::session::ContextModes;
use crate::tree::{Kind, Node, scan};

/// File systems whose timestamps come from another clock, or may not change when content does.
const FOREIGN_CLOCKS: [u64; 9] = [
    0x6969,      // NFS
    0xFF53_4D42, // CIFS
    0xFE53_4D42, // SMB2
    0x517B,      // SMB
    0x0102_1997, // 9P
    0x6573_5546, // FUSE, virtiofs
    0x00C3_6400, // Ceph
    0x5346_414F, // AFS
    0x7461_636F, // OCFS2
];

/// Which part of a directory a build wants.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ContextFilter {
    /// What takes part; empty for everything.
    pub include: Vec<String>,
    /// What does not, in `.dockerignore`'s language.
    pub exclude: Vec<String>,
    /// Paths that are needed, with whatever their symlinks lead to; empty for everything.
    pub follow: Vec<String>,
    /// What becomes of modes.
    pub modes: ContextModes,
}

/// Why a directory cannot be a context.
#[derive(Debug, thiserror::Error)]
pub enum ContextError {
    /// The operating system refused.
    #[error(transparent)]
    Io(#[from] IoAt),
    /// A pattern is malformed.
    #[error(transparent)]
    Pattern(#[from] PatternError),
}

/// A scanned directory.
#[derive(Debug)]
pub struct Context {
    root: RootDir,
    tree: Node,
    fingerprints: Fingerprints,
    /// Where digests of files for caches that travel are kept.
    file_digests_at: Option<PathBuf>,
    file_digests: OnceLock<FileDigests>,
    materialised: OnceLock<Snapshot>,
    changed: AtomicBool,
    /// Keeps the directory as it is, where it is not the user's own but what a client sent.
    guard: Option<Box<dyn std::any::Any + Send + Sync>>,
}

impl Context {
    /// Scans a directory. `fingerprints` is the directory in which knowledge of earlier scans is kept.
    pub(crate) fn scan(
        directory: &Path,
        filter: &ContextFilter,
        fingerprints: Option<&Path>,
    ) -> Result<Self, ContextError> {
        let root = RootDir::open(directory)?;
        let mut include = filter.include.clone();
        if !filter.follow.is_empty() {
            include.extend(follow::follow(&root, &filter.follow).at("following symlinks in", directory)?);
        }
        if include.iter().any(|pattern| matches!(pattern.as_str(), "." | "/" | "")) {
            include.clear();
        }
        let filter_modes = filter.modes;
        let filter = Filter::new(&include, &filter.exclude)?;
        let mut tree = match scan(&root, Path::new(""), &filter).at("scanning", directory)? {
            Some(tree) => tree,
            None => return Err(absent_directory(directory).into()),
        };
        select_all(&mut tree);
        if filter_modes == ContextModes::Git {
            as_git_keeps(&mut tree);
        }
        let kept = match fingerprints {
            Some(kept) if own_clock(&root, directory)? => Some(kept.join(file_name(directory))),
            _ => None,
        };
        let fingerprints = kept.as_deref().map_or_else(Fingerprints::none, Fingerprints::load);
        Ok(Self {
            root,
            tree,
            fingerprints,
            file_digests_at: kept.map(|file| file.with_extension("sha256")),
            file_digests: OnceLock::new(),
            materialised: OnceLock::new(),
            changed: AtomicBool::new(false),
            guard: None,
        })
    }

    /// The same, keeping `guard` for as long as it lives.
    pub(crate) fn guarded(mut self, guard: Box<dyn std::any::Any + Send + Sync>) -> Self {
        self.guard = Some(guard);
        self
    }

    /// Whether it is a directory of this machine's user, read where it lies.
    pub(crate) fn is_own(&self) -> bool {
        self.guard.is_none()
    }

    /// The directory, for reading content.
    pub(crate) fn root(&self) -> &RootDir {
        &self.root
    }

    /// What was found.
    pub(crate) fn tree(&self) -> &Node {
        &self.tree
    }

    /// What is known of its files.
    pub(crate) fn fingerprints(&self) -> &Fingerprints {
        &self.fingerprints
    }

    /// What is known of its files for caches that travel; read when first needed.
    pub(crate) fn file_digests(&self) -> &FileDigests {
        self.file_digests.get_or_init(|| FileDigests::of(self.file_digests_at.as_ref()))
    }

    /// The context as a snapshot, once something needed it as a directory.
    pub(crate) fn materialised(&self) -> &OnceLock<Snapshot> {
        &self.materialised
    }

    /// Notes that a file was no longer what the scan saw when it was read.
    pub(crate) fn mark_changed(&self) {
        self.changed.store(true, Ordering::Relaxed);
    }

    /// Whether what was read can differ from what was digested: such results must not be recorded.
    pub(crate) fn has_changed(&self) -> bool {
        self.changed.load(Ordering::Relaxed)
    }

    /// Number of files and directories that take part.
    #[must_use]
    pub fn count(&self) -> usize {
        self.tree.count()
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // Losing what was learnt costs time, not correctness.
        if let Err(error) = self.fingerprints.save() {
            tracing::debug!(%error, "fingerprints not saved");
        }
    }
}

/// A directory kept for something below it is as much part of the context as any other.
fn select_all(node: &mut Node) {
    node.selected = true;
    if let Kind::Directory(children) = &mut node.kind {
        children.iter_mut().for_each(select_all);
    }
}

/// Modes as git's model has them.
fn as_git_keeps(node: &mut Node) {
    let executable = node.is_dir() || node.meta.mode & 0o100 != 0;
    if node.is_dir() || matches!(node.kind, Kind::File) {
        node.meta.mode = node.meta.mode & !0o7777 | if executable { 0o755 } else { 0o644 };
    }
    if let Kind::Directory(children) = &mut node.kind {
        children.iter_mut().for_each(as_git_keeps);
    }
}

fn absent_directory(directory: &Path) -> IoAt {
    let missing: Result<(), _> = Err(std::io::Error::from(std::io::ErrorKind::NotFound));
    match missing.at("scanning", directory) {
        Err(error) => error,
        Ok(()) => unreachable!("the result above is an error"),
    }
}

fn own_clock(root: &RootDir, directory: &Path) -> Result<bool, IoAt> {
    let status: StatFs = rustix::fs::fstatfs(root.fd()).at("looking at", directory)?;
    Ok(!FOREIGN_CLOCKS.contains(&(status.f_type as u64 & 0xFFFF_FFFF)))
}

/// One file of fingerprints for each context directory, by its real path.
fn file_name(directory: &Path) -> String {
    let real: PathBuf = directory.canonicalize().unwrap_or_else(|_| directory.to_owned());
    blake3::hash(real.as_os_str().as_encoded_bytes()).to_hex()[..32].to_owned()
}

#[cfg(test)]
mod tests;
