//! Names to manifests: what a tag or digest stands for, and the image in it for one platform.

use bytes::Bytes;
use stave_oci::{Descriptor, Manifest, Platform, Reference};

use crate::{Client, RegistryError};

/// A manifest or index as the registry sent it, verified against its digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FetchedManifest {
    /// Media type, digest and size. Invariant: those of `bytes`.
    pub descriptor: Descriptor,
    /// The document, byte for byte.
    pub bytes: Bytes,
}

/// One platform's image: its manifest and configuration, with what led to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvedImage {
    /// What the name stands for: the index if there is one, else the manifest. Pin to its digest.
    pub root: FetchedManifest,
    /// The image's own manifest; equals `root` when there is no index.
    pub manifest: FetchedManifest,
    /// `manifest`, parsed.
    pub parsed: Manifest,
    /// The image configuration's bytes, verified against `parsed.config`.
    pub config: Bytes,
}

impl Client {
    /// Asks what a name stands for, without fetching it (`HEAD`).
    ///
    /// # Errors
    /// [`RegistryError`] with its kinds for names that are not there, may not be read, or cannot be reached.
    pub async fn resolve_digest(&self, reference: &Reference) -> Result<Descriptor, RegistryError> {
        let _ = reference;
        todo!()
    }

    /// Fetches what a name stands for: a manifest or an index.
    ///
    /// # Errors
    /// As [`Client::resolve_digest`], and for documents that are too large or not what their digest says.
    pub async fn fetch_manifest(&self, reference: &Reference) -> Result<FetchedManifest, RegistryError> {
        let _ = reference;
        todo!()
    }

    /// Fetches the manifest and configuration of the image for `platform`; of an index, only that one.
    /// A name that stands for a single manifest gives that, whatever its platform: its configuration says which.
    ///
    /// # Errors
    /// As [`Client::fetch_manifest`]; [`crate::ErrorKind::PlatformNotFound`] with what the index has instead.
    pub async fn resolve(&self, reference: &Reference, platform: &Platform) -> Result<ResolvedImage, RegistryError> {
        let _ = (reference, platform);
        todo!()
    }
}
