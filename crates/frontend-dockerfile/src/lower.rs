//! The last stage of the front end: a plan and its images become operations and an image config.
//!
//! Owns what each instruction means, vertex for vertex as BuildKit's own front end lowers it, and the
//! texts of names and history. Must not resolve anything. Start with [`lower`] and [`Lowered`]; behind
//! it, `stage` holds what a stage has come to, and each other module one kind of instruction.

use std::collections::BTreeMap;

use stave_llb::{
    Definition, Position, SourceInfo, SourceLocation, SourceOp, SourceRange,
    builder::{About, GraphBuilder, Output},
};
use stave_oci::{ImageConfig, Platform};

use crate::{
    ast::{Instruction, InstructionKind},
    check,
    diagnostic::{Code, Diagnostic},
    plan::{Base, BuildPlan, PlannedInstruction, PlannedStage, StageIndex},
    request::{CommandRequest, ResolvedSources},
    source::{Lines, Span},
};

mod base;
mod chmod;
mod config;
mod context;
mod history;
mod mounts;
mod named;
mod own;
mod ports;
pub(crate) mod report;
mod run;
mod scanned;
mod signal;
mod stage;
mod transfer;

use context::BuildContext;
use named::LocalContexts;
pub use own::KEYED_SECRETS;
use stage::StageState;

/// The most bytes of variables and history that all steps together may have: every step repeats the
/// variables of its stage, so that long values in long files would fill any memory.
pub const MAX_TEXT: usize = 256 << 20;

/// What a plan comes to.
#[derive(Clone, Debug, PartialEq)]
pub struct Lowered {
    /// The graph to solve; without outputs where the image has no files.
    pub definition: Definition,
    /// The image's config. Its layers (`rootfs`) are still the base image's, and it has no creation time.
    pub image: ImageConfig,
    /// What a bill of materials is to look at beside the result, by name: stages, and the build context as `context`.
    pub scanned: BTreeMap<String, Definition>,
    /// All warnings, those of the plan included.
    pub warnings: Vec<Diagnostic>,
}

/// Why a plan cannot be lowered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{diagnostic}")]
pub struct LowerError {
    /// What is wrong, and where.
    pub diagnostic: Box<Diagnostic>,
    /// What else is wrong in stages that do not need the one of `diagnostic`.
    pub more: Vec<Diagnostic>,
    /// What the checks found, whatever stopped the build.
    pub warnings: Vec<Diagnostic>,
}

impl LowerError {
    /// All that is wrong, in order, then the warnings.
    pub fn into_diagnostics(self) -> Vec<Diagnostic> {
        std::iter::once(*self.diagnostic).chain(self.more).chain(self.warnings).collect()
    }
}

impl From<Diagnostic> for LowerError {
    fn from(diagnostic: Diagnostic) -> Self {
        Self { diagnostic: Box::new(diagnostic), more: Vec::new(), warnings: Vec::new() }
    }
}

/// Everything a stage's lowering shares with the others'.
struct Lowering<'a> {
    plan: &'a BuildPlan,
    resolved: &'a ResolvedSources,
    graph: GraphBuilder,
    context: BuildContext,
    locals: LocalContexts,
    /// The places of the Dockerfile and the files it includes among the graph's files.
    files: Vec<usize>,
    /// How many bytes of variables and history have come together, see [`MAX_TEXT`].
    text: usize,
    /// The stages lowered so far.
    stages: Vec<Option<StageState>>,
    /// Commands whose output is not known yet.
    commands: Vec<CommandRequest>,
}

/// The operations and the image config of a plan.
///
/// # Errors
/// For an instruction whose expanded values are not sound, an image that is not among `resolved`, and
/// for what is not supported yet.
pub fn lower(plan: &BuildPlan, resolved: &ResolvedSources) -> Result<Lowered, LowerError> {
    lower_sound(plan, resolved)
        .map_err(|failure| LowerError { warnings: check::of_build(plan, resolved), ..failure })
}

fn lower_sound(plan: &BuildPlan, resolved: &ResolvedSources) -> Result<Lowered, LowerError> {
    let mut lowering = Lowering::new(plan, resolved)?;
    lowering.all_stages()?;
    if let Some(command) = lowering.commands.first() {
        return Err(error(command.span, "the output of the command is not known").into());
    }
    Ok(lowering.finish()?)
}

impl<'a> Lowering<'a> {
    fn new(plan: &'a BuildPlan, resolved: &'a ResolvedSources) -> Result<Self, LowerError> {
        let mut graph = GraphBuilder::default();
        let files = plan.dockerfile.source.parts().map(|part| SourceInfo {
            filename: part.name.to_owned(),
            data: part.text.as_bytes().to_vec(),
            language: "Dockerfile".to_owned(),
            origin: Vec::new(),
        });
        let files = files.map(|file| graph.add_file(file)).collect();
        let context = BuildContext::new(&mut graph, &plan.request)
            .map_err(|message| error(Span::default(), message))?;
        let stages = vec![None; plan.stages.len()];
        let locals = LocalContexts::default();
        Ok(Self { plan, resolved, graph, context, locals, files, text: 0, stages, commands: Vec::new() })
    }
}

