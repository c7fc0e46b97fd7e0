//! Where a build's result goes: the value of `-o`/`--output`, parsed.
//!
//! Owns the syntax (docker's and BuildKit's CSV of `key=value`, the short forms `DIR` and `-`) and
//! the typed [`ExportTarget`] it becomes. Must not know how a target is written, nor whether
//! standard output is a terminal. A key that BuildKit has and nothing here honours is an error that
//! says so: an option that is silently dropped produces the wrong image.
//!
//! Read [`ExportTarget`] first.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::str::FromStr;

use stave_oci::{Compression, Platform, Reference, ReferenceError};

use crate::docker_api::EngineAddress;

mod annotation;
mod csv;
mod parse;
#[cfg(test)]
mod tests;

pub use annotation::{Annotation, AnnotationError, AnnotationLevel};

/// The longest specification read, in bytes.
pub const MAX_SPEC_LENGTH: usize = 64 << 10;
/// The most names one target takes.
pub const MAX_NAMES: usize = 256;

/// One destination of a build's result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExportTarget {
    /// The local image store, a registry, or both (`type=image`, `type=registry`, and `type=docker`
    /// with no `dest`, which docker's clients use to mean "make it available locally").
    Image(ImageTarget),
    /// An OCI image layout (`type=oci`).
    Oci(ArchiveTarget),
    /// An archive for `docker load` (`type=docker,dest=…`).
    Docker(ArchiveTarget),
    /// Another engine's image store (`type=docker,context=…`).
    Engine(EngineTarget),
    /// The root file system as a directory tree (`type=local`).
    Local {
        /// The directory, created when missing.
        dest: PathBuf,
        /// How files are written.
        options: FilesOptions,
    },
    /// The root file system as one tar (`type=tar`).
    Tar {
        /// Where the tar goes.
        dest: Destination,
        /// How files are written; the mode does not apply.
        options: FilesOptions,
    },
    /// Nothing but the cache (`type=cacheonly`).
    CacheOnly,
}

/// How a root file system becomes files.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FilesOptions {
    /// Whether each platform gets a folder of its own (`linux_amd64`); `None`: when there are several.
    pub platform_split: Option<bool>,
    /// What happens to files that are there already.
    pub mode: LocalMode,
    /// Which time every file gets.
    pub time: FilesTime,
    /// Put before the names of attestations' files.
    pub attestation_prefix: String,
}

/// Which time exported files get.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FilesTime {
    /// The one that was asked for of the build ([`ExportTarget::dated`]), else their own.
    #[default]
    OfBuild,
    /// Their own.
    Own,
    /// All the same one, in seconds since the epoch.
    Epoch(i64),
}

impl FilesTime {
    /// The one time that all get, if they do.
    pub(crate) fn epoch(self) -> Option<i64> {
        match self {
            Self::OfBuild | Self::Own => None,
            Self::Epoch(seconds) => Some(seconds),
        }
    }
}

/// What happens to what a directory holds already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LocalMode {
    /// It stays unless overwritten.
    #[default]
    Copy,
    /// It goes unless it is part of the result.
    Delete,
}

/// An image for the local store and/or registries.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ImageTarget {
    /// Names to give; may be empty (then the image is found by its id).
    pub names: Vec<Reference>,
    /// Whether the local store keeps it.
    pub store: bool,
    /// Whether, and how, it is pushed.
    pub push: Option<PushOptions>,
    /// How its layers and documents are written when pushed.
    pub format: ImageFormat,
    /// Whether each name is also given with the digest: `name@sha256:…`.
    pub canonical_names: bool,
    /// What an image is called by its digest.
    pub dangling: Option<DanglingName>,
}

/// A name made of a prefix and the image's digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DanglingName {
    /// The repository.
    pub prefix: Reference,
    /// Only if the image has no other name.
    pub empty_only: bool,
}

/// How to push.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PushOptions {
    /// Push the manifest by digest only, moving no tag.
    pub by_digest: bool,
    /// The registry may speak plain http, or show any certificate.
    pub insecure: bool,
}

