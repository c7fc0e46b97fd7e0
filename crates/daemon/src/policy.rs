//! Source policies as clients send them. Start with [`of_messages`]; what rules do is the graph's affair.

use bollard_buildkit_proto::moby::buildkit::v1::sourcepolicy as wire;
use stave_llb::policy::{
    AttrMatch, MAX_POLICIES, MAX_RULES, MatchType, PolicyAction, PolicyError, RuleSpec, SourcePolicy,
};

use crate::failure::Failure;

/// Policies of a client, in their order.
pub(crate) fn of_messages(policies: Vec<wire::Policy>) -> Result<Vec<SourcePolicy>, Failure> {
    // Before anything is made of them.
    if policies.len() > MAX_POLICIES {
        return Err(PolicyError::TooManyPolicies.into());
    }
    if policies.iter().map(|policy| policy.rules.len()).sum::<usize>() > MAX_RULES {
        return Err(PolicyError::TooManyRules.into());
    }
    let rules = policies.into_iter().map(|policy| policy.rules.into_iter().map(rule).collect());
    Ok(SourcePolicy::several(rules.collect::<Result<_, Failure>>()?)?)
}

fn rule(rule: wire::Rule) -> Result<RuleSpec, Failure> {
    let unknown = |what: &str, value: i32| Failure::Value(format!("unknown {what} in policy: {value}"));
    let nil = || Failure::Value("invalid nil selector in policy".to_owned());
    let selector = rule.selector.ok_or_else(nil)?;
    let constraint = |constraint: wire::AttrConstraint| {
        let condition = match wire::AttrMatch::try_from(constraint.condition) {
            Ok(wire::AttrMatch::Equal) => AttrMatch::Equal,
            Ok(wire::AttrMatch::Notequal) => AttrMatch::NotEqual,
            Ok(wire::AttrMatch::Matches) => AttrMatch::Matches,
            Err(_) => return Err(unknown("attr condition", constraint.condition)),
        };
        Ok((constraint.key, constraint.value, condition))
    };
    Ok(RuleSpec {
        action: match wire::PolicyAction::try_from(rule.action) {
            Ok(wire::PolicyAction::Allow) => PolicyAction::Allow,
            Ok(wire::PolicyAction::Deny) => PolicyAction::Deny,
            Ok(wire::PolicyAction::Convert) => PolicyAction::Convert,
            Err(_) => return Err(Failure::Value(format!("unknown type {} of policy action", rule.action))),
        },
        match_type: match wire::MatchType::try_from(selector.match_type) {
            Ok(wire::MatchType::Wildcard) => MatchType::Wildcard,
            Ok(wire::MatchType::Exact) => MatchType::Exact,
            Ok(wire::MatchType::Regex) => MatchType::Regex,
            Err(_) => return Err(unknown("match type", selector.match_type)),
        },
        identifier: selector.identifier,
        constraints: selector.constraints.into_iter().map(constraint).collect::<Result<_, _>>()?,
        updates: rule.updates.map(|updates| (updates.identifier, updates.attrs.into_iter().collect())),
    })
}

/// A policy for a daemon.
pub(crate) fn to_message(rules: &[RuleSpec]) -> wire::Policy {
    let constraint = |(key, value, condition): &(String, String, AttrMatch)| wire::AttrConstraint {
        key: key.clone(),
        value: value.clone(),
        condition: match condition {
            AttrMatch::Equal => wire::AttrMatch::Equal,
            AttrMatch::NotEqual => wire::AttrMatch::Notequal,
            AttrMatch::Matches => wire::AttrMatch::Matches,
        }
        .into(),
    };
    let rule = |rule: &RuleSpec| wire::Rule {
        action: match rule.action {
            PolicyAction::Allow => wire::PolicyAction::Allow,
            PolicyAction::Deny => wire::PolicyAction::Deny,
            PolicyAction::Convert => wire::PolicyAction::Convert,
        }
        .into(),
        selector: Some(wire::Selector {
            identifier: rule.identifier.clone(),
            match_type: match rule.match_type {
                MatchType::Wildcard => wire::MatchType::Wildcard,
                MatchType::Exact => wire::MatchType::Exact,
                MatchType::Regex => wire::MatchType::Regex,
            }
            .into(),
            constraints: rule.constraints.iter().map(constraint).collect(),
        }),
        updates: rule.updates.as_ref().map(|(identifier, attrs)| wire::Update {
            identifier: identifier.clone(),
            attrs: attrs.clone().into_iter().collect(),
        }),
    };
    wire::Policy { version: 1, rules: rules.iter().map(rule).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sent_is_what_is_read() {
        let text = r#"{"rules":[{"action":"CONVERT","selector":{"identifier":"a*","match_type":"REGEX",
            "constraints":[{"key":"k","value":"v","condition":"MATCHES"}]},
            "updates":{"identifier":"b","attrs":{"c":"d"}}},{"action":"DENY","selector":{"identifier":"x"}}]}"#;
        let rules = SourcePolicy::rules_of_json(text).expect("rules");
        let read: Vec<RuleSpec> =
            to_message(&rules).rules.into_iter().map(|one| rule(one).expect("a rule")).collect();
        assert_eq!(read, rules);
        let many = wire::Policy { version: 1, rules: vec![wire::Rule::default(); MAX_RULES / 2 + 1] };
        let many = of_messages(vec![many.clone(), many]).expect_err("is refused");
        assert!(matches!(many, Failure::Policy(PolicyError::TooManyRules)), "{many}");
        let broken = wire::Rule { selector: None, ..wire::Rule::default() };
        assert_eq!(rule(broken).expect_err("is refused").to_string(), "invalid nil selector in policy");
    }
}
