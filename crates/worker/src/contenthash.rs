//! Content digests as BuildKit makes them (its `cache/contenthash`): SHA-256 over what a tar header would say of
//! a file, its extended attributes and its bytes, and over the names and digests of a directory's children.
//! Used only where a cache travels; the local cache has a digest of its own.
//! Must not know ops or caches. Read [`digest`] first.
//!
//! Paths are keys with NUL for `/`, so that a directory's entries come before its neighbour `dir.txt`; a directory
//! counts twice, as its own header (`dir/`) and as the digest of all that is below it.

mod file;

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use sha2::{Digest as _, Sha256};
use stave_llb::pattern::{DirectoryMatches, Glob, PatternMatcher};
use stave_oci::Digest;
use stave_remotecache::key::{ContentPath, content_digest};

use self::file::{Known, file_digest};
use crate::input::{Input, SelectError};
use crate::root::{At as _, Last};
use crate::tree::{Kind, Node};

pub(crate) use self::file::FileDigests;

/// The digest of what `paths` pick of an input; the whole of it when they pick nothing in particular. `None` when
/// something they name is not there.
pub(crate) fn digest(
    input: &Input,
    paths: &[ContentPath],
    files: &FileDigests,
) -> Result<Option<Digest>, SelectError> {
    let whole = [ContentPath { path: "/".to_owned(), ..ContentPath::default() }];
    let paths = if paths.is_empty() { &whole } else { paths };
    let hash = Hash { known: Known { input, files } };
    let mut parts = Vec::with_capacity(paths.len());
    for path in paths {
        let part = if path.is_filtered() {
            hash.filtered(path)?
        } else {
            hash.plain(&path.path, path.follow_links)?
        };
        match part {
            Some(part) => parts.push(part),
            None => return Ok(None),
        }
    }
    Ok(Some(content_digest(&parts)))
}

/// The digest of an empty file system, of which only the whole can be picked.
pub(crate) fn digest_of_nothing(paths: &[ContentPath]) -> Option<Digest> {
    let empty = Digest::sha256(b"");
    let parts: Vec<Digest> = if paths.is_empty() { vec![empty.clone()] } else { vec![empty; paths.len()] };
    paths.iter().all(|path| path.path.trim_matches('/').is_empty()).then(|| content_digest(&parts))
}

struct Hash<'a> {
    known: Known<'a>,
}

/// One entry of a filtered digest.
struct Included {
    /// As the pattern sees it: below the path that was asked for, links in it not followed.
    path: String,
    digest: Digest,
    is_symlink: bool,
    follow: bool,
}

/// A directory on the way to an entry; it is included with the first entry below it.
struct Parent {
    path: String,
    digest: Digest,
    included: bool,
    includes: DirectoryMatches,
    excludes: DirectoryMatches,
}

struct Walk<'a> {
    hash: &'a Hash<'a>,
    /// The pattern, or the path itself.
    wanted: String,
    glob: Option<Glob>,
    include: Option<PatternMatcher>,
    exclude: Option<PatternMatcher>,
    follow: bool,
    /// The header of what was asked for does not count, because it was asked for with a slash.
    bare: bool,
    parents: Vec<Parent>,
    matched: Option<String>,
    found: Vec<Included>,
}

impl Hash<'_> {
    fn resolve(&self, path: &str, last: Last) -> Result<PathBuf, SelectError> {
        let path = Path::new(path);
        Ok(self.known.input.resolve(path, last).at("resolving", path)?)
    }

    fn node(&self, path: &Path) -> Result<Option<Cow<'_, Node>>, SelectError> {
        Ok(self.known.input.node(path).at("scanning", path)?)
    }

    fn plain(&self, path: &str, follow: bool) -> Result<Option<Digest>, SelectError> {
        let real = self.resolve(path, if follow { Last::Follow } else { Last::Keep })?;
        match self.node(&real)? {
            Some(node) => Ok(Some(self.whole(&node, &real)?)),
            None => Ok(None),
        }
    }

    /// The digest of a file, or of a directory with all below it.
    fn whole(&self, node: &Node, at: &Path) -> Result<Digest, SelectError> {
        let Kind::Directory(children) = &node.kind else { return self.own(node, at) };
        let digests: Vec<Digest> = children
            .par_iter()
            .map(|child| self.whole(child, &at.join(&child.name)))
            .collect::<Result<_, _>>()?;
        let mut hasher = Sha256::new();
        hasher.update(b"\0");
        hasher.update(self.own(node, at)?.as_str());
        for (child, digest) in children.iter().zip(&digests) {
            hasher.update(b"\0");
            hasher.update(child.name.as_encoded_bytes());
            hasher.update(digest.as_str());
        }
        Ok(Digest::from_sha256(hasher.finalize().into()))
    }

    /// The digest of a file, or of a directory's header.
    fn own(&self, node: &Node, at: &Path) -> Result<Digest, SelectError> {
        Ok(file_digest(&self.known, node, at)?)
    }

    fn filtered(&self, path: &ContentPath) -> Result<Option<Digest>, SelectError> {
        let clean = rooted(&path.path);
        let (prefix, last) = if path.wildcard {
            let (literal, has_rest) = literal_part(&clean);
            (literal, if has_rest { Last::Follow } else { Last::Keep })
        } else {
            (clean.clone(), Last::Keep)
        };
        let real = self.resolve(&prefix, last)?;
        let matcher = |patterns: &[String]| -> Result<Option<PatternMatcher>, SelectError> {
            if patterns.is_empty() { Ok(None) } else { Ok(Some(PatternMatcher::new(patterns)?)) }
        };
        let mut walk = Walk {
            hash: self,
            glob: if path.wildcard { Some(Glob::new(&clean)?) } else { None },
            include: matcher(&path.include_patterns)?,
            exclude: matcher(&path.exclude_patterns)?,
            follow: path.follow_links,
            bare: clean.is_empty(),
            wanted: clean,
            parents: Vec::new(),
            matched: None,
            found: Vec::new(),
        };
        if let Some(node) = self.node(&real)? {
            walk.visit(&node, &real, &prefix)?;
        }
        self.combine(walk.found, path, &prefix)
    }

    fn combine(
        &self,
        mut found: Vec<Included>,
        path: &ContentPath,
        prefix: &str,
    ) -> Result<Option<Digest>, SelectError> {
        for entry in &mut found {
            if entry.follow && entry.is_symlink {
                match self.plain(&entry.path, path.follow_links)? {
                    Some(digest) => entry.digest = digest,
                    None => return Ok(None),
                }
            }
        }
        let base = |path: &str| path.rsplit('/').next().unwrap_or_default().to_owned();
        match found.as_slice() {
            [] => Ok(Some(Digest::sha256(b""))),
            [only] if base(&rooted(&path.path)) == base(&only.path) => Ok(Some(only.digest.clone())),
            all => {
                let mut hasher = Sha256::new();
                for entry in all {
                    let below = entry.path.strip_prefix(prefix).unwrap_or(&entry.path);
                    if below.is_empty() {
                        hasher.update(b"\0");
                    }
                    hasher.update(below.replace('/', "\0"));
                    hasher.update(entry.digest.as_str());
                }
                Ok(Some(Digest::from_sha256(hasher.finalize().into())))
            }
        }
    }
}

