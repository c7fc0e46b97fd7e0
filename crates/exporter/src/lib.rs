//! Images leave through here, and archives of images come in.
//!
//! Owns what an image is on its way out ([`Image`]: an immutable view), where it can go
//! ([`ExportTarget`]), how its layers become blobs and its description becomes documents, and each
//! destination: the local store, registries, other engines, OCI layouts, docker archives, directories and tars.
//! Must not know the solver, the worker, Dockerfiles or terminals.
//!
//! Start with [`Exporter`], then [`Image`] and [`ExportTarget`].

mod archive;
mod attestation;
mod blob;
mod compress;
pub mod contents;
mod docker_api;
mod document;
mod error;
mod event;
mod exporter;
mod files;
mod growing;
mod image;
mod layer;
mod merged;
mod output;
mod prepare;
mod push;
mod sink;
mod spec;
mod squash;
mod supplement;
mod tar_writer;
mod whole;

pub use archive::{LoadSource, LoadedImage, MAX_ENTRIES, MAX_EXTENSION, MAX_IMAGES, MAX_LAYERS, MAX_SPOOL};
pub use attestation::{blob_url, layout_blob_url, package_url};
pub use compress::{DEFAULT_GZIP_LEVEL, DEFAULT_ZSTD_LEVEL, GZIP_MEMBER, ZSTD_FRAME};
pub use docker_api::{EngineAddress, EngineAddressError, EngineFault};
pub use document::{CONTAINERD_NAME, CREATED, INVENTED_HISTORY, REF_NAME};
pub use error::{ExportError, ExportErrorKind, LoadError, LoadErrorKind};
pub use event::{ExportEvent, ExportEvents, ExportStep};
pub use exporter::{ArchiveLayout, Exporter, SavedImage};
pub use image::{Attestation, AttestedSubject, ConfigDocument, Exported, Image, ImageLayerRef, file_name};
pub use layer::LayerBlob;
pub use spec::{
    Annotation, AnnotationError, AnnotationLevel, Annotations, ArchiveDestination, ArchiveTarget,
    CompressionChoice, DanglingName, Destination, EngineName, EngineTarget, ExportSpecError,
    ExportSpecErrorKind, ExportTarget, FilesOptions, FilesTime, ImageFormat, ImageTarget, LocalMode,
    MAX_NAMES, MAX_SPEC_LENGTH, MediaTypes, PlatformAnnotations, PushOptions,
};
pub use whole::WholeFile;
