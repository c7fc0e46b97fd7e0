//! The parts of a build, one by one, for a caller that puts them together in an order of its own: a daemon whose
//! client decides between them what comes next.
//!
//! Owns nothing but the way in: each part is the one that [`Engine::build`] uses. Start with [`Parts`].

mod lowering;
mod results;
mod sources;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use futures::future::BoxFuture;
use stave_exporter::{ExportTarget, Exported, INVENTED_HISTORY, Image};
use stave_llb::Definition;
use stave_llb::policy::SourcePolicies;
use stave_oci::{Digest, History, ImageConfig, Platform, Reference};
use stave_registry::Client;
use stave_solver::SolveError;
use stave_store::Snapshot;
use stave_worker::{Namespace, Session};
use tokio_util::sync::CancellationToken;

use crate::build::{bases, title};
use crate::event::{Observer, Steps};
use crate::record::Recorder;
use crate::resolve::Resolver;
use crate::{BuildError, Engine, PullPolicy, ResolveError, StepCount};

pub use lowering::{Lowering, Unlowered};
pub use results::Finished;

/// What the parts of one build share.
#[derive(Debug)]
pub struct Parts<'a> {
    engine: &'a Engine,
    registry: Client,
    steps: Steps,
    cancel: CancellationToken,
    namespace: Namespace,
    layouts: BTreeMap<String, PathBuf>,
    policy: SourcePolicies,
}

impl Engine {
    /// The parts of one build, which asks `registry` with the credentials of whoever wants the build. When
    /// `cancel` fires, what runs is stopped and waited for.
    pub fn parts(&self, registry: Client, observer: Observer, cancel: CancellationToken) -> Parts<'_> {
        Parts {
            engine: self,
            registry,
            steps: Steps::new(observer),
            cancel,
            namespace: Namespace::Shared,
            layouts: BTreeMap::new(),
            policy: SourcePolicies::default(),
        }
    }
}

impl Parts<'_> {
    /// The same for a tenant: no image is found by a name that somebody else may have given it.
    #[must_use]
    pub fn within(self, namespace: Namespace) -> Self {
        Self { namespace, ..self }
    }

    /// The same, with OCI layouts to find images in, by name.
    #[must_use]
    pub fn with_layouts(self, layouts: BTreeMap<String, PathBuf>) -> Self {
        Self { layouts, ..self }
    }

    /// The same, with rules about what a Dockerfile may use.
    #[must_use]
    pub fn under(self, policy: SourcePolicies) -> Self {
        Self { policy, ..self }
    }

    fn pull(&self, asked: PullPolicy) -> PullPolicy {
        if self.namespace.finds_local_images() { asked } else { PullPolicy::Always }
    }

    /// The same, with its steps' logs kept and their misses explained. What `recorder` is told beyond that is the
    /// observer's affair.
    #[must_use]
    pub fn recorded(self, recorder: Recorder) -> Self {
        Self { steps: self.steps.kept_by(recorder), ..self }
    }

    /// The file system that a definition describes.
    ///
    /// # Errors
    /// [`BuildError`].
    pub async fn solve(
        &self,
        definition: &Definition,
        session: Arc<Session>,
    ) -> Result<(Snapshot, StepCount), BuildError> {
        self.engine.solve(definition, session, &self.steps, &self.cancel).await
    }

    /// The image of a config over what was solved of `definition`.
    ///
    /// # Errors
    /// When the store fails.
    pub fn image(
        &self,
        config: ImageConfig,
        snapshot: &Snapshot,
        definition: &Definition,
        platform: &Platform,
        epoch: Option<i64>,
    ) -> Result<Image, BuildError> {
        let bases = bases(definition);
        let mut config = config;
        if let (None, Some(made)) = (epoch, self.engine.made_at(snapshot, &bases)?) {
            // What nobody dates has the time at which it was made, which the cache keeps.
            for entry in &mut config.history {
                entry.created.get_or_insert_with(|| made.to_string());
            }
            config.created = config.created.max(Some(made.to_string()));
        }
        self.date_layers(&mut config, snapshot)?;
        let image = self.engine.assemble(config, snapshot, &bases, platform, epoch)?;
        Ok(image.dated(epoch))
    }

    /// Layers that the history does not tell of are as old as each of them is.
    fn date_layers(&self, config: &mut ImageConfig, snapshot: &Snapshot) -> Result<(), BuildError> {
        let told = config.history.iter().filter(|line| !line.empty_layer).count();
        for layer in snapshot.layers().iter().skip(told) {
            let created = self.engine.store.layer_created(*layer)?;
            let created = created.and_then(|time| jiff::Timestamp::try_from(time).ok());
            config.history.push(History {
                created: created.map(|time| time.to_string()).or_else(|| config.created.clone()),
                comment: INVENTED_HISTORY.to_owned(),
                ..History::default()
            });
        }
        Ok(())
    }

    /// Looks an image up: its pin and its config.
    ///
    /// # Errors
    /// [`ResolveError`].
    pub async fn resolve(
        &self,
        reference: &Reference,
        platform: &Platform,
        pull: PullPolicy,
    ) -> Result<(Digest, Vec<u8>), ResolveError> {
        Resolver::new(self.engine, &self.registry, self.pull(pull), &self.steps)
            .lookup(reference, platform)
            .await
    }

    /// Writes the platforms of an image to a target; what is for standard output goes to `output`.
    ///
    /// # Errors
    /// [`BuildError::Export`].
    pub fn export<'a>(
        &'a self,
        images: &'a [Image],
        target: &'a ExportTarget,
        output: impl Write + Send + 'static,
    ) -> BoxFuture<'a, Result<Exported, BuildError>> {
        self.export_announced(images, target, output, |_| {})
    }

    /// The same, for somebody who wants to know what an archive will be before its first byte.
    ///
    /// # Errors
    /// As [`Self::export`].
    pub fn export_announced<'a>(
        &'a self,
        images: &'a [Image],
        target: &'a ExportTarget,
        output: impl Write + Send + 'static,
        announce: impl Fn(&Exported) + Send + Sync + 'static,
    ) -> BoxFuture<'a, Result<Exported, BuildError>> {
        let step = self.steps.start(title(target));
        let exporter = self.engine.exporter_for(self.registry.clone()).with_stdout(output);
        let exporter = exporter.with_events(self.steps.export_events(&step)).announcing(announce);
        Box::pin(async move {
            let exported = tokio::select! {
                exported = exporter.export(images, target) => exported,
                () = self.cancel.cancelled() => return Err(cancelled()),
            };
            Ok(step.end(exported)?)
        })
    }
}

fn cancelled() -> BuildError {
    BuildError::Solve { error: SolveError::Cancelled, lines: None }
}
