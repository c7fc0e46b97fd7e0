//! A build's cache on its way out: its graph and results become records, its layers blobs, and documents name
//! both.
//!
//! Owns which records a build has and what the documents look like. Must not know how layers become blobs or
//! content is digested: both come from the caller. Start with [`records`] and [`write`].

use std::collections::{BTreeMap, HashMap, HashSet};

use bytes::Bytes;
use stave_llb::{Definition, Edge, FileInput, Mount, Op, Vertex};
use stave_oci::{Descriptor, Digest, Index, Manifest, layer_media_type, media_type};

use crate::builder::{BuiltId, BuiltLayer, ChainBuilder, Link};
use crate::chains::LayerStack;
use crate::config::{CACHE_CONFIG, CREATED_AT, LayerAnnotations, UNCOMPRESSED};
use crate::import::SourceKeys;
use crate::key::{OpKeys, content_record, output_digest};
use crate::place::{Content, Place, PlaceError};
use crate::spec::ManifestForm;

/// Outputs of a vertex that caches know.
pub(crate) const MAX_OUTPUTS: u32 = 64;

/// What an output of a vertex came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VertexResult {
    /// Its layers, bottom first.
    pub layers: Vec<BuiltLayer>,
    /// When it was made, RFC 3339.
    pub created_at: String,
}

/// Digests of inputs' content, by vertex and position.
pub type InputContents = HashMap<(Digest, usize), Digest>;

/// Records of content that identify inputs of a result which a cache has, by vertex and position. They alone do: what this
/// build has in that place need not be what the result was made of.
pub type InputLinks = HashMap<(Digest, usize), Vec<Digest>>;

/// The layers of a result that a cache has, as they lie there, and how each is described.
///
/// `None` for a stack with a layer whose uncompressed digest the cache does not tell.
pub fn as_imported(stack: &LayerStack) -> Option<(VertexResult, Vec<Descriptor>)> {
    let mut layers = Vec::with_capacity(stack.layers.len());
    let mut described = Vec::with_capacity(stack.layers.len());
    for layer in &stack.layers {
        let diff_id: Digest = layer.annotations.get(UNCOMPRESSED)?.parse().ok()?;
        let created = layer.annotations.get(CREATED_AT).unwrap_or(&stack.created_at);
        described.push(describe(layer, &diff_id, Some(created)));
        layers.push(BuiltLayer { blob: layer.digest.clone(), diff_id });
    }
    Some((VertexResult { layers, created_at: stack.created_at.clone() }, described))
}

/// The vertices a build's outputs stand on.
pub fn needed(definition: &Definition) -> HashSet<Digest> {
    let mut needed: HashSet<Digest> = definition.outputs().iter().map(|edge| edge.vertex.clone()).collect();
    for vertex in definition.vertices().iter().rev() {
        if needed.contains(&vertex.digest) {
            needed.extend(vertex.inputs.iter().map(|edge| edge.vertex.clone()));
        }
    }
    needed
}

/// The vertices whose layers are in the result: what a cache of the smallest mode holds.
pub fn result_chain(definition: &Definition) -> HashSet<Digest> {
    let mut chain: HashSet<Digest> = definition.outputs().iter().map(|edge| edge.vertex.clone()).collect();
    for vertex in definition.vertices().iter().rev() {
        if chain.contains(&vertex.digest) {
            let below = changed_inputs(vertex).into_iter();
            chain.extend(below.filter_map(|at| Some(vertex.inputs.get(at as usize)?.vertex.clone())));
        }
    }
    chain
}

/// The inputs whose layers stay in the outputs.
fn changed_inputs(vertex: &Vertex) -> Vec<u32> {
    match &vertex.op {
        Op::Exec(op) => op
            .mounts
            .iter()
            .filter_map(|mount| match mount {
                Mount::Bind { input, output: Some(_), .. } => *input,
                _ => None,
            })
            .collect(),
        Op::File(op) => op
            .actions
            .iter()
            .filter_map(|action| match action.input {
                FileInput::Input(input) => Some(input),
                FileInput::Scratch | FileInput::Action(_) => None,
            })
            .collect(),
        Op::Merge(op) => op.inputs.iter().flatten().copied().collect(),
        Op::Diff(op) => op.upper.into_iter().collect(),
        Op::Passthrough(op) => op.outputs.clone(),
        Op::Source(_) | Op::Build(_) => Vec::new(),
    }
}

