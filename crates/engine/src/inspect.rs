//! A build up to the point where something would be done: planned, its images looked up.
//!
//! Owns that shorter way, for checks and for a look at the graph. Must not differ from a build in what it
//! plans and asks for. Start with [`Engine::inspect`].

use stave_frontend_dockerfile::{BuildPlan, Dockerfile, PlanRequest, ResolvedSources};
use stave_solver::SolveError;
use tokio_util::sync::CancellationToken;

use crate::Engine;
use crate::build::{BuildError, plan_all, read};
use crate::event::{Observer, Steps};
use crate::request::BuildRequest;
use crate::resolve::{Resolved, Resolver};

/// What a build would begin with.
#[derive(Debug, Clone)]
pub struct Inspected {
    /// The plan, with the triggers of all bases.
    pub plan: BuildPlan,
    /// The images it needs.
    pub sources: ResolvedSources,
}

impl Engine {
    /// Plans what `request` describes and looks up the images it names.
    ///
    /// # Errors
    /// As [`Engine::build`] up to there.
    pub async fn inspect(
        &self,
        request: &BuildRequest,
        observer: Observer,
        cancel: &CancellationToken,
    ) -> Result<Inspected, BuildError> {
        let steps = Steps::new(observer);
        let dockerfile = read(request, &steps)?;
        let (plan, resolved) = self.planned(&dockerfile, request, &request.plan, (&steps, cancel)).await?;
        Ok(Inspected { plan, sources: resolved.sources })
    }

    /// As [`Engine::inspect`], with everything that lowering needs: the source that `SOURCE_DATE_EPOCH` names is
    /// fetched, and the commands of `ENV NAME=$(…)` are run with the steps they need. Nothing else is.
    ///
    /// # Errors
    /// As [`Engine::build`] up to there.
    pub async fn inspect_graph(
        &self,
        request: &BuildRequest,
        observer: Observer,
        cancel: &CancellationToken,
    ) -> Result<Inspected, BuildError> {
        let lease = self.store.lease()?;
        let steps = Steps::new(observer);
        let dockerfile = read(request, &steps)?;
        let wanted = vec![request.plan.clone()];
        let dated = self.dated(wanted, &dockerfile, request, (&steps, cancel)).await?;
        let asked = dated.first().unwrap_or(&request.plan);
        let (plan, mut resolved) = self.planned(&dockerfile, request, asked, (&steps, cancel)).await?;
        self.evaluate(&plan, &mut resolved, request, (&steps, cancel)).await?;
        drop(lease);
        Ok(Inspected { plan, sources: resolved.sources })
    }

    async fn planned(
        &self,
        dockerfile: &Dockerfile,
        request: &BuildRequest,
        asked: &PlanRequest,
        (steps, cancel): (&Steps, &CancellationToken),
    ) -> Result<(BuildPlan, Resolved), BuildError> {
        let resolver =
            Resolver::new(self, &self.registry, request.pull, steps).with_layouts(&request.layouts);
        tokio::select! {
            planned = plan_all(dockerfile, asked, &resolver) => planned,
            () = cancel.cancelled() => Err(BuildError::Solve { error: SolveError::Cancelled, lines: None }),
        }
    }
}
