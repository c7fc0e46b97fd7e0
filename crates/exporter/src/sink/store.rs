//! The local image store: a metadata write. Nothing is compressed or copied for it.

use std::collections::BTreeSet;

use stave_oci::{Digest, Platform, Reference};
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
    let attested: Vec<_> = images.iter().map(|image| (image.id(), attested(image))).collect();
    context.store.put_attested(names, &local, &attested)?;
    for (id, _) in attested {
        context.events.done(ExportStep::Config(id));
    }
    for name in names {
        context.events.done(ExportStep::Naming(name.canonical()));
    }
    let ids: BTreeSet<&Digest> = local.iter().map(|local| &local.id).collect();
    let sizes = ids.iter().map(|id| context.store.image_size(id));
    Ok((first, sizes.sum::<Result<u64, _>>()?))
}

fn attested(sealed: &Sealed) -> Vec<StoredAttestation> {
    let all = sealed.image.attestations.iter().map(|one| StoredAttestation {
        predicate_type: one.predicate_type.clone(),
        predicate: one.predicate.clone(),
    });
    all.collect()
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
