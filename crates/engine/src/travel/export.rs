//! Caches to write: layers leave in the background as soon as the step that made them has ended (`uploads`), documents
//! when the build has.
//!
//! Owns which results go where. Must not know formats. Start with [`Outgoing`].

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, PoisonError};
use std::time::SystemTime;

use base64::Engine as _;
use futures::{StreamExt as _, TryStreamExt as _};
use jiff::Timestamp;
use stave_exporter::{ConfigDocument, Image, LayerBlob};
use stave_llb::{Edge, Vertex};
use stave_oci::{Descriptor, Digest};
use stave_remotecache::builder::BuiltLayer;
use stave_remotecache::export::{self, InputContents, VertexResult, describe, records};
use stave_remotecache::key::OpKeys;
use stave_remotecache::mounts::MountError;
use stave_remotecache::place::{Place, PlaceError};
use stave_remotecache::spec::{ExportSpec, ExportTarget};
use stave_solver::key::definition_keys;
use stave_store::{LayerId, Snapshot, StoreError};
use stave_worker::{DigestError, Ref, TravelResult};
use tokio_util::sync::CancellationToken;

mod passing;
mod uploads;

use self::passing::Passed;
pub(super) use self::uploads::{Outgoing, listener};
use super::Journey;
use crate::Engine;
use crate::event::{Step, Steps};

/// Layers made or sent at once, for each export.
const PARALLEL: usize = 4;

/// Inputs digested at once.
const PARALLEL_DIGESTS: usize = 4;

/// Why a cache could not be written.
#[derive(Debug, thiserror::Error)]
#[error("failed to export cache to {target}")]
pub struct CacheExportError {
    /// Where it was to go.
    pub target: String,
    /// Why not.
    #[source]
    pub kind: Box<CacheExportErrorKind>,
}

