//! What an export or import tells whoever watches it. Must not know who renders it.

use std::fmt;
use std::sync::Arc;

use stave_oci::Digest;

/// One thing that happened during an export.
///
/// Invariant: per step, `Started` comes first and `Done` at most once, last. A step without `Done` failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExportEvent {
    /// A step began.
    Started(ExportStep),
    /// A step moved on.
    Progress {
        /// Which.
        step: ExportStep,
        /// Bytes done; may fall back when an upload starts over.
        current: u64,
        /// Out of how many bytes, when known.
        total: Option<u64>,
    },
    /// A step ended well.
    Done(ExportStep),
}

/// A step of an export. Its `Display` form is what BuildKit's progress calls it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ExportStep {
    /// Layers are digested or compressed.
    Layers,
    /// The manifest was written.
    Manifest(Digest),
    /// The config was written.
    Config(Digest),
    /// What is attested was written.
    Attestation(Digest),
    /// The index over several manifests was written.
    Index(Digest),
    /// A name was given in the local store.
    Naming(String),
    /// Blobs go to a registry.
    PushingLayers,
    /// One blob goes to a registry.
    PushingBlob(Digest),
    /// A blob was found at the registry, or taken from another repository there.
    KeptBlob(Digest),
    /// A manifest goes to a registry.
    PushingManifest(String),
    /// An archive is written.
    Archive,
    /// Files are copied.
    Files,
    /// Layers are made one.
    Squashing,
    /// An archive's layer is unpacked.
    LoadingLayer(Digest),
}

impl fmt::Display for ExportStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Layers => f.write_str("exporting layers"),
            Self::Manifest(digest) => write!(f, "exporting manifest {digest}"),
            Self::Config(digest) => write!(f, "exporting config {digest}"),
            Self::Attestation(digest) => write!(f, "exporting attestation manifest {digest}"),
            Self::Index(digest) => write!(f, "exporting manifest list {digest}"),
            Self::Naming(name) => write!(f, "naming to {name}"),
            Self::PushingLayers => f.write_str("pushing layers"),
            Self::PushingBlob(digest) => write!(f, "pushing {digest}"),
            Self::KeptBlob(digest) => write!(f, "already exists {digest}"),
            Self::PushingManifest(name) => write!(f, "pushing manifest for {name}"),
            Self::Archive => f.write_str("sending tarball"),
            Self::Files => f.write_str("copying files"),
            Self::Squashing => f.write_str("squashing layers"),
            Self::LoadingLayer(digest) => write!(f, "loading layer {digest}"),
        }
    }
}

/// Where events go. Called from any thread; must not block.
#[derive(Clone)]
pub struct ExportEvents(Arc<dyn Fn(ExportEvent) + Send + Sync>);

impl ExportEvents {
    /// Events go to `receive`.
    pub fn new(receive: impl Fn(ExportEvent) + Send + Sync + 'static) -> Self {
        Self(Arc::new(receive))
    }

    /// Nobody listens.
    pub fn ignored() -> Self {
        Self::new(drop)
    }

    pub(crate) fn send(&self, event: ExportEvent) {
        (self.0)(event);
    }

    /// Runs one step, announcing its start and, if it succeeds, its end.
    pub(crate) fn step<T, E>(&self, step: ExportStep, run: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
        self.send(ExportEvent::Started(step.clone()));
        let result = run()?;
        self.send(ExportEvent::Done(step));
        Ok(result)
    }

    /// A step that is over as soon as it is told.
    pub(crate) fn done(&self, step: ExportStep) {
        self.send(ExportEvent::Started(step.clone()));
        self.send(ExportEvent::Done(step));
    }
}

impl fmt::Debug for ExportEvents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ExportEvents")
    }
}
