//! What the engine can be asked for. Plain values; every default is the caller's.

use std::collections::BTreeMap;
use std::path::PathBuf;

use stave_exporter::ExportTarget;
use stave_frontend_dockerfile::{PlanRequest, Source};
use stave_llb::policy::SourcePolicies;
use stave_oci::{Digest, Platform};
use stave_worker::{Confinement, Pins, Secret, SshAgent};

use crate::attest::Attest;
use crate::complete::Squash;
use crate::epoch::Timestamps;
use crate::stages::StageTag;
use crate::travel::Caches;

/// One build.
#[derive(Debug, Clone)]
pub struct BuildRequest {
    /// The directory that COPY and ADD read.
    pub context: PathBuf,
    /// Further directories by the names of their local sources.
    pub contexts: BTreeMap<String, PathBuf>,
    /// OCI layouts by name.
    pub layouts: BTreeMap<String, PathBuf>,
    /// What moving sources turned out to be before the build.
    pub pins: Pins,
    /// The platforms to build for; none for what the plan says.
    pub platforms: Vec<Platform>,
    /// The Dockerfile.
    pub dockerfile: Source,
    /// What the Dockerfile is to be read as.
    pub plan: PlanRequest,
    /// Whether base images are asked for at their registry even if they are here.
    pub pull: PullPolicy,
    /// Rules about what the build may be made from.
    pub policy: SourcePolicies,
    /// ssh agents by id.
    pub ssh: BTreeMap<String, SshAgent>,
    /// Host keys that the owner of the build trusts, in the form of `known_hosts`.
    pub known_hosts: Option<String>,
    /// What becomes of the modes of files in local contexts.
    pub context_modes: stave_worker::ContextModes,
    /// Secrets by id.
    pub secrets: BTreeMap<String, Secret>,
    /// What becomes of times in the result.
    pub timestamps: Timestamps,
    /// What is said of the result beside it.
    pub attest: Attest,
    /// Which layers become one.
    pub squash: Option<Squash>,
    /// Further stages that become images of their own.
    pub stages: Vec<StageTag>,
    /// How far steps may go.
    pub confinement: Confinement,
    /// Caches from and for elsewhere.
    pub caches: Caches,
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
    /// What the store's history calls the build, where it is kept.
    pub build: Option<crate::record::BuildId>,
    /// The image's id; `None` when no target was an image.
    pub image: Option<Digest>,
    /// The images, one a platform; those of further stages are not among them.
    pub images: Vec<stave_exporter::Image>,
    /// What each target got, in the order of the request, and then those of further stages.
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
