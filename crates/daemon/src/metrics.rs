//! What the daemon counts, in the form that Prometheus reads. Start with [`Metrics`].
//!
//! Labels have few values that the daemon chooses itself, so that no client can make the output grow; identities are
//! among them only where tenants are configured, and bounded. Must not know who reads it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use stave_engine::EngineEvent;
use stave_solver::{Hit, SolveEvent};

/// Upper bounds of the histograms, in seconds.
const BOUNDS: [f64; 9] = [0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0];
/// Most identities that have a line of their own; the rest are `other`.
const MAX_IDENTITIES: usize = 200;

/// Counters since the daemon began.
#[derive(Debug, Default)]
pub(crate) struct Metrics(Mutex<Counts>);

#[derive(Debug, Default)]
struct Counts {
    builds: BTreeMap<(String, &'static str), u64>,
    build_seconds: Histogram,
    steps: BTreeMap<&'static str, u64>,
    step_seconds: Histogram,
    refused: BTreeMap<&'static str, u64>,
    exported_spans: BTreeMap<&'static str, u64>,
}

#[derive(Debug, Default)]
struct Histogram {
    buckets: [u64; BOUNDS.len()],
    count: u64,
    sum: f64,
}

/// What is so at the moment of asking.
#[derive(Debug, Default)]
pub(crate) struct Gauges {
    pub(crate) version: String,
    pub(crate) builds: usize,
    pub(crate) sessions: usize,
    pub(crate) operations: [usize; 4],
    pub(crate) waiting: usize,
    pub(crate) store_bytes: Option<u64>,
    pub(crate) free_bytes: Option<u64>,
    pub(crate) is_ready: bool,
}

impl Metrics {
    fn counts(&self) -> std::sync::MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lines that are kept apart, and how many there can be of those that clients have a say in.
    pub(crate) fn lines(&self) -> (usize, usize) {
        let counts = self.counts();
        let fixed = counts.steps.len() + counts.refused.len() + counts.exported_spans.len();
        (counts.builds.len() + fixed, 3 * MAX_IDENTITIES + fixed)
    }

    /// A build ended.
    pub(crate) fn built(&self, identity: &str, result: &'static str, took: Duration) {
        let mut counts = self.counts();
        let is_known = counts.builds.keys().any(|(known, _)| known == identity);
        let identity = if is_known || counts.builds.len() < MAX_IDENTITIES { identity } else { "other" };
        *counts.builds.entry((identity.to_owned(), result)).or_default() += 1;
        counts.build_seconds.add(took);
    }

    /// A call was refused.
    pub(crate) fn refused(&self, why: &'static str) {
        *self.counts().refused.entry(why).or_default() += 1;
    }

    /// Traces were sent, or not.
    pub(crate) fn traced(&self, result: &'static str) {
        *self.counts().exported_spans.entry(result).or_default() += 1;
    }

    /// Counts what a build tells.
    pub(crate) fn note(&self, event: &EngineEvent) {
        let EngineEvent::Solve(event) = event else { return };
        let (state, took) = match event {
            SolveEvent::Cached { hit, .. } => (hit_name(*hit), None),
            SolveEvent::Completed { duration, .. } => ("ran", Some(*duration)),
            SolveEvent::Failed { .. } => ("failed", None),
            SolveEvent::Cancelled { .. } => ("cancelled", None),
            _ => return,
        };
        let mut counts = self.counts();
        *counts.steps.entry(state).or_default() += 1;
        if let Some(took) = took {
            counts.step_seconds.add(took);
        }
    }

