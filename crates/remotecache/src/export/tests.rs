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

#[test]
fn a_result_of_another_cache_is_not_called_by_what_is_here() {
    let mut graph = GraphBuilder::default();
    let platform = Platform::new("linux", "amd64", None);
    let mut image = |name: &str| {
        let op = SourceOp::new(format!("docker-image://docker.io/library/{name}"), BTreeMap::new());
        Some(graph.source(op, &platform, About::named(name)))
    };
    let (lower, upper) = (image("lower"), image("upper"));
    let step = graph.diff(lower, upper, About::named("step")).expect("they differ");
    let definition = graph.finish(Some(step));
    let place = (definition.outputs()[0].vertex.clone(), 0);
    let is_source = |vertex: &&Vertex| vertex.inputs.is_empty();
    let named = |vertex: &Vertex| (vertex.digest.clone(), vec![vertex.digest.to_string()]);
    let sources: SourceKeys = definition.vertices().iter().filter(is_source).map(named).collect();
    let (here, there) = (Digest::sha256(b"here"), content_record(&Digest::sha256(b"there")));
    let contents = InputContents::from([(place.clone(), here.clone())]);
    let written = |known_by: InputLinks| {
        let config = records(&definition, &sources, (&contents, &known_by), &HashMap::new()).config();
        let has = |wanted: &Digest| config.records.iter().any(|record| record.digest == *wanted);
        (has(&content_record(&here)), has(&there))
    };
    assert_eq!(written(InputLinks::new()), (true, false));
    assert_eq!(written(InputLinks::from([(place.clone(), vec![there.clone()])])), (false, true));
    assert_eq!(written(InputLinks::from([(place.clone(), Vec::new())])), (false, false));
}
