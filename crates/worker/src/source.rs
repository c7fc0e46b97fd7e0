//! Sources: ops without inputs, which bring something from outside: images, local contexts, URLs.
//! Owns their fetching and what their attributes mean. Must not know graphs. Read [`SourceError`] for what may go
//! wrong, then the module of the kind.

mod attributes;
pub(crate) mod blob;
pub(crate) mod describe;
pub(crate) mod git;
pub(crate) mod http;
pub(crate) mod image;
pub(crate) mod index;
pub(crate) mod layout;
pub(crate) mod local;
pub(crate) mod pins;
pub(crate) mod wanted;

use std::path::PathBuf;

use stave_oci::{ManifestError, Reference};
use stave_registry::RegistryError;
use stave_store::StoreError;

use crate::context::ContextError;
use crate::remote::ContextFetchError;
use crate::root::IoAt;

/// Why a source could not be fetched.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The definition names a context that the session does not have.
    #[error("no build context named `{0}`")]
    UnknownContext(String),
    /// A local context could not be read.
    #[error("reading build context `{}`", directory.display())]
    Context {
        /// The directory.
        directory: PathBuf,
        /// Why.
        #[source]
        source: ContextError,
    },
    /// The directory of a client could not be fetched.
    #[error(transparent)]
    Fetch(#[from] ContextFetchError),
    /// A registry failed.
    #[error("pulling `{}`", image.familiar())]
    Registry {
        /// The image.
        image: Reference,
        /// Why.
        #[source]
        source: Box<RegistryError>,
    },
    /// A layer of an image could not be unpacked or kept.
    #[error("unpacking layer {layer} of `{}`", image.familiar())]
    Layer {
        /// The image.
        image: Reference,
        /// The layer's digest.
        layer: stave_oci::Digest,
        /// Why.
        #[source]
        source: Box<StoreError>,
    },
    /// An image that does not fit into the store.
    #[error("no room for `{}`", image.familiar())]
    Room {
        /// The image.
        image: Reference,
        /// Why.
        #[source]
        source: Box<StoreError>,
    },
    /// The image's configuration makes no sense.
    #[error("image `{}`: {fault}", image.familiar())]
    Image {
        /// The image.
        image: Reference,
        /// What is wrong.
        fault: Box<ImageFault>,
    },
    /// A URL could not be fetched.
    #[error("fetching `{url}`")]
    Http {
        /// The URL without credentials.
        url: String,
        /// Why.
        #[source]
        source: http::HttpError,
    },
    /// The definition names a layout that the session does not have.
    #[error("no OCI layout named `{0}`")]
    UnknownLayout(String),
    /// An image of a layout could not be had.
    #[error("loading `{image}` from OCI layout `{}`", directory.display())]
    Layout {
        /// The image.
        image: String,
        /// The layout.
        directory: PathBuf,
        /// Why.
        #[source]
        source: Box<layout::LayoutError>,
    },
    /// A blob whose identifier does not say by its digest which one it is.
    #[error("invalid image blob reference {0}")]
    BlobReference(String),
    /// A blob of a layout that does not say of which.
    #[error("oci-layout blob source requires store id")]
    NoStore,
    /// A blob broke off, or is not what it was named by.
    #[error("fetching blob {digest}")]
    Blob {
        /// Which.
        digest: stave_oci::Digest,
        /// Why.
        #[source]
        source: blob::BlobError,
    },
    /// A repository could not be had.
    // Not transparent: its own kinds are looked at.
    #[error(transparent)]
    Git(#[from] git::GitError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The operating system refused.
    #[error(transparent)]
    Io(#[from] IoAt),
    /// This kind of source is not there yet.
    #[error("sources of the form `{0}` are not supported yet")]
    Unsupported(String),
    /// An attribute has a value that makes no sense.
    #[error("source attribute `{name}` has the invalid value `{value}`")]
    Attribute {
        /// The attribute.
        name: String,
        /// Its value.
        value: String,
    },
    /// An attribute that would be passed over.
    #[error("source attribute `{0}` is not known")]
    UnknownAttribute(String),
    /// Of a directory of this machine nothing travels.
    #[error("`local.metadatatransfer` is for directories of clients of a daemon: `{0}` is read where it is")]
    Here(String),
    /// An image's attribute has a value that makes no sense.
    #[error("invalid {what} {value}")]
    ImageAttribute {
        /// What it is.
        what: &'static str,
        /// Its value.
        value: String,
    },
    /// Nobody wants it any more.
    #[error("cancelled")]
    Cancelled,
}

/// What is wrong with an image.
#[derive(Debug, thiserror::Error)]
pub enum ImageFault {
    /// The configuration is not an image configuration.
    #[error("its configuration cannot be read: {0}")]
    Config(String),
    /// Layers and diff ids do not pair up.
    #[error("its manifest lists {layers} layers, its configuration {diff_ids}")]
    LayerCount {
        /// In the manifest.
        layers: usize,
        /// In the configuration.
        diff_ids: usize,
    },
    /// Something in its index is neither a manifest nor an index.
    #[error(transparent)]
    Document(ManifestError),
    /// An index and a document in it do not agree.
    #[error("its index says that {digest} has {expected} bytes; it has {found}")]
    Size {
        /// The document.
        digest: stave_oci::Digest,
        /// Bytes by the index.
        expected: u64,
        /// Bytes that came.
        found: u64,
    },
    /// Its index leads to more than anybody needs.
    #[error("its index leads to more than {limit} {what}")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// As many are taken.
        limit: usize,
    },
    /// The name stands for something else than was asked for.
    #[error("image digest {found} for {image} does not match expected checksum {expected}")]
    Checksum {
        /// What it stands for.
        found: stave_oci::Digest,
        /// The name.
        image: String,
        /// What it should.
        expected: stave_oci::Digest,
    },
    /// It has fewer layers than are wanted of it.
    #[error("layer limit {limit} is greater than the number of layers in the image {layers}")]
    LayerLimit {
        /// As many are wanted.
        limit: usize,
        /// As many it has.
        layers: usize,
    },
    /// A layer whose media type is not a tar.
    #[error("layer {digest} has the unsupported media type `{media_type}`")]
    MediaType {
        /// The layer.
        digest: stave_oci::Digest,
        /// What it says it is.
        media_type: String,
    },
}
