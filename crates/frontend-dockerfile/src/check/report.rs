//! A build check on its own: everything the checks say, and what would stop the build.
//!
//! Owns the way from a plan, or the failure to make one, to a report. Must not know how it is shown.
//! Start with [`CheckReport`].

use crate::{
    diagnostic::{Code, Diagnostic},
    lower::{LowerError, lower},
    plan::{BuildPlan, PlanError},
    request::ResolvedSources,
    source::Span,
};

/// What a build check found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckReport {
    /// The findings, in the order they were made.
    pub warnings: Vec<Diagnostic>,
    /// The first thing that would stop a build, if any.
    pub error: Option<Diagnostic>,
}

impl CheckReport {
    /// The report on a plan all of whose images are resolved.
    pub fn of(plan: &BuildPlan, resolved: &ResolvedSources) -> Self {
        let warnings = super::of_build(plan, resolved);
        let error = match plan.checks.verdict(&warnings) {
            Some(message) => Some(Diagnostic::error(Code::Lower, Span::default(), message)),
            None => lower_unrun(plan, resolved).err().map(|failure| *failure.diagnostic),
        };
        Self { warnings, error }
    }

    /// The report on a file that cannot be planned.
    pub fn of_failure(failure: PlanError) -> Self {
        let (errors, warnings): (Vec<_>, Vec<_>) =
            failure.diagnostics.into_iter().partition(Diagnostic::is_error);
        Self { warnings, error: errors.into_iter().next() }
    }

    /// Whether there is nothing to report.
    pub fn is_clean(&self) -> bool {
        self.warnings.is_empty() && self.error.is_none()
    }
}

/// Lowers without a command being run: each `$(…)` stands for itself.
fn lower_unrun(plan: &BuildPlan, resolved: &ResolvedSources) -> Result<(), LowerError> {
    let mut resolved = resolved.clone();
    loop {
        let commands = plan.commands(&resolved)?;
        if commands.is_empty() {
            return lower(plan, &resolved).map(drop);
        }
        for command in commands {
            resolved.insert_output(command.key, plan.dockerfile.source.slice(command.span).to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use stave_oci::Platform;

    use super::*;
    use crate::{PlanRequest, Source, check::Rule, parse, plan};

    fn report(text: &str, change: impl FnOnce(&mut PlanRequest)) -> CheckReport {
        let mut request = PlanRequest::new(Platform::new("linux", "amd64", None));
        change(&mut request);
        let none = ResolvedSources::default();
        let parsed = parse(&Source::new("Dockerfile", text));
        match plan(&parsed.dockerfile, &request).and_then(|plan| plan.with_triggers(&none)) {
            Ok(plan) => CheckReport::of(&plan, &none),
            Err(failure) => CheckReport::of_failure(failure),
        }
    }

    #[track_caller]
    fn check(text: &str, rules: &[&str], error: Option<&str>) {
        let found = report(text, |_| {});
        let names: Vec<&str> = found.warnings.iter().filter_map(Diagnostic::rule).map(Rule::name).collect();
        assert_eq!(names, rules, "{text}");
        assert_eq!(found.error.as_ref().map(|one| one.message.as_str()), error, "{text}");
    }

    #[test]
    fn findings_and_errors() {
        check("FROM scratch\nCOPY a /\n", &[], None);
        check("FROM scratch\nCMD echo $x\n", &["JSONArgsRecommended"], None);
        check("FROM scratch AS Bad\nCOPY $x /\n", &["StageNameCasing", "UndefinedVar"], None);
        check("# check=skip=all\nFROM scratch AS Bad\nCOPY $x /\n", &[], None);
        let verdict = "lint violation found for rules: StageNameCasing";
        check("# check=error=true\nFROM scratch AS Bad\n", &["StageNameCasing"], Some(verdict));
        check(
            "FROM scratch AS Bad\nCOPY --from=9 a /\n",
            &["StageNameCasing"],
            Some("invalid stage index 9"),
        );
        let own = "# syntax=stave/1\nFROM scratch\nENV A=$(x)\n";
        check(&format!("{own}ENV B=$(y $A)\nRUN z\n"), &[], None);
        check(&format!("{own}STOPSIGNAL nonsense\n"), &[], Some("invalid signal: nonsense"));
        check("FROM scratch\nFRO x\n", &[], Some("unknown instruction: FRO"));
        let bad = report("FROM scratch\nCOPY a /\nSTOPSIGNAL nonsense\n", |_| {});
        assert!(bad.warnings.is_empty() && bad.error.is_some(), "lowering's errors count: {bad:?}");
    }

    #[test]
    fn without_a_target_all_stages_are_looked_at() {
        let text = "FROM scratch AS one\nCOPY $x /\nFROM scratch\nCOPY a /\n";
        assert!(report(text, |_| {}).is_clean());
        assert_eq!(report(text, |request| request.all_stages = true).warnings.len(), 1);
    }
}
