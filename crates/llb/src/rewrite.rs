//! The same graph with other sources.
//!
//! Owns that whatever stands above a changed source gets the digest that goes with it, and that nothing else changes.
//! Must not know why a source is changed. Start with [`Definition::with_sources`].

use std::collections::HashMap;

use stave_oci::Digest;

use crate::definition::{Definition, Edge, Vertex};
use crate::op::{BuildOp, Op};
use crate::source::SourceOp;
use crate::source_map::SourceMap;
use crate::wire;

impl Definition {
    /// This graph with what `change` says in the place of its sources; `None` keeps a source as it is. Graphs inside of
    /// it are gone through, too.
    ///
    /// # Errors
    /// Those of `change`; the first ends it.
    pub fn with_sources<E>(
        &self,
        change: &mut dyn FnMut(&SourceOp) -> Result<Option<SourceOp>, E>,
    ) -> Result<Self, E> {
        let mut changed = Self::empty();
        let mut renamed: HashMap<&Digest, Digest> = HashMap::new();
        for (vertex, bytes) in self.vertices.iter().zip(&self.encoded) {
            let op = changed_op(&vertex.op, change)?;
            let is_above = vertex.inputs.iter().any(|edge| renamed.contains_key(&edge.vertex));
            if op.is_none() && !is_above {
                changed.push(vertex.clone(), bytes.clone());
                continue;
            }
            let op = op.unwrap_or_else(|| vertex.op.clone());
            let inputs: Vec<Edge> = vertex.inputs.iter().map(|edge| moved(edge, &renamed)).collect();
            let (platform, constraints) = (vertex.platform.as_ref(), vertex.constraints.as_deref());
            let bytes = wire::encode_op(&op, &inputs, platform, constraints);
            let digest = Digest::sha256(&bytes);
            renamed.insert(&vertex.digest, digest.clone());
            changed.push(Vertex { digest, op, inputs, ..vertex.clone() }, bytes);
        }
        changed.outputs = self.outputs.iter().map(|edge| moved(edge, &renamed)).collect();
        changed.return_op = match renamed.is_empty() {
            true => self.return_op.clone(),
            false => wire::encode_return(&changed.outputs),
        };
        changed.return_metadata = self.return_metadata.clone();
        changed.source_map = self.source_map.clone();
        self.move_places(&mut changed.source_map, &renamed);
        Ok(changed)
    }
}

impl Definition {
    /// Puts the places of vertices where these are now: what became one comes from the places of all of them.
    fn move_places(&self, map: &mut SourceMap, renamed: &HashMap<&Digest, Digest>) {
        let moved =
            self.vertices.iter().filter_map(|vertex| Some((&vertex.digest, renamed.get(&vertex.digest)?)));
        let moved: Vec<_> = moved.filter_map(|(old, new)| Some((new, map.locations.remove(old)?))).collect();
        for (new, places) in moved {
            let known = map.locations.entry(new.clone()).or_default();
            for place in places {
                if !known.contains(&place) {
                    known.push(place);
                }
            }
        }
    }

    /// This graph with another output.
    #[must_use]
    pub fn ending_at(&self, output: Edge) -> Self {
        let mut other = self.clone();
        other.return_op = wire::encode_return(std::slice::from_ref(&output));
        other.outputs = vec![output];
        other
    }

    /// This graph with another's first output in the place of a vertex; `None` when that has none.
    #[must_use]
    pub fn with_graph_at(&self, vertex: &Digest, inner: &Self) -> Option<Self> {
        let result = inner.outputs.first()?;
        let mut whole = Self::empty();
        for (vertex, bytes) in inner.vertices.iter().zip(&inner.encoded) {
            whole.push(vertex.clone(), bytes.clone());
        }
        let mut renamed: HashMap<&Digest, Digest> = HashMap::new();
        let place = |edge: &Edge, renamed: &HashMap<&Digest, Digest>| match edge.vertex == *vertex {
            true => result.clone(),
            false => moved(edge, renamed),
        };
        for (own, bytes) in self.vertices.iter().zip(&self.encoded).filter(|(own, _)| own.digest != *vertex) {
            let inputs: Vec<Edge> = own.inputs.iter().map(|edge| place(edge, &renamed)).collect();
            if inputs == own.inputs {
                whole.push(own.clone(), bytes.clone());
                continue;
            }
            let (platform, constraints) = (own.platform.as_ref(), own.constraints.as_deref());
            let bytes = wire::encode_op(&own.op, &inputs, platform, constraints);
            let digest = Digest::sha256(&bytes);
            renamed.insert(&own.digest, digest.clone());
            whole.push(Vertex { digest, inputs, ..own.clone() }, bytes);
        }
        whole.outputs = self.outputs.iter().map(|edge| place(edge, &renamed)).collect();
        whole.return_op = wire::encode_return(&whole.outputs);
        whole.return_metadata = self.return_metadata.clone();
        whole.source_map = self.source_map.clone();
        whole.source_map.locations.remove(vertex);
        self.move_places(&mut whole.source_map, &renamed);
        Some(whole)
    }
}

