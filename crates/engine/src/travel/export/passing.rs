//! Results that stand below a hit in a cache that was read: nobody needed them, and yet who reads the cache that is written
//! may. They go from the one to the other as they are.
//!
//! Owns how they travel. Must not know formats. Start with [`Journey::pass_on`].

use std::collections::{BTreeMap, HashMap, HashSet};

use futures::StreamExt as _;
use stave_llb::Edge;
use stave_oci::{Descriptor, Digest};
use stave_remotecache::builder::BuiltLayer;
use stave_remotecache::export::{InputContents, InputLinks, VertexResult, as_imported, needed};
use stave_remotecache::import::{ImportHit, Imports};
use stave_remotecache::place::Place;
use stave_store::{LayerId, StoreError};
use stave_worker::TravelResult;

use super::{Journey, PARALLEL};
use crate::Engine;

/// A result whose layers are where the cache is written.
pub(super) struct Passed {
    pub(super) edge: Edge,
    pub(super) result: VertexResult,
    /// As the new cache describes them.
    pub(super) layers: Vec<Descriptor>,
}

/// Results that only a cache has which was read, by vertex.
pub(super) type Unasked = BTreeMap<Digest, ImportHit>;

impl Journey {
    /// What caches have of vertices that this build knows no result of. Whatever was digested meanwhile counts.
    pub(super) fn unasked(
        &self,
        results: &BTreeMap<Digest, TravelResult>,
        contents: &InputContents,
    ) -> Unasked {
        let Some(imports) = self.travel.imports() else { return Unasked::new() };
        imports.learn_of(contents);
        let unknown = needed(&self.definition).into_iter().filter(|vertex| !results.contains_key(vertex));
        let found = |vertex: Digest| {
            let hit = imports.unasked(&vertex)?;
            Some((vertex, hit))
        };
        unknown.filter_map(found).collect()
    }

    /// By what caches know inputs whose content nobody digested, because what they lead to was found.
    pub(super) fn known_by(&self, contents: &InputContents) -> InputLinks {
        let mut links = InputLinks::new();
        let Some(imports) = self.travel.imports() else { return links };
        for vertex in self.definition.vertices() {
            for position in 0..vertex.inputs.len() {
                let place = (vertex.digest.clone(), position);
                if !contents.contains_key(&place) {
                    links.insert(place, imports.known_by(&vertex.digest, position));
                }
            }
        }
        links
    }

    /// Brings what only a cache has to another one, each layer once, but those that are `there`. What cannot be had any more
    /// is left out: its steps run again one day.
    pub(super) async fn pass_on(
        &self,
        unasked: Unasked,
        to: &Place,
        there: &BTreeMap<Digest, Descriptor>,
    ) -> Vec<Passed> {
        let Some(imports) = self.travel.imports() else { return Vec::new() };
        // Each step has the layers of all below it.
        let mut layers: HashMap<&Digest, (&ImportHit, &Descriptor)> = HashMap::new();
        for hit in unasked.values() {
            let all = hit.stacks().iter().flat_map(|stack| &stack.layers);
            let all = all.filter(|layer| !there.contains_key(&layer.digest));
            layers.extend(all.map(|layer| (&layer.digest, (hit, layer))));
        }
        // Made here, not in the stream: a closure over two borrows would keep the future from other threads.
        let mut passing = Vec::with_capacity(layers.len());
        for (hit, layer) in layers.into_values() {
            passing.push(fails((imports, hit), layer, to));
        }
        let lost: Vec<Option<Digest>> =
            futures::stream::iter(passing).buffer_unordered(PARALLEL).collect().await;
        let lost: HashSet<Digest> = lost.into_iter().flatten().collect();
        let mut passed = Vec::new();
        for (vertex, hit) in &unasked {
            let is_lost = |layer: &Descriptor| lost.contains(&layer.digest);
            if hit.stacks().iter().any(|stack| stack.layers.iter().any(is_lost)) {
                continue;
            }
            for (output, stack) in (0..).zip(hit.stacks()) {
                let edge = Edge { vertex: vertex.clone(), output };
                passed.extend(as_imported(stack).map(|(result, layers)| Passed { edge, result, layers }));
            }
        }
        passed
    }
}

/// Brings one layer to a place; the layer, if that fails.
async fn fails((imports, hit): (&Imports, &ImportHit), layer: &Descriptor, to: &Place) -> Option<Digest> {
    let failed = imports.pass_on(hit, layer, to).await.err()?;
    tracing::debug!(error = &failed as &dyn std::error::Error, "results are left out");
    Some(layer.digest.clone())
}

/// Results that consist of an image's layers: of those nothing has to travel. Layers are called as `name` says.
pub(super) fn over(
    engine: &Engine,
    (vertex, hit): (&Digest, &ImportHit),
    image: &[LayerId],
    name: &impl Fn(LayerId) -> Digest,
) -> Result<Vec<(Edge, VertexResult)>, StoreError> {
    let mut found = Vec::new();
    for (output, stack) in (0..).zip(hit.stacks()) {
        let Some((result, _)) = as_imported(stack) else { continue };
        let mut layers = Vec::with_capacity(result.layers.len());
        for layer in &result.layers {
            let here = engine.store.layer_by_diff_id(&layer.diff_id)?.filter(|layer| image.contains(layer));
            let Some(here) = here else { break };
            layers.push(BuiltLayer { blob: name(here), diff_id: name(here) });
        }
        if layers.len() == result.layers.len() {
            let edge = Edge { vertex: vertex.clone(), output };
            found.push((edge, VertexResult { layers, created_at: result.created_at }));
        }
    }
    Ok(found)
}
