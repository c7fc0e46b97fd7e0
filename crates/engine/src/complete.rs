//! A solved platform becomes the image that leaves: layers squashed if wanted, statements attached.
//!
//! Owns what happens between the last step and the export. Must not know where images go. Start with
//! [`Engine::complete`].

use jiff::Timestamp;
use stave_exporter::{ConfigDocument, Image, ImageLayerRef};
use stave_frontend_dockerfile::{PlanRequest, ResolvedSources, SourceRequest};
use stave_llb::Definition;
use stave_oci::{Digest, History, Platform, Reference};
use stave_store::Snapshot;
use tokio_util::sync::CancellationToken;

use crate::attest::{self, Facts, Sbom};
use crate::event::Steps;
use crate::resolve::{Resolved, Resolver};
use crate::{BuildError, BuildRequest, Engine};

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
    pub(crate) request: &'a BuildRequest,
    /// The request as this platform had it.
    pub(crate) plan: &'a PlanRequest,
    pub(crate) definition: &'a Definition,
    /// The images that went in, pinned.
    pub(crate) images: Vec<(Reference, Platform, Digest)>,
    pub(crate) started: Timestamp,
}

/// The images among resolved sources, as statements name them.
pub(crate) fn materials(sources: &ResolvedSources) -> Vec<(Reference, Platform, Digest)> {
    let material = |(request, image): (&SourceRequest, &stave_frontend_dockerfile::ResolvedImage)| {
        (request.reference.clone(), request.platform.clone(), image.digest.clone())
    };
    sources.images().map(material).collect()
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
        if let Some(squash) = built.request.squash {
            image = self.squash(image, squash, steps).await?;
        }
        if let Some(sbom) = &built.request.attest.sbom {
            let found = self.bill(sbom, &built, &image.platform, (steps, cancel)).await?;
            image.attestations.extend(found);
        }
        if let Some(provenance) = &built.request.attest.provenance {
            let facts = Facts {
                plan: built.plan,
                filename: &built.request.dockerfile.name,
                definition: built.definition,
                invocation: invocation(built.definition, built.started),
                images: built.images,
                started: built.started,
                finished: Timestamp::now(),
            };
            image.attestations.push(facts.attest(provenance)?);
        }
        Ok(image)
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
        sbom: &Sbom,
        built: &Built<'_>,
        platform: &Platform,
        (steps, cancel): (&Steps, &CancellationToken),
    ) -> Result<Vec<stave_exporter::Attestation>, BuildError> {
        let host = Platform::host();
        let resolver = Resolver::new(self, &self.registry, built.request.pull, steps);
        let request = SourceRequest::plain(sbom.generator.clone(), host.clone());
        let mut resolved = Resolved::default();
        let scanner_failed = |error: crate::ResolveError| BuildError::Scanner(Box::new(error));
        resolver.resolve(vec![request.clone()], &mut resolved).await.map_err(scanner_failed)?;
        let Some(found) = resolved.sources.get(&request) else { return Ok(Vec::new()) };
        let (scanner, config) = (sbom.generator.pinned(found.digest.clone()), found.config.to_bytes());
        tracing::debug!(%platform, %scanner, "scanning");
        let definition = attest::scan(sbom, &scanner, &config, (built.definition, &host))?;
        let session = self.local_session(built.request, resolved);
        let (written, _) = self.solve(&definition, session, steps, cancel).await?;
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