impl Walk<'_> {
    /// A file, or a directory's header and then what is in it, in the order of their keys.
    fn visit(&mut self, node: &Node, at: &Path, shown: &str) -> Result<(), SelectError> {
        while self.parents.last().is_some_and(|parent| !is_below(shown, &parent.path)) {
            self.parents.pop();
        }
        let skip = node.is_dir() && self.bare && shown == self.wanted;
        if !skip && self.names(shown) {
            self.judge(node, at, shown)?;
        }
        for child in node.children() {
            let name = child.name.to_string_lossy();
            self.visit(child, &at.join(&child.name), &format!("{shown}/{name}"))?;
        }
        Ok(())
    }

    /// Whether the pattern names the path, or a directory above it that it matched before.
    fn names(&mut self, shown: &str) -> bool {
        let Some(glob) = &self.glob else { return true };
        if self.wanted.is_empty() || self.matched.as_ref().is_some_and(|matched| is_below(shown, matched)) {
            return true;
        }
        let matches = glob.matches(shown);
        if matches {
            self.matched = Some(shown.to_owned());
        }
        matches
    }

    fn judge(&mut self, node: &Node, at: &Path, shown: &str) -> Result<(), SelectError> {
        let from = if self.glob.is_some() { self.matched.as_deref().unwrap_or("") } else { &self.wanted };
        let candidate = shown.strip_prefix(from).unwrap_or(shown).trim_start_matches('/').to_owned();
        let (mut includes, mut excludes) = (DirectoryMatches::default(), DirectoryMatches::default());
        let none = DirectoryMatches::default();
        let mut wanted = true;
        if let Some(matcher) = &self.include {
            let parent = self.parents.last().map_or(&none, |parent| &parent.includes);
            (wanted, includes) = matcher.matches_within(&candidate, parent);
        }
        if wanted && let Some(matcher) = &self.exclude {
            let parent = self.parents.last().map_or(&none, |parent| &parent.excludes);
            let excluded;
            (excluded, excludes) = matcher.matches_within(&candidate, parent);
            wanted = !excluded;
        }
        if !wanted && !node.is_dir() {
            return Ok(());
        }
        let digest = self.hash.own(node, at)?;
        let follow = self.follow && self.parents.is_empty();
        if wanted {
            for parent in self.parents.iter_mut().filter(|parent| !parent.included) {
                parent.included = true;
                let (path, digest) = (parent.path.clone(), parent.digest.clone());
                self.found.push(Included { path, digest, is_symlink: false, follow: false });
            }
            let is_symlink = matches!(node.kind, Kind::Symlink(_));
            self.found.push(Included { path: shown.to_owned(), digest: digest.clone(), is_symlink, follow });
        }
        if node.is_dir() {
            let path = shown.to_owned();
            self.parents.push(Parent { path, digest, included: wanted, includes, excludes });
        }
        Ok(())
    }
}

fn is_below(path: &str, directory: &str) -> bool {
    path.strip_prefix(directory).is_some_and(|rest| rest.starts_with('/'))
}

/// The path as a key: absolute and clean, empty for the root.
fn rooted(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.iter().fold(String::new(), |text, part| text + "/" + part)
}

/// What stands before the first component with a wildcard, and whether there is one.
fn literal_part(path: &str) -> (String, bool) {
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    let count = parts.iter().take_while(|part| !crate::file::wildcard::has_wildcard(part)).count();
    (parts[..count].iter().fold(String::new(), |text, part| text + "/" + part), count < parts.len())
}

#[cfg(test)]
mod tests;
