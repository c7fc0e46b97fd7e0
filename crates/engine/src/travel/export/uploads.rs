//! Layers on their way to the places of caches, in the background as soon as the step that made them has ended.
//!
//! Owns that each of them goes once. Must not know records and documents. Start with [`Outgoing`].

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use stave_exporter::{Exporter, LayerBlob};
use stave_llb::Definition;
use stave_oci::Digest;
use stave_remotecache::export;
use stave_remotecache::place::{Content, Place};
use stave_remotecache::spec::{CompressionChoice, ExportSpec, ExportTarget, Mode};
use stave_store::{LayerId, Snapshot};
use stave_worker::Listener;
use tokio::sync::{OnceCell, Semaphore};
use tokio::task::JoinSet;

use super::{CacheExportErrorKind, PARALLEL};
use crate::Engine;
use crate::travel::ahead::Ahead;
use crate::travel::bases::Bases;
use crate::travel::mounts::Departing;

/// Bytes of a layer made here that is sent without asking first: to ask costs about as much.
const SMALL: u64 = 64 << 10;

/// One cache on its way out.
pub(in crate::travel) struct Outgoing {
    pub(in crate::travel) spec: ExportSpec,
    /// `None` for a cache inside of the image.
    pub(super) uploads: Option<Arc<Uploads>>,
    /// The vertices whose results it holds; `None` for all.
    pub(super) wanted: Option<HashSet<Digest>>,
    pub(super) mounts: Option<Arc<Departing>>,
    pub(super) background: Arc<Mutex<JoinSet<()>>>,
    /// Turns to digest what keys are made of: one while the build goes on.
    pub(in crate::travel) digests: Arc<Semaphore>,
}

/// What leaves for one place; every layer once.
pub(super) struct Uploads {
    pub(super) place: Place,
    exporter: Exporter,
    compression: CompressionChoice,
    bases: Arc<Bases>,
    layers: Mutex<HashMap<LayerId, Arc<OnceCell<LayerBlob>>>>,
    permits: Semaphore,
}

impl Outgoing {
    pub(in crate::travel) fn begin(
        engine: &Engine,
        spec: &ExportSpec,
        place: Option<Place>,
        definition: &Definition,
        bases: &Arc<Bases>,
    ) -> Self {
        let parallel = match &place {
            Some(Place::S3(store)) => store.parallel(),
            _ => PARALLEL,
        };
        let departing = spec.mounts.as_ref().zip(place.as_ref());
        let mounts =
            departing.map(|(limits, place)| Departing::new(&engine.store, place, *limits, definition));
        let uploads = place.map(|place| Uploads {
            place,
            exporter: engine.exporter(),
            compression: spec.compression,
            bases: Arc::clone(bases),
            layers: Mutex::default(),
            permits: Semaphore::new(parallel),
        });
        let is_all = spec.mode == Mode::Max && spec.target != ExportTarget::Inline;
        Self {
            spec: spec.clone(),
            uploads: uploads.map(Arc::new),
            wanted: (!is_all).then(|| export::result_chain(definition)),
            mounts: mounts.map(Arc::new),
            background: Arc::default(),
            digests: Arc::new(Semaphore::new(1)),
        }
    }

    pub(super) fn wants(&self, vertex: &Digest) -> bool {
        self.wanted.as_ref().is_none_or(|wanted| wanted.contains(vertex))
    }
}

/// What the listener needs of one export.
struct Lane {
    uploads: Arc<Uploads>,
    wanted: Option<HashSet<Digest>>,
    mounts: Option<Arc<Departing>>,
    background: Arc<Mutex<JoinSet<()>>>,
}