/// The records of a build. A vertex with an input that nothing identifies has none, and neither have its users.
pub fn records(
    definition: &Definition,
    sources: &SourceKeys,
    (contents, known_by): (&InputContents, &InputLinks),
    results: &HashMap<Edge, VertexResult>,
) -> ChainBuilder {
    let needed = needed(definition);
    let mut builder = ChainBuilder::default();
    let mut known: HashMap<Edge, Vec<BuiltId>> = HashMap::new();
    let mut last_used: HashMap<&Digest, u32> = HashMap::new();
    for edge in definition.vertices().iter().flat_map(|vertex| &vertex.inputs).chain(definition.outputs()) {
        let last = last_used.entry(&edge.vertex).or_default();
        *last = (*last).max(edge.output).min(MAX_OUTPUTS - 1);
    }
    for vertex in definition.vertices().iter().filter(|vertex| needed.contains(&vertex.digest)) {
        let source = sources.get(&vertex.digest).map(Vec::as_slice).unwrap_or_default();
        let Some(keys) = OpKeys::of(vertex, source) else { continue };
        let Some(links) = links(&mut builder, (vertex, &keys), (contents, known_by), &known) else {
            continue;
        };
        // A hit is a hit for all outputs below one that is used, though nobody uses some of them.
        for output in 0..=last_used.get(&vertex.digest).copied().unwrap_or_default() {
            let edge = Edge { vertex: vertex.digest.clone(), output };
            let ids: Vec<BuiltId> = keys
                .digests
                .iter()
                .map(|digest| builder.record(output_digest(digest, output), links.clone()))
                .collect();
            let is_exported = vertex.metadata.export_cache != Some(false) && !vertex.inputs.is_empty();
            if let Some(result) = results.get(&edge).filter(|_| is_exported) {
                for id in &ids {
                    builder.set_result(*id, result.layers.clone(), result.created_at.clone());
                }
            }
            known.insert(edge, ids);
        }
    }
    builder
}

fn links(
    builder: &mut ChainBuilder,
    (vertex, keys): (&Vertex, &OpKeys),
    (contents, known_by): (&InputContents, &InputLinks),
    known: &HashMap<Edge, Vec<BuiltId>>,
) -> Option<Vec<Vec<Link>>> {
    let mut all = Vec::with_capacity(vertex.inputs.len());
    for (at, (edge, input)) in vertex.inputs.iter().zip(&keys.inputs).enumerate() {
        let ids = known.get(edge).map(Vec::as_slice).unwrap_or_default();
        let mut links: Vec<Link> = ids.iter().map(|id| (*id, input.selector.clone())).collect();
        let place = (vertex.digest.clone(), at);
        let own = || contents.get(&place).map(content_record).into_iter().collect();
        for record in known_by.get(&place).cloned().unwrap_or_else(own) {
            links.push((builder.record(record, Vec::new()), None));
        }
        if links.is_empty() {
            return None;
        }
        all.push(links);
    }
    Some(all)
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// The document the cache is found by.
    pub manifest: Descriptor,
    /// All blobs it names.
    pub blobs: Vec<Digest>,
}

