//! Two keys of one step become the changes between them. Start with [`Comparison::changes`].

use std::collections::BTreeSet;
use std::path::Path;

use stave_cache::{ContentDigest, Field, FieldValue, KeyPreimage};
use stave_frontend_dockerfile::check::is_secret;
use stave_llb::{Definition, Op, SourceIdentifier};
use stave_oci::Digest;
use stave_worker::manifest::Manifest;

use super::change::{Change, HIDDEN, group};
use super::field;
use super::place::parse;
use crate::record::StepRecord;

/// What is compared: this build's step and steps, and the earlier ones'.
pub(super) struct Comparison<'a> {
    pub(super) manifests: &'a Path,
    pub(super) definition: &'a Definition,
    pub(super) this: &'a StepRecord,
    /// The earlier step; `None` when only its keys are known.
    pub(super) step: Option<&'a StepRecord>,
    pub(super) steps: &'a [StepRecord],
    pub(super) before: &'a [StepRecord],
}

impl Comparison<'_> {
    /// What differs between two keys of one kind.
    pub(super) fn changes(&self, new: &KeyPreimage, old: &KeyPreimage) -> Vec<Change> {
        let mut changes = Vec::new();
        let (after, before) = (inputs(new), inputs(old));
        for input in &after {
            let earlier = before.iter().find(|other| text(other, "position") == text(input, "position"));
            if let Some(earlier) = earlier {
                self.input(input, earlier, &mut changes);
            }
        }
        self.operation(new, old, &mut changes);
        // Files and values of this step say more than that a step before it changed.
        changes.sort_by_key(|change| matches!(change, Change::Input { .. }));
        changes
    }

    /// The same when the earlier step's keys are gone: what the records alone tell.
    pub(super) fn without_keys(&self) -> Vec<Change> {
        let mut changes = Vec::new();
        let before = self.step.map(|step| parse(&step.name).2);
        let after = parse(&self.this.name).2;
        match before {
            Some(before) if before != after => changes.push(Change::Instruction { before, after }),
            _ => {}
        }
        for position in 0..self.this.inputs.len() {
            changes.extend(self.changed_input(position));
        }
        changes
    }

    fn input(&self, new: &[Field], old: &[Field], changes: &mut Vec<Change>) {
        let hash = |fields: &[Field], label: &str| match find(fields, label) {
            Some(FieldValue::Hash(text)) => text.parse::<ContentDigest>().ok(),
            _ => None,
        };
        if let (Some(after), Some(before)) = (hash(new, "content"), hash(old, "content")) {
            if after != before {
                changes.extend(self.files(&after, &before));
            }
            return;
        }
        let value = |fields: &[Field]| find(fields, "result").or_else(|| find(fields, "definition")).cloned();
        if value(new) != value(old) {
            let position = text(new, "position").and_then(|text| text.parse().ok()).unwrap_or(0);
            changes.extend(self.changed_input(position));
        }
    }

    fn files(&self, after: &ContentDigest, before: &ContentDigest) -> Vec<Change> {
        let (after, before) = (Manifest::read(self.manifests, after), Manifest::read(self.manifests, before));
        let (Some(after), Some(before)) = (after, before) else { return vec![Change::Content] };
        let changes = after.changes_since(&before);
        // That a directory has another mode or content of its own rarely tells more than its files do.
        if changes.is_empty() { vec![Change::Content] } else { group(&changes) }
    }

    /// The step an input comes from, as a change: another base image, or another result.
    fn changed_input(&self, position: usize) -> Option<Change> {
        let vertex = self.this.inputs.get(position)?;
        let earlier = self.step.and_then(|step| step.inputs.get(position));
        let image = |vertex: &Digest| {
            let op = &self.definition.vertex(vertex)?.op;
            let Op::Source(source) = op else { return None };
            match &source.identifier {
                SourceIdentifier::DockerImage { reference } => Some(reference.to_string()),
                _ => None,
            }
        };
        let name = |steps: &[StepRecord], vertex: &Digest| {
            steps.iter().find(|step| step.vertex.as_ref() == Some(vertex)).map(|step| step.name.clone())
        };
        if let Some(after) = image(vertex) {
            let before = earlier.filter(|earlier| *earlier != vertex).and_then(|e| name(self.before, e));
            let before =
                before.as_deref().and_then(|name| parse(name).2.strip_prefix("FROM ").map(str::to_owned));
            return Some(match before {
                Some(before) => Change::Base { before, after },
                None => Change::Input { step: after },
            });
        }
        let definition = || self.definition.vertex(vertex).and_then(|v| v.name()).map(str::to_owned);
        let step = name(self.steps, vertex).or_else(definition).unwrap_or_else(|| vertex.to_string());
        Some(Change::Input { step: step.replace('\n', " ") })
    }

    fn operation(&self, new: &KeyPreimage, old: &KeyPreimage, changes: &mut Vec<Change>) {
        let (Some(FieldValue::Group(new_op)), Some(FieldValue::Group(old_op))) =
            (field(new, "op"), field(old, "op"))
        else {
            return;
        };
        let (keyed_now, keyed_then) = (find(new_op, "keyed-secrets"), find(old_op, "keyed-secrets"));
        if keyed_now != keyed_then {
            changes.push(Change::Secrets);
        }
        let (new_op, old_op) = (plain(new_op), plain(old_op));
        let before_count = changes.len();
        if let (Some(FieldValue::List(after)), Some(FieldValue::List(before))) =
            (find(new_op, "env"), find(old_op, "env"))
        {
            changes.extend(variables(before, after));
        }
        let instruction = |step: &StepRecord| parse(&step.name).2;
        let renamed = self.step.map(instruction).filter(|before| *before != instruction(self.this));
        let differing = new.changes_since(old);
        let of_op: Vec<_> = differing.iter().filter(|change| is_of_operation(&change.path)).collect();
        if of_op.is_empty() {
            return;
        }
        match renamed {
            Some(before) => changes.insert(
                before_count.min(changes.len()),
                Change::Instruction { before, after: instruction(self.this) },
            ),
            None => changes.extend(of_op.into_iter().map(|change| Change::Field {
                path: bare(&change.path).to_owned(),
                before: change.before.as_ref().map(shown),
                after: change.after.as_ref().map(shown),
            })),
        }
    }
}

