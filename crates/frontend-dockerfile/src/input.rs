//! Where files come from besides the Dockerfile's own images: the build context and named contexts.
//!
//! Owns their kinds, the texts that name them (`docker-image://…`, `URL#ref:subdir`) and the graphs
//! that hold a Dockerfile which lies in a remote context. Must not fetch anything: whoever plans reads
//! ignore files and pins images. Start with [`ContextSource`] and [`NamedContext`].

use stave_llb::{
    Definition, SourceOp,
    builder::{About, GraphBuilder},
};
use stave_oci::{Digest, ImageConfig, Platform, Reference};

use crate::{
    git::{self, GitError},
    quote::quote,
};

/// The name of the one file that a download is kept as.
pub const DOWNLOAD_NAME: &str = "context";
/// Bytes of a download that [`is_archive`] wants to see.
pub const ARCHIVE_HEAD: usize = 1024;

/// What `COPY` and `ADD` read where they name no stage.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ContextSource {
    /// Files of the client, as the local source `context`; the ignore file applies.
    #[default]
    Local,
    /// A repository as written: `URL#ref:subdir` or with a query. Ignore files do not apply to it.
    Git(String),
    /// A tar archive behind http or https, unpacked.
    Archive(String),
    /// One file behind http or https. It is the Dockerfile, too, and lies in the context as
    /// [`DOWNLOAD_NAME`].
    File(String),
    /// A graph that the client hands in.
    Graph(Box<Definition>),
}

/// What the text that names a build context is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContextForm {
    /// A path of the client.
    Path,
    /// A repository: [`ContextSource::Git`].
    Git,
    /// A download: solve [`download`], look at the head of [`DOWNLOAD_NAME`] in it with [`is_archive`],
    /// then it is [`ContextSource::Archive`] or [`ContextSource::File`].
    Download,
}

/// What a `--build-context` name stands for. Names may end in `::os/architecture`, which then counts
/// only for that platform.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NamedContext {
    /// `docker-image://NAME`.
    Image {
        /// Which.
        reference: Reference,
        /// As it was written, for messages.
        written: String,
    },
    /// `docker-image://scratch`.
    Scratch,
    /// `oci-layout://STORE@DIGEST`.
    OciLayout {
        /// What the session calls the layout.
        store: String,
        /// The manifest or index in it.
        digest: Digest,
    },
    /// `local:NAME`, a directory of the client.
    Local(LocalContext),
    /// A repository as written.
    Git(String),
    /// A download; what it holds is one file called [`DOWNLOAD_NAME`].
    Http(String),
    /// A graph that the client hands in, such as another build's result.
    Graph {
        /// The graph.
        definition: Box<Definition>,
        /// The config of the image it makes, if it makes one.
        config: Option<Box<ImageConfig>>,
    },
}

/// A directory of the client under a name of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LocalContext {
    /// The session's name of it, never `context` or `dockerfile`.
    pub name: String,
    /// Patterns of its own `.dockerignore`, as [`crate::dockerignore::parse`] gives them.
    pub excludes: Vec<String>,
    /// What tells this directory from another of the same name at later builds; may be empty.
    pub shared_key: String,
}

/// Why a text names no context.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ContextError {
    /// There is no scheme.
    #[error("invalid context specifier {specifier} for {name}")]
    Specifier {
        /// The text.
        specifier: String,
        /// The context's name.
        name: String,
    },
    /// The scheme is not known.
    #[error("unsupported context source {scheme} for {name}")]
    Scheme {
        /// The scheme.
        scheme: String,
        /// The context's name.
        name: String,
    },
    /// A name that no image could have.
    #[error("invalid context name {name}: {reason}")]
    Name {
        /// The context's name.
        name: String,
        /// Why.
        reason: stave_oci::ReferenceError,
    },
    /// An image name that is none.
    #[error(transparent)]
    Image(#[from] stave_oci::ReferenceError),
    /// A layout's reference without a digest that pins it.
    #[error("oci-layout reference {} has no digest", quote(.0))]
    Digest(String),
    /// A repository's address that is none.
    #[error("{0}")]
    Git(String),
}

