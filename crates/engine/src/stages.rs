//! Further stages of the same Dockerfile under names of their own: `-t stage=name`.
//!
//! Owns what a further stage takes over from the request. Each is a build of its own on the same
//! cache, so that what stages share is made once. Start with [`StageTag`].

use stave_exporter::{EngineTarget, ExportTarget, ImageTarget};
use stave_frontend_dockerfile::PlanRequest;
use stave_oci::Reference;

use crate::{BuildRequest, Caches};

/// A stage and the names its image gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StageTag {
    /// The stage, by its name or number.
    pub stage: String,
    /// The names.
    pub names: Vec<Reference>,
}

impl BuildRequest {
    /// The builds of the further stages.
    pub(crate) fn stage_requests(&self) -> Vec<Self> {
        self.stages.iter().map(|tag| self.stage_request(tag)).collect()
    }

    fn stage_request(&self, tag: &StageTag) -> Self {
        // Images go where the main one goes; files have one place, which is the main result's.
        let images = self.exports.iter().filter_map(|target| match target {
            ExportTarget::Image(target) => {
                Some(ExportTarget::Image(ImageTarget { names: tag.names.clone(), ..target.clone() }))
            }
            ExportTarget::Engine(target) => {
                Some(ExportTarget::Engine(EngineTarget { names: tag.names.clone(), ..target.clone() }))
            }
            _ => None,
        });
        let mut exports: Vec<ExportTarget> = images.collect();
        if exports.is_empty() {
            exports.push(ExportTarget::store(tag.names.clone()));
        }
        let plan = PlanRequest { target: Some(tag.stage.clone()), ..self.plan.clone() };
        // The cache of the whole is written once, by the main build.
        let caches = Caches { to: Vec::new(), ..self.caches.clone() };
        Self { plan, exports, caches, stages: Vec::new(), ..self.clone() }
    }
}
