//! Layers of an archive into the store: those that come as blobs, and docker's plain tars.
//!
//! Owns which of them need not be unpacked because they are here. Must not know what an archive says of its images.
//! Start with [`Loader::oci_layer`].

use std::io::{self, Read, Write};

use stave_oci::{Compression, Descriptor, Digest, Sha256Writer, layer_media_type};
use stave_store::{ApplyOptions, ImageLayer, LayerId, StoreError, TarOptions};

use super::super::source::Content;
use super::{Loader, check_size};
use crate::compress::{Codec, Compressor};
use crate::document::blob_path;
use crate::error::LoadErrorKind;
use crate::event::ExportStep;
use crate::output::Counted;

impl Loader<'_> {
    pub(super) fn oci_layer(
        &mut self,
        descriptor: Descriptor,
        diff_id: Digest,
    ) -> Result<ImageLayer, LoadErrorKind> {
        let media_type = layer_media_type(&descriptor.media_type)
            .ok_or_else(|| LoadErrorKind::LayerType(descriptor.media_type.chars().take(160).collect()))?;
        let path = blob_path(&descriptor.digest);
        let known = self.known_layer(&diff_id)?;
        let is_plain = media_type.compression == Compression::None && descriptor.digest == diff_id;
        if let Some(layer) = known
            && !is_plain
            && self.store().has_blob(&descriptor.digest)?
        {
            self.check_pair(layer, &descriptor, &diff_id)?;
            return Ok(ImageLayer { layer, diff_id, blob: Some(descriptor) });
        }
        if is_plain {
            if let Some(content) = self.archive.find(&path)? {
                check_size(&path, descriptor.size, content.left())?;
            }
            return self.plain_layer(&path, diff_id);
        }
        let content = self.archive.find(&path)?;
        let Some(content) = content else {
            // A layer that is here already needs no bytes; docker leaves foreign layers out, too. That the blob
            // would be one of this layer is only the archive's word, which counts where it says where to look.
            let layer = known.ok_or(LoadErrorKind::Missing(path))?;
            let is_known = self.is_known_pair(layer, &descriptor)? || !descriptor.urls.is_empty();
            return Ok(ImageLayer { layer, diff_id, blob: is_known.then_some(descriptor) });
        };
        check_size(&path, descriptor.size, content.left())?;
        let layer = self.unpack_blob(&path, content, &descriptor, &diff_id)?;
        self.store().set_compressed(layer, media_type.compression, &descriptor)?;
        Ok(ImageLayer { layer, diff_id, blob: Some(descriptor) })
    }

    /// Whether a blob is recorded as one of a layer.
    fn is_known_pair(&self, layer: LayerId, blob: &Descriptor) -> Result<bool, LoadErrorKind> {
        let Some(media_type) = layer_media_type(&blob.media_type) else { return Ok(false) };
        let recorded = self.store().compressed(layer, media_type.compression)?;
        Ok(recorded.is_some_and(|recorded| recorded.digest == blob.digest))
    }

    /// Makes sure that a blob of the store is the compressed form of a layer's tar: an archive may name any
    /// two digests together.
    fn check_pair(&self, layer: LayerId, blob: &Descriptor, diff_id: &Digest) -> Result<(), LoadErrorKind> {
        if self.is_known_pair(layer, blob)? {
            return Ok(());
        }
        let path = blob_path(&blob.digest);
        let Some(file) = self.store().open_blob(&blob.digest)? else {
            return Err(LoadErrorKind::Missing(path));
        };
        let mut nowhere = io::sink();
        let mut hashing = Sha256Writer::new(Counted::new(&mut nowhere, &self.context.cancel));
        io::copy(&mut crate::blob::decompress(file)?, &mut hashing)?;
        let found = hashing.finish().1;
        if found == *diff_id {
            return Ok(());
        }
        Err(LoadErrorKind::Digest { path, expected: diff_id.clone(), found })
    }

    /// A layer that is a plain tar in the archive. The diff id holds its bytes to their digest.
    pub(super) fn plain_layer(&mut self, path: &str, diff_id: Digest) -> Result<ImageLayer, LoadErrorKind> {
        if let Some(layer) = self.known_layer(&diff_id)? {
            let blob = self.store().compressed(layer, Compression::Gzip)?;
            let Some(blob) = blob else { return Ok(ImageLayer { layer, diff_id, blob: None }) };
            if self.store().has_blob(&blob.digest)? {
                return Ok(ImageLayer { layer, diff_id, blob: Some(blob) });
            }
        }
        let missing = || LoadErrorKind::Missing(path.to_owned());
        let content = self.archive.find(path)?.ok_or_else(missing)?;
        let layer = self.unpack(path, content, &diff_id)?;
        let mut nowhere = io::sink();
        let mut hashing = Sha256Writer::new(Counted::new(&mut nowhere, &self.context.cancel));
        self.store().write_layer_tar(layer, &mut hashing, &TarOptions::default())?;
        if hashing.finish().1 == diff_id {
            return Ok(ImageLayer { layer, diff_id, blob: None });
        }
        // Another program wrote this tar, and its files alone do not say how: it is kept, as the blob
        // that a push would make of it.
        let mut content = self.archive.find(path)?.ok_or_else(missing)?;
        let mut writer = self.store().blob_writer(None, content.left().saturating_mul(2).max(1 << 20))?;
        let mut counted = Counted::new(&mut writer, &self.context.cancel);
        let mut compressor = Compressor::new(&mut counted, Codec::new(Compression::Gzip, None));
        io::copy(&mut content, &mut compressor)?;
        compressor.finish()?;
        let (digest, size) = writer.commit()?;
        let blob = Descriptor::new(Compression::Gzip.oci_media_type(), digest, size);
        self.store().set_compressed(layer, Compression::Gzip, &blob)?;
        Ok(ImageLayer { layer, diff_id, blob: Some(blob) })
    }

    /// Unpacks a blob while it is copied into the store, so that it can be pushed as it is.
    fn unpack_blob(
        &mut self,
        path: &str,
        content: Content,
        descriptor: &Descriptor,
        diff_id: &Digest,
    ) -> Result<LayerId, LoadErrorKind> {
        let mut writer = self.store().blob_writer(Some(&descriptor.digest), descriptor.size)?;
        let mut copied = Copied { input: content, output: &mut writer };
        let unpacked = self.unpack(path, &mut copied, diff_id);
        let drained = io::copy(&mut copied, &mut io::sink());
        // Wrong bytes are the cause of what unpacking says about them.
        drained?;
        match writer.commit() {
            Ok(_) => unpacked,
            Err(StoreError::DigestMismatch { expected, found }) => {
                Err(LoadErrorKind::Digest { path: path.to_owned(), expected, found })
            }
            Err(error) => Err(error.into()),
        }
    }

    fn unpack(
        &mut self,
        path: &str,
        content: impl Read + Send,
        diff_id: &Digest,
    ) -> Result<LayerId, LoadErrorKind> {
        let cancel = &self.context.cancel;
        let content = Cancellable { input: content, cancelled: || cancel.is_cancelled() };
        let options = ApplyOptions {
            diff_id: Some(diff_id.clone()),
            description: format!("loaded {}", diff_id.short()),
            ..ApplyOptions::default()
        };
        let applied = self.context.events.step(ExportStep::LoadingLayer(diff_id.clone()), || {
            self.store()
                .apply_layer(content, &options)
                .map_err(|source| LoadErrorKind::Layer { path: path.to_owned(), source })
        })?;
        self.layers.insert(diff_id.clone(), applied.layer);
        Ok(applied.layer)
    }

    fn known_layer(&self, diff_id: &Digest) -> Result<Option<LayerId>, LoadErrorKind> {
        match self.layers.get(diff_id) {
            Some(layer) => Ok(Some(*layer)),
            None => Ok(self.store().layer_by_diff_id(diff_id)?),
        }
    }
}

/// Copies what is read through it.
struct Copied<R, W> {
    input: R,
    output: W,
}

impl<R: Read, W: Write> Read for Copied<R, W> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.input.read(buffer)?;
        self.output.write_all(&buffer[..count])?;
        Ok(count)
    }
}

/// Ends with an error once nobody waits for the archive any more.
struct Cancellable<R, F> {
    input: R,
    cancelled: F,
}

impl<R: Read, F: Fn() -> bool> Read for Cancellable<R, F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if (self.cancelled)() {
            return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "cancelled"));
        }
        self.input.read(buffer)
    }
}
