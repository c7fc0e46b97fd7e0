//! One build: Dockerfile to exported image. The way of the data, top to bottom, is [`Engine::build`].

mod listening;
mod reading;

use std::sync::Arc;

use jiff::Timestamp;
use stave_exporter::{ExportError, ExportTarget, Exported, Image, ImageLayerRef};
use stave_frontend_dockerfile::{Diagnostic, Lowered, PlanRequest, lower};
use stave_llb::{Definition, Op, Vertex};
use stave_oci::{Digest, ImageConfig, Platform, Reference};
use stave_solver::{Job, SolveError};
use stave_store::{Snapshot, StoreError};
use stave_worker::{FileError, HashAhead, Ref, Session};
use tokio_util::sync::CancellationToken;

use crate::attest::{Asked, AttestError, Material};
use crate::complete::{self, Built, Scan};
use crate::epoch::{Dating, Timestamps};
use crate::event::{EngineEvent, Observer, Steps};
use crate::record::{Beginning, Ending, Recorder};
use crate::request::{BuildOutcome, BuildRequest, StepCount};
use crate::resolve::{ResolveError, Resolved, Resolver};
use crate::travel::{CacheExportError, ImageLayers};
use crate::{Engine, ahead, clock, vcs};

pub(crate) use self::listening::lines_of;
use self::listening::{listen, located};
pub use self::reading::{is_built_in_frontend, syntax_line};
pub(crate) use self::reading::{plan_all, read, read_text, warn};

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
    /// A rule of the build does not allow one of its sources.
    #[error("error evaluating the source policy: {0}")]
    Policy(#[from] stave_llb::policy::PolicyError),
    /// A step failed.
    #[error("failed to solve")]
    Solve {
        /// Which and why.
        #[source]
        error: SolveError,
        /// The lines of the Dockerfile it came from, first and last, counted from 1.
        lines: Option<(usize, usize)>,
    },
    /// Something could not be said of the result.
    #[error(transparent)]
    Attest(#[from] AttestError),
    /// The scanner for the bill of materials could not be had.
    #[error("{}", crate::event::one_line(.0))]
    Scanner(Box<ResolveError>),
    /// The result could not be written.
    #[error(transparent)]
    Export(#[from] ExportError),
    /// A cache could not be written.
    #[error(transparent)]
    CacheExport(#[from] CacheExportError),
    /// The state directory failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The graph's result is a local context that cannot be copied.
    #[error(transparent)]
    Context(FileError),
    /// The image would give a secret away.
    #[error(transparent)]
    SecretLeak(Box<stave_worker::SecretLeak>),
    /// The layers could not be searched for secrets.
    #[error("cannot look for secrets in the layers")]
    Scan(#[source] stave_worker::StepError),
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
        let recorder = Recorder::begin(&self.store, Beginning::of(request));
        let steps = Steps::recorded(observer, recorder.clone());
        let outcome = self.build_all(request, &steps, cancel).await;
        recorder.finish(Ending::of(&outcome));
        outcome
    }

    /// The build and those of its further stages, side by side: what they share is made once.
    async fn build_all(
        &self,
        request: &BuildRequest,
        steps: &Steps,
        cancel: &CancellationToken,
    ) -> Result<BuildOutcome, BuildError> {
        let stages = request.stage_requests();
        let others = stages.iter().map(|stage| self.build_steps(stage, steps, cancel));
        let main = self.build_steps(request, steps, cancel);
        let (mut outcome, others) = futures::try_join!(main, futures::future::try_join_all(others))?;
        for other in others {
            outcome.exports.extend(other.exports);
            outcome.steps.total += other.steps.total;
            outcome.steps.cached += other.steps.cached;
        }
        Ok(outcome)
    }

    async fn build_steps(
        &self,
        request: &BuildRequest,
        steps: &Steps,
        cancel: &CancellationToken,
    ) -> Result<BuildOutcome, BuildError> {
        let (lease, started) = (self.worker.lease()?, Timestamp::now());
        let dockerfile = read(request, steps)?;
        let resolver =
            Resolver::new(self, &self.registry, request.pull, steps).with_layouts(&request.layouts);
        let resolver = resolver.with_policy(&request.policy);
        let wanted = request.plan.for_platforms(&request.platforms);
        let wanted = self.dated(wanted, &dockerfile, request, (steps, cancel)).await?;
        let planning = wanted.iter().map(|plan| plan_all(&dockerfile, plan, &resolver));
        let mut targets = Vec::with_capacity(wanted.len());
        let mut resolved = Resolved::default();
        for (wished, planned) in wanted.iter().zip(futures::future::try_join_all(planning).await?) {
            let (plan, mut found) = planned;
            self.evaluate(&plan, &mut found, request, (steps, cancel)).await?;
            let mut lowered = lower(&plan, &found.sources)
                .map_err(|error| BuildError::Dockerfile(error.into_diagnostics()))?;
            lowered.definition = found.under(&request.policy, found.pinned(lowered.definition))?;
            lowered.scanned = found.all_under(&request.policy, lowered.scanned)?;
            if targets.is_empty() {
                warn(&plan, &lowered, steps);
            }
            let materials = complete::materials(&found);
            resolved.absorb(found);
            targets.push(Target { request: wished, lowered, materials, epoch: plan.epoch });
        }
        let bases_of = resolved.sources.images().map(|(_, image)| image.config.clone()).collect();
        let asked = targets.first().and_then(|target| target.epoch);
        let dating = Dating::begin(request, asked, bases_of, self.worker.started());
        let known = ImageLayers::of(&resolved);
        let mut session = self.local_session(request, resolved);
        let whole = Definition::union(targets.iter().map(|target| &target.lowered.definition));
        let journey = self.travel(&request.caches, &whole, &known, bases(&whole), steps).await?;
        if let (Some(journey), Some(session)) = (&journey, Arc::get_mut(&mut session)) {
            session.travel = Some(Arc::clone(&journey.travel));
        }
        let ahead = self.hash_ahead(request, &whole);
        let solving = self.solve_targets(&targets, Arc::clone(&session), steps, cancel);
        let dated = async {
            let dating = dating.await;
            if let Some(ahead) = &ahead {
                ahead.clamped_to(dating.clamp);
            }
            Ok(dating)
        };
        let ((snapshots, count), dating) = futures::future::try_join(solving, dated).await?;
        drop(ahead);
        let checkout = vcs::facts(request).await;
        let mut images = Vec::with_capacity(targets.len());
        for (target, snapshot) in targets.into_iter().zip(&snapshots) {
            let Target { request: plan, lowered, materials, .. } = target;
            let asked = Asked { vcs: checkout.clone(), ..Asked::of_plan(plan, &request.dockerfile.name) };
            let definition = &lowered.definition;
            let base = bases(definition);
            let image =
                self.assemble(lowered.image, snapshot, &base, plan.platform(), Some(dating.created))?;
            let built = Built {
                attest: &request.attest,
                squash: request.squash,
                asked: &asked,
                definition,
                scanned: &lowered.scanned,
                images: materials,
                pins: &request.pins,
                started,
                is_image: request.exports.iter().any(ExportTarget::needs_image),
                scan: Scan {
                    registry: &self.registry,
                    pull: request.pull,
                    policy: &request.policy,
                    session: Some(&session),
                },
            };
            images.push(self.complete(image.dated(dating.clamp), built, steps, cancel).await?);
        }
        self.refuse_leaks(&session, &images, cancel).await?;
        if let Some(journey) = &journey {
            journey.inline(self, &mut images, steps).await?;
        }
        // Files carry what was asked for, and else their own times: nobody compares them by a digest.
        let asked = asked.filter(|_| request.timestamps == Timestamps::Reproducible);
        let to = |target: &ExportTarget| asked.map_or(target.clone(), |epoch| target.clone().dated(epoch));
        let targets: Vec<ExportTarget> = request.exports.iter().map(to).collect();
        let exports = self.export(&images, &targets, steps, cancel).await?;
        if let Some(journey) = journey {
            journey.finish(self, steps, cancel).await?;
        }
        drop(lease);
        let id = exports.iter().find_map(|exported| image_id(exported, images.len()));
        Ok(BuildOutcome { build: steps.build().cloned(), image: id, images, exports, steps: count })
    }

    /// Makes the file systems of all platforms in one run, so that what they share is made once.
    async fn solve_targets(
        &self,
        targets: &[Target<'_>],
        session: Arc<Session>,
        steps: &Steps,
        cancel: &CancellationToken,
    ) -> Result<(Vec<Snapshot>, StepCount), BuildError> {
        let whole = Definition::union(targets.iter().map(|target| &target.lowered.definition));
        let (snapshots, count) = self.solve_all(&whole, session, steps, cancel).await?;
        let mut snapshots = snapshots.into_iter();
        let one = |target: &Target<'_>| match target.lowered.definition.outputs() {
            [] => Ok(Snapshot::scratch()),
            _ => snapshots.next().ok_or(BuildError::NoFileSystem),
        };
        Ok((targets.iter().map(one).collect::<Result<_, _>>()?, count))
    }

    /// Digests the image's layers while later steps run, if the image's digests will be asked for.
    fn hash_ahead(&self, request: &BuildRequest, definition: &Definition) -> Option<HashAhead> {
        let named = |target: &ExportTarget| {
            use ExportTarget::{Docker, Engine, Image, Oci};
            matches!(target, Image(_) | Oci(_) | Docker(_) | Engine(_))
        };
        let wanted = request.exports.iter().any(named);
        wanted.then(|| self.worker.hash_ahead(ahead::layers_of(definition)))
    }

    /// What a build of this machine's own user may use.
    pub(crate) fn local_session(&self, request: &BuildRequest, resolved: Resolved) -> Arc<Session> {
        Arc::new(Session {
            context_modes: request.context_modes,
            asks_for_tags: false,
            travel: None,
            contexts: {
                let own = ("context".to_owned(), request.context.clone());
                request.contexts.clone().into_iter().chain([own]).collect()
            },
            remote: None,
            layouts: request.layouts.clone(),
            ssh: request.ssh.clone(),
            known_hosts: request.known_hosts.clone(),
            pins: request.pins.clone(),
            secrets: request.secrets.clone(),
            registry: self.registry.clone(),
            resolved: resolved.remote,
            confinement: request.confinement.clone(),
            namespace: stave_worker::Namespace::Shared,
        })
    }

    /// Makes the file system that a definition describes.
    pub(crate) async fn solve(
        &self,
        definition: &Definition,
        session: Arc<Session>,
        steps: &Steps,
        cancel: &CancellationToken,
    ) -> Result<(Snapshot, StepCount), BuildError> {
        if definition.outputs().is_empty() {
            return Ok((Snapshot::scratch(), StepCount::default()));
        }
        let (snapshots, count) = self.solve_all(definition, session, steps, cancel).await?;
        Ok((snapshots.into_iter().next().ok_or(BuildError::NoFileSystem)?, count))
    }

    /// Makes the file systems of all outputs of a definition, in their order.
    pub(crate) async fn solve_all(
        &self,
        definition: &Definition,
        session: Arc<Session>,
        steps: &Steps,
        cancel: &CancellationToken,
    ) -> Result<(Vec<Snapshot>, StepCount), BuildError> {
        if definition.outputs().is_empty() {
            return Ok((Vec::new(), StepCount::default()));
        }
        steps.observer().send(EngineEvent::Graph(Arc::new(definition.clone())));
        let (sender, receiver) = steps.channel();
        let definition = Arc::new(definition.clone());
        let namespace = session.namespace.clone();
        let explainer = steps.explainer(self, &definition, &session);
        let secrets = steps.secret_watch(self, &definition, &session);
        let observer = steps.observer().clone();
        let listening = tokio::spawn(listen(receiver, Arc::clone(&definition), observer, explainer, secrets));
        let definition = definition.as_ref();
        let job = Job::new(session).with_events(sender).with_cancel(cancel.clone());
        let result = self.solvers.of(&namespace).solve(definition, &job).await;
        // The channel ends with its last sender; only then is the last line shown and counted.
        drop(job);
        let count = listening.await.unwrap_or_default();
        if let (Err(error), Some(build)) = (&result, steps.build()) {
            self.keep_failed(build, error, definition);
        }
        let outputs = result.map_err(|error| located(error, definition))?;
        let mut snapshots = Vec::with_capacity(outputs.len());
        for output in outputs {
            snapshots.push(self.layers_of(output, cancel).await?);
        }
        Ok((snapshots, count))
    }

    /// The layers of a result; a local context that is one is copied into the store.
    async fn layers_of(&self, result: Ref, cancel: &CancellationToken) -> Result<Snapshot, BuildError> {
        if let Some(snapshot) = result.snapshot() {
            return Ok(snapshot.clone());
        }
        let (worker, cancel) = (Arc::clone(&self.worker), cancel.clone());
        let copied = tokio::task::spawn_blocking(move || worker.snapshot(&result, &cancel)).await;
        copied.map_err(|_| BuildError::NoFileSystem)?.map_err(BuildError::Context)
    }

    /// The config over the layers, with the one time that everything made here carries.
    pub(crate) fn assemble(
        &self,
        mut config: ImageConfig,
        snapshot: &Snapshot,
        base: &[(Reference, Platform)],
        platform: &Platform,
        epoch: Option<i64>,
    ) -> Result<Image, BuildError> {
        let created = clock::created(epoch, &config);
        // A base's cache is about its own layers and steps.
        config.inline_cache = None;
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
        // A base whose layers came with a cache was never pulled. They are its own all the same: nothing of it is dated anew.
        for (layer, diff_id) in snapshot.layers().iter().zip(&config.rootfs.diff_ids) {
            let is_known = layers.iter().any(|known: &ImageLayerRef| known.layer == *layer);
            if !is_known && self.store.layer_by_diff_id(diff_id)? == Some(*layer) {
                let diff_id = Some(diff_id.clone());
                layers.push(ImageLayerRef { layer: *layer, blob: None, origin: None, diff_id });
            }
        }
        Ok(Image::built(config, snapshot, &layers))
    }

    /// When the newest layer of a result was made that no image brought.
    pub(crate) fn made_at(
        &self,
        snapshot: &Snapshot,
        bases: &[(Reference, Platform)],
    ) -> Result<Option<Timestamp>, StoreError> {
        let mut brought = Vec::new();
        for (name, platform) in bases {
            brought.extend(self.base_layers(name, platform)?.into_iter().map(|layer| layer.layer));
        }
        let mut newest = None;
        for layer in snapshot.layers().iter().filter(|layer| !brought.contains(layer)) {
            let created = self.store.layer_created(*layer)?;
            let created = created.and_then(|time| Timestamp::try_from(time).ok());
            newest = newest.max(created);
        }
        Ok(newest)
    }

    /// The layers of an image that was pulled, with the blobs they came as.
    pub(crate) fn base_layers(
        &self,
        name: &Reference,
        platform: &Platform,
    ) -> Result<Vec<ImageLayerRef>, StoreError> {
        let Some(image) = self.local_image(name, platform)? else { return Ok(Vec::new()) };
        let origin = image.manifest.is_some().then(|| name.clone());
        let layer = |layer: stave_store::ImageLayer| ImageLayerRef {
            layer: layer.layer,
            origin: layer.blob.as_ref().and(origin.clone()),
            blob: layer.blob,
            diff_id: Some(layer.diff_id),
        };
        Ok(image.layers.into_iter().map(layer).collect())
    }

    async fn export(
        &self,
        images: &[Image],
        targets: &[ExportTarget],
        steps: &Steps,
        cancel: &CancellationToken,
    ) -> Result<Vec<Exported>, BuildError> {
        let mut exports = Vec::new();
        for target in targets {
            let step = steps.start(title(target));
            let exporter = self.exporter().with_events(steps.export_events(&step));
            let exported = tokio::select! {
                exported = exporter.export(images, target) => exported,
                () = cancel.cancelled() => {
                    return Err(BuildError::Solve { error: SolveError::Cancelled, lines: None });
                }
            };
            exports.push(step.end(exported)?);
        }
        Ok(exports)
    }
}

/// One platform of a build.
struct Target<'a> {
    request: &'a PlanRequest,
    lowered: Lowered,
    /// The images it is made from.
    materials: Vec<Material>,
    /// The time that was asked for.
    epoch: Option<i64>,
}

/// What names the result of an export: the config of one image, the index of several.
fn image_id(exported: &Exported, images: usize) -> Option<Digest> {
    let index = exported.manifest.as_ref().filter(|_| images > 1).map(|manifest| manifest.digest.clone());
    index.or_else(|| exported.config_digest.clone())
}

/// What BuildKit's progress calls the export of a target.
pub(crate) fn title(target: &ExportTarget) -> &'static str {
    match target {
        ExportTarget::Image(_) => "exporting to image",
        ExportTarget::Oci(_) => "exporting to oci image format",
        ExportTarget::Docker(_) => "exporting to docker image format",
        ExportTarget::Engine(_) => "importing to docker",
        ExportTarget::Local { .. } => "exporting to client directory",
        ExportTarget::Tar { .. } => "exporting to client tarball",
        ExportTarget::CacheOnly => "keeping the cache",
    }
}

/// The images among the sources of a definition: where layers may have come from.
pub(crate) fn bases(definition: &Definition) -> Vec<(Reference, Platform)> {
    definition.vertices().iter().filter_map(base_of).collect()
}

/// The image that a vertex is, for its platform.
pub(crate) fn base_of(vertex: &Vertex) -> Option<(Reference, Platform)> {
    let Op::Source(source) = &vertex.op else { return None };
    let stave_llb::SourceIdentifier::DockerImage { reference } = &source.identifier else { return None };
    Some((reference.clone(), vertex.platform.clone().unwrap_or_else(Platform::host)))
}
