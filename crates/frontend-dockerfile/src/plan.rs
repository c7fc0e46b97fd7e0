//! The build plan: which stages the target needs, and where each gets its files from.
//!
//! Owns names, scopes of `ARG`, reachability and triggers. Instructions in it are still unexpanded,
//! because a base image's environment takes part in expansion; [`crate::lower`] expands them. Must
//! not know operations. Start with [`BuildPlan`] and [`PlannedStage`].

use stave_oci::{Platform, Reference};

use crate::{
    ast::{Dockerfile, Instruction},
    diagnostic::Diagnostic,
    request::{NamedContext, PlanRequest, ResolvedSources, SourceRequest},
    scope::Variables,
    source::Span,
};

/// Everything lowering needs besides the resolved images.
#[derive(Clone, Debug, PartialEq)]
pub struct BuildPlan {
    /// The file, for its text, escape character and directives.
    pub dockerfile: Dockerfile,
    /// What was asked for.
    pub request: PlanRequest,
    /// The global scope: platform arguments, then `ARG`s before the first `FROM`, build args applied.
    pub globals: Variables,
    /// `SOURCE_DATE_EPOCH` in seconds, if set.
    pub epoch: Option<i64>,
    /// All stages: those of the file first and in order, then one for each image that a `COPY --from`
    /// or a mount names. A stage only ever uses stages before it, or implicit ones.
    pub stages: Vec<PlannedStage>,
    /// The stage to build.
    pub target: StageIndex,
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
    /// The base as written and expanded, for messages.
    pub base_name: String,
    /// `FROM --platform`, if given.
    pub platform: Option<Platform>,
    /// The `FROM` instruction's one-line text, empty for implicit stages.
    pub code: String,
    /// The lines of the `FROM`, or of the instruction that made an implicit stage; `None` for mounts'.
    pub lines: Option<crate::source::Lines>,
    /// The same place as a span.
    pub span: Span,
    /// Its instructions, triggers of the base first.
    pub instructions: Vec<PlannedInstruction>,
    /// How many numbered steps it shows (`[2/7]`), the base image's included.
    pub step_total: usize,
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
    /// A named context that is not an image.
    Context(NamedContext),
}

/// An instruction of a stage, with what it takes files from.
#[derive(Clone, Debug, PartialEq)]
pub struct PlannedInstruction {
    /// The instruction, unexpanded.
    pub instruction: Instruction,
    /// Whether it is a trigger of the base.
    pub on_build: bool,
    /// For `COPY --from` one stage; for `RUN` one per mount, `None` for a mount without `from`.
    pub sources: Vec<Option<StageIndex>>,
}

/// Why a Dockerfile cannot be planned.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .diagnostics.first().map(ToString::to_string).unwrap_or_default())]
pub struct PlanError {
    /// At least one error; the first is the one to report if only one is.
    pub diagnostics: Vec<Diagnostic>,
}

/// Decides what to build of `dockerfile`.
///
/// # Errors
/// With the file's own errors if it has any; else for a missing stage, a cycle, a base name or a
/// platform that is empty or malformed.
pub fn plan(dockerfile: &Dockerfile, request: &PlanRequest) -> Result<BuildPlan, PlanError> {
    let _ = request;
    Err(PlanError { diagnostics: dockerfile.errors().to_vec() })
}

impl BuildPlan {
    /// The images the target needs and `resolved` lacks.
    pub fn missing(&self, resolved: &ResolvedSources) -> Vec<SourceRequest> {
        let _ = resolved;
        Vec::new()
    }

    /// The plan with the triggers of all bases known by now put in front of their stages.
    ///
    /// # Errors
    /// For a trigger that is not a sound instruction or names a missing stage.
    pub fn with_triggers(self, resolved: &ResolvedSources) -> Result<Self, PlanError> {
        let _ = resolved;
        Ok(self)
    }

    /// The image request of a stage that starts from an image.
    pub fn request_of(&self, stage: StageIndex) -> Option<SourceRequest> {
        let stage = self.stages.get(stage.0)?;
        let Base::Image(reference) = &stage.base else { return None };
        let platform = stage.platform.as_ref().unwrap_or_else(|| self.request.platform()).clone();
        Some(SourceRequest { reference: reference.clone(), platform })
    }
}
