//! The local image store: a metadata write. Nothing is compressed or copied for it.

use stave_oci::{Platform, Reference};
use stave_store::{ImageLayer, LocalImage, StoredAttestation, StoredManifest};

use crate::document::Document;
use crate::error::ExportErrorKind;
use crate::event::ExportStep;
use crate::exporter::Context;
use crate::prepare::Sealed;

/// Stores the platforms of an image under `names`, with the manifests they were pushed under, if they
/// were. Returns the first with the bytes that the files of all take.
pub(crate) fn put(
    context: &Context,
    images: &[Sealed],
    manifests: &[Document],
    names: &[Reference],
) -> Result<(LocalImage, u64), ExportErrorKind> {
    let mut local: Vec<LocalImage> =
        images.iter().enumerate().map(|(index, image)| local(image, manifests.get(index))).collect();
    // What a name alone means is what runs here, if that is among them.
    let host = Platform::host();
    local.sort_by_key(|image| !image.platform.matches(&host));
    let first = local.first().cloned().ok_or(ExportErrorKind::NoImage)?;
    context.store.put_images(names, &local)?;
    for image in images {
        let id = image.id();
        let attestations = image.image.attestations.iter().map(|one| StoredAttestation {
            predicate_type: one.predicate_type.clone(),
            predicate: one.predicate.clone(),
        });
        let attestations: Vec<_> = attestations.collect();
        if !attestations.is_empty() {
            context.store.set_attestations(&id, &attestations)?;
        }
        context.events.done(ExportStep::Config(id));
    }
    for name in names {
        context.events.done(ExportStep::Naming(name.canonical()));
    }
    let listed = context.store.images()?;
    let size = listed.iter().filter(|listed| local.iter().any(|local| local.id == listed.image.id));
    Ok((first, size.map(|listed| listed.size).sum()))
}

fn local(sealed: &Sealed, pushed: Option<&Document>) -> LocalImage {
    let layers = sealed.image.layers.iter().zip(&sealed.layers).map(|(layer, sealed)| ImageLayer {
        layer: layer.layer,
        diff_id: sealed.diff_id.clone(),
        blob: layer.blob.clone(),
    });
    let pushed = pushed.map(|manifest| StoredManifest {
        media_type: manifest.descriptor.media_type.clone(),
        digest: manifest.descriptor.digest.clone(),
        bytes: manifest.bytes.clone(),
    });
    LocalImage {
        id: sealed.id(),
        config: sealed.config.clone(),
        layers: layers.collect(),
        manifest: pushed.or_else(|| sealed.image.manifest.clone()),
        platform: sealed.image.platform.clone(),
    }
}
