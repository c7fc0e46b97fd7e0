//! Targets and parameters in BuildKit's forms: columns of text, or JSON. Pure.

use serde::Serialize;
use stave_frontend_dockerfile::outline::{Needed, OutlineArgument};
use stave_frontend_dockerfile::source::Lines;
use stave_frontend_dockerfile::{Outline, Source, Target};

use super::findings::{Location, encoded};
use crate::report::Failure;

/// What the front end can be asked, in the words of its reference: `lint` is not among them there either.
pub(super) const DESCRIPTION: &str = "\
NAME                 VERSION DESCRIPTION
outline              1.0.0   List all parameters current build target supports
targets              1.0.0   List all targets current build supports
subrequests.describe 1.0.0   List available subrequest types
";

/// The same for programs.
pub(super) const DESCRIPTION_JSON: &str = include_str!("describe.json");

/// Text without anything that steers a terminal.
pub(super) fn visible(text: &str) -> String {
    text.chars().filter(|letter| !letter.is_control()).collect()
}

/// Rows as columns with `gap` spaces between them; the last one is not padded.
fn columns<const N: usize>(rows: &[[String; N]], gap: usize) -> String {
    let width = |at: usize| rows.iter().map(|row| row[at].chars().count()).max().unwrap_or(0) + gap;
    let widths: [usize; N] = std::array::from_fn(width);
    let mut output = String::new();
    for row in rows {
        for (cell, width) in row[..N - 1].iter().zip(widths) {
            output.push_str(&format!("{cell:width$}"));
        }
        output.push_str(&row[N - 1]);
        output.push('\n');
    }
    output
}

/// The targets with their descriptions.
pub(super) fn targets(found: &[Target]) -> String {
    let mut rows = vec![["TARGET", "DESCRIPTION"].map(str::to_owned)];
    for target in found {
        let name = match (&target.name, target.default) {
            (None, true) => "(default)".to_owned(),
            (Some(name), true) => format!("{name} (default)"),
            (name, false) => name.clone().unwrap_or_default(),
        };
        rows.push([name, target.description.clone().unwrap_or_default()].map(|cell| visible(&cell)));
    }
    columns(&rows, 1)
}

/// A target's name, build args, secrets and agents, a table each.
pub(super) fn outline(found: &Outline) -> String {
    let mut output = String::new();
    if let Some(name) = &found.name {
        let mut rows = vec![["TARGET:".to_owned(), visible(name)]];
        let description = found.description.as_ref();
        rows.extend(description.map(|text| ["DESCRIPTION:".to_owned(), visible(text)]));
        output.push_str(&columns(&rows, 1));
        output.push('\n');
    }
    if !found.arguments.is_empty() {
        let mut rows = vec![["BUILD ARG", "VALUE", "DESCRIPTION"].map(str::to_owned)];
        rows.extend(found.arguments.iter().map(|argument| {
            let description = argument.description.as_deref().unwrap_or_default();
            [argument.name.as_str(), argument.value.as_str(), description].map(visible)
        }));
        output.push_str(&columns(&rows, 3));
        output.push('\n');
    }
    for (title, all) in [("SECRET", &found.secrets), ("SSH", &found.agents)] {
        if all.is_empty() {
            continue;
        }
        let mut rows = vec![[title, "REQUIRED"].map(str::to_owned)];
        rows.extend(
            all.iter().map(|one| [one.id.as_str(), if one.required { "true" } else { "" }].map(visible)),
        );
        output.push_str(&columns(&rows, 3));
        output.push('\n');
    }
    output
}

fn location(lines: Lines) -> Location {
    // 32 bits fit.
    let number = |line: u32| usize::try_from(line).unwrap_or(usize::MAX);
    Location::of(Some((number(lines.first), number(lines.last))))
}

#[derive(Serialize)]
struct TargetList<'a> {
    targets: Vec<TargetRow<'a>>,
    sources: [String; 1],
}

#[derive(Serialize)]
struct TargetRow<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    default: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<&'a str>,
    base: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    platform: Option<&'a str>,
    location: Location,
}

/// The same with base, platform and place.
pub(super) fn targets_json(source: &Source, found: &[Target]) -> Result<String, Failure> {
    fn row(target: &Target) -> TargetRow<'_> {
        TargetRow {
            name: target.name.as_deref(),
            default: target.default,
            description: target.description.as_deref(),
            base: &target.base,
            platform: target.platform.as_deref(),
            location: location(target.lines),
        }
    }
    pretty(&TargetList { targets: found.iter().map(row).collect(), sources: [encoded(source)] })
}