impl From<GitError> for ContextError {
    fn from(error: GitError) -> Self {
        Self::Git(error.to_string())
    }
}

impl ContextForm {
    /// What `text` is.
    ///
    /// # Errors
    /// For a repository with a fragment or query that makes no sense.
    pub fn of(text: &str) -> Result<Self, ContextError> {
        if git::parse_context(text)?.is_some() {
            return Ok(Self::Git);
        }
        let download = text.starts_with("http://") || text.starts_with("https://");
        Ok(if download { Self::Download } else { Self::Path })
    }
}

impl NamedContext {
    /// Reads `specifier` as front ends get it: `docker-image://…`, `oci-layout://STORE@DIGEST`,
    /// `local:NAME`, a repository or a download. A graph (`input:`) has no text of its own.
    ///
    /// # Errors
    /// [`ContextError`], with the reference's texts.
    pub fn parse(name: &str, specifier: &str) -> Result<Self, ContextError> {
        let Some((scheme, rest)) = specifier.split_once(':') else {
            return Err(ContextError::Specifier { specifier: specifier.to_owned(), name: name.to_owned() });
        };
        let rest = rest.strip_prefix("//").unwrap_or(rest);
        match scheme {
            "docker-image" if rest == "scratch" => Ok(Self::Scratch),
            "docker-image" => Ok(Self::Image { reference: rest.parse()?, written: rest.to_owned() }),
            "oci-layout" => oci_layout(rest),
            "local" => Ok(Self::Local(LocalContext { name: rest.to_owned(), ..LocalContext::default() })),
            "http" | "https" if git::parse(specifier)?.is_none() => Ok(Self::Http(specifier.to_owned())),
            "git" | "http" | "https" => Ok(Self::Git(specifier.to_owned())),
            _ if scheme.starts_with("git@") => Ok(Self::Git(specifier.to_owned())),
            _ => Err(ContextError::Scheme { scheme: scheme.to_owned(), name: name.to_owned() }),
        }
    }
}

fn oci_layout(text: &str) -> Result<NamedContext, ContextError> {
    let no_digest = || ContextError::Digest(text.to_owned());
    let (name, digest) = text.rsplit_once('@').ok_or_else(no_digest)?;
    // A tag says nothing beside a digest; a port is no tag.
    let store = match name.rsplit_once(':') {
        Some((store, tag)) if !tag.contains('/') => store,
        _ => name,
    };
    let digest = digest.parse().map_err(|_| no_digest())?;
    Ok(NamedContext::OciLayout { store: store.to_owned(), digest })
}

/// The graph of a download, to look at before it is known what it is.
pub fn download(url: &str) -> Definition {
    let mut graph = GraphBuilder::default();
    let about = About::named("[internal] load remote build context");
    let output = graph.source(download_op(url), &Platform::host(), about);
    graph.finish(Some(output))
}

pub(crate) fn download_op(url: &str) -> SourceOp {
    SourceOp::new(url, [("http.filename".to_owned(), DOWNLOAD_NAME.to_owned())].into())
}

/// Whether a download that begins with `head` is an archive rather than a Dockerfile.
pub fn is_archive(head: &[u8]) -> bool {
    const MAGIC: [&[u8]; 3] = [b"BZh", &[0x1f, 0x8b, 8], &[0xfd, b'7', b'z', b'X', b'Z', 0]];
    MAGIC.iter().any(|magic| head.starts_with(magic)) || head.get(257..262) == Some(b"ustar".as_slice())
}

/// A repository as a context: its source, and how that is shown.
pub(crate) fn git_source(
    text: &str,
    keep_git_dir: bool,
    commit_times: bool,
) -> Result<(SourceOp, About), String> {
    let git = git::parse_context(text).map_err(|cause| cause.to_string())?;
    let git = git.ok_or_else(|| format!("invalid git context {text}"))?;
    let op = git.context_source(keep_git_dir, commit_times);
    Ok((op, About::named(format!("[internal] load git source {text}"))))
}
