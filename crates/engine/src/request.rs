//! What the engine can be asked for. Plain values; every default is the caller's.

use std::collections::BTreeMap;
use std::path::PathBuf;

use stave_exporter::ExportTarget;
use stave_frontend_dockerfile::{PlanRequest, Source};
use stave_oci::Digest;
use stave_worker::Secret;

/// One build.
#[derive(Debug, Clone)]
pub struct BuildRequest {
    /// The directory that COPY and ADD read.
    pub context: PathBuf,
    /// The Dockerfile.
    pub dockerfile: Source,
    /// What the Dockerfile is to be read as.
    pub plan: PlanRequest,
    /// Whether base images are asked for at their registry even if they are here.
    pub pull: PullPolicy,
    /// Secrets by id.
    pub secrets: BTreeMap<String, Secret>,
    /// Where the result goes.
    pub exports: Vec<ExportTarget>,
}

/// When an image is asked for at its registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PullPolicy {
    /// Always: `--pull`.
    Always,
    /// When it is not in the local store.
    #[default]
    Missing,
    /// Never.
    Never,
}

/// What a build made.
#[derive(Debug, Clone)]
pub struct BuildOutcome {
    /// The image's id; `None` when no target was an image.
    pub image: Option<Digest>,
    /// What each target got, in the order of the request.
    pub exports: Vec<stave_exporter::Exported>,
    /// How many instructions' steps there were, and how many came from the cache.
    pub steps: StepCount,
}

/// Steps of a build, internal ones left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StepCount {
    /// All.
    pub total: usize,
    /// Those that did not run.
    pub cached: usize,
}
