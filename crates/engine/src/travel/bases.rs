//! Which layers came with a base image: their blobs exist already, and their repository may hand them over.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, PoisonError};

use stave_exporter::ImageLayerRef;
use stave_oci::{Digest, Platform, Reference};
use stave_registry::Client;
use stave_store::{LayerId, Store};
use stave_worker::Puller;
use tokio_util::sync::CancellationToken;

/// The base images of one build. Each is looked up until it is here: it may be pulled while the build runs.
pub(super) struct Bases {
    store: Store,
    client: Client,
    names: Vec<(Reference, Platform)>,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    layers: HashMap<LayerId, ImageLayerRef>,
    found: HashSet<usize>,
}

impl Bases {
    pub(super) fn new(store: Store, client: Client, names: Vec<(Reference, Platform)>) -> Self {
        Self { store, client, names, known: Mutex::default() }
    }

    /// The layer as its base image describes it, or as one made here.
    pub(super) fn describe(&self, layer: LayerId) -> ImageLayerRef {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if !known.layers.contains_key(&layer) {
            for (at, (name, platform)) in self.names.iter().enumerate() {
                if !known.found.contains(&at) && self.learn(&mut known, name, platform) {
                    known.found.insert(at);
                }
            }
        }
        known.layers.get(&layer).cloned().unwrap_or_else(|| ImageLayerRef::built(layer))
    }

    fn learn(&self, known: &mut Known, name: &Reference, platform: &Platform) -> bool {
        let cancel = CancellationToken::new();
        let progress = |_: &Digest, _: u64, _: u64| {};
        let puller =
            Puller { store: &self.store, client: &self.client, progress: &progress, cancel: &cancel };
        // Trouble here only costs bytes: the layer then counts as one made here.
        let Ok(Some(image)) = puller.local(name, platform) else { return false };
        let origin = image.manifest.is_some().then(|| name.clone());
        known.layers.extend(image.layers.into_iter().map(|layer| {
            let described = ImageLayerRef {
                layer: layer.layer,
                origin: layer.blob.as_ref().and(origin.clone()),
                blob: layer.blob,
                diff_id: Some(layer.diff_id),
            };
            (described.layer, described)
        }));
        true
    }
}
