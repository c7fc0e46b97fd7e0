//! How stave's time grows with the size of its work: a table, exponents, and a plot.
//!
//! The exponent is the slope of the least-squares line through the logarithms: 1 is linear, less is better.

use std::fmt::Write as _;
use std::path::Path;

use stave_test_support::workloads;

use super::invocation::{Invocation, Line};
use super::table::median;
use crate::Failure;

/// One thing that grows, with its sizes.
#[derive(Debug, Clone, Copy)]
enum Dimension {
    /// RUN steps in a row.
    Steps,
    /// Files of a context that is copied.
    Files,
    /// Layers of an image that is pulled.
    Layers,
    /// Builds at once.
    Builds,
}

const DIMENSIONS: [(Dimension, &str, &[usize]); 4] = [
    (Dimension::Steps, "RUN steps, cold build", &[10, 50, 100, 200, 400]),
    (Dimension::Files, "files of the context, cold build", &[1_000, 5_000, 20_000, 50_000]),
    (Dimension::Layers, "layers of the base image, pull and one step", &[10, 30, 60, 120]),
    (Dimension::Builds, "builds at once, ten steps each", &[1, 2, 4, 8, 16]),
];

/// Sizes and seconds of one dimension.
struct Curve {
    title: &'static str,
    points: Vec<(f64, f64)>,
}

/// Measures every dimension and writes `growth.svg` and `growth.md` into `folder`.
pub(crate) fn run(stave: &Path, registry: &str, folder: &Path, rounds: usize) -> Result<(), Failure> {
    let bench = Growth { stave, registry, folder };
    let mut curves = Vec::new();
    for (dimension, title, sizes) in DIMENSIONS {
        let mut points = Vec::new();
        for &size in sizes {
            let mut seconds = Vec::new();
            for _ in 0..rounds.max(1) {
                seconds.push(bench.once(dimension, size)?);
            }
            let value = median(seconds).unwrap_or_default();
            eprintln!("xtask: {title}: {size}: {value:.3} s");
            points.push((real(size), value));
        }
        curves.push(Curve { title, points });
    }
    let text = markdown(&curves);
    println!("{text}");
    std::fs::write(folder.join("growth.md"), text)?;
    std::fs::write(folder.join("growth.svg"), svg(&curves))?;
    println!("written to {}/growth.{{md,svg}}", folder.display());
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "sizes are far below 2^52")]
fn real(size: usize) -> f64 {
    size as f64
}

struct Growth<'a> {
    stave: &'a Path,
    registry: &'a str,
    folder: &'a Path,
}

impl Growth<'_> {
    /// Seconds of one operation of this size.
    fn once(&self, dimension: Dimension, size: usize) -> Result<f64, Failure> {
        let context = self.folder.join("contexts/growth").join(format!("{dimension:?}-{size}"));
        std::fs::create_dir_all(&context)?;
        let state = self.folder.join("growth");
        std::fs::create_dir_all(&state)?;
        let invocation = match dimension {
            Dimension::Steps => {
                std::fs::write(context.join("Dockerfile"), workloads::chain(size))?;
                Invocation::One(self.build(&state, &context).arg("--no-cache"))
            }
            Dimension::Files => {
                workloads::tiny_files(&context, size)?;
                Invocation::One(self.build(&state, &context).arg("--no-cache"))
            }
            Dimension::Layers => return self.pull(&state, &context, size),
            Dimension::Builds => {
                let lines = (0..size).map(|number| {
                    let one = context.join(number.to_string());
                    let text = workloads::chain_called(&number.to_string(), 10);
                    std::fs::create_dir_all(&one)?;
                    std::fs::write(one.join("Dockerfile"), text)?;
                    Ok(self.build(&state, &one).arg("--no-cache"))
                });
                Invocation::Together(lines.collect::<Result<_, std::io::Error>>()?)
            }
        };
        Ok(invocation.run(&state)?.wall.as_secs_f64())
    }

    /// Pushes an image of so many layers, then builds on it with an empty state.
    fn pull(&self, state: &Path, context: &Path, layers: usize) -> Result<f64, Failure> {
        let name = format!("{}/bench/layers:{layers}", self.registry);
        std::fs::write(context.join("Dockerfile"), workloads::chain(layers))?;
        Invocation::One(self.build(state, context).arg("--push").arg("-t").arg(&name)).run(state)?;
        let child = context.join("child");
        std::fs::create_dir_all(&child)?;
        std::fs::write(child.join("Dockerfile"), format!("FROM {name}\nRUN true\n"))?;
        let empty = self.folder.join("growth-empty");
        let usage = Invocation::One(self.build(&empty, &child)).run(state)?;
        std::fs::remove_dir_all(&empty)?;
        Ok(usage.wall.as_secs_f64())
    }

    fn build(&self, state: &Path, context: &Path) -> Line {
        let line = Line::new(self.stave).args(["build", "--progress=plain", "--root"]).arg(state);
        line.arg("--build-arg").arg(format!("REGISTRY={}", self.registry)).arg(context)
    }
}

