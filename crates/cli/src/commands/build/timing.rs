//! `--trace` and `--profile`: where the time of a build went.
//!
//! Owns the flags and the words; what is measured is the engine's [`Timeline`]. Start with [`Flags::finish`].

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use stave_engine::{CriticalPath, Observer, PathEntry, Timeline};
use stave_solver::StepPhase;

use crate::format;
use crate::progress::sanitise::clean;
use crate::report::Failure;

/// Phases shorter than this are not worth a word.
const WORTH_A_WORD: Duration = Duration::from_micros(500);

/// Flags about time.
#[derive(Debug, clap::Args)]
#[group(skip)]
pub(crate) struct Flags {
    /// Write a trace of the build to a file, for Perfetto or chrome://tracing
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// Say at the end where the time went: the chain of steps that the end waited for
    #[arg(long)]
    profile: bool,
}

impl Flags {
    /// What is needed to answer; nothing is collected without a question.
    pub(super) fn timeline(&self) -> Option<Timeline> {
        (self.profile || self.trace.is_some()).then(Timeline::begin)
    }

    /// Writes the trace, and the profile to standard error; also of a build that failed.
    pub(super) fn finish(&self, timeline: Option<&Timeline>) -> Result<(), Failure> {
        let Some(timeline) = timeline else { return Ok(()) };
        if self.profile {
            eprint!("{}", profile(&timeline.critical_path(), timeline.elapsed()));
        }
        if let Some(path) = &self.trace {
            super::write(path, &timeline.trace())?;
        }
        Ok(())
    }
}

/// The observer that also feeds the timeline.
pub(super) fn observed(timeline: Option<&Timeline>, next: Observer) -> Observer {
    match timeline {
        Some(timeline) => timeline.observer(next),
        None => next,
    }
}

fn profile(path: &CriticalPath, total: Duration) -> String {
    let mut text = format!("\nwhere the time went ({}):\n    start      took\n", seconds(total));
    for PathEntry { span, .. } in &path.entries {
        // Writing to a String cannot fail, here and below.
        let _infallible = write!(
            text,
            "{:>9}  {:>8}  {}",
            seconds(span.start),
            seconds(span.length()),
            clean(&span.name.replace('\n', " "))
        );
        let mut notes: Vec<String> = span
            .phases
            .iter()
            .filter(|(_, length)| *length >= WORTH_A_WORD)
            .map(|(phase, length)| format!("{} {}", name(*phase), seconds(*length)))
            .collect();
        if !span.cpu.is_zero() {
            notes.push(format!("processor {}", seconds(span.cpu)));
        }
        if span.memory > 0 {
            notes.push(format!("memory {}", format::size(span.memory)));
        }
        if !notes.is_empty() {
            let _infallible = write!(text, "\n{:23}{}", "", notes.join(", "));
        }
        text.push('\n');
    }
    let _infallible =
        writeln!(text, "{:>9}  {:>8}  between these steps and after them", "", seconds(path.outside()));
    let (count, sum) = path.beside;
    if count > 0 {
        let plural = if count == 1 { "" } else { "s" };
        let _infallible =
            writeln!(text, "{:>9}  {:>8}  in {count} other step{plural}, meanwhile", "", seconds(sum));
    }
    text
}

fn name(phase: StepPhase) -> &'static str {
    match phase {
        StepPhase::Waiting => "waiting",
        StepPhase::Preparing => "preparing",
        StepPhase::Process => "process",
        StepPhase::Committing => "committing",
    }
}

fn seconds(time: Duration) -> String {
    format!("{:.3} s", time.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use stave_engine::{Span, StepId, Subject};

    use super::*;

    #[test]
    fn a_profile_reads_from_top_to_bottom() {
        let millis = Duration::from_millis;
        let span = |number, name: &str, start, end| Span {
            subject: Subject::Step(StepId(number)),
            name: name.to_owned(),
            start: millis(start),
            end: millis(end),
            phases: Vec::new(),
            cpu: Duration::ZERO,
            memory: 0,
        };
        let run = Span {
            phases: vec![
                (StepPhase::Preparing, Duration::from_micros(20)),
                (StepPhase::Process, millis(890)),
            ],
            cpu: millis(1200),
            memory: 64_000_000,
            ..span(1, "[2/2] RUN make\nall", 10, 910)
        };
        let path = CriticalPath {
            entries: vec![
                PathEntry { span: span(0, "[internal] load", 0, 4), gap: Duration::ZERO },
                PathEntry { span: run, gap: millis(6) },
            ],
            rest: millis(90),
            beside: (1, millis(300)),
        };
        insta::assert_snapshot!(profile(&path, millis(1000)), @r"

        where the time went (1.000 s):
            start      took
          0.000 s   0.004 s  [internal] load
          0.010 s   0.900 s  [2/2] RUN make all
                               process 0.890 s, processor 1.200 s, memory 64MB
                    0.096 s  between these steps and after them
                    0.300 s  in 1 other step, meanwhile
        ");
    }
}
