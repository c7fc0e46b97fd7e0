//! Measurements, their medians and ratios, as Markdown and JSON.

use std::fmt::Write as _;

use super::usage::Usage;

/// One measured operation.
pub(crate) struct Measurement {
    pub(crate) workload: &'static str,
    pub(crate) operation: &'static str,
    pub(crate) builder: &'static str,
    pub(crate) round: usize,
    pub(crate) usage: Usage,
}

/// All measurements of a run.
#[derive(Default)]
pub(crate) struct Table {
    rows: Vec<Measurement>,
}

/// One of the four things that are measured.
struct Metric {
    title: &'static str,
    value: fn(&Usage) -> f64,
    show: fn(f64) -> String,
}

#[expect(clippy::cast_precision_loss, reason = "bytes are shown in MB with one digit")]
const METRICS: [Metric; 4] = [
    Metric { title: "wall", value: |usage| usage.wall.as_secs_f64(), show: |value| format!("{value:.3} s") },
    Metric {
        title: "processor time",
        value: |usage| usage.cpu.as_secs_f64(),
        show: |value| format!("{value:.2} s"),
    },
    Metric {
        title: "peak memory",
        value: |usage| usage.memory as f64 / 1e6,
        show: |value| format!("{value:.0} MB"),
    },
    Metric {
        title: "written",
        value: |usage| usage.written as f64 / 1e6,
        show: |value| format!("{value:.1} MB"),
    },
];

impl Table {
    pub(crate) fn add(&mut self, measurement: Measurement) {
        let Measurement { workload, operation, builder, usage, .. } = &measurement;
        eprintln!("xtask: {workload}, {operation}, {builder}: {:.3} s", usage.wall.as_secs_f64());
        self.rows.push(measurement);
    }

    /// The keys in the order in which they were first measured.
    fn keys(&self) -> Vec<(&'static str, &'static str)> {
        let mut keys = Vec::new();
        for row in &self.rows {
            if !keys.contains(&(row.workload, row.operation)) {
                keys.push((row.workload, row.operation));
            }
        }
        keys
    }

    /// A builder's values in the order of the rounds.
    fn values(&self, key: (&str, &str), builder: &str, metric: &Metric) -> Vec<f64> {
        let matching =
            self.rows.iter().filter(|row| (row.workload, row.operation) == key && row.builder == builder);
        let mut values: Vec<(usize, f64)> =
            matching.map(|row| (row.round, (metric.value)(&row.usage))).collect();
        values.sort_by_key(|(round, _)| *round);
        values.into_iter().map(|(_, value)| value).collect()
    }

    /// For each metric: the median of each builder, and for each peer the median of the rounds' ratios,
    /// stave's value divided by the peer's.
    pub(crate) fn markdown(&self, builders: &[&str]) -> String {
        let mut text = String::new();
        for metric in &METRICS {
            let _infallible = write!(text, "\n| {} | operation |", metric.title);
            for builder in builders {
                let ratio = if *builder == "stave" { "" } else { " (stave ÷ it)" };
                let _infallible = write!(text, " {builder}{ratio} |");
            }
            let _infallible = writeln!(text, "\n|---|---|{}", "---|".repeat(builders.len()));
            for key in self.keys() {
                let _infallible = write!(text, "| {} | {} |", key.0, key.1);
                let own = self.values(key, "stave", metric);
                for builder in builders {
                    let _infallible =
                        write!(text, " {} |", cell(&own, &self.values(key, builder, metric), metric));
                }
                text.push('\n');
            }
        }
        text
    }

    /// Every single measurement, with the machine's description.
    pub(crate) fn json(&self, machine: &str) -> String {
        let rows = self.rows.iter().map(|row| {
            serde_json::json!({
                "workload": row.workload,
                "operation": row.operation,
                "builder": row.builder,
                "round": row.round,
                "seconds": row.usage.wall.as_secs_f64(),
                "cpuSeconds": row.usage.cpu.as_secs_f64(),
                "peakBytes": row.usage.memory,
                "writtenBytes": row.usage.written,
            })
        });
        let document = serde_json::json!({"machine": machine, "measurements": rows.collect::<Vec<_>>()});
        serde_json::to_string_pretty(&document).unwrap_or_default()
    }
}

/// `own` and `theirs` are the same list for stave itself.
fn cell(own: &[f64], theirs: &[f64], metric: &Metric) -> String {
    let Some(value) = median(theirs.to_vec()) else { return "–".to_owned() };
    let shown = (metric.show)(value);
    if own == theirs {
        return shown;
    }
    let ratios = own.iter().zip(theirs).filter(|(_, their)| **their > 0.0).map(|(a, b)| a / b).collect();
    median(ratios).map_or(shown.clone(), |ratio| format!("{shown} ({ratio:.2}×)"))
}

/// The middle value; of an even number the mean of the two in the middle.
pub(crate) fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        length if length % 2 == 1 => Some(values[middle]),
        _ => Some(f64::midpoint(values[middle - 1], values[middle])),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn medians_and_ratios() {
        assert_eq!(median(vec![]), None);
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0]), Some(2.5));
        let mut table = Table::default();
        for (round, builder, seconds) in [
            (0, "stave", 1),
            (0, "other", 4),
            (1, "stave", 3),
            (1, "other", 6),
            (2, "other", 8),
            (2, "stave", 2),
        ] {
            let usage = Usage { wall: Duration::from_secs(seconds), ..Usage::default() };
            table.rows.push(Measurement { workload: "w", operation: "cold", builder, round, usage });
        }
        let text = table.markdown(&["stave", "other"]);
        assert!(text.contains("| w | cold | 2.000 s | 6.000 s (0.25×) |"), "{text}");
        assert!(text.contains("| w | cold | 0 MB | 0 MB |"), "a ratio to nothing is left out: {text}");
    }
}
