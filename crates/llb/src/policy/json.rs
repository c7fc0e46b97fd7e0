//! Policies as JSON, as BuildKit's clients read them from files: names of fields without regard to case and to `_`,
//! names or numbers for what is one of several.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::{AttrMatch, MatchType, PolicyAction, PolicyError, RuleSpec, SourcePolicy};

impl SourcePolicy {
    /// Reads the rules of a policy.
    ///
    /// # Errors
    /// For text that is no policy, and what a rule may not be.
    pub fn rules_of_json(text: &str) -> Result<Vec<RuleSpec>, PolicyError> {
        let value: Value = serde_json::from_str(text).map_err(|error| form(error.to_string()))?;
        let whole = object(&value, "policy")?;
        match field(whole, "rules") {
            None | Some(Value::Null) => Ok(Vec::new()),
            Some(Value::Array(rules)) => rules.iter().map(rule).collect(),
            Some(_) => Err(form("`rules` is not a list".to_owned())),
        }
    }
}

fn form(words: String) -> PolicyError {
    PolicyError::Form(words)
}

fn object<'a>(value: &'a Value, what: &str) -> Result<&'a Map<String, Value>, PolicyError> {
    value.as_object().ok_or_else(|| match value {
        Value::Null => form(format!("invalid nil {what} in policy")),
        _ => form(format!("a {what} is not an object")),
    })
}

/// Go takes a field by its name in any case.
fn field<'a>(of: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    let is_it = |key: &str| key.replace('_', "").eq_ignore_ascii_case(name);
    of.iter().find(|(key, _)| is_it(key)).map(|(_, value)| value)
}

fn text(of: &Map<String, Value>, name: &str) -> Result<String, PolicyError> {
    match field(of, name) {
        None | Some(Value::Null) => Ok(String::new()),
        Some(Value::String(text)) => Ok(text.clone()),
        Some(_) => Err(form(format!("`{name}` is not a text"))),
    }
}

/// One of several, by name or by number; the first where nothing is said.
fn one_of<T: Copy + Default>(
    of: &Map<String, Value>,
    name: &str,
    known: &[(&str, T)],
) -> Result<T, PolicyError> {
    let found = match field(of, name) {
        None | Some(Value::Null) => return Ok(T::default()),
        Some(Value::String(text)) => known.iter().find(|(known, _)| *known == text),
        Some(value) => value.as_u64().and_then(|at| known.get(usize::try_from(at).ok()?)),
    };
    found.map(|(_, known)| *known).ok_or_else(|| form(format!("invalid value of `{name}` in the policy")))
}

fn attributes(value: Option<&Value>) -> Result<BTreeMap<String, String>, PolicyError> {
    let Some(value) = value.filter(|value| !value.is_null()) else { return Ok(BTreeMap::new()) };
    let of = object(value, "list of attributes")?;
    of.keys()
        .map(|key| match &of[key] {
            Value::String(text) => Ok((key.clone(), text.clone())),
            _ => Err(form(format!("the attribute `{key}` is not a text"))),
        })
        .collect()
}

fn rule(value: &Value) -> Result<RuleSpec, PolicyError> {
    let rule = object(value, "rule")?;
    let selector = object(field(rule, "selector").unwrap_or(&Value::Null), "selector")?;
    let constraints = match field(selector, "constraints") {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::Array(all)) => all.iter().map(constraint).collect::<Result<_, _>>()?,
        Some(_) => return Err(form("`constraints` is not a list".to_owned())),
    };
    let updates = match field(rule, "updates").filter(|value| !value.is_null()) {
        None => None,
        Some(value) => {
            let updates = object(value, "update")?;
            Some((text(updates, "identifier")?, attributes(field(updates, "attrs"))?))
        }
    };
    let actions =
        [("ALLOW", PolicyAction::Allow), ("DENY", PolicyAction::Deny), ("CONVERT", PolicyAction::Convert)];
    let types = [("WILDCARD", MatchType::Wildcard), ("EXACT", MatchType::Exact), ("REGEX", MatchType::Regex)];
    Ok(RuleSpec {
        action: one_of(rule, "action", &actions)?,
        identifier: text(selector, "identifier")?,
        match_type: one_of(selector, "matchtype", &types)?,
        constraints,
        updates,
    })
}

fn constraint(value: &Value) -> Result<(String, String, AttrMatch), PolicyError> {
    let constraint = object(value, "constraint")?;
    let conditions =
        [("EQUAL", AttrMatch::Equal), ("NOTEQUAL", AttrMatch::NotEqual), ("MATCHES", AttrMatch::Matches)];
    Ok((text(constraint, "key")?, text(constraint, "value")?, one_of(constraint, "condition", &conditions)?))
}