/// An image for another engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineTarget {
    /// Which one.
    pub engine: EngineName,
    /// Names to give.
    pub names: Vec<Reference>,
    /// How its layers and documents are written.
    pub format: ImageFormat,
}

/// Which engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EngineName {
    /// As docker's clients know it, still to be looked up: see [`ExportTarget::at_engine`]. Empty: the one in use.
    Context(String),
    /// By its address.
    At(EngineAddress),
}

/// An image in a file or directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArchiveTarget {
    /// Where it goes.
    pub dest: ArchiveDestination,
    /// Names recorded inside; may be empty.
    pub names: Vec<Reference>,
    /// How its layers and documents are written.
    pub format: ImageFormat,
}

/// A byte stream's destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    /// A file, replaced atomically.
    File(PathBuf),
    /// Standard output.
    Stdout,
}

/// An archive's destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ArchiveDestination {
    /// One tar.
    Tar(Destination),
    /// An unpacked directory (`tar=false`).
    Directory(PathBuf),
}

/// Everything that decides the bytes of an image's blobs and documents.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ImageFormat {
    /// The media type family; `None`: the sink's own default.
    pub media_types: Option<MediaTypes>,
    /// How layers are compressed.
    pub compression: CompressionChoice,
    /// Annotations to add.
    pub annotations: Annotations,
    /// The time the image carries, in seconds since the epoch, instead of the one it was built with.
    pub epoch: Option<i64>,
    /// Whether times of files in new layers that are later than the image's epoch become it; `None`:
    /// as the image was built.
    pub rewrite_timestamps: Option<bool>,
    /// Layers of types that may not be distributed keep them; otherwise they get the usual types.
    pub nondistributable: bool,
    /// Whether an index stands over the manifest of a single platform, too.
    pub always_index: bool,
    /// Attestations as OCI artifacts that refer to the image, which registries list as its referrers.
    pub artifact_attestations: bool,
}

/// Which family of media types documents carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MediaTypes {
    /// `application/vnd.oci.image…`
    Oci,
    /// `application/vnd.docker…` schema 2.
    Docker,
}

/// How layers are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CompressionChoice {
    /// The algorithm; `None`: the sink's own default.
    pub algorithm: Option<Compression>,
    /// The algorithm's level; `None`: this crate's default for it.
    pub level: Option<i32>,
    /// Recompress layers that already have a blob in another compression.
    pub force: bool,
}

/// Annotations by the document they go on (BuildKit's `annotation.`, `annotation-manifest-descriptor.`…).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Annotations {
    /// On every image manifest.
    pub manifest: BTreeMap<String, String>,
    /// On every manifest's descriptor in the index.
    pub manifest_descriptor: BTreeMap<String, String>,
    /// On the index, where one is written.
    pub index: BTreeMap<String, String>,
    /// On the index's descriptor in an image layout.
    pub index_descriptor: BTreeMap<String, String>,
    /// On the documents of one platform, by its text form.
    pub platforms: BTreeMap<String, PlatformAnnotations>,
}

/// Annotations for one platform of an image.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PlatformAnnotations {
    /// On its manifest.
    pub manifest: BTreeMap<String, String>,
    /// On its manifest's descriptor in the index.
    pub manifest_descriptor: BTreeMap<String, String>,
}

impl Annotations {
    /// What goes on the manifest for `platform`.
    pub(crate) fn of_manifest(&self, platform: &Platform) -> BTreeMap<String, String> {
        let own = self.platforms.get(&platform.to_string());
        merged(&self.manifest, own.map(|own| &own.manifest))
    }

    /// What goes on the descriptor of the manifest for `platform`.
    pub(crate) fn of_descriptor(&self, platform: &Platform) -> BTreeMap<String, String> {
        let own = self.platforms.get(&platform.to_string());
        merged(&self.manifest_descriptor, own.map(|own| &own.manifest_descriptor))
    }
}

fn merged(
    all: &BTreeMap<String, String>,
    own: Option<&BTreeMap<String, String>>,
) -> BTreeMap<String, String> {
    all.iter().chain(own.into_iter().flatten()).map(|(key, value)| (key.clone(), value.clone())).collect()
}

