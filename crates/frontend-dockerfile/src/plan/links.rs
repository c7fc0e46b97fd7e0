//! Who takes files from whom.
//!
//! Owns stages by name and index, implicit stages for images, named contexts, cycles and the order
//! in which stages must stand. Must not know variables, but for refusing them in `--from`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use stave_oci::{Platform, Reference};

use crate::{
    ast::{Copy, Instruction, InstructionKind, Run},
    diagnostic::Diagnostic,
    expand::{ExpandError, Expander},
    input::NamedContext,
    mount,
    quote::quote,
    request::PlanRequest,
    source::Span,
    suggest,
};

use super::{Base, BuildPlan, ContextBase, PlanError, PlannedInstruction, PlannedStage, StageIndex, error};

/// The base that is nothing.
const SCRATCH: &str = "scratch";
/// Implicit stages a plan may gain; each is an image to resolve.
const MAX_STAGES: usize = 10_000;

/// Stages while they are put together.
pub(super) struct Links {
    stages: Vec<PlannedStage>,
    by_name: BTreeMap<String, StageIndex>,
    /// By name or `name::platform`, as clients say them.
    contexts: BTreeMap<String, NamedContext>,
    /// The platform of what names none.
    platform: Platform,
    expander: Expander,
    /// Image names that are none; they count only after all else is found sound.
    bad_references: Vec<Diagnostic>,
}

impl Links {
    pub(super) fn new(request: &PlanRequest, expander: Expander) -> Self {
        Self {
            stages: Vec::new(),
            by_name: BTreeMap::new(),
            contexts: request.named_contexts.clone(),
            platform: request.platform().clone(),
            expander,
            bad_references: Vec::new(),
        }
    }

    /// Takes up a plan's stages again, to link triggers.
    pub(super) fn of_plan(plan: &BuildPlan, stages: Vec<PlannedStage>) -> Self {
        let mut links = Self::new(&plan.request, Expander::new(plan.dockerfile.escape));
        for (index, stage) in plan.dockerfile.stages.iter().enumerate() {
            if let Some(name) = &stage.from.name {
                links.by_name.insert(name.name.clone(), StageIndex(index));
            }
        }
        links.stages = stages;
        links
    }

    pub(super) fn add(&mut self, stage: PlannedStage, name: Option<&str>) -> StageIndex {
        let index = StageIndex(self.stages.len());
        self.stages.push(stage);
        if let Some(name) = name {
            self.by_name.insert(name.to_owned(), index);
        }
        index
    }

    /// The named context that stands for the whole stage `name`.
    pub(super) fn replacement(&self, name: &str, platform: Option<&Platform>) -> Option<Base> {
        if [SCRATCH, "context"].iter().any(|reserved| name.eq_ignore_ascii_case(reserved)) {
            return None;
        }
        self.context(name, platform, true)
    }

    /// The named context that stands for `name`; one for this very platform comes first.
    fn context(&self, name: &str, platform: Option<&Platform>, replaces_stage: bool) -> Option<Base> {
        let name = context_name(name);
        let of_platform = format!("{name}::{}", platform.unwrap_or(&self.platform));
        let found = self.contexts.get_key_value(&of_platform).or_else(|| self.contexts.get_key_value(&name));
        let (shown, source) = found.map(|(shown, source)| (shown.clone(), source.clone()))?;
        Some(Base::Context(ContextBase { name, shown, source, replaces_stage }))
    }

    /// What `name` behind `FROM` stands for: an earlier stage, nothing, or an image.
    pub(super) fn base(&mut self, name: &str, platform: Option<&Platform>, span: Span) -> Base {
        match self.by_name.get(name) {
            Some(&stage) => Base::Stage(stage),
            None if name == SCRATCH => Base::Scratch,
            None => self.image(name, platform, span),
        }
    }

    fn image(&mut self, name: &str, platform: Option<&Platform>, span: Span) -> Base {
        match name.parse::<Reference>() {
            Ok(reference) => self.context(name, platform, false).unwrap_or(Base::Image(reference)),
            Err(failure) => {
                let message = format!("failed to parse stage name {}: {failure}", quote(name));
                let known = self.by_name.keys().map(String::as_str);
                let mut bad = error(span, message);
                // The reference says no more than that; only help may.
                if let Some(similar) = suggest::similar_ignoring_case(name, known.clone()).or_else(|| {
                    known.clone().find(|known| known.eq_ignore_ascii_case(name)).map(str::to_owned)
                }) {
                    bad = bad.with_help(format!("did you mean `{}`?", similar.to_lowercase()));
                }
                self.bad_references.push(bad);
                // Nobody sees this base: the error is raised before the plan is handed out.
                Base::Scratch
            }
        }
    }

