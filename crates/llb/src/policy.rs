//! Source policies: rules that allow, deny or replace what a build is made from.
//!
//! Owns what a rule matches and what it does, which are BuildKit's: of the rules of one policy that allow or deny, the
//! last that matches counts; one that replaces begins the policies anew with what it made. Must not know where rules
//! come from beyond their JSON form, nor fetch anything. Start with [`SourcePolicies::evaluate`].

mod json;

use std::collections::BTreeMap;

use regex::{Regex, RegexBuilder};

use crate::definition::Definition;
use crate::source::SourceOp;

/// How often one source may be replaced.
const MAX_CONVERSIONS: usize = 20;
/// Most rules of all policies of a build together.
pub const MAX_RULES: usize = 10_000;
/// Bytes that one pattern may take when it is ready to be matched.
const MAX_PATTERN: usize = 1 << 20;

/// The policies of one build, in their order.
#[derive(Debug, Clone, Default)]
pub struct SourcePolicies(Vec<SourcePolicy>);

/// One policy.
#[derive(Debug, Clone, Default)]
pub struct SourcePolicy {
    rules: Vec<Rule>,
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
    /// Text that is no policy.
    #[error("{0}")]
    Form(String),
}

impl SourcePolicies {
    /// Policies in their order.
    ///
    /// # Errors
    /// When they have too many rules.
    pub fn new(policies: Vec<SourcePolicy>) -> Result<Self, PolicyError> {
        match policies.iter().map(|policy| policy.rules.len()).sum::<usize>() > MAX_RULES {
            true => Err(PolicyError::TooManyRules),
            false => Ok(Self(policies)),
        }
    }

    /// These, and others after them.
    ///
    /// # Errors
    /// When they have too many rules together.
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
    /// [`PolicyError::Denied`], or rules that have no end.
    pub fn evaluate(&self, source: &SourceOp) -> Result<Option<SourceOp>, PolicyError> {
        let mut replaced: Option<SourceOp> = None;
        for _ in 0..=MAX_CONVERSIONS {
            let now = replaced.as_ref().unwrap_or(source);
            let mut next = None;
            for policy in &self.0 {
                next = policy.evaluate(now)?;
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
    /// For patterns that are none.
    pub fn new(rules: Vec<RuleSpec>) -> Result<Self, PolicyError> {
        if rules.len() > MAX_RULES {
            return Err(PolicyError::TooManyRules);
        }
        Ok(Self { rules: rules.into_iter().map(Rule::new).collect::<Result<_, _>>()? })
    }

    /// What the first rule that replaces makes of a source, else `None`.
    fn evaluate(&self, source: &SourceOp) -> Result<Option<SourceOp>, PolicyError> {
        let mut is_denied = false;
        for rule in self.rules.iter().filter(|rule| rule.selector.matches(source)) {
            match &rule.action {
                Action::Allow => is_denied = false,
                Action::Deny => is_denied = true,
                Action::Convert { identifier, attrs } => {
                    let converted = rule.selector.convert(source, identifier, attrs);
                    if converted != *source {
                        return Ok(Some(converted));
                    }
                }
            }
        }
        match is_denied {
            true => Err(PolicyError::Denied(source.raw.clone())),
            false => Ok(None),
        }
    }
}

impl Rule {
    fn new(spec: RuleSpec) -> Result<Self, PolicyError> {
        let pattern = match spec.match_type {
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
    fn matches(&self, source: &SourceOp) -> bool {
        let attribute = |name: &str| source.attrs.get(name).map_or("", String::as_str);
        let holds = |(name, condition): &(String, Condition)| match condition {
            Condition::Equal(value) => attribute(name) == value,
            Condition::NotEqual(value) => attribute(name) != value,
            Condition::Matches(pattern) => pattern.is_match(attribute(name)),
        };
        self.constraints.iter().all(holds)
            && (self.identifier == source.raw
                || match &self.pattern {
                    Pattern::Exact => false,
                    Pattern::Wildcard(pattern) | Pattern::Regex(pattern) => pattern.is_match(&source.raw),
                })
    }

    /// The source with another identifier, in which `$1` and its like are what the pattern found.
    fn convert(&self, source: &SourceOp, to: &str, attrs: &BTreeMap<String, String>) -> SourceOp {
        let to = if to.is_empty() { &self.identifier } else { to };
        let identifier = match &self.pattern {
            Pattern::Exact => to.to_owned(),
            Pattern::Regex(pattern) => pattern.replace_all(&source.raw, to).into_owned(),
            Pattern::Wildcard(pattern) => match pattern.captures(&source.raw) {
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
    RegexBuilder::new(pattern).size_limit(MAX_PATTERN).build().map_err(failed)
}

/// `*` stands for anything, and everything else for itself.
fn wildcard(text: &str) -> Result<Regex, PolicyError> {
    if text.contains("**") {
        let fault = "invalid wildcard: \"**\"".to_owned();
        return Err(PolicyError::Pattern { pattern: text.chars().take(200).collect(), fault });
    }
    let parts: Vec<String> = text.split('*').map(regex::escape).collect();
    compiled(&format!("^{}$", parts.join("(.*)")))
}

#[cfg(test)]
mod tests;