/// What went wrong at an export.
#[derive(Debug, thiserror::Error)]
pub enum CacheExportErrorKind {
    /// The place.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// A layer did not become a blob.
    #[error(transparent)]
    Layer(#[from] stave_exporter::ExportError),
    /// The store.
    #[error(transparent)]
    Store(#[from] stave_store::StoreError),
    /// Content could not be read.
    #[error(transparent)]
    Digest(#[from] DigestError),
    /// The build was cancelled.
    #[error("cancelled")]
    Cancelled,
    /// Cache mounts.
    #[error(transparent)]
    Mounts(#[from] MountError),
}

impl Journey {
    /// Puts the records over an image's layers into its own config, for each platform.
    pub(crate) async fn inline(
        &self,
        engine: &Engine,
        images: &mut [Image],
        steps: &Steps,
    ) -> Result<(), CacheExportError> {
        let Some(out) = self.outgoing.iter().find(|out| out.uploads.is_none()) else { return Ok(()) };
        let step = steps.start("exporting inline cache");
        let mut outcome = Ok(());
        for image in images {
            match self.inline_records(engine, out, image).await {
                Ok(records) => {
                    if let ConfigDocument::Built(config) = &mut image.config {
                        config.inline_cache = records;
                    }
                }
                Err(kind) => outcome = Err(failed(&out.spec, kind)),
            }
        }
        settle(step, &out.spec, outcome)?;
        Ok(())
    }

    async fn inline_records(
        &self,
        engine: &Engine,
        out: &Outgoing,
        image: &Image,
    ) -> Result<Option<String>, CacheExportErrorKind> {
        let all = self.results(engine, out).await?;
        let contents = self.contents(engine, &all).await?;
        let unasked = self.unasked(&all, &contents);
        let layers: Vec<LayerId> = image.layers.iter().map(|layer| layer.layer).collect();
        // Positions count here, not bytes: any name of a layer will do.
        let name = |layer: LayerId| Digest::sha256(layer.to_string().as_bytes());
        let mut results = HashMap::new();
        for (vertex, result) in &all {
            for (output, snapshot) in (0..).zip(&result.outputs) {
                if !snapshot.layers().iter().all(|layer| layers.contains(layer)) {
                    continue;
                }
                let built = |layer: &LayerId| BuiltLayer { blob: name(*layer), diff_id: name(*layer) };
                let layers = snapshot.layers().iter().map(built).collect();
                let created_at = made(engine, snapshot, result.created_at)?;
                results.insert(Edge { vertex: vertex.clone(), output }, VertexResult { layers, created_at });
            }
        }
        let known_by = self.known_by(&all, &unasked, &contents);
        for (vertex, hit) in &unasked {
            results.extend(passing::over(engine, (vertex, hit), &layers, &name)?);
        }
        let names: Vec<Digest> = layers.iter().map(|layer| name(*layer)).collect();
        let records =
            records(&self.definition, &self.sources, (&contents, &known_by), &results).inline(&names);
        let text = records.map(|records| serde_json::to_vec(&records).unwrap_or_default());
        Ok(text.map(|text| base64::engine::general_purpose::STANDARD.encode(text)))
    }

    /// Writes the caches that go elsewhere. Errors fail the build unless the export says otherwise.
    /// A cut short by `cancel` is a failure like any other. Returns the documents that describe them.
    pub(crate) async fn finish(
        self,
        engine: &Engine,
        steps: &Steps,
        cancel: &CancellationToken,
    ) -> Result<Vec<Descriptor>, CacheExportError> {
        let mut documents = Vec::new();
        for out in self.outgoing.iter().filter(|out| out.uploads.is_some()) {
            let step = steps.start(title(&out.spec.target));
            step.part("preparing build cache for export");
            let written = tokio::select! {
                written = self.write(engine, out, &step) => written,
                () = cancel.cancelled() => Err(CacheExportErrorKind::Cancelled),
            };
            let written = settle(step, &out.spec, written.map_err(|kind| failed(&out.spec, kind)))?;
            documents.extend(written.flatten());
        }
        Ok(documents)
    }

    async fn write(
        &self,
        engine: &Engine,
        out: &Outgoing,
        step: &Step,
    ) -> Result<Option<Descriptor>, CacheExportErrorKind> {
        let Some(uploads) = &out.uploads else { return Ok(None) };
        let all = self.results(engine, out).await?;
        let contents = self.contents(engine, &all).await?;
        let mut unasked = self.unasked(&all, &contents);
        let known_by = self.known_by(&all, &unasked, &contents);
        unasked.retain(|vertex, _| self.is_exported(out, vertex));
        let ids: HashSet<LayerId> = all
            .iter()
            .filter(|(vertex, _)| self.is_exported(out, vertex))
            .flat_map(|(_, result)| result.outputs.iter().flat_map(Snapshot::layers).copied())
            .collect();
        let sent: HashMap<LayerId, LayerBlob> = futures::stream::iter(ids)
            .map(|layer| async move { Ok::<_, CacheExportErrorKind>((layer, uploads.layer(layer).await?)) })
            .buffer_unordered(PARALLEL * 2)
            .try_collect()
            .await?;
        let mut results = HashMap::new();
        let mut blobs: BTreeMap<Digest, Descriptor> = BTreeMap::new();
        for (vertex, result) in all.iter().filter(|(vertex, _)| self.is_exported(out, vertex)) {
            for (output, snapshot) in (0..).zip(&result.outputs) {
                let created_at = made(engine, snapshot, result.created_at)?;
                let mut layers = Vec::new();
                for (layer, blob) in
                    snapshot.layers().iter().filter_map(|layer| Some((layer, sent.get(layer)?)))
                {
                    let (digest, diff_id) = (blob.descriptor.digest.clone(), blob.diff_id.clone());
                    if !blobs.contains_key(&digest) {
                        let made =
                            engine.store.layer_created(*layer)?.map_or_else(|| created_at.clone(), time);
                        blobs.insert(digest.clone(), describe(&blob.descriptor, &blob.diff_id, Some(&made)));
                    }
                    layers.push(BuiltLayer { blob: digest, diff_id });
                }
                let edge = Edge { vertex: vertex.clone(), output };
                results.insert(edge, VertexResult { layers, created_at });
            }
        }
        for Passed { edge, result, layers } in self.pass_on(unasked, &uploads.place, &blobs).await? {
            for layer in layers {
                blobs.entry(layer.digest.clone()).or_insert(layer);
            }
            results.insert(edge, result);
        }
        let builder = records(&self.definition, &self.sources, (&contents, &known_by), &results);
        let written = export::write(&uploads.place, out.spec.manifest, &builder, &blobs).await?;
        match &written {
            Some(written) => {
                for digest in blobs.keys() {
                    step.part(format!("writing layer {digest}"));
                }
                step.part(format!("writing cache image manifest {}", written.manifest.digest));
            }
            None => step.part("skipping cache export for empty result"),
        }
        if let Some(mounts) = &out.mounts {
            mounts.finish(&self.travel.used_mounts(), step).await?;
        }
        // Last, when all that was sent has its name.
        if let (ExportTarget::Local { reset: true, .. }, Place::Local(place), Some(_)) =
            (&out.spec.target, &uploads.place, &written)
        {
            place.remove_unnamed().await?;
        }
        Ok(written.map(|written| written.manifest))
    }

    fn is_exported(&self, out: &Outgoing, vertex: &Digest) -> bool {
        let is_source = |vertex: &Vertex| vertex.inputs.is_empty();
        out.wants(vertex) && self.definition.vertex(vertex).is_some_and(|vertex| !is_source(vertex))
    }

    /// The results of all vertices, also of those that stood below a hit and were never touched.
    async fn results(
        &self,
        engine: &Engine,
        out: &Outgoing,
    ) -> Result<BTreeMap<Digest, TravelResult>, CacheExportErrorKind> {
        // What is still on its way is waited for: it is part of the same work, and nothing else goes on now.
        out.digests.add_permits(PARALLEL_DIGESTS - 1);
        let mut background =
            std::mem::take(&mut *out.background.lock().unwrap_or_else(PoisonError::into_inner));
        while background.join_next().await.is_some() {}
        let needed = export::needed(&self.definition);
        let mut results = BTreeMap::new();
        let mut unknown = Vec::new();
        for vertex in needed {
            match self.travel.result(&vertex) {
                Some(result) => {
                    results.insert(vertex, result);
                }
                None => unknown.push(vertex),
            }
        }
        let (index, worker) = (self.index.clone(), Arc::clone(&engine.worker));
        let keys = definition_keys(&self.definition);
        let looked_up = tokio::task::spawn_blocking(move || {
            let mut found = Vec::new();
            for vertex in unknown {
                let Some(key) = keys.get(&vertex) else { continue };
                // Trouble with the index is a record less.
                let Ok(Some(record)) = index.lookup(key) else { continue };
                if let Some(outputs) = worker.layers_of(&record)? {
                    found.push((vertex, TravelResult { outputs, created_at: record.created_at }));
                }
            }
            Ok::<_, stave_store::StoreError>(found)
        });
        match looked_up.await {
            Ok(found) => results.extend(found?),
            Err(join) => std::panic::resume_unwind(join.into_panic()),
        }
        Ok(results)
    }

    /// Digests of what vertices read, where the input is known.
    async fn contents(
        &self,
        engine: &Engine,
        results: &BTreeMap<Digest, TravelResult>,
    ) -> Result<InputContents, CacheExportErrorKind> {
        let mut wanted = Vec::new();
        for vertex in self.definition.vertices() {
            let Some(keys) = OpKeys::of(vertex, &[]) else { continue };
            for (position, (edge, input)) in vertex.inputs.iter().zip(keys.inputs).enumerate() {
                let Some(paths) = input.content else { continue };
                let made = || {
                    let outputs = &results.get(&edge.vertex)?.outputs;
                    outputs.get(edge.output as usize).cloned().map(Ref::Snapshot)
                };
                if let Some(value) = self.travel.input(&vertex.digest, position).or_else(made) {
                    wanted.push(((vertex.digest.clone(), position), value, paths));
                }
            }
        }
        let digests = futures::stream::iter(wanted).map(|(place, value, paths)| async move {
            let digest = engine.worker.travelling_digest(&value, &paths).await?;
            Ok::<_, CacheExportErrorKind>(digest.map(|digest| (place, digest)))
        });
        let digests: Vec<Option<_>> = digests.buffer_unordered(PARALLEL_DIGESTS).try_collect().await?;
        Ok(digests.into_iter().flatten().collect())
    }
}

/// Ends a step with what became of an export; `None` for a failure that does not matter.
fn settle<T>(
    step: Step,
    spec: &ExportSpec,
    outcome: Result<T, CacheExportError>,
) -> Result<Option<T>, CacheExportError> {
    let outcome = step.end(outcome);
    if spec.ignore_error { Ok(outcome.ok()) } else { outcome.map(Some) }
}

pub(super) fn failed(spec: &ExportSpec, kind: CacheExportErrorKind) -> CacheExportError {
    CacheExportError { target: spec.target.to_string(), kind: Box::new(kind) }
}

/// What BuildKit's progress calls the export.
fn title(target: &ExportTarget) -> &'static str {
    match target {
        ExportTarget::Inline => "exporting inline cache",
        ExportTarget::Registry(_) => "exporting cache to registry",
        ExportTarget::Local { .. } => "exporting cache to client directory",
        ExportTarget::S3(_) => "exporting cache to Amazon S3",
    }
}

/// When a result was made: its uppermost layer knows it, so that a cache says the same however often it is exported,
/// and after an import, too. `otherwise` is for what has no layer.
fn made(engine: &Engine, snapshot: &Snapshot, otherwise: SystemTime) -> Result<String, StoreError> {
    let created = snapshot.top().map(|layer| engine.store.layer_created(layer)).transpose()?.flatten();
    Ok(time(created.unwrap_or(otherwise)))
}

fn time(at: SystemTime) -> String {
    Timestamp::try_from(at).unwrap_or(Timestamp::UNIX_EPOCH).to_string()
}