    pub(super) fn target(&self, wanted: Option<&str>) -> Result<StageIndex, Diagnostic> {
        let Some(wanted) = wanted.filter(|name| !name.is_empty()) else {
            return Ok(StageIndex(self.stages.len().saturating_sub(1)));
        };
        self.by_name.get(&wanted.to_lowercase()).copied().ok_or_else(|| {
            let names: Vec<&str> = self.names().collect();
            let message = format!("target stage {} could not be found", quote(wanted));
            error(Span::default(), message)
                .with_suggestion(suggest::similar(wanted, names.iter().copied()))
                .with_note(None, format!("the stages here are {}", names.join(", ")))
        })
    }

    /// What stages are called, those without a name included.
    fn names(&self) -> impl Iterator<Item = &str> {
        self.stages.iter().filter(|stage| !stage.implicit).map(|stage| stage.display_name.as_str())
    }

    /// Takes the place of a stage whose `FROM` is not sound, so that others find its name.
    pub(super) fn add_unsound(&mut self, stage: &crate::ast::Stage, name: Option<&str>) {
        let instruction = &stage.instruction;
        let placeholder = PlannedStage {
            display_name: name.unwrap_or_default().to_owned(),
            implicit: false,
            base: Base::Scratch,
            written_base: stage.from.base.text.clone(),
            platform: None,
            code: instruction.code.clone(),
            lines: Some(instruction.lines),
            span: instruction.span,
            instructions: Vec::new(),
            step_total: 0,
            base_step_total: 0,
            skipped_steps: 0,
            reachable: false,
            ignore_cache: false,
            triggers_done: true,
        };
        self.add(placeholder, name);
    }

    /// Links every instruction of the file's stages; the result is all that is wrong with them.
    pub(super) fn link_all(&mut self) -> Vec<Diagnostic> {
        let mut errors = Vec::new();
        for index in 0..self.stages.len() {
            let mut instructions = std::mem::take(&mut self.stages[index].instructions);
            for planned in &mut instructions {
                match self.sources(&planned.instruction) {
                    Ok(sources) => planned.sources = sources,
                    Err(error) => errors.push(error),
                }
            }
            self.stages[index].instructions = instructions;
        }
        if errors.is_empty() {
            errors.extend(self.check_cycles().err());
        }
        if let [only] = self.stages.as_mut_slice() {
            // The reference takes a mount without `from` for one of an empty stage, and counts it.
            let has_second = only.instructions.iter().any(|planned| match &planned.instruction.kind {
                InstructionKind::Run(run) => run.mounts.iter().any(|mount| mount.from.is_none()),
                _ => false,
            });
            if !has_second {
                only.display_name.clear();
            }
        }
        errors
    }

    /// Puts linked triggers in front of a stage's instructions.
    pub(super) fn prepend(
        &mut self,
        stage: StageIndex,
        triggers: Vec<Instruction>,
    ) -> Result<(), Diagnostic> {
        let mut planned = Vec::with_capacity(triggers.len());
        for instruction in triggers {
            let sources = self.sources(&instruction)?;
            let instruction = Arc::new(instruction);
            planned.push(PlannedInstruction { instruction, on_build: true, sources });
        }
        let stage = &mut self.stages[stage.0];
        stage.step_total += planned.len();
        stage.instructions.splice(0..0, planned);
        Ok(())
    }

    /// The stages an instruction takes files from.
    fn sources(&mut self, instruction: &Instruction) -> Result<Vec<Option<StageIndex>>, Diagnostic> {
        match &instruction.kind {
            InstructionKind::Copy(copy) => self.copy_source(copy, instruction),
            InstructionKind::Run(run) => self.mount_sources(run, instruction),
            _ => Ok(Vec::new()),
        }
    }

    fn copy_source(
        &mut self,
        copy: &Copy,
        instruction: &Instruction,
    ) -> Result<Vec<Option<StageIndex>>, Diagnostic> {
        let Some(from) = &copy.from else { return Ok(Vec::new()) };
        let plain = self.expander.text(&from.text, &());
        let plain = plain.map_err(|failure| error(from.span, failure.to_string()))?;
        if plain != from.text {
            let message = "variable expansion is not supported for --from, define a new stage with FROM using \
                           ARG from global scope as a workaround";
            return Err(error(from.span, message));
        }
        if let Ok(index) = from.text.parse::<i64>() {
            return match usize::try_from(index).ok().filter(|&index| index < self.stages.len()) {
                Some(index) => Ok(vec![Some(StageIndex(index))]),
                None => {
                    let note = format!("stages are counted from 0, and there are {}", self.names().count());
                    Err(error(from.span, format!("invalid stage index {index}")).with_note(None, note))
                }
            };
        }
        let stage = match self.by_name.get(&from.text.to_lowercase()) {
            Some(&stage) => stage,
            None => self.implicit(&from.text, from.span, instruction)?,
        };
        Ok(vec![Some(stage)])
    }

