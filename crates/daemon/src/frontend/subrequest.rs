//! Questions about a Dockerfile that are asked instead of a build: its checks, parameters and targets.
//!
//! Owns the questions' names and the JSON and text of the answers, which are BuildKit's. Must not know how anything is
//! found out. Start with [`answer`].

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};
use stave_engine::{BuildError, PullPolicy};
use stave_frontend_dockerfile::check::Rule;
use stave_frontend_dockerfile::outline::{Needed, Outline, OutlineArgument};
use stave_frontend_dockerfile::source::Lines;
use stave_frontend_dockerfile::{
    CheckReport, Diagnostic, Dockerfile, PlanError, PlanRequest, ResolvedSources, Source, Span, Target,
    outline, parse, plan, targets,
};

use crate::build::Build;
use crate::failure::Failure;
use crate::outcome::Outcome;

const VERSION: &str = "1.0.0";
const CHECK: &str = "frontend.lint";
const OUTLINE: &str = "frontend.outline";
const TARGETS: &str = "frontend.targets";
const DESCRIBE: &str = "frontend.subrequests.describe";
/// Most lines of one place that are told.
const MAX_LINES: u32 = 1000;

/// Answers a question about `source`.
pub(super) async fn answer(
    build: &Build,
    question: &str,
    source: &Source,
    request: &PlanRequest,
    pull: PullPolicy,
) -> Result<Outcome, Failure> {
    match question {
        DESCRIBE => Ok(metadata(&description(), String::new())),
        TARGETS => {
            let found = targets(&sound(source)?);
            let text = found.iter().map(target_line).collect();
            let all: Vec<Value> = found.iter().map(target).collect();
            Ok(metadata(&json!({ "targets": all, "sources": [encoded(source)] }), text))
        }
        OUTLINE => {
            let planned = plan(&sound(source)?, request)
                .and_then(|plan| plan.with_triggers(&ResolvedSources::default()))
                .map_err(|error| failed(error, source))?;
            let found = outline(&planned);
            Ok(metadata(&parameters(&found, source), outline_text(&found)))
        }
        CHECK => {
            let report = check(build, source, request, pull).await?;
            let status = u8::from(!report.is_clean());
            let mut outcome = metadata(&findings(&report, source), check_text(&report, source));
            outcome.metadata.insert("result.statuscode".to_owned(), status.to_string().into_bytes());
            Ok(outcome)
        }
        other => Err(Failure::Subrequest(other.chars().take(100).collect())),
    }
}

fn metadata(value: &Value, text: String) -> Outcome {
    let mut outcome = Outcome::default();
    let json = serde_json::to_vec_pretty(value).unwrap_or_default();
    outcome.metadata.insert("result.json".to_owned(), json);
    outcome.metadata.insert("result.txt".to_owned(), text.into_bytes());
    outcome.metadata.insert("version".to_owned(), VERSION.into());
    outcome
}

fn description() -> Value {
    let results = json!([{ "Name": "result.json" }, { "Name": "result.txt" }]);
    let request = |name: &str, words: &str, options: Value| {
        json!({
            "Name": name,
            "Version": VERSION,
            "Type": "rpc",
            "Description": words,
            "Opts": options,
            "Metadata": results,
        })
    };
    let target = json!([{ "Name": "target", "Description": "Target build stage" }]);
    json!([
        request(OUTLINE, "List all parameters current build target supports", target),
        request(TARGETS, "List all targets current build supports", json!([])),
        request(CHECK, "Lint a Dockerfile", json!([])),
        request(DESCRIBE, "List available subrequest types", Value::Null),
    ])
}

/// The syntax tree of a file without errors.
fn sound(source: &Source) -> Result<Dockerfile, Failure> {
    let parsed = parse(source);
    match parsed.dockerfile.errors() {
        [] => Ok(parsed.dockerfile),
        errors => Err(failed(PlanError { diagnostics: errors.to_vec() }, source)),
    }
}

fn failed(error: PlanError, source: &Source) -> Failure {
    Failure::of_dockerfile(BuildError::Dockerfile(error.diagnostics), source)
}

