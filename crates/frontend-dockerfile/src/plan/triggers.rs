//! `ONBUILD` triggers of bases.
//!
//! Owns when a stage's triggers are known and what becomes of them: instructions in front of the
//! stage's own, which may name further images.

use crate::{
    ast::{Instruction, InstructionKind},
    diagnostic::Diagnostic,
    input::NamedContext,
    parse,
    request::ResolvedSources,
};

use super::{Base, BuildPlan, ContextBase, PlanError, StageIndex, links::Links};

/// Triggers one base may bring along.
const MAX_TRIGGERS: usize = 1000;

impl BuildPlan {
    /// The plan with the triggers of all bases known by now put in front of their stages.
    ///
    /// # Errors
    /// For a trigger that is not a sound instruction or names a missing stage.
    pub fn with_triggers(mut self, resolved: &ResolvedSources) -> Result<Self, PlanError> {
        // A trigger may make further stages reachable, whose triggers then count, too. All stages of a
        // round are looked at before the next begins, as the reference has it: steps are numbered by rounds.
        while let Some(round) = self.next_round(resolved) {
            let mut takes_files = false;
            for (stage, expressions) in round {
                self.stages[stage.0].triggers_done = true;
                if expressions.is_empty() {
                    continue;
                }
                let triggers = self.parse_triggers(stage, &expressions)?;
                takes_files |= triggers.iter().any(takes_from_stages);
                let stages = std::mem::take(&mut self.stages);
                let mut links = Links::of_plan(&self, stages);
                links.prepend(stage, triggers)?;
                self.stages = links.finish()?;
            }
            if takes_files {
                self.skip_steps();
            }
            self.mark_reachable();
        }
        self.check_order()?;
        Ok(self)
    }

    /// The stages whose triggers come next; `None` if there are none, or while a base is not resolved.
    fn next_round(&self, resolved: &ResolvedSources) -> Option<Vec<(StageIndex, Vec<String>)>> {
        let waiting = |index: &usize| self.stages[*index].reachable && !self.stages[*index].triggers_done;
        let round: Option<Vec<_>> = (0..self.stages.len())
            .filter(waiting)
            .map(|index| Some((StageIndex(index), self.expressions(StageIndex(index), resolved)?)))
            .collect();
        round.filter(|round| !round.is_empty())
    }

    /// Counts the bases that this round looked at in vain.
    fn skip_steps(&mut self) {
        for stage in self.stages.iter_mut().filter(|stage| !stage.reachable && stage.step_total > 0) {
            stage.skipped_steps += usize::from(stage.base.is_pulled());
        }
    }

    /// The triggers of a stage's base; `None` while its image is not resolved.
    fn expressions(&self, stage: StageIndex, resolved: &ResolvedSources) -> Option<Vec<String>> {
        match &self.stages[stage.0].base {
            Base::Scratch => Some(Vec::new()),
            Base::Stage(base) => {
                // As written: they count even where a named context stands for the stage.
                let stage = self.dockerfile.stages.get(base.0);
                let instructions = stage.into_iter().flat_map(|stage| &stage.instructions);
                let expression = |kind: &InstructionKind| match kind {
                    InstructionKind::Onbuild(onbuild) => Some(onbuild.expression.clone()),
                    _ => None,
                };
                Some(instructions.filter_map(|instruction| expression(&instruction.kind)).collect())
            }
            Base::Context(ContextBase { source: NamedContext::Graph { config, .. }, .. }) => {
                Some(config.iter().flat_map(|config| config.config.on_build.clone()).collect())
            }
            Base::Image(_) | Base::Context(_) => {
                let Some(request) = self.request_of(stage) else { return Some(Vec::new()) };
                Some(resolved.get(&request)?.config.config.on_build.clone())
            }
        }
    }

    fn parse_triggers(
        &self,
        stage: StageIndex,
        expressions: &[String],
    ) -> Result<Vec<Instruction>, Diagnostic> {
        let Some(from) = self.dockerfile.stages.get(stage.0).map(|stage| &stage.instruction) else {
            return Ok(Vec::new());
        };
        if expressions.len() > MAX_TRIGGERS {
            let message = format!("the base has {} triggers, more than {MAX_TRIGGERS}", expressions.len());
            return Err(super::error(from.span, message));
        }
        let dialect = self.dockerfile.dialect();
        expressions.iter().map(|expression| parse::parse_trigger(expression, from, dialect)).collect()
    }
}

/// Whether an instruction names a stage, or could: a mount without `from` counts for the reference.
fn takes_from_stages(instruction: &Instruction) -> bool {
    match &instruction.kind {
        InstructionKind::Copy(copy) => copy.from.is_some(),
        InstructionKind::Run(run) => !run.mounts.is_empty(),
        _ => false,
    }
}
