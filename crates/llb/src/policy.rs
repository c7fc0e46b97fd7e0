//! Source policies: rules that allow, deny or replace what a build is made from.
//!
//! Owns what a rule matches and what it does, which are BuildKit's: of the rules of one policy that allow or deny, the
//! last that matches counts; one that replaces begins the policies anew with what it made. Must not know where rules
//! come from beyond their JSON form, nor fetch anything. Start with [`SourcePolicies::evaluate`].

mod json;
mod spelling;

use std::collections::BTreeMap;

use regex::{Regex, RegexBuilder};

use crate::definition::Definition;
use crate::source::SourceOp;
use spelling::Spellings;

/// How often one source may be replaced.
const MAX_CONVERSIONS: usize = 20;
/// Most rules of all policies of a build together.
pub const MAX_RULES: usize = 10_000;
/// Most policies of a build.
pub const MAX_POLICIES: usize = 1000;
/// Most patterns in all policies of a build together: each is compiled.
pub const MAX_PATTERNS: usize = 500;
/// Bytes that one pattern may take when it is ready to be matched.
const MAX_PATTERN: usize = 256 << 10;
/// Most bytes of an identifier, a pattern, and what takes a source's place.
const MAX_IDENTIFIER: usize = 4 << 10;
/// Most attributes that one rule looks at.
const MAX_CONSTRAINTS: usize = 64;

/// The policies of one build, in their order.
#[derive(Debug, Clone, Default)]
pub struct SourcePolicies(Vec<SourcePolicy>);

/// One policy.
#[derive(Debug, Clone, Default)]
pub struct SourcePolicy {
    rules: Vec<Rule>,
    /// How many patterns they have.
    patterns: usize,
}

/// One rule: what it is about, and what it does.
#[derive(Debug, Clone)]
struct Rule {
    selector: Selector,
    action: Action,
}

/// A rule as it is written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RuleSpec {
    /// What it does.
    pub action: PolicyAction,
    /// Which identifiers it is about.
    pub identifier: String,
    /// How these are compared.
    pub match_type: MatchType,
    /// What the attributes must be besides: name, value, and how they are compared.
    pub constraints: Vec<(String, String, AttrMatch)>,
    /// What takes the source's place: an identifier, empty for the selector's own, and attributes.
    pub updates: Option<(String, BTreeMap<String, String>)>,
}

/// What a rule does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum PolicyAction {
    /// The source may be used.
    #[default]
    Allow,
    /// It may not.
    Deny,
    /// Another takes its place.
    Convert,
}

/// How identifiers are compared.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum MatchType {
    /// `*` stands for anything; each is a group.
    #[default]
    Wildcard,
    /// Letter by letter.
    Exact,
    /// A regular expression that matches somewhere.
    Regex,
}

/// How attributes are compared.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum AttrMatch {
    /// It has the value.
    #[default]
    Equal,
    /// It has another.
    NotEqual,
    /// It matches the value, a regular expression.
    Matches,
}

#[derive(Debug, Clone)]
struct Selector {
    identifier: String,
    pattern: Pattern,
    constraints: Vec<(String, Condition)>,
}

#[derive(Debug, Clone)]
enum Pattern {
    Exact,
    Wildcard(Regex),
    Regex(Regex),
}

#[derive(Debug, Clone)]
enum Condition {
    Equal(String),
    NotEqual(String),
    Matches(Regex),
}

#[derive(Debug, Clone)]
enum Action {
    Allow,
    Deny,
    Convert { identifier: String, attrs: BTreeMap<String, String> },
}

/// Why a source may not be used, or a policy makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// A rule says so.
    #[error("source {0:?} denied by policy: source denied by policy")]
    Denied(String),
    /// Rules that replace what others made, without an end.
    #[error("too many mutations on a single source: too many operations")]
    TooManyConversions,
    /// A replacement without what to replace it with.
    #[error("error mutating source policy: missing destination for convert rule")]
    NoDestination,
    /// A pattern that is none.
    #[error("error matching source policy: invalid pattern {pattern:?}: {fault}")]
    Pattern {
        /// Which.
        pattern: String,
        /// What is wrong.
        fault: String,
    },
    /// Too many rules.
    #[error("more than {MAX_RULES} rules in the source policies")]
    TooManyRules,
    /// Too many policies.
    #[error("more than {MAX_POLICIES} source policies")]
    TooManyPolicies,
    /// Too many patterns.
    #[error("more than {MAX_PATTERNS} patterns in the source policies")]
    TooManyPatterns,
    /// Too many conditions on one source.
    #[error("more than {MAX_CONSTRAINTS} constraints in a rule of the source policies")]
    TooManyConstraints,
    /// A rule, a source, or what a rule makes of one, that is too long.
    #[error("an identifier of more than {MAX_IDENTIFIER} bytes under source policies")]
    TooLong,
    /// Text that is no policy.
    #[error("{0}")]
    Form(String),
}

