//! `--build-context NAME=SOURCE`: directories, images, OCI layouts, archives and repositories that stand for a
//! stage or an image of the Dockerfile. What is wrong with them is said in docker's words.
//!
//! Owns the flag's language and what has to be looked at on this machine: ignore files, layouts' tags. Must not
//! fetch anything. Start with [`read`].

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use stave_frontend_dockerfile::input::{ContextError, ContextForm, LocalContext};
use stave_frontend_dockerfile::{NamedContext, dockerignore};
use stave_oci::{Digest, Reference};
use stave_worker::{LayoutError, OciLayout};

/// Bytes of the largest ignore file.
const MAX_IGNORE_FILE: u64 = 16 << 20;

/// The tag of a layout's image that nobody names.
const DEFAULT_TAG: &str = "latest";

/// Named contexts, ready for a build.
#[derive(Debug, Default)]
pub(super) struct NamedContexts {
    /// What the front end gets.
    pub(super) plan: BTreeMap<String, NamedContext>,
    /// Directories by the names of their local sources.
    pub(super) directories: BTreeMap<String, PathBuf>,
    /// OCI layouts by name.
    pub(super) layouts: BTreeMap<String, PathBuf>,
}

/// A `--build-context` that cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum NamedContextError {
    /// No `=`.
    #[error("invalid context value: {0}, expected key=value")]
    Form(String),
    /// A name that no image could have.
    #[error("invalid context name {name}")]
    Name {
        /// The name.
        name: String,
        /// Why.
        #[source]
        source: stave_oci::ReferenceError,
    },
    /// A source that makes no sense.
    #[error(transparent)]
    Source(#[from] ContextError),
    /// A directory that is not there.
    #[error("failed to get build context {name}: stat {}: {source}", path.display())]
    NotFound {
        /// The context.
        name: String,
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file instead of a directory.
    #[error("failed to get build context path {{{} <nil>}}: not a directory", .0.display())]
    NotDirectory(PathBuf),
    /// Its ignore file cannot be read.
    #[error("failed to read `{}`", path.display())]
    IgnoreFile {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The image is not in the layout.
    #[error("oci-layout reference {specifier:?} could not be resolved")]
    Layout {
        /// As typed.
        specifier: String,
        /// Why.
        #[source]
        source: LayoutError,
    },
    /// Digits that are no digest.
    #[error("oci-layout reference {0:?} has an invalid digest")]
    Digest(String),
}

/// Reads the flags; of two for one name, the last counts.
pub(super) fn read(flags: &[String]) -> Result<NamedContexts, NamedContextError> {
    let mut contexts = NamedContexts::default();
    for flag in flags {
        let Some((name, source)) = flag.split_once('=') else {
            return Err(NamedContextError::Form(flag.clone()));
        };
        let named: Reference =
            name.parse().map_err(|source| NamedContextError::Name { name: name.to_owned(), source })?;
        let familiar = named.familiar();
        let name = familiar.strip_suffix(":latest").unwrap_or(&familiar).to_owned();
        let context = contexts.source(&name, source)?;
        contexts.plan.insert(name, context);
    }
    Ok(contexts)
}

impl NamedContexts {
    fn source(&mut self, name: &str, source: &str) -> Result<NamedContext, NamedContextError> {
        if let Some(rest) = source.strip_prefix("oci-layout://") {
            return self.layout(name, source, rest);
        }
        let is_elsewhere =
            source.starts_with("docker-image://") || ContextForm::of(source)? != ContextForm::Path;
        if is_elsewhere && !Path::new(source).is_dir() {
            return Ok(NamedContext::parse(name, source)?);
        }
        self.directory(name, Path::new(source))
    }

    fn directory(&mut self, name: &str, path: &Path) -> Result<NamedContext, NamedContextError> {
        let metadata = fs::metadata(path).map_err(|source| NamedContextError::NotFound {
            name: name.to_owned(),
            path: path.to_owned(),
            source: plain(source),
        })?;
        if !metadata.is_dir() {
            return Err(NamedContextError::NotDirectory(path.to_owned()));
        }
        let excludes = ignored(&path.join(".dockerignore"))?;
        // The build context and the Dockerfile have these names.
        let local =
            if matches!(name, "context" | "dockerfile") { format!("_{name}") } else { name.to_owned() };
        self.directories.insert(local.clone(), path.to_owned());
        Ok(NamedContext::Local(LocalContext { name: local, excludes, shared_key: String::new() }))
    }

    /// `PATH[:TAG][@DIGEST]`
    fn layout(&mut self, name: &str, whole: &str, rest: &str) -> Result<NamedContext, NamedContextError> {
        let (rest, digest) = match rest.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest)),
            None => (rest, None),
        };
        let (path, tag) = rest.split_once(':').unwrap_or((rest, DEFAULT_TAG));
        let failed = |source| NamedContextError::Layout { specifier: whole.to_owned(), source };
        let layout = OciLayout::open(Path::new(path)).map_err(failed)?;
        let digest: Digest = match digest {
            Some(digest) => digest.parse().map_err(|_| NamedContextError::Digest(whole.to_owned()))?,
            None => layout.tagged(tag).map_err(failed)?,
        };
        self.layouts.insert(name.to_owned(), PathBuf::from(path));
        Ok(NamedContext::OciLayout { store: name.to_owned(), digest })
    }
}

