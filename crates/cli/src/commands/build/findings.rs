//! What build checks found, in BuildKit's forms: text with the rule, its page and the place, or JSON.
//! Pure.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use stave_frontend_dockerfile::check::Rule;
use stave_frontend_dockerfile::{CheckReport, Diagnostic, Source, Span};

use super::tables::visible;
use crate::report::{self, Failure};

/// Lines of one finding that are shown: a heredoc may have any number.
const MAX_LINES: usize = 1000;
/// Lines of all findings that are shown: each of a heredoc's variables may be one, with all its lines.
const MAX_ALL_LINES: usize = 200_000;

/// The lines of a source, to find places quickly however many findings there are.
struct Places<'a> {
    name: &'a str,
    lines: Vec<&'a str>,
    /// Where each line starts.
    starts: Vec<usize>,
    /// Lines shown of one finding.
    limit: usize,
}

impl<'a> Places<'a> {
    /// To show this many findings.
    fn of(source: &'a Source, findings: usize) -> Self {
        let newlines = source.text.match_indices('\n').map(|(at, _)| at + 1);
        let starts = std::iter::once(0).chain(newlines).collect();
        let limit = (MAX_ALL_LINES / findings.max(1)).clamp(1, MAX_LINES);
        Self { name: &source.name, lines: source.text.split('\n').collect(), starts, limit }
    }

    /// First and last line of a span, counted from 1; `None` for what is about no place.
    fn lines(&self, span: Span) -> Option<(usize, usize)> {
        let line = |offset: usize| self.starts.partition_point(|start| *start <= offset);
        let first = line(span.start);
        let last = line(span.end.saturating_sub(1)).max(first);
        (!span.is_empty()).then(|| (first, last.min(first + self.limit - 1)))
    }

    fn excerpt(&self, span: Span) -> String {
        let lines = self.lines(span);
        lines
            .map_or_else(String::new, |(first, last)| report::excerpt_of(self.name, &self.lines, first, last))
    }
}

/// The findings by line, and how many they are.
pub(super) fn text(source: &Source, report: &CheckReport) -> String {
    let mut output = match (report.warnings.len(), &report.error) {
        (0, Some(_)) => return String::new(),
        (0, None) => return "Check complete, no warnings found.\n".to_owned(),
        (1, _) => "Check complete, 1 warning has been found!\n".to_owned(),
        (count, _) => format!("Check complete, {count} warnings have been found!\n"),
    };
    let places = Places::of(source, report.warnings.len());
    let mut warnings: Vec<&Diagnostic> = report.warnings.iter().collect();
    warnings.sort_by_key(|warning| places.lines(warning.span).map(|(first, _)| first));
    for warning in warnings {
        let Facts { name, url, .. } = Facts::of(warning);
        let page = url.map_or_else(String::new, |url| format!(" - {url}"));
        output.push_str(&format!("\nWARNING: {name}{page}\n{}\n", visible(&warning.message)));
        output.push_str(&places.excerpt(warning.span));
    }
    output
}

/// What would stop the build, with its place below the message.
pub(super) fn failure(source: &Source, error: &Diagnostic) -> Failure {
    let message = format!("{}\n{}", visible(&error.to_string()), Places::of(source, 1).excerpt(error.span));
    // A suggestion is in the message already.
    let help = error.help.clone().filter(|_| error.suggestion.is_none());
    Failure::message(message.trim_end()).with_hint(help)
}

struct Facts {
    name: &'static str,
    description: &'static str,
    url: Option<String>,
}

impl Facts {
    fn of(warning: &Diagnostic) -> Self {
        let rule = warning.rule();
        Self {
            name: rule.map_or("", Rule::name),
            description: rule.map_or("", Rule::description),
            url: rule.and_then(Rule::url),
        }
    }
}

#[derive(Serialize)]
struct Results<'a> {
    /// `null` where there are none, as Go writes it.
    warnings: Option<Vec<Warning<'a>>>,
    sources: [SourceInfo<'a>; 1],
    #[serde(rename = "buildError", skip_serializing_if = "Option::is_none")]
    error: Option<ErrorInfo>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Warning<'a> {
    rule_name: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    description: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    url: Option<String>,
    detail: &'a str,
    location: Location,
}

#[derive(Serialize)]
struct SourceInfo<'a> {
    filename: &'a str,
    data: String,
    language: &'a str,
}

#[derive(Serialize)]
struct ErrorInfo {
    message: String,
    location: Location,
}

/// A place: one range for each line.
#[derive(Serialize)]
pub(super) struct Location {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ranges: Vec<Range>,
}

#[derive(Serialize)]
struct Range {
    start: Position,
    end: Position,
}

#[derive(Serialize)]
struct Position {
    line: usize,
}

impl Location {
    /// These lines, counted from 1.
    pub(super) fn of(lines: Option<(usize, usize)>) -> Self {
        let (first, last) = lines.unwrap_or((1, 0));
        let range = |line| Range { start: Position { line }, end: Position { line } };
        Self { ranges: (first..=last).take(MAX_LINES).map(range).collect() }
    }
}

/// The text of a source as Go writes bytes.
pub(super) fn encoded(source: &Source) -> String {
    STANDARD.encode(&source.text)
}

