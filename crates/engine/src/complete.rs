//! A solved platform becomes the image that leaves: layers squashed if wanted, statements attached.
//!
//! Owns what happens between the last step and the export. Must not know where images go. Start with
//! [`Engine::complete`].

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use stave_exporter::{CompressionChoice, ConfigDocument, Image, ImageLayerRef};
use stave_frontend_dockerfile::{ImageOrigin, SourceRequest};
use stave_llb::Definition;
use stave_llb::policy::SourcePolicies;
use stave_oci::{Descriptor, Digest, History, Platform};
use stave_registry::Client;
use stave_store::Snapshot;
use stave_worker::{Pins, Session};
use tokio_util::sync::CancellationToken;

use crate::attest::{self, Asked, Attest, Facts, Material, ProvenanceMode, Sbom};
use crate::build::base_of;
use crate::event::Steps;
use crate::resolve::{Resolved, Resolver};
use crate::{BuildError, Engine, PullPolicy};

/// Which layers become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Squash {
    /// All: the image has no base any more.
    All,
    /// Those made by this build; the base keeps its own.
    New,
}

/// What is known of one platform when its steps are done.
pub(crate) struct Built<'a> {
    pub(crate) attest: &'a Attest,
    pub(crate) squash: Option<Squash>,
    pub(crate) asked: &'a Asked,
    pub(crate) definition: &'a Definition,
    /// What a bill of materials looks at beside it.
    pub(crate) scanned: &'a BTreeMap<String, Definition>,
    /// The images that went in, pinned.
    pub(crate) images: Vec<Material>,
    /// What moving sources turned out to be.
    pub(crate) pins: &'a Pins,
    pub(crate) started: Timestamp,
    /// Whether blobs of the layers will be there anyway.
    pub(crate) is_image: bool,
    /// How the scanner's image is found, and what its steps may use.
    pub(crate) scan: Scan<'a>,
}

/// What a scan runs with.
pub(crate) struct Scan<'a> {
    pub(crate) registry: &'a Client,
    pub(crate) pull: PullPolicy,
    /// Rules about what may be used.
    pub(crate) policy: &'a SourcePolicies,
    /// What the steps of all that is scanned may use, as in the build they belong to: those whose layers are not here run for
    /// the scan. Without it nothing is scanned.
    pub(crate) session: Option<&'a Session>,
}

/// The images among resolved sources, as statements name them.
pub(crate) fn materials(resolved: &Resolved) -> Vec<Material> {
    let material = |(request, image): (&SourceRequest, &stave_frontend_dockerfile::ResolvedImage)| Material {
        reference: match request.origin {
            // Its digest is that of the material.
            ImageOrigin::OciLayout { .. } => request.reference.with_tag("latest"),
            ImageOrigin::Registry { .. } => resolved.used(&request.reference),
        },
        platform: request.platform.clone(),
        digest: image.digest.clone(),
        is_layout: matches!(request.origin, ImageOrigin::OciLayout { .. }),
    };
    resolved.sources.images().map(material).collect()
}

impl Engine {
    /// The image as it leaves.
    pub(crate) async fn complete(
        &self,
        image: Image,
        built: Built<'_>,
        steps: &Steps,
        cancel: &CancellationToken,
    ) -> Result<Image, BuildError> {
        let mut image = image;
        if let Some(squash) = built.squash {
            image = self.squash(image, squash, steps).await?;
        }
        let has_bill = image.attestations.iter().any(|one| one.predicate_type == attest::SPDX);
        let wanted = built.attest.sbom.as_ref().zip(built.scan.session);
        if let Some(wanted) = wanted.filter(|_| !has_bill) {
            let found = self.bill(wanted, &built, &image.platform, (steps, cancel)).await?;
            image.attestations.extend(found);
        }
        if let Some(provenance) = &built.attest.provenance {
            let layers = match provenance.mode == ProvenanceMode::Max && built.is_image {
                true => self.blobs(&image, built.definition).await?,
                false => BTreeMap::new(),
            };
            let facts = Facts {
                asked: built.asked,
                definition: built.definition,
                invocation: invocation(built.definition, built.started),
                images: built.images,
                pins: built.pins,
                layers,
                started: built.started,
                finished: Timestamp::now(),
            };
            image.attestations.push(facts.attest(provenance)?);
        }
        Ok(image)
    }

