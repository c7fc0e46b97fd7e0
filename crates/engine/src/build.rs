//! One build: Dockerfile to exported image. The way of the data, top to bottom, is [`Engine::build`].

use std::sync::Arc;

use stave_exporter::{ExportError, ExportTarget, Exported, Image, ImageLayerRef};
use stave_frontend_dockerfile::ast::DirectiveKind;
use stave_frontend_dockerfile::{
    BuildPlan, Code, Diagnostic, Dockerfile, Lowered, Severity, lower, parse, plan,
};
use stave_llb::{Definition, Op, Vertex};
use stave_oci::{Digest, ImageConfig, Platform, Reference};
use stave_solver::{Job, SolveError, SolveEvent, event_channel};
use stave_store::{Snapshot, StoreError};
use stave_worker::{Entitlements, Ref, Session, StepNetwork};
use tokio_util::sync::CancellationToken;

use crate::event::{EngineEvent, Observer, Steps};
use crate::request::{BuildOutcome, BuildRequest, StepCount};
use crate::resolve::{ResolveError, Resolved, Resolver};
use crate::{Engine, clock};

/// Why a build failed.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The Dockerfile is not valid, or asks for something that is not supported yet.
    #[error("{}", .0.first().map(ToString::to_string).unwrap_or_default())]
    Dockerfile(Vec<Diagnostic>),
    /// An image that the Dockerfile names could not be had.
    #[error("{image}")]
    Image {
        /// Where it is named, and what else may have been meant.
        image: Box<Diagnostic>,
        /// Why it could not be had.
        #[source]
        error: Box<ResolveError>,
    },
    /// A step failed.
    #[error("failed to solve")]
    Solve {
        /// Which and why.
        #[source]
        error: SolveError,
        /// The lines of the Dockerfile it came from, first and last, counted from 1.
        lines: Option<(usize, usize)>,
    },
    /// The result could not be written.
    #[error(transparent)]
    Export(#[from] ExportError),
    /// The state directory failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The graph's result is not a file system.
    #[error("the build has no file system as its result")]
    NoFileSystem,
}

impl Engine {
    /// Builds what `request` describes and tells `observer` how it goes. When `cancel` fires, every
    /// running step is stopped and waited for.
    ///
    /// # Errors
    /// [`BuildError`]; nothing is exported then.
    pub async fn build(
        &self,
        request: &BuildRequest,
        observer: Observer,
        cancel: &CancellationToken,
    ) -> Result<BuildOutcome, BuildError> {
        let steps = Steps::new(observer);
        let lease = self.store.lease()?;
        let dockerfile = read(request, &steps)?;
        let (plan, resolved) = self.plan(&dockerfile, request, &steps).await?;
        let lowered = lower(&plan, &resolved.sources)
            .map_err(|error| BuildError::Dockerfile(vec![error.diagnostic]))?;
        let unused = plan.unused_build_args();
        let warnings = lowered.warnings.iter().chain(&unused);
        for warning in warnings.filter(|found| found.severity == Severity::Warning) {
            steps.observer().send(EngineEvent::Warning(warning.clone()));
        }
        let base = lowered_base(&lowered);
        let platform = request.plan.platform().clone();
        let (snapshot, count) = self.solve(&lowered.definition, request, resolved, &steps, cancel).await?;
        let image = self.assemble(lowered.image, &snapshot, &base, &platform, plan.epoch)?;
        let exports = self.export(&image, &request.exports, &steps, cancel).await?;
        drop(lease);
        let id = exports.iter().find_map(|exported| exported.config_digest.clone());
        Ok(BuildOutcome { image: id, exports, steps: count })
    }

    /// Plans, asking for images until none is missing: a base's triggers may name further ones.
    pub(crate) async fn plan(
        &self,
        dockerfile: &Dockerfile,
        request: &BuildRequest,
        steps: &Steps,
    ) -> Result<(BuildPlan, Resolved), BuildError> {
        let invalid = |error: stave_frontend_dockerfile::PlanError| BuildError::Dockerfile(error.diagnostics);
        let resolver = Resolver { store: &self.store, registry: &self.registry, pull: request.pull, steps };
        let mut resolved = Resolved::default();
        let mut plan = plan(dockerfile, &request.plan).map_err(invalid)?;
        loop {
            let missing = plan.missing(&resolved.sources);
            if missing.is_empty() {
                return Ok((plan, resolved));
            }
            if let Err(error) = resolver.resolve(missing, &mut resolved).await {
                let image = Box::new(plan.unresolved(&error.request, &crate::event::one_line(&error)));
                return Err(BuildError::Image { image, error: Box::new(error) });
            }
            plan = plan.with_triggers(&resolved.sources).map_err(invalid)?;
        }
    }