/// A file that cannot be built is a result of a check, too.
async fn check(
    build: &Build,
    source: &Source,
    request: &PlanRequest,
    pull: PullPolicy,
) -> Result<CheckReport, Failure> {
    let all_stages = request.target.as_deref().unwrap_or_default().is_empty();
    let request = PlanRequest { all_stages, ..request.clone() };
    match build.parts(None).planned(source, &request, pull).await {
        Ok(planned) => {
            let (plan, sources) = planned.into_plan();
            Ok(CheckReport::of(&plan, &sources))
        }
        Err(BuildError::Dockerfile(diagnostics)) => Ok(CheckReport::of_failure(PlanError { diagnostics })),
        Err(BuildError::Image { image, .. }) => {
            let planned = sound(source).ok().and_then(|dockerfile| plan(&dockerfile, &request).ok());
            let warnings = planned.map(|plan| plan.warnings).unwrap_or_default();
            Ok(CheckReport { warnings, error: Some(*image) })
        }
        Err(error) => Err(Failure::of_dockerfile(error, source)),
    }
}

fn encoded(source: &Source) -> String {
    STANDARD.encode(&source.text)
}

/// One range for each line, as the reference has it.
fn location(first: u32, last: u32) -> Value {
    let last = last.min(first.saturating_add(MAX_LINES - 1));
    let range = |line| json!({ "start": { "line": line }, "end": { "line": line } });
    json!({ "ranges": (first..=last).map(range).collect::<Vec<_>>() })
}

fn of_lines(lines: Lines) -> Value {
    location(lines.first, lines.last)
}

/// First and last line of what a finding is about.
fn lines_of(source: &Source, span: Span) -> Option<(u32, u32)> {
    let first = source.position(span.start).line;
    let last = source.position(span.end.saturating_sub(1)).line.max(first);
    (!span.is_empty()).then_some((first, last))
}

fn of_span(source: &Source, span: Span) -> Value {
    lines_of(source, span).map_or_else(|| json!({}), |(first, last)| location(first, last))
}

/// Fields that are left out when they say nothing, as Go does.
fn object(fields: impl IntoIterator<Item = (&'static str, Value)>) -> Value {
    let says_nothing = |value: &Value| match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty(),
        Value::Array(all) => all.is_empty(),
        _ => false,
    };
    let said = fields.into_iter().filter(|(_, value)| !says_nothing(value));
    Value::Object(said.map(|(name, value)| (name.to_owned(), value)).collect::<Map<_, _>>())
}

fn target(target: &Target) -> Value {
    let mut value = object([
        ("name", json!(target.name)),
        ("default", json!(target.default)),
        ("description", json!(target.description)),
        ("platform", json!(target.platform)),
        ("location", of_lines(target.lines)),
    ]);
    value["base"] = json!(target.base);
    value
}

fn target_line(target: &Target) -> String {
    let name = target.name.as_deref().unwrap_or("(default)");
    let name =
        if target.default && target.name.is_some() { format!("{name} (default)") } else { name.to_owned() };
    format!("{name}\t{}\n", target.description.as_deref().unwrap_or_default())
}

fn parameters(found: &Outline, source: &Source) -> Value {
    let argument = |argument: &OutlineArgument| {
        let mut value = object([
            ("description", json!(argument.description)),
            ("value", json!(argument.value)),
            ("location", of_lines(argument.lines)),
        ]);
        value["name"] = json!(argument.name);
        value
    };
    let needed = |one: &Needed| {
        let mut value = object([("required", json!(one.required)), ("location", of_lines(one.lines))]);
        value["name"] = json!(one.id);
        value
    };
    object([
        ("name", json!(found.name)),
        ("description", json!(found.description)),
        ("args", found.arguments.iter().map(argument).collect()),
        ("secrets", found.secrets.iter().map(needed).collect()),
        ("ssh", found.agents.iter().map(needed).collect()),
        ("sources", json!([encoded(source)])),
    ])
}