/// An output specification that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("invalid output `{spec}`")]
pub struct ExportSpecError {
    /// The text as given, clipped to a readable length.
    pub spec: String,
    /// What is wrong with it.
    #[source]
    pub kind: ExportSpecErrorKind,
}

/// What is wrong with an output specification.
#[derive(Debug, thiserror::Error)]
pub enum ExportSpecErrorKind {
    /// Longer than [`MAX_SPEC_LENGTH`].
    #[error("longer than {MAX_SPEC_LENGTH} bytes")]
    TooLong,
    /// Empty text.
    #[error("empty: expected a directory, `-` or `type=…`")]
    Empty,
    /// A quote out of place (RFC 4180).
    #[error("bare or unclosed `\"`: quote whole fields, as in `\"name=a,b\"`")]
    Quote,
    /// A field without `=`.
    #[error("`{0}` is not of the form `key=value`")]
    NotAPair(String),
    /// No `type`.
    #[error("`type` is required: one of {TYPES}")]
    MissingType,
    /// A type nobody knows.
    #[error("unknown type `{name}`: expected one of {TYPES}{}", did_you_mean(.suggestion))]
    UnknownType {
        /// The type as given.
        name: String,
        /// The nearest known one.
        suggestion: Option<&'static str>,
    },
    /// A key the type does not take.
    #[error("unknown key `{key}` for type `{target}`{}", did_you_mean(.suggestion))]
    UnknownKey {
        /// The type.
        target: &'static str,
        /// The key as given.
        key: String,
        /// The nearest known one.
        suggestion: Option<&'static str>,
    },
    /// The same key twice.
    #[error("`{0}` is given twice")]
    Duplicate(String),
    /// A value outside its domain.
    #[error("invalid value `{value}` for `{key}`: expected {expected}")]
    Value {
        /// The key.
        key: String,
        /// The value as given.
        value: String,
        /// What it may be.
        expected: &'static str,
    },
    /// A name that is no image reference.
    #[error("invalid image name in `name`")]
    Name(#[source] ReferenceError),
    /// More than [`MAX_NAMES`] names.
    #[error("more than {MAX_NAMES} names")]
    TooManyNames,
    /// `push=true` with nothing to push to.
    #[error("`push` needs a `name`, or a tag given with `-t`")]
    PushWithoutName,
    /// A destination is required.
    #[error("type `{0}` needs `dest`")]
    MissingDestination(&'static str),
    /// The destination cannot be standard output.
    #[error("a directory cannot go to standard output: give `dest` a path")]
    DirectoryToStdout,
    /// An annotation key that is not one.
    #[error(
        "invalid annotation key `{0}`: expected `annotation[-TYPE][[PLATFORM]].NAME`, TYPE being `manifest`, `manifest-descriptor`, `index` or `index-descriptor`"
    )]
    Annotation(String),
    /// Two keys that exclude each other.
    #[error("exporter option \"{0}\" conflicts with \"{1}\"")]
    Conflict(&'static str, &'static str),
    /// Known to BuildKit, not implemented here.
    #[error("not supported yet: {0}")]
    NotSupported(String),
}

/// The types named in errors.
const TYPES: &str = "`image`, `registry`, `oci`, `docker`, `local`, `tar`, `cacheonly`";

fn did_you_mean(suggestion: &Option<&'static str>) -> String {
    suggestion.map(|name| format!(", did you mean `{name}`?")).unwrap_or_default()
}

impl ExportTarget {
    /// The default of a build without `-o`: the local store under `names`.
    pub fn store(names: Vec<Reference>) -> Self {
        Self::Image(ImageTarget { names, store: true, ..ImageTarget::default() })
    }

    /// This target with `names` (from `-t`) when it takes names and has none of its own.
    #[must_use]
    pub fn named(mut self, names: &[Reference]) -> Self {
        let slot = match &mut self {
            Self::Image(target) => &mut target.names,
            Self::Oci(target) | Self::Docker(target) => &mut target.names,
            Self::Engine(target) => &mut target.names,
            Self::Local { .. } | Self::Tar { .. } | Self::CacheOnly => return self,
        };
        if slot.is_empty() {
            *slot = names.to_vec();
        }
        self
    }