    async fn solve(
        &self,
        definition: &Definition,
        request: &BuildRequest,
        resolved: Resolved,
        steps: &Steps,
        cancel: &CancellationToken,
    ) -> Result<(Snapshot, StepCount), BuildError> {
        if definition.outputs().is_empty() {
            return Ok((Snapshot::scratch(), StepCount::default()));
        }
        let session = Arc::new(Session {
            contexts: [("context".to_owned(), request.context.clone())].into(),
            secrets: request.secrets.clone(),
            registry: self.registry.clone(),
            resolved: resolved.remote,
            entitlements: Entitlements::default(),
            default_network: StepNetwork::Host,
        });
        steps.observer().send(EngineEvent::Graph(Arc::new(definition.clone())));
        let (sender, receiver) = event_channel();
        let listening = tokio::spawn(listen(receiver, definition.clone(), steps.observer().clone()));
        let job = Job::new(session).with_events(sender).with_cancel(cancel.clone());
        let result = self.solver.solve(definition, &job).await;
        // The channel ends with its last sender; only then is the last line shown and counted.
        drop(job);
        let count = listening.await.unwrap_or_default();
        let outputs = result.map_err(|error| located(error, definition))?;
        match outputs.into_iter().next() {
            Some(Ref::Snapshot(snapshot)) => Ok((snapshot, count)),
            _ => Err(BuildError::NoFileSystem),
        }
    }

    /// The config over the layers, with the one time that everything made here carries.
    fn assemble(
        &self,
        mut config: ImageConfig,
        snapshot: &Snapshot,
        base: &[(Reference, Platform)],
        platform: &Platform,
        epoch: Option<i64>,
    ) -> Result<Image, BuildError> {
        let created = clock::created(epoch, &config);
        for entry in &mut config.history {
            entry.created.get_or_insert_with(|| created.clone());
        }
        config.created = Some(created);
        if config.architecture.is_empty() {
            config.architecture.clone_from(&platform.architecture);
            config.os.clone_from(&platform.os);
        }
        let mut layers = Vec::new();
        for (name, platform) in base {
            layers.extend(self.base_layers(name, platform)?);
        }
        Ok(Image::built(config, snapshot, &layers))
    }

    /// The layers of an image that was pulled, with the blobs they came as.
    fn base_layers(&self, name: &Reference, platform: &Platform) -> Result<Vec<ImageLayerRef>, StoreError> {
        let Some(image) = self.local_image(name, platform)? else { return Ok(Vec::new()) };
        let origin = image.manifest.is_some().then(|| name.clone());
        let layer = |layer: stave_store::ImageLayer| ImageLayerRef {
            layer: layer.layer,
            origin: layer.blob.as_ref().and(origin.clone()),
            blob: layer.blob,
        };
        Ok(image.layers.into_iter().map(layer).collect())
    }

    async fn export(
        &self,
        image: &Image,
        targets: &[ExportTarget],
        steps: &Steps,
        cancel: &CancellationToken,
    ) -> Result<Vec<Exported>, BuildError> {
        let mut exports = Vec::new();
        for target in targets {
            let step = steps.start(title(target));
            let exporter = self.exporter().with_events(steps.export_events(&step));
            let exported = tokio::select! {
                exported = exporter.export(image, target) => exported,
                () = cancel.cancelled() => {
                    return Err(BuildError::Solve { error: SolveError::Cancelled, lines: None });
                }
            };
            exports.push(step.end(exported)?);
        }
        Ok(exports)
    }
}

/// Parses the Dockerfile; its errors are the build's.
pub(crate) fn read(request: &BuildRequest, steps: &Steps) -> Result<Dockerfile, BuildError> {
    let name = &request.dockerfile.name;
    let step = steps.start(format!("[internal] load build definition from {name}"));
    step.part(format!("transferring dockerfile: {}B", request.dockerfile.text.len()));
    let parsed = parse(&request.dockerfile);
    let mut errors: Vec<Diagnostic> = parsed.diagnostics.into_iter().filter(Diagnostic::is_error).collect();
    errors.extend(foreign_syntax(&parsed.dockerfile));
    let result = if errors.is_empty() { Ok(parsed.dockerfile) } else { Err(BuildError::Dockerfile(errors)) };
    step.end(result)
}