fn outline_text(found: &Outline) -> String {
    let mut text = String::new();
    if let Some(name) = &found.name {
        text.push_str(&format!("TARGET:\t{name}\n"));
    }
    if let Some(description) = &found.description {
        text.push_str(&format!("DESCRIPTION:\t{description}\n"));
    }
    for argument in &found.arguments {
        let words = argument.description.as_deref().unwrap_or_default();
        text.push_str(&format!("ARG\t{}\t{}\t{words}\n", argument.name, argument.value));
    }
    for (title, all) in [("SECRET", &found.secrets), ("SSH", &found.agents)] {
        for one in all {
            text.push_str(&format!("{title}\t{}\t{}\n", one.id, if one.required { "required" } else { "" }));
        }
    }
    text
}

fn findings(report: &CheckReport, source: &Source) -> Value {
    let warning = |found: &Diagnostic| {
        let rule = found.rule();
        let mut value = object([
            ("description", json!(rule.map(Rule::description))),
            ("url", json!(rule.and_then(Rule::url))),
            ("detail", json!(found.message)),
            ("location", of_span(source, found.span)),
        ]);
        value["ruleName"] = json!(rule.map_or("", Rule::name));
        value
    };
    let warnings: Vec<Value> = report.warnings.iter().map(warning).collect();
    let mut value = json!({
        "warnings": if warnings.is_empty() { Value::Null } else { json!(warnings) },
        "sources": [{ "filename": source.name, "data": encoded(source), "language": "Dockerfile" }],
    });
    if let Some(error) = &report.error {
        value["buildError"] =
            json!({ "message": error.to_string(), "location": of_span(source, error.span) });
    }
    value
}

fn check_text(report: &CheckReport, source: &Source) -> String {
    let mut text = String::new();
    for found in &report.warnings {
        let rule = found.rule();
        let page = rule.and_then(Rule::url).map_or_else(String::new, |url| format!(" - {url}"));
        text.push_str(&format!("\nWARNING: {}{page}\n{}\n", rule.map_or("", Rule::name), found.message));
        if let Some((first, last)) = lines_of(source, found.span) {
            text.push_str(&format!("{}:{first}\n--------------------\n", source.name));
            let lines = (1..).zip(source.text.lines()).skip_while(|(line, _)| line + 2 < first);
            for (line, words) in lines.take_while(|(line, _)| *line <= last.saturating_add(2)) {
                let mark = if (first..=last).contains(&line) { ">>>" } else { "   " };
                text.push_str(&format!(" {line:3} | {mark} {words}\n"));
            }
            text.push_str("--------------------\n");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source() -> Source {
        Source::new("Dockerfile", "# about A\nARG A=1\nFROM scratch AS first\nFROM first\nCOPY a /\n")
    }

    #[test]
    fn targets_in_the_form_of_go() {
        let found = targets(&sound(&source()).expect("is sound"));
        let first = target(&found[0]);
        assert_eq!((&first["name"], &first["base"]), (&json!("first"), &json!("scratch")));
        assert_eq!(first.get("default"), None);
        let last = target(&found[1]);
        assert_eq!((&last["default"], last.get("name")), (&json!(true), None));
        assert_eq!(last["location"], json!({ "ranges": [{ "start": { "line": 4 }, "end": { "line": 4 } }] }));
    }

    #[test]
    fn a_finding_has_its_place() {
        let rule = Rule::UndefinedVar;
        let found = Diagnostic::warning(rule, Span::new(51, 59), "Usage of undefined variable");
        let report = CheckReport { warnings: vec![found], error: None };
        let value = findings(&report, &source());
        assert_eq!(value["warnings"][0]["ruleName"], json!("UndefinedVar"));
        assert_eq!(value["warnings"][0]["location"]["ranges"][0]["start"]["line"], json!(5));
        assert!(check_text(&report, &source()).contains("   5 | >>> COPY a /\n"));
        let clean = CheckReport { warnings: Vec::new(), error: None };
        assert_eq!(findings(&clean, &source())["warnings"], Value::Null);
    }
}
