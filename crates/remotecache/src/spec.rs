//! What `--cache-to` and `--cache-from` ask for.
//!
//! Owns the options of each type with their defaults, as BuildKit and docker's clients have them. Must not know
//! how they are carried out. Start with [`ExportSpec`] and [`ImportSpec`].

mod csv;
mod parse;
#[cfg(test)]
mod tests;

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use stave_oci::{Compression, Digest, Reference};

/// Where a cache goes, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportSpec {
    /// Where to.
    pub target: ExportTarget,
    /// How much of the build.
    pub mode: Mode,
    /// How layers are compressed.
    pub compression: CompressionChoice,
    /// The documents that list the layers.
    pub manifest: ManifestForm,
    /// Whether the build goes on when the export fails.
    pub ignore_error: bool,
    /// Whether cache mounts go along.
    pub mounts: Option<MountLimits>,
}

/// Where a cache comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImportSpec {
    /// Where from.
    pub source: ImportSource,
    /// Whether cache mounts come along.
    pub mounts: Option<MountLimits>,
}

/// A place a cache can be written to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExportTarget {
    /// The config of the image itself.
    Inline,
    /// A repository.
    Registry(RegistryPlace),
    /// A directory of this machine, as an OCI image layout.
    Local {
        /// The directory.
        dest: PathBuf,
        /// Its name in the layout's index.
        tag: String,
        /// Whether blobs nothing refers to any more are removed.
        reset: bool,
    },
    /// An object store.
    S3(S3Place),
}

/// A place a cache can be read from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImportSource {
    /// A repository: a cache, or an image with one inside.
    Registry(RegistryPlace),
    /// A directory of this machine.
    Local {
        /// The directory.
        src: PathBuf,
        /// Which manifest; `None` asks the layout's index for `tag`.
        digest: Option<Digest>,
        /// The name in the layout's index.
        tag: String,
    },
    /// An object store.
    S3(S3Place),
}

/// A repository and tag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegistryPlace {
    /// The name, with a tag.
    pub reference: Reference,
    /// Whether it may speak plain HTTP or have any certificate.
    pub insecure: bool,
}

/// How much of a build is exported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// The layers of the result.
    #[default]
    Min,
    /// The results of all steps.
    Max,
}

/// How layers are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CompressionChoice {
    /// With what; layers that have another compression keep it.
    pub algorithm: Compression,
    /// How hard; `None` is the algorithm's own default.
    pub level: Option<i32>,
    /// Whether layers of another compression are compressed anew.
    pub force: bool,
}

impl Default for CompressionChoice {
    fn default() -> Self {
        Self { algorithm: Compression::Gzip, level: None, force: false }
    }
}

/// The document that lists a cache's layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ManifestForm {
    /// An OCI image manifest, which every registry takes.
    #[default]
    OciManifest,
    /// An OCI index.
    OciIndex,
    /// A Docker manifest list.
    DockerList,
}

/// How much of the cache mounts travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MountLimits {
    /// Bytes of one mount, before compression; the files used longest ago stay behind. `None` is no limit.
    pub max_size: Option<u64>,
}

/// A bucket and how it is reached.
#[derive(Clone, PartialEq, Eq)]
pub struct S3Place {
    /// The bucket.
    pub bucket: String,
    /// The region.
    pub region: String,
    /// In front of every key.
    pub prefix: String,
    /// In front of manifests' names.
    pub manifests_prefix: String,
    /// In front of blobs' digests.
    pub blobs_prefix: String,
    /// Names of the cache; all are written, the first is read.
    pub names: Vec<String>,
    /// Age from which a blob that is there is touched, so that it does not expire.
    pub touch_refresh: Duration,
    /// Another endpoint than Amazon's.
    pub endpoint: Option<String>,
    /// Whether the bucket stands in the path and not in the host name.
    pub path_style: bool,
    /// Blobs written at once.
    pub parallel: usize,
    /// Attempts for each request.
    pub attempts: u32,
    /// Who asks; `None` asks without a signature.
    pub credentials: Option<S3Credentials>,
}

/// Keys of an object store; never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct S3Credentials {
    /// The public part.
    pub access_key_id: String,
    /// The secret part.
    pub secret_access_key: String,
    /// For temporary keys.
    pub session_token: Option<String>,
}

