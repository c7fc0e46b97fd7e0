//! Results that stand below a hit in a cache that was read: nobody needed them, and yet who reads the cache that is written
//! may. They go from the one to the other as they are.
//!
//! Owns how they travel. Must not know formats. Start with [`Journey::pass_on`].

use std::collections::{BTreeMap, HashMap, HashSet};

use futures::{StreamExt as _, TryStreamExt as _};
use stave_llb::{Definition, Edge};
use stave_oci::{Descriptor, Digest};
use stave_remotecache::builder::BuiltLayer;
use stave_remotecache::export::{InputContents, InputLinks, VertexResult, as_imported, needed};
use stave_remotecache::import::{ImportHit, Imports, PassError, Stored};
use stave_remotecache::key::content_record;
use stave_remotecache::place::{Place, PlaceError};
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

    /// By what inputs of results are known that caches have. What is not known to belong to a result is left out: a wrong
    /// hit is worse than none.
    pub(super) fn known_by(
        &self,
        results: &BTreeMap<Digest, TravelResult>,
        unasked: &Unasked,
        contents: &InputContents,
    ) -> InputLinks {
        let mut links = InputLinks::new();
        let Some(imports) = self.travel.imports() else { return links };
        let fetched = |(vertex, result): (&Digest, &TravelResult)| {
            Some((vertex.clone(), imports.fetched(vertex, &result.outputs)?))
        };
        let mut hits: Unasked = results.iter().filter_map(fetched).collect();
        hits.extend(unasked.clone());
        let agree = |lower: &Digest, upper: &Digest| {
            hits.get(lower).zip(hits.get(upper)).is_some_and(|(lower, upper)| lower.is_beside(upper))
        };
        let is_read = |vertex: &Digest, position| self.travel.input(vertex, position).is_some();
        let settled = settled(&self.definition, &agree, &is_read);
        for (vertex, hit) in &hits {
            let inputs = self.definition.vertex(vertex).map_or(0, |vertex| vertex.inputs.len());
            for position in 0..inputs {
                let place = (vertex.clone(), position);
                let mut known = imports.known_by(hit, position);
                if !settled.contains(vertex) {
                    let own = contents.get(&place).map(content_record);
                    known.retain(|record| own.as_ref() == Some(record));
                }
                links.insert(place, known);
            }
        }
        links
    }

    /// Brings what only a cache has to another one, each layer once, but those that are `there`. What cannot be had any more
    /// is left out: its steps run again one day.
    ///
    /// # Errors
    /// When the place they are to go to fails.
    pub(super) async fn pass_on(
        &self,
        unasked: Unasked,
        to: &Place,
        there: &BTreeMap<Digest, Descriptor>,
    ) -> Result<Vec<Passed>, PlaceError> {
        let Some(imports) = self.travel.imports() else { return Ok(Vec::new()) };
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
            passing.push(loses((imports, hit), layer, self.stored, to));
        }
        let lost: Vec<Option<Digest>> =
            futures::stream::iter(passing).buffer_unordered(PARALLEL).try_collect().await?;
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
        Ok(passed)
    }
}

/// The vertices over which nothing stands that was made over another result of theirs: what uses them comes from the same
/// cache (`agree`, lower one first), or read their result in this build (`is_read`), and so on up to the outputs.
fn settled<'a>(
    definition: &'a Definition,
    agree: &dyn Fn(&Digest, &Digest) -> bool,
    is_read: &dyn Fn(&Digest, usize) -> bool,
) -> HashSet<&'a Digest> {
    let needed = needed(definition);
    let mut disputed: HashSet<&Digest> = HashSet::new();
    let all = definition.vertices().iter().filter(|vertex| needed.contains(&vertex.digest));
    for vertex in all.clone().rev() {
        let is_disputed = disputed.contains(&vertex.digest);
        for (position, edge) in vertex.inputs.iter().enumerate() {
            if is_disputed || !(is_read(&vertex.digest, position) || agree(&edge.vertex, &vertex.digest)) {
                disputed.insert(&edge.vertex);
            }
        }
    }
    all.map(|vertex| &vertex.digest).filter(|vertex| !disputed.contains(vertex)).collect()
}

/// Brings one layer to a place; the layer, if it cannot be had any more.
async fn loses(
    (imports, hit): (&Imports, &ImportHit),
    layer: &Descriptor,
    stored: Stored,
    to: &Place,
) -> Result<Option<Digest>, PlaceError> {
    match imports.pass_on(hit, layer, stored, to).await {
        Ok(()) => Ok(None),
        Err(PassError::Lost(error)) => {
            tracing::debug!(error = &error as &dyn std::error::Error, "results are left out");
            Ok(Some(layer.digest.clone()))
        }
        Err(PassError::Refused(error)) => Err(error),
    }
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

#[cfg(test)]
mod tests {
    use stave_llb::SourceOp;
    use stave_llb::builder::{About, FileSpec, GraphBuilder};
    use stave_oci::Platform;

    use super::*;

    /// A source, a step over it that `caches` has from one cache, and two more; which of the four are settled.
    #[track_caller]
    fn check(caches: [u8; 4], read: Option<usize>, expected: &[usize]) {
        let mut graph = GraphBuilder::default();
        let op = SourceOp::new("local://x".to_owned(), BTreeMap::new());
        let mut top = graph.source(op, &Platform::host(), About::default());
        for name in ["one", "two", "three"] {
            let make = stave_llb::MkdirAction { path: format!("/{name}"), ..Default::default() };
            let make =
                stave_llb::builder::FileStep { kind: stave_llb::FileActionKind::Mkdir(make), source: None };
            top = graph.file(FileSpec { base: Some(top), actions: vec![make], about: About::default() });
        }
        let definition = graph.finish(Some(top));
        let at = |digest: &Digest| {
            definition.vertices().iter().position(|one| one.digest == *digest).expect("is there")
        };
        let agree = |lower: &Digest, upper: &Digest| {
            let (lower, upper) = (caches[at(lower)], caches[at(upper)]);
            lower != 0 && lower == upper
        };
        let is_read = |vertex: &Digest, _| read == Some(at(vertex));
        let mut found: Vec<usize> = settled(&definition, &agree, &is_read).into_iter().map(at).collect();
        found.sort_unstable();
        assert_eq!(found, expected);
    }

    #[test]
    fn a_result_under_one_that_was_made_over_another_is_disputed() {
        check([1, 1, 1, 1], None, &[0, 1, 2, 3]);
        check([0, 1, 1, 1], None, &[1, 2, 3]);
        // Another cache's, and one of this machine, which were found by their definition.
        check([1, 1, 2, 2], None, &[2, 3]);
        check([1, 1, 1, 0], None, &[3]);
        // The third read the second's result, whoever made it.
        check([1, 1, 1, 0], Some(3), &[0, 1, 2, 3]);
    }
}