/// The slope of the line through the logarithms; `None` for fewer than two points.
fn exponent(points: &[(f64, f64)]) -> Option<f64> {
    let logs: Vec<(f64, f64)> = points.iter().map(|(x, y)| (x.ln(), y.ln())).collect();
    let count = real(logs.len());
    let mean = |pick: fn(&(f64, f64)) -> f64| logs.iter().map(pick).sum::<f64>() / count;
    let (x, y) = (mean(|point| point.0), mean(|point| point.1));
    let spread: f64 = logs.iter().map(|point| (point.0 - x).powi(2)).sum();
    let joint: f64 = logs.iter().map(|point| (point.0 - x) * (point.1 - y)).sum();
    (spread > 0.0).then(|| joint / spread)
}

fn markdown(curves: &[Curve]) -> String {
    let mut text = String::from("| what grows | size: seconds | exponent |\n|---|---|---|\n");
    for curve in curves {
        let points: Vec<String> = curve.points.iter().map(|(x, y)| format!("{x}: {y:.3}")).collect();
        let slope = exponent(&curve.points).unwrap_or(f64::NAN);
        let _infallible = writeln!(text, "| {} | {} | {slope:.2} |", curve.title, points.join(", "));
    }
    text
}

/// One panel a curve, side by side, both axes from zero.
fn svg(curves: &[Curve]) -> String {
    const WIDTH: f64 = 300.0;
    const HEIGHT: f64 = 220.0;
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{}\" height=\"{}\" font-family=\"sans-serif\" font-size=\"11\">\n",
        (WIDTH + 60.0) * real(curves.len()),
        HEIGHT + 80.0
    );
    for (index, curve) in curves.iter().enumerate() {
        let left = (WIDTH + 60.0) * real(index) + 45.0;
        let most =
            |pick: fn(&(f64, f64)) -> f64| curve.points.iter().map(pick).fold(f64::MIN_POSITIVE, f64::max);
        let (most_x, most_y) = (most(|point| point.0), most(|point| point.1));
        let place = |(x, y): (f64, f64)| {
            (left + x / most_x * (WIDTH - 20.0), 30.0 + HEIGHT - y / most_y * (HEIGHT - 20.0))
        };
        let line: Vec<String> =
            curve.points.iter().map(|&point| place(point)).map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        let bottom = 30.0 + HEIGHT;
        let _infallible = writeln!(
            text,
            "<text x=\"{left}\" y=\"18\">{}</text>\n<path d=\"M{left},30 V{bottom} H{}\" fill=\"none\" stroke=\"#888\"/>\n\
             <polyline points=\"{}\" fill=\"none\" stroke=\"#1668b8\" stroke-width=\"2\"/>",
            curve.title,
            left + WIDTH,
            line.join(" ")
        );
        for &point in &curve.points {
            let (x, y) = place(point);
            let _infallible = writeln!(
                text,
                "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"#1668b8\"/>\
                 <text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{:.2} s</text>\
                 <text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
                y - 8.0,
                point.1,
                bottom + 16.0,
                point.0
            );
        }
    }
    text.push_str("</svg>\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(points: &[(f64, f64)], expected: Option<f64>) {
        let found = exponent(points);
        let equal = match (found, expected) {
            (Some(found), Some(expected)) => (found - expected).abs() < 1e-9,
            (None, None) => true,
            _ => false,
        };
        assert!(equal, "{found:?}, {expected:?} expected");
    }

    #[test]
    fn exponents_of_known_curves() {
        check(&[(1.0, 2.0), (10.0, 20.0), (100.0, 200.0)], Some(1.0));
        check(&[(1.0, 3.0), (10.0, 300.0)], Some(2.0));
        check(&[(1.0, 5.0), (10.0, 5.0)], Some(0.0));
        check(&[(1.0, 1.0)], None);
    }
}