    fn mount_sources(
        &mut self,
        run: &Run,
        instruction: &Instruction,
    ) -> Result<Vec<Option<StageIndex>>, Diagnostic> {
        let mut sources = Vec::with_capacity(run.mounts.len());
        for mount in &run.mounts {
            sources.push(match &mount.from {
                // A mount of nothing is one of a stage that is called so.
                None => self.by_name.get(SCRATCH).copied(),
                Some(from) => Some(match self.by_name.get(&from.to_lowercase()) {
                    Some(&stage) => stage,
                    None => {
                        let stage = self.implicit(from, mount.options.span, instruction)?;
                        self.stages[stage.0].lines = None;
                        stage
                    }
                }),
            });
        }
        Ok(sources)
    }

    /// A stage for an image that an instruction names.
    fn implicit(
        &mut self,
        name: &str,
        span: Span,
        instruction: &Instruction,
    ) -> Result<StageIndex, Diagnostic> {
        if self.stages.len() >= MAX_STAGES {
            return Err(error(span, format!("more than {MAX_STAGES} stages and images")));
        }
        let base = if name == SCRATCH { Base::Scratch } else { self.image(name, None, span) };
        let stage = PlannedStage {
            display_name: String::new(),
            implicit: true,
            base,
            written_base: name.to_owned(),
            platform: None,
            code: String::new(),
            lines: Some(instruction.lines),
            span,
            instructions: Vec::new(),
            step_total: 0,
            base_step_total: 0,
            skipped_steps: 0,
            reachable: false,
            ignore_cache: false,
            triggers_done: true,
        };
        Ok(self.add(stage, None))
    }

    /// Finds stages that take files from each other in a ring.
    fn check_cycles(&self) -> Result<(), Diagnostic> {
        let uses = |stage: usize| -> Vec<(usize, Span)> {
            let instructions = self.stages[stage].instructions.iter();
            instructions
                .flat_map(|planned| {
                    planned.sources.iter().flatten().map(|at| (at.0, planned.instruction.span))
                })
                .collect()
        };
        let mut visited = BTreeSet::new();
        for root in 0..self.stages.len() {
            if !visited.insert(root) {
                continue;
            }
            let mut path = vec![(root, uses(root).into_iter())];
            while let Some((_, rest)) = path.last_mut() {
                let Some((used, span)) = rest.next() else {
                    path.pop();
                    continue;
                };
                if path.iter().any(|(stage, _)| *stage == used) {
                    let message =
                        format!("circular dependency detected on stage: {}", self.stages[root].display_name);
                    return Err(error(span, message).with_help("a stage can only use stages above it"));
                }
                if visited.insert(used) {
                    path.push((used, uses(used).into_iter()));
                }
            }
        }
        Ok(())
    }

    /// The stages, if all names of images are sound.
    pub(super) fn finish(self) -> Result<Vec<PlannedStage>, PlanError> {
        match self.bad_references.is_empty() {
            true => Ok(self.stages),
            false => Err(PlanError { diagnostics: self.bad_references }),
        }
    }
}

impl Base {
    /// Whether it shows as a step of its own.
    pub(super) fn is_pulled(&self) -> bool {
        matches!(self, Self::Image(_) | Self::Context(_))
    }
}

impl BuildPlan {
    /// A stage uses only stages above it, so that they can be lowered in order.
    pub(super) fn check_order(&self) -> Result<(), Diagnostic> {
        let reachable = self.stages.iter().enumerate().filter(|(_, stage)| stage.reachable);
        for (index, stage) in reachable {
            for planned in &stage.instructions {
                for (at, source) in planned.sources.iter().enumerate() {
                    let late = source.filter(|source| source.0 >= index && !self.stages[source.0].implicit);
                    if late.is_some() {
                        return Err(late_source(planned, at, &stage.display_name));
                    }
                }
            }
        }
        Ok(())
    }
}

fn late_source(planned: &PlannedInstruction, at: usize, stage: &str) -> Diagnostic {
    let instruction = &planned.instruction;
    let help = "move that stage above this one";
    match &instruction.kind {
        InstructionKind::Run(run) => {
            let mount = &run.mounts[at];
            let plain = |value: &str| Ok::<_, ExpandError>(value.to_owned());
            let target = mount::parse(&mount.options.text, plain).ok().and_then(|mount| mount.target);
            let message = format!(
                "cannot mount from stage {} to {}, stage needs to be defined before current command",
                quote(mount.from.as_deref().unwrap_or_default()),
                quote(&target.unwrap_or_default())
            );
            error(mount.options.span, message).with_help(help)
        }
        InstructionKind::Copy(Copy { from: Some(from), .. }) => {
            let message = format!(
                "cannot copy from stage {}, it needs to be defined before current stage {}",
                quote(&from.text),
                quote(stage)
            );
            let span = if planned.on_build { instruction.span } else { from.span };
            error(span, message).with_help(help)
        }
        _ => error(instruction.span, "a stage is used before it is defined"),
    }
}

/// A context's name as images are called for short, without `:latest`.
pub(crate) fn context_name(name: &str) -> String {
    match name.parse::<Reference>() {
        Ok(reference) => {
            let familiar = reference.familiar();
            familiar.strip_suffix(":latest").unwrap_or(&familiar).to_owned()
        }
        Err(_) => name.to_owned(),
    }
}