/// The findings in the order they were made, and the source they are about.
pub(super) fn json(source: &Source, report: &CheckReport) -> Result<String, Failure> {
    let places = Places::of(source, report.warnings.len());
    let warning = |warning| {
        let Facts { name, description, url } = Facts::of(warning);
        let location = Location::of(places.lines(warning.span));
        Warning { rule_name: name, description, url, detail: &warning.message, location }
    };
    let error = report.error.as_ref().map(|error| ErrorInfo {
        message: error.to_string(),
        location: Location::of(places.lines(error.span)),
    });
    let warnings: Vec<Warning<'_>> = report.warnings.iter().map(warning).collect();
    let info = SourceInfo { filename: &source.name, data: encoded(source), language: "Dockerfile" };
    let results =
        Results { warnings: Some(warnings).filter(|found| !found.is_empty()), sources: [info], error };
    serde_json::to_string_pretty(&results).map_err(|error| Failure::new(&error))
}

#[cfg(test)]
mod tests {
    use stave_frontend_dockerfile::Code;

    use super::*;

    fn source() -> Source {
        Source::new("Dockerfile", "FROM scratch AS Bad\nCOPY \\\n  $x /\n")
    }

    fn found() -> CheckReport {
        CheckReport {
            warnings: vec![
                Diagnostic::warning(
                    Rule::UndefinedVar,
                    Span::new(20, 32),
                    "Usage of undefined variable '$x'",
                ),
                Diagnostic::warning(Rule::StageNameCasing, Span::new(0, 19), "Stage name 'Bad'\x1b[2J"),
            ],
            error: None,
        }
    }

    #[test]
    fn warnings_have_rule_page_and_place() {
        insta::assert_snapshot!(text(&source(), &found()), @r"
        Check complete, 2 warnings have been found!

        WARNING: StageNameCasing - https://docs.docker.com/go/dockerfile/rule/stage-name-casing/
        Stage name 'Bad'[2J
        Dockerfile:1
        --------------------
           1 | >>> FROM scratch AS Bad
           2 |     COPY \
           3 |       $x /
        --------------------

        WARNING: UndefinedVar - https://docs.docker.com/go/dockerfile/rule/undefined-var/
        Usage of undefined variable '$x'
        Dockerfile:2
        --------------------
           1 |     FROM scratch AS Bad
           2 | >>> COPY \
           3 | >>>   $x /
           4 |     
        --------------------
        ");
        let one = CheckReport { warnings: vec![found().warnings.remove(0)], error: None };
        assert!(text(&source(), &one).starts_with("Check complete, 1 warning has been found!\n\nWARNING: "));
        let none = CheckReport { warnings: Vec::new(), error: None };
        assert_eq!(text(&source(), &none), "Check complete, no warnings found.\n");
    }

    #[test]
    fn many_findings_in_one_long_instruction_are_cut() {
        let source = Source::new("Dockerfile", "x\n".repeat(3000));
        let all = Span::new(0, source.text.len());
        let warning = Diagnostic::warning(Rule::UndefinedVar, all, "x");
        let one = CheckReport { warnings: vec![warning.clone()], error: None };
        assert_eq!(text(&source, &one).matches(">>>").count(), MAX_LINES);
        let many = CheckReport { warnings: vec![warning; 2 * MAX_ALL_LINES / MAX_LINES], error: None };
        assert_eq!(text(&source, &many).matches(">>>").count(), MAX_ALL_LINES);
        assert_eq!(json(&source, &many).expect("is made").matches("\"start\"").count(), MAX_ALL_LINES);
    }

    #[test]
    fn errors_stand_below_their_message() {
        let error = Diagnostic::error(Code::Plan, Span::new(20, 32), "no such stage").with_help("name one");
        let report = CheckReport { warnings: Vec::new(), error: Some(error.clone()) };
        assert_eq!(text(&source(), &report), "");
        let shown = failure(&source(), &error).render();
        assert!(shown.starts_with("ERROR: no such stage\nDockerfile:2\n-----"), "{shown}");
        assert!(shown.ends_with("-----\nhint: name one\n"), "{shown}");
    }

    #[test]
    fn json_has_the_forms_of_go() {
        let report =
            CheckReport { error: Some(Diagnostic::error(Code::Lower, Span::default(), "no")), ..found() };
        let value: serde_json::Value =
            serde_json::from_str(&json(&source(), &report).expect("is made")).expect("is JSON");
        let expected = serde_json::json!({
            "warnings": [
                {
                    "ruleName": "UndefinedVar",
                    "description": "Variables should be defined before their use",
                    "url": "https://docs.docker.com/go/dockerfile/rule/undefined-var/",
                    "detail": "Usage of undefined variable '$x'",
                    "location": {"ranges": [
                        {"start": {"line": 2}, "end": {"line": 2}},
                        {"start": {"line": 3}, "end": {"line": 3}},
                    ]},
                },
                {
                    "ruleName": "StageNameCasing",
                    "description": "Stage names should be lowercase",
                    "url": "https://docs.docker.com/go/dockerfile/rule/stage-name-casing/",
                    "detail": "Stage name 'Bad'\u{1b}[2J",
                    "location": {"ranges": [{"start": {"line": 1}, "end": {"line": 1}}]},
                },
            ],
            "sources": [{
                "filename": "Dockerfile",
                "data": "RlJPTSBzY3JhdGNoIEFTIEJhZApDT1BZIFwKICAkeCAvCg==",
                "language": "Dockerfile",
            }],
            "buildError": {"message": "no", "location": {}},
        });
        assert_eq!(value, expected);
        let none = CheckReport { warnings: Vec::new(), error: None };
        assert!(json(&source(), &none).expect("is made").starts_with("{\n  \"warnings\": null,\n"));
    }
}
