//! The findings of checks that know scopes and bases.
//!
//! Owns their messages and what counts as a finding; `scopes` says what it sees. Start with
//! [`Findings`].

use stave_llb::pattern::PatternMatcher;
use stave_oci::Platform;

use crate::{diagnostic::Diagnostic, quote::quote, source::Span, suggest};

use super::{Checks, Rule};

/// Parts of a name that hint at a secret.
const SECRET_WORDS: [&str; 10] =
    ["apikey", "auth", "credential", "credentials", "key", "password", "pword", "passwd", "secret", "token"];
/// Parts of a name that take the hint away.
const HARMLESS_WORDS: [&str; 3] = ["public", "file", "version"];
/// Variables that steer the build and need no declaration.
const STEERING_VARIABLES: [&str; 2] = ["BUILDKIT_SBOM_SCAN_CONTEXT", "BUILDKIT_SBOM_SCAN_STAGE"];

/// Collects what the checks find in one instruction.
pub(super) struct Findings<'a> {
    checks: Checks,
    span: Span,
    found: &'a mut Vec<Diagnostic>,
}

impl<'a> Findings<'a> {
    /// Findings at `span`, with what a `# check=` comment above the instruction adds to `checks`.
    pub(super) fn new(
        checks: &Checks,
        comments: &[String],
        span: Span,
        found: &'a mut Vec<Diagnostic>,
    ) -> Self {
        Self { checks: checks.with_comments(comments), span, found }
    }

    fn report(&mut self, rule: Rule, message: String) {
        self.report_at(self.span, rule, message);
    }

    fn report_at(&mut self, span: Span, rule: Rule, message: String) {
        self.checks.report(self.found, rule, span, message);
    }

    /// Variables an expansion did not find: `declared` are the stage's `ARG`s, `known` all variables
    /// set, the pool of suggestions.
    pub(super) fn undefined_variables<'n>(
        &mut self,
        unmatched: impl IntoIterator<Item = &'n str>,
        declared: &[&str],
        known: &[&str],
    ) {
        for name in unmatched {
            if declared.contains(&name) || STEERING_VARIABLES.contains(&name) {
                continue;
            }
            let hint = suggest::similar(name, known.iter().copied());
            let hint = hint.map_or_else(String::new, |similar| format!(" (did you mean ${similar}?)"));
            self.report(Rule::UndefinedVar, format!("Usage of undefined variable '${name}'{hint}"));
        }
    }

    /// `ENV name value` or `LABEL name value`; `keyword` as written.
    pub(super) fn legacy_pair(&mut self, keyword: &str) {
        let message = format!(
            "\"{keyword} key=value\" should be used instead of legacy \"{keyword} key value\" format"
        );
        self.report(Rule::LegacyKeyValueFormat, message);
    }

    /// A variable that `keyword` (`ARG` or `ENV`) sets.
    pub(super) fn variable_name(&mut self, keyword: &str, name: &str) {
        if is_secret(name) {
            let message =
                format!("Do not use ARG or ENV instructions for sensitive data ({keyword} {})", quote(name));
            self.report(Rule::SecretsUsedInArgOrEnv, message);
        }
    }

    /// A relative `WORKDIR`, none before it in the file being absolute.
    pub(super) fn relative_workdir(&mut self, path: &str) {
        let message =
            format!("Relative workdir {} can have unexpected results if the base image changes", quote(path));
        self.report(Rule::WorkdirRelativePath, message);
    }

    /// `CMD` or `ENTRYPOINT` in shell form while no `SHELL` was chosen; `keyword` as written.
    pub(super) fn shell_form(&mut self, keyword: &str) {
        let message = format!(
            "JSON arguments recommended for {keyword} to prevent unintended behavior related to OS signals"
        );
        self.report(Rule::JSONArgsRecommended, message);
    }

    /// A second instruction of which only the last counts; `earlier` is the one that does not.
    pub(super) fn repeated(&mut self, keyword: &str, earlier: Span) {
        let message = format!(
            "Multiple {keyword} instructions should not be used in the same stage because only the last one will be used"
        );
        self.report_at(earlier, Rule::MultipleInstructionsDisallowed, message);
    }

    /// The platform a base turned out to have.
    pub(super) fn base_platform(&mut self, base: &str, expected: &Platform, actual: &Platform) {
        if (&expected.os, &expected.architecture) != (&actual.os, &actual.architecture) {
            let [expected, actual] = [expected, actual].map(|platform| quote(&platform.to_string()));
            let message = format!(
                "Base image {base} was pulled with platform {actual}, expected {expected} for current build"
            );
            self.report(Rule::InvalidBaseImagePlatform, message);
        }
    }

    /// A source that `verb` (`Copy` or `Add`) takes from the build context.
    ///
    /// A list with exclusions is not looked at: whether a directory still holds a file cannot be told.
    pub(super) fn context_source(&mut self, verb: &str, source: &str, ignored: &PatternMatcher) {
        if ignored.is_empty() || ignored.has_exclusions() {
            return;
        }
        let source = stave_llb::pattern::clean(source);
        let everything = |pattern: &str| matches!(pattern, "*" | "**" | "**/*");
        if matches!(source.as_str(), "." | "/")
            && !ignored.patterns().iter().any(|pattern| everything(pattern.as_str()))
        {
            return;
        }
        if ignored.matches(&source) {
            let message =
                format!("Attempting to {verb} file {} that is excluded by .dockerignore", quote(&source));
            self.report(Rule::CopyIgnoredFile, message);
        }
    }

    /// A port with its protocol in another case than lower.
    pub(super) fn port_casing(&mut self, port: &str) {
        let message = format!("Defined protocol '{port}' in EXPOSE instruction should be lowercase");
        self.report(Rule::ExposeProtoCasing, message);
    }

    /// A port with an address or a host port.
    pub(super) fn port_mapping(&mut self, port: &str) {
        let message = format!(
            "EXPOSE instruction should not define an IP address or host-port mapping, found '{port}'"
        );
        self.report(Rule::ExposeInvalidFormat, message);
    }
}

