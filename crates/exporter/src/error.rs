//! Why an image could not leave, or an archive not come in.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use stave_oci::{Digest, ManifestError, Platform};
use stave_registry::RegistryError;
use stave_store::StoreError;

use crate::docker_api::{EngineAddress, EngineFault};

/// A failed export: what was being written, and why it could not be.
#[derive(Debug, thiserror::Error)]
#[error("failed to export {target}")]
pub struct ExportError {
    /// The destination in words, such as "oci archive `app.tar`".
    pub target: String,
    /// What happened.
    #[source]
    pub kind: Box<ExportErrorKind>,
}

/// What happened to an export.
#[derive(Debug, thiserror::Error)]
pub enum ExportErrorKind {
    /// A file operation failed.
    #[error("failed to {action} `{}`", .path.display())]
    Io {
        /// A verb.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// A stream of bytes broke.
    #[error("failed to write the stream")]
    Stream(#[from] io::Error),
    /// The destination of an archive is a directory.
    #[error("`{}` is a directory: give a file, or `tar=false` or `type=local` for a directory", .0.display())]
    IsDirectory(PathBuf),
    /// The local store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A registry failed.
    // Not transparent: callers look for the registry's error among the causes.
    #[error("{0}")]
    Registry(#[from] RegistryError),
    /// A layer's bytes are not those its image names, and the blob it came from is gone.
    #[error(
        "layer `{expected}` is no longer in the store as it was pulled (found `{found}`): pull its image again"
    )]
    LayerChanged {
        /// The digest in the image's config.
        expected: Digest,
        /// That of the layer as it is now.
        found: Digest,
    },
    /// A blob that the image names vanished from the store.
    #[error("blob `{0}` is not in the store: pull its image again")]
    BlobMissing(Digest),
    /// The same, and it could not be fetched again from where it came.
    #[error("blob `{blob}` is not in the store, and could not be fetched again")]
    NotFetched {
        /// Which.
        blob: Digest,
        /// Why not.
        #[source]
        source: Arc<RegistryError>,
    },
    /// `push` without a name.
    #[error("an image needs a name to be pushed")]
    PushWithoutName,
    /// docker's archives hold one image a name.
    #[error("docker exporter does not currently support exporting manifest lists")]
    ManifestList,
    /// docker's archives hold images only.
    #[error("docker exporter does not support attestations: use `type=oci`, or push the image")]
    DockerAttestations,
    /// Annotations for a document that is not written.
    #[error("index annotations not supported for single platform export")]
    IndexAnnotations,
    /// Annotations for a platform that is not built.
    #[error("invalid annotation: no platform {0} found in source")]
    AnnotationPlatform(String),
    /// Attestations in documents of docker's types.
    #[error("cannot export attestations with \"oci-mediatypes=false\"")]
    AttestationMediaTypes,
    /// A predicate that is not JSON.
    #[error("malformed predicate of type `{predicate_type}`")]
    Predicate {
        /// Its type.
        predicate_type: String,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// Two platforms write the same file of one directory.
    #[error(
        "cannot overwrite {} from {} with {} when split option is disabled: leave `platform-split` on",
        path.display(), platforms[0], platforms[1]
    )]
    PlatformConflict {
        /// The file.
        path: PathBuf,
        /// Whose it is, and who writes it again.
        platforms: Box<[stave_oci::Platform; 2]>,
    },
    /// Another engine failed.
    #[error("the engine at `{address}` failed")]
    Engine {
        /// Where it listens.
        address: EngineAddress,
        /// What happened.
        #[source]
        fault: EngineFault,
    },
    /// The name of an engine that nobody turned into its address.
    #[error("docker context `{0}` is not known here")]
    EngineContext(String),
    /// Nothing to export.
    #[error("there is no image to export")]
    NoImage,
    /// The registry's table cannot be changed.
    #[error(transparent)]
    Config(#[from] stave_registry::ConfigError),
    /// A worker thread panicked.
    #[error("an export thread died")]
    ThreadDied,
}

/// A failed import: which archive, and why.
#[derive(Debug, thiserror::Error)]
#[error("failed to load {archive}")]
pub struct LoadError {
    /// The archive in words.
    pub archive: String,
    /// What is wrong.
    #[source]
    pub kind: Box<LoadErrorKind>,
}

/// What is wrong with an archive of images.
#[derive(Debug, thiserror::Error)]
pub enum LoadErrorKind {
    /// It cannot be read.
    #[error("failed to read the archive")]
    Read(#[from] io::Error),
    /// No tar at all, or one that is cut or damaged.
    #[error("not a tar archive: {0}")]
    NotTar(&'static str),
    /// A tar without the files that make an archive of images.
    #[error("not an image archive: neither `index.json` nor `manifest.json` is in it")]
    NotImages,
    /// A named limit is exceeded.
    #[error("{what} over the limit of {limit}")]
    Limit {
        /// What is too much.
        what: &'static str,
        /// How much would do.
        limit: u64,
    },
    /// A path that leads out of the archive.
    #[error("path `{0}` leads out of the archive")]
    Path(String),
    /// A file that another one names is not there.
    #[error("`{0}` is missing from the archive")]
    Missing(String),
    /// A document is not what it should be.
    #[error("malformed `{path}`")]
    Json {
        /// Which file.
        path: String,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// A manifest or index is not what it should be.
    #[error("malformed `{path}`")]
    Manifest {
        /// Which file.
        path: String,
        /// What is wrong with it.
        #[source]
        source: ManifestError,
    },
    /// Bytes that do not have the digest they are named by.
    #[error("`{path}` has the digest `{found}`, not `{expected}`")]
    Digest {
        /// Which file.
        path: String,
        /// The digest it is named by.
        expected: Digest,
        /// The digest it has.
        found: Digest,
    },
    /// Bytes of another length than announced.
    #[error("`{path}` is {found} bytes long, not {expected}")]
    Size {
        /// Which file.
        path: String,
        /// As announced.
        expected: u64,
        /// As found.
        found: u64,
    },
    /// The config and the manifest disagree on how many layers there are.
    #[error("the config of image `{image}` lists {diff_ids} layers, its manifest {layers}")]
    LayerCount {
        /// The config's digest or path.
        image: String,
        /// In the config.
        diff_ids: usize,
        /// In the manifest.
        layers: usize,
    },
    /// A layer's uncompressed bytes are not those the config names.
    #[error("layer `{path}` cannot be unpacked")]
    Layer {
        /// Which file.
        path: String,
        /// Why.
        #[source]
        source: StoreError,
    },
    /// A layer of a type that is no file system layer.
    #[error("not supported yet: layer media type `{0}`")]
    LayerType(String),
    /// No image for this machine.
    #[error("no image for platform {wanted}; the archive has {}", list(.found))]
    Platform {
        /// The platform asked for.
        wanted: Box<Platform>,
        /// What there is.
        found: Vec<String>,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A worker thread panicked.
    #[error("a load thread died")]
    ThreadDied,
}

fn list(platforms: &[String]) -> String {
    if platforms.is_empty() { "none".to_owned() } else { platforms.join(", ") }
}
