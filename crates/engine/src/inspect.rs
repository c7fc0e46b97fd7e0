//! A build up to the point where something would be done: planned, its images looked up, nothing fetched.
//!
//! Owns that shorter way, for checks and for a look at the graph. Must not differ from a build in what it
//! plans and asks for. Start with [`Engine::inspect`].

use stave_frontend_dockerfile::{BuildPlan, ResolvedSources};
use stave_solver::SolveError;
use tokio_util::sync::CancellationToken;

use crate::Engine;
use crate::build::{BuildError, plan_all, read};
use crate::event::{Observer, Steps};
use crate::request::BuildRequest;
use crate::resolve::Resolver;

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
        let resolver =
            Resolver::new(self, &self.registry, request.pull, &steps).with_layouts(&request.layouts);
        let planned = tokio::select! {
            planned = plan_all(&dockerfile, &request.plan, &resolver) => planned,
            () = cancel.cancelled() => Err(BuildError::Solve { error: SolveError::Cancelled, lines: None }),
        };
        let (plan, resolved) = planned?;
        Ok(Inspected { plan, sources: resolved.sources })
    }
}
