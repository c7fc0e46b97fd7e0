//! From a layer archive to a layer directory. Start with [`Store::apply_layer`].
//!
//! The archive is hostile: [`archive`] bounds what is read, [`extract`] keeps every path inside the
//! layer. All happens in an [`crate::ActiveLayer`]; whatever goes wrong, its drop removes everything.

mod archive;
mod extract;
mod pax;
#[cfg(test)]
mod tests;

use std::io::{self, Read};

use stave_oci::{Algorithm, Compression, Digest, Hasher};

use crate::cap::Reservation;
use crate::{LayerError, LayerErrorKind, LayerId, Snapshot, Store, StoreError};
use archive::Archive;
use extract::Extractor;

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

/// Bytes read from a stream at once.
const BUFFER: usize = 128 << 10;

impl Store {
    /// Unpacks a layer archive (the compressed stream) into a layer of its own. The stream is read
    /// to its end. On an error nothing of it stays.
    pub fn apply_layer(
        &self,
        archive: impl Read,
        options: &ApplyOptions,
    ) -> Result<AppliedLayer, StoreError> {
        let mut active = self.prepare(&Snapshot::scratch())?.described(&options.description);
        let room = Reservation::new(self);
        let stream =
            Hashing::new(decompress(archive, options.compression)?, options.limits.total_bytes, room);
        let mut archive = Archive::new(stream, options.limits);
        let mut extractor = Extractor::new(active.upper(), self.inner.config.xattrs, options)?;
        loop {
            let entry = match archive.next() {
                Ok(Some(entry)) => entry,
                Ok(None) => break,
                Err((path, kind)) => return Err(at(&path, limit_passed(kind, &options.limits), &active)),
            };
            extractor
                .unpack(&entry, &mut archive)
                .map_err(|kind| at(&entry.path, limit_passed(kind, &options.limits), &active))?;
        }
        extractor.finish().map_err(|kind| at(b"(directory times)", kind, &active))?;
        // The room is held until the layer's row says what it takes.
        let (diff_id, size, _room) = archive.into_inner().finish().map_err(|error| {
            at(b"(end)", limit_passed(LayerErrorKind::Stream(error), &options.limits), &active)
        })?;
        if let Some(expected) = options.diff_id.clone().filter(|expected| *expected != diff_id) {
            return Err(at(b"(end)", LayerErrorKind::DiffId { expected, found: diff_id }, &active));
        }
        crate::fault::reach("layer-unpacked");
        let layer = active.commit_layer(Some(&diff_id))?;
        Ok(AppliedLayer { layer, diff_id, size })
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

/// The uncompressed stream.
fn decompress<'a>(
    mut input: impl Read + 'a,
    compression: Option<Compression>,
) -> Result<Box<dyn Read + 'a>, StoreError> {
    let failed = |error| LayerError { entry: "(start)".to_owned(), kind: LayerErrorKind::Stream(error) };
    let mut head = Vec::with_capacity(4);
    if compression.is_none() {
        (&mut input).take(4).read_to_end(&mut head).map_err(failed)?;
    }
    let compression = compression.unwrap_or_else(|| Compression::sniff(&head));
    let input = io::Cursor::new(head).chain(input);
    let input = io::BufReader::with_capacity(BUFFER, input);
    Ok(match compression {
        Compression::None => Box::new(input),
        Compression::Gzip => {
            Box::new(io::BufReader::with_capacity(BUFFER, flate2::bufread::MultiGzDecoder::new(input)))
        }
        Compression::Zstd => {
            let decoder = zstd::Decoder::with_buffer(input).map_err(failed)?;
            Box::new(io::BufReader::with_capacity(BUFFER, decoder))
        }
    })
}

/// Hashes and counts what is read, up to a limit.
struct Hashing<R> {
    inner: R,
    hasher: Hasher,
    read: u64,
    limit: u64,
    room: Reservation,
}

impl<R: Read> Hashing<R> {
    fn new(inner: R, limit: u64, room: Reservation) -> Self {
        Self { inner, hasher: Hasher::new(Algorithm::Sha256), read: 0, limit, room }
    }

    /// Reads the rest (an archive may be padded) and gives the digest and size of everything.
    fn finish(mut self) -> io::Result<(Digest, u64, Reservation)> {
        io::copy(&mut self, &mut io::sink())?;
        Ok((self.hasher.finish(), self.read, self.room))
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..count]);
        self.read += count as u64;
        if self.read > self.limit {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        // What was read is about to be written; what that takes beyond its bytes is measured at the end.
        self.room.grow(count as u64).map_err(io::Error::other)?;
        Ok(count)
    }
}