/// Sends layers, and cache mounts that no later step uses, as results become known; `ahead` digests what keys are made
/// of.
pub(in crate::travel) fn listener(
    outgoing: &[Outgoing],
    definition: &Definition,
    ahead: Option<Ahead>,
) -> Listener {
    // A base's layers are of no use to anybody before the end.
    let sources: HashSet<Digest> = definition
        .vertices()
        .iter()
        .filter(|vertex| vertex.inputs.is_empty())
        .map(|v| v.digest.clone())
        .collect();
    let lane = |out: &Outgoing| {
        let lane = Lane {
            uploads: out.uploads.clone()?,
            wanted: out.wanted.clone(),
            mounts: out.mounts.clone(),
            background: Arc::clone(&out.background),
        };
        Some(lane)
    };
    let lanes: Vec<Lane> = outgoing.iter().filter_map(lane).collect();
    let digesting = ahead.zip(outgoing.first().map(|out| Arc::clone(&out.background)));
    Box::new(move |vertex: &Digest, outputs: &[Snapshot]| {
        if let Some((ahead, background)) = &digesting {
            let mut tasks = background.lock().unwrap_or_else(PoisonError::into_inner);
            ahead.made(vertex, outputs, &mut tasks);
        }
        for Lane { uploads, wanted, mounts, background } in &lanes {
            let ended = mounts.as_ref().map(|mounts| (mounts, mounts.ended(vertex)));
            if let Some((mounts, ids)) = ended.filter(|(_, ids)| !ids.is_empty()) {
                let mounts = Arc::clone(mounts);
                background.lock().unwrap_or_else(PoisonError::into_inner).spawn(async move {
                    if let Err(error) = mounts.take(ids).await {
                        tracing::debug!(error = &error as &dyn std::error::Error, "mounts are sent later");
                    }
                });
            }
            if sources.contains(vertex) || wanted.as_ref().is_some_and(|wanted| !wanted.contains(vertex)) {
                continue;
            }
            // Each step has the layers of all below it: only the new ones are anything to do.
            let layers = outputs.iter().flat_map(Snapshot::layers).copied();
            for layer in layers.filter(|layer| uploads.is_new(*layer)) {
                let uploads = Arc::clone(uploads);
                let mut tasks = background.lock().unwrap_or_else(PoisonError::into_inner);
                // What fails here is tried again at the end, and told then.
                tasks.spawn(async move {
                    if let Err(error) = uploads.layer(layer).await {
                        tracing::debug!(error = &error as &dyn std::error::Error, "a layer is sent later");
                    }
                });
            }
        }
    })
}

impl Uploads {
    /// Whether nobody has taken care of a layer yet; whoever asks does.
    fn is_new(&self, layer: LayerId) -> bool {
        let mut layers = self.layers.lock().unwrap_or_else(PoisonError::into_inner);
        match layers.entry(layer) {
            Entry::Occupied(_) => false,
            Entry::Vacant(entry) => {
                entry.insert(Arc::default());
                true
            }
        }
    }

    /// Makes sure that a layer is at the place.
    pub(super) async fn layer(&self, layer: LayerId) -> Result<LayerBlob, CacheExportErrorKind> {
        let cell = {
            let mut layers = self.layers.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(layers.entry(layer).or_default())
        };
        let blob = cell.get_or_try_init(|| self.send(layer)).await?;
        Ok(blob.clone())
    }

    async fn send(&self, layer: LayerId) -> Result<LayerBlob, CacheExportErrorKind> {
        let _permit = self.permits.acquire().await;
        let layer = self.bases.describe(layer);
        let choice = stave_exporter::CompressionChoice {
            algorithm: Some(self.compression.algorithm),
            level: self.compression.level,
            force: self.compression.force,
        };
        let blob = self.exporter.layer_blob(&layer, choice).await?;
        if layer.blob.is_none() && blob.descriptor.size <= SMALL {
            let (blob, file) = self.exporter.open_layer(&layer, &blob).await?;
            self.place.offer_blob(&blob.descriptor, Content::File(file)).await?;
            return Ok(blob);
        }
        let digest = &blob.descriptor.digest;
        let is_there = self.place.has_blob(&blob.descriptor).await?
            || match &layer.origin {
                Some(origin) => self.place.mount_blob(digest, origin).await?,
                None => false,
            };
        if is_there {
            return Ok(blob);
        }
        let (blob, file) = self.exporter.open_layer(&layer, &blob).await?;
        self.place.send_blob(&blob.descriptor, Content::File(file)).await?;
        Ok(blob)
    }
}

#[cfg(test)]
mod tests;
