//! The last words: warnings, what was built, and the log of what failed. Pure.

use std::fmt::Write as _;
use std::time::Duration;

use stave_engine::BuildOutcome;
use stave_frontend_dockerfile::{Diagnostic, Source};

use super::sanitise::clean;
use super::text;
use super::tracker::{State, Tracker};
use crate::format;

/// The warnings of a build, in BuildKit's form: rule, finding, line.
pub(super) fn warnings(source: &Source, found: &[Diagnostic]) -> String {
    let mut output = String::new();
    if found.is_empty() {
        return output;
    }
    let plural = if found.len() == 1 { "" } else { "s" };
    let more =
        if found.iter().any(|warning| warning.rule().is_some()) { " (use --check to expand)" } else { "" };
    // Writing to a String cannot fail, here and below.
    let _infallible = writeln!(output, "\n {} warning{plural} found{more}:", found.len());
    for warning in found {
        let rule = warning.rule().map_or_else(String::new, |rule| format!("{}: ", rule.name()));
        let _infallible = write!(output, " - {rule}{}", clean(&warning.message));
        if let Some(name) = &warning.suggestion {
            let _infallible = write!(output, " (did you mean {}?)", clean(name));
        }
        // What is about no place is about the call.
        let place = (!warning.span.is_empty()).then(|| source.position(warning.span.start).line);
        let place = place.map_or_else(String::new, |line| format!(" (line {line})"));
        output.push_str(&place);
        output.push('\n');
    }
    output
}

/// One line on what was built: id, names, size, time, cached steps.
pub(super) fn built(outcome: &BuildOutcome, elapsed: Duration) -> String {
    let mut output = String::from("\n");
    output.push_str(if outcome.image.is_some() { "built " } else { "done" });
    if let Some(image) = &outcome.image {
        let _infallible = write!(output, "{image}");
    }
    let mut names: Vec<String> = Vec::new();
    for name in outcome.exports.iter().flat_map(|exported| &exported.names) {
        let name = name.familiar();
        if !names.contains(&name) {
            names.push(name);
        }
    }
    if !names.is_empty() {
        let _infallible = write!(output, " ({})", names.join(", "));
    }
    if let Some(size) = outcome.exports.iter().map(|exported| exported.size).max().filter(|size| *size > 0) {
        let _infallible = write!(output, " {}", format::size(size));
    }
    let steps = outcome.steps;
    let _infallible =
        writeln!(output, " in {}, {} of {} steps cached", text::seconds(elapsed), steps.cached, steps.total);
    output
}

/// The end of the log of each step that failed, as BuildKit repeats it after its progress.
pub(super) fn failed_logs(tracker: &Tracker) -> String {
    let mut output = String::new();
    for item in &tracker.items {
        if !matches!(item.state, State::Failed(_)) || item.tail.is_empty() {
            continue;
        }
        let _infallible = writeln!(output, "------\n > {}:", item.name);
        for line in &item.tail {
            let _infallible = writeln!(output, "{line}");
        }
        output.push_str("------\n");
    }
    output
}

#[cfg(test)]
mod tests {
    use stave_engine::StepCount;
    use stave_oci::Digest;
    use stave_solver::{LogStream, SolveEvent};

    use super::*;

    #[test]
    fn warnings_have_their_rule_and_line() {
        let source = Source::new("Dockerfile", "FROM scratch AS Bad\n");
        let rule = stave_frontend_dockerfile::check::Rule::StageNameCasing;
        let span = stave_frontend_dockerfile::Span::new(0, 19);
        let mut found = vec![Diagnostic::warning(rule, span, "Stage name 'Bad' should be lowercase")];
        let expected = "\n 1 warning found (use --check to expand):\n - StageNameCasing: Stage name 'Bad' should be \
                        lowercase (line 1)\n";
        assert_eq!(warnings(&source, &found), expected);
        found[0].code = stave_frontend_dockerfile::Code::Unused;
        found[0].span = stave_frontend_dockerfile::Span::default();
        found[0].message = "[X] unused".to_owned();
        found[0].suggestion = Some("Y".into());
        let expected = "\n 1 warning found:\n - [X] unused (did you mean Y?)\n";
        assert_eq!(warnings(&source, &found), expected);
        assert_eq!(warnings(&source, &[]), "");
    }

    #[test]
    fn a_failed_step_repeats_the_end_of_its_log() {
        let mut tracker = Tracker::new(true);
        let vertex = Digest::sha256(b"a");
        tracker.name([(vertex.clone(), "[2/2] RUN exit 3".to_owned())].into_iter());
        let bytes: Vec<u8> = (0..12).flat_map(|n| format!("{n}\n").into_bytes()).collect();
        let now = Duration::from_millis(5);
        tracker.solve(SolveEvent::Log { vertex: vertex.clone(), stream: LogStream::Stdout, bytes }, now);
        assert_eq!(failed_logs(&tracker), "");
        tracker.solve(SolveEvent::Failed { vertex, duration: now, message: "exit code: 3".to_owned() }, now);
        let text = failed_logs(&tracker);
        assert!(text.starts_with("------\n > [2/2] RUN exit 3:\n0.000 2\n0.000 3\n"), "{text}");
        assert!(text.ends_with("0.000 11\n------\n"), "{text}");
    }

    #[test]
    fn the_last_line_says_what_was_built() {
        let steps = StepCount { total: 9, cached: 4 };
        let outcome =
            BuildOutcome { build: None, image: None, images: Vec::new(), exports: Vec::new(), steps };
        assert_eq!(built(&outcome, Duration::from_millis(3210)), "\ndone in 3.2s, 4 of 9 steps cached\n");
        let image = Digest::sha256(b"");
        let outcome = BuildOutcome { image: Some(image.clone()), ..outcome };
        assert_eq!(
            built(&outcome, Duration::ZERO),
            format!("\nbuilt {image} in 0.0s, 4 of 9 steps cached\n")
        );
    }
}
