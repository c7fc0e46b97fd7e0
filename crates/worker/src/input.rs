//! What an op reads from: a local context or the merged view of a snapshot, behind one set of questions.
//! Owns path selection (symlinks, wildcards) and the digest of a selection. Must not know how views are mounted or
//! definitions. Read [`Input`] first.

use std::borrow::Cow;
use std::ffi::OsString;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, LazyLock};

use rustix::fs::FileType;
use stave_llb::pattern::PatternError;
use stave_solver::{Selector, SelectorPath};

use crate::context::Context;
use crate::context::fingerprint::Fingerprints;
use crate::digest::{Digested, Owners, TreeDigest};
use crate::file::wildcard::{has_wildcard, matches, unescape};
use crate::filter::Filter;
use crate::root::{At as _, IoAt, Last, RootDir, absent, clean};
use crate::tree::{Meta, Node, scan_snapshot};

/// A readable tree.
#[derive(Debug, Clone)]
pub(crate) enum Input {
    Context(Arc<Context>),
    View(Arc<RootDir>),
}

/// Why a selection could not be read.
#[derive(Debug, thiserror::Error)]
pub enum SelectError {
    /// The operating system refused.
    #[error(transparent)]
    Io(#[from] IoAt),
    /// A pattern is malformed.
    #[error(transparent)]
    Pattern(#[from] PatternError),
}

impl Input {
    /// A view of a root that stays open elsewhere.
    pub(crate) fn borrowing(root: &RootDir) -> io::Result<Self> {
        Ok(Self::View(Arc::new(RootDir::from_fd(root.fd().try_clone_to_owned()?))))
    }

    /// The directory, for reading content.
    pub(crate) fn root(&self) -> &RootDir {
        match self {
            Self::Context(context) => context.root(),
            Self::View(root) => root,
        }
    }

    /// Whose its files are when they are copied.
    pub(crate) fn owners(&self) -> Owners {
        match self {
            Self::Context(_) => Owners::Root,
            Self::View(_) => Owners::Kept,
        }
    }

    /// Whether its times are those of somebody's checkout. What a client sent keeps its times, as it does with
    /// BuildKit.
    pub(crate) fn has_context_times(&self) -> bool {
        matches!(self, Self::Context(context) if context.is_own())
    }

    /// The canonical path of what a path means.
    pub(crate) fn resolve(&self, path: &Path, last: Last) -> io::Result<PathBuf> {
        match self {
            Self::Context(context) => context.tree().resolve(path, last),
            Self::View(root) => root.resolve(path, last),
        }
    }

    /// The tree at a canonical path.
    pub(crate) fn node(&self, path: &Path) -> io::Result<Option<Cow<'_, Node>>> {
        match self {
            Self::Context(context) => Ok(context.tree().get(path).map(Cow::Borrowed)),
            Self::View(root) => Ok(scan_snapshot(root, path)?.map(Cow::Owned)),
        }
    }

    /// The kind of what is at a canonical path.
    pub(crate) fn file_type(&self, path: &Path) -> io::Result<Option<FileType>> {
        match self {
            Self::Context(context) => Ok(context.tree().get(path).map(|node| node.meta.file_type())),
            Self::View(root) => Ok(root.stat(path)?.map(|stat| Meta::from(&stat).file_type())),
        }
    }

    fn list(&self, path: &Path) -> io::Result<Vec<OsString>> {
        match self {
            Self::Context(context) => {
                let node = context.tree().get(path);
                Ok(node
                    .map(|node| node.children().iter().map(|child| child.name.clone()).collect())
                    .unwrap_or_default())
            }
            Self::View(root) => match root.list(path) {
                Err(error) if absent(&error) => Ok(Vec::new()),
                other => other,
            },
        }
    }

    /// The paths a pattern stands for, sorted; only those that exist. Wildcards match within one component, and
    /// what comes before the first wildcard may lead through symlinks.
    pub(crate) fn expand(&self, pattern: &str) -> io::Result<Vec<PathBuf>> {
        let components: Vec<&str> = Path::new(pattern)
            .components()
            .filter_map(|component| match component {
                Component::Normal(name) => name.to_str(),
                Component::ParentDir => Some(".."),
                Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
            })
            .collect();
        let literal = components.iter().take_while(|component| !has_wildcard(component)).count();
        let base: PathBuf = components[..literal].iter().map(|component| unescape(component)).collect();
        let base = clean(&base);
        if literal == components.len() {
            return Ok(vec![base]);
        }
        let real = self.resolve(&base, Last::Follow)?;
        let mut found = vec![(base, real)];
        for component in &components[literal..] {
            let mut next = Vec::new();
            for (shown, real) in &found {
                for name in self.list(real)? {
                    if matches(component, &name.to_string_lossy()) {
                        next.push((shown.join(&name), real.join(&name)));
                    }
                }
            }
            found = next;
        }
        let mut paths: Vec<PathBuf> = found.into_iter().map(|(shown, _)| shown).collect();
        paths.sort_unstable();
        Ok(paths)
    }

    /// The digest of what a selector picks; the whole input when it picks nothing in particular.
    pub(crate) fn digest(&self, selector: &Selector) -> Result<([u8; 32], Digested<'_>), SelectError> {
        static NONE: LazyLock<Fingerprints> = LazyLock::new(Fingerprints::none);
        let fingerprints = match self {
            Self::Context(context) => context.fingerprints(),
            Self::View(_) => &NONE,
        };
        let mut digest = TreeDigest::new(self.root(), self.owners(), fingerprints);
        if selector.paths.is_empty() {
            self.add(&mut digest, "", Path::new(""), None)?;
        }
        for path in &selector.paths {
            self.add_path(&mut digest, path)?;
        }
        Ok(digest.finish())
    }

    fn add_path<'s>(
        &'s self,
        digest: &mut TreeDigest<'s>,
        selector: &SelectorPath,
    ) -> Result<(), SelectError> {
        let shown = Path::new(&selector.path);
        let filter = if selector.include_patterns.is_empty() && selector.exclude_patterns.is_empty() {
            None
        } else {
            Some(Filter::new(&selector.include_patterns, &selector.exclude_patterns)?)
        };
        let last = if selector.follow_links { Last::Follow } else { Last::Keep };
        if !selector.wildcard {
            let real = self.resolve(shown, last).at("resolving", shown)?;
            return self.add(digest, "", &real, filter.as_ref());
        }
        for path in self.expand(&selector.path).at("searching", shown)? {
            let real = self.resolve(&path, last).at("resolving", &path)?;
            // A match goes to a destination by its base name; where it was found makes no difference.
            let label = path.file_name().unwrap_or_default().to_string_lossy();
            self.add(digest, &label, &real, filter.as_ref())?;
        }
        Ok(())
    }

    fn add<'s>(
        &'s self,
        digest: &mut TreeDigest<'s>,
        label: &str,
        path: &Path,
        filter: Option<&Filter>,
    ) -> Result<(), SelectError> {
        let node = self.node(path).at("scanning", path)?;
        let node = match (node, filter) {
            (Some(node), Some(filter)) => node.prune(filter).map(Cow::Owned),
            (node, _) => node,
        };
        match node {
            Some(node) => Ok(digest.add(label, path, node)?),
            None => {
                digest.add_absent(label);
                Ok(())
            }
        }
    }
}