    /// The blobs of the result's layers, and of those base images that have theirs.
    async fn blobs(
        &self,
        image: &Image,
        definition: &Definition,
    ) -> Result<BTreeMap<(Digest, u32), Vec<Descriptor>>, BuildError> {
        let mut found = BTreeMap::new();
        for vertex in definition.vertices() {
            let Some((name, platform)) = base_of(vertex) else { continue };
            let layers = self.base_layers(&name, &platform)?;
            let blobs: Option<Vec<Descriptor>> = layers.into_iter().map(|layer| layer.blob).collect();
            if let Some(blobs) = blobs.filter(|blobs| !blobs.is_empty()) {
                found.insert((vertex.digest.clone(), 0), blobs);
            }
        }
        if let Some(output) = definition.outputs().first() {
            let mut blobs = Vec::with_capacity(image.layers.len());
            for layer in &image.layers {
                blobs.push(self.exporter().layer_blob(layer, CompressionChoice::default()).await?.descriptor);
            }
            found.insert((output.vertex.clone(), output.output), blobs);
        }
        Ok(found)
    }

    async fn squash(&self, mut image: Image, which: Squash, steps: &Steps) -> Result<Image, BuildError> {
        let is_base = |layer: &&ImageLayerRef| which == Squash::New && layer.diff_id.is_some();
        let base = image.layers.iter().take_while(is_base).count();
        let squashed = image.layers.len() - base;
        if squashed <= usize::from(which == Squash::New) {
            return Ok(image);
        }
        let step = steps.start("squashing layers");
        let below = Snapshot::new(image.layers[..base].iter().map(|layer| layer.layer).collect());
        let exporter = self.exporter().with_events(steps.export_events(&step));
        let layer = step.end(exporter.squash(&below, &image.snapshot()).await)?;
        image.layers.truncate(base);
        image.layers.push(ImageLayerRef::built(layer));
        if let ConfigDocument::Built(config) = &mut image.config {
            squash_history(&mut config.history, base, squashed);
        }
        Ok(image)
    }

    /// Statements of what is in the result.
    async fn bill(
        &self,
        (sbom, session): (&Sbom, &Session),
        built: &Built<'_>,
        platform: &Platform,
        (steps, cancel): (&Steps, &CancellationToken),
    ) -> Result<Vec<stave_exporter::Attestation>, BuildError> {
        let host = Platform::host();
        let resolver = Resolver::new(self, built.scan.registry, built.scan.pull, steps);
        let resolver = resolver.with_policy(built.scan.policy);
        let request = SourceRequest::plain(sbom.generator.clone(), host.clone());
        let mut resolved = Resolved::default();
        let scanner_failed = |error: crate::ResolveError| BuildError::Scanner(Box::new(error));
        resolver.resolve(vec![request.clone()], &mut resolved).await.map_err(scanner_failed)?;
        let Some(found) = resolved.sources.get(&request) else { return Ok(Vec::new()) };
        let (scanner, config) =
            (resolved.used(&sbom.generator).pinned(found.digest.clone()), found.config.to_bytes());
        tracing::debug!(%platform, %scanner, "scanning");
        let scanned = attest::Scanned { result: built.definition, extras: built.scanned, platform: &host };
        let definition = attest::scan(sbom, &scanner, &config, scanned)?;
        let mut session = session.clone();
        session.resolved.extend(resolved.remote);
        // Caches of the build are not about its scans.
        session.travel = session.travel.map(|travel| Arc::new(travel.read_only()));
        let (written, _) = self.solve(&definition, Arc::new(session), steps, cancel).await?;
        Ok(attest::read(&self.store.view(&written)?, &sbom.generator)?)
    }
}

/// The history of an image whose layers above `base` became one: its instructions stay, and one line more
/// tells of the layer.
fn squash_history(history: &mut Vec<History>, base: usize, squashed: usize) {
    let mut layers = 0;
    let mut created = None;
    for line in history.iter_mut().filter(|line| !line.empty_layer) {
        layers += 1;
        if layers > base {
            line.empty_layer = true;
            created.clone_from(&line.created);
        }
    }
    history.push(History { created, comment: format!("{squashed} layers made one"), ..History::default() });
}

/// A name for one run of a build: not guessable from outside, and of no other run.
fn invocation(definition: &Definition, started: Timestamp) -> String {
    let text = format!("{} {} {}", definition.digest(), started.as_nanosecond(), std::process::id());
    Digest::sha256(text.as_bytes()).hex().chars().take(25).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn squashed_history_keeps_its_instructions() {
        let line = |text: &str, empty_layer| History {
            created_by: text.to_owned(),
            empty_layer,
            ..History::default()
        };
        let mut history =
            vec![line("base", false), line("ENV", true), line("RUN a", false), line("RUN b", false)];
        squash_history(&mut history, 1, 2);
        let found: Vec<_> = history.iter().map(|line| (line.created_by.as_str(), line.empty_layer)).collect();
        assert_eq!(found, [("base", false), ("ENV", true), ("RUN a", true), ("RUN b", true), ("", false)]);
    }
}