    /// This target with the address of its engine, which `look_up` finds by the name of a docker context.
    ///
    /// # Errors
    /// Those of `look_up`.
    pub fn at_engine<E>(mut self, look_up: impl FnOnce(&str) -> Result<EngineAddress, E>) -> Result<Self, E> {
        if let Self::Engine(EngineTarget { engine, .. }) = &mut self
            && let EngineName::Context(name) = engine
        {
            *engine = EngineName::At(look_up(name)?);
        }
        Ok(self)
    }

    /// This target of a build that was asked for one time, in seconds since the epoch: exported files get it, as
    /// BuildKit's do, unless the target says otherwise. Targets that are images are unchanged: theirs have it already.
    #[must_use]
    pub fn dated(mut self, epoch: i64) -> Self {
        if let Self::Local { options, .. } | Self::Tar { options, .. } = &mut self
            && options.time == FilesTime::OfBuild
        {
            options.time = FilesTime::Epoch(epoch);
        }
        self
    }

    /// This target with pushing on (`--push`); targets that are not images are unchanged.
    #[must_use]
    pub fn pushed(mut self) -> Self {
        if let Self::Image(target) = &mut self {
            target.push.get_or_insert_default();
        }
        self
    }

    /// This target with an index in any case; targets that are not images, and docker's archives, which hold none, are
    /// unchanged.
    #[must_use]
    pub fn indexed(mut self) -> Self {
        if let Self::Image(ImageTarget { format, .. }) | Self::Oci(ArchiveTarget { format, .. }) = &mut self {
            format.always_index = true;
        }
        self
    }

    /// This target with these annotations added (`--annotation`); targets that are not images are unchanged.
    #[must_use]
    pub fn annotated(mut self, annotations: &[Annotation]) -> Self {
        if let Some(format) = self.format_mut() {
            annotations.iter().for_each(|annotation| format.annotations.add(annotation.clone()));
        }
        self
    }

    fn format_mut(&mut self) -> Option<&mut ImageFormat> {
        match self {
            Self::Image(target) => Some(&mut target.format),
            Self::Oci(target) | Self::Docker(target) => Some(&mut target.format),
            Self::Engine(target) => Some(&mut target.format),
            Self::Local { .. } | Self::Tar { .. } | Self::CacheOnly => None,
        }
    }

    /// Checks what can only be checked once names are complete.
    ///
    /// # Errors
    /// [`ExportSpecErrorKind::PushWithoutName`].
    pub fn validate(&self) -> Result<(), ExportSpecError> {
        match self {
            Self::Image(ImageTarget { names, push: Some(_), .. }) if names.is_empty() => {
                Err(ExportSpecError {
                    spec: "type=image,push=true".to_owned(),
                    kind: ExportSpecErrorKind::PushWithoutName,
                })
            }
            _ => Ok(()),
        }
    }

    /// Whether bytes go to standard output, so that a caller can refuse a terminal and keep its own
    /// output away.
    pub fn writes_stdout(&self) -> bool {
        match self {
            Self::Oci(target) | Self::Docker(target) => {
                target.dest == ArchiveDestination::Tar(Destination::Stdout)
            }
            Self::Tar { dest, .. } => *dest == Destination::Stdout,
            Self::Image(_) | Self::Engine(_) | Self::Local { .. } | Self::CacheOnly => false,
        }
    }

    /// Whether the result must be an image (config and layers), not only a file system.
    pub fn needs_image(&self) -> bool {
        matches!(self, Self::Image(_) | Self::Oci(_) | Self::Docker(_) | Self::Engine(_))
    }
}

impl FromStr for ExportTarget {
    type Err = ExportSpecError;

    fn from_str(spec: &str) -> Result<Self, ExportSpecError> {
        parse::target(spec).map_err(|kind| ExportSpecError { spec: spec.chars().take(200).collect(), kind })
    }
}
