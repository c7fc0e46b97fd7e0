//! The checks that need no more than the text.
//!
//! Owns casing, stage names, descriptions and what the reader of lines noticed.

use std::collections::BTreeSet;

use crate::{
    ast::{Dockerfile, Instruction, InstructionKind, Stage},
    diagnostic::Diagnostic,
    quote::quote,
};

use super::{Checks, Rule};

/// Names a stage should not have, because `FROM` and `--from` give them another meaning.
const RESERVED_NAMES: [&str; 2] = ["context", "scratch"];

/// All findings of the text, rule by rule.
pub(crate) fn of_text(dockerfile: &Dockerfile, checks: &Checks) -> Vec<Diagnostic> {
    let mut findings = Vec::new();
    for &span in &dockerfile.empty_continuations {
        checks.report(&mut findings, Rule::NoEmptyContinuation, span, "Empty continuation line".to_owned());
    }
    for global in &dockerfile.globals {
        of_instruction(checks, global, &mut findings);
    }
    for stage in &dockerfile.stages {
        of_from(checks, stage, &mut findings);
        for instruction in &stage.instructions {
            of_instruction(checks, instruction, &mut findings);
        }
    }
    stage_names(checks, dockerfile, &mut findings);
    casing(checks, dockerfile, &mut findings);
    findings
}

fn of_instruction(checks: &Checks, instruction: &Instruction, findings: &mut Vec<Diagnostic>) {
    let checks = checks.with_comments(&instruction.comments);
    match &instruction.kind {
        InstructionKind::Maintainer(_) => {
            let message = "Maintainer instruction is deprecated in favor of using label";
            checks.report(findings, Rule::MaintainerDeprecated, instruction.span, message.to_owned());
        }
        InstructionKind::Arg(arguments) => {
            let names: Vec<_> = arguments.iter().map(|argument| argument.name.text.as_str()).collect();
            description(&checks, instruction, "ARG", &names, findings);
        }
        _ => {}
    }
}

fn of_from(checks: &Checks, stage: &Stage, findings: &mut Vec<Diagnostic>) {
    let instruction = &stage.instruction;
    let checks = checks.with_comments(&instruction.comments);
    let Some(name) = &stage.from.name else { return };
    if name.written.text != name.name {
        let message = format!("Stage name '{}' should be lowercase", name.written.text);
        checks.report(findings, Rule::StageNameCasing, instruction.span, message);
    }
    let keyword = name.keyword.text.as_str();
    let fits = match Case::of(&instruction.keyword) {
        Some(case) => Case::of(keyword) == Some(case),
        None => true,
    };
    if !fits {
        let message = format!("'{keyword}' and '{}' keywords' casing do not match", instruction.keyword);
        checks.report(findings, Rule::FromAsCasing, instruction.span, message);
    }
    description(&checks, instruction, "FROM", &[&name.name], findings);
}

/// The comment above a definition should begin with the name it describes.
fn description(
    checks: &Checks,
    instruction: &Instruction,
    keyword: &str,
    names: &[&str],
    findings: &mut Vec<Diagnostic>,
) {
    let Some(comment) = instruction.comments.last() else { return };
    if names.contains(&comment.split(' ').next().unwrap_or_default()) {
        return;
    }
    let Some(&first) = names.first() else { return };
    let example = if names.len() > 1 { "<arg_key>" } else { first };
    let message = format!("Comment for {keyword} should follow the format: `# {example} <description>`");
    checks.report(findings, Rule::InvalidDefinitionDescription, instruction.span, message);
}

fn stage_names(checks: &Checks, dockerfile: &Dockerfile, findings: &mut Vec<Diagnostic>) {
    let mut seen = BTreeSet::new();
    for stage in &dockerfile.stages {
        let Some(name) = stage.from.name.as_ref().map(|name| name.name.as_str()) else { continue };
        let span = stage.instruction.span;
        if RESERVED_NAMES.contains(&name) {
            let message =
                format!("Stage name should not use the same name as reserved stage {}", quote(name));
            checks.report(findings, Rule::ReservedStageName, span, message);
        }
        if !seen.insert(name) {
            let message = format!("Duplicate stage name {}, stage names should be unique", quote(name));
            checks.report(findings, Rule::DuplicateStageName, span, message);
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Case {
    Lower,
    Upper,
}

impl Case {
    /// The case of a word that is all of one case.
    fn of(word: &str) -> Option<Self> {
        // Keywords are ASCII.
        if !word.bytes().any(|letter| letter.is_ascii_uppercase()) {
            return Some(Self::Lower);
        }
        (!word.bytes().any(|letter| letter.is_ascii_lowercase())).then_some(Self::Upper)
    }
}

/// Keywords should be of the case most of them are of.
fn casing(checks: &Checks, dockerfile: &Dockerfile, findings: &mut Vec<Diagnostic>) {
    let all = || {
        let stages = dockerfile.stages.iter();
        stages.flat_map(|stage| {
            std::iter::once(&stage.instruction).chain(stage.instructions.iter().map(AsRef::as_ref))
        })
    };
    let count = |case| all().filter(|instruction| Case::of(&instruction.keyword) == Some(case)).count();
    let (majority, name) = match count(Case::Lower) > count(Case::Upper) {
        true => (Case::Lower, "lowercase"),
        false => (Case::Upper, "uppercase"),
    };
    for instruction in all().filter(|instruction| Case::of(&instruction.keyword) != Some(majority)) {
        let message = format!(
            "Command '{}' should match the case of the command majority ({name})",
            instruction.keyword
        );
        checks.report(findings, Rule::ConsistentInstructionCasing, instruction.span, message);
    }
}
