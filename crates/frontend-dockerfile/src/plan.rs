//! The build plan: which stages the target needs, and where each gets its files from.
//!
//! Owns names, scopes of `ARG`, reachability and triggers. Instructions in it are still unexpanded,
//! because a base image's environment takes part in expansion; [`crate::lower()`] expands them. Must
//! not know operations. Start with [`BuildPlan`] and [`PlannedStage`].

use std::sync::Arc;

use stave_llb::Definition;
use stave_oci::{Platform, Reference};

use crate::{
    ast::{Dockerfile, Instruction},
    check::{self, Checks},
    diagnostic::{Code, Diagnostic},
    expand::Expander,
    input::NamedContext,
    request::{ImageOrigin, PlanRequest, ResolvedSources, SourceRequest},
    scope::{Lookup as _, Variables},
    source::Span,
    suggest,
};

mod globals;
mod links;
mod stages;
mod triggers;

use links::Links;
pub(crate) use links::context_name;
use stages::StageReader;

/// Everything lowering needs besides the resolved images.
#[derive(Clone, Debug, PartialEq)]
pub struct BuildPlan {
    /// The file, for its text, escape character and directives.
    pub dockerfile: Dockerfile,
    /// What was asked for; its `SOURCE_DATE_EPOCH` says what [`BuildPlan::epoch`] says.
    pub request: PlanRequest,
    /// The global scope: platform arguments, then `ARG`s before the first `FROM`, build args applied.
    pub globals: Variables,
    /// `SOURCE_DATE_EPOCH` in seconds, if set.
    pub epoch: Option<i64>,
    /// What knows that time where `SOURCE_DATE_EPOCH` names a source: a graph of one repository (whose
    /// files have the commit's time) or download (`Last-Modified`). Whoever finds it out plans again, see
    /// [`PlanRequest::with_epoch`]; else the build has no such time.
    pub epoch_source: Option<Definition>,
    /// All stages: those of the file first and in order, then one for each image that a `COPY --from`
    /// or a mount names. A stage only ever uses stages before it, or implicit ones.
    pub stages: Vec<PlannedStage>,
    /// The stage to build.
    pub target: StageIndex,
    /// Which build checks are made.
    pub checks: Checks,
    /// Warnings found so far, those of parsing included.
    pub warnings: Vec<Diagnostic>,
}

/// A stage's place in [`BuildPlan::stages`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StageIndex(pub usize);

/// One stage of a plan.
#[derive(Clone, Debug, PartialEq)]
pub struct PlannedStage {
    /// Its name, `stage-N` for a stage without one; empty if it is the only one, and for implicit ones.
    pub display_name: String,
    /// Whether it stands for an image named by `COPY --from` or a mount, and has no instructions.
    pub implicit: bool,
    /// What it starts from.
    pub base: Base,
    /// The base as written, variables expanded, for messages.
    pub written_base: String,
    /// `FROM --platform`, if given. It chooses an image; `scratch` and stages are not changed by it.
    pub platform: Option<Platform>,
    /// The `FROM` instruction's one-line text, empty for implicit stages.
    pub code: String,
    /// The lines of the `FROM`, or of the instruction that made an implicit stage; `None` for mounts'.
    pub lines: Option<crate::source::Lines>,
    /// The same place as a span.
    pub span: Span,
    /// Its instructions, triggers of the base first.
    pub instructions: Vec<PlannedInstruction>,
    /// How many numbered steps it shows (`[2/7]`), the base image's and triggers' included.
    pub step_total: usize,
    /// The same as it was when the base was looked up: triggers were not known by then.
    pub base_step_total: usize,
    /// Steps that are counted, but not shown: the reference counts a base each time that triggers make
    /// it look at the stages again while the target does not need them yet.
    pub skipped_steps: usize,
    /// Whether the target needs it.
    pub reachable: bool,
    /// Whether its steps must not come from the cache.
    pub ignore_cache: bool,
    /// Whether the base's triggers are already in `instructions`.
    pub(crate) triggers_done: bool,
}

/// What a stage starts from.
#[derive(Clone, Debug, PartialEq)]
pub enum Base {
    /// `FROM scratch`
    Scratch,
    /// An earlier stage.
    Stage(StageIndex),
    /// An image; see [`BuildPlan::request_of`].
    Image(Reference),
    /// A named context.
    Context(ContextBase),
}