/// A path below the operation, without where that is.
fn bare(path: &str) -> &str {
    path.trim_start_matches("op.")
}

/// What is told neither as a variable nor as a secret.
fn is_of_operation(path: &str) -> bool {
    path.starts_with("op.") && bare(path) != "env" && !bare(path).starts_with("keyed-secrets")
}

/// The operation inside one whose secrets count.
fn plain(fields: &[Field]) -> &[Field] {
    match find(fields, "op") {
        Some(FieldValue::Group(inner)) => inner,
        _ => fields,
    }
}

/// Variables that differ, by name; values of those that are likely to hold a secret are not told.
fn variables(before: &[String], after: &[String]) -> Vec<Change> {
    fn value<'l>(list: &'l [String], name: &str) -> Option<&'l str> {
        list.iter()
            .find_map(|pair| pair.split_once('=').filter(|(key, _)| *key == name).map(|(_, value)| value))
    }
    let names: BTreeSet<&str> =
        before.iter().chain(after).filter_map(|pair| pair.split_once('=').map(|(name, _)| name)).collect();
    names
        .into_iter()
        .filter(|name| value(before, name) != value(after, name))
        .map(|name| {
            let told = |value: &str| if is_secret(name) { HIDDEN.to_owned() } else { value.to_owned() };
            let [before, after] = [before, after].map(|list| value(list, name).map(told));
            Change::Variable { name: name.to_owned(), before, after }
        })
        .collect()
}

fn inputs(preimage: &KeyPreimage) -> Vec<&[Field]> {
    match field(preimage, "inputs") {
        Some(FieldValue::Groups(groups)) => groups.iter().map(Vec::as_slice).collect(),
        _ => Vec::new(),
    }
}

fn find<'a>(fields: &'a [Field], label: &str) -> Option<&'a FieldValue> {
    fields.iter().find(|field| field.label == label).map(|field| &field.value)
}

fn text<'a>(fields: &'a [Field], label: &str) -> Option<&'a str> {
    match find(fields, label) {
        Some(FieldValue::Text(text)) => Some(text),
        _ => None,
    }
}

fn shown(value: &FieldValue) -> String {
    match value {
        FieldValue::Absent => "none".to_owned(),
        FieldValue::Text(text) | FieldValue::Hash(text) => text.clone(),
        FieldValue::List(list) => list.join(" "),
        FieldValue::Group(_) | FieldValue::Groups(_) => "…".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_told_by_name() {
        let list = |pairs: &[&str]| pairs.iter().map(|pair| (*pair).to_owned()).collect::<Vec<_>>();
        let changes = variables(&list(&["A=1", "B=2", "C=3"]), &list(&["A=1", "B=x", "D=4"]));
        let text: Vec<String> = changes.iter().map(ToString::to_string).collect();
        assert_eq!(text, ["B changed: `2` → `x`", "C is not set any more: was `3`", "D is set now: `4`"]);
        let changes = variables(&list(&["NPM_TOKEN=1", "A=1"]), &list(&["NPM_TOKEN=2", "API_KEY=3", "A=1"]));
        let text: Vec<String> = changes.iter().map(ToString::to_string).collect();
        assert_eq!(text, ["API_KEY is set now: `***`", "NPM_TOKEN changed: `***` → `***`"]);
    }
}
