//! From a layer archive to a layer directory. Start with [`Store::apply_layer`].
//!
//! The archive is hostile: [`archive`] bounds what is read, [`extract`] keeps every path inside the
//! layer. All happens in an [`crate::ActiveLayer`]; whatever goes wrong, its drop removes everything.

mod archive;
mod extract;
mod inflate;
mod pax;
#[cfg(test)]
mod tests;

use std::io::{self, Read};
use std::panic::resume_unwind;
use std::sync::mpsc::sync_channel;
use std::time::SystemTime;

use stave_oci::{Compression, Digest};

use crate::cap::Reservation;
use crate::{LayerError, LayerErrorKind, LayerId, Snapshot, Store, StoreError};
use archive::Archive;
use extract::Extractor;
use inflate::{Inflated, Inflating, PIECES};

/// What one layer archive may demand. Beyond: [`crate::LayerErrorKind`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerLimits {
    /// Entries in the archive.
    pub entries: u64,
    /// Bytes of one path or link target.
    pub path_bytes: usize,
    /// Bytes of the uncompressed archive, and of the files in it with their holes.
    pub total_bytes: u64,
}

impl Default for LayerLimits {
    /// Four million entries, the kernel's `PATH_MAX`, 256 GiB.
    fn default() -> Self {
        Self { entries: 4_000_000, path_bytes: 4095, total_bytes: 256 << 30 }
    }
}

/// What to do with names that begin with a slash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AbsoluteNames {
    /// Refuse the archive (image layers); `/` itself is the root and passes.
    Refuse,
    /// Take them from the root of the layer (archives unpacked by `ADD`, as docker does).
    Contain,
}

/// How an archive is unpacked.
#[derive(Debug, Clone)]
pub struct ApplyOptions {
    /// How the stream is compressed; `None` finds out from its first bytes.
    pub compression: Option<Compression>,
    /// The digest the uncompressed stream must have.
    pub diff_id: Option<Digest>,
    /// Bounds on hostile archives.
    pub limits: LayerLimits,
    /// Names with a leading slash.
    pub absolute_names: AbsoluteNames,
    /// What disk usage shows for the layer.
    pub description: String,
    /// When the layer was made, where that is known; else it is dated by its unpacking.
    pub made: Option<SystemTime>,
}

impl Default for ApplyOptions {
    /// For a layer from a registry whose diff id is not known.
    fn default() -> Self {
        Self {
            compression: None,
            diff_id: None,
            limits: LayerLimits::default(),
            absolute_names: AbsoluteNames::Refuse,
            description: String::new(),
            made: None,
        }
    }
}

/// A layer in the store, and what its archive was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AppliedLayer {
    /// The layer; an older one if the same archive had been unpacked before.
    pub layer: LayerId,
    /// The digest of the uncompressed archive.
    pub diff_id: Digest,
    /// The size of the uncompressed archive, in bytes.
    pub size: u64,
}

/// Bytes that an entry takes on a disk beyond those in the archive, at most: its last block, or a directory's first.
const ENTRY: u64 = 4096;

/// Bytes read from a stream at once.
const BUFFER: usize = 128 << 10;

impl Store {
    /// Unpacks a layer archive (the compressed stream) into a layer of its own. The stream is read
    /// to its end. On an error nothing of it stays.
    pub fn apply_layer(
        &self,
        archive: impl Read + Send,
        options: &ApplyOptions,
    ) -> Result<AppliedLayer, StoreError> {
        let mut active =
            self.prepare(&Snapshot::scratch())?.described(&options.description).made(options.made);
        let room = Reservation::new(self);
        let stream = Inflating::new(archive, options.compression, options.limits.total_bytes, room);
        let stream = stream.map_err(|error| at(b"(start)", LayerErrorKind::Stream(error), &active))?;
        let (sender, receiver) = sync_channel(PIECES);
        // The room is held until the layer's row says what it takes.
        let whole = std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().name("stave-inflate".into());
            let inflating = thread.spawn_scoped(scope, move || stream.run(&sender));
            let inflating =
                inflating.map_err(|error| StoreError::io("start a thread for", active.upper(), error))?;
            self.extract(Inflated::new(receiver), options, &active)?;
            let whole = inflating.join().unwrap_or_else(|panic| resume_unwind(panic));
            whole.ok_or_else(|| at(b"(end)", LayerErrorKind::Truncated, &active))
        })?;
        if let Some(expected) = options.diff_id.clone().filter(|expected| *expected != whole.diff_id) {
            return Err(at(b"(end)", LayerErrorKind::DiffId { expected, found: whole.diff_id }, &active));
        }
        crate::fault::reach("layer-unpacked");
        let layer = active.commit_layer(Some(&whole.diff_id))?;
        drop(whole.room);
        Ok(AppliedLayer { layer, diff_id: whole.diff_id, size: whole.size })
    }

    /// Puts the entries of an uncompressed archive into the layer's directory and reads to the stream's end,
    /// since an archive may be padded.
    fn extract(
        &self,
        stream: Inflated,
        options: &ApplyOptions,
        active: &crate::ActiveLayer,
    ) -> Result<(), StoreError> {
        let failed = |entry: &[u8], kind| at(entry, limit_passed(kind, &options.limits), active);
        let mut archive = Archive::new(stream, options.limits);
        let mut extractor = Extractor::new(active.upper(), self.inner.config.xattrs, options)?;
        while let Some(entry) = archive.next().map_err(|(path, kind)| failed(&path, kind))? {
            // Beside its bytes, which were asked for when they were read.
            if entry.takes_a_block() {
                active.room().take(ENTRY)?;
            }
            extractor.unpack(&entry, &mut archive).map_err(|kind| failed(&entry.path, kind))?;
        }
        extractor.finish().map_err(|kind| failed(b"(directory times)", kind))?;
        io::copy(&mut archive.into_inner(), &mut io::sink())
            .map_err(|error| failed(b"(end)", LayerErrorKind::Stream(error)))?;
        Ok(())
    }
}

/// The error of an entry; a full disk is not the archive's fault.
fn at(entry: &[u8], kind: LayerErrorKind, active: &crate::ActiveLayer) -> StoreError {
    let entry: String = String::from_utf8_lossy(entry).chars().take(400).collect();
    match kind {
        LayerErrorKind::Io { source, .. } if is_full(&source) => {
            StoreError::StorageFull { path: active.upper().join(entry.trim_start_matches('/')), source }
        }
        kind => LayerError { entry, kind }.into(),
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Finds our own limit behind the stream error it came as.
fn limit_passed(kind: LayerErrorKind, limits: &LayerLimits) -> LayerErrorKind {
    match kind {
        LayerErrorKind::Stream(error) if error.kind() == io::ErrorKind::FileTooLarge => {
            LayerErrorKind::TooLarge(limits.total_bytes)
        }
        kind => kind,
    }
}
