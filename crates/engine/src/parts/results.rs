//! What happens to results between their last step and their export, one by one: caches, statements, secrets.
//!
//! Owns nothing but the way in. Start with [`Parts::complete`] and [`Parts::travel`].

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use stave_exporter::Image;
use stave_llb::Definition;
use stave_oci::Descriptor;
use stave_store::Snapshot;
use stave_worker::{Pins, Session};

use super::Parts;
use crate::attest::{Asked, Attest, Material};
use crate::build::bases;
use crate::complete::{Built, Scan};
use crate::resolve::Resolver;
use crate::travel::{Caches, ImageLayers, Journey};
use crate::{BuildError, PullPolicy};

/// What is known of one platform's result.
pub struct Finished<'a> {
    /// What is to be said of it.
    pub attest: &'a Attest,
    /// What was asked for.
    pub asked: &'a Asked,
    /// The graph.
    pub definition: &'a Definition,
    /// What a bill of materials looks at beside it, by name.
    pub scanned: &'a BTreeMap<String, Definition>,
    /// The images that went in.
    pub images: Vec<Material>,
    /// What moving sources turned out to be.
    pub pins: &'a Pins,
    /// When the build began.
    pub started: Timestamp,
    /// Whether an image leaves, and not only files.
    pub is_image: bool,
    /// What steps of a scan may use: as much as those of the graphs that it looks at. Without it there is no scan.
    pub session: Option<&'a Session>,
}

impl Parts<'_> {
    /// The image with what is said of it.
    ///
    /// # Errors
    /// [`BuildError`].
    pub async fn complete(&self, image: Image, finished: Finished<'_>) -> Result<Image, BuildError> {
        let built = Built {
            attest: finished.attest,
            squash: None,
            asked: finished.asked,
            definition: finished.definition,
            scanned: finished.scanned,
            images: finished.images,
            pins: finished.pins,
            started: finished.started,
            is_image: finished.is_image,
            scan: Scan {
                registry: &self.registry,
                pull: self.pull(PullPolicy::Missing),
                policy: &self.policy,
                session: finished.session,
            },
        };
        self.engine.complete(image, built, &self.steps, &self.cancel).await
    }

    /// Fails if an image holds a secret of the session that made it.
    ///
    /// # Errors
    /// [`BuildError::SecretLeak`].
    pub async fn refuse_leaks(&self, session: &Session, images: &[Image]) -> Result<(), BuildError> {
        self.engine.refuse_leaks(session, images, &self.cancel).await
    }

    /// Prepares the caches of a build; `None` when there are none.
    ///
    /// # Errors
    /// [`BuildError::CacheExport`].
    pub async fn travel(
        &self,
        caches: &Caches,
        definition: &Definition,
        images: &ImageLayers,
    ) -> Result<Option<Journey>, BuildError> {
        let mut images = images.clone();
        if !(caches.from.is_empty() && caches.to.is_empty()) {
            let pull = self.pull(PullPolicy::Missing);
            let resolver = Resolver::new(self.engine, &self.registry, pull, &self.steps);
            images.find_unpinned(definition, &resolver).await;
        }
        Ok(self.engine.travel(caches, definition, &images, bases(definition), &self.steps).await?)
    }

    /// The file systems of several graphs, made in one run, so that what they share is made once. An empty graph's is
    /// empty.
    ///
    /// # Errors
    /// [`BuildError`].
    pub async fn solve_together(
        &self,
        definitions: &[&Definition],
        session: Arc<Session>,
    ) -> Result<Vec<Snapshot>, BuildError> {
        let whole = Definition::union(definitions.iter().copied());
        let (made, _) = self.engine.solve_all(&whole, session, &self.steps, &self.cancel).await?;
        let mut made = made.into_iter();
        let one = |definition: &&Definition| match definition.outputs() {
            [] => Ok(Snapshot::scratch()),
            _ => made.next().ok_or(BuildError::NoFileSystem),
        };
        definitions.iter().map(one).collect()
    }

    /// Puts the cache that lies within images into them, if one was asked for.
    ///
    /// # Errors
    /// [`BuildError::CacheExport`].
    pub async fn inline(&self, journey: &Journey, images: &mut [Image]) -> Result<(), BuildError> {
        Ok(journey.inline(self.engine, images, &self.steps).await?)
    }

    /// Writes the caches that go elsewhere; returns the documents they are found by.
    ///
    /// # Errors
    /// [`BuildError::CacheExport`].
    pub async fn finish(&self, journey: Journey) -> Result<Vec<Descriptor>, BuildError> {
        Ok(journey.finish(self.engine, &self.steps, &self.cancel).await?)
    }
}
