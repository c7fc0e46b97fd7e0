//! Measurements, their medians and ratios, as Markdown and JSON.

use std::fmt::Write as _;
use std::time::Duration;

/// One timed operation.
pub(crate) struct Measurement {
    pub(crate) workload: &'static str,
    pub(crate) operation: &'static str,
    pub(crate) builder: String,
    pub(crate) wall: Duration,
}

/// All measurements of a run.
pub(crate) struct Table {
    builders: Vec<String>,
    rows: Vec<Measurement>,
}

impl Table {
    pub(crate) fn new(builders: Vec<String>) -> Self {
        Self { builders, rows: Vec::new() }
    }

    pub(crate) fn add(&mut self, measurement: Measurement) {
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

    fn seconds(&self, key: (&str, &str), builder: &str) -> Vec<f64> {
        let matching =
            self.rows.iter().filter(|row| (row.workload, row.operation) == key && row.builder == builder);
        matching.map(|row| row.wall.as_secs_f64()).collect()
    }

    /// Median seconds of each builder, and for each peer the median of the rounds' ratios stave : peer.
    pub(crate) fn markdown(&self) -> String {
        let mut text = String::from("| workload | operation |");
        for builder in &self.builders {
            let ratio = if builder == "stave" { "" } else { " (stave ÷ it)" };
            let _infallible = write!(text, " {builder}{ratio} |");
        }
        text.push_str(&format!("\n|---|---|{}\n", "---|".repeat(self.builders.len())));
        for key in self.keys() {
            let _infallible = write!(text, "| {} | {} |", key.0, key.1);
            let own = self.seconds(key, "stave");
            for builder in &self.builders {
                let theirs = self.seconds(key, builder);
                let cell = match median(theirs.clone()) {
                    None => "–".to_owned(),
                    Some(value) if builder == "stave" => format!("{value:.3} s"),
                    Some(value) => {
                        let ratios = own.iter().zip(&theirs).map(|(a, b)| a / b).collect();
                        format!("{value:.3} s ({:.2}×)", median(ratios).unwrap_or(f64::NAN))
                    }
                };
                let _infallible = write!(text, " {cell} |");
            }
            text.push('\n');
        }
        text
    }

    /// Every single measurement.
    pub(crate) fn json(&self) -> String {
        let rows = self.rows.iter().map(|row| {
            serde_json::json!({"workload": row.workload, "operation": row.operation, "builder": row.builder, "seconds": row.wall.as_secs_f64()})
        });
        serde_json::to_string_pretty(&rows.collect::<Vec<_>>()).unwrap_or_default()
    }
}

fn median(mut values: Vec<f64>) -> Option<f64> {
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
    use super::*;

    #[test]
    fn medians_and_ratios() {
        assert_eq!(median(vec![]), None);
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0]), Some(2.5));
        let mut table = Table::new(vec!["stave".to_owned(), "other".to_owned()]);
        for (builder, seconds) in [("stave", 1), ("other", 4)] {
            table.add(Measurement {
                workload: "w",
                operation: "cold",
                builder: builder.to_owned(),
                wall: Duration::from_secs(seconds),
            });
        }
        assert!(
            table.markdown().contains("| w | cold | 1.000 s | 4.000 s (0.25×) |"),
            "{}",
            table.markdown()
        );
    }
}
