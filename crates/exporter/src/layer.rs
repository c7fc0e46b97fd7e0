//! Single layers as blobs, for those who carry layers elsewhere than in an image: caches that travel.
//! Owns nothing but the way in; which bytes represent a layer is [`blob`]'s rule.

use std::fs::File;

use stave_oci::{Compression, Descriptor, Digest};

use crate::Exporter;
use crate::blob;
use crate::error::{ExportError, ExportErrorKind};
use crate::image::ImageLayerRef;
use crate::prepare::{self, LayerFormat};
use crate::spec::{CompressionChoice, ImageFormat};

/// A layer's blob, and the digest of its tar.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerBlob {
    /// The blob.
    pub descriptor: Descriptor,
    /// The digest of the uncompressed tar.
    pub diff_id: Digest,
}

impl Exporter {
    /// The blob that represents a layer: the one it came as, one made before, or a new one. One it came as need not
    /// be here (see [`Self::open_layer`]). Files keep their times.
    ///
    /// # Errors
    /// [`ExportError`].
    pub async fn layer_blob(
        &self,
        layer: &ImageLayerRef,
        compression: CompressionChoice,
    ) -> Result<LayerBlob, ExportError> {
        let format = ImageFormat { compression, ..ImageFormat::default() };
        let format = LayerFormat::push(&format);
        let failed = |kind| self.failed("layer".to_owned(), kind);
        if let (Some(blob), Some(diff_id)) = (&layer.blob, &layer.diff_id)
            && blob::wanted(blob, &format)
        {
            return Ok(LayerBlob { descriptor: blob.clone(), diff_id: diff_id.clone() });
        }
        if layer.blob.is_some() {
            blob::fetch(&self.context(), layer).await.map_err(failed)?;
        }
        let layer = layer.clone();
        self.blocking(move |context| {
            let sealed = prepare::seal_layer(&context.store, &layer, None)?;
            let descriptor = blob::make(&context.store, (&layer, &sealed), &format, &context.cancel, None)?;
            Ok(LayerBlob { descriptor, diff_id: sealed.diff_id })
        })
        .await
        .map_err(failed)
    }

    /// The bytes of a layer's blob, fetched back from where it came if they are not here. A blob that cannot be had
    /// any more is made anew, and then is another: see the descriptor that comes with it.
    ///
    /// # Errors
    /// [`ExportError`].
    pub async fn open_layer(
        &self,
        layer: &ImageLayerRef,
        blob: &LayerBlob,
    ) -> Result<(LayerBlob, File), ExportError> {
        let failed = |kind| self.failed("layer".to_owned(), kind);
        let digest = &blob.descriptor.digest;
        let has = |digest: &Digest| self.store.open_blob(digest).map_err(ExportErrorKind::from);
        if let Some(file) = has(digest).map_err(failed)? {
            return Ok((blob.clone(), file));
        }
        blob::fetch(&self.context(), layer).await.map_err(failed)?;
        if let Some(file) = has(digest).map_err(failed)? {
            return Ok((blob.clone(), file));
        }
        let made_here = ImageLayerRef { blob: None, ..layer.clone() };
        let choice = CompressionChoice {
            algorithm: Some(
                stave_oci::layer_media_type(&blob.descriptor.media_type)
                    .map_or(Compression::Gzip, |found| found.compression),
            ),
            ..CompressionChoice::default()
        };
        let made = Box::pin(self.layer_blob(&made_here, choice)).await?;
        match has(&made.descriptor.digest).map_err(failed)? {
            Some(file) => Ok((made, file)),
            None => Err(failed(ExportErrorKind::BlobMissing(made.descriptor.digest))),
        }
    }
}