/// A named context that a stage starts from, or that stands for all of it.
#[derive(Clone, Debug, PartialEq)]
pub struct ContextBase {
    /// Its name as images are called for short, without `:latest`.
    pub name: String,
    /// The name it was found by, perhaps with `::os/architecture`.
    pub shown: String,
    /// What it is.
    pub source: NamedContext,
    /// Whether it stands for the whole stage: then the stage has no instructions.
    pub replaces_stage: bool,
}

/// An instruction of a stage, with what it takes files from.
#[derive(Clone, Debug, PartialEq)]
pub struct PlannedInstruction {
    /// The instruction, unexpanded; shared with the file where it stands in it.
    pub instruction: Arc<Instruction>,
    /// Whether it is a trigger of the base.
    pub on_build: bool,
    /// For `COPY --from` one stage; for `RUN` one per mount, `None` for a mount without `from`.
    pub sources: Vec<Option<StageIndex>>,
}

/// Why a Dockerfile cannot be planned.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .diagnostics.first().map(ToString::to_string).unwrap_or_default())]
pub struct PlanError {
    /// At least one error, then warnings; the first is the one to report if only one is. Errors of
    /// different stages and instructions stand side by side.
    pub diagnostics: Vec<Diagnostic>,
}

/// Decides what to build of `dockerfile`.
///
/// # Errors
/// With the file's own errors if it has any; else for a missing stage, a cycle, a base name or a
/// platform that is empty or malformed.
pub fn plan(dockerfile: &Dockerfile, request: &PlanRequest) -> Result<BuildPlan, PlanError> {
    if !dockerfile.errors().is_empty() {
        return Err(PlanError { diagnostics: dockerfile.errors().to_vec() });
    }
    let mut warnings = Vec::new();
    let planned = plan_sound(dockerfile, request, &mut warnings);
    match planned {
        Ok(plan) => Ok(BuildPlan { warnings, ..plan }),
        Err(mut failure) => {
            failure.diagnostics.append(&mut warnings);
            Err(failure)
        }
    }
}

fn plan_sound(
    dockerfile: &Dockerfile,
    request: &PlanRequest,
    warnings: &mut Vec<Diagnostic>,
) -> Result<BuildPlan, PlanError> {
    let checks = Checks::of_build(dockerfile, request)
        .map_err(|failure| format!("failed to parse build-arg:{}: {failure}", check::CHECK_BUILD_ARG))
        .map_err(|message| error(Span::default(), message))?;
    *warnings = check::of_text(dockerfile, &checks);
    globals::check_defaults(dockerfile, request, &checks, warnings);
    let (mut globals, declared) = globals::build(dockerfile, request, &request.build_args)?;
    let mut request = request.clone();
    let epoch = globals::settle_epoch(dockerfile, &mut request, &mut globals)?;
    let expander = Expander::new(dockerfile.escape);
    let mut links = Links::new(&request, expander);
    let mut reader = StageReader {
        request: &request,
        globals: &globals,
        declared: &declared,
        expander,
        checks: checks.clone(),
        warnings,
    };
    let mut diagnostics = reader.add_all(dockerfile, &mut links);
    let target = links.target(request.target.as_deref()).map_err(|error| diagnostics.push(error));
    diagnostics.extend(links.link_all());
    let (Ok(target), true) = (target, diagnostics.is_empty()) else { return Err(PlanError { diagnostics }) };
    let mut plan = BuildPlan {
        dockerfile: dockerfile.clone(),
        request,
        stages: links.finish()?,
        globals,
        epoch: epoch.seconds,
        epoch_source: epoch.source,
        target,
        checks,
        warnings: Vec::new(),
    };
    plan.mark_reachable();
    plan.check_order()?;
    // Where no image is missing, nobody adds triggers later.
    plan.with_triggers(&ResolvedSources::default())
}

impl BuildPlan {
    /// The images the target needs and `resolved` lacks, each once, in the order of their stages.
    pub fn missing(&self, resolved: &ResolvedSources) -> Vec<SourceRequest> {
        let mut missing = Vec::new();
        for index in (0..self.stages.len()).filter(|&index| self.stages[index].reachable) {
            let Some(request) = self.request_of(StageIndex(index)) else { continue };
            if resolved.get(&request).is_none() && !missing.contains(&request) {
                missing.push(request);
            }
        }
        missing
    }

