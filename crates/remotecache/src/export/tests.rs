//! Which outputs of a step a cache knows.

use stave_llb::SourceOp;
use stave_llb::builder::{About, GraphBuilder};
use stave_oci::Platform;

use super::*;

#[test]
fn outputs_below_one_that_is_used_are_known_too() {
    let mut graph = GraphBuilder::default();
    let platform = Platform::new("linux", "amd64", None);
    let mut image = |name: &str| {
        let op = SourceOp::new(format!("docker-image://docker.io/library/{name}"), BTreeMap::new());
        Some(graph.source(op, &platform, About::named(name)))
    };
    let (lower, upper) = (image("lower"), image("upper"));
    let step = graph.diff(lower, upper, About::named("step")).expect("they differ");
    let definition = graph.finish(Some(step.mounted(1)));
    let vertex = definition.outputs()[0].vertex.clone();
    let named = |vertex: &Vertex| (vertex.digest.clone(), vec![vertex.digest.to_string()]);
    let is_source = |vertex: &&Vertex| vertex.inputs.is_empty();
    let sources: SourceKeys = definition.vertices().iter().filter(is_source).map(named).collect();
    let result = |output: u32| {
        let blob = Digest::sha256(format!("blob {output}").as_bytes());
        let layers = vec![BuiltLayer { diff_id: Digest::sha256(blob.as_str().as_bytes()), blob }];
        let made = VertexResult { layers, created_at: "2026-01-01T00:00:00Z".to_owned() };
        (Edge { vertex: vertex.clone(), output }, made)
    };
    let results = HashMap::from([result(0), result(1), result(2)]);
    let config =
        records(&definition, &sources, (&InputContents::new(), &InputLinks::new()), &results).config();
    // Two images, and the step's outputs 0 and 1: an import asks for both, since a result is whole or none.
    assert_eq!((config.records.len(), config.layers.len()), (4, 2));
}