fn changed_op<E>(
    op: &Op,
    change: &mut dyn FnMut(&SourceOp) -> Result<Option<SourceOp>, E>,
) -> Result<Option<Op>, E> {
    match op {
        Op::Source(source) => Ok(change(source)?.map(Op::Source)),
        Op::Build(BuildOp { definition: Some(inner), .. }) => {
            let other = inner.with_sources(change)?;
            let is_same = other.digest() == inner.digest();
            Ok((!is_same).then(|| match op {
                Op::Build(build) => Op::Build(BuildOp { definition: Some(Box::new(other)), ..build.clone() }),
                other => other.clone(),
            }))
        }
        _ => Ok(None),
    }
}

fn moved(edge: &Edge, renamed: &HashMap<&Digest, Digest>) -> Edge {
    let vertex = renamed.get(&edge.vertex).unwrap_or(&edge.vertex).clone();
    Edge { vertex, output: edge.output }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::convert::Infallible;

    use stave_oci::Platform;

    use super::*;
    use crate::builder::{About, GraphBuilder};

    fn graph(first: &str) -> Definition {
        let platform = Platform::new("linux", "amd64", None);
        let mut graph = GraphBuilder::default();
        let source = |name: &str| SourceOp::new(name, BTreeMap::new());
        let one = graph.source(source(first), &platform, About::named("one"));
        let two = graph.source(source("local://context"), &platform, About::named("two"));
        let merged = graph.merge([Some(one), Some(two)], About::named("both"));
        graph.finish(merged)
    }

    fn changed(definition: &Definition, from: &str, to: &str) -> Definition {
        let changed = definition.with_sources::<Infallible>(&mut |source| {
            Ok((source.raw == from).then(|| SourceOp::new(to, source.attrs.clone())))
        });
        changed.unwrap_or_else(|error| match error {})
    }

    #[test]
    fn what_stands_above_a_changed_source_is_as_if_it_had_been_so_from_the_start() {
        let before = graph("https://a.test/old");
        let after = changed(&before, "https://a.test/old", "https://a.test/new");
        assert_eq!(after, graph("https://a.test/new"));
        assert_eq!(after.to_wire(), graph("https://a.test/new").to_wire());
        assert_ne!(after.outputs(), before.outputs());
    }

    #[test]
    fn a_graph_takes_the_place_of_a_vertex() {
        let (outer, inner) = (graph("https://a.test/old"), graph("https://a.test/inner"));
        let first = outer.vertices()[0].digest.clone();
        let whole = outer.with_graph_at(&first, &inner).expect("has an output");
        let last = whole.vertices().last().expect("has vertices");
        assert_eq!(last.inputs[0], inner.outputs()[0]);
        assert_eq!(whole.outputs()[0].vertex, last.digest);
        assert!(whole.vertex(&first).is_none());
        assert_eq!(Definition::from_wire(&whole.to_wire()).expect("is sound"), whole);
        assert!(outer.with_graph_at(&first, &Definition::empty()).is_none());
        let other = outer.ending_at(Edge { vertex: first.clone(), output: 0 });
        assert_eq!(other.outputs()[0].vertex, first);
    }

    #[test]
    fn what_becomes_one_vertex_comes_from_the_places_of_both() {
        use crate::source_map::{SourceInfo, SourceLocation};
        let platform = Platform::new("linux", "amd64", None);
        let mut builder = GraphBuilder::default();
        let [one, two] = ["https://a.test/1", "https://a.test/2"]
            .map(|name| builder.source(SourceOp::new(name, BTreeMap::new()), &platform, About::default()));
        let merged = builder.merge([Some(one), Some(two)], About::default());
        let mut graph = builder.finish(merged);
        graph.source_map.infos = vec![SourceInfo::default(); 2];
        let place = |source| SourceLocation { source, ranges: Vec::new() };
        for at in 0..2 {
            graph.source_map.locations.insert(graph.vertices()[at].digest.clone(), vec![place(at)]);
        }
        let same = graph.with_sources::<Infallible>(&mut |source| {
            Ok(Some(SourceOp::new("https://a.test/3", source.attrs.clone())))
        });
        let same = same.unwrap_or_else(|error| match error {});
        assert_eq!(same.source_map.locations[&same.vertices()[0].digest], [place(0), place(1)]);
    }

    #[test]
    fn without_a_change_all_stays() {
        let before = graph("https://a.test/old");
        assert_eq!(
            changed(&before, "https://elsewhere.test", "https://a.test/new").to_wire(),
            before.to_wire()
        );
    }
}
