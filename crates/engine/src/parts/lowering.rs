//! From a Dockerfile to a graph, step by step.
//!
//! Owns what stands between: a plan all of whose images are found, and the commands whose output it needs before it can
//! be lowered (`ENV NAME=$(…)`, own syntax), which the caller runs as it runs any graph. Start with [`Parts::planned`].

use std::collections::BTreeMap;

use stave_frontend_dockerfile::{BuildPlan, CommandRequest, PlanRequest, ResolvedSources, Source, lower};
use stave_llb::Definition;
use stave_oci::{Digest, ImageConfig};
use stave_registry::ResolvedImage;
use stave_store::Snapshot;

use super::{Parts, cancelled};
use crate::attest::Material;
use crate::build::{plan_all, read_text, warn};
use crate::resolve::{Resolved, Resolver};
use crate::travel::ImageLayers;
use crate::{BuildError, PullPolicy};

/// A Dockerfile that is planned and not yet a graph.
#[derive(Debug)]
pub struct Unlowered {
    plan: BuildPlan,
    found: Resolved,
}

/// A Dockerfile as a graph and a config.
#[derive(Debug, Clone)]
pub struct Lowering {
    /// The graph to solve; without outputs where the image has no files.
    pub definition: Definition,
    /// What a bill of materials looks at beside it, by name.
    pub scanned: BTreeMap<String, Definition>,
    /// The image's config, without layers and time.
    pub config: ImageConfig,
    /// The time everything made here is to carry, in seconds since the epoch.
    pub epoch: Option<i64>,
    /// What registries answered, by the pinned digest.
    pub resolved: BTreeMap<Digest, ResolvedImage>,
    /// The images that went in, as statements name them.
    pub materials: Vec<Material>,
    /// The layers of these images, as caches know them.
    pub layers: ImageLayers,
}

impl Unlowered {
    /// What registries answered, by the pinned digest.
    pub fn resolved(&self) -> &BTreeMap<Digest, ResolvedImage> {
        &self.found.remote
    }

    /// The same as its plan and what was found; nothing is built of it.
    pub fn into_plan(self) -> (BuildPlan, ResolvedSources) {
        (self.plan, self.found.sources)
    }
}

impl Parts<'_> {
    /// A Dockerfile's plan with all its images looked up.
    ///
    /// # Errors
    /// [`BuildError`].
    pub async fn planned(
        &self,
        source: &Source,
        request: &PlanRequest,
        pull: PullPolicy,
    ) -> Result<Unlowered, BuildError> {
        let dockerfile = read_text(source)?;
        let resolver = Resolver::new(self.engine, &self.registry, self.pull(pull), &self.steps)
            .with_layouts(&self.layouts)
            .with_policy(&self.policy);
        let (plan, found) = tokio::select! {
            planned = plan_all(&dockerfile, request, &resolver) => planned?,
            () = self.cancel.cancelled() => return Err(cancelled()),
        };
        Ok(Unlowered { plan, found })
    }

    /// The commands whose output is not known yet, as graphs to solve; none when it can be lowered.
    ///
    /// # Errors
    /// [`BuildError`].
    pub fn commands(&self, planned: &Unlowered) -> Result<Vec<CommandRequest>, BuildError> {
        let wanted = planned.plan.commands(&planned.found.sources);
        let wanted = wanted.map_err(|error| BuildError::Dockerfile(error.into_diagnostics()))?;
        let pinned = |command: CommandRequest| {
            let definition = planned.found.pinned(command.definition);
            Ok(CommandRequest { definition: planned.found.under(&self.policy, definition)?, ..command })
        };
        wanted.into_iter().map(pinned).collect()
    }

    /// Takes up what a command's graph came to.
    ///
    /// # Errors
    /// For output that is no text or too long for a variable.
    pub async fn tell(
        &self,
        planned: &mut Unlowered,
        command: CommandRequest,
        result: &Snapshot,
    ) -> Result<(), BuildError> {
        let output = self.engine.output_of(&command, result).await?;
        planned.found.sources.insert_output(command.key, output);
        Ok(())
    }

    /// The plan as a graph, with its images pinned.
    ///
    /// # Errors
    /// [`BuildError`].
    pub fn lower(&self, planned: Unlowered) -> Result<Lowering, BuildError> {
        let Unlowered { plan, found } = planned;
        let lowered =
            lower(&plan, &found.sources).map_err(|error| BuildError::Dockerfile(error.into_diagnostics()))?;
        warn(&plan, &lowered, &self.steps);
        let definition = found.under(&self.policy, found.pinned(lowered.definition))?;
        Ok(Lowering {
            definition,
            scanned: found.all_under(&self.policy, lowered.scanned)?,
            config: lowered.image,
            epoch: plan.epoch,
            materials: crate::complete::materials(&found),
            layers: ImageLayers::of(&found),
            resolved: found.remote,
        })
    }
}