fn ignored(path: &Path) -> Result<Vec<String>, NamedContextError> {
    use std::io::Read as _;
    let failed = |source| NamedContextError::IgnoreFile { path: path.to_owned(), source };
    let file = match fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut text = String::new();
    file.take(MAX_IGNORE_FILE).read_to_string(&mut text).map_err(failed)?;
    Ok(dockerignore::parse(&text))
}

/// The words that docker's client has for it.
fn plain(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::NotFound => io::Error::new(error.kind(), "no such file or directory"),
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(flag: &str) -> Result<NamedContexts, String> {
        read(&[flag.to_owned()]).map_err(|error| error.to_string())
    }

    #[track_caller]
    fn check_error(flag: &str, expected: &str) {
        assert_eq!(one(flag).expect_err("is refused"), expected);
    }

    #[test]
    fn what_is_refused() {
        check_error("x", "invalid context value: x, expected key=value");
        check_error("=x", "invalid context name ");
        check_error("X=/tmp", "invalid context name X");
        check_error("x=/nowhere", "failed to get build context x: stat /nowhere: no such file or directory");
        check_error("x=/dev/null", "failed to get build context path {/dev/null <nil>}: not a directory");
        check_error(
            "x=oci-layout:///nowhere",
            "oci-layout reference \"oci-layout:///nowhere\" could not be resolved",
        );
        check_error("x=https://a.test/b.git?what=1", "unexpected query \"what\"");
    }

    #[test]
    fn kinds() {
        let plan = |flag: &str| one(flag).expect("valid").plan.into_values().next().expect("one");
        assert!(matches!(plan("x=docker-image://busybox"), NamedContext::Image { .. }));
        assert_eq!(plan("x=docker-image://scratch"), NamedContext::Scratch);
        assert_eq!(
            plan("x=https://a.test/b.git#main"),
            NamedContext::Git("https://a.test/b.git#main".into())
        );
        assert_eq!(plan("x=git@a.test:b.git"), NamedContext::Git("git@a.test:b.git".into()));
        assert_eq!(plan("x=https://a.test/b.tar"), NamedContext::Http("https://a.test/b.tar".into()));
    }

    #[test]
    fn names_are_images() {
        let names = |flag: &str| one(flag).expect("valid").plan.into_keys().collect::<Vec<_>>();
        assert_eq!(names("docker.io/library/alpine:latest=docker-image://x"), ["alpine"]);
        assert_eq!(names("alpine:3.21=docker-image://x"), ["alpine:3.21"]);
        assert_eq!(names("base=docker-image://x"), ["base"]);
    }

    #[test]
    fn directories_bring_their_ignore_files() {
        let folder = tempfile::tempdir().expect("tempdir");
        fs::write(folder.path().join(".dockerignore"), "*.log\n!keep.log\n").expect("write");
        let contexts = one(&format!("context={}", folder.path().display())).expect("valid");
        let local = LocalContext {
            name: "_context".into(),
            excludes: vec!["*.log".into(), "!keep.log".into()],
            shared_key: String::new(),
        };
        assert_eq!(contexts.plan["context"], NamedContext::Local(local));
        assert_eq!(contexts.directories["_context"], folder.path());
    }
}