impl SourcePolicies {
    /// Policies in their order.
    ///
    /// # Errors
    /// When they are too many, or have too many rules or patterns.
    pub fn new(policies: Vec<SourcePolicy>) -> Result<Self, PolicyError> {
        let sum = |count: fn(&SourcePolicy) -> usize| policies.iter().map(count).sum::<usize>();
        within_bounds(policies.len(), sum(|policy| policy.rules.len()), sum(|policy| policy.patterns))?;
        Ok(Self(policies))
    }

    /// These, and others after them.
    ///
    /// # Errors
    /// As for [`Self::new`].
    pub fn and(&self, others: Vec<SourcePolicy>) -> Result<Self, PolicyError> {
        Self::new(self.0.iter().cloned().chain(others).collect())
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|policy| policy.rules.is_empty())
    }

    /// What takes the place of a source; `None` where it stays.
    ///
    /// # Errors
    /// [`PolicyError::Denied`], rules that have no end, or a source that is too long to be held against them.
    pub fn evaluate(&self, source: &SourceOp) -> Result<Option<SourceOp>, PolicyError> {
        if self.is_empty() {
            return Ok(None);
        }
        let mut replaced: Option<SourceOp> = None;
        for _ in 0..=MAX_CONVERSIONS {
            let now = replaced.as_ref().unwrap_or(source);
            // What one rule makes can be many times as long as what it was made of, and is made from again.
            if spelling::length(now) > MAX_IDENTIFIER {
                return Err(PolicyError::TooLong);
            }
            let spellings = Spellings::of(now);
            let mut next = None;
            for policy in &self.0 {
                next = policy.evaluate(now, &spellings)?;
                if next.is_some() {
                    break;
                }
            }
            match next {
                Some(next) => replaced = Some(next),
                None => return Ok(replaced),
            }
        }
        Err(PolicyError::TooManyConversions)
    }

    /// A graph with what takes the place of its sources.
    ///
    /// # Errors
    /// As for [`Self::evaluate`].
    pub fn apply(&self, definition: &Definition) -> Result<Definition, PolicyError> {
        match self.is_empty() {
            true => Ok(definition.clone()),
            false => definition.with_sources(&mut |source| self.evaluate(source)),
        }
    }
}

impl SourcePolicy {
    /// A policy of these rules.
    ///
    /// # Errors
    /// For rules that are too many or too long, and patterns that are none.
    pub fn new(rules: Vec<RuleSpec>) -> Result<Self, PolicyError> {
        let patterns = rules.iter().map(RuleSpec::patterns).sum();
        within_bounds(1, rules.len(), patterns)?;
        Ok(Self { rules: rules.into_iter().map(Rule::new).collect::<Result<_, _>>()?, patterns })
    }

    /// Policies of these rules, each of its own; they are counted together before any pattern is compiled.
    ///
    /// # Errors
    /// As for [`Self::new`] and [`SourcePolicies::new`].
    pub fn several(policies: Vec<Vec<RuleSpec>>) -> Result<Vec<Self>, PolicyError> {
        let rules = policies.iter().map(Vec::len).sum();
        within_bounds(policies.len(), rules, policies.iter().flatten().map(RuleSpec::patterns).sum())?;
        policies.into_iter().map(Self::new).collect()
    }

    /// What the first rule that replaces makes of a source, else `None`.
    fn evaluate(&self, source: &SourceOp, spellings: &Spellings) -> Result<Option<SourceOp>, PolicyError> {
        let mut is_denied = false;
        for Rule { selector, action } in &self.rules {
            if !selector.constraints_hold(source) {
                continue;
            }
            match action {
                Action::Allow => is_denied &= selector.find(spellings.meant()).is_none(),
                Action::Deny => is_denied |= selector.find(spellings.all()).is_some(),
                Action::Convert { identifier, attrs } => {
                    let Some(found) = selector.find(spellings.all()) else { continue };
                    let converted = selector.convert((source, found), identifier, attrs);
                    if converted != *source {
                        return Ok(Some(converted));
                    }
                }
            }
        }
        match is_denied {
            true => Err(PolicyError::Denied(source.shown())),
            false => Ok(None),
        }
    }
}

fn within_bounds(policies: usize, rules: usize, patterns: usize) -> Result<(), PolicyError> {
    match (policies > MAX_POLICIES, rules > MAX_RULES, patterns > MAX_PATTERNS) {
        (true, ..) => Err(PolicyError::TooManyPolicies),
        (_, true, _) => Err(PolicyError::TooManyRules),
        (.., true) => Err(PolicyError::TooManyPatterns),
        _ => Ok(()),
    }
}

impl RuleSpec {
    /// How many patterns are compiled for it.
    fn patterns(&self) -> usize {
        let is_pattern = match self.match_type {
            MatchType::Exact => false,
            MatchType::Regex => true,
            MatchType::Wildcard => !self.is_plain(),
        };
        let constraints = self.constraints.iter().filter(|(.., how)| *how == AttrMatch::Matches).count();
        constraints + usize::from(is_pattern)
    }

