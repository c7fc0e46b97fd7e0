//! Which paths of a tree take part: include patterns, then exclude patterns with `!` exceptions.
//! Owns the rule when a directory that is not wanted itself must still be walked. Must not know files: paths and
//! kinds come in, verdicts go out. Read [`Filter`] first.

use stave_llb::pattern::{DirectoryMatches, PatternError, PatternMatcher};

/// Patterns over slash-separated paths relative to the root of a scan.
#[derive(Debug, Default)]
pub(crate) struct Filter {
    include: Option<PatternMatcher>,
    exclude: Option<PatternMatcher>,
}

/// How far the parents of a path matched; what a child inherits.
#[derive(Debug, Clone, Default)]
pub(crate) struct FilterState {
    include: DirectoryMatches,
    exclude: DirectoryMatches,
}

/// The answer for one path.
#[derive(Debug)]
pub(crate) struct Verdict {
    /// Takes part itself.
    pub selected: bool,
    /// Something below may take part.
    pub descend: bool,
    /// For the children.
    pub state: FilterState,
}

impl Filter {
    /// Lets everything through.
    pub(crate) fn all() -> Self {
        Self::default()
    }

    /// Lets through what matches an include pattern (all, without any) and is not excluded.
    pub(crate) fn new(include: &[String], exclude: &[String]) -> Result<Self, PatternError> {
        let compile = |patterns: &[String]| -> Result<Option<PatternMatcher>, PatternError> {
            let matcher = PatternMatcher::new(patterns.iter().map(|pattern| relative(pattern)))?;
            Ok((!matcher.is_empty()).then_some(matcher))
        };
        Ok(Self { include: compile(include)?, exclude: compile(exclude)? })
    }

    /// Whether everything passes.
    pub(crate) fn is_all(&self) -> bool {
        self.include.is_none() && self.exclude.is_none()
    }

    /// Judges a path given the state of its parent directory.
    pub(crate) fn judge(&self, path: &str, is_dir: bool, parent: &FilterState) -> Verdict {
        if self.is_all() {
            return Verdict { selected: true, descend: is_dir, state: FilterState::default() };
        }
        let mut state = FilterState::default();
        let (mut included, mut included_below) = (true, true);
        if let Some(matcher) = &self.include {
            (included, state.include) = matcher.matches_within(path, &parent.include);
            included_below = included || (is_dir && matcher.match_below(path));
        }
        let (mut excluded, mut passed_below) = (false, true);
        if let Some(matcher) = &self.exclude {
            (excluded, state.exclude) = matcher.matches_within(path, &parent.exclude);
            // A walk enters what is excluded only for an exception that can be inside.
            passed_below = !excluded || (is_dir && matcher.exclusion_below(path));
        }
        Verdict { selected: included && !excluded, descend: is_dir && included_below && passed_below, state }
    }
}

/// Patterns count from the root of the tree, whether they say so or not.
fn relative(pattern: &str) -> String {
    match pattern.strip_prefix('!') {
        Some(rest) => format!("!{}", rest.trim_start_matches('/')),
        None => pattern.trim_start_matches('/').to_owned(),
    }
}
