//! Build checks: what works but should be written otherwise.
//!
//! Owns the rules' names and texts, which of them a file switches off, and the checks that need no
//! more than the text. Those that need scopes are made by planning and lowering, through [`Checks`].
//! Start with [`Rule`].

use crate::{
    ast::{DirectiveKind, Dockerfile},
    diagnostic::Diagnostic,
    grammar,
    plan::BuildPlan,
    request::{PlanRequest, ResolvedSources},
    source::Span,
};

mod findings;
mod report;
mod rule;
mod scopes;
mod text;
mod unused;

use findings::Findings;
pub use findings::is_secret;
pub use report::CheckReport;
pub use rule::Rule;
pub(crate) use text::of_text;

/// The build arg that stands in for `# check=`.
pub(crate) const CHECK_BUILD_ARG: &str = "BUILDKIT_DOCKERFILE_CHECK";

/// Which checks are made, as `# check=` and the build say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checks {
    skip: Selection,
    experimental: Selection,
    /// Whether a finding fails the build.
    pub fail: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Selection {
    all: bool,
    names: Vec<String>,
}

/// Options of `check=` that are none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CheckOptionsError {
    /// An option without value or of an unknown name.
    #[error("invalid check option {}", crate::quote::quote(.0))]
    Unknown(String),
    /// `error=` something that is neither true nor false.
    #[error("failed to parse check option {}: strconv.ParseBool: parsing {}: invalid syntax", crate::quote::quote(.0), crate::quote::quote(.1))]
    NotBool(String, String),
}

/// Everything that is found in a plan, in the order in which the reference says it.
pub(crate) fn of_build(plan: &BuildPlan, resolved: &ResolvedSources) -> Vec<Diagnostic> {
    let mut found = plan.warnings.clone();
    found.extend(scopes::of_plan(plan, resolved));
    found
}

impl Selection {
    fn read(text: &str) -> Self {
        match text.trim() {
            "all" => Self { all: true, names: Vec::new() },
            names => {
                Self { all: false, names: names.split(',').map(|name| name.trim().to_owned()).collect() }
            }
        }
    }

    fn has(&self, rule: Rule) -> bool {
        self.all || self.names.iter().any(|name| name == rule.name())
    }

    fn merge(&mut self, other: Self) {
        self.all |= other.all;
        self.names.extend(other.names);
    }
}

impl Checks {
    /// Reads `skip=A,B;experimental=C;error=true`.
    ///
    /// # Errors
    /// For an option that does not exist.
    pub fn parse(options: &str) -> Result<Self, CheckOptionsError> {
        let mut checks = Self::default();
        if options.trim().is_empty() {
            return Ok(checks);
        }
        for option in options.trim().splitn(3, ';') {
            let unknown = |text: &str| CheckOptionsError::Unknown(text.to_owned());
            let (name, value) = option.split_once('=').ok_or_else(|| unknown(option))?;
            match name.trim() {
                "skip" => checks.skip = Selection::read(value),
                "experimental" => checks.experimental = Selection::read(value),
                "error" => {
                    checks.fail = match value.trim() {
                        "1" | "t" | "T" | "true" | "TRUE" | "True" => true,
                        "0" | "f" | "F" | "false" | "FALSE" | "False" => false,
                        other => return Err(CheckOptionsError::NotBool(option.to_owned(), other.to_owned())),
                    }
                }
                other => return Err(unknown(other)),
            }
        }
        Ok(checks)
    }

    /// The checks a file asks for; unreadable options are an error of the file and leave the default.
    pub fn of(dockerfile: &Dockerfile) -> Self {
        Self::directive(dockerfile).unwrap_or_default()
    }

    /// The checks of a build: those its build args ask for, else those of the file.
    ///
    /// # Errors
    /// For options in the build arg that cannot be read.
    pub(crate) fn of_build(
        dockerfile: &Dockerfile,
        request: &PlanRequest,
    ) -> Result<Self, CheckOptionsError> {
        match request.build_args.get(CHECK_BUILD_ARG) {
            Some(options) => Self::parse(options),
            None => Ok(Self::of(dockerfile)),
        }
    }

    /// As [`Checks::of`].
    ///
    /// # Errors
    /// For options that cannot be read.
    pub(crate) fn directive(dockerfile: &Dockerfile) -> Result<Self, CheckOptionsError> {
        let value = dockerfile.directive(DirectiveKind::Check).unwrap_or_default();
        Self::parse(value.split(' ').next().unwrap_or_default())
    }

    /// With what a `# check=` among the comments above an instruction adds.
    #[must_use]
    pub fn with_comments(&self, comments: &[String]) -> Self {
        let mut checks = self.clone();
        let options = comments.iter().find_map(|comment| {
            let (name, value) = grammar::directive(comment)?;
            name.eq_ignore_ascii_case("check").then(|| value.split(' ').next().unwrap_or_default())
        });
        if let Some(Ok(extra)) = options.map(Self::parse) {
            checks.skip.merge(extra.skip);
            checks.experimental.merge(extra.experimental);
        }
        checks
    }

    /// Adds a finding to `findings` unless the rule is off.
    pub fn report(&self, findings: &mut Vec<Diagnostic>, rule: Rule, span: Span, message: String) {
        let on = if rule.is_experimental() { self.experimental.has(rule) } else { !self.skip.has(rule) };
        if on {
            findings.push(Diagnostic::warning(rule, span, message).with_help(rule.description()));
        }
    }
}