impl Lowering<'_> {
    fn all_stages(&mut self) -> Result<(), LowerError> {
        let mut errors = Vec::new();
        // Stages that stand for images have no instructions and use nothing, but any stage may use them.
        for implicit in [true, false] {
            for (at, stage) in self.plan.stages.iter().enumerate() {
                if !stage.reachable || stage.implicit != implicit || self.needs_failed(stage) {
                    continue;
                }
                match self.stage(StageIndex(at)) {
                    Ok(state) => self.stages[at] = Some(state),
                    // What does not depend on the command may ask for others at the same time.
                    Err(_) if !self.commands.is_empty() => {}
                    Err(failure) => errors.push(failure),
                }
            }
        }
        let mut errors = errors.into_iter();
        match errors.next() {
            Some(first) => Err(LowerError { more: errors.collect(), ..first.into() }),
            None => Ok(()),
        }
    }

    /// Whether a stage uses one that could not be lowered: about that, all is said.
    fn needs_failed(&self, stage: &PlannedStage) -> bool {
        let base = match stage.base {
            Base::Stage(base) => Some(base),
            _ => None,
        };
        let sources = stage.instructions.iter().flat_map(|planned| planned.sources.iter().flatten());
        base.iter().chain(sources).any(|used| self.stages.get(used.0).is_some_and(Option::is_none))
    }

    fn stage(&mut self, index: StageIndex) -> Result<StageState, Diagnostic> {
        let plan = self.plan;
        let mut state = self.base(index)?;
        let span = plan.stages[index.0].span;
        self.count(state.text() + state.history(), span)?;
        for planned in &plan.stages[index.0].instructions {
            state.on_build = planned.on_build;
            self.instruction(&mut state, planned)?;
            self.count(state.text(), planned.instruction.span)?;
        }
        Ok(state)
    }

    fn instruction(
        &mut self,
        state: &mut StageState,
        planned: &PlannedInstruction,
    ) -> Result<(), Diagnostic> {
        match &planned.instruction.kind {
            InstructionKind::Run(run) => self.run(state, planned, run),
            InstructionKind::Copy(copy) => self.copy(state, planned, copy),
            InstructionKind::Add(add) => self.add(state, planned, add),
            InstructionKind::Workdir(path) => self.workdir(state, planned, path),
            _ => self.configure(state, &planned.instruction),
        }
    }

    /// Takes note of text that lowering keeps.
    fn count(&mut self, bytes: usize, span: Span) -> Result<(), Diagnostic> {
        self.text = self.text.saturating_add(bytes);
        match self.text > MAX_TEXT {
            true => Err(error(span, format!("more than {MAX_TEXT} bytes of variables and history"))),
            false => Ok(()),
        }
    }

    /// The lowered stage that an instruction takes files from.
    fn source_stage(&self, index: StageIndex, span: Span) -> Result<&StageState, Diagnostic> {
        let stage = self.stages.get(index.0).and_then(Option::as_ref);
        stage.ok_or_else(|| {
            let name = self.plan.stages.get(index.0).map_or("", |stage| stage.display_name.as_str());
            error(span, format!("stage \"{name}\" needs to be defined before it is used"))
        })
    }

    fn location(&self, instruction: &Instruction) -> SourceLocation {
        self.location_of(instruction.lines, instruction.span)
    }

    fn location_of(&self, lines: Lines, span: Span) -> SourceLocation {
        let position = |line: u32| Position { line: i32::try_from(line).unwrap_or(i32::MAX), character: 0 };
        let range = SourceRange { start: position(lines.first), end: position(lines.last) };
        let (part, _) = self.plan.dockerfile.source.part_at(span.start);
        SourceLocation { source: self.files[part], ranges: vec![range] }
    }

    fn source(&mut self, op: SourceOp, platform: &Platform, about: About) -> Output {
        self.graph.source(op, platform, about)
    }

    fn finish(mut self) -> Result<Lowered, Diagnostic> {
        let target = self.plan.target;
        let Some(mut state) = self.stages.get_mut(target.0).and_then(Option::take) else {
            return Err(error(Span::default(), "the target stage was not lowered"));
        };
        let mut image = std::mem::take(&mut state.image);
        // All of the target is wanted.
        self.locals.uses(state.root.take(), "/");
        image.config.labels.extend(self.plan.request.labels.clone());
        if let Some(platform) = &self.plan.request.target_platform {
            stage::set_platform(&mut image, platform);
        }
        let platform = image.platform();
        let normal = Platform::new(&platform.os, &platform.architecture, platform.variant.as_deref());
        image.os = if normal.os.is_empty() { "linux".to_owned() } else { normal.os };
        image.architecture = normal.architecture;
        image.variant = normal.variant.unwrap_or_default();
        self.context.finish(&mut self.graph);
        self.locals.finish(&mut self.graph);
        let scanned = self.scanned(&state);
        let definition = self.graph.finish(state.output);
        let warnings = check::of_build(self.plan, self.resolved);
        match self.plan.checks.verdict(&warnings) {
            None => Ok(Lowered { definition, image, scanned, warnings }),
            Some(message) => Err(error(Span::default(), message)),
        }
    }
}

/// An error of lowering at `span`.
fn error(span: Span, message: impl Into<String>) -> Diagnostic {
    Diagnostic::error(Code::Lower, span, message)
}

#[cfg(test)]
mod tests;
