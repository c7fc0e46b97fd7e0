//! The file's stages, as they enter a plan.
//!
//! Owns `FROM`: the expansion of its base and platform, what they may be, and the checks on them.
//! Must not know who uses a stage; that is `links`.

use std::{collections::BTreeSet, sync::Arc};

use stave_oci::Platform;

use crate::{
    ast::{Dockerfile, Instruction, InstructionKind, Stage, Word},
    check::{Checks, Rule},
    diagnostic::Diagnostic,
    expand::{Expander, Expansion},
    request::{NoCache, PlanRequest},
    scope::{Lookup as _, Variables},
    suggest,
};

use super::{PlannedInstruction, PlannedStage, error, links::Links};

/// Reads the stages of a file one by one.
pub(super) struct StageReader<'a> {
    pub(super) request: &'a PlanRequest,
    pub(super) globals: &'a Variables,
    /// The names declared before the first `FROM`.
    pub(super) declared: &'a BTreeSet<String>,
    pub(super) expander: Expander,
    pub(super) checks: Checks,
    pub(super) warnings: &'a mut Vec<Diagnostic>,
}

impl StageReader<'_> {
    /// Adds the file's stages to `links`, their instructions not yet linked.
    /// What is wrong with one does not keep the others from being looked at.
    pub(super) fn add_all(&mut self, dockerfile: &Dockerfile, links: &mut Links) -> Vec<Diagnostic> {
        let file_checks = self.checks.clone();
        let mut errors = Vec::new();
        let mut sound_warnings = None;
        for (index, stage) in dockerfile.stages.iter().enumerate() {
            self.checks = file_checks.with_comments(&stage.instruction.comments);
            let name = stage.from.name.as_ref().map(|name| name.name.as_str());
            match self.stage(index, stage, links) {
                Ok(planned) => drop(links.add(planned, name)),
                Err(error) => {
                    // The reference stops here, and warns of nothing behind it.
                    sound_warnings.get_or_insert(self.warnings.len());
                    errors.push(error);
                    links.add_unsound(stage, name);
                }
            }
        }
        self.warnings.truncate(sound_warnings.unwrap_or(usize::MAX));
        errors
    }

    fn stage(&mut self, index: usize, stage: &Stage, links: &mut Links) -> Result<PlannedStage, Diagnostic> {
        let written = &stage.from.base;
        let base = self.expand(written, stage)?.text;
        if base.is_empty() {
            let message = format!("base name ({}) should not be blank", written.text);
            let help = "give its variable a default with `ARG` before the first `FROM`, or a `--build-arg`";
            return Err(error(written.span, message).with_help(help));
        }
        let platform = stage.from.platform.as_ref().map(|word| self.platform(word, stage)).transpose()?;
        let name = stage.from.name.as_ref().map(|name| name.name.as_str());
        let context = name.and_then(|name| links.replacement(name, platform.as_ref()));
        let replaced = context.is_some();
        let source = context.unwrap_or_else(|| links.base(&base, platform.as_ref(), written.span));
        let steps = usize::from(source.is_pulled()) + steps(&stage.instructions);
        Ok(PlannedStage {
            display_name: name.map_or_else(|| format!("stage-{index}"), str::to_owned),
            implicit: false,
            base: source,
            written_base: base,
            platform,
            code: stage.instruction.code.clone(),
            lines: Some(stage.instruction.lines),
            span: stage.instruction.span,
            // A named context of a stage's name takes the place of all of it.
            instructions: if replaced { Vec::new() } else { unlinked(&stage.instructions) },
            step_total: if replaced { 0 } else { steps },
            base_step_total: if replaced { 0 } else { steps },
            skipped_steps: 0,
            reachable: false,
            ignore_cache: self.ignores_cache(name.unwrap_or_default()),
            triggers_done: replaced,
        })
    }

    /// Expands a word of `FROM` and reports the variables nobody declared.
    fn expand(&mut self, word: &Word, stage: &Stage) -> Result<Expansion, Diagnostic> {
        let expansion = self.expander.expand(&word.text, self.globals);
        let unmatched = match &expansion {
            Ok(expansion) => &expansion.unmatched,
            Err(failure) => &failure.unmatched,
        };
        for name in unmatched.iter().filter(|name| !self.declared.contains(*name)) {
            let known = self.globals.names().chain(self.declared.iter().map(String::as_str));
            let mut message = format!("FROM argument '{name}' is not declared");
            if let Some(similar) = suggest::similar(name, known) {
                message.push_str(&format!(" (did you mean {similar}?)"));
            }
            self.checks.report(self.warnings, Rule::UndefinedArgInFrom, stage.instruction.span, message);
        }
        expansion.map_err(|failure| error(word.span, failure.to_string()))
    }

    fn platform(&mut self, word: &Word, stage: &Stage) -> Result<Platform, Diagnostic> {
        let expansion = self.expand(word, stage).map_err(|mut failure| {
            failure.message = format!("failed to process arguments for platform : {}", failure.message);
            failure
        })?;
        self.check_platform(word, &expansion, stage);
        let suggestion = || {
            let names = expansion.unmatched.iter();
            names.filter_map(|name| suggest::similar(name, self.globals.names())).next()
        };
        if expansion.text.is_empty() {
            let message = format!("empty platform value from expression {}", word.text);
            return Err(error(word.span, message).with_suggestion(suggestion()));
        }
        Platform::parse_as_written(&expansion.text).map_err(|failure| {
            let message = format!("failed to parse platform {}: {failure}: invalid argument", word.text);
            error(word.span, message)
                .with_suggestion(suggestion())
                .with_help("write a platform as `os/architecture`, such as `linux/arm64`")
        })
    }

    fn check_platform(&mut self, word: &Word, expansion: &Expansion, stage: &Stage) {
        const TARGET: &str = "TARGETPLATFORM";
        let span = stage.instruction.span;
        let only_target = expansion.matched.iter().eq([TARGET]) && expansion.unmatched.is_empty();
        if only_target && self.globals.value(TARGET) == Some(expansion.text.as_str()) {
            let message = format!(
                "Setting platform to predefined {} in FROM is redundant as this is the default behavior",
                word.text
            );
            self.checks.report(self.warnings, Rule::RedundantTargetPlatform, span, message);
        }
        let constant = expansion.matched.is_empty() && expansion.unmatched.is_empty();
        let Some(platform) = expansion.text.parse::<Platform>().ok().filter(|_| constant) else { return };
        let name = stage.from.name.as_ref().map(|name| name.name.as_str()).unwrap_or_default();
        if !name.contains(&platform.os) && !name.contains(&platform.architecture) {
            let message = format!(
                "FROM --platform flag should not use constant value {}",
                crate::quote::quote(&expansion.text)
            );
            self.checks.report(self.warnings, Rule::FromPlatformFlagConstDisallowed, span, message);
        }
    }

    fn ignores_cache(&self, name: &str) -> bool {
        match &self.request.no_cache {
            NoCache::Nothing => false,
            NoCache::Everything => true,
            NoCache::Stages(names) => names.iter().any(|listed| listed.eq_ignore_ascii_case(name)),
        }
    }
}

fn unlinked(instructions: &[Arc<Instruction>]) -> Vec<PlannedInstruction> {
    let planned = instructions.iter().cloned();
    planned
        .map(|instruction| PlannedInstruction { instruction, on_build: false, sources: Vec::new() })
        .collect()
}

/// How many of the instructions show as numbered steps.
fn steps(instructions: &[Arc<Instruction>]) -> usize {
    let shows = |instruction: &&Arc<Instruction>| {
        matches!(
            instruction.kind,
            InstructionKind::Add(_)
                | InstructionKind::Copy(_)
                | InstructionKind::Run(_)
                | InstructionKind::Workdir(_)
        )
    };
    instructions.iter().filter(shows).count()
}