    /// The image request of a stage that starts from an image.
    pub fn request_of(&self, stage: StageIndex) -> Option<SourceRequest> {
        let stage = self.stages.get(stage.0)?;
        let platform = stage.platform.as_ref().unwrap_or_else(|| self.request.platform()).clone();
        let (reference, origin) = match &stage.base {
            Base::Image(reference) => (reference.clone(), ImageOrigin::Registry { context: None }),
            Base::Context(context) => context.request()?,
            Base::Scratch | Base::Stage(_) => return None,
        };
        Some(SourceRequest { reference, platform, origin })
    }

    /// What to say where an image of [`BuildPlan::missing`] cannot be had: at the place that names
    /// it, with the stages that exist, because a mistyped stage looks like an image.
    pub fn unresolved(&self, request: &SourceRequest, reason: &str) -> Diagnostic {
        let indexes = (0..self.stages.len()).map(StageIndex);
        let stage = indexes.into_iter().find(|&index| self.request_of(index).as_ref() == Some(request));
        let stage = stage.map(|index| &self.stages[index.0]);
        let span = stage.map_or_else(Span::default, |stage| stage.span);
        if request.is_named_context() {
            // The name in the file is not what was looked up.
            return Diagnostic::error(Code::Plan, span, reason);
        }
        let name = stage.map_or_else(|| request.reference.familiar(), |stage| stage.written_base.clone());
        let stages: Vec<&str> = self.stage_names().collect();
        let images = ["alpine", "busybox", "centos", "debian", "golang", "ubuntu", "fedora"];
        let suggestion = suggest::similar(&name, stages.iter().copied().chain(images));
        let error =
            Diagnostic::error(Code::Plan, span, format!("{name}: {reason}")).with_suggestion(suggestion);
        match stages.is_empty() {
            true => error,
            false => error.with_note(None, format!("the stages here are {}", stages.join(", "))),
        }
    }

    /// The names stages were given, in order.
    pub fn stage_names(&self) -> impl Iterator<Item = &str> {
        let named = self.dockerfile.stages.iter().filter_map(|stage| stage.from.name.as_ref());
        named.map(|name| name.name.as_str())
    }

    /// The value of an `ARG` declared in a stage: a build arg, else the default (already expanded),
    /// else the global scope's.
    pub fn argument_value(&self, name: &str, default: Option<String>) -> Option<String> {
        let given = self.request.build_args.get(name).cloned();
        given.or(default).or_else(|| self.globals.value(name).map(str::to_owned))
    }

    /// Marks what the target needs.
    fn mark_reachable(&mut self) {
        let mut waiting = vec![self.target];
        if self.request.all_stages {
            waiting.extend((0..self.dockerfile.stages.len()).map(StageIndex));
        }
        for stage in &mut self.stages {
            stage.reachable = false;
        }
        while let Some(index) = waiting.pop() {
            let Some(stage) = self.stages.get_mut(index.0) else { continue };
            if std::mem::replace(&mut stage.reachable, true) {
                continue;
            }
            if let Base::Stage(base) = stage.base {
                waiting.push(base);
            }
            waiting.extend(
                stage.instructions.iter().flat_map(|instruction| instruction.sources.iter().flatten()),
            );
        }
    }
}

impl ContextBase {
    /// Which image it is, and where that is looked up, if it is one.
    fn request(&self) -> Option<(Reference, ImageOrigin)> {
        let context = self.shown.clone();
        match &self.source {
            NamedContext::Image { reference, .. } => {
                Some((reference.clone(), ImageOrigin::Registry { context: Some(context) }))
            }
            NamedContext::OciLayout { store, digest } => {
                // A layout's images have no name; the reference calls them after the context.
                let named: Reference = self.name.parse().ok()?;
                let origin = ImageOrigin::OciLayout { context, store: store.clone() };
                Some((named.pinned(digest.clone()), origin))
            }
            _ => None,
        }
    }
}

impl From<Diagnostic> for PlanError {
    fn from(diagnostic: Diagnostic) -> Self {
        Self { diagnostics: vec![diagnostic] }
    }
}

/// An error of the plan at `span`.
fn error(span: Span, message: impl Into<String>) -> Diagnostic {
    Diagnostic::error(Code::Plan, span, message)
}

#[cfg(test)]
mod tests;
