//! The local image store: a metadata write. Nothing is compressed or copied for it.

use stave_oci::{Digest, Reference};
use stave_store::{ImageLayer, LocalImage, StoredManifest};

use crate::document::Document;
use crate::error::ExportErrorKind;
use crate::event::ExportStep;
use crate::exporter::Context;
use crate::image::Image;

/// Stores `image` under `names`, with the manifest it was pushed under, if it was. Returns it with the
/// bytes its files take.
pub(crate) fn put(
    context: &Context,
    image: &Image,
    config: Vec<u8>,
    diff_ids: &[Digest],
    manifest: Option<Document>,
    names: &[Reference],
) -> Result<(LocalImage, u64), ExportErrorKind> {
    let layers = image.layers.iter().zip(diff_ids).map(|(layer, diff_id)| ImageLayer {
        layer: layer.layer,
        diff_id: diff_id.clone(),
        blob: layer.blob.clone(),
    });
    let pushed = manifest.map(|manifest| StoredManifest {
        media_type: manifest.descriptor.media_type,
        digest: manifest.descriptor.digest,
        bytes: manifest.bytes,
    });
    let local = LocalImage {
        id: Digest::sha256(&config),
        config,
        layers: layers.collect(),
        manifest: pushed.or_else(|| image.manifest.clone()),
        platform: image.platform.clone(),
    };
    context.store.put_image(names, &local)?;
    context.events.done(ExportStep::Config(local.id.clone()));
    for name in names {
        context.events.done(ExportStep::Naming(name.canonical()));
    }
    let size = context
        .store
        .images()?
        .into_iter()
        .find(|listed| listed.image.id == local.id)
        .map_or(0, |listed| listed.size);
    Ok((local, size))
}
