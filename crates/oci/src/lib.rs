//! The image data model: values every other crate speaks in.
//!
//! Owns digests, descriptors, manifests and indexes, the image config with Docker's additions,
//! platforms and image references, as the OCI image and distribution specifications define them.
//! Must not know: files, networks, clocks. Everything here is a plain value; parsing is total and
//! bounded, because all of it arrives from registries and archives nobody vouches for.
//!
//! Start with [`Digest`], [`ImageConfig`] and [`Reference`].

mod compression;
mod config;
mod digest;
mod manifest;
mod platform;
mod reference;

pub mod media_type;

pub use compression::{Compression, LayerMediaType, layer_media_type};
pub use config::{ContainerConfig, Healthcheck, History, ImageConfig, RootFs, Unit, is_date};
pub use digest::{Algorithm, Digest, DigestError, Hasher, Sha256Writer, chain_id};
pub use manifest::{Descriptor, Index, MAX_MANIFEST_SIZE, Manifest, ManifestError, ManifestOrIndex};
pub use platform::{Platform, PlatformError};
pub use reference::{Reference, ReferenceError};