/// Whether a variable of this name is likely to hold a secret: one of the name's parts hints at one and none takes the
/// hint away. The reference's words.
pub fn is_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let has = |words: &[&str]| name.split('_').any(|part| words.contains(&part));
    has(&SECRET_WORDS) && !has(&HARMLESS_WORDS)
}

impl Checks {
    /// The error of a build that must not have findings.
    pub(crate) fn verdict(&self, findings: &[Diagnostic]) -> Option<String> {
        if !self.fail || findings.is_empty() {
            return None;
        }
        let mut rules: Vec<&str> = findings
            .iter()
            .filter_map(|finding| match finding.code {
                crate::Code::Check(rule) => Some(rule.name()),
                _ => None,
            })
            .collect();
        rules.sort_unstable();
        rules.dedup();
        Some(format!("lint violation found for rules: {}", rules.join(", ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_told_by_their_words() {
        for name in ["TOKEN", "github_token", "API_KEY", "DB_Password", "AUTH"] {
            assert!(is_secret(name), "{name}");
        }
        for name in ["PUBLIC_KEY", "TOKENS", "PASSWORD_FILE", "KEY_VERSION", "MONKEY"] {
            assert!(!is_secret(name), "{name}");
        }
    }

    #[track_caller]
    fn check(source: &str, patterns: &[&str], expected: bool) {
        let mut found = Vec::new();
        let matcher = PatternMatcher::new(patterns).expect("sound");
        Findings::new(&Checks::default(), &[], Span::default(), &mut found)
            .context_source("Copy", source, &matcher);
        assert_eq!(!found.is_empty(), expected, "{source} in {patterns:?}");
    }

    #[test]
    fn ignored_sources_are_found() {
        check("Dockerfile", &["Dockerfile"], true);
        check("./a/../a/b", &["a"], true);
        check("a", &["*", "!b"], false);
        check(".", &[".*"], false);
        check(".", &["*"], true);
        check("b", &["a"], false);
    }

    #[test]
    fn a_verdict_names_each_rule_once() {
        let mut found = Vec::new();
        let checks = Checks::parse("error=true").expect("sound");
        let mut findings = Findings::new(&checks, &[], Span::default(), &mut found);
        findings.shell_form("CMD");
        findings.shell_form("ENTRYPOINT");
        findings.variable_name("ENV", "TOKEN");
        findings.undefined_variables(["HOEM", "A"], &["A"], &["HOME"]);
        assert_eq!(found[3].message, "Usage of undefined variable '$HOEM' (did you mean $HOME?)");
        let expected =
            "lint violation found for rules: JSONArgsRecommended, SecretsUsedInArgOrEnv, UndefinedVar";
        assert_eq!(checks.verdict(&found).as_deref(), Some(expected));
        assert_eq!(Checks::default().verdict(&found), None);
    }
}
