//! What an export or import tells whoever watches it. Must not know who renders it.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use stave_oci::{Descriptor, Digest};

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

/// One blob on its way to a registry, as it is told: that it is pushed, only when bytes of it leave; else that it was kept.
pub(crate) struct BlobEvents {
    events: ExportEvents,
    step: ExportStep,
    total: u64,
    has_begun: AtomicBool,
}

impl BlobEvents {
    pub(crate) fn new(events: &ExportEvents, blob: &Descriptor) -> Self {
        let step = ExportStep::PushingBlob(blob.digest.clone());
        Self { events: events.clone(), step, total: blob.size, has_begun: AtomicBool::new(false) }
    }

    /// So many bytes left.
    pub(crate) fn moved(&self, current: u64) {
        self.begin();
        let (step, total) = (self.step.clone(), Some(self.total));
        self.events.send(ExportEvent::Progress { step, current, total });
    }

    /// The registry has it by this upload.
    pub(crate) fn sent(&self) {
        self.begin();
        self.events.send(ExportEvent::Done(self.step.clone()));
    }

    /// The registry had it, or took it from another repository.
    pub(crate) fn kept(&self) {
        if let ExportStep::PushingBlob(digest) = &self.step {
            self.events.done(ExportStep::KeptBlob(digest.clone()));
        }
        if self.has_begun.load(Ordering::Relaxed) {
            self.events.send(ExportEvent::Done(self.step.clone()));
        }
    }

    fn begin(&self) {
        if !self.has_begun.swap(true, Ordering::Relaxed) {
            self.events.send(ExportEvent::Started(self.step.clone()));
        }
    }
}

impl fmt::Debug for ExportEvents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ExportEvents")
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// What is told of a blob of which `told` tells.
    #[track_caller]
    fn check(told: impl FnOnce(&BlobEvents), expected: &[&str]) {
        let seen: Arc<Mutex<Vec<String>>> = Arc::default();
        let to = Arc::clone(&seen);
        let events = ExportEvents::new(move |event| {
            let text = match event {
                ExportEvent::Started(step) => format!("begin {step}"),
                ExportEvent::Progress { step, current, total } => format!("{step} {current}/{total:?}"),
                ExportEvent::Done(step) => format!("end {step}"),
            };
            let text = text.split(" sha256:").next().unwrap_or_default().to_owned();
            to.lock().expect("not poisoned").push(text);
        });
        told(&BlobEvents::new(&events, &Descriptor::of("text/plain", b"blob")));
        assert_eq!(*seen.lock().expect("not poisoned"), expected);
    }

    #[test]
    fn a_blob_is_pushed_or_kept() {
        check(BlobEvents::kept, &["begin already exists", "end already exists"]);
        check(BlobEvents::sent, &["begin pushing", "end pushing"]);
        let both = |blob: &BlobEvents| {
            blob.moved(1);
            blob.moved(4);
            blob.sent();
        };
        check(both, &["begin pushing", "pushing", "pushing", "end pushing"]);
    }
}