impl fmt::Debug for S3Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("S3Place")
            .field("bucket", &self.bucket)
            .field("prefix", &self.prefix)
            .field("names", &self.names)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for S3Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("S3Credentials").finish_non_exhaustive()
    }
}

/// An option that is not one, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// Not comma separated values.
    #[error("parse error on line 1: bare or extraneous \" in cache option")]
    Quote,
    /// Longer than any such option.
    #[error("cache option is longer than {limit} bytes")]
    TooLong {
        /// How long it may be.
        limit: usize,
    },
    /// A field without `=`.
    #[error("invalid value {0}")]
    NotAPair(String),
    /// No `type=`.
    #[error("type required form> {0:?}")]
    MissingType(String),
    /// A type nobody knows.
    #[error("unknown cache {direction} type: {name:?}")]
    UnknownType {
        /// `exporter` or `importer`.
        direction: &'static str,
        /// The type.
        name: String,
    },
    /// A type that BuildKit has and this program lacks.
    #[error("cache type {0:?} is not supported; `registry`, `local`, `inline` and `s3` are")]
    LackingType(String),
    /// A key that the type does not have.
    #[error("unknown option `{key}` for {kind} cache {direction}")]
    UnknownKey {
        /// The type.
        kind: &'static str,
        /// `exporter` or `importer`.
        direction: &'static str,
        /// The key.
        key: String,
    },
    /// Something without which the type makes no sense.
    #[error("{kind} cache {direction} requires {key}")]
    Missing {
        /// The type.
        kind: &'static str,
        /// `exporter` or `importer`.
        direction: &'static str,
        /// The key.
        key: &'static str,
    },
    /// A name that is none.
    #[error("invalid cache reference {value:?}: {reason}")]
    Reference {
        /// The text.
        value: String,
        /// Why.
        reason: String,
    },
    /// A value of the wrong form.
    #[error("failed to parse {key}: {value:?} is not {expected}")]
    Value {
        /// The key.
        key: &'static str,
        /// The text.
        value: String,
        /// What it should be.
        expected: &'static str,
    },
    /// Docker's media types have no artifacts.
    #[error(
        "invalid configuration for remote cache, OCI mediatypes are required for image-manifest cache format"
    )]
    ManifestForm,
    /// A compression nobody knows, or that is lacking here.
    #[error("unsupported compression type {0}")]
    Compression(String),
    /// No bucket or region.
    #[error("{key} (${variable}) not set for s3 cache")]
    S3Setting {
        /// The key.
        key: &'static str,
        /// The environment variable that can stand for it.
        variable: &'static str,
    },
}

/// What an option may take from the environment when it does not say: `AWS_BUCKET` and its like.
pub type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

impl ExportSpec {
    /// Reads a value of `--cache-to`.
    ///
    /// # Errors
    /// [`SpecError`], in docker's words where docker has some.
    pub fn parse(text: &str, environment: Environment<'_>) -> Result<Self, SpecError> {
        parse::export(text, environment)
    }
}

impl ImportSpec {
    /// Reads a value of `--cache-from`.
    ///
    /// # Errors
    /// [`SpecError`], in docker's words where docker has some.
    pub fn parse(text: &str, environment: Environment<'_>) -> Result<Self, SpecError> {
        parse::import(text, environment)
    }
}

impl FromStr for ExportSpec {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        Self::parse(text, &|_| None)
    }
}

impl FromStr for ImportSpec {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        Self::parse(text, &|_| None)
    }
}

impl fmt::Display for ExportTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inline => f.write_str("inline"),
            Self::Registry(place) => write!(f, "{}", place.reference.familiar()),
            Self::Local { dest, .. } => write!(f, "{}", dest.display()),
            Self::S3(place) => write!(f, "{place}"),
        }
    }
}

impl fmt::Display for ImportSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Registry(place) => write!(f, "{}", place.reference.familiar()),
            Self::Local { src, .. } => write!(f, "{}", src.display()),
            Self::S3(place) => write!(f, "{place}"),
        }
    }
}

impl fmt::Display for S3Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s3://{}/{}{}", self.bucket, self.prefix, self.names.join(";"))
    }
}