/// `# syntax=` names a front end image. The one inside serves the reference's own, whatever mirror they are
/// taken from; another would read another language.
fn foreign_syntax(dockerfile: &Dockerfile) -> Option<Diagnostic> {
    let directive = dockerfile.directives.iter().find(|directive| directive.kind == DirectiveKind::Syntax)?;
    // The reference takes the first word and ignores the rest.
    let image = directive.value.split_whitespace().next()?;
    let name = image.split('@').next().unwrap_or(image);
    let path = name.rsplit_once('/').map_or("", |(path, _)| path);
    let last = name.rsplit('/').next()?.split(':').next()?;
    let own = matches!(last, "dockerfile" | "dockerfile-upstream")
        && (path == "docker" || path.ends_with("/docker"));
    (!own).then(|| {
        Diagnostic::error(
            Code::Unsupported,
            directive.span,
            format!("not supported yet: the front end image `{image}`"),
        )
        .with_help("the built-in front end serves `docker/dockerfile`; leave the line out if that will do")
    })
}

/// The images among the sources of a definition: where layers may have come from.
fn lowered_base(lowered: &Lowered) -> Vec<(Reference, Platform)> {
    let images = lowered.definition.vertices().iter().filter_map(|vertex| {
        let Op::Source(source) = &vertex.op else { return None };
        let stave_llb::SourceIdentifier::DockerImage { reference } = &source.identifier else { return None };
        Some((reference.clone(), vertex.platform.clone().unwrap_or_else(Platform::host)))
    });
    images.collect()
}

/// Passes the solver's events on and counts the Dockerfile's steps.
async fn listen(
    mut receiver: stave_solver::EventReceiver,
    definition: Definition,
    observer: Observer,
) -> StepCount {
    let mut count = StepCount::default();
    while let Some(event) = receiver.recv().await {
        let is_step = definition.vertex(event.vertex()).is_some_and(is_instruction);
        match &event {
            SolveEvent::Cached { .. } if is_step => {
                count.total += 1;
                count.cached += 1;
            }
            SolveEvent::Completed { .. } if is_step => count.total += 1,
            _ => {}
        }
        observer.send(EngineEvent::Solve(event));
    }
    count
}

/// The failure with its place in the Dockerfile.
fn located(error: SolveError, definition: &Definition) -> BuildError {
    let lines = match &error {
        SolveError::Vertex { vertex, .. } => lines_of(definition, vertex),
        _ => None,
    };
    BuildError::Solve { error, lines }
}

/// First and last line of the Dockerfile that a vertex comes from, counted from 1.
fn lines_of(definition: &Definition, vertex: &Digest) -> Option<(usize, usize)> {
    let ranges = definition.source_location(vertex).iter().flat_map(|location| &location.ranges);
    let (first, last) = ranges
        .fold((i32::MAX, 0), |(first, last), range| (first.min(range.start.line), last.max(range.end.line)));
    if first <= last {
        return Some((usize::try_from(first).ok()?, usize::try_from(last).ok()?));
    }
    // What an ADD fetches has no place of its own: the ADD has.
    let mut users = definition.vertices().iter();
    let user = users.find(|user| user.inputs.iter().any(|edge| edge.vertex == *vertex))?;
    lines_of(definition, &user.digest)
}

/// Whether a vertex is a step that its Dockerfile names, other than a base image.
fn is_instruction(vertex: &Vertex) -> bool {
    !matches!(vertex.op, Op::Source(_)) && vertex.name().is_none_or(|name| !name.starts_with("[internal]"))
}

/// What BuildKit's progress calls the export of a target.
fn title(target: &ExportTarget) -> &'static str {
    match target {
        ExportTarget::Image(_) => "exporting to image",
        ExportTarget::Oci(_) => "exporting to oci image format",
        ExportTarget::Docker(_) => "exporting to docker image format",
        ExportTarget::Local { .. } => "exporting to client directory",
        ExportTarget::Tar { .. } => "exporting to client tarball",
        ExportTarget::CacheOnly => "keeping the cache",
    }
}

#[cfg(test)]
mod tests {
    use stave_frontend_dockerfile::Source;

    use super::*;

    #[track_caller]
    fn check(value: &str, expected: bool) {
        let source = Source::new("Dockerfile", format!("# syntax={value}\nFROM scratch\n"));
        assert_eq!(foreign_syntax(&parse(&source).dockerfile).is_none(), expected, "{value}");
    }

    #[test]
    fn the_references_own_front_ends_are_built_in() {
        for value in
            ["docker/dockerfile", "docker/dockerfile:1", "docker.io/docker/dockerfile-upstream:master"]
        {
            check(value, true);
        }
        check("mirror.example/docker/dockerfile:1.7-labs", true);
        check(
            "docker/dockerfile:1@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            true,
        );
        check("example/dockerfile", false);
        check("docker/other:1", false);
        check("dockerfile", false);
    }
}
