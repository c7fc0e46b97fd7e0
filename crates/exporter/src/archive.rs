//! Archives of images: docker's and OCI's layouts, as tars or directories, out and in.

mod load;
mod source;
mod write;

pub(crate) use load::load;
pub use load::{LoadSource, LoadedImage, MAX_IMAGES, MAX_LAYERS, MAX_SPOOL};
pub use source::{MAX_ENTRIES, MAX_EXTENSION};
pub(crate) use write::{stream, write};