#[derive(Serialize)]
struct OutlineRows<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<&'a str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    args: Vec<ArgumentRow<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    secrets: Vec<NeededRow<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ssh: Vec<NeededRow<'a>>,
    sources: [String; 1],
}

#[derive(Serialize)]
struct ArgumentRow<'a> {
    name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<&'a str>,
    #[serde(skip_serializing_if = "str::is_empty")]
    value: &'a str,
    location: Location,
}

#[derive(Serialize)]
struct NeededRow<'a> {
    name: &'a str,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    required: bool,
    location: Location,
}

/// The same with places.
pub(super) fn outline_json(source: &Source, found: &Outline) -> Result<String, Failure> {
    fn argument(argument: &OutlineArgument) -> ArgumentRow<'_> {
        ArgumentRow {
            name: &argument.name,
            description: argument.description.as_deref(),
            value: &argument.value,
            location: location(argument.lines),
        }
    }
    fn needed(one: &Needed) -> NeededRow<'_> {
        NeededRow { name: &one.id, required: one.required, location: location(one.lines) }
    }
    pretty(&OutlineRows {
        name: found.name.as_deref(),
        description: found.description.as_deref(),
        args: found.arguments.iter().map(argument).collect(),
        secrets: found.secrets.iter().map(needed).collect(),
        ssh: found.agents.iter().map(needed).collect(),
        sources: [encoded(source)],
    })
}

fn pretty(value: &impl Serialize) -> Result<String, Failure> {
    serde_json::to_string_pretty(value).map_err(|error| Failure::new(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINES: Lines = Lines { first: 2, last: 2 };

    fn target(name: Option<&str>, default: bool, description: Option<&str>) -> Target {
        Target {
            name: name.map(str::to_owned),
            default,
            description: description.map(str::to_owned),
            base: "scratch".to_owned(),
            platform: None,
            lines: LINES,
        }
    }

    #[test]
    fn targets_are_columns() {
        let found = [
            target(Some("lint"), false, Some("looks at it")),
            target(None, false, None),
            target(Some("release"), true, None),
        ];
        let expected = "TARGET            DESCRIPTION\nlint              looks at it\n                  \n\
                        release (default) \n";
        assert_eq!(targets(&found), expected);
        assert_eq!(targets(&[target(None, true, None)]), "TARGET    DESCRIPTION\n(default) \n");
    }

    #[test]
    fn an_outline_is_a_table_for_each_kind() {
        let needed = |id: &str, required| Needed { id: id.to_owned(), required, lines: LINES };
        let argument = |name: &str, value: &str, description: Option<&str>| OutlineArgument {
            name: name.to_owned(),
            description: description.map(str::to_owned),
            value: value.to_owned(),
            lines: LINES,
        };
        let found = Outline {
            name: Some("app".to_owned()),
            description: Some("all of it".to_owned()),
            arguments: vec![
                argument("GO_VERSION", "1.26", Some("of the compiler")),
                argument("X", "\x1b", None),
            ],
            secrets: vec![needed("token", true)],
            agents: vec![needed("default", false)],
        };
        let expected = "TARGET:      app\nDESCRIPTION: all of it\n\n\
                        BUILD ARG    VALUE   DESCRIPTION\nGO_VERSION   1.26    of the compiler\nX                    \n\n\
                        SECRET   REQUIRED\ntoken    true\n\nSSH       REQUIRED\ndefault   \n\n";
        assert_eq!(outline(&found), expected);
        assert_eq!(outline(&Outline::default()), "");
        let source = Source::new("Dockerfile", "");
        let value: serde_json::Value =
            serde_json::from_str(&outline_json(&source, &found).expect("is made")).expect("is JSON");
        let place = serde_json::json!({"ranges": [{"start": {"line": 2}, "end": {"line": 2}}]});
        let expected = serde_json::json!({
            "name": "app",
            "description": "all of it",
            "args": [
                {"name": "GO_VERSION", "description": "of the compiler", "value": "1.26", "location": place},
                {"name": "X", "value": "\u{1b}", "location": place},
            ],
            "secrets": [{"name": "token", "required": true, "location": place}],
            "ssh": [{"name": "default", "location": place}],
            "sources": [""],
        });
        assert_eq!(value, expected);
    }
}