    /// Whether a wildcard is a text that stands for itself, and nothing refers to its groups.
    fn is_plain(&self) -> bool {
        let expands = self.updates.as_ref().is_some_and(|(to, _)| to.contains('$'));
        !self.identifier.contains('*') && !expands
    }

    fn is_too_long(&self) -> bool {
        let to = self.updates.as_ref().map_or(0, |(to, _)| to.len());
        let constraints = self.constraints.iter();
        let patterns =
            constraints.filter(|(.., how)| *how == AttrMatch::Matches).map(|(_, value, _)| value.len());
        patterns.chain([to, self.identifier.len()]).any(|length| length > MAX_IDENTIFIER)
    }
}

impl Rule {
    fn new(spec: RuleSpec) -> Result<Self, PolicyError> {
        if spec.constraints.len() > MAX_CONSTRAINTS {
            return Err(PolicyError::TooManyConstraints);
        }
        if spec.is_too_long() {
            return Err(PolicyError::TooLong);
        }
        let pattern = match spec.match_type {
            MatchType::Wildcard if spec.is_plain() => Pattern::Exact,
            MatchType::Exact => Pattern::Exact,
            MatchType::Regex => Pattern::Regex(compiled(&spec.identifier)?),
            MatchType::Wildcard => Pattern::Wildcard(wildcard(&spec.identifier)?),
        };
        let condition = |(name, value, how): (String, String, AttrMatch)| {
            let condition = match how {
                AttrMatch::Equal => Condition::Equal(value),
                AttrMatch::NotEqual => Condition::NotEqual(value),
                AttrMatch::Matches => Condition::Matches(compiled(&value)?),
            };
            Ok((name, condition))
        };
        let constraints = spec.constraints.into_iter().map(condition).collect::<Result<_, _>>()?;
        let action = match (spec.action, spec.updates) {
            (PolicyAction::Allow, _) => Action::Allow,
            (PolicyAction::Deny, _) => Action::Deny,
            (PolicyAction::Convert, None) => return Err(PolicyError::NoDestination),
            (PolicyAction::Convert, Some((identifier, attrs))) => Action::Convert { identifier, attrs },
        };
        Ok(Self { selector: Selector { identifier: spec.identifier, pattern, constraints }, action })
    }
}

impl Selector {
    fn constraints_hold(&self, source: &SourceOp) -> bool {
        let attribute = |name: &str| source.attrs.get(name).map_or("", String::as_str);
        let holds = |(name, condition): &(String, Condition)| match condition {
            Condition::Equal(value) => attribute(name) == value,
            Condition::NotEqual(value) => attribute(name) != value,
            Condition::Matches(pattern) => pattern.is_match(attribute(name)),
        };
        self.constraints.iter().all(holds)
    }

    /// The first identifier that it is about.
    fn find<'a>(&self, mut identifiers: impl Iterator<Item = &'a str>) -> Option<&'a str> {
        identifiers.find(|identifier| {
            self.identifier == *identifier
                || match &self.pattern {
                    Pattern::Exact => false,
                    Pattern::Wildcard(pattern) | Pattern::Regex(pattern) => pattern.is_match(identifier),
                }
        })
    }

    /// The source with another identifier than the one that was found, in which `$1` and its like are what the
    /// pattern found.
    fn convert(
        &self,
        (source, found): (&SourceOp, &str),
        to: &str,
        attrs: &BTreeMap<String, String>,
    ) -> SourceOp {
        let to = if to.is_empty() { &self.identifier } else { to };
        let identifier = match &self.pattern {
            Pattern::Exact => to.to_owned(),
            Pattern::Regex(pattern) => pattern.replace_all(found, to).into_owned(),
            Pattern::Wildcard(pattern) => match pattern.captures(found) {
                None => source.raw.clone(),
                Some(groups) => {
                    let mut identifier = String::new();
                    groups.expand(to, &mut identifier);
                    identifier
                }
            },
        };
        let mut all = source.attrs.clone();
        all.extend(attrs.clone());
        SourceOp::new(if identifier.is_empty() { source.raw.clone() } else { identifier }, all)
    }
}

fn compiled(pattern: &str) -> Result<Regex, PolicyError> {
    let failed = |error: regex::Error| PolicyError::Pattern {
        pattern: pattern.chars().take(200).collect(),
        fault: error.to_string(),
    };
    RegexBuilder::new(pattern).size_limit(MAX_PATTERN).dfa_size_limit(MAX_PATTERN).build().map_err(failed)
}

/// `*` stands for anything, and everything else for itself.
fn wildcard(text: &str) -> Result<Regex, PolicyError> {
    if text.contains("**") {
        let fault = "invalid wildcard: \"**\"".to_owned();
        return Err(PolicyError::Pattern { pattern: text.chars().take(200).collect(), fault });
    }
    let parts: Vec<String> = text.split('*').map(regex::escape).collect();
    compiled(&format!("(?s)^{}$", parts.join("(.*)")))
}

#[cfg(test)]
mod tests;