    /// All of it as text.
    pub(crate) fn render(&self, now: &Gauges) -> String {
        let counts = self.counts();
        let mut text = Text::default();
        text.head("stave_build_info", "gauge", "The program that runs.");
        text.line("stave_build_info", &[("version", &now.version)], 1);
        text.head("stave_ready", "gauge", "Whether builds can be taken.");
        text.line("stave_ready", &[], u64::from(now.is_ready));
        text.head("stave_builds_running", "gauge", "Builds that run or wait.");
        text.line("stave_builds_running", &[], now.builds as u64);
        text.head("stave_sessions", "gauge", "Open sessions of clients.");
        text.line("stave_sessions", &[], now.sessions as u64);
        text.head("stave_operations_running", "gauge", "Operations that have their permit.");
        for (kind, count) in ["exec", "source", "file", "digest"].iter().zip(now.operations) {
            text.line("stave_operations_running", &[("kind", kind)], count as u64);
        }
        text.head("stave_operations_waiting", "gauge", "Operations that wait for their permit.");
        text.line("stave_operations_waiting", &[], now.waiting as u64);
        for (name, help, bytes) in [
            ("stave_store_bytes", "What the store takes.", now.store_bytes),
            ("stave_store_free_bytes", "What is free on the store's file system.", now.free_bytes),
            ("process_resident_memory_bytes", "Memory of the daemon itself.", resident()),
        ] {
            if let Some(bytes) = bytes {
                text.head(name, "gauge", help);
                text.line(name, &[], bytes);
            }
        }
        text.head("stave_builds_total", "counter", "Builds that ended.");
        for ((identity, result), count) in &counts.builds {
            text.line("stave_builds_total", &[("identity", identity), ("result", result)], *count);
        }
        text.head("stave_steps_total", "counter", "Steps that ended, by where their result came from.");
        for (state, count) in &counts.steps {
            text.line("stave_steps_total", &[("state", state)], *count);
        }
        text.head("stave_calls_refused_total", "counter", "Calls that were not let in.");
        for (why, count) in &counts.refused {
            text.line("stave_calls_refused_total", &[("reason", why)], *count);
        }
        text.head("stave_traces_total", "counter", "Traces of builds, by whether they were sent.");
        for (result, count) in &counts.exported_spans {
            text.line("stave_traces_total", &[("result", result)], *count);
        }
        text.histogram("stave_build_seconds", "How long builds took.", &counts.build_seconds);
        text.histogram("stave_step_seconds", "How long steps took that ran.", &counts.step_seconds);
        text.0
    }
}

fn hit_name(hit: Hit) -> &'static str {
    match hit {
        Hit::Local => "cached",
        Hit::Imported => "imported",
        Hit::Shared => "shared",
        Hit::Skipped => "skipped",
    }
}

impl Histogram {
    fn add(&mut self, took: Duration) {
        let seconds = took.as_secs_f64();
        for (bucket, bound) in self.buckets.iter_mut().zip(BOUNDS) {
            *bucket += u64::from(seconds <= bound);
        }
        self.count += 1;
        self.sum += seconds;
    }
}

#[derive(Default)]
struct Text(String);

impl Text {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a text never fails.
        write!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}\n").ok();
    }

    fn line(&mut self, name: &str, labels: &[(&str, &str)], value: u64) {
        let pairs: Vec<String> =
            labels.iter().map(|(label, text)| format!("{label}=\"{}\"", escaped(text))).collect();
        match pairs.is_empty() {
            true => writeln!(self.0, "{name} {value}").ok(),
            false => writeln!(self.0, "{name}{{{}}} {value}", pairs.join(",")).ok(),
        };
    }

    fn histogram(&mut self, name: &str, help: &str, histogram: &Histogram) {
        self.head(name, "histogram", help);
        for (count, bound) in histogram.buckets.iter().zip(BOUNDS) {
            self.line(&format!("{name}_bucket"), &[("le", &bound.to_string())], *count);
        }
        self.line(&format!("{name}_bucket"), &[("le", "+Inf")], histogram.count);
        writeln!(self.0, "{name}_sum {}", histogram.sum).ok();
        self.line(&format!("{name}_count"), &[], histogram.count);
    }
}

/// A label's value: identities hold whatever a certificate does.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// Bytes of memory of this process.
pub(crate) fn resident() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_is_told() {
        let metrics = Metrics::default();
        metrics.built("cert:a\"b\n", "succeeded", Duration::from_millis(700));
        metrics.built("cert:a\"b\n", "succeeded", Duration::from_secs(40));
        metrics.refused("identity");
        let text = metrics.render(&Gauges { builds: 3, is_ready: true, ..Gauges::default() });
        for line in [
            "stave_ready 1",
            "stave_builds_running 3",
            "stave_builds_total{identity=\"cert:a\\\"b\\n\",result=\"succeeded\"} 2",
            "stave_calls_refused_total{reason=\"identity\"} 1",
            "stave_build_seconds_bucket{le=\"0.5\"} 0",
            "stave_build_seconds_bucket{le=\"1\"} 1",
            "stave_build_seconds_bucket{le=\"60\"} 2",
            "stave_build_seconds_bucket{le=\"+Inf\"} 2",
            "stave_build_seconds_sum 40.7",
            "stave_build_seconds_count 2",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
        assert!(resident().is_some_and(|bytes| bytes > 1 << 20));
    }

    #[test]
    fn identities_are_bounded() {
        let metrics = Metrics::default();
        for number in 0..2 * MAX_IDENTITIES {
            metrics.built(&format!("uid:{number}"), "failed", Duration::ZERO);
        }
        let text = metrics.render(&Gauges::default());
        assert!(
            text.lines().filter(|line| line.starts_with("stave_builds_total{")).count() <= MAX_IDENTITIES + 1
        );
        assert!(text.contains("{identity=\"other\",result=\"failed\"} 200"), "{text}");
    }
}