/// Writes the documents of a cache whose layers are at `place` already, as `blobs` describes them. `None` for a
/// cache without layers, which nobody could use.
///
/// # Errors
/// [`PlaceError`].
pub async fn write(
    place: &Place,
    form: ManifestForm,
    builder: &ChainBuilder,
    blobs: &BTreeMap<Digest, Descriptor>,
) -> Result<Option<Written>, PlaceError> {
    let mut config = builder.config();
    if config.layers.is_empty() {
        return Ok(None);
    }
    if let Place::S3(_) = place {
        for layer in &mut config.layers {
            layer.annotations = blobs.get(&layer.blob).map(annotations);
        }
        let bytes = Bytes::from(serde_json::to_vec(&config).unwrap_or_default());
        let manifest = Descriptor::of(CACHE_CONFIG, &bytes);
        place.put_document(CACHE_CONFIG, bytes).await?;
        return Ok(Some(Written { manifest, blobs: Vec::new() }));
    }
    let bytes = Bytes::from(serde_json::to_vec(&config).unwrap_or_default());
    let described = Descriptor::of(CACHE_CONFIG, &bytes);
    place.put_blob(&described, Content::Bytes(bytes)).await?;
    let mut seen = HashSet::new();
    let layers: Vec<Descriptor> = config
        .layers
        .iter()
        .filter(|layer| seen.insert(&layer.blob))
        .filter_map(|layer| blobs.get(&layer.blob))
        .map(|layer| in_family(layer, form))
        .collect();
    let mut named: Vec<Digest> = layers.iter().map(|layer| layer.digest.clone()).collect();
    named.push(described.digest.clone());
    let (media_type, document) = document(form, layers, described);
    let manifest = Descriptor::of(media_type, &document);
    place.put_document(media_type, document).await?;
    named.push(manifest.digest.clone());
    Ok(Some(Written { manifest, blobs: named }))
}

fn document(form: ManifestForm, layers: Vec<Descriptor>, config: Descriptor) -> (&'static str, Bytes) {
    let index = |kind: &str, mut manifests: Vec<Descriptor>, config: Descriptor| {
        manifests.push(config);
        let index = Index {
            schema_version: 2,
            media_type: Some(kind.to_owned()),
            artifact_type: None,
            manifests,
            subject: None,
            annotations: BTreeMap::new(),
        };
        serde_json::to_vec(&index).unwrap_or_default().into()
    };
    match form {
        ManifestForm::OciManifest => {
            let manifest = Manifest {
                schema_version: 2,
                media_type: Some(media_type::OCI_MANIFEST.to_owned()),
                artifact_type: None,
                config,
                layers,
                subject: None,
                annotations: BTreeMap::new(),
            };
            (media_type::OCI_MANIFEST, serde_json::to_vec(&manifest).unwrap_or_default().into())
        }
        ManifestForm::OciIndex => (media_type::OCI_INDEX, index(media_type::OCI_INDEX, layers, config)),
        ManifestForm::DockerList => {
            (media_type::DOCKER_INDEX, index(media_type::DOCKER_INDEX, layers, config))
        }
    }
}

fn in_family(layer: &Descriptor, form: ManifestForm) -> Descriptor {
    let mut layer = layer.clone();
    if let Some(found) = layer_media_type(&layer.media_type).filter(|found| !found.foreign) {
        layer.media_type = match form {
            ManifestForm::OciManifest | ManifestForm::OciIndex => found.compression.oci_media_type(),
            ManifestForm::DockerList => found.compression.docker_media_type(),
        }
        .to_owned();
    }
    layer
}

fn annotations(layer: &Descriptor) -> LayerAnnotations {
    let created = layer.annotations.get(CREATED_AT).cloned();
    LayerAnnotations {
        media_type: layer.media_type.clone(),
        diff_id: layer.annotations.get(UNCOMPRESSED).and_then(|text| text.parse().ok()),
        size: i64::try_from(layer.size).unwrap_or(i64::MAX),
        created_at: created.unwrap_or_else(|| crate::config::NO_TIME.to_owned()),
    }
}

/// A layer's descriptor as caches carry it.
pub fn describe(blob: &Descriptor, diff_id: &Digest, created_at: Option<&str>) -> Descriptor {
    let mut described = Descriptor::new(&blob.media_type, blob.digest.clone(), blob.size);
    described.annotations.insert(UNCOMPRESSED.to_owned(), diff_id.to_string());
    if let Some(created_at) = created_at {
        described.annotations.insert(CREATED_AT.to_owned(), created_at.to_owned());
    }
    described
}

#[cfg(test)]
mod tests;
