//! Images leave through here, and archives of images come in.

mod compress;
mod document;
mod spec;

pub use spec::{
    Annotations, ArchiveDestination, ArchiveTarget, CompressionChoice, Destination, ExportSpecError,
    ExportSpecErrorKind, ExportTarget, ImageFormat, ImageTarget, MAX_NAMES, MAX_SPEC_LENGTH, MediaTypes,
    PushOptions,
};
